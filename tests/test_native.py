"""The C codec agrees with the reference on good input and bad, whatever the target and number of threads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import sparse_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyendor import backends, layout, native, parallel, reference
from pyendor.encoded import EncodedTensor
from pyendor.errors import BackendUnavailableError, PartError
from pyendor.layout import Bytes
from pyendor.numpy import load_file, save_file

if not native.available():
    pytest.skip("pyendor was installed without a C compiler", allow_module_level=True)

DTYPES = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
LENGTHS = (0, 1, 7, 8, 63, 64, 65, 511, 4095, 4096, 4097, 12289)


@pytest.fixture(params=native.targets(), scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.TARGET, request.param)
        yield request.param


def parts_of(dense: Bytes, itemsize: int, codec: backends.Codec) -> dict[str, Bytes]:
    nnz = codec.count(dense, itemsize)
    specs = layout.part_specs(DTYPES[itemsize], dense.size // itemsize, nnz)
    parts = {spec.role: np.full(spec.nbytes, 0xA5, np.uint8) for spec in specs}
    codec.encode(dense, itemsize, nnz, **parts)
    return parts


def outcome(codec: backends.Codec, parts: dict[str, Bytes], *arguments: int) -> object:
    """What decoding ends in: the bytes, or rule, part and offset of the fault."""
    itemsize, numel, nnz, first, stop = arguments
    size = max(0, min(stop * layout.BLOCK, numel) - first * layout.BLOCK) * itemsize
    out = np.full(size, 0x5A, np.uint8)
    blocks = {"first": first, "stop": stop}
    faults = []
    for to in (out, None):
        try:
            codec.decode(**parts, itemsize=itemsize, numel=numel, nnz=nnz, out=to, **blocks)
        except PartError as error:
            faults.append((error.rule, error.part, error.offset))
    if faults:
        assert faults == faults[:1] * 2, "decoding and validating differ"
        return faults[0]
    return out.tobytes()


def test_it_is_the_default() -> None:
    assert backends.get() is native
    assert backends.get("reference") is reference


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_same_bytes(target: str, itemsize: int, numel: int, density: float, rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, numel, itemsize, density)
    ours, theirs = (parts_of(dense, itemsize, codec) for codec in (native, reference))
    assert {role: part.tobytes() for role, part in ours.items()} == {
        role: part.tobytes() for role, part in theirs.items()
    }
    nnz = native.count(dense, itemsize)
    nb = layout.blocks(numel)
    assert outcome(native, ours, itemsize, numel, nnz, 0, nb) == dense.tobytes()
    for block in range(nb):
        arguments = (itemsize, numel, nnz, block, block + 1)
        assert outcome(native, ours, *arguments) == outcome(reference, ours, *arguments)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_same_faults(target: str, data: st.DataObject) -> None:
    itemsize = data.draw(st.sampled_from([1, 2, 4, 8]))
    numel = data.draw(st.integers(1, 13_000))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dense = sparse_bytes(rng, numel, itemsize, data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])))
    parts = parts_of(dense, itemsize, reference)
    nnz = reference.count(dense, itemsize)
    for _ in range(data.draw(st.integers(1, 3))):
        part = parts[data.draw(st.sampled_from([role for role in parts if parts[role].size]))]
        at = data.draw(st.integers(0, part.size - 1))
        if data.draw(st.booleans()):
            part[at] ^= 1 << data.draw(st.integers(0, 7))
        elif part is parts["index"]:
            part.view("<u8")[at // 8] ^= data.draw(st.sampled_from([1, 3, 2**62, 2**63, 2**64 - 1]))
        else:
            part[at // 8 * 8 : at // 8 * 8 + 8] = 0
    nb = layout.blocks(numel)
    first = data.draw(st.integers(0, nb - 1))
    for low, high in ((0, nb), (first, data.draw(st.integers(first + 1, nb)))):
        arguments = (itemsize, numel, nnz, low, high)
        assert outcome(native, parts, *arguments) == outcome(reference, parts, *arguments)


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: str, rng: np.random.Generator
) -> None:
    numel = layout.BLOCK * 700 + 5
    dense = sparse_bytes(rng, numel, 2)
    monkeypatch.setenv(parallel.THREADS, "1")
    alone = parts_of(dense, 2, native)
    monkeypatch.setenv(parallel.THREADS, threads)
    parts = parts_of(dense, 2, native)
    assert all(np.array_equal(parts[role], alone[role]) for role in alone)
    nnz = native.count(dense, 2)
    nb = layout.blocks(numel)
    assert outcome(native, parts, 2, numel, nnz, 0, nb) == dense.tobytes()
    # Faults in several ranges: the one that comes first is named.
    for block in (650, 300, 20):
        parts["bitmap"][512 * block] ^= 1
        assert outcome(native, parts, 2, numel, nnz, 0, nb) == ("B-6", "index", 8 * (block + 1))
    parts["bitmap"][-1] = 1
    assert outcome(native, parts, 2, numel, nnz, 0, nb) == ("B-3", "bitmap", parts["bitmap"].size - 1)


@pytest.mark.parametrize("shift", [0, 2, 16, 48])
def test_storing_past_the_caches_changes_nothing(target: str, shift: int, rng: np.random.Generator) -> None:
    numel = 3 * layout.BLOCK * 700 + 5
    dense = sparse_bytes(rng, numel, 2)
    tensor = EncodedTensor.encode("x", "U16", (numel,), dense)
    memory = np.zeros(dense.size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    out = memory[start : start + dense.size]
    assert out.size >= native._STREAM
    tensor.decode(out)
    assert np.array_equal(out, dense)
    assert not memory[:start].any()
    assert not memory[start + dense.size :].any()


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


def test_wrong_sizes_are_refused(rng: np.random.Generator) -> None:
    dense = sparse_bytes(rng, 1000, 2)
    parts = parts_of(dense, 2, native)
    nnz = native.count(dense, 2)
    for size in (parts["values"].size - 64, parts["values"].size + 64):
        with pytest.raises(ValueError, match="stored elements"):
            native.encode(dense, 2, nnz, np.zeros(size, np.uint8), parts["bitmap"], parts["index"])
    for wrong in (nnz - 1, nnz + 1, 1001):
        values = np.zeros(layout.roundup(2 * wrong, 64), np.uint8)
        with pytest.raises(ValueError, match="stored elements"):
            native.encode(dense, 2, wrong, values, parts["bitmap"], parts["index"])
    with pytest.raises(ValueError, match="refuses"):
        native.decode(**parts, itemsize=2, numel=1000, nnz=1000, out=np.zeros(2000, np.uint8))
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
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.count("without its native codec") == 1


def test_decoding_after_fork(rng: np.random.Generator) -> None:
    import os

    dense = sparse_bytes(rng, 1 << 21, 2)
    tensor = EncodedTensor.encode("x", "U16", (1 << 21,), dense)
    assert tensor.decode().tobytes() == dense.tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if tensor.decode().tobytes() == dense.tobytes() else 1)
    assert os.waitpid(child, 0)[1] == 0
