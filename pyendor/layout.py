"""Which bytes of a file belong to which logical tensor (spec 7, rules T), all sizes checked.

Comes in: a :class:`~pyendor.container.Header`. Goes out: a :class:`Layout`. What it says can be relied on
for allocating (S-2): every part of a supported tensor has exactly the length that its metadata implies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyendor import container, dtypes, metadata
from pyendor.container import Entry, Header
from pyendor.errors import FormatError, UnsupportedError, quote
from pyendor.metadata import TensorMeta

# Dense data and parts go about as flat arrays of bytes.
Bytes: TypeAlias = npt.NDArray[np.uint8]

BLOCK = 4096
GROUP = 64  # stored elements whose split values lie together
PATCH = 3  # bytes of a patch
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class PartSpec:
    """What a part has to be.

    Attributes:
        role: ``values``, ``bitmap``, ``index``, ``bases`` or ``patches``.
        dtype: name of its element type.
        shape: its physical shape.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its length in bytes, a multiple of 64."""
        return dense_nbytes(self.dtype, self.shape)

    def name(self, tensor: str) -> str:
        """Its physical name: the first part carries the tensor's own."""
        return tensor if self.role == "values" else f"{tensor}.{metadata.KEY}.{self.role}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A logical tensor of a file.

    Attributes:
        name, dtype, shape: as a user of the file sees it.
        meta: its entry in the endor object; None for a plain tensor.
        parts: its physical tensors by role; a plain tensor is all ``values``, those of an unsupported one
            go by their names.
        unsupported: what this build lacks to read it; None if it lacks nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meta: TensorMeta | None
    parts: Mapping[str, Entry]
    unsupported: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return container.numel(self.shape)

    @property
    def nbytes(self) -> int:
        """Dense size in bytes, of a supported tensor."""
        return dense_nbytes(self.dtype, self.shape)

    @property
    def stored_nbytes(self) -> int:
        """Size in the file, header aside, in bytes."""
        return sum(part.nbytes for part in self.parts.values())

    def require_supported(self) -> None:
        """Raises UnsupportedError if this build cannot read the tensor."""
        if self.unsupported is not None:
            raise UnsupportedError(
                f"tensor {quote(self.name)} has {self.unsupported}, which this build does not know: "
                "upgrade pyendor; the other tensors of the file can be read"
            )


@dataclass(frozen=True, slots=True)
class Layout:
    """All logical tensors of a file.

    Attributes:
        tensors: by name, in the order of their data.
        metadata: the user's members of ``__metadata__``.
        version: the format version; None for a plain safetensors file.
        header: what it was made from.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    version: str | None
    header: Header


def roundup(count: int, multiple: int) -> int:
    """The smallest multiple that is not below ``count``."""
    return -(-count // multiple) * multiple


def blocks(numel: int) -> int:
    """Number of blocks of a tensor."""
    return -(-numel // BLOCK)


def dense_nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Size in bytes of a tensor as it is, without encoding."""
    return container.numel(shape) * dtypes.BY_NAME[dtype].bits // 8


def allocate(nbytes: int) -> Bytes:
    """New memory, whatever is in it, aligned as parts are; huge pages where NumPy advises the system so.

    Raises:
        UnsupportedError: this machine has not so much (spec 13).
    """
    try:
        memory = np.empty(nbytes + ALIGNMENT - 1, np.uint8)
    except MemoryError:
        raise UnsupportedError(f"{nbytes} bytes are too large for this machine's memory") from None
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]


def blank(nbytes: int) -> Bytes:
    """New memory that is zero, which the system gives page by page as it is written to.

    Raises:
        UnsupportedError: this machine has not so much.
    """
    try:
        return np.zeros(nbytes, np.uint8)
    except MemoryError:
        raise UnsupportedError(f"{nbytes} bytes are too large for this machine's memory") from None


def part_specs(meta: TensorMeta) -> tuple[PartSpec, ...]:
    """The parts of a tensor of a supported encoding, in the order of B-2."""
    split = meta.split
    if split is None:
        itemsize = dtypes.BY_NAME[meta.dtype].itemsize
        values = PartSpec("values", meta.dtype, (roundup(meta.stored * itemsize, ALIGNMENT) // itemsize,))
    else:
        values = PartSpec("values", "U8", (roundup(meta.stored, 8 * GROUP) // GROUP, split.row))
    nb = blocks(meta.numel)
    entries = roundup(nb + 1, 8)
    if meta.positions == "bitmap":
        bitmap = [PartSpec("bitmap", "U8", (roundup(-(-meta.numel // 8), ALIGNMENT),))]
    else:
        bitmap = []
    if split is None:
        return values, *bitmap, PartSpec("index", "I64", (entries,))
    return (
        values,
        *bitmap,
        PartSpec("index", "I64", (len(bitmap) + 1, entries)),
        PartSpec("bases", "U8", (roundup(nb, ALIGNMENT),)),
        PartSpec("patches", "U8", (roundup(split.patches, ALIGNMENT), PATCH)),
    )


def resolve(header: Header) -> Layout:
    """Assigns every physical tensor to a logical one (rules M and T).

    Raises:
        FormatError: a rule is broken.
        UnsupportedError: the file as a whole has another major version.
    """
    user = dict(header.metadata or {})
    text = user.pop(metadata.KEY, None)
    if text is None:
        _check_not_stripped(header)
        plain = {name: _plain(entry) for name, entry in header.entries.items()}
        return Layout(plain, user, None, header)
    endor = metadata.parse(text)
    names = sorted(header.entries)
    hidden: set[str] = set()
    encoded = []
    for name, meta in endor.tensors.items():
        extra = metadata.belonging(names, name)
        encoded.append(_encoded(name, meta, extra, header))
        hidden.update(extra, [name])
    tensors = encoded + [_plain(e) for name, e in header.entries.items() if name not in hidden]
    tensors.sort(key=lambda tensor: header.entries[tensor.name].start)
    return Layout({tensor.name: tensor for tensor in tensors}, user, endor.version, header)


def _plain(entry: Entry) -> Tensor:
    unknown = None if entry.dtype in dtypes.BY_NAME else f"dtype {quote(entry.dtype)}"
    return Tensor(entry.name, entry.dtype, entry.shape, None, {"values": entry}, unknown)


def _encoded(name: str, meta: TensorMeta, extra: Sequence[str], header: Header) -> Tensor:
    """An encoded tensor; ``extra`` are the physical names that belong to it besides its own."""
    if name not in header.entries:
        raise FormatError("T-2", "the endor object has it, the header does not", tensor=name)
    if meta.unsupported is not None:
        hidden = {part: header.entries[part] for part in (name, *extra)}
        return Tensor(name, meta.dtype, meta.shape, meta, hidden, meta.unsupported)
    specs = part_specs(meta)
    parts = {}
    for spec in specs:
        entry = header.entries.get(spec.name(name))
        if entry is None:
            raise FormatError("T-2", f"its part {quote(spec.name(name))} is missing", tensor=name)
        parts[spec.role] = entry
    for other in extra:
        if all(other != part.name for part in parts.values()):
            found = f"{quote(other)} belongs to it but is none of its parts"
            offset = header.entries[other].start
            raise FormatError("T-3", found, tensor=name, offset=offset)
    for spec in specs:
        entry = parts[spec.role]
        if entry.dtype != spec.dtype or entry.shape != spec.shape:
            found = (
                f"part {spec.role} is {quote(entry.dtype)} of shape {list(entry.shape)}, "
                f"expected '{spec.dtype}' of shape {list(spec.shape)}"
            )
            raise FormatError("T-4", found, tensor=name, offset=entry.start)
    if parts["values"].shape == meta.shape:
        found = f"its physical shape {list(meta.shape)} is its logical one"
        raise FormatError("T-5", found, tensor=name, offset=parts["values"].start)
    return Tensor(name, meta.dtype, meta.shape, meta, parts)


def _check_not_stripped(header: Header) -> None:
    for name, entry in header.entries.items():
        if name.endswith(metadata.LOST_METADATA):
            raise FormatError(
                "T-6",
                "the file has parts of encoded tensors but no 'endor' metadata: a tool that re-saved "
                "it has dropped them; get the original file again",
                tensor=name,
                offset=entry.start,
            )
