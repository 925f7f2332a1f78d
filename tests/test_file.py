"""Single files: the canonical form, what other software makes of it, and reading under attack."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import ENCODABLE, entry, raw_file, sparse_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from pyendor import dtypes, file, layout, parallel, writer
from pyendor.encoded import take_survey
from pyendor.errors import EndorError, FormatError, UnsupportedError, UsageError
from pyendor.numpy import load_file, safe_open, save_file
from pyendor.writer import TensorSource


def source(name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> TensorSource:
    return TensorSource(name, dtype, shape, data.size, lambda: data)


def written(sources: list[TensorSource], metadata: dict[str, str] | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    writer.write(stream, sources, metadata, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def header_of(data: bytes) -> dict[str, object]:
    header: dict[str, object] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


@pytest.fixture
def everything(rng: np.random.Generator) -> list[TensorSource]:
    """A tensor of every element type, each of a size with loose ends, and the awkward ones."""
    sources = []
    for dtype in dtypes.TABLE:
        for numel in (0, 4, 4100):
            nbytes = numel * dtype.bits // 8
            itemsize = dtype.itemsize if dtype.encodable else 1
            data = sparse_bytes(rng, nbytes // itemsize, itemsize)
            sources.append(source(f"{dtype.name}.{numel}", dtype.name, (numel // 4, 4), data))
        if dtype.encodable:
            data = sparse_bytes(rng, 1, dtype.itemsize)
            sources.append(source(f"{dtype.name}.scalar", dtype.name, (), data))
    return sources


@pytest.mark.parametrize("min_saving", [0.05, None, 1.0])
def test_every_dtype_round_trips(everything: list[TensorSource], min_saving: float | None) -> None:
    data = written(everything, min_saving=min_saving)
    with file.open_bytes(data) as opened:
        assert set(opened.layout.tensors) == {tensor.name for tensor in everything}
        for tensor in everything:
            found = opened.tensor(tensor.name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert opened.get_bytes(tensor.name, verify=True).tobytes() == tensor.read().tobytes()
            if min_saving is None and dtypes.BY_NAME[tensor.dtype].encodable:
                assert found.meta is not None
            if min_saving == 1.0:
                assert found.meta is None


def test_stock_safetensors_opens_it(everything: list[TensorSource], tmp_path: Path) -> None:
    names = {tensor.name for tensor in everything}
    for min_saving in (0.05, None):
        data = written(everything, min_saving=min_saving)
        assert names <= set(dict(safetensors.deserialize(data)))
        (tmp_path / "x.safetensors").write_bytes(data)
        with safetensors.safe_open(tmp_path / "x.safetensors", "np") as opened:
            assert names <= set(opened.keys())


def test_canonical_form(rng: np.random.Generator) -> None:
    wide = sparse_bytes(rng, 5000, 2)
    sources = [
        source("z.plain8", "U8", (3,), np.ones(3, np.uint8)),
        source("b", "BF16", (50, 100), wide),
        source("y.plain64", "I64", (1,), np.ones(8, np.uint8)),
        source("a", "BF16", (50, 100), wide),
        source("x.plain8", "I8", (1,), np.ones(1, np.uint8)),
    ]
    data = written(sources, {"zeta": "1", "alpha": "2"})
    header = header_of(data)
    assert list(header) == [
        "__metadata__",
        *("b", "b.endor.bitmap", "b.endor.index"),
        *("a", "a.endor.bitmap", "a.endor.index"),
        *("y.plain64", "z.plain8", "x.plain8"),
    ]
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    assert list(metadata) == ["alpha", "endor", "zeta"]
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0
    assert data == written(sources, {"alpha": "2", "zeta": "1"})


def test_user_format_is_kept() -> None:
    with file.open_bytes(written([], {"format": "mlx"})) as opened:
        assert opened.layout.metadata == {"format": "mlx"}


def test_threshold_is_exact() -> None:
    # 2048 elements of U8: bitmap 256, index 64; 100 * (values + 320 + 512) <= 95 * 2048 up to values = 1088.
    for nnz, encoded in ((1088, True), (1089, False)):
        data = np.zeros(2048, np.uint8)
        data[:nnz] = 1
        with file.open_bytes(written([source("x", "U8", (2048,), data)])) as opened:
            assert (opened.tensor("x").meta is not None) is encoded


def test_what_cannot_be_encoded_stays_plain() -> None:
    zeros = np.zeros(1 << 16, np.uint8)
    sparse = zeros.copy()
    sparse[: 1 << 15] = 1
    cases = [
        source("x", "U8", (1 << 16,), zeros),
        source("x.endor.thing", "U8", (1 << 16,), zeros),
        source("y", "U8", (1 << 16,), zeros),
        source("y.endor", "U8", (1 << 16,), zeros),
        source("sub", "F4", (1 << 17,), zeros),
        source("new", "F8_E3M4", (1 << 16,), zeros),
    ]
    with file.open_bytes(written(cases)) as opened:
        encoded = {tensor.name for tensor in opened.layout.tensors.values() if tensor.meta is not None}
        assert encoded == {"x.endor.thing", "y.endor"}
    # The physical shape would be the logical one: 64 stored elements of 64.
    full = np.ones(64, np.uint8)
    with file.open_bytes(written([source("x", "U8", (64,), full)], min_saving=None)) as opened:
        assert opened.tensor("x").meta is None


def test_dense_files_are_those_of_stock_safetensors(rng: np.random.Generator) -> None:
    numpy_types = [d for d in dtypes.TABLE if d.numpy is not None and d.to_numpy().kind in "biufc"]
    tensors = {}
    for dtype in numpy_types:
        for name in ("b", "a", "é"):
            array = sparse_bytes(rng, 12, dtype.itemsize).view(dtype.to_numpy()).reshape(3, 4)
            tensors[f"{name}.{dtype.name}"] = array
    stock = safetensors.numpy.save(tensors, {"format": "pt"})
    stream = io.BytesIO()
    with file.open_bytes(stock) as opened:
        sources = opened.sources()[::-1]
        writer.write_dense(stream, sources, {"format": "pt"})
    assert stream.getvalue() == stock


def test_duplicate_names_are_refused() -> None:
    tensor = source("x", "U8", (1,), np.ones(1, np.uint8))
    with pytest.raises(UsageError, match="same name"):
        written([tensor, tensor])


def test_source_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.zeros(1 << 16, np.uint8)

    def survey(*args: Any) -> Any:
        found = take_survey(*args)
        data[:] = 1  # as another thread of the caller's might do
        return found

    monkeypatch.setattr(writer, "take_survey", survey)
    with pytest.raises(UsageError, match="changed"):
        written([source("x", "U8", (1 << 16, 1), data)])


def test_source_of_the_wrong_length_is_noticed() -> None:
    with pytest.raises(UsageError, match="expected 8"):
        written([TensorSource("x", "U8", (8,), 8, lambda: np.zeros(7, np.uint8))])


def test_digest_finds_what_no_rule_forbids(rng: np.random.Generator) -> None:
    data = bytearray(written([source("x", "U8", (100, 100), sparse_bytes(rng, 10_000, 1))]))
    with file.open_bytes(bytes(data)) as opened:
        at = opened.tensor("x").parts["values"].start
    data[at] ^= 0xFF if data[at] != 0xFF else 0x01
    with file.open_bytes(bytes(data)) as opened:
        opened.get_bytes("x")
        with pytest.raises(FormatError) as caught:
            opened.get_bytes("x", verify=True)
    assert (caught.value.rule, caught.value.tensor) == ("D-2", "x")


def test_unknown_digest_is_unsupported_only_when_checked(rng: np.random.Generator) -> None:
    data = written([source("x", "U8", (100, 100), sparse_bytes(rng, 10_000, 1))])
    other = data.replace(b"xxh3_64:", b"blake_3:")
    with file.open_bytes(other) as opened:
        assert opened.get_bytes("x").size == 10_000
        with pytest.raises(UnsupportedError, match="blake_3"):
            opened.get_bytes("x", verify=True)


def test_errors_name_tensor_and_offset_in_the_file(rng: np.random.Generator, tmp_path: Path) -> None:
    data = bytearray(written([source("x", "U8", (100, 100), sparse_bytes(rng, 10_000, 1))]))
    with file.open_bytes(bytes(data)) as opened:
        bitmap = opened.tensor("x").parts["bitmap"]
    data[bitmap.stop - 1] = 1
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with file.open_file(path) as opened, pytest.raises(FormatError) as caught:
        opened.get_bytes("x")
    error = caught.value
    assert (error.rule, error.tensor, error.offset) == ("B-3", "x", bitmap.stop - 1)
    assert error.path == str(path)


def test_file_that_shrinks_while_it_is_open(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written([source("x", "U8", (100, 100), sparse_bytes(rng, 10_000, 1))]))
    with file.open_file(path) as opened:
        os.truncate(path, 600)
        with pytest.raises(FormatError, match="shorter"):
            opened.get_bytes("x")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            file.open_file(path)


def test_lying_sizes_allocate_nothing() -> None:
    # 2**50 elements, all zero, in a file of a few hundred bytes: T-4, within 512 MiB of address space.
    meta = {"dtype": "F64", "nnz": 0, "positions": "bitmap", "shape": [2**25, 2**25], "values": "raw"}
    endor = json.dumps({"version": "1.0", "tensors": {"x": meta}})
    header = {
        "__metadata__": {"endor": endor},
        "x": entry("F64", [0], 0, 0),
        "x.endor.bitmap": entry("U8", [64], 0, 64),
        "x.endor.index": entry("I64", [8], 64, 128),
    }
    with pytest.raises(FormatError) as caught:
        file.open_bytes(raw_file(header, bytes(128)))
    assert caught.value.rule == "T-4"


def test_memory_stays_bounded_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lies.safetensors"
    path.write_bytes((99_999_999).to_bytes(8, "little") + b"{}")
    code = f"from pyendor import file; file.open_file({str(path)!r})"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    run = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert "[rule C-3]" in run.stderr


@pytest.mark.parametrize("unit", [b"[],", b'"\\"', b"{", b'"', b"\\"])
def test_hostile_headers_take_linear_time(unit: bytes) -> None:
    data = raw_file(b'{"a":[' + unit * (8_000_000 // len(unit)))
    start = time.perf_counter()
    with pytest.raises(FormatError):
        file.open_bytes(data)
    assert time.perf_counter() - start < 20


SMALL_SEED = 5


@pytest.fixture(scope="module")
def small() -> bytes:
    """A valid file of about two kilobytes with encoded and plain tensors of several types."""
    rng = np.random.default_rng(SMALL_SEED)
    sources = [
        source("w", "BF16", (13, 40), sparse_bytes(rng, 520, 2)),
        source("v", "U8", (0, 9), np.zeros(0, np.uint8)),
        source("bias", "F32", (2,), np.ones(8, np.uint8)),
    ]
    return written(sources, min_saving=None)


def read_all(data: bytes) -> dict[str, bytes]:
    with file.open_bytes(data) as opened:
        return {name: opened.get_bytes(name, verify=True).tobytes() for name in opened.layout.tensors}


def ends_well(data: bytes, right: dict[str, bytes]) -> None:
    """Reading gives what was written, or an error of ours; never wrong tensors, with digests checked."""
    try:
        found = read_all(data)
    except EndorError as error:
        assert str(error)
        return
    if data.count(b'"digest\\":') < len(right):
        return  # the name of a digest was hit: an unknown member, and nothing that would tell of a second hit
    for name in found.keys() & {"w", "v"}:  # a plain tensor has no digest
        assert found[name] == right[name]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(small: bytes, flips: list[tuple[float, int]]) -> None:
    data = bytearray(small)
    for place, byte in flips:
        data[int(place * len(data))] = byte
    ends_well(bytes(data), read_all(small))


def test_every_single_bit(small: bytes) -> None:
    right = read_all(small)
    for place in range(len(small)):
        data = bytearray(small)
        data[place] ^= 1 << place % 8
        ends_well(bytes(data), right)


def test_every_truncation(small: bytes) -> None:
    for length in range(len(small)):
        with pytest.raises(FormatError):
            read_all(small[:length])


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_splices(small: bytes, a: float, b: float, c: float) -> None:
    cut, start, stop = (int(x * len(small)) for x in (a, b, c))
    ends_well(small[:cut] + small[start:stop] + small[cut:], read_all(small))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for candidate in (data, len(data).to_bytes(8, "little") + data):
        try:
            read_all(candidate)
        except EndorError:
            continue


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tensors_round_trip(data: st.DataObject) -> None:
    sources = []
    for number in range(data.draw(st.integers(0, 4))):
        dtype = data.draw(st.sampled_from(ENCODABLE))
        shape = tuple(data.draw(st.lists(st.integers(0, 20), max_size=4)))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        numel = int(np.prod(shape, dtype=np.int64))
        dense = sparse_bytes(rng, numel, dtype.itemsize, data.draw(st.floats(0, 1)))
        sources.append(source(f"t{number}", dtype.name, shape, dense))
    written_bytes = written(sources, min_saving=data.draw(st.sampled_from([None, 0.05])))
    assert read_all(written_bytes) == {tensor.name: tensor.read().tobytes() for tensor in sources}


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here")
def test_large_outputs_ask_for_huge_pages() -> None:
    data = layout.allocate(64 << 20)
    data[:: 1 << 12] = 1
    middle = data.ctypes.data + data.size // 2
    flags: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(edge, 16) for edge in first.split("-"))
            here = low <= middle < high
        elif first == "VmFlags:" and here:
            flags = line.split()[1:]
    assert "hg" in flags
    assert data.ctypes.data % layout.ALIGNMENT == 0


def test_loading_holds_the_parts_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what it returns; measured in what is allocated."""
    monkeypatch.setenv(parallel.THREADS, "1")
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": sparse_bytes(rng, 1 << 20, 2).view("<u2") for i in range(12)}
    save_file(arrays, tmp_path / "x")
    tracemalloc.start()
    try:
        loaded = load_file(tmp_path / "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())
    dense = 12 * (2 << 20)
    assert dense < peak < dense + (3 << 19)  # 9/16 of one tensor, and small things


def test_large_and_small_tensors_are_loaded_in_the_order_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"b": 1000, "a": 17 << 20, "d": 0, "c": 5000, "e": 18 << 20}
    arrays = {name: sparse_bytes(rng, size, 2, 0.2).view("<u2") for name, size in sizes.items()}
    save_file(arrays, tmp_path / "x")
    loaded = load_file(tmp_path / "x")
    with safe_open(tmp_path / "x") as opened:
        assert list(loaded) == opened.offset_keys()
    assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())
