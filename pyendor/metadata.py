"""The endor object (spec 6, rules M): JSON text to frozen dataclasses and back.

What a tensor looks like on disk follows from its :class:`TensorMeta` alone; :mod:`pyendor.layout` says how.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyendor import container, dtypes, jsontext
from pyendor.errors import FormatError, UnsupportedError, quote

__all__ = ["Split", "TensorMeta"]

KEY = "endor"
MAJOR = 1
# The encodings that there are, positions and values, and the version that brought them (spec 8).
ENCODINGS = {("bitmap", "raw"): "1.0", ("bitmap", "split"): "1.1", ("all", "split"): "1.1"}
LOWEST_VERSION, *_, VERSION = sorted(set(ENCODINGS.values()))
WIDEST = 4  # bits of an exponent's code (M-8)
# How names end that show, in a file without an endor object, that it has lost it (T-6).
LOST_METADATA = (f".{KEY}.index", f".{KEY}.bitmap")

_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\Z")
_DIGEST = re.compile(r"([a-z0-9_]+):([0-9a-f]+)\Z")
_DIGEST_DIGITS = {"xxh3_64": 16}


@dataclass(frozen=True, slots=True)
class Split:
    """How values are split (spec 8.3).

    Attributes:
        w: bits of an exponent's code.
        mantissa: m, the mantissa bits that are kept.
        patches: number of elements whose exponent is outside of its block's window.
    """

    w: int
    mantissa: int
    patches: int

    @property
    def row(self) -> int:
        """Bytes of a group of 64 stored elements."""
        return 8 * (1 + self.mantissa + self.w)


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """The entry of an encoded tensor.

    Attributes:
        dtype: name of the element type.
        shape: the logical shape, in elements.
        positions, values: how the positions of stored elements, and the elements, are stored.
        nnz: number of elements that are not zero; None where the encoding is unknown, or stores all elements.
        digest: ``"xxh3_64:" + 16`` hexadecimal digits, or None.
        split: of split values; else None.
    """

    dtype: str
    shape: tuple[int, ...]
    positions: str
    values: str
    nnz: int | None
    digest: str | None = None
    split: Split | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return container.numel(self.shape)

    @property
    def stored(self) -> int:
        """n, the number of stored elements."""
        return self.numel if self.nnz is None else self.nnz

    @property
    def unsupported(self) -> str | None:
        """What this build lacks to decode the tensor (M-7); None if it lacks nothing."""
        if all(self.positions != positions for positions, _ in ENCODINGS):
            return f"positions {quote(self.positions)}"
        if all(self.values != values for _, values in ENCODINGS):
            return f"values {quote(self.values)}"
        if (self.positions, self.values) not in ENCODINGS:
            return f"positions {quote(self.positions)} with values {quote(self.values)}"
        dtype = dtypes.BY_NAME.get(self.dtype)
        if dtype is None or not dtype.encodable:
            return f"encoded dtype {quote(self.dtype)}"
        if self.values == "split" and not dtype.splittable:
            return f"split values of dtype {quote(self.dtype)}"
        return None

    @property
    def digest_algorithm(self) -> str | None:
        """What its digest was made with."""
        return self.digest.partition(":")[0] if self.digest is not None else None

    def members(self) -> dict[str, Any]:
        """The members that the digest covers (D-2)."""
        members: dict[str, Any] = {
            "dtype": self.dtype,
            "positions": self.positions,
            "shape": self.shape,
            "values": self.values,
        }
        if self.nnz is not None:
            members["nnz"] = self.nnz
        if self.split is not None:
            members |= {"w": self.split.w, "mantissa": self.split.mantissa, "patches": self.split.patches}
        return members


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
    """Reads an endor object (M-2 to M-5, M-8, D-1, T-1, rules J).

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
    return jsontext.canonical({"tensors": entries, "version": lowest_version(tensors.values())})


def lowest_version(tensors: Iterable[TensorMeta]) -> str:
    """The lowest version that has all these encodings (V-3)."""
    return newest([LOWEST_VERSION, *(ENCODINGS[meta.positions, meta.values] for meta in tensors)])


def newest(versions: Iterable[str]) -> str:
    """The highest of some versions."""
    return max(versions, key=lambda version: [*map(int, version.split("."))])


def entry_text(meta: TensorMeta) -> str:
    """The canonical text of an entry alone, without a digest."""
    return jsontext.canonical(meta.members())


@functools.lru_cache(maxsize=1024)
def parse_entry(text: str) -> TensorMeta:
    """The reverse of :func:`entry_text`.

    Raises:
        FormatError: a rule is broken.
    """
    return _parse_tensor("", jsontext.parse(text))


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
    if meta.positions == "bitmap":
        nnz = _integer(entry, name, "nnz", "M-5")
        if nnz > meta.numel:
            raise FormatError("M-5", f"nnz {nnz} is more than its {meta.numel} elements", tensor=name)
        meta = replace(meta, nnz=nnz)
    if meta.values == "split":
        meta = replace(meta, split=_parse_split(name, entry, meta))
    return meta


def _parse_split(name: str, entry: Mapping[str, object], meta: TensorMeta) -> Split:
    """M-8: what split values need besides."""
    w, mantissa, patches = (_integer(entry, name, key, "M-8") for key in ("w", "mantissa", "patches"))
    dtype = dtypes.BY_NAME[meta.dtype]
    widest = min(WIDEST, dtype.exponent - 1)
    if not 1 <= w <= widest:
        raise FormatError("M-8", f"w is {w}, not from 1 to {widest}", tensor=name)
    if mantissa > dtype.mantissa:
        found = f"mantissa is {mantissa}, and {meta.dtype} has {dtype.mantissa} bits"
        raise FormatError("M-8", found, tensor=name)
    if patches > meta.stored:
        found = f"patches {patches} is more than its {meta.stored} stored elements"
        raise FormatError("M-8", found, tensor=name)
    return Split(w, mantissa, patches)


def _integer(entry: Mapping[str, object], name: str, key: str, rule: str) -> int:
    number = entry.get(key)
    if not isinstance(number, jsontext.Number):
        raise FormatError(rule, f"its entry has no integer {key!r}", tensor=name)
    return container.parse_integer(number, name, key)


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
