"""The class of the model that a ``config.json`` describes; what the file says is not trusted.

A name of the file is only ever looked up to find a model class or a type of elements. Code that comes with a
checkpoint is for transformers to run, if the caller trusts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from pyendor.errors import EndorError, UsageError, quote

_DTYPES = ("dtype", "torch_dtype")


def class_of(config: Mapping[str, Any], *, trusted: bool) -> Any:
    """The class that a model was saved from, or an auto class of transformers that finds it.

    Args:
        config: the members of ``config.json``.
        trusted: whether code of the checkpoint may be run: then its classes come first.

    Returns:
        A subclass of ``PreTrainedModel``, or an auto class; ``AutoModel`` if the config names neither.
    """
    names = config.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []
    own = next(filter(None, map(_model_class, names)), None)
    if own is not None and not trusted:
        return own
    return _remote(config.get("auto_map"), names) or own or transformers.AutoModel


def _model_class(name: str) -> Any:
    """The model class of transformers of that name; None if there is none, whatever else has the name."""
    try:
        found = getattr(transformers, name, None)
    except (ImportError, RuntimeError):  # it is in transformers, and needs what is not installed
        return None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _remote(auto_map: Any, architectures: list[str]) -> Any:
    """The auto class for the code of a checkpoint: the one for its architecture, else for language models."""
    if not isinstance(auto_map, dict):
        return None
    found = {}
    for key, reference in auto_map.items():
        auto = (
            getattr(transformers, key, None) if isinstance(key, str) and key.startswith("AutoModel") else None
        )
        if isinstance(auto, type) and issubclass(auto, _BaseAutoModelClass) and isinstance(reference, str):
            found[auto] = reference.rpartition(".")[2]
    for auto, name in found.items():
        if name in architectures:
            return auto
    wanted = [
        transformers.AutoModelForCausalLM,
        *(auto for auto in found if auto is not transformers.AutoModel),
    ]
    return next((auto for auto in (*wanted, transformers.AutoModel) if auto in found), None)


def needs_code(config: Mapping[str, Any]) -> bool:
    """True if transformers does not know the type of a model, whose checkpoint has code for it."""
    kind = config.get("model_type")
    return bool(config.get("auto_map")) and not (
        isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
    )


def check_dtypes(config: Mapping[str, Any], path: str) -> None:
    """Require that the types that a config and those in it name are types of PyTorch.

    Raises:
        UsageError: one is not.
    """
    for key in _DTYPES:
        named = config.get(key)
        for value in named.values() if isinstance(named, dict) else [named]:
            if value is not None and not isinstance(value, torch.dtype) and _dtype(value) is None:
                raise UsageError(f"{quote(path)}: {key} {quote(str(value))} is no dtype of PyTorch")
    for key, value in config.items():
        if isinstance(value, dict) and str(key).endswith("_config"):
            check_dtypes(value, path)


def _dtype(name: Any) -> torch.dtype | None:
    found = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    return found if isinstance(found, torch.dtype) else None


@contextmanager
def blamed_on(path: str) -> Iterator[None]:
    """Errors of transformers that say that it can make nothing of a config, as UsageErrors."""
    try:
        yield
    except (EndorError, OSError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise UsageError(f"transformers cannot make the model of {quote(path)}: {found}") from error
