"""What lies where, what a token moves, and what has been moved: numbers, and text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NAMES = {"gpu": "GPU memory", "host": "host memory", "disk": "disk"}


@dataclass(frozen=True, slots=True)
class Share:
    """The layers of one tier.

    Attributes:
        layers: how many there are.
        stored: bytes of their weights as they are kept, encoded where they are.
        dense: bytes of their weights once they are decoded.
    """

    layers: int
    stored: int
    dense: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What has been moved since a model was loaded.

    Attributes:
        disk: bytes read from disk, rows of embeddings among them.
        link: bytes copied from host memory to the device.
        fetching: seconds in which layers were being fetched, in the background unless none are fetched ahead.
        waiting: seconds that the model waited for it.
        decoding: seconds that decoding took; None on a GPU, where nobody waits for it.
    """

    disk: int
    link: int
    fetching: float
    waiting: float
    decoding: float | None

    @property
    def hidden(self) -> float:
        """The share of fetching, 0 to 1, that was hidden behind computing; 1 if nothing was fetched."""
        return max(0.0, 1 - self.waiting / self.fetching) if self.fetching else 1.0

    def since(self, other: Moved) -> Moved:
        """What has been moved between two times.

        Args:
            other: what :func:`~pyendor.offload.moved` gave at the earlier time, of the same model.

        Returns:
            The differences.
        """
        decoding = None if self.decoding is None or other.decoding is None else self.decoding - other.decoding
        return Moved(
            self.disk - other.disk,
            self.link - other.link,
            self.fetching - other.fetching,
            self.waiting - other.waiting,
            decoding,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """Where the weights of an offloaded model lie, and what a token moves; as text, a table for people.

    Attributes:
        device: where it runs, as PyTorch calls it.
        tiers: the layers by where they lie, ``gpu``, ``host`` and ``disk``; embeddings that are read row by
            row are not among them.
        kept: bytes of vectors, buffers and what else is always there, dense.
        embeddings: stored bytes of embeddings that are read row by row, where they are.
        buffers: bytes of memory for the layers that are fetched and for the one that runs.
        token_disk: bytes that a token reads from disk, rows of embeddings not counted.
        token_link: bytes that a token copies from host memory to the device.
        token_dense: bytes that would be moved if the weights were dense, and lay where they do.
        prefetch: how many layers are fetched while one runs.
        read: how files are read, ``direct``, ``cache`` or ``gds`` (:func:`~pyendor.offload.offload_model`).
        reason: why, in words.
    """

    device: str
    tiers: Mapping[str, Share]
    kept: int
    embeddings: int
    buffers: int
    token_disk: int
    token_link: int
    token_dense: int
    prefetch: int
    read: str
    reason: str

    def __str__(self) -> str:
        lines = [f"runs on {self.device}", "", f"{'':14}{'layers':>8}{'stored':>12}{'dense':>12}"]
        for tier, share in self.tiers.items():
            if share.layers:
                sizes = f"{size(share.stored):>12}{size(share.dense):>12}"
                lines.append(f"{_NAMES[tier]:14}{share.layers:>8}{sizes}")
        lines += [
            "",
            f"always there   {size(self.kept)} of norms, biases and buffers",
            f"buffers        {size(self.buffers)}, {self.prefetch} layers ahead",
        ]
        if self.embeddings:
            lines.append(f"row by row     {size(self.embeddings)} of embeddings")
        moves = [f"{size(self.token_disk)} from disk"] if self.token_disk else []
        moves += [f"{size(self.token_link)} to {self.device}"] if self.token_link else []
        text = ", ".join(moves) or "nothing"
        if moves:
            tiers = ("host", "disk") if self.token_link else ("disk",)
            times = self.token_dense / sum(self.tiers[tier].stored for tier in tiers)
            text += f"; dense it would be {times:.2f} times as much"
        lines.append(f"a token moves  {text}")
        if self.token_disk:
            ways = {"direct": "past the page cache", "cache": "through the page cache"}
            way = ways.get(self.read, "by GPUDirect Storage")
            lines.append(f"disk is read   {way} ({self.reason})")
        return "\n".join(lines)


def size(nbytes: int) -> str:
    """Bytes for people."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
