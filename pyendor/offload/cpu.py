"""Layers on the CPU: read from disk into a slot, or held in memory, and decoded as they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyendor import openmp
from pyendor.encoded import STREAM
from pyendor.layout import Bytes
from pyendor.offload.disk import Disk, aligned
from pyendor.offload.fetched import Loan, Stopwatch
from pyendor.offload.layers import Layer, Weight
from pyendor.offload.plan import Tier
from pyendor.offload.stored import Bundle


class Cpu:
    """The processor that Python runs on; what a slot holds is an array of bytes."""

    def __init__(self) -> None:
        self.where = torch.device("cpu")
        self.views = True
        self.streamed: frozenset[Tier] = frozenset({"disk"})
        # Two can be read, and a third be ready, while a layer uses its slot.
        self.ahead = 3
        self.moved = 0
        self._watch = Stopwatch()
        self._disk: Disk | None = None
        self._dense = aligned(0)
        self._scratch = aligned(0)

    @property
    def decoding(self) -> float:
        """As of :class:`~pyendor.offload.device.Device`."""
        return self._watch.seconds

    def free_memory(self) -> int | None:
        """As of :class:`~pyendor.offload.device.Device`."""
        return None

    def connect(self, disk: Disk, read: str) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        self._disk = disk

    def prepare(self, layers: Sequence[Layer], dense_nbytes: int, scratch_nbytes: int) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        self._dense, self._scratch = aligned(dense_nbytes), aligned(scratch_nbytes)

    def slot(self, nbytes: int, from_disk: int) -> Bytes:
        """As of :class:`~pyendor.offload.device.Device`."""
        return aligned(nbytes)

    def hold(self, bundle: Bundle, tier: Tier) -> Bytes:
        """As of :class:`~pyendor.offload.device.Device`."""
        assert self._disk is not None
        return fill(bundle, aligned(bundle.nbytes), self._disk)

    def fetch(self, bundle: Bundle, held: Bytes | None, slot: Bytes) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        assert self._disk is not None
        self._disk.read(bundle.reads, slot)

    def decode(self, layer: Layer, place: Bytes) -> tuple[list[torch.Tensor | Loan], bool]:
        """As of :class:`~pyendor.offload.device.Device`."""
        # What is decoded first is used when all has been decoded: no cache keeps it that long.
        stream = layer.dense_nbytes >= STREAM
        weights = [self._weight(layer, weight, place, stream) for weight in layer.weights]
        in_slot = (
            weight.at is None or isinstance(loan, Loan)
            for weight, loan in zip(layer.weights, weights, strict=True)
        )
        return weights, any(in_slot)

    def _weight(self, layer: Layer, weight: Weight, place: Bytes, stream: bool) -> torch.Tensor | Loan:
        if weight.at is None:
            ((number, _),) = weight.pieces
            return weight.view(torch.from_numpy(place), layer.bundle.places[number]["values"][0])
        if (stored := layer.as_stored(weight)) is not None:
            ((number, _),) = weight.pieces
            room = weight.view(torch.from_numpy(self._dense), weight.at)
            return Loan(stored, layer.bundle.parts(number, place), room, self._watch)
        with self._watch.running(), openmp.used():
            return self._decoded(layer, weight, weight.at, place, stream)

    def _decoded(self, layer: Layer, weight: Weight, at: int, place: Bytes, stream: bool) -> torch.Tensor:
        view = weight.view(torch.from_numpy(self._dense), at)
        for number, start in weight.pieces:
            tensor = layer.bundle.tensors[number]
            parts = layer.bundle.parts(number, place)
            if not weight.cast:
                low = at + start
                tensor.decode(parts, self._dense[low : low + tensor.dense_nbytes], stream=stream)
                continue
            scratch = self._scratch[: tensor.dense_nbytes]
            tensor.decode(parts, scratch, stream=False)
            source = torch.from_numpy(scratch).view(tensor.torch_dtype)
            first = start // weight.dtype.itemsize
            view.view(-1)[first : first + source.numel()].copy_(source)
        return view

    def check(self) -> None:
        """As of :class:`~pyendor.offload.device.Device`; a fault is found when a layer is decoded."""

    def close(self) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        self._dense = self._scratch = aligned(0)


def fill(bundle: Bundle, memory: Bytes, disk: Disk) -> Bytes:
    """Fills memory with a layer's compressed bytes, wherever they are."""
    bundle.fill(memory)
    if bundle.reads:
        disk.read(bundle.reads, memory)
    return memory
