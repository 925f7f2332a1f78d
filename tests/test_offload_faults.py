"""Whatever goes wrong while an offloaded model runs: a clear error, no hang, and nothing is left open."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_offload import Case, generate, make  # noqa: E402  needs torch

from pyendor import layout, offload  # noqa: E402
from pyendor.errors import EndorError, FormatError, UnsupportedError, UsageError  # noqa: E402
from pyendor.offload import offload_model  # noqa: E402


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("llama", tmp_path_factory.mktemp("faults"))


@pytest.fixture
def weights(case: Case, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil: its only weights file."""
    shutil.copytree(case.split, tmp_path / "model")
    (path,) = (tmp_path / "model").glob("*.safetensors")
    return path


def descriptors() -> set[str]:
    """What files are open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return {path for path in found if path.endswith(".safetensors")}


def threads() -> list[str]:
    return [
        one.name for one in threading.enumerate() if one.name.startswith(("pyendor-offload", "pyendor-read"))
    ]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not descriptors()
    assert not threads()


@pytest.fixture
def model(weights: Path) -> Iterator[Any]:
    opened = offload_model(weights.parent, host_memory=0)
    yield opened
    offload.close(opened)


def after(calls: int, fault: Callable[[Any], Any]) -> Callable[..., Any]:
    """``os.preadv``, with a fault from this call on."""
    reading, count = os.preadv, iter(range(10**6))

    def read(*args: Any) -> Any:
        return fault(reading) if next(count) >= calls else reading(*args)

    return read


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("calls", [0, 7, 18])
def test_an_error_of_the_disk(
    case: Case, weights: Path, calls: int, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = offload_model(weights.parent, host_memory=0, prefetch=prefetch)

    def fail(_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", after(calls, fail))
        for _ in range(2):
            with pytest.raises(
                OSError, match=r"Input/output error at byte [0-9]+ of.*model\.endor\.safetensors"
            ) as info:
                generate(model, case.ids)
            assert info.value.errno == errno.EIO
    case.check(model)  # the disk is well again
    offload.close(model)


@pytest.mark.parametrize("calls", [0, 9])
def test_a_read_that_ends_early(case: Case, model: Any, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", after(calls, lambda _: 0))
        with pytest.raises(FormatError, match="became shorter"):
            generate(model, case.ids)
    case.check(model)


def spoil(path: Path, how: str) -> None:
    if how == "shorter":
        os.truncate(path, path.stat().st_size // 2)
        return
    with path.open("r+b") as stream:
        stream.seek(-200, os.SEEK_END)
        stream.write(b"\xff" * (200 if how == "written to" else 4_000))


@pytest.mark.parametrize("how", ["shorter", "written to", "longer"])
def test_a_file_that_changes_under_way(case: Case, model: Any, weights: Path, how: str) -> None:
    done = []

    def change(*_: Any) -> None:
        done.append(True)
        if len(done) == 4:
            spoil(weights, how)

    handle = model.model.layers[1].register_forward_hook(change)
    with pytest.raises((FormatError, UsageError), match=r"became shorter|has changed since it was opened"):
        generate(model, case.ids)
    handle.remove()
    with pytest.raises(EndorError):
        generate(model, case.ids)


def test_a_file_that_is_replaced_goes_on_as_it_was(case: Case, model: Any, weights: Path) -> None:
    (weights.parent / "other").write_bytes(b"nothing of use")
    os.replace(weights.parent / "other", weights)
    case.check(model)


def test_a_file_that_changes_while_it_is_opened(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyendor.offload import load

    opening = load.open_files

    def change(path: Path, variant: str | None) -> Any:
        files = opening(path, variant)
        spoil(weights, "longer")
        return files

    monkeypatch.setattr(load, "open_files", change)
    with pytest.raises(UsageError, match="has changed"):
        offload_model(weights.parent, host_memory=0)


@pytest.mark.parametrize("host_memory", [0, "1GB"])
def test_out_of_memory(weights: Path, host_memory: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever memory ends while a model is opened, nothing stays open."""
    allocate = layout.allocate
    for moment in range(1000):
        count = iter(range(10**6))

        def give(nbytes: int, moment: int = moment, count: Iterator[int] = count) -> Any:
            if next(count) == moment:
                raise UnsupportedError(f"{nbytes} bytes are too large for this machine's memory")
            return allocate(nbytes)

        with monkeypatch.context() as patch:
            patch.setattr(layout, "allocate", give)
            try:
                model = offload_model(weights.parent, host_memory=host_memory)
            except UnsupportedError as error:
                assert "memory" in str(error)
                assert not descriptors()
                continue
        offload.close(model)
        break
    assert moment > 3


def test_an_interrupt_while_a_layer_runs(case: Case, model: Any) -> None:
    """KeyboardInterrupt is no Exception: PyTorch calls no hooks for it."""
    for place in (
        model.model.layers[0].mlp,
        model.model.layers[2].self_attn,
        model.lm_head,
        model.model.norm,
    ):
        handle = place.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(case.ids)
        handle.remove()
        case.check(model)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_while_the_disk_is_waited_for(
    case: Case, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.check(model)
    reading = os.preadv

    def slow(*args: Any) -> int:
        time.sleep(0.3)
        return reading(*args)

    # Shells start what runs in the background, these tests perhaps, with the signal of Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", slow)
        timer = threading.Timer(0.45, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            generate(model, case.ids)
        assert time.monotonic() - began < 3
        timer.join()
    signal.signal(signal.SIGINT, before)
    case.check(model)


GENERATES = """
import signal, sys, torch
from pyendor.offload import offload_model
signal.signal(signal.SIGINT, signal.default_int_handler)  # as above
model = offload_model(sys.argv[1], host_memory=0)
print("ready", flush=True)
while True:
    model.generate(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=50, min_new_tokens=50)
"""


def test_ctrl_c_ends_a_program(case: Case) -> None:
    command = [sys.executable, "-c", GENERATES, str(case.split)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_a_model_that_is_forgotten_leaves_nothing(case: Case, weights: Path) -> None:
    model = offload_model(weights.parent, host_memory=0)
    case.check(model)
    assert threads()
    assert descriptors()
    del model
    gc.collect()
    assert not threads()
    assert not descriptors()


def test_one_thread_at_a_time(case: Case, model: Any) -> None:
    errors: list[BaseException] = []
    inside, go = threading.Event(), threading.Event()

    def stop(*_: Any) -> None:
        inside.set()
        go.wait(10)

    handle = model.model.layers[1].mlp.register_forward_pre_hook(stop)
    other = threading.Thread(target=model, args=(case.ids,))
    other.start()
    assert inside.wait(10)
    with pytest.raises(UsageError, match="one thread at a time"):
        model(case.ids)
    go.set()
    other.join()
    handle.remove()
    case.check(model)
    assert not errors


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_refused_threads(case: Case, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """What threads that the system refuses would have fetched and read, the caller fetches and reads."""
    started, start = 0, threading._start_new_thread

    def refuse(*arguments: Any, **keywords: Any) -> int:
        nonlocal started
        if started >= allowed:
            raise RuntimeError("can't start new thread")
        started += 1
        return start(*arguments, **keywords)

    monkeypatch.setattr(threading, "_start_new_thread", refuse)
    model = offload_model(case.split, host_memory=0, prefetch=2)
    for _ in range(2):
        case.check(model)
    assert started == allowed
    offload.close(model)
    with pytest.raises(UsageError, match="closed"), torch.no_grad():
        model(case.ids)
