"""A checkpoint directory as data (spec 11, rules K): which file is what, its index, its config.

Nothing is written here; :mod:`pyendor.convert` does that. A checkpoint may also be a single file.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyendor import file, jsontext, metadata
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote
from pyendor.file import File
from pyendor.stamps import Stamp

METHOD = "endor"
CONFIG = "config.json"
DENSE_CONFIG = "config.dense.json"
# Other copies of the same weights, which would otherwise be carried along in full (K-6).
COPIES = ("pytorch_model*", "consolidated*", "*.gguf", "tf_model*", "flax_model*")
# What version control and downloads leave beside a checkpoint, copies of the weights included.
NOT_OURS = (".git", ".cache")
LONGEST_JSON = 100_000_000

_WEIGHTS = re.compile(r"model(?:[.-].*)?\.safetensors", re.DOTALL)
_ENDOR_WEIGHTS = re.compile(r"model\.endor(?:[.-].*)?\.safetensors", re.DOTALL)
_SHARD = re.compile(r"model(|\..*)-[0-9]{5}-of-[0-9]{5}\.safetensors", re.DOTALL)
_INDEX = re.compile(r"model\.safetensors\.index(|\..*)\.json", re.DOTALL)
_UNSAFE = re.compile(r"[/\\:\x00-\x1f]")


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
    """

    root: Path
    weights: tuple[str, ...]
    is_endor: bool
    indices: tuple[str, ...]
    intruders: tuple[str, ...]
    carried: tuple[PurePosixPath, ...]
    left_out: Mapping[str, str]


def listing(root: Path) -> Checkpoint:
    """Sorts the files of a directory, without a look into any.

    Raises:
        UsageError: it holds no safetensors weights.
    """
    files, left_out = _walk(root)
    names = sorted(str(path) for path in files if len(path.parts) == 1)
    endor = [name for name in names if _ENDOR_WEIGHTS.fullmatch(name)]
    dense = [name for name in names if _WEIGHTS.fullmatch(name) and name not in endor]
    weights = endor or dense
    if not weights:
        raise no_weights(root)
    indices = [name for name in names if is_index(name) and not is_kept_original(name)]
    ours = [name for name in indices if _is_variant(name, METHOD) == bool(endor)]
    copies = [name for name in names if _matches(name, COPIES)]
    pickles = [name for name in copies if fnmatch.fnmatchcase(name, "pytorch_model*.bin")]
    others = (dense + pickles if endor else []) + [name for name in indices if name not in ours]
    special = {*weights, *ours, *others, *copies}
    carried = tuple(path for path in files if str(path) not in special)
    left_out |= dict.fromkeys(copies, "another copy of the weights")
    return Checkpoint(root, tuple(weights), bool(endor), tuple(ours), tuple(others), carried, left_out)


def scan(root: Path) -> Checkpoint:
    """Sorts the files of a directory and checks the rules K, for which it opens the headers of shards.

    Raises:
        FormatError: a rule is broken.
        UsageError: it holds no safetensors weights.
    """
    found = listing(root)
    for error in faults(found):
        raise error
    return found


def faults(found: Checkpoint) -> Iterator[FormatError]:
    """All that breaks a rule K; what is wrong inside a weights file is found by opening that.

    Of dense checkpoints only that is asked without which their Endor form would be invalid.
    """
    for check in (_check_kind, _check_config, _check_shards):
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


def is_loose(name: str) -> bool:
    """True if a file of that name is weights, and no shard."""
    return _WEIGHTS.fullmatch(name) is not None and _SHARD.fullmatch(name) is None


def has_endor_weights(root: Path) -> bool:
    """True if a directory holds Endor weights."""
    return any(_ENDOR_WEIGHTS.fullmatch(name) and (root / name).is_file() for name in os.listdir(root))


def open_all(path: Path) -> Iterator[File]:
    """Opens the weights files of a directory, or the file itself, one after the other."""
    for weights in weight_files(path):
        with file.open_file(weights) as opened:
            yield opened


def other_weights(root: Path) -> str | None:
    """The name of an index or of a copy of weights in another format that a directory holds, if it does."""
    names = sorted(os.listdir(root))
    return next((name for name in names if is_index(name) or _matches(name, COPIES)), None)


def dense_nbytes(opened: File) -> int:
    """Dense bytes of all tensors of a file; those of unsupported ones as they are stored."""
    tensors = opened.layout.tensors.values()
    return sum(tensor.stored_nbytes if tensor.unsupported else tensor.nbytes for tensor in tensors)


def endor_name(name: str) -> str:
    """The Endor name of a dense weights file or index."""
    stem = _stem(name)
    return f"{stem}.{METHOD}{name[len(stem) :]}"


def dense_name(name: str) -> str:
    """The dense name of an Endor weights file or index."""
    stem = _stem(name)
    return stem + name.removeprefix(f"{stem}.{METHOD}")


def original_index(name: str) -> str:
    """The name under which the dense index of that name is kept beside Endor weights (K-7)."""
    stem = _stem(name)
    return f"{stem}.dense{name[len(stem) :]}"


def is_index(name: str) -> bool:
    """Whether a file is an index of weights, by its name."""
    return _INDEX.fullmatch(name) is not None


def is_kept_original(name: str) -> bool:
    """Whether a file is a dense index or config that is kept beside Endor weights."""
    return name == DENSE_CONFIG or (is_index(name) and _is_variant(name, "dense"))


def read_index(path: Path, stamp: Stamp | None = None) -> dict[str, str]:
    """The ``weight_map`` of an index: file names by physical tensor (K-1).

    With its stamp, it has to be what it was.
    """
    weight_map = read_object(path, stamp).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError("K-1", "the index has no object 'weight_map'", path=path)
    for tensor, name in weight_map.items():
        if not jsontext.is_string(name) or name in {"", ".", ".."} or _UNSAFE.search(name):
            found = f"the index names {quote(str(name))}, which is no file of its directory"
            raise FormatError("K-1", found, tensor=tensor, path=path)
    return weight_map


def read_dense_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of a dense index, in the JSON that Hugging Face libraries accept.

    Files may lie below the directory, never outside of it.
    """
    try:
        weight_map = json.loads(_text(path))["weight_map"]
        files = set(weight_map.values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise FormatError("K-1", f"not an index with an object 'weight_map': {error!r}", path=path) from error
    for name in files:
        parts = name.split("/") if isinstance(name, str) else [""]
        if any(part in {"", ".", ".."} or _UNSAFE.search(part) for part in parts):
            found = f"the index names {quote(str(name))}, which is no file below its directory"
            raise FormatError("K-1", found, path=path)
    return dict(weight_map)


def read_object(path: Path, stamp: Stamp | None = None) -> dict[str, Any]:
    """A small JSON file that is one object, strictly read; numbers come as text."""
    try:
        return jsontext.parse(_text(path, stamp))
    except UnicodeDecodeError as error:
        raise FormatError("K-1", f"not UTF-8: {error.reason}", offset=error.start, path=path) from error
    except FormatError as error:
        raise error.located(path=path) from None


def index_text(weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    """The text of an index, laid out as Hugging Face libraries do it."""
    ordered = dict(sorted(weight_map.items()))
    return json.dumps({"metadata": dict(metadata), "weight_map": ordered}, indent=2) + "\n"


def read_config(path: Path, stamp: Stamp | None = None) -> dict[str, Any]:
    """A ``config.json`` (K-8). Other software writes it, so what Python's reader admits is admitted.

    With its stamp, it has to be what it was.
    """
    try:
        config = json.loads(_text(path, stamp))
    except UsageError:  # a ValueError too
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError("K-8", f"not JSON: {error}", path=path) from error
    if not isinstance(config, dict):
        raise FormatError("K-8", "not a JSON object", path=path)
    return config


def quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``quantization_config`` of a config, None if there is none."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else None


def endor_config(config: Mapping[str, Any], version: str) -> dict[str, Any]:
    """A dense config with our ``quantization_config``, one that was there kept inside (K-7).

    ``version`` is the highest format version of the weights.
    """
    ours: dict[str, Any] = {"quant_method": METHOD, "version": version}
    inner = config.get("quantization_config")
    if inner is not None:
        ours["inner"] = inner
    return {**config, "quantization_config": ours}


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`endor_config`, for a checkpoint that has lost the original."""
    restored = {key: value for key, value in config.items() if key != "quantization_config"}
    inner = (quantization(config) or {}).get("inner")
    return restored if inner is None else {**restored, "quantization_config": inner}


def config_text(config: Mapping[str, Any]) -> str:
    """The text of a config, laid out as Hugging Face libraries do it."""
    try:
        return json.dumps(config, indent=2) + "\n"
    except RecursionError:
        raise UnsupportedError(f"{CONFIG} is nested too deep for this build") from None


def _text(path: Path, stamp: Stamp | None = None) -> str:
    with open(path if stamp is None else stamp.open(), encoding="utf-8") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > LONGEST_JSON:
            raise UnsupportedError(f"{quote(str(path))} has {size} bytes, more than this build reads")
        return stream.read()


def _stem(name: str) -> str:
    return "model.safetensors.index" if is_index(name) else "model"


def _infix(index: str) -> str:
    """What the name of an index has between its stem and ``.json``, such as ``.endor.fp16``."""
    match = _INDEX.fullmatch(index)
    return match[1] if match else ""


def _is_variant(index: str, variant: str) -> bool:
    """Whether an index is of a variant, or of a variant of that one; ``endorsed`` is none of ``endor``."""
    return f"{_infix(index)}.".startswith(f".{variant}.")


def _walk(root: Path) -> tuple[list[PurePosixPath], dict[str, str]]:
    """All files below a directory, relative to it; and what is left out, and why.

    Links are followed to where a download keeps its files, and within the directory. Others are not, unless
    they are weights or JSON that is checked: a copy of what they point to might be published by mistake.
    """
    files: list[PurePosixPath] = []
    left_out: dict[str, str] = {}
    homes = (root.resolve(), root.absolute().parent.parent.resolve() / "blobs")
    pending = [PurePosixPath()]
    while pending:
        directory = pending.pop()
        with os.scandir(root / directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = directory / entry.name
                target = (root / path).resolve()
                if entry.name in NOT_OURS:
                    left_out[str(path)] = "not part of the model"
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
    return name == CONFIG or is_index(name) or _WEIGHTS.fullmatch(name) is not None


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


def _check_shards(found: Checkpoint) -> None:
    """That shards have an index (K-2)."""
    for name in found.weights:
        match = _SHARD.fullmatch(name)
        index = f"model.safetensors.index{match[1]}.json" if match else None
        if index is not None and index not in found.indices:
            what = f"{quote(name)} is a shard, but there is no index {quote(index)}"
            raise FormatError("K-2", what, path=found.root)


def _check_named(found: Checkpoint, index: str) -> dict[str, str]:
    """That an index and the names of files agree (K-1, K-2)."""
    path = found.root / index
    weight_map = read_index(path)
    named = set(weight_map.values())
    for name in sorted(named.difference(found.weights)):
        kind = "Endor" if found.is_endor else "dense"
        what = f"the index names {quote(name)}, but there are no {kind} weights of that name"
        raise FormatError("K-2", what, path=path)
    for name in found.weights:
        match = _SHARD.fullmatch(name)
        if match and match[1] == _infix(index) and name not in named:
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
            twice = held.keys() & opened.layout.header.entries.keys()
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
    restored = {dense_name(name) for name in found.weights}
    for tensor, name in read_index(found.root / kept).items():
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
    if copies:
        found += (
            f"; it has {quote(copies[0])}, which Endor does not open (a pickle can run code): "
            "convert it to safetensors first, for instance with save_pretrained of transformers"
        )
    return UsageError(found)
