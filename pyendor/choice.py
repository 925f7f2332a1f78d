"""How a tensor is best encoded: the candidates, their exact sizes, the smallest of them (W-7, W-10).

Comes in: a :class:`Survey`, what a codec has counted. Goes out: a :class:`~pyendor.metadata.TensorMeta`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from pyendor import dtypes, layout
from pyendor.errors import UsageError, quote
from pyendor.metadata import ENCODINGS, WIDEST, Split, TensorMeta

MIN_SAVING = 0.05
# Bytes of header that W-7 counts for an encoded tensor, by its values.
HEADER_SHARE = {"raw": 512, "split": 768}

# Which values a writer may choose: the smallest; those of version 1.0; split ones wherever a dtype has them.
Values = Literal["auto", "raw", "split"]


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to know of dense elements before they are encoded.

    Attributes:
        nnz: number of elements that are not zero.
        mantissa: the mantissa bits that have to be kept; 0 for dtypes that cannot be split.
        patches: how many an encoding needs, by positions and w; empty for dtypes that cannot be split.
    """

    nnz: int
    mantissa: int = 0
    patches: Mapping[tuple[str, int], int] = field(default_factory=dict)


def widths(dtype: str) -> range:
    """The widths w that a code can have (M-8)."""
    return range(1, min(WIDEST, dtypes.BY_NAME[dtype].exponent - 1) + 1)


def candidates(
    dtype: str, shape: tuple[int, ...], survey: Survey, values: Values = "auto"
) -> list[TensorMeta]:
    """The encodings that a tensor can have, in the order of W-10; at least one.

    Raises:
        UsageError: ``values`` is none of those that there are.
    """
    check(values)
    if not dtypes.BY_NAME[dtype].splittable:
        values = "raw"
    metas = []
    for positions, kind in ENCODINGS:
        nnz = survey.nnz if positions == "bitmap" else None
        if kind == "raw" and values != "split":
            metas.append(TensorMeta(dtype, shape, positions, kind, nnz))
        if kind == "split" and values != "raw":
            for w in widths(dtype):
                split = Split(w, survey.mantissa, survey.patches[positions, w])
                metas.append(TensorMeta(dtype, shape, positions, kind, nnz, split=split))
    return metas


def cost(meta: TensorMeta) -> int:
    """Bytes of all parts, and of what the header says of them (W-7)."""
    return sum(spec.nbytes for spec in layout.part_specs(meta)) + HEADER_SHARE[meta.values]


def smallest(metas: Sequence[TensorMeta]) -> TensorMeta:
    """The first of the smallest (W-10)."""
    return min(metas, key=cost)


def distinct(meta: TensorMeta) -> bool:
    """Whether the physical shape of the tensor would differ from its logical one (T-5)."""
    return layout.part_specs(meta)[0].shape != meta.shape


def worth(meta: TensorMeta, min_saving: float | None = MIN_SAVING) -> bool:
    """Whether encoding the tensor so saves this share of its dense size (W-7); None asks for nothing."""
    if min_saving is None:
        return True
    # Exact arithmetic: the same decision on every machine, at the very edge too.
    dense = layout.dense_nbytes(meta.dtype, meta.shape)
    return cost(meta) <= dense * (1 - Fraction(str(min_saving)))


def choose(
    dtype: str,
    shape: tuple[int, ...],
    survey: Survey,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
) -> TensorMeta | None:
    """The encoding of a tensor in a file; None if it stays plain (W-7, W-10)."""
    metas = [meta for meta in candidates(dtype, shape, survey, values) if distinct(meta)]
    best = smallest(metas) if metas else None
    return best if best is not None and worth(best, min_saving) else None


def check(values: str) -> None:
    """Whether that is a choice of values.

    Raises:
        UsageError: it is none.
    """
    if values not in get_args(Values):
        raise UsageError(f"values {quote(str(values))}; known are {', '.join(get_args(Values))}")
