"""Whole models: loaded so that no weight is missing or wrong, saved as Endor."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import transformers

from pyendor import checkpoint, convert, selection
from pyendor.checkpoint import METHOD
from pyendor.choice import MIN_SAVING, Values
from pyendor.convert import Conversion
from pyendor.errors import UsageError, quote
from pyendor.hf.config import EndorConfig
from pyendor.hf.quantizer import EndorQuantizer

# Of the options of from_pretrained those that say where a config is found.
_WHERE = (
    *("cache_dir", "force_download", "local_files_only", "proxies", "revision", "code_revision"),
    *("subfolder", "token", "trust_remote_code"),
)
# What quantizers leave in a config; the second in transformers 4.
_OF_QUANTIZERS = ("quantization_config", "_pre_quantization_dtype")
_SHOWN = 5


def from_pretrained(
    path: str | os.PathLike[str],
    *model_args: Any,
    model_class: Any = None,
    keep_compressed: bool = False,
    verify: bool = False,
    strict: bool = True,
    **options: Any,
) -> Any:
    """Loads an Endor checkpoint as the model that it is of, as ``from_pretrained`` of transformers does.

    Args:
        path: a directory, or the name of a model on the Hub. A dense checkpoint is loaded too.
        *model_args: of ``from_pretrained`` of transformers, for the constructor of the model.
        model_class: an (auto) class of transformers; by default that which the config names.
        keep_compressed: keep weights encoded in memory, as :class:`~pyendor.torch_tensor.EndorTensor`, and
            decode them whenever they are used; those of a dense checkpoint are encoded when they have been
            loaded, where that makes them smaller.
        verify: check the digests of tensors that are read whole (D-3); a dense checkpoint has none.
        strict: take no checkpoint that lacks weights of the model, or has others besides.
        **options: of ``from_pretrained`` of transformers, such as ``device_map``. Unless ``dtype`` is among
            them, weights have the type that they were saved in.

    Returns:
        The model, in evaluation mode; with the option ``output_loading_info`` that and a dictionary, as from
        transformers.

    Raises:
        FormatError: the checkpoint breaks a rule, or a digest, if checked, does not match.
        UnsupportedError: it needs what this build does not have; or it was quantized before it was
            compressed by a method that transformers does not know (K-9).
        UsageError: weights are missing or left over, or have another shape and transformers was told to go
            on, and ``strict``; there are no weights in the directory; ``keep_compressed`` or ``verify`` for
            weights that were quantized before.
        RuntimeError: weights have another shape, as transformers says it.
        OSError: it cannot be read, or transformers finds no such model.
    """
    root = Path(path, options.get("subfolder") or "")
    if root.is_dir() and checkpoint.has_endor_weights(root):
        checkpoint.scan(root)
    config = options.pop("config", None)
    if config is None:
        where = {name: options[name] for name in _WHERE if name in options}
        config = transformers.AutoConfig.from_pretrained(path, **where)
    found = getattr(config, "quantization_config", None) or {}
    found = found if isinstance(found, dict) else found.to_dict()
    if found.get("quant_method") == METHOD:
        options["variant"] = ".".join(filter(None, (METHOD, selection.plain(options.get("variant")))))
        if keep_compressed or verify or found.get("inner") is None:
            options["quantization_config"] = EndorConfig(keep_compressed=keep_compressed, verify=verify)
    elif keep_compressed:
        options["quantization_config"] = EndorConfig(keep_compressed=True)
    options.setdefault("dtype", "auto")
    loader = model_class if model_class is not None else _class_of(config)
    wants_info = options.pop("output_loading_info", False)
    model, info = loader.from_pretrained(
        path, *model_args, config=config, output_loading_info=True, **options
    )
    if strict:
        _check(info, str(path))
    return (model, info) if wants_info else model


def save_pretrained(
    model: Any,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
    **options: Any,
) -> Conversion:
    """Saves a model, such as one that was pruned just now, as an Endor checkpoint (spec 11).

    What ``save_pretrained`` of transformers writes is compressed and removed: for as long there has to be
    room for the dense weights beside the destination. The directory appears complete or not at all.

    Args:
        model: a model of transformers; one whose weights are encoded is saved like one whose are not.
        path: the directory, which is made, with those above it.
        force: replace it if it exists.
        values: what to choose from for each tensor (W-10), as in :func:`pyendor.convert.compress`.
        min_saving: encode a tensor only where that saves this share of its size (W-7), as there.
        **options: of ``model.save_pretrained``, such as ``max_shard_size``.

    Returns:
        What has been done, as :func:`pyendor.convert.compress` tells it; its source, the dense directory, is
        gone.

    Raises:
        UsageError: the directory exists, and not ``force``; or the option ``push_to_hub`` is given, which
            would publish the dense weights.
        OSError: writing failed; a directory that was there is as it was.
    """
    if options.get("push_to_hub"):
        raise UsageError("push_to_hub would publish the dense weights: save, then upload the directory")
    destination = Path(path)
    destination.absolute().parent.mkdir(parents=True, exist_ok=True)
    dense = tempfile.mkdtemp(prefix=f".{destination.name}.dense-", dir=destination.absolute().parent)
    try:
        with _dense(model):
            model.save_pretrained(dense, **options)
        return convert.compress(Path(dense), destination, force=force, values=values, min_saving=min_saving)
    finally:
        shutil.rmtree(dense)


@contextmanager
def _dense(model: Any) -> Iterator[None]:
    """While this lasts, transformers saves the model as a dense one."""
    quantizer = getattr(model, "hf_quantizer", None)
    ours = quantizer if isinstance(quantizer, EndorQuantizer) else None
    state = vars(model.config)
    removed = {key: state.pop(key) for key in _OF_QUANTIZERS if key in state} if ours is not None else {}
    try:
        with ours.saving() if ours is not None else nullcontext():
            yield
    finally:
        state.update(removed)


def _class_of(config: Any) -> Any:
    """The class that a model was saved from, or what of it its config names."""
    remote = getattr(config, "auto_map", None) or {}
    for auto in ("AutoModelForCausalLM", "AutoModel"):
        if auto in remote:
            return getattr(transformers, auto)
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    return transformers.AutoModel


def _check(info: dict[str, Any], path: str) -> None:
    """That the weights of the checkpoint are those of the model."""
    faults = [
        f"{what}: {', '.join(quote(str(key[0] if isinstance(key, tuple) else key)) for key in keys[:_SHOWN])}"
        + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
        for what, keys in (
            ("it lacks", sorted(info.get("missing_keys", ()))),
            ("it has besides", sorted(info.get("unexpected_keys", ()))),
            ("of another shape are", sorted(info.get("mismatched_keys", ()), key=str)),
            ("errors", sorted(info.get("error_msgs", ()))),
        )
        if keys
    ]
    if faults:
        raise UsageError(
            f"{quote(path)} does not hold exactly the weights of the model; {'; '.join(faults)}. Name the "
            "model_class that it is of, or take what is there with strict=False"
        )
