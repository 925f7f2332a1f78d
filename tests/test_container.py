"""Rules J and C: what a header may be, and what is wrong with one that may not."""

from __future__ import annotations

import json

import pytest
from conftest import entry, raw_file
from hypothesis import given
from hypothesis import strategies as st

from pyendor import container, file, jsontext
from pyendor.container import Entry
from pyendor.errors import FormatError, UnsupportedError, UsageError

U8 = entry("U8", [1], 0, 1)


def deep(levels: int) -> bytes:
    """A valid file but for an ignored member that nests so deep, the header's object included."""
    inside = "[" * (levels - 2) + "]" * (levels - 2)
    return f'{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{inside}}}}}'.encode()


BROKEN = {
    "C-1 empty": (b"", "C-1"),
    "C-1 seven bytes": (bytes(7), "C-1"),
    "C-2 length": ((100_000_001).to_bytes(8, "little") + b"{}", "C-2"),
    "C-2 all ones": (b"\xff" * 8 + b"{}", "C-2"),
    "C-3 one byte short": ((3).to_bytes(8, "little") + b"{}", "C-3"),
    "C-4 not utf-8": (raw_file(b'{"\xff":1}'), "C-4"),
    "C-4 surrogate": (raw_file(b'{"\xed\xa0\x80":1}'), "C-4"),
    "C-5 empty": (raw_file(b""), "C-5"),
    "C-5 leading space": (raw_file(b" {}"), "C-5"),
    "C-5 byte order mark": (raw_file(b"\xef\xbb\xbf{}"), "C-5"),
    "C-5 array": (raw_file(b"[]"), "C-5"),
    "C-5 newline after": (raw_file(b"{}\n"), "C-5"),
    "C-5 nul after": (raw_file(b"{}\0"), "C-5"),
    "C-5 second object": (raw_file(b"{}{}"), "C-5"),
    "J-1 cut": (raw_file(b'{"a":'), "J-1"),
    "J-1 comma": (raw_file(b'{"a":{},}'), "J-1"),
    "J-1 NaN": (raw_file(b'{"a":NaN}'), "J-1"),
    "J-1 Infinity": (raw_file(b'{"a":-Infinity}'), "J-1"),
    "J-1 control character": (raw_file(b'{"a\n":1}'), "J-1"),
    "J-1 comment": (raw_file(b'{/**/"a":1}'), "J-1"),
    "J-1 leading zero": (raw_file(b'{"a":01}'), "J-1"),
    "J-1 unclosed string": (raw_file(b'{"' + b'\\"' * 1000), "J-1"),
    "J-2 same": (raw_file(b'{"a":1,"a":2}'), "J-2"),
    "J-2 escaped": (raw_file(b'{"a":1,"\\u0061":2}'), "J-2"),
    "J-2 in entry": (raw_file(b'{"a":{"dtype":"U8","dtype":"U8"}}'), "J-2"),
    "J-2 in metadata": (raw_file(b'{"__metadata__":{"k":"1","k":"2"}}'), "J-2"),
    "J-3 name": (raw_file(b'{"\\ud800":1}'), "J-3"),
    "J-3 value in array": (raw_file(b'{"a":[{"b":"\\udc00"}]}'), "J-3"),
    "J-4 depth 17": (raw_file(deep(17), b"\0"), "J-4"),
    "J-4 bomb": (raw_file(b'{"a":' + b"[" * 100_000), "J-4"),
    "J-5 minus zero": (raw_file(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "J-5"),
    "J-5 float": (raw_file(b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"\0"), "J-5"),
    "J-5 exponent": (raw_file(b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"\0"), "J-5"),
    "J-5 negative": (raw_file({"a": entry("U8", [1], -1, 0)}), "J-5"),
    "J-5 2**53": (raw_file({"a": entry("U8", [0, 2**53], 0, 0)}), "J-5"),
    "J-5 5000 digits": (raw_file(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}"), "C-6"),
    "C-6 number": (raw_file({"a": 1}), "C-6"),
    "C-6 no dtype": (raw_file({"a": {"shape": [], "data_offsets": [0, 0]}}), "C-6"),
    "C-6 dtype null": (raw_file({"a": entry(None, [], 0, 0)}), "C-6"),  # type: ignore[arg-type]
    "C-6 dtype number": (raw_file({"a": entry(8, [], 0, 0)}), "C-6"),  # type: ignore[arg-type]
    "C-6 shape object": (raw_file({"a": {"dtype": "U8", "shape": {}, "data_offsets": [0, 0]}}), "C-6"),
    "C-6 shape of strings": (raw_file({"a": entry("U8", ["1"], 0, 1)}, b"\0"), "C-6"),  # type: ignore[list-item]
    "C-6 shape of booleans": (raw_file({"a": entry("U8", [True], 0, 1)}, b"\0"), "C-6"),
    "C-6 three offsets": (
        raw_file({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}),
        "C-6",
    ),
    "C-7 null": (raw_file({"__metadata__": None}), "C-7"),
    "C-7 number": (raw_file({"__metadata__": {"a": 1}}), "C-7"),
    "C-8 rank 65": (raw_file({"a": entry("U8", [1] * 65, 0, 1)}, b"\0"), "C-8"),
    "C-9 reversed": (raw_file({"a": entry("U8", [0], 1, 0)}, b"\0"), "C-9"),
    "C-9 past the end": (raw_file({"a": entry("U8", [2], 0, 2)}, b"\0"), "C-9"),
    "C-10 too long": (raw_file({"a": entry("U8", [1], 0, 2)}, b"\0\0"), "C-10"),
    "C-10 wrap-around": (raw_file({"a": entry("U8", [2**32, 2**32, 1], 0, 0)}), "C-10"),
    "C-10 half a byte": (raw_file({"a": entry("F4", [3], 0, 1)}, b"\0"), "C-10"),
    "C-11 overlap": (raw_file({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)), "C-11"),
    "C-11 same": (raw_file({"a": U8, "b": U8}, b"\0"), "C-11"),
    "C-11 empty inside": (
        raw_file({"a": entry("U8", [2], 0, 2), "b": entry("U8", [0], 1, 1)}, b"\0\0"),
        "C-11",
    ),
    "C-12 hole": (raw_file({"a": U8, "b": entry("U8", [1], 2, 3)}, bytes(3)), "C-12"),
    "C-12 at the start": (raw_file({"a": entry("U8", [1], 1, 2)}, b"\0\0"), "C-12"),
    "C-13 rest": (raw_file({"a": U8}, b"\0\0"), "C-13"),
    "C-13 no tensors": (raw_file({}, b"\0"), "C-13"),
}


@pytest.mark.parametrize(("data", "rule"), BROKEN.values(), ids=BROKEN.keys())
def test_broken(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError) as caught:
        file.open_bytes(data)
    assert caught.value.rule == rule
    assert f"[rule {rule}]" in str(caught.value)


FINE = {
    "no tensors": raw_file(b"{}"),
    "spaces after": raw_file(b"{}   "),
    "white space inside": raw_file(b"{ \t\r\n }"),
    "depth 16": raw_file(deep(16), b"\0"),
    "rank 64": raw_file({"a": entry("U8", [1] * 64, 0, 1)}, b"\0"),
    "largest integer": raw_file({"a": entry("U8", [2**53 - 1, 0, 2**53 - 1], 0, 0)}),
    "unknown member": raw_file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":[1e999,-0,null]}}'),
    "huge numbers nobody reads": raw_file(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":' + b"9" * 6000 + b"}}"
    ),
    "surrogate pair": raw_file(b'{"\\ud83d\\ude00":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "brackets in strings": raw_file(
        b'{"[[[[[[[[[[[[[[[[[[[[\\"{{{":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "empty ones at the edges": raw_file(
        {"a": entry("U8", [0], 0, 0), "b": U8, "c": entry("U8", [0], 1, 1)}, b"\0"
    ),
    "any order, no alignment": raw_file({"b": entry("F32", [1], 1, 5), "a": U8}, bytes(5)),
    "six-bit floats": raw_file({"a": entry("F6_E2M3", [4], 0, 3)}, bytes(3)),
    "0-d": raw_file({"a": entry("F64", [], 0, 8)}, bytes(8)),
    "names that look like parts": raw_file({"a.endor.values": U8}, b"\0"),
}


@pytest.mark.parametrize("data", FINE.values(), ids=FINE.keys())
def test_fine(data: bytes) -> None:
    file.open_bytes(data)


def test_unknown_dtype_is_unsupported_and_the_rest_stays_readable() -> None:
    data = raw_file({"a": entry("F8_E3M4", [7], 0, 3), "b": entry("U8", [1], 3, 4)}, b"abcd")
    with file.open_bytes(data) as opened:
        assert opened.get_bytes("b").tobytes() == b"d"
        with pytest.raises(UnsupportedError, match="F8_E3M4"):
            opened.get_bytes("a")


def test_errors_tell_the_offset_in_the_file() -> None:
    with pytest.raises(FormatError) as caught:
        file.open_bytes(raw_file('{"é": nope}'.encode()))
    assert caught.value.offset == 8 + len('{"é": '.encode())


@pytest.mark.parametrize(
    ("data", "what"), [(b"PK\x03\x04" + bytes(99), "zip"), (b"\x80\x02\x8a\x0al\xfc\x9c\x46", "pickle")]
)
def test_other_files_are_named(data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        file.open_bytes(data)


def test_messages_cannot_steer_a_terminal() -> None:
    with pytest.raises(FormatError) as caught:
        file.open_bytes(raw_file(b'{"\\u001b[2J\\u009b":3}'))
    assert "\x1b" not in str(caught.value)
    assert "\x9b" not in str(caught.value)


def test_numel_is_exact() -> None:
    assert container.numel([]) == 1
    assert container.numel([2**53 - 1] * 64) == (2**53 - 1) ** 64
    assert container.numel([2**53 - 1, 0, 2**53 - 1]) == 0


def test_build_and_parse_are_inverse() -> None:
    names = ["ordinary", "", 'quo"te\\', "new\nline\x1f\x7f", "\u2028 é 😀", "a.endor.index.b"]
    entries = [Entry(name, "U8", (2, 3), 6 * i, 6 * i + 6) for i, name in enumerate(names)]
    built = container.build(entries, {"k": "v\0"}, 64)
    assert len(built) % 64 == 0
    parsed = container.parse(built[8:], len(built) + 36)
    assert list(parsed.entries) == names
    assert parsed.metadata == {"k": "v\0"}


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_build_refuses_names(name: str) -> None:
    with pytest.raises(UsageError):
        container.build([Entry(name, "U8", (0,), 0, 0)], None, 8)


def test_build_keeps_to_the_limit() -> None:
    with pytest.raises(UnsupportedError, match="W-1"):
        container.build([], {"x": "y" * 25_000_000}, 64)


@given(
    st.recursive(st.text() | st.integers(0, 2**53 - 1), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_canonical_text_is_read_back(value: object) -> None:
    try:
        text = jsontext.canonical({"x": value})
        text.encode()
    except UnicodeEncodeError:
        return
    try:
        parsed = jsontext.parse(text)
    except FormatError as error:
        assert error.rule == "J-4"
        return
    assert jsontext.canonical(parsed) == jsontext.canonical({"x": stringified(value)})
    assert json.loads(text) == {"x": value}


def stringified(value: object) -> object:
    """The value with its integers as the parser gives them."""
    if isinstance(value, dict):
        return {key: stringified(member) for key, member in value.items()}
    if isinstance(value, list):
        return [stringified(member) for member in value]
    return jsontext.Number(value) if isinstance(value, int) else value


@given(st.text(alphabet='{}[]",:\\0123456789.eE+-\tntfu \x00é\ud800', max_size=40))
def test_parsing_any_text_ends_in_a_value_or_a_rule(text: str) -> None:
    try:
        jsontext.parse(text)
    except FormatError as error:
        assert error.rule.startswith("J-")
