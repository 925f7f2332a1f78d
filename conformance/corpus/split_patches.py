"""Wrong bases and patches, and what goes with them in values (E-3 to E-8)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

from corpus.build import BLOCK, FLOATS, Split, scattered, tensor_of
from corpus.case import Case, shown
from corpus.change import both, entry, put
from corpus.split_base import ALL, BASES, PATCHES, SMALL, SOME, Base, base_of, flipped, inside, patched, row


def cases() -> Iterator[Case]:
    yield from bases()
    yield from ranks()
    yield from exponents()
    yield from codes()
    yield from patch_padding()


def bases() -> Iterator[Case]:
    for dtype, w in [("BF16", 2), ("F16", 4), ("F8_E4M3", 1), ("F8_E4M3FNUZ", 3), ("F8_E5M2", 4), ("F32", 1)]:
        bits, most = FLOATS[dtype]
        top = 2**bits - 2**w
        # All codes are 0, so that no exponent is past the highest: the base alone is wrong.
        for positions in ("bitmap", "all") if dtype in ("BF16", "F8_E4M3") else ("all",):
            t = tensor_of("w", dtype, [top << most | 1] * 20, [4, 5])
            b = Base(t, Split(w, positions, bases={0: top}))
            low = f"{shown(dtype)}-{positions}"
            note = f"{dtype}, w = {w}: the base is {top + 1}, one above the highest"
            yield inside(f"e-3-one-above-{low}", ["E-3"], note, base_of(0, top + 1), b)
        note = f"{dtype}, w = {w}: the base is 255"
        if top != 254:
            yield inside(f"e-3-255-{shown(dtype)}", ["E-3"], note, base_of(0, 255), b)
        if bits < 8:
            note = f"{dtype}: the base is {2**bits}, which is no exponent"
            yield inside(f"e-3-no-exponent-{shown(dtype)}", ["E-3"], note, base_of(0, 2**bits), b)
    for block in (0, 1, 2):
        note = f"the base of block {block} of three is too high"
        yield inside(f"e-3-block-{block}", ["E-3", "E-6"], note, base_of(block, 253), SOME)
        yield inside(f"e-3-all-block-{block}", ["E-3", "E-6"], note, base_of(block, 255), ALL)
    stored = dict.fromkeys(range(BLOCK, BLOCK + 9), 0x3F80)
    empty = Base(scattered("w", "BF16", [3, BLOCK], stored), Split(2))
    for block, value in [(0, 1), (2, 1), (0, 127), (2, 252), (0, 255)]:
        note = f"the base of block {block}, which has no stored elements, is {value}"
        yield inside(f"e-3-empty-block-{block}-base-{value}", ["E-3"], note, base_of(block, value), empty)
    zero = Base(tensor_of("w", "BF16", [0] * 9, [3, 3]), Split(1))
    yield inside("e-3-all-zero", ["E-3"], "the base of a tensor of zeros is 1", base_of(0, 1), zero)
    for base, nb in [(SMALL, 1), (SOME, 3), (ALL, 3)]:
        name = "all" if base is ALL else "small" if nb == 1 else "some"
        note = "the first byte after the bases is not 0"
        yield inside(f"e-4-first-{name}", ["E-4"], note, base_of(nb, 1), base)
        note = "the last byte of the padding of bases is not 0"
        yield inside(f"e-4-last-{name}", ["E-4"], note, base_of(63, 128), base)
    note = "the padding of bases repeats the base"
    right = SMALL.bases()[0]
    yield inside("e-4-repeats", ["E-4"], note, put(BASES, 1, bytes([right]) * 63))


def ranks() -> Iterator[Case]:
    """Where a patch is moved to, the elements have codes of 0, so that E-5 alone is broken."""
    elements = [0x3F80] * 60
    for i in (10, 20, 30):
        elements[i] = 0x0100 + i * 128
    plain: dict[str, Base] = {
        "all": Base(tensor_of("w", "BF16", elements, [6, 10]), Split(1, "all", bases={0: 127})),
        "bitmap": Base(
            tensor_of("w", "BF16", [e for x in elements for e in (x, 0)], [6, 20]), Split(1, bases={0: 127})
        ),
    }
    for name, base in plain.items():
        for what, at, rank, note in [
            ("equal", 1, 10, "two patches have the same rank"),
            ("falling", 1, 9, "the second patch has a lower rank than the first"),
            ("falling-at-the-end", 2, 15, "the last patch has a lower rank than the one before it"),
            ("of-count", 2, 60, "the rank of a patch is the number of stored elements"),
            ("past-count", 2, 61, "the rank of a patch is past the stored elements"),
            ("in-the-padding", 2, 511, "the rank of a patch is in the padding of values"),
            ("past-values", 2, 512, "the rank of a patch is past all of values"),
            ("4096", 2, BLOCK, "the rank of a patch is past any block"),
            ("ffff", 2, 0xFFFF, "the rank of a patch is 65535"),
            ("8000", 2, 0x8000, "the rank of a patch is -32768 in 16 bits with a sign"),
            ("first-ffff", 0, 0xFFFF, "the rank of the first patch is 65535, or -1"),
            ("right-in-8-bits", 2, 256 + 30, "the rank of a patch is right in 8 bits"),
        ]:
            if name == "all" or what in ("equal", "falling", "of-count", "past-values", "ffff"):
                where = f"{note}, positions {name}"
                yield inside(f"e-5-{what}-{name}", ["E-5"], where, patched(at, rank), base)
        swapped = both(patched(0, 20, 0x0100 // 128 + 20), patched(1, 10, 0x0100 // 128 + 10))
        note = f"two patches in the wrong order, positions {name}"
        yield inside(f"e-5-swapped-{name}", ["E-5"], note, swapped, base)
        big = both(*(put(PATCHES, 3 * i, pack(">H", rank)) for i, rank in enumerate((10, 20, 30))))
        yield inside(f"e-5-big-endian-{name}", ["E-5"], "ranks are written big-endian", big, base)
        counted = both(entry(patches=4), row(int(name == "bitmap"), e1=4))
        note = "one patch more is counted, in the padding of patches: rank 0, exponent 0"
        yield inside(f"e-5-padding-counted-{name}", ["E-5"], note, counted, base)
    zeros = Base(
        tensor_of("w", "BF16", [0x3F80, 0, 0x3F80, 0, 0] * 4, [4, 5]), Split(1, "all", bases={0: 127})
    )
    for name, at, rank, note in [
        ("first", 1, 1, "the first two patches"),
        ("last", 11, 18, "the last two patches"),
    ]:
        what = f"{note} have the same rank, and all patches the exponent 0"
        yield inside(f"e-5-equal-exponent-0-{name}", ["E-5"], what, patched(at, rank), zeros)
    two = [0x3F80] * 2 * BLOCK
    for i in (5, BLOCK + 3, BLOCK + 9):
        two[i] = 0x0880
    base = Base(tensor_of("w", "BF16", two, [2, BLOCK]), Split(1, "all", bases={0: 127, 1: 127}))
    for name, change, note in [
        (
            "of-the-tensor",
            patched(1, BLOCK + 3),
            "a rank that counts from the start of the tensor, not of the block",
        ),
        ("4096-of-a-full-block", patched(2, BLOCK), "rank 4096 of a block with 4096 stored elements"),
        ("into-the-next-block", patched(0, BLOCK + 5), "the rank of a patch lies in the next block"),
        ("two-in-the-first", row(0, e1=2), "the first patch of block 1 is counted to block 0"),
        ("none-in-the-first", row(0, e1=0), "the patch of block 0 is counted to block 1"),
        ("all-in-the-first", row(0, e1=3), "all patches are counted to block 0"),
    ]:
        yield inside(f"e-5-blocks-{name}", ["E-5"], note, change, base)
    for name, change, note in [
        (
            "all-in-the-first",
            row(1, e1=SOME.rows()[1][3], e2=SOME.rows()[1][3]),
            "block 0 is said to have all patches",
        ),
        ("all-in-the-last", row(1, e1=0, e2=0), "block 2 is said to have all patches"),
    ]:
        yield inside(f"e-5-some-{name}", ["E-5", "E-6", "E-7", "B-10"], note, change, SOME)
    lone = Base(
        scattered("w", "BF16", [2, BLOCK], {BLOCK: 0x3F80, BLOCK + 1: 0x0100}), Split(1, bases={1: 127})
    )
    note = "a patch in a block without stored elements"
    yield inside("e-5-empty-block", ["E-5"], note, row(1, e1=1), lone)
    past = Base(tensor_of("w", "BF16", [0x3F80] * 64 + [0x0100], [5, 13]), Split(1, "all"))
    note = "a patch of the element after the last one"
    yield inside("e-5-after-the-last", ["E-5"], note, patched(0, 65), past)


def exponents() -> Iterator[Case]:
    for dtype in FLOATS:
        bits, most = FLOATS[dtype]
        middle = 2 ** (bits - 1) - 2
        for w in (1, 2) if dtype.endswith("FNUZ") else (1, min(4, bits - 1)):
            elements = [middle << most | 1] * 9 + [1 << most]
            for positions in ("all", "bitmap") if (dtype, w) == ("F16", 1) else ("all",):
                base = Base(tensor_of("w", dtype, elements, [2, 5]), Split(w, positions, bases={0: middle}))
                low = f"{shown(dtype)}-w-{w}-{positions}"
                note = f"{dtype}, w = {w}: the exponent of a patch is the base of the window"
                yield inside(f"e-6-base-{low}", ["E-6"], note, patched(0, exponent=middle), base)
                note = f"{dtype}, w = {w}: the exponent of a patch is the last one of the window"
                yield inside(f"e-6-last-{low}", ["E-6"], note, patched(0, exponent=middle + 2**w - 1), base)
        base = Base(tensor_of("w", dtype, elements, [2, 5]), Split(1, "all", bases={0: middle}))
        for value in (2**bits, 255) if bits < 8 else ():
            note = f"{dtype}: the exponent of a patch is {value}, which is none"
            name = f"e-6-{value}-{shown(dtype)}"
            yield inside(name, ["E-6"], note, patched(0, exponent=value), base)
    second = SOME.rows()[1][1]
    note = "the exponent of a patch is in the window of its block, the second one"
    change = patched(second, exponent=SOME.bases()[1] + 1)
    yield inside("e-6-second-block", ["E-6"], note, change, SOME)
    two = [0x3F80] * BLOCK + [0x4F80] * 60
    two[7], two[BLOCK + 7] = 0x4F80, 0x3F80
    other = Base(tensor_of("w", "BF16", two, [4, 1039]), Split(1, "all"))
    change = both(base_of(0, 159), base_of(1, 127))
    note = "the bases of two blocks are swapped: the patch of each lies in its window"
    yield inside("e-6-bases-swapped", ["E-6"], note, change, other)


def codes() -> Iterator[Case]:
    first = SMALL.patches()[0][0]
    last = SMALL.patches()[-1][0]
    for name, rank, bits, note in [
        ("low-bit", first, [11], "the lowest bit of the code of an element with a patch"),
        ("high-bit", first, [12], "the highest bit of the code of an element with a patch"),
        ("all-bits", last, [11, 12], "the code of the last element with a patch"),
    ]:
        yield inside(f"e-7-{name}", ["E-7"], f"not 0: {note}", flipped(rank, *bits))
    counts, before = SOME.rows()
    for block in (1, 2):
        rank = counts[block] + SOME.patches()[before[block]][0]
        note = f"the code of an element of block {block} that has a patch is not 0"
        change = flipped(rank, 1 + SOME.entry("mantissa"))
        yield inside(f"e-7-block-{block}", ["E-7"], note, change, SOME)
    rank = BLOCK + ALL.patches()[ALL.rows()[0][1]][0]
    note = "positions all: the code of an element of block 1 that has a patch is not 0"
    yield inside("e-7-all-block-1", ["E-7"], note, flipped(rank, 1), ALL)
    for w in (3, 4):
        base = Base(tensor_of("w", "BF16", [0x3F80] * 9 + [0x0100], [2, 5]), Split(w, "all"))
        for k in range(w):
            note = f"w = {w}: bit {k} of the code of an element with a patch is not 0"
            yield inside(f"e-7-w-{w}-bit-{k}", ["E-7"], note, flipped(9, 1 + k), base)
    elements = [0x3F80, 0x4000] * 30 + [0x0100]
    moved = Base(tensor_of("w", "BF16", elements, [1, 61]), Split(1, "all"))
    note = "a patch of an element that has a code besides"
    yield inside("e-7-patch-moved", ["E-7"], note, patched(0, 59), moved)


def patch_padding() -> Iterator[Case]:
    for name, base in [("small", SMALL), ("some", SOME), ("all", ALL)]:
        count, room = base.entry("patches"), base.sketch().part(PATCHES).shape[0]
        assert count < room
        for what, at, note in [
            ("rank", 3 * count, "the rank of the first patch that is not there"),
            ("rank-high", 3 * count + 1, "the high byte of that rank"),
            ("exponent", 3 * count + 2, "the exponent of the first patch that is not there"),
            ("last", 3 * room - 1, "the last byte of patches"),
        ]:
            if name == "small" or what in ("rank", "last"):
                yield inside(f"e-8-{what}-{name}", ["E-8"], f"not 0: {note}", put(PATCHES, at, b"\1"), base)
    filled = put(PATCHES, 3 * SMALL.entry("patches"), b"\xff" * 3)
    yield inside("e-8-filler", ["E-8"], "the padding of patches has 0xFFFF and 255", filled)
    empty = Base(scattered("w", "BF16", [3, BLOCK], {5: 0x3F80, 9: 0x0100}), Split(1))
    note = "the patch is the last one of the first block, and two blocks follow without any"
    yield inside("e-8-after-empty-blocks", ["E-8"], note, put(PATCHES, 3, b"\1"), empty)
