"""What lies where, what a token moves, and what has been moved: numbers, and text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NAMES = {"gpu": "GPU memory", "host": "host memory", "disk": "disk"}


@dataclass(frozen=True, slots=True)
class Share:
    """The layers of one tier; sizes in bytes."""

    layers: int
    stored: int
    dense: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What has been moved since a model was loaded.

    Attributes:
        disk: bytes read from disk.
        link: bytes copied from host memory to the device.
        fetching: seconds that this took, on a thread of its own.
        waiting: seconds that the model waited for it.
        decoding: seconds that decoding took; None where it is not timed.
    """

    disk: int
    link: int
    fetching: float
    waiting: float
    decoding: float | None

    @property
    def hidden(self) -> float:
        """The share of fetching that was hidden behind computing and decoding, 0 to 1."""
        return max(0.0, 1 - self.waiting / self.fetching) if self.fetching else 1.0

    def since(self, other: Moved) -> Moved:
        """What has been moved since then."""
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
    """Where the weights of an offloaded model lie; sizes in bytes.

    Attributes:
        device: where it runs.
        tiers: the layers by where they lie, ``gpu``, ``host`` and ``disk``; embeddings are not among them.
        kept: vectors, buffers and what else is always there, dense.
        embeddings: stored size of embeddings that are read row by row, where they are.
        buffers: memory for the layers that are fetched and for the one that runs.
        token_disk: what a token reads from disk, rows of embeddings not counted.
        token_link: what a token copies from host memory to the device.
        token_dense: what would be moved if the weights were dense, and lay where they do.
        prefetch: layers that are fetched while one runs.
        read: how files are read: ``direct``, ``cache`` or ``gds``.
        reason: why.
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
