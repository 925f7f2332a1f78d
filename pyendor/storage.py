"""Where the bytes of a file are: on disk or in memory.

Whole tensors are read by ``pread`` into private memory: what was checked is then what is decoded (S-3), and
a file that is cut short meanwhile is an error. For slices the file is mapped, and blocks are decoded from
copies of their values; if a mapped file is cut short, the system ends the process, as for all who map files.
"""

from __future__ import annotations

import itertools
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pyendor import layout, parallel, system
from pyendor.errors import FormatError, UsageError, quote
from pyendor.layout import Bytes

# A larger tensor is the work of all threads; smaller ones are loaded several at a time, each by one thread.
LARGE = 32 << 20


class Scratch:
    """Memory for the parts of one tensor after the other: used again, it need not be mapped again."""

    def __init__(self, capacity: int = 0) -> None:
        self._memory = layout.allocate(capacity)

    def take(self, sizes: Sequence[int]) -> list[Bytes]:
        """Pieces of these sizes, all but the last multiples of 64; those that were taken before are gone."""
        edges = [0, *itertools.accumulate(sizes)]
        if self._memory.size < edges[-1]:
            self._memory = layout.allocate(edges[-1])
        return [self._memory[low:high] for low, high in itertools.pairwise(edges)]


@dataclass(frozen=True, slots=True)
class Desk:
    """Memory to read one tensor after the other with.

    Attributes:
        dense: for the dense data, which the reader hands out.
        parts: for what that is decoded from.
    """

    dense: Scratch
    parts: Scratch

    @staticmethod
    def pair(dense: int, parts: int) -> tuple[Desk, Desk]:
        """Two to use in turn, for sizes up to these: what one holds is used while the other is filled.

        Only one is filled at a time, so they have the memory for parts in common. Memory that is not
        used is not there.
        """
        common = Scratch(parts)
        return Desk(Scratch(dense), common), Desk(Scratch(dense), common)


class Storage(Protocol):
    """The bytes of a file; ``length`` is how many there are, ``bytes_read`` how many have been read."""

    length: int
    bytes_read: int

    def read(self, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        """Bytes of the file, in ``out`` or in memory that nobody writes to."""

    def view(self, start: int, stop: int) -> Bytes:
        """Bytes of the file as they are there, and change if somebody writes to it."""

    def close(self) -> None: ...


class FileStorage:
    """The bytes of a regular file.

    Args:
        path: the file.
        descriptor: of the file, to read from and to close, if it is open already.
    """

    def __init__(self, path: str | os.PathLike[str], descriptor: int | None = None) -> None:
        self.path = os.fspath(path)
        if descriptor is None:
            system.require_paths(path)
            # Not blocking: opening a named pipe would otherwise wait for somebody to write to it.
            descriptor = os.open(path, os.O_RDONLY | system.BINARY | system.NO_WAITING)
        self._descriptor = descriptor
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise UsageError(f"{quote(self.path)} is not a regular file")
        self.length = status.st_size
        self.bytes_read = 0
        self._map: Bytes | None = None
        self._lock = threading.Lock()
        # Also without close(), as users of safetensors are used to.
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        self._require_open()
        data = layout.allocate(stop - start) if out is None else out
        pieces = range(0, data.size, LARGE)
        parallel.each(lambda at: self._fill(data[at : at + LARGE], start + at), pieces)
        return data

    def _fill(self, data: Bytes, start: int) -> None:
        rest = data.data
        while rest:
            at = start + data.size - len(rest)
            done = system.read_at(self._descriptor, rest, at)
            if done == 0:
                found = "the file became shorter while it was read"
                raise FormatError("C-9", found, offset=at, path=self.path)
            rest = rest[done:]
        with self._lock:
            self.bytes_read += data.size

    def view(self, start: int, stop: int) -> Bytes:
        self._require_open()
        with self._lock:
            if self._map is None:
                # The map is closed when the last array on it is gone.
                pages = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) if self.length else b""
                self._map = np.frombuffer(pages, np.uint8)
        return self._map[start:stop]

    def _require_open(self) -> None:
        if self._close.alive is False:
            raise UsageError("the file is closed")

    def close(self) -> None:
        self._map = None
        self._close()


class MemoryStorage:
    """The bytes of a file in memory that does not change."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.length = self._data.size
        self.bytes_read = 0

    def read(self, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        return self._data[start:stop]

    def view(self, start: int, stop: int) -> Bytes:
        return self._data[start:stop]

    def close(self) -> None:
        pass
