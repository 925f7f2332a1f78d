"""Which tensors of a checkpoint make up which parameter of a model.

Mostly that is a tensor of the same name. Transformers renames some, adds or drops the prefix of the base
model, and since version 5 fuses the experts of a layer: a parameter is then filled with several tensors, each
a contiguous piece of it. What transformers says of a model is used; what is not contiguous is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.offload.stored import Stored


class Piece(NamedTuple):
    """A tensor, and at which element of the parameter it begins."""

    tensor: Stored
    start: int


def assign(model: torch.nn.Module, tensors: Mapping[str, Stored]) -> dict[str, list[Piece]]:
    """The pieces of every parameter and persistent buffer of a model, by its name.

    Names that are tied share what the first of them that is stored has.

    Raises:
        UsageError: the checkpoint lacks some, or has them of another shape.
        UnsupportedError: a parameter is made of the checkpoint's tensors in a way that is not known here.
    """
    state = {
        name: value for name, value in model.state_dict(keep_vars=True).items() if torch.is_tensor(value)
    }
    rename = _Names(model, state)
    pieces: dict[str, list[Piece]] = {}
    fused: dict[str, tuple[Any, dict[str, list[Stored]]]] = {}
    for name in sorted(tensors, key=_natural):
        target, converter, pattern = rename(name)
        if target not in state:
            continue  # as from_pretrained does; what is needed and not there is found below
        if converter is None:
            pieces[target] = [Piece(tensors[name], 0)]
        else:
            _, collected = fused.setdefault(target, (converter, {}))
            collected.setdefault(pattern, []).append(tensors[name])
    for target, (converter, collected) in fused.items():
        pieces[target] = _fuse(target, converter, collected)
    _tie(state, pieces)
    missing = sorted(state.keys() - pieces.keys(), key=_natural)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        listed = ", ".join(quote(name) for name in missing[:3]) + more
        raise UsageError(f"the checkpoint has no weights for {listed} of {type(model).__name__}")
    for name, parts in pieces.items():
        shape = tuple(state[name].shape)
        whole = sum(math.prod(piece.tensor.shape) for piece in parts) == math.prod(shape)
        if not whole or (len(parts) == 1 and parts[0].tensor.shape != shape):
            found = [list(piece.tensor.shape) for piece in parts]
            raise UsageError(f"parameter {quote(name)} has shape {list(shape)}, the checkpoint {found}")
    return pieces


class _Names:
    """From names of a checkpoint to those of a model, by the rules of transformers where it has any."""

    def __init__(self, model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state
        self._prefix = getattr(model, "base_model_prefix", "")
        self._renamings: list[Any] = []
        self._converters: list[Any] = []
        try:
            from transformers import PreTrainedModel, conversion_mapping, core_model_loading
        except ImportError:  # none, or one before version 5, whose models have the names of their checkpoints
            return
        if not isinstance(model, PreTrainedModel):
            return
        for transform in conversion_mapping.get_model_conversion_mapping(model):
            converts = isinstance(transform, core_model_loading.WeightConverter)
            (self._converters if converts else self._renamings).append(transform)

    def __call__(self, name: str) -> tuple[str, Any, str]:
        """The name in the model, what converts it and by which pattern, if it has to be converted."""
        renamed = name
        for renaming in self._renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        for converter in self._converters:
            target, pattern = converter.rename_source_key(renamed)
            if pattern is not None:
                return self._prefixed(target), converter, pattern
        target = self._prefixed(renamed)
        # A checkpoint that was saved with the names of the model need not be renamed.
        return (target if target in self._state else self._prefixed(name)), None, ""

    def _prefixed(self, name: str) -> str:
        """The name with the prefix of the base model or without, whichever the model has."""
        if name in self._state or not self._prefix:
            return name
        shorter = name.removeprefix(f"{self._prefix}.")
        longer = f"{self._prefix}.{name}"
        return next((other for other in (shorter, longer) if other in self._state), name)


def _fuse(target: str, converter: Any, collected: Mapping[str, Sequence[Stored]]) -> list[Piece]:
    """The pieces of a parameter that is stacked, concatenated, or both: then expert by expert."""
    kinds = [(type(operation).__name__, getattr(operation, "dim", 0)) for operation in converter.operations]
    sources = [collected[pattern] for pattern in converter.source_patterns if pattern in collected]
    same = len({len(source) for source in sources}) == 1 and len(sources) == len(converter.source_patterns)
    if kinds == [("MergeModulelist", 0)] and len(sources) == 1:
        order = list(sources[0])
    elif kinds == [("MergeModulelist", 0), ("Concatenate", 1)] and same:
        order = [tensor for expert in zip(*sources, strict=True) for tensor in expert]
    elif kinds == [("Concatenate", 0)]:
        order = [tensor for source in sources for tensor in source]
    else:
        done = ", ".join(f"{name}(dim={dim})" for name, dim in kinds)
        found = f"is made of {sum(map(len, sources))} tensors by {done}, which is not known here"
        raise UnsupportedError(f"parameter {quote(target)} {found}")
    pieces, start = [], 0
    for tensor in order:
        pieces.append(Piece(tensor, start))
        start += math.prod(tensor.shape)
    return pieces


def _tie(state: Mapping[str, torch.Tensor], pieces: dict[str, list[Piece]]) -> None:
    by_parameter: dict[int, list[str]] = {}
    for name, value in state.items():
        by_parameter.setdefault(id(value), []).append(name)
    for names in by_parameter.values():
        first = next((pieces[name] for name in names if name in pieces), None)
        if first is not None:
            pieces.update(dict.fromkeys(names, first))


def _natural(name: str) -> list[Any]:
    """Names in the order of the numbers in them: expert 2 before expert 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
