"""What the cases with faults in split values are made from: tensors, changes, the case itself."""

from __future__ import annotations

from dataclasses import dataclass
from struct import iter_unpack, unpack

from corpus.build import BLOCK, Sketch, Split, Tensor, floats, product, random_tensor, scattered, tensor_of
from corpus.case import Case, newer
from corpus.change import INDEX, Change, put
from corpus.invalid_metadata import reject

BASES, PATCHES = "w.endor.bases", "w.endor.patches"
NUMEL = 2 * BLOCK + 100


@dataclass(frozen=True)
class Base:
    """A tensor w and how it is encoded, from which a fault starts."""

    tensor: Tensor
    how: Split

    def sketch(self) -> Sketch:
        return Sketch().add(self.tensor, how=self.how)

    def changed(self, change: Change) -> Sketch:
        sketch = self.sketch()
        change(sketch)
        return sketch

    def rows(self) -> list[list[int]]:
        """The rows of the index, without their padding."""
        part = self.sketch().part(INDEX)
        count, length = part.shape
        blocks = -(-product(self.tensor.shape) // BLOCK)
        flat = unpack(f"<{count * length}q", part.data)
        return [list(flat[length * i :][: blocks + 1]) for i in range(count)]

    def patches(self) -> list[tuple[int, int]]:
        """Rank and exponent of each patch."""
        patches = iter_unpack("<HB", self.sketch().part(PATCHES).data)
        return list(patches)[: self.entry("patches")]

    def entry(self, member: str) -> int:
        """A number in the entry."""
        value: int = self.sketch().entry("w")[member]
        return value

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
# Nine times 1.0: no patches.
ONES = Base(tensor_of("w", "BF16", [0x3F80] * 9, [3, 3]), Split(1, "all"))
# Its first element becomes a zero where the lowest bit is lost.
LOW = Base(tensor_of("w", "BF16", [0x0001, 0, 0x0080, 0x0101, 0x8001], [1, 5]), Split(1))
# A tensor for raw values.
RAW = random_tensor("w", "BF16", [5, 31], seed=81)
# Every row of an index that SOME and ALL have, and what it counts.
ROWS = [(SOME, 0, "stored"), (SOME, 1, "patches"), (ALL, 0, "all-patches")]
# What goes wrong besides when patches come to belong to other blocks.
MISPLACED = ["E-5", "E-6", "E-7", "B-10"]


def fault(name: str, rules: list[str], note: str, change: Change, base: Base = TINY) -> Case:
    """A fault that shows without the digest, which is the one from before the change."""
    return newer(reject(name, rules, base.changed(change).render(), note), ["w"])


def inside(name: str, rules: list[str], note: str, change: Change, base: Base = SMALL) -> Case:
    """A fault in what the parts hold; the digest does not give it away."""
    return newer(reject(name, rules, base.changed(change).seal("w").render(), note), ["w"])


def tiny(dtype: str, positions: str = "all") -> Base:
    """27 elements of a dtype, again with the fewest bits."""
    return Base(floats("w", dtype, [3, 9], 80, 931, kept=0), Split(1, positions))


def row(number: int, **entries: int) -> Change:
    """`row(1, e2=7)` sets entry 2 of row 1 of the index."""
    return lambda s: s.index("w", number, **entries)


def base_of(block: int, value: int) -> Change:
    """Sets the base of a block, or a byte of the padding after them."""
    return put(BASES, block, bytes([value]))


def patched(at: int, rank: int | None = None, exponent: int | None = None) -> Change:
    """Sets what is given of patch number `at`."""
    return lambda s: s.patch("w", at, rank, exponent)


def flipped(rank: int, *bits: int) -> Change:
    """Flips bits of the element with that rank in values: first come its residue's, then its code's."""
    return lambda s: s.flip_element("w", rank, *bits)
