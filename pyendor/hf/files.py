"""Lets transformers and accelerate open Endor files: their ``safe_open`` gets logical tensors from these.

Both read weights through ``safe_open`` and slices of what it opens, and do everything else (names, experts
that are fused, dtypes, devices, parallel shards, offload) with what they get. So this one place is enough,
and a tensor of Endor goes every way that a dense one goes. Plain files are opened as before.

Their modules hold ``safe_open`` under its name; there is no public way to give them another one. What is not
found under its name in a version of theirs is not replaced, and then the shape of an encoded tensor is wrong
for whoever meets it, which is an error.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyendor import file, layout, metadata, selection
from pyendor import torch as front
from pyendor.checkpoint import has_endor_weights
from pyendor.errors import UnsupportedError
from pyendor.torch_tensor import EndorTensor

# The first is the one that everything depends on; the others are not in every version.
REQUIRED = "transformers.modeling_utils"
OTHERS = (
    "transformers.integrations.accelerate",
    "transformers.modeling_layers",
    "accelerate.utils.offload",
    "accelerate.utils.modeling",
)
# Those that hold accelerate's function that loads a directory into a model.
HOLDERS = ("accelerate.utils.modeling", "accelerate.utils", "accelerate.big_modeling", "accelerate")
_IN_MODEL = "load_checkpoint_in_model"


class Loading(Protocol):
    """What loads a model, for as long as it is there."""

    @property
    def keep_compressed(self) -> bool: ...

    @property
    def verify(self) -> bool: ...


_loading: ContextVar[weakref.ref[Loading] | None] = ContextVar("_loading", default=None)


def begin(loading: Loading) -> None:
    """Says how files that this thread opens from now on are read, as long as ``loading`` is there."""
    _loading.set(weakref.ref(loading))


def end() -> None:
    """Takes back what :func:`begin` said."""
    _loading.set(None)


def _current() -> Loading | None:
    reference = _loading.get()
    return reference() if reference is not None else None


def safe_open(
    filename: str | os.PathLike[str], framework: str = "pt", device: Any = "cpu", **options: Any
) -> Any:
    """What ``safetensors.safe_open`` gives, for an Endor file the same of its logical tensors."""
    stock: Any = safetensors.safe_open(filename, framework, device=device, **options)
    if not is_endor(stock):
        return stock
    stock.__exit__(None, None, None)
    return Opened(filename, framework, device, _current())


def load_file(filename: str | os.PathLike[str], device: Any = "cpu", **options: Any) -> dict[str, Tensor]:
    """What ``safetensors.torch.load_file`` gives, also for an Endor file."""
    with safetensors.safe_open(filename, "pt") as stock:
        ours = is_endor(stock)
    load = front.load_file if ours else safetensors.torch.load_file
    return load(filename, device, **options)


def load(data: bytes) -> dict[str, Tensor]:
    """What ``safetensors.torch.load`` gives, also for the bytes of an Endor file."""
    with file.open_bytes(bytes(data)) as opened:
        ours = opened.layout.version is not None
    return front.load(data) if ours else safetensors.torch.load(data)


def save_file(
    tensors: dict[str, Tensor], filename: str | os.PathLike[str], *args: Any, **options: Any
) -> None:
    """What ``safetensors.torch.save_file`` does; as Endor while an Endor checkpoint is being loaded.

    Transformers saves so what it has fused and offloads to disk.
    """
    ours = _current() is not None or any(isinstance(one, EndorTensor) for one in tensors.values())
    save = front.save_file if ours else safetensors.torch.save_file
    save(tensors, filename, *args, **options)


def is_endor(stock: Any) -> bool:
    """Whether a file that safetensors has opened is Endor, or was before it lost its metadata."""
    if metadata.KEY in (stock.metadata() or {}):
        return True
    return any(name.endswith(metadata.LOST_METADATA) for name in stock.keys())  # noqa: SIM118  no mapping


class Opened(front.safe_open):
    """An open Endor file, for the way that a model is being loaded."""

    def __init__(
        self, filename: str | os.PathLike[str], framework: str, device: Any, loading: Loading | None
    ) -> None:
        super().__init__(filename, framework, device, verify=loading is not None and loading.verify)
        self._keep = loading is not None and loading.keep_compressed

    def get_slice(self, name: str) -> front.TensorSlice:
        """A tensor to be indexed; as a whole it is still encoded where it is to stay so."""
        kind = KeptSlice if self._keep and self._file.tensor(name).meta is not None else front.TensorSlice
        return kind(self._file, self._file.tensor(name), self._device, verify=self._verify)


class KeptSlice(front.TensorSlice):
    """An encoded tensor that stays so where it is asked for as a whole."""

    def __init__(
        self, opened: file.File, tensor: layout.Tensor, device: torch.device, *, verify: bool = False
    ) -> None:
        super().__init__(opened, tensor, device, verify=verify)

    def __getitem__(self, index: Any) -> Tensor:
        if index is not Ellipsis:
            return super().__getitem__(index)
        encoded = self._file.get_encoded(self._tensor.name)
        if self._verify:
            encoded.check_digest()
        encoded.validate()  # now, when it has a name and a place in a file
        return EndorTensor.from_encoded(encoded).to(self._device)


def in_model(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``load_checkpoint_in_model`` of accelerate, which also finds the weights of an Endor directory."""

    @functools.wraps(stock)
    def load_checkpoint_in_model(model: Any, checkpoint: Any, *args: Any, **options: Any) -> Any:
        if os.path.isdir(checkpoint) and has_endor_weights(Path(checkpoint)):
            chosen = selection.select(Path(checkpoint))
            checkpoint = str(chosen.root / (chosen.index or chosen.names[0]))
        return stock(model, checkpoint, *args, **options)

    return load_checkpoint_in_model


def install() -> None:
    """Puts :func:`safe_open` and its kin in the place of those that the modules above hold.

    Raises:
        UnsupportedError: transformers does not read weights in the way that is known here.
    """
    required = importlib.import_module(REQUIRED)
    if not hasattr(required, "safe_open"):
        found = f"transformers {importlib.import_module('transformers').__version__}"
        raise UnsupportedError(f"{found} reads weights in another way than the versions known here")
    replacements: dict[str, Callable[..., Any]] = {
        "safe_open": safe_open,
        "safe_load_file": load_file,
        "_safe_load_bytes": load,
        "save_file": save_file,
    }
    for name in (REQUIRED, *OTHERS):
        module = _module(name)
        for attribute, replacement in replacements.items():
            if hasattr(module, attribute):
                setattr(module, attribute, replacement)
    stock = getattr(_module("accelerate.utils.modeling"), _IN_MODEL, None)
    if stock is not None:
        ours = in_model(stock)
        for name in HOLDERS:
            module = _module(name)
            if getattr(module, _IN_MODEL, None) is stock:
                setattr(module, _IN_MODEL, ours)


@functools.cache
def _module(name: str) -> Any:
    """A module, None if there is none."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.import_module(name)
    except ImportError:  # another version, or without what it needs
        return None
