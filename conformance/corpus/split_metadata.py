"""Endor files of format 1.1 whose entries are wrong, or say what no reader knows (M-7, M-8, J-5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corpus.build import FLOATS, MAX_INT, Physical, Raw, Sketch, Split, Tensor, random_tensor, tensor_of
from corpus.case import UNSUPPORTED, Case, hidden, listing, newer_but_alike
from corpus.change import BITMAP, INDEX, VALUES, Change, both, describe, drop, endor, entry, extra, without
from corpus.split_base import EMPTY, EMPTY_ALL, TINY, Base, fault, inside, of


def cases() -> Iterator[Case]:
    yield from unsupported()
    yield from members()
    yield from integers()


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
