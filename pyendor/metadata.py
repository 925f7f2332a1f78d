"""The endor object (spec 6, rules M): JSON text to frozen dataclasses and back.

What a tensor looks like on disk follows from its :class:`TensorMeta` alone; :mod:`pyendor.layout` says how.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyendor import container, dtypes, jsontext
from pyendor.errors import FormatError, UnsupportedError, quote

KEY = "endor"
MAJOR = 1
LOWEST_VERSION = "1.0"
# How names end that show, in a file without an endor object, that it has lost it (T-6).
LOST_METADATA = (f".{KEY}.index", f".{KEY}.bitmap")

_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\Z")
_DIGEST = re.compile(r"([a-z0-9_]+):([0-9a-f]+)\Z")
_DIGEST_DIGITS = {"xxh3_64": 16}


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """The entry of an encoded tensor.

    Attributes:
        dtype: name of the element type.
        shape: the logical shape, in elements.
        positions, values: how the positions of stored elements, and the elements, are stored.
        nnz: number of stored elements; None where the encoding is unknown and has no such member.
        digest: ``"xxh3_64:" + 16`` hexadecimal digits, or None.
    """

    dtype: str
    shape: tuple[int, ...]
    positions: str
    values: str
    nnz: int | None
    digest: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return container.numel(self.shape)

    @property
    def unsupported(self) -> str | None:
        """What this build lacks to decode the tensor (M-7); None if it lacks nothing."""
        if self.positions != "bitmap":
            return f"positions {quote(self.positions)}"
        if self.values != "raw":
            return f"values {quote(self.values)}"
        dtype = dtypes.BY_NAME.get(self.dtype)
        if dtype is None or not dtype.encodable:
            return f"encoded dtype {quote(self.dtype)}"
        return None

    @property
    def digest_algorithm(self) -> str | None:
        """What its digest was made with."""
        return self.digest.partition(":")[0] if self.digest is not None else None

    def members(self) -> dict[str, Any]:
        """The members that the digest covers (D-2)."""
        return {
            "dtype": self.dtype,
            "nnz": self.nnz,
            "positions": self.positions,
            "shape": self.shape,
            "values": self.values,
        }


@dataclass(frozen=True, slots=True)
class Metadata:
    """The endor object of a file.

    Attributes:
        version: as written, ``"major.minor"``.
        tensors: the entries by logical name.
    """

    version: str
    tensors: Mapping[str, TensorMeta]


def parse(text: str) -> Metadata:
    """Reads an endor object (M-2 to M-5, D-1, T-1, rules J).

    Raises:
        FormatError: a rule is broken.
        UnsupportedError: another major version (V-1).
    """
    try:
        members = jsontext.parse(text)
    except FormatError as error:
        found = f"in the endor object: {error.found}"
        raise FormatError(error.rule, found) from None
    version = members.get("version")
    match = _VERSION.match(version) if isinstance(version, str) else None
    if match is None or not jsontext.is_string(version):
        raise FormatError("M-2", "the endor object has no version of the form '1.0'")
    if int(match[1]) != MAJOR:
        raise UnsupportedError(f"Endor format version {version}; this build reads {MAJOR}.x: upgrade pyendor")
    entries = members.get("tensors")
    if not isinstance(entries, dict):
        raise FormatError("M-3", "the endor object has no object 'tensors'")
    tensors = {name: _parse_tensor(name, entry) for name, entry in entries.items()}
    _check_names(tensors)
    return Metadata(str(version), tensors)


def build(tensors: Mapping[str, TensorMeta]) -> str:
    """The canonical text of the endor object for these tensors."""
    entries = {
        name: meta.members() | ({"digest": meta.digest} if meta.digest is not None else {})
        for name, meta in tensors.items()
    }
    return jsontext.canonical({"tensors": entries, "version": LOWEST_VERSION})


def is_digest(digest: str) -> bool:
    """Whether a digest has the right form (D-1)."""
    match = _DIGEST.match(digest)
    return match is not None and len(match[2]) == _DIGEST_DIGITS.get(match[1], len(match[2]))


def belonging(names: Sequence[str], tensor: str) -> Sequence[str]:
    """Those of the sorted names that begin with ``tensor.endor.`` (spec 7).

    They stand side by side, so that all tensors of a file together take O(n log n), however long and
    however alike hostile names are.
    """
    first = bisect_left(names, f"{tensor}.{KEY}.")
    return names[first : bisect_left(names, f"{tensor}.{KEY}/", first)]  # "/" follows "."


def _parse_tensor(name: str, entry: object) -> TensorMeta:
    if not isinstance(entry, dict):
        raise FormatError("M-3", "its entry in the endor object is not an object", tensor=name)
    for key in ("dtype", "positions", "values"):
        if not jsontext.is_string(entry.get(key)):
            raise FormatError("M-4", f"its entry has no string {key!r}", tensor=name)
    shape = container.parse_shape(entry.get("shape"), name, "M-4")
    digest = entry.get("digest")
    if "digest" in entry and not jsontext.is_string(digest):
        raise FormatError("M-4", "its digest is not a string", tensor=name)
    if digest is not None and not is_digest(digest):
        raise FormatError("D-1", f"malformed digest {quote(digest)}", tensor=name)
    meta = TensorMeta(entry["dtype"], shape, entry["positions"], entry["values"], None, digest)
    if meta.unsupported is not None:
        return meta
    if not isinstance(entry.get("nnz"), jsontext.Number):
        raise FormatError("M-5", "its entry has no integer 'nnz'", tensor=name)
    nnz = container.parse_integer(entry["nnz"], name, "nnz")
    if nnz > meta.numel:
        raise FormatError("M-5", f"nnz {nnz} is more than its {meta.numel} elements", tensor=name)
    return TensorMeta(meta.dtype, shape, meta.positions, meta.values, nnz, digest)


def _check_names(tensors: Mapping[str, TensorMeta]) -> None:
    """T-1: no key is special, and none lies among the parts of another."""
    if container.METADATA_KEY in tensors:
        raise FormatError("T-1", f"{container.METADATA_KEY!r} is no name of a tensor")
    names = sorted(tensors)
    for name in names:
        inner = [f"{name}.{KEY}"] if f"{name}.{KEY}" in tensors else belonging(names, name)
        if inner:
            found = f"the endor object has it beside {quote(name)}, whose part it would be"
            raise FormatError("T-1", found, tensor=inner[0])
