"""Dense to Endor and back: single files and checkpoint directories (spec 11).

One tensor at a time is in memory. The destination appears complete or not at all; the source is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pyendor import atomic, checkpoint, file, metadata, writer
from pyendor.checkpoint import CONFIG, DENSE_CONFIG, Checkpoint
from pyendor.choice import MIN_SAVING, Values
from pyendor.errors import UsageError, quote
from pyendor.file import File
from pyendor.importers import compressed_tensors
from pyendor.importers.compressed_tensors import Foreign
from pyendor.writer import Progress


@dataclass(frozen=True)
class Conversion:
    """What a conversion has done.

    Attributes:
        source, destination: file or directory.
        source_bytes, written_bytes: size of the weights files, headers included.
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


# Writes what an opened file becomes to a path.
Converter = Callable[[File, Path], None]


def compress(
    source: Path,
    destination: Path,
    *,
    force: bool = False,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a dense file or checkpoint directory as Endor.

    One that compressed-tensors has compressed with bitmasks is written like the dense one that it stands for;
    this, and not the source, is what :func:`decompress` then restores.

    Args:
        source: a safetensors file, or a directory in the layout of Hugging Face libraries.
        destination: a file, or a directory.
        force: replace an existing destination.
        values: what to choose from for each tensor; ``raw`` for readers of version 1.0.
        min_saving: encode a tensor only where that saves this share of its size.
        backend: the codec to use.
        progress: called with the dense bytes of every tensor written.

    Raises:
        FormatError: the source breaks a rule.
        ForeignError, UnsupportedError: it is of compressed-tensors, and contradicts itself or is not known.
        UsageError: the source is Endor already; the destination exists, or lies in the source.
        OSError: reading or writing failed. The destination is then as it was before.
    """

    def convert(opened: File, target: Path) -> None:
        if opened.layout.version is not None:
            raise UsageError(f"{quote(str(opened.path))} is an Endor file already")
        with atomic.new_file(target, force=force, mode=mode_of(opened.path)) as stream:
            writer.write(
                stream,
                opened.sources() if foreign is None else foreign.sources(opened, backend=backend),
                opened.layout.metadata,
                values=values,
                min_saving=min_saving,
                backend=backend,
                progress=progress,
            )

    if not source.is_dir():
        foreign = compressed_tensors.recognise(source)
        return replace(convert_file(source, destination, convert), notes=_imported(foreign))
    found = checkpoint.scan(source)
    if found.is_endor:
        raise UsageError(f"{quote(str(source))} is an Endor checkpoint already")
    _check_compressible(found)
    foreign = compressed_tensors.recognise(source)
    with beside(source, destination, force=force) as root:
        totals = convert_weights(found, root, checkpoint.endor_name, convert)
        for index in found.indices:
            names = set(checkpoint.read_index(source / index).values())
            write_index(root, checkpoint.endor_name(index), map(checkpoint.endor_name, names), source / index)
            original = root / checkpoint.original_index(index)
            if foreign is None:
                atomic.copy_file(source / index, original)
            else:
                write_text(original, _dense_index(root, names), source / index)
        if PurePosixPath(CONFIG) in found.carried:
            _write_config(found, root, foreign)
        carry(found, root, except_for={CONFIG})
        checkpoint.scan(root)
    return Conversion(source, destination, *totals, found.left_out, _imported(foreign))


def _write_config(found: Checkpoint, root: Path, foreign: Foreign | None) -> None:
    """Writes the config of an Endor checkpoint, and beside it that of the dense one."""
    source = found.root / CONFIG
    dense = checkpoint.read_config(source)
    if foreign is None or foreign.config is None:
        atomic.copy_file(source, root / DENSE_CONFIG)
    else:
        dense = dict(foreign.config)
        write_text(root / DENSE_CONFIG, checkpoint.config_text(dense), source)
        atomic.copy_file(source, root / compressed_tensors.KEPT_CONFIG)
    config = checkpoint.endor_config(dense, _version(found, root))
    write_text(root / CONFIG, checkpoint.config_text(config), source)


def _dense_index(root: Path, names: Iterable[str]) -> str:
    """The index of the dense files that Endor files in ``root`` will be restored to."""
    weight_map: dict[str, str] = {}
    total = 0
    for name in names:
        with file.open_file(root / checkpoint.endor_name(name)) as opened:
            for tensor in opened.layout.tensors.values():
                weight_map[tensor.name] = name
                total += tensor.nbytes if tensor.unsupported is None else tensor.stored_nbytes
    return checkpoint.index_text(weight_map, {"total_size": total})


def _imported(foreign: Foreign | None) -> tuple[str, ...]:
    if foreign is None:
        return ()
    return (f"the source was {foreign.what}: decompressing will give the dense checkpoint, not that",)


def decompress(
    source: Path,
    destination: Path,
    *,
    force: bool = False,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Restores the dense file or checkpoint directory from Endor, bit for bit.

    Arguments and errors are those of :func:`compress`; digests are checked.
    """

    def convert(opened: File, target: Path) -> None:
        if opened.layout.version is None:
            raise UsageError(f"{quote(str(opened.path))} is not an Endor file: nothing to decompress")
        with atomic.new_file(target, force=force, mode=mode_of(opened.path)) as stream:
            writer.write_dense(
                stream,
                opened.sources(verify=True, backend=backend),
                opened.layout.metadata,
                progress=progress,
            )

    if not source.is_dir():
        return convert_file(source, destination, convert)
    found = checkpoint.scan(source)
    if not found.is_endor:
        raise UsageError(f"{quote(str(source))} has dense weights: nothing to decompress")
    with beside(source, destination, force=force) as root:
        totals = convert_weights(found, root, checkpoint.dense_name, convert)
        for index in found.indices:
            _restore_index(found, index, root)
        notes = _restore_config(found, root)
        originals = {str(path) for path in found.carried if checkpoint.is_kept_original(str(path))}
        carry(found, root, except_for={CONFIG, *originals})
        checkpoint.scan(root)
    return Conversion(source, destination, *totals, found.left_out, notes)


# Of a file or several: bytes of the source and of the result, logical tensors, encoded ones.
Totals = tuple[int, int, int, int]


def convert_file(source: Path, destination: Path, convert: Converter) -> Conversion:
    """Converts a single file to another one."""
    if destination.is_dir():
        raise UsageError(f"{quote(str(destination))} is a directory, the source is a file: name a file")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UsageError("source and destination are the same file")
    return Conversion(source, destination, *_convert_one(source, destination, convert))


def convert_weights(
    found: Checkpoint, root: Path, rename: Callable[[str], str], convert: Converter
) -> Totals:
    """Converts all weights files of a checkpoint to files in ``root``, under new names."""
    totals = (0, 0, 0, 0)
    for name in found.weights:
        one = _convert_one(found.root / name, root / rename(name), convert)
        totals = tuple(map(sum, zip(totals, one, strict=True)))  # type: ignore[assignment]
    return totals


def _convert_one(source: Path, target: Path, convert: Converter) -> Totals:
    with file.open_file(source) as opened:
        convert(opened, target)
        before = opened
    with file.open_file(target) as after:
        endor = after if after.layout.version is not None else before
        encoded = sum(tensor.meta is not None for tensor in endor.layout.tensors.values())
        sizes = (before.layout.header.file_length, after.layout.header.file_length)
        return *sizes, len(endor.layout.tensors), encoded


def beside(source: Path, destination: Path, *, force: bool) -> atomic.NewDirectory:
    """The new destination of a conversion that must not touch its source."""
    inside, outside = source.resolve(), destination.resolve()
    if inside == outside or inside in outside.parents:
        raise UsageError("the destination lies in the source; name a directory beside it")
    if outside in inside.parents:
        raise UsageError("the source lies in the destination; name a directory beside it")
    if destination.is_dir() and not _replaceable(destination):
        raise UsageError(
            f"{quote(str(destination))} exists and is no plain model directory: "
            "remove it yourself, or name another"
        )
    return atomic.new_directory(destination, force=force, mode=source.stat().st_mode & 0o777)


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


def _version(found: Checkpoint, root: Path) -> str:
    """The highest format version of the Endor weights that a dense checkpoint became."""
    versions = []
    for name in found.weights:
        with file.open_file(root / checkpoint.endor_name(name)) as opened:
            versions.append(opened.layout.version or metadata.LOWEST_VERSION)
    return metadata.newest(versions)


def _check_compressible(found: Checkpoint) -> None:
    """That the names which the result needs are free, and that the config does not contradict."""
    names = {str(path) for path in found.carried}
    taken = names & {DENSE_CONFIG, *map(checkpoint.original_index, found.indices)}
    if taken:
        raise UsageError(f"{quote(min(taken))} is in the way: Endor keeps the original under that name")
    if CONFIG in names:
        config = checkpoint.quantization(checkpoint.read_config(found.root / CONFIG))
        if config is not None and config.get("quant_method") == checkpoint.METHOD:
            raise UsageError(f"{quote(str(found.root / CONFIG))} says that the weights are Endor already")


def write_index(
    root: Path, index: str, names: Iterable[str], like: Path, members: Mapping[str, Any] | None = None
) -> None:
    """Writes the index of weights files that are in ``root`` already.

    Args:
        root: the directory.
        index: name of the index.
        names: of the weights files.
        like: a file whose mode it gets.
        members: of its ``metadata``, besides ``total_size``.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for name in sorted(names):
        with file.open_file(root / name) as opened:
            for entry in opened.layout.header.entries.values():
                weight_map[entry.name] = name
                total += entry.nbytes
    text = checkpoint.index_text(weight_map, {**(members or {}), "total_size": total})
    write_text(root / index, text, like)


def _restore_index(found: Checkpoint, index: str, root: Path) -> None:
    dense = checkpoint.dense_name(index)
    original = checkpoint.original_index(dense)
    if PurePosixPath(original) in found.carried:
        atomic.copy_file(found.root / original, root / dense)
        return
    names = set(checkpoint.read_index(found.root / index).values())
    write_index(root, dense, map(checkpoint.dense_name, names), found.root / index)


def _restore_config(found: Checkpoint, root: Path) -> tuple[str, ...]:
    """Writes the original config, or if it has been edited since, the edited one as a dense one."""
    if PurePosixPath(CONFIG) not in found.carried:
        return ()
    config = checkpoint.read_config(found.root / CONFIG)
    if PurePosixPath(DENSE_CONFIG) in found.carried:
        original = checkpoint.read_config(found.root / DENSE_CONFIG)
        version = (checkpoint.quantization(config) or {}).get("version")
        if checkpoint.endor_config(original, str(version)) == config:
            atomic.copy_file(found.root / DENSE_CONFIG, root / CONFIG)
            return ()
    dense = checkpoint.config_text(checkpoint.dense_config(config))
    write_text(root / CONFIG, dense, found.root / CONFIG)
    if PurePosixPath(DENSE_CONFIG) not in found.carried:
        return (f"{CONFIG} was put together again: its original, {DENSE_CONFIG}, is missing",)
    return (f"{CONFIG} has been edited since it was compressed: the edited one was restored",)


def carry(found: Checkpoint, root: Path, *, except_for: set[str]) -> None:
    """Copies the other files of a checkpoint."""
    for path in found.carried:
        if str(path) not in except_for:
            if (root / path).exists():
                raise UsageError(f"{quote(str(path))} is in the way: the result has a file of that name")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            atomic.copy_file(found.root / path, root / path)


def write_text(path: Path, text: str, like: Path) -> None:
    """Writes a new text file with the mode of another one, flushed to disk."""
    with atomic.new_file(path, force=False, mode=mode_of(like)) as stream:
        stream.write(text.encode())


def mode_of(path: str | os.PathLike[str] | None) -> int:
    """What a copy of a file may allow at most: nothing becomes readable that was not."""
    return os.stat(path).st_mode & 0o666 if path is not None else 0o666
