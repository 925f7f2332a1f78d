"""Whole models: loaded so that no weight is missing or wrong, saved as Endor."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import transformers

from pyendor import atomic, checkpoint, convert, exact, manifest, naming, selection, system
from pyendor.choice import MIN_SAVING, Values
from pyendor.convert import Conversion
from pyendor.errors import UsageError, quote
from pyendor.hf.classes import blamed_on, check_dtypes, class_of
from pyendor.hf.config import EndorConfig
from pyendor.hf.quantizer import EndorQuantizer
from pyendor.naming import METHOD
from pyendor.stamps import Stamp

# Of the options of from_pretrained those that say where a config is found.
_WHERE = (
    *("cache_dir", "force_download", "local_files_only", "proxies", "revision", "code_revision"),
    *("subfolder", "token", "trust_remote_code"),
)
# What quantizers leave in a config; the second in transformers 4.
_OF_QUANTIZERS = ("quantization_config", "_pre_quantization_dtype")
# Options that say nothing of the model, and what is set here.
_OURS = ("dtype", "variant", "quantization_config", "use_safetensors")


def from_pretrained(
    path: str | os.PathLike[str] | None,
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
        **options: of ``from_pretrained`` of transformers, such as ``device_map``, ``config`` or members of
            the config; they do what they do there. Unless ``dtype`` is among them, weights have the type that
            they were saved in.

    Returns:
        The model, in evaluation mode; with the option ``output_loading_info`` that and a dictionary, as from
        transformers.

    Raises:
        FormatError: the checkpoint breaks a rule, or a digest, if checked, does not match.
        UnsupportedError: it needs what this build does not have; or it was quantized before it was
            compressed by a method that transformers does not know (K-9).
        UsageError: weights are missing or left over, and ``strict``; transformers can make nothing of the
            config; ``keep_compressed`` or ``verify`` for weights that were quantized before.
        OSError: it cannot be read, or transformers finds no such model, or no weights of that variant.
        Exception: what transformers raises for options that it does not take, as it raises it.
    """
    where = {name: options[name] for name in _WHERE if name in options}
    given = options.get("config")
    stored = _stored(path, where)
    described = stored
    if isinstance(given, str | os.PathLike):
        described = _stored(given, where)
    elif isinstance(given, transformers.PretrainedConfig):
        members = {name: getattr(given, name, None) for name in ("architectures", "auto_map")}
        described = {name: value for name, value in members.items() if value is not None}
    elif not stored and model_class is None and path is not None and _lacks_config(path):
        raise FileNotFoundError(errno.ENOENT, f"there is no {naming.CONFIG}", str(path))
    check_dtypes(described, str(path))
    loader = model_class
    if loader is None:
        loader = class_of(described, trusted=options.get("trust_remote_code") is True)
    if options.get("dtype") is None and options.get("torch_dtype") is None:
        options["dtype"] = "auto"
    if _is_endor(path, stored, options.get("subfolder")):
        options["variant"] = ".".join(filter(None, (METHOD, selection.plain(options.get("variant")))))
        _quantize(path, options, stored, keep_compressed, verify)
    elif keep_compressed:
        options["quantization_config"] = EndorConfig(keep_compressed=True)
    if isinstance(loader, type) and issubclass(loader, transformers.PreTrainedModel):
        options.pop("code_revision", None)  # which only auto classes know
    wants_info = options.pop("output_loading_info", False)
    # What the caller has asked for may be at fault; without that only the checkpoint can be.
    plain = not model_args and given is None and not options.keys() - {*_WHERE, *_OURS}
    with blamed_on(str(path)) if plain else nullcontext():
        model, info = loader.from_pretrained(path, *model_args, output_loading_info=True, **options)
    if strict:
        exact.require(
            str(path),
            missing=info.get("missing_keys", ()),
            surplus=info.get("unexpected_keys", ()),
            mismatched=() if options.get("ignore_mismatched_sizes") else info.get("mismatched_keys", ()),
            errors=info.get("error_msgs", ()),
        )
    return (model, info) if wants_info else model


def _stored(path: Any, where: dict[str, Any]) -> dict[str, Any]:
    """The members of the config of a checkpoint; none if it has no config, as an adapter has not."""
    if path is None:
        return {}
    root = Path(path, where.get("subfolder") or "")
    if root.is_file():
        return manifest.read_config(root)
    if root.is_dir():
        if checkpoint.has_endor_weights(root):
            checkpoint.scan(root)
        config = root / naming.CONFIG
        return manifest.read_config(config) if config.is_file() else {}
    try:
        with blamed_on(str(path)):
            return dict(transformers.PretrainedConfig.get_config_dict(path, **where)[0])
    except OSError:
        return {}  # transformers says it better, when it looks for weights


def _lacks_config(path: Any) -> bool:
    """Whether a directory has no config, and no adapter of PEFT, whose model transformers finds."""
    return Path(path).is_dir() and not Path(path, "adapter_config.json").is_file()


def _is_endor(path: Any, config: dict[str, Any], subfolder: str | None) -> bool:
    """Whether a checkpoint is Endor, as its config says, or its weights where it has none."""
    found = config.get("quantization_config")
    if isinstance(found, dict) and found.get("quant_method") == METHOD:
        return True
    root = Path(path or "", subfolder or "")
    return path is not None and root.is_dir() and checkpoint.has_endor_weights(root)


def _quantize(
    path: Any, options: dict[str, Any], stored: dict[str, Any], keep_compressed: bool, verify: bool
) -> None:
    """Tells transformers how the weights of an Endor checkpoint are loaded.

    A quantizer that the caller asks for is given the dense model, and the config of that.
    """
    asked = options.get("quantization_config")
    inner = (manifest.quantization(stored) or {}).get("inner")
    if asked is not None and not isinstance(asked, EndorConfig):
        if keep_compressed or verify:
            raise UsageError(
                "keep_compressed and verify are for weights that are not quantized while loading"
            )
        if not isinstance(options.get("config"), transformers.PretrainedConfig):
            # As the auto classes do it: the config takes what it knows, the model gets the rest.
            set_aside = ("dtype", "torch_dtype", "quantization_config", "trust_remote_code", "config")
            kept = {name: options.pop(name) for name in set_aside if name in options}
            trust = {name: kept[name] for name in ("trust_remote_code",) if name in kept}
            place = options.get("config") or path
            where = {name: options[name] for name in _WHERE if name in options}
            config, rest = transformers.AutoConfig.from_pretrained(
                place, return_unused_kwargs=True, **options, **trust
            )
            options.clear()
            options.update({**rest, **where, **kept, "config": config})
        state = vars(options["config"])
        if (manifest.quantization(state) or {}).get("quant_method") == METHOD:
            options["config"] = copy.deepcopy(options["config"])
            del options["config"].quantization_config
            if inner is not None:
                options["config"].quantization_config = inner
        return
    if asked is not None:
        keep_compressed, verify = keep_compressed or asked.keep_compressed, verify or asked.verify
    if keep_compressed or verify or inner is None:
        options["quantization_config"] = EndorConfig(keep_compressed=keep_compressed, verify=verify)


def save_pretrained(
    model: Any,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
    **options: Any,
) -> Conversion | None:
    """Saves a model, such as one that was pruned just now, as an Endor checkpoint (spec 11).

    What ``save_pretrained`` of transformers writes is compressed and removed: for as long there has to be
    room for the dense weights beside the destination. A new directory appears complete or not at all. Into
    one without weights, as where a tokenizer was saved, the files are moved, the config last; what else is
    there stays. What else there is beside weights that are replaced stays as well.

    Args:
        model: a model of transformers; one whose weights are encoded is saved like one whose are not.
        path: the directory, which is made, with those above it.
        force: replace the weights that it holds.
        values: what to choose from for each tensor (W-10), as in :func:`pyendor.convert.compress`.
        min_saving: encode a tensor only where that saves this share of its size (W-7), as there.
        **options: of ``model.save_pretrained``, such as ``max_shard_size``. With ``is_main_process=False``
            nothing is written, as there: all processes call it, and the main one writes.

    Returns:
        What has been done, as :func:`pyendor.convert.compress` tells it; its source, the dense directory, is
        gone. None if this is not the main process.

    Raises:
        UsageError: the directory holds weights, and not ``force``; ``path`` is a file; or the option
            ``push_to_hub`` is given, which would publish the dense weights.
        OSError: writing failed; a directory that was there is as it was.
    """
    if options.get("push_to_hub"):
        raise UsageError("push_to_hub would publish the dense weights: save, then upload the directory")
    destination = Path(path)
    before = _before(destination, force=force)
    destination.absolute().parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, on the same file system.
    work = tempfile.mkdtemp(prefix=f".{destination.name}.dense-", dir=destination.absolute().parent)
    dense = Path(work, "dense")
    try:
        with _dense(model):
            model.save_pretrained(dense, **options)
        if not options.get("is_main_process", True):
            return None
        settings: dict[str, Any] = {"values": values, "min_saving": min_saving}
        if before is None or before.weights:
            for name in before.carried if before is not None else ():
                if not (dense / name).exists():
                    (dense / name).parent.mkdir(parents=True, exist_ok=True)
                    atomic.copy_file(Stamp.of(destination / name, destination), dense / name)
            return convert.compress(dense, destination, force=force, **settings)
        done = convert.compress(dense, Path(work, "endor"), **settings)
        _move_into(Path(work, "endor"), destination)
        return replace(done, destination=destination)
    finally:
        shutil.rmtree(work)


@dataclass(frozen=True)
class _Before:
    """What a destination that is there holds: whether weights, and files that stay."""

    weights: bool
    carried: tuple[PurePosixPath, ...] = ()


def _before(destination: Path, *, force: bool) -> _Before | None:
    """What there is at a destination; None if that is nothing, or an empty directory.

    Raises:
        UsageError: it is a file, or holds weights, and not ``force``.
    """
    if not destination.exists():
        return None
    if not destination.is_dir():
        raise UsageError(f"{quote(str(destination))} is a file: name a directory")
    if not any(destination.iterdir()):
        return None
    try:
        found = checkpoint.listing(destination)
    except UsageError:
        other = checkpoint.other_weights(destination)
        if other is not None:
            raise UsageError(
                f"{quote(str(destination))} holds other weights, {quote(other)}, and no loader could tell "
                "which of the two to read: remove them, or name another directory"
            ) from None
        return _Before(weights=False)
    if not force:
        raise UsageError(f"{quote(str(destination))} exists and holds weights: force=True replaces them")
    names = {naming.CONFIG, naming.DENSE_CONFIG}
    stay = (one for one in found.carried if not (str(one) in names or naming.is_kept_original(str(one))))
    return _Before(weights=True, carried=tuple(stay))


def _move_into(source: Path, destination: Path) -> None:
    """Moves all files of a directory into another one, the config last: without that no model is there."""
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: name.name == naming.CONFIG):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, destination / name)
    system.sync_directory(destination)


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
