"""Strict JSON (spec 4, rules J): text in, checked Python values out; and canonical text.

Both JSON texts of a file, the header and the endor object, go through :func:`parse`. Numbers come back
as :class:`Number`, their spelling, because an integer with a meaning must be spelt canonically (J-5)
and because other numbers may be of any size.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np

from pyendor.errors import FormatError, quote

DEEPEST = 16
LARGEST_INTEGER = 2**53 - 1

_INTEGER = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z")
# A string, or what is left of the text where one is not closed: so that one pass is enough.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_WHITE_SPACE = " \t\n\r"
_DEPTH_CHUNK = 1 << 20
_STEP = np.zeros(256, np.int8)
_STEP[[ord("{"), ord("[")]] = 1
_STEP[[ord("}"), ord("]")]] = -1


class Number(str):
    """A JSON number, as it is spelt."""

    __slots__ = ()


def parse(text: str) -> dict[str, Any]:
    """Parses a text that is one JSON object, white space around it allowed.

    Returns:
        Objects as dict, arrays as list, strings as str, numbers as :class:`Number`.

    Raises:
        FormatError: J-1 to J-4. ``offset`` counts bytes of UTF-8 from the start of the text.
    """
    stripped = text.lstrip(_WHITE_SPACE)
    value, end = parse_prefix(stripped)
    if stripped[end:].strip(_WHITE_SPACE):
        offset = utf8_length(text) - utf8_length(stripped[end:])
        raise FormatError("J-1", "found text after the JSON object", offset=offset)
    return value


def parse_prefix(text: str) -> tuple[dict[str, Any], int]:
    """Like :func:`parse` for an object at the very start of a text; also says where it ends."""
    raw = text.encode("utf-8", "surrogatepass")
    _check_depth(raw)
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        offset = utf8_length(text[: error.pos])
        raise FormatError("J-1", f"not JSON: {error.msg}", offset=offset) from error
    if not isinstance(value, dict):
        raise FormatError("J-1", f"expected a JSON object, found {_kind(value)}", offset=0)
    if b"\\u" in raw:
        _check_surrogates(value)
    return value, end


def utf8_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def integer(value: object) -> int | None:
    """The value of an integer spelt as J-5 wants it, else None."""
    if isinstance(value, Number) and _INTEGER.match(value) and int(value) <= LARGEST_INTEGER:
        return int(value)
    return None


def canonical(value: object) -> str:
    """Canonical JSON text of dicts, lists, strings and integers (spec 4)."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def is_string(value: object) -> bool:
    """Whether a parsed value is a JSON string."""
    return isinstance(value, str) and not isinstance(value, Number)


def _kind(value: object) -> str:
    if isinstance(value, Number):
        return "a number"
    kinds = {list: "an array", str: "a string", bool: "a boolean"}
    return kinds.get(type(value), "null")


def _check_depth(raw: bytes) -> None:
    """J-4, before a recursive parser sees the text; in linear time and bounded memory."""
    outside = _STRING.sub(b"", raw)
    if outside.count(b"{") + outside.count(b"[") <= DEEPEST:
        return
    brackets = np.frombuffer(outside, np.uint8)
    depth = 0
    for start in range(0, brackets.size, _DEPTH_CHUNK):
        depths = depth + np.cumsum(_STEP[brackets[start : start + _DEPTH_CHUNK]], dtype=np.int64)
        if depths.max() > DEEPEST:
            raise FormatError("J-4", f"JSON nested deeper than {DEEPEST}")
        depth = int(depths[-1])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise FormatError("J-2", f"JSON member {quote(name)} occurs twice in one object")
            seen.add(name)
    return members


def _no_constant(text: str) -> NoReturn:
    raise FormatError("J-1", f"not JSON: {text}")


def _check_surrogates(value: object) -> None:
    if isinstance(value, dict):
        for name, member in value.items():
            _check_surrogates(name)
            _check_surrogates(member)
    elif isinstance(value, list):
        for member in value:
            _check_surrogates(member)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FormatError("J-3", "lone surrogate in a JSON string") from error


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=Number,
    parse_float=Number,
    parse_constant=_no_constant,
)
