"""Shards in parallel: on threads, processes and a cluster the same bytes come out, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import tree
from safetensors.numpy import save_file
from test_cli import endor

from pyendor import convert, file, jobs, parallel, verify, writer
from pyendor.errors import UsageError
from pyendor.jobs import Progress

MIB = 1 << 20


def make_checkpoint(root: Path, shards: int, tensors: int, nbytes: int) -> Path:
    """A sharded checkpoint in BF16, half of it zero, of so many tensors of this size in each shard."""
    root.mkdir()
    rng = np.random.default_rng(7)
    words = (rng.standard_normal(min(nbytes, MIB) // 2, np.float32) * 0.05).astype(ml_dtypes.bfloat16)
    words[rng.random(words.size) < 0.5] = 0
    data = np.resize(words.view(np.uint8), nbytes)
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = [f"layers.{shard}.{place}.weight" for place in range(tensors)]
        shape = (64, nbytes // 128)
        sources = [writer.TensorSource(one, "BF16", shape, nbytes, lambda: data) for one in names]
        with open(root / name, "wb") as stream:
            writer.write_dense(stream, sources, {"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": shards * tensors * nbytes}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text("{}")
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Five small shards of two tensors."""
    return make_checkpoint(tmp_path / "model", 5, 2, 1 << 16)


def processes() -> Executor:
    # Spawned: a fork of a process with threads may hang.
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(3), processes], ids=["threads", "processes"])
def test_bytes_and_findings_do_not_depend_on_the_executor(
    model: Path, tmp_path: Path, make: Callable[[], Executor]
) -> None:
    convert.compress(model, tmp_path / "one", jobs=1)
    convert.compress(model, tmp_path / "many", jobs=4)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    bytes_done: list[int] = []
    with make() as executor:
        done = convert.compress(model, tmp_path / "endor", executor=executor, progress=bytes_done.append)
        assert done.source_bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))
        assert (done.tensors, done.encoded) == (10, 10)
        assert tree(tmp_path / "endor") == tree(tmp_path / "one")
        assert sum(bytes_done) == 10 << 16
        convert.decompress(tmp_path / "endor", tmp_path / "back", executor=executor)
        assert tree(tmp_path / "back") == tree(model)
        (tmp_path / "endor" / "model.endor-00002-of-00005.safetensors").write_bytes(b"x" * 100)
        alone = verify.verify(tmp_path / "endor", sums=True, jobs=1)
        assert alone.problems
        assert asdict(verify.verify(tmp_path / "endor", sums=True, executor=executor)) == asdict(alone)
        assert asdict(verify.verify(tmp_path / "endor", sums=True, jobs=3)) == asdict(alone)


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(3), processes], ids=["threads", "processes"])
def test_differences_do_not_depend_on_the_executor(
    model: Path, tmp_path: Path, make: Callable[[], Executor]
) -> None:
    convert.compress(model, tmp_path / "endor")
    other = model / "model-00004-of-00005.safetensors"
    data = bytearray(other.read_bytes())
    data[-3] ^= 1
    data[-1] ^= 1
    other.write_bytes(data)
    alone = verify.compare(tmp_path / "endor", model, jobs=1)
    assert [(problem.tensor, problem.message) for problem in alone] == [
        ("layers.3.1.weight", "differs in 2 bytes, the first of them byte 65533 of its dense data")
    ]
    bytes_done: list[int] = []
    with make() as executor:
        assert (
            verify.compare(tmp_path / "endor", model, executor=executor, progress=bytes_done.append) == alone
        )
    assert sum(bytes_done) == 10 << 16


def test_jobs_on_the_command_line(model: Path, tmp_path: Path) -> None:
    for number in (1, 3):
        for command in (["compress", "model", f"e{number}"], ["decompress", f"e{number}", f"b{number}"]):
            run = endor(*command, "--jobs", number, cwd=tmp_path)
            assert run.returncode == 0, run.stderr
        assert endor("verify", f"e{number}", "-j", number, cwd=tmp_path).returncode == 0
    assert tree(tmp_path / "e1") == tree(tmp_path / "e3")
    assert tree(tmp_path / "b1") == tree(tmp_path / "b3") == tree(model)
    assert endor("compress", "model", "x", "--jobs", 0, cwd=tmp_path).returncode == 2
    with pytest.raises(UsageError, match="at least one"):
        convert.compress(model, tmp_path / "x", jobs=0)
    assert not (tmp_path / "x").exists()


@dataclass(frozen=True)
class Task:
    """A job that fails, dies, waits, or gives a number."""

    what: int | str

    def run(self, progress: Progress) -> int:
        if self.what == "die":
            os._exit(1)
        if self.what == "wait":
            while True:
                progress(1)
                time.sleep(0.001)
        if isinstance(self.what, str):
            raise UsageError(self.what)
        progress(self.what)
        return self.what

    def __str__(self) -> str:
        return f"task {self.what}"


def run(*tasks: int | str, executor: Executor | None = None, number: int = 4) -> dict[int, int]:
    results: dict[int, int] = {}
    jobs.run([Task(task) for task in tasks], results.__setitem__, executor=executor, jobs=number)
    return results


def test_a_failure_stops_the_others_and_is_what_is_raised() -> None:
    assert run(1, 2, 3) == {0: 1, 1: 2, 2: 3}
    assert run() == {}
    with pytest.raises(UsageError, match="bad"):
        run("wait", "bad", "wait")
    with pytest.raises(UsageError, match="first"):
        run("first", "second", number=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pyendor-job")]


def test_workers_that_die_are_told() -> None:
    with processes() as executor, pytest.raises(ChildProcessError, match=r"task .*the executor gave up"):
        run(1, "die", executor=executor)


def test_what_others_have_finished_when_one_fails_is_not_lost() -> None:
    results: dict[int, int] = {}
    with pytest.raises(UsageError, match="bad"), ThreadPoolExecutor(1) as executor:
        jobs.run([Task(1), Task("bad"), Task(3)], results.__setitem__, executor=executor)
    assert results[0] == 1


def test_ahead_is_one_ahead() -> None:
    begun: list[int] = []
    for item in parallel.ahead(lambda item: begun.append(item) or item, range(9)):
        time.sleep(0.001)
        assert len(begun) <= item + 2
    assert begun == list(range(9))

    def fail(item: int) -> int:
        if item == 2:
            raise ValueError
        return item

    results = parallel.ahead(fail, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError):  # noqa: PT011
        next(results)


MEASURED = """
import re, sys, threading, time
from pyendor.cli import app
peak, going = 0, True
def look():
    global peak
    while going:
        text = open("/proc/self/status").read()
        peak = max(peak, sum(int(kb) << 10 for kb in re.findall(r"Rss(?:Anon|Shmem):\\s*(\\d+)", text)))
        time.sleep(0.001)
thread = threading.Thread(target=look)
thread.start()
code = app(sys.argv[1:], standalone_mode=False)
going = False
thread.join()
print(peak)
sys.exit(code)
"""


def peak_memory(where: Path, *arguments: str) -> int:
    """The most memory of its own, in bytes, that the command takes."""
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("number", [1, 2])
def test_memory_is_bounded_for_each_job(tmp_path: Path, number: int) -> None:
    tensor = 64 * MIB
    limit = 300_000_000 + 3 * tensor * number
    make_checkpoint(tmp_path / "dense", 2, 4 if number == 1 else 6, tensor)
    assert sum(path.stat().st_size for path in (tmp_path / "dense").iterdir()) > limit
    for command in (
        ["compress", "dense", "endor"],
        ["verify", "endor"],
        ["verify", "endor", "--sums"],
        ["verify", "endor", "--against", "dense"],
        ["decompress", "endor", "back"],
    ):
        peak = peak_memory(tmp_path, *command, "--jobs", str(number))
        print(f"{' '.join(command)}: {peak / 1e6:.0f} MB of {limit / 1e6:.0f}")
        assert peak <= limit, command


def test_memory_is_bounded_where_bitmasks_are_imported(tmp_path: Path) -> None:
    tensor = 64 * MIB
    limit = 300_000_000 + 3 * tensor
    dense = np.ones((4096, tensor // 8192), np.float16)
    dense[:, ::2] = 0
    parts = {
        "bitmask": np.packbits(dense != 0, axis=-1, bitorder="little"),
        "compressed": dense[dense != 0],
        "row_offsets": np.arange(0, dense.size // 2, dense.shape[1] // 2, np.int64),
        "shape": np.array(dense.shape, np.int64),
    }
    (tmp_path / "packed").mkdir()
    arrays = {f"layers.{place}.{part}": array for place in range(18) for part, array in parts.items()}
    save_file(arrays, tmp_path / "packed" / "model.safetensors")
    config = {"quantization_config": {"sparsity_config": {"format": "sparse-bitmask"}}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    assert (tmp_path / "packed" / "model.safetensors").stat().st_size > limit
    peak = peak_memory(tmp_path, "compress", "packed", "endor", "--jobs", "1")
    print(f"import: {peak / 1e6:.0f} MB of {limit / 1e6:.0f}")
    assert peak <= limit
    with file.open_file(tmp_path / "endor" / "model.endor.safetensors") as opened:
        assert len(opened.layout.tensors) == 18
        assert opened.get_bytes("layers.17.weight").tobytes() == dense.tobytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Dask cluster of two worker processes of one thread."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


def test_dask(cluster: object, model: Path, tmp_path: Path) -> None:
    convert.compress(model, tmp_path / "here")
    address = cluster.scheduler_address  # type: ignore[attr-defined]
    run = endor("compress", "model", "there", "--dask", address, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    run = endor("verify", "there", "--dask", address, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    run = endor("decompress", "there", "back", "--dask", address, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert tree(tmp_path / "back") == tree(model)
    (model / "model-00003-of-00005.safetensors").write_bytes(b"x" * 100)
    run = endor("compress", "model", "x", "--dask", address, cwd=tmp_path)
    assert run.returncode == 1
    assert "rule C-" in run.stderr
    assert not (tmp_path / "x").exists()


def test_dask_worker_that_is_killed(cluster: object, tmp_path: Path) -> None:
    # With the slow codec, so that there is time to kill.
    model = make_checkpoint(tmp_path / "model", 4, 2, 4 * MIB)
    convert.compress(model, tmp_path / "here")
    distributed = pytest.importorskip("distributed")
    with distributed.Client(cluster, set_as_default=False) as client:
        pids = client.run(os.getpid)

        def kill() -> None:
            drafts = tmp_path / ".there.endor-work" / "drafts"
            while not list(drafts.glob(".*")):  # until somebody is writing
                time.sleep(0.001)
            os.kill(min(pids.values()), 9)

        killer = threading.Thread(target=kill)
        killer.start()
        executor = client.get_executor(pure=False)
        convert.compress(model, tmp_path / "there", executor=executor, backend="reference")
        killer.join()
        assert min(pids.values()) not in client.run(os.getpid).values()
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "here", "there"}


def test_dask_that_does_not_answer(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "200ms")
    run = endor("compress", "model", "x", "--dask", "tcp://127.0.0.1:1", cwd=tmp_path)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "127.0.0.1:1" in run.stderr
