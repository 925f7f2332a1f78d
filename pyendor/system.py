"""What systems differ in: flags and calls that POSIX has and Windows lacks, or has otherwise."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path, PurePath

from pyendor.errors import UsageError, quote

# Of os.open(); what there is not is nothing.
BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
NO_FOLLOWING = getattr(os, "O_NOFOLLOW", 0)
NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY) | BINARY

_turn = threading.Lock()

# Of renameat2 of Linux: the flags, and the errors of systems, file systems and sandboxes that lack it.
_AT_FDCWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2
_LACKING = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def read_at(descriptor: int, data: memoryview, at: int) -> int:
    """Fills ``data`` from this byte of a file on, as far as one call gets; how far that is, in bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [data], at)
    with _turn:  # the place in the file is one for all threads
        os.lseek(descriptor, at, os.SEEK_SET)
        piece = os.read(descriptor, len(data))
    data[: len(piece)] = piece
    return len(piece)


def open_below(base: Path, rest: PurePath) -> int:
    """Open a file for reading, without following a link below a directory.

    Args:
        base: the directory; links in its own path are followed.
        rest: the file, relative to it.

    Raises:
        OSError: with ``ELOOP`` or ``ENOTDIR`` if there is a link on the way.
    """
    flags = os.O_RDONLY | BINARY | NO_WAITING
    if os.open not in os.supports_dir_fd or not NO_FOLLOWING:
        return _open_checked(base, rest, flags)
    folder = os.open(base, _DIRECTORY)
    try:
        for part in rest.parts[:-1]:
            below = os.open(part, _DIRECTORY | NO_FOLLOWING, dir_fd=folder)
            folder, above = below, folder
            os.close(above)
        return os.open(rest.parts[-1], flags | NO_FOLLOWING, dir_fd=folder)
    finally:
        os.close(folder)


def _open_checked(base: Path, rest: PurePath, flags: int) -> int:
    """The same where directories cannot be opened: looks afterwards at what was opened."""
    path = base / rest
    descriptor = os.open(path, flags)
    try:
        same = os.path.samestat(os.fstat(descriptor), os.lstat(path))
        if resolve(path) != resolve(base) / rest or not same:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def exists(path: Path) -> bool:
    """True if a name is taken, by a link to nothing too.

    Raises:
        OSError: the system cannot tell, which ``os.path.lexists`` takes for no.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_paths(*paths: str | os.PathLike[str]) -> None:
    """Raise UsageError for what is no path; functions of Python raise ValueError, each at another place."""
    for path in paths:
        try:
            raw = os.fsencode(path)
        except ValueError as error:
            raise UsageError(f"{quote(os.fspath(path))} is no path: {error}") from error
        if b"\0" in raw:
            raise UsageError(f"{quote(os.fspath(path))} is no path: it has a null byte")


def resolve(path: Path) -> Path:
    """The path without links. A loop of links is left as it is: opening it is an OSError.

    Path.resolve raises RuntimeError for a loop, before Python 3.13.
    """
    return Path(os.path.realpath(path))


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


def exchange(left: Path, right: Path) -> bool:
    """Exchange two directories in one step, so that at no time either is missing.

    Returns:
        False if the system or the file system cannot.
    """
    return _rename(left, right, _EXCHANGE)


def rename_new(source: Path, target: Path) -> bool:
    """Rename a file to a name that is free, in one step.

    Returns:
        False if the system or the file system cannot.

    Raises:
        FileExistsError: the name is taken.
    """
    return _rename(source, target, _NO_REPLACE)


def _rename(source: Path, target: Path, flag: int) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    here = ctypes.c_int(_AT_FDCWD)
    if renameat2(here, os.fsencode(source), here, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def umask() -> int:
    """The permission bits that new files of this process do not get."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    with _turn:
        mask = os.umask(0o077)  # for a moment; no other thread's file gets more than it should
        os.umask(mask)
    return mask
