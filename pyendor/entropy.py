"""The entropy floor of a tensor: fewer bits than that no code gets by that looks at each element alone.

Positions, exponents and what else there is of the stored elements are each taken for independent:
H(density) + density x (H(exponents) + sign and mantissa bits). Blocks all over the tensor stand for all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyendor import layout, split
from pyendor.dtypes import DType
from pyendor.layout import BLOCK, Bytes

SAMPLE = 64  # blocks that are looked at


def sample(numel: int) -> list[tuple[int, int]]:
    """The blocks to look at, first and stop of each run: all of a small tensor, else some all over it."""
    nb = layout.blocks(numel)
    if nb <= SAMPLE:
        return [(0, nb)]
    return [(nb * k // SAMPLE, nb * k // SAMPLE + 1) for k in range(SAMPLE)]


def pieces(dense: Bytes, itemsize: int) -> Bytes:
    """The sample of dense data."""
    step = BLOCK * itemsize
    runs = [dense[first * step : stop * step] for first, stop in sample(dense.size // itemsize)]
    return np.concatenate(runs)


def floor(dense: Bytes, dtype: DType) -> float | None:
    """Bits per element that this data needs at least; None if there is none."""
    words = dense.view(f"<u{dtype.itemsize}")
    if not words.size:
        return None
    stored = words[words != 0]
    density = float(stored.size / words.size)
    bits = float(dtype.bits)
    if dtype.splittable and stored.size:
        exponents = split.histogram(split.exponents(stored, dtype), dtype) / stored.size
        bits = _entropy(exponents) + 1 + split.used_bits(stored, dtype)
    return _entropy(np.array([density, 1 - density])) + density * bits


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
