"""The few things that offloading asks of a CUDA device, by way of PyTorch: memory, streams, events, copies.

Behind an interface, so that what :mod:`pyendor.offload.gpu` does in which order is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from pyendor.errors import UsageError
from pyendor.layout import Bytes
from pyendor.offload.disk import aligned


class Streams(Protocol):
    """A device with a stream that copies and one that computes; each does one thing after the other."""

    where: torch.device

    def free_memory(self) -> int:
        """Bytes of the device's memory that are free."""

    def memory(self, nbytes: int) -> torch.Tensor:
        """Device memory, ``uint8 [nbytes]``; what streams are given from now on waits until it is free.

        Raises:
            UsageError: there is not so much.
        """

    def pinned(self, nbytes: int) -> Bytes:
        """Host memory, aligned to a page, from which copies need not be waited for.

        Raises:
            UsageError: so much cannot be pinned.
        """

    def unpin(self, memory: Bytes) -> None:
        """Gives pinned memory back, when nothing is copied from it any more."""

    def event(self) -> Any:
        """A mark that can be put on a stream."""

    def mark(self, event: Any, *, copying: bool) -> None:
        """Puts a mark on a stream."""

    def wait(self, event: Any, *, copying: bool) -> None:
        """Lets a stream wait until the other has come to a mark; one that was never put is no hindrance."""

    def wait_here(self, event: Any) -> None:
        """Waits on the host."""

    def copy(self, out: torch.Tensor, source: torch.Tensor, *, copying: bool) -> None:
        """Puts a copy on a stream; where the types differ, a conversion."""

    def launch(self, kernels: Callable[[int], object]) -> None:
        """Puts kernels on the computing stream, whose address they are called with."""

    def finish(self) -> None:
        """Waits on the host until all streams are empty."""


class Cuda:
    """A CUDA device; computing is done on the stream that is current for the caller.

    That may be another one each time. As they share memory, and the copying stream shares it with them, a
    stream that becomes current first waits for what the last one has been given.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = device.index if device.index is not None else torch.cuda.current_device()
        self.where = torch.device("cuda", index)
        self._copying = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.current_stream(self.where)

    def free_memory(self) -> int:
        """As of :class:`Streams`."""
        free, _ = torch.cuda.mem_get_info(self.where)
        return int(free)

    def memory(self, nbytes: int) -> torch.Tensor:
        """As of :class:`Streams`."""
        # PyTorch hands out memory that the current stream may still be at work on, of which it knows that all
        # that stream is given comes behind that. It has to be told of every other stream.
        current = self._stream(False)
        try:
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self.where)
        except torch.cuda.OutOfMemoryError as error:
            free = self.free_memory()
            raise UsageError(
                f"{nbytes / 1e9:.2f} GB of GPU memory are not to be had, {free / 1e9:.2f} GB are free: a "
                "smaller gpu_memory= or prefetch= needs less"
            ) from error
        self._copying.wait_stream(current)
        memory.record_stream(self._copying)
        return memory

    def pinned(self, nbytes: int) -> Bytes:
        """As of :class:`Streams`. PyTorch's own pinned memory would be rounded up to a power of two."""
        memory = aligned(nbytes)
        if memory.size:
            with torch.cuda.device(self.where):
                result = _runtime().cudaHostRegister(memory.ctypes.data, memory.size, 0)
            if int(result):
                raise UsageError(
                    f"{nbytes / 1e9:.2f} GB of host memory cannot be pinned (CUDA error {int(result)}): a "
                    "smaller host_memory= or prefetch= needs less"
                )
        return memory

    def unpin(self, memory: Bytes) -> None:
        """As of :class:`Streams`."""
        if memory.size:
            with torch.cuda.device(self.where):
                _runtime().cudaHostUnregister(memory.ctypes.data)

    def event(self) -> Any:
        """As of :class:`Streams`. Who waits for it on the host sleeps, and leaves the processor to others."""
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def mark(self, event: Any, *, copying: bool) -> None:
        """As of :class:`Streams`."""
        event.record(self._stream(copying))

    def wait(self, event: Any, *, copying: bool) -> None:
        """As of :class:`Streams`."""
        self._stream(copying).wait_event(event)

    def wait_here(self, event: Any) -> None:
        """As of :class:`Streams`."""
        event.synchronize()

    def copy(self, out: torch.Tensor, source: torch.Tensor, *, copying: bool) -> None:
        """As of :class:`Streams`."""
        with torch.cuda.stream(self._stream(copying)):
            out.copy_(source, non_blocking=True)

    def launch(self, kernels: Callable[[int], object]) -> None:
        """As of :class:`Streams`."""
        with torch.cuda.device(self.where):
            kernels(self._stream(False).cuda_stream)

    def finish(self) -> None:
        """As of :class:`Streams`."""
        torch.cuda.synchronize(self.where)

    def _stream(self, copying: bool) -> torch.cuda.Stream:
        if copying:
            return self._copying
        current = torch.cuda.current_stream(self.where)
        if current != self._computing:
            current.wait_stream(self._computing)
            self._computing = current
        return current


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
