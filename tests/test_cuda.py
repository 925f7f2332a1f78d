"""The CUDA decoder, its kernels run on this processor: the same elements and faults, from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENCODABLE, SPLITTABLE, encode, encodings, some_floats, sparse_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyendor import cuda, dlpack, dtypes, layout, native, reference
from pyendor.cuda import Fault, Job, Launch, Memory
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


def memory(array: np.ndarray) -> Memory:
    """The memory of an array."""
    return Memory(at(array), array.nbytes)


def places(parts: Parts) -> dict[str, Memory]:
    return {role: memory(part) for role, part in parts.items()}


def decoded(meta: TensorMeta, parts: Parts, first: int = 0, stop: int | None = None) -> bytes | Fault:
    """What one launch ends in: the bytes, or the fault that its status word tells."""
    last = layout.blocks(meta.numel) if stop is None else stop
    elements = max(0, min(last * layout.BLOCK, meta.numel) - first * layout.BLOCK)
    out = np.full(elements * dtypes.BY_NAME[meta.dtype].itemsize, 0x5A, np.uint8)
    words = np.zeros(2, np.uint64)
    jobs = [
        Job(meta, places(parts), memory(out), at(words), first, stop),
        Job(meta, places(parts), None, at(words) + 8, first, stop),
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
            Job(meta, places(parts), memory(out), at(word))
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
    launch = Launch([Job(meta, places(parts), memory(outs[0]))])
    for out in outs:
        launch(outs=[memory(out)])
        assert out.tobytes() == dense


@pytest.mark.usefixtures("driver")
def test_parts_in_one_piece_at_any_alignment() -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME["BF16"], 10000):
        size = cuda.packed_nbytes(meta)
        for offset in (0, 2, 3, 8, 16):
            whole, out, word = (
                np.zeros(size + 64, np.uint8),
                np.zeros(len(dense) + 64, np.uint8),
                np.zeros(1, int),
            )
            whole[offset : offset + size] = np.concatenate(list(parts.values()))
            parted = cuda.packed(meta, Memory(at(whole) + offset, size))
            job = Job(meta, parted, Memory(at(out) + offset, len(dense)), at(word))
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
    cuda.decode([Job(meta, places(parts), None, at(word))])
    with pytest.raises(
        FormatError, match=r"'w': a block has not as many bits set .* \(block 1\) \[rule B-6\]"
    ):
        cuda.check(int(word[0]), tensor="w")
    parts["index"][0] = 1
    assert decoded(meta, parts) == Fault("B-4", None)


@pytest.mark.usefixtures("driver")
def test_the_driver_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out = np.zeros(len(dense), np.uint8)
    monkeypatch.setenv("ENDOR_SIMT_FAIL", "cuLaunchKernel")
    with pytest.raises(RuntimeError, match=r"unspecified launch failure \(error 719\)"):
        cuda.decode([Job(meta, places(parts), memory(out))])
    monkeypatch.setenv("ENDOR_SIMT_FAIL", "cuKernelGetFunction")
    with pytest.raises(RuntimeError, match="CUDA"):
        cuda.load(0)


@pytest.mark.usefixtures("driver")
def test_ranges_and_status_words_that_there_are_not() -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out = np.zeros(len(dense), np.uint8)
    for first, stop in ((1, 3), (-1, 1), (1 << 64, 1 << 64), (2, 1), (0, -1)):
        with pytest.raises(ValueError, match="there are no blocks"):
            Launch([Job(meta, places(parts), memory(out), first=first, stop=stop)])
    for status, why in ((12, "no multiple of 8"), (-8, "no address"), (1 << 64, "no address")):
        with pytest.raises(ValueError, match=why):
            Launch([Job(meta, places(parts), memory(out), status)])
    launch = Launch([Job(meta, places(parts), memory(out))])
    for stream in (-1, 1 << 64):
        with pytest.raises(ValueError, match="no address"):
            launch(stream)
    assert not out.any()


def refused(job: Job, why: str, out: Memory | None = None, **changed: Memory | None) -> None:
    """A job is refused when parts of it are changed, or, if they are None, are missing."""
    given = {role: one for role, one in ({**job.parts} | changed).items() if one is not None}
    with pytest.raises(ValueError, match=why):
        Launch([replace(job, parts=given, out=job.out if out is None else out)])


@pytest.mark.usefixtures("driver")
def test_memory_that_is_not_what_is_needed() -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME["BF16"], 5000):
        out, word = np.zeros(len(dense), np.uint8), np.zeros(1, np.uint64)
        good = places(parts)

        job = Job(meta, good, memory(out), at(word))
        for role, (address, nbytes) in good.items():
            for size in (nbytes - 1, nbytes + 1, nbytes - 64, nbytes + 64, 0, -nbytes, nbytes + (1 << 64)):
                if size != nbytes:
                    refused(
                        job, f"'{role}' has {size} bytes, expected {nbytes}", **{role: Memory(address, size)}
                    )
            refused(job, "the parts given are", **{role: None})
            if nbytes:
                for wrong in (0, -1, (1 << 64) - 8, 1 << 64):
                    refused(job, f"'{role}' is at", **{role: Memory(wrong, nbytes)})
        refused(job, "the parts given are", other=good["values"])
        size = len(dense)
        for wrong in (size - 1, size + 1, 0, -size):
            refused(job, f"the output has {wrong} bytes, expected {size}", out=Memory(at(out), wrong))
        refused(job, "the output is at", out=Memory(0, size))
        launch = Launch([job])
        for changed in ([Memory(at(out), size - 2)], [memory(out), memory(out)], [Memory(at(out), 0)]):
            with pytest.raises((ValueError, IndexError)):
                launch(outs=changed)
        assert not out.any()
        launch()
        assert out.tobytes() == dense
        with pytest.raises(ValueError, match="there is memory of"):
            cuda.packed(meta, Memory(at(out), cuda.packed_nbytes(meta) - 1))


@pytest.mark.usefixtures("driver")
def test_what_is_written_overlaps_nothing() -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    size, packed = len(dense), cuda.packed_nbytes(meta)
    whole = np.zeros(packed + 2 * size + 64, np.uint8)
    whole[:packed] = np.concatenate(list(parts.values()))
    base = at(whole)
    given = cuda.packed(meta, Memory(base, packed))
    free = base + packed
    for out in (base, base + packed - 1, given["index"].address):
        with pytest.raises(ValueError, match="overlaps"):
            Launch([Job(meta, given, Memory(out, size))])
    for word in (base, free, free + size - size % 8 - 8):
        with pytest.raises(ValueError, match="overlaps"):
            Launch([Job(meta, given, Memory(free, size), word)])
    one = Job(meta, given, Memory(free, size), free + 2 * size)
    with pytest.raises(ValueError, match="overlaps"):
        Launch([one, Job(meta, given, Memory(free + size - 1, size))])
    launch = Launch([one, Job(meta, given, Memory(free + size, size), free + 2 * size)])
    with pytest.raises(ValueError, match="overlaps"):
        launch(outs=[Memory(free + 1, size)])
    launch()
    assert whole[packed : packed + 2 * size].tobytes() == dense * 2


class Device:
    """What the driver that tests run on knows of its devices."""

    def __init__(self, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library = ctypes.CDLL(str(driver))
        self.library.endor_simt_launches.restype = ctypes.c_ulong
        self.set = monkeypatch.setenv

    def place(self, array: np.ndarray, device: int) -> None:
        address = ctypes.c_void_p(at(array))
        self.library.endor_simt_place(address, ctypes.c_size_t(array.nbytes), device)

    @property
    def launched(self) -> int:
        return int(self.library.endor_simt_launched())

    def current(self) -> int | None:
        context, device = ctypes.c_void_p(), ctypes.c_int()
        assert self.library.cuCtxGetCurrent(ctypes.byref(context)) == 0
        if not context.value:
            return None
        assert self.library.cuCtxGetDevice(ctypes.byref(device)) == 0
        return device.value

    def push(self, device: int) -> None:
        context = ctypes.c_void_p()
        assert self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        assert self.library.cuCtxPushCurrent_v2(context) == 0

    def pop(self) -> None:
        assert self.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0


@pytest.fixture
def devices(simt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Two devices, of a driver of this test's own: how many there are is asked once."""
    import shutil

    own = tmp_path / "libsimt.so"
    shutil.copy(simt, own)
    monkeypatch.setenv("ENDOR_SIMT_DEVICES", "2")
    monkeypatch.setenv(cuda.DRIVER, str(own))
    return Device(own, monkeypatch)


def in_a_thread(work: Callable[[], object]) -> None:
    """Does something in a new thread, which no context is current in."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def test_a_thread_without_a_context(devices: Device) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out = np.zeros(len(dense), np.uint8)
    job = Job(meta, places(parts), memory(out))

    def decode() -> None:
        for device in (1, 0):
            assert devices.current() is None
            out[:] = 0
            cuda.decode([job], device=device)
            assert (out.tobytes(), devices.launched, devices.current()) == (dense, device, None)
        devices.place(out, 1)
        for part in parts.values():
            devices.place(part, 1)
        cuda.decode([job])  # where its memory is
        assert (devices.launched, devices.current()) == (1, None)

    in_a_thread(decode)
    for device in (0, 1):  # retained once and kept, however often it was used
        assert devices.library.endor_simt_retained(device) == 1


def test_the_context_of_the_caller_stays(devices: Device) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out = np.zeros(len(dense), np.uint8)
    job = Job(meta, places(parts), memory(out))

    def decode() -> None:
        devices.push(0)
        launch = Launch([job], device=1)
        launch(2 << 32)
        assert (out.tobytes(), devices.launched, devices.current()) == (dense, 1, 0)
        with pytest.raises(RuntimeError, match="400"):
            launch(1 << 32)  # a stream of the other
        devices.set("ENDOR_SIMT_FAIL", "cuLaunchKernel")
        with pytest.raises(RuntimeError, match="719"):
            launch()
        assert devices.current() == 0
        devices.set("ENDOR_SIMT_FAIL", "")
        cuda.decode([job])
        assert devices.launched == 0
        devices.pop()
        assert devices.current() is None

    in_a_thread(decode)
    for device in (-1, 2):
        with pytest.raises(ValueError, match="there is no CUDA device"):
            Launch([job], device=device)
        with pytest.raises(ValueError, match="there is no CUDA device"):
            cuda.load(device)


def test_memory_of_another_device_is_found_by_the_driver(devices: Device) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out = np.zeros(len(dense), np.uint8)
    devices.place(out, 1)
    with pytest.raises(RuntimeError, match="700"):
        cuda.decode([Job(meta, places(parts), memory(out))], device=0)


@pytest.mark.parametrize("without", [0, 1])
def test_each_device_is_tested(devices: Device, without: int) -> None:
    devices.set("ENDOR_SIMT_WITHOUT", str(without))
    asked = [without, 1 - without, None]
    for order in (asked, asked[::-1]):
        cuda._unloadable.cache_clear()
        for device in order:
            assert cuda.available(device) == (device != without)
    why = cuda.unavailable(without)
    assert why is not None
    assert f"CUDA device {without}" in why
    assert "209" in why
    assert "no CUDA device 2" in str(cuda.unavailable(2))
    with pytest.raises(RuntimeError, match="209"):
        cuda.load(without)
    cuda.load(1 - without)
    devices.push(without)
    assert not cuda.available()  # that is the one which would be used
    devices.pop()


def test_no_device_that_the_kernels_run_on(devices: Device) -> None:
    devices.set("ENDOR_SIMT_FAIL", "cuKernelGetFunction")
    assert not cuda.available()
    assert str(cuda.unavailable()).count("do not run on CUDA device") == 2


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
    for wrong in (whole[:-1], np.append(whole, whole[:1])):
        with pytest.raises(ValueError, match="bytes"):
            dlpack.decode(meta, wrong, out)
    with pytest.raises(ValueError, match="the output has 9998 bytes, expected 10000"):
        dlpack.decode(meta, whole, out[:-1])
    with pytest.raises(ValueError, match="status has 4 bytes"):
        dlpack.decode(meta, whole, out, status=word.view(np.uint32)[:1])
    with pytest.raises(ValueError, match="not contiguous"):
        dlpack.decode(meta, whole, np.zeros((5000, 2), np.uint16)[:, 0])
    both = np.append(whole, np.zeros(10000, np.uint8))
    with pytest.raises(ValueError, match="overlaps"):
        dlpack.decode(meta, both[: whole.size], both[whole.size - 64 : whole.size - 64 + 10000])


class Lent:
    """An array that says it is on a device."""

    def __init__(self, array: np.ndarray, kind: int, number: int) -> None:
        self.array, self.where = array, (kind, number)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where

    def __dlpack__(self, stream: int | None = None) -> object:
        assert (stream is not None) == (self.where[0] != 3)
        return self.array.__dlpack__()


def test_arrays_of_several_devices(devices: Device) -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out, word = np.zeros(5000, np.uint16), np.zeros(1, np.uint64)
    device, pinned, managed = 2, 3, 13

    def decode(parts_on: tuple[int, int], out_on: tuple[int, int], word_on: tuple[int, int]) -> int:
        out[:] = 0
        given = {role: Lent(part, *parts_on) for role, part in parts.items()}
        dlpack.decode(meta, given, Lent(out, *out_on), status=Lent(word, *word_on))
        assert out.tobytes() == dense
        return devices.launched

    for number in (0, 1):
        assert decode((device, number), (device, number), (device, number)) == number
        assert decode((pinned, 0), (device, number), (managed, 1 - number)) == number
        wrong = (device, 1 - number)
        for places in ((wrong, (device, number), (pinned, 0)), ((device, number), (pinned, 0), wrong)):
            with pytest.raises(ValueError, match="on several CUDA devices"):
                decode(*places)
    given = {role: Lent(part, device, i % 2) for i, (role, part) in enumerate(parts.items())}
    with pytest.raises(ValueError, match="on several CUDA devices"):
        dlpack.decode(meta, given, None)
    with pytest.raises(ValueError, match="there is no CUDA device 2"):
        decode((device, 2), (device, 2), (device, 2))


def test_any_status_word_is_read_whoever_wrote_it() -> None:
    assert cuda.fault(-1 - 103) == Fault("B-3", None)
    assert cuda.fault((1 << 64) - 1 - 103) == Fault("B-3", None)
    assert cuda.fault(-1 - (5 << 21 | 1 << 8 | 106)) == Fault("B-6", 4)
    for word in (1, -1, 1 << 63):
        with pytest.raises(RuntimeError, match="no status word"):
            cuda.fault(word)
