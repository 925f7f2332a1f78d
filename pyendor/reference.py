"""The bitmap/raw encoding in plain NumPy (spec 8, rules B): the codec that others are held against.

Dense data and parts are flat ``uint8`` arrays. A codec allocates nothing that the caller should own:
``count`` tells the size, the caller allocates, ``encode`` and ``decode`` fill. Work goes over blocks in
batches, so that scratch memory is bounded whatever the size of the tensor.

Decoding never trusts its input, and reads each part once (S-3): the caller passes memory that nobody else
writes to. An error's offset counts from the start of the part that it names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyendor.errors import PartError
from pyendor.layout import ALIGNMENT, BLOCK, Bytes, blocks, roundup

_BATCH = 256  # blocks: a million elements


def count(dense: Bytes, itemsize: int) -> int:
    """The number of stored elements, nnz, of dense data (B-1)."""
    words = _words(dense, itemsize)
    step = _BATCH * BLOCK
    return sum(int(np.count_nonzero(words[start : start + step])) for start in range(0, words.size, step))


def encode(dense: Bytes, itemsize: int, nnz: int, values: Bytes, bitmap: Bytes, index: Bytes) -> None:
    """Fills the parts of dense data; all their lengths are those of ``layout.part_specs``.

    Raises:
        ValueError: the data has not so many stored elements.
    """
    words = _words(dense, itemsize)
    stored = _words(values, itemsize)
    if stored.size != roundup(nnz * itemsize, ALIGNMENT) // itemsize:
        raise ValueError("the values part is not made for so many stored elements")
    entries = index.view("<i8")
    entries[:] = 0
    bitmap[:] = 0
    rank = 0
    for first in range(0, words.size, _BATCH * BLOCK):
        batch = words[first : first + _BATCH * BLOCK]
        mask = batch != 0
        found = batch[mask]
        if rank + found.size > nnz:
            raise ValueError(f"more stored elements than {nnz}")
        stored[rank : rank + found.size] = found
        packed = np.packbits(mask, bitorder="little")
        bitmap[first // 8 : first // 8 + packed.size] = packed
        ones = np.add.reduceat(mask, np.arange(0, mask.size, BLOCK), dtype=np.int64)
        block = first // BLOCK
        entries[block + 1 : block + 1 + ones.size] = rank + np.cumsum(ones)
        rank += found.size
    if rank != nnz:
        raise ValueError(f"{rank} stored elements, not {nnz}")
    stored[rank:] = 0


def decode(
    values: Bytes,
    bitmap: Bytes,
    index: Bytes,
    itemsize: int,
    numel: int,
    nnz: int,
    out: Bytes | None,
    first: int = 0,
    stop: int | None = None,
    warm: bool = False,
) -> None:
    """Checks the blocks ``first`` to ``stop - 1`` of a tensor and fills ``out`` with their elements (B-11).

    Without ``first`` and ``stop`` these are all blocks, and all of B-3 to B-10 is checked. Without ``out``
    that is all that is done. ``warm`` says that ``out`` is mapped already, for codecs that can use that.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    nb = blocks(numel)
    stop = nb if stop is None else stop
    entries = index.view("<i8")
    stored = _words(values, itemsize)
    dense = _words(out, itemsize) if out is not None else None
    if stop == nb:
        _check_bitmap_padding(bitmap, numel)
    _check_index(entries, nb, nnz, first, stop)
    for start in range(first, stop, _BATCH):
        end = min(start + _BATCH, stop)
        lowest, highest = start * BLOCK, min(end * BLOCK, numel)
        mask = np.unpackbits(
            bitmap[lowest // 8 : -(-highest // 8)], count=highest - lowest, bitorder="little"
        ).view(np.bool_)
        found = _checked(mask, entries[start : end + 1], start, nnz, stored)
        if dense is not None:
            batch = dense[lowest - first * BLOCK : highest - first * BLOCK]
            batch[:] = 0
            batch[mask] = found
    padding = values[nnz * itemsize :]
    if stop == nb and padding.any():
        at = nnz * itemsize + int(np.argmax(padding != 0))
        raise PartError("B-9", f"padding of values has {values[at]:#04x}", "values", at)


def cut(
    values: Bytes,
    bitmap: Bytes,
    index: Bytes,
    itemsize: int,
    numel: int,
    nnz: int,
    out: Bytes,
    start: int,
    count: int,
    stride: int,
    rows: int,
) -> None:
    """Fills ``out`` with ``rows`` runs of ``count`` elements, the runs beginning at ``start + r * stride``.

    Checks and decodes only the blocks that they touch, as :func:`decode` does.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    if count == 0 or rows == 0:
        return
    dense = _words(out, itemsize).reshape(rows, count)
    done, have = np.empty(0, np.uint8), (0, 0)
    for row in range(rows):
        low = start + row * stride
        wanted = (low // BLOCK, blocks(low + count))
        if wanted != have:
            done = np.empty((min(wanted[1] * BLOCK, numel) - wanted[0] * BLOCK) * itemsize, np.uint8)
            decode(values, bitmap, index, itemsize, numel, nnz, done, *wanted)
            have = wanted
        skip = low - wanted[0] * BLOCK
        dense[row] = _words(done, itemsize)[skip : skip + count]


def _words(data: Bytes, itemsize: int) -> npt.NDArray[Any]:
    """The same bytes as unsigned integers of the size of an element."""
    return data.view(f"<u{itemsize}")


def _check_bitmap_padding(bitmap: Bytes, numel: int) -> None:
    used, rest = divmod(numel, 8)
    tail = bitmap[used:].copy()
    if rest:
        tail[0] &= 0xFF << rest & 0xFF
    if tail.any():
        at = used + int(np.argmax(tail != 0))
        found = f"bitmap has a bit set past its {numel} elements"
        raise PartError("B-3", found, "bitmap", at)


def _check_index(entries: npt.NDArray[np.int64], nb: int, nnz: int, first: int, stop: int) -> None:
    """What can be told of the index before any block is looked at."""
    if entries[0] != 0:
        raise PartError("B-4", f"index begins with {entries[0]}, not 0", "index", 0)
    if stop == nb and entries[nb + 1 :].any():
        at = nb + 1 + int(np.argmax(entries[nb + 1 :] != 0))
        raise PartError("B-8", f"padding of the index has {entries[at]}", "index", 8 * at)
    if entries[nb] != nnz:
        found = f"index ends at {entries[nb]}, nnz is {nnz}"
        raise PartError("B-7", found, "index", 8 * nb)
    if not 0 <= entries[first] <= nnz:
        found = f"index has {entries[first]} at block {first}, which is not from 0 to {nnz}"
        raise PartError("B-5", found, "index", 8 * first)


def _checked(
    mask: npt.NDArray[np.bool_],
    entries: npt.NDArray[np.int64],
    block: int,
    nnz: int,
    stored: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """The stored elements of a batch of blocks that begins with ``block``.

    Of several faults that of the first block is named, and in a block B-5 before B-6 before B-10, as a
    decoder finds them that goes block by block.
    """
    good = (entries[1:] >= entries[:-1]) & (entries[1:] <= nnz)
    in_order = int(np.argmin(good)) if not good.all() else good.size
    ones = np.add.reduceat(mask, np.arange(0, mask.size, BLOCK), dtype=np.int64)[:in_order]
    right = np.diff(entries[: in_order + 1]) == ones
    counted = int(np.argmin(right)) if not right.all() else in_order
    rank = int(entries[0])
    found = stored[rank : int(entries[counted])]
    if not found.all():
        at = rank + int(np.argmin(found != 0))
        raise PartError("B-10", f"stored element {at} is zero", "values", at * stored.itemsize)
    at = block + counted + 1
    if counted < in_order:
        says = entries[counted + 1] - entries[counted]
        what = f"block {block + counted} has {ones[counted]} bits set, its index says {says}"
        raise PartError("B-6", what, "index", 8 * at)
    if in_order < good.size:
        before, entry = entries[in_order], entries[in_order + 1]
        what = f"index has {entry} at block {at}, which is not from {before} to {nnz}"
        raise PartError("B-5", what, "index", 8 * at)
    return found
