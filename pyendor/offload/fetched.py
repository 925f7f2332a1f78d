"""A weight as it lies in a slot while its layer runs: encoded, and decoded by the operators that use it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pyendor import openmp
from pyendor.encoded import EncodedTensor
from pyendor.layout import Bytes
from pyendor.offload.stored import Stored
from pyendor.torch_bytes import from_bytes, to_bytes
from pyendor.torch_product import Encoded
from pyendor.torch_tensor import EndorTensor


class Fetched(EndorTensor):
    """A parameter that is made once, and lent its parts each time that its layer runs.

    Args:
        stored: the tensor, which is encoded.
        room: memory for the dense weight, for when all of it has to be decoded. Nobody else may write to it
            while the parts are lent.
        watch: a stopwatch for the time that decoding takes.
    """

    def __new__(cls, stored: Stored, room: Tensor, watch: Stopwatch) -> Fetched:
        made: Fetched = Tensor._make_wrapper_subclass(cls, stored.shape, dtype=room.dtype, device=room.device)
        made._is_param = True  # what makes a parameter of a subclass
        return made

    def __init__(self, stored: Stored, room: Tensor, watch: Stopwatch) -> None:
        assert stored.meta is not None
        self.meta = replace(stored.meta, digest=None)
        self._stored, self._room, self._watch = stored, room, watch
        self._encoded: EncodedTensor | None = None
        self._there = False

    def lend(self, parts: Mapping[str, Bytes]) -> None:
        """From now on it has these parts."""
        self._encoded, self._there = self._stored.encoded(parts), False

    def take_back(self) -> None:
        """From now on it has none: any use is an error."""
        self._encoded = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """As of :class:`~pyendor.torch_tensor.EndorTensor`."""
        return {role: from_bytes(part, torch.uint8, part.shape) for role, part in self._lent().parts.items()}

    def to_encoded(self, name: str = "") -> EncodedTensor:
        """As of :class:`~pyendor.torch_tensor.EndorTensor`."""
        return self._lent()

    def decode(self, out: Tensor | None = None, *, device: torch.device | str | int | None = None) -> Tensor:
        """As of :class:`~pyendor.torch_tensor.EndorTensor`, but that a new tensor is not one of its own."""
        if out is not None:
            return super().decode(out, device=device)
        encoded = self._lent()
        if not self._there:
            with self._watch.running(), openmp.used():
                encoded.decode(to_bytes(self._room))
            self._there = True
        return self._room if device is None else self._room.to(device)

    def _converted(self, dense: Tensor) -> Tensor:
        return dense  # it is used once: autocast does that

    def _for_product(self) -> Encoded | None:
        if self._there:
            return None
        encoded = self._lent()

        def decode(first: int, stop: int, out: Bytes) -> None:
            with self._watch.running():
                encoded.decode_blocks(first, stop, out, stream=False)

        about = (self.meta.positions, self.meta.values)
        return Encoded(self.shape, self.dtype, lambda: decode, lambda: self._room, about)

    def _lent(self) -> EncodedTensor:
        if self._encoded is None:
            raise RuntimeError("a weight of an offloaded model is there for as long as its layer runs")
        return self._encoded


class Stopwatch:
    """Adds up time.

    Attributes:
        seconds: in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """What a block of this takes is added."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
