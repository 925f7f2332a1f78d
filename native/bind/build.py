"""Writes the C source of the extension module ``pyendor._native``: ``build.py OUTPUT``. CMake runs it.

The declarations are those of ``native/include/endor.h``, which the compiler checks them against.
"""

from __future__ import annotations

import sys

from cffi import FFI

DECLARATIONS = """
typedef struct {
    const void *values; size_t values_size;
    const void *bitmap; size_t bitmap_size;
    const void *index; size_t index_size;
} endor_parts;

int endor_has(int target);
int endor_best(void);
int endor_count(int target, const void *dense, size_t size, size_t itemsize, uint64_t *nnz);
int endor_encode(int target, const void *dense, size_t size, size_t itemsize, void *values,
    size_t values_size, void *bitmap, size_t bitmap_size, void *index, size_t index_size);
int endor_decode(int target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t first, uint64_t stop, void *out, size_t out_size, int flags, uint64_t *offset);
"""


def main(output: str) -> None:
    """Writes the source."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source("pyendor._native", '#include "endor.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1])
