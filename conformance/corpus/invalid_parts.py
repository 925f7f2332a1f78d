"""Endor files with the wrong parts: which there are, and their dtypes and shapes (T-2 to T-6)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import (
    BLOCK,
    MAX_INT,
    Physical,
    Sketch,
    Tensor,
    plain_file,
    random_tensor,
    scattered,
)
from corpus.case import Case
from corpus.change import (
    BITMAP,
    INDEX,
    VALUES,
    both,
    describe,
    drop,
    entry,
    extra,
    nothing,
    resize,
    sealed,
)
from corpus.invalid_metadata import W, changed, reject

EMPTY = Tensor("w", "BF16", [0, 7], b"")


def cases() -> Iterator[Case]:
    yield from missing()
    yield from too_many()
    yield from descriptions()
    yield from lengths()
    yield from logical()
    yield from overflow()
    yield from same_shape()
    yield from stripped()


def missing() -> Iterator[Case]:
    for name, part in [("values", VALUES), ("bitmap", BITMAP), ("index", INDEX)]:
        note = f"the part {name} does not exist"
        yield changed(f"t-2-no-{name}", ["T-2"], note, drop(part))

        def rename(s: Sketch, p: str = part) -> None:
            s.part(p).name = p.replace("w", "v", 1)

        note = f"the part {name} belongs to a tensor of another name"
        yield changed(f"t-2-orphaned-{name}", ["T-2"], note, rename)
    other = both(drop(BITMAP), extra(Physical("w.endor.other", "U8", [64], bytes(64))))
    note = "the bitmap does not exist, but another part in its stead"
    yield changed("t-2-other-part", ["T-2", "T-3"], note, other)
    note = "of a tensor with an unknown encoding, the physical tensor of its name does not exist"
    unknown = both(drop(VALUES), entry(positions="list"))
    yield changed("t-2-no-first-part-unknown-encoding", ["T-2"], note, unknown)

    def alone(s: Sketch) -> None:
        s.endor["tensors"]["v"] = dict(s.entry("w"))

    note = "an entry for a tensor of which there is nothing"
    yield changed("t-2-entry-alone", ["T-2"], note, alone)

    def share(s: Sketch) -> None:
        s.add(Tensor("v", W.dtype, W.shape, W.data))
        s.drop("v.endor.bitmap")
        s.drop("v.endor.index")

    note = "two tensors of one pattern that share bitmap and index"
    yield changed("t-2-shared-bitmap-and-index", ["T-2"], note, share)


def too_many() -> Iterator[Case]:
    for what, suffix in [
        ("part", "scales"),
        ("empty", ""),
        ("values", "values"),
        ("bitmap-in-capitals", "Bitmap"),
        ("bitmap-2", "bitmap2"),
        ("part-of-part", "bitmap.endor.index"),
    ]:
        note = f"a physical tensor w.endor.{suffix}, which is no part"
        part = Physical(f"w.endor.{suffix}", "U8", [64], bytes(64))
        yield changed(f"t-3-extra-{what}", ["T-3"], note, extra(part))
    t = random_tensor("w.endor", "U8", [3, 3], seed=61)
    note = "the keys w and w.endor: the parts of the latter belong to the former too"
    yield changed("t-1-keys-w-and-w-endor", ["T-1", "T-3"], note, lambda s: s.add(t))

    def unknown(s: Sketch) -> None:
        s.add(t)
        s.entry("w")["positions"] = "list"

    note = "the keys w and w.endor, w of an unknown encoding: it would hide the parts of the other"
    yield changed("t-1-keys-w-unknown-and-w-endor", ["T-1"], note, unknown)


def sizes() -> tuple[int, int, int]:
    """The lengths of the parts of W."""
    values, bitmap, index = (p.shape[0] for p in Sketch().add(W).physical)
    return values, bitmap, index


def descriptions() -> Iterator[Case]:
    values, bits, count = sizes()
    for name, change, note in [
        ("values-f16", describe(VALUES, "F16"), "values is F16 and the tensor BF16"),
        ("values-u8", describe(VALUES, "U8", [2 * values]), "values is U8"),
        ("values-unknown-dtype", describe(VALUES, "X16"), "values has an unknown dtype"),
        ("values-rank-2", describe(VALUES, shape=[1, values]), "values has rank 2"),
        ("bitmap-i8", describe(BITMAP, "I8"), "bitmap is I8"),
        ("bitmap-bool", describe(BITMAP, "BOOL"), "bitmap is BOOL"),
        ("bitmap-u64", describe(BITMAP, "U64", [bits // 8]), "bitmap is U64, of the same bytes"),
        ("bitmap-unknown-dtype", describe(BITMAP, "B1"), "bitmap has an unknown dtype"),
        ("bitmap-rank-2", describe(BITMAP, shape=[1, bits]), "bitmap has rank 2"),
        ("bitmap-rows", describe(BITMAP, shape=[8, 8]), "bitmap has rank 2, of the same bytes"),
        ("index-u64", describe(INDEX, "U64"), "index is U64"),
        ("index-i32", describe(INDEX, "I32", [2 * count]), "index is I32"),
        ("index-rank-2", describe(INDEX, shape=[count, 1]), "index has rank 2"),
        ("index-unknown-dtype", describe(INDEX, "Q64"), "index has an unknown dtype"),
    ]:
        yield changed(f"t-4-{name}", ["T-4"], note, change)
    note = "values of an empty tensor has the shape [0, 0]"
    yield changed("t-4-values-0-0", ["T-4"], note, describe(VALUES, shape=[0, 0]), EMPTY)
    note = "values of an empty tensor has the shape [0, 7], which is also the logical one"
    rules = ["T-4", "T-5"]
    yield changed("t-4-values-0-7", rules, note, describe(VALUES, shape=[0, 7]), EMPTY)


def lengths() -> Iterator[Case]:
    values, bits, count = sizes()
    nnz, used = Sketch().add(W).entry("w")["nnz"], -(-len(W.data) // 2 // 8)
    for name, change, note in [
        ("values-not-padded", resize(VALUES, nnz - values), "values without its padding"),
        ("values-longer", resize(VALUES, 32), "values with 64 bytes more than prescribed"),
        ("values-one-more", resize(VALUES, 1), "values with one element more than prescribed"),
        ("values-empty", resize(VALUES, -values), "values is empty, and nnz is not 0"),
        ("bitmap-not-padded", resize(BITMAP, used - bits), "bitmap without its padding"),
        ("bitmap-longer", resize(BITMAP, 64), "bitmap with 64 bytes more than prescribed"),
        ("bitmap-to-32", resize(BITMAP, -32), "bitmap padded to a multiple of 32 bytes only"),
        ("bitmap-one-less", resize(BITMAP, -1), "bitmap with one byte less than prescribed"),
        ("index-not-padded", resize(INDEX, 2 - count), "index without its padding"),
        ("index-longer", resize(INDEX, 8), "index with 8 entries more than prescribed"),
        ("index-one-less", resize(INDEX, -1), "index with an entry less than prescribed"),
    ]:
        yield changed(f"t-4-{name}", ["T-4"], note, change)
    note = "index of an empty tensor is empty"
    yield changed("t-4-index-of-empty", ["T-4"], note, resize(INDEX, -8), EMPTY)


def logical() -> Iterator[Case]:
    note = "the entry says F16, and values is BF16"
    yield changed("t-4-logical-dtype", ["T-4"], note, entry(dtype="F16"))
    note = "the logical shape needs a longer bitmap"
    yield changed("t-4-logical-shape", ["T-4"], note, entry(shape=[17, 31]))
    t = scattered("w", "U8", [7, BLOCK], {5000: 1})
    note = "the logical shape needs a longer index; its bitmap has the right length"
    longer = both(resize(BITMAP, 64), entry(shape=[1, 7 * BLOCK + 1]))
    yield changed("t-4-logical-shape-next-block", ["T-4"], note, longer, t)


def overflow() -> Iterator[Case]:
    """Products that wrap around to what the parts have, with the large factors in every place."""
    a, b = 64 * (2**29 - 2**15 + 1), 2**29 + 2**15 + 1
    empty, half = Tensor("w", "U8", [0, 7], b""), 2**32
    for i, shape in enumerate([[half, half, 1], [1, half, half], [half, 1, half]]):
        note = f"numel of the logical shape {shape} wraps around to 0 in 64 bits"
        change = sealed(entry(shape=shape), empty)
        yield changed(f"t-4-overflow-to-0-{i}", ["T-4"], note, change, empty)
    one = random_tensor("w", "U8", [8, 8], seed=62)
    for i, shape in enumerate([[a, b], [b, a]]):
        note = f"numel of the logical shape {shape} wraps around to 64"
        change = sealed(entry(shape=shape), one)
        yield changed(f"t-4-overflow-to-64-{i}", ["T-4"], note, change, one)
    note = "the largest integers in a logical shape"
    yield changed("t-4-largest-shape", ["T-4"], note, sealed(entry(shape=[MAX_INT] * 3), W))


def same_shape() -> Iterator[Case]:
    for dtype, n in [("U8", 64), ("F64", 8), ("BF16", 32)]:
        t = random_tensor("w", dtype, [n], density=100, seed=63)
        note = f"the physical shape [{n}] is the logical one"
        yield changed(f"t-5-{dtype.lower()}-{n}", ["T-5"], note, nothing, t)
    t = Tensor("w", "U8", [0], b"")
    yield changed("t-5-empty", ["T-5"], "physical and logical shape are [0]", nothing, t)


def stripped() -> Iterator[Case]:
    whole = Sketch().add(W).physical
    for name, metadata in [("no-endor", {"format": "pt"}), ("no-metadata", None)]:
        note = f"the metadata has been lost: {name.replace('-', ' ')}"
        yield reject(f"t-6-{name}", ["T-6"], plain_file(whole, metadata), note)
    for name in ("w.endor.index", "w.endor.bitmap", ".endor.index", "w.endor.x.endor.bitmap"):
        data = plain_file([Physical(name, "U8", [1], b"x")])
        note = f"no Endor file, but a tensor named {name}"
        yield reject("t-6-only" + name.replace(".", "-"), ["T-6"], data, note)
