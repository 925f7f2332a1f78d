"""The directory in which a checkpoint grows until it is whole, so that a run that was killed can be taken up.

It lies beside the destination, hidden, under a name that follows from the destination's:

    .NAME.endor-work/
        lock       locked by the process at work
        journal    which files are done, and what they were made of; replaced as a whole, file by file
        files/     what becomes the destination, in one step
        drafts/    where jobs write; worth nothing to the next run
        old/       for a moment, what the destination was, on systems that cannot exchange two directories

What is done is kept when a run ends before the whole is; the next one with the same key takes it over. All
else that is found here is removed, and if nothing is done, all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyendor import atomic, locks, system
from pyendor.errors import UsageError, quote

SUFFIX = ".endor-work"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


class Workspace:
    """A directory that becomes the destination.

    Attributes:
        files: what becomes the destination.
        drafts: where jobs write their files. Other machines may write here too: the paths are absolute.
        done: names of the files that are finished.
    """

    def __init__(self, root: Path, key: Mapping[str, Any] | None) -> None:
        self.files = root / "files"
        self.drafts = root / "drafts"
        self._journal = root / "journal"
        self._key = key
        self._done: dict[str, list[Any]] = {}

    @property
    def done(self) -> frozenset[str]:
        """Names of the files that are finished."""
        return frozenset(self._done)

    def finish(self, name: str, origin: Any) -> None:
        """Takes a draft, which has been flushed to disk, as finished.

        Args:
            name: of the file.
            origin: what it was made from, as a JSON value; see :func:`open_workspace`.
        """
        os.replace(self.drafts / name, self.files / name)
        if self._key is None:
            return
        system.sync_directory(self.files)
        self._done[name] = [origin, _identity(self.files / name)]
        self._write_journal()

    def begin(self, mode: int, origins: Mapping[str, Any]) -> None:
        """Takes over what an earlier run has finished, and removes all else."""
        found = self._read_journal()
        old = self.drafts / "files"
        _remove(self.drafts)
        self.drafts.mkdir()
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.files, old)
        self.files.mkdir(mode)
        for name, origin in origins.items():
            if name in found and found[name] == [origin, _identity(old / name)]:
                os.replace(old / name, self.files / name)
                self._done[name] = found[name]
        _remove(old)
        if self._done:
            self._write_journal()
        else:
            self.forget()

    def forget(self) -> None:
        """Makes whatever is here worth nothing to the next run."""
        self._done = {}
        self._journal.unlink(missing_ok=True)

    def _write_journal(self) -> None:
        with atomic.new_file(self._journal, force=True, mode=0o600) as stream:
            stream.write(json.dumps({"key": self._key, "done": self._done}).encode())

    def _read_journal(self) -> dict[str, Any]:
        """What the journal says is done; nothing if it is of other work, or unreadable."""
        try:
            journal = json.loads(self._journal.read_bytes())
            key, done = journal["key"], journal["done"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        known = self._key is not None and json.loads(json.dumps(self._key)) == key
        return done if known and isinstance(done, dict) else {}


@contextlib.contextmanager
def open_workspace(
    path: str | os.PathLike[str],
    *,
    force: bool,
    mode: int = 0o777,
    key: Mapping[str, Any] | None = None,
    origins: Mapping[str, Any] | None = None,
) -> Iterator[Workspace]:
    """A workspace whose files become the directory ``path`` when the block ends without an error.

    An empty directory at ``path`` is replaced without ``force``.

    Args:
        path: where; its directory has to exist.
        force: whether an existing directory may be replaced; it keeps its mode.
        mode: the most that others may do with a new one; the umask may forbid more.
        key: what is being done and how, as JSON values: work under another key is not taken over; None: no
            work is, and none is kept.
        origins: what files that an earlier run has finished must have been made from, by name, as JSON.

    Raises:
        UsageError: ``path`` exists and ``force`` is False, or it cannot be replaced; another process is
            writing it.
    """
    target = atomic.in_existing_directory(path)
    if target.is_dir():
        target = target.resolve()  # a link stays a link: what it points to is replaced
    target = target.absolute()
    root, lock = _enter(target)
    # Without a lock the next run has a root of its own, and would not find what is kept.
    space = Workspace(root, key if lock is not None else None)
    try:
        _restore(root, target)
        _check_target(target, force)
        space.begin(mode, origins or {})
        yield space
        _publish(space, target, force)
    except BaseException as error:
        _remove(space.drafts)
        kept = len(space._done)
        if kept:
            files = "1 finished file is" if kept == 1 else f"{kept} finished files are"
            error.add_note(
                f"{files} kept in {quote(str(root))}: the same command goes on from there; "
                "remove that directory to start anew"
            )
        elif not (space.files.exists() and space._journal.exists()):
            _clear(root)
        raise
    else:
        _clear(root)
        system.sync_directory(target.parent)
    finally:
        if lock is not None:
            locks.release(lock)


def _enter(target: Path) -> tuple[Path, int | None]:
    """The root of a target's workspace, made if it is not there, and its lock.

    On file systems without locks there is none, and the root has a name of its own.
    """
    root = atomic.hidden(target, SUFFIX)
    while True:
        try:
            try:
                root.mkdir(0o700)
            except FileExistsError:
                found = root.lstat()
                if not stat.S_ISDIR(found.st_mode) or not system.is_ours(found):
                    raise UsageError(f"{quote(str(root))} is in the way, and not ours: remove it") from None
            flags = os.O_RDWR | os.O_CREAT | system.BINARY | system.NO_FOLLOWING
            descriptor = os.open(root / "lock", flags, 0o600)
        except FileNotFoundError:
            continue  # whose it was has finished
        try:
            locked = locks.take(descriptor, root / "lock", target)
        except BaseException:
            locks.release(descriptor)
            raise
        if not locked:
            locks.release(descriptor)
            _remove(root)
            root = atomic.beside(target)
            root.mkdir(0o700)
            return root, None
        if locks.is_at(descriptor, root / "lock"):
            return root, descriptor
        locks.release(descriptor)


def _restore(root: Path, target: Path) -> None:
    """Puts a destination back that was moved aside by a run that was killed just then."""
    if (root / "old").exists() and not os.path.lexists(target):
        os.rename(root / "old", target)


def _check_target(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{quote(str(target))} exists and is not a directory")
    if not force and any(target.iterdir()):
        raise UsageError(f"{quote(str(target))} exists; --force (force=True) replaces it")
    if target == Path.cwd():
        raise UsageError("the current directory cannot be replaced; name one inside or beside it")
    if os.path.ismount(target):
        raise UsageError(f"{quote(str(target))} is a mount point; name a directory inside it")


def _publish(space: Workspace, target: Path, force: bool) -> None:
    """Makes the files the target, in one step where the system can."""
    if target.is_dir():
        space.files.chmod(target.stat().st_mode & 0o7777)
    for directory, _, _ in os.walk(space.files, topdown=False):
        system.sync_directory(Path(directory))
    if not force or not target.exists():
        try:
            os.rename(space.files, target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise UsageError(f"{quote(str(target))} was made by somebody else meanwhile") from None
            raise
    elif not _exchange(space.files, target):
        aside = space.files.with_name("old")
        os.rename(target, aside)
        try:
            os.rename(space.files, target)
        except BaseException:
            os.rename(aside, target)
            raise
    space.forget()


def _exchange(left: Path, right: Path) -> bool:
    """Exchanges two directories in one step, where the system can: at no time is either missing."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here = ctypes.c_int(_AT_FDCWD)
    done = renameat2(here, os.fsencode(left), here, os.fsencode(right), _RENAME_EXCHANGE)
    return bool(done == 0)


def _identity(path: Path) -> list[int] | None:
    """What a finished file is known by again; None if it is not there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _remove(path: Path) -> None:
    """Removes what is there, or as much of it as can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear(root: Path) -> None:
    """Removes a workspace, the lock last: until then nobody else can begin here."""
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if name != "lock":
                _remove(root / name)
        (root / "lock").unlink(missing_ok=True)
        root.rmdir()
