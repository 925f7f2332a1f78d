"""The C codec (native/): buffers in, a status turned into an error. Signatures are those of the reference.

C runs without the interpreter's lock. A large tensor is the work of several threads, each with a range of
blocks: ``PYENDOR_THREADS`` says how many, otherwise one for each processor. ``PYENDOR_TARGET`` forces an
instruction set: ``scalar``, ``avx2``, ``avx512`` or ``neon``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyendor import capi, choice, dtypes, parallel
from pyendor.choice import Survey
from pyendor.dtypes import DType
from pyendor.errors import BackendUnavailableError, PartError, UsageError, quote
from pyendor.layout import BLOCK, GROUP, Bytes, blocks
from pyendor.metadata import TensorMeta

try:
    from pyendor import _native
except ImportError:  # no compiler was at hand when the package was installed
    _native = None  # type: ignore[assignment]

TARGET = "PYENDOR_TARGET"
TARGETS = ("auto", "scalar", "avx2", "avx512", "neon")  # ENDOR_AUTO and so on of endor.h

# Blocks that are worth a thread of their own: half a million elements.
_SHARE = 128
# Pieces for each thread of a team: to take the next one costs nothing, to wait for another thread does.
_PIECES = 4
# Blocks that are worth a thread of their own in slices, which wait for memory.
_SHARE_OF_SLICE = 512


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
    target = _target()

    def run(piece: Bytes) -> int:
        nnz = _native.ffi.new("uint64_t *")
        _check(_native.lib.endor_count(target, _buffer(piece), piece.size, itemsize, nnz))
        return int(nnz[0])

    return sum(_in_pieces(run, dense, itemsize))


def survey(dense: Bytes, dtype: DType) -> Survey:
    """What decides how dense data is best encoded."""
    if not dtype.splittable:
        return Survey(count(dense, dtype.itemsize))
    return _survey(dense, dtype, _ranges(0, blocks(dense.size // dtype.itemsize)))[-1]


def _survey(dense: Bytes, dtype: DType, ranges: Sequence[tuple[int, int]]) -> list[Survey]:
    """Surveys of all that comes before the end of each range, the ranges being one behind the other."""
    target = _target()
    encoding = _native.ffi.new("endor_encoding *", capi.encoding(dtype))

    def run(piece: Bytes) -> Any:
        result = _native.ffi.new("endor_survey_result *")
        _check(_native.lib.endor_survey(target, encoding, _buffer(piece), piece.size, result))
        return result

    keys = [(positions, w) for positions in capi.POSITIONS for w in choice.widths(dtype.name)]
    total = Survey(0, 0, dict.fromkeys(keys, 0))
    totals = []
    for one in parallel.each(run, [_piece(dense, dtype.itemsize, *piece) for piece in ranges]):
        patches = {
            (positions, w): total.patches[positions, w] + one.patches[capi.POSITIONS.index(positions)][w - 1]
            for positions, w in keys
        }
        total = Survey(total.nnz + one.nnz, max(total.mantissa, one.kept), patches)
        totals.append(total)
    return totals


def encode(dense: Bytes, meta: TensorMeta, parts: Mapping[str, Bytes]) -> None:
    """Fills the parts of dense data, which are 0 before.

    Raises:
        ValueError: the data has not what ``meta`` counts, or the parts not the lengths for it.
    """
    dtype = dtypes.BY_NAME[meta.dtype]
    # Neighbours may have a group in common, so that only every other one is encoded at the same time.
    turns = 1 if meta.split is None else 2
    ranges = _ranges(0, blocks(meta.numel), turns)
    ends = _ends(dense, meta, ranges)
    if meta.split is not None and any(high - low < GROUP for (low, _), (high, _) in itertools.pairwise(ends)):
        # Those between are too small for that.
        ranges, ends = [(0, blocks(meta.numel))], [ends[0], ends[-1]]
    target, tensor, buffers = _target(), _tensor(meta), _Buffers("endor_room", parts)

    def run(at: int) -> int:
        (low, patch_low), (high, patch_high) = ends[at], ends[at + 1]
        piece = _native.ffi.new("endor_range *", (*ranges[at], low, high, patch_low, patch_high))
        return int(
            _native.lib.endor_encode(target, tensor, _buffer(dense), dense.size, piece, buffers.structure)
        )

    for turn in range(turns):
        for status in parallel.each(run, range(turn, len(ranges), turns)):
            if status == _native.lib.ENDOR_ARGUMENT:
                raise ValueError(f"the parts have not the lengths of this {dtype.name} data's encoding")
            _check(status)


def _ends(dense: Bytes, meta: TensorMeta, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """How many stored elements and patches there are before each range, and in all."""
    last = (meta.stored, meta.split.patches if meta.split is not None else 0)
    if len(ranges) == 1:
        return [(0, 0), last]
    dtype = dtypes.BY_NAME[meta.dtype]
    if meta.split is None:
        pieces = [_piece(dense, dtype.itemsize, *piece) for piece in ranges[:-1]]
        counts = parallel.each(lambda piece: count(piece, dtype.itemsize), pieces)
        return [(0, 0), *((rank, 0) for rank in itertools.accumulate(counts)), last]
    before = _survey(dense, dtype, ranges[:-1])
    key = meta.positions, meta.split.w
    ranks = [
        stop * BLOCK if meta.nnz is None else one.nnz for (_, stop), one in zip(ranges, before, strict=False)
    ]
    return [(0, 0), *zip(ranks, (one.patches[key] for one in before), strict=True), last]


def decode(
    meta: TensorMeta,
    parts: Mapping[str, Bytes],
    out: Bytes | None,
    first: int = 0,
    stop: int | None = None,
    stream: bool = False,
) -> None:
    """Checks a range of blocks of parts, and fills ``out``, if there is one, with their elements.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    stop = blocks(meta.numel) if stop is None else stop
    itemsize = dtypes.BY_NAME[meta.dtype].itemsize
    buffers = _Buffers("endor_parts", parts)
    tensor = (_target(), _tensor(meta), buffers.structure)
    flags = _native.lib.ENDOR_STREAM if stream else 0

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
    team = parallel.team()
    if len(ranges) > 1 and team is not None and out is not None:
        start = _native.ffi.cast("endor_start", team)
        pieces = _PIECES * len(ranges)
        whole = (first, stop, _buffer(out), out.size, flags)
        # All of them, also for few pieces: a team of another size than the last would be made anew.
        if not _native.lib.endor_decode_by(start, parallel.threads(), pieces, *tensor, *whole):
            return
    elif len(ranges) > 1 and not any(status for status, _ in parallel.each(run, ranges)):
        return
    # Alone, or to name the fault that comes first.
    _raise(*run((first, stop)))


def cut(
    meta: TensorMeta,
    parts: Mapping[str, Bytes],
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
    buffers = _Buffers("endor_parts", parts)
    tensor = (_target(), _tensor(meta), buffers.structure)
    itemsize = dtypes.BY_NAME[meta.dtype].itemsize
    row = count * itemsize
    # Several threads take whole rows, or, of a slice of one row, whole blocks.
    shares = max(1, min(count * rows // BLOCK // _SHARE_OF_SLICE, parallel.threads()))

    def run(low: int, high: int) -> tuple[int, int]:
        """Rows, or the elements of one row."""
        offset = _native.ffi.new("uint64_t *")
        if rows > 1:
            here = (start + low * stride, count, stride, high - low)
            piece = out[low * row : high * row]
        else:
            here = (start + low, high - low, 0, 1)
            piece = out[low * itemsize : high * itemsize]
        runs = _native.ffi.new("endor_runs *", here)
        return int(_native.lib.endor_slice(*tensor, runs, _buffer(piece), piece.size, offset)), int(offset[0])

    units = rows if rows > 1 else count
    edges = [units * k // shares for k in range(shares + 1)]
    if rows <= 1:
        edges[1:-1] = [-(-(start + edge) // BLOCK) * BLOCK - start for edge in edges[1:-1]]
    results = parallel.each(lambda pair: run(*pair), list(itertools.pairwise(edges)))
    # Each thread names the first fault of its own; the first of all is that of the first thread that has one.
    for status, at in results:
        _raise(status, at)


def _ranges(first: int, stop: int, each: int = 1) -> list[tuple[int, int]]:
    """A range of blocks, cut in as many as there are threads for it, or a multiple; at least one."""
    shares = max(1, min((stop - first) // _SHARE, parallel.threads()))
    shares = shares * each if shares > 1 else 1
    edges = [first + (stop - first) * k // shares for k in range(shares + 1)]
    return list(itertools.pairwise(edges))


def _piece(dense: Bytes, itemsize: int, first: int, stop: int) -> Bytes:
    """A range of blocks of dense data."""
    return dense[first * BLOCK * itemsize : stop * BLOCK * itemsize]


def _in_pieces(run: Callable[[Bytes], int], dense: Bytes, itemsize: int) -> list[int]:
    ranges = _ranges(0, blocks(dense.size // itemsize))
    return parallel.each(run, [_piece(dense, itemsize, *piece) for piece in ranges])


def _raise(status: int, at: int) -> None:
    """The error that a status stands for, if it is one."""
    if status == _native.lib.ENDOR_OK:
        return
    for rule, (part, found) in capi.FAULTS.items():
        if status == getattr(_native.lib, capi.status_name(rule)):
            raise PartError(rule, found, part, at)
    _check(status)


def _tensor(meta: TensorMeta) -> Any:
    """The ``endor_tensor`` of a tensor."""
    return _native.ffi.new("endor_tensor *", capi.tensor(meta))


class _Buffers:
    """A structure of pointers to parts; what they point to has to be kept as long as it is used."""

    def __init__(self, kind: str, parts: Mapping[str, Bytes]) -> None:
        self._held = [_buffer(parts[role]) if role in parts else _native.ffi.NULL for role in capi.ROLES]
        sizes = [parts[role].size if role in parts else 0 for role in capi.ROLES]
        members = itertools.chain.from_iterable(zip(self._held, sizes, strict=True))
        self.structure = _native.ffi.new(f"{kind} *", tuple(members))


def _buffer(array: Bytes) -> Any:
    try:
        return _native.ffi.from_buffer(array)
    except (BufferError, ValueError) as error:
        raise UsageError("the codec takes contiguous arrays") from error


def _check(status: int) -> None:
    if status == _native.lib.ENDOR_TARGET:
        found = f"this machine has no {os.environ.get(TARGET)}; it has {', '.join(targets())}"
        raise BackendUnavailableError(f"{TARGET}: {found}")
    if status:
        raise UsageError(f"the native codec refuses its arguments (status {status})")


def _target() -> int:
    name = os.environ.get(TARGET, "auto")
    if name not in TARGETS:
        raise BackendUnavailableError(f"{TARGET}={quote(name)}; known are {', '.join(TARGETS)}")
    return _number(name)


def _number(name: str) -> int:
    return int(getattr(_native.lib, f"ENDOR_{name.upper()}"))
