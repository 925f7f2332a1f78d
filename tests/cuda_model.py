"""Streams of CUDA, played, to see whether what uses them keeps memory apart in time.

Nothing takes time here: what is asked for is done at once, on the CPU. But it is noted which stream reads and
writes which bytes, and which of its work is ordered behind which of the others' (vector clocks: issuing,
events, waits). Two streams, or a stream and the host, that use the same bytes, one of them writing, without
one being ordered behind the other, are a :class:`RaceError`, however lucky this run was.

Memory is handed out as PyTorch's allocator does it: what the current stream was given before may still be at
work on it; and what is freed goes back to that stream, whatever other streams are still at work on, but for
those that the allocator was told of (``record_stream``).

``Machine.torch`` is PyTorch with ``torch.cuda`` played; the other operators are PyTorch's own and noted by
``Machine.noted()``, on the thread that enters it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[int, int]
HOST = 0


class RaceError(AssertionError):
    """Bytes are used by two at the same time."""


def joined(one: Clock, other: Clock) -> Clock:
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in one.keys() | other.keys()}


@dataclass(frozen=True)
class Access:
    start: int
    stop: int
    writes: bool
    by: int
    at: int
    what: str


@dataclass(eq=False)
class Allocation:
    start: int
    stop: int
    stream: Stream
    told: set[int] = field(default_factory=set)


class Stream:
    """A stream; ``number`` is the address that the driver knows it by."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine, self.number, self.clock = machine, number, dict[int, int]()

    @property
    def cuda_stream(self) -> int:
        return self.number

    def wait_event(self, event: Event) -> None:
        self.clock = joined(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.clock = joined(self.clock, joined(other.clock, self.machine.host))


class Event:
    """An event; one that was never recorded is no hindrance."""

    def __init__(self, machine: Machine, blocking: bool) -> None:
        self.machine, self.blocking, self.clock = machine, blocking, dict[int, int]()

    def record(self, stream: Stream | None = None) -> None:
        chosen = stream if stream is not None else self.machine.current()
        self.clock = joined(chosen.clock, self.machine.host)

    def synchronize(self) -> None:
        self.machine.spun += not self.blocking
        self.machine.host = joined(self.machine.host, self.clock)


class Machine:
    """One device."""

    def __init__(self) -> None:
        self.host: Clock = {}
        self.spun = 0  # how often the host waited for an event in a loop
        self._streams: dict[int, Stream] = {}
        self._local = threading.local()
        self._accesses: list[Access] = []
        self._memory: list[Allocation] = []
        self._lock = threading.RLock()
        self.races: list[str] = []
        self.default = self.new_stream()
        self.torch = _Torch(self)

    def new_stream(self) -> Stream:
        with self._lock:
            made = Stream(self, len(self._streams) + 1)
            self._streams[made.number] = made
            return made

    def current(self) -> Stream:
        """The stream that is current on this thread."""
        return getattr(self._local, "stream", self.default)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self._local.stream = self.current(), stream
        try:
            yield
        finally:
            self._local.stream = before

    @contextmanager
    def by_host(self) -> Iterator[None]:
        """What is done is done by the host, or by what it waits for."""
        self._local.by_host = True
        try:
            yield
        finally:
            self._local.by_host = False

    def synchronize(self, device: object = None) -> None:
        for stream in self._streams.values():
            self.host = joined(self.host, stream.clock)

    def allocate(self, nbytes: int) -> Any:
        """Device memory, ``uint8``, with garbage in it."""
        owner = np.full(nbytes + 1, 0xA5, np.uint8)
        start, stream = owner.ctypes.data, self.current()
        allocation = Allocation(start, start + nbytes, stream)
        # What has had it before.
        with self._lock:
            # Addresses are used again; what there was of them is gone, with its own check.
            self._accesses = [
                one for one in self._accesses if one.stop <= start or one.start >= start + nbytes
            ]
            self._memory.append(allocation)
            self._access(start, start + nbytes, True, stream, "what had the memory before")
        weakref.finalize(owner, self._free, allocation)
        return torch.from_numpy(owner[:nbytes])

    def tell(self, tensor: Any, stream: Stream) -> None:
        """``record_stream``."""
        for one in self._memory:
            if one.start <= tensor.data_ptr() < one.stop:
                one.told.add(stream.number)

    def used(self, start: int, nbytes: int, writes: bool, stream: int | None, what: str) -> None:
        """Notes that bytes are used by a stream, or the current one."""
        if not nbytes or not any(one.start <= start < one.stop for one in self._memory):
            return  # the host's
        by = self._streams[stream] if stream is not None else self.current()
        with self._lock:
            host = stream is None and getattr(self._local, "by_host", False)
            self._access(start, start + nbytes, writes, None if host else by, what)

    def noted(self) -> _Noted:
        return _Noted(self)

    def check(self) -> None:
        if self.races:
            raise RaceError("; ".join(self.races))

    def _access(self, start: int, stop: int, writes: bool, stream: Stream | None, what: str) -> None:
        by = stream.number if stream is not None else HOST
        clock = joined(stream.clock, self.host) if stream is not None else dict(self.host)
        for one in self._accesses:
            apart = one.stop <= start or one.start >= stop
            if not apart and (writes or one.writes) and one.at > clock.get(one.by, 0):
                self.races.append(f"{what} on {by} beside {one.what} on {one.by}")
        clock[by] = clock.get(by, 0) + 1
        if stream is not None:
            stream.clock = clock
        else:
            self.host = clock
        self._accesses.append(Access(start, stop, writes, by, clock[by], what))

    def _free(self, allocation: Allocation) -> None:
        with self._lock:
            self._memory.remove(allocation)
            known = joined(allocation.stream.clock, self.host)
            for one in self._accesses:
                inside = allocation.start <= one.start < allocation.stop
                if inside and one.by not in allocation.told and one.at > known.get(one.by, 0):
                    self.races.append(f"freed beside {one.what} on {one.by}")


class _Noted(TorchDispatchMode):
    """Notes which memory operators read and write."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace != "aten":
            return result
        written = {
            id(args[i])
            for i, about in enumerate(func._schema.arguments[: len(args)])
            if about.alias_info is not None and about.alias_info.is_write
        }
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                span = tensor.data_ptr(), tensor.numel() * tensor.element_size()
                self._machine.used(*span, id(tensor) in written, None, str(func))
        return result


class _Torch:
    """PyTorch with another ``torch.cuda``, and with memory of the machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

        @contextmanager
        def stream(chosen: Stream) -> Iterator[None]:
            with machine.on(chosen):
                yield

        self.cuda = SimpleNamespace(
            init=lambda: None,
            is_available=lambda: True,
            current_device=lambda: 0,
            is_current_stream_capturing=lambda: False,
            mem_get_info=lambda device: (1 << 30, 1 << 30),
            Stream=lambda device=None: machine.new_stream(),
            Event=lambda blocking=False: Event(machine, blocking),
            current_stream=lambda device=None: machine.current(),
            stream=stream,
            device=lambda device: nullcontext(),
            synchronize=machine.synchronize,
            cudart=lambda: SimpleNamespace(
                cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda address: 0
            ),
            OutOfMemoryError=torch.cuda.OutOfMemoryError,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, *about: Any) -> torch.device:
        return torch.device("cpu")

    def empty(self, *shape: Any, dtype: Any, device: Any = None, pin_memory: bool = False) -> Any:
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        size = torch.empty(shape, dtype=dtype, device="meta")
        if device is None:
            return torch.empty(shape, dtype=dtype)
        return self._machine.allocate(size.numel() * size.element_size()).view(dtype).view(shape)

    def zeros(self, *shape: Any, dtype: Any, device: Any = None) -> Any:
        return self.empty(*shape, dtype=dtype, device=device).zero_()
