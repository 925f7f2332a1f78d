"""Slices (L4): elements `start` to `stop` - 1 of a flattened tensor, decoded on their own.

A slice of None must be rejected, as B-11 asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from corpus.build import BITS, BLOCK, Sketch, Tensor, canonical, random_tensor, scattered
from corpus.case import ACCEPT, Case, sha


def cases() -> Iterator[Case]:
    t = random_tensor("w", "BF16", [3, 4001], density=30, seed=11)
    n = 3 * 4001
    edges = [
        (0, n),
        (0, 1),
        (n - 1, n),
        (0, BLOCK),
        (BLOCK - 1, BLOCK + 1),
        (BLOCK, 2 * BLOCK),
        (BLOCK + 1, 2 * BLOCK + 1),
        (2 * BLOCK, n),
        (100, n - 100),
        (4001, 8002),
        (5, 5),
        (n, n),
        (0, 0),
    ]
    note = "three blocks: whole blocks, their edges, single elements, nothing"
    yield right("b-11-three-blocks", [t], {"w"}, [("w", a, b) for a, b in edges], note)
    single = [(i, i + 1) for i in (0, 1, 7, 8, 63, 64, 511, BLOCK - 1, BLOCK, BLOCK + 65, n - 1)]
    yield right(
        "b-11-single-elements",
        [random_tensor("w", "U8", [n], density=50, seed=12)],
        {"w"},
        [("w", a, b) for a, b in single],
        "one element at a time: its rank must be right",
    )
    some = {BLOCK * 3 + 5: 1 << 40, BLOCK * 8 - 1: 2, BLOCK * 8: 3}
    t = scattered("w", "U64", [9, BLOCK], some)
    spans = [(BLOCK * b, BLOCK * (b + 1)) for b in (0, 3, 7, 8)] + [(0, 9 * BLOCK)]
    note = "most blocks are empty"
    yield right("b-11-empty-blocks", [t], {"w"}, [("w", a, b) for a, b in spans], note)
    tensors = [
        random_tensor("c", "C64", [2, 2100], density=20, seed=13),
        random_tensor("p", "I32", [50, 3], density=100, seed=14),
        Tensor("e", "F16", [0, 3], b""),
    ]
    asked = [("c", 4095, 4097), ("c", 0, 4200), ("p", 7, 100), ("p", 149, 150), ("e", 0, 0)]
    note = "slices of an encoded, a plain and an empty tensor"
    yield right("b-11-several-tensors", tensors, {"c", "e"}, asked, note)
    four_bits = [Tensor("w", "F4", [3, 2], b"\x21\x43\x65")]
    note = "slices of elements of four bits that are whole bytes"
    yield right("c-10-whole-bytes", four_bits, set(), [("w", 0, 6), ("w", 2, 4)], note)
    yield from unsupported(four_bits[0])
    yield from faults()


def unsupported(four_bits: Tensor) -> Iterator[Case]:
    t = random_tensor("w", "U8", [2, 3000], density=50, seed=15)
    for name, sketch, asked, note in [
        (
            "c-10-half-a-byte",
            Sketch().add(four_bits, encode=False),
            [("w", 0, 1), ("w", 1, 2), ("w", 1, 3)],
            "half a byte",
        ),
        (
            "b-11-no-such-tensor",
            Sketch().add(t),
            [("v", 0, 1), ("w.endor.bitmap", 0, 1)],
            "no tensor of the file",
        ),
        (
            "b-11-past-the-end",
            Sketch().add(t),
            [("w", 0, 6001), ("w", 6001, 6001)],
            "elements that are not there",
        ),
        ("b-11-reversed", Sketch().add(t), [("w", 2, 1)], "a slice that ends before it begins"),
        ("m-7-unknown-encoding", listed(t), [("w", 0, 1)], "a tensor that cannot be decoded"),
    ]:
        slices = [[*one, None] for one in asked]
        what = f"what cannot be answered: {note}"
        yield Case("slice", name, ["B-11"], sketch.render(), "unsupported", "L4", what, slices=slices)


def listed(t: Tensor) -> Sketch:
    sketch = Sketch().add(t)
    sketch.entry("w")["positions"] = "list"
    return sketch


def right(
    name: str, tensors: list[Tensor], encode: set[str], asked: list[tuple[str, int, int]], note: str
) -> Case:
    by_name = {t.name: t for t in tensors}
    slices: list[list[Any]] = []
    for which, start, stop in asked:
        t = by_name[which]
        low, high = (end * BITS[t.dtype] // 8 for end in (start, stop))
        slices.append([which, start, stop, sha(t.data[low:high])])
    data = canonical(tensors, encode)
    return Case("slice", name, ["B-11"], data, ACCEPT, "L4", note, slices=slices)


def edges_of_the_index() -> Iterator[Case]:
    """Files without padding of values, so that what lies behind them is the bitmap of the tensor."""
    shape = [3, BLOCK]
    some = [*range(0, 64, 2), *range(BLOCK, BLOCK + 64, 2)]
    t = scattered("w", "U8", shape, dict.fromkeys(some, 9))
    beyond = Sketch().add(t).index("w", e1=33, e2=65).seal("w").render()
    note = "the entry after block 1 is one beyond nnz: what is read there is no value"
    slices = [["w", BLOCK, 2 * BLOCK, None], ["w", BLOCK + 63, BLOCK + 64, None]]
    yield Case("slice", "b-5-one-beyond", ["B-11", "B-5"], beyond, "reject", "L4", note, slices=slices)
    fewer = Sketch().add(t).index("w", e3=63).seal("w").render()
    note = "the last entry is not nnz, in a slice of the first block"
    slices = [["w", 0, BLOCK, None], ["w", 5, 6, None]]
    yield Case("slice", "b-7-elsewhere", ["B-11", "B-7"], fewer, "reject", "L4", note, slices=slices)
    # One element less than the bitmap has room for: its bit is set, counted by the index and by nnz.
    n = 3 * BLOCK - 1
    last = [*range(0, 64, 2), *range(BLOCK, BLOCK + 62, 2), n - 1]
    sketch = Sketch().add(scattered("w", "U8", [n, 1], dict.fromkeys(last, 9)))
    sketch.flip("w.endor.bitmap", n - 1).flip("w.endor.bitmap", n)
    note = "the bit after the last element is set, and counted everywhere as one of the elements"
    slices = [["w", 2 * BLOCK, n, None], ["w", n - 1, n, None]]
    yield Case(
        "slice",
        "b-3-counted",
        ["B-11", "B-3"],
        sketch.seal("w").render(),
        "reject",
        "L4",
        note,
        slices=slices,
    )


def faults() -> Iterator[Case]:
    yield from edges_of_the_index()
    t = scattered("w", "U8", [2 * BLOCK + 100], dict.fromkeys(range(0, 2 * BLOCK + 100, 37), 9))
    t = Tensor("w", "U8", [1, len(t.data)], t.data)
    n = len(t.data)
    bitmap = "w.endor.bitmap"
    counts = [len(range(0, BLOCK * b, 37)) for b in range(4)]
    far = {f"e{b}": 2**40 + counts[b] for b in (1, 2)}
    changes: list[tuple[str, Callable[[Sketch], Sketch], list[tuple[int, int]], str]] = [
        (
            "b-6",
            lambda s: s.flip(bitmap, BLOCK + 1),
            [(BLOCK, 2 * BLOCK), (BLOCK + 9, BLOCK + 10), (0, n)],
            "a bit of block 1",
        ),
        ("b-5", lambda s: s.index("w", e1=10**6), [(0, 1), (BLOCK, BLOCK + 1)], "an index entry"),
        (
            "b-5-far-away",
            lambda s: s.index("w", **far),
            [(BLOCK, BLOCK + 1), (BLOCK, 2 * BLOCK)],
            "both entries of block 1 are beyond nnz, and as far apart as they should be",
        ),
        ("b-4", lambda s: s.index("w", e0=1), [(0, 1), (n - 1, n)], "entry 0 of the index"),
        ("b-8", lambda s: s.index("w", e4=1), [(n - 1, n)], "the padding of the index"),
        ("b-9", lambda s: s.change("w", -1, b"\1"), [(n - 1, n)], "the padding of values"),
        ("b-3", lambda s: s.flip(bitmap, n), [(n - 1, n)], "a bit after the last element"),
        ("b-7", lambda s: s.index("w", e3=1), [(n - 1, n), (0, 1)], "the last entry of the index"),
        ("b-10", lambda s: s.change("w", 1, b"\0"), [(30, 40), (37, 38)], "a stored zero"),
    ]
    for rule, change, spans, what in changes:
        sketch = Sketch().add(t)
        data = change(sketch).seal("w").render()
        slices = [["w", a, b, None] for a, b in spans]
        note = f"a fault in the blocks that the slice needs: {what}"
        rules = ["B-11", rule[:3].upper()]
        yield Case("slice", f"{rule}-in-the-slice", rules, data, "reject", "L4", note, slices=slices)
