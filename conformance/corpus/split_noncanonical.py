"""Valid files of format 1.1 that no writer should make: other choices, other texts (W-9, W-10, M-5, M-6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from corpus.build import Raw, Sketch, Split, Tensor, floats, tensor_of
from corpus.case import NONCANONICAL, Case, listing, newer
from corpus.change import Change, endor, entry, replaced, without
from corpus.split_base import Base
from corpus.split_valid import MANY, MANY_HOW, How, accepted, alike, newer_but_for, sketch_of, twice

S = floats("some", "BF16", [5, 31], 60, 920, kept=4, width=2, odd=6)
A = floats("all", "BF16", [5, 31], 90, 921, kept=4, width=2, odd=6)
BLOCKS = floats("all", "BF16", [3, 3000], 100, 922, kept=0, low=120, width=3, odd=1)
BIAS = Tensor("bias", "U8", [3], b"abc")


def cases() -> Iterator[Case]:
    yield from other_choices()
    yield from other_texts()


def loose(name: str, rules: list[str], notes: str, how: How, *tensors: Tensor) -> Case:
    return accepted(name, rules, list(tensors or (S, A)), how, notes, NONCANONICAL)


def other_choices() -> Iterator[Case]:
    for name, base, note in [
        ("higher", 126, "a base that holds fewer exponents than another"),
        ("lowest", 0, "a base of 0: all but a few elements have patches"),
        ("highest", 252, "the highest base: all elements have patches, but for a few"),
    ]:
        how: How = {n: Split(2, s.positions, bases={0: base}) for n, s in twice(2).items()}
        yield loose(f"w-9-base-{name}", ["W-9", "E-3"], note, how)
    tied = tensor_of("all", "BF16", [(100 + i % 2) << 7 for i in range(50)], [5, 10])
    note = "the largest of three bases with the same elements in their windows"
    yield loose("w-9-base-of-a-tie", ["W-9"], note, {"all": Split(2, "all", bases={0: 100})}, tied)
    every = tensor_of("all", "F8_E4M3", [(i % 4) << 3 | 1 for i in range(1000)], [1, 1000])
    note = "every element has a patch"
    yield loose("w-9-all-patched", ["W-9", "E-5"], note, {"all": Split(1, "all", bases={0: 9})}, every)
    few = tensor_of("some", "F16", [i % 3 << 10 for i in range(70)], [7, 10])
    yield loose("w-9-all-patched-bitmap", ["W-9", "E-5"], note, {"some": Split(1, bases={0: 30})}, few)
    for w in (3, 4):
        note = f"w = {w}, where w = 1 would do"
        yield loose(f"w-10-w-{w}", ["W-10"], note, twice(w))
    for m in (5, 7):
        note = f"{m} mantissa bits are kept, and 4 would be enough"
        yield loose(f"w-9-mantissa-{m}", ["W-9"], note, twice(2, m))
    zero = alike("F32", [0] * 100, [10, 10])
    note = "all mantissa bits and the widest codes, of zeros"
    yield loose("w-9-zeros-at-length", ["W-9"], note, twice(4, 23), *zero)
    note = "different bases in blocks that are alike"
    how = {"all": Split(2, "all", bases={0: 119, 1: 120, 2: 121})}
    yield loose("w-9-bases-by-block", ["W-9"], note, how, BLOCKS)
    sparse = floats("all", "F32", [9, 9], 10, 923, kept=0, low=1, odd=0)
    note = "positions all of a tensor that is mostly zeros, and so small that it does not pay"
    yield loose("w-7-split-not-worth-it", ["W-7"], note, {"all": Split(2, "all")}, sparse)


def edited(name: str, rules: list[str], notes: str, change: Change, t: Tensor = S) -> Case:
    """S or A, named w, in a file with the change."""
    base = Base(replace(t, name="w"), twice(2)[t.name])
    data, told = base.changed(change).render(), listing([base.tensor])
    case = Case("noncanonical", name, rules, data, NONCANONICAL, "L1", notes, tensors=told)
    return newer(case, ["w"])


def other_texts() -> Iterator[Case]:
    for version in ("1.0", "1.7", "1.10"):
        note = f"split values in a file of version {version}: the minor version is informative"
        yield edited(f"v-2-split-version-{version}", ["V-2", "V-3"], note, endor(version=version))
    for name, value in [
        ("null", None),
        ("fraction", Raw("1.5")),
        ("negative", -1),
        ("huge", Raw("1" + "0" * 400)),
        ("string", "155"),
        ("past-numel", 156),
        ("object", {"n": []}),
    ]:
        note = f"nnz has no meaning with positions all, here it is of another kind: {name}"
        yield edited(f"m-5-all-nnz-{name}", ["M-5", "M-6", "D-2"], note, entry(nnz=value), A)
    yield edited("w-6-split-no-digest", ["W-6"], "an entry without a digest", without("digest"))
    more = entry(bases=[1, 2], exponent=8, s=None, x={"w": True})
    yield edited("m-6-split-unknown-members", ["M-6"], "members that mean nothing", more)
    note = "the members of split values written with escapes"
    escapes = replaced('"w":2', r'"\u0077":2')
    yield edited("m-1-split-escapes", ["M-1", "J-2"], note, escapes)
    note = "parts in another order"
    yield edited("w-5-split-parts-reversed", ["W-5", "C-12"], note, lambda s: s.physical.reverse())

    def shuffle(s: Sketch) -> None:
        s.physical = [s.physical[i] for i in (3, 0, 4, 2, 1)]

    yield edited("w-5-split-parts-in-disorder", ["W-5", "C-12"], note, shuffle)

    def unaligned(s: Sketch) -> None:
        s.add(BIAS, encode=False)
        s.physical.insert(0, s.physical.pop())

    note = "parts at odd addresses, those of 64-bit integers too"
    case = edited("w-2-split-unaligned", ["W-2", "W-5"], note, unaligned, A)
    assert case.tensors is not None
    case.tensors += listing([BIAS])
    yield newer(case, ["w"], [BIAS])
    sketch = sketch_of(MANY, MANY_HOW)
    sketch.physical.sort(key=lambda p: p.name[::-1])
    note = "the parts of all tensors of a file in disorder"
    rules, data = ["W-5", "C-12"], sketch.render()
    name, told = "w-5-all-encodings-in-disorder", listing(MANY)
    case = Case("noncanonical", name, rules, data, NONCANONICAL, "L1", note, tensors=told)
    yield newer_but_for(case, MANY, MANY_HOW)
