"""From the weights of a checkpoint or of a module to an engine: compressed, placed, and what stays loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from pyendor import selection
from pyendor.choice import MIN_SAVING
from pyendor.encoded import EncodedTensor
from pyendor.errors import BackendUnavailableError, UsageError, quote
from pyendor.offload import names, plan
from pyendor.offload.cpu import Cpu
from pyendor.offload.device import Device
from pyendor.offload.disk import Disk
from pyendor.offload.engine import Engine
from pyendor.offload.layers import Owner, Parts
from pyendor.offload.names import Piece
from pyendor.offload.stored import Stored
from pyendor.selection import Weights
from pyendor.torch_bytes import from_bytes, row_of, to_bytes
from pyendor.torch_tensor import EndorTensor

Amount = int | str | None


def open_files(path: Path, variant: str | None = None) -> Weights:
    """The weights of one copy of a model, or of the file itself; the caller closes them."""
    return selection.open_weights(path, variant)


def of_files(
    model: torch.nn.Module, weights: Weights, stack: ExitStack, path: Path, *, strict: bool
) -> dict[str, list[Piece]]:
    """The pieces of a model's parameters in open files; the stack keeps what has to be converted of them."""
    places = weights.places.items()
    stored = {name: Stored.of_file(one, one.layout.tensors[name]) for name, one in places}
    return names.assign(model, stored, stack, str(path), strict=strict)


def of_module(model: torch.nn.Module) -> dict[str, list[Piece]]:
    """A module's own weights, encoded where that makes them smaller."""
    pieces: dict[str, list[Piece]] = {}
    done: dict[int, list[Piece]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if value.device.type == "meta":
            found = f"parameter {quote(name)} is on the meta device"
            raise UsageError(f"{found}: say where its weights are, with weights=")
        if id(value) not in done:
            done[id(value)] = [Piece(_encode(name, value), 0)]
        pieces[name] = done[id(value)]
    return pieces


def keep(
    model: torch.nn.Module,
    owners: Mapping[str, Sequence[Owner]],
    pieces: Mapping[str, Sequence[Piece]],
    where: torch.device,
) -> int:
    """Loads what is always there; gives its size in bytes."""
    total = 0
    for name, holders in owners.items():
        for module, attribute in holders:
            old = module._parameters.get(attribute)
            goal = old if old is not None else module._buffers[attribute]
            assert goal is not None
            tensor = torch.empty(goal.shape, dtype=goal.dtype, device="cpu")
            for piece in pieces[name]:
                source = _load(piece.tensor)
                tensor.view(-1)[piece.start : piece.start + source.numel()].copy_(source)
            total += tensor.numel() * tensor.element_size()
            if old is not None:
                module._parameters[attribute] = torch.nn.Parameter(tensor.to(where), requires_grad=False)
            else:
                module._buffers[attribute] = tensor.to(where)
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[attribute] = buffer.to(where)
    return total


def open_device(where: torch.device) -> Device:
    """A processor.

    Raises:
        BackendUnavailableError: there is none of that kind.
    """
    if where.type == "cpu":
        return Cpu()
    from pyendor import cuda
    from pyendor.offload.gpu import Gpu
    from pyendor.offload.streams import Cuda

    if not torch.cuda.is_available():
        why: str | None = cuda.unavailable() or "this build of PyTorch has no CUDA, or finds no device"
    else:
        why = cuda.unavailable(torch.cuda.current_device() if where.index is None else where.index)
    if why is not None:
        raise BackendUnavailableError(f"no model runs on {where}: {why}")
    return Gpu(Cuda(where))


def start(parts: Parts, device: Device, gpu: Amount, host: Amount, prefetch: int | None, read: str) -> Engine:
    """The engine for these layers. If there is an error the device remains the caller's, and no file is open.

    Raises:
        UsageError: there is not enough memory.
    """
    whole = [layer for layer in parts.layers if not layer.by_rows]
    dense = max((layer.dense_nbytes + layer.scratch_nbytes for layer in whole), default=0)
    free, free_on_host = device.free_memory(), plan.free_host_memory()
    if prefetch is None:
        prefetch = plan.layers_ahead(whole, dense, free_on_host if free is None else free, device.ahead)
    slots = sum(shelf.total for shelf in plan.shelves(whole, prefetch))
    on_gpu = 0 if free is None else _budget(gpu, "gpu_memory", free, slots + dense)
    buffers = slots + dense if free is None else slots
    on_host = _budget(host, "host_memory", free_on_host, buffers)
    tiers = plan.place(parts.layers, on_gpu, on_host)
    from_disk = [layer for layer in whole if tiers[layer] == "disk"]
    tensors = [tensor for layer in parts.layers for tensor in layer.bundle.tensors]
    files = {tensor.file for tensor in tensors if tensor.file is not None}
    disk = Disk(files, [one for layer in from_disk for one in layer.bundle.reads], read)
    try:
        device.connect(disk, read)
        engine = Engine(parts.layers, tiers, device, disk, prefetch)
    except BaseException:
        disk.close()
        raise
    disk.nbytes = device.moved = 0
    return engine


def _budget(amount: Amount, what: str, free: int | None, buffers: int) -> int:
    """Bytes for layers that stay.

    Raises:
        UsageError: not even the buffers fit into what is free.
    """
    if free is not None and buffers > free:
        raise UsageError(
            f"buffers for layers on their way need {buffers / 1e9:.2f} GB, {free / 1e9:.2f} GB are free: a "
            "smaller prefetch needs less"
        )
    if amount is not None:
        return plan.nbytes(amount, what)
    return max(0, plan.default_share(free) - buffers) if free is not None else 0


def _encode(name: str, value: torch.Tensor) -> Stored:
    row, shape = row_of(value.dtype), tuple(value.shape)
    if isinstance(value.data, EndorTensor):
        return Stored.of_memory(value.data.to_encoded(name))
    dense = to_bytes(value.detach().contiguous())
    if row.encodable and len(shape) > 1:
        encoded = EncodedTensor.encode(name, row.name, shape, dense, digest=False)
        if encoded.nbytes <= (1 - MIN_SAVING) * dense.size:
            return Stored.of_memory(encoded)
    return Stored.of_dense(name, row.name, shape, dense)


def _load(tensor: Stored) -> torch.Tensor:
    return from_bytes(tensor.load(), tensor.torch_dtype, tensor.shape).view(-1)
