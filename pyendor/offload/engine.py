"""Runs a model whose weights come and go: while a layer runs, its weights are lent what lies in a slot.

The parameters of the model are tensors that fetch themselves (:mod:`pyendor.offload.fetched`), so a use of
a weight at any other time gives the same numbers, later. One thread at a time runs the model, from the
beginning of its outermost call to the end: what is lent lies in memory that the next layer is decoded into.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from pyendor import layout, openmp
from pyendor.errors import UsageError
from pyendor.layout import Bytes
from pyendor.offload import plan
from pyendor.offload.device import Device
from pyendor.offload.disk import Disk, aligned
from pyendor.offload.fetched import Offloaded, Recent, owned, put
from pyendor.offload.layers import Layer, Weight
from pyendor.offload.plan import Tier
from pyendor.offload.report import Moved
from pyendor.offload.ring import Ring
from pyendor.offload.rows import Rows, RowsInMemory
from pyendor.offload.stored import Bundle, Stored
from pyendor.offload.turn import Turn
from pyendor.torch_bytes import from_bytes, to_bytes

# Bytes of dense weights that are kept of those that are used while their layer does not run.
_RECENT = 64 << 20


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
    """

    def __init__(
        self, layers: Sequence[Layer], tiers: Mapping[Layer, Tier], device: Device, disk: Disk, prefetch: int
    ) -> None:
        self.layers, self.tiers, self.device, self.disk, self.prefetch = layers, tiers, device, disk, prefetch
        self.kept_nbytes = 0
        self._wrapped: list[_Wrapped] = []
        self._turn, self._recent = Turn(), Recent(_RECENT)
        self._forwards = 0
        # What is lent: the layer, and whether its slot is still needed.
        self._running: tuple[Layer, bool] | None = None
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
        for layer in layers:
            for weight in layer.weights:
                weight.source.fetch = functools.partial(self._fetch, layer, weight)
            if layer.by_rows:
                rows = self._open_rows(layer)
                layer.weights[0].source.rows = functools.partial(self._look_up, layer.weights[0], rows)
        self._memory = {
            tensor: dict(tensor.memory)
            for layer in layers
            if layer.by_rows
            for tensor in layer.bundle.tensors
        }
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
        """Put the weights and what lends to them into the modules; after an error they have what they had."""
        owners = [owner for layer in self.layers for weight in layer.weights for owner in weight.owners]
        before = [(module, name, module._parameters[name]) for module, name in owners]
        try:
            self._attach(model)
        except BaseException:
            for module, name, parameter in before:
                module._parameters[name] = parameter
            raise

    def _attach(self, model: nn.Module) -> None:
        for layer in self.layers:
            for weight in layer.weights:
                put(weight.owners, Offloaded.parameter(weight.source, self.device.where))
        whole = [layer for layer in self.layers if not layer.by_rows]
        for layer in whole:
            self._wrap(layer.module, "forward", functools.partial(self._run_layer, layer))
        mine = {layer.module for layer in whole}
        for module in model.modules():
            around = module not in mine and not mine.isdisjoint(module.modules())
            if around and type(module).forward is not nn.Module.forward:
                self._wrap(module, "forward", self._run_forward)
            if (around or module is model) and callable(getattr(module, "generate", None)):
                self._wrap(module, "generate", self._run)
        for module in {
            owner for layer in self.layers for weight in layer.weights for owner, _ in weight.owners
        }:
            self._wrap(module, "_apply", functools.partial(self._convert_own, module))
        self._wrap(model, "_apply", self._convert)
        # At once, before all weights have been copied.
        model.__dict__ |= {"__deepcopy__": _refuse_copies, "__reduce_ex__": _refuse_copies}

    def close(self) -> None:
        """Take what runs the layers away, end the threads, close the files and give memory back."""
        while self._wrapped:
            self._wrapped.pop().remove()
        self._take_back()
        self._shut()
        self._recent.clear()
        self._memory.clear()

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

    def __deepcopy__(self, memo: object) -> NoReturn:
        """Refused: threads and files cannot be copied."""
        _refuse_copies()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refused, as above."""
        _refuse_copies()

    def _wrap(self, module: nn.Module, name: str, run: Callable[..., Any]) -> None:
        self._wrapped.append(_Wrapped(module, name, run))

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function, while no other thread runs anything of the model."""
        with self._turn:
            if self._turn.depth == 1:
                self._forwards = 0
                self._take_back()  # an interrupt may have left it
            return function(*args, **kwargs)

    def _run_forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._run(self._checked, function, *args, **kwargs)

    def _checked(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A forward; the outermost one hears of faults, and gives its caller plain tensors."""
        self._forwards += 1
        try:
            output = function(*args, **kwargs)
        finally:
            self._forwards -= 1
        if self._forwards:
            return output
        self.device.check()
        return owned(output)

    def _run_layer(self, layer: Layer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._run_forward(self._with_weights, layer, function, *args, **kwargs)

    def _with_weights(self, layer: Layer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of a layer; within that of another its weights are fetched one by one."""
        if self._running is not None:
            return function(*args, **kwargs)
        try:
            self._lend(layer)
            return owned(function(*args, **kwargs))
        finally:
            self._take_back()

    def _lend(self, layer: Layer) -> None:
        number = self._numbers[layer]
        ring = self._ring if self.tiers[layer] in self.device.streamed else None
        if ring is None and number not in self._held:
            _refuse_closed()
        place = self._held[number] if ring is None else ring.take(number)
        try:
            loans, lies_there = self.device.decode(layer, place)
        except BaseException:
            if ring is not None:
                ring.give_back()
            raise
        if ring is not None and not lies_there:
            ring.give_back()
        self._running = layer, lies_there
        for weight, loan in zip(layer.weights, loans, strict=True):
            weight.source.lend(loan)

    def _take_back(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        layer, lies_there = running
        for weight in layer.weights:
            weight.source.take_back()
        if lies_there and self._ring is not None and self.tiers[layer] in self.device.streamed:
            self._ring.give_back()

    def _convert(
        self, function: Callable[..., Any], change: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """``_apply``, by which models are moved and cast, if that leaves the weights as they are."""
        for layer in self.layers:
            for weight in layer.weights:
                some = torch.empty(0, dtype=weight.dtype, device=self.device.where)
                if change(some) is not some:
                    raise UsageError(
                        "an offloaded model cannot be moved, cast or shared: load it again, with device= or "
                        "dtype= of offload_model"
                    )
        return function(change, *args, **options)

    def _convert_own(
        self,
        module: nn.Module,
        function: Callable[..., Any],
        change: Callable[..., Any],
        *args: Any,
        **options: Any,
    ) -> Any:
        """The same of a module in it: weights that change are dense from now on, as a model may want some."""
        own = {name: one for name, one in module._parameters.items() if isinstance(one, Offloaded)}
        with torch.no_grad():
            changed = {name: change(one) for name, one in own.items()}
        try:
            module._parameters.update(dict.fromkeys(own))  # torch would give their memory to them
            return function(change, *args, **options)
        finally:
            for name, one in changed.items():
                parameter = one if isinstance(one, nn.Parameter) else nn.Parameter(one, requires_grad=False)
                module._parameters[name] = parameter

    def _fetch(self, layer: Layer, weight: Weight, own: bool) -> torch.Tensor:
        """A dense weight while its layer does not run."""
        if not self._shut.alive:
            _refuse_closed()
        found = None if own else self._recent.get(weight.source)
        if found is not None:
            return found
        memory, scratch = layout.allocate(weight.nbytes), None
        with torch.inference_mode(False), torch.no_grad(), openmp.used():
            dense = from_bytes(memory, weight.dtype, weight.shape)
            for number, start in weight.pieces:
                tensor = layer.bundle.tensors[number]
                parts = self._parts(tensor)
                if not weight.cast:
                    tensor.decode(parts, memory[start : start + tensor.dense_nbytes], stream=False)
                    continue
                scratch = layout.allocate(tensor.dense_nbytes)
                tensor.decode(parts, scratch, stream=False)
                source = from_bytes(scratch, tensor.torch_dtype, (-1,))
                first = start // weight.dtype.itemsize
                dense.view(-1)[first : first + source.numel()].copy_(source)
            dense = dense.to(self.device.where)
        if not own:
            self._recent.put(weight.source, dense)
        return dense

    def _parts(self, tensor: Stored) -> dict[str, Bytes]:
        """The parts of a tensor, from wherever they are."""
        for number, held in self._held.items():
            bundle = self.layers[number].bundle
            if tensor in bundle.tensors:
                parts = bundle.parts(bundle.tensors.index(tensor), held)
                return {role: _on_host(part) for role, part in parts.items()}
        if tensor.file is None:
            return self._memory[tensor]
        bundle = Bundle.of([tensor])
        memory = aligned(bundle.nbytes)
        self.disk.read(bundle.reads, memory)
        return bundle.parts(0, memory)

    def _look_up(self, weight: Weight, source: Rows, ids: torch.Tensor) -> torch.Tensor:
        """Rows of an embedding."""
        if not self._shut.alive:
            _refuse_closed()
        rows, inverse = torch.unique(ids, return_inverse=True)
        chosen = rows.tolist()
        if chosen and not 0 <= chosen[0] <= chosen[-1] < weight.shape[0]:
            raise IndexError(f"index out of range: the embedding has {weight.shape[0]} rows")
        data = layout.allocate(len(chosen) * weight.shape[1] * source.itemsize)
        source.get(chosen, data)
        table = from_bytes(data, source.tensor.torch_dtype, (len(chosen), weight.shape[1]))
        return table.to(device=self.device.where, dtype=weight.dtype)[inverse]

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


def _on_host(part: Any) -> Bytes:
    return part if isinstance(part, np.ndarray) else to_bytes(part.cpu())


def _refuse_closed() -> NoReturn:
    raise UsageError("the offloaded model was closed: its weights cannot be read any more")


def _refuse_copies(*_: object) -> NoReturn:
    raise UsageError(
        "an offloaded model cannot be copied or pickled: call offload_model again where another one is needed"
    )


class _Wrapped:
    """A method of a module, run by an engine until this is removed."""

    def __init__(self, module: nn.Module, name: str, run: Callable[..., Any]) -> None:
        self._module, self._name, self._run = module, name, run
        self._before = module.__dict__.get(name)
        self._function = getattr(module, name)
        functools.update_wrapper(self, self._function)
        module.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise UsageError(
                "an offloaded model cannot be compiled, traced or exported: its weights come and go; compile "
                "the model without offloading"
            )
        return self._run(self._function, *args, **kwargs)

    def remove(self) -> None:
        """Put back what was there, if nobody has put another one there."""
        if self._module.__dict__.get(self._name) is not self:
            return
        if self._before is None:
            del self._module.__dict__[self._name]
        else:
            self._module.__dict__[self._name] = self._before

    def __deepcopy__(self, memo: object) -> NoReturn:
        """Refused: a copy of the module would run the weights of this one."""
        _refuse_copies()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refused, as above."""
        _refuse_copies()
