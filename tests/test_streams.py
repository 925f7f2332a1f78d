"""What is ordered behind what on the streams of a GPU, whichever stream is current: played streams, noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cuda_model import Machine, RaceError  # noqa: E402  needs torch

import pyendor.torch as ours  # noqa: E402
from pyendor import cuda, file, native, torch_cuda  # noqa: E402
from pyendor.offload import gds, layers, names, streams  # noqa: E402
from pyendor.offload.disk import Disk  # noqa: E402
from pyendor.offload.empty import without_weights  # noqa: E402
from pyendor.offload.gpu import Gpu  # noqa: E402
from pyendor.offload.stored import Stored  # noqa: E402

if not native.available():
    pytest.skip("pyendor was installed without a C compiler", allow_module_level=True)


@pytest.fixture
def machine(driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A GPU whose streams are played and whose kernels run on the CPU."""
    made = Machine()
    for module in (streams, torch_cuda):
        monkeypatch.setattr(module, "torch", made.torch)
    monkeypatch.setattr(torch_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(torch_cuda, "_real", lambda device: True)
    monkeypatch.setattr(torch_cuda, "SLOT", 4 << 10)
    monkeypatch.setattr(torch_cuda, "_checked", type(torch_cuda._checked)())

    def record_stream(tensor: Any, stream: Any) -> None:
        made.tell(tensor, stream)

    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    call = cuda.Launch.__call__

    def launch(self: cuda.Launch, stream: int = 0, outs: Sequence[cuda.Memory] | None = None) -> None:
        call(self, stream, outs)
        for given in self._given:
            for part in given.memory.values():
                made.used(part.address, part.nbytes, False, stream, "a kernel that reads")
            if given.job.out is not None:
                made.used(*given.job.out, True, stream, "a kernel that writes")
            if given.job.status is not None:
                made.used(given.job.status, 8, True, stream, "a kernel that tells a fault")

    monkeypatch.setattr(cuda.Launch, "__call__", launch)
    yield made
    made.check()
    assert not made.spun


def test_the_machine_sees_races() -> None:
    machine = Machine()
    other = machine.new_stream()
    memory = machine.torch.empty(100, dtype=torch.uint8, device="cuda")

    def raced(work: Callable[[], object]) -> bool:
        with machine.noted():
            work()
        found, machine.races = bool(machine.races), []
        return found

    def on_other(zero: Callable[[], object] = memory.zero_) -> None:
        with machine.on(other):
            zero()

    assert not raced(memory.zero_)
    assert raced(on_other)
    other.wait_stream(machine.default)
    assert not raced(on_other)
    assert raced(memory.zero_)
    machine.synchronize()
    assert not raced(memory.zero_)
    with machine.on(other):
        assert raced(memory.clone)
    event = machine.torch.cuda.Event(blocking=True)
    event.record()
    other.wait_event(event)
    with machine.on(other):
        assert not raced(memory.clone)
    machine.check()
    del memory, on_other
    with pytest.raises(RaceError, match="freed beside aten"):
        machine.check()
    assert not machine.spun


def saved(folder: Path, encoded: bool) -> dict[str, Any]:
    """Six matrices in a file, encoded or plain."""
    torch.manual_seed(6)
    dense = {f"{number}.weight": torch.randn(40 + number, 64) for number in range(6)}
    dense = {name: torch.where(weight.abs() < 0.7, 0.0, weight) for name, weight in dense.items()}
    ours.save_file(dense, folder / "w.safetensors", min_saving=None if encoded else 0.99)
    return dense


class Kvikio:
    """A kvikio that reads.

    Attributes:
        wrong: reads that end in an error, by number.
        alike: all memory is of one allocation, which can be registered once.
    """

    def __init__(self, machine: Machine, counter: Path) -> None:
        self.machine, self.counter, self.reads = machine, counter, 0
        self.settings = {"num_threads": 1, "task_size": 4 << 20}
        self.registered: list[int] = []
        self.waited: list[int] = []
        self.asked: list[tuple[int, int, int]] = []  # address, size and task size
        self.wrong: set[int] = set()
        self.alike = False
        outer = self

        class Defaults:
            get = staticmethod(lambda name: outer.settings[name])

            @staticmethod
            def set(name: str, value: int) -> None:
                outer.settings[name] = value

        class Future:
            def __init__(self, number: int, work: Callable[[], int]) -> None:
                self.number, self.work = number, work

            def get(self) -> int:
                outer.waited.append(self.number)
                if self.number in outer.wrong:
                    raise RuntimeError("input/output error")
                return self.work()

        class CuFile:
            def __init__(self, path: str, flags: str) -> None:
                self._data = np.fromfile(path, np.uint8)

            def pread(self, memory: Any, size: int, start: int, task_size: int) -> Future:
                outer.reads += 1
                outer.write()
                outer.asked.append((memory.data_ptr(), size, task_size))

                def work() -> int:
                    with outer.machine.by_host():
                        memory[:size].copy_(torch.from_numpy(self._data[start : start + size]))
                    return size

                return Future(outer.reads, work)

            def close(self) -> None:
                pass

        self.cufile_driver = type("Driver", (), {"get": staticmethod(lambda name: True)})
        self.defaults, self.CuFile = Defaults, CuFile
        self.write()

    def memory_register(self, memory: Any) -> None:
        if self.alike and self.registered:
            raise RuntimeError("already registered")
        self.registered.append(memory.data_ptr())

    def memory_deregister(self, memory: Any) -> None:
        self.registered.remove(memory.data_ptr())

    def write(self) -> None:
        self.counter.write_text(f"Reads : n={self.reads} ok={self.reads} err=0\n")


@pytest.fixture
def kvikio(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kvikio:
    import sys

    made = Kvikio(machine, tmp_path / "stats")
    monkeypatch.setattr(gds, "_STATISTICS", made.counter)
    monkeypatch.setitem(sys.modules, "kvikio", made)
    monkeypatch.delenv("KVIKIO_NTHREADS", raising=False)
    return made


def forwards(machine: Machine, folder: Path, encoded: bool, tier: str, read: str = "cache") -> None:
    """A model's layers loaded on one stream, and run on others, one after the other, twice."""
    dense = saved(folder, encoded)
    with without_weights():
        model = torch.nn.ModuleList([torch.nn.Linear(64, 40 + number, bias=False) for number in range(6)])
    with file.open_file(folder / "w.safetensors") as opened, machine.noted():
        assert all((one.meta is not None) == encoded for one in opened.layout.tensors.values())
        stored = {name: Stored.of_file(opened, tensor) for name, tensor in opened.layout.tensors.items()}
        cut = layers.cut(model, names.assign(model, stored, ExitStack()), views=False).layers
        disk = Disk([opened], [one for layer in cut for one in layer.bundle.reads], read)
        with machine.on(machine.new_stream()):
            device = Gpu(streams.Cuda(torch.device("cpu")))
            device.connect(disk, read)
            device.prepare(cut, max(layer.dense_nbytes for layer in cut), 0)
            size = max(layer.bundle.nbytes for layer in cut)
            slots = [device.slot(size, size if tier == "disk" else 0) for _ in range(2)]
            held = {layer: device.hold(layer.bundle, tier) for layer in cut if tier != "disk"}
        for _ in range(3):
            with machine.on(machine.new_stream()):
                for number, layer in enumerate(cut):
                    place = held[layer] if tier == "gpu" else slots[number % 2]
                    if tier != "gpu":
                        device.fetch(layer.bundle, held.get(layer), place)
                    (weight,), _ = device.decode(layer, place)
                    assert torch.equal(weight.clone(), dense[f"{number}.weight"])
                device.check()
        # And a layer on a stream of its own each.
        for number, layer in enumerate(cut[:3]):
            with machine.on(machine.new_stream()):
                place = held[layer] if tier == "gpu" else slots[number % 2]
                if tier != "gpu":
                    device.fetch(layer.bundle, held.get(layer), place)
                (weight,), _ = device.decode(layer, place)
                assert torch.equal(weight.clone(), dense[f"{number}.weight"])
        device.close()
        del weight, device, slots, held, place
        disk.close()


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("tier", ["gpu", "host", "disk"])
def test_layers_on_any_stream(machine: Machine, encoded: bool, tier: str, tmp_path: Path) -> None:
    forwards(machine, tmp_path, encoded, tier)


@pytest.mark.parametrize("encoded", [True, False])
def test_reads_to_the_device_wait_for_its_memory(
    machine: Machine, kvikio: Kvikio, encoded: bool, tmp_path: Path
) -> None:
    forwards(machine, tmp_path, encoded, "disk", "gds")
    assert kvikio.reads > 6


def test_reads_to_the_device_are_planned(machine: Machine, kvikio: Kvikio, tmp_path: Path) -> None:
    kvikio.settings["num_threads"] = 2
    forwards(machine, tmp_path, True, "disk", "gds")
    assert kvikio.settings["num_threads"] == gds.REQUESTS
    assert {task for _, _, task in kvikio.asked} == {gds.REQUEST}
    assert not kvikio.registered  # any more
    kvikio.settings["num_threads"] = 64
    forwards(machine, tmp_path, True, "disk", "gds")
    assert kvikio.settings["num_threads"] == 64  # somebody else wants so many


def test_the_number_of_threads_that_the_user_wants(
    machine: Machine, kvikio: Kvikio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVIKIO_NTHREADS", "2")
    kvikio.settings["num_threads"] = 2
    forwards(machine, tmp_path, True, "disk", "gds")
    assert kvikio.settings["num_threads"] == 2


@pytest.mark.parametrize("alike", [False, True])
def test_slots_are_registered(machine: Machine, kvikio: Kvikio, alike: bool, tmp_path: Path) -> None:
    saved(tmp_path, True)
    kvikio.alike = alike
    with file.open_file(tmp_path / "w.safetensors") as opened:
        tensors = [Stored.of_file(opened, one) for one in opened.layout.tensors.values()]
        bundle = layers.Bundle.of(tensors)
        disk = Disk([opened], bundle.reads, "gds")
        device = Gpu(streams.Cuda(torch.device("cpu")))
        device.connect(disk, "gds")
        slots = [device.slot(bundle.nbytes, bundle.nbytes) for _ in range(2)]
        unread = device.slot(bundle.nbytes, 0)
        assert len(kvikio.registered) == (1 if alike else 3)  # that of the trial, too
        for slot in slots:
            assert slot.memory.data_ptr() % 4096 == 0
            assert slot.memory.numel() == bundle.nbytes
            inside = [0 <= slot.memory.data_ptr() - start < 4096 for start in kvikio.registered]
            assert any(inside) != alike
            device.fetch(bundle, None, slot)
        assert all(start != unread.memory.data_ptr() for start in kvikio.registered)
        device.close()
        assert not kvikio.registered
        disk.close()


def test_all_reads_have_ended_after_an_error(machine: Machine, kvikio: Kvikio, tmp_path: Path) -> None:
    saved(tmp_path, True)
    with file.open_file(tmp_path / "w.safetensors") as opened:
        reads = [
            layers.Bundle.of([Stored.of_file(opened, one)]).reads[0] for one in opened.layout.tensors.values()
        ]
        disk = Disk([opened], reads, "gds")
        device = Gpu(streams.Cuda(torch.device("cpu")))
        device.connect(disk, "gds")
        assert device._gds is not None
        kvikio.waited.clear()
        first = kvikio.reads + 1
        kvikio.wrong = {first + 1}
        with pytest.raises(OSError, match="input/output error at byte"):
            device._gds.read(reads, torch.empty(1 << 20, dtype=torch.uint8))
        assert kvikio.waited == list(range(first, first + len(reads)))
        device.close()
        disk.close()


def test_memory_is_freed_when_the_copying_stream_is_done(machine: Machine) -> None:
    device = streams.Cuda(torch.device("cpu"))
    with machine.on(machine.new_stream()), machine.noted():
        memory = device.memory(100)
        device.copy(memory, torch.zeros(100, dtype=torch.uint8), copying=True)
        del memory


@pytest.mark.parametrize("encoded", [True, False])
def test_files_are_loaded_on_the_current_stream(machine: Machine, encoded: bool, tmp_path: Path) -> None:
    dense = saved(tmp_path, encoded)
    for _ in range(2):
        with machine.on(machine.new_stream()), machine.noted():
            found = ours.load_file(tmp_path / "w.safetensors")
            assert all(torch.equal(found[name].clone(), tensor) for name, tensor in dense.items())
            del found


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_weights_that_another_thread_has_loaded(
    machine: Machine, encoded: bool, prefetch: int, tmp_path: Path
) -> None:
    dense = saved(tmp_path, encoded)
    with machine.on(machine.new_stream()), machine.noted():
        for name, tensor in ours.iter_weights(tmp_path / "w.safetensors", "cpu", prefetch=prefetch):
            assert torch.equal(tensor.clone(), dense[name])
            del tensor  # freed while this stream may still be at work on it
