"""Digests (rules D-2 to D-4): most of these cases run with digest checking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from corpus.build import Sketch, Tensor, random_tensor, scattered
from corpus.case import ACCEPT, EITHER, NONCANONICAL, REJECT, UNSUPPORTED, Case, listing
from corpus.xxh3 import xxh3_64

W = random_tensor("w", "F16", [7, 19], seed=91)


def cases() -> Iterator[Case]:
    yield from right()
    yield from lengths()
    yield from wrong()
    yield from unknown()


def case(name: str, rules: list[str], sketch: Sketch, expect: str, notes: str, *tensors: Tensor) -> Case:
    """Checked digests, and L2, unless the case says otherwise."""
    errors = rules if expect == REJECT else []
    listed = None if errors else listing(list(tensors or (W,)))
    return Case(
        "checksum",
        name,
        rules,
        sketch.render(),
        expect,
        "L2",
        notes,
        error_rules=errors,
        tensors=listed,
        digests=True,
    )


def right() -> Iterator[Case]:
    yield case("d-2-right", ["D-2"], Sketch().add(W), ACCEPT, "the digest is right")
    empty = Tensor("w", "F16", [0, 3], b"")
    note = "the digest of an empty tensor"
    yield case("d-2-empty", ["D-2"], Sketch().add(empty), ACCEPT, note, empty)
    big = random_tensor("w", "U8", [3, 4000], density=30, seed=92)
    note = "the digest of a tensor of three blocks, over more than 1024 bytes"
    yield case("d-2-long", ["D-2"], Sketch().add(big), ACCEPT, note, big)
    name = 'a"\\/\t\x01\x7f\u00e9\u2028\U0001f600'
    odd = random_tensor(name, "F16", [7, 19], seed=91)
    note = "a name with all that canonical JSON text escapes, and what it does not"
    yield case("d-2-odd-name", ["D-2"], Sketch().add(odd), ACCEPT, note, odd)
    shape = random_tensor("w", "U8", [1, 0, 1], seed=1)
    note = "a shape with 0 in its middle"
    yield case("d-2-shape-1-0-1", ["D-2"], Sketch().add(shape), ACCEPT, note, shape)

    def rewritten(sketch: Sketch) -> Sketch:
        text = '{ "w": {"values": "r\\u0061w", "x": [1.50], '
        entry = sketch.entry("w")
        for key in ("shape", "positions", "nnz", "dtype", "digest"):
            text += f'"{key}": {entry[key]}, '.replace("'", '"')
        for key in ("positions", "dtype", "digest"):
            text = text.replace(f" {entry[key]},", f' "{entry[key]}",')
        sketch.edit = lambda _: '{"version": "1.3", "tensors": ' + text[:-2] + "}}}"
        return sketch

    note = "the digest covers the canonical text of five members, not the text in the file"
    yield case("d-2-text-not-canonical", ["D-2"], rewritten(Sketch().add(W)), NONCANONICAL, note)

    def disordered(sketch: Sketch) -> Sketch:
        sketch.physical.reverse()
        return sketch

    note = "the digest covers the parts in the order of B-2, not in that of the file"
    yield case("d-2-parts-reversed", ["D-2"], disordered(Sketch().add(W)), NONCANONICAL, note)
    without = Sketch().add(W)
    without.entry("w").pop("digest")
    note = "no digest: nothing to check"
    yield case("d-3-no-digest", ["D-3"], without, NONCANONICAL, note)


def lengths() -> Iterator[Case]:
    """XXH3-64 takes other ways up to 240 bytes and beyond, and works in steps of 16, 64 and 1024."""
    # The canonical text of an empty U8 tensor without a name, and its index of 64 zeros.
    shortest = 77 + 64
    short = (141, 144, 160, 161, 175, 176, 193, 208, 224, 239, 240, 241, 256, 257, 320)
    for length in (*short, 1024, 1025, 1088, 1089, 2049):
        name = ("name." * 400)[: length - shortest]
        t = Tensor(name, "U8", [0, 1], b"")
        note = f"the digest covers {length} bytes"
        yield case(f"d-2-of-{length}-bytes", ["D-2"], Sketch().add(t), ACCEPT, note, t)


def wrong() -> Iterator[Case]:
    def altered(name: str, notes: str, change: Callable[[Sketch], object], t: Tensor = W) -> Case:
        sketch = Sketch().add(t)
        change(sketch)
        return case(name, ["D-2"], sketch, REJECT, notes)

    def set_digest(make: Callable[[str], str]) -> Callable[[Sketch], None]:
        return lambda s: s.entry("w").update(digest="xxh3_64:" + make(s.entry("w")["digest"][8:]))

    for name, make, note in [
        ("last-digit", lambda d: d[:-1] + f"{int(d[-1], 16) ^ 1:x}", "one digit is wrong"),
        ("first-digit", lambda d: f"{int(d[0], 16) ^ 8:x}" + d[1:], "one bit is wrong"),
        ("zero", lambda d: "0" * 16, "all digits are 0"),
        ("byte-order", lambda d: bytes.fromhex(d)[::-1].hex(), "the bytes are in reverse"),
        ("of-nothing", lambda d: "2d06800538d394c2", "the digest of no bytes"),
    ]:
        yield altered(f"d-2-digits-{name}", f"the digest's digits: {note}", set_digest(make))

    def parts_only(s: Sketch) -> None:
        s.entry("w")["digest"] = f"xxh3_64:{xxh3_64(s.data()):016x}"

    yield altered("d-2-without-text", "a digest of the parts without the text", parts_only)

    note = "a stored element has changed by a bit: only the digest can tell"
    yield altered("d-2-value-changed", note, lambda s: s.flip("w", 3))
    few = scattered("w", "U16", [4, 9], {3: 7, 9: 8})
    note = "a bit of the bitmap has moved inside its block: only the digest can tell"
    yield altered(
        "d-2-bit-moved", note, lambda s: s.flip("w.endor.bitmap", 9).flip("w.endor.bitmap", 10), few
    )
    note = "two stored elements have changed places: only the digest can tell"
    yield altered("d-2-values-swapped", note, lambda s: s.change("w", 0, b"\x08\0\x07\0"), few)
    for member, value in [("shape", [19, 7]), ("dtype", "BF16")]:

        def change(s: Sketch, m: str = member, v: Any = value) -> None:
            s.entry("w")[m] = v
            s.part("w").dtype = s.entry("w")["dtype"]

        note = f"the {member} in the entry has changed: only the digest can tell"
        yield altered(f"d-2-{member}-changed", note, change)

    def renamed(s: Sketch) -> None:
        for p in s.physical:
            p.name = "v" + p.name[1:]
        s.endor["tensors"]["v"] = s.endor["tensors"].pop("w")

    note = "the tensor has another name: only the digest can tell"
    yield altered("d-2-renamed", note, renamed)

    unasked = altered("d-3-not-asked-for", "", lambda s: s.flip("w", 3))
    changed = bytearray(W.data)
    first = next(i for i in range(0, len(changed), 2) if changed[i : i + 2] != b"\0\0")
    changed[first] ^= 8
    unasked.digests, unasked.expect, unasked.answers = False, EITHER, [ACCEPT, REJECT]
    unasked.tensors = listing([Tensor("w", W.dtype, W.shape, bytes(changed))])
    unasked.rules = ["D-3", "D-2"]
    unasked.notes = "the digest is wrong, and nobody has asked to check it: a reader may"
    yield unasked


def unknown() -> Iterator[Case]:
    v = random_tensor("v", "U8", [4, 9], seed=93)
    for name, algorithm in [("longer", "xxh3_128:" + "0" * 32), ("short", "crc_2:0")]:
        sketch = Sketch().add(W).add(v)
        sketch.entry("w")["digest"] = algorithm
        note = "an algorithm that 1.0 does not know, and checking is asked for"
        asked = case(f"d-4-{name}", ["D-4"], sketch, UNSUPPORTED, note, W, v)
        assert asked.tensors is not None
        asked.tensors[0]["unverified"] = algorithm.split(":")[0]
        yield asked
        note = "an algorithm that 1.0 does not know, and nobody asks to check it"
        unasked = case(f"d-4-{name}-not-asked-for", ["D-4"], sketch, NONCANONICAL, note, W, v)
        unasked.digests = False
        yield unasked
