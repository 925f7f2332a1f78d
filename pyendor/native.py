"""The C codec (native/): buffers in, a status turned into an error. Signatures are those of the reference.

C runs without the interpreter's lock. A large tensor is the work of several threads, each with a range of
blocks: ``PYENDOR_THREADS`` says how many, otherwise one for each processor. ``PYENDOR_TARGET`` forces an
instruction set: ``scalar``, ``avx2``, ``avx512`` or ``neon``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from pyendor import parallel
from pyendor.errors import BackendUnavailableError, PartError, quote
from pyendor.layout import BLOCK, Bytes, blocks

try:
    from pyendor import _native
except ImportError:  # no compiler was at hand when the package was installed
    _native = None  # type: ignore[assignment]

TARGET = "PYENDOR_TARGET"
TARGETS = ("auto", "scalar", "avx2", "avx512", "neon")  # ENDOR_AUTO and so on of endor.h

# Blocks that are worth a thread of their own: half a million elements.
_SHARE = 128
# The same for slices of several runs, which wait for memory, and of one, where two threads are no faster.
_SHARE_OF_RUNS = 512
_SHARE_OF_RUN = 2048
# Outputs that the caches do not hold anyway. Storing past them is a third faster then, and slower below.
_STREAM = 16 << 20
# What the statuses of endor.h that are called after a rule say, and in which part the fault lies.
_FAULTS = {
    "B-3": ("bitmap", "bitmap has a bit set past its last element"),
    "B-4": ("index", "index does not begin with 0"),
    "B-5": ("index", "index falls, or is not from 0 to nnz"),
    "B-6": ("index", "a block has not as many bits set as its index says"),
    "B-7": ("index", "index does not end with nnz"),
    "B-8": ("index", "padding of the index is not 0"),
    "B-9": ("values", "padding of values is not 0"),
    "B-10": ("values", "a stored element is zero"),
}


def available() -> bool:
    """Whether the package was built with the C codec."""
    return _native is not None


def targets() -> list[str]:
    """The instruction sets that can be forced on this machine."""
    return [name for name in TARGETS[1:] if _native.lib.endor_has(_number(name))]


def target() -> str:
    """The instruction set in use."""
    number = _target() or _native.lib.endor_best()
    return next(name for name in TARGETS if _number(name) == number)


def count(dense: Bytes, itemsize: int) -> int:
    """nnz of dense data."""
    return sum(_counts(dense, itemsize, _ranges(0, blocks(dense.size // itemsize))))


def encode(dense: Bytes, itemsize: int, nnz: int, values: Bytes, bitmap: Bytes, index: Bytes) -> None:
    """Fills the parts of dense data.

    Raises:
        ValueError: the data has not so many stored elements, or the parts not the lengths for them.
    """
    ranges = _ranges(0, blocks(dense.size // itemsize))
    ranks = [0, *itertools.accumulate(_counts(dense, itemsize, ranges[:-1])), nnz]
    target = _target()
    parts = [argument for part in (values, bitmap, index) for argument in (_buffer(part), part.size)]

    def run(piece: int) -> int:
        return int(
            _native.lib.endor_encode(
                target,
                _buffer(dense),
                dense.size,
                itemsize,
                *ranges[piece],
                ranks[piece],
                max(ranks[piece : piece + 2]),
                *parts,
            )
        )

    for status in parallel.each(run, range(len(ranges))):
        if status == _native.lib.ENDOR_ARGUMENT:
            raise ValueError("the parts have not the lengths of the stored elements of this data")
        _check(status)


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
    """Checks a range of blocks of parts, and fills ``out``, if there is one, with their elements.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    stop = blocks(numel) if stop is None else stop
    parts, _held = _parts(values, bitmap, index)
    tensor = (_target(), parts, itemsize, numel, nnz)
    flags = _native.lib.ENDOR_STREAM if warm and out is not None and out.size >= _STREAM else 0

    def run(blocks: tuple[int, int]) -> tuple[int, int]:
        offset = _native.ffi.new("uint64_t *")
        if out is None:
            status = _native.lib.endor_validate(*tensor, *blocks, offset)
        else:
            low, high = ((block - first) * BLOCK * itemsize for block in blocks)
            piece = out[low:high]
            status = _native.lib.endor_decode(*tensor, *blocks, _buffer(piece), piece.size, flags, offset)
        return int(status), int(offset[0])

    ranges = _ranges(first, stop)
    if len(ranges) > 1 and not any(status for status, _ in parallel.each(run, ranges)):
        return
    # Alone, or to name the fault that comes first.
    _raise(*run((first, stop)))


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
    """Fills ``out`` with runs of elements; the blocks that they touch are checked, even if they may change.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    parts, _held = _parts(values, bitmap, index)
    target = _target()
    row = count * itemsize
    # Several threads take whole rows, or, of a slice of one row, whole blocks.
    share = _SHARE_OF_RUNS if rows > 1 else _SHARE_OF_RUN
    shares = max(1, min(count * rows // BLOCK // share, parallel.threads()))

    def run(low: int, high: int) -> tuple[int, int]:
        """Rows, or the elements of one row."""
        offset = _native.ffi.new("uint64_t *")
        if rows > 1:
            here = (start + low * stride, count, stride, high - low)
            piece = out[low * row : high * row]
        else:
            here = (start + low, high - low, 0, 1)
            piece = out[low * itemsize : high * itemsize]
        arguments = (*here, _buffer(piece), piece.size, offset)
        status = _native.lib.endor_slice(target, parts, itemsize, numel, nnz, *arguments)
        return int(status), int(offset[0])

    units = rows if rows > 1 else count
    edges = [units * k // shares for k in range(shares + 1)]
    if rows <= 1:
        edges[1:-1] = [-(-(start + edge) // BLOCK) * BLOCK - start for edge in edges[1:-1]]
    results = parallel.each(lambda pair: run(*pair), list(itertools.pairwise(edges)))
    # Each thread names the first fault of its own; the first of all is that of the first thread that has one.
    for status, at in results:
        _raise(status, at)


def _ranges(first: int, stop: int) -> list[tuple[int, int]]:
    """A range of blocks, cut in as many as there are threads for it; at least one."""
    shares = max(1, min((stop - first) // _SHARE, parallel.threads()))
    edges = [first + (stop - first) * k // shares for k in range(shares + 1)]
    return list(itertools.pairwise(edges))


def _counts(dense: Bytes, itemsize: int, ranges: Sequence[tuple[int, int]]) -> list[int]:
    target = _target()

    def run(blocks: tuple[int, int]) -> int:
        piece = dense[blocks[0] * BLOCK * itemsize : blocks[1] * BLOCK * itemsize]
        nnz = _native.ffi.new("uint64_t *")
        _check(_native.lib.endor_count(target, _buffer(piece), piece.size, itemsize, nnz))
        return int(nnz[0])

    return parallel.each(run, ranges)


def _raise(status: int, at: int) -> None:
    """The error that a status stands for, if it is one."""
    if status == _native.lib.ENDOR_OK:
        return
    for rule, (part, found) in _FAULTS.items():
        if status == getattr(_native.lib, f"ENDOR_{rule.replace('-', '')}"):
            raise PartError(rule, found, part, at)
    _check(status)


def _parts(values: Bytes, bitmap: Bytes, index: Bytes) -> tuple[Any, Any]:
    """The structure of endor.h; and what its pointers point to, which the caller has to keep."""
    held = (_buffer(values), _buffer(bitmap), _buffer(index))
    members = (held[0], values.size, held[1], bitmap.size, held[2], index.size)
    return _native.ffi.new("endor_parts *", members), held


def _buffer(array: Bytes) -> Any:
    try:
        return _native.ffi.from_buffer(array)
    except (BufferError, ValueError) as error:
        raise ValueError("the codec takes contiguous arrays") from error


def _check(status: int) -> None:
    if status == _native.lib.ENDOR_TARGET:
        found = f"this machine has no {os.environ.get(TARGET)}; it has {', '.join(targets())}"
        raise BackendUnavailableError(f"{TARGET}: {found}")
    if status:
        raise ValueError(f"the native codec refuses its arguments (status {status})")


def _target() -> int:
    name = os.environ.get(TARGET, "auto")
    if name not in TARGETS:
        raise BackendUnavailableError(f"{TARGET}={quote(name)}; known are {', '.join(TARGETS)}")
    return _number(name)


def _number(name: str) -> int:
    return int(getattr(_native.lib, f"ENDOR_{name.upper()}"))
