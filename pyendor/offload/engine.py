"""Runs a model whose weights come and go: hooks on its layers, which are there while their module runs.

Nothing of the model changes but parameters, for as long as their module's forward takes; before and after
they are on the meta device, where any use of them is an error.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pyendor import layout
from pyendor.errors import UsageError
from pyendor.offload import plan
from pyendor.offload.device import Device
from pyendor.offload.disk import Disk
from pyendor.offload.layers import Layer, Owner
from pyendor.offload.plan import Tier
from pyendor.offload.report import Moved
from pyendor.offload.ring import Ring
from pyendor.offload.rows import Rows, RowsInMemory
from pyendor.torch_bytes import from_bytes


class Engine:
    """The weights of one model.

    Args:
        layers: its layers.
        tiers: where each lies.
        device: what they run on.
        disk: where they are read from.
        prefetch: how many are fetched while one runs.

    Attributes:
        layers, tiers, device, disk, prefetch: as given.
        kept_nbytes: size of what is always there, beside the layers.
        slots_nbytes: size of all slots that layers are fetched into.
        rows_nbytes: bytes of embeddings that were read row by row.
    """

    def __init__(
        self, layers: Sequence[Layer], tiers: Mapping[Layer, Tier], device: Device, disk: Disk, prefetch: int
    ) -> None:
        self.layers, self.tiers, self.device, self.disk, self.prefetch = layers, tiers, device, disk, prefetch
        self.kept_nbytes = self.rows_nbytes = 0
        self._handles: list[Any] = []
        self._running: tuple[Layer, Callable[[], None], int] | None = None
        whole = [layer for layer in layers if not layer.by_rows]
        streamed = [layer for layer in whole if tiers[layer] in device.streamed]
        shelves = plan.shelves(streamed, prefetch)
        self.slots_nbytes = sum(shelf.total for shelf in shelves)
        dense = max((layer.dense_nbytes for layer in whole), default=0)
        self.dense_nbytes = dense + max((layer.scratch_nbytes for layer in whole), default=0)
        device.prepare(whole, dense, self.dense_nbytes - dense)
        # By number: a layer holds its module, which holds the hooks, and so this; the threads must not.
        self._numbers = {layer: number for number, layer in enumerate(layers)}
        self._held = {
            self._numbers[layer]: device.hold(layer.bundle, tiers[layer])
            for layer in whole
            if tiers[layer] != "disk"
        }
        self._rows = {layer: self._open_rows(layer) for layer in layers if layer.by_rows}
        for number in self._held:
            for tensor in layers[number].bundle.tensors:
                tensor.memory.clear()  # its bytes are in the bundle now
        held, fetch, bundles = self._held, device.fetch, [layer.bundle for layer in layers]
        slots: dict[int, list[Any]] = {}
        for shelf in shelves:
            from_disk = (layer.bundle.nbytes for layer in shelf.layers if tiers[layer] == "disk")
            most = max(from_disk, default=0)
            made = [device.slot(shelf.nbytes, most) for _ in range(shelf.count)]
            slots |= {self._numbers[layer]: made for layer in shelf.layers}
        self._ring: Ring[int, Any] | None = None
        if slots:
            order = [self._numbers[layer] for layer in streamed]
            self._ring = Ring(
                lambda key, slot: fetch(bundles[key], held.get(key), slot), slots, order, ahead=prefetch > 0
            )
        # Also when the model is just forgotten, and at the end of the program.
        self._shut = weakref.finalize(self, _shut, self._ring, device, disk, held)

    def attach(self, model: nn.Module) -> None:
        """Puts the hooks onto the modules."""
        for layer in self.layers:
            module = layer.module
            before = self._before_rows(layer) if layer.by_rows else self._before(layer)
            after = self._after(layer)
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
                module.register_forward_hook(after, always_call=True),
            ]
        self._handles.append(model.register_forward_hook(self._after_all))

    def close(self) -> None:
        """Takes the hooks away, ends the threads, closes the files and gives memory back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._release()
        self._shut()

    def moved(self) -> Moved:
        """What has been moved so far, and how long it took."""
        ring = self._ring
        return Moved(
            disk=self.disk.nbytes,
            link=self.device.moved,
            fetching=ring.busy if ring else 0.0,
            waiting=ring.waited if ring else 0.0,
            decoding=self.device.decoding,
        )

    def _before(self, layer: Layer) -> Callable[..., None]:
        number = self._numbers[layer]

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._claim(layer)
            ring = self._ring if self.tiers[layer] in self.device.streamed else None
            place = self._held[number] if ring is None else ring.take(number)
            try:
                weights, lies_there = self.device.decode(layer, place)
            except BaseException:
                if ring is not None:
                    ring.give_back()
                raise
            if ring is not None and not lies_there:
                ring.give_back()

            def release() -> None:
                for weight in layer.weights:
                    _assign(weight.owners, weight.placeholder)
                self.device.release()
                if ring is not None and lies_there:
                    ring.give_back()

            self._running = (layer, release, threading.get_ident())
            for weight, tensor in zip(layer.weights, weights, strict=True):
                parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
                _assign(weight.owners, parameter)

        return hook

    def _before_rows(self, layer: Layer) -> Callable[..., Any]:
        """Of an embedding: the rows that are looked up become its weight, and their numbers the input."""
        (weight,) = layer.weights
        source = self._rows[layer]
        dtype = source.tensor.torch_dtype

        def hook(module: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._claim(layer)
            ids = args[0] if args else kwargs["input"]
            rows, inverse = torch.unique(ids, return_inverse=True)
            chosen = rows.tolist()
            if chosen and not 0 <= chosen[0] <= chosen[-1] < weight.shape[0]:
                raise IndexError(f"index out of range: the embedding has {weight.shape[0]} rows")
            data = layout.allocate(len(chosen) * weight.shape[1] * source.itemsize)
            before = self.disk.nbytes
            source.get(chosen, data)
            self.rows_nbytes += self.disk.nbytes - before
            table = from_bytes(data, dtype, (len(chosen), weight.shape[1]))
            padding = module.padding_idx

            def release() -> None:
                _assign(weight.owners, weight.placeholder)
                module.padding_idx = padding

            self._running = (layer, release, threading.get_ident())
            # It matters for gradients alone, and would have to be one of the rows.
            module.padding_idx = None
            table = table.to(device=self.device.where, dtype=weight.dtype)
            _assign(weight.owners, nn.Parameter(table, requires_grad=False))
            if args:
                return (inverse, *args[1:]), kwargs
            return args, {**kwargs, "input": inverse}

        return hook

    def _after(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._running is not None and self._running[0] is layer:
                self._release()

        return hook

    def _after_all(self, module: nn.Module, args: Any, output: Any) -> None:
        self.device.check()

    def _claim(self, layer: Layer) -> None:
        """Makes sure that no other layer is running: dense memory is there for one."""
        if self._running is None:
            return
        thread = self._running[2]
        alive = any(one.ident == thread for one in threading.enumerate())
        if thread != threading.get_ident() and alive:
            raise UsageError("an offloaded model runs on one thread at a time")
        # An interrupt has left it behind.
        self._release()

    def _release(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running[1]()

    def _open_rows(self, layer: Layer) -> Rows:
        (tensor,) = layer.bundle.tensors
        # The same matrix may be held as the head that it is tied to; but it has to be in reach of the host.
        for number, held in self._held.items():
            bundle = self.layers[number].bundle
            if tensor in bundle.tensors and isinstance(held, np.ndarray):
                return RowsInMemory(tensor, bundle.parts(bundle.tensors.index(tensor), held))
        if tensor.file is None:
            return RowsInMemory(tensor, dict(tensor.memory))
        file, disk = tensor.file, self.disk
        return Rows(tensor, lambda start, out: disk.read_small(file, start, out))


def _shut(ring: Ring[int, Any] | None, device: Device, disk: Disk, held: dict[int, Any]) -> None:
    if ring is not None:
        ring.close()
    device.close()
    disk.close()
    held.clear()


def _assign(owners: Sequence[Owner], parameter: nn.Parameter) -> None:
    for module, name in owners:
        module._parameters[name] = parameter
