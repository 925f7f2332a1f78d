"""A tensor as compressed-tensors stores it with a bitmask, to its dense data.

A tensor has these parts. Their names begin with that of its module (since release 0.9), or with its own
(before, when every tensor was compressed, and not just weights)::

    shape        I64 [rank] or [rank, 1]    the dense shape
    bitmask      U8 [..., ceil(columns/8)]  each row by itself, the lowest bit first
    compressed   [n], or [rows, columns/2]  the elements that are kept, in order
    row_offsets  I64 [...]                  elements kept before each row; sparse-bitmask alone

``sparse-bitmask`` keeps what is ``!= 0``, so that -0.0 was lost when it was written. ``sparse-24-bitmask``
keeps exactly two of four, which may be zero themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyendor import container, dtypes, layout
from pyendor.encoded import EncodedTensor
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta

BITMASK, BITMASK_24 = "sparse-bitmask", "sparse-24-bitmask"
# The parts of a tensor by format; nothing else is ever chosen by what a config says.
PARTS = {
    BITMASK: ("shape", "bitmask", "compressed", "row_offsets"),
    BITMASK_24: ("shape", "bitmask", "compressed"),
}
_CHUNK = 1 << 18  # pairs of elements that are unpacked at a time


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor as it is stored, its sizes checked.

    Attributes:
        name, dtype, shape: of the dense tensor.
        format: the one whose parts it has.
        stem: what the names of its parts begin with.
        parts: names of the files that hold them, by role.
        stored_nbytes: size of the parts.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: str
    stem: str
    parts: Mapping[str, str]
    stored_nbytes: int

    @property
    def columns(self) -> int:
        """Elements of a row; a scalar is one of one."""
        return self.shape[-1] if self.shape else 1


class PartsError(Exception):
    """What is wrong with the parts of a tensor."""


def decode(packed: Packed, parts: dict[str, Bytes], backend: str | None) -> Bytes:
    """The dense data.

    ``parts`` is used up, so that they do not stay in memory beside what is made of them.

    Raises:
        PartsError: they do not agree with one another.
    """
    itemsize = dtypes.BY_NAME[packed.dtype].itemsize
    if container.numel(packed.shape) == 0:
        return layout.allocate(0)
    rows = parts.pop("bitmask").reshape(-1, -(-packed.columns // 8))
    words = parts.pop("compressed").view(f"<u{itemsize}")
    _check(packed, rows, words.size, parts.get("row_offsets"))
    if packed.columns % 8 == 0 and words.all():
        return _through_codec(packed, rows.reshape(-1), words, backend)
    return _spread(packed, rows, words)


def _check(packed: Packed, rows: Bytes, stored: int, row_offsets: Bytes | None) -> None:
    """That the rows of a bitmask have no bits too many, and agree with the other parts."""
    rest = packed.columns % 8
    if rest and (rows[:, -1] >> rest).any():
        raise PartsError(f"the bitmask has bits beyond the {packed.columns} elements of a row")
    counts = np.bitwise_count(rows).sum(axis=1, dtype=np.int64).reshape(packed.shape[:-1])
    if row_offsets is not None:
        # As written: along the first dimension, whatever number there are.
        offsets = counts.cumsum(axis=0) - counts if counts.ndim else np.int64(0)
        if (row_offsets.view("<i8").reshape(counts.shape) != offsets).any():
            raise PartsError("row_offsets do not agree with the bitmask")
    if counts.sum() != stored:
        raise PartsError(f"the bitmask keeps {counts.sum()} elements, {stored} are stored")


def _through_codec(
    packed: Packed, bitmap: Bytes, words: npt.NDArray[np.unsignedinteger[Any]], backend: str | None
) -> Bytes:
    """Of whole bytes to a row, and without zeros that are stored, the bitmask is the bitmap of Endor."""
    if packed.format == BITMASK_24:
        _check_fours(np.bitwise_count(bitmap & 15))
        _check_fours(np.bitwise_count(bitmap >> 4))
    meta = TensorMeta(packed.dtype, packed.shape, "bitmap", "raw", words.size)
    parts = {spec.role: np.zeros(spec.nbytes, np.uint8) for spec in layout.part_specs(meta)}
    parts["values"].view(words.dtype)[: words.size] = words
    parts["bitmap"][: bitmap.size] = bitmap
    starts = np.arange(0, bitmap.size, layout.BLOCK // 8)
    counts = np.add.reduceat(np.bitwise_count(bitmap), starts, dtype=np.int64)
    parts["index"].view("<i8")[1 : counts.size + 1] = counts.cumsum()
    return EncodedTensor(packed.name, meta, parts).decode(backend=backend)


def _spread(packed: Packed, rows: Bytes, words: npt.NDArray[np.unsignedinteger[Any]]) -> Bytes:
    """Some rows at a time, which a mask of bytes is made for."""
    columns = packed.columns
    out = layout.allocate(len(rows) * columns * words.itemsize)
    dense = out.view(words.dtype).reshape(len(rows), columns)
    step = 2 * max(1, _CHUNK // columns)  # two rows: groups of four may go over the end of one
    done = 0
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        mask = np.unpackbits(some, axis=1, count=columns, bitorder="little").view(np.bool_)
        if packed.format == BITMASK_24:
            fours = mask.reshape(-1).view("<u4") * np.uint32(0x01010101)  # the top byte: the sum of all
            _check_fours(fours >> np.uint32(24))
        count = int(np.count_nonzero(mask))
        target = dense[first : first + step]
        target[:] = 0
        np.place(target, mask, words[done : done + count])
        done += count
    return out


def _check_fours(counts: npt.NDArray[np.unsignedinteger[Any]]) -> None:
    if (counts != 2).any():
        raise PartsError("the bitmask does not keep two of every four elements")
