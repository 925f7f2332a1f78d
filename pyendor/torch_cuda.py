"""The CUDA decoder for PyTorch: tensors in device memory, and files loaded straight into it.

What crosses the link between host and device is encoded. Parts are read by several threads into a ring of
pinned memory, copied while the next ones are read, and decoded behind the copy, on the current stream.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyendor import cuda, file, layout, parallel
from pyendor.cuda import Job, Launch, Memory
from pyendor.errors import quote
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import memory_of

# The type of the devices that are decoded on. Tests make it "cpu", with a driver that works there.
DEVICE = "cuda"

SLOTS = 3
SLOT = 32 << 20  # bytes of pinned memory in each
PIECE = 4 << 20  # what one thread reads at a time


@dataclass(frozen=True)
class _Known:
    """Parts that have been decoded without a fault, and how to do it again.

    Attributes:
        meta: their entry.
        memory: where they lay.
        parts: the tensors, to tell whether they are still the same.
        launch: decodes them.
    """

    meta: TensorMeta
    memory: Mapping[str, Memory]
    parts: tuple[weakref.ref[Tensor], ...]
    launch: Launch

    def fits(self, meta: TensorMeta, memory: Mapping[str, Memory], parts: Mapping[str, Tensor]) -> bool:
        """True if these are the parts."""
        same = all(ref() is part for ref, part in zip(self.parts, parts.values(), strict=False))
        return same and (self.meta, self.memory) == (meta, memory)


# By their first part. They are not checked again: to hear of a fault the host has to wait for the device.
_checked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_lock = threading.Lock()


def usable(device: torch.device) -> bool:
    """True if tensors on a device are decoded there: the kernels of this build have been loaded on it."""
    if device.type != DEVICE or (_real(device) and not torch.cuda.is_available()):
        return False
    return cuda.available(_number(device))


def decode(parts: Mapping[str, Tensor], meta: TensorMeta, out: Tensor) -> None:
    """Decodes parts into a tensor on the same device, on the current stream.

    The first time it waits for the end, and raises what is wrong with the parts. After that they are taken to
    be unchanged, and nothing is waited for, so that it can be captured into a CUDA graph.

    Raises:
        FormatError: the parts break a rule. What is in ``out`` then means nothing.
        ValueError: a part is missing; a tensor has another size than is needed, is on another device or not
            contiguous; or ``out`` overlaps a part.
        RuntimeError: a graph is being captured and the parts are not checked yet; or the driver refuses.
    """
    device = out.device
    for role, part in parts.items():
        if part.device != device:
            raise ValueError(f"part {quote(role)} is on {part.device}, out is on {device}")
    memory = {role: Memory(*memory_of(part, f"part {quote(role)}")) for role, part in parts.items()}
    to = Memory(*memory_of(out, "out"))
    key = next(iter(parts.values()))
    with _on(device):
        stream = _stream(device)
        with _lock:
            known = _checked.get(key)  # type: ignore[no-untyped-call]
            if known is not None and known.fits(meta, memory, parts):
                known.launch(stream, [to])
                return
        if _real(device) and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph is captured of a tensor that is not checked yet: decode it once before"
            )
        number = _number(device)
        word = torch.zeros(1, dtype=torch.int64, device=device)
        cuda.decode([Job(meta, memory, to, word.data_ptr())], stream, number)
        cuda.check(int(word))
        refs = tuple(weakref.ref(part) for part in parts.values())
        with _lock:
            _checked[key] = _Known(meta, memory, refs, Launch([Job(meta, memory, to)], number))


def load(
    opened: file.File,
    tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    device: torch.device,
    *,
    verify: bool = False,
) -> dict[str, Tensor]:
    """Loads tensors of an open file into new memory of a device, decoded there.

    Args:
        opened: the file.
        tensors: by name, dtype and shape of what PyTorch is to have.
        device: one that :func:`usable` says yes to.
        verify: check each tensor's digest.

    Raises:
        FormatError: the file breaks a rule.
    """
    with _on(device):
        ring, stream, number = _Ring(device), _stream(device), _number(device)
        words = torch.zeros(max(1, len(tensors)), dtype=torch.int64, device=device)
        dense = {}
        for place, (name, (dtype, shape)) in enumerate(tensors.items()):
            tensor = opened.tensor(name)
            out = torch.empty(tuple(shape), dtype=dtype, device=device)
            flat = out.reshape(-1).view(torch.uint8)
            if tensor.meta is None:
                ring.copy(_pieces(opened, tensor, verify), flat)
            else:
                encoded = torch.empty(tensor.stored_nbytes, dtype=torch.uint8, device=device)
                ring.copy(_pieces(opened, tensor, verify), encoded)
                parts = cuda.packed(tensor.meta, Memory(*memory_of(encoded, name)))
                job = Job(tensor.meta, parts, Memory(*memory_of(flat, name)), words[place:].data_ptr())
                cuda.decode([job], stream, number)
            dense[name] = out
        ring.finish()
        for name, word in zip(dense, words.tolist(), strict=False):
            if word:
                # What comes first, and where in the file, the codec of the CPU says.
                opened.get_encoded(name).validate()
                cuda.check(word, tensor=name, path=opened.path)
    return dense


# Bytes of known number, and what puts a range of them into memory.
_Source = tuple[int, Callable[[int, Bytes], object]]


def _pieces(opened: file.File, tensor: layout.Tensor, verify: bool) -> Iterator[_Source]:
    """The bytes of a tensor, part by part; parts that lie one behind the other in the file are one piece."""
    if verify and tensor.meta is not None:
        encoded = opened.get_encoded(tensor.name)
        encoded.check_digest()
        for part in encoded.parts.values():
            yield part.size, functools.partial(_copy_from, part)
        return
    ranges = [[part.start, part.stop] for part in tensor.parts.values()]
    joined = ranges[:1]
    for start, stop in ranges[1:]:
        if start == joined[-1][1]:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    for start, stop in joined:
        yield stop - start, functools.partial(_read_from, opened, start)


def _copy_from(data: Bytes, at: int, out: Bytes) -> None:
    out[:] = data[at : at + out.size]


def _read_from(opened: file.File, start: int, at: int, out: Bytes) -> None:
    opened.read_into(start + at, out)


class _Ring:
    """Pinned memory, filled by threads and copied from while what follows is being filled."""

    def __init__(self, device: torch.device) -> None:
        self._real = _real(device)
        self._slots: list[Tensor] = []
        self._copied: list[Any] = []  # by slot: the event behind the last copy from it
        self._slot, self._used = -1, SLOT

    def copy(self, sources: Iterator[_Source], to: Tensor) -> None:
        """Copies sources, one behind the other, to a flat tensor on the device, on the current stream."""
        done = 0
        for size, read in sources:
            at = 0
            while at < size:
                memory = self._take(size - at)
                self._fill(memory.numpy(), at, read)
                to[done : done + memory.numel()].copy_(memory, non_blocking=True)
                at += memory.numel()
                done += memory.numel()

    @staticmethod
    def _fill(memory: Bytes, at: int, read: Callable[[int, Bytes], object]) -> None:
        steps = range(0, memory.size, PIECE)
        parallel.each(lambda step: read(at + step, memory[step : step + PIECE]), steps)

    def _take(self, most: int) -> Tensor:
        """Memory that nothing is being copied from: at least one byte of it."""
        if self._used == SLOT:
            self._turn()
        memory = self._slots[self._slot][self._used : self._used + most]
        self._used += memory.numel()
        return memory

    def finish(self) -> None:
        """Waits until the current stream has got to here."""
        if self._real:
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record()
            event.synchronize()

    def _turn(self) -> None:
        """Goes on to the next slot, and waits until what was copied from it has arrived."""
        if self._real and self._slot >= 0:
            self._copied[self._slot].record()
        self._slot, self._used = (self._slot + 1) % SLOTS, 0
        if len(self._slots) < SLOTS:
            self._slots.append(torch.empty(SLOT, dtype=torch.uint8, device="cpu", pin_memory=self._real))
            # The host sleeps until it comes, and does not spin: threads that read need the processors.
            event: Any = functools.partial(torch.cuda.Event, blocking=True)
            self._copied.append(event() if self._real else None)
        elif self._real:
            self._copied[self._slot].synchronize()


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a device the current one."""
    return torch.cuda.device(device) if _real(device) else nullcontext()


def hand_over(tensor: Tensor) -> Tensor:
    """Takes a tensor that another thread has loaded, to be used on the current stream.

    Its memory is of that thread's stream, which otherwise uses it again before the current one is done.
    """
    if _real(tensor.device):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


def _real(device: torch.device) -> bool:
    """True if it has streams; tests have another one."""
    return device.type == "cuda"


def _number(device: torch.device) -> int:
    """The number of a device, as the driver has it; without one in its name, that of the current device."""
    if not _real(device):
        return 0
    return device.index if device.index is not None else torch.cuda.current_device()


def _stream(device: torch.device) -> int:
    """The current stream, as a number."""
    return int(torch.cuda.current_stream(device).cuda_stream) if _real(device) else 0
