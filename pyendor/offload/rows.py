"""Rows of an embedding, read where they are stored: what a lookup needs, and no more.

The index and the bases of an encoded matrix are kept; of the rest, the bytes of the blocks that the rows
touch are read into memory of the size of the matrix, of which the system maps only what is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pyendor import layout
from pyendor.dtypes import BY_NAME
from pyendor.encoded import EncodedTensor
from pyendor.layout import BLOCK, GROUP, PATCH, Bytes
from pyendor.offload.stored import Stored

# Reads a piece of a file: where it begins there, and what it fills.
ReadPiece = Callable[[int, Bytes], None]
# What lies between two pieces is read with them up to this size.
_GAP = 64 << 10
_SMALL = ("index", "bases")


class Rows:
    """Rows of a stored matrix.

    Args:
        tensor: a matrix in a file.
        read: reads a piece of that file.

    Attributes:
        itemsize: bytes of an element, as it is stored.
    """

    def __init__(self, tensor: Stored, read: ReadPiece) -> None:
        self.tensor = tensor
        self._read = read
        self._length = tensor.shape[1]
        self.itemsize = BY_NAME[tensor.dtype].itemsize
        self._kept: dict[str, Bytes] = {}
        for role in _SMALL:
            if role in tensor.places:
                start, stop = tensor.places[role]
                self._kept[role] = layout.allocate(stop - start)
                read(start, self._kept[role])

    @property
    def nbytes(self) -> int:
        """Bytes that are kept in memory."""
        return sum(part.size for part in self._kept.values())

    def get(self, rows: Sequence[int], out: Bytes) -> None:
        """Fills ``out`` with these rows, which ascend, one behind the other.

        Raises:
            FormatError: what was read breaks a rule of section 8. ``out`` then holds nothing of use.
        """
        size = self._length * self.itemsize
        if self.tensor.meta is None:
            self._get_plain(rows, out, size)
            return
        parts = self._parts(rows)
        encoded = self.tensor.encoded(parts)
        for number, row in enumerate(rows):
            encoded.cut(row * self._length, self._length, out=out[number * size :])

    def _get_plain(self, rows: Sequence[int], out: Bytes, size: int) -> None:
        start, stop = self.tensor.places["values"]
        memory = layout.allocate(stop - start)
        for low, high in _joined((row * size, (row + 1) * size) for row in rows):
            self._read(start + low, memory[low:high])
        for number, row in enumerate(rows):
            out[number * size : (number + 1) * size] = memory[row * size : (row + 1) * size]

    def _parts(self, rows: Sequence[int]) -> dict[str, Bytes]:
        wanted: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            first, last = row * self._length, (row + 1) * self._length
            for role, low, high in self._needed(first // BLOCK, -(-last // BLOCK)):
                wanted.setdefault(role, []).append((low, high))
        parts = {}
        for role, (start, stop) in self.tensor.places.items():
            if role in self._kept:
                parts[role] = self._kept[role]
                continue
            parts[role] = layout.allocate(stop - start)
            for low, high in _joined(wanted.get(role, [])):
                self._read(start + low, parts[role][low:high])
        return parts

    def _needed(self, first: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """What a decoder reads of each part for these blocks (B-11), as byte ranges; the index is kept."""
        meta = self.tensor.meta
        assert meta is not None
        nb = layout.blocks(meta.numel)
        index = self._kept["index"].view("<i8").reshape(-1, layout.roundup(nb + 1, 8))
        if meta.positions == "bitmap":
            yield self._until("bitmap", first * BLOCK // 8, stop * BLOCK // 8, stop == nb)
            low, high = int(index[0, first]), int(index[0, stop])
        else:
            low, high = first * BLOCK, min(stop * BLOCK, meta.numel)
        if meta.split is None:
            yield self._until("values", low * self.itemsize, high * self.itemsize, stop == nb)
            return
        row = meta.split.row
        yield self._until("values", low // GROUP * row, -(-high // GROUP) * row, stop == nb)
        low, high = int(index[-1, first]), int(index[-1, stop])
        yield self._until("patches", low * PATCH, high * PATCH, stop == nb)

    def _until(self, role: str, low: int, high: int, last: bool) -> tuple[str, int, int]:
        """A range within its part, whatever the index says; behind the last block also the padding."""
        start, stop = self.tensor.places[role]
        size = stop - start
        low = min(max(low, 0), size)
        return role, low, size if last else min(max(high, low), size)


class RowsInMemory(Rows):
    """The same of a matrix whose parts are in memory."""

    def __init__(self, tensor: Stored, parts: dict[str, Bytes]) -> None:
        self.tensor = tensor
        self._whole = parts
        self._length = tensor.shape[1]
        self.itemsize = BY_NAME[tensor.dtype].itemsize
        self._kept = {}

    def get(self, rows: Sequence[int], out: Bytes) -> None:
        """As of :class:`Rows`."""
        size = self._length * self.itemsize
        if self.tensor.meta is None:
            table = self._whole["values"].reshape(-1, size)
            np.take(table, rows, axis=0, out=out[: len(rows) * size].reshape(-1, size))
            return
        encoded: EncodedTensor = self.tensor.encoded(self._whole)
        for number, row in enumerate(rows):
            encoded.cut(row * self._length, self._length, out=out[number * size :])


def _joined(ranges: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that ascend, with those joined that are close to each other."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + _GAP:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        elif high > low:
            joined.append((low, high))
    return joined
