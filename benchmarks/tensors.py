"""Times slices of a tensor in a file, and a layer whose weight stays encoded, with pyperf.

    python benchmarks/tensors.py -o results.json

A 4096 x 11008 BF16 matrix, half of it zero, in a file that is in the page cache and is opened each time. A
slice is an eighth of it: rows, or columns, the next eighth each time. What the safetensors package gives is a
view of a map, and copied. The layer multiplies one row; it may cost what decoding and multiplying cost.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data

SHAPE = (4096, 11008)
NBYTES = SHAPE[0] * SHAPE[1] * 2
EIGHTHS = {
    "rows": [(slice(512 * k, 512 * (k + 1)),) for k in range(8)],
    "columns": [(slice(None), slice(1376 * k, 1376 * (k + 1))) for k in range(8)],
}


def files(folder: Path) -> tuple[Path, Path]:
    """The two files, written if they are not there."""
    import pyendor.torch

    endor, dense = folder / "endor.safetensors", folder / "dense.safetensors"
    if not dense.exists():
        pyendor.torch.save_file({"w": weight()}, endor)
        pyendor.torch.save_file({"w": weight()}, dense, min_saving=1.0)
    return endor, dense


def weight() -> Any:
    import torch

    return torch.from_numpy(data.weights(SHAPE[0] * SHAPE[1], 2, 0.5)).view(torch.bfloat16).reshape(SHAPE)


def slices(what: str, folder: str) -> Callable[[], object]:
    """Takes a slice."""
    import safetensors

    import pyendor.torch

    endor, dense = files(Path(folder))
    eighths = itertools.cycle(EIGHTHS[what.split(", ", maxsplit=1)[0]])

    def theirs() -> object:
        with safetensors.safe_open(dense, "pt") as opened:
            return opened.get_slice("w")[next(eighths)].clone()

    def ours() -> object:
        with pyendor.torch.safe_open(endor, "pt") as opened:
            return opened.get_slice("w")[next(eighths)]

    return theirs if what.endswith("safetensors + clone") else ours


def layer(what: str) -> Callable[[], object]:
    """Multiplies, or does a part of it."""
    import torch

    from pyendor.torch_tensor import EndorTensor

    torch.set_grad_enabled(False)
    dense = weight()
    encoded = EndorTensor.from_dense(dense)
    linear = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=torch.bfloat16)
    linear.weight = torch.nn.Parameter(dense if what == "multiply" else encoded, requires_grad=False)
    x = torch.randn(1, SHAPE[1]).bfloat16()
    return encoded.decode if what == "decode" else lambda: linear(x)


def bench(loops: int, section: str, what: str, threads: int, folder: str) -> float:
    """Times one thing; pyperf calls it in processes of its own."""
    import torch

    from pyendor import parallel

    os.environ[parallel.THREADS] = str(threads)
    torch.set_num_threads(threads)
    return data.timed(loops, slices(what, folder) if section == "slices" else layer(what))


def main() -> None:
    """Runs all of it."""
    runner = data.runner("folder")
    runner.argparser.add_argument("--folder", default="", help="where the files are, or are to be")
    args = runner.parse_args()
    work = [("slices", f"{which}, {who}") for which in EIGHTHS for who in ("safetensors + clone", "pyendor")]
    work += [("layer", what) for what in ("decode", "multiply", "layer with an encoded weight")]
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or temporary
        for section, what in work:
            for threads in (1, 2):
                facts = {"section": section, "what": what, "threads": threads, "nbytes": NBYTES}
                name = f"{section} | {what} | {threads} threads"
                runner.bench_time_func(name, bench, section, what, threads, args.folder, metadata=facts)


if __name__ == "__main__":
    main()
