"""Models larger than memory: weights stay compressed, and are fetched and decoded layer by layer.

    model = offload_model("model-endor/", host_memory="8GB")
    print(summary(model))
    model.generate(**tokenizer("Hello", return_tensors="pt"))

Comes in: a checkpoint directory, Endor or plain safetensors, or a model. Goes out: the model, to be used as
always. The method is that of the paper (arXiv 2406.11674): bytes cross the slow link compressed, and are
decoded behind it. See ``docs/offload.md``. Needs the extra ``pyendor[transformers]``.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import torch

from pyendor.errors import UsageError, quote
from pyendor.offload import empty, layers, load
from pyendor.offload.empty import without_weights
from pyendor.offload.engine import Engine
from pyendor.offload.layers import Layer
from pyendor.offload.report import Moved, Share, Summary

__all__ = ["Moved", "Share", "Summary", "close", "moved", "offload_model", "summary", "without_weights"]

_ENGINE = "_endor_offload"


def offload_model(
    model_or_dir: torch.nn.Module | str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    device: str | int | torch.device | None = "cpu",
    gpu_memory: int | str | None = None,
    host_memory: int | str | None = None,
    prefetch: int | None = None,
    read: str = "auto",
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    strict: bool = True,
    trust_remote_code: bool = False,
) -> torch.nn.Module:
    """A model whose weights are compressed until a layer runs, and lie where there is room for them.

    Args:
        model_or_dir: a checkpoint directory with a ``config.json`` of transformers, its weights Endor or
            plain safetensors; or a module, which is changed: its weights are taken out of it.
        weights: a directory or file with the weights of a module, which is best made within
            :func:`without_weights`; or of a directory's model, where they lie elsewhere. Without it a
            module's own weights are compressed.
        device: where it runs, ``"cpu"`` or ``"cuda"``; None for PyTorch's default device, which is the CPU
            unless it was set.
        gpu_memory: bytes of the GPU's memory for layers that stay there, compressed; also as ``"20GB"`` or
            ``"512MiB"``. Without it four fifths of what is free, less the buffers.
        host_memory: the same of host memory, pinned if there is a GPU. 0 for none: all is read from disk.
        prefetch: layers that are fetched while one runs; 0 for none. Without it 3, on a GPU 2, fewer where
            memory is short.
        read: how files are read: ``direct`` past the page cache, ``cache`` through it, ``gds`` to the memory
            of a GPU; ``auto`` finds out what there is and what is faster. :func:`summary` tells what is used.
        dtype: of a directory's model; without it what its config says.
        variant: which copy of the model to read from a directory that has several, as ``"fp16"``.
        strict: take no weights of which some are left over, as ``from_pretrained`` of
            :mod:`pyendor.transformers`. Weights that are missing are never accepted.
        trust_remote_code: run the code of a model that comes with its checkpoint. Without it such a model is
            refused; nothing is asked on the terminal.

    Returns:
        The model, in evaluation mode. It runs on one thread at a time, without gradients, and gives bit for
        bit what it gives with dense weights. :func:`summary` tells what lies where.

    Raises:
        FormatError: a file breaks a rule; also later, when a layer is used that does (B-11), on a GPU at the
            end of the forward.
        UsageError: weights are missing, left over or do not fit the model; transformers can make nothing of
            the config, or the model needs code that is not trusted; an argument makes no sense; there is not
            enough memory; the model is offloaded already; or later, a file was written to meanwhile.
        UnsupportedError: the weights need what this build does not have, were quantized before, or cannot be
            converted to a parameter.
        BackendUnavailableError: the device is a GPU, and there is no CUDA here.
        OSError: a file cannot be read; also later.
    """
    where = _check(device, gpu_memory, prefetch)
    if isinstance(model_or_dir, torch.nn.Module):
        model, path = model_or_dir, Path(weights) if weights is not None else None
        if getattr(model, _ENGINE, None) is not None:
            raise UsageError("the model is offloaded already")
    else:
        path = Path(model_or_dir if weights is None else weights)
        model = empty.build(Path(model_or_dir), dtype, trust_remote_code=trust_remote_code)
    with ExitStack() as stack:
        if path is None:
            pieces = load.of_module(model)
        else:
            opened = stack.enter_context(load.open_files(path, variant))
            pieces = load.of_files(model, opened, stack, path, strict=strict)
        chosen = load.open_device(where)
        try:
            parts = layers.cut(model, pieces, views=chosen.views)
            engine = load.start(parts, chosen, gpu_memory, host_memory, prefetch, read)
        except BaseException:
            chosen.close()
            raise
        try:
            engine.kept_nbytes = load.keep(model, parts.kept, pieces, chosen.where)
            engine.attach(model)
        except BaseException:
            engine.close()
            raise
    setattr(model, _ENGINE, engine)
    model.requires_grad_(False)
    return model.eval()


def summary(model: torch.nn.Module) -> Summary:
    """What lies where, and what a token will move; ``print`` it.

    Args:
        model: what :func:`offload_model` gave.

    Returns:
        Sizes in bytes and numbers of layers, by tier.

    Raises:
        UsageError: the model is not offloaded.
    """
    engine = _engine(model)
    whole = [layer for layer in engine.layers if not layer.by_rows]
    tiers = {}
    for tier in ("gpu", "host", "disk"):
        mine = [layer for layer in whole if engine.tiers[layer] == tier]
        tiers[tier] = Share(len(mine), sum(layer.bundle.stored for layer in mine), sum(map(_dense, mine)))
    # A device that has host memory streamed to it has another memory; and disks may write to that themselves.
    moving = [tiers[tier] for tier in ("host", "disk") if tier in engine.device.streamed]
    copied = tiers["host"].stored + (tiers["disk"].stored if engine.disk.mode != "gds" else 0)
    return Summary(
        device=str(engine.device.where),
        tiers=tiers,
        kept=engine.kept_nbytes,
        embeddings=sum(layer.bundle.stored for layer in engine.layers if layer.by_rows),
        buffers=engine.dense_nbytes + engine.slots_nbytes,
        token_disk=tiers["disk"].stored,
        token_link=copied if "host" in engine.device.streamed else 0,
        token_dense=sum(share.dense for share in moving),
        prefetch=engine.prefetch,
        read=engine.disk.mode,
        reason=engine.disk.reason,
    )


def moved(model: torch.nn.Module) -> Moved:
    """What has been moved since the model was loaded; ``after.since(before)`` is what lies between two.

    Args:
        model: what :func:`offload_model` gave.

    Returns:
        Bytes and seconds so far; what placing the layers took is not counted.

    Raises:
        UsageError: the model is not offloaded.
    """
    return _engine(model).moved()


def close(model: torch.nn.Module) -> None:
    """Ends the threads, closes the files and gives memory back: the model cannot run any more.

    Forgetting the model does the same. Closing twice is fine.

    Args:
        model: what :func:`offload_model` gave.

    Raises:
        UsageError: the model is not offloaded.
    """
    _engine(model).close()


def _check(
    device: str | int | torch.device | None, gpu_memory: int | str | None, prefetch: int | None
) -> torch.device:
    if prefetch is not None and prefetch < 0:
        raise UsageError(f"prefetch {prefetch}: 0 or more layers can be fetched ahead")
    try:
        where = torch.get_default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {quote(str(device))} is none: {error}") from error
    if where.type not in {"cpu", "cuda"}:
        raise UsageError(f"device {quote(str(device))}: models run offloaded on 'cpu' and 'cuda'")
    if gpu_memory is not None and where.type == "cpu":
        raise UsageError("gpu_memory is for a GPU: name it with device=")
    return where


def _engine(model: torch.nn.Module) -> Engine:
    engine = getattr(model, _ENGINE, None)
    if not isinstance(engine, Engine):
        raise UsageError("the model is not offloaded")
    return engine


def _dense(layer: Layer) -> int:
    return sum(weight.nbytes for weight in layer.weights)
