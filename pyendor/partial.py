"""Which bytes of an encoded tensor some of its blocks need (B-11), for those who do not map a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pyendor import dtypes, layout, slicing
from pyendor.layout import BLOCK, GROUP, PATCH, Bytes
from pyendor.metadata import TensorMeta

# Blocks that nobody wants, between others, which are read along: one longer read costs less than two.
GAP = 8
# Runs of a slice beyond which it is not asked which blocks they touch: they touch most.
MOST_RUNS = 1 << 16


def touched(numel: int, start: int, shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The blocks that the elements ``start + sum(i * stride)`` lie in, as ascending (first, stop)."""
    outer, (rows, stride), count = slicing.runs(shape, strides)
    begins: list[int] = []
    for offset in outer:
        begins.append(start + offset)
        if len(begins) * rows > MOST_RUNS:
            return [(0, layout.blocks(numel))]
    if not begins or not rows or not count:
        return []
    firsts = np.add.outer(np.array(begins, np.int64), stride * np.arange(rows, dtype=np.int64)).reshape(-1)
    firsts.sort()
    lasts = np.maximum.accumulate((firsts + count - 1) // BLOCK)
    firsts //= BLOCK
    apart = np.flatnonzero(firsts[1:] > lasts[:-1] + GAP)
    starts = [int(firsts[0]), *firsts[apart + 1].tolist()]
    stops = [*(lasts[apart] + 1).tolist(), int(lasts[-1]) + 1]
    return list(zip(starts, stops, strict=True))


def ranges(meta: TensorMeta, index: Bytes, first: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Role, start and end in the part, of what blocks need besides the index, which is untrusted."""
    nb = layout.blocks(meta.numel)
    rows = index.view("<i8").reshape((meta.positions == "bitmap") + (meta.split is not None), -1)
    sizes = {spec.role: spec.nbytes for spec in layout.part_specs(meta)}

    def within(role: str, low: int, high: int) -> tuple[str, int, int]:
        """Padding belongs to the last block; where the index lies, all is read for the codec to say so."""
        size = sizes[role]
        if not 0 <= low <= high <= size:
            return role, 0, size
        return role, low, size if stop == nb else high

    low, high = min(first * BLOCK, meta.numel), min(stop * BLOCK, meta.numel)
    if meta.positions == "bitmap":
        yield within("bitmap", low // 8, -(-high // 8))
        low, high = _entries(rows[0], first, stop)
    if meta.split is None:
        itemsize = dtypes.BY_NAME[meta.dtype].itemsize
        yield within("values", low * itemsize, high * itemsize)
        return
    yield within("values", low // GROUP * meta.split.row, -(-high // GROUP) * meta.split.row)
    yield within("bases", first, stop)
    low, high = _entries(rows[-1], first, stop)
    yield within("patches", low * PATCH, high * PATCH)


def _entries(row: npt.NDArray[np.int64], first: int, stop: int) -> tuple[int, int]:
    return int(row[first]), int(row[stop])
