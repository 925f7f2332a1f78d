"""What is measured on, weights like those of a trained layer of which the smallest are zero; and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pyendor import backends, choice, dtypes, layout
from pyendor.encoded import EncodedTensor
from pyendor.layout import Bytes

if TYPE_CHECKING:
    import pyperf

DTYPES = {1: "F8_E4M3", 2: "BF16", 4: "F32", 8: "F64"}
SEED = 20240617
TILE = 8 << 20  # elements; larger tensors repeat them


def weights(numel: int, itemsize: int, density: float) -> Bytes:
    """Dense bytes, in memory that is aligned and mapped: pruned by magnitude, the share ``density`` left."""
    rng = np.random.default_rng(SEED)
    tile = min(numel, TILE)
    normal = rng.standard_normal(tile, dtype=np.float32)
    dtype = dtypes.BY_NAME[DTYPES[itemsize]].to_numpy()
    elements = normal.astype(dtype).view(f"u{itemsize}")
    elements[np.abs(normal) < np.quantile(np.abs(normal), 1 - density)] = 0
    data = layout.allocate(numel * itemsize)
    whole = data.view(elements.dtype)
    for start in range(0, numel, tile):
        whole[start : start + tile] = elements[: numel - start]
    return data


def encode(dense: Bytes, itemsize: int, shape: tuple[int, ...], encoding: str) -> EncodedTensor:
    """The smallest that this encoding, ``positions/values``, has for the data."""
    dtype = dtypes.BY_NAME[DTYPES[itemsize]]
    survey = backends.get().survey(dense, dtype)
    metas = choice.candidates(dtype.name, shape, survey)
    mine = [meta for meta in metas if f"{meta.positions}/{meta.values}" == encoding]
    return EncodedTensor.filled("x", choice.smallest(mine), dense, digest=False)


def timed(loops: int, work: Callable[[], object]) -> float:
    """Seconds that so many runs take."""
    start = time.perf_counter()
    for _ in range(loops):
        work()
    return time.perf_counter() - start


def runner(*options: str) -> pyperf.Runner:
    """Runs each benchmark in processes of their own, and hands these options on to them."""

    def pass_on(command: list[str], args: Any) -> None:
        for name in options:
            command += [f"--{name}", str(getattr(args, name))]

    import pyperf  # what times the CPU's codec; the programs for GPUs do without

    return pyperf.Runner(processes=3, values=3, warmups=1, add_cmdline_args=pass_on)
