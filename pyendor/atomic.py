"""Writing that is all or nothing: a file appears complete under its name, or not at all.

What is being written lies beside the destination under a name of its own, is flushed to disk, and is then
renamed. On any error or interrupt it is removed and the destination is as it was before.
:mod:`pyendor.workspace` does the same for directories.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyendor import locks, rights, system
from pyendor.errors import UsageError, quote
from pyendor.rights import Rights
from pyendor.stamps import Stamp

SUFFIX = ".endor-tmp"

_CHUNK = 4 << 20
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}  # of file systems without hard links


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike[str], *, force: bool, like: Rights | None = None, alone: bool = False
) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends without an error.

    Until then only its owner can open it. A new file then gets the rights that the umask leaves; one that
    replaces another gets the rights of that one.

    Args:
        path: where; its directory has to exist.
        force: replace an existing file.
        like: the rights of what this is a copy of: nobody gets more.
        alone: refuse to write what another process is writing in this way. What such a process leaves when
            it is killed, the next one removes.

    Raises:
        UsageError: ``path`` exists and ``force`` is False, or it is no regular file; another process is
            writing it.
    """
    target = in_existing_directory(path)
    if system.exists(target):
        if not target.is_file():
            raise UsageError(f"{quote(str(target))} exists and is not a file")
        target = system.resolve(target)  # a link stays a link: what it points to is replaced
    # The name is known before the file is there: whenever an interrupt comes, it is removed.
    temporary, lock, ours = hidden(target, SUFFIX) if alone else beside(target), None, not alone
    try:
        if alone:
            temporary, lock = _locked(target)
            ours = True
        if not force and system.exists(target):
            raise UsageError(f"{quote(str(target))} exists; --force (force=True) replaces it")

        def opener(*_: object) -> int:
            return _create(temporary) if lock is None else os.dup(lock)

        with open(temporary, "w+b", opener=opener) as file:
            yield file
            file.flush()
            replaced = target.stat() if target.exists() else None
            made = os.fstat(file.fileno())
            place = file.fileno() if os.chmod in os.supports_fd else temporary
            os.chmod(place, rights.of_new(made, 0o666, like, replaced))
            os.fsync(file.fileno())
        _rename(temporary, target, replace=force)
    except BaseException as error:
        try:
            if ours:
                temporary.unlink(missing_ok=True)
            else:
                _remove_unless_locked(temporary)
        except OSError as failure:
            error.add_note(f"{quote(str(temporary))} could not be removed ({failure.strerror}): remove it")
        if isinstance(error, OSError) and error.filename in {None, str(temporary), temporary}:
            error.filename = str(target)  # a full disk, for instance, names no file
        raise
    finally:
        if lock is not None:
            locks.release(lock)
    system.sync_directory(target.parent)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.BINARY, 0o600)


def _locked(target: Path) -> tuple[Path, int | None]:
    """A new file under the name that follows from a target's, and its descriptor, locked.

    The descriptor is None, and the name new, on file systems without locks.
    """
    path = hidden(target, SUFFIX)
    while True:
        try:
            descriptor, new = _create(path), True
        except FileExistsError:
            try:
                descriptor, new = _open(path), False
            except FileNotFoundError:
                continue  # whose it was has finished
        with contextlib.ExitStack() as stack:
            stack.callback(locks.release, descriptor)
            if not locks.take(descriptor, path, target):
                path.unlink(missing_ok=True)
                return beside(target), None
            here = locks.is_at(descriptor, path)
            if new and here:
                stack.pop_all()
                return path, descriptor
            # Left by a process that was killed. Not written to: somebody may have opened it.
            if here:
                path.unlink()


def _open(path: Path) -> int:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise UsageError(f"{quote(str(path))} is in the way: remove it")
    return os.open(path, os.O_RDWR | system.BINARY | system.NO_FOLLOWING)


def _remove_unless_locked(path: Path) -> None:
    """Removes what an interrupt has left in the moment between making a file and locking it."""
    try:
        descriptor = _open(path)
    except (OSError, UsageError):
        return
    try:
        if locks.take(descriptor, path, path) and locks.is_at(descriptor, path):
            path.unlink()
    except UsageError:
        pass  # another process has it
    finally:
        locks.release(descriptor)


def copy_file(source: Stamp, target: Path) -> None:
    """Copies a file's bytes, rights and times to a new file, flushed to disk.

    Raises:
        UsageError: the source is not what it was.
    """
    with open(source.open(), "rb") as file:
        status = os.fstat(file.fileno())
        with open(target, "xb", opener=lambda *_: _create(target)) as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
            copy.flush()
            made = os.fstat(copy.fileno())
            place = copy.fileno() if os.chmod in os.supports_fd else target
            os.chmod(place, source.rights.within(made.st_gid))
            os.fsync(copy.fileno())
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def in_existing_directory(path: str | os.PathLike[str]) -> Path:
    """A destination as a path, once it is clear that it can be made.

    Raises:
        UsageError: it cannot.
    """
    if not os.fspath(path):
        raise UsageError("the name of the destination is empty")
    system.require_paths(path)
    target = Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"{quote(str(target))} cannot be made: its directory does not exist")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{quote(str(target))} cannot be made: its directory cannot be written to")
    return target


def hidden(target: Path, suffix: str) -> Path:
    """The name in the same directory that what becomes the target has until then."""
    name = target.name
    if len(os.fsencode(name)) > 200:  # no name has more than 255 bytes
        name = f"{name[:40]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return target.with_name(f".{name}{suffix}")


def beside(target: Path) -> Path:
    """A name in the same directory that nothing has yet."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}{SUFFIX}")


def _rename(source: Path, target: Path, *, replace: bool) -> None:
    """Renames; without ``replace``, fails if another process has created the target in the meantime."""
    if replace:
        os.replace(source, target)
        return
    try:
        if system.rename_new(source, target):
            return
        os.link(source, target)
    except FileExistsError:
        raise _created(target) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if system.exists(target):
            raise _created(target) from None
        os.replace(source, target)
        return
    source.unlink()


def _created(target: Path) -> UsageError:
    return UsageError(
        f"{quote(str(target))} was created by another process in the meantime: "
        "remove it, or name another destination"
    )
