"""The parts of offloading, each alone: the ring, the disk, rows of embeddings, and what is placed where."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPLITTABLE, encode, encodings, some_floats

pytest.importorskip("torch")

from pyendor import file, native, reference
from pyendor.dtypes import BY_NAME, DType
from pyendor.encoded import EncodedTensor
from pyendor.errors import FormatError, UsageError
from pyendor.numpy import save_file
from pyendor.offload import disk as disks
from pyendor.offload import plan
from pyendor.offload.disk import Disk, aligned
from pyendor.offload.ring import Ring
from pyendor.offload.rows import Rows, RowsInMemory
from pyendor.offload.stored import Bundle, Read, Stored

KEYS = list("abcde")


class Slot:
    """Memory for one key."""

    held: str | None = None


def ring(slots: int, fetch: Callable[[str, Slot], None] | None = None) -> tuple[Ring[str, Slot], list[str]]:
    """A ring of these keys, and the list of what it has fetched."""
    fetched: list[str] = []

    def fill(key: str, slot: Slot) -> None:
        fetched.append(key)
        if fetch is not None:
            fetch(key, slot)
        slot.held = key

    shelf = [Slot() for _ in range(slots)]
    return Ring(fill, dict.fromkeys(KEYS, shelf), KEYS, ahead=slots > 1), fetched


def idle(made: Ring[str, Slot], fetched: list[str], count: int) -> None:
    """Waits until so many fetches have been made."""
    for _ in range(500):
        if len(fetched) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{fetched}, {made}")


@pytest.mark.parametrize("slots", [1, 2, 3, 9])
def test_a_ring_gives_what_is_asked_for(slots: int) -> None:
    made, _ = ring(slots)
    chance = random.Random(slots)
    for key in [*KEYS, *KEYS, *chance.choices(KEYS, k=300)]:
        assert made.take(key).held == key
        if chance.random() < 0.7:
            made.give_back()
    made.close()


def test_it_fetches_ahead_and_learns_the_order() -> None:
    made, fetched = ring(3)
    made.take("a")
    idle(made, fetched, 3)
    assert fetched == ["a", "b", "c"]
    for key in "ecae":  # another order than it was told
        made.take(key)
    idle(made, fetched, 5)
    time.sleep(0.05)
    del fetched[:]
    for key in "caecae":
        made.take(key)
        made.give_back()
    made.close()
    assert set(fetched) <= set("cae"), "it has learnt what follows what"


def test_each_takes_slots_of_its_size() -> None:
    """A large one has its slot to itself, and takes none from those before and after it."""
    small, large = [Slot(), Slot()], [Slot()]
    shelves = dict.fromkeys("abcd", small) | {"e": large}
    chance = random.Random(6)
    begun: list[str] = []

    def fill(key: str, slot: Slot) -> None:
        assert slot in shelves[key]
        begun.append(key)
        slot.held = key

    made = Ring(fill, shelves, KEYS)
    made.take("c")
    made.give_back()
    idle(made, begun, 3)
    assert begun == ["c", "d", "e"], "a has to wait for one of the two"
    for key in ["d", "e", *KEYS * 3, *chance.choices(KEYS, k=300)]:
        assert made.take(key).held == key
        if chance.random() < 0.7:
            made.give_back()
    made.close()


def test_one_fetch_begins_before_another_ends() -> None:
    together = threading.Barrier(2, timeout=10)

    def fetch(key: str, slot: Slot) -> None:
        together.wait()
        time.sleep(0.05)

    began = time.perf_counter()
    made, _ = ring(4, fetch)
    for key in KEYS[:4]:
        assert made.take(key).held == key
    together.abort()  # one may be waiting for another
    made.close()
    assert made.busy <= time.perf_counter() - began, "time counts once, however many fetch"
    assert made.busy >= 0.05 * 4 / 2


def test_nothing_fetched_ahead_needs_no_thread() -> None:
    before = threading.active_count()
    made, fetched = ring(1)
    for key in "abc":
        assert made.take(key).held == key
    assert fetched == ["a", "b", "c"]
    assert threading.active_count() == before


@pytest.mark.parametrize("slots", [1, 3])
def test_errors_reach_the_caller_and_it_may_try_again(slots: int) -> None:
    faults = ["b"]

    def fetch(key: str, slot: Slot) -> None:
        if key in faults:
            raise OSError(errno.EIO, "no")

    made, _ = ring(slots, fetch)
    made.take("a")
    for _ in range(3):
        with pytest.raises(OSError, match="no"):
            made.take("b")
    assert made.take("c").held == "c"
    faults.clear()
    for key in KEYS * 3:
        assert made.take(key).held == key
    made.close()
    with pytest.raises(UsageError, match="closed"):
        made.take("a")


def test_closing_while_it_fetches_and_while_somebody_waits() -> None:
    go = threading.Event()
    made, _ = ring(2, lambda key, slot: go.wait(10) and None)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            made.take("a")
        except UsageError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    closer = threading.Thread(target=made.close)
    closer.start()
    waiter.join(5)
    assert len(errors) == 1
    assert closer.is_alive(), "nothing is written to a slot after close() has returned"
    go.set()
    closer.join(5)
    assert not closer.is_alive()


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[file.File]:
    """A file of 3 MB whose bytes are known."""
    data = np.random.default_rng(5).integers(0, 256, 3_000_001, dtype=np.uint8)
    save_file({"x": data}, tmp_path / "x.safetensors", min_saving=1.0)
    with file.open_file(tmp_path / "x.safetensors") as opened:
        yield opened


def some_reads(opened: file.File) -> tuple[list[Read], int]:
    """Ranges that begin and end anywhere, the last at the end of the file."""
    ends = opened.layout.header.file_length
    ranges = [(0, 1), (5, 4101), (4096, 8192), (10_000, 1_500_000), (2_000_000, ends), (ends - 1, ends)]
    reads, at = [], 0
    for start, stop in ranges:
        reads.append(Read(opened, start, stop, at + start % disks.PAGE))
        at += -(-(start % disks.PAGE + stop - start) // disks.PAGE) * disks.PAGE
    return reads, at


def check_reads(opened: file.File, disk: Disk) -> None:
    reads, size = some_reads(opened)
    buffer = aligned(size)
    buffer[:] = 0x5A
    disk.read(reads, buffer)
    whole = Path(str(opened.path)).read_bytes()
    for read in reads:
        assert buffer[read.at : read.at + read.stop - read.start].tobytes() == whole[read.start : read.stop]


@pytest.mark.parametrize("mode", ["direct", "cache"])
def test_reads_of_any_range(numbers: file.File, mode: str) -> None:
    disk = Disk([numbers], some_reads(numbers)[0], mode)
    check_reads(numbers, disk)
    assert disk.nbytes == sum(read.stop - read.start for read in some_reads(numbers)[0])
    disk.close()
    disk.close()
    with pytest.raises(UsageError):
        check_reads(numbers, disk)


def test_the_faster_way_is_found_out(numbers: file.File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "_WORTH", 0)
    slow: set[bool] = set()
    fill = disks._Descriptors.fill

    def slowly(self: Any, out: Any, start: int, *, direct: bool, enough: int | None = None) -> None:
        if direct in slow:
            time.sleep(0.02)
        fill(self, out, start, direct=direct, enough=enough)

    monkeypatch.setattr(disks._Descriptors, "fill", slowly)
    for is_slow, mode in ((True, "cache"), (False, "direct")):
        slow.clear()
        slow.add(is_slow)
        disk = Disk([numbers], some_reads(numbers)[0])
        if disk._open[id(numbers)].refusal is None:
            assert disk.mode == mode
            assert "GB/s" in disk.reason
        check_reads(numbers, disk)
        disk.close()


def test_a_file_system_without_direct_reads(numbers: file.File, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = os.open

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opening(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    disk = Disk([numbers], some_reads(numbers)[0], "direct")
    assert disk.mode == "cache"
    assert "Invalid argument" in disk.reason
    check_reads(numbers, disk)
    disk.close()


@pytest.mark.parametrize("mode", ["direct", "cache"])
def test_short_reads_go_on(numbers: file.File, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = os.preadv

    def little(descriptor: int, buffers: list[memoryview], at: int) -> int:
        """As much as a direct read may ask for, of which not all has come."""
        return min(5_000, reading(descriptor, [buffers[0][:8_192]], at))

    disk = Disk([numbers], some_reads(numbers)[0], mode)
    monkeypatch.setattr(os, "preadv", little)
    check_reads(numbers, disk)
    disk.close()


@pytest.mark.parametrize("dtype", SPLITTABLE, ids=lambda dtype: dtype.name)
def test_rows_are_those_of_the_matrix(dtype: DType, rng: np.random.Generator, tmp_path: Path) -> None:
    shape = (97, 211)  # rows and blocks begin nowhere together
    dense = some_floats(rng, shape[0] * shape[1], dtype)
    table = dense.reshape(shape[0], -1)
    codec = native if native.available() else reference
    for meta in encodings(dense, dtype, shape):
        encoded = EncodedTensor("x", meta, encode(codec, meta, dense))
        touched: list[int] = []
        whole = np.concatenate(list(encoded.parts.values()))
        memory = Stored.of_memory(encoded)

        def read(start: int, out: Any, whole: Any = whole, touched: Any = touched) -> None:
            out[:] = whole[start : start + out.size]
            touched.append(out.size)

        for rows in ([0], [96], [3, 4, 50], list(range(97)), []):
            for source in (Rows(memory, read), RowsInMemory(memory, dict(encoded.parts))):
                out = np.full(len(rows) * table.shape[1], 0xEE, np.uint8)
                source.get(rows, out)
                assert out.tobytes() == table[rows].tobytes()
        assert touched


def test_rows_read_little(tmp_path: Path) -> None:
    table = np.random.default_rng(1).standard_normal((20_000, 64), dtype=np.float32)
    table[np.abs(table) < 0.6745] = 0
    for name, options in (("plain", {"min_saving": 1.0}), ("raw", {"values": "raw"}), ("split", {})):
        save_file({"x": table}, tmp_path / name, **options)  # type: ignore[arg-type]
        with file.open_file(tmp_path / name) as opened:
            tensor = Stored.of_file(opened, opened.layout.tensors["x"])
            disk = Disk([opened], [])
            rows = Rows(tensor, lambda start, out, one=opened, disk=disk: disk.read_small(one, start, out))
            chosen, out = [5, 19_999], np.empty(2 * 256, np.uint8)
            disk.nbytes = 0
            rows.get(chosen, out)
            assert out.tobytes() == table[chosen].tobytes()
            assert disk.nbytes < 100_000 < tensor.nbytes / 20
            disk.close()


def test_a_hostile_index_reads_nothing_outside(rng: np.random.Generator) -> None:
    dtype, shape = BY_NAME["BF16"], (64, 128)
    dense = some_floats(rng, 64 * 128, dtype)
    for meta in encodings(dense, dtype, shape):
        encoded = EncodedTensor("x", meta, encode(reference, meta, dense))
        whole = np.concatenate(list(encoded.parts.values()))
        memory = Stored.of_memory(encoded)
        for value in (-1, 1 << 40, -(1 << 62)):
            changed = whole.copy()
            at = memory.places["index"][0]
            changed[at : at + 24].view("<i8")[:] = value

            def read(start: int, out: Any, changed: Any = changed) -> None:
                assert 0 <= start <= start + out.size <= changed.size
                out[:] = changed[start : start + out.size]

            with pytest.raises(FormatError):
                Rows(memory, read).get([0, 63], np.empty(2 * 256, np.uint8))


def test_a_bundle_reads_a_layer_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {}
    for layer in range(3):
        for part in "abc":
            words = rng.standard_normal((64, 512), dtype=np.float32)
            tensors[f"{layer}.{part}"] = np.where(np.abs(words) < 0.7, 0, words)
    save_file(tensors, tmp_path / "x")
    with file.open_file(tmp_path / "x") as opened:
        for layer in range(3):
            mine = [Stored.of_file(opened, opened.layout.tensors[f"{layer}.{part}"]) for part in "cab"]
            bundle = Bundle.of(mine)
            assert len(bundle.reads) == 1
            assert bundle.stored <= bundle.nbytes < bundle.stored + 2 * disks.PAGE
            disk, buffer = Disk([opened], bundle.reads), aligned(bundle.nbytes)
            disk.read(bundle.reads, buffer)
            disk.close()
            for number, tensor in enumerate(bundle.tensors):
                out = np.empty(tensor.dense_nbytes, np.uint8)
                tensor.decode(bundle.parts(number, buffer), out, stream=False)
                assert out.tobytes() == tensors[tensor.name].tobytes()


@dataclass(eq=False)
class FakeBundle:
    nbytes: int
    reads: tuple[int, ...]


@dataclass(eq=False)
class FakeLayer:
    bundle: FakeBundle
    by_rows: bool


def layers(*sizes: int, by_rows: bool = False, reads: tuple[int, ...] = (1,)) -> list[Any]:
    return [FakeLayer(FakeBundle(size, reads), by_rows) for size in sizes]


def tiers(chosen: list[Any], gpu: int, host: int) -> str:
    found = plan.place(chosen, gpu, host)
    return "".join(found[layer][0] for layer in chosen)


def test_layers_are_spread_evenly() -> None:
    assert tiers(layers(*[10] * 8), 0, 0) == "dddddddd"
    assert tiers(layers(*[10] * 8), 0, 40) == "dhdhdhdh"
    assert tiers(layers(*[10] * 8), 0, 79).count("h") == 7
    assert tiers(layers(*[10] * 8), 0, 80) == "hhhhhhhh"
    assert sorted(tiers(layers(*[10] * 8), 20, 40)) == sorted("gghhhhdd")
    assert tiers(layers(100, 10, 10), 0, 25) == "dhh"
    with_rows = [*layers(10, by_rows=True), *layers(10, 10)]
    assert tiers(with_rows, 0, 1000) == "dhh"


def test_what_is_in_no_file_has_to_fit() -> None:
    assert tiers(layers(10, 10, reads=()), 0, 20) == "hh"
    with pytest.raises(UsageError, match="save it"):
        tiers(layers(10, 10, reads=()), 0, 19)


def test_slots_by_size() -> None:
    def slots(sizes: tuple[int, ...], prefetch: int) -> list[tuple[int, int]]:
        return [(shelf.count, shelf.nbytes) for shelf in plan.shelves(layers(*sizes), prefetch)]

    with_head = (38, 40, 39, 38, 146)
    assert slots(with_head, 0) == [(1, 146)]
    assert slots(with_head, 1) == [(1, 146), (2, 40)]
    assert slots(with_head, 2) == [(1, 146), (3, 40)]
    assert slots(with_head, 10**9) == [(1, 146), (4, 40)], "no more than there are layers"
    assert slots((10, 20, 10, 20), 1) == [(2, 20)]
    assert slots((), 1) == []


def test_how_many_layers_ahead() -> None:
    mine = layers(*[100] * 5)
    assert plan.layers_ahead(mine, 50, None, 3) == 3
    assert plan.layers_ahead(mine, 50, 438, 3) == 2
    assert plan.layers_ahead(mine, 50, 437, 3) == 1, "four fifths do not hold 350"
    assert plan.layers_ahead(mine, 50, 312, 2) == 0
    assert plan.layers_ahead([], 0, 0, 2) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [(0, 0), ("7", 7), ("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("512mib", 512 << 20), ("3k", 3000)],
)
def test_amounts_of_memory(text: int | str, number: int) -> None:
    assert plan.nbytes(text, "host_memory") == number


@pytest.mark.parametrize("text", ["", "much", "-1", -1, "1e9", True, "5 apples"])
def test_what_is_no_amount(text: Any) -> None:
    with pytest.raises(UsageError, match="no amount of memory"):
        plan.nbytes(text, "host_memory")


def test_free_memory_is_known_here() -> None:
    free = plan.free_host_memory()
    assert free is None or 0 <= free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_free_memory_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of a group above counts, and pages of files are as good as free."""
    files = {
        "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 5000000 kB\n",
        "/proc/self/cgroup": "0::/jobs/one\n",
        "/sys/fs/cgroup/jobs/one/memory.max": "max",
        "/sys/fs/cgroup/jobs/one/memory.current": "1000",
        "/sys/fs/cgroup/jobs/memory.max": "2000000",
        "/sys/fs/cgroup/jobs/memory.current": "1500000",
        "/sys/fs/cgroup/jobs/memory.stat": "anon 1000000\nfile 400000\nshmem 100000\n",
    }

    def text(path: Path, *_: Any, **__: Any) -> str:
        try:
            return files[str(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(Path, "read_text", text)
    assert plan.free_host_memory() == 2_000_000 - 1_500_000 + 300_000
    files["/proc/self/cgroup"] = "5:cpu,memory:/a\n1:name=x:/a\n"
    files["/sys/fs/cgroup/memory/a/memory.limit_in_bytes"] = "900"
    files["/sys/fs/cgroup/memory/a/memory.usage_in_bytes"] = "1000"
    assert plan.free_host_memory() == 0
    files.clear()
    assert plan.free_host_memory() is None
