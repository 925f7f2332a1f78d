"""The C codec (native/): buffers in, a status turned into an error. Signatures are those of the reference.

C runs without the interpreter's lock. A large tensor is decoded by several threads, each a range of blocks:
``PYENDOR_THREADS`` says how many, otherwise one for each processor. ``PYENDOR_TARGET`` forces an instruction
set: ``scalar``, ``avx2`` or ``avx512``.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyendor.errors import BackendUnavailableError, PartError, quote
from pyendor.layout import BLOCK, Bytes, blocks

try:
    from pyendor import _native
except ImportError:  # no compiler was at hand when the package was installed
    _native = None  # type: ignore[assignment]

THREADS = "PYENDOR_THREADS"
TARGET = "PYENDOR_TARGET"
TARGETS = {"auto": 0, "scalar": 1, "avx2": 2, "avx512": 3}

# Blocks that are worth a thread of their own: half a million elements.
_SHARE = 128
_ARGUMENT, _NO_TARGET = 1, 2
# What each status of endor.h says, and in which part the fault lies.
_FAULTS = {
    103: ("B-3", "bitmap", "bitmap has a bit set past its last element"),
    104: ("B-4", "index", "index does not begin with 0"),
    105: ("B-5", "index", "index falls, or is not from 0 to nnz"),
    106: ("B-6", "index", "a block has not as many bits set as its index says"),
    107: ("B-7", "index", "index does not end with nnz"),
    108: ("B-8", "index", "padding of the index is not 0"),
    109: ("B-9", "values", "padding of values is not 0"),
    110: ("B-10", "values", "a stored element is zero"),
}


def available() -> bool:
    """Whether the package was built with the C codec."""
    return _native is not None


def targets() -> list[str]:
    """The instruction sets that can be forced on this machine."""
    return [name for name, number in TARGETS.items() if number and _native.lib.endor_has(number)]


def target() -> str:
    """The instruction set in use."""
    number = _target() or _native.lib.endor_best()
    return next(name for name, other in TARGETS.items() if other == number)


def count(dense: Bytes, itemsize: int) -> int:
    """nnz of dense data."""
    nnz = _native.ffi.new("uint64_t *")
    _check(_native.lib.endor_count(_target(), _buffer(dense), dense.size, itemsize, nnz))
    return int(nnz[0])


def encode(dense: Bytes, itemsize: int, values: Bytes, bitmap: Bytes, index: Bytes) -> None:
    """Fills the parts of dense data.

    Raises:
        ValueError: the parts have not the lengths that the data needs.
    """
    status = _native.lib.endor_encode(
        _target(),
        _buffer(dense),
        dense.size,
        itemsize,
        _buffer(values),
        values.size,
        _buffer(bitmap),
        bitmap.size,
        _buffer(index),
        index.size,
    )
    if status == _ARGUMENT:
        raise ValueError("the parts have not the lengths of the stored elements of this data")
    _check(status)


def decode(
    values: Bytes,
    bitmap: Bytes,
    index: Bytes,
    itemsize: int,
    numel: int,
    nnz: int,
    out: Bytes,
    first: int = 0,
    stop: int | None = None,
) -> None:
    """Checks a range of blocks of parts and fills ``out`` with their elements.

    Raises:
        PartError: a rule is broken. What is in ``out`` then means nothing.
    """
    stop = blocks(numel) if stop is None else stop
    # A structure does not keep what its pointers point to; this frame does.
    held = (_buffer(values), _buffer(bitmap), _buffer(index))
    parts = _native.ffi.new(
        "endor_parts *", (held[0], values.size, held[1], bitmap.size, held[2], index.size)
    )
    forced = _target()

    def run(low: int, high: int) -> tuple[int, int]:
        piece = out[(low - first) * BLOCK * itemsize : (high - first) * BLOCK * itemsize]
        offset = _native.ffi.new("uint64_t *")
        status = _native.lib.endor_decode(
            forced, parts, itemsize, numel, nnz, low, high, _buffer(piece), piece.size, 0, offset
        )
        return int(status), int(offset[0])

    shares = (stop - first) // _SHARE
    if shares > 1:
        shares = min(shares, _threads())
    if shares > 1:
        edges = [first + (stop - first) * k // shares for k in range(shares + 1)]
        results = list(_pool(_threads()).map(run, edges[:-1], edges[1:]))
        if not any(status for status, _ in results):
            return
    # Alone, or to name the fault that comes first.
    status, at = run(first, stop)
    if status in _FAULTS:
        rule, part_name, found = _FAULTS[status]
        raise PartError(rule, found, part_name, at)
    _check(status)


def _buffer(array: Bytes) -> Any:
    try:
        return _native.ffi.from_buffer(array)
    except (BufferError, ValueError) as error:
        raise ValueError("the codec takes contiguous arrays") from error


def _check(status: int) -> None:
    if status == _NO_TARGET:
        found = f"this machine has no {os.environ.get(TARGET)}; it has {', '.join(targets())}"
        raise BackendUnavailableError(f"{TARGET}: {found}")
    if status:
        raise ValueError(f"the native codec refuses its arguments (status {status})")


def _target() -> int:
    name = os.environ.get(TARGET, "auto")
    if name not in TARGETS:
        raise BackendUnavailableError(f"{TARGET}={quote(name)}; known are {', '.join(TARGETS)}")
    return TARGETS[name]


def _threads() -> int:
    text = os.environ.get(THREADS, "")
    if text.isascii() and text.isdecimal() and int(text[:4]):
        return int(text[:4])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "pyendor")


# A child of fork has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
