"""A file whose first bytes are known last: what follows them is written, and moved to its place at the end.

Knows nothing of what the bytes are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from typing import IO, BinaryIO, Self

from pyendor.layout import Bytes

IN_MEMORY = 64 << 20  # bytes
_CHUNK = 4 << 20


class Draft:
    """What is written to a stream behind a header that is not known yet; a context manager.

    Args:
        stream: written from its present position on; it can be read, too.
        room: about so many bytes the header will have. What is there moves anyway; but if they are not fewer,
            it moves forwards, as disks like it.
    """

    def __init__(self, stream: BinaryIO, room: int) -> None:
        self._stream = stream
        self._start = stream.tell()
        self._begin = self._end = self._start + room
        name = getattr(stream, "name", None)
        folder = os.path.dirname(os.path.abspath(name)) if isinstance(name, str) else None
        # Not on another disk, which may be smaller.
        self._later = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)  # noqa: SIM115  see __exit__

    def add(self, pieces: Iterable[Bytes]) -> None:
        """Writes behind what was added before."""
        self._stream.seek(self._end)
        for piece in pieces:
            self._stream.write(piece.data)
        self._end = self._stream.tell()

    def add_later(self, piece: Bytes) -> int:
        """Keeps what belongs behind all that is added; where it is, for :meth:`write_later`."""
        at = self._later.seek(0, os.SEEK_END)
        self._later.write(piece.data)
        return at

    def finish(self, header: bytes) -> None:
        """Writes the header, and what was added behind it. The stream is then where that ends."""
        target = self._start + len(header)
        size = self._end - self._begin
        _move(self._stream, self._begin, target, size)
        self._stream.seek(self._start)
        self._stream.write(header)
        self._stream.truncate(target + size)
        self._stream.seek(target + size)

    def write_later(self, at: int, nbytes: int) -> None:
        """Writes to the stream, where it is, what was kept for that."""
        self._later.seek(at)
        for done in range(0, nbytes, _CHUNK):
            self._stream.write(_read(self._later, min(_CHUNK, nbytes - done)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._later.close()


def _move(stream: BinaryIO, source: int, target: int, nbytes: int) -> None:
    """Moves bytes within a stream, to a place that may overlap with where they are."""
    if source == target:
        return
    steps = range(0, nbytes, _CHUNK)
    for done in steps if target < source else reversed(steps):
        stream.seek(source + done)
        piece = _read(stream, min(_CHUNK, nbytes - done))
        stream.seek(target + done)
        stream.write(piece)


def _read(stream: IO[bytes], nbytes: int) -> bytes:
    piece = stream.read(nbytes)
    if len(piece) != nbytes:
        raise OSError("what was being written became shorter meanwhile")
    return piece
