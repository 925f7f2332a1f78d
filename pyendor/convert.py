"""Dense to Endor and back: single files and checkpoint directories (spec 11).

The weights files are converted by :mod:`pyendor.shards`; here they are given their index, their config and
what else belongs to the model. The destination appears complete or not at all; the source is only read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pyendor import atomic, checkpoint, file, manifest, metadata, naming, rights, shards, system
from pyendor.checkpoint import Checkpoint
from pyendor.choice import MIN_SAVING, Values
from pyendor.errors import UsageError, quote
from pyendor.importers import compressed_tensors
from pyendor.importers.compressed_tensors import Foreign
from pyendor.naming import CONFIG, DENSE_CONFIG, KEPT
from pyendor.shards import Compression, Decompression, Import, Shards
from pyendor.stamps import Stamp
from pyendor.writer import Progress

__all__ = ["Conversion", "compress", "decompress"]


@dataclass(frozen=True)
class Conversion:
    """What a conversion has done.

    Attributes:
        source, destination: file or directory.
        source_bytes, written_bytes: size of the weights files in bytes, headers included.
        tensors, encoded: number of logical tensors, and how many of them are encoded in the Endor file.
        left_out: paths of the source that were not carried over, and why.
        notes: what else a user should know.
    """

    source: Path
    destination: Path
    source_bytes: int
    written_bytes: int
    tensors: int
    encoded: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def compress(
    source: Path,
    destination: Path,
    *,
    force: bool = False,
    strict: bool = False,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
    backend: str | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a dense file or checkpoint directory as Endor.

    The files of a directory are converted in parallel. What comes out does not depend on how. If this is
    cut short, those that are finished are kept beside the destination, for the same call to go on from.
    One that compressed-tensors has compressed with bitmasks is written like the dense one that it stands for;
    this, and not the source, is what :func:`decompress` then restores.

    Args:
        source: a safetensors file, or a directory in the layout of Hugging Face libraries.
        destination: a file, or a directory.
        force: replace an existing destination.
        strict: refuse a directory of which anything would be left out that a loader may miss.
        values: what to choose from for each tensor (W-10); ``raw`` for readers of version 1.0.
        min_saving: encode a tensor only where that saves this share of its size (W-7); None encodes every one
            that can be.
        backend: the codec to use.
        jobs: how many files at a time, each on a thread; None: one for each processor, at most 4. Each
            takes up to three times the memory of its largest tensor.
        executor: runs them instead; where its workers are, all paths have to be the same files.
        progress: called with the dense bytes of every tensor written, one call at a time, on any thread.

    Returns:
        What has been done.

    Raises:
        FormatError: the source breaks a rule.
        ForeignError, UnsupportedError: it is of compressed-tensors, and contradicts itself or is not known.
        UsageError: the source is Endor already, or changes meanwhile; the destination exists, or lies in
            the source, or is being written by another process.
        OSError: reading or writing failed, or the executor gave up. The destination is then as it was before.
    """
    system.require_paths(source, destination)
    found = checkpoint.scan(source) if source.is_dir() else None
    if found is not None:
        if found.is_endor:
            raise UsageError(f"{quote(str(source))} is an Endor checkpoint already")
        if strict:
            checkpoint.require_all(found)
        _check_compressible(found)
    # Where others do the work, they have to find it.
    foreign = compressed_tensors.recognise(source if executor is None else source.absolute())
    way = Compression(values, min_saving) if foreign is None else Import(values, min_saving, foreign=foreign)
    if found is None:
        totals = shards.convert_file(source, destination, way, force, backend, progress)
        return Conversion(source, destination, *totals, notes=_imported(foreign))
    work = Shards.of(found, way, naming.endor_name, backend, jobs, executor, progress)
    with work.space(destination, force=force) as space:
        totals = work.run(space)
        root = space.files
        for index in found.indices:
            like = work.stamps[index]
            names = set(manifest.read_dense_index(like.path, like).values()).intersection(found.weights)
            write_index(root, naming.endor_name(index), map(naming.endor_name, names), like)
            original = root / naming.original_index(index)
            if foreign is None:
                atomic.copy_file(like, original)
            else:
                write_text(original, _dense_index(root, names), like)
        if PurePosixPath(CONFIG) in found.carried:
            _write_config(work, root, foreign)
        carry(found, root, work.stamps, except_for={CONFIG})
        for name, original_name in found.kept.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            atomic.copy_file(work.stamps[original_name], root / name)
        work.check(space)
    return Conversion(source, destination, *totals, found.left_out, (*_imported(foreign), *_kept(found)))


def _kept(found: Checkpoint) -> tuple[str, ...]:
    """What a user should know of files that are no part of any copy of the model, or only in part."""
    notes = [
        f"{quote(name)} is read by no loader, given what else is there: kept, as {quote(name + KEPT)}"
        for name in found.superseded
    ]
    for name, tensors in found.shadowed.items():
        first = f"{quote(min(tensors))}" + (f" and {len(tensors) - 1} more" if len(tensors) > 1 else "")
        notes.append(
            f"{quote(name)} holds {first}, for which the index names another file: that one is read, and "
            f"this file is also kept as it is, as {quote(name + KEPT)}"
        )
    return tuple(notes)


def _write_config(work: Shards, root: Path, foreign: Foreign | None) -> None:
    """Writes the config of an Endor checkpoint, and beside it that of the dense one."""
    source = work.stamps[CONFIG]
    dense = manifest.read_config(source.path, source)
    if foreign is None or foreign.config is None:
        atomic.copy_file(source, root / DENSE_CONFIG)
    else:
        dense = dict(foreign.config)
        write_text(root / DENSE_CONFIG, manifest.config_text(dense), source)
        atomic.copy_file(source, root / compressed_tensors.KEPT_CONFIG)
    config = manifest.endor_config(dense, _version(work.found, root))
    write_text(root / CONFIG, manifest.config_text(config), source)


def _dense_index(root: Path, names: Iterable[str]) -> str:
    """The index of the dense files that Endor files in ``root`` will be restored to."""
    weight_map: dict[str, str] = {}
    total = 0
    for name in names:
        with file.open_file(root / naming.endor_name(name)) as opened:
            for tensor in opened.layout.tensors.values():
                weight_map[tensor.name] = name
                total += tensor.nbytes if tensor.unsupported is None else tensor.stored_nbytes
    return manifest.index_text(weight_map, {"total_size": total})


def _imported(foreign: Foreign | None) -> tuple[str, ...]:
    if foreign is None:
        return ()
    return (f"the source was {foreign.what}: decompressing will give the dense checkpoint, not that",)


def decompress(
    source: Path,
    destination: Path,
    *,
    force: bool = False,
    strict: bool = False,
    backend: str | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Restores the dense file or checkpoint directory from Endor, bit for bit; digests are checked (D-3).

    Args:
        source: an Endor file, or a directory with Endor weights (spec 11).
        destination: a file, or a directory.
        force: replace an existing destination.
        strict: refuse a directory of which anything would be left out that a loader may miss.
        backend: the codec to use.
        jobs: how many files at a time, as in :func:`compress`.
        executor: runs them instead, as in :func:`compress`.
        progress: called with the dense bytes of every tensor written, one call at a time, on any thread.

    Returns:
        What has been done.

    Raises:
        FormatError: the source breaks a rule.
        UnsupportedError: it has what this build cannot read.
        UsageError: the source is dense, or changes meanwhile; the destination exists, or lies in the source,
            or is being written by another process.
        OSError: reading or writing failed, or the executor gave up. The destination is then as it was before.
    """
    system.require_paths(source, destination)
    way = Decompression()
    if not source.is_dir():
        totals = shards.convert_file(source, destination, way, force, backend, progress)
        return Conversion(source, destination, *totals)
    found = checkpoint.scan(source)
    if not found.is_endor:
        raise UsageError(f"{quote(str(source))} has dense weights: nothing to decompress")
    if strict:
        checkpoint.require_all(found)
    work = Shards.of(found, way, _flat, backend, jobs, executor, progress)
    with work.space(destination, force=force) as space:
        totals = work.run(space)
        root = space.files
        for name in found.weights:
            if _flat(name) != naming.dense_name(name):
                target = root / naming.dense_name(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(root / _flat(name), target)
        kept = checkpoint.kept_dense(found)
        for path, dense in kept.items():
            _restore_kept(work.stamps[path], root / dense)
        for index in found.indices:
            _restore_index(work, index, root)
        notes = _restore_config(work, root)
        indices = {naming.original_index(naming.dense_name(index)) for index in found.indices}
        carry(found, root, work.stamps, except_for={CONFIG, DENSE_CONFIG, *indices, *kept})
        work.check(space)
    return Conversion(source, destination, *totals, found.left_out, notes)


def _flat(name: str) -> str:
    """The name of a dense file while all are written: that of its Endor form if it is in a folder."""
    dense = naming.dense_name(name)
    return name if "/" in dense else dense


def _restore_kept(kept: Stamp, target: Path) -> None:
    """Restores a dense file that was kept as it is.

    Raises:
        UsageError: it holds other data than its Endor form, which has been decompressed to ``target``.
    """
    if target.exists():
        descriptor = kept.open()
        with file.open_file(kept.path, descriptor=descriptor) as theirs, file.open_file(target) as ours:
            for name, tensor in ours.layout.tensors.items():
                other = theirs.layout.tensors.get(name)
                like = other is not None and (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
                if not like or not np.array_equal(ours.get_bytes(name), theirs.get_bytes(name)):
                    raise UsageError(
                        f"{quote(str(kept.path))} and its Endor form differ in tensor {quote(name)}: one of "
                        "them was changed; remove it to restore from the Endor form"
                    )
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.copy_file(kept, target)


def _version(found: Checkpoint, root: Path) -> str:
    """The highest format version of the Endor weights that a dense checkpoint became."""
    versions = []
    for name in found.weights:
        with file.open_file(root / naming.endor_name(name)) as opened:
            versions.append(opened.layout.version or metadata.LOWEST_VERSION)
    return metadata.newest(versions)


def _check_compressible(found: Checkpoint) -> None:
    """That the names which the result needs are free, and that the config does not contradict."""
    names = {str(path) for path in found.carried}
    taken = names & {DENSE_CONFIG, *map(naming.original_index, found.indices), *found.kept}
    if taken:
        raise UsageError(f"{quote(min(taken))} is in the way: Endor keeps the original under that name")
    if CONFIG in names:
        config = manifest.quantization(manifest.read_config(found.root / CONFIG))
        if config is not None and config.get("quant_method") == naming.METHOD:
            raise UsageError(f"{quote(str(found.root / CONFIG))} says that the weights are Endor already")


def write_index(
    root: Path, index: str, names: Iterable[str], like: Stamp, members: Mapping[str, Any] | None = None
) -> None:
    """Writes the index of weights files that are in ``root`` already.

    Args:
        root: the directory.
        index: name of the index.
        names: of the weights files.
        like: a file whose rights it must not exceed.
        members: of its ``metadata``, besides ``total_size``.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for name in sorted(names):
        with file.open_file(root / name) as opened:
            for entry in opened.layout.header.entries.values():
                weight_map[entry.name] = name
                total += entry.nbytes
    text = manifest.index_text(weight_map, {**(members or {}), "total_size": total})
    write_text(root / index, text, like)


def _restore_index(work: Shards, index: str, root: Path) -> None:
    found = work.found
    dense = naming.dense_name(index)
    original = naming.original_index(dense)
    if PurePosixPath(original) in found.carried:
        atomic.copy_file(work.stamps[original], root / dense)
        return
    like = work.stamps[index]
    names = set(manifest.read_index(like.path, like).values())
    write_index(root, dense, map(naming.dense_name, names), like)


def _restore_config(work: Shards, root: Path) -> tuple[str, ...]:
    """Writes the original config, or if it has been edited since, the edited one as a dense one."""
    found, stamps = work.found, work.stamps
    if PurePosixPath(CONFIG) not in found.carried:
        return ()
    config = manifest.read_config(found.root / CONFIG, stamps[CONFIG])
    if PurePosixPath(DENSE_CONFIG) in found.carried:
        original = manifest.read_config(found.root / DENSE_CONFIG, stamps[DENSE_CONFIG])
        version = (manifest.quantization(config) or {}).get("version")
        if manifest.endor_config(original, str(version)) == config:
            atomic.copy_file(stamps[DENSE_CONFIG], root / CONFIG)
            return ()
    dense = manifest.config_text(manifest.dense_config(config))
    write_text(root / CONFIG, dense, stamps[CONFIG])
    if PurePosixPath(DENSE_CONFIG) not in found.carried:
        return (f"{CONFIG} was put together again: its original, {DENSE_CONFIG}, is missing",)
    return (f"{CONFIG} has been edited since it was compressed: the edited one was restored",)


def carry(found: Checkpoint, root: Path, stamps: Mapping[str, Stamp], *, except_for: set[str]) -> None:
    """Copies the other files of a checkpoint."""
    for path in found.carried:
        if str(path) not in except_for:
            if (root / path).exists():
                raise UsageError(f"{quote(str(path))} is in the way: the result has a file of that name")
            _make_folders(found.root, root, path)
            atomic.copy_file(stamps[str(path)], root / path)


def _make_folders(source: Path, root: Path, path: PurePosixPath) -> None:
    """Makes the directories that a file is in, with the rights of those of the source at most."""
    for folder in reversed(path.parents[:-1]):
        made = root / folder
        if not made.is_dir():
            made.mkdir()
            status = made.stat()
            mode = rights.of_new(status, 0o777, shards.rights_of(source / folder), None)
            made.chmod(mode | 0o700 | (status.st_mode & 0o7000))


def write_text(path: Path, text: str, like: Stamp) -> None:
    """Writes a new text file with the rights of another one at most, flushed to disk."""
    with atomic.new_file(path, force=False, like=like.rights) as stream:
        stream.write(text.encode())
