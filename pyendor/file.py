"""Single files, opened and read: their header checked whole, their tensors one by one on demand."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from pyendor import container, dtypes, layout, parallel, partial, slicing
from pyendor.container import Entry
from pyendor.encoded import DIGEST, EncodedTensor
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote
from pyendor.layout import Bytes, Layout
from pyendor.storage import LARGE, Desk, FileStorage, MemoryStorage, Scratch, Storage
from pyendor.writer import TensorSource

# Headers that are remembered, and how long one may be: loaders open a file for every tensor, or part of one.
_REMEMBERED = 8
# Runs of fewer bytes are read together with what is between them.
_SHORT = 4096
_LONGEST_REMEMBERED = 256 << 10


def _read_layout(storage: Storage, path: str | None) -> Layout:
    """The header of a file, read and checked; errors name the file."""
    try:
        prefix = storage.read(0, min(container.PREFIX, storage.length)).tobytes()
        length = container.header_length(prefix, storage.length)
        header = storage.read(container.PREFIX, container.PREFIX + length).tobytes()
        resolve = _remembered if length <= _LONGEST_REMEMBERED else _resolve
        return resolve(header, storage.length)
    except FormatError as error:
        raise error.located(path=path) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{quote(path)}: {error}" if path else str(error)) from None
    except MemoryError:
        raise UnsupportedError("the header is too large for this machine's memory") from None


def _resolve(header: bytes, file_length: int) -> Layout:
    return layout.resolve(container.parse(header, file_length))


# A layout follows from these bytes alone, and is never written to.
_remembered = functools.lru_cache(_REMEMBERED)(_resolve)


class File:
    """An open file, Endor or plain safetensors; its header has been checked whole.

    Attributes:
        layout: all that its header says.
        path: where it is; None for bytes in memory.
        mapped: whether slices are taken of a map of the file; otherwise what they need is read.
    """

    def __init__(self, storage: Storage, path: str | None = None, *, mapped: bool = True) -> None:
        self._storage = storage
        self.path = path
        self.mapped = mapped
        try:
            self.layout = _read_layout(storage, path)
        except BaseException:
            storage.close()
            raise

    @property
    def bytes_read(self) -> int:
        """How many bytes have been read, those of maps not counted."""
        return self._storage.bytes_read

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
        return self.read_encoded(self._require_encoded(name), None)

    def get_bytes(self, name: str, *, verify: bool = False, backend: str | None = None) -> Bytes:
        """The dense bytes of a tensor, ``uint8 [nbytes]``, row-major, little-endian.

        Args:
            name: of the tensor.
            verify: also check its digest, if it has one (D-2).
            backend: the codec to use.

        Raises:
            FormatError: the tensor breaks a rule.
            UnsupportedError: its encoding or its dtype is unknown to this build.
        """
        return self._bytes(self.tensor(name), verify, backend, None)

    def map_encoded(self, name: str) -> EncodedTensor:
        """An encoded tensor whose parts are a map of the file: nothing is read before it is used.

        Raises:
            as :meth:`get_encoded`.
        """
        tensor = self._require_encoded(name)
        assert tensor.meta is not None
        parts = {role: self._storage.view(part.start, part.stop) for role, part in tensor.parts.items()}
        return EncodedTensor(name, tensor.meta, parts, _offsets(tensor), self.path)

    def cut(
        self,
        name: str,
        start: int,
        shape: Sequence[int],
        strides: Sequence[int],
        *,
        backend: str | None = None,
    ) -> Bytes:
        """The dense bytes of a slice: the elements ``start + sum(i * stride)``, row-major in ``shape``.

        Reads, checks and decodes only what it needs (B-11).

        Raises:
            FormatError: what was read breaks a rule.
            UnsupportedError: the tensor's encoding or dtype is unknown to this build, or its elements are no
                whole bytes.
        """
        tensor = self.tensor(name)
        tensor.require_supported()
        itemsize = dtypes.BY_NAME[tensor.dtype].itemsize
        if dtypes.BY_NAME[tensor.dtype].bits % 8:
            raise UnsupportedError(
                f"tensor {quote(name)}: no slices of {tensor.dtype}, which are no whole bytes"
            )
        out = layout.allocate(math.prod(shape) * itemsize)
        if out.size == 0:
            return out
        if tensor.meta is None and not self.mapped:
            self._read_runs(tensor.parts["values"], itemsize, start, shape, strides, out)
            return out
        if tensor.meta is None:
            part = tensor.parts["values"]
            words = self._storage.view(part.start + start * itemsize, part.stop).view(f"<u{itemsize}")
            # Of a single element it may be more than NumPy counts.
            byte_strides = [
                stride * itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)
            ]
            view = np.lib.stride_tricks.as_strided(words, shape, byte_strides, writeable=False)
            out.view(f"<u{itemsize}").reshape(shape)[...] = view
            return out
        if not self.mapped:
            wanted = partial.touched(tensor.numel, start, shape, strides)
            encoded = self.read_blocks(tensor, wanted)
        else:
            encoded = self.map_encoded(name)
        return encoded.take(start, shape, strides, out=out, backend=backend)

    def read_blocks(self, tensor: layout.Tensor, wanted: Sequence[tuple[int, int]]) -> EncodedTensor:
        """An encoded tensor of which only what these blocks (first, stop) need has been read.

        The rest of its parts is zero, and takes no memory where the system gives it page by page.
        """
        assert tensor.meta is not None
        parts = {role: layout.blank(part.nbytes) for role, part in tensor.parts.items()}

        def read(role: str, low: int, high: int) -> None:
            if low < high:
                start = tensor.parts[role].start
                self._storage.read(start + low, start + high, parts[role][low:high])

        if wanted:
            read("index", 0, parts["index"].size)
        for first, stop in wanted:
            for role, low, high in partial.ranges(tensor.meta, parts["index"], first, stop):
                read(role, low, high)
        return EncodedTensor(tensor.name, tensor.meta, parts, _offsets(tensor), self.path)

    def _read_runs(
        self,
        part: Entry,
        itemsize: int,
        start: int,
        shape: Sequence[int],
        strides: Sequence[int],
        out: Bytes,
    ) -> None:
        """Reads a slice of a plain tensor, run by run, or where they are short with what is between."""
        outer, (rows, stride), count = slicing.runs(shape, strides)
        at, size = 0, count * itemsize
        for offset in outer:
            begin = part.start + (start + offset) * itemsize
            if rows == 1 or size >= _SHORT:
                for row in range(rows):
                    low = begin + row * stride * itemsize
                    self._storage.read(low, low + size, out[at : at + size])
                    at += size
                continue
            span = self._storage.read(begin, begin + (rows - 1) * stride * itemsize + size)
            words = np.lib.stride_tricks.as_strided(
                span.view(f"<u{itemsize}"), (rows, count), (stride * itemsize, itemsize), writeable=False
            )
            out[at : at + rows * size].view(f"<u{itemsize}").reshape(rows, count)[...] = words
            at += rows * size

    def load(self, *, verify: bool = False, backend: str | None = None) -> dict[str, Bytes]:
        """The dense bytes of all tensors, in the order of their data, as :meth:`get_bytes` gives them.

        Besides them there is memory for the parts of one tensor for each thread, and never for all of them.
        """
        idle: list[Scratch] = []

        def work(tensor: layout.Tensor) -> Bytes:
            try:
                scratch = idle.pop()
            except IndexError:
                scratch = Scratch()
            data = self._bytes(tensor, verify, backend, scratch)
            idle.append(scratch)
            return data

        tensors = self.layout.tensors.values()
        for tensor in tensors:
            tensor.require_supported()
        large = [tensor for tensor in tensors if tensor.nbytes > LARGE]
        small = [tensor for tensor in tensors if tensor.nbytes <= LARGE]
        data = {tensor.name: work(tensor) for tensor in large}
        data |= zip((tensor.name for tensor in small), parallel.each(work, small), strict=True)
        return {tensor.name: data[tensor.name] for tensor in tensors}

    def _bytes(
        self, tensor: layout.Tensor, verify: bool, backend: str | None, scratch: Scratch | None
    ) -> Bytes:
        tensor.require_supported()
        if tensor.meta is None:
            return self._read(tensor.parts["values"])
        encoded = self.read_encoded(tensor, scratch)
        if verify:
            encoded.check_digest()
        return encoded.decode(backend=backend)

    def read_encoded(self, tensor: layout.Tensor, scratch: Scratch | None) -> EncodedTensor:
        """An encoded tensor, in memory of its own, or in scratch memory."""
        assert tensor.meta is not None
        entries = tensor.parts.values()
        memory = scratch.take([part.nbytes for part in entries]) if scratch else [None] * len(entries)
        parts = {
            role: self._storage.read(part.start, part.stop, out)
            for (role, part), out in zip(tensor.parts.items(), memory, strict=True)
        }
        return EncodedTensor(tensor.name, tensor.meta, parts, _offsets(tensor), self.path)

    def _require_encoded(self, name: str) -> layout.Tensor:
        tensor = self.tensor(name)
        tensor.require_supported()
        if tensor.meta is None:
            raise UsageError(f"tensor {quote(name)} is plain, not encoded")
        return tensor

    def sources(self, *, verify: bool = False, backend: str | None = None) -> list[TensorSource]:
        """All tensors, decoded when they are read, in the order of their data.

        A plain tensor of a dtype that this build does not know is carried as its bytes. Arguments are those
        of :meth:`get_bytes`, but a digest of an algorithm that this build does not know is passed over (D-4).
        """
        return [self._source(tensor, verify, backend) for tensor in self.layout.tensors.values()]

    def _source(self, tensor: layout.Tensor, verify: bool, backend: str | None) -> TensorSource:
        if tensor.meta is None:
            part = tensor.parts["values"]
            return TensorSource(
                tensor.name,
                tensor.dtype,
                tensor.shape,
                part.nbytes,
                lambda: self._read(part),
                read_at=lambda desk: self.read_plain(tensor, desk.dense),
            )
        tensor.require_supported()
        known = tensor.meta.digest_algorithm == DIGEST

        def read_at(desk: Desk) -> Bytes:
            encoded = self.read_encoded(tensor, desk.parts)
            if verify and known:
                encoded.check_digest()
            return encoded.decode(*desk.dense.take([tensor.nbytes]), backend=backend)

        return TensorSource(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            tensor.nbytes,
            lambda: self.get_bytes(tensor.name, verify=verify and known, backend=backend),
            read_at=read_at,
            stored=tensor.stored_nbytes,
        )

    def read_plain(self, tensor: layout.Tensor, scratch: Scratch) -> Bytes:
        """The bytes of a plain tensor, of whatever dtype, in scratch memory."""
        part = tensor.parts["values"]
        return self._storage.read(part.start, part.stop, *scratch.take([part.nbytes]))

    def read_into(self, start: int, out: Bytes) -> None:
        """Fills ``out`` with the bytes of the file from ``start`` on.

        Raises:
            FormatError: the file has become shorter.
        """
        read = self._storage.read(start, start + out.size, out)
        if read is not out:  # of a file that is in memory
            out[:] = read

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


def _offsets(tensor: layout.Tensor) -> dict[str, int]:
    return {role: part.start for role, part in tensor.parts.items()}


def open_file(path: str | os.PathLike[str], *, mapped: bool = True, descriptor: int | None = None) -> File:
    """Opens an Endor or plain safetensors file.

    Args:
        path: the file.
        mapped: as in :class:`File`.
        descriptor: of the file, to read from and to close, if it is open already.

    Raises:
        FormatError: its header breaks a rule.
        UnsupportedError: its major version is unknown.
        OSError: it cannot be read.
    """
    return File(FileStorage(path, descriptor), os.fspath(path), mapped=mapped)


def open_bytes(data: bytes) -> File:
    """Opens the bytes of a file."""
    return File(MemoryStorage(data))
