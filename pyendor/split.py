"""Split values in plain NumPy (spec 8.3): exponents and their windows, elements to groups and back.

Elements come and go as unsigned integers of their size. Nothing here checks a file: that is what
:mod:`pyendor.reference` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyendor.dtypes import DType
from pyendor.layout import GROUP, Bytes
from pyendor.metadata import Split

Words = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


def exponents(words: Words, dtype: DType) -> Integers:
    """The exponents of elements, as they are in their bits."""
    return (words >> dtype.mantissa).astype(np.int64) & ((1 << dtype.exponent) - 1)


def used_bits(words: Words, dtype: DType) -> int:
    """The mantissa bits that have to be kept of these elements (W-9)."""
    used = int(np.bitwise_or.reduce(words)) & ((1 << dtype.mantissa) - 1)
    return dtype.mantissa - ((used & -used).bit_length() - 1) if used else 0


def histogram(exponents: Integers, dtype: DType) -> Integers:
    """How often each exponent occurs, ``[2 ** E]``."""
    return np.bincount(exponents, minlength=1 << dtype.exponent)


def window(histogram: Integers, w: int) -> tuple[int, int]:
    """The canonical base of a block (W-9), and how many of its elements have an exponent in the window."""
    sums = np.concatenate([[0], np.cumsum(histogram)])
    covered = sums[1 << w :] - sums[: -(1 << w)]
    base = int(np.argmax(covered))  # the first, that is the smallest, of those with the most
    return base, int(covered[base])


def residues(words: Words, dtype: DType, split: Split) -> Integers:
    """What is kept of elements beside their codes: the sign and the upper bits of the mantissa."""
    wide = words.astype(np.int64)
    sign = wide >> (dtype.exponent + dtype.mantissa)
    mantissa = wide & ((1 << dtype.mantissa) - 1)
    return sign << split.mantissa | mantissa >> (dtype.mantissa - split.mantissa)


def elements(residues: Integers, exponents: Integers, dtype: DType, split: Split) -> Words:
    """Elements from their residues and exponents."""
    sign = residues >> split.mantissa
    mantissa = (residues & ((1 << split.mantissa) - 1)) << (dtype.mantissa - split.mantissa)
    words = sign << (dtype.exponent + dtype.mantissa) | exponents << dtype.mantissa | mantissa
    return words.astype(f"<u{dtype.itemsize}")


def pack(residues: Integers, codes: Integers, split: Split) -> Bytes:
    """Groups of residues and codes, ``uint8 [g, row]``; both are padded with 0 to whole groups (E-1)."""
    whole, rest = divmod(1 + split.mantissa, 8)
    symbols = residues | codes << (1 + split.mantissa)
    symbols = np.pad(symbols, (0, -symbols.size % GROUP)).reshape(-1, GROUP)
    groups = np.empty((symbols.shape[0], split.row), np.uint8)
    for p in range(whole):
        groups[:, GROUP * p : GROUP * (p + 1)] = symbols >> 8 * p & 0xFF
    for q in range(rest + split.w):
        at = GROUP * whole + 8 * q
        groups[:, at : at + 8] = np.packbits(symbols >> 8 * whole + q & 1, axis=1, bitorder="little")
    return groups


def unpack(groups: Bytes, split: Split) -> tuple[Integers, Integers]:
    """The residues and codes of whole groups, ``int64 [64 g]`` both."""
    whole, rest = divmod(1 + split.mantissa, 8)
    symbols = np.zeros((groups.shape[0], GROUP), np.int64)
    for p in range(whole):
        symbols |= groups[:, GROUP * p : GROUP * (p + 1)].astype(np.int64) << 8 * p
    for q in range(rest + split.w):
        at = GROUP * whole + 8 * q
        bits = np.unpackbits(groups[:, at : at + 8], axis=1, bitorder="little")
        symbols |= bits.astype(np.int64) << 8 * whole + q
    flat = symbols.reshape(-1)
    return flat & ((1 << 1 + split.mantissa) - 1), flat >> 1 + split.mantissa


def last_group(n: int, split: Split) -> Bytes:
    """Where the last group of n stored elements, if it is not full, has bits that belong to none: a mask."""
    none = np.arange(GROUP) >= n % GROUP
    ones = np.where(none, (1 << 1 + split.mantissa + split.w) - 1, 0).astype(np.int64)
    mask: Bytes = pack(ones, np.zeros(GROUP, np.int64), split)[0]
    return mask
