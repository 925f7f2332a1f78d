"""What the codecs that are C share: the structures of ``endor.h``, filled, and what its statuses mean."""

from __future__ import annotations

from pyendor import dtypes
from pyendor.dtypes import DType
from pyendor.metadata import TensorMeta

# The parts of a tensor, in the order of endor_parts.
ROLES = ("values", "bitmap", "index", "bases", "patches")
POSITIONS = ("bitmap", "all")  # ENDOR_BITMAP, ENDOR_ALL
VALUES = ("raw", "split")  # ENDOR_RAW, ENDOR_SPLIT

# Statuses are called after rules. By rule: in which part the fault lies, and what has been found.
FAULTS = {
    "B-3": ("bitmap", "bitmap has a bit set past its last element"),
    "B-4": ("index", "index does not begin with 0"),
    "B-5": ("index", "index falls, or leaves the range that the metadata says"),
    "B-6": ("index", "a block has not as many bits set as its index says"),
    "B-7": ("index", "index does not end with what the metadata says"),
    "B-8": ("index", "padding of the index is not 0"),
    "B-9": ("values", "padding of values is not 0"),
    "B-10": ("values", "a stored element is zero"),
    "E-2": ("values", "values have a bit set past the last stored element"),
    "E-3": ("bases", "a base is too high for its block"),
    "E-4": ("bases", "padding of bases is not 0"),
    "E-5": ("patches", "ranks of patches do not ascend, or leave their block"),
    "E-6": ("patches", "exponent of a patch is none, or inside the window"),
    "E-7": ("values", "an element with a patch has a code"),
    "E-8": ("patches", "padding of patches is not 0"),
}


def status_name(rule: str) -> str:
    """The status for a rule: that for B-6 is ``ENDOR_B6``."""
    return f"ENDOR_{rule.replace('-', '')}"


def encoding(dtype: DType, positions: int = 0, values: int = 0, kept: int = 0, w: int = 0) -> tuple[int, ...]:
    """The members of an ``endor_encoding``."""
    return dtype.itemsize, positions, values, dtype.exponent, dtype.mantissa, kept, w


def tensor(meta: TensorMeta) -> tuple[tuple[int, ...], int, int, int]:
    """The members of an ``endor_tensor``."""
    fields = meta.split
    widths = (fields.mantissa, fields.w) if fields is not None else ()
    chosen = POSITIONS.index(meta.positions), VALUES.index(meta.values)
    patches = fields.patches if fields is not None else 0
    return encoding(dtypes.BY_NAME[meta.dtype], *chosen, *widths), meta.numel, meta.stored, patches
