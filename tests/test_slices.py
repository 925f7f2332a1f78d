"""Slices through the NumPy front door, and the runs of elements that they come down to."""

from __future__ import annotations

import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import some_floats, sparse_bytes

import pyendor
from pyendor import backends, dtypes, file, native
from pyendor.encoded import EncodedTensor
from pyendor.errors import FormatError, UsageError
from pyendor.numpy import safe_open, save_file

SHAPES = {"a": (9, 70, 40), "b": (4100, 3), "c": (5000,), "d": (), "e": (0, 5), "f": (2, 3, 2, 5, 70)}


@pytest.fixture
def arrays(tmp_path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    arrays = {
        name: sparse_bytes(rng, int(np.prod(shape)), 4).view("<u4").reshape(shape)
        for name, shape in SHAPES.items()
    }
    save_file(arrays, tmp_path / "encoded", min_saving=None)
    save_file(arrays, tmp_path / "plain", min_saving=1.0)
    return arrays


def an_index(chance: random.Random, shape: tuple[int, ...]) -> tuple[object, ...]:
    """Anything basic that fits the shape."""
    index: list[object] = []
    for size in shape[: chance.randint(0, len(shape))]:
        if size and chance.random() < 0.3:
            index.append(chance.randrange(-size, size))
        else:
            low, high = (chance.choice([None, chance.randint(-size - 2, size + 2)]) for _ in range(2))
            index.append(slice(low, high, chance.choice([None, 1, 2, 7, -1, -3])))
    for extra, share in ((None, 0.2), (..., 0.3)):
        if chance.random() < share:
            index.insert(chance.randint(0, len(index)), extra)
    return tuple(index)


@pytest.mark.parametrize("backend", list(backends.TABLE))
@pytest.mark.parametrize("how", ["mmap", "pread"])
@pytest.mark.parametrize("where", ["encoded", "plain"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_basic_index(
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    how: str,
    where: str,
    name: str,
) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT, backend)
    chance = random.Random(0)
    with safe_open(tmp_path / where, backend=how) as opened:
        part = opened.get_slice(name)
        assert part.get_shape() == list(SHAPES[name])
        assert part.get_dtype() == "U32"
        for _ in range(150):
            index = an_index(chance, SHAPES[name])
            try:
                expected = arrays[name][index]
            except IndexError:
                with pytest.raises(IndexError):
                    part[index]
                continue
            got = part[index]
            assert got.shape == expected.shape, index
            assert np.array_equal(got, expected), index


def test_other_indices(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pyendor.safe_open(tmp_path / "encoded", "np") as opened:
        part = opened.get_slice("a")
        for index in ([0, 3], np.array([1, 2]), arrays["a"] > 7, True, ([0, 1], [2, 3])):
            assert np.array_equal(part[index], arrays["a"][index])
        for wrong in (9, (0, 70), (0, 0, 0, 0), "x", 1.5):
            with pytest.raises(IndexError):
                part[wrong]
    with pytest.raises(UsageError, match="framework"):
        pyendor.safe_open(tmp_path / "encoded", "tf")


@pytest.mark.parametrize("backend", list(backends.TABLE))
@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F8_E4M3"])
def test_split_values_are_read_in_part(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    density: float,
    backend: str,
) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT, backend)
    kind = dtypes.BY_NAME[dtype]
    shape = (90, 1000)
    array = some_floats(rng, 90 * 1000, kind, density).view(kind.to_numpy()).reshape(shape)
    words = array.view(f"<u{kind.itemsize}")
    save_file({"x": array}, tmp_path / "x", values="split", min_saving=None)
    chance = random.Random(2)
    with safe_open(tmp_path / "x", backend="pread") as opened:
        assert opened.get_encoded("x").meta.split is not None
        for _ in range(60):
            index = an_index(chance, shape)
            try:
                expected = words[index]
            except IndexError:
                continue
            got = opened.get_slice("x")[index]
            assert (got.shape, got.tobytes()) == (expected.shape, expected.tobytes()), index


def test_bytes_that_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    array = some_floats(rng, 1024 * 4096, dtypes.BY_NAME["BF16"], 0.5).view(ml_dtypes.bfloat16)
    array = array.reshape(1024, 4096)
    save_file({"x": array}, tmp_path / "encoded")
    save_file({"x": array}, tmp_path / "plain", min_saving=1.0)
    for where in ("encoded", "plain"):
        with safe_open(tmp_path / where, backend="pread") as opened:
            before, size = opened.bytes_read, (tmp_path / where).stat().st_size
            part = opened.get_slice("x")
            assert part[256:384].tobytes() == array[256:384].tobytes()
            assert size / 8 * 0.9 < opened.bytes_read - before < size / 8 * 1.1
            before = opened.bytes_read
            assert part[3:3].size == 0
            assert opened.bytes_read == before
            part[7, 5]
            assert opened.bytes_read - before < 40_000  # the index, and a block
    with safe_open(tmp_path / "plain", backend="pread") as opened:
        before = opened.bytes_read
        assert opened.get_slice("x")[:, 1024:3072].tobytes() == array[:, 1024:3072].tobytes()
        assert opened.bytes_read - before == array.nbytes // 2
        assert opened.get_slice("x")[:, 7].tobytes() == array[:, 7].tobytes()


@pytest.mark.parametrize("values", ["raw", "split"])
@pytest.mark.parametrize("entry", [-(1 << 62), -1, 1 << 40, (1 << 63) - 1])
def test_an_index_that_lies_leads_nowhere_else(
    tmp_path: Path, rng: np.random.Generator, values: str, entry: int
) -> None:
    array = some_floats(rng, 64 * 4096, dtypes.BY_NAME["BF16"], 0.5).view(ml_dtypes.bfloat16)
    save_file({"x": array.reshape(64, 4096)}, tmp_path / "x", values=values)
    with file.open_file(tmp_path / "x") as opened:
        index = opened.layout.tensors["x"].parts["index"]
    data = (tmp_path / "x").read_bytes()
    for row in range(1 if values == "raw" else 2):
        at = index.start + row * index.nbytes // (1 if values == "raw" else 2) + 8 * 20
        changed = data[:at] + entry.to_bytes(8, "little", signed=True) + data[at + 8 :]
        (tmp_path / "y").write_bytes(changed)
        with safe_open(tmp_path / "y", backend="pread") as opened:
            for rows in (slice(20, 22), slice(18, 20)):
                with pytest.raises(FormatError, match="B-5"):
                    opened.get_slice("x")[rows]
            assert opened.get_slice("x")[:10].tobytes() == array.reshape(64, 4096)[:10].tobytes()


def test_only_what_is_handed_out_is_checked(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """B-11: faults of other blocks are none of a slice, those of its own are."""
    path = tmp_path / "encoded"
    with file.open_file(path) as opened:
        start = opened.layout.tensors["a"].parts["bitmap"].start
    data = bytearray(path.read_bytes())
    data[start + 512 * 3 + 5] ^= 4  # in block 3
    path.write_bytes(data)
    with safe_open(path) as opened:
        part = opened.get_slice("a")
        assert np.array_equal(part[:4], arrays["a"][:4])
        for index in (..., 5, (slice(None), 0)):
            with pytest.raises(FormatError) as caught:
                part[index]
            assert caught.value.rule == "B-6"
            assert caught.value.path == str(path)


@pytest.mark.parametrize("backend", list(backends.TABLE))
@pytest.mark.parametrize("dtype", ["<u4", "bfloat16", "bool"])
def test_an_encoded_tensor_is_indexed_as_its_array(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, backend: str, dtype: str
) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT, backend)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    row = dtypes.from_numpy(kind)
    assert row is not None
    chance = random.Random(1)
    for shape in ((9, 70, 40), (4100, 3), (), (0, 5)):
        dense = sparse_bytes(rng, int(np.prod(shape)), row.itemsize) & (1 if dtype == "bool" else 0xFF)
        array = dense.view(kind).reshape(shape)
        tensor = EncodedTensor.encode("x", row.name, shape, dense, digest=False)
        for index in (*(an_index(chance, shape) for _ in range(50)), ..., np.zeros(shape, bool)):
            try:
                expected = array[index]
            except IndexError:
                with pytest.raises(IndexError):
                    tensor[index]
                continue
            got = tensor[index]
            assert (got.dtype, got.shape, got.tobytes()) == (kind, expected.shape, expected.tobytes()), index


def test_indexing_decodes_what_it_needs(rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, 100 * 4096, 2)
    tensor = EncodedTensor.encode("x", "U16", (100, 4096), dense, digest=False)
    tensor.parts["bitmap"][512 * 50 + 7] ^= 1
    assert np.array_equal(tensor[51:], dense.view("<u2").reshape(100, 4096)[51:])
    for index in (50, (slice(None), 3), [1, 2]):
        with pytest.raises(FormatError, match="B-6"):
            tensor[index]


def test_runs_that_make_no_sense() -> None:
    tensor = EncodedTensor.encode("x", "U8", (10, 10), np.arange(100, dtype=np.uint8))
    for runs in ((-1, 5), (0, 101), (95, 6), (0, 5, 10, 11), (0, -1), (0, 5, 10, -1)):
        with pytest.raises(ValueError, match="runs"):
            tensor.cut(*runs)
    assert tensor.cut(3, 2, 10, 10).tolist() == [10 * row + column for row in range(10) for column in (3, 4)]
    assert tensor.cut(100, 0).size == tensor.cut(0, 5, 10, 0).size == 0


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, threads: str
) -> None:
    monkeypatch.setenv("PYENDOR_THREADS", threads)
    monkeypatch.setattr(native, "_SHARE_OF_SLICE", 100)
    rows, width = 700, 4500
    dense = sparse_bytes(rng, rows * width, 2)
    tensor = EncodedTensor.encode("x", "U16", (rows, width), dense)
    matrix = dense.view("<u2").reshape(rows, width)
    assert tensor.cut(77, 3000, width, rows).tobytes() == matrix[:, 77:3077].tobytes()
    assert (
        tensor.cut(5 * width + 3, 600 * width).tobytes()
        == dense[2 * (5 * width + 3) :][: 1200 * width].tobytes()
    )
    # Faults in several pieces: the one that comes first is named.
    index = tensor.parts["index"].view("<i8")
    for block in (700, 300):
        index[block] += 1
    with pytest.raises(FormatError) as caught:
        tensor.cut(77, 3000, width, rows)
    assert caught.value.offset is None or caught.value.offset <= 8 * 300
