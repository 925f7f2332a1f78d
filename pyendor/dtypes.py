"""The one table of element types (spec 5.3): names, sizes, NumPy and torch counterparts.

The order is that of the safetensors package, which sorts the tensors of a dense file by it; a file
that :mod:`pyendor.file` writes densely is therefore byte for byte what that package would write.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """An element type of the format.

    Attributes:
        name: as in a safetensors header.
        bits: size of one element.
        numpy: NumPy's name of it (``ml_dtypes`` registers the small floats), None if it has none.
        torch: attribute of ``torch``, None if it has none.
        exponent, mantissa: field widths in bits of a float with a sign bit, else 0.
    """

    name: str
    bits: int
    numpy: str | None
    torch: str | None
    exponent: int = 0
    mantissa: int = 0

    @property
    def encodable(self) -> bool:
        """Whether the element is a whole number of bytes, so that a tensor of it can be encoded."""
        return self.bits % 8 == 0

    @property
    def itemsize(self) -> int:
        """Bytes per element; only encodable types have whole ones."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        """Whether elements have a sign, an exponent and a mantissa, in this order of bits."""
        return self.exponent > 0

    @property
    def splittable(self) -> bool:
        """Whether its values can be split (spec 8.3)."""
        return self.is_float and self.itemsize <= 4

    def to_numpy(self) -> np.dtype[np.generic] | None:
        """NumPy's counterpart, or None."""
        if self.numpy is None:
            return None
        # ml_dtypes' types are not reachable by name through np.dtype() alone.
        return np.dtype(getattr(ml_dtypes, self.numpy, None) or self.numpy)


TABLE = (
    DType("BOOL", 8, "bool", "bool"),
    DType("F4", 4, None, "float4_e2m1fn_x2"),
    DType("F6_E2M3", 6, None, None),
    DType("F6_E3M2", 6, None, None),
    DType("U8", 8, "uint8", "uint8"),
    DType("I8", 8, "int8", "int8"),
    DType("F8_E5M2", 8, "float8_e5m2", "float8_e5m2", 5, 2),
    DType("F8_E4M3", 8, "float8_e4m3fn", "float8_e4m3fn", 4, 3),
    DType("F8_E8M0", 8, "float8_e8m0fnu", "float8_e8m0fnu"),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float8_e4m3fnuz", 4, 3),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float8_e5m2fnuz", 5, 2),
    DType("I16", 16, "int16", "int16"),
    DType("U16", 16, "uint16", "uint16"),
    DType("F16", 16, "float16", "float16", 5, 10),
    DType("BF16", 16, "bfloat16", "bfloat16", 8, 7),
    DType("I32", 32, "int32", "int32"),
    DType("U32", 32, "uint32", "uint32"),
    DType("F32", 32, "float32", "float32", 8, 23),
    DType("C64", 64, "complex64", "complex64"),
    DType("F64", 64, "float64", "float64", 11, 52),
    DType("I64", 64, "int64", "int64"),
    DType("U64", 64, "uint64", "uint64"),
)

BY_NAME = {dtype.name: dtype for dtype in TABLE}
_BY_NUMPY = {dtype.to_numpy(): dtype for dtype in TABLE if dtype.numpy is not None}


def from_numpy(dtype: np.dtype[np.generic]) -> DType | None:
    """The format's counterpart of a NumPy dtype, whatever its byte order; None if it has none."""
    return _BY_NUMPY.get(dtype.newbyteorder("="))
