"""Which tensors of a checkpoint make up which parameter of a model.

Mostly that is a tensor of the same name. Transformers renames some, adds or drops the prefix of the base
model, and since version 5 fuses the experts of a layer: a parameter is then filled with several tensors, each
a contiguous piece of it. What transformers says of a model is used; what is not contiguous is converted
first, see :mod:`pyendor.offload.converted`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from pyendor import exact
from pyendor.errors import UsageError, quote
from pyendor.offload import converted
from pyendor.offload.converted import Conversion
from pyendor.offload.stored import Stored


class Piece(NamedTuple):
    """A tensor, and at which element of the parameter it begins."""

    tensor: Stored
    start: int


def assign(
    model: torch.nn.Module,
    tensors: Mapping[str, Stored],
    stack: ExitStack,
    path: str = "the checkpoint",
    *,
    strict: bool = True,
) -> dict[str, list[Piece]]:
    """The pieces of every parameter and persistent buffer of a model, by its name.

    Names that are tied share what the first of them that is stored has. Tensors that have to be converted are
    in a temporary file, which is removed when the stack is closed: that is for after a
    :class:`~pyendor.offload.disk.Disk` has opened it.

    Raises:
        UsageError: the checkpoint lacks some, or has them of another shape; or it has others, and ``strict``.
        UnsupportedError: a parameter cannot be made of the checkpoint's tensors.
        OSError: there is no room for the temporary file.
    """
    state = {
        name: value for name, value in model.state_dict(keep_vars=True).items() if torch.is_tensor(value)
    }
    rename = _Names(model, state)
    pieces: dict[str, list[Piece]] = {}
    fused: dict[str, tuple[Any, dict[str, list[Stored]]]] = {}
    surplus: list[str] = []
    for name in sorted(tensors, key=rename.order):
        target, converter, pattern = rename(name)
        if target not in state:
            surplus.append(target)
            continue
        if converter is None:
            pieces[target] = [Piece(tensors[name], 0)]
        else:
            _, collected = fused.setdefault(target, (converter, {}))
            collected.setdefault(pattern, []).append(tensors[name])
    conversions = []
    for target, (converter, collected) in fused.items():
        contiguous = _fuse(converter, collected, tuple(state[target].shape))
        if contiguous is not None:
            pieces[target] = contiguous
        else:
            conversions.append(Conversion(target, converter, collected))
    if conversions:
        made = converted.convert(model, state, conversions, stack)
        pieces.update((name, [Piece(tensor, 0)]) for name, tensor in made.items())
    _tie(state, pieces)
    missing = sorted(state.keys() - pieces.keys(), key=_natural)
    if missing:
        computed = converted.compute(model, missing, stack)
        pieces.update((name, [Piece(tensor, 0)]) for name, tensor in computed.items())
        _tie(state, pieces)
        missing = [name for name in missing if name not in pieces]
    exact.require(
        path,
        missing=missing,
        surplus=exact.unexpected(model, surplus) if strict else (),
        advice="The weights may be of another model; those that are left over are ignored with strict=False",
    )
    for name, parts in pieces.items():
        shape = tuple(state[name].shape)
        whole = sum(math.prod(piece.tensor.shape) for piece in parts) == math.prod(shape)
        # What was fused has been compared; a single tensor that is stacked has one dimension less.
        if not whole or (len(parts) == 1 and name not in fused and parts[0].tensor.shape != shape):
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
        #: Key of the order in which tensors are collected, which is that of what they are stacked to.
        self.order: Any = _natural
        try:
            from transformers import PreTrainedModel, conversion_mapping, core_model_loading
        except ImportError:  # none, or one before version 5, whose models have the names of their checkpoints
            return
        if not isinstance(model, PreTrainedModel):
            return
        self.order = getattr(core_model_loading, "dot_natural_key", _natural)
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
                target = self._prefixed(target)
                if target not in self._state and self._prefixed(name) in self._state:
                    break  # saved with the names of the model, and as it has them
                return target, converter, pattern
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


def _fuse(
    converter: Any, collected: Mapping[str, Sequence[Stored]], wanted: tuple[int, ...]
) -> list[Piece] | None:
    """The pieces of a parameter that is stacked, concatenated, or both: then expert by expert.

    None if it is made in another way, or would not have the shape that is wanted.
    """
    if len(converter.target_patterns) != 1:
        return None
    kinds = [(type(operation).__name__, getattr(operation, "dim", 0)) for operation in converter.operations]
    sources = [collected[pattern] for pattern in converter.source_patterns if pattern in collected]
    if not all(tensor.shape for source in sources for tensor in source):
        return None  # single numbers
    same = len({len(source) for source in sources}) == 1 and len(sources) == len(converter.source_patterns)
    if kinds == [("MergeModulelist", 0)] and len(sources) == 1:
        order = list(sources[0])
        made = (len(order), *order[0].shape)
    elif kinds == [("MergeModulelist", 0), ("Concatenate", 1)] and same:
        order = [tensor for expert in zip(*sources, strict=True) for tensor in expert]
        first = order[: len(sources)]
        made = (len(order) // len(first), sum(tensor.shape[0] for tensor in first), *order[0].shape[1:])
    elif kinds == [("Concatenate", 0)]:
        order = [tensor for source in sources for tensor in source]
        made = (sum(tensor.shape[0] for tensor in order), *order[0].shape[1:])
    else:
        return None
    alike = all(tensor.shape[1:] == order[0].shape[1:] for tensor in order)
    experts = all(one.shape == source[0].shape for source in sources for one in source)
    if made != wanted or not alike or not (experts or kinds == [("Concatenate", 0)]):
        return None  # the operations themselves say what is wrong
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
