"""Adapter for the CUDA kernels: `cuda_kernels.py DRIVER ...`, DRIVER in place of the CUDA driver's library.

`make native` builds one, build/libendor_simt.so, that runs the kernels on the CPU. Files are opened by
pyendor; what it decodes, the kernels decode, and what they say is wrong is the answer: a rule and a tensor.
They do not encode.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyendor_codec
from contract import Answer, serve

from pyendor import backends, cuda, dtypes, layout
from pyendor.cuda import Job, Memory
from pyendor.errors import PartError
from pyendor.layout import BLOCK, Bytes
from pyendor.metadata import TensorMeta

NAME = "cuda"


class Kernels:
    """What of a codec the kernels can do, in memory of the process."""

    def decode(
        self,
        meta: TensorMeta,
        parts: Mapping[str, Bytes],
        out: Bytes | None,
        first: int = 0,
        stop: int | None = None,
        stream: bool = False,
    ) -> None:
        """A range of blocks, checked and decoded."""
        word = np.zeros(1, np.int64)
        memory = {role: Memory(part.ctypes.data, part.nbytes) for role, part in parts.items()}
        to = None if out is None else Memory(out.ctypes.data, out.nbytes)
        cuda.decode([Job(meta, memory, to, word.ctypes.data, first, stop)])
        fault = cuda.fault(int(word[0]))
        if fault is not None:
            raise PartError(fault.rule, f"block {fault.block}", "values", 0)

    def cut(
        self,
        meta: TensorMeta,
        parts: Mapping[str, Bytes],
        out: Bytes,
        start: int,
        count: int,
        stride: int,
        rows: int,
    ) -> None:
        """Runs of elements: of each, the blocks that it touches."""
        itemsize = dtypes.BY_NAME[meta.dtype].itemsize
        for row in range(rows):
            low = start + row * stride
            first, stop = low // BLOCK, layout.blocks(low + count)
            blocks = np.empty((min(stop * BLOCK, meta.numel) - first * BLOCK) * itemsize, np.uint8)
            self.decode(meta, parts, blocks, first, stop)
            begin = (low - first * BLOCK) * itemsize
            out[row * count * itemsize :][: count * itemsize] = blocks[begin : begin + count * itemsize]


def answer(args: list[str]) -> Answer | None:
    return None if args[0] == "encode" else pyendor_codec.answer(args)


if __name__ == "__main__":
    os.environ[cuda.DRIVER] = str(Path(sys.argv.pop(1)).resolve())
    backends.TABLE[NAME] = Kernels()  # type: ignore[assignment]
    os.environ[backends.ENVIRONMENT] = NAME
    raise SystemExit(serve(answer))
