"""Compiles and launches limit.cu, a kernel that reads and writes and does nothing else, by the driver."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("limit.cu")
THREADS = 256


class Limit:
    """The kernel in the current context; without a device or nvcc it is not here."""

    def __init__(self, real: bool) -> None:
        nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        self._function = None
        if not real or not Path(nvcc).exists():
            return
        import torch

        major, minor = torch.cuda.get_device_capability()
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "limit.cubin"
            subprocess.run(
                [nvcc, "-cubin", f"-arch=sm_{major}{minor}", str(SOURCE), "-o", str(output)], check=True
            )
            image = output.read_bytes()
        self._cuda = ctypes.CDLL("libcuda.so.1")
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
