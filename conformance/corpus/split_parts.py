"""Tensors with split values that have the wrong parts: which, their dtypes and shapes (T-1 to T-6)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus import checksum
from corpus.build import BLOCK, MAX_INT, Physical, Sketch, Split, Tensor, floats, plain_file
from corpus.case import REJECT, Case, newer, newer_but_alike, shown
from corpus.change import BITMAP, INDEX, VALUES, Change, describe, drop, entry, extra, nothing, resize
from corpus.invalid_metadata import reject
from corpus.split_base import (
    ALL,
    BASES,
    EMPTY,
    EMPTY_ALL,
    ONES,
    PATCHES,
    RAW,
    SMALL,
    TINY,
    Base,
    fault,
    inside,
    tiny,
)


def cases() -> Iterator[Case]:
    yield from parts()
    yield from descriptions()
    yield from lengths()
    yield from overflow()
    yield from same_shape()


def parts() -> Iterator[Case]:
    named = {"bitmap": BITMAP, "index": INDEX, "bases": BASES, "patches": PATCHES}
    yield newer_but_alike(
        fault("t-2-split-no-values", ["T-2"], "the part values does not exist", drop(VALUES))
    )
    yield newer_but_alike(
        fault("t-2-all-no-values", ["T-2"], "the part values does not exist", drop(VALUES), ALL)
    )
    for name, part in named.items():
        yield fault(f"t-2-split-no-{name}", ["T-2"], f"the part {name} does not exist", drop(part))
        if name != "bitmap":
            note = f"the part {name} does not exist, with positions all"
            yield fault(f"t-2-all-no-{name}", ["T-2"], note, drop(part), tiny("BF16"))
    note = "no patches, and so no part of them either"
    yield fault("t-2-no-patches-of-none", ["T-2"], note, drop(PATCHES), ONES)
    yield fault("t-2-no-bases-of-empty", ["T-2"], "no bases of an empty tensor", drop(BASES), EMPTY)
    bitmap = TINY.sketch().part(BITMAP)
    note = "a bitmap with positions all"
    yield fault("t-3-all-and-bitmap", ["T-3"], note, extra(bitmap), tiny("BF16"))
    note = "a part of exponents, which split values do not have"
    yield fault("t-3-split-extra", ["T-3"], note, extra(Physical("w.endor.exponents", "U8", [64], bytes(64))))
    for name, shape in [("bases", [64]), ("patches", [0, 3])]:
        s = Sketch().add(RAW)
        s.physical.append(Physical(f"w.endor.{name}", "U8", shape, bytes(64 * (shape[0] > 0))))
        note, rules = f"{name} beside raw values", ["T-3"]
        yield reject(f"t-3-raw-and-{name}", rules, s.render(), note)
    note = "the positions say bitmap, the parts are those of all"
    yield fault(
        "t-2-all-called-bitmap", ["T-2", "T-4"], note, entry(positions="bitmap", nnz=27), tiny("BF16")
    )
    note = "the positions say all, the parts are those of bitmap"
    yield fault("t-3-bitmap-called-all", ["T-3", "T-4"], note, entry(positions="all"))
    s = Sketch().add(RAW)
    entry(values="split", w=1, mantissa=7, patches=0)(s)
    note, rules = "the values say split, the parts are those of raw", ["T-2", "T-4"]
    yield newer(reject("t-2-raw-called-split", rules, s.render(), note), ["w"])
    note = "the values say raw, the parts are those of split"
    yield newer_but_alike(fault("t-3-split-called-raw", ["T-3", "T-4"], note, entry(values="raw")))
    s = tiny("BF16").sketch()
    s.physical.append(Physical("w.endor.bases.endor.index", "I64", [8], bytes(64)))
    s.endor["tensors"]["w.endor.bases"] = {
        "dtype": "U8",
        "nnz": 0,
        "positions": "bitmap",
        "shape": [1],
        "values": "raw",
    }
    note, rules = "a key that is the name of the part bases", ["T-1"]
    yield newer_but_alike(reject("t-1-key-is-bases", rules, s.render(), note))
    for suffix in (".endor.index", ".endor.bitmap"):
        whole = [p for p in SMALL.sketch().physical if suffix == ".endor.index" or p.name != INDEX]
        note, rules = f"the metadata has been lost; {suffix} tells", ["T-6"]
        name = f"t-6-split{suffix.replace('.', '-')}"
        data = plain_file(whole, {"format": "pt"})
        yield reject(name, rules, data, note)
    data = plain_file(tiny("BF16").sketch().physical)
    yield reject("t-6-all", rules, data, "the metadata has been lost")


def descriptions() -> Iterator[Case]:
    rows, row = TINY.sketch().part(VALUES).shape
    length = TINY.sketch().part(INDEX).shape[1]
    for name, change, note in [
        ("values-transposed", describe(VALUES, shape=[row, rows]), "values is transposed"),
        ("values-flat", describe(VALUES, shape=[rows * row]), "values has rank 1"),
        ("values-rank-3", describe(VALUES, shape=[rows, row // 8, 8]), "values has rank 3, by planes"),
        ("values-i8", describe(VALUES, "I8"), "values is I8"),
        ("values-f8", describe(VALUES, "F8_E4M3"), "values has the dtype of the tensor"),
        ("values-unknown-dtype", describe(VALUES, "U3"), "values has an unknown dtype"),
        ("index-one-row", describe(INDEX, shape=[1, 2 * length]), "index has one row, of the same bytes"),
        ("index-flat", describe(INDEX, shape=[2 * length]), "index has rank 1"),
        ("index-transposed", describe(INDEX, shape=[length, 2]), "index is transposed"),
        ("index-u64", describe(INDEX, "U64"), "index is U64"),
        ("index-i32", describe(INDEX, "I32", [2, 2 * length]), "index is I32"),
        ("bitmap-row", describe(BITMAP, shape=[1, 64]), "bitmap has rank 2"),
        ("bases-i8", describe(BASES, "I8"), "bases is I8"),
        ("bases-rank-2", describe(BASES, shape=[1, 64]), "bases has rank 2"),
        ("bases-u16", describe(BASES, "U16", [32]), "bases is U16, of the same bytes"),
        ("patches-flat", describe(PATCHES, shape=[192]), "patches has rank 1"),
        ("patches-transposed", describe(PATCHES, shape=[3, 64]), "patches is transposed"),
        ("patches-i8", describe(PATCHES, "I8"), "patches is I8"),
        ("patches-unknown-dtype", describe(PATCHES, "U24", [64]), "patches has an unknown dtype"),
    ]:
        yield fault(f"t-4-split-{name}", ["T-4"], note, change)
    length = ALL.sketch().part(INDEX).shape[1]
    note = "index of positions all has rank 1"
    yield fault("t-4-all-index-flat", ["T-4"], note, describe(INDEX, shape=[length]), tiny("BF16"))
    for name, shape in [("no-columns", [0, 0]), ("flat", [0]), ("one-row", [0, 1])]:
        note = f"values of an empty tensor has the shape {shape}"
        yield fault(f"t-4-split-empty-values-{name}", ["T-4"], note, describe(VALUES, shape=shape), EMPTY_ALL)
    note = "patches of an empty tensor has the shape [0]"
    yield fault("t-4-split-empty-patches-flat", ["T-4"], note, describe(PATCHES, shape=[0]), EMPTY)


def columns(part: str, by: int, size: int = 1) -> Change:
    """So many more columns."""

    def change(s: Sketch) -> None:
        p = s.part(part)
        rows, row = p.shape[0], p.shape[1] * size
        cut = [p.data[i * row : (i + 1) * row] for i in range(rows)]
        p.shape = [rows, p.shape[1] + by]
        p.data = b"".join((r + bytes(size * max(by, 0)))[: size * p.shape[1]] for r in cut)

    return change


def lengths() -> Iterator[Case]:
    for name, change, note in [
        ("values-one-group", resize(VALUES, -7), "values without the groups of padding"),
        ("values-longer", resize(VALUES, 8), "values with 8 groups more than prescribed"),
        ("values-one-more", resize(VALUES, 1), "values with a group more than prescribed"),
        ("values-no-codes", columns(VALUES, -8), "values without the bits of the codes"),
        ("values-a-plane-more", columns(VALUES, 8), "values with 8 bytes more in each row"),
        ("index-not-padded", columns(INDEX, -6, 8), "index without its padding"),
        ("index-longer", columns(INDEX, 8, 8), "index with 8 entries more in each row"),
        ("index-one-row-only", resize(INDEX, -1), "index without the row that counts patches"),
        ("index-three-rows", resize(INDEX, 1), "index with a row more than prescribed"),
        ("bases-not-padded", resize(BASES, -63), "bases without its padding"),
        ("bases-longer", resize(BASES, 64), "bases with 64 bytes more than prescribed"),
        ("bases-empty", resize(BASES, -64), "bases is empty"),
        ("patches-longer", resize(PATCHES, 64), "patches with room for 64 more than prescribed"),
        ("patches-one-less", resize(PATCHES, -1), "patches with room for 63"),
        ("patches-empty", resize(PATCHES, -64), "patches is empty, and there are some"),
        ("patches-two-bytes", columns(PATCHES, -1), "patches of two bytes"),
        ("patches-four-bytes", columns(PATCHES, 1), "patches of four bytes"),
        ("bitmap-longer", resize(BITMAP, 64), "bitmap with 64 bytes more than prescribed"),
        ("mantissa", entry(mantissa=1), "mantissa in the entry is more than in values"),
        ("w", entry(w=3), "w in the entry is more than in values"),
        ("shape", entry(shape=[2, 30 + 512]), "the logical shape needs a longer bitmap"),
    ]:
        yield fault(f"t-4-split-{name}", ["T-4"], note, change)
    for name, change, note in [
        ("values-one-group", resize(VALUES, -7), "values without the groups of padding"),
        ("index-two-rows", resize(INDEX, 1), "index with two rows"),
        ("shape-next-group", entry(shape=[3, 171]), "the logical shape has one element more than values"),
        ("shape-next-block", entry(shape=[8, BLOCK]), "the logical shape needs a longer index, too"),
    ]:
        yield fault(f"t-4-all-{name}", ["T-4"], note, change, tiny("BF16"))
    for here, other in [("BF16", "F32"), ("F8_E4M3", "BF16")]:
        note = f"the entry says {other}, and of {here} as much is kept: the digest alone can tell"
        s = tiny(here).changed(entry(dtype=other))
        name = f"d-2-split-{shown(here)}-called-{shown(other)}"
        case = checksum.case(name, ["D-2"], s, REJECT, note)
        case.error_rules = ["D-2", "E-3", "E-6"]
        yield newer(case, ["w"])


def overflow() -> Iterator[Case]:
    """Products that wrap around to what the parts have."""
    half = 2**32
    for i, shape in enumerate([[half, half, 1], [half, 1, half]]):
        for name, base in [("bitmap", EMPTY), ("all", EMPTY_ALL)]:
            note = f"numel of the logical shape {shape} wraps around to 0 in 64 bits, positions {name}"
            yield inside(f"t-4-split-overflow-to-0-{name}-{i}", ["T-4"], note, entry(shape=shape), base)
    a, b = 64 * (2**29 - 2**15 + 1), 2**29 + 2**15 + 1
    one = Base(floats("w", "BF16", [8, 8], 100, 934, kept=0), Split(1, "all"))
    for i, shape in enumerate([[a, b], [b, a]]):
        note = f"numel of the logical shape {shape} wraps around to 64"
        yield inside(f"t-4-all-overflow-to-64-{i}", ["T-4"], note, entry(shape=shape), one)
    note = "the largest integers in a logical shape"
    yield inside("t-4-all-largest-shape", ["T-4"], note, entry(shape=[MAX_INT] * 3), one)
    note = "as many patches as a huge logical shape has elements"
    huge = entry(shape=[MAX_INT], patches=MAX_INT)
    yield inside("t-4-all-huge-patches", ["T-4"], note, huge, one)
    wide = entry(shape=[2**26, 2**26], patches=2**52)
    yield inside("t-4-all-shape-of-2-to-the-52", ["T-4"], "2^52 elements, as many patches", wide, one)


def same_shape() -> Iterator[Case]:
    base = Base(floats("w", "BF16", [8, 64], 100, 935, kept=5), Split(2, "all"))
    yield fault("t-5-all", ["T-5"], "the physical shape [8, 64] is the logical one", nothing, base)
    base = Base(floats("w", "F16", [8, 104], 50, 936), Split(2))
    yield fault("t-5-bitmap-split", ["T-5"], "the physical shape [8, 104] is the logical one", nothing, base)
    empty = Base(Tensor("w", "BF16", [0, 16], b""), Split(1, "all"))
    yield fault("t-5-split-empty", ["T-5"], "physical and logical shape are [0, 16]", nothing, empty)
