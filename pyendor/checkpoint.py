"""A checkpoint directory as data (spec 11, rules K): which file is what, its index, its config.

Nothing is written here; :mod:`pyendor.convert` does that. A checkpoint may also be a single file.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pyendor import file, metadata, system
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote
from pyendor.file import File
from pyendor.manifest import read_config, read_dense_index, read_index
from pyendor.naming import (
    CONFIG,
    DENSE_CONFIG,
    ENDOR_WEIGHTS,
    INDEX,
    KEPT,
    METHOD,
    OTHERWISE,
    SHARD,
    SUFFIX,
    WEIGHTS,
    dense_name,
    endor_name,
    infix,
    is_index,
    is_kept_original,
    is_no_name,
    is_variant,
    original_index,
)

# Other copies of the same weights, which would otherwise be carried along in full (K-6).
COPIES = ("pytorch_model*", "consolidated*", "*.gguf", "tf_model*", "flax_model*")
# What version control and downloads leave beside a checkpoint, copies of the weights included.
NOT_OURS = (".git", ".cache")
_NO_PART = "not part of the model"


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint directory, by what they are.

    Attributes:
        root: the directory.
        weights: names of its weights files, all dense or all Endor, sorted; never empty.
        is_endor: which of the two.
        indices: names of the indices of these weights.
        intruders: names of weights and indices of the other kind.
        carried: paths, relative to ``root``, of all files that belong to the model besides.
        left_out: why each path that does not belong to the model, or copies its weights, is left out.
        superseded: names of dense weights and indices that belong to no copy of the model: stray shards.
        shadowed: by name of a file of dense weights its tensors that are read from another one (K-12); only
            :func:`scan` finds them.
    """

    root: Path
    weights: tuple[str, ...]
    is_endor: bool
    indices: tuple[str, ...]
    intruders: tuple[str, ...]
    carried: tuple[PurePosixPath, ...]
    left_out: Mapping[str, str]
    superseded: tuple[str, ...] = ()
    shadowed: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, str]:
        """Names of files that a conversion to Endor keeps as they are, by those that they are kept under."""
        return {f"{name}{KEPT}": name for name in (*self.superseded, *self.shadowed)}


def listing(root: Path) -> Checkpoint:
    """Sort the files of a directory, by their names and, where weights are dense, what indices name.

    Raises:
        UsageError: it holds no safetensors weights.
    """
    system.require_paths(root)
    files, left_out = _walk(root)
    names = sorted(str(path) for path in files if len(path.parts) == 1)
    endor = [name for name in names if ENDOR_WEIGHTS.fullmatch(name)]
    dense = [name for name in names if WEIGHTS.fullmatch(name) and name not in endor]
    indices = [name for name in names if is_index(name) and not is_kept_original(name)]
    ours = [name for name in indices if is_variant(name, METHOD) == bool(endor)]
    weights, superseded = endor, []
    if not endor:
        # Of a variant the single file counts, else what the index names; and weights that are no shards.
        behind = [name for name in ours if f"model{infix(name)}{SUFFIX}" in dense]
        ours = [name for name in ours if name not in behind]
        named = {name for index in ours for name in _named(root, index)}
        weights = sorted(named.union(name for name in dense if not SHARD.fullmatch(name))) or dense
        superseded = [*behind, *(name for name in dense if name not in weights)]
    if not weights:
        raise no_weights(root)
    copies = [name for name in names if _matches(name, COPIES) and name not in weights]
    pickles = [name for name in copies if fnmatch.fnmatchcase(name, "pytorch_model*.bin")]
    others = (dense + pickles if endor else []) + [
        name for name in indices if name not in ours and name not in superseded
    ]
    special = {*weights, *ours, *others, *copies, *superseded}
    carried = tuple(path for path in files if str(path) not in special)
    left_out |= dict.fromkeys(copies, "another copy of the weights")
    left_out = {name: why for name, why in left_out.items() if name not in weights}
    return Checkpoint(
        root, tuple(weights), bool(endor), tuple(ours), tuple(others), carried, left_out, tuple(superseded)
    )


def _named(root: Path, index: str, *, there: bool = True) -> list[str]:
    """The files that a dense index names, or those that are there; for its faults see :func:`faults`."""
    try:
        names = set(read_dense_index(root / index).values())
        return [name for name in names if not there or (root / name).is_file()]
    except (FormatError, UnsupportedError):
        return []


def scan(root: Path) -> Checkpoint:
    """Sorts the files of a directory and checks the rules K, for which it opens the headers of shards.

    Raises:
        FormatError: a rule is broken.
        UsageError: it holds no safetensors weights.
    """
    found = listing(root)
    for error in faults(found):
        raise error
    return found if found.is_endor else _without_shadows(found)


def _without_shadows(found: Checkpoint) -> Checkpoint:
    """A dense checkpoint of which it is known what its indices pass over."""
    shadowed: dict[str, set[str]] = {}
    empty = []
    for index in found.indices:
        weight_map = read_dense_index(found.root / index)
        names = sorted(set(weight_map.values()))
        holders: dict[str, list[str]] = {}
        rest: dict[str, int] = {}
        for name in names if len(names) > 1 else ():
            with file.open_file(found.root / name) as opened:
                rest[name] = len(opened.layout.header.entries)
                for tensor in opened.layout.header.entries:
                    holders.setdefault(tensor, []).append(name)
        for tensor, held in holders.items():
            listed = weight_map.get(tensor)
            chosen = listed if listed in held else held[-1]
            for name in held:
                if name != chosen:
                    shadowed.setdefault(name, set()).add(tensor)
                    rest[name] -= 1
        empty += [name for name in shadowed if rest.get(name) == 0]
    return replace(
        found,
        weights=tuple(name for name in found.weights if name not in empty),
        superseded=(*found.superseded, *empty),
        shadowed={name: frozenset(tensors) for name, tensors in shadowed.items() if name not in empty},
    )


def kept_dense(found: Checkpoint) -> dict[str, str]:
    """The dense files that an Endor checkpoint keeps as they are, by where they are kept (K-12)."""
    restored = {dense_name(name) for name in found.weights}
    for index in found.indices:
        original = original_index(dense_name(index))
        if PurePosixPath(original) in found.carried:
            restored.update(_named(found.root, original, there=False))
    kept = {str(path): str(path).removesuffix(KEPT) for path in found.carried if str(path).endswith(KEPT)}
    return {
        path: name
        for path, name in kept.items()
        if name in restored
        or (INDEX.fullmatch(name) and not is_variant(name, METHOD))
        or (WEIGHTS.fullmatch(name) and not ENDOR_WEIGHTS.fullmatch(name) and "/" not in name)
    }


def missed(left_out: Mapping[str, str]) -> dict[str, str]:
    """Of what is left out that which a loader may miss: all but what is no part of the model."""
    return {path: why for path, why in left_out.items() if why != _NO_PART}


def require_all(found: Checkpoint) -> None:
    """Require that nothing of a model is left out.

    Raises:
        UsageError: something is.
    """
    for path, why in sorted(missed(found.left_out).items()):
        raise UsageError(
            f"{quote(path)} would be left out: {why}. Put what it stands for into the directory, remove it, "
            "or go without --strict"
        )


def faults(found: Checkpoint) -> Iterator[FormatError]:
    """All that breaks a rule K; what is wrong inside a weights file is found by opening that.

    Of dense checkpoints only that is asked without which their Endor form would be invalid.
    """
    for check in (_check_kind, _check_config, _check_names, _check_shards):
        try:
            check(found)
        except FormatError as error:
            yield error
    for index in found.indices:
        try:
            weight_map = _check_named(found, index)
            _check_listed(found, index, weight_map)
            _check_kept(found, index)
        except FormatError as error:
            yield error


def weight_files(path: Path) -> list[Path]:
    """The weights files of a checkpoint directory, which is checked, or the file itself."""
    if not path.is_dir():
        return [path]
    return [path / name for name in scan(path).weights]


def has_endor_weights(root: Path) -> bool:
    """True if a directory holds Endor weights."""
    return any(ENDOR_WEIGHTS.fullmatch(name) and (root / name).is_file() for name in os.listdir(root))


def open_all(path: Path) -> Iterator[File]:
    """Opens the weights files of a directory, or the file itself, one after the other."""
    for weights in weight_files(path):
        with file.open_file(weights) as opened:
            yield opened


def not_safetensors(index: Path, name: str) -> UsageError:
    """The error for an index that names a file in another format."""
    return UsageError(
        f"{quote(str(index))} names {quote(name)}, which is no safetensors file (a pickle can run code): "
        "convert it first, for instance with save_pretrained of transformers"
    )


def other_weights(root: Path) -> str | None:
    """The name of an index or of a copy of weights in another format that a directory holds, if it does."""
    names = sorted(os.listdir(root))
    return next((name for name in names if is_index(name) or _matches(name, COPIES)), None)


def dense_nbytes(opened: File) -> int:
    """Dense bytes of all tensors of a file; those of unsupported ones as they are stored."""
    tensors = opened.layout.tensors.values()
    return sum(tensor.stored_nbytes if tensor.unsupported else tensor.nbytes for tensor in tensors)


def _walk(root: Path) -> tuple[list[PurePosixPath], dict[str, str]]:
    """All files below a directory, relative to it; and what is left out, and why.

    Links are followed to where a download keeps its files, and within the directory. Others are not, unless
    they are weights or JSON that is checked: a copy of what they point to might be published by mistake.
    """
    files: list[PurePosixPath] = []
    left_out: dict[str, str] = {}
    home = system.resolve(root)
    hubs = [above.parent for above in home.parents if above.name == "snapshots"]
    homes = (home, home.parent.parent / "blobs", *(hub / "blobs" for hub in hubs))
    pending = [PurePosixPath()]
    while pending:
        directory = pending.pop()
        with os.scandir(root / directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = directory / entry.name
                target = system.resolve(root / path)
                if entry.name in NOT_OURS:
                    left_out[str(path)] = _NO_PART
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif not target.is_file():
                    left_out[str(path)] = "not a file" if target.exists() else "a link to nothing"
                elif entry.is_symlink() and not may_leave(path) and not _within(target, homes):
                    left_out[str(path)] = "a link that leaves the directory"
                else:
                    files.append(path)
    return files, left_out


def may_leave(path: PurePosixPath) -> bool:
    """True if a file of a checkpoint may be a link out of its directory, as what it holds is checked."""
    name = str(path)
    return name == CONFIG or is_index(name) or WEIGHTS.fullmatch(name) is not None


def _within(path: Path, homes: Iterable[Path]) -> bool:
    return any(home in path.parents for home in homes)


def _check_kind(found: Checkpoint) -> None:
    """That all weights and indices are of one kind (K-5)."""
    if found.intruders:
        kind, other = ("Endor", "dense") if found.is_endor else ("dense", "Endor")
        what = f"{quote(found.intruders[0])} belongs to {other} weights, the directory has {kind} weights"
        raise FormatError("K-5", what + ": keep one of them", path=found.root)


def _check_config(found: Checkpoint) -> None:
    for name in (CONFIG, DENSE_CONFIG):
        if PurePosixPath(name) in found.carried:
            read_config(found.root / name)


def _check_names(found: Checkpoint) -> None:
    """That names of Endor weights stand for names of dense ones (K-11)."""
    for name in found.weights if found.is_endor else ():
        if OTHERWISE.fullmatch(name):
            dense = dense_name(name)
            parts = dense.removesuffix(SUFFIX).split("/")
            if endor_name(dense) != name or any(is_no_name(part) for part in parts):
                raise FormatError(
                    "K-11", f"{quote(name)} stands for no name of dense weights", path=found.root
                )


def _check_shards(found: Checkpoint) -> None:
    """That shards have an index (K-2)."""
    for name in found.weights:
        match = SHARD.fullmatch(name)
        index = f"model.safetensors.index{match[1]}.json" if match else None
        if index is not None and index not in found.indices:
            what = f"{quote(name)} is a shard, but there is no index {quote(index)}"
            raise FormatError("K-2", what, path=found.root)


def _check_named(found: Checkpoint, index: str) -> dict[str, str]:
    """That an index and the names of files agree (K-1, K-2)."""
    path = found.root / index
    weight_map = (read_index if found.is_endor else read_dense_index)(path)
    named = set(weight_map.values())
    for name in sorted(named.difference(found.weights)):
        kind = "Endor" if found.is_endor else "dense"
        what = f"the index names {quote(name)}, but there are no {kind} weights of that name"
        raise FormatError("K-2", what, path=path)
    for name in sorted(named):
        if not name.endswith(SUFFIX):
            raise not_safetensors(path, name)
    for name in found.weights:
        match = SHARD.fullmatch(name)
        if found.is_endor and match and match[1] == infix(index) and name not in named:
            raise FormatError("K-2", f"the index does not name {quote(name)}, which is there", path=path)
    return weight_map


def _check_listed(found: Checkpoint, index: str, weight_map: Mapping[str, str]) -> None:
    """That an index lists what its files hold (K-3), and no parts are scattered (K-4)."""
    path = found.root / index
    held: dict[str, str] = {}
    encoded: dict[str, str] = {}
    for name in sorted(set(weight_map.values())):
        try:
            opened = file.open_file(found.root / name)
        except (FormatError, UnsupportedError):
            return  # what is wrong with it, opening it for its own sake will tell
        with opened:
            twice = held.keys() & opened.layout.header.entries.keys() if found.is_endor else set()
            if twice:
                what = f"it is in {quote(held[min(twice)])} and in {quote(name)}"
                raise FormatError("K-3", what, tensor=min(twice), path=path)
            held.update(dict.fromkeys(opened.layout.header.entries, name))
            tensors = opened.layout.tensors.values()
            encoded.update({tensor.name: name for tensor in tensors if tensor.meta is not None})
    for tensor in sorted(held.keys() | weight_map.keys()) if found.is_endor else ():
        if held.get(tensor) != weight_map.get(tensor):
            listed = quote(weight_map[tensor]) if tensor in weight_map else "no file"
            holder = quote(held[tensor]) if tensor in held else "no file"
            what = f"the index lists it in {listed}, {holder} of the index holds it"
            raise FormatError("K-3", what, tensor=tensor, path=path)
    names = sorted(held)
    for tensor, name in encoded.items():
        for part in metadata.belonging(names, tensor):
            if held[part] != name:
                what = f"it is in {quote(name)}, {quote(part)} in {quote(held[part])}"
                raise FormatError("K-4", what, tensor=tensor, path=path)


def _check_kept(found: Checkpoint, index: str) -> None:
    """That the dense index that is kept, if there is one, names the files that will be restored (K-10)."""
    kept = original_index(dense_name(index))
    if not found.is_endor or PurePosixPath(kept) not in found.carried:
        return
    restored = {dense_name(name) for name in found.weights}.union(kept_dense(found).values())
    for tensor, name in read_index(found.root / kept, below=True).items():
        if name not in restored:
            what = f"the kept index names {quote(name)}, which no file here is restored to"
            raise FormatError("K-10", what, tensor=tensor, path=found.root / kept)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def no_weights(root: Path) -> UsageError:
    """The error for a directory without safetensors weights."""
    names = sorted(os.listdir(root))
    copies = [name for name in names if _matches(name, ("*.bin", "*.pt", "*.pth", "*.ckpt"))]
    found = f"{quote(str(root))} has no weights 'model.safetensors' or shards of them"
    loose = [name for name in names if name.endswith(SUFFIX)]
    if loose:
        found += f"; it has {quote(loose[0])}, which no index names: name the file instead, or add the index"
    elif copies:
        found += (
            f"; it has {quote(copies[0])}, which Endor does not open (a pickle can run code): "
            "convert it to safetensors first, for instance with save_pretrained of transformers"
        )
    return UsageError(found)
