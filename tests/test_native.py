"""The C codec agrees with the reference on good input and bad, whatever the target and number of threads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SPLITTABLE, encode, encodings, some_floats, sparse_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyendor import backends, dtypes, layout, native, parallel, reference
from pyendor.dtypes import DType
from pyendor.encoded import STREAM, EncodedTensor
from pyendor.errors import BackendUnavailableError, PartError
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta
from pyendor.numpy import load_file, save_file

if not native.available():
    pytest.skip("pyendor was installed without a C compiler", allow_module_level=True)

ALL = [*SPLITTABLE, *(dtypes.BY_NAME[name] for name in ("U8", "I16", "I32", "F64"))]
LENGTHS = (0, 1, 7, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 12289)


@pytest.fixture(params=native.targets(), scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.TARGET, request.param)
        yield request.param


def outcome(
    codec: backends.Codec, meta: TensorMeta, parts: dict[str, Bytes], first: int, stop: int
) -> object:
    """What decoding ends in: the bytes, or rule, part and offset of the fault."""
    size = max(0, min(stop * layout.BLOCK, meta.numel) - first * layout.BLOCK)
    out = np.full(size * dtypes.BY_NAME[meta.dtype].itemsize, 0x5A, np.uint8)
    faults = []
    for to in (out, None):
        try:
            codec.decode(meta, parts, to, first, stop)
        except PartError as error:
            faults.append((error.rule, error.part, error.offset))
    if faults:
        assert faults == faults[:1] * 2, "decoding and validating differ"
        return faults[0]
    return out.tobytes()


def cut(codec: backends.Codec, meta: TensorMeta, parts: dict[str, Bytes], *runs: int) -> object:
    """What a slice ends in: the bytes, or the rule that is broken."""
    out = np.full(runs[1] * runs[3] * dtypes.BY_NAME[meta.dtype].itemsize, 0x5A, np.uint8)
    try:
        codec.cut(meta, parts, out, *runs)
    except PartError as error:
        return error.rule
    return out.tobytes()


def same(ours: dict[str, Bytes], theirs: dict[str, Bytes]) -> bool:
    return (
        all(np.array_equal(ours[role], part) for role, part in theirs.items())
        and ours.keys() == theirs.keys()
    )


def test_it_is_the_default() -> None:
    assert backends.get() is native
    assert backends.get("reference") is reference


@pytest.mark.parametrize(
    "dtype", [*SPLITTABLE, *map(dtypes.BY_NAME.get, ("U8", "I16", "I32", "F64"))], ids=str
)
@pytest.mark.parametrize("numel", LENGTHS)
def test_same_bytes(target: str, dtype: DType, numel: int, rng: np.random.Generator) -> None:
    nb = layout.blocks(numel)
    for density in (0.0, 0.1, 0.5, 1.0):
        for maker in (some_floats, any_bits):
            dense = maker(rng, numel, dtype, density)
            assert native.survey(dense, dtype) == reference.survey(dense, dtype)
            for meta in encodings(dense, dtype):
                ours, theirs = (encode(codec, meta, dense) for codec in (native, reference))
                assert same(ours, theirs), meta
                assert outcome(native, meta, ours, 0, nb) == dense.tobytes(), meta
                for block in range(nb):
                    piece = dense[block * layout.BLOCK * dtype.itemsize :][: layout.BLOCK * dtype.itemsize]
                    assert outcome(native, meta, ours, block, block + 1) == piece.tobytes(), meta


def any_bits(rng: np.random.Generator, numel: int, dtype: DType, density: float) -> Bytes:
    """Elements of which every bit pattern is as likely: most exponents need a patch."""
    return sparse_bytes(rng, numel, dtype.itemsize, density)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_same_faults(target: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([*SPLITTABLE, dtypes.BY_NAME["U16"], dtypes.BY_NAME["U64"]]))
    numel = data.draw(st.integers(1, 13_000))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    maker = some_floats if dtype.splittable else any_bits
    dense = maker(rng, numel, dtype, data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])))
    meta = data.draw(st.sampled_from(encodings(dense, dtype)))
    parts = encode(reference, meta, dense)
    for _ in range(data.draw(st.integers(1, 3))):
        part = parts[data.draw(st.sampled_from([role for role in parts if parts[role].size]))]
        # Most of a part is padding sometimes: its beginning is hit as often as the rest.
        at = data.draw(st.integers(0, min(part.size - 1, data.draw(st.sampled_from([15, 2**20])))))
        if data.draw(st.booleans()):
            part[at] ^= 1 << data.draw(st.integers(0, 7))
        elif part is parts["index"]:
            part.view("<u8")[at // 8] ^= data.draw(st.sampled_from([1, 3, 2**62, 2**63, 2**64 - 1]))
        else:
            part[at // 8 * 8 : at // 8 * 8 + 8] = data.draw(st.sampled_from([0, 255]))
    nb = layout.blocks(numel)
    first = data.draw(st.integers(0, nb - 1))
    for low, high in ((0, nb), (first, data.draw(st.integers(first + 1, nb)))):
        assert outcome(native, meta, parts, low, high) == outcome(reference, meta, parts, low, high)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_same_slices(target: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([*SPLITTABLE, dtypes.BY_NAME["U32"]]))
    numel = data.draw(st.integers(1, 30_000))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dense = (some_floats if dtype.splittable else any_bits)(rng, numel, dtype, 0.5)
    meta = data.draw(st.sampled_from(encodings(dense, dtype)))
    parts = encode(reference, meta, dense)
    count = data.draw(st.integers(1, min(numel, 5000)))
    start = data.draw(st.integers(0, numel - count))
    stride = data.draw(st.integers(0, numel))
    rows = data.draw(st.integers(1, 1 + min(50, (numel - count - start) // stride if stride else 50)))
    words = dense.view(f"<u{dtype.itemsize}")
    expected = b"".join(words[start + r * stride :][:count].tobytes() for r in range(rows))
    assert cut(native, meta, parts, start, count, stride, rows) == expected
    assert cut(reference, meta, parts, start, count, stride, rows) == expected


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("name", ["U16", "BF16"])
def test_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: str, name: str, rng: np.random.Generator
) -> None:
    numel = layout.BLOCK * 1400 + 5
    dtype = dtypes.BY_NAME[name]
    dense = some_floats(rng, numel, dtypes.BY_NAME["BF16"])
    dense[: layout.BLOCK * 900] = 0  # whole ranges without a stored element
    nb = layout.blocks(numel)
    monkeypatch.setenv(parallel.THREADS, "1")
    metas = encodings(dense, dtype)
    alone = [encode(native, meta, dense) for meta in metas]
    monkeypatch.setenv(parallel.THREADS, threads)
    assert encodings(dense, dtype) == metas
    for meta, before in zip(metas, alone, strict=True):
        parts = encode(native, meta, dense)
        assert same(parts, before), meta
        assert outcome(native, meta, parts, 0, nb) == dense.tobytes()
        # Faults in several ranges: the one that comes first is named.
        for block in (1350, 600, 20):
            if meta.positions == "bitmap":
                parts["bitmap"][512 * block] ^= 1
                expected = ("B-6", "index", 8 * (block + 1))
            else:
                parts["bases"][block] = 255
                expected = ("E-3", "bases", block)
            assert outcome(native, meta, parts, 0, nb) == expected
        if meta.positions == "bitmap":
            parts["bitmap"][-1] = 1
            assert outcome(native, meta, parts, 0, nb) == ("B-3", "bitmap", parts["bitmap"].size - 1)


@pytest.mark.parametrize("shift", [0, 2, 16, 48])
@pytest.mark.parametrize("positions", ["bitmap", "all"])
@pytest.mark.parametrize("values", ["raw", "split"])
def test_storing_past_the_caches_changes_nothing(
    target: str, shift: int, positions: str, values: str, rng: np.random.Generator
) -> None:
    if (positions, values) == ("all", "raw"):
        return
    numel = 3 * layout.BLOCK * 700 + 5
    dtype = dtypes.BY_NAME["BF16"]
    dense = some_floats(rng, numel, dtype)
    meta = next(m for m in encodings(dense, dtype) if (m.positions, m.values) == (positions, values))
    tensor = EncodedTensor.filled("x", meta, dense)
    memory = np.zeros(dense.size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    out = memory[start : start + dense.size]
    assert out.size >= STREAM
    tensor.decode(out)
    assert np.array_equal(out, dense)
    assert not memory[:start].any()
    assert not memory[start + dense.size :].any()
    low, high = (block * layout.BLOCK * dtype.itemsize for block in (1, 3))
    assert np.array_equal(tensor.decode_blocks(1, 3, out[: high - low], stream=True), dense[low:high])
    assert np.array_equal(out[high - low :], dense[high - low :])


def test_work_inside_of_work_is_done_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parallel.THREADS, "2")
    tens = parallel.each(lambda x: parallel.each(lambda y: 10 * x + y, range(3)), range(8))
    assert tens == [[10 * x + y for y in range(3)] for x in range(8)]


def test_the_first_error_is_raised_and_nothing_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parallel.THREADS, "4")
    running = []

    def work(item: int) -> None:
        running.append(item)
        time.sleep(0.01 * (8 - item))
        running.remove(item)
        if item in {2, 5}:
            raise ValueError(item)

    with pytest.raises(ValueError, match="2"):
        parallel.each(work, range(8))
    assert not running


def test_many_threads_read_one_file(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {f"t{i}": sparse_bytes(rng, 1 << 20, 2).view(np.uint16) for i in range(4)}
    save_file(tensors, tmp_path / "x")
    with ThreadPoolExecutor(8) as pool:
        for loaded in pool.map(load_file, [tmp_path / "x"] * 16):
            assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", ["U16", "BF16"])
def test_wrong_sizes_are_refused(name: str, rng: np.random.Generator) -> None:
    dtype = dtypes.BY_NAME[name]
    dense = some_floats(rng, 1000, dtypes.BY_NAME["BF16"])
    for meta in encodings(dense, dtype):
        parts = encode(native, meta, dense)
        for role, part in parts.items():
            for size in (part.size - 64, part.size + 64):
                if size >= 0:
                    other = {**parts, role: np.zeros(size, np.uint8)}
                    with pytest.raises(ValueError, match="lengths"):
                        native.encode(dense, meta, other)
                    with pytest.raises(ValueError, match="refuses"):
                        native.decode(meta, other, np.zeros(2000, np.uint8))
        wrong = [replace(meta, nnz=meta.nnz + k) for k in (-1, 1)] if meta.nnz is not None else []
        if meta.split is not None:
            fields = meta.split
            wrong += [replace(meta, split=replace(fields, patches=fields.patches + k)) for k in (-1, 1)]
            wrong += [replace(meta, split=replace(fields, mantissa=2))]
        for other in wrong:
            with pytest.raises(ValueError, match="lengths"):
                encode(native, other, dense)
        with pytest.raises(ValueError, match="refuses"):
            native.decode(meta, parts, np.zeros(1998, np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        native.count(np.zeros(2000, np.uint8)[::2], 2)


def test_targets_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.TARGET, "mmx")
    with pytest.raises(BackendUnavailableError, match="mmx"):
        native.count(np.zeros(8, np.uint8), 1)
    monkeypatch.setenv(backends.ENVIRONMENT, "magic")
    with pytest.raises(BackendUnavailableError, match="magic"):
        backends.get()


def test_reference_is_used_and_said_once_where_there_is_no_compiled_module(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyendor._native'] = None\n"
        "from pyendor import backends, reference\n"
        "assert backends.get() is backends.get() is reference"
    )
    shutil.copytree(ROOT / "pyendor", tmp_path / "pyendor", ignore=shutil.ignore_patterns("_native*"))
    for place in ("installed", "source"):  # the directory where Python runs comes first
        run = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.meta_path = sys.meta_path[-3:]\n{code}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stderr.count("without its native codec") == 1
        assert run.stderr.count("in another directory") == (place == "source")
        (tmp_path / "CMakeLists.txt").touch()


def test_decoding_after_fork(rng: np.random.Generator) -> None:
    import os

    dense = sparse_bytes(rng, 1 << 21, 2)
    tensor = EncodedTensor.encode("x", "U16", (1 << 21,), dense)
    assert tensor.decode().tobytes() == dense.tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if tensor.decode().tobytes() == dense.tobytes() else 1)
    assert os.waitpid(child, 0)[1] == 0
