"""A checkpoint directory as data (spec 11, rules K): which file is what, its index, its config.

Nothing is written here; :mod:`pyendor.convert` does that. A checkpoint may also be a single file.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyendor import file, jsontext, metadata
from pyendor.errors import FormatError, UsageError, quote
from pyendor.file import File
from pyendor.metadata import LOWEST_VERSION

METHOD = "endor"
CONFIG = "config.json"
DENSE_CONFIG = "config.dense.json"
DENSE_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
ENDOR_WEIGHTS = ("model.endor.safetensors", "model.endor.*.safetensors", "model.endor-*.safetensors")
# Other copies of the same weights, which would otherwise be carried along in full (K-6).
COPIES = ("pytorch_model*", "consolidated*", "*.gguf", "tf_model*", "flax_model*")
# What version control and downloads leave beside a checkpoint, copies of the weights included.
NOT_OURS = (".git", ".cache")

_UNSAFE = re.compile(r"[/\\:\x00-\x1f]")
_WEIGHTS = "model"
_INDEX = "model.safetensors.index"


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint directory, by what they are.

    Attributes:
        root: the directory.
        weights: names of its weights files, all dense or all Endor, sorted; never empty.
        is_endor: which of the two.
        indices: names of the indices of these weights.
        carried: paths, relative to ``root``, of all files that belong to the model besides.
        left_out: likewise, of other copies of the weights and what does not belong to the model.
    """

    root: Path
    weights: tuple[str, ...]
    is_endor: bool
    indices: tuple[str, ...]
    carried: tuple[PurePosixPath, ...]
    left_out: tuple[PurePosixPath, ...]


def scan(root: Path) -> Checkpoint:
    """Sorts the files of a directory; checks what can be told without opening weights (K-1, K-2, K-5, K-8).

    Raises:
        FormatError: a rule is broken.
        UsageError: it holds no safetensors weights, or something that is no file and no directory.
    """
    carried, left_out = _walk(root)
    names = sorted(str(path) for path in carried if len(path.parts) == 1)
    endor = [name for name in names if _matches(name, ENDOR_WEIGHTS)]
    dense = [name for name in names if _matches(name, DENSE_WEIGHTS) and name not in endor]
    if endor and dense:
        found = f"the directory has dense weights, {quote(dense[0])}, beside Endor weights"
        raise FormatError("K-5", found + ": keep one of them", path=root)
    weights = endor or fnmatch.filter(dense, DENSE_WEIGHTS[0])
    if not weights:
        raise _no_weights(root, names)
    if CONFIG in names:
        read_config(root / CONFIG)
    indices = [name for name in names if is_index(name) and (endor_index_part(name) == bool(endor))]
    indices = [name for name in indices if not is_kept_original(name)]
    _check_indices(root, indices, weights)
    special = {*weights, *indices}
    copies = [path for path in carried if len(path.parts) == 1 and _matches(str(path), COPIES)]
    rest = (path for path in carried if str(path) not in special and path not in copies)
    return Checkpoint(root, tuple(weights), bool(endor), tuple(indices), tuple(rest), (*left_out, *copies))


def weight_files(path: Path) -> list[Path]:
    """The weights files of a checkpoint directory, or the file itself."""
    if not path.is_dir():
        return [path]
    return [path / name for name in scan(path).weights]


def open_all(path: Path) -> Iterator[File]:
    """Opens the weights files of a directory, or the file itself, one after the other."""
    for weights in weight_files(path):
        with file.open_file(weights) as opened:
            yield opened


def endor_name(name: str) -> str:
    """The Endor name of a dense weights file or index."""
    stem = _INDEX if is_index(name) else _WEIGHTS
    return f"{stem}.{METHOD}{name[len(stem) :]}"


def dense_name(name: str) -> str:
    """The dense name of an Endor weights file or index."""
    stem = _INDEX if is_index(name) else _WEIGHTS
    return stem + name.removeprefix(f"{stem}.{METHOD}")


def original_index(name: str) -> str:
    """The name under which the dense index of that name is kept beside Endor weights (K-7)."""
    return f"{_INDEX}.dense{name[len(_INDEX) :]}"


def is_index(name: str) -> bool:
    """Whether a file is an index of weights, by its name."""
    return name.startswith(f"{_INDEX}.") and name.endswith(".json")


def is_kept_original(name: str) -> bool:
    """Whether a file is a dense index or config that is kept beside Endor weights."""
    return name == DENSE_CONFIG or name.startswith(f"{_INDEX}.dense.")


def endor_index_part(name: str) -> bool:
    """Whether an index is one of Endor weights."""
    return name.startswith(f"{_INDEX}.{METHOD}.")


def read_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index: file names by physical tensor (K-1)."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError("K-1", "the index has no object 'weight_map'", path=path)
    for tensor, name in weight_map.items():
        if not jsontext.is_string(name) or name in {"", ".", ".."} or _UNSAFE.search(name):
            found = f"the index names {quote(str(name))}, which is no file of its directory"
            raise FormatError("K-1", found, tensor=tensor, path=path)
    return weight_map


def read_object(path: Path) -> dict[str, Any]:
    """A small JSON file that is one object, strictly read; numbers come as text."""
    try:
        return jsontext.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError("K-1", f"not UTF-8: {error.reason}", offset=error.start, path=path) from error
    except FormatError as error:
        raise error.located(path=path) from None


def index_text(weight_map: Mapping[str, str], total_size: int) -> str:
    """The text of an index, laid out as Hugging Face libraries do it."""
    ordered = dict(sorted(weight_map.items()))
    index = {"metadata": {"total_size": total_size}, "weight_map": ordered}
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def read_config(path: Path) -> dict[str, Any]:
    """A ``config.json`` (K-8). Other software writes it, so what Python's reader admits is admitted."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError("K-8", f"not JSON: {error}", path=path) from error
    if not isinstance(config, dict):
        raise FormatError("K-8", "not a JSON object", path=path)
    return config


def quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``quantization_config`` of a config, None if there is none."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else None


def endor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A dense config with our ``quantization_config``, one that was there kept inside (K-7)."""
    ours: dict[str, Any] = {"quant_method": METHOD, "version": LOWEST_VERSION}
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
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def check_index(root: Path, index: str) -> None:
    """That an index and its files list the same physical tensors (K-3), parts not scattered (K-4)."""
    weight_map = read_index(root / index)
    found: dict[str, str] = {}
    encoded: dict[str, str] = {}
    for name in sorted(set(weight_map.values())):
        with file.open_file(root / name) as opened:
            twice = found.keys() & opened.layout.header.entries.keys()
            if twice:
                what = f"it is in {quote(found[min(twice)])} and in {quote(name)}"
                raise FormatError("K-3", what, tensor=min(twice), path=root / index)
            found.update(dict.fromkeys(opened.layout.header.entries, name))
            tensors = opened.layout.tensors.values()
            encoded.update({tensor.name: name for tensor in tensors if tensor.meta is not None})
    for tensor in sorted(found.keys() | weight_map.keys()):
        if found.get(tensor) != weight_map.get(tensor):
            listed = quote(weight_map[tensor]) if tensor in weight_map else "no file"
            held = quote(found[tensor]) if tensor in found else "no file"
            what = f"the index lists it in {listed}, {held} of the index holds it"
            raise FormatError("K-3", what, tensor=tensor, path=root / index)
    names = sorted(found)
    for tensor, name in encoded.items():
        for part in metadata.belonging(names, tensor):
            if found[part] != name:
                what = f"it is in {quote(name)}, {quote(part)} in {quote(found[part])}"
                raise FormatError("K-4", what, tensor=tensor, path=root / index)


def _walk(root: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """All files below a directory, relative to it: what is the model's, and what is not."""
    files: list[PurePosixPath] = []
    not_ours: list[PurePosixPath] = []
    pending = [PurePosixPath()]
    while pending:
        directory = pending.pop()
        with os.scandir(root / directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = directory / entry.name
                if entry.name in NOT_OURS:
                    not_ours.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif stat.S_ISREG(os.stat(root / path).st_mode):
                    files.append(path)  # through links too: the Hub's cache is made of them
                else:
                    raise UsageError(f"{quote(str(root / path))} is neither a file nor a directory")
    return files, not_ours


def _check_indices(root: Path, indices: Iterable[str], weights: Sequence[str]) -> None:
    """K-1 and K-2. Weights with no index at all, such as a lone ``model.safetensors``, are fine."""
    for index in indices:
        named = set(read_index(root / index).values())
        for name in sorted(named.difference(weights)):
            found = f"the index names {quote(name)}, which is not there"
            raise FormatError("K-2", found, path=root / index)
        like = _shards_like(index, weights)
        for name in sorted(like.difference(named)):
            found = f"the index does not name {quote(name)}, which is there"
            raise FormatError("K-2", found, path=root / index)


def _shards_like(index: str, weights: Sequence[str]) -> set[str]:
    """The weights files that, by their names, are shards of an index."""
    variant = index[len(_INDEX) : -len(".json")]
    return set(fnmatch.filter(weights, f"{_WEIGHTS}{variant}-?????-of-?????.safetensors"))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _no_weights(root: Path, names: Sequence[str]) -> UsageError:
    copies = [name for name in names if _matches(name, (*COPIES, "*.bin", "*.pt", "*.pth", "*.ckpt"))]
    found = f"{quote(str(root))} has no weights 'model*.safetensors'"
    if copies:
        found += (
            f"; it has {quote(copies[0])}, which Endor does not open (a pickle can run code): "
            "convert it to safetensors first, for instance with save_pretrained of transformers"
        )
    return UsageError(found)
