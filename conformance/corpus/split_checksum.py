"""Digests of tensors with split values (D-2): what they cover, and what only they can tell."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import BLOCK, PARTS, Sketch, Split, floats, random_tensor, tensor_of, to_json
from corpus.case import REJECT, Case, listing, newer
from corpus.change import BITMAP, Change, both, entry, nothing
from corpus.split_base import EMPTY, EMPTY_ALL, SMALL, SOME, Base, base_of, of, patched, row
from corpus.xxh3 import xxh3_64


def cases() -> Iterator[Case]:
    yield from checksums()


def checksums() -> Iterator[Case]:
    """What the parts alone do not show."""

    def told(name: str, note: str, change: Change, base: Base = SMALL) -> Case:
        s = base.sketch()
        change(s)
        case = Case("checksum", name, ["D-2"], s.render(), REJECT, "L2", note, error_rules=["D-2"])
        case.digests = True
        return newer(case, ["w"])

    def right(name: str, note: str, base: Base, change: Change = nothing) -> Case:
        s = base.sketch()
        change(s)
        expect = "accept" if change is nothing else "accept-noncanonical"
        told = listing([base.tensor])
        case = Case("checksum", name, ["D-2"], s.render(), expect, "L2", note, tensors=told, digests=True)
        return newer(case, ["w"])

    yield right("d-2-split-right", "the digest is right: seven members, five parts", SMALL)
    yield right("d-2-all-right", "the digest is right: seven members, four parts", of("BF16"))
    yield right("d-2-split-long", "the digest of three blocks", SOME)
    yield right("d-2-split-empty", "the digest of an empty tensor", EMPTY)
    yield right("d-2-all-empty", "the digest of an empty tensor", EMPTY_ALL)
    note = "the digest does not cover nnz with positions all"
    yield right("d-2-all-nnz-not-covered", note, of("BF16"), entry(nnz=12))
    note = "the digest covers the parts in the order of B-2, not in that of the file"
    yield right("d-2-split-parts-reversed", note, SMALL, lambda s: s.physical.reverse())
    raw = random_tensor("w", "BF16", [5, 31], seed=81)
    s = Sketch().add(raw)
    entry(w=1, mantissa=2, patches=3)(s)
    note = "the digest of raw values does not cover members of split ones"
    case = Case(
        "checksum",
        "d-2-raw-with-members-of-split",
        ["D-2"],
        s.render(),
        "accept-noncanonical",
        "L2",
        note,
        tensors=listing([raw]),
        digests=True,
    )
    yield case

    def covering(*keys: str) -> Change:
        """A digest over other members than it should be over."""

        def change(s: Sketch) -> None:
            there = {p.name: p.data for p in s.physical}
            text = to_json({"w": {k: v for k, v in s.entry("w").items() if k in keys}}).encode()
            data = b"".join(there.get("w" + suffix, b"") for suffix in PARTS)
            s.entry("w")["digest"] = f"xxh3_64:{xxh3_64(text + data):016x}"

        return change

    old = ("dtype", "nnz", "positions", "shape", "values")
    note = "a digest over the members of 1.0 only"
    yield told("d-2-split-members-of-1-0", note, covering(*old))
    for member in ("w", "mantissa", "patches", "nnz"):
        keys = {"w", "mantissa", "patches", *old} - {member}
        yield told(f"d-2-split-without-{member}", f"a digest without {member}", covering(*keys))
    note = "a digest that covers nnz with positions all"
    with_nnz = both(entry(nnz=27), covering("w", "mantissa", "patches", *old))
    yield told("d-2-all-covers-nnz", note, with_nnz, of("BF16"))
    # Changes that keep all other rules.
    unpatched = min({0, 1, 2, 3, 4} - {rank for rank, _ in SMALL.patches()})
    for name, change, note in [
        ("residue", lambda s: s.flip_element("w", 2, 3), "a bit of a residue"),
        ("sign", lambda s: s.flip_element("w", 2, 10), "the sign of an element"),
        ("code", lambda s: s.flip_element("w", unpatched, 11), "a bit of a code"),
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
