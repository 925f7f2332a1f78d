"""Products with a matrix that is encoded: some rows of it are decoded at a time, and multiplied at once.

The dense matrix as a whole would go through memory three times: fetched to be written and written when it is
decoded, read when it is multiplied. Some rows of it stay in a cache from one to the other. What comes out is
bit for bit what the whole matrix gives: whether it does depends on how PyTorch cuts a product up, so it is
tried for every shape, on sums that show any other order of their terms.

Threads have to wait for one another after each chunk, twice. Where other programs have the processors, every
such wait is as long as a turn of theirs; when products become slow, whole matrices are decoded for a while.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyendor import layout, openmp
from pyendor.layout import Bytes

# Dense bytes that are decoded at a time. Caches hold that, and to begin is little beside it.
CHUNK = 8 << 20
# The least and the unit of rows: what kernels for matrices cut them into, or a multiple of it.
UNIT = 256
# Rows of input; with more of them arithmetic is what takes the time.
FEW = 16

# Products are slow if the last ones took so many times what the fastest did; later it is tried again.
SLOW = 4
LATER = 0.5  # seconds

_PLAIN = {Tensor, torch.nn.Parameter}
_DTYPES = {torch.bfloat16, torch.float16, torch.float32, torch.float64}


class Pace:
    """How long products of a kind take, and whether they have become slow."""

    def __init__(self) -> None:
        self._times: dict[tuple[object, ...], tuple[float, float]] = {}
        self._until = 0.0

    def is_slow(self) -> bool:
        """Whether products are to be done otherwise for now."""
        return time.perf_counter() < self._until

    def note(self, kind: tuple[object, ...], seconds: float) -> None:
        """What one of a kind took, for each byte."""
        best, last = self._times.get(kind, (seconds, seconds))
        best, last = min(best, seconds), (3 * last + seconds) / 4  # one that is slow may be chance
        if last > SLOW * best:
            self._until, last = time.perf_counter() + LATER, best
        self._times[kind] = best, last


_here = threading.local()
_found: dict[tuple[object, ...], bool] = {}
_pace = Pace()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A matrix that is encoded.

    Attributes:
        shape: rows, which are what is multiplied by, and columns.
        dtype: its type.
        blocks: gives what decodes blocks of it, from one to before another, into memory of just that size.
        room: gives memory for a dense matrix of this shape and type, whatever is in it.
        encoding: how it is encoded, as some ways take longer than others.
    """

    shape: Sequence[int]
    dtype: torch.dtype
    blocks: Callable[[], Callable[[int, int, Bytes], object]]
    room: Callable[[], Tensor]
    encoding: tuple[str, str]


def product(bias: Tensor | None, x: Tensor, weight: Encoded) -> Tensor | None:
    """``x @ weight.T``, plus a bias, without the dense weight as a whole.

    Args:
        bias: ``[n]``, or none.
        x: ``[m, k]``.
        weight: ``[n, k]``, on the CPU.

    Returns:
        ``[m, n]``, the same bits that the dense weight gives; None where all of it has to be decoded, or is
        better decoded.

    Raises:
        FormatError: what was decoded breaks a rule of section 8.
    """
    if not _fits(bias, x, weight):
        return None
    edges = _edges(weight)
    if edges is None:
        return None
    several = len(edges) > 2
    if several and (_pace.is_slow() or not _exact(bias is not None, x.shape[0], weight, edges)):
        return None
    columns, dtype = weight.shape[1], weight.dtype
    largest = max(high - low for low, high in itertools.pairwise(edges))
    memory = _scratch(largest * columns * dtype.itemsize)
    dense = torch.from_numpy(memory).view(dtype)
    decode = weight.blocks()

    def rows(low: int, high: int) -> Tensor:
        first, stop = low * columns // layout.BLOCK, layout.blocks(high * columns)
        decode(first, stop, memory[: (high - low) * columns * dtype.itemsize])
        return dense[: (high - low) * columns].view(high - low, columns)

    began = time.perf_counter()
    with openmp.used():
        result = _by_chunks(bias, x, edges, rows)
    if several and torch.get_num_threads() > 1:
        nbytes = edges[-1] * columns * dtype.itemsize
        _pace.note((len(x), dtype, weight.encoding), (time.perf_counter() - began) / nbytes)
    return result


def _fits(bias: Tensor | None, x: Tensor, weight: Encoded) -> bool:
    """Whether this is a product of the kind that is done here, and one without errors."""
    given = (x,) if bias is None else (x, bias)
    shape, dtype = weight.shape, weight.dtype
    return (
        all(type(one) in _PLAIN and one.device.type == "cpu" and one.dtype == dtype for one in given)
        and all(one.layout == torch.strided and one.is_contiguous() for one in given)
        and dtype in _DTYPES
        and x.ndim == len(shape) == 2
        and 0 < x.shape[0] <= FEW
        and x.shape[1] == shape[1]
        and (bias is None or bias.shape == shape[:1])
    )


def _edges(weight: Encoded) -> list[int] | None:
    """Where chunks of rows begin, and the end; None where they would be too large, or begin within blocks."""
    rows, columns = weight.shape
    row_nbytes = columns * weight.dtype.itemsize
    units = max(1, rows // UNIT)
    chunks = min(units, max(1, round(rows * row_nbytes / CHUNK)))
    edges = [*(units * chunk // chunks * UNIT for chunk in range(chunks)), rows]
    largest = max(high - low for low, high in itertools.pairwise(edges)) * row_nbytes
    if not 0 < largest <= 2 * CHUNK or (chunks > 1 and UNIT * columns % layout.BLOCK):
        return None
    return edges


def _by_chunks(
    bias: Tensor | None, x: Tensor, edges: Sequence[int], rows: Callable[[int, int], Tensor]
) -> Tensor:
    def multiplied(low: int, high: int) -> Tensor:
        weight = rows(low, high).t()
        return torch.mm(x, weight) if bias is None else torch.addmm(bias[low:high], x, weight)

    parts = [multiplied(*pair) for pair in itertools.pairwise(edges)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _exact(with_bias: bool, m: int, weight: Encoded, edges: Sequence[int]) -> bool:
    """Whether chunks give what the whole matrix does, for products of this shape."""
    precision, determined = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    # What PyTorch may choose a kernel by.
    key = (with_bias, m, *weight.shape, weight.dtype, torch.get_num_threads(), precision, determined)
    key += (torch._C._get_mkldnn_enabled(),)
    if key not in _found:
        _found[key] = _tried(with_bias, m, weight.room(), edges)
    return _found[key]


def _tried(with_bias: bool, m: int, room: Tensor, edges: Sequence[int]) -> bool:
    """The same, tried.

    All sums are 0 but for rounding, which depends on the order in which they are added up.
    """
    (n, k), dtype = room.shape, room.dtype
    # Whatever defaults the caller has set.
    some: dict[str, Any] = {"generator": torch.Generator("cpu").manual_seed(0), "device": "cpu"}
    order = torch.randperm(k, **some)
    x = torch.exp(3 * torch.randn(m, k // 2, dtype=torch.float32, **some))
    half = torch.randn(min(n, 64), k // 2, dtype=torch.float32, **some)
    x /= x.amax()  # no sum overflows in any type
    pattern = torch.cat([half, -half, half.new_zeros(len(half), k % 2)], 1)[:, order].to(dtype)
    x = torch.cat([x, x, x.new_zeros(m, k % 2)], 1)[:, order].to(dtype)
    for low in range(0, n, len(half)):
        room[low : low + len(half)] = pattern[: n - low]
    bias = room.new_zeros(n) if with_bias else None
    whole = torch.mm(x, room.t()) if bias is None else torch.addmm(bias, x, room.t())
    return torch.equal(whole, _by_chunks(bias, x, edges, lambda low, high: room[low:high]))


def _scratch(nbytes: int) -> Bytes:
    """Memory of this thread, which its caches may still hold."""
    memory: Bytes | None = getattr(_here, "memory", None)
    if memory is None or memory.size < nbytes:
        memory = _here.memory = layout.allocate(max(nbytes, CHUNK))
        memory[:] = 0  # mapped once, and not by each thread a part
    return memory
