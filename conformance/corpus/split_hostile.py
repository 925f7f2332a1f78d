"""Parts of split values that are wrong from end to end, and counts made to overflow (B, E)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import Sketch
from corpus.case import Case
from corpus.change import INDEX, VALUES, both
from corpus.split_base import ALL, BASES, MISPLACED, PATCHES, SMALL, SOME, inside, row


def cases() -> Iterator[Case]:
    yield from wholly_wrong()


def wholly_wrong() -> Iterator[Case]:
    """Parts that are all of one byte."""
    for part, name in [(PATCHES, "patches"), (BASES, "bases"), (INDEX, "index"), (VALUES, "values")]:

        def fill(s: Sketch, part: str = part) -> None:
            s.part(part).data = b"\xff" * len(s.part(part).data)

        rules = {
            "patches": ["E-5", "E-6", "E-8"],
            "bases": ["E-3", "E-4", "E-6"],
            "index": ["B-4", "B-5", "B-6", "B-7", "B-8"],
            "values": ["E-2", "E-7"],
        }[name]
        for base, which in [(SMALL, "bitmap"), (ALL, "all")]:
            note = f"all bits of {name} are 1, positions {which}"
            yield inside(f"{rules[0].lower()}-{name}-of-ones-{which}", rules, note, fill, base)
    far = 2**61
    for name, entries in [
        ("sums-to-0", {"e1": -far, "e2": far}),
        ("huge", {"e1": far, "e2": far + 1}),
        ("minus-one", {"e1": -1, "e2": -1}),
        ("past-32-bits", {"e1": 2**31, "e2": 2**31}),
        ("smallest", {"e1": -(2**63), "e2": -(2**63)}),
    ]:
        for base, number, what in [(SOME, 1, "some"), (ALL, 0, "all")][: 2 if name == "sums-to-0" else 1]:
            note = f"hostile counts of patches: {name}"
            rules = ["B-5", *MISPLACED]
            yield inside(f"b-5-hostile-{name}-{what}", rules, note, row(number, **entries), base)
    for value, name in [(2**62, "huge"), (-1, "negative")]:
        ends = both(*(row(number, e1=value, e2=value, e3=value) for number in (0, 1)))
        note = f"all entries of both rows are {name}"
        yield inside(f"b-7-all-entries-{name}", ["B-7", "B-5", "B-6"], note, ends, SOME)
