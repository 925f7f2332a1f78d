"""Writes the C source of the extension module ``pyendor._native``: ``build.py OUTPUT``. CMake runs it.

The declarations are those of ``native/include/endor.h`` itself, which the compiler checks them against.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).resolve().parent.parent / "include" / "endor.h"


def declarations(header: str) -> str:
    """What cffi reads: types and functions, without the preprocessor's share."""
    types = header.index("typedef enum endor_status")
    last = header.rindex(";")
    text = re.sub(r"^#.*\n", "", header[types : last + 1], flags=re.MULTILINE)
    return text.replace("ENDOR_API ", "") + "\n#define ENDOR_STREAM ..."


def main(output: str) -> None:
    """Writes the source."""
    ffi = FFI()
    ffi.cdef(declarations(HEADER.read_text("utf-8")))
    ffi.set_source("pyendor._native", '#include "endor.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1])
