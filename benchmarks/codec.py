"""Times the codec on one tensor beside a copy of the same dense bytes, with pyperf.

    python benchmarks/codec.py -o results.json      decode, encode and count 512 MiB of BF16, with all targets
    python benchmarks/codec.py --help               for other sizes, densities, elements, numbers of threads

Everything is in memory that is mapped already: the parts, the dense bytes, the output. Decoding checks all
rules, as it always does. What is claimed are ratios to the copy of the same run.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable

import numpy as np
import pyperf

from pyendor import native
from pyendor.encoded import EncodedTensor

DTYPES = {1: "F8_E4M3", 2: "BF16", 4: "F32", 8: "F64"}
SEED = 20240617


@functools.cache
def sample(mib: int, itemsize: int, density: float) -> tuple[np.ndarray, EncodedTensor, np.ndarray]:
    """Dense bytes, the same encoded, and an output of their size."""
    rng = np.random.default_rng(SEED)
    numel = (mib << 20) // itemsize
    words = rng.integers(1, 1 << 8, (numel, itemsize), dtype=np.uint8)
    words[rng.random(numel, dtype=np.float32) >= density] = 0
    dense = words.reshape(-1)
    os.environ.pop(native.TARGET, None)
    encoded = EncodedTensor.encode("x", DTYPES[itemsize], (numel, 1), dense, digest=False)
    return dense, encoded, np.ones(dense.size, np.uint8)


def timed(loops: int, work: Callable[[], object]) -> float:
    """Seconds that so many runs take."""
    start = time.perf_counter()
    for _ in range(loops):
        work()
    return time.perf_counter() - start


def bench(loops: int, what: str, target: str, threads: str, mib: int, itemsize: int, density: float) -> float:
    """Times one thing; pyperf calls it in processes of its own."""
    dense, encoded, out = sample(mib, itemsize, density)
    os.environ |= {native.TARGET: target, native.THREADS: threads}
    parts = [encoded.parts[role].copy() for role in ("values", "bitmap", "index")]
    work: dict[str, Callable[[], object]] = {
        "memcpy": lambda: np.copyto(out, dense),
        "decode": lambda: encoded.decode(out),
        "encode": lambda: native.encode(dense, itemsize, *parts),
        "count": lambda: native.count(dense, itemsize),
    }
    return timed(loops, work[what])


def main() -> None:
    """Runs what the command line asks for."""

    def pass_on(command: list[str], args: argparse.Namespace) -> None:
        for name in ("mib", "densities", "itemsizes", "targets", "threads"):
            command += [f"--{name}", str(getattr(args, name))]

    runner = pyperf.Runner(processes=3, values=5, warmups=1, add_cmdline_args=pass_on)
    parser = runner.argparser
    parser.add_argument("--mib", type=int, default=512, help="size of the dense tensor")
    parser.add_argument("--densities", default="0.5", help="shares of stored elements, with commas")
    parser.add_argument("--itemsizes", default="2", help="bytes of an element, with commas")
    parser.add_argument("--targets", default=",".join(native.targets()))
    parser.add_argument("--threads", default="1", help="numbers of threads for decoding, with commas")
    args = runner.parse_args()
    for itemsize in map(int, args.itemsizes.split(",")):
        for density in map(float, args.densities.split(",")):
            where = f"{8 * itemsize}-bit, {density:.0%}, {args.mib} MiB"

            def run(
                what: str,
                target: str,
                threads: str,
                where: str = where,
                itemsize: int = itemsize,
                density: float = density,
            ) -> None:
                name = f"{where}: {what}" + (f" {target}, {threads} threads" if what != "memcpy" else "")
                runner.bench_time_func(name, bench, what, target, threads, args.mib, itemsize, density)

            run("memcpy", "auto", "1")
            for target in args.targets.split(","):
                for threads in args.threads.split(","):
                    run("decode", target, threads)
                run("encode", target, "1")
                run("count", target, "1")


if __name__ == "__main__":
    main()
