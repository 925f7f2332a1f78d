"""What is put on which stream of a GPU, and in which order; the streams are played, and take their time.

A copy or a kernel is done at a moment that chance chooses, if nobody waits for it. So a wait that is missing
shows: something is read before it is there, or overwritten before it was read.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_offload import Case, generate, make  # noqa: E402  needs torch

from pyendor import backends, cuda, file, offload  # noqa: E402
from pyendor.errors import BackendUnavailableError, FormatError, PartError, UsageError  # noqa: E402
from pyendor.numpy import save_file  # noqa: E402
from pyendor.offload import gds, layers, load, names, offload_model  # noqa: E402
from pyendor.offload.disk import Disk, aligned  # noqa: E402
from pyendor.offload.gpu import Gpu  # noqa: E402
from pyendor.offload.stored import Stored  # noqa: E402

KERNELS = {"Launch": cuda.Launch, "check": cuda.check}


@dataclass(eq=False)
class Event:
    put: int = 0
    reached: int = 0


@dataclass(eq=False)
class Streams:
    """Two queues. ``eager``: who computes does not wait for a stream either, so that one is done at once."""

    chance: random.Random
    eager: bool = False
    where: Any = field(default_factory=lambda: torch.device("cpu"))
    room: int = 1 << 30
    pins: dict[int, int] = field(default_factory=dict)
    launches: int = 0

    def __post_init__(self) -> None:
        self._queues: dict[bool, deque[tuple[str, Any, int]]] = {True: deque(), False: deque()}
        self._lock = threading.RLock()

    def free_memory(self) -> int:
        return self.room

    def memory(self, nbytes: int) -> Any:
        if nbytes > self.room:
            raise UsageError("so much GPU memory is not to be had")
        self.room -= nbytes
        made = torch.from_numpy(aligned(nbytes)[:nbytes])
        made.fill_(0xA5)
        return made

    def pinned(self, nbytes: int) -> Any:
        memory = aligned(nbytes)
        self.pins[memory.ctypes.data] = self.pins.get(memory.ctypes.data, 0) + 1
        return memory

    def unpin(self, memory: Any) -> None:
        self.pins[memory.ctypes.data] -= 1

    def event(self) -> Event:
        return Event()

    def mark(self, event: Event, *, copying: bool) -> None:
        with self._lock:
            event.put += 1
            self._put(copying, "mark", event, event.put)

    def wait(self, event: Event, *, copying: bool) -> None:
        with self._lock:
            self._put(copying, "wait", event, event.put)

    def wait_here(self, event: Event) -> None:
        with self._lock:
            while event.reached < event.put:
                assert self._step(), "a mark that is never reached"

    def copy(self, out: Any, source: Any, *, copying: bool) -> None:
        assert out.numel() == source.numel()
        self._do(copying, lambda: out.copy_(source))

    def launch(self, kernels: Callable[[int], object]) -> None:
        self.launches += 1
        self._do(False, lambda: kernels(7))

    def finish(self) -> None:
        with self._lock:
            while any(self._queues.values()):
                assert self._step(), "streams wait for each other"

    def _do(self, copying: bool, work: Callable[[], object]) -> None:
        with self._lock:
            self._put(copying, "do", work, 0)
            while self.eager and self._queues[False]:
                assert self._step(False) or self._step(True)

    def _put(self, copying: bool, what: str, about: Any, number: int) -> None:
        self._queues[copying].append((what, about, number))
        while self.chance.random() < 0.4 and self._step():
            pass

    def _step(self, only: bool | None = None) -> bool:
        """Does what is first on one of the streams, if that can be done."""
        sides = [True, False] if only is None else [only]
        self.chance.shuffle(sides)
        for side in sides:
            if not self._queues[side]:
                continue
            what, about, number = self._queues[side][0]
            if what == "wait" and about.reached < number:
                continue
            self._queues[side].popleft()
            if what == "mark":
                about.reached = number
            elif what == "do":
                about()
            return True
        return False


class Launch:
    """Kernels, played: jobs decoded by the codec of the CPU, from addresses, when the stream gets there."""

    def __init__(self, jobs: list[cuda.Job], device: int | None = None) -> None:
        assert device is None
        self._jobs = jobs

    def __call__(self, stream: int = 0) -> None:
        assert stream == 7
        for job in self._jobs:
            specs = cuda.layout.part_specs(job.meta)
            parts = {spec.role: at(*job.parts[spec.role]).copy() for spec in specs}
            assert [part.size for part in parts.values()] == [spec.nbytes for spec in specs]
            assert job.out is not None
            assert job.status is not None
            out = at(*job.out)
            try:
                backends.get().decode(job.meta, parts, out)
            except PartError as error:
                word = at(job.status, 8).view(np.int64)
                word[0] = int(error.rule.replace("-", "").replace("B", "1").replace("E", "2"))


def at(address: int, nbytes: int) -> Any:
    """Memory by its address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def check(word: int, *, tensor: str | None = None, path: str | None = None) -> None:
    if word:
        raise FormatError("B-6", f"the kernel says {word}", tensor=tensor, path=path)


@pytest.fixture(autouse=True)
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "Launch", Launch)
    monkeypatch.setattr(cuda, "check", check)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    """Streams that whole models run on; in the end nothing is pinned any more."""
    made = Streams(random.Random(4), eager=True)
    monkeypatch.setattr(load, "open_device", lambda where: Gpu(made))
    yield made
    assert not any(made.pins.values())


@pytest.fixture(scope="session", params=["llama", "tied", "moe", "opt"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("weights", ["dense", "raw", "split"])
@pytest.mark.parametrize("memory", [(0, 0), (50_000, 50_000), ("1GB", 0), (0, "1GB")])
def test_models_run(case: Case, weights: str, memory: tuple[Any, Any], streams: Streams) -> None:
    gpu, host = memory
    for prefetch in (0, 1, 3):
        options = {"gpu_memory": gpu, "host_memory": host, "prefetch": prefetch}
        model = offload_model(getattr(case, weights), device="cuda", **options)
        case.check(model)
        found = offload.summary(model)
        assert (found.token_link > 0) == (gpu != "1GB")
        assert (found.token_disk > 0) == (gpu != "1GB" and host != "1GB")
        offload.close(model)


def test_a_layer_is_one_launch(case: Case, streams: Streams) -> None:
    model = offload_model(case.split, device="cuda", gpu_memory=0, host_memory="1GB")
    with torch.no_grad():
        model(case.ids)
    layers_and_head = sum(share.layers for share in offload.summary(model).tiers.values())
    assert streams.launches == layers_and_head
    assert offload.moved(model).link >= offload.summary(model).token_link
    offload.close(model)


def test_another_dtype(streams: Streams, case: Case) -> None:
    import transformers

    reference = transformers.AutoModelForCausalLM.from_pretrained(case.dense, dtype=torch.float32).eval()
    for directory in (case.split, case.dense):
        model = offload_model(directory, device="cuda", gpu_memory=0, host_memory=0, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(model(case.ids).logits, reference(case.ids).logits)
        offload.close(model)


def matrices(folder: Path) -> tuple[Path, dict[str, Any]]:
    rng = np.random.default_rng(6)
    tensors = {}
    for number in range(6):
        words = rng.standard_normal((40 + number, 64), dtype=np.float32)
        tensors[f"{number}.weight"] = np.where(np.abs(words) < 0.7, 0, words).astype(np.float32)
    save_file(tensors, folder / "x.safetensors", min_saving=None)
    return folder / "x.safetensors", tensors


def play(seed: int, folder: Path) -> bool:
    """Layers through two slots on streams that take their time; whether all weights were right."""
    path, tensors = matrices(folder)
    chance = random.Random(seed)
    made = Streams(chance)
    with empty_modules() as model, file.open_file(path) as opened:
        stored = {name: Stored.of_file(opened, tensor) for name, tensor in opened.layout.tensors.items()}
        cut = layers.cut(model, names.assign(model, stored, ExitStack()), views=False).layers
        disk = Disk([opened], [read for layer in cut for read in layer.bundle.reads], "cache")
        device = Gpu(made)
        device.connect(disk, "cache")
        device.prepare(cut, max(layer.dense_nbytes for layer in cut), 0)
        size = max(layer.bundle.nbytes for layer in cut)
        slots = deque([device.slot(size, size) for _ in range(2)])
        held = {layer: device.hold(layer.bundle, "host") for layer in cut if chance.random() < 0.4}
        order = [layer for _ in range(4) for layer in cut]
        results = []
        for layer in order:
            slot = slots[0]
            slots.rotate()
            device.fetch(layer.bundle, held.get(layer), slot)
            (weight,), lies_there = device.decode(layer, slot)
            assert not lies_there
            result = torch.empty_like(weight)
            made.copy(result, weight, copying=False)  # what a model does with it
            results.append((layer.name, result))
        made.finish()
        try:
            device.check()
            told = False
        except FormatError:
            told = True
        device.close()
        disk.close()
    assert not any(made.pins.values())
    return not told and all(
        torch.equal(result, torch.from_numpy(tensors[f"{name}.weight"])) for name, result in results
    )


class empty_modules:  # noqa: N801  used as a function
    def __enter__(self) -> Any:
        with offload.empty.without_weights():
            return torch.nn.ModuleList([torch.nn.Linear(64, 40 + number, bias=False) for number in range(6)])

    def __exit__(self, *_: object) -> None:
        pass


def test_whenever_streams_do_their_work(tmp_path: Path) -> None:
    assert all(play(seed, tmp_path) for seed in range(60))


@pytest.mark.parametrize("missing", ["wait for the copy", "wait for the kernel", "wait for the staging"])
def test_a_wait_that_is_missing_is_found(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, wait_here = Streams.wait, Streams.wait_here

    def waits(self: Streams, event: Event, *, copying: bool) -> None:
        if missing != ("wait for the kernel" if copying else "wait for the copy"):
            wait(self, event, copying=copying)

    monkeypatch.setattr(Streams, "wait", waits)
    if missing == "wait for the staging":
        calls = iter(range(10**6))
        # Those of the 24 fetches; the last is that of check().
        monkeypatch.setattr(
            Streams, "wait_here", lambda self, event: wait_here(self, event) if next(calls) > 10**5 else None
        )
    assert not all(play(seed, tmp_path) for seed in range(60))


def test_faults_that_kernels_find_are_told_when_the_model_has_run(
    case: Case, streams: Streams, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(case.split, tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    with file.open_file(weights) as opened:
        mine = [one for name, one in opened.layout.tensors.items() if "layers.1." in name]
        tensor = next(one for one in mine if one.meta is not None and len(one.shape) > 1)
    data = bytearray(weights.read_bytes())
    data[tensor.parts["index"].start + 8] ^= 0xFF
    weights.write_bytes(data)
    model = offload_model(weights.parent, device="cuda", gpu_memory=0, host_memory=0)
    for _ in range(2):
        with pytest.raises(FormatError, match="the kernel says") as found:
            model(case.ids)
        assert found.value.tensor == tensor.name
    offload.close(model)


def test_too_little_memory(case: Case, streams: Streams) -> None:
    streams.room = 100
    with pytest.raises(UsageError, match="a smaller prefetch"):
        offload_model(case.split, device="cuda")
    # Enough for the buffers, but not for the whole model besides.
    streams.room = int(0.95 * sum(path.stat().st_size for path in case.dense.glob("*.safetensors")))
    with pytest.raises(UsageError, match="not to be had"):
        offload_model(case.dense, device="cuda", gpu_memory="1GB", prefetch=0)


def test_pinned_memory_that_is_not_to_be_had(
    case: Case, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = streams.pinned
    calls = []

    def pinned(nbytes: int) -> Any:
        calls.append(nbytes)
        if len(calls) == 4:
            raise UsageError("so much cannot be pinned")
        return give(nbytes)

    monkeypatch.setattr(streams, "pinned", pinned)
    with pytest.raises(UsageError, match="cannot be pinned"):
        offload_model(case.split, device="cuda", gpu_memory=0, host_memory="1GB")


def test_without_a_gpu() -> None:
    if cuda.available() and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendUnavailableError, match="no model runs on cuda"):
        load.open_device(torch.device("cuda"))


def test_with_the_kernels(
    case: Case, streams: Streams, driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The unmodified kernels, run lane by lane on the CPU."""
    for name, kernels in KERNELS.items():
        monkeypatch.setattr(cuda, name, kernels)
    for weights in (case.raw, case.split):
        model = offload_model(weights, device="cuda", gpu_memory=50_000, host_memory=50_000)
        with torch.no_grad():
            assert torch.equal(model(case.ids).logits, case.logits)
        offload.close(model)


class Kvikio:
    """A kvikio that reads, and a driver that counts what was direct, or does not."""

    def __init__(self, counter: Path, *, there: bool = True, direct: bool = True) -> None:
        self.counter, self.direct, self.reads, self.open, self.short = counter, direct, 0, 0, 0
        self.cufile_driver = type("Driver", (), {"get": staticmethod(lambda name: there)})
        outer = self

        class CuFile:
            def __init__(self, path: str, flags: str) -> None:
                self._data = Path(path).read_bytes()
                outer.open += 1

            def pread(self, memory: Any, size: int, start: int, task_size: int) -> Any:
                outer.reads += outer.direct
                outer.write()
                found = self._data[start : start + size - outer.short]
                memory[: len(found)] = torch.frombuffer(bytearray(found), dtype=torch.uint8)
                return type("Future", (), {"get": lambda self: len(found)})()

            def close(self) -> None:
                outer.open -= 1

        self.CuFile = CuFile
        settings = {"num_threads": 1}
        self.defaults = type("Defaults", (), {"get": settings.get, "set": settings.__setitem__})
        self.registered = 0
        self.write()

    def memory_register(self, memory: Any) -> None:
        self.registered += 1

    def memory_deregister(self, memory: Any) -> None:
        self.registered -= 1

    def write(self) -> None:
        self.counter.write_text(
            f"GDS Version: 1.7\nReads\t\t: n={self.reads} ok={self.reads} err=0\nWrites: n=0\n"
        )


@pytest.fixture
def kvikio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kvikio]:
    import sys

    def install(**options: bool) -> Kvikio:
        made = Kvikio(tmp_path / "stats", **options)
        monkeypatch.setattr(gds, "_STATISTICS", made.counter)
        monkeypatch.setitem(sys.modules, "kvikio", made)
        return made

    return install


def test_gpudirect_storage(case: Case, streams: Streams, kvikio: Callable[..., Kvikio]) -> None:
    library = kvikio()
    model = offload_model(case.split, device="cuda", gpu_memory=0, host_memory=0)
    assert offload.summary(model).read == "gds"
    case.check(model)
    assert library.reads > 10
    assert library.registered > 1
    assert offload.moved(model).link == 0
    assert offload.moved(model).disk > offload.summary(model).token_disk
    library.short = 1
    with pytest.raises(FormatError, match="became shorter"):
        generate(model, case.ids)
    offload.close(model)
    assert library.open == library.registered == 0


@pytest.mark.parametrize(
    ("options", "why"), [({"there": False}, "nvidia-fs"), ({"direct": False}, "did not go the direct way")]
)
def test_what_is_not_direct_is_not_called_so(
    case: Case, streams: Streams, kvikio: Callable[..., Kvikio], options: dict[str, bool], why: str
) -> None:
    library = kvikio(**options)
    model = offload_model(case.split, device="cuda", gpu_memory=0, host_memory=0, read="gds")
    found = offload.summary(model)
    assert found.read in {"direct", "cache"}
    assert why in found.reason
    case.check(model)
    assert library.open == library.registered == 0
    offload.close(model)


def test_without_kvikio(case: Case, streams: Streams) -> None:
    model = offload_model(case.split, device="cuda", gpu_memory=0, host_memory=0, read="gds")
    assert "kvikio is not installed" in offload.summary(model).reason
    offload.close(model)
