"""Building blocks: logical tensors in, the bytes of safetensors and Endor files out.

Nothing here checks anything. A case starts from a `Sketch`, which renders to a correct canonical
file, and changes the one thing that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
# Bits of the exponent and of the mantissa of the dtypes that can be split (section 8.3).
FLOATS = {
    "BF16": (8, 7), "F16": (5, 10), "F32": (8, 23), "F8_E4M3": (4, 3), "F8_E4M3FNUZ": (4, 3),
    "F8_E5M2": (5, 2), "F8_E5M2FNUZ": (5, 2),
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


def floats(
    name: str,
    dtype: str,
    shape: list[int],
    density: int = 100,
    seed: int = 1,
    kept: int | None = None,
    low: int | None = None,
    width: int = 4,
    odd: int = 5,
) -> Tensor:
    """Floats, `density` % of them not zero, that keep so many mantissa bits, all if not said.

    Their exponents are the `width` ones from `low` on, but for `odd` % that are any.
    """
    bits, most = FLOATS[dtype]
    kept = most if kept is None else kept
    low = 2 ** (bits - 1) - 3 if low is None else low
    source, elements = numbers(seed), []
    for _ in range(product(shape)):
        keep, wild, which, sign, mantissa = (next(source) >> 8 for _ in range(5))
        exponent = which % 2**bits if wild % 100 < odd else low + which % width
        fraction = mantissa % 2**kept << (most - kept)
        element = (sign % 2) << (bits + most) | exponent << most | fraction
        elements.append((element or 1 << most) if keep % 100 < density else 0)
    return tensor_of(name, dtype, elements, shape)


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


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


@dataclass(frozen=True)
class Split:
    """An encoding with split values; what is not given is canonical (W-9).

    `bases` has those of the blocks whose base is to be another.
    """

    w: int
    positions: str = "bitmap"
    mantissa: int | None = None
    bases: dict[int, int] = field(default_factory=dict)


def patterns(t: Tensor) -> list[int]:
    """The bit patterns of the elements."""
    size = t.itemsize
    return [int.from_bytes(t.data[i : i + size], "little") for i in range(0, len(t.data), size)]


def blocks_of(elements: list[int]) -> list[list[int]]:
    return [elements[i : i + BLOCK] for i in range(0, len(elements), BLOCK)]


def used_bits(elements: list[int], bits: int) -> int:
    """The fewest mantissa bits that have to be kept, of so many (W-9)."""
    return max((m for m in range(1, bits + 1) if any(e >> (bits - m) & 1 for e in elements)), default=0)


def best_base(exponents: list[int], bits: int, w: int) -> int:
    """The smallest of the bases whose windows hold the most of the exponents (W-9)."""
    held = [0] * 2**bits
    for exponent in exponents:
        held[exponent] += 1
    windows = [sum(held[base : base + 2**w]) for base in range(2**bits - 2**w + 1)]
    return windows.index(max(windows))


def bit_place(rank: int, k: int, mantissa: int, w: int) -> int:
    """Where in split values bit k of an element is: first come its residue's, then its code's (E-1)."""
    whole, j = (1 + mantissa) // 8, rank % 64
    row = rank // 64 * 8 * (1 + mantissa + w)
    if k < 8 * whole:
        return 8 * (row + 64 * (k // 8) + j) + k % 8
    return 8 * (row + 64 * whole + 8 * (k - 8 * whole)) + j


def bitmap_and_counts(elements: list[int]) -> tuple[bytes, list[int]]:
    """The part bitmap, and the numbers of stored elements before each block and at the end."""
    bitmap = bytearray(-(-len(elements) // 8))
    for i, element in enumerate(elements):
        bitmap[i // 8] |= (element != 0) << (i % 8)
    counts = [0]
    for block in blocks_of(elements):
        counts.append(counts[-1] + sum(e != 0 for e in block))
    return padded(bytes(bitmap)), counts


def index_part(name: str, *rows: list[int], flat: bool = False) -> Physical:
    length = roundup(len(rows[0]), 8)
    data = b"".join(pack(f"<{length}q", *row, *[0] * (length - len(row))) for row in rows)
    return Physical(f"{name}.endor.index", "I64", [length] if flat else [len(rows), length], data)


def encoded_as(t: Tensor, how: Split | None = None) -> tuple[list[Physical], dict[str, Any]]:
    """The parts of an encoded tensor in the order of B-2, and its entry without a digest."""
    elements = patterns(t)
    entry: dict[str, Any] = {"dtype": t.dtype, "shape": list(t.shape)}
    bitmap, counts = bitmap_and_counts(elements)
    if how is None:
        values = padded(b"".join(e.to_bytes(t.itemsize, "little") for e in elements if e))
        entry |= {"positions": "bitmap", "values": "raw", "nnz": counts[-1]}
        parts = [
            Physical(t.name, t.dtype, [len(values) // t.itemsize], values),
            Physical(f"{t.name}.endor.bitmap", "U8", [len(bitmap)], bitmap),
            index_part(t.name, counts, flat=True),
        ]
        return parts, entry
    bits, most = FLOATS[t.dtype]
    stored = [[e for e in block if e or how.positions == "all"] for block in blocks_of(elements)]
    n = sum(map(len, stored))
    m = used_bits(elements, most) if how.mantissa is None else how.mantissa
    values = bytearray(roundup(n, 512) // 64 * 8 * (1 + m + how.w))
    patches, before, bases, rank = b"", [0], bytearray(), 0
    for b, block in enumerate(stored):
        exponents = [e >> most & (2**bits - 1) for e in block]
        base = how.bases.get(b, best_base(exponents, bits, how.w))
        bases.append(base)
        for r, (element, exponent) in enumerate(zip(block, exponents, strict=True)):
            residue = element >> (bits + most) << m | (element & (2**most - 1)) >> (most - m)
            code = exponent - base
            if not 0 <= code < 2**how.w:
                patches, code = patches + pack("<HB", r, exponent), 0
            symbol = residue | code << (1 + m)
            for k in range(1 + m + how.w):
                if symbol >> k & 1:
                    place = bit_place(rank, k, m, how.w)
                    values[place // 8] |= 1 << place % 8
            rank += 1
        before.append(len(patches) // 3)
    rows = [counts, before] if how.positions == "bitmap" else [before]
    patches += bytes(3 * (roundup(before[-1], 64) - before[-1]))
    entry |= {"positions": how.positions, "values": "split", "w": how.w, "mantissa": m, "patches": before[-1]}
    parts = [Physical(t.name, "U8", [roundup(n, 512) // 64, 8 * (1 + m + how.w)], bytes(values))]
    if how.positions == "bitmap":
        entry["nnz"] = counts[-1]
        parts.append(Physical(f"{t.name}.endor.bitmap", "U8", [len(bitmap)], bitmap))
    parts += [
        index_part(t.name, *rows),
        Physical(f"{t.name}.endor.bases", "U8", [roundup(len(bases), 64)], padded(bytes(bases))),
        Physical(f"{t.name}.endor.patches", "U8", [len(patches) // 3, 3], patches),
    ]
    return parts, entry


PARTS = ("", ".endor.bitmap", ".endor.index", ".endor.bases", ".endor.patches")


def widths(dtype: str) -> range:
    """What w may be (M-8)."""
    return range(1, min(4, FLOATS[dtype][0] - 1) + 1)


def digested(entry: dict[str, Any]) -> list[str]:
    """The members of an entry that its digest covers (D-2)."""
    members = ["dtype", "positions", "shape", "values"]
    members += ["nnz"] if entry["positions"] == "bitmap" else []
    return members + (["mantissa", "patches", "w"] if entry["values"] == "split" else [])


def digest(name: str, entry: dict[str, Any], parts: list[Physical], members: Iterable[str] = ()) -> str:
    """D-2, or over other members; `parts` in the order of B-2."""
    text = to_json({name: {key: entry[key] for key in members or digested(entry)}})
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

    def parts(self, name: str) -> list[Physical]:
        """The parts of a tensor that there are, in the order of B-2."""
        there = {p.name: p for p in self.physical}
        return [there[name + suffix] for suffix in PARTS if name + suffix in there]

    def drop(self, name: str) -> Physical:
        part = self.part(name)
        self.physical.remove(part)
        return part

    def add(self, t: Tensor, encode: bool = True, seal: bool = True, how: Split | None = None) -> Sketch:
        if not encode:
            self.physical.append(physical(t))
            return self
        parts, self.endor["tensors"][t.name] = encoded_as(t, how)
        self.physical += parts
        if how is not None:
            self.endor["version"] = "1.1"
        return self.seal(t.name) if seal else self

    def seal(self, *names: str) -> Sketch:
        """Makes the digests right for what the parts hold now, faults included."""
        for name in names:
            self.entry(name)["digest"] = digest(name, self.entry(name), self.parts(name))
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

    def index(self, name: str, row: int = 0, **entries: int) -> Sketch:
        """`index("w", e0=1)` sets entry 0 of the index of w, in its first row."""
        part = f"{name}.endor.index"
        for key, value in entries.items():
            entry = row * self.part(part).shape[-1] + int(key[1:])
            self.change(part, 8 * entry, pack("<q", value))
        return self

    def flip_element(self, name: str, rank: int, *bits: int) -> Sketch:
        """Flips bits of an element in split values: those of its residue come first, then its code's."""
        entry = self.entry(name)
        for k in bits:
            self.flip(name, bit_place(rank, k, entry["mantissa"], entry["w"]))
        return self

    def patch(self, name: str, at: int, rank: int | None = None, exponent: int | None = None) -> Sketch:
        """Sets what a patch has, and leaves the rest as it is."""
        part = f"{name}.endor.patches"
        if rank is not None:
            self.change(part, 3 * at, pack("<H", rank))
        return self if exponent is None else self.change(part, 3 * at + 2, bytes([exponent]))

    def metadata(self) -> dict[str, Any]:
        return {**self.user, "endor": self.edit(to_json(self.endor))}

    def header(self) -> str:
        return header_text(self.physical, self.metadata())

    def data(self) -> bytes:
        return b"".join(p.data for p in self.physical)

    def render(self) -> bytes:
        return container(self.header(), self.data(), pad=self.pad)


def canonical(
    tensors: list[Tensor], encode: set[str] | dict[str, Split | None], user: dict[str, str] | None = None
) -> bytes:
    """The canonical file (W-2 to W-6) for tensors in the given order, some encoded as is said."""
    how = encode if isinstance(encode, dict) else dict.fromkeys(encode)
    sketch = Sketch(user=dict(user or {"format": "pt"}))
    for t in tensors:
        if t.name in encode:
            sketch.add(t, how=how[t.name])
    plain = [t for t in tensors if t.name not in encode]
    for t in sorted(plain, key=lambda t: -BITS[t.dtype]):
        sketch.add(t, encode=False)
    return sketch.render()
