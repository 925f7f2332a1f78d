"""Writing that is all or nothing: files and directories appear complete under their name, or not at all.

What is being written lies beside the destination under a name of its own, is flushed to disk, and is then
renamed. On any error or interrupt it is removed and the destination is as it was before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from pyendor.errors import UsageError, quote

SUFFIX = ".endor-tmp"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux

NewDirectory: TypeAlias = contextlib.AbstractContextManager[Path]


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends without an error.

    Args:
        path: where; its directory has to exist.
        force: whether an existing file may be replaced; it keeps its mode.
        mode: the most that others may do with a new file; the umask may forbid more.

    Raises:
        UsageError: ``path`` exists and ``force`` is False, or it is no regular file.
    """
    target = _in_existing_directory(path)
    if os.path.lexists(target):
        if not target.is_file():
            raise UsageError(f"{quote(str(target))} exists and is not a file")
        if not force:
            raise UsageError(f"{quote(str(target))} exists; --force (force=True) replaces it")
        target = target.resolve()  # a link stays a link: what it points to is replaced
    # The name is known before the file is there: whenever an interrupt comes, it is removed.
    temporary = _beside(target)
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o7777)
            os.fsync(file.fileno())
        _rename(temporary, target, replace=force)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, str(temporary), temporary}:
            error.filename = str(target)  # a full disk, for instance, names no file
        raise
    _sync_directory(target.parent)


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str], *, force: bool, mode: int = 0o777) -> Iterator[Path]:
    """A directory that becomes ``path`` when the block ends without an error.

    An empty directory at ``path`` is replaced without ``force``. Arguments are those of :func:`new_file`.

    Raises:
        UsageError: ``path`` exists and ``force`` is False, or it cannot be replaced.
    """
    target = _in_existing_directory(path)
    exists = os.path.lexists(target)
    if exists:
        if not target.is_dir():
            raise UsageError(f"{quote(str(target))} exists and is not a directory")
        if not force and any(target.iterdir()):
            raise UsageError(f"{quote(str(target))} exists; --force (force=True) replaces it")
        target = target.resolve()
        if target == Path.cwd():
            raise UsageError("the current directory cannot be replaced; name one inside or beside it")
        if os.path.ismount(target):
            raise UsageError(f"{quote(str(target))} is a mount point; name a directory inside it")
    temporary = _beside(target)
    try:
        temporary.mkdir(mode)
        yield temporary
        if exists and target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        for directory, _, _ in os.walk(temporary, topdown=False):
            _sync_directory(Path(directory))
        _swap(temporary, target, replace=force)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_directory(target.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file's bytes, mode and times, flushed to disk."""
    shutil.copy2(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def _in_existing_directory(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):
        raise UsageError("the name of the destination is empty")
    target = Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"{quote(str(target))} cannot be made: its directory does not exist")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{quote(str(target))} cannot be made: its directory cannot be written to")
    return target


def _swap(temporary: Path, target: Path, *, replace: bool) -> None:
    """Puts a directory in the place of another one; without ``replace``, only of an empty one or of none."""
    if not replace or not target.exists():
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise UsageError(f"{quote(str(target))} was made by somebody else meanwhile") from None
            raise
        return
    if _exchange(temporary, target):
        aside = temporary
    else:
        aside = _beside(target)
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(aside, target)
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(left: Path, right: Path) -> bool:
    """Exchanges two directories in one step, where the system can: at no time is either missing."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here = ctypes.c_int(_AT_FDCWD)
    done = renameat2(here, os.fsencode(left), here, os.fsencode(right), _RENAME_EXCHANGE)
    return bool(done == 0)


def _beside(target: Path) -> Path:
    """A name in the same directory that nothing has yet."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}{SUFFIX}")


def _rename(source: Path, target: Path, *, replace: bool) -> None:
    """Renames; without ``replace``, fails if somebody else has made the target in the meantime."""
    if replace:
        os.replace(source, target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise UsageError(f"{quote(str(target))} was made by somebody else meanwhile") from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise UsageError(f"{quote(str(target))} was made by somebody else meanwhile") from None
        os.replace(source, target)
        return
    source.unlink()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
