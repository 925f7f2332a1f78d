"""Tensors as they are stored, in the files of a checkpoint or in memory, and bytes of one layer side by side.

Comes in: open files, or the tensors of a model. Goes out: a :class:`Bundle` for each layer, whose bytes are
fetched by few long reads into one buffer, and of which the parts of every tensor are views.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pyendor import layout
from pyendor.encoded import EncodedTensor
from pyendor.errors import UnsupportedError, quote
from pyendor.file import File
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import torch_dtype

# Direct reads begin and end at multiples of this, in the file and in memory.
PAGE = 4096
# What lies between two tensors of a layer is read with them up to this size: one read costs less than two.
_GAP = 256 << 10


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A logical tensor as it is stored.

    Attributes:
        name, dtype, shape: as its file says; the dtype is the format's.
        meta: its entry in the endor object; None for a plain tensor.
        places: where in the file each part begins and ends, by role; a plain tensor is all ``values``.
        file: the file; None for a tensor in memory.
        memory: the parts of a tensor in memory, until they are in a bundle.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meta: TensorMeta | None
    places: Mapping[str, tuple[int, int]]
    file: File | None = None
    memory: dict[str, Bytes] = field(default_factory=dict)

    @classmethod
    def of_file(cls, file: File, tensor: layout.Tensor) -> Stored:
        """A tensor of an open file.

        Raises:
            UnsupportedError: this build cannot read it.
        """
        tensor.require_supported()
        places = {role: (part.start, part.stop) for role, part in tensor.parts.items()}
        return cls(tensor.name, tensor.dtype, tensor.shape, tensor.meta, places, file)

    @classmethod
    def of_memory(cls, encoded: EncodedTensor) -> Stored:
        """An encoded tensor in memory."""
        about = (encoded.name, encoded.dtype, encoded.shape, encoded.meta)
        return cls(*about, _packed(encoded.parts), None, dict(encoded.parts))

    @classmethod
    def of_dense(cls, name: str, dtype: str, shape: tuple[int, ...], dense: Bytes) -> Stored:
        """A plain tensor in memory."""
        parts = {"values": dense}
        return cls(name, dtype, shape, None, _packed(parts), None, parts)

    @property
    def nbytes(self) -> int:
        """Stored size."""
        return sum(stop - start for start, stop in self.places.values())

    @property
    def dense_nbytes(self) -> int:
        """Decoded size."""
        return layout.dense_nbytes(self.dtype, self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """What PyTorch calls the dtype.

        Raises:
            UnsupportedError: it does not have it.
        """
        found = torch_dtype(self.dtype)
        if found is None:
            raise UnsupportedError(f"tensor {quote(self.name)}: PyTorch has no counterpart of {self.dtype}")
        return found

    def encoded(self, parts: Mapping[str, Bytes]) -> EncodedTensor:
        """The tensor with these parts, which have been read."""
        assert self.meta is not None
        path = self.file.path if self.file is not None else None
        offsets = {role: start for role, (start, _) in self.places.items()} if path is not None else {}
        return EncodedTensor(self.name, self.meta, parts, offsets, path)

    def decode(self, parts: Mapping[str, Bytes], out: Bytes, *, stream: bool) -> None:
        """Dense bytes from parts, which have been read; ``stream`` as of :meth:`EncodedTensor.decode`.

        Raises:
            FormatError: the parts break a rule of section 8. ``out`` then holds nothing of use.
        """
        if self.meta is None:
            out[:] = parts["values"]
        else:
            self.encoded(parts).decode(out, stream=stream)

    def load(self) -> Bytes:
        """The dense bytes, in memory that is the caller's."""
        if self.file is not None:
            return self.file.get_bytes(self.name)
        if self.meta is None:
            return self.memory["values"].copy()
        return self.encoded(self.memory).decode()


@dataclass(frozen=True, slots=True)
class Read:
    """One contiguous read: bytes ``start`` to ``stop`` of a file, to ``at`` in a buffer."""

    file: File
    start: int
    stop: int
    at: int

    def holds(self, tensor: Stored) -> bool:
        """Whether it reads all of a tensor."""
        places = tensor.places.values()
        return self.file is tensor.file and all(
            self.start <= low and high <= self.stop for low, high in places
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """The stored bytes of several tensors in one buffer.

    Attributes:
        tensors: the tensors.
        reads: how the buffer is filled from files.
        places: where in the buffer each part of each tensor begins and ends.
        nbytes: size of the buffer; it is to be aligned to ``PAGE``.
        stored: bytes of the tensors themselves.
    """

    tensors: tuple[Stored, ...]
    reads: tuple[Read, ...]
    places: tuple[Mapping[str, tuple[int, int]], ...]
    nbytes: int
    stored: int

    @classmethod
    def of(cls, tensors: Iterable[Stored]) -> Bundle:
        """Lays tensors side by side: as they are in their files, those of memory one behind the other."""
        chosen = tuple(dict.fromkeys(tensors))
        reads, at = _reads(chosen)
        places: list[Mapping[str, tuple[int, int]]] = []
        for tensor in chosen:
            if tensor.file is None:
                offset, at = at, layout.roundup(at + tensor.nbytes, PAGE)
            else:
                offset = next(read.at - read.start for read in reads if read.holds(tensor))
            moved = {role: (low + offset, high + offset) for role, (low, high) in tensor.places.items()}
            places.append(moved)
        return cls(chosen, reads, tuple(places), at, sum(tensor.nbytes for tensor in chosen))

    def fill(self, buffer: Bytes) -> None:
        """Copies the tensors of memory to their places."""
        for tensor, places in zip(self.tensors, self.places, strict=True):
            for role, part in tensor.memory.items():
                low, high = places[role]
                buffer[low:high] = part

    def parts(self, number: int, buffer: Any) -> dict[str, Any]:
        """The parts of one of the tensors as views of the buffer, an array or a tensor."""
        return {role: buffer[low:high] for role, (low, high) in self.places[number].items()}


def _packed(parts: Mapping[str, Bytes]) -> dict[str, tuple[int, int]]:
    edges = itertools.pairwise(itertools.accumulate((part.size for part in parts.values()), initial=0))
    return dict(zip(parts, edges, strict=True))


def _reads(tensors: Iterable[Stored]) -> tuple[tuple[Read, ...], int]:
    """The reads for all tensors of files, and the size of the buffer.

    A tensor whose parts are scattered (other writers may do that) is still read in one piece if it fits the
    gaps; otherwise its extent is what is read: rare, and never wrong.
    """
    extents: dict[int, list[tuple[int, int]]] = {}
    files: dict[int, File] = {}
    for tensor in tensors:
        if tensor.file is not None and tensor.places:
            starts, stops = zip(*tensor.places.values(), strict=True)
            extents.setdefault(id(tensor.file), []).append((min(starts), max(stops)))
            files[id(tensor.file)] = tensor.file
    reads, at = [], 0
    for key, ranges in extents.items():
        for start, stop in _merged(sorted(ranges)):
            # The same distance from a page in the file and in memory, and room for the rest of the last page.
            reads.append(Read(files[key], start, stop, at + start % PAGE))
            at = layout.roundup(at + start % PAGE + stop - start, PAGE)
    return tuple(reads), at


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        if merged and start <= merged[-1][1] + _GAP:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged
