"""Valid files of format 1.1: split values, positions all (sections 8.1, 8.3), and all encodings together."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import (
    BLOCK,
    FLOATS,
    MAX_INT,
    Sketch,
    Split,
    Tensor,
    canonical,
    floats,
    random_tensor,
    scattered,
    tensor_of,
    widths,
)
from corpus.case import ACCEPT, NONCANONICAL, Case, listing, newer, shown

How = dict[str, Split | None]


def cases() -> Iterator[Case]:
    yield from dtypes()
    yield from mantissas()
    yield from layouts()
    yield from sizes()
    yield from densities()
    yield from patches()
    yield from special_values()
    yield from bases()
    yield from shapes()
    yield from together()


def accepted(
    name: str, rules: list[str], tensors: list[Tensor], how: How, notes: str, expect: str = ACCEPT
) -> Case:
    """A file with those of the tensors encoded that `how` has; the others are plain."""
    category = "valid" if expect == ACCEPT else "noncanonical"
    data = canonical(tensors, how)
    case = Case(category, name, rules, data, expect, "L1", notes, tensors=listing(tensors))
    return newer_but_for(case, tensors, how)


def newer_but_for(case: Case, tensors: list[Tensor], how: How) -> Case:
    """Marks a case of version 1.1: a decoder of 1.0 reads the raw and the plain ones of the tensors."""
    lacking = [t.name for t in tensors if how.get(t.name) is not None]
    return newer(case, lacking, [t for t in tensors if t.name not in lacking])


def sketch_of(tensors: list[Tensor], how: How) -> Sketch:
    """The tensors in their order, wherever a writer would put the plain ones."""
    sketch = Sketch()
    for t in tensors:
        sketch.add(t, t.name in how, how=how.get(t.name))
    return sketch


def alike(dtype: str, elements: list[int], shape: list[int]) -> list[Tensor]:
    """The same tensor as `some` and as `all`, to be encoded by `twice`."""
    return [tensor_of(name, dtype, elements, shape) for name in ("some", "all")]


def twice(w: int, mantissa: int | None = None) -> dict[str, Split]:
    """A tensor `some` with positions bitmap, and a tensor `all`."""
    return {"some": Split(w, "bitmap", mantissa), "all": Split(w, "all", mantissa)}


def dtypes() -> Iterator[Case]:
    for i, dtype in enumerate(FLOATS):
        for w in widths(dtype):
            tensors = [
                floats("some", dtype, [3, 37], 50, 500 + 10 * i + w, width=2**w, odd=8),
                floats("all", dtype, [3, 37], 90, 600 + 10 * i + w, width=2**w, odd=8),
            ]
            note = f"{dtype}, w = {w}: positions bitmap and all, some exponents in patches"
            yield accepted(f"e-1-{shown(dtype)}-w-{w}", ["E-1", "B-2", "T-4"], tensors, twice(w), note)


def mantissas() -> Iterator[Case]:
    some = {
        "BF16": (0, 1, 6),
        "F16": (0, 6, 7, 8, 9),
        "F32": range(23),
        "F8_E4M3": (0, 1),
        "F8_E5M2": (0, 1),
    }
    for dtype, kept in some.items():
        for m in kept:
            tensors = [
                floats("some", dtype, [2, 70], 80, 700 + m, kept=m),
                floats("all", dtype, [1, 70], 100, 750 + m, kept=m),
            ]
            note = f"{dtype} of which {m} mantissa bits are kept: residues of {1 + m} bits"
            yield accepted(f"e-1-mantissa-{shown(dtype)}-{m}", ["E-1", "T-4"], tensors, twice(2), note)


def layouts() -> Iterator[Case]:
    for dtype in ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2"):
        size = {"BF16": 16, "F16": 16, "F32": 32}.get(dtype, 8)
        singles = [1 << i for i in range(size)] + [1 << (size - 1) | 1 << i for i in range(size - 1)]
        tensors = alike(dtype, [*singles, *[0] * 3], [1, 2 * size + 2])
        note = f"{dtype}: elements of a single bit, each with either sign: every bit has its place"
        yield accepted(f"e-1-single-bits-{shown(dtype)}", ["E-1"], tensors, twice(3), note)
    lone = dict.fromkeys((0, 7, 8, 63, 64, 127, 200), 0x3F80)
    t = tensor_of("all", "BF16", [lone.get(j, 0x3F00) for j in range(201)], [1, 201])
    note = "codes of 1 in few places of several groups: the bits of a group in their order"
    yield accepted("e-1-places-in-a-group", ["E-1"], [t], {"all": Split(1, "all")}, note)


def sizes() -> Iterator[Case]:
    for n in (0, 1, 63, 64, 65, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 65):
        shape = [n, 1] if n else [0, 7]
        many = n > 513
        tensors = [
            floats("some", "BF16", shape, 100, 800 + n, kept=0 if many else 7, odd=1 if many else 5),
            floats("all", "BF16", shape, 100, 801 + n, kept=0 if many else 7, odd=1 if many else 5),
        ]
        note = f"{n} elements, all of them stored: {-(-n // 64)} groups, {-(-n // BLOCK)} blocks"
        rules = ["B-2", "E-1", "E-2", "E-4"]
        yield accepted(f"b-2-split-numel-{n}", rules, tensors, twice(2), note)
    for blocks in (7, 8):
        t = scattered("some", "F8_E5M2", [blocks, BLOCK], {BLOCK * b + 9 * b: 60 + b for b in range(blocks)})
        note = f"{blocks} blocks: {'no' if blocks == 7 else '7 entries of'} padding in both rows of the index"
        yield accepted(f"b-8-split-{blocks}-blocks", ["B-8", "B-2"], [t], {"some": Split(1)}, note)
    t = scattered("some", "F8_E5M2", [65, BLOCK], {BLOCK * b + 7 * b: 20 + b for b in range(0, 65, 3)})
    note = "65 blocks: the bases of one more than 64"
    yield accepted("e-4-65-blocks", ["E-4", "B-2"], [t], {"some": Split(1)}, note)


def densities() -> Iterator[Case]:
    shape = [2, BLOCK]
    nothing = alike("BF16", [0] * 2 * BLOCK, shape)
    note = "all zero: with positions bitmap nothing is stored and the bases are 0; with all, zeros are"
    yield accepted("e-3-all-zero", ["E-3", "B-2"], nothing, twice(1), note)
    for density in (3, 50):
        t = floats("some", "BF16", [3, 3000], density, 900 + density, kept=2, odd=3)
        note = f"about {density} % stored: groups across the boundaries of blocks"
        yield accepted(f"e-1-density-{density}", ["E-1", "B-6"], [t], {"some": Split(2)}, note)
    t = floats("all", "F8_E4M3", [3, 3000], 70, 905, kept=0, low=0, width=2, odd=3)
    note = "30 % zeros, stored with exponent 0"
    yield accepted("e-1-zeros-with-all", ["E-1", "B-1"], [t], {"all": Split(1, "all")}, note)
    full = floats("x", "BF16", [BLOCK], 100, 906, kept=1, odd=2)
    empty = bytes(2 * BLOCK)
    rows = [full.data, empty, empty, full.data, empty]
    t = Tensor("some", "BF16", [5, BLOCK], b"".join(rows))
    note = "empty blocks, with bases of 0, between full ones and at the end"
    yield accepted("e-3-empty-blocks", ["E-3", "B-6"], [t], {"some": Split(2)}, note)


def patches() -> Iterator[Case]:
    for odd in (0, 63, 64, 65):
        elements = [0x3F80 | i % 2 << 15 for i in range(300)]
        for i in range(odd):
            elements[4 * i + 1] = (i % 90 + 1) << 7
        tensors = alike("BF16", elements, [3, 100])
        note = f"{odd} patches in one block"
        yield accepted(f"e-8-{odd}-patches", ["E-8", "E-5", "B-7"], tensors, twice(1), note)
    elements = [0x3F80] * 2 * BLOCK
    for block in (0, BLOCK):
        for rank in (0, 255, 256, 257, 4094, 4095):
            elements[block + rank] = 0x0100 + rank % 256 * 128
    tensors = alike("BF16", elements, [2, BLOCK])
    note = "patches of the first and the last element of full blocks, and around rank 256"
    yield accepted("e-5-ranks-at-the-edges", ["E-5", "E-1"], tensors, twice(1), note)
    stored = {BLOCK + 3 * i: (0x3F80 if i % 5 else 0x0180) for i in range(40)} | {3 * BLOCK - 1: 0x7F00}
    t = scattered("some", "BF16", [3, BLOCK], stored)
    note = "patches in the last two blocks only; a block with a single element; ranks count from the block"
    yield accepted("e-5-ranks-within-the-block", ["E-5", "B-5"], [t], {"some": Split(1, bases={2: 0})}, note)
    a, b = [0x3F80, 0x0100, 0x3F80] * 20, [0x0180, 0x3F80, 0x3F80] * 20
    t = scattered("some", "BF16", [2, BLOCK], dict(enumerate(a)) | {BLOCK + i: e for i, e in enumerate(b)})
    note = "equally many patches in two blocks, of different ranks: swapped, their counts still agree"
    yield accepted("e-5-two-alike", ["E-5"], [t], {"some": Split(1)}, note)


def special_values() -> Iterator[Case]:
    special = {
        "BF16": [0x7FC0, 0x7F81, 0xFFC1, 0xFFFF, 0x7F80, 0xFF80, 0x0001, 0x807F, 0x8000, 0x0080, 0x7F7F],
        "F16": [0x7E00, 0x7C01, 0xFE55, 0xFFFF, 0x7C00, 0xFC00, 0x0001, 0x83FF, 0x8000, 0x0400, 0x7BFF],
        "F32": [
            *(0x7FC00000, 0x7F800001, 0xFFC12345, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 1, 0x807FFFFF),
            *(0x80000000, 0x00800000, 0x7F7FFFFF),
        ],
        "F8_E4M3": [0x7F, 0xFF, 0x01, 0x87, 0x80, 0x08, 0x7E],
        "F8_E4M3FNUZ": [0x80, 0x7F, 0x01, 0x87, 0x08, 0xFF],
        "F8_E5M2": [0x7D, 0x7E, 0xFF, 0x7C, 0xFC, 0x01, 0x83, 0x80, 0x04, 0x7B],
        "F8_E5M2FNUZ": [0x80, 0x7F, 0x01, 0x83, 0x04, 0xFF],
    }
    for dtype, bits in special.items():
        elements = [0, *bits, 0, bits[0], 0]
        tensors = alike(dtype, elements, [1, len(elements)])
        note = f"{dtype}: NaNs, infinities, subnormals, -0.0, the smallest and the largest normal numbers"
        yield accepted(f"b-1-split-specials-{shown(dtype)}", ["B-1", "E-1"], tensors, twice(2), note)
    minus = [0x8000, 0, 0x8000, 0x3F80, 0x8000, 0]
    tensors = alike("BF16", minus, [2, 3])
    for where, low in [("in-the-window", 0), ("in-patches", 127)]:
        how: How = {n: Split(1, s.positions, 0, {0: low}) for n, s in twice(1).items()}
        note = f"negative zeros, their exponent 0 {where.replace('-', ' ')}"
        yield accepted(f"b-1-split-negative-zero-{where}", ["B-1", "B-10"], tensors, how, note, NONCANONICAL)


def bases() -> Iterator[Case]:
    for dtype, w in [("BF16", 4), ("F16", 4), ("F8_E4M3", 3), ("F8_E5M2", 4)]:
        bits, most = FLOATS[dtype]
        top = 2**bits - 1
        low = [i % 2**w << most | 1 for i in range(1, 40)] + [top << most]
        high = [(top - i % 2**w) << most | 1 for i in range(40)] + [1]
        tensors = [tensor_of("some", dtype, low, [1, 40]), tensor_of("all", dtype, high, [1, 41])]
        note = f"{dtype}, w = {w}: the lowest base and the highest patch; the highest, the lowest"
        yield accepted(f"e-3-edges-{shown(dtype)}", ["E-3", "E-6"], tensors, twice(w), note)
    around = [b << 7 for b in (99, 100, 103, 104, 100, 101, 102, 103, 0, 255)]
    tensors = alike("BF16", around, [1, 10])
    note = "exponents at both ends of the window, and just outside of it"
    yield accepted("e-6-edges-of-the-window", ["E-6", "E-1"], tensors, twice(2), note)


def shapes() -> Iterator[Case]:
    for name, bits in [("zero", 0), ("stored", 0x3F80)]:
        tensors = alike("BF16", [bits], [])
        note = f"0-d, {'a zero' if name == 'zero' else 'a stored'} element"
        yield accepted(f"b-2-split-0d-{name}", ["B-2"], tensors, twice(1), note)
    huge = [Tensor(n, "BF16", [MAX_INT, 0, MAX_INT], b"") for n in ("some", "all")]
    note = "an empty tensor with huge dimensions: an index of zeros, and no other bytes"
    yield accepted("j-5-split-empty-and-huge", ["J-5", "B-4"], huge, twice(1), note)
    t = floats("all", "F16", [1] * 62 + [3, 3], 100, 907)
    yield accepted("c-8-split-rank-64", ["C-8"], [t], {"all": Split(2, "all")}, "the highest rank")
    t = floats("all", "BF16", [64, 8], 100, 908, kept=5)
    note = "the physical shape [8, 64] is not the logical shape [64, 8], although numel is the same"
    yield accepted("t-5-split-same-numel", ["T-5"], [t], {"all": Split(2, "all")}, note)
    t = floats("all", "BF16", [512], seed=909, kept=5)
    note = "the logical shape [512] has the elements of the physical one, [8, 64]"
    yield accepted("t-5-split-flat", ["T-5"], [t], {"all": Split(2, "all")}, note)


MANY = [
    random_tensor("raw", "BF16", [5, 31], seed=910),
    floats("some", "BF16", [5, 31], 50, 911),
    floats("norm", "F32", [7], 100, 912),
    floats("all", "F16", [5, 31], 100, 913),
    random_tensor("ints", "I32", [5, 31], seed=914),
    Tensor("f4", "F4", [2], b"\x21"),
    floats("also", "F32", [9, 9], 100, 915, kept=7),
]
MANY_HOW: How = {"raw": None, "some": Split(2), "all": Split(3, "all"), "ints": None, "also": Split(1, "all")}


def together() -> Iterator[Case]:
    note = "raw, split, all and plain tensors in one file"
    yield accepted("v-2-all-encodings", ["V-2", "M-7", "T-7"], MANY, MANY_HOW, note)
    tensors = [floats(n, "BF16", [3, 9], 60, i) for i, n in enumerate(["w", "w.f", "w.endor-", "wx", "v"])]
    how: How = {"w": Split(1), "wx": Split(2, "all")}
    note = "plain tensors whose names are near those of the parts"
    yield accepted("t-3-split-names-near-parts", ["T-3", "T-7"], tensors, how, note)
    looks = ["x.endor.bases", "x.endor.patches", "x.endor.index", "bases", "w.bases"]
    tensors = [floats("w", "BF16", [3, 9], 60, 20), *(Tensor(n, "U8", [1], b"x") for n in looks)]
    note = "names that look like parts but belong to no key: plain tensors"
    yield accepted("t-3-split-plain-names-like-parts", ["T-3", "T-6"], tensors, {"w": Split(2)}, note)
