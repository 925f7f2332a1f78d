"""Launches limit.cu, a kernel that reads and writes and does nothing else, by the driver.

    python benchmarks/cuda_limit.py    # with an nvcc, after a change of limit.cu: writes limit.ptx

The kernel is in the repository as PTX, which the driver compiles for its device: a machine that measures
needs no nvcc. The first line of that file says which limit.cu it was made from.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pyendor import cuda

SOURCE = Path(__file__).with_name("limit.cu")
IMAGE = SOURCE.with_suffix(".ptx")
ARCHITECTURE = "compute_75"  # the oldest that the decoder's kernels are compiled for
THREADS = 256


def made_from(source: bytes) -> str:
    """The first line of the PTX that is made from a source."""
    return f"// limit.cu, SHA-256 {hashlib.sha256(source).hexdigest()}"


def compiled(nvcc: str) -> str:
    """The kernel as PTX, made anew."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "limit.ptx"
        options = ["-ptx", "-O3", f"-arch={ARCHITECTURE}"]
        subprocess.run([nvcc, *options, str(SOURCE), "-o", str(output)], check=True)
        return f"{made_from(SOURCE.read_bytes())}\n{output.read_text('utf-8')}"


def find_nvcc() -> str | None:
    """An nvcc of this machine."""
    found = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return found if Path(found).exists() else None


class Limit:
    """The kernel in the current context; without a device it is not here.

    Args:
        real: whether there is a device.

    Raises:
        RuntimeError: the driver does not take the kernel, or limit.ptx was made from another limit.cu.
    """

    def __init__(self, real: bool) -> None:
        self._function = None
        if not real:
            return
        image = IMAGE.read_bytes()
        if image.splitlines()[0].decode() != made_from(SOURCE.read_bytes()):
            raise RuntimeError(f"{IMAGE} was made from another {SOURCE.name}: run {Path(__file__).name}")
        self._cuda = ctypes.CDLL(os.environ.get(cuda.DRIVER, "libcuda.so.1"))
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._done(self._cuda.cuModuleLoadData(ctypes.byref(module), image))
        self._done(self._cuda.cuModuleGetFunction(ctypes.byref(function), module, b"limit"))
        self._function = function

    def here(self) -> bool:
        """Whether it can be run."""
        return self._function is not None

    def run(self, source: Any, out: Any, tile: int, stream: int) -> None:
        """Reads all of one tensor and writes all of another, `tile` bytes of it by each CTA."""
        ctas = out.numel() // tile
        # Whole 16 bytes for each CTA; rounded up it would read past the end.
        reads, writes = source.numel() // ctas // 16, tile // 16
        given = (
            ctypes.c_void_p(source.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_uint(reads),
            ctypes.c_uint(writes),
        )
        pointers = (ctypes.c_void_p * len(given))(*(ctypes.addressof(one) for one in given))
        self._done(
            self._cuda.cuLaunchKernel(
                self._function, ctas, 1, 1, THREADS, 1, 1, 0, ctypes.c_void_p(stream), pointers, None
            )
        )

    @staticmethod
    def _done(result: int) -> None:
        if result:
            raise RuntimeError(f"CUDA error {result}")


if __name__ == "__main__":
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc is here: NVCC names one, and nvidia-cuda-nvcc of PyPI has one")
    IMAGE.write_text(compiled(nvcc), "utf-8")
