"""Parameters that are computed rather than copied: what transformers converts, and what it does not save.

A weight that transformers transposes, splits or permutes when it loads is in no file as the model wants it.
It is converted once, by the operations of transformers themselves, into a temporary Endor file that the model
then runs from like from any other; the tensors of one conversion are in memory at a time. A weight that
transformers never saves, such as sinusoidal positions, is computed by the initialization of the model.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pyendor import file, layout, writer
from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.layout import Bytes
from pyendor.offload.stored import Stored
from pyendor.torch_bytes import from_bytes, row_of, to_bytes
from pyendor.writer import TensorSource


class Conversion(NamedTuple):
    """One application of a converter of transformers.

    Attributes:
        target: the parameter that it makes, the first of them if it makes several.
        converter: the ``WeightConverter``.
        sources: the tensors of the checkpoint, by the pattern that they match.
    """

    target: str
    converter: Any
    sources: Mapping[str, Sequence[Stored]]

    def __call__(self, model: Any, load: Callable[[Stored], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that it makes, by name.

        Raises:
            UnsupportedError: the operations of transformers do not accept these tensors.
        """
        converter = copy.deepcopy(self.converter)
        for pattern, tensors in self.sources.items():
            converter.collected_tensors[pattern] = [_Loader(load, tensor) for tensor in tensors]
        try:
            made = converter.convert(self.target, model=model, config=model.config)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            done = ", ".join(map(repr, self.converter.operations))
            count = sum(map(len, self.sources.values()))
            raise UnsupportedError(
                f"parameter {quote(self.target)} is made of {count} tensors by {done}, which fails: {error}"
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class _Loader:
    """A tensor that is loaded when transformers asks for it."""

    def __init__(self, load: Callable[[Stored], torch.Tensor], tensor: Stored) -> None:
        self._load, self._tensor = load, tensor

    def __call__(self) -> torch.Tensor:
        return self._load(self._tensor)


def convert(
    model: Any, state: Mapping[str, torch.Tensor], conversions: Sequence[Conversion], stack: ExitStack
) -> dict[str, Stored]:
    """The parameters that conversions make, in a temporary file that is removed when the stack is closed.

    Raises:
        UnsupportedError: a conversion is not possible.
        UsageError: it makes another shape than the model has.
        OSError: there is no room for the file.
    """
    return _written([one for conversion in conversions for one in _sources(model, state, conversion)], stack)


def _written(sources: Sequence[TensorSource], stack: ExitStack) -> dict[str, Stored]:
    """Tensors in a temporary file: weights that no tier of memory has room for may be among them."""
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyendor-"))
    path = Path(directory) / "converted.safetensors"
    with path.open("w+b") as stream:
        writer.write(stream, sources)
    opened = file.open_file(path)
    stack.callback(opened.close)
    return {name: Stored.of_file(opened, tensor) for name, tensor in opened.layout.tensors.items()}


def _sources(model: Any, state: Mapping[str, torch.Tensor], conversion: Conversion) -> Iterator[TensorSource]:
    dtype = state[conversion.target].dtype
    with torch.no_grad():
        planned = conversion(model, lambda tensor: torch.empty(tensor.shape, dtype=dtype, device="meta"))
    waiting: dict[str, torch.Tensor] = {}

    def read(name: str) -> Callable[[], Bytes]:
        def one() -> Bytes:
            if name not in waiting:
                # Those of one conversion are made together, and are asked for one after the other.
                with torch.no_grad():
                    waiting.update(conversion(model, lambda tensor: _load(tensor, dtype)))
            made = waiting.pop(name).to(state[name].dtype)
            return np.asarray(to_bytes(made.contiguous()))

        return one

    for name, value in planned.items():
        wanted = state.get(name)
        if wanted is None:
            raise UnsupportedError(
                f"parameter {quote(conversion.target)} is converted together with {quote(name)}, which "
                f"{type(model).__name__} does not have"
            )
        if value.shape != wanted.shape:
            found = f"has shape {list(wanted.shape)}, the checkpoint gives {list(value.shape)}"
            raise UsageError(f"parameter {quote(name)} {found}")
        row, shape = row_of(wanted.dtype), tuple(wanted.shape)
        yield TensorSource(name, row.name, shape, layout.dense_nbytes(row.name, shape), read(name))


def _load(tensor: Stored, dtype: torch.dtype) -> torch.Tensor:
    return from_bytes(tensor.load(), tensor.torch_dtype, tensor.shape).view(tensor.shape).to(dtype)


def compute(model: torch.nn.Module, missing: Collection[str], stack: ExitStack) -> dict[str, Stored]:
    """Of the weights that a checkpoint lacks, those that transformers does not save.

    They are in a temporary file, as of :func:`convert`. What depends on random numbers is not among them:
    that is missing.
    """
    patterns = [
        *(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()),
        *(re.escape(name) for name in getattr(model, "_keys_to_ignore_on_save", None) or ()),
    ]
    unsaved = [name for name in missing if any(re.search(pattern, name) for pattern in patterns)]
    found: list[TensorSource] = []
    initialize = getattr(model, "initialize_weights", None)
    if unsaved and initialize is not None:
        first, second = (_initialized(model, unsaved, initialize, seed) for seed in (0, 1))
        for name in unsaved:
            one, other = first[name], second[name]
            if not torch.isnan(one).any() and torch.equal(one, other):
                data, dtype = to_bytes(one.contiguous()), row_of(one.dtype).name
                found.append(
                    TensorSource(name, dtype, tuple(one.shape), data.size, partial(np.asarray, data))
                )
    return _written(found, stack) if found else {}


def _initialized(
    model: torch.nn.Module, names: Collection[str], initialize: Callable[[], None], seed: int
) -> dict[str, torch.Tensor]:
    """The values that the initialization of a model gives to some of its weights, NaN where it gives none."""
    made: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _only(model):
        torch.manual_seed(seed)
        old: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name in names:
                path, _, attribute = name.rpartition(".")
                module = model.get_submodule(path)
                holder: dict[str, Any] = (
                    module._parameters if attribute in module._parameters else module._buffers
                )
                value = holder[attribute]
                fresh = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                fresh = fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh.zero_()
                made[name] = fresh
                old.append((holder, attribute, value))
                wrapped = torch.nn.Parameter(fresh, False) if isinstance(value, torch.nn.Parameter) else fresh
                wrapped._is_hf_initialized = False  # type: ignore[attr-defined]
                holder[attribute] = wrapped
            initialize()
            for name, (holder, attribute, _) in zip(names, old, strict=True):
                made[name] = holder[attribute].detach().clone()
        finally:
            for holder, attribute, value in old:
                holder[attribute] = value
    return made


@contextmanager
def _only(model: torch.nn.Module) -> Iterator[None]:
    """While this lasts, transformers takes what the model has for initialized, and its modules for not."""
    marked: list[Any] = [*model.parameters(), *model.buffers()]
    before = [(one, vars(one).get("_is_hf_initialized")) for one in (*marked, *model.modules())]
    try:
        for one in marked:
            one._is_hf_initialized = True
        for module in model.modules():
            module._is_hf_initialized = False  # type: ignore[assignment]
        yield
    finally:
        for one, value in before:
            if value is None:
                vars(one).pop("_is_hf_initialized", None)
            else:
                one._is_hf_initialized = value
