"""Writes the C source of the extension module ``pyendor._native``: ``build.py OUTPUT``. CMake runs it.

The declarations are those of the headers themselves, which the compiler checks them against.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
# Each with how its declarations begin, and the constants of the preprocessor that are wanted.
HEADERS = {
    "include/endor.h": ("typedef enum endor_status", ["ENDOR_STREAM"]),
    "include/endor_cuda.h": ("typedef struct endor_cuda ", ["ENDOR_CUDA_JOBS", "ENDOR_CUDA_CURRENT"]),
    "bind/team.h": ("typedef void (*endor_start)", []),
}


def declarations(header: str, first: str, constants: list[str]) -> str:
    """What cffi reads: types and functions, without the preprocessor's share."""
    begin, end = header.index(first), header.rindex(";")
    text = re.sub(r"^#.*\n", "", header[begin : end + 1], flags=re.MULTILINE)
    return "\n".join([text.replace("ENDOR_API ", ""), *(f"#define {name} ..." for name in constants)])


def main(output: str) -> None:
    """Writes the source."""
    ffi = FFI()
    for name, (first, constants) in HEADERS.items():
        ffi.cdef(declarations((HERE.parent / name).read_text("utf-8"), first, constants))
    ffi.set_source("pyendor._native", "".join(f'#include "{Path(name).name}"\n' for name in HEADERS))
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1])
