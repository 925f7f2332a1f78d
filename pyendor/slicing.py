"""What an index takes of an array: elements at regular distances, which can be told without the array."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyendor.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class View:
    """The elements ``start + sum(i * stride)`` of an array, row-major in ``shape``; no stride is negative.

    Attributes:
        start, shape, strides: in elements.
        down: axes to be turned round afterwards: those that the index has taken from behind.
    """

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    down: tuple[int, ...]

    def turned(self, elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """These elements, one after the other, as the index wants them.

        Raises:
            UnsupportedError: there are none, and NumPy has no arrays of that shape.
        """
        array = shaped(elements, self.shape)
        return np.flip(array, self.down) if self.down else array


def basic(shape: tuple[int, ...], index: Any) -> View | None:
    """What NumPy's basic indexing takes of a row-major array; None for an index of another kind.

    Raises:
        IndexError, TypeError, ValueError: no array of that shape has it.
        UnsupportedError: NumPy has no arrays of that shape.
    """
    items = index if isinstance(index, tuple) else (index,)
    if not all(map(_is_basic, items)):
        return None
    # An array of that shape that is nowhere: only where its view begins and how it strides is asked.
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    try:
        nowhere = np.lib.stride_tricks.as_strided(np.empty(1, np.uint8), shape, steps)
    except (ValueError, OverflowError) as error:
        raise _uncountable(shape, error) from error
    view = nowhere[index if Ellipsis in items else (*items, ...)]
    start = view.ctypes.data - nowhere.ctypes.data
    down = tuple(axis for axis, step in enumerate(view.strides) if step < 0 and view.size)
    start += sum((view.shape[axis] - 1) * view.strides[axis] for axis in down)
    return View(start, view.shape, tuple(abs(step) for step in view.strides), down)


def shaped(elements: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """As many elements as that shape has, in that shape.

    Raises:
        UnsupportedError: there are none, and NumPy has no arrays of that shape.
    """
    try:
        return elements.reshape(tuple(shape))
    except (ValueError, OverflowError) as error:
        raise _uncountable(shape, error) from error


def _uncountable(shape: Sequence[int], error: Exception) -> UnsupportedError:
    return UnsupportedError(f"NumPy has no arrays of shape {list(shape)}: {error}")


def _is_basic(item: object) -> bool:
    """Whether indexing with it gives a view and no copy."""
    if isinstance(item, bool | np.bool_):
        return False
    return item is None or item is Ellipsis or isinstance(item, slice | int | np.integer)


def runs(shape: Sequence[int], strides: Sequence[int]) -> tuple[Iterator[int], tuple[int, int], int]:
    """A view as runs: where groups of them begin; in each how many, how far apart; how long they are."""
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    count = dims.pop()[0] if dims and dims[-1][1] == 1 else 1
    rows = dims.pop() if dims else (1, 0)
    steps = [range(0, size * stride, stride) if stride else (0,) * size for size, stride in dims]
    return (sum(offsets) for offsets in itertools.product(*steps)), rows, count
