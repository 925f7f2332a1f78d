"""Times loading a model of 1 GiB, BF16, half of it zero, from the page cache into fresh memory, with pyperf.

    python benchmarks/loading.py -o results.json

The same model as an Endor file and as a dense safetensors file. The safetensors package maps files; so what
it returns is copied, as it is by the time somebody has used it. All memory goes back to the system between
two runs: by default the allocator keeps some, and what is then timed is memory that is warm.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import data

from pyendor import numpy, parallel

TENSORS, SHAPE = 64, (4096, 2048)
NBYTES = TENSORS * SHAPE[0] * SHAPE[1] * 2
M_MMAP_THRESHOLD = -3


def files(folder: Path) -> tuple[Path, Path]:
    """The two files, written if they are not there."""
    endor, dense = folder / "endor.safetensors", folder / "dense.safetensors"
    if not dense.exists():
        import ml_dtypes

        model = {}
        for number in range(TENSORS):
            weights = data.weights(SHAPE[0] * SHAPE[1], 2, 0.5)
            model[f"layers.{number}.weight"] = weights.view(ml_dtypes.bfloat16).reshape(SHAPE)
        numpy.save_file(model, endor)
        numpy.save_file(model, dense, min_saving=1.0)
    return endor, dense


def bench(loops: int, what: str, threads: int, folder: str) -> float:
    """Times one thing; pyperf calls it in processes of its own."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    import safetensors.numpy
    import safetensors.torch
    import torch

    os.environ[parallel.THREADS] = str(threads)
    torch.set_num_threads(threads)
    endor, dense = files(Path(folder))
    work: dict[str, Callable[[], object]] = {
        "pyendor": lambda: numpy.load_file(endor),
        "pyendor, dense file": lambda: numpy.load_file(dense),
        "safetensors.torch + clone": lambda: {
            name: tensor.clone() for name, tensor in safetensors.torch.load_file(dense).items()
        },
        "safetensors.numpy": lambda: safetensors.numpy.load_file(dense),
    }
    return data.timed(loops, work[what])


def main() -> None:
    """Runs all of it."""
    runner = data.runner("folder")
    runner.argparser.add_argument("--folder", default="", help="where the files are, or are to be")
    args = runner.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or temporary
        for threads in (1, 2):
            for what in (
                "safetensors.torch + clone",
                "safetensors.numpy",
                "pyendor",
                "pyendor, dense file",
            ):
                facts = {"section": "loading", "what": what, "threads": threads, "nbytes": NBYTES}
                name = f"loading | {what} | {threads} threads"
                runner.bench_time_func(name, bench, what, threads, args.folder, metadata=facts)


if __name__ == "__main__":
    main()
