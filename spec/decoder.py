"""A strict decoder of the Endor format 1.1, to be read beside its specification.

It uses nothing but the standard library, takes the rules in the order in which the specification
has them, and names the rule at every check. It is made to be understood, not to be fast.

    decoder.py decode PATH [--digests]        a file, or a directory with a checkpoint
    decoder.py slice PATH NAME START STOP     SHA-256 of the elements START to STOP - 1
    decoder.py batch                          the same, one JSON request per line of stdin

The exit status is 0 for accept, 1 for reject, 2 for unsupported.
"""

import hashlib
import json
import math
import os
import re
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Invalid(Exception):
    """The file breaks a rule."""

    def __init__(self, rule: str, message: str, tensor: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.rule, self.message, self.tensor, self.offset = rule, message, tensor, offset


class Unsupported(Exception):
    """The file may be valid, but this decoder cannot read it, or cannot read this tensor."""

    def __init__(self, what: str, tensor: str | None = None) -> None:
        super().__init__(what)
        self.what, self.tensor = what, tensor


def check(
    condition: bool, rule: str, message: str, tensor: str | None = None, offset: int | None = None
) -> None:
    if not condition:
        raise Invalid(rule, message, tensor, offset)


def shown(value: Any) -> str:
    """A value from the file as it goes into a message: escaped, and not too long (S-4)."""
    return ascii(value[:60] if isinstance(value, str | list) else value)[:200]


# ---------------------------------------------------------------------------------- 4. JSON
#
# Python's own parser admits NaN and lone surrogates, keeps the last of two equal members, and has
# limits of its own for long numbers and deep nesting. So this is another one. Its functions take
# the place where a value begins, and return the value and the place behind it.

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 16
MAX_RANK = 64
OUT_OF_FORM = -1  # stands for every number that is not an integer as J-5 wants it

SPACE = re.compile(r"[ \t\n\r]*+")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
INTEGER = re.compile(r"0|[1-9][0-9]{0,15}")
STRING = re.compile(r'"((?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+)"')
# A pair of surrogates is tried before a single \u, so that a surrogate found by the latter is lone.
ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\(.)"
)
SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
WORDS = {"t": ("true", True), "f": ("false", False), "n": ("null", None)}


def skip_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    assert found  # no white space at all matches too
    return found.end()


def parse_value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """Parses any value; an object or an array at this place has the given depth."""
    first = text[at : at + 1]
    if first == '"':
        return parse_string(text, at)
    if first in ("{", "["):
        # This also bounds the recursion.
        check(depth <= MAX_DEPTH, "J-4", f"nested deeper than {MAX_DEPTH}", None, at)
        return parse_members(text, at, depth)
    if first in WORDS and text.startswith(WORDS[first][0], at):
        return WORDS[first][1], at + len(WORDS[first][0])
    number = NUMBER.match(text, at)
    if not number:
        raise Invalid("J-1", "not a JSON value", None, at)
    # Only what J-5 admits is converted: int() refuses very long numbers.
    integer = INTEGER.fullmatch(text, at, number.end())
    value = int(integer[0]) if integer else OUT_OF_FORM
    return (value if value <= MAX_INTEGER else OUT_OF_FORM), number.end()


def parse_string(text: str, at: int) -> tuple[str, int]:
    found = STRING.match(text, at)
    if not found:
        raise Invalid("J-1", "not a JSON string", None, at)

    def unescape(escape: re.Match[str]) -> str:
        high, low, single, short = escape.groups()
        if high:
            return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00)
        if short:
            return SHORT_ESCAPES.get(short, short)
        lone = 0xD800 <= int(single, 16) <= 0xDFFF
        check(not lone, "J-3", "lone surrogate", None, at + 1 + escape.start())
        return chr(int(single, 16))

    return ESCAPE.sub(unescape, found[1]), found.end()


def parse_members(text: str, at: int, depth: int) -> tuple[Any, int]:
    """Parses an object or an array."""
    close = "}" if text[at] == "{" else "]"
    members: dict[str, Any] = {}
    items: list[Any] = []
    at = skip_space(text, at + 1)
    if text.startswith(close, at):
        return (members if close == "}" else items), at + 1
    while True:
        if close == "}":
            start = at
            name, at = parse_string(text, at)
            check(name not in members, "J-2", f"a second member {shown(name)}", None, start)
            at = skip_space(text, at)
            check(text.startswith(":", at), "J-1", "no : after the name of a member", None, at)
            members[name], at = parse_value(text, skip_space(text, at + 1), depth + 1)
        else:
            value, at = parse_value(text, at, depth + 1)
            # No array with a meaning is longer than this and valid. The rest of one is read for
            # its syntax alone, so that 10^8 bytes of `[],[],[],` do not cost gigabytes.
            if len(items) <= MAX_RANK:
                items.append(value)
        at = skip_space(text, at)
        if text.startswith(close, at):
            return (members if close == "}" else items), at + 1
        check(text.startswith(",", at), "J-1", f"neither , nor {close}", None, at)
        at = skip_space(text, at + 1)


def parse_text(text: str) -> dict[str, Any]:
    """Parses a text that is one object, perhaps with white space around it (M-1, K-1)."""
    start = skip_space(text, 0)
    check(text.startswith("{", start), "J-1", "the text is not an object", None, start)
    value, end = parse_members(text, start, 1)
    end = skip_space(text, end)
    check(end == len(text), "J-1", "something follows the object", None, end)
    return value


def check_integers(value: Any, rule: str, what: str, tensor: str) -> list[int]:
    """`rule` is broken where this is no array of numbers, J-5 where a number has another form."""
    # The type is compared because bool is a kind of int for isinstance.
    good = isinstance(value, list) and all(type(item) is int for item in value)
    check(good, rule, f"{what} is not an array of integers", tensor)
    check(OUT_OF_FORM not in value, "J-5", f"a number in {what} is out of form", tensor)
    return value


def check_shape(value: Any, rule: str, tensor: str) -> list[int]:
    shape = check_integers(value, rule, "shape", tensor)
    check(len(shape) <= MAX_RANK, "C-8", f"shape has more than {MAX_RANK} members", tensor)
    return shape


# ----------------------------------------------------------------------------- 5. Container

MAX_HEADER = 100_000_000
DTYPES = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "C64 F64 I64 U64",
}
BITS = {dtype: bits for bits, dtypes in DTYPES.items() for dtype in dtypes.split()}
ENCODABLE = {dtype for dtype, bits in BITS.items() if bits % 8 == 0}


class Physical(NamedTuple):
    """A tensor that the header lists; `begin` and `end` count from the start of the file."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def read_range(path: str, begin: int, end: int) -> bytes:
    # Opening the file anew each time lets a checkpoint have more shards than files may be open.
    with open(path, "rb") as file:
        file.seek(begin)
        data = file.read(end - begin)
    if len(data) != end - begin:
        raise Unsupported("the file became shorter while it was read")
    return data


def read_header(path: str) -> tuple[dict[str, Physical], dict[str, str]]:
    """Rules J and C: the physical tensors of a file, and its `__metadata__`."""
    size = os.stat(path).st_size
    check(size >= 8, "C-1", "shorter than 8 bytes", None, 0)
    length = int.from_bytes(read_range(path, 0, 8), "little")
    check(length <= MAX_HEADER, "C-2", f"the header has {length} bytes", None, 0)
    check(8 + length <= size, "C-3", f"the header has {length} bytes, the file {size}", None, 0)
    try:
        text = read_range(path, 8, 8 + length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("C-4", f"header: {error.reason}", None, 8 + error.start) from None
    check(text.startswith("{"), "C-5", "the header does not begin with {", None, 8)
    try:
        header, end = parse_members(text, 0, 1)
        check(not text[end:].strip(" "), "C-5", "not only spaces after the object", None, end)
    except Invalid as error:
        at = len(text[: error.offset].encode())  # characters to bytes
        raise Invalid(error.rule, f"header: {error.message}", None, 8 + at) from None

    metadata = header.pop("__metadata__", {})
    good = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    check(good, "C-7", "__metadata__ is not an object of strings")
    start = 8 + length
    tensors = {name: check_physical(name, m, start, size) for name, m in header.items()}
    check_layout(tensors, start, size)
    return tensors, metadata


def check_physical(name: str, member: Any, start: int, size: int) -> Physical:
    """Rules C-6 to C-10 for one member of the header."""
    check(isinstance(member, dict), "C-6", "not an object", name)
    dtype = member.get("dtype")
    check(isinstance(dtype, str), "C-6", "dtype is not a string", name)
    shape = check_shape(member.get("shape"), "C-6", name)
    offsets = check_integers(member.get("data_offsets"), "C-6", "data_offsets", name)
    check(len(offsets) == 2, "C-6", "data_offsets does not have two members", name)
    begin, end = start + offsets[0], start + offsets[1]
    check(begin <= end <= size, "C-9", f"data_offsets {offsets}", name)
    if dtype in BITS:
        # math.prod is exact, so a factor 0 gives 0 however large the others are.
        good = 8 * (end - begin) == math.prod(shape) * BITS[dtype]
        check(good, "C-10", f"{end - begin} bytes for {dtype} {shown(shape)}", name, begin)
    return Physical(dtype, shape, begin, end)


def check_layout(tensors: dict[str, Physical], start: int, size: int) -> None:
    """Rules C-11 to C-13: the tensors cover the data section, each byte once."""
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        check(tensor.begin >= at, "C-11", "overlaps the tensor before it", name, tensor.begin)
        check(tensor.begin <= at, "C-12", f"a hole of {tensor.begin - at} bytes", name, at)
        at = tensor.end
    check(at == size, "C-13", f"{size - at} bytes after the last tensor", None, at)


# -------------------------------------------------- 6. Metadata, 7. Logical tensors and parts

VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")
DIGEST = re.compile(r"(?!xxh3_64:)[a-z0-9_]+:[0-9a-f]+|xxh3_64:[0-9a-f]{16}")

FLOATS = {  # section 8.3: the bits of the exponent, E, and of the mantissa, M
    "BF16": (8, 7),
    "F16": (5, 10),
    "F32": (8, 23),
    "F8_E4M3": (4, 3),
    "F8_E4M3FNUZ": (4, 3),
    "F8_E5M2": (5, 2),
    "F8_E5M2FNUZ": (5, 2),
}
ENCODINGS = {  # section 8: positions and values, and the dtypes that they have together
    ("bitmap", "raw"): ENCODABLE,
    ("bitmap", "split"): set(FLOATS),
    ("all", "split"): set(FLOATS),
}


class Logical(NamedTuple):
    """What the user sees.

    `parts` holds the parts by name, in the order of the table of B-2; of a plain tensor, itself.
    `meaning` holds those members of the entry that its encoding gives a meaning.
    """

    path: str
    name: str
    dtype: str
    shape: list[int]
    parts: dict[str, Physical]
    meaning: dict[str, Any] | None = None  # of encoded tensors only
    digest: str | None = None
    unsupported: str | None = None


class File(NamedTuple):
    physical: dict[str, Physical]
    logical: dict[str, Logical]
    keys: list[str]  # the names of the encoded tensors
    unsupported: str | None = None  # why the file is unsupported as a whole


def roundup(x: int, y: int) -> int:
    return -(-x // y) * y


def names_below(sorted_names: list[str], key: str) -> list[str]:
    """All names that begin with `key.endor.`; they stand together, as the names are sorted."""
    prefix = f"{key}.endor."
    start = end = bisect_left(sorted_names, prefix)
    while end < len(sorted_names) and sorted_names[end].startswith(prefix):
        end += 1
    return sorted_names[start:end]


def open_file(path: str) -> File:
    """All rules that can be checked before any data is read."""
    physical, metadata = read_header(path)
    if "endor" not in metadata:
        for name in physical:
            lost = name.endswith((".endor.index", ".endor.bitmap"))
            check(not lost, "T-6", "a part, but the file has no Endor metadata", name)
        return File(physical, {name: plain(path, name, t) for name, t in physical.items()}, [])
    try:
        endor = parse_text(metadata["endor"])
    except Invalid as error:
        message = f"endor object: {error.message} (at character {error.offset})"
        raise Invalid(error.rule, message) from None
    version = endor.get("version")
    found = VERSION.fullmatch(version) if isinstance(version, str) else None
    if not found:
        raise Invalid("M-2", f"version {shown(version)}")
    if found[1] != "1":
        return File(physical, {}, [], f"V-1: format version {version}")  # minor: V-2
    entries = endor.get("tensors")
    good = isinstance(entries, dict) and all(isinstance(e, dict) for e in entries.values())
    check(good, "M-3", "tensors is not an object of objects")
    reasons = {key: check_entry(key, entry) for key, entry in entries.items()}

    keys, names = sorted(entries), sorted(physical)
    for key in keys:
        check(key != "__metadata__", "T-1", "a reserved name", key)
        stray = f"{key}.endor" in entries or names_below(keys, key)
        check(not stray, "T-1", "another key is named like a part, or would share parts", key)
    # T-1 also bounds how many keys a name lies below, so the following is not quadratic.
    logical, belonging = {}, set()
    for key, entry in entries.items():
        check(key in physical, "T-2", "no physical tensor of this name", key)
        below = names_below(names, key)
        belonging.update(below, [key])
        if reasons[key]:  # T-7
            logical[key] = Logical(path, key, "", [], {}, unsupported=reasons[key])
        else:
            parts = check_parts(key, entry, below, physical)
            dtype, shape, digest = entry["dtype"], entry["shape"], entry.get("digest")
            meaning = with_meaning(entry)
            logical[key] = Logical(path, key, dtype, shape, parts, meaning, digest)
    others = {name: plain(path, name, t) for name, t in physical.items() if name not in belonging}
    return File(physical, {**logical, **others}, keys)


def plain(path: str, name: str, tensor: Physical) -> Logical:
    reason = None if tensor.dtype in BITS else f"C-14: dtype {shown(tensor.dtype)}"
    return Logical(path, name, tensor.dtype, tensor.shape, {"itself": tensor}, unsupported=reason)


def check_entry(key: str, entry: dict[str, Any]) -> str | None:
    """Rules M-4 to M-8 for one entry: why it is not supported, or None if it is."""
    for member in ("dtype", "positions", "values", *{"digest"} & entry.keys()):
        check(isinstance(entry.get(member), str), "M-4", f"{member} is not a string", key)
    shape = check_shape(entry.get("shape"), "M-4", key)
    if "digest" in entry:
        good = bool(DIGEST.fullmatch(entry["digest"]))
        check(good, "D-1", f"digest {shown(entry['digest'])}", key)
    dtype, positions, values = entry["dtype"], entry["positions"], entry["values"]
    if dtype not in ENCODINGS.get((positions, values), set()):
        return f"M-7: positions {shown(positions)} with values {shown(values)} for {shown(dtype)}"

    if positions == "bitmap":
        check_number(entry, "nnz", 0, math.prod(shape), "M-5", key)
    if values == "split":
        e_bits, m_bits = FLOATS[dtype]
        check_number(entry, "w", 1, min(4, e_bits - 1), "M-8", key)
        check_number(entry, "mantissa", 0, m_bits, "M-8", key)
        check_number(entry, "patches", 0, stored_elements(entry), "M-8", key)
    return None


def check_number(entry: dict[str, Any], member: str, least: int, most: int, rule: str, key: str) -> None:
    number = entry.get(member)
    check(type(number) is int, rule, f"{member} is not an integer", key)
    check(number != OUT_OF_FORM, "J-5", f"{member} is out of form", key)
    check(least <= number <= most, rule, f"{member} is {number}, not {least} to {shown(most)}", key)


def with_meaning(entry: dict[str, Any]) -> dict[str, Any]:
    """The members that D-2 lists, sorted by name."""
    members = ["dtype", "positions", "shape", "values"]
    if entry["positions"] == "bitmap":
        members += ["nnz"]
    if entry["values"] == "split":
        members += ["mantissa", "patches", "w"]
    return {member: entry[member] for member in sorted(members)}


def stored_elements(entry: dict[str, Any]) -> int:
    """The number n of section 2."""
    return entry["nnz"] if entry["positions"] == "bitmap" else math.prod(entry["shape"])


def check_parts(
    key: str, entry: dict[str, Any], below: list[str], physical: dict[str, Physical]
) -> dict[str, Physical]:
    """Rules T-2 to T-5 for one tensor."""
    expected = table_of_parts(entry)
    names = {part: key if part == "values" else f"{key}.endor.{part}" for part in expected}
    for name in names.values():
        check(name in physical, "T-2", f"no part {shown(name)}", key)
    for name in below:
        check(name in names.values(), "T-3", f"{shown(name)} is not one of its parts", key)
    for part, (dtype, shape) in expected.items():
        found = physical[names[part]]
        good = found.dtype == dtype and found.shape == shape
        message = f"{shown(found.dtype)} {shown(found.shape)}, not {dtype} {shown(shape)}"
        check(good, "T-4", f"{shown(names[part])} is {message}", key, found.begin)
    check(physical[key].shape != entry["shape"], "T-5", "its part has the logical shape", key)
    return {part: physical[name] for part, name in names.items()}


def table_of_parts(entry: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """The table of B-2: dtype and shape of each part that the encoding has, in order."""
    bitmap, split = entry["positions"] == "bitmap", entry["values"] == "split"
    numel, n = math.prod(entry["shape"]), stored_elements(entry)
    blocks = block_count(numel)
    table: dict[str, tuple[str, list[int]]] = {}
    if split:
        table["values"] = ("U8", [roundup(n, 512) // 64, Split.of(entry).row_bytes])
    else:
        itemsize = BITS[entry["dtype"]] // 8
        table["values"] = (entry["dtype"], [roundup(n * itemsize, 64) // itemsize])
    if bitmap:
        table["bitmap"] = ("U8", [roundup(-(-numel // 8), 64)])
    length = roundup(blocks + 1, 8)
    if bitmap and not split:
        table["index"] = ("I64", [length])
    else:
        table["index"] = ("I64", [bitmap + split, length])  # so many rows
    if split:
        table["bases"] = ("U8", [roundup(blocks, 64)])
        table["patches"] = ("U8", [roundup(entry["patches"], 64), 3])
    return table


# ----------------------------------------------------------------------------- 8. Encodings

BLOCK = 4096
CHUNK = 1_000_000

Fetch = Callable[[str, int, int], bytes]  # of the part of this name, from byte, to byte


def block_count(numel: int) -> int:
    return -(-numel // BLOCK)


def decode(tensor: Logical, digests: bool) -> tuple[Iterator[bytes], str | None]:
    """The dense bytes, and the digest algorithm that could not be checked though it was asked.

    The tensor is right only if the iterator ends without an exception.
    """
    if not tensor.meaning:
        return read_plain(tensor, 0, math.prod(tensor.shape) * BITS[tensor.dtype] // 8), None
    # Each part is read once: the digest, the checks and the elements are of the same bytes (S-3).
    parts = {name: read_range(tensor.path, part.begin, part.end) for name, part in tensor.parts.items()}
    unverified = check_digest(tensor, parts) if digests else None

    def fetch(name: str, begin: int, end: int) -> bytes:
        return parts[name][begin:end]

    return decode_blocks(tensor, 0, block_count(math.prod(tensor.shape)), fetch), unverified


def decode_slice(tensor: Logical, start: int, stop: int) -> Iterator[bytes]:
    """The elements start to stop - 1, of which only the blocks are read (B-11)."""
    bits = BITS[tensor.dtype]
    if not tensor.meaning:
        if start * bits % 8 or stop * bits % 8:
            raise Unsupported("the slice does not begin and end with a whole byte", tensor.name)
        yield from read_plain(tensor, start * bits // 8, stop * bits // 8)
    elif start < stop:

        def fetch(name: str, begin: int, end: int) -> bytes:
            part = tensor.parts[name]
            return read_range(tensor.path, part.begin + begin, min(part.begin + end, part.end))

        first, after = start // BLOCK, block_count(stop)
        for b, dense in enumerate(decode_blocks(tensor, first, after, fetch), first):
            low, high = max(start - b * BLOCK, 0), stop - b * BLOCK
            yield dense[low * bits // 8 : high * bits // 8]


def read_plain(tensor: Logical, begin: int, end: int) -> Iterator[bytes]:
    start = tensor.parts["itself"].begin
    for at in range(begin, end, CHUNK):
        yield read_range(tensor.path, start + at, start + min(at + CHUNK, end))


def decode_blocks(tensor: Logical, first: int, after: int, fetch: Fetch) -> Iterator[bytes]:
    """The dense bytes of the blocks `first` to `after` - 1, one by one."""
    entry = tensor.meaning or {}
    bitmap = entry["positions"] == "bitmap"
    split = Split.of(entry) if entry["values"] == "split" else None
    numel, n, size = math.prod(tensor.shape), stored_elements(entry), BITS[tensor.dtype] // 8
    zero = bytes(size)
    is_last = after == block_count(numel)  # some rules are about what follows the last block

    if bitmap and is_last:
        check_bitmap_end(tensor, numel, fetch)
    index = check_index(tensor, first, after, fetch)
    for b in range(first, after):
        # Where the stored elements are: bit i of `bits` is 1 if element i of the block is stored.
        count = min(BLOCK, numel - b * BLOCK)
        if bitmap:
            low, high = index["stored"].around(b)
            bits = int.from_bytes(fetch("bitmap", 512 * b, 512 * b + 512), "little")
            message = f"block {b}: {high - low} elements, {bits.bit_count()} bits"
            offset = index["stored"].begin + 8 * b + 8
            check(high - low == bits.bit_count(), "B-6", message, tensor.name, offset)
        else:
            low, high, bits = b * BLOCK, b * BLOCK + count, (1 << count) - 1
        # What they are: those of rank `low` to `high` - 1, as bytes.
        if split:
            stored = split_block(tensor, split, b, low, high, index["patches"], fetch)
        else:
            data = fetch("values", low * size, high * size)
            stored = [data[at : at + size] for at in range(0, len(data), size)]
        if bitmap and zero in stored:
            rank = low + stored.index(zero)
            at = rank // 64 * split.row_bytes if split else rank * size
            offset = tensor.parts["values"].begin + at
            raise Invalid("B-10", f"the element of rank {rank} is zero", tensor.name, offset)
        following = iter(stored)
        yield b"".join(next(following) if bits >> i & 1 else zero for i in range(count))

    if is_last and not split:
        check_zeros(tensor, "values", n * size, "B-9", fetch)
    if is_last and split:
        check_values_end(tensor, split, n, fetch)
        check_zeros(tensor, "bases", block_count(numel), "E-4", fetch)
        check_zeros(tensor, "patches", 3 * entry["patches"], "E-8", fetch)


def check_zeros(tensor: Logical, name: str, used: int, rule: str, fetch: Fetch) -> None:
    """Checks that a part is 0 after its first `used` bytes."""
    part = tensor.parts[name]
    tail = fetch(name, used, part.end - part.begin)
    bad_at = used + len(tail) - len(tail.lstrip(b"\0"))
    check(not any(tail), rule, f"the padding of {name} is not 0", tensor.name, part.begin + bad_at)


def check_bitmap_end(tensor: Logical, numel: int, fetch: Fetch) -> None:
    """B-3."""
    part = tensor.parts["bitmap"]
    tail = int.from_bytes(fetch("bitmap", numel // 8, part.end - part.begin), "little")
    offset = part.begin + numel // 8 + max(tail.bit_length() - 1, 0) // 8
    check(tail >> numel % 8 == 0, "B-3", "a bit after the last element", tensor.name, offset)


class Row(NamedTuple):
    """A row of the index, or as much of it as is needed."""

    tensor: str
    begin: int  # the place in the file of entry 0
    last: int  # what entry nb is
    first: int  # the number of the first one of `entries`
    entries: tuple[int, ...]

    def around(self, b: int) -> tuple[int, int]:
        """Entries b and b + 1: the number of things before block b, and up to its end."""
        low, high = self.entries[b - self.first : b - self.first + 2]
        # As the row begins with 0 (B-4) and ends with `last` (B-7), an entry that is not between
        # them shows that some entry is less than the one before it, even if these are not read.
        good = 0 <= low <= high <= self.last
        message = f"entries {low}, {high} of block {b}, the last one is {self.last}"
        check(good, "B-5", message, self.tensor, self.begin + 8 * b + 8)
        return low, high


def check_index(tensor: Logical, first: int, after: int, fetch: Fetch) -> dict[str, Row]:
    """B-4, B-8 and B-7; returns the rows, each with its entries `first` to `after`."""
    entry = tensor.meaning or {}
    lasts = {}  # of each row that there is, entry nb
    if entry["positions"] == "bitmap":
        lasts["stored"] = entry["nnz"]
    if entry["values"] == "split":
        lasts["patches"] = entry["patches"]
    blocks = block_count(math.prod(tensor.shape))
    length = roundup(blocks + 1, 8)

    def entries(row: int, begin: int, end: int) -> tuple[int, ...]:
        data = fetch("index", 8 * (row * length + begin), 8 * (row * length + end))
        return struct.unpack(f"<{end - begin}q", data)

    begins = [tensor.parts["index"].begin + 8 * row * length for row in range(len(lasts))]
    for row, begin in enumerate(begins):
        (zeroth,) = entries(row, 0, 1)
        check(zeroth == 0, "B-4", f"entry 0 of row {row} is {zeroth}", tensor.name, begin)
    for row, begin in enumerate(begins if after == blocks else []):
        good = not any(entries(row, blocks + 1, length))
        offset = begin + 8 * (blocks + 1)
        check(good, "B-8", f"the padding of row {row} is not 0", tensor.name, offset)
    for row, (begin, last) in enumerate(zip(begins, lasts.values(), strict=True)):
        (found,) = entries(row, blocks, blocks + 1)
        message = f"entry {blocks} of row {row} is {found}, not {last}"
        check(found == last, "B-7", message, tensor.name, begin + 8 * blocks)
    return {
        name: Row(tensor.name, begin, last, first, entries(row, first, after + 1))
        for row, (begin, (name, last)) in enumerate(zip(begins, lasts.items(), strict=True))
    }


class Split(NamedTuple):
    """The numbers of section 8.3, by its letters, and what follows from them alone."""

    E: int  # bits of an exponent
    M: int  # bits of a mantissa
    m: int  # bits of a mantissa that are kept
    w: int  # bits of a code

    @staticmethod
    def of(entry: dict[str, Any]) -> "Split":
        return Split(*FLOATS[entry["dtype"]], entry["mantissa"], entry["w"])

    @property
    def row_bytes(self) -> int:
        """Of a group: 64 times the s = 1 + m bits of a residue and the w bits of a code."""
        return 8 * (1 + self.m + self.w)

    def pairs(self, rows: bytes) -> list[tuple[int, int]]:
        """E-1: the residue and the code of every element of some groups."""
        whole, rest = divmod(1 + self.m, 8)  # P and R
        pairs = []
        for at in range(0, len(rows), self.row_bytes):
            # P bytes of each residue; then planes with one bit of each element. A plane is
            # eight bytes, and as one number (little-endian) has the bit of element j as its bit j.
            planes = struct.unpack_from(f"<{rest + self.w}Q", rows, at + 64 * whole)
            for j in range(64):
                residue = code = 0
                for p in range(whole):
                    residue |= rows[at + 64 * p + j] << 8 * p
                for q, plane in enumerate(planes[:rest]):
                    residue |= (plane >> j & 1) << 8 * whole + q
                for q, plane in enumerate(planes[rest:]):
                    code |= (plane >> j & 1) << q
                pairs.append((residue, code))
        return pairs

    def element(self, residue: int, exponent: int) -> bytes:
        """The last sentence of section 8.3."""
        sign, mantissa = divmod(residue, 2**self.m)
        element = sign << self.E + self.M | exponent << self.M | mantissa << self.M - self.m
        return element.to_bytes((1 + self.E + self.M) // 8, "little")


def split_block(
    tensor: Logical, split: Split, b: int, low: int, high: int, patches: Row, fetch: Fetch
) -> list[bytes]:
    """The stored elements of block b, which are those of rank `low` to `high` - 1."""
    name, stored, window = tensor.name, high - low, 2**split.w
    first_group, after_groups = low // 64, -(-high // 64)
    rows = fetch("values", first_group * split.row_bytes, after_groups * split.row_bytes)
    begin = low - 64 * first_group  # the first group may begin in the block before
    pairs = split.pairs(rows)[begin : begin + stored]

    first, after = patches.around(b)
    base = fetch("bases", b, b + 1)[0]
    good = base <= 2**split.E - window and (base == 0 or stored > 0)
    message = f"the base of block {b} is {base}"
    check(good, "E-3", message, name, tensor.parts["bases"].begin + b)
    exponents = {}  # those that are in a patch, by rank within the block
    previous = -1
    # One patch more than there are elements is enough to break E-5, whatever the index says.
    data = fetch("patches", 3 * first, 3 * min(after, first + stored + 1))
    for number, (rank, exponent) in enumerate(struct.iter_unpack("<HB", data), first):
        what, offset = f"patch {number}", tensor.parts["patches"].begin + 3 * number
        message = f"{what} is of rank {rank}, after {previous}, of {stored} in the block"
        check(previous < rank < stored, "E-5", message, name, offset)
        good = exponent < 2**split.E and not base <= exponent < base + window
        check(good, "E-6", f"{what} is {exponent}, the base {base}", name, offset)
        check(pairs[rank][1] == 0, "E-7", f"the code under {what} is not 0", name, offset)
        exponents[rank] = exponent
        previous = rank
    return [
        split.element(residue, exponents.get(rank, base + code)) for rank, (residue, code) in enumerate(pairs)
    ]


def check_values_end(tensor: Logical, split: Split, n: int, fetch: Fetch) -> None:
    """E-2: the last group with elements may have room for more, and others may follow it."""
    part = tensor.parts["values"]
    at = n // 64 * split.row_bytes
    beyond = split.pairs(fetch("values", at, part.end - part.begin))[n % 64 :]
    good = all(residue == code == 0 for residue, code in beyond)
    check(good, "E-2", f"a bit of an element of rank {n} or above", tensor.name, part.begin + at)


# -------------------------------------------------------------------------------- 9. Digest

MASK = 2**64 - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
P_MX1 = 0x165667919E3779F9
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
SECRET_WORDS = [int.from_bytes(SECRET[i : i + 8], "little") for i in range(len(SECRET) - 7)]


def word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def fold(a: int, b: int) -> int:
    """The two halves of a 128-bit product, mixed."""
    product = a * b
    return (product & MASK) ^ (product >> 64)


def avalanche(h: int) -> int:
    h = (h ^ h >> 37) * P_MX1 & MASK
    return h ^ h >> 32


def mix_16(data: bytes, at: int, key: int) -> int:
    low, high = word(data, at), word(data, at + 8)
    return fold(low ^ SECRET_WORDS[key], high ^ SECRET_WORDS[key + 8])


def xxh3_64(data: bytes) -> int:
    """XXH3-64 with seed 0, for the lengths that occur.

    The canonical text has at least 77 bytes and an index 64, so that what XXH3 does with less than
    129 bytes is not needed.
    """
    n = len(data)
    if n <= 240:
        h = n * P64_1 + sum(mix_16(data, 16 * i, 16 * i) for i in range(8))
        h = avalanche(h & MASK)
        h += sum(mix_16(data, 16 * i, 16 * (i - 8) + 3) for i in range(8, n // 16))
        return avalanche(h + mix_16(data, n - 16, 136 - 17) & MASK)
    return xxh3_64_long(data)


def xxh3_64_long(data: bytes) -> int:
    """Stripes of 64 bytes feed eight accumulators, which are scrambled after each 16 stripes."""
    lanes = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]
    stripes = (len(data) - 1) // 64
    for i in range(stripes):
        accumulate(lanes, data, 64 * i, 8 * (i % 16))
        if i % 16 == 15:
            for j, lane in enumerate(lanes):
                lanes[j] = (lane ^ lane >> 47 ^ SECRET_WORDS[128 + 8 * j]) * P32_1 & MASK
    accumulate(lanes, data, len(data) - 64, 121)
    h = len(data) * P64_1
    for j in range(0, 8, 2):
        h += fold(lanes[j] ^ SECRET_WORDS[11 + 8 * j], lanes[j + 1] ^ SECRET_WORDS[19 + 8 * j])
    return avalanche(h & MASK)


def accumulate(lanes: list[int], data: bytes, at: int, key: int) -> None:
    for j in range(8):
        value = word(data, at + 8 * j)
        keyed = value ^ SECRET_WORDS[key + 8 * j]
        lanes[j ^ 1] = lanes[j ^ 1] + value & MASK
        lanes[j] = lanes[j] + (keyed & 0xFFFFFFFF) * (keyed >> 32) & MASK


def check_digest(tensor: Logical, parts: dict[str, bytes]) -> str | None:
    """D-2; returns the algorithm if it is an unknown one (D-4)."""
    if tensor.digest is None:
        return None
    algorithm, digits = tensor.digest.split(":")
    if algorithm != "xxh3_64":
        return algorithm
    # With these arguments json.dumps gives the canonical text: it escapes what section 4 does.
    text = json.dumps({tensor.name: tensor.meaning}, ensure_ascii=False, separators=(",", ":"))
    computed = f"{xxh3_64(text.encode() + b''.join(parts.values())):016x}"
    check(computed == digits, "D-2", f"the digest is {digits}, computed {computed}", tensor.name)
    return None


# ---------------------------------------------------------------- 11. Checkpoint directories

INDEX_NAME = re.compile(r"model\.safetensors\.index\.endor(\..+)?\.json", re.DOTALL)
WEIGHTS_NAME = re.compile(r"model\.endor(|[.-].*)\.safetensors", re.DOTALL)
DENSE_NAME = re.compile(
    r"model([.-].*)?\.safetensors|pytorch_model.*\.bin"
    r"|model\.safetensors\.index(?!\.(endor|dense)\.)\..*json",
    re.DOTALL,
)
SHARD_NAME = re.compile(r"model\.endor(\..+?)??-[0-9]{5}-of-[0-9]{5}\.safetensors", re.DOTALL)
UNSAFE = re.compile(r"[/\\:\x00-\x1f]")
OTHER_NAME = re.compile(r"model\.endor-(.+)\.file\.safetensors", re.DOTALL)


def open_directory(path: str) -> list[File]:
    names = sorted(os.listdir(path))
    ours = set(filter(WEIGHTS_NAME.fullmatch, names))
    dense = set(filter(DENSE_NAME.fullmatch, names)) - ours
    check(not ours or not dense, "K-5", "dense weights or their index beside Endor weights")
    for config in sorted({"config.json", "config.dense.json"}.intersection(names)):
        check_config(os.path.join(path, config))
    restored = {dense_name(file_name) for file_name in sorted(ours)}
    # Where there are several variants, the one without a further name is meant.
    indices = sorted(filter(INDEX_NAME.fullmatch, names), key=len)
    for file_name in sorted(ours):
        shard = SHARD_NAME.fullmatch(file_name)
        missing = shard and f"model.safetensors.index.endor{shard[1] or ''}.json" not in indices
        check(not missing, "K-2", f"{shown(file_name)} has no index")
    singles = sorted(ours, key=len)
    if not indices and len(singles) != 1:
        raise Unsupported(f"a directory with {len(ours)} Endor files and no index")
    if not indices:
        return [open_shard(path, singles[0])]

    weight_map = read_index(os.path.join(path, indices[0]))
    shards: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        shards.setdefault(file_name, set()).add(name)
    for file_name in shards:
        # A name that the system does not accept is not that of a file either.
        good = WEIGHTS_NAME.fullmatch(file_name) and os.path.isfile(os.path.join(path, file_name))
        check(bool(good), "K-2", f"no Endor weights {shown(file_name)}")
    variant = INDEX_NAME.fullmatch(indices[0])
    for file_name in sorted(ours - shards.keys()):
        found = SHARD_NAME.fullmatch(file_name)
        stray = found and variant and found[1] == variant[1]
        check(not stray, "K-2", f"{shown(file_name)} is not in the index")
    stem = "model.safetensors.index"
    kept = os.path.join(path, f"{stem}.dense" + indices[0].removeprefix(f"{stem}.endor"))
    if os.path.exists(kept):
        named = set(read_index(kept, folders=True).values()) - restored
        gone = [name for name in named if not os.path.isfile(os.path.join(path, name + ".dense"))]
        check(not gone, "K-10", "the kept index names files that are not restored")
    files = {file_name: open_shard(path, file_name) for file_name in sorted(shards)}
    for file_name, file in files.items():
        for name in sorted(shards[file_name] ^ file.physical.keys()):
            raise Invalid("K-3", f"the index and {shown(file_name)} differ", name)
    names = sorted(weight_map)
    for file_name, file in files.items():
        for key in file.keys:
            strays = [n for n in names_below(names, key) if weight_map[n] != file_name]
            check(not strays, "K-4", f"{shown(strays[:1])} is in another file", key)
    return list(files.values())


def dense_name(file_name: str) -> str:
    """K-11."""
    match = OTHER_NAME.fullmatch(file_name)
    if not match:
        return "model" + file_name.removeprefix("model.endor")
    name = re.sub("%([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), match[1])
    again = re.sub(r"[%/\\:\x00-\x1f]", lambda one: f"%{ord(one[0]):02X}", name)
    dense = name + ".safetensors"
    endor = f"model.endor{dense[5:]}"
    # What only needs .endor in its name has another Endor name.
    plain = re.fullmatch(r"model([.-].*)?\.safetensors", dense, re.DOTALL) and not UNSAFE.search(dense)
    plain = plain and not WEIGHTS_NAME.fullmatch(dense) and not OTHER_NAME.fullmatch(endor)
    good = again == match[1] and not plain and all(map(is_file_name, name.split("/")))
    check(good, "K-11", f"{shown(file_name)} stands for no name")
    return dense


def is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not UNSAFE.search(name)


def read_index(path: str, folders: bool = False) -> dict[str, str]:
    """K-1. A broken rule J is reported as K-1, for it is K-1 that applies those rules here."""
    size = os.stat(path).st_size
    if not os.path.isfile(path) or size > MAX_HEADER:
        raise Unsupported("the index is not a file, or too large")
    try:
        weight_map = parse_text(read_range(path, 0, size).decode("utf-8")).get("weight_map")
    except UnicodeDecodeError as error:
        raise Invalid("K-1", f"index: {error.reason}", None, error.start) from None
    except Invalid as error:
        raise Invalid("K-1", f"index: {error.rule}: {error.message}") from None
    if not isinstance(weight_map, dict):
        raise Invalid("K-1", "weight_map is not an object")
    for name, file_name in weight_map.items():
        good = isinstance(file_name, str)
        good = good and all(map(is_file_name, file_name.split("/") if folders else [file_name]))
        check(good, "K-1", f"{shown(file_name)} is not the name of a file", name)
    return weight_map


def check_config(path: str) -> None:
    """K-8. Other software writes this file, so that the rules J are not asked of it."""
    try:
        config = json.loads(read_range(path, 0, os.stat(path).st_size))
    except (ValueError, RecursionError):
        config = None
    check(isinstance(config, dict), "K-8", "config.json is not a JSON object")


def open_shard(path: str, file_name: str) -> File:
    try:
        return open_file(os.path.join(path, file_name))
    except Invalid as error:
        message = f"{shown(file_name)}: {error.message}"
        raise Invalid(error.rule, message, error.tensor, error.offset) from None


# ------------------------------------------------------------------------------ command line

Answer = tuple[int, dict[str, Any]]


def open_path(path: str) -> list[File]:
    if os.path.isdir(path):
        return open_directory(path)
    if not os.path.isfile(path):  # a pipe, say, could be read for ever
        raise Unsupported("there is no such file")
    return [open_file(path)]


def sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def run_decode(path: str, digests: bool) -> Answer:
    files = open_path(path)
    reasons = [file.unsupported for file in files if file.unsupported]
    tensors = {name: tensor for file in files for name, tensor in file.logical.items()}
    listed = []
    for name, tensor in sorted(tensors.items()):
        if tensor.unsupported:
            listed.append({"name": name, "unsupported": tensor.unsupported})
            reasons.append(f"{shown(name)}: {tensor.unsupported}")
            continue
        chunks, unverified = decode(tensor, digests)
        line = {"name": name, "dtype": tensor.dtype, "shape": tensor.shape}
        line["sha256"] = sha256(chunks)
        if unverified:
            line["unverified"] = unverified
            reasons.append(f"D-4: {shown(name)}: digest algorithm {shown(unverified)}")
        listed.append(line)
    if not reasons:
        return 0, {"result": "accept", "tensors": listed}
    return 2, {"result": "unsupported", "reason": reasons[0], "tensors": listed}


def run_slice(path: str, name: str, start: int, stop: int) -> Answer:
    files = open_path(path)
    tensor = next((file.logical[name] for file in files if name in file.logical), None)
    if not tensor:
        raise Unsupported("there is no tensor of this name that can be read", name)
    if tensor.unsupported:
        raise Unsupported(tensor.unsupported, name)
    if not 0 <= start <= stop <= math.prod(tensor.shape):
        raise Unsupported("the slice is not within the tensor", name)
    return 0, {"result": "accept", "sha256": sha256(decode_slice(tensor, start, stop))}


def answer(args: list[str]) -> Answer:
    try:
        match args:
            case ["decode", path]:
                return run_decode(path, False)
            case ["decode", path, "--digests"] | ["decode", "--digests", path]:
                return run_decode(path, True)
            case ["slice", path, name, start, stop]:
                return run_slice(path, name, int(start), int(stop))
            case ["encode", *_]:
                return 64, {}  # what adapters say of what they do not offer
        raise Unsupported("usage: decode PATH [--digests] | slice PATH NAME START STOP | batch")
    except Invalid as error:
        where = {"tensor": error.tensor, "offset": error.offset}
        return 1, {"result": "reject", "rule": error.rule, **where, "message": error.message}
    except Unsupported as error:
        return 2, {"result": "unsupported", "reason": error.what, "tensors": []}
    except MemoryError:
        return 2, {"result": "unsupported", "reason": "out of memory", "tensors": []}
    except (OSError, ValueError) as error:
        # ValueError: no integer, or a path that the system cannot have (NUL, lone surrogate).
        return 2, {"result": "unsupported", "reason": f"cannot read: {error!a}", "tensors": []}


def answer_line(line: str) -> Answer:
    try:
        args = json.loads(line)["args"]
        good = isinstance(args, list) and all(isinstance(arg, str) for arg in args)
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    return answer(args if good else [])


def main(args: list[str]) -> int:
    if args == ["batch"]:
        for line in sys.stdin:
            status, output = answer_line(line)
            print(json.dumps({"exit": status, "output": output}), flush=True)
        return 0
    status, output = answer(args)
    print(json.dumps(output))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
