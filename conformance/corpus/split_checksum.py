"""Digests of tensors with split values (D-2): what they cover, and what only they can tell."""

from __future__ import annotations

from collections.abc import Iterator

from corpus import checksum
from corpus.build import BLOCK, Sketch, Split, digest, floats, tensor_of
from corpus.case import ACCEPT, NONCANONICAL, REJECT, Case, newer
from corpus.change import BITMAP, Change, both, entry, nothing
from corpus.split_base import EMPTY, EMPTY_ALL, RAW, SMALL, SOME, Base, base_of, flipped, patched, row, tiny


def cases() -> Iterator[Case]:
    yield from covered()
    yield from changed()


def told(name: str, note: str, change: Change, base: Base = SMALL) -> Case:
    """A change that only the digest tells."""
    return newer(checksum.case(name, ["D-2"], base.changed(change), REJECT, note), ["w"])


def right(name: str, note: str, base: Base, change: Change = nothing) -> Case:
    expect = ACCEPT if change is nothing else NONCANONICAL
    return newer(checksum.case(name, ["D-2"], base.changed(change), expect, note, base.tensor), ["w"])


def covering(*members: str) -> Change:
    """A digest over other members than it should be over."""
    return lambda s: s.entry("w").update(digest=digest("w", s.entry("w"), s.parts("w"), members))


def covered() -> Iterator[Case]:
    yield right("d-2-split-right", "the digest is right: seven members, five parts", SMALL)
    yield right("d-2-all-right", "the digest is right: seven members, four parts", tiny("BF16"))
    yield right("d-2-split-long", "the digest of three blocks", SOME)
    yield right("d-2-split-empty", "the digest of an empty tensor", EMPTY)
    yield right("d-2-all-empty", "the digest of an empty tensor", EMPTY_ALL)
    note = "the digest does not cover nnz with positions all"
    yield right("d-2-all-nnz-not-covered", note, tiny("BF16"), entry(nnz=12))
    note = "the digest covers the parts in the order of B-2, not in that of the file"
    yield right("d-2-split-parts-reversed", note, SMALL, lambda s: s.physical.reverse())
    s = Sketch().add(RAW)
    entry(w=1, mantissa=2, patches=3)(s)
    note = "the digest of raw values does not cover members of split ones"
    yield checksum.case("d-2-raw-with-members-of-split", ["D-2"], s, NONCANONICAL, note, RAW)
    old = ("dtype", "nnz", "positions", "shape", "values")
    note = "a digest over the members of 1.0 only"
    yield told("d-2-split-members-of-1-0", note, covering(*old))
    for member in ("w", "mantissa", "patches", "nnz"):
        keys = {"w", "mantissa", "patches", *old} - {member}
        yield told(f"d-2-split-without-{member}", f"a digest without {member}", covering(*keys))
    note = "a digest that covers nnz with positions all"
    with_nnz = both(entry(nnz=27), covering("w", "mantissa", "patches", *old))
    yield told("d-2-all-covers-nnz", note, with_nnz, tiny("BF16"))


def changed() -> Iterator[Case]:
    """Changes that keep all other rules."""
    unpatched = min({0, 1, 2, 3, 4} - {rank for rank, _ in SMALL.patches()})
    for name, change, note in [
        ("residue", flipped(2, 3), "a bit of a residue"),
        ("sign", flipped(2, 10), "the sign of an element"),
        ("code", flipped(unpatched, 11), "a bit of a code"),
        ("bit-moved", moved_bit, "a bit of the bitmap has moved"),
    ]:
        yield told(f"d-2-split-{name}-changed", f"{note} has changed: only the digest can tell", change)
    exponent = next(e for e in (29, 30, 28) if e not in {x for _, x in SMALL.patches()[:1]})
    note = "the exponent of a patch has changed: only the digest can tell"
    yield told("d-2-split-exponent-changed", note, patched(0, exponent=exponent))
    odd = Base(
        tensor_of("w", "BF16", [0x3F80] * 30 + [0x0100] + [0x3F80] * 9, [4, 10]),
        Split(1, "all", bases={0: 127}),
    )
    note = "a patch belongs to another element: only the digest can tell"
    yield told("d-2-split-rank-changed", note, patched(0, 33), odd)
    note = "the base of a block has changed: only the digest can tell"
    yield told("d-2-split-base-changed", note, base_of(0, odd.bases()[0] - 1), odd)
    two = [0x3F80] * (BLOCK + 60)
    two[7], two[BLOCK + 30] = 0x0100, 0x0200
    pair = Base(tensor_of("w", "BF16", two, [4, 1039]), Split(1, "all", bases={0: 127, 1: 127}))
    note = "a patch is counted to the block before: only the digest can tell"
    yield told("d-2-split-patch-of-another-block", note, row(0, e1=2), pair)
    wide = Base(floats("w", "BF16", [4, 10], 100, 943, kept=5, odd=0, width=2), Split(2, "all", 5))
    note = "w and mantissa have changed, their sum has not: only the digest can tell"
    yield told("d-2-split-w-for-mantissa", note, entry(w=1, mantissa=6), wide)
    yield told("d-2-split-shape-changed", "the shape in the entry has changed", entry(shape=[30, 2]))


def moved_bit(s: Sketch) -> None:
    """Moves a stored element by one place."""
    bitmap = s.part(BITMAP).data
    at = next(
        i for i in range(58) if bitmap[i // 8] >> i % 8 & 1 and not bitmap[(i + 1) // 8] >> (i + 1) % 8 & 1
    )
    s.flip(BITMAP, at).flip(BITMAP, at + 1)
