"""Rules B: encoding and decoding in NumPy, on good input and bad."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ENCODABLE, sparse_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from pyendor import layout, reference
from pyendor.dtypes import DType
from pyendor.errors import PartError
from pyendor.layout import Bytes

# Around bytes, words, lines of 64, blocks, and the batches in which NumPy works.
LENGTHS = (0, 1, 7, 8, 9, 31, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 8192, 12289, 2**20 + 4097)
SPECIAL = {
    1: [0x80, 0x7F, 0xFF, 0x01],
    2: [0x8000, 0x7FC1, 0xFFFF, 0x0001, 0x7F80],
    4: [0x80000000, 0x7FC00001, 0xFFFFFFFF, 1, 0x7F800000],
    8: [0x8000000000000000, 0x7FF8000000000001, 1, 0x80000000, 0x8000000000000000 >> 32],
}


def encode(dense: Bytes, itemsize: int) -> dict[str, Bytes]:
    """Parts in memory that was not clean before."""
    nnz = reference.count(dense, itemsize)
    dtype = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}[itemsize]
    specs = layout.part_specs(dtype, dense.size // itemsize, nnz)
    parts = {spec.role: np.full(spec.nbytes, 0xA5, np.uint8) for spec in specs}
    reference.encode(dense, itemsize, nnz, **parts)
    return parts


def decode(parts: dict[str, Bytes], itemsize: int, numel: int, nnz: int) -> Bytes:
    out = np.full(numel * itemsize, 0x5A, np.uint8)
    reference.decode(**parts, itemsize=itemsize, numel=numel, nnz=nnz, out=out)
    return out


def by_hand(dense: Bytes, itemsize: int) -> dict[str, bytes]:
    """The table of the specification, one element at a time."""
    numel = dense.size // itemsize
    elements = [dense[i * itemsize : (i + 1) * itemsize].tobytes() for i in range(numel)]
    stored = [element for element in elements if any(element)]
    values = b"".join(stored)
    bitmap = bytearray(-(-numel // 8))
    for i, element in enumerate(elements):
        if any(element):
            bitmap[i // 8] |= 1 << i % 8
    nb = -(-numel // 4096)
    index = [sum(map(any, elements[: 4096 * b])) for b in range(nb + 1)]
    raw = {
        "values": values,
        "bitmap": bytes(bitmap),
        "index": b"".join(entry.to_bytes(8, "little", signed=True) for entry in index),
    }
    return {role: part + bytes(-len(part) % 64) for role, part in raw.items()}


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_round_trip(itemsize: int, numel: int, density: float, rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, numel, itemsize, density)
    parts = encode(dense, itemsize)
    again = decode(parts, itemsize, numel, reference.count(dense, itemsize))
    assert again.tobytes() == dense.tobytes()


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("numel", [0, 1, 8, 65, 4097])
def test_parts_are_those_of_the_specification(itemsize: int, numel: int, rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, numel, itemsize)
    encoded = encode(dense, itemsize)
    assert {role: part.tobytes() for role, part in encoded.items()} == by_hand(dense, itemsize)


@pytest.mark.parametrize("dtype", ENCODABLE, ids=lambda dtype: dtype.name)
def test_special_bit_patterns_survive(dtype: DType) -> None:
    words = np.zeros(200, f"<u{dtype.itemsize}")
    words[10 : 10 + len(SPECIAL[dtype.itemsize])] = SPECIAL[dtype.itemsize]
    dense = words.view(np.uint8)
    nnz = reference.count(dense, dtype.itemsize)
    assert nnz == len(SPECIAL[dtype.itemsize])
    assert decode(encode(dense, dtype.itemsize), dtype.itemsize, 200, nnz).tobytes() == dense.tobytes()


@settings(max_examples=200, deadline=None)
@given(
    itemsize=st.sampled_from([1, 2, 4, 8]),
    numel=st.integers(0, 9000),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_of_anything(itemsize: int, numel: int, density: float, seed: int) -> None:
    dense = sparse_bytes(np.random.default_rng(seed), numel, itemsize, density)
    nnz = reference.count(dense, itemsize)
    assert decode(encode(dense, itemsize), itemsize, numel, nnz).tobytes() == dense.tobytes()


NUMEL = 4096 * 3 + 100


@pytest.fixture
def parts(rng: np.random.Generator) -> dict[str, Bytes]:
    """Four blocks, the last one short; every part has padding."""
    dense = sparse_bytes(rng, NUMEL, 2)
    dense[:4] = 0, 0, 1, 1
    return encode(dense, 2)


def index(parts: dict[str, Bytes]) -> np.ndarray:
    return parts["index"].view("<i8")


BREAK = {
    "B-3 next bit": "bitmap[NUMEL // 8] |= 1 << NUMEL % 8",
    "B-3 last bit": "bitmap[-1] |= 0x80",
    "B-4 one": "index[0] = 1",
    "B-4 negative": "index[0] = -1",
    "B-5 falls": "index[2] = index[1] - 1",
    "B-5 negative": "index[1] = -5",
    "B-5 beyond nnz": "index[1] = 2**62",
    "B-5 lowest": "index[1] = -(2**63)",
    "B-6 too high": "index[1] += 1",
    "B-6 too low": "index[3] -= 1",
    "B-6 bit more": "bitmap[0] |= 1",
    "B-6 bits fewer": "bitmap[0] &= 0xFC",
    "B-6 compensated in another block": "bitmap[0] |= 1; bitmap[512] = bitmap[512] & (bitmap[512] - 1)",
    "B-7 more": "index[4] += 1",
    "B-7 less": "index[4] -= 1",
    "B-8 after the end": "index[5] = 1",
    "B-8 last": "index[-1] = -1",
    "B-9 first byte": "values[2 * nnz] = 1",
    "B-9 last byte": "values[-1] = 1",
    "B-10 first": "values[:2] = 0",
    "B-10 last": "values[2 * nnz - 2 : 2 * nnz] = 0",
}


@pytest.mark.parametrize("case", BREAK)
def test_broken(parts: dict[str, Bytes], case: str) -> None:
    nnz = int(index(parts)[4])
    assert nnz * 2 % 64, "the seed has to give padding"
    scope = {"NUMEL": NUMEL, "nnz": nnz, **parts, "index": index(parts)}
    exec(BREAK[case], scope)
    with pytest.raises(PartError) as caught:
        decode(parts, 2, NUMEL, nnz)
    assert caught.value.rule == case.split(maxsplit=1)[0]
    part = parts[caught.value.part]
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset < part.size


def test_any_range_of_blocks(parts: dict[str, Bytes]) -> None:
    nnz = int(index(parts)[4])
    whole = decode(parts, 2, NUMEL, nnz)
    for first in range(5):
        for stop in range(first, 5):
            piece = whole[first * 8192 : min(stop * 8192, whole.size)]
            out = np.full(piece.size, 0x5A, np.uint8)
            reference.decode(**parts, itemsize=2, numel=NUMEL, nnz=nnz, out=out, first=first, stop=stop)
            assert out.tobytes() == piece.tobytes()


RANGES = {
    "B-4 always": ("index[0] = 1", 2, 3),
    "B-7 always": ("index[4] += 1", 0, 1),
    "B-5 falls": ("index[2] = index[1] - 1", 1, 2),
    "B-5 below 0": ("index[1] = -2**63; index[2] = index[1] + 2048", 1, 2),
    "B-5 beyond nnz": ("index[1] += 2**40; index[2] += 2**40", 1, 2),
    "B-6 in the range": ("bitmap[512] ^= 1", 1, 2),
    "B-10 in the range": ("values[2 * index[1] : 2 * index[1] + 2] = 0", 1, 2),
    "B-3 with the last block": ("bitmap[-1] = 1", 3, 4),
    "B-8 with the last block": ("index[-1] = 1", 3, 4),
    "B-9 with the last block": ("values[-1] = 1", 3, 4),
}


@pytest.mark.parametrize("case", RANGES)
def test_broken_in_a_range(parts: dict[str, Bytes], case: str) -> None:
    change, first, stop = RANGES[case]
    nnz = int(index(parts)[4])
    exec(change, {**parts, "index": index(parts)})
    out = np.zeros(8192 if stop < 4 else 200, np.uint8)
    with pytest.raises(PartError) as caught:
        reference.decode(**parts, itemsize=2, numel=NUMEL, nnz=nnz, out=out, first=first, stop=stop)
    assert caught.value.rule == case.split(maxsplit=1)[0]


def test_encode_refuses_parts_of_the_wrong_size(rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, 1000, 2)
    parts = encode(dense, 2)
    nnz = reference.count(dense, 2)
    for size in (parts["values"].size - 64, parts["values"].size + 64):
        with pytest.raises(ValueError, match="stored elements"):
            reference.encode(dense, 2, nnz, np.zeros(size, np.uint8), parts["bitmap"], parts["index"])
    for wrong in (nnz - 1, nnz + 1):
        parts["values"] = np.zeros(layout.roundup(2 * wrong, 64), np.uint8)
        with pytest.raises(ValueError, match="stored elements"):
            reference.encode(dense, 2, wrong, **parts)
