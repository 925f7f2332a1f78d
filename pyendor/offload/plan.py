"""Which layer lies where, in GPU memory, in host memory or on disk, and the slots that it is fetched into.

Every layer is read once for a token, so that a byte that is kept saves a byte of transfer, whichever it is.
What is kept is therefore spread evenly: while kept layers compute, those between them are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyendor.errors import UsageError, quote
from pyendor.offload.layers import Layer

Tier = Literal["gpu", "host", "disk"]

# What is left to others, of memory that is free, unless the caller says how much to take.
_SHARE = 0.8
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def place(layers: Sequence[Layer], gpu: int, host: int) -> dict[Layer, Tier]:
    """Where each layer lies, given how many bytes of each memory there are for them.

    Raises:
        UsageError: layers that are in no file do not fit.
    """
    tiers: dict[Layer, Tier] = dict.fromkeys(layers, "disk")
    # Of an embedding a token needs a few rows: to keep it saves nothing.
    whole = [layer for layer in layers if not layer.by_rows]
    for layer in _spread(whole, gpu):
        tiers[layer] = "gpu"
    left = [layer for layer in whole if tiers[layer] == "disk"]
    bound = [layer for layer in layers if not layer.bundle.reads and tiers[layer] == "disk"]
    needed = sum(layer.bundle.nbytes for layer in bound)
    if needed > host:
        raise UsageError(
            f"the model needs {needed / 1e9:.2f} GB of host memory and may take {host / 1e9:.2f} GB: save it "
            "to a directory, from where it can be read, or allow more"
        )
    free = host - needed
    for layer in [*bound, *_spread([layer for layer in left if layer not in set(bound)], free)]:
        tiers[layer] = "host"
    return tiers


def _spread(layers: Sequence[Layer], room: int) -> list[Layer]:
    """As many layers as there is room for, evenly distributed."""
    total = sum(layer.bundle.nbytes for layer in layers)
    if total <= room:
        return list(layers)
    chosen, owed, left = [], 0.0, room
    for layer in layers:
        owed += room / total * layer.bundle.nbytes
        # Half a byte for what floats lose.
        if owed + 0.5 >= layer.bundle.nbytes and layer.bundle.nbytes <= left:
            chosen.append(layer)
            owed -= layer.bundle.nbytes
            left -= layer.bundle.nbytes
    for layer in layers:
        if layer not in chosen and layer.bundle.nbytes <= left:
            chosen.append(layer)
            left -= layer.bundle.nbytes
    return chosen


@dataclass(frozen=True, slots=True)
class Shelf:
    """Slots of one size, and the layers that are fetched into them.

    Attributes:
        layers: those of about this size, the largest first.
        count: how many slots there are.
    """

    layers: tuple[Layer, ...]
    count: int

    @property
    def nbytes(self) -> int:
        """Size of each of the slots."""
        return self.layers[0].bundle.nbytes

    @property
    def total(self) -> int:
        """Size of all of them."""
        return self.count * self.nbytes


def shelves(layers: Iterable[Layer], prefetch: int) -> list[Shelf]:
    """Slots for layers that are fetched, so many ahead.

    A layer of less than half the size of another gets none of its slots. So the head of a model, which may be
    as large as four layers, takes up one slot and not all of them.
    """
    left = sorted(layers, key=lambda layer: -layer.bundle.nbytes)
    found = []
    while left:
        # With nothing fetched ahead one slot is enough for all.
        least = left[0].bundle.nbytes / 2 if prefetch else 0
        alike = tuple(layer for layer in left if layer.bundle.nbytes >= least)
        found.append(Shelf(alike, min(prefetch + 1, len(alike))))
        left = left[len(alike) :]
    return found


def layers_ahead(layers: Sequence[Layer], dense: int, free: int | None, best: int) -> int:
    """How many layers are fetched ahead if the caller has no wish: the best, or what there is memory for."""
    if free is None:
        return best
    fits = (
        ahead
        for ahead in range(best, 0, -1)
        if dense + sum(shelf.total for shelf in shelves(layers, ahead)) <= default_share(free)
    )
    return next(fits, 0)


def nbytes(amount: int | str, what: str) -> int:
    """A number of bytes, or text such as ``"20GB"`` or ``"512MiB"``.

    Raises:
        UsageError: it is none.
    """
    if isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0:
        return amount
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", str(amount).lower())
    if match is None or match[2] not in _UNITS:
        raise UsageError(
            f"{what} {quote(str(amount))} is no amount of memory, such as 1000000, '20GB' or '512MiB'"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def free_host_memory() -> int | None:
    """Bytes of memory that this process may still take, control groups regarded; None if nobody knows."""
    found = [amount for amount in (_of_system(), *_of_groups()) if amount is not None]
    return min(found) if found else None


def default_share(free: int) -> int:
    """How much of free memory is taken when the caller has no wish."""
    return int(free * _SHARE)


def _of_system() -> int | None:
    return _fields(Path("/proc/meminfo")).get("MemAvailable:", 0) * 1024 or None


def _of_groups() -> list[int]:
    """What the control groups that this process is in, and those above, leave to it."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root = Path("/sys/fs/cgroup")
            limit, usage = "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = (
                Path("/sys/fs/cgroup/memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        group = root / path.lstrip("/")
        for place in [group, *group.parents]:
            if root not in {place, *place.parents}:
                break
            most, used = _number(place / limit), _number(place / usage)
            if most is not None and used is not None:
                stat = _fields(place / "memory.stat")
                # Pages of files are given back when they are in the way.
                files = stat.get("file", stat.get("cache", 0)) - stat.get("shmem", 0)
                found.append(max(0, most - used + max(0, files)))
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> Mapping[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
