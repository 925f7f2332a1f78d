"""What differs between processors: memory for compressed layers, how they get there, how they are decoded.

The engine knows this interface and nothing below it; :mod:`pyendor.offload.cpu` is the simpler one to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from pyendor.offload.disk import Disk
from pyendor.offload.fetched import Loan
from pyendor.offload.layers import Layer
from pyendor.offload.plan import Tier
from pyendor.offload.stored import Bundle


class Device(Protocol):
    """A processor that layers run on.

    Attributes:
        where: what PyTorch calls it.
        views: whether plain weights can be used as they lie in a slot.
        streamed: tiers whose layers are fetched into slots.
        ahead: how many layers are best fetched ahead. With more nothing is gained.
        moved: bytes that went from host memory to the memory of the device.
    """

    where: torch.device
    views: bool
    streamed: frozenset[Tier]
    ahead: int
    moved: int

    @property
    def decoding(self) -> float | None:
        """Seconds that decoding took; None where nobody on the host waits for it."""

    def free_memory(self) -> int | None:
        """Bytes of the device's own memory that are free; None where it is the host's."""

    def connect(self, disk: Disk, read: str) -> None:
        """Says where layers are read from, and how (:data:`pyendor.offload.disk.MODES`)."""

    def prepare(self, layers: Sequence[Layer], dense_nbytes: int, scratch_nbytes: int) -> None:
        """Makes the dense memory that these layers are decoded into, one after the other.

        Raises:
            UsageError: there is not so much.
        """

    def slot(self, nbytes: int, from_disk: int) -> Any:
        """Memory that a compressed layer of up to this size, or up to that from disk, is fetched into."""

    def hold(self, bundle: Bundle, tier: Tier) -> Any:
        """A layer in its tier, where it stays: what ``fetch`` or ``decode`` take."""

    def fetch(self, bundle: Bundle, held: Any, slot: Any) -> None:
        """Brings a layer to a slot from where it is held, or, that being None, from disk: on threads."""

    def decode(self, layer: Layer, place: Any) -> tuple[Sequence[torch.Tensor | Loan], bool]:
        """The weights of a layer from a slot or from where it is held, until the next call.

        Returns:
            The weights in their order, decoded, or such that they decode themselves as they are used; and
            whether some of them lie in the slot, which is then still needed.
        """

    def check(self) -> None:
        """Raises what went wrong with layers that have been decoded, if that is found out later."""

    def close(self) -> None:
        """Gives all memory back; nothing may be called after it."""
