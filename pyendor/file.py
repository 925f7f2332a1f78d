"""Single files: open, load, save. All file I/O of single files is here.

Reading is by ``pread`` into private memory, not by a memory map: what was checked is then what is decoded
(S-3), and a file that is cut short meanwhile is an error, not a signal. Writing goes to a stream that the
caller opens, so that :mod:`pyendor.atomic` can make it all or nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np

from pyendor import backends, container, dtypes, layout, metadata
from pyendor.container import Entry
from pyendor.encoded import DIGEST, EncodedTensor
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote
from pyendor.layout import ALIGNMENT, Layout, PartSpec
from pyendor.metadata import TensorMeta
from pyendor.reference import Bytes

MIN_SAVING = 0.05
HEADER_SHARE = 512  # bytes of header that W-7 counts for an encoded tensor
DENSE_ALIGNMENT = 8  # what the safetensors package pads a header to

Progress = Callable[[int], None]


class _Storage(Protocol):
    length: int

    def read(self, start: int, stop: int) -> Bytes: ...
    def close(self) -> None: ...


class _FileStorage:
    """The bytes of a regular file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        # Not blocking: opening a named pipe would otherwise wait for somebody to write to it.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise UsageError(f"{quote(self.path)} is not a regular file")
        self.length = status.st_size

    def read(self, start: int, stop: int) -> Bytes:
        data = np.empty(stop - start, np.uint8)
        rest = data.data
        while rest:
            done = os.preadv(self._descriptor, [rest], stop - len(rest))
            if done == 0:
                found = "the file became shorter while it was read"
                raise FormatError("C-9", found, offset=stop - len(rest), path=self.path)
            rest = rest[done:]
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _MemoryStorage:
    """The bytes of a file in memory that does not change."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.length = self._data.size

    def read(self, start: int, stop: int) -> Bytes:
        return self._data[start:stop]

    def close(self) -> None:
        pass


class File:
    """An open file, Endor or plain safetensors; its header has been checked whole.

    Attributes:
        layout: all that its header says.
        path: where it is; None for bytes in memory.
    """

    def __init__(self, storage: _Storage, path: str | None = None) -> None:
        self._storage = storage
        self.path = path
        try:
            prefix = storage.read(0, min(container.PREFIX, storage.length)).tobytes()
            length = container.header_length(prefix, storage.length)
            header = storage.read(container.PREFIX, container.PREFIX + length).tobytes()
            self.layout: Layout = layout.resolve(container.parse(header, storage.length))
        except FormatError as error:
            storage.close()
            raise error.located(path=path) from None
        except UnsupportedError as error:
            storage.close()
            raise UnsupportedError(f"{quote(path)}: {error}" if path else str(error)) from None
        except BaseException:
            storage.close()
            raise

    def tensor(self, name: str) -> layout.Tensor:
        """The logical tensor of that name.

        Raises:
            UsageError: there is none.
        """
        try:
            return self.layout.tensors[name]
        except KeyError:
            raise UsageError(f"the file has no tensor {quote(name)}") from None

    def get_encoded(self, name: str) -> EncodedTensor:
        """An encoded tensor as it is in the file, read but neither checked nor decoded.

        Raises:
            UsageError: the tensor is plain, or there is none of that name.
            UnsupportedError: it has an encoding that this build does not know.
        """
        tensor = self.tensor(name)
        tensor.require_supported()
        if tensor.meta is None:
            raise UsageError(f"tensor {quote(name)} is plain, not encoded")
        parts = {role: self._read(part) for role, part in tensor.parts.items()}
        offsets = {role: part.start for role, part in tensor.parts.items()}
        return EncodedTensor(name, tensor.meta, parts, offsets, self.path)

    def get_bytes(self, name: str, *, backend: str | None = None) -> Bytes:
        """The dense bytes of a tensor, ``uint8 [nbytes]``, row-major, little-endian.

        Raises:
            FormatError: the tensor breaks a rule.
            UnsupportedError: its encoding or its dtype is unknown to this build.
        """
        tensor = self.tensor(name)
        tensor.require_supported()
        if tensor.meta is None:
            return self._read(tensor.parts["values"])
        return self.get_encoded(name).decode(backend=backend)

    def sources(self) -> list[TensorSource]:
        """All tensors, decoded when they are read, in the order of their data.

        A plain tensor of a dtype that this build does not know is carried as its bytes.
        """
        return [self._source(tensor) for tensor in self.layout.tensors.values()]

    def _source(self, tensor: layout.Tensor) -> TensorSource:
        if tensor.meta is None:
            part = tensor.parts["values"]
            return TensorSource(
                tensor.name, tensor.dtype, tensor.shape, part.nbytes, lambda: self._read(part)
            )
        tensor.require_supported()
        return TensorSource(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            tensor.nbytes,
            lambda: self.get_bytes(tensor.name),
        )

    def _read(self, part: Entry) -> Bytes:
        return self._storage.read(part.start, part.stop)

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_file(path: str | os.PathLike[str]) -> File:
    """Opens an Endor or plain safetensors file.

    Raises:
        FormatError: its header breaks a rule.
        UnsupportedError: its major version is unknown.
        OSError: it cannot be read.
    """
    return File(_FileStorage(path), os.fspath(path))


def open_bytes(data: bytes) -> File:
    """Opens the bytes of a file."""
    return File(_MemoryStorage(data))


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A dense tensor that is to be written, its data read only when it is needed.

    Attributes:
        name, dtype, shape: as in a safetensors header.
        nbytes: its dense size.
        read: gives its data, ``uint8 [nbytes]``; called up to twice, with the same result.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Bytes]

    def checked_read(self) -> Bytes:
        """The data, of the right length."""
        data = self.read()
        if data.size != self.nbytes:
            found = f"has {data.size} bytes of data, expected {self.nbytes}"
            raise UsageError(f"tensor {quote(self.name)} {found}")
        return data


def write(
    stream: BinaryIO,
    sources: Sequence[TensorSource],
    user_metadata: Mapping[str, str] | None = None,
    *,
    min_saving: float | None = MIN_SAVING,
    progress: Progress | None = None,
    backend: str | None = None,
) -> None:
    """Writes the canonical Endor file of these tensors in this order (spec 10).

    Two passes over the tensors, one at a time in memory: the header stands first in the file, and its length
    depends on what will be encoded.

    Args:
        stream: seekable; written from its present position on.
        sources: the tensors; names are unique.
        user_metadata: for ``__metadata__``; ``format`` is ``pt`` unless given here.
        min_saving: encode a tensor only where that saves this share of its size (W-7); None encodes
            every tensor that can be.
        progress: called with the dense bytes of every tensor written.
        backend: the codec to use.
    """
    plan = _plan(sources, min_saving, backend)
    encoded = [source for source in sources if source.name in plan]
    plain = sorted((source for source in sources if source.name not in plan), key=_bits, reverse=True)
    entries = _place(
        [physical for source in encoded for physical in _parts(source, plan[source.name])]
        + [(source.name, source.dtype, source.shape, source.nbytes) for source in plain]
    )
    members = {"format": "pt"} | dict(user_metadata or {})
    start = stream.tell()
    header = container.build(entries, members | {metadata.KEY: metadata.build(plan)}, ALIGNMENT)
    stream.write(header)
    for source in encoded:
        tensor = EncodedTensor.encode(
            source.name, source.dtype, source.shape, source.checked_read(), backend=backend
        )
        if tensor.nnz != plan[source.name].nnz:
            raise UsageError(f"tensor {quote(source.name)} changed while it was being written")
        plan[source.name] = tensor.meta
        for part in tensor.parts.values():
            stream.write(part.data)
        _report(progress, source)
    _write_plain(stream, plain, progress)
    # Only now are the digests known; they take the place of others of the same length.
    end = stream.tell()
    stream.seek(start)
    stream.write(container.build(entries, members | {metadata.KEY: metadata.build(plan)}, ALIGNMENT))
    stream.seek(end)


def write_dense(
    stream: BinaryIO,
    sources: Sequence[TensorSource],
    user_metadata: Mapping[str, str] | None = None,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes a plain safetensors file, laid out as the safetensors package does it.

    So the dense file that a checkpoint came from, if that package wrote it, comes back byte for byte.
    """
    rank = {dtype.name: place for place, dtype in enumerate(dtypes.TABLE)}
    ordered = sorted(sources, key=lambda source: (-rank.get(source.dtype, -1), source.name))
    entries = _place((s.name, s.dtype, s.shape, s.nbytes) for s in ordered)
    stream.write(container.build(entries, user_metadata, DENSE_ALIGNMENT))
    _write_plain(stream, ordered, progress)


def _plan(
    sources: Sequence[TensorSource], min_saving: float | None, backend: str | None
) -> dict[str, TensorMeta]:
    """The tensors to encode (W-7), with digests yet to be filled in."""
    names = sorted(source.name for source in sources)
    if len(set(names)) != len(names):
        raise UsageError("two tensors have the same name")
    codec = backends.get(backend)
    plan = {}
    for source in sources:
        dtype = dtypes.BY_NAME.get(source.dtype)
        if dtype is None or not dtype.encodable or metadata.belonging(names, source.name):
            continue
        if min_saving is not None and not _saves(0, source.nbytes, min_saving):
            continue  # not even without a single part; do not read it
        numel = container.numel(source.shape)
        nnz = codec.count(source.checked_read(), dtype.itemsize)
        specs = layout.part_specs(source.dtype, numel, nnz)
        if source.shape == (specs[0].length,):
            continue  # T-5
        if min_saving is None or _saves(_total(specs), source.nbytes, min_saving):
            digest = f"{DIGEST}:{'0' * 16}"
            plan[source.name] = TensorMeta(source.dtype, source.shape, "bitmap", "raw", nnz, digest)
    return plan


def _saves(stored: int, dense: int, min_saving: float) -> bool:
    # Exact: the same decision on every machine, at the very edge too.
    return stored + HEADER_SHARE <= dense * (1 - Fraction(str(min_saving)))


def _total(specs: Iterable[PartSpec]) -> int:
    return sum(spec.nbytes for spec in specs)


_Physical = tuple[str, str, tuple[int, ...], int]


def _parts(source: TensorSource, meta: TensorMeta) -> list[_Physical]:
    assert meta.nnz is not None
    specs = layout.part_specs(meta.dtype, meta.numel, meta.nnz)
    return [(spec.name(source.name), spec.dtype, (spec.length,), spec.nbytes) for spec in specs]


def _place(tensors: Iterable[_Physical]) -> list[Entry]:
    """Entries one behind the other, from offset 0 of the data section on."""
    entries = []
    at = 0
    for name, dtype, shape, nbytes in tensors:
        entries.append(Entry(name, dtype, shape, at, at + nbytes))
        at += nbytes
    return entries


def _bits(source: TensorSource) -> int:
    dtype = dtypes.BY_NAME.get(source.dtype)
    return dtype.bits if dtype is not None else 0


def _write_plain(stream: BinaryIO, sources: Iterable[TensorSource], progress: Progress | None) -> None:
    for source in sources:
        stream.write(source.checked_read().data)
        _report(progress, source)


def _report(progress: Progress | None, source: TensorSource) -> None:
    if progress is not None:
        progress(source.nbytes)
