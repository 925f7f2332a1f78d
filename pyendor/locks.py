"""Locks on files that keep a second process from writing the same destination.

They are the system's: it lets go of them when a process ends, in whatever way.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from pyendor.errors import UsageError, quote

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of file systems that know none
# A child of fork has copies of these descriptors, which would hold the locks when this process has ended.
_held: set[int] = set()


def take(descriptor: int, path: Path, target: Path) -> bool:
    """Locks an open file until it is released, or this process ends in whatever way.

    Returns:
        False if the file system, or the system, has no such locks.

    Raises:
        UsageError: another process has the lock, and so is writing the target.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{quote(str(target))} is being written by another process, which has locked {quote(str(path))}"
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    _held.add(descriptor)
    return True


def release(descriptor: int) -> None:
    """Closes a file, locked or not."""
    _held.discard(descriptor)
    # It is closed even where that is an error, which tells nothing here and would hide another one.
    with contextlib.suppress(OSError):
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is what has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _close_held() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)
