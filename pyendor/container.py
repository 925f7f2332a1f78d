"""The safetensors container (spec 5, rules C): header bytes to entries and back, strictly.

No I/O happens here. A caller reads 8 bytes and asks :func:`header_length`, reads so many bytes and asks
:func:`parse`; a writer asks :func:`build` for the bytes before the data section.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyendor import dtypes, jsontext
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote

PREFIX = 8
LONGEST_HEADER = 100_000_000
LONGEST_WRITTEN_HEADER = 25_000_000
HIGHEST_RANK = 64
METADATA_KEY = "__metadata__"

# Files that people have beside safetensors ones. None of them is ever opened further: pickles run code.
_OTHERS = {
    b"PK": "a zip archive, as PyTorch's pickled checkpoints are (.bin, .pt, .pth)",
    b"\x80": "a pickle, as old PyTorch checkpoints are (.bin, .pt, .pth)",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A physical tensor.

    Attributes:
        name: its name in the header.
        dtype: as written; possibly one that this build does not know.
        shape: in elements.
        start, stop: byte offsets in the file, not in the data section.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """All that the header of a file says.

    Attributes:
        entries: the physical tensors by name, in the order of their data.
        metadata: the strings of ``__metadata__``; None where there is none.
        data_start: byte offset of the data section.
        file_length: length of the file in bytes.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] | None
    data_start: int
    file_length: int


def header_length(prefix: bytes, file_length: int) -> int:
    """Length of the header from the first bytes of a file (C-1 to C-3)."""
    if len(prefix) < PREFIX:
        found = f"file of {len(prefix)} bytes, too short for a safetensors header length"
        raise FormatError("C-1", found, offset=0)
    (length,) = struct.unpack("<Q", prefix[:PREFIX])
    if length > LONGEST_HEADER:
        found = f"header length {length} is over the limit of {LONGEST_HEADER} bytes"
        raise FormatError("C-2", f"{found}: {_looks_like(prefix) or 'this is no safetensors file'}", offset=0)
    if PREFIX + length > file_length:
        found = f"header of {length} bytes does not fit in a file of {file_length}"
        raise FormatError("C-3", f"{found}: {_looks_like(prefix) or 'is it truncated?'}", offset=0)
    return int(length)


def parse(header: bytes, file_length: int) -> Header:
    """Checks and reads a header (C-4 to C-13, rules J).

    Args:
        header: its bytes, without the 8 of the length.
        file_length: length of the whole file in bytes.
    """
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"header is not UTF-8: {error.reason}"
        raise FormatError("C-4", found, offset=PREFIX + error.start) from error
    if not text.startswith("{"):
        raise FormatError("C-5", "header does not begin with '{'", offset=PREFIX)
    try:
        members, end = jsontext.parse_prefix(text)
    except FormatError as error:
        offset = PREFIX + error.offset if error.offset is not None else None
        raise error.located(offset=offset) from None
    if text[end:].strip(" "):
        offset = PREFIX + jsontext.utf8_length(text[:end])
        raise FormatError("C-5", "found something but spaces after the header", offset=offset)
    data_start = PREFIX + len(header)
    metadata = _parse_metadata(members)
    entries = [
        _parse_entry(name, member, data_start, file_length)
        for name, member in members.items()
        if name != METADATA_KEY
    ]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_cover(entries, data_start, file_length)
    return Header({entry.name: entry for entry in entries}, metadata, data_start, file_length)


def numel(shape: Sequence[int]) -> int:
    """The number of elements of a shape, exactly.

    Python's integers do not wrap around, but 64 factors of 2**53 make no needless work either.
    """
    return 0 if 0 in shape else math.prod(shape)


def parse_shape(value: object, tensor: str, rule: str) -> tuple[int, ...]:
    """A shape from JSON: an array (else ``rule``) of integers (J-5), at most 64 of them (C-8)."""
    if not isinstance(value, list) or not all(isinstance(n, jsontext.Number) for n in value):
        raise FormatError(rule, "shape is not an array of integers", tensor=tensor)
    if len(value) > HIGHEST_RANK:
        found = f"shape of {len(value)} dimensions, over the limit of {HIGHEST_RANK}"
        raise FormatError("C-8", found, tensor=tensor)
    return tuple(parse_integer(n, tensor, "shape") for n in value)


def parse_integer(value: object, tensor: str, what: str) -> int:
    """An integer from JSON (J-5)."""
    number = jsontext.integer(value)
    if number is None:
        found = f"{what} has {quote(str(value))}, not an integer from 0 to 2**53 - 1"
        raise FormatError("J-5", found, tensor=tensor)
    return number


def build(entries: Iterable[Entry], metadata: Mapping[str, str] | None, alignment: int) -> bytes:
    """The bytes before the data section: length, header, spaces (W-1, W-2, W-4).

    Args:
        entries: in the order of their data; ``start`` and ``stop`` count from the data section.
        metadata: strings for ``__metadata__``; None leaves it out.
        alignment: the data section begins at a multiple of this many bytes.
    """
    members = []
    if metadata is not None:
        members.append(f"{jsontext.canonical(METADATA_KEY)}:{jsontext.canonical(dict(metadata))}")
    for entry in entries:
        if entry.name == METADATA_KEY:
            raise UsageError(f"a tensor cannot be named {METADATA_KEY!r} [rule W-8]")
        about = (
            f'"dtype":{jsontext.canonical(entry.dtype)},"shape":{jsontext.canonical(entry.shape)},'
            f'"data_offsets":[{entry.start},{entry.stop}]'
        )
        members.append(f"{jsontext.canonical(entry.name)}:{{{about}}}")
    try:
        header = ("{" + ",".join(members) + "}").encode()
    except UnicodeEncodeError as error:
        raise UsageError("a tensor name or metadata has a lone surrogate [rule J-3]") from error
    header += b" " * (-(PREFIX + len(header)) % alignment)
    if len(header) > LONGEST_WRITTEN_HEADER:
        raise UnsupportedError(
            f"the header would take {len(header)} bytes, over the limit of "
            f"{LONGEST_WRITTEN_HEADER}; split the tensors over several files [rule W-1]"
        )
    return struct.pack("<Q", len(header)) + header


def _looks_like(prefix: bytes) -> str:
    """What another kind of file is, and what to do; empty if it is none that people confuse."""
    known = [what for magic, what in _OTHERS.items() if prefix.startswith(magic)]
    return f"this is {known[0]}; convert it to safetensors first" if known else ""


def _parse_metadata(members: Mapping[str, Any]) -> dict[str, str] | None:
    if METADATA_KEY not in members:
        return None
    metadata = members[METADATA_KEY]
    if not isinstance(metadata, dict):
        raise FormatError("C-7", f"{METADATA_KEY} is not an object")
    for name, value in metadata.items():
        if not jsontext.is_string(value):
            raise FormatError("C-7", f"{METADATA_KEY} member {quote(name)} is not a string")
    return metadata


def _parse_entry(name: str, member: object, data_start: int, file_length: int) -> Entry:
    if not isinstance(member, dict):
        raise FormatError("C-6", "header member is not an object", tensor=name)
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in member]
    if missing:
        raise FormatError("C-6", f"header entry has no {missing[0]!r}", tensor=name)
    dtype, offsets = member["dtype"], member["data_offsets"]
    if not jsontext.is_string(dtype):
        raise FormatError("C-6", "dtype is not a string", tensor=name)
    shape = parse_shape(member["shape"], name, "C-6")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(isinstance(n, jsontext.Number) for n in offsets)
    ):
        raise FormatError("C-6", "data_offsets is not an array of two integers", tensor=name)
    begin, end = (parse_integer(n, name, "data_offsets") for n in offsets)
    length = file_length - data_start
    if not begin <= end <= length:
        found = f"data_offsets [{begin}, {end}] in a data section of {length} bytes"
        raise FormatError("C-9", found + "; truncated?", tensor=name, offset=data_start + begin)
    known = dtypes.BY_NAME.get(dtype)
    if known is not None and 8 * (end - begin) != numel(shape) * known.bits:
        found = f"{end - begin} bytes do not hold a {dtype} tensor of shape {_shown(shape)}"
        raise FormatError("C-10", found, tensor=name, offset=data_start + begin)
    return Entry(name, dtype, shape, data_start + begin, data_start + end)


def _shown(shape: Sequence[int]) -> str:
    return quote(str(list(shape)))[1:-1]


def _check_cover(entries: Sequence[Entry], data_start: int, file_length: int) -> None:
    """The tensors, in the order of their data, cover it without overlap, hole and rest."""
    at = data_start
    for entry in entries:
        if entry.start < at:
            found = f"its data overlaps the {at - entry.start} bytes before it"
            raise FormatError("C-11", found, tensor=entry.name, offset=entry.start)
        if entry.start > at:
            found = f"hole of {entry.start - at} bytes before its data"
            raise FormatError("C-12", found, tensor=entry.name, offset=at)
        at = entry.stop
    if at != file_length:
        raise FormatError("C-13", f"{file_length - at} bytes after the last tensor", offset=at)
