"""Files that need what a 1.0 reader does not have; all else in them stays readable."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import Physical, Raw, Sketch, Tensor, plain_file, random_tensor
from corpus.case import REJECT, UNSUPPORTED, Case, Json, hidden, listing
from corpus.change import (
    BITMAP,
    VALUES,
    Change,
    both,
    describe,
    drop,
    endor,
    entry,
    extra,
    text,
    without,
)

W = random_tensor("w", "BF16", [5, 31], seed=81)
V = random_tensor("v", "U8", [4, 9], seed=82)
BIAS = Tensor("bias", "F32", [1], b"\0\0\x80\x3f")


def cases() -> Iterator[Case]:
    yield from versions()
    yield from encodings()
    yield from hiding()
    yield from plain_dtypes()
    yield from yet_invalid()


def unsupported(
    name: str, rules: list[str], data: bytes, notes: str, tensors: list[Json], level: str = "L1"
) -> Case:
    return Case("unsupported", name, rules, data, UNSUPPORTED, level, notes, tensors=tensors)


def sketch() -> Sketch:
    """An unreadable tensor w in the making, beside v, encoded, and bias, plain."""
    return Sketch().add(W).add(V).add(BIAS, encode=False)


REST = [*listing([V, BIAS]), *hidden("w")]


def changed(name: str, rules: list[str], notes: str, change: Change) -> Case:
    s = sketch()
    change(s)
    return unsupported(name, rules, s.render(), notes, REST)


def versions() -> Iterator[Case]:
    for version in ("2.0", "0.9", "999999999.0", "10.0", "0.0"):
        s = sketch()
        s.endor["version"] = version
        note = f"version {version}: nothing in the file can be relied on"
        yield unsupported(f"v-1-version-{version}", ["V-1", "M-2"], s.render(), note, [])
    unlike = {"w": {"shape": Raw("1.5"), "digest": 0}}
    versions: list[tuple[str, Json]] = [
        ("alone", {"version": "2.0"}),
        ("tensors-array", {"version": "2.0", "tensors": [1]}),
        ("entry-unlike", {"version": "2.1", "tensors": unlike}),
    ]
    for name, members in versions:
        s = Sketch(physical=[Physical("w.endor.index", "U8", [1], b"x")], endor=members)
        note = "a major version that is unknown may change all else in the object"
        yield unsupported(f"v-1-{name}", ["V-1", "M-2"], s.render(), note, [])


def encodings() -> Iterator[Case]:
    for member, value in [
        ("positions", "list"),
        ("positions", "Bitmap"),
        ("positions", ""),
        ("values", "huffman"),
        ("values", "raw "),
        ("dtype", "F4"),
        ("dtype", "F6_E2M3"),
        ("dtype", "F8_E3M4"),
        ("dtype", "bf16"),
        ("dtype", "torch.bfloat16"),
    ]:
        shown = value.strip().lower().replace(".", "-").replace("_", "-") or "empty"
        shown = {"bitmap": "bitmap-in-capitals", "raw": "raw-and-space"}.get(shown, shown)
        shown = "bf16-small-letters" if value == "bf16" else shown
        note = f"{member} has a value that 1.0 does not know or cannot encode: {value!r}"
        yield changed(
            f"m-7-{member}-{shown}",
            ["M-7", "T-7"],
            note,
            entry(**{member: value}),
        )

    newer = both(endor(version="1.7"), entry(values="rans", table=[1, {"a": 2}]), without("nnz"))
    note = "a newer minor version with an encoding of its own"
    yield changed("v-2-newer-encoding", ["V-2", "M-7"], note, newer)

    note = "an unknown encoding need not have nnz"
    no_nnz = both(entry(values="huffman"), without("nnz"))
    yield changed("m-5-no-nnz", ["M-5", "M-7"], note, no_nnz)


def hiding() -> Iterator[Case]:
    note = "all that belongs to an unsupported tensor is hidden, whatever its name"
    odd = Physical("w.endor.Not-a-part.1", "U8", [2], b"ab")
    other_parts = both(entry(positions="list"), drop(BITMAP), extra(odd))
    yield changed("t-7-parts-hidden", ["T-7", "T-3"], note, other_parts)

    s = sketch()
    s.entry("w").update(positions="list", shape=s.part("w").shape)
    note = "an unknown encoding whose physical shape is the logical one: T-5 does not bind it"
    yield unsupported("m-7-same-shape", ["T-5", "M-7"], s.render(), note, REST)

    note = "the part of an unsupported tensor has an unknown dtype"
    part = both(entry(values="packed"), describe(VALUES, "U4"))
    yield changed("c-14-unknown-dtype-of-a-part", ["C-14", "T-7"], note, part)
    note = "the shape of an unsupported tensor need not fit anything"
    unreal = entry(positions="list", shape=[2**40, 2**40])
    yield changed("m-7-shape-of-any-size", ["M-7", "T-4"], note, unreal)
    s = sketch()
    s.entry("w")["positions"] = "list"
    s.drop(BITMAP)
    after = random_tensor("w.f", "U8", [3], density=100, seed=98)
    s.add(after, encode=False)
    note = "one part is hidden, and a plain tensor whose name sorts right after it is not"
    yield unsupported("t-7-one-part", ["T-7"], s.render(), note, [*REST, *listing([after])])
    s = sketch()
    for name in ("w", "v"):
        s.entry(name)["positions"] = "list"
    tensors = [*listing([BIAS]), *hidden("w", "v")]
    note = "all encoded tensors are unsupported, the plain one is not"
    yield unsupported("m-7-all-encoded", ["M-7", "T-7"], s.render(), note, tensors)


def plain_dtypes() -> Iterator[Case]:
    for dtype in ("F128", "u8", "", "U4"):
        x = Physical("x", dtype, [3], b"abcde")
        shown = dtype.lower() if dtype not in ("u8", "") else {"u8": "u8-small"}.get(dtype, "empty")
        note = f"a plain tensor of the unknown dtype {dtype!r}; its length proves nothing"
        data = plain_file([Physical("bias", "F32", [1], BIAS.data), x])
        tensors = [*listing([BIAS]), *hidden("x")]
        yield unsupported(f"c-14-plain-{shown}", ["C-14", "C-10"], data, note, tensors, "L0")
    s = Sketch().add(V)
    s.physical.append(Physical("x", "F128", [2], bytes(32)))
    tensors = [*listing([V]), *hidden("x")]
    note = "a plain tensor of an unknown dtype beside an encoded one"
    yield unsupported("c-14-beside-encoded", ["C-14"], s.render(), note, tensors)


def yet_invalid() -> Iterator[Case]:
    """Being unsupported does not excuse what a reader of any version can see."""
    newer = text(lambda t: '{"version":"2.0",' + t[1:])
    for name, rules, change, note in [
        ("d-1-unsupported", ["D-1"], entry(digest="xxh3_64:12"), "a digest of the wrong form"),
        ("m-4-unsupported", ["M-4"], without("shape"), "no shape"),
        ("m-4-unsupported-no-dtype", ["M-4"], without("dtype"), "no dtype"),
        ("m-4-unsupported-no-values", ["M-4"], without("values"), "no values"),
        ("m-4-unsupported-dtype-is-number", ["M-4"], entry(dtype=16), "a dtype that is a number"),
        ("m-4-unsupported-shape-is-string", ["M-4"], entry(shape="5"), "a shape that is a string"),
        ("m-4-unsupported-shape-item", ["M-4", "J-5"], entry(shape=[5, None]), "null in its shape"),
        ("m-4-unsupported-values-is-null", ["M-4"], entry(values=None), "values that are null"),
        ("m-4-unsupported-digest-is-number", ["M-4"], entry(digest=7), "a digest that is a number"),
        ("m-4-unsupported-digest-is-null", ["M-4"], entry(digest=None), "a digest that is null"),
        ("c-8-unsupported", ["C-8"], entry(shape=[1] * 65), "a shape of rank 65"),
        ("j-5-unsupported", ["J-5", "M-4"], entry(shape=[Raw("1.0")]), "a fraction in its shape"),
        ("b-6-beside-unsupported", ["B-6"], faulty_v, "another tensor that is invalid"),
        ("j-2-major-version", ["J-2"], newer, "a version 2.0, and two members called version"),
    ]:
        s = sketch()
        both(entry(positions="list"), change)(s)
        yield reject(name, rules, s.render(), f"an unknown encoding, and {note}")
    for values, note in [(None, "is null"), (["raw"], "is an array")]:
        s = sketch()
        both(entry(dtype="F4", values=values))(s)
        name = f"m-4-unsupported-dtype-values-{type(values).__name__.lower().removesuffix('type')}"
        yield reject(name, ["M-4"], s.render(), f"a dtype that cannot be encoded, and `values` {note}")
    for name, rules, offsets, shape, note in [
        ("c-8-unknown-dtype", ["C-8"], [[0, 4], [4, 9]], [1] * 65, "a shape of rank 65"),
        ("c-9-unknown-dtype", ["C-9", "C-13"], [[0, 4], [4, 10]], [5], "an end past the end of the file"),
        ("c-9-unknown-dtype-reversed", ["C-9"], [[0, 4], [9, 4]], [5], "an end before its begin"),
        (
            "c-11-unknown-dtype",
            ["C-11", "C-12"],
            [[0, 4], [3, 9]],
            [5],
            "a begin inside of the tensor before it",
        ),
        ("c-12-unknown-dtype", ["C-12"], [[0, 4], [5, 9]], [5], "a hole before it"),
        ("c-13-unknown-dtype", ["C-13"], [[0, 4], [4, 8]], [5], "a byte after it"),
    ]:
        parts = [
            Physical("bias", "F32", [1], BIAS.data, offsets[0]),
            Physical("x", "F128", shape, b"abcde", offsets[1]),
        ]
        case = reject(name, rules, plain_file(parts), f"a tensor of an unknown dtype with {note}")
        case.level = "L0"
        yield case
    s = sketch()
    s.endor["version"] = "2.0"
    note = "a major version that is unknown, and a byte after the last tensor"
    yield reject("c-13-major-version", ["C-13"], s.render() + b"\0", note)


def faulty_v(s: Sketch) -> None:
    s.flip("v.endor.bitmap", 0).seal("v")


def reject(name: str, rules: list[str], data: bytes, note: str) -> Case:
    return Case("unsupported", name, rules, data, REJECT, "L2", note, error_rules=rules)
