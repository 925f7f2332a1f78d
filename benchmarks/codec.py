"""Times the codec from memory to memory, beside a copy of the same dense bytes, with pyperf.

    python benchmarks/codec.py -o results.json                 all of it: some ten minutes
    python benchmarks/codec.py -o results.json --only main     what is claimed: 512 MiB of BF16, half zero

The output is mapped already and used again. Decoding checks all rules, as it always does. What is claimed are
ratios to the copy of the same run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import data
import numpy as np

from pyendor import dtypes, native, parallel
from pyendor.encoded import EncodedTensor
from pyendor.layout import Bytes

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One thing to time, and how it is called in a table."""

    section: str
    what: str
    target: str = "auto"
    threads: int = 1
    itemsize: int = 2
    density: float = 0.5
    nbytes: int = 512 * MIB
    encoding: str = "bitmap/raw"

    def name(self) -> str:
        """Unique among all cases."""
        tensor = f"{8 * self.itemsize}-bit, {self.density:.0%}, {self.nbytes // 1024} KiB"
        codec = "" if self.what == "memcpy" else f" {self.encoding} {self.target}"
        return f"{self.section} | {tensor} | {self.what}{codec} | {self.threads} threads"


def cases(targets: list[str]) -> Iterator[Case]:
    """All of them; in each group the copy comes first."""
    yield from main_cases(targets)
    for itemsize in (1, 4, 8):
        yield Case("itemsizes", "memcpy", itemsize=itemsize)
        for target in targets:
            yield Case("itemsizes", "decode", target, itemsize=itemsize)
            yield Case("itemsizes", "encode", target, itemsize=itemsize)
    for itemsize in (1, 4):
        yield Case("split itemsizes", "memcpy", itemsize=itemsize)
        for target in targets:
            for what in ("decode", "encode"):
                yield Case("split itemsizes", what, target, itemsize=itemsize, encoding="bitmap/split")
    for density in (0.1, 0.3, 0.5, 0.7, 0.9):
        yield Case("densities", "memcpy", density=density, nbytes=256 * MIB)
        for encoding in ("bitmap/raw", "bitmap/split"):
            for what in ("decode", "encode"):
                yield Case("densities", what, density=density, nbytes=256 * MIB, encoding=encoding)
    for nbytes in (4 << 10, 64 << 10, MIB, 16 * MIB, 1024 * MIB):
        yield Case("sizes", "memcpy", nbytes=nbytes)
        for encoding in ("bitmap/raw", "bitmap/split"):
            yield Case("sizes", "decode", nbytes=nbytes, encoding=encoding)


def main_cases(targets: list[str]) -> Iterator[Case]:
    """What is claimed first: 512 MiB of BF16, raw and split values, and split ones that are not pruned."""
    for threads in (1, 2):
        yield Case("main", "memcpy", threads=threads)
        for target in targets:
            for what in ("decode", "encode", "validate"):
                yield Case("main", what, target, threads)
    for encoding, density in (("bitmap/split", 0.5), ("all/split", 1.0)):
        for threads in (1, 2):
            yield Case("split", "memcpy", threads=threads, density=density, encoding=encoding)
            for target in targets:
                for what in ("decode", "encode", "survey", "validate")[: 4 if threads == 1 else 1]:
                    yield Case("split", what, target, threads, density=density, encoding=encoding)


@functools.cache
def sample(itemsize: int, density: float, nbytes: int, encoding: str) -> tuple[Bytes, EncodedTensor, Bytes]:
    """Dense bytes, the same encoded, and an output of their size."""
    numel = nbytes // itemsize
    dense = data.weights(numel, itemsize, density)
    return dense, data.encode(dense, itemsize, (numel, 1), encoding), np.ones(dense.size, np.uint8)


def bench(loops: int, case: Case) -> float:
    """Times one thing; pyperf calls it in processes of its own."""
    dense, encoded, out = sample(case.itemsize, case.density, case.nbytes, case.encoding)
    os.environ |= {native.TARGET: case.target, parallel.THREADS: str(case.threads)}
    # Mapped already. What is encoded into them is what they hold, so that they need not be 0 before.
    parts = {role: part.copy() for role, part in encoded.parts.items()}
    share = -(-dense.size // case.threads)
    pieces = [slice(start, start + share) for start in range(0, dense.size, share)]
    work: dict[str, Callable[[], object]] = {
        "memcpy": lambda: parallel.each(lambda piece: np.copyto(out[piece], dense[piece]), pieces),
        "decode": lambda: encoded.decode(out),
        "validate": encoded.validate,
        "encode": lambda: native.encode(dense, encoded.meta, parts),
        "survey": lambda: native.survey(dense, dtypes.BY_NAME[encoded.dtype]),
    }
    return data.timed(loops, work[case.what])


def main() -> None:
    """Runs what the command line asks for."""
    runner = data.runner("only", "targets")
    runner.argparser.add_argument("--only", default="", help="main, split, itemsizes, densities or sizes")
    runner.argparser.add_argument("--targets", default=",".join(native.targets()))
    args = runner.parse_args()
    for case in cases(args.targets.split(",")):
        if args.only in {"", case.section}:
            runner.bench_time_func(case.name(), bench, case, metadata=asdict(case))


if __name__ == "__main__":
    main()
