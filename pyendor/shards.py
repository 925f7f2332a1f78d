"""The weights files of a checkpoint, each converted by a job of its own, and single files in the same way."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, Protocol

import pyendor
from pyendor import atomic, checkpoint, file, jobs, system, workspace, writer
from pyendor.checkpoint import Checkpoint
from pyendor.choice import MIN_SAVING, Values
from pyendor.errors import UsageError, quote
from pyendor.file import File
from pyendor.importers.compressed_tensors import Foreign
from pyendor.rights import Rights
from pyendor.stamps import Stamp, check_all
from pyendor.workspace import Workspace
from pyendor.writer import Progress, TensorSource

# Of a file or several: bytes of the source and of the result, logical tensors, encoded ones.
Totals = tuple[int, int, int, int]

# Writes what an opened file becomes to a path.
Converter = Callable[[File, Path], None]


class Way(Protocol):
    """How a file is converted. It can be pickled.

    Attributes:
        whole: whether what a file becomes depends on all files of its checkpoint.
    """

    whole: ClassVar[bool]

    def key(self) -> dict[str, Any]:
        """All that the bytes depend on besides the files, as JSON values."""

    def write(self, opened: File, stream: BinaryIO, backend: str | None, progress: Progress | None) -> None:
        """Writes what an opened file becomes."""


@dataclass(frozen=True)
class Compression:
    """From dense to Endor.

    Attributes:
        values, min_saving: as in :func:`pyendor.convert.compress`.
        without: names of tensors of the file that are read from another one.
    """

    whole: ClassVar[bool] = False
    values: Values = "auto"
    min_saving: float | None = MIN_SAVING
    without: frozenset[str] = frozenset()

    def key(self) -> dict[str, Any]:
        return {"values": self.values, "min_saving": self.min_saving}

    def sources(self, opened: File, backend: str | None) -> list[TensorSource]:
        """The dense tensors of a file, but for those that are read from another one."""
        return [source for source in opened.sources() if source.name not in self.without]

    def write(self, opened: File, stream: BinaryIO, backend: str | None, progress: Progress | None) -> None:
        if opened.layout.version is not None:
            raise UsageError(f"{quote(str(opened.path))} is an Endor file already")
        writer.write(
            stream,
            self.sources(opened, backend),
            opened.layout.metadata,
            values=self.values,
            min_saving=self.min_saving,
            backend=backend,
            progress=progress,
        )


@dataclass(frozen=True)
class Import(Compression):
    """From what other software has compressed to Endor. The parts of a tensor may lie in several files."""

    whole: ClassVar[bool] = True
    foreign: Foreign | None = None

    def key(self) -> dict[str, Any]:
        return {**super().key(), "foreign": self.foreign.what if self.foreign is not None else None}

    def sources(self, opened: File, backend: str | None) -> list[TensorSource]:
        assert self.foreign is not None
        sources = self.foreign.sources(opened, backend=backend)
        return [source for source in sources if source.name not in self.without]


@dataclass(frozen=True)
class Decompression:
    """From Endor to dense, digests checked."""

    whole: ClassVar[bool] = False

    def key(self) -> dict[str, Any]:
        return {}

    def write(self, opened: File, stream: BinaryIO, backend: str | None, progress: Progress | None) -> None:
        if opened.layout.version is None:
            raise UsageError(f"{quote(str(opened.path))} is not an Endor file: nothing to decompress")
        sources = opened.sources(verify=True, backend=backend)
        writer.write_dense(stream, sources, opened.layout.metadata, progress=progress)


@dataclass(frozen=True)
class Shard:
    """The job of converting one file.

    Attributes:
        stamp: the source, as it was when the work began.
        target: a path.
        way: how.
        backend: the codec to use.
        force: replace the target. A job that is run again may find its own.
        alone: refuse to write what another process is writing.
    """

    stamp: Stamp
    target: Path
    way: Way
    backend: str | None
    force: bool = True
    alone: bool = False

    def run(self, progress: Progress | None) -> Totals:
        """Converts the file."""

        def convert(opened: File, target: Path) -> None:
            like = self.stamp.rights
            with atomic.new_file(target, force=self.force, like=like, alone=self.alone) as stream:
                self.way.write(opened, stream, self.backend, progress)
                self.stamp.check()

        return convert_one(self.stamp, self.target, convert)

    def __str__(self) -> str:
        return quote(str(self.stamp.path))


@dataclass(frozen=True)
class Shards:
    """All weights files of a checkpoint, and how they are converted.

    Attributes:
        found: the checkpoint.
        way: how.
        rename: gives the name of the file that one becomes.
        backend, jobs, executor, progress: as in :func:`pyendor.convert.compress`.
        stamps: of all files of the checkpoint, by name, when the work began.
    """

    found: Checkpoint
    way: Way
    rename: Callable[[str], str]
    backend: str | None
    jobs: int | None
    executor: Executor | None
    progress: Progress | None
    stamps: dict[str, Stamp]

    @classmethod
    def of(
        cls,
        found: Checkpoint,
        way: Way,
        rename: Callable[[str], str],
        backend: str | None,
        jobs: int | None,
        executor: Executor | None,
        progress: Progress | None,
    ) -> Shards:
        """Those of a checkpoint as it is now."""
        if executor is not None:  # which may run where another directory is the current one
            found = replace(found, root=found.root.absolute())
        return cls(found, way, rename, backend, jobs, executor, progress, stamps_of(found))

    def space(self, destination: Path, *, force: bool) -> AbstractContextManager[Workspace]:
        """The new destination, with the files that an earlier run has finished."""
        key = {
            "package": pyendor.__version__,
            "source": str(system.resolve(self.found.root)),
            "way": type(self.way).__name__,
            **self.way.key(),
        }
        origins = {self.rename(name): self._origin(name) for name in self.found.weights}
        return beside(self.found.root, destination, force=force, key=key, origins=origins)

    def run(self, space: Workspace) -> Totals:
        """Converts those that are not finished yet."""
        root = self.found.root
        totals = []
        work: list[Shard] = []
        names: list[str] = []
        for name in self.found.weights:
            stamp, target = self.stamps[name], self.rename(name)
            if target not in space.done:
                work.append(Shard(stamp, space.drafts / target, self._way(name), self.backend))
                names.append(name)
                continue
            totals.append(_totals(root / name, space.files / target))
            if self.progress is not None:
                with file.open_file(root / name) as opened:
                    self.progress(checkpoint.dense_nbytes(opened))

        def done(place: int, result: Totals) -> None:
            name = names[place]
            space.finish(self.rename(name), self._origin(name))
            totals.append(result)

        jobs.run(work, done, jobs=self.jobs, executor=self.executor, progress=self.progress)
        return _sum(totals)

    def check(self, space: Workspace) -> None:
        """That the result is a checkpoint, and of what the source was and is."""
        checkpoint.scan(space.files)
        check_all(self.stamps)

    def _way(self, name: str) -> Way:
        """How one of the files is converted."""
        shadowed = self.found.shadowed.get(name)
        if shadowed is None or not isinstance(self.way, Compression):
            return self.way
        return replace(self.way, without=shadowed)

    def _origin(self, name: str) -> list[Any]:
        """What a result was made from: also who may read it."""
        stamp = self.stamps[name]
        origin = [name, stamp.size, stamp.mtime_ns, stamp.rights.mode, stamp.rights.gid]
        if name in self.found.shadowed:
            origin.append(sorted(self.found.shadowed[name]))
        if self.way.whole:
            weights = {other: self.stamps[other] for other in sorted(self.found.weights)}
            origin.append([[other, one.size, one.mtime_ns] for other, one in weights.items()])
        return origin


def convert_file(
    source: Path,
    destination: Path,
    way: Way,
    force: bool,
    backend: str | None,
    progress: Progress | None,
) -> Totals:
    """Converts a single file to another one."""
    check_file(source, destination)
    stamp = Stamp.of(source, source.parent)
    return Shard(stamp, destination, way, backend, force, alone=True).run(progress)


def check_file(source: Path, destination: Path) -> None:
    """That a file can be converted to another one."""
    if destination.is_dir():
        raise UsageError(f"{quote(str(destination))} is a directory, the source is a file: name a file")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UsageError("source and destination are the same file")


def stamps_of(found: Checkpoint) -> dict[str, Stamp]:
    """The stamps of all files of a checkpoint, as they are now, by name.

    Raises:
        UsageError: one has been replaced by a link that leaves the directory.
    """
    weights = (*found.weights, *found.superseded)
    stamps = {}
    for name in [*map(PurePosixPath, (*weights, *found.indices)), *found.carried]:
        stamp = stamps[str(name)] = Stamp.of(found.root / name, found.root)
        if str(name) not in weights and not checkpoint.may_leave(name) and not stamp.within(found.root):
            raise UsageError(f"{quote(str(found.root / name))} became a link that leaves the directory")
    return stamps


def convert_one(source: Stamp, target: Path, convert: Converter) -> Totals:
    """Converts a file."""
    with file.open_file(source.path, descriptor=source.open()) as opened:
        convert(opened, target)
    return _totals(source.path, target)


def _totals(source: Path, target: Path) -> Totals:
    with file.open_file(source) as before, file.open_file(target) as after:
        endor = after if after.layout.version is not None else before
        encoded = sum(tensor.meta is not None for tensor in endor.layout.tensors.values())
        sizes = (before.layout.header.file_length, after.layout.header.file_length)
        return *sizes, len(endor.layout.tensors), encoded


def _sum(totals: list[Totals]) -> Totals:
    sizes, written, tensors, encoded = (sum(column) for column in zip((0, 0, 0, 0), *totals, strict=True))
    return sizes, written, tensors, encoded


def beside(
    source: Path,
    destination: Path,
    *,
    force: bool,
    key: dict[str, Any] | None = None,
    origins: dict[str, Any] | None = None,
) -> AbstractContextManager[Workspace]:
    """The new destination of a conversion that must not touch its source; see :mod:`pyendor.workspace`."""
    inside, outside = system.resolve(source), system.resolve(destination)
    if inside == outside or inside in outside.parents:
        raise UsageError("the destination lies in the source; name a directory beside it")
    if outside in inside.parents:
        raise UsageError("the source lies in the destination; name a directory beside it")
    if destination.is_dir() and not _replaceable(destination):
        raise UsageError(
            f"{quote(str(destination))} exists and is no plain model directory: "
            "remove it yourself, or name another"
        )
    like = rights_of(source)
    return workspace.open_workspace(destination, force=force, like=like, key=key, origins=origins)


def _replaceable(directory: Path) -> bool:
    """Whether a directory is empty, or holds a model and no version control: nothing else is ever removed."""
    names = set(os.listdir(directory))
    if not names or names & set(checkpoint.NOT_OURS):
        return not names
    try:
        checkpoint.listing(directory)
    except UsageError:
        return False
    return True


def rights_of(directory: Path) -> Rights:
    """The rights of a directory, which a copy must not exceed."""
    return Rights.of(directory.stat())
