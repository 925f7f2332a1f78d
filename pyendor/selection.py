"""The weights of a directory that make up one model, chosen as transformers chooses them.

A directory may hold several copies of a model: variants (``model.fp16.safetensors``), a single file beside
the shards that it was joined from, shards of an older split. Two copies are never mixed. Of a variant the
single file is read; without one, its index, and then what that names is the checkpoint, whatever the files
are called. The default variant is read unless another one is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pyendor import checkpoint, file, manifest, naming
from pyendor.errors import FormatError, UsageError, quote
from pyendor.file import File
from pyendor.naming import METHOD

_SINGLE = re.compile(r"model(?:\.(?P<variant>.+))?\.safetensors", re.DOTALL)
_INDEX = re.compile(r"model\.safetensors\.index(?:\.(?P<variant>.+))?\.json", re.DOTALL)
_SPLIT = re.compile(r".*-[0-9]{5}-of-[0-9]{5}", re.DOTALL)


@dataclass(frozen=True)
class Selection:
    """One copy of a model.

    Attributes:
        root: the directory.
        names: of its weights files, relative to it, sorted.
        weight_map: of its index, file names by physical tensor; empty where there is none.
        index: the name of its index; None where a single file is the whole copy.
    """

    root: Path
    names: tuple[str, ...]
    weight_map: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None

    @property
    def paths(self) -> list[Path]:
        """Its weights files."""
        return [self.root / name for name in self.names]

    def owners(self, held: Sequence[Collection[str]]) -> dict[str, Path]:
        """The file that each tensor is read from.

        Args:
            held: the names of the tensors that each file holds, in the order of ``names``.

        Returns:
            Paths by name of tensor: the file that the index names, if that holds the tensor; else the last
            one that does.
        """
        owners = {tensor: name for name, tensors in zip(self.names, held, strict=True) for tensor in tensors}
        holds = dict(zip(self.names, held, strict=True))
        owners |= {tensor: name for tensor, name in self.weight_map.items() if tensor in holds.get(name, ())}
        return {tensor: self.root / name for tensor, name in owners.items()}


class Weights:
    """The open files of one copy of a model; a context manager that closes them.

    Attributes:
        files: the files, in the order of their names.
        places: the file that each logical tensor is read from, by its name.
    """

    def __init__(self, selection: Selection) -> None:
        with ExitStack() as stack:
            self.files = [stack.enter_context(file.open_file(path)) for path in selection.paths]
            owners = selection.owners([opened.layout.tensors for opened in self.files])
            by_path = dict(zip(selection.paths, self.files, strict=True))
            # In the order of the files, and of the data in them.
            self.places: dict[str, File] = {
                tensor: opened
                for path, opened in by_path.items()
                for tensor in opened.layout.tensors
                if owners[tensor] == path
            }
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes the files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_weights(path: Path, variant: str | None = None) -> Weights:
    """Open the weights of a model.

    Args:
        path: a weights file, or a checkpoint directory.
        variant: as for :func:`select`.

    Raises:
        FormatError, UnsupportedError: a file breaks a rule, or needs what this build does not have.
        UsageError, OSError: as :func:`select`.
    """
    return Weights(select(path, variant))


def select(path: Path, variant: str | None = None) -> Selection:
    """Choose the weights of a directory that make up one model.

    Args:
        path: a checkpoint directory, Endor or dense; or a weights file, which is itself the choice.
        variant: the variant to read, as ``"fp16"``; None for the default. The ``endor`` of Endor names may be
            left out.

    Raises:
        FormatError: an Endor checkpoint breaks a rule K; an index is malformed, or names files that are not
            there.
        UsageError: there are no weights of that variant, or ``variant`` is given for a file.
        OSError: the directory cannot be read.
    """
    if not path.is_dir():
        if variant is not None:
            raise UsageError(f"{quote(str(path))} is a file: variant= chooses among those of a directory")
        return Selection(path.parent, (path.name,))
    names = sorted(os.listdir(path))
    is_endor = checkpoint.has_endor_weights(path)
    if is_endor:
        checkpoint.scan(path)
    variant = plain(variant)
    there = variants(path, names, is_endor=is_endor)
    if variant not in there:
        raise _no_variant(path, variant, there)
    return of_variant(path, variant, is_endor=is_endor)


def copies(path: Path) -> dict[str, Selection]:
    """All copies of a model that a directory holds, by variant; the default one under an empty string.

    Weights that belong to no variant and are no shards are copies by themselves, under their dense name. A
    file is the one copy.

    Raises:
        FormatError, UsageError, OSError: as :func:`select`.
    """
    if not path.is_dir():
        return {"": select(path)}
    names = sorted(os.listdir(path))
    is_endor = checkpoint.has_endor_weights(path)
    if is_endor:
        checkpoint.scan(path)
    found = {
        variant: of_variant(path, variant, is_endor=is_endor)
        for variant in variants(path, names, is_endor=is_endor)
    }
    taken = {name for one in found.values() for name in one.names}
    for name in names:
        if naming.is_loose(name) and name not in taken and (path / name).is_file():
            found[naming.dense_name(name) if is_endor else name] = Selection(path, (name,))
    if not found:
        raise checkpoint.no_weights(path)
    return found


def variants(root: Path, names: Sequence[str], *, is_endor: bool) -> list[str]:
    """The variants of the Endor or dense weights of a directory, the default one as an empty string."""
    found = set()
    for name in names:
        match = _SINGLE.fullmatch(name) or _INDEX.fullmatch(name)
        if match is None or not (root / name).is_file():
            continue
        variant = match["variant"] or ""
        if _SPLIT.fullmatch(variant) or variant == "dense" or variant.startswith("dense."):
            continue
        if _is_endor(variant) == is_endor:
            found.add(plain(variant))
    return sorted(found)


def of_variant(root: Path, variant: str, *, is_endor: bool) -> Selection:
    """The copy of a variant that is there, the single file before the index.

    Raises:
        FormatError: the index is malformed, or names files that are not there.
    """
    suffix = "".join(f".{part}" for part in (METHOD if is_endor else None, variant) if part)
    single = f"model{suffix}.safetensors"
    if (root / single).is_file():
        return Selection(root, (single,))
    index = f"model.safetensors.index{suffix}.json"
    read = manifest.read_index if is_endor else manifest.read_dense_index
    weight_map = read(root / index)
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (root / name).is_file():
            what = f"the index names {quote(name)}, but there is no such file"
            raise FormatError("K-2", what, path=root / index)
        if not name.endswith(".safetensors"):
            raise checkpoint.not_safetensors(root / index, name)
    if not names:
        raise FormatError("K-2", "the index names no files", path=root / index)
    return Selection(root, tuple(names), weight_map, index)


def plain(variant: str | None) -> str:
    """A variant without the ``endor`` of Endor names; the default one is an empty string."""
    variant = variant or ""
    return variant.removeprefix(METHOD).removeprefix(".") if _is_endor(variant) else variant


def _is_endor(variant: str) -> bool:
    return f"{variant}.".startswith(f"{METHOD}.")


def _no_variant(root: Path, variant: str, there: Sequence[str]) -> UsageError:
    if not there:
        return checkpoint.no_weights(root)
    wanted = f"variant {quote(variant)}" if variant else "default variant, 'model.safetensors' or its index"
    others = ", ".join(quote(name) if name else "the default" for name in there)
    return UsageError(f"{quote(str(root))} has no {wanted}; it has {others}: choose with variant=")
