"""Source files as they were when the work began, opened again only as the same files.

Whoever may write to a model's directory could replace a file, or a directory above it, by a link to what only
the user of this process can read. Links that were there when the work began have been judged then (links into
the cache of the Hub, for instance, which a download consists of); none that comes later is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

from pyendor import system
from pyendor.errors import UsageError, quote
from pyendor.rights import Rights

_CHANGED = {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}  # EMLINK: FreeBSD's ELOOP


@dataclass(frozen=True)
class Stamp:
    """A file as it was; what tells that it has not been written to, or replaced by a link.

    Its inode does not tell, which copies and mounts change. It can be pickled, and holds on other machines.

    Attributes:
        path: the file, as it was named.
        base: a directory, whose own path is trusted.
        rest: the file below that, where nothing was a link.
        size, mtime_ns: of the file.
        rights: of the file.
    """

    path: Path
    base: Path
    rest: PurePath
    size: int
    mtime_ns: int
    rights: Rights

    @classmethod
    def of(cls, path: Path, root: Path) -> Self:
        """That of a file as it is now.

        Args:
            path: the file, or a link to one.
            root: the directory that it belongs to, directly or not.

        Raises:
            OSError: it cannot be opened.
            UsageError: it is no regular file.
        """
        real = system.resolve(path)
        base, rest = real.parent, PurePath(real.name)
        for directory in (root, *_above(root)):
            if system.resolve(directory) in real.parents:
                base, rest = directory, real.relative_to(system.resolve(directory))
                break
        descriptor = _open(path, base, rest)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return cls(path, base, rest, status.st_size, status.st_mtime_ns, Rights.of(status))

    def within(self, root: Path) -> bool:
        """True if the file lies in a directory, or in the cache that a link in the directory led to."""
        return self.base == root or (self.base in _above(root) and self.rest.parts[0] == "blobs")

    def open(self) -> int:
        """A descriptor of the file, to read from.

        Raises:
            UsageError: it is not what it was.
            OSError: it cannot be opened.
        """
        descriptor = _open(self.path, self.base, self.rest)
        try:
            status = os.fstat(descriptor)
            before = (self.size, self.mtime_ns, self.rights.mode)
            if (status.st_size, status.st_mtime_ns, Rights.of(status).mode) != before:
                raise _changed(self.path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check(self) -> None:
        """Raises UsageError if the file is not what it was."""
        os.close(self.open())
        # What is opened is what the path led to; it may lead elsewhere now.
        if system.resolve(self.path) != system.resolve(self.base) / self.rest:
            raise _changed(self.path)


def check_all(stamps: Mapping[str, Stamp]) -> None:
    """Raises UsageError if one of several files is not what it was."""
    for stamp in stamps.values():
        stamp.check()


def _above(root: Path) -> tuple[Path, ...]:
    """Where the cache of the Hub has its directory ``blobs``, to which the links of a download lead."""
    real = system.resolve(root)
    hubs = (above.parent for above in real.parents if above.name == "snapshots")
    return tuple(dict.fromkeys((real.parent.parent, *hubs)))


def _open(path: Path, base: Path, rest: PurePath) -> int:
    """A descriptor of a regular file.

    Args:
        path: what to call it in errors.
        base: a directory.
        rest: the file below that, through directories; a link is an error.
    """
    try:
        descriptor = system.open_below(base, rest)
    except OSError as error:
        if error.errno in _CHANGED:
            raise _changed(path) from None
        error.filename = str(path)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{quote(str(path))} is not a regular file")
    return descriptor


def _changed(path: Path) -> UsageError:
    return UsageError(
        f"{quote(str(path))} changed while it was read: it was written to, or replaced, perhaps by a link; "
        "run this again once it is at rest"
    )
