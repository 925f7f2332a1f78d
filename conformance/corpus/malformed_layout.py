"""Containers whose header says wrong things about tensors (rules C-6 to C-13, J-5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corpus.build import MAX_INT, Physical, Raw, Sketch, plain_file, random_tensor
from corpus.case import REJECT, Case
from corpus.malformed_header import MEMBER, reject, text


def cases() -> Iterator[Case]:
    yield from members()
    yield from integers()
    yield from metadata()
    yield from sizes()
    yield from overflow()
    yield from places()
    yield from endor_files()


def one(name: str, rules: list[str], notes: str, data: bytes = b"x", **changes: Any) -> Case:
    """A file with one tensor w, U8 [1] at 0..1, but for the changes."""
    description = {"dtype": "U8", "shape": [1], "offsets": [0, len(data)], **changes}
    return reject(name, rules, plain_file([Physical("w", data=data, **description)]), notes)


def members() -> Iterator[Case]:
    name: str
    value: Any
    for name, old in [
        ("dtype", '"dtype":"U8",'),
        ("shape", '"shape":[1],'),
        ("data-offsets", ',"data_offsets":[0,1]'),
    ]:
        header = "{" + MEMBER.replace(old, "") + "}"
        yield text(f"c-6-no-{name}", ["C-6"], header, f"a tensor without {name}")
    for name, value in [("array", "[]"), ("string", '"U8"'), ("null", "null"), ("number", "1")]:
        header = "{" + MEMBER + f',"v":{value}' + "}"
        yield text(f"c-6-tensor-is-{name}", ["C-6"], header, f"a tensor described by: {value}")
    for name, value in [("number", 8), ("null", None), ("array", ["U8"])]:
        yield one(f"c-6-dtype-is-{name}", ["C-6"], "dtype is not a string", dtype=value)
    for name, value in [("number", 1), ("null", None), ("object", {}), ("string", "1")]:
        yield one(f"c-6-shape-is-{name}", ["C-6"], "shape is not an array", shape=value)
    for name, value in [("string", "1"), ("null", None), ("true", True), ("array", [1])]:
        note = f"shape has an item that is not an integer: {value}"
        yield one(f"c-6-shape-item-{name}", ["C-6", "J-5"], note, shape=[value])
    for name, offsets in [("none", []), ("one", [0]), ("three", [0, 1, 1])]:
        note = f"data_offsets has {len(offsets)} items"
        yield one(f"c-6-data-offsets-{name}", ["C-6"], note, offsets=offsets)
    for name, value in [("object", {"begin": 0, "end": 1}), ("string", "01"), ("number", 0)]:
        note = "data_offsets is not an array"
        yield one(f"c-6-data-offsets-is-{name}", ["C-6"], note, offsets=value)
    note = "data_offsets has an item that is a string"
    yield one("c-6-data-offsets-item-string", ["C-6", "J-5"], note, offsets=["0", 1])
    note = "data_offsets has an item that is false"
    yield one("c-6-data-offsets-item-false", ["C-6", "J-5"], note, offsets=[False, 1])


def integers() -> Iterator[Case]:
    odd = {
        "fraction": "1.0",
        "exponent": "1e0",
        "exponent-capital": "1E0",
        "negative": "-1",
        "2-to-the-53": str(MAX_INT + 1),
        "2-to-the-64-plus-1": str(2**64 + 1),
        "400-digits": "1" * 400,
        "5000-digits": "1" * 5000,
    }
    for name, written in odd.items():
        note = f"a shape with {written if len(written) < 30 else 'a number of many digits'}"
        # 1.0 and 1e0 mean the right size; the others also contradict it.
        rules = ["J-5", "C-6"] if written.lower() in ("1.0", "1e0") else ["J-5", "C-6", "C-10"]
        yield one(f"j-5-shape-{name}", rules, note, shape=[Raw(written)])
    rules = ["J-5", "C-6"]
    yield one("j-5-shape-minus-zero", rules, "a shape with -0", b"", shape=[Raw("-0")])
    yield one("j-5-begin-minus-zero", rules, "begin is -0", offsets=[Raw("-0"), 1])
    yield one("j-5-begin-fraction", rules, "begin is 0.0", offsets=[Raw("0.0"), 1])
    yield one("j-5-end-fraction", rules, "end is 1.0", offsets=[0, Raw("1.0")])
    yield one("j-5-end-exponent", rules, "end is 1e0", offsets=[0, Raw("1e0")])
    more = [*rules, "C-9", "C-10", "C-12", "C-13"]
    yield one("j-5-begin-negative", more, "begin is -1", offsets=[-1, 0])
    yield one("j-5-end-2-to-the-53", more, "end is 2^53", offsets=[0, MAX_INT + 1])
    note = "end is 2^64 + 1, which wraps around to 1"
    yield one("j-5-end-2-to-the-64-plus-1", more, note, offsets=[0, 2**64 + 1])
    huge, rules = [0, MAX_INT + 1], ["J-5", "C-6"]
    note = "2^53 in the shape of an empty tensor"
    yield one("j-5-shape-2-to-the-53-empty", rules, note, b"", shape=huge)


def metadata() -> Iterator[Case]:
    for name, value in [("null", "null"), ("array", "[]"), ("string", '"{}"'), ("number", "1")]:
        header = '{"__metadata__":' + value + "," + MEMBER + "}"
        yield text(f"c-7-{name}", ["C-7"], header, f"__metadata__ is {value}")
    for name, value in [("number", "1"), ("null", "null"), ("object", "{}"), ("true", "true")]:
        header = '{"__metadata__":{"a":"","b":' + value + "}," + MEMBER + "}"
        yield text(f"c-7-value-{name}", ["C-7"], header, f"a value of the metadata is {value}")
    header = '{"__metadata__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    rules = ["C-7", "C-13"]
    yield text("c-7-tensor", rules, header, "__metadata__ describes a tensor")


def sizes() -> Iterator[Case]:
    yield one("c-8-rank-65", ["C-8"], "a shape of rank 65", shape=[1] * 65)
    for name, dtype, shape, size in [
        ("too-short", "U16", [3], 5),
        ("too-long", "U16", [3], 7),
        ("one-element-less", "F32", [2, 2], 12),
        ("one-element-more", "F32", [2, 2], 20),
        ("empty-shape-0", "U8", [0], 1),
        ("rank-0", "F32", [], 0),
        ("no-bytes", "U8", [1], 0),
        ("f4-odd", "F4", [3], 2),
        ("f4-odd-rounded-down", "F4", [3], 1),
        ("f4-as-bytes", "F4", [2], 2),
        ("f6-half", "F6_E2M3", [2], 2),
        ("f6-as-bytes", "F6_E3M2", [4], 4),
        ("bool-as-bits", "BOOL", [8], 1),
        ("c64-as-32-bits", "C64", [2], 8),
    ]:
        note = f"{dtype} {shape} in {size} bytes"
        yield one(f"c-10-{name}", ["C-10"], note, bytes(size), dtype=dtype, shape=shape)


def overflow() -> Iterator[Case]:
    """Products that wrap around to the right size, with the large factors in every place."""
    half = 2**32
    for i, shape in enumerate([[half, half, 1], [1, half, half], [half, 1, half]]):
        note = f"numel of {shape} wraps around to 0 in 64 bits"
        yield one(f"c-10-overflow-to-0-{i}", ["C-10"], note, b"", shape=shape)
    a, b = 64 * (2**29 - 2**15 + 1), 2**29 + 2**15 + 1
    for i, shape in enumerate([[a, b], [b, a]]):
        note = f"numel of {shape} wraps around to 64"
        yield one(f"c-10-overflow-to-64-{i}", ["C-10"], note, bytes(64), shape=shape)
    shape = [2**31, 2**30]
    note = "8 * numel wraps around to 0 in 64 bits, numel does not"
    yield one("c-10-overflow-bits", ["C-10"], note, b"", shape=shape)
    shape = [2**31, 2**31]
    note = "numel * itemsize wraps around to 0 in 64 bits, numel does not"
    yield one("c-10-overflow-itemsize", ["C-10"], note, b"", dtype="F64", shape=shape)
    shape = [2**16, 2**16]
    note = "numel wraps around to 0 in 32 bits"
    yield one("c-10-overflow-32-bits", ["C-10"], note, b"", shape=shape)
    shape = [94906267, 94906267]
    note = "numel is just past 2^53, where binary64 is no longer exact"
    yield one("c-10-past-2-to-the-53", ["C-10"], note, b"", shape=shape)


def two(name: str, rules: list[str], a: list[int], b: list[int], size: int, notes: str) -> Case:
    tensors = [
        Physical("a", "U8", [a[1] - a[0]], b"", a),
        Physical("b", "U8", [b[1] - b[0]], b"", b),
    ]
    data = plain_file(tensors) + bytes(size)
    return reject(name, rules, data, notes)


def places() -> Iterator[Case]:
    yield one("c-9-reversed", ["C-9", "C-10", "C-13"], "begin > end", offsets=[1, 0])
    note = "begin > end for an empty tensor"
    yield one("c-9-reversed-empty", ["C-9", "C-10", "C-13"], note, b"", shape=[0], offsets=[1, 0])
    rules = ["C-9", "C-13"]
    yield one("c-9-end-past-data", rules, "end is one past the data", shape=[2], offsets=[0, 2])
    large = [0, MAX_INT]
    note = "a tensor of 2^53 - 1 bytes in a file of hardly any"
    yield one("c-9-end-at-the-limit", rules, note, shape=[MAX_INT], offsets=large)
    note = "an empty tensor past the end of the data"
    rules = ["C-9", "C-12", "C-13"]
    yield two("c-9-empty-past-data", rules, [0, 8], [9, 9], 8, note)

    yield two("c-11-overlap", ["C-11"], [0, 8], [4, 12], 12, "the tensors share four bytes")
    yield two("c-11-overlap-by-one", ["C-11"], [0, 8], [7, 12], 12, "the tensors share one byte")
    yield two("c-11-same-bytes", ["C-11"], [0, 8], [0, 8], 8, "both tensors are the same bytes")
    yield two("c-11-inside", ["C-11", "C-13"], [0, 8], [2, 4], 8, "one tensor inside the other")
    yield two("c-11-same-begin", ["C-11"], [0, 4], [0, 8], 8, "the tensors begin at one place")
    note = "an empty tensor inside another"
    yield two("c-11-empty-inside", ["C-11", "C-13"], [0, 8], [4, 4], 8, note)
    yield two("c-12-hole", ["C-12"], [0, 4], [5, 8], 8, "a byte between the tensors")
    yield two("c-12-first-not-at-0", ["C-12"], [1, 4], [4, 8], 8, "a byte before the first tensor")
    note = "an empty tensor after a hole, at the end of the data"
    yield two("c-12-empty-after-hole", ["C-12"], [0, 4], [8, 8], 8, note)
    yield two("c-13-trailing", ["C-13"], [0, 4], [4, 8], 9, "a byte after the last tensor")
    yield text("c-13-no-tensors", ["C-13"], "{}", "data, but no tensors")
    yield one("c-13-empty-tensor", ["C-13"], "data, but an empty tensor only", shape=[0], offsets=[0, 0])

    unknown = [Physical("a", "X8", [4], b"", [0, 4]), Physical("b", "U8", [4], b"", [2, 6])]
    note = "a tensor of an unknown dtype overlaps another"
    yield reject("c-11-unknown-dtype", ["C-11"], plain_file(unknown) + bytes(6), note)
    unknown[1].offsets = [5, 9]
    note = "a hole after a tensor of an unknown dtype"
    yield reject("c-12-unknown-dtype", ["C-12"], plain_file(unknown) + bytes(9), note)
    unknown = [Physical("a", "U8", [4], b"", [0, 4]), Physical("x", "X8", [9], b"", [4, 2])]
    note = "a tensor of an unknown dtype goes back from the end of another to that of the data"
    yield reject("c-9-reversed-unknown-dtype", ["C-9"], plain_file(unknown) + bytes(2), note)
    unknown = [Physical("a", "X8", [4], b"", [0, 5])]
    note = "a tensor of an unknown dtype ends after the data"
    yield reject("c-9-unknown-dtype", ["C-9", "C-13"], plain_file(unknown) + bytes(4), note)


def endor_files() -> Iterator[Case]:
    """An Endor file cut at every boundary of its parts."""
    whole = Sketch().add(random_tensor("w", "F16", [3, 50], seed=7)).render()
    size = [len(p.data) for p in Sketch().add(random_tensor("w", "F16", [3, 50], seed=7)).physical]
    start = len(whole) - sum(size)
    for name, at in [
        ("before-values", start),
        ("amid-values", start + 10),
        ("after-values", start + size[0]),
        ("amid-bitmap", start + size[0] + 19),
        ("after-bitmap", start + size[0] + size[1]),
        ("amid-index", start + size[0] + size[1] + 12),
        ("in-the-padding", len(whole) - 1),
    ]:
        note = f"an Endor file that ends {name.replace('-', ' ')}"
        rules = ["C-9", "C-13"]
        case = reject(f"c-9-endor-cut-{name}", rules, whole[:at], note)
        case.level = "L2"
        yield case
    for name, rules, data, note in [
        ("c-3-endor-cut-header", ["C-3"], whole[: start - 1], "an Endor file cut in its header"),
        ("c-13-endor-one-more", ["C-13"], whole + b"\0", "an Endor file and one byte more"),
    ]:
        yield Case("malformed", name, rules, data, REJECT, "L2", note, error_rules=rules)
