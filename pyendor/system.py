"""What systems differ in: flags and calls that POSIX has and Windows lacks, or has otherwise."""

from __future__ import annotations

import os
import threading
from pathlib import Path

# Of os.open(); what there is not is nothing.
BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
NO_FOLLOWING = getattr(os, "O_NOFOLLOW", 0)
NO_WAITING = getattr(os, "O_NONBLOCK", 0)

_turn = threading.Lock()


def read_at(descriptor: int, data: memoryview, at: int) -> int:
    """Fills ``data`` from this byte of a file on, as far as one call gets; how far that is, in bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [data], at)
    with _turn:  # the place in the file is one for all threads
        os.lseek(descriptor, at, os.SEEK_SET)
        piece = os.read(descriptor, len(data))
    data[: len(piece)] = piece
    return len(piece)


def is_ours(status: os.stat_result) -> bool:
    """Whether a file belongs to the user of this process, where files do."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def sync_directory(path: Path) -> None:
    """Flushes the names in a directory to disk, where directories can be opened for that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flushes what a file holds to disk."""
    with open(path, "r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())
