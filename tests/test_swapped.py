"""Files that become links while they are read: none is followed, and what they lead to is not copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import tree
from test_jobs import make_checkpoint

from pyendor import atomic, checkpoint, convert, prune, shards, system
from pyendor.errors import UsageError
from pyendor.stamps import Stamp

SECRET = b'{"secret": "of somebody else"}'

Command = Callable[[Path, Path], object]


def pruned(source: Path, target: Path) -> object:
    return prune.prune(source, target, prune.Options())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two small shards, and files beside them and below."""
    root = make_checkpoint(tmp_path / "model", 2, 2, 1 << 16)
    (root / "inner").mkdir()
    for path in (root / "tokenizer.json", root / "inner" / "notes.txt"):
        path.write_bytes(b"{}")
    return root


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What only this user can read, under the names of files of the model."""
    root = tmp_path / "secrets"
    root.mkdir(0o700)
    return root


def swap(path: Path, secret: Path) -> None:
    """Replaces a file or directory by a link to a secret."""
    secret.parent.mkdir(exist_ok=True)
    path.rename(path.with_name(f".{path.name}"))
    if not secret.exists():
        secret.write_bytes(SECRET)
    path.symlink_to(secret)


def same_status(path: Path, secret: Path) -> None:
    """Makes a secret that a look at size, times and mode does not tell from a file."""
    status = path.stat()
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes((SECRET * (status.st_size // len(SECRET) + 1))[: status.st_size])
    secret.chmod(status.st_mode & 0o777)
    os.utime(secret, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("command", [convert.compress, pruned])
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "inner/notes.txt",
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    ],
)
@pytest.mark.parametrize("back", [False, True])
def test_a_file_swapped_for_a_link_after_the_scan(
    model: Path,
    tmp_path: Path,
    secrets: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    name: str,
    back: bool,
) -> None:
    """Also where it looks the same, and where it is there again before the end."""
    path = model / name
    same_status(path, secrets / "secret")
    stamps_of, scan = shards.stamps_of, checkpoint.scan

    def stamped(found: checkpoint.Checkpoint) -> dict[str, Stamp]:
        stamps = stamps_of(found)
        swap(path, secrets / "secret")
        return stamps

    def scanned(root: Path) -> object:
        if back and path.is_symlink():
            path.unlink()
            path.with_name(f".{path.name}").rename(path)
        return scan(root)

    monkeypatch.setattr(shards, "stamps_of", stamped)
    monkeypatch.setattr(checkpoint, "scan", scanned)
    with pytest.raises(UsageError, match=f"{path.name}.* changed while it was read.*link"):
        command(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    left = {one: data for one, data in tree(tmp_path).items() if one.startswith(".x")}
    assert not any(SECRET[:20] in data for data in left.values())


@pytest.mark.parametrize("command", [convert.compress, pruned])
def test_a_directory_swapped_for_a_link_after_the_scan(
    model: Path, tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    same_status(model / "inner" / "notes.txt", secrets / "notes.txt")
    stamps_of = shards.stamps_of

    def stamped(found: checkpoint.Checkpoint) -> dict[str, Stamp]:
        stamps = stamps_of(found)
        swap(model / "inner", secrets)
        return stamps

    monkeypatch.setattr(shards, "stamps_of", stamped)
    with pytest.raises(UsageError, match=r"notes\.txt.* changed while it was read"):
        command(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", [convert.compress, pruned])
@pytest.mark.parametrize("name", ["tokenizer.json", "inner"])
def test_a_link_that_comes_between_the_scan_and_the_stamps(
    model: Path,
    tmp_path: Path,
    secrets: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    name: str,
) -> None:
    (secrets / "notes.txt").write_bytes(SECRET)
    stamps_of = shards.stamps_of

    def stamped(found: checkpoint.Checkpoint) -> dict[str, Stamp]:
        swap(model / name, secrets if name == "inner" else secrets / "secret")
        return stamps_of(found)

    monkeypatch.setattr(shards, "stamps_of", stamped)
    with pytest.raises(UsageError, match="became a link that leaves the directory"):
        command(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", [convert.compress, pruned])
def test_a_single_file_swapped_for_a_link(
    model: Path, tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    path = model / "model-00001-of-00002.safetensors"
    shutil.copy2(path, secrets / "secret")
    convert_one = shards.convert_one

    def swapped(*args: object) -> object:
        swap(path, secrets / "secret")
        return convert_one(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "convert_one", swapped)
    with pytest.raises(UsageError, match="changed while it was read"):
        command(path, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_snapshots_of_the_hub_are_links(model: Path, tmp_path: Path) -> None:
    """Files are links to blobs; so is the name of the snapshot, sometimes."""
    home = tmp_path / "models--some--model"
    snapshot = home / "snapshots" / "0123"
    (home / "blobs").mkdir(parents=True)
    for path in list(model.rglob("*")):
        if path.is_file():
            link = snapshot / path.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = home / "blobs" / f"blob{len(list((home / 'blobs').iterdir()))}"
            shutil.copy2(path, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    convert.compress(model, tmp_path / "good")
    convert.compress(snapshot, tmp_path / "a")
    assert tree(tmp_path / "a") == tree(tmp_path / "good")
    with ThreadPoolExecutor(2) as executor:
        convert.compress(snapshot, tmp_path / "b", executor=executor)
    assert tree(tmp_path / "b") == tree(tmp_path / "good")
    convert.compress(snapshot / "model-00001-of-00002.safetensors", tmp_path / "c")
    pruned(snapshot, tmp_path / "d")
    assert (tmp_path / "d" / "inner" / "notes.txt").read_bytes() == b"{}"
    # One that leads to another blob than it did.
    stamp = Stamp.of(snapshot / "tokenizer.json", snapshot)
    stamp.check()
    (snapshot / "tokenizer.json").unlink()
    shutil.copy2(model / "tokenizer.json", home / "blobs" / "other")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/other")
    with pytest.raises(UsageError, match="changed"):
        stamp.check()


def test_carried_files_that_change_while_others_are_converted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(done: int) -> None:
        (model / "tokenizer.json").write_bytes(b"{ }")

    for command in (
        convert.compress,
        lambda *args, **options: prune.prune(*args, prune.Options(), **options),
    ):
        (model / "tokenizer.json").write_bytes(b"{}")
        with pytest.raises(UsageError, match=r"tokenizer\.json.* changed while it was read"):
            command(model, tmp_path / "x", progress=progress)
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "inner"])
def test_links_that_come_while_weights_are_converted(
    model: Path, tmp_path: Path, secrets: Path, name: str
) -> None:
    (secrets / "notes.txt").write_bytes(SECRET)

    def progress(done: int) -> None:
        if not (model / name).is_symlink():
            swap(model / name, secrets if name == "inner" else secrets / "notes.txt")

    for command in (
        convert.compress,
        lambda *args, **options: prune.prune(*args, prune.Options(), **options),
    ):
        with pytest.raises(UsageError, match="changed while it was read"):
            command(model, tmp_path / "x", progress=progress)
        assert not (tmp_path / "x").exists()
        (model / name).unlink()
        (model / f".{name}").rename(model / name)


@pytest.mark.parametrize("descriptors", [True, False])
def test_links_below_a_directory_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: bool
) -> None:
    if not descriptors:  # Windows
        monkeypatch.setattr(os, "supports_dir_fd", set())
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "real" / "inner" / "file").write_bytes(b"x")
    (tmp_path / "base").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "link").symlink_to("inner")
    (tmp_path / "real" / "inner" / "link").symlink_to("file")
    descriptor = system.open_below(tmp_path / "base", Path("inner/file"))
    assert os.read(descriptor, 9) == b"x"
    os.close(descriptor)
    before = set(os.listdir("/proc/self/fd"))
    for rest in ("link/file", "inner/link", "inner/file/deeper", "inner/missing"):
        with pytest.raises(OSError, match=r"link|directory|No such file"):
            system.open_below(tmp_path / "base", Path(rest))
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        Stamp.of(tmp_path / "pipe", tmp_path)
    path = tmp_path / "file"
    path.write_bytes(b"x")
    stamp = Stamp.of(path, tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        atomic.copy_file(stamp, tmp_path / "copy")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="file"):
        stamp.open()
