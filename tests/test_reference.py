"""Rules B and E: encoding and decoding in NumPy, on good input and bad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import ENCODABLE, SPLITTABLE, decode, encode, encodings, some_floats, sparse_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from pyendor import choice, dtypes, reference
from pyendor.dtypes import DType
from pyendor.errors import PartError
from pyendor.layout import Bytes
from pyendor.metadata import Split, TensorMeta

# Around bytes, words, lines of 64, groups, blocks.
LENGTHS = (0, 1, 7, 8, 9, 31, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 8192, 12289)
SPECIAL = {
    1: [0x80, 0x7F, 0xFF, 0x01],
    2: [0x8000, 0x7FC1, 0xFFFF, 0x0001, 0x7F80],
    4: [0x80000000, 0x7FC00001, 0xFFFFFFFF, 1, 0x7F800000],
    8: [0x8000000000000000, 0x7FF8000000000001, 1, 0x80000000, 0x8000000000000000 >> 32],
}
UNSIGNED = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}


def by_hand(dense: Bytes, dtype: DType, meta: TensorMeta) -> dict[str, bytes]:
    """The table of the specification, one element at a time."""
    itemsize = dtype.itemsize
    elements = [int(x) for x in dense.view(f"<u{itemsize}")]
    every = meta.positions == "all"
    blocks = [elements[i : i + 4096] for i in range(0, len(elements), 4096)]
    stored = [[x for x in block if x or every] for block in blocks]
    parts = {}
    rows = []
    if not every:
        bits = sum(1 << i for i, x in enumerate(elements) if x)
        parts["bitmap"] = bits.to_bytes(-(-len(elements) // 8), "little")
        rows.append([sum(map(len, stored[:b])) for b in range(len(blocks) + 1)])
    if meta.split is None:
        values = b"".join(x.to_bytes(itemsize, "little") for block in stored for x in block)
    else:
        symbols, parts["bases"], patches, counts = symbols_by_hand(stored, dtype, meta.split)
        values = groups_by_hand(symbols, meta.split)
        parts["patches"] = b"".join(r.to_bytes(2, "little") + bytes([e]) for r, e in patches)
        parts["patches"] += bytes(3 * (-len(patches) % 64))
        rows.append(counts)
    index = b""
    for row in rows:
        index += b"".join(entry.to_bytes(8, "little") for entry in row)
        index += bytes(-len(index) % 64)
    parts |= {"values": values, "index": index}
    return {role: part + bytes(-len(part) % 64) for role, part in parts.items()}


def symbols_by_hand(
    stored: list[list[int]], dtype: DType, split: Split
) -> tuple[list[tuple[int, int]], bytes, list[tuple[int, int]], list[int]]:
    """Residues with codes; bases; patches; patches before each block."""
    symbols, bases, patches, counts = [], bytearray(), [], [0]
    for block in stored:
        exponents = [x >> dtype.mantissa & ((1 << dtype.exponent) - 1) for x in block]
        window = 1 << split.w
        covers = [
            sum(base <= e < base + window for e in exponents)
            for base in range((1 << dtype.exponent) - window + 1)
        ]
        base = covers.index(max(covers))
        bases.append(base)
        for rank, (x, e) in enumerate(zip(block, exponents, strict=True)):
            sign = x >> (dtype.bits - 1)
            mantissa = x & ((1 << dtype.mantissa) - 1)
            residue = sign * 2**split.mantissa + mantissa // 2 ** (dtype.mantissa - split.mantissa)
            inside = base <= e < base + window
            symbols.append((residue, e - base if inside else 0))
            if not inside:
                patches.append((rank, e))
        counts.append(len(patches))
    return symbols, bytes(bases), patches, counts


def groups_by_hand(symbols: list[tuple[int, int]], split: Split) -> bytes:
    whole, rest = divmod(1 + split.mantissa, 8)
    data = b""
    for at in range(0, len(symbols), 64):
        group = symbols[at : at + 64] + [(0, 0)] * (64 - len(symbols[at : at + 64]))
        for p in range(whole):
            data += bytes(residue >> 8 * p & 0xFF for residue, _ in group)
        for q in range(rest + split.w):
            bit = [r >> 8 * whole + q & 1 if q < rest else c >> q - rest & 1 for r, c in group]
            data += sum(one << j for j, one in enumerate(bit)).to_bytes(8, "little")
    return data + bytes(-len(data) % (8 * split.row))


@pytest.mark.parametrize("dtype", ENCODABLE, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_round_trip(dtype: DType, numel: int, density: float, rng: np.random.Generator) -> None:
    maker = some_floats if dtype.splittable else sparse_bytes
    dense = maker(rng, numel, dtype if dtype.splittable else dtype.itemsize, density)
    for meta in encodings(dense, dtype):
        assert decode(reference, meta, encode(reference, meta, dense)).tobytes() == dense.tobytes(), meta


@pytest.mark.parametrize("dtype", ENCODABLE, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("numel", [0, 1, 8, 65, 4097])
def test_parts_are_those_of_the_specification(dtype: DType, numel: int, rng: np.random.Generator) -> None:
    for dense in (
        sparse_bytes(rng, numel, dtype.itemsize),
        some_floats(rng, numel, dtype) if dtype.splittable else sparse_bytes(rng, numel, dtype.itemsize, 0.1),
    ):
        for meta in encodings(dense, dtype):
            encoded = encode(reference, meta, dense)
            assert {role: part.tobytes() for role, part in encoded.items()} == by_hand(dense, dtype, meta)


@pytest.mark.parametrize("dtype", ENCODABLE, ids=lambda dtype: dtype.name)
def test_special_bit_patterns_survive(dtype: DType) -> None:
    words = np.zeros(200, f"<u{dtype.itemsize}")
    words[10 : 10 + len(SPECIAL[dtype.itemsize])] = SPECIAL[dtype.itemsize]
    dense = words.view(np.uint8)
    assert reference.count(dense, dtype.itemsize) == len(SPECIAL[dtype.itemsize])
    for meta in encodings(dense, dtype):
        assert decode(reference, meta, encode(reference, meta, dense)).tobytes() == dense.tobytes()


@pytest.mark.parametrize("dtype", SPLITTABLE, ids=lambda dtype: dtype.name)
def test_a_survey_counts_what_encodings_need(dtype: DType, rng: np.random.Generator) -> None:
    dense = some_floats(rng, 9000, dtype)
    words = dense.view(f"<u{dtype.itemsize}")
    survey = reference.survey(dense, dtype)
    assert survey.nnz == np.count_nonzero(words)
    dropped = dtype.mantissa - survey.mantissa
    assert not (words & ((1 << dropped) - 1)).any()
    assert survey.mantissa == 0 or (words & (1 << dropped)).any()
    for meta in encodings(dense, dtype):
        if meta.split is not None:
            for wrong in (-1, 1):
                other = replace(meta, split=replace(meta.split, patches=meta.split.patches + wrong))
                with pytest.raises(ValueError, match="patches"):
                    encode(reference, other, dense)


@pytest.mark.parametrize(("kept", "expected"), [(0x8000, 0), (0x8040, 1), (0xFFC0, 1), (0x1, 7), (0x42, 6)])
def test_only_zeros_are_dropped(kept: int, expected: int) -> None:
    dense = np.array([0x3F80, kept, 0] * 50, "<u2").view(np.uint8)
    assert reference.survey(dense, dtypes.BY_NAME["BF16"]).mantissa == expected


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(ENCODABLE),
    numel=st.integers(0, 9000),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_of_anything(dtype: DType, numel: int, density: float, seed: int) -> None:
    dense = sparse_bytes(np.random.default_rng(seed), numel, dtype.itemsize, density)
    for meta in encodings(dense, dtype):
        assert decode(reference, meta, encode(reference, meta, dense)).tobytes() == dense.tobytes()


NUMEL = 4096 * 3 + 100


# What the changes below may name, by encoding.
COMMON = {"NUMEL", "any_row"}
SPLIT = {"row", "n", "t", "ends", "patch", "patched", "group", "bases", "patches"}
NAMES = {
    "bitmap/raw": COMMON | {"bitmap", "index", "nnz", "values"},
    "bitmap/split": COMMON | {"bitmap", "index", "nnz"} | SPLIT,
    "all/split": COMMON | SPLIT,
}


def that_apply(changes: dict[str, str]) -> list[tuple[str, str]]:
    """Encodings, and the changes of parts that they have."""
    own = {case: set(compile(change, case, "exec").co_names) for case, change in changes.items()}
    return [
        (encoding, case)
        for encoding, names in NAMES.items()
        for case in changes
        if own[case] - {"r", "x"} <= names
    ]


@pytest.fixture(params=NAMES)
def broken(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[TensorMeta, dict[str, Bytes]]:
    """Parts to break, of four blocks, the last one short; every part has padding."""
    dtype = dtypes.BY_NAME["BF16"]
    dense = some_floats(rng, NUMEL, dtype)
    dense[:4] = 0, 0, 1, 1
    (meta,) = [
        meta
        for meta in encodings(dense, dtype)
        if f"{meta.positions}/{meta.values}" == request.param and (meta.split is None or meta.split.w == 2)
    ]
    return meta, encode(reference, meta, dense)


def scope(meta: TensorMeta, parts: dict[str, Bytes]) -> dict[str, object]:
    """The names that the changes below use."""
    rows = reference._index(meta, parts)
    names: dict[str, object] = {
        **parts,
        "NUMEL": NUMEL,
        "nnz": meta.nnz,
        "any_row": rows[0],
        "index": rows[0],
    }
    if meta.split is not None:
        names |= {
            "row": rows[-1],
            "n": meta.stored,
            "ends": [4096, 8192, 12288, NUMEL] if meta.nnz is None else rows[0][1:5].tolist(),
            "t": meta.split.patches,
            "patch": parts["patches"].reshape(-1, 3),
            "patched": lambda at: int(parts["patches"][3 * at]) + 256 * int(parts["patches"][3 * at + 1]),
            "group": parts["values"].reshape(-1, meta.split.row),
        }
    return names


BREAK = {
    "B-3 next bit": "bitmap[NUMEL // 8] |= 1 << NUMEL % 8",
    "B-3 last bit": "bitmap[-1] |= 0x80",
    "B-4 one": "index[0] = 1",
    "B-4 negative": "index[0] = -1",
    "B-4 patches": "row[0] = 1",
    "B-5 falls": "index[2] = index[1] - 1",
    "B-5 negative": "index[1] = -5",
    "B-5 beyond nnz": "index[1] = 2**62",
    "B-5 lowest": "index[1] = -(2**63)",
    "B-5 patches fall": "row[2] = row[1] - 1",
    "B-5 patches beyond all": "row[1] = 2**62",
    "B-5 patches lowest": "row[1] = -(2**63)",
    "B-6 too high": "index[1] += 1",
    "B-6 too low": "index[3] -= 1",
    "B-6 bit more": "bitmap[0] |= 1",
    "B-6 bits fewer": "bitmap[0] &= 0xFC",
    "B-6 compensated in another block": "bitmap[0] |= 1; bitmap[512] = bitmap[512] & (bitmap[512] - 1)",
    "B-7 more": "index[4] += 1",
    "B-7 less": "index[4] -= 1",
    "B-7 patches": "row[4] -= 1",
    "B-8 after the end": "index[5] = 1",
    "B-8 last": "index[-1] = -1",
    "B-8 patches": "row[-1] = 1",
    "B-9 first byte": "values[2 * nnz] = 1",
    "B-9 last byte": "values[-1] = 1",
    "B-10 first": "values[:2] = 0",
    "B-10 last": "values[2 * nnz - 2 : 2 * nnz] = 0",
    "B-10 patched": "index; patch[0, 2] = 0; r = patched(0); group[r // 64, r % 64] = 0",
    "E-2 next byte": "group[n // 64, n % 64] = 1",
    "E-2 last bit": "group[n // 64, -1] |= 0x80",
    "E-2 last byte": "group[-1, -1] = 1",
    "E-3 too high": "bases[1] = 253",
    "E-4 next": "bases[4] = 1",
    "E-4 last": "bases[-1] = 1",
    "E-5 equal": "patch[row[1] + 1, :2] = patch[row[1], :2]",
    "E-5 past the block": "patch[row[4] - 1, :2] = 0, 16",
    "E-5 one too far": "patch[t - 1, :2] = (ends[3] - ends[2]), 0",
    "E-6 first of the window": "patch[0, 2] = bases[0]",
    "E-6 last of the window": "patch[0, 2] = bases[0] + 3",
    "E-7": "r = patched(0); group[r // 64, 64 + r % 64 // 8] |= 1 << r % 8",
    "E-8 next": "patch[t, 0] = 1",
    "E-8 last": "patches[-1] = 1",
}


@pytest.mark.parametrize(("broken", "case"), that_apply(BREAK), indirect=["broken"])
def test_broken(broken: tuple[TensorMeta, dict[str, Bytes]], case: str) -> None:
    meta, parts = broken
    exec(BREAK[case], scope(meta, parts))
    with pytest.raises(PartError) as caught:
        decode(reference, meta, parts)
    assert caught.value.rule == case.split(maxsplit=1)[0]
    part = parts[caught.value.part]
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset < part.size


def test_a_window_that_begins_at_0_can_hold_a_zero() -> None:
    dtype = dtypes.BY_NAME["BF16"]
    dense = np.array([0, 1, 2, 0x80] * 100, "<u2").view(np.uint8)
    meta = next(meta for meta in encodings(dense, dtype) if meta.split and meta.positions == "bitmap")
    parts = encode(reference, meta, dense)
    assert parts["bases"][0] == 0
    parts["values"][0] = 0
    with pytest.raises(PartError) as caught:
        decode(reference, meta, parts)
    assert (caught.value.rule, caught.value.offset) == ("B-10", 0)


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "F16"])
@pytest.mark.parametrize("positions", ["bitmap", "all"])
def test_exponents_that_there_are_not(name: str, positions: str, rng: np.random.Generator) -> None:
    dtype = dtypes.BY_NAME[name]
    dense = some_floats(rng, 5000, dtype)
    meta = next(m for m in encodings(dense, dtype) if m.split and (m.positions, m.split.w) == (positions, 1))
    parts = encode(reference, meta, dense)
    for exponent in (1 << dtype.exponent, 255):
        parts["patches"][2] = exponent
        with pytest.raises(PartError, match="exponent") as caught:
            decode(reference, meta, parts)
        assert caught.value.rule == "E-6"


def test_an_empty_block_has_base_0() -> None:
    dense = np.zeros(9000, "<u2")
    dense[8500] = 0x3F80
    dtype = dtypes.BY_NAME["BF16"]
    for meta in encodings(dense.view(np.uint8), dtype):
        if meta.split is None or meta.positions == "all":
            continue
        parts = encode(reference, meta, dense.view(np.uint8))
        assert parts["bases"][:3].tolist() == [0, 0, 128 - (1 << meta.split.w)]
        parts["bases"][1] = 1
        with pytest.raises(PartError, match="more than 0") as caught:
            decode(reference, meta, parts)
        assert (caught.value.rule, caught.value.offset) == ("E-3", 1)


def test_any_range_of_blocks(broken: tuple[TensorMeta, dict[str, Bytes]]) -> None:
    meta, parts = broken
    whole = decode(reference, meta, parts)
    for first in range(5):
        for stop in range(first, 5):
            piece = whole[first * 8192 : min(stop * 8192, whole.size)]
            out = np.full(piece.size, 0x5A, np.uint8)
            reference.decode(meta, parts, out, first, stop)
            assert out.tobytes() == piece.tobytes()


RANGES = {
    "B-4 always": ("any_row[0] = 1", 2, 3),
    "B-7 always": ("any_row[4] += 1", 0, 1),
    "B-5 falls": ("any_row[2] = any_row[1] - 1", 1, 2),
    "B-5 below 0": ("x = any_row; x[1] = -2**63; x[2] = x[1] + 2048", 1, 2),
    "B-5 beyond nnz": ("x = any_row; x[1] += 2**40; x[2] += 2**40", 1, 2),
    "B-6 in the range": ("bitmap[512] ^= 1", 1, 2),
    "B-3 with the last block": ("bitmap[-1] = 1", 3, 4),
    "B-8 with the last block": ("any_row[-1] = 1", 3, 4),
    "B-9 with the last block": ("values[-1] = 1", 3, 4),
    "E-2 with the last block": ("group[-1, -1] = 1", 3, 4),
    "E-3 in the range": ("bases[1] = 255", 1, 2),
    "E-4 with the last block": ("bases[-1] = 1", 3, 4),
    "E-5 in the range": ("patch[row[1], 1] = 16", 1, 2),
    "E-8 with the last block": ("patches[-1] = 1", 3, 4),
}


@pytest.mark.parametrize(
    ("broken", "case"),
    that_apply({case: change for case, (change, _, _) in RANGES.items()}),
    indirect=["broken"],
)
def test_broken_in_a_range(broken: tuple[TensorMeta, dict[str, Bytes]], case: str) -> None:
    meta, parts = broken
    change, first, stop = RANGES[case]
    exec(change, scope(meta, parts))
    outside = (2, 3) if (first, stop) == (1, 2) else (0, 1)
    out = np.zeros(8192 if stop < 4 else 200, np.uint8)
    with pytest.raises(PartError) as caught:
        reference.decode(meta, parts, out, first, stop)
    assert caught.value.rule == case.split(maxsplit=1)[0]
    if not case.endswith("always") and not case.startswith("B-5"):
        reference.decode(meta, parts, None, *outside)


def test_encode_refuses_parts_of_the_wrong_size(rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, 1000, 2)
    nnz = reference.count(dense, 2)
    meta = TensorMeta("U16", (1000,), "bitmap", "raw", nnz)
    parts = encode(reference, meta, dense)
    for size in (parts["values"].size - 64, parts["values"].size + 64):
        with pytest.raises(ValueError, match="stored elements"):
            reference.encode(dense, meta, {**parts, "values": np.zeros(size, np.uint8)})
    for wrong in (nnz - 1, nnz + 1):
        with pytest.raises(ValueError, match="stored elements"):
            encode(reference, replace(meta, nnz=wrong), dense)


def test_encode_refuses_what_split_values_cannot_hold(rng: np.random.Generator) -> None:
    dtype = dtypes.BY_NAME["BF16"]
    dense = some_floats(rng, 5000, dtype)
    meta = next(meta for meta in encodings(dense, dtype) if meta.split and meta.split.w == 2)
    assert meta.split is not None
    assert meta.nnz is not None
    with pytest.raises(ValueError, match="mantissa"):
        encode(reference, replace(meta, split=replace(meta.split, mantissa=3)), dense)
    for wrong in (-1, 1):
        with pytest.raises(ValueError, match="stored elements"):
            encode(reference, replace(meta, nnz=meta.nnz + wrong), dense)


def test_the_smallest_is_chosen(rng: np.random.Generator) -> None:
    dtype = dtypes.BY_NAME["BF16"]
    kinds = set()
    for density in (0.0, 0.3, 1.0):
        for maker in (some_floats, lambda rng, numel, _, density: sparse_bytes(rng, numel, 2, density)):
            dense = maker(rng, 300_000, dtype, density)
            metas = encodings(dense, dtype, (300, 1000))
            best = choice.choose(dtype.name, (300, 1000), reference.survey(dense, dtype), min_saving=None)
            assert best is not None
            sizes = [sum(part.nbytes for part in encode(reference, meta, dense).values()) for meta in metas]
            shares = [choice.HEADER_SHARE[meta.values] for meta in metas]
            assert best == metas[int(np.argmin(np.add(sizes, shares)))]
            kinds.add((best.positions, best.values))
    assert kinds == {("bitmap", "raw"), ("bitmap", "split"), ("all", "split")}
