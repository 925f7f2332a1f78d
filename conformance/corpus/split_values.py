"""Wrong contents of the part values: stored zeros (B-10), and padding (E-2)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import BLOCK, FLOATS, Split, floats, scattered, tensor_of
from corpus.case import Case, shown
from corpus.change import entry
from corpus.split_base import LOW, SMALL, Base, flipped, inside, patched


def cases() -> Iterator[Case]:
    yield from stored_zeros()
    yield from values_padding()


def stored_zeros() -> Iterator[Case]:
    note = "the first stored element is a zero: residue 0, and the code 0 of a window from 0 on"
    yield inside("b-10-split-code-0", ["B-10"], note, flipped(0, 0), LOW)
    # Stored element 1 has exponent 1 and no mantissa: its code has a single bit.
    note = "a stored element becomes a zero by its code"
    yield inside("b-10-split-code-cleared", ["B-10"], note, flipped(1, LOW.entry("mantissa") + 1), LOW)
    sign = Base(tensor_of("w", "BF16", [0x8000, 0, 0x0080, 0x3F80], [2, 2]), Split(1))
    note = "a negative zero loses its sign"
    yield inside("b-10-split-negative-zero", ["B-10"], note, flipped(0, sign.entry("mantissa")), sign)
    small = Base(tensor_of("w", "F16", [0x3C00, 0x3C00, 0x0400, 0x3C00, 0, 0x4000], [2, 3]), Split(1))
    note = "a stored element is a zero by its patch of exponent 0"
    yield inside("b-10-split-patch-0", ["B-10"], note, patched(0, exponent=0), small)
    for dtype in ("F8_E4M3", "F8_E5M2FNUZ", "F32"):
        most = FLOATS[dtype][1]
        t = tensor_of("w", dtype, [3 << most] * 30 + [0, 1 << most], [4, 8])
        base = Base(t, Split(1))
        note = f"the last stored element of {dtype} is a zero by its patch"
        name = f"b-10-split-{shown(dtype)}"
        yield inside(name, ["B-10"], note, patched(0, exponent=0), base)
    second = dict.fromkeys(range(50), 0x3F80) | {BLOCK + i: 0x0080 for i in range(50)}
    base = Base(scattered("w", "BF16", [2, BLOCK], second), Split(1, bases={1: 0}))
    note = "a zero element is stored in the second block"
    yield inside("b-10-split-second-block", ["B-10"], note, flipped(70, 1), base)


def values_padding() -> Iterator[Case]:
    """Bits of elements that there are not, wherever they lie in a group."""
    n = SMALL.entry("nnz")
    assert 0 < n < 63
    for name, rank, bit, note in [
        ("byte-row-first", n, 0, "the byte of the first element that is not there"),
        ("byte-row-high-bit", n, 7, "the highest bit of that byte"),
        ("byte-row-last", 63, 3, "the byte of the last place of the group"),
        ("residue-row-first", n, 8, "a row of bits of the residue"),
        ("residue-row-last", 63, 10, "the last row of bits of the residue"),
        ("code-row-first", n, 11, "the first row of the code"),
        ("code-row-last", 63, 12, "the last bit of the group"),
        ("next-group-byte", 64, 0, "the first byte of a group of padding"),
        ("next-group-code", 64 + 9, 11, "a code in a group of padding"),
        ("last-group-byte", 511, 0, "the last byte of the rows of bytes in the last group"),
        ("last-bit", 511, 12, "the last bit of values"),
    ]:
        yield inside(f"e-2-{name}", ["E-2"], f"not 0: {note}", flipped(rank, bit))
    for n in (64, 448, 513):
        base = Base(floats("w", "F8_E4M3", [n, 1], 100, 940 + n, kept=0), Split(1, "all"))
        for bit in (0, 1):
            what = ("residue", "code")[bit]
            note = f"{n} elements, and the {what} of another one, in a row of bits"
            yield inside(f"e-2-of-{n}-{what}", ["E-2"], note, flipped(n, bit), base)
    base = Base(floats("w", "F32", [3, 9], 100, 941), Split(2, "all"))
    for bit in (0, 7, 8, 23, 24, 25):
        note = f"F32, residues of three bytes: bit {bit} of an element that is not there"
        yield inside(f"e-2-f32-bit-{bit}", ["E-2"], note, flipped(30, bit), base)
    more = Base(tensor_of("w", "BF16", [0x3F80] * 512 + [0] * 60, [4, 143]), Split(1))
    note = "nnz is a multiple of 512, and there is no padding: nnz one less"
    rules = ["B-7", "B-6", "B-5", "E-2"]
    yield inside("b-7-split-nnz-511", rules, note, entry(nnz=511), more)
