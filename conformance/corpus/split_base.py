"""What the cases with faults in split values are made from: tensors, changes, the case itself."""

from __future__ import annotations

from dataclasses import dataclass
from struct import unpack

from corpus.build import BLOCK, Sketch, Split, Tensor, floats, scattered, tensor_of
from corpus.case import REJECT, Case, newer
from corpus.change import INDEX, Change, put

BASES, PATCHES = "w.endor.bases", "w.endor.patches"
NUMEL = 2 * BLOCK + 100


@dataclass(frozen=True)
class Base:
    """A tensor w and how it is encoded, from which a fault starts."""

    tensor: Tensor
    how: Split

    def sketch(self) -> Sketch:
        return Sketch().add(self.tensor, how=self.how)

    def rows(self) -> list[list[int]]:
        """The rows of the index."""
        part = self.sketch().part(INDEX)
        count, length = part.shape
        flat = list(unpack(f"<{count * length}q", part.data))
        return [
            flat[length * i :][: -(-len(self.tensor.data) // self.tensor.itemsize // BLOCK) + 1]
            for i in range(count)
        ]

    def patches(self) -> list[tuple[int, int]]:
        """Rank and exponent of each patch."""
        s = self.sketch()
        data = s.part(PATCHES).data
        return [unpack("<HB", data[3 * i : 3 * i + 3]) for i in range(s.entry("w")["patches"])]

    def bases(self) -> bytes:
        return self.sketch().part(BASES).data


# One block, all mantissa bits, so that there are rows of bytes and of bits; 36 stored elements.
SMALL = Base(floats("w", "F16", [2, 30], 60, 930, odd=12), Split(2))
# The same with the fewest bits there are, for faults that no element shows.
TINY = Base(floats("w", "F8_E4M3", [2, 30], 60, 930, kept=0, odd=12), Split(1))
# Three blocks, of about 80, 80 and 3 stored elements; and three blocks with all of them.
SOME = Base(
    scattered(
        "w",
        "BF16",
        [1, NUMEL],
        {i: (120 + i % 3 if i % 5 else 20 + i % 90) << 7 | (i % 7 + 1) << 4 for i in range(0, NUMEL, 50)},
    ),
    Split(2),
)
ALL = Base(
    tensor_of(
        "w",
        "BF16",
        [(0x3F80 if i % 300 else 0x0100 + (i % 80) * 128) | i % 2 << 15 for i in range(1, NUMEL + 1)],
        [1, NUMEL],
    ),
    Split(1, "all"),
)
EMPTY = Base(Tensor("w", "BF16", [0, 7], b""), Split(1))
EMPTY_ALL = Base(Tensor("w", "BF16", [0, 7], b""), Split(1, "all"))
# What goes wrong besides when patches come to belong to other blocks.
MISPLACED = ["E-5", "E-6", "E-7", "B-10"]


def fault(
    name: str, rules: list[str], note: str, change: Change, base: Base = TINY, sealed: bool = False
) -> Case:
    sketch = base.sketch()
    change(sketch)
    if sealed:
        sketch.seal("w")
    data = sketch.render()
    return newer(Case("invalid", name, rules, data, REJECT, "L2", note, error_rules=rules), ["w"])


def inside(name: str, rules: list[str], note: str, change: Change, base: Base = SMALL) -> Case:
    """A fault in what the parts hold; the digest does not give it away."""
    return fault(name, rules, note, change, base, sealed=True)


def of(dtype: str, w: int = 1, positions: str = "all", seed: int = 931) -> Base:
    return Base(floats("w", dtype, [3, 9], 80, seed, kept=0), Split(w, positions))


def row(number: int, **entries: int) -> Change:
    return lambda s: s.index("w", number, **entries)


def base_of(block: int, value: int) -> Change:
    return put(BASES, block, bytes([value]))


def patched(at: int, rank: int | None = None, exponent: int | None = None) -> Change:
    return lambda s: s.patch("w", at, rank, exponent)
