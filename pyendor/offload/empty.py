"""A Transformers model of a checkpoint directory, whole but for its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pyendor import manifest
from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.naming import CONFIG, METHOD


def build(root: Path, dtype: torch.dtype | None, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model that a directory's ``config.json`` describes, its parameters on the meta device.

    Buffers are real: those that no checkpoint holds, such as rotary frequencies, are computed by the model.

    Args:
        root: a checkpoint directory; nothing but JSON of it is read, and code if that is trusted.
        dtype: of the parameters; None for what the config says.
        trust_remote_code: run the code that comes with the checkpoint.

    Raises:
        UsageError: there is no config, or transformers can make nothing of it; or the model needs code of its
            own, and that is not trusted.
        UnsupportedError: the weights were quantised before.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError("models of directories need transformers: pip install transformers") from error
    from pyendor.hf import classes

    if not (root / CONFIG).is_file():
        raise UsageError(f"{quote(str(root))} has no {CONFIG}: pass the model and weights= instead")
    members = manifest.read_config(root / CONFIG)
    classes.check_dtypes(members, str(root / CONFIG))
    if not trust_remote_code and classes.needs_code(members):
        raise UsageError(
            f"the model of {quote(str(root))} is not one of transformers, but of code that comes with it: "
            "read "
            "that, and pass trust_remote_code=True to run it"
        )
    _require_known(members, root, trust_remote_code)
    kind = classes.class_of(members, trusted=trust_remote_code)
    with classes.blamed_on(str(root)):
        # False, not None: with that transformers would ask on the terminal.
        config = transformers.AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        if kind is transformers.AutoModel and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            kind = transformers.AutoModelForCausalLM  # the config names no class
        if dtype is None:
            dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
            dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        with without_weights():
            if issubclass(kind, transformers.PreTrainedModel):
                model = kind._from_config(config, dtype=dtype)
            else:
                model = kind.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        _keep_precision(model, dtype)
        if (root / "generation_config.json").is_file() and hasattr(model, "generation_config"):
            model.generation_config = transformers.GenerationConfig.from_pretrained(root)
    model.eval()
    assert isinstance(model, torch.nn.Module)
    return model


@contextmanager
def without_weights() -> Iterator[None]:
    """While this lasts, modules are made with parameters on the meta device; their buffers are real.

    For a module whose weights :func:`~pyendor.offload.offload_model` is to find in a file; no memory is
    allocated for these. It mirrors ``init_empty_weights`` of accelerate, and like that it changes how modules
    are made on all threads.

        with without_weights():
            model = Model()
        model = offload_model(model, "model.safetensors")
    """
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        # What is allocated to be filled later is not allocated: torch.nn makes parameters so.
        with _Unallocated():
            yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


class _Unallocated(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _require_known(config: dict[str, Any], root: Path, trust_remote_code: bool) -> None:
    found = manifest.quantization(config) or {}
    method = found.get("quant_method") if found.get("quant_method") != METHOD else found.get("inner")
    if method:
        named = method.get("quant_method") if isinstance(method, dict) else method
        raise UnsupportedError(f"{quote(str(root))} is quantised by {quote(str(named))}: not supported here")
    if config.get("auto_map") and not trust_remote_code:
        warnings.warn(
            f"{root} comes with code of its own, which is not run: the model is that of transformers",
            stacklevel=4,
        )


def _keep_precision(model: Any, dtype: torch.dtype) -> None:
    """Gives parameters that a model wants in float32 this type, as ``from_pretrained`` does."""
    plan = model._get_dtype_plan(dtype) if hasattr(model, "_get_dtype_plan") else {}
    for name, parameter in model.named_parameters():
        if any(f".{part}." in f".{name}." for part in plan) and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
