"""Replacing a destination: the old one or the new one is whole at any time, and readable to nobody new."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tree
from test_cli import endor
from test_faults import FIRST, beside, cut_short, shard
from test_jobs import make_checkpoint

from pyendor import convert, locks, prune, system, workspace
from pyendor.errors import UsageError
from pyendor.numpy import save_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three small shards of two tensors."""
    return make_checkpoint(tmp_path / "model", 3, 2, 1 << 16)


def pruned(source: Path, target: Path, **options: bool) -> None:
    prune.prune(source, target, prune.Options(), **options)


Replace = Callable[..., object]
COMMANDS: list[tuple[str, Replace]] = [
    ("model", convert.compress),
    ("endor", convert.decompress),
    ("model", pruned),
]


def on_systems_without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "exchange", lambda *_: False)


def eio(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize(("source", "command"), COMMANDS)
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_the_old_destination_survives_every_step_of_its_replacement(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    command: Replace,
    step: int,
    fault: type[BaseException],
    has_locks: bool,
) -> None:
    """An interrupt comes when a renaming is done; an error instead of it, and of all that follow."""
    convert.compress(model, tmp_path / "endor")
    command(tmp_path / source, tmp_path / "good")
    target = tmp_path / "x"
    convert.compress(model, target, min_saving=None)
    (target / "precious.txt").write_text("the only copy")
    before = tree(target)
    on_systems_without_exchange(monkeypatch)
    if not has_locks:
        monkeypatch.setattr(locks, "take", lambda *_: False)
    real, calls = os.rename, 0

    def rename(old: Path, new: Path) -> None:
        nonlocal calls
        calls += 1
        if fault is OSError and calls > step:
            eio()
        real(old, new)
        if fault is KeyboardInterrupt and calls == step + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    try:
        command(tmp_path / source, target, force=True)
        interrupted = False
    except (KeyboardInterrupt, OSError) as error:
        interrupted = True
        notes = getattr(error, "__notes__", [])
    assert interrupted or tree(target) == tree(tmp_path / "good")
    if not target.exists():
        root = tmp_path / f".x{workspace.SUFFIX}"
        assert tree(root / "old") == before
        assert any(str(root / "old") in note and "run the same command again" in note for note in notes)
    elif interrupted:
        assert tree(target) in (before, tree(tmp_path / "good"))
    monkeypatch.setattr(os, "rename", real)
    # Without --force it is there again, and refused; with it, it is replaced.
    with pytest.raises(UsageError, match="--force"):
        command(tmp_path / source, target)
    assert tree(target) in (before, tree(tmp_path / "good"))
    command(tmp_path / source, target, force=True)
    assert tree(target) == tree(tmp_path / "good")
    left = {name for name in beside(model) if not name.endswith(".endor-tmp")}
    assert left == {"model", "endor", "good", "x"}


def test_a_second_interrupt_says_where_the_old_destination_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.compress(model, tmp_path / "x")
    before = tree(tmp_path / "x")
    on_systems_without_exchange(monkeypatch)
    rename = os.rename

    def interrupted(old: Path, new: Path) -> None:
        if new == tmp_path / "x":  # the new destination, and then the old one
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        convert.compress(model, tmp_path / "x", force=True)
    old = tmp_path / f".x{workspace.SUFFIX}" / "old"
    assert any(str(old) in note for note in caught.value.__notes__)
    assert tree(old) == before
    monkeypatch.setattr(os, "rename", rename)
    convert.compress(model, tmp_path / "x", force=True)
    assert beside(model) == {"model", "x"}


def test_a_link_to_a_destination_that_was_moved_aside(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    target, real = tmp_path / "x", tmp_path / "disk" / "real"
    target.symlink_to(real)
    convert.compress(model, real)
    before = tree(real)
    on_systems_without_exchange(monkeypatch)
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (rename(old, new), os._exit(9)))
    pid = os.fork()
    if pid == 0:
        convert.compress(model, target, force=True, jobs=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not real.exists()
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(UsageError, match="--force"):
        convert.compress(model, target)
    assert tree(real) == before
    convert.compress(model, target, force=True)
    assert tree(real) == before
    assert beside(real) == {"real"}
    assert target.is_symlink()


def test_what_was_moved_aside_is_not_thrown_away_for_something_else(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    convert.compress(model, target)
    before = tree(target)
    root = tmp_path / f".x{workspace.SUFFIX}"
    root.mkdir()
    target.rename(root / "old")
    shutil.copytree(model, target)
    for force in (False, True):
        with pytest.raises(UsageError, match="another one since"):
            convert.compress(model, target, force=force)
        assert tree(target) == tree(model)
        assert tree(root / "old") == before
    shutil.rmtree(target)
    target.mkdir()
    convert.compress(model, target, force=True)
    assert tree(target) == before
    assert beside(model) == {"model", "x"}


def test_an_exchange_that_fails_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.compress(model, tmp_path / "x")
    before = tree(tmp_path / "x")
    monkeypatch.setattr(system, "exchange", eio)
    with pytest.raises(OSError, match="Input/output") as caught:
        convert.compress(model, tmp_path / "x", force=True)
    assert "3 finished files are kept" in caught.value.__notes__[0]
    assert tree(tmp_path / "x") == before


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_destination_is_on_disk_before_the_old_one_is_removed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    convert.compress(model, tmp_path / "x")
    if not exchange:
        on_systems_without_exchange(monkeypatch)
    root = tmp_path / f".x{workspace.SUFFIX}"
    events: list[str] = []
    sync, clear, replace = system.sync_directory, workspace.remove, workspace._replace

    def synced(path: Path) -> None:
        events.append(f"sync {path.name}")
        sync(path)

    def removed(path: Path) -> None:
        if path in {root / "old", root / "files"} and path.exists():
            events.append("remove")
        clear(path)

    def replaced(*args: object) -> None:
        replace(*args)  # type: ignore[arg-type]
        events.append("replaced")

    monkeypatch.setattr(system, "sync_directory", synced)
    monkeypatch.setattr(workspace, "remove", removed)
    monkeypatch.setattr(workspace, "_replace", replaced)
    convert.compress(model, tmp_path / "x", force=True)
    after = events[events.index("replaced") + 1 :]
    assert after[: after.index("remove")] == [f"sync {tmp_path.name}", f"sync {root.name}"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_cannot_be_flushed_keeps_the_old_destination(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    convert.compress(model, tmp_path / "x")
    (tmp_path / "x" / "precious.txt").write_text("the only copy")
    before = tree(tmp_path / "x")
    convert.compress(model, tmp_path / "good")
    if not exchange:
        on_systems_without_exchange(monkeypatch)
    sync = system.sync_directory
    monkeypatch.setattr(system, "sync_directory", lambda path: eio() if path == tmp_path else sync(path))
    with pytest.raises(OSError, match="Input/output") as caught:
        convert.compress(model, tmp_path / "x", force=True)
    root = tmp_path / f".x{workspace.SUFFIX}"
    assert str(root) in caught.value.__notes__[0]
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    assert tree(root / ("files" if exchange else "old")) == before
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--force"):
        convert.compress(model, tmp_path / "x")
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    assert beside(model) == {"model", "good", "x"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_removal_that_fails_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    convert.compress(model, tmp_path / "good")
    convert.compress(model, tmp_path / "x", min_saving=None)
    if not exchange:
        on_systems_without_exchange(monkeypatch)
    real = os.unlink

    def unlink(path: object, **options: int) -> None:
        if str(path) == "config.json":
            eio()
        real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(OSError, match="Input/output") as caught:
        convert.compress(model, tmp_path / "x", force=True)
    assert "is complete, but" in caught.value.__notes__[0]
    assert ".x.endor-work" in caught.value.__notes__[0]
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    monkeypatch.undo()
    convert.compress(model, tmp_path / "x", force=True)
    assert beside(model) == {"model", "good", "x"}


def test_a_removal_that_fails_gives_a_status(model: Path, tmp_path: Path) -> None:
    convert.compress(model, tmp_path / "x")
    code = (
        "import os, sys\n"
        "real = os.rmdir\n"
        "def rmdir(path, **options):\n"
        "    if str(path).endswith('.endor-work'):\n"
        "        raise PermissionError(13, 'Permission denied', str(path))\n"
        "    real(path, **options)\n"
        "os.rmdir = rmdir\n"
        "sys.argv[0] = 'endor'\n"
        "from pyendor.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "compress", model, tmp_path / "x", "--force"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "is complete, but" in run.stderr
    assert endor("verify", tmp_path / "x").returncode == 0


def test_finished_files_are_reused_only_if_their_bytes_are_the_same(model: Path, tmp_path: Path) -> None:
    convert.compress(model, tmp_path / "good")
    kept = cut_short(model, tmp_path / "x")
    before = kept.stat()
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    done: list[int] = []
    convert.compress(model, tmp_path / "x", progress=done.append)
    assert tree(tmp_path / "x") == tree(tmp_path / "good")
    assert (tmp_path / "x" / FIRST).read_bytes() != bytes(data)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("command", ["compress", "prune"])
def test_a_private_file_stays_private_over_a_public_one(model: Path, tmp_path: Path, command: str) -> None:
    source, target = shard(model, 1), tmp_path / "x.safetensors"
    work: Replace = convert.compress if command == "compress" else pruned
    for before, of_source, after in ((0o644, 0o600, 0o600), (0o600, 0o644, 0o600), (0o664, 0o644, 0o644)):
        target.write_bytes(b"old")
        target.chmod(before)
        source.chmod(of_source)
        work(source, target, force=True)
        assert mode(target) == after


@pytest.mark.parametrize("command", ["compress", "prune"])
def test_a_private_directory_stays_private_over_a_public_one(
    model: Path, tmp_path: Path, command: str
) -> None:
    (model / "inner" / "most").mkdir(parents=True)
    (model / "inner" / "most" / "notes.txt").write_text("x")
    (model / "inner").chmod(0o750)
    (model / "inner" / "most").chmod(0o500)
    work: Replace = convert.compress if command == "compress" else pruned
    for before, of_source, after in ((0o755, 0o700, 0o700), (0o700, 0o755, 0o700), (0o775, 0o755, 0o755)):
        if not (tmp_path / "x").exists():
            work(model, tmp_path / "x")
        (tmp_path / "x").chmod(before)
        model.chmod(of_source)
        work(model, tmp_path / "x", force=True)
        assert mode(tmp_path / "x") == after
        assert mode(tmp_path / "x" / "inner") == 0o750
        assert mode(tmp_path / "x" / "inner" / "most") == 0o700, "its owner has to be able to remove it"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")
def test_a_group_that_is_not_kept_keeps_no_rights(model: Path, tmp_path: Path) -> None:
    (model / "inner").mkdir()
    (model / "inner" / "notes.txt").write_text("x")
    for path in (model, *model.rglob("*")):
        os.chown(path, -1, 12345)
        path.chmod(0o750 if path.is_dir() else 0o640)
    (model / "config.json").chmod(0o604)  # all but the members of the group
    convert.compress(model, tmp_path / "endor")
    convert.compress(shard(model, 1), tmp_path / "single")
    pruned(model, tmp_path / "pruned")
    assert mode(tmp_path / "single") == 0o600
    for root in (tmp_path / "endor", tmp_path / "pruned"):
        assert {mode(path) & 0o77 for path in (root, *root.rglob("*"))} == {0}
    # Where the directory gives its group to what is made in it, the group is kept, and so are its rights.
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", -1, 12345)
    (tmp_path / "shared").chmod(0o2775)
    convert.compress(model, tmp_path / "shared" / "endor")
    assert mode(tmp_path / "shared" / "endor") == 0o2750
    assert mode(tmp_path / "shared" / "endor" / FIRST) == 0o640


def test_staging_files_are_private_from_the_first_byte_on(model: Path, tmp_path: Path) -> None:
    modes: set[int] = set()

    def look(done: int) -> None:
        modes.update(mode(path) for path in tmp_path.glob(".x*"))

    umask = os.umask(0)
    try:
        convert.compress(shard(model, 1), tmp_path / "x", progress=look)
        assert modes == {0o600}
        assert mode(tmp_path / "x") == shard(model, 1).stat().st_mode & 0o666
        (tmp_path / "x").unlink()
        modes.clear()
        convert.compress(model, tmp_path / "x", progress=look)
        assert modes == {0o700}
    finally:
        os.umask(umask)


def test_the_umask_is_read_without_being_changed(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert system.umask() == 0o027
        save_file({}, tmp_path / "a")
        assert mode(tmp_path / "a") == 0o640
    finally:
        assert os.umask(before) == 0o027
