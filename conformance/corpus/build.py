"""Building blocks: logical tensors in, the bytes of safetensors and Endor files out.

Nothing here checks anything. A case starts from a `Sketch`, which renders to a correct canonical
file, and changes the one thing that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import pack
from typing import Any

from corpus.xxh3 import xxh3_64

BLOCK = 4096
MAX_INT = 2**53 - 1
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
ENCODABLE = [dtype for dtype, bits in BITS.items() if bits % 8 == 0]


def roundup(x: int, y: int) -> int:
    return -(-x // y) * y


def product(shape: list[int]) -> int:
    n = 1
    for length in shape:
        n *= length
    return n


# JSON ---------------------------------------------------------------------------------------------


class Raw(str):
    """JSON text that goes into the output as it is."""


class Pairs(list[tuple[str, Any]]):
    """The members of an object in a given order, duplicates and all."""


ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
}


def quote(text: str) -> str:
    def escape(c: str) -> str:
        return ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c)

    return '"' + "".join(map(escape, text)) + '"'


def to_json(value: Any) -> str:
    """Canonical JSON text, but for what `Raw` and `Pairs` smuggle in."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, dict):
        # Python compares strings code point by code point, which is the order the format asks for.
        value = Pairs(sorted(value.items()))
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{quote(k)}:{to_json(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(int(value))


# Logical tensors ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A logical tensor and its dense bytes."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes

    @property
    def itemsize(self) -> int:
        return BITS[self.dtype] // 8


def numbers(seed: int) -> Iterator[int]:
    """SplitMix64: pseudo-random 64-bit integers that are the same everywhere."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        yield z ^ (z >> 31)


def random_tensor(name: str, dtype: str, shape: list[int], density: int = 40, seed: int = 1) -> Tensor:
    """A tensor of which about `density` % of the elements are not zero."""
    size = BITS[dtype] // 8
    source = numbers(seed)
    out = bytearray()
    for _ in range(product(shape)):
        keep, value = next(source) % 100 < density, next(source)
        if dtype == "BOOL":
            value = 1
        element = (value % 2 ** (8 * size) or 1) if keep else 0
        out += element.to_bytes(size, "little")
    return Tensor(name, dtype, shape, bytes(out))


def tensor_of(name: str, dtype: str, elements: list[int], shape: list[int] | None = None) -> Tensor:
    """A tensor with the given bit patterns."""
    size = BITS[dtype] // 8
    data = b"".join(e.to_bytes(size, "little") for e in elements)
    return Tensor(name, dtype, [len(elements)] if shape is None else shape, data)


def scattered(name: str, dtype: str, shape: list[int], stored: dict[int, int]) -> Tensor:
    """A tensor that is zero but for the given elements."""
    elements = [stored.get(i, 0) for i in range(product(shape))]
    return tensor_of(name, dtype, elements, shape)


# Files --------------------------------------------------------------------------------------------


@dataclass
class Physical:
    """A physical tensor. `offsets` is worked out unless it is given."""

    name: str
    dtype: Any
    shape: Any
    data: bytes
    offsets: Any = None
    extra: dict[str, Any] = field(default_factory=dict)

    def member(self, at: int) -> str:
        offsets = [at, at + len(self.data)] if self.offsets is None else self.offsets
        described = [("dtype", self.dtype), ("shape", self.shape), ("data_offsets", offsets)]
        return f"{quote(self.name)}:{to_json(Pairs([*described, *self.extra.items()]))}"


def container(header: str | bytes, data: bytes = b"", n: int | None = None, pad: int = 1) -> bytes:
    """A file from header text and data; `n` is what the header's length claims to be."""
    raw = header.encode() if isinstance(header, str) else header
    raw += b" " * (roundup(8 + len(raw), pad) - 8 - len(raw))
    return pack("<Q", len(raw) if n is None else n) + raw + data


def header_text(physical: list[Physical], metadata: Any = None) -> str:
    members = [] if metadata is None else ['"__metadata__":' + to_json(metadata)]
    at = 0
    for p in physical:
        members.append(p.member(at))
        at += len(p.data)
    return "{" + ",".join(members) + "}"


def plain_file(physical: list[Physical], metadata: Any = None, pad: int = 64) -> bytes:
    data = b"".join(p.data for p in physical)
    return container(header_text(physical, metadata), data, pad=pad)


def physical(t: Tensor) -> Physical:
    return Physical(t.name, t.dtype, list(t.shape), t.data)


def split(t: Tensor) -> tuple[list[Physical], int]:
    """The parts of an encoded tensor in the order of B-2, and nnz."""
    size, zero = t.itemsize, bytes(t.itemsize)
    elements = [t.data[i : i + size] for i in range(0, len(t.data), size)]
    values = b"".join(e for e in elements if e != zero)
    bitmap = bytearray(roundup(-(-len(elements) // 8), 64))
    counts = [0]
    for i, element in enumerate(elements):
        if i % BLOCK == 0:
            counts.append(counts[-1])
        if element != zero:
            bitmap[i // 8] |= 1 << (i % 8)
            counts[-1] += 1
    nnz = counts[-1]
    counts += [0] * (roundup(len(counts), 8) - len(counts))
    values += bytes(roundup(len(values), 64) - len(values))
    parts = [
        Physical(t.name, t.dtype, [len(values) // size], values),
        Physical(f"{t.name}.endor.bitmap", "U8", [len(bitmap)], bytes(bitmap)),
        Physical(f"{t.name}.endor.index", "I64", [len(counts)], pack(f"<{len(counts)}q", *counts)),
    ]
    return parts, nnz


DIGESTED = ("dtype", "nnz", "positions", "shape", "values")


def digest(name: str, entry: dict[str, Any], parts: list[Physical]) -> str:
    """D-2; `parts` in the order of B-2."""
    text = to_json({name: {key: entry[key] for key in DIGESTED}})
    return f"xxh3_64:{xxh3_64(text.encode() + b''.join(p.data for p in parts)):016x}"


@dataclass
class Sketch:
    """An Endor file in the making: the physical tensors, the endor object, the user's metadata."""

    physical: list[Physical] = field(default_factory=list)
    endor: dict[str, Any] = field(default_factory=lambda: {"tensors": {}, "version": "1.0"})
    user: dict[str, Any] = field(default_factory=lambda: {"format": "pt"})
    edit: Callable[[str], str] = str
    pad: int = 64

    def entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = self.endor["tensors"][name]
        return entry

    def part(self, name: str) -> Physical:
        return next(p for p in self.physical if p.name == name)

    def drop(self, name: str) -> Physical:
        part = self.part(name)
        self.physical.remove(part)
        return part

    def add(self, t: Tensor, encode: bool = True, seal: bool = True) -> Sketch:
        if not encode:
            self.physical.append(physical(t))
            return self
        parts, nnz = split(t)
        self.physical += parts
        entry = {"dtype": t.dtype, "nnz": nnz, "positions": "bitmap"}
        self.endor["tensors"][t.name] = {**entry, "shape": list(t.shape), "values": "raw"}
        return self.seal(t.name) if seal else self

    def seal(self, *names: str) -> Sketch:
        """Makes the digests right for what the parts hold now, faults included."""
        for name in names:
            parts = [self.part(name + suffix) for suffix in ("", ".endor.bitmap", ".endor.index")]
            self.entry(name)["digest"] = digest(name, self.entry(name), parts)
        return self

    def change(self, name: str, at: int, new: bytes) -> Sketch:
        """Overwrites bytes of a part; a negative `at` counts from its end."""
        part = self.part(name)
        at %= len(part.data)
        part.data = part.data[:at] + new + part.data[at + len(new) :]
        return self

    def flip(self, name: str, bit: int) -> Sketch:
        old = self.part(name).data[bit // 8]
        return self.change(name, bit // 8, bytes([old ^ (1 << bit % 8)]))

    def index(self, name: str, **entries: int) -> Sketch:
        """`index("w", e0=1)` sets entry 0 of the index of w."""
        for key, value in entries.items():
            self.change(f"{name}.endor.index", 8 * int(key[1:]), pack("<q", value))
        return self

    def metadata(self) -> dict[str, Any]:
        return {**self.user, "endor": self.edit(to_json(self.endor))}

    def header(self) -> str:
        return header_text(self.physical, self.metadata())

    def data(self) -> bytes:
        return b"".join(p.data for p in self.physical)

    def render(self) -> bytes:
        return container(self.header(), self.data(), pad=self.pad)


def canonical(tensors: list[Tensor], encode: set[str], user: dict[str, str] | None = None) -> bytes:
    """The canonical file (W-2 to W-6) for tensors in the given order."""
    sketch = Sketch(user={"format": "pt", **(user or {})})
    for t in tensors:
        if t.name in encode:
            sketch.add(t)
    plain = [t for t in tensors if t.name not in encode]
    for t in sorted(plain, key=lambda t: -BITS[t.dtype]):
        sketch.add(t, encode=False)
    return sketch.render()
