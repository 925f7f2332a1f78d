"""Endor files whose parts have the right sizes and the wrong contents (B-3 to B-10)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

from corpus.build import BLOCK, Sketch, Tensor, random_tensor, scattered, tensor_of
from corpus.case import Case
from corpus.change import BITMAP, INDEX, VALUES, Change, both, entry, flip, index, put, sealed
from corpus.invalid_metadata import changed

SMALL = tensor_of("w", "U16", [5, 0, 6, 0, 7, 8], [2, 3])
# Three blocks, the last one short, so that each has a side that the others lack.
NUMEL, STEP = 2 * BLOCK + 100, 37
BLOCKS = scattered("w", "U8", [1, NUMEL], {i: i % 200 + 1 for i in range(0, NUMEL, STEP)})
EMPTY = Tensor("w", "U16", [0, 7], b"")


def cases() -> Iterator[Case]:
    yield from tail_bits()
    yield from first_entry()
    yield from falling()
    yield from compensating_entries()
    yield from last_entry()
    yield from counts()
    yield from nnz()
    yield from padding()
    yield from stored_zeros()


def fault(name: str, rules: list[str], note: str, change: Change, t: Tensor = SMALL) -> Case:
    return changed(name, rules, note, sealed(change, t), t)


def one_more() -> Change:
    """A fifth element in values, and nnz to go with it."""
    return both(put(VALUES, 8, b"\x09\x00"), entry(nnz=5))


def tail_bits() -> Iterator[Case]:
    last = 8 * len(Sketch().add(BLOCKS).part(BITMAP).data) - 1
    for name, bit, note in [
        ("first", NUMEL, "the first bit after the last element is set"),
        ("same-byte", NUMEL + 3, "the last bit of the last element's byte is set"),
        ("next-byte", NUMEL + 4, "the first bit of the padding is set"),
        ("last", last, "the last bit of the padding is set"),
    ]:
        yield fault(f"b-3-tail-bit-{name}", ["B-3"], note, flip(bit), BLOCKS)
    t = random_tensor("w", "U8", [8, 8], seed=64)
    note = "numel is a multiple of 8, and the bit after it is set"
    yield fault("b-3-tail-bit-numel-64", ["B-3"], note, flip(64), t)
    note = "numel is a multiple of 64, and the last bit of the padding is set"
    yield fault("b-3-tail-bit-511", ["B-3"], note, flip(511), t)
    note = "a bit after the last element is set and counted, and has its value"
    counted = both(flip(6), one_more(), index(e1=5))
    yield fault("b-3-tail-bit-counted", ["B-3", "B-6"], note, counted)


def first_entry() -> Iterator[Case]:
    note = "the index begins with 1, and all else, nnz and values too, goes along"
    yield fault("b-4-all-shifted", ["B-4"], note, both(one_more(), index(e0=1, e1=5)))
    yield fault("b-4-one", ["B-4", "B-6"], "the index begins with 1", index(e0=1))
    yield fault("b-4-negative", ["B-4", "B-6"], "the index begins with -1", index(e0=-1))
    note = "the index of an empty tensor begins with 1"
    yield fault("b-4-empty", ["B-4", "B-7"], note, index(e0=1), EMPTY)


def entries() -> list[int]:
    """The index of BLOCKS."""
    data = Sketch().add(BLOCKS).part(INDEX).data
    return [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(4)]


def falling() -> Iterator[Case]:
    """An index that falls cannot match its bitmap: B-5 is never broken without B-6."""
    _, one, two, nnz = entries()
    largest, smallest = 2**63 - 1, -(2**63)
    for name, change, note in [
        ("falling", index(e1=two + 1), "the index falls"),
        ("negative", index(e1=-5), "an entry of the index amid the others is negative"),
        ("past-nnz", index(e1=nnz + 1), "an entry of the index amid the others is past nnz"),
        ("largest", index(e1=largest), "an entry of the index is the largest 64-bit integer"),
        (
            "wraps-around",
            index(e1=largest, e2=smallest),
            "the index goes from the largest to the smallest 64-bit integer: the difference wraps",
        ),
    ]:
        yield fault(f"b-5-{name}", ["B-5", "B-6"], note, change, BLOCKS)
    note = "the last entry of the index is less than the one before it"
    rules = ["B-5", "B-6", "B-7"]
    yield fault("b-5-falling-at-the-end", rules, note, index(e3=two - 1), BLOCKS)
    note, rules = "an entry is too high by 2^32, right in 32 bits", ["B-6", "B-5"]
    yield fault("b-6-right-in-32-bits", rules, note, index(e1=one + 2**32), BLOCKS)


def compensating_entries() -> Iterator[Case]:
    _, one, _, _ = entries()
    for name, by in [("high", 1), ("low", -1)]:
        note = f"an entry is too {name} by 1, so one block has an element too many, one too few"
        yield fault(f"b-6-entry-too-{name}", ["B-6"], note, index(e1=one + by), BLOCKS)
    note = "the first two blocks are said to hold nothing, the third one all"
    yield fault("b-6-all-in-the-last", ["B-6"], note, index(e1=0, e2=0), BLOCKS)


def last_entry() -> Iterator[Case]:
    nnz, rules = entries()[3], ["B-7", "B-6"]
    for name, value, note in [
        ("too-high", nnz + 1, "the last entry is too high by 1"),
        ("too-low", nnz - 1, "the last entry is too low by 1"),
        ("right-in-32-bits", nnz + 2**32, "the last entry is too high by 2^32, right in 32 bits"),
    ]:
        yield fault(f"b-7-{name}", rules, note, index(e3=value), BLOCKS)
    yield fault("b-7-zero", ["B-7", "B-5", "B-6"], "the last entry is 0", index(e3=0), BLOCKS)
    note = "the index is written big-endian"
    yield fault("b-7-big-endian", rules, note, put(INDEX, 8, pack(">q", 4)))


def counts() -> Iterator[Case]:
    for block, bit in [(0, 1), (1, BLOCK + 1), (2, 2 * BLOCK + 99)]:
        note = f"a bit of block {block} is 1 that ought to be 0; index and nnz do not know of it"
        yield fault(f"b-6-popcount-too-high-block-{block}", ["B-6"], note, flip(bit), BLOCKS)
    for block, bit in [(0, 0), (1, 111 * STEP), (2, 222 * STEP)]:
        note = f"a bit of block {block} is 0 that ought to be 1; index and nnz do not know of it"
        yield fault(f"b-6-popcount-too-low-block-{block}", ["B-6"], note, flip(bit), BLOCKS)
    note = "a bit moved from block 0 to block 1: their sum is right"
    yield fault("b-6-compensating", ["B-6"], note, flip(0, BLOCK + 1), BLOCKS)
    t = scattered("w", "U8", [2, BLOCK], dict.fromkeys((0, BLOCK - 1, BLOCK + 1), 9))
    note = "a bit moved by one across the boundary of blocks 0 and 1"
    yield fault("b-6-across-the-boundary", ["B-6"], note, flip(BLOCK - 1, BLOCK), t)
    note = "the bitmap is all 0, index and nnz say 4"
    yield fault("b-6-bitmap-zero", ["B-6"], note, put(BITMAP, 0, b"\0"))


def nnz() -> Iterator[Case]:
    note = "nnz is too high by 1, and values has an element for it: bitmap and index disagree"
    yield fault("b-7-nnz-too-high", ["B-7"], note, one_more())
    note = "nnz is too high by 1, and values has no element for it"
    yield fault("b-7-nnz-too-high-no-value", ["B-7", "B-10"], note, entry(nnz=5))
    note = "nnz is too low by 1, and values has the element that it leaves out"
    yield fault("b-7-nnz-too-low", ["B-7", "B-9"], note, entry(nnz=3))
    note = "nnz is too low by 1, and so has values an element less"
    one_less = both(put(VALUES, 6, b"\0\0"), entry(nnz=3))
    yield fault("b-7-nnz-and-values-too-low", ["B-7"], note, one_less)


def padding() -> Iterator[Case]:
    for name, change, note in [
        ("first", index(e2=1), "the first entry of the index's padding is 1"),
        ("last", index(e7=1), "the last entry of the index's padding is 1"),
        ("repeats-nnz", index(e2=4, e3=4), "the padding of the index repeats nnz"),
        ("high-byte", put(INDEX, -1, b"\x80"), "only the highest byte of a padding entry is not 0"),
    ]:
        yield fault(f"b-8-{name}", ["B-8"], note, change)
    note = "the padding of an empty tensor's index is not 0"
    yield fault("b-8-empty", ["B-8"], note, index(e1=1), EMPTY)
    for name, change, note in [
        ("first", put(VALUES, 8, b"\x01"), "the first byte of the padding of values is not 0"),
        ("last", put(VALUES, 63, b"\x01"), "the last byte of the padding of values is not 0"),
        ("negative-zero", put(VALUES, 9, b"\x80"), "a padding element of values is negative zero"),
    ]:
        yield fault(f"b-9-{name}", ["B-9"], note, change)


def stored_zeros() -> Iterator[Case]:
    for name, rank in [("first", 0), ("middle", 1), ("last", 3)]:
        note = f"the {name} stored element is a zero element"
        yield fault(f"b-10-{name}", ["B-10"], note, put(VALUES, 2 * rank, b"\0\0"))
    for dtype in ("U8", "BOOL", "F8_E8M0", "F32", "C64", "U64"):
        t = random_tensor("w", dtype, [3, 9], density=90, seed=65)
        name = f"b-10-{dtype.lower().replace('_', '-')}"
        note = f"a stored element of {dtype} is a zero element"
        yield fault(name, ["B-10"], note, put(VALUES, t.itemsize, bytes(t.itemsize)), t)
    note = "a zero element is stored in the second block"
    yield fault("b-10-second-block", ["B-10"], note, put(VALUES, 150, b"\0"), BLOCKS)
