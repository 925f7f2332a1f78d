"""Writing that is all or nothing: files and directories appear complete under their name, or not at all.

What is being written lies beside the destination under a name of its own, is flushed to disk, and is then
renamed. On any error or interrupt it is removed and the destination is as it was before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from pyendor.errors import UsageError, quote

SUFFIX = ".endor-tmp"

NewDirectory: TypeAlias = contextlib.AbstractContextManager[Path]


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends without an error.

    Args:
        path: where; its directory has to exist.
        force: whether an existing file may be replaced.

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
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o7777)
            os.fsync(file.fileno())
        _rename(temporary, target, replace=force)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """A directory that becomes ``path`` when the block ends without an error.

    An empty directory at ``path`` is replaced without ``force``.

    Raises:
        UsageError: ``path`` exists and ``force`` is False, or it is no directory.
    """
    target = _in_existing_directory(path)
    if os.path.lexists(target):
        if not target.is_dir():
            raise UsageError(f"{quote(str(target))} exists and is not a directory")
        if not force and any(target.iterdir()):
            raise UsageError(f"{quote(str(target))} exists; --force (force=True) replaces it")
        target = target.resolve()
        if target == Path.cwd():
            raise UsageError("the current directory cannot be replaced; name one inside or beside it")
    temporary = _beside(target)
    try:
        temporary.mkdir()
        yield temporary
        for directory, _, _ in os.walk(temporary, topdown=False):
            _sync_directory(Path(directory))
        _swap(temporary, target)
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
    target = Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"{quote(str(target))} cannot be made: its directory does not exist")
    return target


def _swap(temporary: Path, target: Path) -> None:
    """Puts a directory in the place of another one, which is kept aside until that has worked."""
    if not target.exists():
        os.rename(temporary, target)
        return
    aside = _beside(target)
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _beside(target: Path) -> Path:
    """A name in the same directory that nothing has yet."""
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}{SUFFIX}")


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
