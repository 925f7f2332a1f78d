"""Whatever goes wrong: nothing is lost, nothing half-written looks whole, and the same command completes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import tree
from test_cli import endor
from test_jobs import make_checkpoint

import pyendor
from pyendor import atomic, convert, locks, workspace
from pyendor.errors import EndorError, UsageError

SHARDS = 3
FIRST = "model.endor-00001-of-00003.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three small shards of two tensors."""
    return make_checkpoint(tmp_path / "model", SHARDS, 2, 1 << 16)


def shard(model: Path, number: int) -> Path:
    return model / f"model-{number:05}-of-{SHARDS:05}.safetensors"


class Cut(KeyboardInterrupt):
    """An interrupt at a moment that a test chooses."""


def at(moment: int, what: Callable[[], object]) -> Callable[[int], None]:
    """Progress that does something at this call, of which each shard has four."""
    calls = iter(range(1, 1000))

    def progress(done: int) -> None:
        if next(calls) == moment:
            what()

    return progress


def cut() -> None:
    raise Cut


def beside(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def cut_short(model: Path, target: Path, moment: int = 6) -> Path:
    """Leaves a run that had finished its first shard; gives the shard."""
    with pytest.raises(Cut) as caught:
        convert.compress(model, target, jobs=1, progress=at(moment, cut))
    assert "1 finished file is kept" in caught.value.__notes__[0]
    assert not target.exists()
    root = target.with_name(f".{target.name}{workspace.SUFFIX}")
    assert sorted(tree(root)) == [f"files/{FIRST}", "journal", "lock"]
    assert root.stat().st_mode & 0o777 == 0o700
    return root / "files" / FIRST


def test_a_run_that_is_cut_short_goes_on(model: Path, tmp_path: Path) -> None:
    convert.compress(model, tmp_path / "good")
    kept = cut_short(model, tmp_path / "x").stat()
    done: list[int] = []
    convert.compress(model, tmp_path / "x", progress=done.append)
    assert sum(done) == 6 << 16
    assert (tmp_path / "x" / FIRST).stat().st_ino == kept.st_ino, "it was made anew"
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    assert beside(model) == {"model", "good", "x"}
    # So does its reverse.
    with pytest.raises(Cut):
        convert.decompress(tmp_path / "x", tmp_path / "back", jobs=1, progress=at(4, cut))
    convert.decompress(tmp_path / "x", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)
    assert beside(model) == {"model", "good", "x", "back"}


def touch(path: Path) -> None:
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, kept, patch: touch(shard(model, 1)),
        lambda model, kept, patch: shard(model, 1).chmod(0o600),
        lambda model, kept, patch: patch.setattr(pyendor, "__version__", "0.0.1"),
        lambda model, kept, patch: patch.setitem(OPTIONS, "values", "raw"),
        lambda model, kept, patch: patch.setitem(OPTIONS, "min_saving", 0.5),
        lambda model, kept, patch: touch(kept),
        lambda model, kept, patch: os.truncate(kept, 100),
        lambda model, kept, patch: kept.unlink(),
        lambda model, kept, patch: (kept.parents[1] / "journal").unlink(),
        lambda model, kept, patch: (kept.parents[1] / "journal").write_text("{"),
        lambda model, kept, patch: (kept.parents[1] / "journal").write_text('{"key": [], "done": 3}'),
        lambda model, kept, patch: shutil.rmtree(kept.parents[1] / "files"),
    ],
)
def test_what_is_not_the_same_is_done_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., object]
) -> None:
    kept = cut_short(model, tmp_path / "x")
    with open(kept, "rb") as hold:  # so that its inode is not given to another file
        change(model, kept, monkeypatch)
        kept.parent.mkdir(exist_ok=True)
        (kept.parent / "stray").write_bytes(b"x")
        convert.compress(model, tmp_path / "x", **OPTIONS)
        assert (tmp_path / "x" / FIRST).stat().st_ino != os.fstat(hold.fileno()).st_ino
    convert.compress(model, tmp_path / "good", **OPTIONS)
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    assert (tmp_path / "x" / FIRST).stat().st_mode & 0o777 == shard(model, 1).stat().st_mode & 0o777
    assert beside(model) == {"model", "good", "x"}


OPTIONS: dict[str, object] = {}


def test_another_source_of_the_same_names_is_not_taken_over(model: Path, tmp_path: Path) -> None:
    cut_short(model, tmp_path / "x")
    shutil.copytree(model, tmp_path / "other")  # with its times
    inode = tmp_path / ".x.endor-work" / "files" / FIRST
    with open(inode, "rb") as hold:
        convert.compress(tmp_path / "other", tmp_path / "x")
        assert (tmp_path / "x" / FIRST).stat().st_ino != os.fstat(hold.fileno()).st_ino
    assert beside(model) == {"model", "other", "x"}


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from pyendor import convert
from pyendor.errors import UsageError

source, target, good = map(Path, sys.argv[2:])
work = getattr(convert, sys.argv[1])

def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

def start():
    pid = os.fork()
    if pid:
        return pid
    try:
        work(source, target, jobs=2)
    except UsageError as error:
        os._exit(3 if "exists" in str(error) else 4)
    os._exit(0)

whole, others = tree(good), set(os.listdir(target.parent))

def finish():
    code = os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1])
    assert code == (3 if before else 0), code
    assert tree(target) == whole
    assert set(os.listdir(target.parent)) == others | {target.name}
    for path in target.iterdir():
        path.unlink()
    target.rmdir()

before = False
begin = time.monotonic()
finish()
took = time.monotonic() - begin
dice = random.Random(5)
cut = 0
for _ in range(int(os.environ["TIMES"])):
    pid = start()
    time.sleep(dice.uniform(0, 1.1 * took))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    before = target.exists()
    if before:
        assert tree(target) == whole
    cut += not before
    assert set(os.listdir(target.parent)) <= others | {target.name, f".{target.name}.endor-work"}
    finish()
print(cut)
"""


@pytest.mark.parametrize(("command", "times"), [("compress", 50), ("decompress", 20)])
def test_killed_at_random_moments(model: Path, tmp_path: Path, command: str, times: int) -> None:
    convert.compress(model, tmp_path / "endor")
    source, good = ("model", "endor") if command == "compress" else ("endor", "model")
    run = subprocess.run(
        [sys.executable, "-c", KILLER, command, tmp_path / source, tmp_path / "x", tmp_path / good],
        env=os.environ | {"TIMES": str(times)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= times // 3, "most were done before they were killed"
    assert beside(model) == {"model", "endor"}


def test_killed_while_it_writes_a_single_file(model: Path, tmp_path: Path) -> None:
    source, target = shard(model, 1), tmp_path / "x"
    code = (
        "import os, sys; from pathlib import Path; from pyendor import convert;"
        "convert.compress(*map(Path, sys.argv[1:]), progress=lambda done: os.kill(os.getpid(), 9))"
    )
    run = subprocess.run([sys.executable, "-c", code, source, target], check=False)
    assert run.returncode == -signal.SIGKILL
    assert beside(target) == {"model", f".x{atomic.SUFFIX}"}
    convert.compress(source, target)
    assert beside(target) == {"model", "x"}


@pytest.mark.parametrize("single", [False, True])
def test_two_processes_one_destination(model: Path, tmp_path: Path, single: bool) -> None:
    source = shard(model, 1) if single else model
    runs = []

    def other() -> None:
        runs.append(endor("compress", source, tmp_path / "x", "--force"))

    convert.compress(source, tmp_path / "x", jobs=1, progress=at(2, other))
    assert runs[0].returncode == 2
    assert "is being written by another process" in runs[0].stderr
    assert beside(model) == {"model", "x"}
    convert.compress(source, tmp_path / "good")
    if single:
        assert (tmp_path / "x").read_bytes() == (tmp_path / "good").read_bytes()
    else:
        assert tree(tmp_path / "x") == tree(tmp_path / "good")


def test_a_child_does_not_hold_the_lock(model: Path, tmp_path: Path) -> None:
    # As workers do that outlive a killed parent.
    code = (
        "import os, sys, time; from pathlib import Path; from pyendor import convert\n"
        "def fork(done):\n"
        "    if os.fork() == 0:\n"
        "        print('here', flush=True), time.sleep(60), os._exit(0)\n"
        "    os.kill(os.getpid(), 9)\n"
        "convert.compress(Path(sys.argv[1]), Path(sys.argv[2]), progress=fork)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, model, tmp_path / "x"], stdout=subprocess.PIPE, start_new_session=True
    ) as run:
        run.wait()
        assert run.stdout is not None
        assert run.stdout.readline() == b"here\n"
        try:
            convert.compress(model, tmp_path / "x")
        finally:
            os.killpg(run.pid, 9)
    assert beside(model) == {"model", "x"}


@pytest.mark.parametrize(
    ("moment", "change", "error", "says"),
    [
        (1, lambda model: os.truncate(shard(model, 2), 40_000), UsageError, "00002.* changed while it was"),
        # What is missing may have been read already, ahead of time.
        (1, lambda model: os.truncate(shard(model, 1), 40_000), EndorError, "C-9|changed while it was read"),
        (1, lambda model: shard(model, 2).unlink(), FileNotFoundError, "00002"),
        (1, lambda model: touch(shard(model, 1)), UsageError, "00001.* changed while it was read"),
        (2, lambda model: touch(shard(model, 2)), UsageError, "00002.* changed while it was read"),
        (6, lambda model: touch(shard(model, 1)), UsageError, "00001.* changed while it was read"),
        (12, lambda model: (model / "config.json").write_text("{"), UsageError, "config.* changed while"),
    ],
)  # fmt: skip
def test_source_that_changes_under_way(
    model: Path,
    tmp_path: Path,
    moment: int,
    change: Callable[[Path], object],
    error: type[Exception],
    says: str,
) -> None:
    convert.compress(model, tmp_path / "good")
    shutil.copytree(model, tmp_path / "spare")
    with pytest.raises(error, match=says) as caught:
        convert.compress(model, tmp_path / "x", jobs=1, progress=at(moment, lambda: change(model)))
    assert isinstance(caught.value, EndorError | OSError)
    assert not (tmp_path / "x").exists()
    shutil.copytree(tmp_path / "spare", model, dirs_exist_ok=True)
    convert.compress(model, tmp_path / "x")
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    assert beside(model) == {"model", "spare", "good", "x"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 150 KB: room for one shard, and not for two."""
    path = tmp_path / "disk"
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", path], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("nothing can be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_full_disk(model: Path, small_disk: Path, tmp_path: Path) -> None:
    run = endor("compress", model, small_disk / "x", "--jobs", 1)
    assert run.returncode == 2
    assert "No space left on device" in run.stderr
    assert "finished files are kept" in run.stderr
    assert "the same command resumes from there" in run.stderr
    assert not (small_disk / "x").exists()
    for name in ("a", "b"):
        run = endor("compress", shard(model, 1), small_disk / name)
    assert run.returncode == 2
    assert not (small_disk / "b").exists()
    (small_disk / "a").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    assert endor("compress", model, small_disk / "x").returncode == 0
    convert.compress(model, tmp_path / "good")
    assert tree(small_disk / "x") == tree(tmp_path / "good")
    assert beside(small_disk / "x") == {"x"}


def test_read_only_destination(model: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for source in (model, shard(model, 1)):
        run = endor("compress", source, small_disk / "x")
        assert run.returncode == 2
        assert "cannot be written to" in run.stderr
    assert beside(small_disk / "x") == set()


def test_file_systems_without_locks(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "take", lambda *_: False)
    with pytest.raises(Cut) as caught:
        convert.compress(model, tmp_path / "x", jobs=1, progress=at(6, cut))
    assert not hasattr(caught.value, "__notes__")
    assert beside(model) == {"model"}
    convert.compress(model, tmp_path / "x")
    convert.compress(shard(model, 1), tmp_path / "y")
    assert beside(model) == {"model", "x", "y"}


def test_things_in_the_way(model: Path, tmp_path: Path) -> None:
    for name in (f".x{workspace.SUFFIX}", f".x{atomic.SUFFIX}"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").write_bytes(b"x")
    for source in (model, shard(model, 1)):
        with pytest.raises(UsageError, match="in the way"):
            convert.compress(source, tmp_path / "x")
    assert tree(tmp_path / "elsewhere") == {"thesis.tex": b"x"}


def test_what_was_moved_aside_is_put_back(model: Path, tmp_path: Path) -> None:
    # Killed between the two steps that it takes where directories cannot be exchanged.
    convert.compress(model, tmp_path / "x")
    before = tree(tmp_path / "x")
    root = tmp_path / f".x{workspace.SUFFIX}"
    root.mkdir()
    (tmp_path / "x").rename(root / "old")
    with pytest.raises(UsageError, match="--force"):
        convert.compress(model, tmp_path / "x")
    assert tree(tmp_path / "x") == before
    assert beside(model) == {"model", "x"}


def test_long_names(model: Path, tmp_path: Path) -> None:
    name = "ü" * 120
    convert.compress(model, tmp_path / name)
    convert.compress(shard(model, 1), tmp_path / f"{name}2")
    assert beside(model) == {"model", name, f"{name}2"}


def test_interrupted_command_says_what_it_keeps(model: Path, tmp_path: Path) -> None:
    big = make_checkpoint(tmp_path / "big", 3, 1, 1 << 22)
    with subprocess.Popen(
        [sys.executable, "-m", "pyendor", "compress", big, tmp_path / "x", "-j1", "--backend", "reference"],
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        journal = tmp_path / f".x{workspace.SUFFIX}" / "journal"
        deadline = time.monotonic() + 60
        while not journal.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        run.send_signal(signal.SIGTERM)
        _, shown = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert "kept in" in shown
    assert set(json.loads(journal.read_text())) == {"key", "done"}
    assert endor("compress", big, tmp_path / "x").returncode == 0
    assert beside(big) == {"model", "big", "x"}
