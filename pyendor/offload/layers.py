"""A model cut into layers, whose weights come and go together, and what is left, which stays.

A layer is what transformers does not split either (a decoder layer), or a child of a list of modules; outside
of these, every module with weights of its own. Lists and dictionaries of modules, which are never called, are
no layers; modules that use the weights of their children, as attention does, are cut no further. Vectors
(norms, biases), weights beside layers and buffers are little: they stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pyendor import layout
from pyendor.offload.fetched import Source
from pyendor.offload.names import Piece
from pyendor.offload.stored import Bundle, Stored
from pyendor.torch_bytes import row_of

# Modules that use the weights of their children instead of calling them.
_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

# Where a weight begins in dense memory: what vector instructions of any processor ask for.
ALIGNMENT = 256

Owner = tuple[nn.Module, str]


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A parameter of a layer.

    Attributes:
        owners: the modules that have it, and their names for it.
        source: what the tensor that they have gets its elements from.
        shape, dtype: as the model wants it.
        pieces: tensors of the bundle, by number, and the byte at which each begins.
        at: where it begins in dense memory; None where it is used as it lies in the bundle.
        cast: whether its tensors are of another dtype.
    """

    owners: tuple[Owner, ...]
    source: Source
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[int, int], ...]
    at: int | None
    cast: bool

    @property
    def nbytes(self) -> int:
        """Dense size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, memory: torch.Tensor, start: int) -> torch.Tensor:
        """The weight as it lies in ``uint8`` memory from ``start`` on."""
        return memory[start : start + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A module whose weights come and go together.

    Attributes:
        name: of the module in the model.
        module: the module; its forward is what the weights are there for.
        weights: its parameters.
        bundle: their stored bytes.
        dense_nbytes: dense memory that it needs.
        scratch_nbytes: memory for one tensor that has to be cast.
        by_rows: an embedding, of which only the rows that are looked up are needed.
    """

    name: str
    module: nn.Module
    weights: tuple[Weight, ...]
    bundle: Bundle
    dense_nbytes: int
    scratch_nbytes: int
    by_rows: bool

    def as_stored(self, weight: Weight) -> Stored | None:
        """The one tensor that a weight is as it is, encoded; None if it is anything else."""
        (number, _), *others = weight.pieces
        stored = self.bundle.tensors[number]
        whole = not others and not weight.cast and stored.shape == weight.shape
        return stored if whole and stored.meta is not None else None


@dataclass(frozen=True, slots=True)
class Parts:
    """A model cut up.

    Attributes:
        layers: in the order of their modules.
        kept: names of parameters and buffers that stay, and who has them.
    """

    layers: tuple[Layer, ...]
    kept: Mapping[str, tuple[Owner, ...]]


def cut(model: nn.Module, pieces: Mapping[str, Sequence[Piece]], *, views: bool) -> Parts:
    """Cuts a model into layers.

    Args:
        model: the model.
        pieces: of every parameter and persistent buffer.
        views: use plain tensors as they lie in the bundle, where that is possible.
    """
    layers, taken = [], set()
    sources: dict[int, Source] = {}
    for name, module, members in _modules(model):
        if any(parameter.ndim > 1 for _, _, parameter in members):
            layers.append(_layer(name, module, members, pieces, sources, views))
            taken |= {path for path, _, parameter in members if parameter.ndim > 1}
    kept: dict[str, list[Owner]] = {}
    for name in pieces.keys() - taken:
        path, _, attribute = name.rpartition(".")
        kept.setdefault(name, []).append((model.get_submodule(path), attribute))
    return Parts(tuple(layers), {name: tuple(owners) for name, owners in kept.items()})


def _modules(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, list[tuple[str, Owner, nn.Parameter]]]]:
    """The modules that become layers, and their parameters."""
    whole = set(getattr(model, "_no_split_modules", None) or ())
    seen: set[int] = set()

    def visit(
        name: str, module: nn.Module, listed: bool
    ) -> Iterator[tuple[str, nn.Module, list[tuple[str, Owner, nn.Parameter]]]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        children = [
            (key, child) for key, child in module.named_children() if any(True for _ in child.parameters())
        ]
        called = type(module).forward is not nn.Module.forward
        uncut = type(module).__name__ in whole if whole else listed
        if called and (uncut or not children or isinstance(module, _WHOLE)):
            yield name, module, list(_parameters(name, module))
            return
        inside = isinstance(module, nn.Sequential) or not called
        for key, child in children:
            yield from visit(f"{name}.{key}" if name else key, child, inside)

    # A model that is a single layer has nothing to go before or after.
    yield from visit("", model, False)


def _parameters(prefix: str, module: nn.Module) -> Iterator[tuple[str, Owner, nn.Parameter]]:
    for path, part in module.named_modules(remove_duplicate=False):
        for attribute, parameter in part._parameters.items():
            if parameter is not None:
                name = ".".join(piece for piece in (prefix, path, attribute) if piece)
                yield name, (part, attribute), parameter


def _layer(
    name: str,
    module: nn.Module,
    members: list[tuple[str, Owner, nn.Parameter]],
    pieces: Mapping[str, Sequence[Piece]],
    sources: dict[int, Source],
    views: bool,
) -> Layer:
    owners: dict[int, list[Owner]] = {}
    chosen: dict[int, tuple[str, nn.Parameter]] = {}
    for path, owner, parameter in members:
        if parameter.ndim > 1:
            owners.setdefault(id(parameter), []).append(owner)
            chosen.setdefault(id(parameter), (path, parameter))
    bundle = Bundle.of(piece.tensor for path, _ in chosen.values() for piece in pieces[path])
    numbers = {id(tensor): number for number, tensor in enumerate(bundle.tensors)}
    weights, at, scratch = [], 0, 0
    for key, (path, parameter) in chosen.items():
        row = row_of(parameter.dtype)
        parts = pieces[path]
        cast = any(piece.tensor.dtype != row.name for piece in parts)
        if cast:
            scratch = max(scratch, *(piece.tensor.dense_nbytes for piece in parts))
        first = parts[0].tensor
        direct = views and not cast and len(parts) == 1 and first.meta is None
        if direct:
            direct = bundle.places[numbers[id(first)]]["values"][0] % row.itemsize == 0
        placed = tuple((numbers[id(piece.tensor)], piece.start * row.itemsize) for piece in parts)
        source = sources.setdefault(key, Source(path, parameter.shape, parameter.dtype))
        about = (tuple(owners[key]), source, tuple(parameter.shape), parameter.dtype)
        weight = Weight(*about, placed, None if direct else at, cast)
        weights.append(weight)
        at += 0 if direct else layout.roundup(weight.nbytes, ALIGNMENT)
    return Layer(name, module, tuple(weights), bundle, at, scratch, _by_rows(module, weights))


def _by_rows(module: nn.Module, weights: Sequence[Weight]) -> bool:
    """Whether a module is an embedding, of which the rows that are looked up are enough."""
    plain = isinstance(module, nn.Embedding) and module.max_norm is None
    return plain and len(weights) == 1 and len(weights[0].pieces) == 1
