"""Layers on a CUDA device: copied compressed, on a stream of their own, and decoded there by one launch.

The host waits for nothing but, on the fetching threads, for a disk and for a slot; and once, when the model
has run, for what the kernels have found wrong. Memory is allocated when a model is loaded, and never again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyendor import cuda
from pyendor.errors import UsageError
from pyendor.layout import Bytes
from pyendor.offload.cpu import fill
from pyendor.offload.disk import Disk, aligned
from pyendor.offload.gds import TRIAL, Gds, open_gds
from pyendor.offload.layers import Layer
from pyendor.offload.plan import Tier
from pyendor.offload.stored import PAGE, Bundle, Stored
from pyendor.offload.streams import Streams
from pyendor.torch_bytes import memory_of


@dataclass(eq=False)
class Slot:
    """Memory for a layer on its way.

    Attributes:
        memory: on the device.
        staging: pinned memory that a file is read into; None where none is.
        copied: the mark behind the copy to the device.
        decoded: the mark behind the kernel that reads it.
    """

    memory: torch.Tensor
    copied: Any
    decoded: Any
    staging: Bytes | None = None


# A launch of kernels, or a copy: where to and from where.
_Step = cuda.Launch | tuple[torch.Tensor, torch.Tensor]


@dataclass(eq=False)
class _Ready:
    """All that there is to do for a layer that lies in a certain place, prepared once.

    Attributes:
        steps: what makes the weights from it, one after the other.
        weights: the weights of the layer.
    """

    steps: list[_Step] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)


class Gpu:
    """A CUDA device.

    Args:
        streams: what it is driven by.
    """

    def __init__(self, streams: Streams) -> None:
        self.where = streams.where
        self.views = False
        # With one, the disk waits whenever a layer takes longer to compute than to fetch.
        self.ahead = 2
        self.streamed: frozenset[Tier] = frozenset({"host", "disk"})
        self.moved = 0
        self.decoding: float | None = None
        self._streams = streams
        self._disk: Disk | None = None
        self._gds: Gds | None = None
        self._ready: dict[tuple[int, int], _Ready] = {}
        self._pinned: list[Bytes] = []
        # A word for each tensor, and where it is copied to; none of a file is trusted.
        self._tensors: dict[Stored, int] = {}
        self._words = self._dense = self._scratch = streams.memory(0)
        self._seen = aligned(0)
        self._checked = streams.event()
        self._lock = threading.Lock()

    def free_memory(self) -> int | None:
        """As of :class:`~pyendor.offload.device.Device`."""
        return self._streams.free_memory()

    def connect(self, disk: Disk, read: str) -> None:
        """As of :class:`~pyendor.offload.device.Device`: straight to the device, if that can be had."""
        self._disk = disk
        direct: Gds | str = "another way was asked for"
        if read in {"auto", "gds"}:
            direct = open_gds(disk, self._trial)
        if isinstance(direct, str):
            disk.reason += f"; not to the GPU directly: {direct}"
        else:
            self._gds = direct
            disk.mode, disk.reason = "gds", "to the GPU directly, as its driver has counted"

    def _trial(self) -> torch.Tensor:
        """Memory that is written to by no stream: what had it before is done with it."""
        memory = self._streams.memory(TRIAL)
        self._streams.finish()
        return memory

    def prepare(self, layers: Sequence[Layer], dense_nbytes: int, scratch_nbytes: int) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        tensors = [tensor for layer in layers for tensor in layer.bundle.tensors if tensor.meta is not None]
        self._tensors = {tensor: number for number, tensor in enumerate(dict.fromkeys(tensors))}
        self._words = self._streams.memory(8 * len(self._tensors))
        self._words.zero_()
        self._seen = self._pin(8 * len(self._tensors))
        self._dense = self._streams.memory(dense_nbytes)
        self._scratch = self._streams.memory(scratch_nbytes)

    def slot(self, nbytes: int, from_disk: int) -> Slot:
        """As of :class:`~pyendor.offload.device.Device`."""
        staging = self._pin(from_disk) if from_disk and self._gds is None else None
        copied, decoded = self._streams.event(), self._streams.event()
        if self._gds is not None and from_disk:
            memory = self._gds.slot(self._streams.memory(nbytes + PAGE), nbytes)
        else:
            memory = self._streams.memory(nbytes)
        # What had this memory before is done with it when the stream it was allocated on has come to here.
        self._streams.mark(decoded, copying=False)
        return Slot(memory, copied, decoded, staging)

    def hold(self, bundle: Bundle, tier: Tier) -> Any:
        """As of :class:`~pyendor.offload.device.Device`: pinned bytes, or memory of the device."""
        assert self._disk is not None
        if tier == "host":
            return fill(bundle, self._pin(bundle.nbytes), self._disk)
        memory = self._streams.memory(bundle.nbytes)
        staging = self._streams.pinned(bundle.nbytes)
        try:
            source = torch.from_numpy(fill(bundle, staging, self._disk)[: bundle.nbytes])
            self._streams.copy(memory, source, copying=True)
        finally:
            self._streams.finish()
            self._streams.unpin(staging)
        return memory

    def fetch(self, bundle: Bundle, held: Bytes | None, slot: Slot) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        streams = self._streams
        if held is None and self._gds is not None:
            # It writes to the device itself, whenever it likes: what was there has to be decoded.
            streams.wait_here(slot.decoded)
            self._gds.read(bundle.reads, slot.memory)
            return
        source = held
        if source is None:
            assert self._disk is not None
            assert slot.staging is not None
            streams.wait_here(slot.copied)
            self._disk.read(bundle.reads, slot.staging)
            source = slot.staging
        streams.wait(slot.decoded, copying=True)
        streams.copy(slot.memory[: bundle.nbytes], torch.from_numpy(source[: bundle.nbytes]), copying=True)
        streams.mark(slot.copied, copying=True)
        with self._lock:
            self.moved += bundle.nbytes

    def decode(self, layer: Layer, place: Any) -> tuple[list[torch.Tensor], bool]:
        """As of :class:`~pyendor.offload.device.Device`."""
        streams = self._streams
        if self.where.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise UsageError(
                "an offloaded model cannot be captured in a CUDA graph: its layers are copied to memory that "
                "is used again; capture a model that is on the GPU as a whole"
            )
        slot = place if isinstance(place, Slot) else None
        memory = slot.memory if slot is not None else place
        key = id(layer), memory.data_ptr()
        if key not in self._ready:
            self._ready[key] = self._prepare(layer, memory)
        ready = self._ready[key]
        if slot is not None:
            streams.wait(slot.copied, copying=False)
        for step in ready.steps:
            if isinstance(step, tuple):
                streams.copy(*step, copying=False)
            else:
                streams.launch(step)
        if slot is not None:
            streams.mark(slot.decoded, copying=False)
        return ready.weights, False

    def check(self) -> None:
        """As of :class:`~pyendor.offload.device.Device`: what kernels have found broken is told here."""
        if not self._tensors:
            return
        seen = torch.from_numpy(self._seen)[: self._words.numel()]
        self._streams.copy(seen, self._words, copying=False)
        self._streams.mark(self._checked, copying=False)
        self._streams.wait_here(self._checked)
        words = seen.view(torch.int64).tolist()
        if not any(words):
            return
        self._words.zero_()
        for tensor, number in self._tensors.items():
            path = tensor.file.path if tensor.file is not None else None
            cuda.check(words[number], tensor=tensor.name, path=path)

    def close(self) -> None:
        """As of :class:`~pyendor.offload.device.Device`."""
        self._streams.finish()
        for memory in self._pinned:
            self._streams.unpin(memory)
        self._pinned.clear()
        self._ready.clear()
        self._dense = self._scratch = self._words = self._streams.memory(0)
        if self._gds is not None:
            self._gds.close()

    def _pin(self, nbytes: int) -> Bytes:
        self._pinned.append(self._streams.pinned(nbytes))
        return self._pinned[-1]

    def _prepare(self, layer: Layer, memory: torch.Tensor) -> _Ready:
        ready, jobs = _Ready(), []
        for weight in layer.weights:
            assert weight.at is not None
            view = weight.view(self._dense, weight.at)
            ready.weights.append(view)
            for number, start in weight.pieces:
                tensor = layer.bundle.tensors[number]
                parts = layer.bundle.parts(number, memory)
                if weight.cast:
                    first = start // weight.dtype.itemsize
                    ready.steps += self._cast(tensor, parts, view.view(-1)[first:])
                    continue
                out = self._dense[weight.at + start :][: tensor.dense_nbytes]
                if tensor.meta is None:
                    ready.steps.append((out, parts["values"]))
                else:
                    jobs.append(self._job(tensor, parts, out))
        if jobs:
            ready.steps.insert(0, cuda.Launch(jobs, self.where.index))
        return ready

    def _cast(self, tensor: Stored, parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> list[_Step]:
        """By way of scratch memory, which is used for one tensor after the other."""
        scratch = self._scratch[: tensor.dense_nbytes]
        source = scratch.view(tensor.torch_dtype)
        if tensor.meta is None:
            first: _Step = (scratch, parts["values"])
        else:
            first = cuda.Launch([self._job(tensor, parts, scratch)], self.where.index)
        return [first, (out[: source.numel()], source)]

    def _job(self, tensor: Stored, parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> cuda.Job:
        assert tensor.meta is not None
        memory = {
            role: cuda.Memory(*memory_of(part, f"{tensor.name}: {role}")) for role, part in parts.items()
        }
        word = self._words.data_ptr() + 8 * self._tensors[tensor]
        return cuda.Job(tensor.meta, memory, cuda.Memory(*memory_of(out, tensor.name)), word)
