"""The encodings in plain NumPy (spec 8, rules B and E): the codec that others are held against.

Dense data and parts are flat ``uint8`` arrays. A codec allocates nothing that the caller should own:
``count`` and ``survey`` tell what the sizes depend on, the caller allocates, ``encode`` and ``decode`` fill.
Work goes block by block, in the order of section 15, so that scratch memory is bounded whatever the size of
the tensor, and of several faults the first one is named.

Decoding never trusts its input, and reads each part once (S-3): the caller passes memory that nobody else
writes to. An error's offset counts from the start of the part that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyendor import choice, dtypes, split
from pyendor.choice import Survey
from pyendor.dtypes import DType
from pyendor.errors import PartError
from pyendor.layout import ALIGNMENT, BLOCK, GROUP, PATCH, Bytes, blocks, roundup
from pyendor.metadata import Split, TensorMeta

Parts = Mapping[str, Bytes]


def count(dense: Bytes, itemsize: int) -> int:
    """The number of elements of dense data that are not zero (B-1)."""
    words = _words(dense, itemsize)
    step = 256 * BLOCK
    return sum(int(np.count_nonzero(words[start : start + step])) for start in range(0, words.size, step))


def survey(dense: Bytes, dtype: DType) -> Survey:
    """What decides how dense data is best encoded; of dtypes that cannot be split only nnz."""
    if not dtype.splittable:
        return Survey(count(dense, dtype.itemsize))
    words = _words(dense, dtype.itemsize)
    widths = choice.widths(dtype.name)
    patches = {(positions, w): 0 for positions in ("bitmap", "all") for w in widths}
    nnz = mantissa = 0
    for start in range(0, words.size, BLOCK):
        block = words[start : start + BLOCK]
        stored = block[block != 0]
        nnz += stored.size
        mantissa = max(mantissa, split.used_bits(block, dtype))
        for positions, words_of in (("bitmap", stored), ("all", block)):
            histogram = split.histogram(split.exponents(words_of, dtype), dtype)
            for w in widths:
                patches[positions, w] += words_of.size - split.window(histogram, w)[1]
    return Survey(nnz, mantissa, patches)


def encode(dense: Bytes, meta: TensorMeta, parts: Mapping[str, Bytes]) -> None:
    """Fills the parts of dense data, canonically; all their lengths are those of ``layout.part_specs``.

    Raises:
        ValueError: the data has not what ``meta`` counts.
    """
    words = _words(dense, dtypes.BY_NAME[meta.dtype].itemsize)
    for part in parts.values():
        part[:] = 0
    index = _index(meta, parts)
    values = _SplitWriter(meta, meta.split, parts, index[-1]) if meta.split else _RawWriter(meta, parts)
    for block in range(blocks(meta.numel)):
        first = block * BLOCK
        stored = words[first : first + BLOCK]
        if "bitmap" in parts:
            mask = stored != 0
            stored = stored[mask]
            packed = np.packbits(mask, bitorder="little")
            parts["bitmap"][first // 8 : first // 8 + packed.size] = packed
            index[0][block + 1] = index[0][block] + stored.size
        values.add(block, stored)
    values.finish()


class _RawWriter:
    """Values as they are (spec 8.2)."""

    def __init__(self, meta: TensorMeta, parts: Parts) -> None:
        itemsize = dtypes.BY_NAME[meta.dtype].itemsize
        self._values = _words(parts["values"], itemsize)
        self._nnz = meta.stored
        self._rank = 0
        if self._values.size != roundup(self._nnz * itemsize, ALIGNMENT) // itemsize:
            raise ValueError("the values part is not made for so many stored elements")

    def add(self, block: int, stored: npt.NDArray[Any]) -> None:
        stop = self._rank + stored.size
        if stop > self._nnz:
            raise ValueError(f"more stored elements than {self._nnz}")
        self._values[self._rank : stop] = stored
        self._rank = stop

    def finish(self) -> None:
        if self._rank != self._nnz:
            raise ValueError(f"{self._rank} stored elements, not {self._nnz}")


class _SplitWriter:
    """Split values (spec 8.3); what does not fill a group waits for the next block."""

    def __init__(self, meta: TensorMeta, fields: Split, parts: Parts, row: npt.NDArray[np.int64]) -> None:
        self._meta = meta
        self._split = fields
        self._dtype = dtypes.BY_NAME[meta.dtype]
        self._values = parts["values"].reshape(-1, fields.row)
        self._bases = parts["bases"]
        self._patches = parts["patches"].reshape(-1, PATCH)
        self._row = row
        self._group = 0
        self._residues = self._codes = np.empty(0, np.int64)

    def add(self, block: int, stored: npt.NDArray[Any]) -> None:
        fields = self._split
        if split.used_bits(stored, self._dtype) > fields.mantissa:
            raise ValueError(f"more mantissa bits than {fields.mantissa}")
        exponents = split.exponents(stored, self._dtype)
        base, _ = split.window(split.histogram(exponents, self._dtype), fields.w)
        codes = exponents - base
        outside = (codes < 0) | (codes >= 1 << fields.w)
        ranks = np.flatnonzero(outside)
        low = int(self._row[block])
        if low + ranks.size > fields.patches:
            raise ValueError(f"more patches than {fields.patches}")
        patches = self._patches[low : low + ranks.size]
        patches[:, 0], patches[:, 1], patches[:, 2] = ranks & 0xFF, ranks >> 8, exponents[ranks]
        self._row[block + 1] = low + ranks.size
        self._bases[block] = base
        codes[outside] = 0
        self._residues = np.concatenate([self._residues, split.residues(stored, self._dtype, fields)])
        self._codes = np.concatenate([self._codes, codes])
        self._put(self._residues.size // GROUP * GROUP)

    def _put(self, elements: int) -> None:
        """Writes what waits, up to so many elements."""
        groups = split.pack(self._residues[:elements], self._codes[:elements], self._split)
        if self._group + groups.shape[0] > self._values.shape[0]:
            raise ValueError(f"more stored elements than {self._meta.stored}")
        self._values[self._group : self._group + groups.shape[0]] = groups
        self._group += elements // GROUP
        self._residues, self._codes = self._residues[elements:], self._codes[elements:]

    def finish(self) -> None:
        rank = self._group * GROUP + self._residues.size
        if rank != self._meta.stored:
            raise ValueError(f"{rank} stored elements, not {self._meta.stored}")
        if self._row[blocks(self._meta.numel)] != self._split.patches:
            raise ValueError(f"fewer patches than {self._split.patches}")
        self._put(self._residues.size)


def decode(
    meta: TensorMeta,
    parts: Parts,
    out: Bytes | None,
    first: int = 0,
    stop: int | None = None,
    stream: bool = False,
) -> None:
    """Checks the blocks ``first`` to ``stop - 1`` of a tensor and fills ``out`` with their elements (B-11).

    Without ``first`` and ``stop`` these are all blocks, and all of B-3 to B-10 and E-2 to E-8 is checked.
    Without ``out`` that is all that is done. ``stream`` asks codecs that can to store past the caches.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    nb = blocks(meta.numel)
    stop = nb if stop is None else stop
    reader = _Reader(meta, parts)
    reader.check_index(first, stop)
    dense = _words(out, reader.dtype.itemsize) if out is not None else None
    for block in range(first, stop):
        words = reader.block(block)
        if dense is not None:
            at = (block - first) * BLOCK
            dense[at : at + words.size] = words
    if stop == nb:
        reader.check_padding()


class _Reader:
    """Blocks of a tensor, each checked before it is handed out."""

    def __init__(self, meta: TensorMeta, parts: Parts) -> None:
        self.meta = meta
        self.dtype = dtypes.BY_NAME[meta.dtype]
        self._parts = parts
        self._rows = _index(meta, parts)
        self._ends = [meta.nnz] if meta.nnz is not None else []
        if meta.split is not None:
            self._ends.append(meta.split.patches)

    def check_index(self, first: int, stop: int) -> None:
        """What can be told before any block is looked at: B-3, B-4, B-7, B-8; B-5 for the first one."""
        numel, nb = self.meta.numel, blocks(self.meta.numel)
        if stop == nb and "bitmap" in self._parts:
            _check_bitmap_padding(self._parts["bitmap"], numel)
        for at, row in enumerate(self._rows):
            if row[0] != 0:
                raise self._fault("B-4", f"index begins with {row[0]}, not 0", at, 0)
        for at, row in enumerate(self._rows):
            if stop == nb and row[nb + 1 :].any():
                entry = nb + 1 + int(np.argmax(row[nb + 1 :] != 0))
                raise self._fault("B-8", f"padding of the index has {row[entry]}", at, entry)
        for at, (row, end) in enumerate(zip(self._rows, self._ends, strict=True)):
            if row[nb] != end:
                raise self._fault("B-7", f"index ends at {row[nb]}, the metadata says {end}", at, nb)
        for at, (row, end) in enumerate(zip(self._rows, self._ends, strict=True)):
            if not 0 <= row[first] <= end:
                found = f"index has {row[first]} at block {first}, which is not from 0 to {end}"
                raise self._fault("B-5", found, at, first)

    def block(self, block: int) -> npt.NDArray[Any]:
        """The elements of a block."""
        first = block * BLOCK
        elements = min(BLOCK, self.meta.numel - first)
        if "bitmap" not in self._parts:
            return self._split(block, first, first + elements)
        packed = self._parts["bitmap"][first // 8 : -(-(first + elements) // 8)]
        mask = np.unpackbits(packed, count=elements, bitorder="little").view(np.bool_)
        low, high = self._entries(0, block)
        ones = int(np.count_nonzero(mask))
        if high - low != ones:
            found = f"block {block} has {ones} bits set, its index says {high - low}"
            raise self._fault("B-6", found, 0, block + 1)
        stored = self._split(block, low, high) if self.meta.split else self._raw(low, high)
        if not stored.all():
            rank = low + int(np.argmin(stored != 0))
            raise PartError("B-10", f"stored element {rank} is zero", "values", self._place(rank))
        words = np.zeros(elements, stored.dtype)
        words[mask] = stored
        return words

    def _raw(self, low: int, high: int) -> npt.NDArray[Any]:
        return _words(self._parts["values"], self.dtype.itemsize)[low:high]

    def _split(self, block: int, low: int, high: int) -> npt.NDArray[Any]:
        """The stored elements of a block, of these ranks."""
        fields = self.meta.split
        assert fields is not None
        start, stop = self._entries(len(self._rows) - 1, block)
        base, window = int(self._parts["bases"][block]), 1 << fields.w
        highest = (1 << self.dtype.exponent) - window if high > low else 0
        if base > highest:
            found = f"the base of block {block} is {base}, more than {highest}"
            raise PartError("E-3", found, "bases", block)
        groups = self._parts["values"].reshape(-1, fields.row)[low // GROUP : -(-high // GROUP)]
        residues, codes = (
            array[low % GROUP : low % GROUP + high - low] for array in split.unpack(groups, fields)
        )
        exponents = base + codes
        last = -1
        for at in range(start, stop):
            patch = self._parts["patches"][PATCH * at : PATCH * (at + 1)].tolist()
            rank, exponent = patch[0] | patch[1] << 8, patch[2]
            if not last < rank < high - low:
                found = f"patch {at} has rank {rank}, not from {last + 1} to {high - low - 1}"
                raise PartError("E-5", found, "patches", PATCH * at)
            if exponent >> self.dtype.exponent or base <= exponent < base + window:
                found = f"patch {at} has exponent {exponent}, which is none, or in the window from {base} on"
                raise PartError("E-6", found, "patches", PATCH * at)
            if codes[rank]:
                found = f"stored element {low + rank} has code {codes[rank]} and a patch"
                raise PartError("E-7", found, "values", self._place(low + rank))
            exponents[rank] = exponent
            last = rank
        return split.elements(residues, exponents, self.dtype, fields)

    def check_padding(self) -> None:
        """What follows the last block: B-9, E-2, E-4, E-8."""
        n, fields = self.meta.stored, self.meta.split
        if fields is None:
            _check_zero("B-9", "values", self._parts["values"], n * self.dtype.itemsize)
            return
        values, at = self._parts["values"], n // GROUP * fields.row
        if n % GROUP:
            rest = values[at : at + fields.row] & split.last_group(n, fields)
            values = np.concatenate([rest, values[at + fields.row :]])
        else:
            values = values[at:]
        _check_zero("E-2", "values", values, 0, at)
        _check_zero("E-4", "bases", self._parts["bases"], blocks(self.meta.numel))
        _check_zero("E-8", "patches", self._parts["patches"], PATCH * fields.patches)

    def _entries(self, row: int, block: int) -> tuple[int, int]:
        """What a row of the index says of a block: where its own begin and end."""
        low, high = self._rows[row][block : block + 2].tolist()
        if not low <= high <= self._ends[row]:
            found = f"index has {high} at block {block + 1}, which is not from {low} to {self._ends[row]}"
            raise self._fault("B-5", found, row, block + 1)
        return low, high

    def _place(self, rank: int) -> int:
        """Where in the values an element is, or its group."""
        fields = self.meta.split
        return rank // GROUP * fields.row if fields else rank * self.dtype.itemsize

    def _fault(self, rule: str, found: str, row: int, entry: int) -> PartError:
        return PartError(rule, found, "index", 8 * (row * self._rows[0].size + entry))


def cut(meta: TensorMeta, parts: Parts, out: Bytes, start: int, count: int, stride: int, rows: int) -> None:
    """Fills ``out`` with ``rows`` runs of ``count`` elements, the runs beginning at ``start + r * stride``.

    Checks and decodes only the blocks that they touch, as :func:`decode` does.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    if count == 0 or rows == 0:
        return
    itemsize = dtypes.BY_NAME[meta.dtype].itemsize
    dense = _words(out, itemsize).reshape(rows, count)
    done, have = np.empty(0, np.uint8), (0, 0)
    for row in range(rows):
        low = start + row * stride
        wanted = (low // BLOCK, blocks(low + count))
        if wanted != have:
            done = np.empty((min(wanted[1] * BLOCK, meta.numel) - wanted[0] * BLOCK) * itemsize, np.uint8)
            decode(meta, parts, done, *wanted)
            have = wanted
        skip = low - wanted[0] * BLOCK
        dense[row] = _words(done, itemsize)[skip : skip + count]


def _words(data: Bytes, itemsize: int) -> npt.NDArray[Any]:
    """The same bytes as unsigned integers of the size of an element."""
    return data.view(f"<u{itemsize}")


def _index(meta: TensorMeta, parts: Parts) -> npt.NDArray[np.int64]:
    """The rows of the index."""
    rows = (meta.nnz is not None) + (meta.split is not None)
    return parts["index"].view("<i8").reshape(rows, -1)


def _check_zero(rule: str, part: str, data: Bytes, start: int, offset: int = 0) -> None:
    """That a part, of which ``data`` begins at ``offset``, is 0 from ``start`` on."""
    if data[start:].any():
        at = start + int(np.argmax(data[start:] != 0))
        raise PartError(rule, f"padding of {part} has {data[at]:#04x}", part, offset + at)


def _check_bitmap_padding(bitmap: Bytes, numel: int) -> None:
    used, rest = divmod(numel, 8)
    tail = bitmap[used:].copy()
    if rest:
        tail[0] &= 0xFF << rest & 0xFF
    if tail.any():
        at = used + int(np.argmax(tail != 0))
        found = f"bitmap has a bit set past its {numel} elements"
        raise PartError("B-3", found, "bitmap", at)
