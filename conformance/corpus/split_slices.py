"""Slices of tensors with split values (L4), and checkpoint directories with all encodings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corpus import directory
from corpus.build import BLOCK, Sketch, Split, Tensor, canonical, floats, scattered, tensor_of
from corpus.case import ACCEPT, REJECT, UNSUPPORTED, Case, newer, newer_but_alike, sha
from corpus.change import Change, flip, put
from corpus.split_base import (
    ALL,
    BASES,
    LOW,
    NUMEL,
    PATCHES,
    ROWS,
    SOME,
    Base,
    base_of,
    flipped,
    patched,
    row,
)
from corpus.split_valid import MANY, MANY_HOW, newer_but_for, sketch_of

Spans = list[tuple[int, int]]


def cases() -> Iterator[Case]:
    yield from right()
    yield from faults()
    yield from directories()


def slices_of(t: Tensor, spans: Spans) -> list[list[Any]]:
    size = t.itemsize
    return [[t.name, a, b, sha(t.data[size * a : size * b])] for a, b in spans]


def good(name: str, note: str, t: Tensor, how: Split, spans: Spans) -> Case:
    data = canonical([t], {t.name: how})
    case = Case("slice", name, ["B-11", "E-1"], data, ACCEPT, "L4", note, slices=slices_of(t, spans))
    return newer(case, [t.name])


def edges(n: int) -> Spans:
    """Whole blocks, their edges, parts of groups, single elements, nothing."""
    spans = [(0, n), (0, 1), (n - 1, n), (0, BLOCK), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK)]
    spans += [(BLOCK + 1, 2 * BLOCK + 1), (2 * BLOCK, n), (100, n - 100), (63, 65), (64, 128), (1, 8)]
    return [*spans, (130, 4200), (5, 5), (n, n), (0, 0)]


def right() -> Iterator[Case]:
    n = 3 * 3001
    t = floats("w", "BF16", [3, 3001], 30, 950, kept=2, odd=4)
    note = "three blocks of which 30 % are stored: groups lie across blocks"
    yield good("b-11-split-three-blocks", note, t, Split(2), edges(n))
    t = floats("w", "BF16", [3, 3001], 90, 951, kept=0, odd=1)
    note = "three blocks of which all is stored"
    yield good("b-11-all-three-blocks", note, t, Split(2, "all"), edges(n))
    t = floats("w", "F32", [7, 20], 100, 952, kept=17, odd=20)
    single = [(i, i + 1) for i in (0, 1, 7, 8, 9, 62, 63, 64, 65, 127, 128, 139)]
    spans = [(20 * i, 20 * i + 20) for i in range(7)] + [(20 * i + 3, 20 * i + 7) for i in range(7)]
    yield good("b-11-all-rows", "rows, parts of columns, single elements", t, Split(3, "all"), single + spans)
    t = floats("w", "F16", [7, 20], 50, 953, odd=20)
    yield good("b-11-split-rows", "rows, parts of columns, single elements", t, Split(3), single + spans)
    elements = [0x3F80 | i % 100 for i in range(BLOCK + 300)]
    for i in (0, 50, 51, 200, 4095, BLOCK, BLOCK + 60, BLOCK + 299):
        elements[i] = 0x0100 + i % 90 * 128
    spans = [(a, a + k) for a in (0, 49, 50, 51, 52, 199, 200, 201, 4094, 4095, BLOCK) for k in (1, 2)]
    spans += [
        (BLOCK + 1, BLOCK + 60),
        (BLOCK + 60, BLOCK + 61),
        (BLOCK + 61, BLOCK + 299),
        (52, 200),
        (40, 60),
    ]
    for positions in ("bitmap", "all"):
        t = tensor_of("w", "BF16", elements, [4, 1099])
        note = f"patches before, in, at the edges of and after what is asked for, positions {positions}"
        yield good(f"b-11-patches-{positions}", note, t, Split(1, positions), spans)
    stored = {BLOCK * 3 + 5: 0x40, BLOCK * 8 - 1: 0x05, BLOCK * 8: 0x3D}
    t = scattered("w", "F8_E5M2", [9, BLOCK], stored)
    spans = [(BLOCK * b, BLOCK * (b + 1)) for b in (0, 3, 7, 8)] + [
        (0, 9 * BLOCK),
        (BLOCK * 8 - 1, BLOCK * 8 + 1),
    ]
    yield good("b-11-split-empty-blocks", "most blocks are empty", t, Split(1), spans)
    asked = [s for t in MANY if t.dtype != "F4" for s in slices_of(t, [(0, 1), (2, 7), (7, 7)])]
    note = "slices of raw, split, all and plain tensors"
    case = Case(
        "slice", "b-11-all-encodings", ["B-11"], canonical(MANY, MANY_HOW), ACCEPT, "L4", note, slices=asked
    )
    case.since = "1.1"  # and not asked of decoders of 1.0
    yield case
    empty = Tensor("w", "BF16", [0, 9], b"")
    yield good("b-11-all-empty", "an empty tensor", empty, Split(1, "all"), [(0, 0)])
    t = floats("w", "F16", [4, 30], 80, 954)
    for how in (Split(2), Split(2, "all")):
        asked = [["w", 0, 121, None], ["w", 121, 121, None], ["w", 3, 2, None], ["w.endor.bases", 0, 1, None]]
        data, name = canonical([t], {"w": how}), f"b-11-{how.positions}-split-cannot"
        note = "what cannot be answered: elements that are not there, a part"
        yield newer(Case("slice", name, ["B-11"], data, UNSUPPORTED, "L4", note, slices=asked), ["w"])


def bad(name: str, rules: list[str], note: str, base: Base, change: Change, spans: Spans) -> Case:
    data = base.changed(change).seal("w").render()
    slices: list[list[Any]] = [["w", a, b, None] for a, b in spans]
    note = f"a fault that a slice must find: {note}"
    case = Case("slice", name, ["B-11", *rules], data, REJECT, "L4", note, slices=slices)
    return newer(case, ["w"])


def faults() -> Iterator[Case]:
    n = NUMEL
    first, middle, last = (0, 1), (BLOCK + 5, BLOCK + 6), (n - 1, n)
    blocks: Spans = [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, n)]
    every: Spans = [first, middle, last, (0, n)]
    for base, number, what in ROWS:
        _, one, two, end = base.rows()[number]
        far = {"e1": one + 2**40, "e2": two + 2**40}
        for name, change, spans, note in [
            ("b-4", row(number, e0=1), every, "entry 0"),
            ("b-7", row(number, e3=end + 1), every, "the last entry, wherever the slice is"),
            ("b-5-falling", row(number, e1=two + 1), [middle, blocks[1]], "entries that fall"),
            ("b-5-negative", row(number, e1=-1), [first, middle], "a negative entry"),
            (
                "b-5-past-the-end",
                row(number, e1=end + 1, e2=end + 1 + two - one),
                [middle, blocks[1]],
                "entries past the last one",
            ),
            (
                "b-5-far-away",
                row(number, **far),
                [middle, blocks[1]],
                "entries far away, as far apart as they should be",
            ),
            (
                "b-5-smallest",
                row(number, e1=-(2**63), e2=-(2**63) + two - one),
                [middle, blocks[1]],
                "the smallest integers",
            ),
            ("b-8", row(number, e5=1), [last, blocks[2]], "the padding of the row"),
        ]:
            yield bad(
                f"{name}-{what}-in-the-slice", [name[:3].upper()], f"{note} ({what})", base, change, spans
            )
    patches = [(rank, at) for at, (rank, _) in enumerate(SOME.patches())]
    counts, at = SOME.rows()[0], SOME.rows()[1][1]
    rank = counts[1] + patches[at][0]
    stored = [i for i in range(n) if i % 50 == 0]
    place = stored[rank]
    code = 1 + SOME.entry("mantissa")
    bits = len(SOME.sketch().part("w.endor.bitmap").data) * 8
    for name, change, spans, note in [
        ("b-3-split", flip(n), [last, blocks[2]], "a bit after the last element"),
        ("b-3-split-last", flip(bits - 1), [last], "the last bit of the bitmap"),
        ("b-6-split", flip(BLOCK + 1), [blocks[1], (0, n)], "a bit of block 1"),
        ("e-2-split", flipped(counts[3], 0), [last, blocks[2]], "the padding of a group"),
        ("e-2-split-last", flipped(511, code), [last], "the padding of values"),
        ("e-3-split", base_of(1, 253), [middle, blocks[1]], "the base of block 1"),
        ("e-4-split", base_of(3, 1), [last, blocks[2]], "the padding of bases"),
        ("e-5-split", patched(at + 1, patches[at][0]), [middle, blocks[1]], "equal ranks in block 1"),
        (
            "e-5-split-past-count",
            patched(SOME.rows()[1][2] - 1, counts[2] - counts[1]),
            [middle, blocks[1]],
            "a rank past block 1",
        ),
        (
            "e-5-split-ffff",
            patched(SOME.rows()[1][2] - 1, 0xFFFF),
            [middle, blocks[1]],
            "a rank past everything",
        ),
        (
            "e-6-split",
            patched(at, exponent=SOME.bases()[1]),
            [middle, blocks[1]],
            "an exponent in the window",
        ),
        (
            "e-7-split",
            flipped(rank, code),
            [(place, place + 1), blocks[1]],
            "the code of a patched element that is returned",
        ),
        (
            "e-8-split",
            put(PATCHES, 3 * SOME.entry("patches"), b"\1"),
            [last],
            "the padding of patches",
        ),
    ]:
        yield bad(f"{name}-in-the-slice", [name[:3].upper()], note, SOME, change, spans)
    second = ALL.rows()[0][1]
    middle_rank = BLOCK + ALL.patches()[second][0]
    for name, change, spans, note in [
        ("e-2-all", flipped(n, 1), [last, blocks[2]], "the padding of a group"),
        ("e-3-all", base_of(1, 255), [middle, blocks[1]], "the base of block 1"),
        ("e-4-all", put(BASES, 63, b"\1"), [last], "the padding of bases"),
        ("e-5-all", patched(second, BLOCK), [middle, blocks[1]], "a rank of 4096"),
        (
            "e-6-all",
            patched(second, exponent=ALL.bases()[1] + 1),
            [middle, blocks[1]],
            "an exponent in the window",
        ),
        ("e-7-all", flipped(middle_rank, 1), [(middle_rank, middle_rank + 1)], "a code"),
        ("e-8-all", put(PATCHES, -1, b"\1"), [last], "the last byte of patches"),
    ]:
        yield bad(f"{name}-in-the-slice", [name[:3].upper()], note, ALL, change, spans)
    yield bad("b-10-split-in-the-slice", ["B-10"], "a stored zero", LOW, flipped(0, 0), [(0, 1), (0, 5)])
    # The entry after block 1 is one past n, and what is read there would be padding of values.
    t = scattered(
        "w", "BF16", [3, BLOCK], dict.fromkeys([*range(0, 512, 2), *range(BLOCK, BLOCK + 512, 2)], 0x3F80)
    )
    beyond = row(0, e1=257, e2=513)
    note = "the entry after block 1 is one beyond nnz, and there is no padding of values"
    yield bad(
        "b-5-split-one-beyond",
        ["B-5"],
        note,
        Base(t, Split(1)),
        beyond,
        [(BLOCK, 2 * BLOCK), (BLOCK + 510, BLOCK + 512)],
    )


def directories() -> Iterator[Case]:
    def shards() -> list[Sketch]:
        return [sketch_of(MANY[::2], MANY_HOW), sketch_of(MANY[1::2], MANY_HOW)]

    rules = ["K-2", "K-3", "K-4"]
    note = "raw, split, all and plain tensors in two shards"
    case = directory.accept("k-3-all-encodings", rules, directory.checkpoint(shards()), note, MANY)
    yield newer_but_for(case, MANY, MANY_HOW)
    one = sketch_of(MANY, MANY_HOW)
    note = "raw, split, all and plain tensors in one file and no index"
    case = directory.accept(
        "k-5-all-encodings", ["K-5"], {"model.endor.safetensors": one.render()}, note, MANY
    )
    yield newer_but_for(case, MANY, MANY_HOW)
    for part in ("bases", "patches"):
        two = shards()
        holder = next(i for i, s in enumerate(two) if any(p.name == f"all.endor.{part}" for p in s.physical))
        two[1 - holder].physical.append(two[holder].drop(f"all.endor.{part}"))
        note = f"all.endor.{part} is in the other shard"
        name, files = f"k-4-{part}-in-the-other-shard", directory.checkpoint(two)
        case = directory.reject(name, ["K-4", "T-2"], files, note)
        yield newer_but_alike(case)
    two = shards()
    holder = next(i for i, s in enumerate(two) if "some" in s.endor["tensors"])
    two[holder].patch("some", 0, rank=0xFFFF).seal("some")
    note = "a fault in the split values of a shard"
    case = directory.reject("e-5-in-a-shard", ["E-5"], directory.checkpoint(two), note)
    yield newer_but_for(case, MANY, MANY_HOW)
