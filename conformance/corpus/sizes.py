"""Tensors and files past the sizes at which limits of loops, tables and buffers lie (L1, L2, L4).

A decoder may be right for 64 blocks, for 16 tensors or for 1024 patches of a block and wrong after that. The
files are recipes: what repeats is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache

from corpus.build import BLOCK, Physical, Sketch, Split, Tensor, container, random_tensor, tensor_of
from corpus.case import ACCEPT, NONCANONICAL, REJECT, Case, Recipe, listing, newer, sha

BLOCKS = 70
# Periods that share no factor with 32 or 64: a block is unlike the ones 32 and 64 before it.
VALUES, GROUPS = 91, 7


def cases() -> Iterator[Case]:
    yield from whole()
    yield from faults()
    yield from patch_counts()
    yield from digests()
    yield from slices()
    yield from many_tensors()


# Recipes ------------------------------------------------------------------------------------------


def runs(data: bytes, unit: int) -> Iterator[tuple[bytes, int]]:
    """The data as pieces of so many bytes, and how often each stands there in a row."""
    at = 0
    while at < len(data):
        piece, stop = data[at : at + unit], at + unit
        while data[stop : stop + unit] == piece:
            stop += unit
        yield piece, (stop - at) // unit or 1
        at = stop


def zeros_apart(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The data with its last run of zeros, the padding, as a piece of its own."""
    kept = data.rstrip(b"\0")
    if kept:
        yield kept, 1
    if len(kept) < len(data):
        yield b"\0", len(data) - len(kept)


def recipe(sketch: Sketch, units: dict[str, int]) -> Recipe:
    """The file of a sketch; `units` has the periods, in bytes, of those of its parts that repeat."""
    pieces = [(container(sketch.header(), b"", pad=sketch.pad), 1)]
    for part in sketch.physical:
        unit = units.get(part.name.removeprefix("w"))
        pieces += zeros_apart(part.data) if unit is None else runs(part.data, unit)
    whole = Recipe([{"hex": piece.hex(), "repeat": times} for piece, times in pieces if piece])
    assert b"".join(whole.chunks()) == sketch.render()
    return whole


# What the cases are made from ---------------------------------------------------------------------


@cache
def raw() -> Tensor:
    """Every 32nd element is stored: 1, 2, 3, ..., 91, 1, ..."""
    elements = [e for i in range(BLOCKS * BLOCK // 32) for e in (*[0] * 31, 1 + i % VALUES)]
    return tensor_of("w", "U16", elements, [BLOCKS, BLOCK])


@cache
def split(positions: str) -> Tensor:
    """Float elements with the period of seven groups; all, or every eighth of them, are stored.

    One exponent in 64 stored elements is outside of the window of its block.
    """
    step = 8 if positions == "bitmap" else 1
    count = BLOCKS * BLOCK // step
    mantissas = [37 * i % 128 for i in range(GROUPS * 64)]
    elements: list[int] = []
    for i in range(count):
        exponent = 20 if i % 64 == 5 else 126 + i % 2
        elements += [*[0] * (step - 1), exponent << 7 | mantissas[i % len(mantissas)]]
    return tensor_of("w", "BF16", elements, [BLOCKS, BLOCK])


Base = tuple[Tensor, Split | None, dict[str, int]]


def base(kind: str) -> Base:
    """A tensor, how it is encoded, and the periods of its parts."""
    if kind == "raw":
        return raw(), None, {"": 2 * VALUES, ".endor.bitmap": 4}
    how = Split(1, kind)
    units = {"": GROUPS * ROW, ".endor.bitmap": 1, ".endor.bases": 1, ".endor.patches": 3 * 64}
    return split(kind), how, units


# Bytes of a group: 8 bits of residue and 1 of code for each of its elements.
ROW = 64 + 8
KINDS = ("raw", "bitmap", "all")
SAID = {"raw": "raw values", "bitmap": "split values", "all": "split values of all elements"}


@cache
def encoded(kind: str) -> Sketch:
    tensor, how, _ = base(kind)
    return Sketch().add(tensor, how=how)


def changed(kind: str, change: Callable[[Sketch], object], seal: bool = True) -> Recipe:
    sketch = deepcopy(encoded(kind))
    change(sketch)
    return recipe(sketch.seal("w") if seal else sketch, base(kind)[2])


def marked(case: Case, kind: str) -> Case:
    return case if kind == "raw" else newer(case, ["w"])


# The cases ----------------------------------------------------------------------------------------


def whole() -> Iterator[Case]:
    for kind in KINDS:
        tensor, _, units = base(kind)
        note = f"{BLOCKS} blocks of {SAID[kind]}, each unlike the one 64 or 32 before it"
        file = recipe(encoded(kind), units)
        case = Case("valid", f"b-2-{BLOCKS}-blocks-{kind}", ["B-2"], file, ACCEPT, "L1", note)
        case.tensors = listing([tensor])
        yield marked(case, kind)


def fault(name: str, rules: list[str], kind: str, note: str, change: Callable[[Sketch], object]) -> Case:
    file = changed(kind, change)
    return marked(Case("invalid", name, rules, file, REJECT, "L2", note, error_rules=rules), kind)


def faults() -> Iterator[Case]:
    """What is checked block by block, past the 64th of them."""
    for block in (32, 64, BLOCKS - 1):
        bit = block * BLOCK + 3
        for kind in ("raw", "bitmap"):
            note = f"a bit of the bitmap is set in block {block} of {BLOCKS}, {SAID[kind]}"
            name = f"b-6-block-{block}-of-{BLOCKS}-{kind}"
            yield fault(name, ["B-6"], kind, note, lambda s, bit=bit: s.flip("w.endor.bitmap", bit))
        note = f"the first stored element of block {block} of {BLOCKS} is zero"
        at = 2 * block * (BLOCK // 32)
        name = f"b-10-block-{block}-of-{BLOCKS}"
        yield fault(name, ["B-10"], "raw", note, lambda s, at=at: s.change("w", at, b"\0\0"))
    for kind in KINDS:
        entry = 66
        row = encoded(kind).part("w.endor.index").shape[-1]
        for number in range(len(encoded(kind).part("w.endor.index").data) // 8 // row):
            note = f"row {number} of the index falls at entry {entry}, {SAID[kind]}"
            name = f"b-5-entry-{entry}-row-{number}-{kind}"
            rules = ["B-5", "B-6", "E-5", "E-6", "E-7"]

            def falls(s: Sketch, number: int = number, entry: int = entry) -> object:
                return s.index("w", number, **{f"e{entry}": 1})

            yield fault(name, rules, kind, note, falls)
    for kind in ("bitmap", "all"):
        per_block = encoded(kind).entry("w")["patches"] // BLOCKS
        for block in (4, 16, 64, BLOCKS - 1):
            base_at = encoded(kind).part("w.endor.bases").data[block]
            first = per_block * block
            for rule, change, what in [
                ("e-3", lambda s, b=block: s.change("w.endor.bases", b, b"\xff"), "its base is 255"),
                ("e-5", lambda s, i=first: s.patch("w", i, rank=BLOCK), "the rank of a patch is 4096"),
                (
                    "e-6",
                    lambda s, i=first, e=base_at: s.patch("w", i, exponent=e),
                    "the exponent of a patch is in the window",
                ),
                (
                    "e-7",
                    lambda s, b=block, k=kind: s.flip_element("w", stored_before(k, b) + 5, 8),
                    "an element with a patch has a code",
                ),
            ]:
                note = f"block {block} of {BLOCKS}, {SAID[kind]}: {what}"
                rules = [rule.upper()] + (["E-6"] if rule == "e-3" else [])
                yield fault(f"{rule}-block-{block}-of-{BLOCKS}-{kind}", rules, kind, note, change)


def stored_before(kind: str, block: int) -> int:
    return block * (BLOCK if kind == "all" else BLOCK // 8)


def patch_counts() -> Iterator[Case]:
    """Blocks of more than 1024 patches, and of as many as it can have."""
    apart = [exponent << 7 for exponent in range(0, 256, 4)]
    many = tensor_of("w", "BF16", [apart[i % 64] for i in range(2 * BLOCK)], [2, BLOCK])
    sketch = Sketch().add(many, how=Split(1, "all"))
    units = {"": 16, ".endor.bases": 1, ".endor.patches": 3 * 63}
    note = "exponents that are all apart: each of two blocks has 4032 patches, 8064 in all"
    file = recipe(sketch, units)
    case = Case("noncanonical", "e-5-4032-patches-in-a-block", ["E-5", "W-7"], file, NONCANONICAL, "L1", note)
    case.tensors = listing([many])
    yield newer(case, ["w"])
    full = tensor_of("w", "BF16", [0x3F80] * 3 * BLOCK, [3, BLOCK])
    sketch = Sketch().add(full, how=Split(1, "all", bases={0: 127, 1: 0, 2: 127}))
    note = "every element of the second of three blocks has a patch: 4096 of them"
    file = recipe(sketch, {"": 16, ".endor.bases": 1})
    case = Case("noncanonical", "e-5-4096-patches-in-a-block", ["E-5", "W-9"], file, NONCANONICAL, "L1", note)
    case.tensors = listing([full])
    yield newer(case, ["w"])
    for at in (1024, 4095):
        wrong = deepcopy(sketch).patch("w", at, exponent=0).seal("w")
        note = f"the exponent of patch {at} of a block with 4096 is in its window"
        file = recipe(wrong, {"": 16, ".endor.bases": 1})
        case = Case("invalid", f"e-6-patch-{at}-of-4096", ["E-6"], file, REJECT, "L2", note)
        case.error_rules = ["E-6"]
        yield newer(case, ["w"])


def digests() -> Iterator[Case]:
    for kind in ("raw", "all"):
        tensor, _, units = base(kind)
        size, length = len(encoded(kind).data()), len(encoded(kind).part("w").data)
        note = f"a digest over {size} bytes of parts"
        file = recipe(encoded(kind), units)
        case = Case("checksum", f"d-2-of-{size}-bytes-of-parts", ["D-2"], file, ACCEPT, "L2", note)
        case.tensors, case.digests = listing([tensor]), True
        yield marked(case, kind)
        for near in (16 * 1024, 64 * 1024, length - 1024):
            if near < length:
                yield marked(another_value(kind, near), kind)


def another_value(kind: str, near: int) -> Case:
    """A bit of a stored element has changed, but for which the digest is right."""
    # The high byte of an integer, or the first residue of a group, which is no element with a patch.
    at = near | 1 if kind == "raw" else near // ROW * ROW
    old = encoded(kind).part("w").data[at]
    file = changed(kind, lambda s: s.change("w", at, bytes([old ^ 2])), seal=False)
    note = f"a stored element has changed at byte {at} of values: only the digest can tell"
    case = Case("checksum", f"d-2-changed-at-{at}-{kind}", ["D-2"], file, REJECT, "L2", note)
    case.error_rules, case.digests = ["D-2"], True
    return case


def slices() -> Iterator[Case]:
    for kind in KINDS:
        tensor, _, units = base(kind)
        numel = BLOCKS * BLOCK
        spans = [(0, numel), (100, numel - 100), (BLOCK, 66 * BLOCK + 1), (65 * BLOCK + 7, 65 * BLOCK + 1000)]
        note = f"slices over and past 64 blocks of {SAID[kind]}"
        case = Case(
            "slice",
            f"b-11-{BLOCKS}-blocks-{kind}",
            ["B-11"],
            recipe(encoded(kind), units),
            ACCEPT,
            "L4",
            note,
        )
        case.slices = [["w", a, b, sha(tensor.data[2 * a : 2 * b])] for a, b in spans]
        yield marked(case, kind)


def many_tensors() -> Iterator[Case]:
    """Files of more tensors than a small table of entries holds."""
    for count in (17, 300):
        tensors = [random_tensor(f"t{i}", "U8", [2, 1 + i % 3], 100, 2000 + i) for i in range(count)]
        sketch = Sketch()
        for tensor in tensors:
            sketch.add(tensor)
        file, note = sketch.render(), f"{count} encoded tensors"
        case = Case("noncanonical", f"t-2-{count}-tensors", ["T-2"], file, NONCANONICAL, "L1", note)
        case.tensors = listing(tensors)
        yield case
        bitmap = f"t{count - 1}.endor.bitmap"
        beside = Physical(f"t{count - 1}.endor.more", "U8", [1], b"x")
        faults: list[tuple[str, Callable[[Sketch], object], str]] = [
            ("B-6", lambda s, b=bitmap: s.flip(b, 0), "a bit of its bitmap is missing"),
            ("T-3", lambda s, p=beside: s.physical.append(p), "it has a part that is none of its encoding"),
            ("T-2", lambda s, b=bitmap: s.drop(b), "its bitmap is missing"),
            ("T-4", lambda s, b=bitmap: setattr(s.part(b), "dtype", "I8"), "its bitmap is of I8"),
        ]
        for rule, change, what in faults[: 4 if count == 17 else 2]:
            wrong = deepcopy(sketch)
            change(wrong)
            note = f"the last of {count} encoded tensors: {what}"
            name = f"{rule.lower()}-last-of-{count}-tensors"
            yield Case("invalid", name, [rule], wrong.render(), REJECT, "L2", note, error_rules=[rule])
