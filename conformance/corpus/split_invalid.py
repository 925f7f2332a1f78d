"""Files with faults in what format 1.1 brought: M-8, parts of split values, B for both rows, and E."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack, unpack
from typing import Any

from corpus.build import (
    BLOCK,
    FLOATS,
    MAX_INT,
    PARTS,
    Physical,
    Raw,
    Sketch,
    Split,
    Tensor,
    floats,
    plain_file,
    random_tensor,
    scattered,
    tensor_of,
    to_json,
)
from corpus.case import REJECT, UNSUPPORTED, Case, hidden, listing, newer, newer_but_alike
from corpus.change import (
    BITMAP,
    INDEX,
    VALUES,
    Change,
    both,
    describe,
    drop,
    endor,
    entry,
    extra,
    flip,
    nothing,
    put,
    resize,
    without,
)
from corpus.xxh3 import xxh3_64

BASES, PATCHES = "w.endor.bases", "w.endor.patches"
NUMEL = 2 * BLOCK + 100


@dataclass(frozen=True)
class Base:
    """A tensor w and how it is encoded, from which a fault starts."""

    tensor: Tensor
    how: Split

    def sketch(self) -> Sketch:
        return Sketch().add(self.tensor, how=self.how)

    def rows(self) -> list[list[int]]:
        """The rows of the index."""
        part = self.sketch().part(INDEX)
        count, length = part.shape
        flat = list(unpack(f"<{count * length}q", part.data))
        return [
            flat[length * i :][: -(-len(self.tensor.data) // self.tensor.itemsize // BLOCK) + 1]
            for i in range(count)
        ]

    def patches(self) -> list[tuple[int, int]]:
        """Rank and exponent of each patch."""
        s = self.sketch()
        data = s.part(PATCHES).data
        return [unpack("<HB", data[3 * i : 3 * i + 3]) for i in range(s.entry("w")["patches"])]

    def bases(self) -> bytes:
        return self.sketch().part(BASES).data


# One block, all mantissa bits, so that there are rows of bytes and of bits; 36 stored elements.
SMALL = Base(floats("w", "F16", [2, 30], 60, 930, odd=12), Split(2))
# The same with the fewest bits there are, for faults that no element shows.
TINY = Base(floats("w", "F8_E4M3", [2, 30], 60, 930, kept=0, odd=12), Split(1))
# Three blocks, of about 80, 80 and 3 stored elements; and three blocks with all of them.
SOME = Base(
    scattered(
        "w",
        "BF16",
        [1, NUMEL],
        {i: (120 + i % 3 if i % 5 else 20 + i % 90) << 7 | (i % 7 + 1) << 4 for i in range(0, NUMEL, 50)},
    ),
    Split(2),
)
ALL = Base(
    tensor_of(
        "w",
        "BF16",
        [(0x3F80 if i % 300 else 0x0100 + (i % 80) * 128) | i % 2 << 15 for i in range(1, NUMEL + 1)],
        [1, NUMEL],
    ),
    Split(1, "all"),
)
EMPTY = Base(Tensor("w", "BF16", [0, 7], b""), Split(1))
EMPTY_ALL = Base(Tensor("w", "BF16", [0, 7], b""), Split(1, "all"))


def cases() -> Iterator[Case]:
    yield from unsupported()
    yield from members()
    yield from integers()
    yield from parts()
    yield from descriptions()
    yield from lengths()
    yield from overflow()
    yield from same_shape()
    yield from bitmaps()
    yield from rows()
    yield from last_entries()
    yield from row_padding()
    yield from stored_zeros()
    yield from values_padding()
    yield from bases()
    yield from ranks()
    yield from exponents()
    yield from codes()
    yield from patch_padding()
    yield from wholly_wrong()
    yield from checksums()


def fault(
    name: str, rules: list[str], note: str, change: Change, base: Base = TINY, sealed: bool = False
) -> Case:
    sketch = base.sketch()
    change(sketch)
    if sealed:
        sketch.seal("w")
    data = sketch.render()
    return newer(Case("invalid", name, rules, data, REJECT, "L2", note, error_rules=rules), ["w"])


def inside(name: str, rules: list[str], note: str, change: Change, base: Base = SMALL) -> Case:
    """A fault in what the parts hold; the digest does not give it away."""
    return fault(name, rules, note, change, base, sealed=True)


# ------------------------------------------------------------------------- what no reader of 1.1 knows


def unsupported() -> Iterator[Case]:
    """In 1.0 these are unknown values, in 1.1 encodings that there are not: the same answer."""
    rest = [random_tensor("v", "U8", [4, 9], seed=82), Tensor("bias", "F32", [1], b"\0\0\x80\x3f")]
    w = random_tensor("w", "BF16", [5, 31], seed=81)
    fields: dict[str, Any] = {"w": 1, "mantissa": 0, "patches": 0}
    changes: list[tuple[str, Change, str]] = [
        ("all-raw", entry(positions="all"), "positions all with values raw"),
        (
            "all-raw-alone",
            both(entry(positions="all"), without("nnz"), drop(BITMAP), drop(INDEX)),
            "as above, with values alone",
        ),
        ("all-rans", entry(positions="all", values="rans"), "positions all with unknown values"),
        ("list-split", entry(positions="list", values="split", **fields), "unknown positions, split values"),
        ("split-in-capitals", entry(values="Split", **fields), "values `Split`"),
        ("all-in-capitals", entry(positions="ALL", values="split", **fields), "positions `ALL`"),
        (
            "split-i32-of-no-sense",
            entry(dtype="I32", values="split", w="?", mantissa=-1, patches=None, nnz=Raw("1.5")),
            "split values of I32, and members that would be wrong for a float",
        ),
        (
            "split-f64-parts-of-its-own",
            both(
                entry(dtype="F64", values="split"),
                drop(INDEX),
                extra(Physical("w.endor.bases2", "U4", [3], b"ab")),
            ),
            "split values of F64, and parts that nobody knows",
        ),
        (
            "split-t-5",
            both(
                entry(dtype="U8", positions="all", values="split", shape=[8, 8]),
                describe(VALUES, shape=[8, 8]),
            ),
            "the physical shape is the logical one",
        ),
    ]
    for dtype in ("I32", "F64", "BOOL", "F8_E8M0", "C64", "U8", "I16", "F4", "BF17"):
        for positions in ("bitmap", "all") if dtype in ("I32", "F64", "F8_E8M0") else ("bitmap",):
            what = f"split values of {dtype}, which has none; positions {positions}"
            name = f"{positions}-split-{dtype.lower().replace('_', '-')}"
            changes.append((name, entry(dtype=dtype, positions=positions, values="split", **fields), what))
    for name, change, note in changes:
        s = Sketch().add(w).add(rest[0]).add(rest[1], encode=False)
        both(endor(version="1.1"), change)(s)
        tensors = [*listing(rest), *hidden("w")]
        rules, data = ["M-7", "T-7"], s.render()
        yield Case("unsupported", f"m-7-{name}", rules, data, UNSUPPORTED, "L1", note, tensors=tensors)
    note = "the members of split values have no meaning in an entry with raw ones"
    s = Sketch().add(w)
    entry(w="x", mantissa=-1, patches=[Raw("1e5")])(s)
    told = listing([w])
    yield Case(
        "noncanonical",
        "m-8-raw-and-its-members",
        ["M-8", "M-6"],
        s.render(),
        "accept-noncanonical",
        "L1",
        note,
        tensors=told,
    )


# ------------------------------------------------------------------------------------- the entry


def of(dtype: str, w: int = 1, positions: str = "all", seed: int = 931) -> Base:
    return Base(floats("w", dtype, [3, 9], 80, seed, kept=0), Split(w, positions))


def wider(w: int) -> Change:
    """Another w, with as many bits in values: only M-8 is broken."""

    def change(s: Sketch) -> None:
        e, values = s.entry("w"), s.part(VALUES)
        e["w"], values.shape = w, [values.shape[0], 8 * (1 + e["mantissa"] + w)]
        values.data = bytes(values.shape[0] * values.shape[1])

    return change


def members() -> Iterator[Case]:
    value: Any
    for member in ("w", "mantissa", "patches"):
        yield fault(f"m-8-no-{member}", ["M-8"], f"no {member}", without(member))
        yield fault(
            f"m-8-all-no-{member}", ["M-8"], f"no {member}, with positions all", without(member), of("BF16")
        )
        kinds = [("string", "2"), ("null", None), ("true", True), ("array", [2]), ("object", {})]
        for name, value in kinds[:: 1 if member == "w" else 2]:
            note = f"{member} is not an integer"
            yield fault(f"m-8-{member}-is-{name}", ["M-8", "J-5"], note, entry(**{member: value}))
    yield fault("m-5-split-no-nnz", ["M-5"], "no nnz, with positions bitmap and split values", without("nnz"))
    too_many = both(entry(nnz=61), lambda s: s.index("w", e1=61))
    yield inside("m-5-split-nnz-past-numel", ["M-5", "B-6"], "nnz is numel + 1", too_many)
    shapeless = fault(
        "m-4-all-no-shape", ["M-4"], "no shape, with positions all", without("shape"), of("BF16")
    )
    yield newer_but_alike(shapeless)
    for dtype, (bits, most) in FLOATS.items():
        low, base = dtype.lower().replace("_", "-"), of(dtype)
        if dtype in ("BF16", "F8_E4M3", "F8_E5M2"):
            yield fault(f"m-8-w-0-{low}", ["M-8"], f"w is 0, of {dtype}", wider(0), base)
        high = min(4, bits - 1) + 1
        rules = ["M-8", "E-3"] if 2**high > 2**bits else ["M-8"]
        yield fault(f"m-8-w-{high}-{low}", rules, f"w is {high}, of {dtype}", wider(high), base)

        def longer(s: Sketch, most: int = most) -> None:
            values, e = s.part(VALUES), s.entry("w")
            e["mantissa"] = most + 1
            values.shape = [values.shape[0], 8 * (1 + most + 1 + e["w"])]
            values.data = bytes(values.shape[0] * values.shape[1])

        note = f"mantissa is {most + 1}, one more than {dtype} has"
        yield fault(f"m-8-mantissa-{most + 1}-{low}", ["M-8"], note, longer, base)
    for w in (8, 64):
        yield fault(f"m-8-w-{w}-bf16", ["M-8", "T-4", "E-3"], f"w is {w}", wider(w), of("BF16"))
    yield fault("m-8-w-largest", ["M-8", "T-4"], "w is the largest integer", entry(w=MAX_INT), of("BF16"))
    note = "mantissa is the largest integer"
    yield fault("m-8-mantissa-largest", ["M-8", "T-4"], note, entry(mantissa=MAX_INT), of("BF16"))

    def one_more_patch(s: Sketch) -> None:
        """n + 1 patches, with room for them, and an index that goes along."""
        e = s.entry("w")
        n = 27 if e["positions"] == "all" else e["nnz"]
        e["patches"] = n + 1
        s.index("w", len(s.part(INDEX).data) // 64 - 1, e1=n + 1)

    for positions in ("bitmap", "all"):
        rules = ["M-8", "E-5", "E-7", "E-6"]
        note = f"patches is n + 1, with positions {positions}"
        base = of("BF16", positions=positions)
        yield inside(f"m-8-patches-past-n-{positions}", rules, note, one_more_patch, base)
    rules = ["M-8", "T-4", "B-7"]
    for name, base in [("bitmap", EMPTY), ("all", EMPTY_ALL)]:
        note = f"patches is 1 for an empty tensor, positions {name}"
        yield fault(f"m-8-patches-of-empty-{name}", rules, note, entry(patches=1), base)
    note = "patches is the largest integer"
    yield fault("m-8-patches-largest", ["M-8", "T-4"], note, entry(patches=MAX_INT))
    note = "patches is at most numel, but more than nnz"
    yield fault("m-8-patches-to-numel", ["M-8", "B-7", "E-5"], note, entry(patches=60))


def integers() -> Iterator[Case]:
    for member in ("w", "mantissa", "patches"):
        right = 1 if member != "patches" else TINY.sketch().entry("w")[member]
        for name, written in [
            ("fraction", f"{right}.0"),
            ("exponent", f"{right}e0"),
            ("negative", f"-{right}"),
            ("2-to-the-53", str(MAX_INT + 1)),
            ("wraps-around", str(2**64 + right)),
        ]:
            note = f"{member} is {written}"
            yield fault(f"j-5-{member}-{name}", ["J-5", "M-8"], note, entry(**{member: Raw(written)}))
        minus = both(entry(**{member: Raw("-0")}))
        zero = Base(tensor_of("w", "BF16", [0x3F80] * 9, [3, 3]), Split(1, "all"))
        yield fault(f"j-5-{member}-minus-zero", ["J-5", "M-8"], f"{member} is -0", minus, zero)


# ------------------------------------------------------------------------------------- the parts


def parts() -> Iterator[Case]:
    named = {"bitmap": BITMAP, "index": INDEX, "bases": BASES, "patches": PATCHES}
    alike = newer_but_alike
    yield alike(fault("t-2-split-no-values", ["T-2"], "the part values does not exist", drop(VALUES)))
    yield alike(fault("t-2-all-no-values", ["T-2"], "the part values does not exist", drop(VALUES), ALL))
    for name, part in named.items():
        yield fault(f"t-2-split-no-{name}", ["T-2"], f"the part {name} does not exist", drop(part))
        if name != "bitmap":
            note = f"the part {name} does not exist, with positions all"
            yield fault(f"t-2-all-no-{name}", ["T-2"], note, drop(part), of("BF16"))
    note = "no patches, and so no part of them either"
    none = Base(tensor_of("w", "BF16", [0x3F80] * 9, [3, 3]), Split(1, "all"))
    yield fault("t-2-no-patches-of-none", ["T-2"], note, drop(PATCHES), none)
    yield fault("t-2-no-bases-of-empty", ["T-2"], "no bases of an empty tensor", drop(BASES), EMPTY)
    bitmap = TINY.sketch().part(BITMAP)
    note = "a bitmap with positions all"
    yield fault("t-3-all-and-bitmap", ["T-3"], note, extra(bitmap), of("BF16"))
    note = "a part of exponents, which split values do not have"
    yield fault("t-3-split-extra", ["T-3"], note, extra(Physical("w.endor.exponents", "U8", [64], bytes(64))))
    raw = random_tensor("w", "BF16", [5, 31], seed=81)
    for name, shape in [("bases", [64]), ("patches", [0, 3])]:
        s = Sketch().add(raw)
        s.physical.append(Physical(f"w.endor.{name}", "U8", shape, bytes(64 * (shape[0] > 0))))
        note, rules = f"{name} beside raw values", ["T-3"]
        yield Case("invalid", f"t-3-raw-and-{name}", rules, s.render(), REJECT, "L2", note, error_rules=rules)
    note = "the positions say bitmap, the parts are those of all"
    yield fault("t-2-all-called-bitmap", ["T-2", "T-4"], note, entry(positions="bitmap", nnz=27), of("BF16"))
    note = "the positions say all, the parts are those of bitmap"
    yield fault("t-3-bitmap-called-all", ["T-3", "T-4"], note, entry(positions="all"))
    s = Sketch().add(raw)
    entry(values="split", w=1, mantissa=7, patches=0)(s)
    note, rules = "the values say split, the parts are those of raw", ["T-2", "T-4"]
    case = Case("invalid", "t-2-raw-called-split", rules, s.render(), REJECT, "L2", note, error_rules=rules)
    yield newer(case, ["w"])
    note = "the values say raw, the parts are those of split"
    yield newer_but_alike(fault("t-3-split-called-raw", ["T-3", "T-4"], note, entry(values="raw")))
    s = of("BF16").sketch()
    s.physical.append(Physical("w.endor.bases.endor.index", "I64", [8], bytes(64)))
    s.endor["tensors"]["w.endor.bases"] = {
        "dtype": "U8",
        "nnz": 0,
        "positions": "bitmap",
        "shape": [1],
        "values": "raw",
    }
    note, rules = "a key that is the name of the part bases", ["T-1"]
    case = Case("invalid", "t-1-key-is-bases", rules, s.render(), REJECT, "L2", note, error_rules=rules)
    yield newer_but_alike(case)
    for suffix in (".endor.index", ".endor.bitmap"):
        whole = [p for p in SMALL.sketch().physical if suffix == ".endor.index" or p.name != INDEX]
        note, rules = f"the metadata has been lost; {suffix} tells", ["T-6"]
        name = f"t-6-split{suffix.replace('.', '-')}"
        data = plain_file(whole, {"format": "pt"})
        yield Case("invalid", name, rules, data, REJECT, "L2", note, error_rules=rules)
    data = plain_file(of("BF16").sketch().physical)
    yield Case(
        "invalid", "t-6-all", rules, data, REJECT, "L2", "the metadata has been lost", error_rules=rules
    )


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
    yield fault("t-4-all-index-flat", ["T-4"], note, describe(INDEX, shape=[length]), of("BF16"))
    for name, shape in [("no-columns", [0, 0]), ("flat", [0]), ("one-row", [0, 1])]:
        note = f"values of an empty tensor has the shape {shape}"
        yield fault(f"t-4-split-empty-values-{name}", ["T-4"], note, describe(VALUES, shape=shape), EMPTY_ALL)
    note = "patches of an empty tensor has the shape [0]"
    yield fault("t-4-split-empty-patches-flat", ["T-4"], note, describe(PATCHES, shape=[0]), EMPTY)


def resized(part: str, rows: int) -> Change:
    """So many more rows of a part of rank 2, or less if negative."""

    def change(s: Sketch) -> None:
        p = s.part(part)
        size = len(p.data) // p.shape[0]
        p.shape = [p.shape[0] + rows, p.shape[1]]
        p.data = (p.data + bytes(size * max(rows, 0)))[: size * p.shape[0]]

    return change


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
        ("values-one-group", resized(VALUES, -7), "values without the groups of padding"),
        ("values-longer", resized(VALUES, 8), "values with 8 groups more than prescribed"),
        ("values-one-more", resized(VALUES, 1), "values with a group more than prescribed"),
        ("values-no-codes", columns(VALUES, -8), "values without the bits of the codes"),
        ("values-a-plane-more", columns(VALUES, 8), "values with 8 bytes more in each row"),
        ("index-not-padded", columns(INDEX, -6, 8), "index without its padding"),
        ("index-longer", columns(INDEX, 8, 8), "index with 8 entries more in each row"),
        ("index-one-row-only", resized(INDEX, -1), "index without the row that counts patches"),
        ("index-three-rows", resized(INDEX, 1), "index with a row more than prescribed"),
        ("bases-not-padded", resize(BASES, -63), "bases without its padding"),
        ("bases-longer", resize(BASES, 64), "bases with 64 bytes more than prescribed"),
        ("bases-empty", resize(BASES, -64), "bases is empty"),
        ("patches-longer", resized(PATCHES, 64), "patches with room for 64 more than prescribed"),
        ("patches-one-less", resized(PATCHES, -1), "patches with room for 63"),
        ("patches-empty", resized(PATCHES, -64), "patches is empty, and there are some"),
        ("patches-two-bytes", columns(PATCHES, -1), "patches of two bytes"),
        ("patches-four-bytes", columns(PATCHES, 1), "patches of four bytes"),
        ("bitmap-longer", resize(BITMAP, 64), "bitmap with 64 bytes more than prescribed"),
        ("mantissa", entry(mantissa=1), "mantissa in the entry is more than in values"),
        ("w", entry(w=3), "w in the entry is more than in values"),
        ("shape", entry(shape=[2, 30 + 512]), "the logical shape needs a longer bitmap"),
    ]:
        yield fault(f"t-4-split-{name}", ["T-4"], note, change)
    for name, change, note in [
        ("values-one-group", resized(VALUES, -7), "values without the groups of padding"),
        ("index-two-rows", resized(INDEX, 1), "index with two rows"),
        ("shape-next-group", entry(shape=[3, 171]), "the logical shape has one element more than values"),
        ("shape-next-block", entry(shape=[8, BLOCK]), "the logical shape needs a longer index, too"),
    ]:
        yield fault(f"t-4-all-{name}", ["T-4"], note, change, of("BF16"))
    for here, other in [("BF16", "F32"), ("F8_E4M3", "BF16")]:
        note = f"the entry says {other}, and of {here} as much is kept: the digest alone can tell"
        s = of(here).sketch()
        s.entry("w")["dtype"] = other
        rules = ["D-2"]
        case = Case(
            "checksum",
            f"d-2-split-{here.lower().replace('_', '-')}-called-{other.lower()}",
            rules,
            s.render(),
            REJECT,
            "L2",
            note,
            error_rules=["D-2", "E-3", "E-6"],
        )
        case.digests = True
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
    huge = both(entry(shape=[MAX_INT], patches=MAX_INT))
    yield inside("t-4-all-huge-patches", ["T-4"], note, huge, one)
    wide = both(entry(shape=[2**26, 2**26], patches=2**52))
    yield inside("t-4-all-shape-of-2-to-the-52", ["T-4"], "2^52 elements, as many patches", wide, one)


def same_shape() -> Iterator[Case]:
    base = Base(floats("w", "BF16", [8, 64], 100, 935, kept=5), Split(2, "all"))
    yield fault("t-5-all", ["T-5"], "the physical shape [8, 64] is the logical one", nothing, base)
    base = Base(floats("w", "F16", [8, 104], 50, 936), Split(2))
    yield fault("t-5-bitmap-split", ["T-5"], "the physical shape [8, 104] is the logical one", nothing, base)
    empty = Base(Tensor("w", "BF16", [0, 16], b""), Split(1, "all"))
    yield fault("t-5-split-empty", ["T-5"], "physical and logical shape are [0, 16]", nothing, empty)


# --------------------------------------------------------------------------------- bitmap and index


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


def row(number: int, **entries: int) -> Change:
    return lambda s: s.index("w", number, **entries)


# What goes wrong besides when patches come to belong to other blocks.
MISPLACED = ["E-5", "E-6", "E-7", "B-10"]


def rows() -> Iterator[Case]:
    largest, smallest = 2**63 - 1, -(2**63)
    for base, number, what in [(SOME, 0, "stored"), (SOME, 1, "patches"), (ALL, 0, "all-patches")]:
        _, one, two, last = base.rows()[number]
        note = f"the row of the index that counts {what.split('-')[-1]} (positions {base.how.positions})"
        also = ["B-6", *MISPLACED] if what == "stored" else MISPLACED
        wanted = None if what == "patches" else ("one", "falling", "negative", "past-the-end", "wraps-around")
        for rule, name, change, fault_ in [
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
                yield inside(f"{rule.lower()}-{what}-{name}", rules, f"{note} {fault_}", change, base)
    _, one, _, _ = SOME.rows()[0]
    for by, name in [(1, "high"), (-1, "low")]:
        note = f"an entry that counts stored elements is too {name} by 1"
        yield inside(f"b-6-split-entry-too-{name}", ["B-6", *MISPLACED], note, row(0, e1=one + by), SOME)
    for base, number in [(EMPTY, 0), (EMPTY, 1), (EMPTY_ALL, 0)]:
        note = f"row {number} of the index of an empty tensor begins with 1"
        name = f"b-4-split-empty-{base.how.positions}-row-{number}"
        yield inside(name, ["B-4", "B-7"], note, row(number, e0=1), base)


def last_entries() -> Iterator[Case]:
    for base, number, what in [(SOME, 0, "stored"), (SOME, 1, "patches"), (ALL, 0, "all-patches")]:
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
        name, patches = base.how.positions, base.sketch().entry("w")["patches"]
        note = f"the member patches is one more than the index says, positions {name}"
        yield inside(f"b-7-member-patches-too-high-{name}", ["B-7"], note, entry(patches=patches + 1), base)
        note = f"the member patches is one less than the index says, positions {name}"
        rules = ["B-7", "B-5", "E-8"]
        yield inside(f"b-7-member-patches-too-low-{name}", rules, note, entry(patches=patches - 1), base)
    nnz = SOME.sketch().entry("w")["nnz"]
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
    for base, number, what in [(SOME, 0, "stored"), (SOME, 1, "patches"), (ALL, 0, "all-patches")]:
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


# ---------------------------------------------------------------------------------------- values


def stored_zeros() -> Iterator[Case]:
    low = Base(tensor_of("w", "BF16", [0x0001, 0, 0x0080, 0x0101, 0x8001], [1, 5]), Split(1))
    clear: Change = lambda s: s.flip_element("w", 0, 0)  # noqa: E731
    note = "the first stored element is a zero: residue 0, and the code 0 of a window from 0 on"
    yield inside("b-10-split-code-0", ["B-10"], note, clear, low)
    # Stored element 1 has exponent 1 and no mantissa: its code has a single bit.
    note = "a stored element becomes a zero by its code"
    width = low.sketch().entry("w")["mantissa"] + 1
    yield inside("b-10-split-code-cleared", ["B-10"], note, lambda s: s.flip_element("w", 1, width), low)
    sign = Base(tensor_of("w", "BF16", [0x8000, 0, 0x0080, 0x3F80], [2, 2]), Split(1))
    note = "a negative zero loses its sign"
    last = sign.sketch().entry("w")["mantissa"]
    yield inside("b-10-split-negative-zero", ["B-10"], note, lambda s: s.flip_element("w", 0, last), sign)
    patched = Base(tensor_of("w", "F16", [0x3C00, 0x3C00, 0x0400, 0x3C00, 0, 0x4000], [2, 3]), Split(1))
    note = "a stored element is a zero by its patch of exponent 0"
    yield inside("b-10-split-patch-0", ["B-10"], note, lambda s: s.patch("w", 0, exponent=0), patched)
    for dtype in ("F8_E4M3", "F8_E5M2FNUZ", "F32"):
        most = FLOATS[dtype][1]
        t = tensor_of("w", dtype, [3 << most] * 30 + [0, 1 << most], [4, 8])
        base = Base(t, Split(1))
        note = f"the last stored element of {dtype} is a zero by its patch"
        name = f"b-10-split-{dtype.lower().replace('_', '-')}"
        yield inside(name, ["B-10"], note, lambda s: s.patch("w", 0, exponent=0), base)
    second = dict.fromkeys(range(50), 16256) | {BLOCK + i: 0x0080 for i in range(50)}
    base = Base(scattered("w", "BF16", [2, BLOCK], second), Split(1))
    base = Base(base.tensor, Split(1, bases={1: 0}))
    note = "a zero element is stored in the second block"
    yield inside("b-10-split-second-block", ["B-10"], note, lambda s: s.flip_element("w", 70, 1), base)


def values_padding() -> Iterator[Case]:
    """Bits of elements that there are not, wherever they lie in a group."""
    n = SMALL.sketch().entry("w")["nnz"]
    assert 0 < n < 63
    for name, rank, bit, note in [
        ("byte-row-first", n, 0, "the byte of the first element that is not there"),
        ("byte-row-high-bit", n, 7, "the highest bit of that byte"),
        ("byte-row-last", 63, 3, "the byte of the last place of the group"),
        ("residue-row-first", n, 8, "a row of bits of the residue"),
        ("residue-row-last", 63, 10, "the last row of bits of the residue"),
        ("code-row-first", n, 11, "the first row of the code"),
        ("code-row-last", 63, 12, "the last bit of the group"),
        ("next-group-byte", 64, 0, "the first byte of a group of padding"),
        ("next-group-code", 64 + 9, 11, "a code in a group of padding"),
        ("last-group-byte", 511, 0, "the last byte of the rows of bytes in the last group"),
        ("last-bit", 511, 12, "the last bit of values"),
    ]:
        change: Change = lambda s, r=rank, b=bit: s.flip_element("w", r, b)  # noqa: E731
        yield inside(f"e-2-{name}", ["E-2"], f"not 0: {note}", change)
    for n in (64, 448, 513):
        base = Base(floats("w", "F8_E4M3", [n, 1], 100, 940 + n, kept=0), Split(1, "all"))
        for bit in (0, 1):
            what = ("residue", "code")[bit]
            note = f"{n} elements, and the {what} of another one, in a row of bits"
            change = lambda s, r=n, b=bit: s.flip_element("w", r, b)  # noqa: E731
            yield inside(f"e-2-of-{n}-{what}", ["E-2"], note, change, base)
    base = Base(floats("w", "F32", [3, 9], 100, 941), Split(2, "all"))
    for bit in (0, 7, 8, 23, 24, 25):
        note = f"F32, residues of three bytes: bit {bit} of an element that is not there"
        change = lambda s, b=bit: s.flip_element("w", 30, b)  # noqa: E731
        yield inside(f"e-2-f32-bit-{bit}", ["E-2"], note, change, base)
    more = Base(tensor_of("w", "BF16", [0x3F80] * 512 + [0] * 60, [4, 143]), Split(1))
    note = "nnz is a multiple of 512, and there is no padding: nnz one less"
    rules = ["B-7", "B-6", "B-5", "E-2"]
    yield inside("b-7-split-nnz-511", rules, note, entry(nnz=511), more)


# -------------------------------------------------------------------------------- bases and patches


def base_of(block: int, value: int) -> Change:
    return put(BASES, block, bytes([value]))


def bases() -> Iterator[Case]:
    for dtype, w in [("BF16", 2), ("F16", 4), ("F8_E4M3", 1), ("F8_E4M3FNUZ", 3), ("F8_E5M2", 4), ("F32", 1)]:
        bits, most = FLOATS[dtype]
        top = 2**bits - 2**w
        # All codes are 0, so that no exponent is past the highest: the base alone is wrong.
        for positions in ("bitmap", "all") if dtype in ("BF16", "F8_E4M3") else ("all",):
            t = tensor_of("w", dtype, [top << most | 1] * 20, [4, 5])
            b = Base(t, Split(w, positions, bases={0: top}))
            low = f"{dtype.lower().replace('_', '-')}-{positions}"
            note = f"{dtype}, w = {w}: the base is {top + 1}, one above the highest"
            yield inside(f"e-3-one-above-{low}", ["E-3"], note, base_of(0, top + 1), b)
        note = f"{dtype}, w = {w}: the base is 255"
        if top != 254:
            yield inside(f"e-3-255-{dtype.lower().replace('_', '-')}", ["E-3"], note, base_of(0, 255), b)
        if bits < 8:
            note = f"{dtype}: the base is {2**bits}, which is no exponent"
            yield inside(
                f"e-3-no-exponent-{dtype.lower().replace('_', '-')}", ["E-3"], note, base_of(0, 2**bits), b
            )
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


def patched(at: int, rank: int | None = None, exponent: int | None = None) -> Change:
    return lambda s: s.patch("w", at, rank, exponent)


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
                low = f"{dtype.lower().replace('_', '-')}-w-{w}-{positions}"
                note = f"{dtype}, w = {w}: the exponent of a patch is the base of the window"
                yield inside(f"e-6-base-{low}", ["E-6"], note, patched(0, exponent=middle), base)
                note = f"{dtype}, w = {w}: the exponent of a patch is the last one of the window"
                yield inside(f"e-6-last-{low}", ["E-6"], note, patched(0, exponent=middle + 2**w - 1), base)
        base = Base(tensor_of("w", dtype, elements, [2, 5]), Split(1, "all", bases={0: middle}))
        for value in (2**bits, 255) if bits < 8 else ():
            note = f"{dtype}: the exponent of a patch is {value}, which is none"
            name = f"e-6-{value}-{dtype.lower().replace('_', '-')}"
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
        change: Change = lambda s, r=rank, b=bits: s.flip_element("w", r, *b)  # noqa: E731
        yield inside(f"e-7-{name}", ["E-7"], f"not 0: {note}", change)
    low = SOME.rows()
    for block in (1, 2):
        rank = low[0][block] + SOME.patches()[low[1][block]][0]
        note = f"the code of an element of block {block} that has a patch is not 0"
        change = lambda s, r=rank: s.flip_element("w", r, 1 + s.entry("w")["mantissa"])  # noqa: E731
        yield inside(f"e-7-block-{block}", ["E-7"], note, change, SOME)
    rank = BLOCK + ALL.patches()[ALL.rows()[0][1]][0]
    note = "positions all: the code of an element of block 1 that has a patch is not 0"
    change = lambda s: s.flip_element("w", rank, 1)  # noqa: E731
    yield inside("e-7-all-block-1", ["E-7"], note, change, ALL)
    elements = [0x3F80, 0x4000] * 30 + [0x0100]
    moved = Base(tensor_of("w", "BF16", elements, [1, 61]), Split(1, "all"))
    note = "a patch of an element that has a code besides"
    yield inside("e-7-patch-moved", ["E-7"], note, patched(0, 59), moved)


def patch_padding() -> Iterator[Case]:
    for name, base in [("small", SMALL), ("some", SOME), ("all", ALL)]:
        count, room = base.sketch().entry("w")["patches"], base.sketch().part(PATCHES).shape[0]
        assert count < room
        for what, at, note in [
            ("rank", 3 * count, "the rank of the first patch that is not there"),
            ("rank-high", 3 * count + 1, "the high byte of that rank"),
            ("exponent", 3 * count + 2, "the exponent of the first patch that is not there"),
            ("last", 3 * room - 1, "the last byte of patches"),
        ]:
            if name == "small" or what in ("rank", "last"):
                yield inside(f"e-8-{what}-{name}", ["E-8"], f"not 0: {note}", put(PATCHES, at, b"\1"), base)
    filled: Change = lambda s: s.change(PATCHES, 3 * s.entry("w")["patches"], b"\xff" * 3)  # noqa: E731
    yield inside("e-8-filler", ["E-8"], "the padding of patches has 0xFFFF and 255", filled)
    empty = Base(scattered("w", "BF16", [3, BLOCK], {5: 0x3F80, 9: 0x0100}), Split(1))
    note = "the patch is the last one of the first block, and two blocks follow without any"
    yield inside("e-8-after-empty-blocks", ["E-8"], note, put(PATCHES, 3, b"\1"), empty)


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


# --------------------------------------------------------------------------------------- digests


def checksums() -> Iterator[Case]:
    """What the parts alone do not show."""

    def told(name: str, note: str, change: Change, base: Base = SMALL) -> Case:
        s = base.sketch()
        change(s)
        case = Case("checksum", name, ["D-2"], s.render(), REJECT, "L2", note, error_rules=["D-2"])
        case.digests = True
        return newer(case, ["w"])

    def right(name: str, note: str, base: Base, change: Change = nothing) -> Case:
        s = base.sketch()
        change(s)
        expect = "accept" if change is nothing else "accept-noncanonical"
        told = listing([base.tensor])
        case = Case("checksum", name, ["D-2"], s.render(), expect, "L2", note, tensors=told, digests=True)
        return newer(case, ["w"])

    yield right("d-2-split-right", "the digest is right: seven members, five parts", SMALL)
    yield right("d-2-all-right", "the digest is right: seven members, four parts", of("BF16"))
    yield right("d-2-split-long", "the digest of three blocks", SOME)
    yield right("d-2-split-empty", "the digest of an empty tensor", EMPTY)
    yield right("d-2-all-empty", "the digest of an empty tensor", EMPTY_ALL)
    note = "the digest does not cover nnz with positions all"
    yield right("d-2-all-nnz-not-covered", note, of("BF16"), entry(nnz=12))
    note = "the digest covers the parts in the order of B-2, not in that of the file"
    yield right("d-2-split-parts-reversed", note, SMALL, lambda s: s.physical.reverse())
    raw = random_tensor("w", "BF16", [5, 31], seed=81)
    s = Sketch().add(raw)
    entry(w=1, mantissa=2, patches=3)(s)
    note = "the digest of raw values does not cover members of split ones"
    case = Case(
        "checksum",
        "d-2-raw-with-members-of-split",
        ["D-2"],
        s.render(),
        "accept-noncanonical",
        "L2",
        note,
        tensors=listing([raw]),
        digests=True,
    )
    yield case

    def covering(*keys: str) -> Change:
        """A digest over other members than it should be over."""

        def change(s: Sketch) -> None:
            there = {p.name: p.data for p in s.physical}
            text = to_json({"w": {k: v for k, v in s.entry("w").items() if k in keys}}).encode()
            data = b"".join(there.get("w" + suffix, b"") for suffix in PARTS)
            s.entry("w")["digest"] = f"xxh3_64:{xxh3_64(text + data):016x}"

        return change

    old = ("dtype", "nnz", "positions", "shape", "values")
    note = "a digest over the members of 1.0 only"
    yield told("d-2-split-members-of-1-0", note, covering(*old))
    for member in ("w", "mantissa", "patches", "nnz"):
        keys = {"w", "mantissa", "patches", *old} - {member}
        yield told(f"d-2-split-without-{member}", f"a digest without {member}", covering(*keys))
    note = "a digest that covers nnz with positions all"
    with_nnz = both(entry(nnz=27), covering("w", "mantissa", "patches", *old))
    yield told("d-2-all-covers-nnz", note, with_nnz, of("BF16"))
    # Changes that keep all other rules.
    unpatched = min({0, 1, 2, 3, 4} - {rank for rank, _ in SMALL.patches()})
    for name, change, note in [
        ("residue", lambda s: s.flip_element("w", 2, 3), "a bit of a residue"),
        ("sign", lambda s: s.flip_element("w", 2, 10), "the sign of an element"),
        ("code", lambda s: s.flip_element("w", unpatched, 11), "a bit of a code"),
        ("bit-moved", moved_bit, "a bit of the bitmap has moved"),
    ]:
        yield told(f"d-2-split-{name}-changed", f"{note} has changed: only the digest can tell", change)
    exponent = next(e for e in (29, 30, 28) if e not in {x for _, x in SMALL.patches()[:1]})
    note = "the exponent of a patch has changed: only the digest can tell"
    yield told("d-2-split-exponent-changed", note, patched(0, exponent=exponent))
    odd = Base(
        tensor_of("w", "BF16", [0x3F80] * 30 + [0x0100] + [0x3F80] * 9, [4, 10]),
        Split(1, "all", bases={0: 127}),
    )
    note = "a patch belongs to another element: only the digest can tell"
    yield told("d-2-split-rank-changed", note, patched(0, 33), odd)
    note = "the base of a block has changed: only the digest can tell"
    yield told("d-2-split-base-changed", note, base_of(0, odd.bases()[0] - 1), odd)
    two = [0x3F80] * (BLOCK + 60)
    two[7], two[BLOCK + 30] = 0x0100, 0x0200
    pair = Base(tensor_of("w", "BF16", two, [4, 1039]), Split(1, "all", bases={0: 127, 1: 127}))
    note = "a patch is counted to the block before: only the digest can tell"
    yield told("d-2-split-patch-of-another-block", note, row(0, e1=2), pair)
    wide = Base(floats("w", "BF16", [4, 10], 100, 943, kept=5, odd=0, width=2), Split(2, "all", 5))
    note = "w and mantissa have changed, their sum has not: only the digest can tell"
    yield told("d-2-split-w-for-mantissa", note, entry(w=1, mantissa=6), wide)
    yield told("d-2-split-shape-changed", "the shape in the entry has changed", entry(shape=[30, 2]))


def moved_bit(s: Sketch) -> None:
    """Moves a stored element by one place."""
    bitmap = s.part(BITMAP).data
    at = next(
        i for i in range(58) if bitmap[i // 8] >> i % 8 & 1 and not bitmap[(i + 1) // 8] >> (i + 1) % 8 & 1
    )
    s.flip(BITMAP, at).flip(BITMAP, at + 1)
