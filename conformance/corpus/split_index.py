"""Split values with a wrong bitmap or index, in either of its rows (B-3 to B-8)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import BLOCK, Sketch
from corpus.case import Case
from corpus.change import BITMAP, INDEX, entry, flip
from corpus.split_base import ALL, EMPTY, EMPTY_ALL, MISPLACED, NUMEL, ROWS, SOME, inside, row


def cases() -> Iterator[Case]:
    yield from bitmaps()
    yield from rows()
    yield from last_entries()
    yield from row_padding()


def bitmaps() -> Iterator[Case]:
    for name, bit, note in [
        ("first", NUMEL, "the first bit after the last element is set"),
        ("last", 8 * len(SOME.sketch().part(BITMAP).data) - 1, "the last bit of the padding is set"),
    ]:
        yield inside(f"b-3-split-{name}", ["B-3"], note, flip(bit), SOME)
    for name, bits, note in [
        ("too-high", [BLOCK + 1], "a bit of block 1 is 1 that ought to be 0"),
        ("too-low", [0], "a bit of block 0 is 0 that ought to be 1"),
        ("compensating", [0, BLOCK + 1], "a bit moved from block 0 to block 1: their sum is right"),
    ]:
        yield inside(f"b-6-split-{name}", ["B-6", "E-5", "E-7"], note, flip(*bits), SOME)


def rows() -> Iterator[Case]:
    largest, smallest = 2**63 - 1, -(2**63)
    for base, number, what in ROWS:
        _, one, two, last = base.rows()[number]
        note = f"the row of the index that counts {what.split('-')[-1]} (positions {base.how.positions})"
        also = ["B-6", *MISPLACED] if what == "stored" else MISPLACED
        wanted = None if what == "patches" else ("one", "falling", "negative", "past-the-end", "wraps-around")
        for rule, name, change, how in [
            ("B-4", "one", row(number, e0=1), "begins with 1"),
            ("B-4", "negative", row(number, e0=-1), "begins with -1"),
            ("B-4", "right-in-32-bits", row(number, e0=2**32), "begins with 2^32"),
            ("B-5", "falling", row(number, e1=two + 1), "falls"),
            ("B-5", "negative", row(number, e1=-5), "has a negative entry"),
            ("B-5", "past-the-end", row(number, e1=last + 1), "has an entry past its last one"),
            ("B-5", "largest", row(number, e1=largest), "has the largest 64-bit integer"),
            (
                "B-5",
                "wraps-around",
                row(number, e1=largest, e2=smallest),
                "goes from the largest to the smallest 64-bit integer",
            ),
            ("B-5", "right-in-32-bits", row(number, e1=one + 2**32), "has an entry too high by 2^32"),
        ]:
            rules = [rule, *(["B-5"] if rule == "B-4" else []), *also]
            if wanted is None or name in wanted:
                yield inside(f"{rule.lower()}-{what}-{name}", rules, f"{note} {how}", change, base)
    _, one, _, _ = SOME.rows()[0]
    for by, name in [(1, "high"), (-1, "low")]:
        note = f"an entry that counts stored elements is too {name} by 1"
        yield inside(f"b-6-split-entry-too-{name}", ["B-6", *MISPLACED], note, row(0, e1=one + by), SOME)
    for base, number in [(EMPTY, 0), (EMPTY, 1), (EMPTY_ALL, 0)]:
        note = f"row {number} of the index of an empty tensor begins with 1"
        name = f"b-4-split-empty-{base.how.positions}-row-{number}"
        yield inside(name, ["B-4", "B-7"], note, row(number, e0=1), base)


def last_entries() -> Iterator[Case]:
    for base, number, what in ROWS:
        last = base.rows()[number][3]
        also = ["B-5", "B-6", *MISPLACED]
        note = f"the last entry of the row that counts {what.split('-')[-1]} ({base.how.positions}) is"
        for name, value, how in [
            ("too-high", last + 1, "too high by 1"),
            ("too-low", last - 1, "too low by 1"),
            ("zero", 0, "0"),
            ("right-in-32-bits", last + 2**32, "too high by 2^32"),
        ]:
            yield inside(f"b-7-{what}-{name}", ["B-7", *also], f"{note} {how}", row(number, e3=value), base)
    for base in (SOME, ALL):
        name, patches = base.how.positions, base.entry("patches")
        note = f"the member patches is one more than the index says, positions {name}"
        yield inside(f"b-7-member-patches-too-high-{name}", ["B-7"], note, entry(patches=patches + 1), base)
        note = f"the member patches is one less than the index says, positions {name}"
        rules = ["B-7", "B-5", "E-8"]
        yield inside(f"b-7-member-patches-too-low-{name}", rules, note, entry(patches=patches - 1), base)
    nnz = SOME.entry("nnz")
    note = "nnz is one less than the index says; values has the element that it leaves out"
    yield inside("b-7-split-nnz-too-low", ["B-7", "B-5", "E-2"], note, entry(nnz=nnz - 1), SOME)
    note = "nnz is one more than the index says"
    yield inside("b-7-split-nnz-too-high", ["B-7"], note, entry(nnz=nnz + 1), SOME)

    def swapped(s: Sketch) -> None:
        p = s.part(INDEX)
        p.data = p.data[len(p.data) // 2 :] + p.data[: len(p.data) // 2]

    note = "the rows of the index are swapped"
    yield inside("b-7-rows-swapped", ["B-7", "B-6", "B-5"], note, swapped, SOME)

    def interleaved(s: Sketch) -> None:
        p = s.part(INDEX)
        entries = [p.data[i : i + 8] for i in range(0, len(p.data), 8)]
        half = len(entries) // 2
        p.data = b"".join(a + b for a, b in zip(entries[:half], entries[half:], strict=True))

    note = "the rows of the index are interleaved"
    yield inside("b-7-rows-interleaved", ["B-7", "B-8", "B-6", "B-5", *MISPLACED], note, interleaved, SOME)


def row_padding() -> Iterator[Case]:
    for base, number, what in ROWS:
        last = base.rows()[number][3]
        for name, change, note in [
            ("first", row(number, e4=1), "the first entry of the padding is 1"),
            ("last", row(number, e7=1), "the last entry of the padding is 1"),
            (
                "repeats",
                row(number, **{f"e{i}": last for i in range(4, 8)}),
                "the padding repeats the last entry",
            ),
        ]:
            if name != "repeats" or what == "patches":
                yield inside(f"b-8-{what}-{name}", ["B-8"], f"row {number}: {note}", change, base)
