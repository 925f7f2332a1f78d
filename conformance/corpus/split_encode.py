"""Canonical encodings of format 1.1 (L3): what is chosen (W-7, W-10), and how values are split (W-9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from corpus.build import (
    BLOCK,
    Split,
    Tensor,
    canonical,
    floats,
    patterns,
    physical,
    plain_file,
    random_tensor,
    scattered,
    tensor_of,
)
from corpus.case import ACCEPT, Case, shown
from corpus.split_choice import PLAIN, RAW, Choice, choose, cost_of, costs


def cases() -> Iterator[Case]:
    yield from every_choice()
    yield from dtypes()
    yield from asked_for()
    yield from ties()
    yield from savings()
    yield from fields()
    yield from shapes()


def pair(
    name: str, rules: list[str], tensors: list[Tensor], wanted: list[Choice], notes: str, values: str = ""
) -> Case:
    """`wanted` says what a case is about, so that it cannot come to be about something else."""
    chosen = [choose(t, values) for t in tensors]
    assert chosen == wanted, (name, [costs(t) for t in tensors], chosen)
    how = {t.name: None if c == RAW else c for t, c in zip(tensors, chosen, strict=True) if c != PLAIN}
    source = plain_file([physical(t) for t in tensors])
    target = canonical(tensors, how)  # type: ignore[arg-type]
    rules = list(dict.fromkeys([*rules, "W-6", "V-3"]))
    case = Case("encode", name, rules, source, ACCEPT, "L3", notes, expected=target, values=values)
    case.since = "1.1"
    return case


def spread(width: int, n: int, kept: int, density: int = 100, odd: int = 0, seed: int = 960) -> Tensor:
    """BF16 whose exponents are `width` in a row."""
    return floats("w", "BF16", [1, n], density, seed + width, kept=kept, low=110, width=width, odd=odd)


def with_counts(counts: dict[int, int], kept: int, zeros: int = 0, name: str = "w") -> Tensor:
    """BF16 with so many elements of each exponent, all with some mantissa, and zeros at the end."""
    elements = [e << 7 | 1 << (7 - kept) if kept else e << 7 for e, n in counts.items() for _ in range(n)]
    return tensor_of(name, "BF16", elements + [0] * zeros, [1, len(elements) + zeros])


def every_choice() -> Iterator[Case]:
    for w in (1, 2, 3, 4):
        t = spread(2**w, 1536, 4)
        note = f"a dense tensor of {2**w} exponents in a row: positions all, w = {w}"
        yield pair(f"w-10-all-w-{w}", ["W-10", "W-9"], [t], [Split(w, "all")], note)
        t = spread(2**w, 2048, 3, density=50)
        note = f"half zeros, {2**w} exponents in a row: positions bitmap, w = {w}"
        yield pair(f"w-10-bitmap-w-{w}", ["W-10", "W-9"], [t], [Split(w)], note)
    t = random_tensor("w", "BF16", [2, 900], density=20)
    note = "exponents of all kinds: raw, as patches would cost more"
    yield pair("w-10-raw", ["W-10"], [t], [RAW], note)
    t = spread(4, 300, 7)
    yield pair("w-7-split-too-small", ["W-7", "W-10"], [t], [PLAIN], "so small a tensor stays plain")
    t = spread(3, BLOCK + 900, 3, density=40, odd=2)
    note = "two blocks with patches, groups across their boundary"
    yield pair("w-10-two-blocks", ["W-10", "W-9", "B-2"], [t], [Split(2)], note)
    t = spread(2, BLOCK + 900, 1, odd=1)
    yield pair(
        "w-10-all-two-blocks", ["W-10", "W-9", "B-2"], [t], [Split(1, "all")], "two blocks with patches"
    )
    tensors = [
        floats("norm", "F32", [5]),
        replace(spread(4, 1536, 4), name="all", shape=[16, 96]),
        random_tensor("ints", "I16", [30, 60], 5),
        replace(spread(4, 2048, 3, 50), name="some", shape=[32, 64]),
        random_tensor("raw", "BF16", [18, 100], 20),
    ]
    wanted: list[Choice] = [PLAIN, Split(2, "all"), RAW, Split(2), RAW]
    note = "all choices in one file of version 1.1, in the given order"
    yield pair("w-5-all-encodings", ["W-5", "W-10"], tensors, wanted, note)


def dtypes() -> Iterator[Case]:
    for dtype, n in [("BF16", 1500), ("F16", 1500), ("F32", 700), ("F8_E4M3", 4000), ("F8_E4M3FNUZ", 4000)]:
        t = floats("w", dtype, [1, n], 100, 970, kept=1, width=2)
        note = f"{dtype}, dense, of two exponents and one mantissa bit"
        yield pair(f"w-10-{shown(dtype)}", ["W-10"], [t], [Split(1, "all")], note)
    for dtype in ("F8_E5M2", "F8_E5M2FNUZ"):
        t = floats("w", dtype, [1, 4500], 100, 971, kept=0, width=4, odd=1)
        note = f"{dtype}, dense, of four exponents and no mantissa bits, with patches"
        yield pair(f"w-10-{shown(dtype)}", ["W-10"], [t], [Split(2, "all")], note)
    for dtype, t in {
        "F64": scattered("w", "F64", [20, 50], dict.fromkeys(range(0, 1000, 9), 0x3FF << 52)),
        "I32": tensor_of("w", "I32", [0x3F800000] * 1000, [10, 100]),
        "F8_E8M0": tensor_of("w", "F8_E8M0", [127] * 4000, [40, 100]),
    }.items():
        note = f"{dtype} has no split values"
        wanted = RAW if dtype == "F64" else PLAIN
        yield pair(f"w-10-{shown(dtype)}", ["W-10", "W-7"], [t], [wanted], note)


def asked_for() -> Iterator[Case]:
    dense, half = spread(4, 1536, 4), replace(spread(4, 2048, 3, 50), name="v", shape=[32, 64])
    note = "raw values are asked for: what split ones would make small stays plain, or bitmap and raw"
    yield pair("w-10-raw-asked-for", ["W-10", "W-7"], [dense, half], [PLAIN, RAW], note, "raw")
    t = random_tensor("w", "BF16", [2, 1000], density=3)
    note = "split values are asked for, where raw ones are smaller"
    assert choose(t) == RAW
    yield pair("w-10-split-asked-for", ["W-10"], [t], [choose(t, "split")], note, "split")
    ints = random_tensor("i", "I32", [20, 30], 5)
    note = "split values are asked for: dtypes without them have raw ones"
    yield pair("w-10-split-asked-for-ints", ["W-10"], [ints, t], [RAW, choose(t, "split")], note, "split")
    small = random_tensor("w", "BF16", [1, 300], density=50)
    note = "split values are asked for, and do not save 5 %"
    yield pair("w-7-split-asked-for-too-small", ["W-7"], [small], [PLAIN], note, "split")


def ties() -> Iterator[Case]:
    """Costs that are equal to the byte, and the same with an element more or less."""

    def tied(name: str, t: Tensor, choices: list[Choice], note: str) -> Case:
        least = min(cost for cost, _ in costs(t))
        assert [c for cost, c in costs(t) if cost == least] == choices, (name, costs(t))
        return pair(name, ["W-10"], [t], choices[:1], f"equally small: {note}")

    t = with_counts({100: 750, 101: 726, 102: 60}, 3)
    yield tied(
        "w-10-tie-w-1-2", t, [Split(1, "all"), Split(2, "all")], "w = 1 with 60 patches, w = 2 without"
    )
    t = with_counts({100: 750, 101: 721, 102: 65}, 3)
    yield pair("w-10-no-tie-w-1-2", ["W-10"], [t], [Split(2, "all")], "w = 1 has 65 patches, one too many")
    t = with_counts({100: 650, 101: 780, 102: 50, 103: 0, 104: 56}, 3)
    choices: list[Choice] = [Split(1, "all"), Split(2, "all"), Split(3, "all")]
    yield tied("w-10-tie-w-1-2-3", t, choices, "w = 1, 2 and 3, with 106, 56 and no patches")
    t = with_counts({100: 750, 101: 726, 102: 60}, 3, zeros=1500)
    yield tied(
        "w-10-tie-bitmap-w-1-2", t, [Split(1), Split(2)], "positions bitmap, w = 1 with 60 patches, w = 2"
    )
    t = with_counts({100: 200, 101: 112, 102: 100, 103: 100}, 7, zeros=3488)
    yield tied("w-10-tie-raw-split", t, [RAW, Split(2)], "bitmap with raw values, and with split ones")
    t = with_counts({0: 3000, 1: 100}, 7, zeros=BLOCK - 3100)
    yield tied("w-10-tie-bitmap-all", t, [Split(1), Split(1, "all")], "positions bitmap and all")
    t = with_counts({0: 3000, 1: 585}, 7, zeros=BLOCK - 3585)
    note = "positions all are smaller by a few bytes, as there is a zero less"
    yield pair("w-10-no-tie-bitmap-all", ["W-10"], [t], [Split(1, "all")], note)


def savings() -> Iterator[Case]:
    """The edges of the 5 % for H = 768."""

    def saves(t: Tensor) -> int:
        return 95 * len(t.data) - 100 * cost_of(t, Split(1, "all"))

    def make(n: int) -> Tensor:
        return with_counts({100: n // 2, 101: n - n // 2}, 7)

    n = next(n for n in range(600, 2000) if saves(make(n)) >= 0)
    note = "one element less, and it would not save 5 %"
    yield pair("w-7-split-just-pays", ["W-7"], [make(n)], [Split(1, "all")], note)
    t = make(n - 1)
    assert 100 * (cost_of(t, Split(1, "all")) - 256) <= 95 * len(t.data)
    note = "one element more, and it would save 5 %; with H = 512 as for raw values it does"
    yield pair("w-7-split-just-not", ["W-7"], [t], [PLAIN], note)

    def exactly() -> Tensor:
        for patches in (0, 1, 65, 129, 193):
            for kept in (7, 6, 5, 4):
                for n in range(640, 4000, 10):
                    t = with_counts({100: n // 2, 101: n - n // 2 - patches, 180: patches}, kept)
                    if saves(t) == 0 and choose(t) == Split(1, "all"):
                        return t
        raise AssertionError("no such tensor")

    yield pair(
        "w-7-split-exactly-5-percent", ["W-7"], [exactly()], [Split(1, "all")], "it saves 5 % to the byte"
    )
    t = with_counts({100: 200, 101: 111, 102: 100, 103: 100, 200: 1}, 7, zeros=3488)
    note = "raw values save more by their share of the header: 512 against 768"
    assert cost_of(t, RAW) - 512 > cost_of(t, Split(2)) - 768
    yield pair("w-10-share-of-the-header", ["W-10", "W-7"], [t], [RAW], note)


def fields() -> Iterator[Case]:
    def case(name: str, note: str, t: Tensor, wanted: Choice, values: str = "") -> Case:
        return pair(f"w-9-{name}", ["W-9"], [t], [wanted], note, values)

    t = with_counts({100: 700, 101: 800}, 4)
    note = "w = 1, and a single base that holds all: the lower exponent"
    yield case("base-lower-exponent", note, t, Split(1, "all"))
    t = with_counts({100: 1500}, 4)
    note = "one exponent: of two bases that hold it, the smaller one"
    yield case("base-of-one-exponent", note, t, Split(1, "all"))
    t = with_counts({0: 200, 1: 1000, 2: 300}, 4)
    yield case("base-0", "the smallest of several bases is 0", t, Split(2, "all"))
    t = with_counts({50: 20, 100: 20, 200: 20}, 2, zeros=2000)
    yield case("base-of-a-tie", "three windows with equally many", t, choose(t, "split"), "split")
    t = with_counts({254: 700, 255: 800, 253: 5}, 4)
    note = "the highest base there is"
    yield case("base-highest", note, t, Split(1, "all"))
    for kept in (0, 1, 6, 7):
        t = spread(2, 1536, kept, seed=980)
        note = f"{kept} mantissa bits are used"
        yield case(f"mantissa-{kept}", note, t, Split(1, "all"))
    t = spread(2, 1536, 0, seed=990)
    lone = replace(t, data=bytes([t.data[0] | 1]) + t.data[1:])
    yield case("mantissa-by-one-element", "one element alone uses the lowest bit", lone, choose(lone))
    t = scattered("w", "BF16", [2, 1000], dict.fromkeys(range(0, 2000, 2), 0x3F80))
    yield case("mantissa-0-bitmap", "powers of two: no mantissa is kept", t, Split(1))
    bf16 = spread(4, 1500, 7)
    cast = tensor_of("w", "F32", [e << 16 for e in patterns(bf16)], [1, 1500])
    note = "F32 that was BF16: 7 mantissa bits are used"
    yield case("f32-from-bf16", note, cast, Split(2, "all"))
    f16 = floats("w", "F16", [1, 1500], low=10, width=4, odd=0, kept=7)
    yield case(
        "f16-from-bf16",
        "F16 that was BF16: 7 mantissa bits are used",
        f16,
        Split(2, "all"),
    )
    wide = [(e >> 15) << 31 | ((e >> 10 & 31) + 112) << 23 | (e & 0x3FF) << 13 for e in patterns(f16)]
    t = tensor_of("w", "F32", [e | 1 << 13 for e in wide], [1, 1500])
    yield case("f32-from-f16", "F32 that was F16: 10 mantissa bits are used", t, Split(2, "all"))
    minus = tensor_of("w", "BF16", [0x8000] * 700 + [0x3F80] * 800, [1, 1500])
    note = "negative zeros are stored, with exponent 0"
    yield case("negative-zeros", note, minus, choose(minus))
    specials = [0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x0001, 0x8001] * 10
    base = patterns(spread(2, 1940, 7))
    t = tensor_of("w", "BF16", base + specials, [1, 2000])
    note = "NaNs, infinities and subnormals among others: patches"
    yield case("specials", note, t, choose(t))
    # Block 1 is mostly zeros: with positions all they count, and its base is 0.
    second = [0] * 60 + [100 << 7] * 40
    t = tensor_of("w", "BF16", [(100 + i % 2) << 7 for i in range(BLOCK)] + second, [1, BLOCK + 100])
    note = "zeros count with positions all: the base of the second block is 0"
    yield case("zeros-count-with-all", note, t, Split(1, "all"))
    t = tensor_of("w", "BF16", [0] * 36 + [100 << 7] * 1500, [1, 1536])
    note = "zeros count with positions all: they have patches"
    yield case("zeros-are-patches", note, t, Split(1, "all"))
    gone = [0] * BLOCK + [0x4F80] * 200
    t = tensor_of("w", "BF16", gone, [1, BLOCK + 200])
    note = "an empty block has base 0"
    yield case("base-of-an-empty-block", note, t, choose(t, "split"), "split")


def shapes() -> Iterator[Case]:
    """T-5: what would have its own shape takes the next best, and stays plain only where there is none."""
    t = replace(spread(4, 2048, 5), shape=[32, 64])
    assert min(costs(replace(t, shape=[64, 32])))[1] == Split(2, "all"), costs(t)
    wanted = choose(t)
    assert wanted not in (PLAIN, Split(2, "all"))
    note = "the smallest encoding would have the shape [32, 64] of the tensor; the next one is taken"
    yield pair("w-10-t-5", ["W-10", "W-7", "T-5"], [t], [wanted], note)
    zero = tensor_of("w", "BF16", [0] * 3000, [30, 100])
    yield pair("w-10-all-zero", ["W-10"], [zero], [RAW], "all zero: raw values have the smaller header")
    empty = Tensor("w", "BF16", [0, 7], b"")
    scalar = tensor_of("v", "BF16", [0x3F80], [])
    yield pair(
        "w-7-split-empty-and-0d", ["W-7"], [empty, scalar], [PLAIN, PLAIN], "empty and 0-d tensors stay plain"
    )
