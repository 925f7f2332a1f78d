"""Changes to a sketch, for cases that differ from a correct file in one place.

Each function makes a change; but where a name is asked for, they are about the tensor w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corpus.build import Physical, Sketch, Tensor

Change = Callable[[Sketch], object]
VALUES, BITMAP, INDEX = "w", "w.endor.bitmap", "w.endor.index"


def nothing(_: Sketch) -> None:
    pass


def both(*changes: Change) -> Change:
    return lambda s: [change(s) for change in changes]


def endor(**members: Any) -> Change:
    """Sets members of the endor object."""
    return lambda s: s.endor.update(members)


def entry(**members: Any) -> Change:
    """Sets members of the entry."""
    return lambda s: s.entry("w").update(members)


def without(member: str) -> Change:
    """Takes a member out of the entry."""
    return lambda s: s.entry("w").pop(member)


def text(edit: Callable[[str], str]) -> Change:
    """Edits the text of the endor object."""
    return lambda s: setattr(s, "edit", edit)


def around(before: str, after: str) -> Change:
    """Puts text before and after the endor object."""
    return text(lambda t: before + t + after)


def replaced(old: str, new: str) -> Change:
    """Replaces text in the endor object."""
    return text(lambda t: t.replace(old, new))


def drop(part: str) -> Change:
    return lambda s: s.drop(part)


def extra(part: Physical) -> Change:
    return lambda s: s.physical.append(part)


def describe(part: str, dtype: str | None = None, shape: list[int] | None = None) -> Change:
    """Gives a part another dtype or shape, and lets its bytes be."""

    def change(s: Sketch) -> None:
        p = s.part(part)
        p.dtype, p.shape = dtype or p.dtype, p.shape if shape is None else shape

    return change


def resize(part: str, by: int) -> Change:
    """So many more elements, or rows if there are rows, in shape and data; less if negative."""

    def change(s: Sketch) -> None:
        p = s.part(part)
        size = len(p.data) // p.shape[0]
        p.shape = [p.shape[0] + by, *p.shape[1:]]
        p.data = (p.data + bytes(size * max(by, 0)))[: size * p.shape[0]]

    return change


def put(part: str, at: int, new: bytes) -> Change:
    return lambda s: s.change(part, at, new)


def flip(*bits: int) -> Change:
    """Flips bits of the bitmap."""
    return lambda s: [s.flip(BITMAP, bit) for bit in bits]


def index(**entries: int) -> Change:
    """`index(e1=7)` sets entry 1 of the index."""
    return lambda s: s.index("w", **entries)


def sealed(change: Change, t: Tensor) -> Change:
    """The digest fits the faulty parts, so that it does not give the fault away."""
    return lambda s: [change(s), s.seal(t.name)]
