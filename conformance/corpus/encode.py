"""Pairs for the canonical encoding (L3): a plain file, and the canonical file of its tensors.

The order of the tensors is that of their data in the input, which is also that of its header; the
user's metadata is that of the input; which tensors to encode is up to W-7.
"""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import (
    BLOCK,
    ENCODABLE,
    Tensor,
    canonical,
    encoded_as,
    physical,
    plain_file,
    random_tensor,
    scattered,
    tensor_of,
)
from corpus.case import ACCEPT, Case


def cases() -> Iterator[Case]:
    yield from contents()
    yield from choices()
    yield from headers()


def pays(t: Tensor) -> bool:
    """The 5 % of W-7."""
    return 100 * (sum(len(p.data) for p in encoded_as(t)[0]) + 512) <= 95 * len(t.data)


def pair(
    name: str,
    rules: list[str],
    tensors: list[Tensor],
    encoded: set[str],
    notes: str,
    user: dict[str, str] | None = None,
) -> Case:
    source = plain_file([physical(t) for t in tensors], user)
    target = canonical(tensors, encoded, user)
    rules = list(dict.fromkeys([*rules, "W-2", "W-3", "W-4", "V-3"]))
    return Case("encode", name, rules, source, ACCEPT, "L3", notes, expected=target)


def few(name: str, dtype: str, shape: list[int], seed: int) -> Tensor:
    return random_tensor(name, dtype, shape, density=5, seed=seed)


def contents() -> Iterator[Case]:
    t = few("w", "BF16", [2, 3000], 1)
    yield pair("w-6-one-tensor", ["W-6", "B-1", "B-2"], [t], {"w"}, "one tensor of two blocks")
    minus = {i: [0x80000000, 0x7FC12345, 1, 0xFF800001][i % 4] for i in range(0, 900, 61)}
    t = scattered("w", "F32", [30, 30], minus)
    note = "negative zeros, NaNs and subnormals are stored"
    yield pair("b-1-negative-zeros", ["B-1"], [t], {"w"}, note)
    tensors = [few(d, d, [20, 50], i) for i, d in enumerate(ENCODABLE)]
    encoded = {t.name for t in tensors if pays(t)}
    yield pair("w-5-every-dtype", ["W-5"], tensors, encoded, "every encodable dtype")
    zero = [tensor_of("zero", "F32", [0] * 1200, [1200]), Tensor("empty", "F32", [0, 4], b"")]
    zero.append(tensor_of("scalar", "F32", [0], []))
    note = "all-zero is encoded, empty and 0-d tensors are not"
    yield pair("w-7-zero-and-empty", ["W-7"], zero, {"zero"}, note)


def edge(n: int, dtype: str = "U8") -> list[Tensor]:
    """Two tensors with the nnz at which W-7 stops to pay, and one step of padding more."""
    for nnz in range(0, n, 64):
        last, next_ = (scattered("w", dtype, [1, n], dict.fromkeys(range(k), 7)) for k in (nnz, nnz + 1))
        if pays(last) and not pays(next_):
            return [last, next_]
    raise AssertionError("no such nnz")


def exact() -> Tensor:
    """A tensor that saves 5 % to the byte: 100 * (P + 512) = 95 * its length."""
    for n in range(4 * BLOCK // 20 * 20, 5 * BLOCK, 20):
        t = scattered("exact", "U8", [n], {})
        room = 95 * n // 100 - 512 - sum(len(p.data) for p in encoded_as(t)[0])
        if room > 0 and room % 64 == 0 and 95 * n % 100 == 0:
            return scattered("exact", "U8", [n], dict.fromkeys(range(room), 7))
    raise AssertionError("no such numel")


def choices() -> Iterator[Case]:
    pays_just, pays_not = edge(3 * BLOCK)
    note = "one stored element less than where encoding stops to save 5 %"
    yield pair("w-7-just-pays", ["W-7"], [pays_just], {"w"}, note)
    note = "one stored element more than where encoding still saves 5 %"
    yield pair("w-7-just-not", ["W-7"], [pays_not], set(), note)
    t = exact()
    assert pays(t)
    yield pair("w-7-exactly-5-percent", ["W-7"], [t], {"exact"}, "it saves 5 % to the byte")
    a, b = few("a", "F16", [50, 50], 3), few("a.endor.x", "F16", [50, 50], 4)
    note = "a stays plain, as another tensor's name begins with a.endor.; that one is encoded"
    yield pair("w-7-name-of-a-part", ["W-7"], [a, b], {"a.endor.x"}, note)
    a, b = few("a", "F16", [50, 50], 3), few("a.endor", "F16", [50, 50], 4)
    note = "a stays plain, as the parts of a.endor would belong to it too; that one is encoded"
    yield pair("w-7-name-dot-endor", ["W-7"], [a, b], {"a.endor"}, note)
    plain = [
        random_tensor("u8", "U8", [5], 100),
        random_tensor("f64", "F64", [1], 100),
        Tensor("f4", "F4", [2, 1], b"\x21"),
        few("w2", "F32", [20, 60], 5),
        random_tensor("i16", "I16", [3], 100),
        Tensor("f6", "F6_E3M2", [4], b"abc"),
        random_tensor("bf16", "BF16", [2], 100),
        few("w1", "U16", [30, 60], 6),
        random_tensor("i8", "I8", [2], 100),
    ]
    note = "encoded tensors first, in the given order; plain ones by falling size of the element"
    yield pair("w-5-order", ["W-5"], plain, {"w1", "w2"}, note)


def headers() -> Iterator[Case]:
    names = ["\uff5e", "\U0001f600", 'q"\\/\x00\x1f\t\x7f', "z", "Z", "\u2028", ""]
    tensors = [few(n, "U8", [30, 40], i) for i, n in enumerate(names)]
    note = "members sorted by code point, and what is escaped: no more than need be"
    user = {"format": "np", "\U0001f600": "\uff5e", "\uff5e": '{"a": "\\u0041"}', "Z": ""}
    yield pair("w-3-names", ["W-3"], tensors, set(names), note, user)
    none = [random_tensor("w", "U8", [10], 100)]
    note = "nothing to encode: the file is an Endor file all the same"
    note += "; the user's metadata has no `format`, and none is added"
    yield pair("w-3-nothing-to-encode", ["W-3"], none, set(), note, {"made-by": "x"})
    yield pair("w-3-no-tensors", ["W-3"], [], set(), "no tensors at all")
    for name in ("w" * k for k in range(1, 99)):
        t = tensor_of(name, "U8", [7], [1])
        if canonical([t], set())[:1000].endswith(b"}\x07"):
            note = "the header needs no padding"
            yield pair("w-2-no-padding", [], [t], set(), note)
            return
