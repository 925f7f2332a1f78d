"""The encoding of a tensor by the book: what each would cost, and the choice (W-7, W-10)."""

from __future__ import annotations

from corpus.build import (
    BLOCK,
    FLOATS,
    Split,
    Tensor,
    best_base,
    blocks_of,
    patterns,
    product,
    roundup,
    used_bits,
    widths,
)

# An encoding of W-10, or that there is none.
Choice = Split | str
RAW, PLAIN = "raw", "plain"


def costs(t: Tensor, values: str = "") -> list[tuple[int, Choice]]:
    """P + H of every encoding that meets T-5, in the order of W-10."""
    if t.dtype not in FLOATS:
        values = RAW
    elements, n = patterns(t), product(t.shape)
    nnz, nb = sum(e != 0 for e in elements), -(-n // BLOCK)
    bitmap, length = roundup(-(-n // 8), 64), 8 * roundup(nb + 1, 8)
    found: list[tuple[int, Choice, list[int]]] = []
    if values != "split":
        raw = roundup(nnz * t.itemsize, 64)
        found.append((raw + bitmap + length + 512, RAW, [raw // t.itemsize]))
    if values != RAW:
        bits, most = FLOATS[t.dtype]
        m = used_bits(elements, most)
        for positions in ("bitmap", "all"):
            stored = [[e for e in b if e or positions == "all"] for b in blocks_of(elements)]
            exponents = [[e >> most & (2**bits - 1) for e in b] for b in stored]
            groups = roundup(sum(map(len, stored)), 512) // 64
            places = bitmap + 2 * length if positions == "bitmap" else length
            for w in widths(t.dtype):
                patches = sum(outside(b, bits, w) for b in exponents)
                shape = [groups, 8 * (1 + m + w)]
                size = product(shape) + places + roundup(nb, 64) + 3 * roundup(patches, 64)
                found.append((size + 768, Split(w, positions), shape))
    return [(cost, choice) for cost, choice, shape in found if shape != t.shape]


def outside(exponents: list[int], bits: int, w: int) -> int:
    base = best_base(exponents, bits, w)
    return sum(not base <= e < base + 2**w for e in exponents)


def choose(t: Tensor, values: str = "") -> Choice:
    found = costs(t, values)
    if not found:
        return PLAIN
    cost, choice = min(found, key=lambda pair: pair[0])
    return choice if 100 * cost <= 95 * len(t.data) else PLAIN


def cost_of(t: Tensor, choice: Choice) -> int:
    return next(cost for cost, other in costs(t) if other == choice)
