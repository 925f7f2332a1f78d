"""The directory in which a checkpoint grows until it is complete, so that an interrupted run can be resumed.

It lies beside the destination, hidden, under a name that follows from the destination's:

    .NAME.endor-work/
        lock        locked by the process at work
        journal     which files are finished, and what they were made of; replaced as a whole, file by file
        files/      what becomes the destination, in one step
        drafts/     where jobs write; worth nothing to the next run
        publishing  the inode of ``files`` once it is about to replace a destination
        old/        for a moment, the previous destination, on systems that cannot exchange two directories

Finished files are kept when a run ends early; the next one with the same key reuses them. All else that is
found here is removed, and if nothing is finished, all of it; but never the previous destination while the
destination is missing: that is moved back first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from pyendor import atomic, locks, rights, system
from pyendor.errors import UsageError, quote
from pyendor.rights import Rights

SUFFIX = ".endor-work"

_LOCK, _PUBLISHING, _OLD = "lock", "publishing", "old"
_CHUNK = 4 << 20


class Workspace:
    """A directory that becomes the destination.

    Attributes:
        files: what becomes the destination.
        drafts: where jobs write their files. Other machines may write here too: the paths are absolute.
        done: names of the files that are finished.
        published: the files are the destination.
    """

    def __init__(self, root: Path, key: Mapping[str, Any] | None) -> None:
        self.files = root / "files"
        self.drafts = root / "drafts"
        self._journal = root / "journal"
        self._key = key
        self._done: dict[str, list[Any]] = {}
        self.published = False

    @property
    def done(self) -> frozenset[str]:
        """Names of the files that are finished."""
        return frozenset(self._done)

    @property
    def resumable(self) -> bool:
        """True if there may be finished files here."""
        return self.files.exists() and self._journal.exists()

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
        self._done[name] = [origin, _identity(self.files / name), _digest(self.files / name)]
        self._write_journal()

    def begin(self, origins: Mapping[str, Any]) -> None:
        """Takes over what an earlier run has finished, if its bytes are still those, and removes all else."""
        found = self._read_journal()
        remove(self.drafts)
        self.drafts.mkdir()
        if not _is_directory(self.files):
            remove(self.files)
            self.files.mkdir()
        for name, origin in origins.items():
            path, entry = self.files / name, found.get(name)
            if not isinstance(entry, list) or entry[:2] != [origin, _identity(path)]:
                continue
            if entry[2:] == [_digest(path)]:
                self._done[name] = entry
        for path in self.files.iterdir():
            if path.name not in self._done:
                remove(path)
        if self._done:
            self._write_journal()
        else:
            self.forget()

    def forget(self) -> None:
        """Makes whatever is here worth nothing to the next run."""
        self._done = {}
        self._journal.unlink(missing_ok=True)

    def _write_journal(self) -> None:
        with atomic.new_file(self._journal, force=True) as stream:
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
    like: Rights | None = None,
    key: Mapping[str, Any] | None = None,
    origins: Mapping[str, Any] | None = None,
) -> Iterator[Workspace]:
    """A workspace whose files become the directory ``path`` when the block ends without an error.

    An empty directory at ``path`` is replaced without ``force``. A new directory gets the rights that the
    umask leaves; one that replaces another gets the rights of that one.

    Args:
        path: where; its directory has to exist.
        force: replace an existing directory.
        like: the rights of what this is a copy of: nobody gets more.
        key: what is being done and how, as JSON values: work under another key is not taken over; None: no
            work is, and none is kept.
        origins: what files that an earlier run has finished must have been made from, by name, as JSON.

    Raises:
        UsageError: ``path`` exists and ``force`` is False, or it cannot be replaced; another process is
            writing it.
        OSError: the destination could not be written; or it is complete, which a note then says, and
            something beside it could not be removed.
    """
    target = _resolved(atomic.in_existing_directory(path)).absolute()
    home = atomic.hidden(target, SUFFIX)
    root, lock = _enter(home, target)
    roots = [root]
    # Without a lock the next run has a root of its own, and would not find what is kept.
    space = Workspace(root, key if lock is not None else None)
    try:
        try:
            if lock is not None:
                _recover(home, target)
            _check_target(target, force)
            space.begin(origins or {})
            yield space
            _publish(space, target, force, like, roots)
        except BaseException as error:
            _give_up(space, target, roots, error)
            raise
        try:
            for root in roots:
                _clear(root, target)
        except BaseException as error:
            error.add_note(
                f"{quote(str(target))} is complete, but {quote(str(root))} could not be removed: remove it"
            )
            raise
    finally:
        if lock is not None:
            locks.release(lock)


def _resolved(target: Path) -> Path:
    """A destination, or what a link there points to: the link stays, and what it points to is replaced.

    What it points to is missing for a moment where directories cannot be exchanged.
    """
    if target.is_dir() or (target.is_symlink() and atomic.hidden(system.resolve(target), SUFFIX).is_dir()):
        return system.resolve(target)
    return target


def _enter(home: Path, target: Path) -> tuple[Path, int | None]:
    """The root of a target's workspace, made if it is not there, and its lock.

    On file systems without locks there is none, and the root has a name of its own.
    """
    while True:
        try:
            try:
                home.mkdir(0o700)
            except FileExistsError:
                found = home.lstat()
                if not stat.S_ISDIR(found.st_mode) or not system.is_ours(found):
                    raise UsageError(f"{quote(str(home))} is in the way, and not ours: remove it") from None
            flags = os.O_RDWR | os.O_CREAT | system.BINARY | system.NO_FOLLOWING
            descriptor = os.open(home / _LOCK, flags, 0o600)
        except FileNotFoundError:
            continue  # whose it was has finished
        try:
            locked = locks.take(descriptor, home / _LOCK, target)
        except BaseException:
            locks.release(descriptor)
            raise
        if not locked:
            locks.release(descriptor)
            _recover(home, target)
            _clear(home, target)
            root = atomic.beside(target)
            root.mkdir(0o700)
            return root, None
        if locks.is_at(descriptor, home / _LOCK):
            return home, descriptor
        locks.release(descriptor)


def _check_target(target: Path, force: bool) -> None:
    if not system.exists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{quote(str(target))} exists and is not a directory")
    if not force and any(target.iterdir()):
        raise UsageError(f"{quote(str(target))} exists; --force (force=True) replaces it")
    if target == Path.cwd():
        raise UsageError("the current directory cannot be replaced; name one inside or beside it")
    if os.path.ismount(target):
        raise UsageError(f"{quote(str(target))} is a mount point; name a directory inside it")


def _publish(space: Workspace, target: Path, force: bool, like: Rights | None, roots: list[Path]) -> None:
    """Makes the files the target, in one step where the system can, and flushes that to disk.

    Args:
        space: with the files.
        target: the destination.
        force: replace it.
        like: the rights that the target must not exceed.
        roots: directories that hold what is no longer needed afterwards; one may be added.
    """
    replaced = target.stat() if target.is_dir() else None
    made = space.files.stat()
    special = (made.st_mode | (replaced.st_mode if replaced is not None else 0)) & 0o7000
    space.files.chmod(rights.of_new(made, 0o777, like, replaced) | special | 0o700)
    for folder, _, _ in os.walk(space.files, topdown=False):
        system.sync_directory(Path(folder))
    if force and replaced is not None:
        _replace(space, target, roots)
    else:
        try:
            os.rename(space.files, target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise UsageError(
                    f"{quote(str(target))} was created by another process in the meantime: "
                    "remove it, or name another destination"
                ) from None
            raise
    space.published = True
    # Before anything of the previous destination is removed.
    for directory in (target.parent, *roots):
        system.sync_directory(directory)


def _replace(space: Workspace, target: Path, roots: list[Path]) -> None:
    """Replaces a target. Where this stops under way, :func:`_recover` finds out how far it came."""
    home = atomic.hidden(target, SUFFIX)
    if roots[0] == home:
        _mark(home, space.files)
    if system.exchange(space.files, target):
        return
    files = space.files
    if roots[0] != home:  # on a file system without locks: to where the next run looks
        try:
            home.mkdir(0o700)
        except FileExistsError:
            raise UsageError(
                f"{quote(str(target))} is being written by another process, which has made "
                f"{quote(str(home))}; if there is none, run this again"
            ) from None
        roots.append(home)
        files = home / "files"
        os.rename(space.files, files)
        _mark(home, files)
    os.rename(target, home / _OLD)
    os.rename(files, target)


def _mark(home: Path, files: Path) -> None:
    """Notes which directory becomes the target, for :func:`_recover`."""
    with atomic.new_file(home / _PUBLISHING, force=True) as stream:
        stream.write(str(files.stat().st_ino).encode())


def _recover(home: Path, target: Path) -> None:
    """Finishes what was stopped while a target was being replaced, so that the target is whole.

    If the new directory has become the target, what it was before is removed. Otherwise it is moved back.

    Raises:
        UsageError: something else has become the target since.
        OSError: it cannot be moved back, or what is here cannot be removed.
    """
    old, mark = home / _OLD, home / _PUBLISHING
    try:
        published = int(mark.read_bytes())
    except (FileNotFoundError, ValueError):
        published = None
    if published is not None and system.exists(target) and target.lstat().st_ino == published:
        system.sync_directory(target.parent)
        system.sync_directory(home)
        for path in home.iterdir():
            if path.name not in {_LOCK, _PUBLISHING}:
                remove(path)
    elif system.exists(old):
        try:
            os.rename(old, target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            raise UsageError(
                f"{quote(str(old))} is what {quote(str(target))} was before it was to be replaced, and "
                "there is another one since: remove one of the two, or move it elsewhere"
            ) from None
        system.sync_directory(target.parent)
        system.sync_directory(home)
    mark.unlink(missing_ok=True)


def _give_up(space: Workspace, target: Path, roots: list[Path], error: BaseException) -> None:
    """Leaves the target whole, and what the next run can resume from; notes what is left, and where."""
    root, home = roots[0], roots[-1]
    if space.published:  # the error is that this could not be flushed to disk, or an interrupt
        error.add_note(
            f"{quote(str(target))} is complete; {quote(str(home))} is left, which may hold what it was "
            "before: remove it, or run the same command again"
        )
        return
    try:
        _recover(home, target)
    except BaseException as failure:
        interrupted = not isinstance(failure, OSError | UsageError)  # once more: that is what is raised then
        why = failure.strerror if isinstance(failure, OSError) else str(failure) or type(failure).__name__
        if _is_aside(home, target):
            note = (
                f"{quote(str(target))} is now {quote(str(home / _OLD))}, and could not be moved back "
                f"({why}): run the same command again, which moves it back, or do it yourself"
            )
        else:
            note = f"{quote(str(home))} is left ({why}): the same command removes it"
        (failure if interrupted else error).add_note(note)
        if interrupted:
            raise
        return
    try:
        remove(space.drafts)
        kept = len(space.done) if space.files.exists() else 0
        if kept:
            files = "1 finished file is" if kept == 1 else f"{kept} finished files are"
            error.add_note(
                f"{files} kept in {quote(str(root))}: the same command resumes from there; "
                "to start anew, remove that directory"
            )
        elif not space.resumable:
            for path in roots:
                _clear(path, target)
    except OSError as failure:
        error.add_note(
            f"{quote(str(failure.filename or root))} could not be removed ({failure.strerror}): remove it"
        )


def _is_aside(home: Path, target: Path) -> bool:
    """True if a target was moved aside and is missing, as far as the system can tell."""
    try:
        return system.exists(home / _OLD) and not system.exists(target)
    except OSError:
        return True


def _is_directory(path: Path) -> bool:
    """True if this is a directory of this user, and no link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and system.is_ours(status)


def _identity(path: Path) -> list[int] | None:
    """What changes when a finished file is written to; None if it is not there, or no file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None


def _digest(path: Path) -> str:
    """The XXH3-128 of a file's bytes."""
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            state.update(piece)
    return state.hexdigest()


def remove(path: Path) -> None:
    """Removes a file or a tree if it is there.

    Raises:
        OSError: something could not be removed; all else has been.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    failures: list[BaseException] = []

    def failed(call: object, name: object, failure: BaseException) -> None:
        failures.append(failure)

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=failed)
    else:
        shutil.rmtree(path, onerror=lambda call, name, info: failed(call, name, info[1]))
    if failures:
        raise failures[0]


def _clear(root: Path, target: Path) -> None:
    """Removes a workspace, the lock last: until then nobody else can begin here."""
    if system.exists(root / _OLD) and not system.exists(target):
        raise UsageError(f"{quote(str(root / _OLD))} is all there is of {quote(str(target))}: move it back")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(root):
            if name not in {_LOCK, _PUBLISHING}:
                remove(root / name)
        (root / _PUBLISHING).unlink(missing_ok=True)
        (root / _LOCK).unlink(missing_ok=True)
        root.rmdir()
