"""The CUDA decoder, its kernels run on this processor: the same elements and faults, from Python."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENCODABLE, SPLITTABLE, encode, encodings, some_floats, sparse_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyendor import cuda, dlpack, dtypes, layout, native, reference
from pyendor.cuda import Fault, Job, Launch
from pyendor.dtypes import DType
from pyendor.errors import BackendUnavailableError, FormatError, PartError
from pyendor.metadata import TensorMeta

if not native.available():
    pytest.skip("pyendor was installed without a C compiler", allow_module_level=True)

LENGTHS = (0, 1, 63, 65, 4095, 4096, 4097, 12289)
Parts = dict[str, np.ndarray]


def at(array: np.ndarray) -> int:
    """The address of an array."""
    return int(array.ctypes.data)


def addresses(parts: Parts) -> dict[str, int]:
    return {role: at(part) for role, part in parts.items()}


def decoded(meta: TensorMeta, parts: Parts, first: int = 0, stop: int | None = None) -> bytes | Fault:
    """What one launch ends in: the bytes, or the fault that its status word tells."""
    last = layout.blocks(meta.numel) if stop is None else stop
    elements = max(0, min(last * layout.BLOCK, meta.numel) - first * layout.BLOCK)
    out = np.full(elements * dtypes.BY_NAME[meta.dtype].itemsize, 0x5A, np.uint8)
    words = np.zeros(2, np.uint64)
    jobs = [
        Job(meta, addresses(parts), at(out), at(words), first, stop),
        Job(meta, addresses(parts), None, at(words) + 8, first, stop),
    ]
    cuda.decode(jobs)
    assert words[0] == words[1], "decoding and checking differ"
    return cuda.fault(int(words[0])) or out.tobytes()


def samples(dtype: DType, numel: int, density: float = 0.5) -> list[tuple[TensorMeta, Parts, bytes]]:
    rng = np.random.default_rng(numel)
    if dtype.splittable:
        dense = some_floats(rng, numel, dtype, density)
    else:
        dense = sparse_bytes(rng, numel, dtype.itemsize, density)
    return [(meta, encode(reference, meta, dense), dense.tobytes()) for meta in encodings(dense, dtype)]


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("dtype", ENCODABLE, ids=lambda dtype: dtype.name)
def test_every_type_and_length(dtype: DType) -> None:
    for numel in LENGTHS if dtype in SPLITTABLE else LENGTHS[:3]:
        for meta, parts, dense in samples(dtype, numel):
            assert decoded(meta, parts) == dense, meta


@pytest.mark.usefixtures("driver")
def test_ranges_of_blocks() -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME["BF16"], 3 * 4096 + 5):
        for first in range(5):
            for stop in range(first, 5):
                assert decoded(meta, parts, first, stop) == dense[first * 8192 : stop * 8192]


def test_a_layer_is_one_launch_and_more_tensors_are_few(driver: Path) -> None:
    library = ctypes.CDLL(str(driver))
    library.endor_simt_launches.restype = ctypes.c_ulong

    def launches(dtypes_of: list[str]) -> int:
        ready = [samples(dtypes.BY_NAME[name], 5000 + 7 * i)[i % 3] for i, name in enumerate(dtypes_of)]
        outs = [np.zeros(len(dense), np.uint8) for _, _, dense in ready]
        word = np.zeros(1, np.uint64)
        before = library.endor_simt_launches()
        jobs = [
            Job(meta, addresses(parts), at(out), at(word))
            for (meta, parts, _), out in zip(ready, outs, strict=True)
        ]
        cuda.decode(jobs, 0)
        assert not word[0]
        for (_, _, dense), out in zip(ready, outs, strict=True):
            assert out.tobytes() == dense
        return int(library.endor_simt_launches()) - before

    assert launches(["BF16"] * 7) == 1
    assert launches(["BF16"] * 32) == 1
    assert launches(["BF16"] * 33) == 2
    assert launches(["F8_E4M3", "F16", "BF16", "F32"] * 3) == 3  # sizes of elements


@pytest.mark.usefixtures("driver")
def test_a_launch_can_be_used_again_with_other_outputs() -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["F16"], 9000)[0]
    outs = [np.zeros(len(dense), np.uint8) for _ in range(3)]
    launch = Launch([Job(meta, addresses(parts), at(outs[0]))])
    for out in outs:
        launch(outs=[at(out)])
        assert out.tobytes() == dense


@pytest.mark.usefixtures("driver")
def test_parts_in_one_piece_at_any_alignment() -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME["BF16"], 10000):
        size = cuda.packed_nbytes(meta)
        for offset in (0, 2, 3, 8, 16):
            memory, out, word = (
                np.zeros(size + 64, np.uint8),
                np.zeros(len(dense) + 64, np.uint8),
                np.zeros(1, int),
            )
            memory[offset : offset + size] = np.concatenate(list(parts.values()))
            job = Job(meta, cuda.packed(meta, at(memory) + offset), at(out) + offset, at(word))
            cuda.decode([job])
            assert not word[0]
            assert out[offset : offset + len(dense)].tobytes() == dense
            assert not out[:offset].any()
            assert not out[offset + len(dense) :].any()


def reference_fault(meta: TensorMeta, parts: Parts) -> str | None:
    try:
        native.decode(meta, parts, None)
    except PartError as error:
        return error.rule
    return None


@pytest.mark.usefixtures("driver")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_is_found_as_the_codec_of_the_cpu_finds_it(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(SPLITTABLE))
    meta, parts, dense = data.draw(st.sampled_from(samples(dtype, data.draw(st.sampled_from(LENGTHS[1:])))))
    role = data.draw(st.sampled_from([role for role, part in parts.items() if part.size]))
    changed = parts | {role: parts[role].copy()}
    changed[role][data.draw(st.integers(0, parts[role].size - 1))] ^= data.draw(st.integers(1, 255))
    rule = reference_fault(meta, changed)
    found = decoded(meta, changed)
    if rule is None:
        out = np.empty(len(dense), np.uint8)
        native.decode(meta, changed, out)
        assert found == out.tobytes()
    else:
        assert isinstance(found, Fault)
        assert found.rule == rule


@pytest.mark.usefixtures("driver")
def test_status_words_say_rule_and_block() -> None:
    meta, parts, _ = samples(dtypes.BY_NAME["BF16"], 3 * 4096)[0]
    assert cuda.fault(0) is None
    cuda.check(0)
    parts["bitmap"][600] ^= 1
    parts["bitmap"][1200] ^= 1
    assert decoded(meta, parts) == Fault("B-6", 1)
    word = np.zeros(1, np.int64)
    cuda.decode([Job(meta, addresses(parts), None, at(word))])
    with pytest.raises(
        FormatError, match=r"'w': a block has not as many bits set .* \(block 1\) \[rule B-6\]"
    ):
        cuda.check(int(word[0]), tensor="w")
    parts["index"][0] = 1
    assert decoded(meta, parts) == Fault("B-4", None)


@pytest.mark.usefixtures("driver")
def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out = np.zeros(len(dense), np.uint8)
    with pytest.raises(ValueError, match="makes no sense"):
        cuda.decode([Job(meta, addresses(parts), at(out), first=1, stop=3)])
    with pytest.raises(ValueError, match="makes no sense"):
        cuda.decode([Job(meta, addresses(parts), at(out), status=12)])
    for first in (-1, 1 << 64):
        with pytest.raises(ValueError, match="makes no sense"):
            Launch([Job(meta, addresses(parts), at(out), first=first)])
    with pytest.raises(IndexError):
        Launch([Job(meta, addresses(parts), at(out))])(outs=[at(out), at(out)])
    monkeypatch.setenv("ENDOR_SIMT_FAIL", "cuLaunchKernel")
    with pytest.raises(RuntimeError, match=r"unspecified launch failure \(error 719\)"):
        cuda.decode([Job(meta, addresses(parts), at(out))])
    monkeypatch.setenv("ENDOR_SIMT_FAIL", "cuKernelGetFunction")
    with pytest.raises(RuntimeError, match="CUDA"):
        cuda.load()


def test_without_a_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.DRIVER, "/nowhere/libcuda.so")
    assert not cuda.available()
    why = cuda.unavailable()
    assert why is not None
    assert ("built without nvcc" if cuda.kernels_nbytes() == 0 else "no CUDA driver") in why
    with pytest.raises(BackendUnavailableError, match="no CUDA decoder"):
        Launch([])


@pytest.mark.usefixtures("driver")
def test_arrays_of_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out, word = np.zeros(5000, np.uint16), np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match="which no CUDA kernel can reach"):
        dlpack.decode(meta, parts, out, status=word)
    monkeypatch.setattr(dlpack, "DEVICES", {1})
    dlpack.decode(meta, parts, out, status=word)
    assert (out.tobytes(), word[0]) == (dense, 0)
    out[:] = 0
    whole: Any = np.concatenate(list(parts.values()))
    dlpack.decode(meta, whole, out.reshape(50, 100))
    assert out.tobytes() == dense
    dlpack.decode(meta, whole, out[4096:], first=1)
    with pytest.raises(ValueError, match="size"):
        dlpack.decode(meta, whole[:-1], out)
    with pytest.raises(ValueError, match="size"):
        dlpack.decode(meta, whole, out[:-1])
    with pytest.raises(ValueError, match="not contiguous"):
        dlpack.decode(meta, whole, np.zeros((5000, 2), np.uint16)[:, 0])


def test_any_status_word_is_read_whoever_wrote_it() -> None:
    assert cuda.fault(-1 - 103) == Fault("B-3", None)
    assert cuda.fault((1 << 64) - 1 - 103) == Fault("B-3", None)
    assert cuda.fault(-1 - (5 << 21 | 1 << 8 | 106)) == Fault("B-6", 4)
    for word in (1, -1, 1 << 63):
        with pytest.raises(RuntimeError, match="no status word"):
            cuda.fault(word)
