"""Endor files of format 1.1 whose entries are wrong, or say what no reader knows (M-7, M-8, J-5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corpus.build import FLOATS, MAX_INT, Physical, Raw, Sketch, Tensor, product, random_tensor
from corpus.case import NONCANONICAL, UNSUPPORTED, Case, hidden, listing, newer_but_alike, shown
from corpus.change import BITMAP, INDEX, VALUES, Change, both, describe, drop, endor, entry, extra, without
from corpus.split_base import EMPTY, EMPTY_ALL, ONES, RAW, TINY, fault, inside, row, tiny


def cases() -> Iterator[Case]:
    yield from unsupported()
    yield from members()
    yield from integers()


def unsupported() -> Iterator[Case]:
    """In 1.0 these are unknown values, in 1.1 encodings that there are not: the same answer."""
    rest = [random_tensor("v", "U8", [4, 9], seed=82), Tensor("bias", "F32", [1], b"\0\0\x80\x3f")]
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
            name = f"{positions}-split-{shown(dtype)}"
            changes.append((name, entry(dtype=dtype, positions=positions, values="split", **fields), what))
    for name, change, note in changes:
        s = Sketch().add(RAW).add(rest[0]).add(rest[1], encode=False)
        both(endor(version="1.1"), change)(s)
        tensors = [*listing(rest), *hidden("w")]
        rules, data = ["M-7", "T-7"], s.render()
        yield Case("unsupported", f"m-7-{name}", rules, data, UNSUPPORTED, "L1", note, tensors=tensors)
    note = "the members of split values have no meaning in an entry with raw ones"
    s = Sketch().add(RAW)
    entry(w="x", mantissa=-1, patches=[Raw("1e5")])(s)
    name, rules, told = "m-8-raw-and-its-members", ["M-8", "M-6"], listing([RAW])
    yield Case("noncanonical", name, rules, s.render(), NONCANONICAL, "L1", note, tensors=told)


def with_room(**members: int) -> Change:
    """Other members, and as many bits in values: only M-8 is broken."""

    def change(s: Sketch) -> None:
        e, values = s.entry("w"), s.part(VALUES)
        e.update(members)
        values.shape = [values.shape[0], 8 * (1 + e["mantissa"] + e["w"])]
        values.data = bytes(product(values.shape))

    return change


def members() -> Iterator[Case]:
    value: Any
    for member in ("w", "mantissa", "patches"):
        yield fault(f"m-8-no-{member}", ["M-8"], f"no {member}", without(member))
        yield fault(
            f"m-8-all-no-{member}", ["M-8"], f"no {member}, with positions all", without(member), tiny("BF16")
        )
        kinds = [("string", "2"), ("null", None), ("true", True), ("array", [2]), ("object", {})]
        for name, value in kinds[:: 1 if member == "w" else 2]:
            note = f"{member} is not an integer"
            yield fault(f"m-8-{member}-is-{name}", ["M-8", "J-5"], note, entry(**{member: value}))
    yield fault("m-5-split-no-nnz", ["M-5"], "no nnz, with positions bitmap and split values", without("nnz"))
    too_many = both(entry(nnz=61), row(0, e1=61))
    yield inside("m-5-split-nnz-past-numel", ["M-5", "B-6"], "nnz is numel + 1", too_many)
    shapeless = fault(
        "m-4-all-no-shape", ["M-4"], "no shape, with positions all", without("shape"), tiny("BF16")
    )
    yield newer_but_alike(shapeless)
    for dtype, (bits, most) in FLOATS.items():
        low, base = shown(dtype), tiny(dtype)
        if dtype in ("BF16", "F8_E4M3", "F8_E5M2"):
            yield fault(f"m-8-w-0-{low}", ["M-8"], f"w is 0, of {dtype}", with_room(w=0), base)
        high = min(4, bits - 1) + 1
        rules = ["M-8", "E-3"] if 2**high > 2**bits else ["M-8"]
        yield fault(f"m-8-w-{high}-{low}", rules, f"w is {high}, of {dtype}", with_room(w=high), base)
        note = f"mantissa is {most + 1}, one more than {dtype} has"
        yield fault(f"m-8-mantissa-{most + 1}-{low}", ["M-8"], note, with_room(mantissa=most + 1), base)
    for w in (8, 64):
        yield fault(f"m-8-w-{w}-bf16", ["M-8", "T-4", "E-3"], f"w is {w}", with_room(w=w), tiny("BF16"))
    yield fault("m-8-w-largest", ["M-8", "T-4"], "w is the largest integer", entry(w=MAX_INT), tiny("BF16"))
    note = "mantissa is the largest integer"
    yield fault("m-8-mantissa-largest", ["M-8", "T-4"], note, entry(mantissa=MAX_INT), tiny("BF16"))

    def one_more_patch(s: Sketch) -> None:
        """n + 1 patches, with room for them, and an index that goes along."""
        e = s.entry("w")
        n = 27 if e["positions"] == "all" else e["nnz"]
        e["patches"] = n + 1
        s.index("w", len(s.part(INDEX).data) // 64 - 1, e1=n + 1)

    for positions in ("bitmap", "all"):
        rules = ["M-8", "E-5", "E-7", "E-6"]
        note = f"patches is n + 1, with positions {positions}"
        base = tiny("BF16", positions)
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
        right = 1 if member != "patches" else TINY.entry(member)
        for name, written in [
            ("fraction", f"{right}.0"),
            ("exponent", f"{right}e0"),
            ("negative", f"-{right}"),
            ("2-to-the-53", str(MAX_INT + 1)),
            ("wraps-around", str(2**64 + right)),
        ]:
            note = f"{member} is {written}"
            yield fault(f"j-5-{member}-{name}", ["J-5", "M-8"], note, entry(**{member: Raw(written)}))
        minus = entry(**{member: Raw("-0")})
        yield fault(f"j-5-{member}-minus-zero", ["J-5", "M-8"], f"{member} is -0", minus, ONES)
