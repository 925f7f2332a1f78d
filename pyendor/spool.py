"""Bytes that wait until it is known where in a file they belong.

In memory at first, and when there are more of them in a file that has no name, on the disk that they go to.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple, Self

from pyendor.layout import Bytes

IN_MEMORY = 64 << 20  # bytes
_CHUNK = 4 << 20


class Extent(NamedTuple):
    """Where in a spool something is: its first byte, and the one behind its last."""

    start: int
    stop: int


class Spool:
    """Keeps bytes for a stream that they will be written to later, in any order; a context manager.

    Args:
        stream: what that is. If it is a file, what does not fit into memory goes to its directory: another
            one may be on a disk that is smaller.
    """

    def __init__(self, stream: BinaryIO) -> None:
        name = getattr(stream, "name", None)
        folder = os.path.dirname(os.path.abspath(name)) if isinstance(name, str) else None
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)  # noqa: SIM115

    def keep(self, pieces: Iterable[Bytes]) -> Extent:
        """Takes bytes in, one piece behind the other."""
        start = self._file.seek(0, os.SEEK_END)
        for piece in pieces:
            self._file.write(piece.data)
        return Extent(start, self._file.tell())

    def copy(self, extent: Extent, stream: BinaryIO) -> None:
        """Writes to the stream what was taken in there."""
        self._file.seek(extent.start)
        buffer = memoryview(bytearray(min(_CHUNK, extent.stop - extent.start)))
        for at in range(extent.start, extent.stop, _CHUNK):
            piece = buffer[: extent.stop - at]
            done = self._file.readinto(piece)
            assert done == len(piece)
            stream.write(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
