"""Single files, opened and read: their header checked whole, their tensors one by one on demand.

Reading is by ``pread`` into private memory, not by a memory map: what was checked is then what is decoded
(S-3), and a file that is cut short meanwhile is an error, not a signal.
"""

from __future__ import annotations

import itertools
import os
import stat
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from pyendor import container, layout, parallel
from pyendor.container import Entry
from pyendor.encoded import DIGEST, EncodedTensor
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote
from pyendor.layout import Bytes, Layout
from pyendor.writer import TensorSource

# A larger tensor is the work of all threads; smaller ones are loaded several at a time, each by one thread.
_LARGE = 32 << 20


class _Scratch:
    """Memory for the parts of one tensor after the other: used again, it need not be mapped again."""

    def __init__(self) -> None:
        self._memory = layout.allocate(0)

    def take(self, sizes: Sequence[int]) -> list[Bytes]:
        """Pieces of these sizes, which are multiples of 64; those that were taken before are gone."""
        edges = [0, *itertools.accumulate(sizes)]
        if self._memory.size < edges[-1]:
            self._memory = layout.allocate(edges[-1])
        return [self._memory[low:high] for low, high in itertools.pairwise(edges)]


class _Storage(Protocol):
    length: int

    def read(self, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        """Bytes of the file, in ``out`` or in memory that nobody writes to."""

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
        # Also without close(), as users of safetensors are used to.
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        if self._close.alive is False:
            raise ValueError("the file is closed")
        data = layout.allocate(stop - start) if out is None else out
        pieces = range(0, data.size, _LARGE)
        parallel.each(lambda at: self._fill(data[at : at + _LARGE], start + at), pieces)
        return data

    def _fill(self, data: Bytes, start: int) -> None:
        rest = data.data
        while rest:
            at = start + data.size - len(rest)
            done = os.preadv(self._descriptor, [rest], at)
            if done == 0:
                found = "the file became shorter while it was read"
                raise FormatError("C-9", found, offset=at, path=self.path)
            rest = rest[done:]

    def close(self) -> None:
        self._close()


class _MemoryStorage:
    """The bytes of a file in memory that does not change."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.length = self._data.size

    def read(self, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        return self._data[start:stop]

    def close(self) -> None:
        pass


def _read_layout(storage: _Storage, path: str | None) -> Layout:
    """The header of a file, read and checked; errors name the file."""
    try:
        prefix = storage.read(0, min(container.PREFIX, storage.length)).tobytes()
        length = container.header_length(prefix, storage.length)
        header = storage.read(container.PREFIX, container.PREFIX + length).tobytes()
        return layout.resolve(container.parse(header, storage.length))
    except FormatError as error:
        raise error.located(path=path) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{quote(path)}: {error}" if path else str(error)) from None
    except MemoryError:
        raise UnsupportedError("the header is too large for this machine's memory") from None


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
            self.layout = _read_layout(storage, path)
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
        return self._encoded(tensor, None)

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

    def load(self, *, verify: bool = False, backend: str | None = None) -> dict[str, Bytes]:
        """The dense bytes of all tensors, in the order of their data, as :meth:`get_bytes` gives them.

        Besides them there is memory for the parts of one tensor for each thread, and never for all of them.
        """
        idle: list[_Scratch] = []

        def work(tensor: layout.Tensor) -> Bytes:
            try:
                scratch = idle.pop()
            except IndexError:
                scratch = _Scratch()
            data = self._bytes(tensor, verify, backend, scratch)
            idle.append(scratch)
            return data

        tensors = self.layout.tensors.values()
        for tensor in tensors:
            tensor.require_supported()
        large = [tensor for tensor in tensors if tensor.nbytes > _LARGE]
        small = [tensor for tensor in tensors if tensor.nbytes <= _LARGE]
        data = {tensor.name: work(tensor) for tensor in large}
        data |= zip((tensor.name for tensor in small), parallel.each(work, small), strict=True)
        return {tensor.name: data[tensor.name] for tensor in tensors}

    def _bytes(
        self, tensor: layout.Tensor, verify: bool, backend: str | None, scratch: _Scratch | None
    ) -> Bytes:
        tensor.require_supported()
        if tensor.meta is None:
            return self._read(tensor.parts["values"])
        encoded = self._encoded(tensor, scratch)
        if verify:
            encoded.check_digest()
        return encoded.decode(backend=backend)

    def _encoded(self, tensor: layout.Tensor, scratch: _Scratch | None) -> EncodedTensor:
        """Parts in memory of their own, or in scratch memory."""
        assert tensor.meta is not None
        entries = tensor.parts.values()
        memory = scratch.take([part.nbytes for part in entries]) if scratch else [None] * len(entries)
        parts = {
            role: self._storage.read(part.start, part.stop, out)
            for (role, part), out in zip(tensor.parts.items(), memory, strict=True)
        }
        offsets = {role: part.start for role, part in tensor.parts.items()}
        return EncodedTensor(tensor.name, tensor.meta, parts, offsets, self.path)

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
                tensor.name, tensor.dtype, tensor.shape, part.nbytes, lambda: self._read(part)
            )
        tensor.require_supported()
        known = tensor.meta.digest_algorithm == DIGEST
        return TensorSource(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            tensor.nbytes,
            lambda: self.get_bytes(tensor.name, verify=verify and known, backend=backend),
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
