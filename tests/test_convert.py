"""Checkpoint directories: there and back, byte for byte, and whatever is wrong with them (rules K)."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import ROOT, tree

from pyendor import (
    atomic,
    convert,
    file,
    locks,
    naming,
    report,
    system,
    verify,
    workspace,
    writer,
)
from pyendor.choice import Values
from pyendor.errors import FormatError, UsageError
from pyendor.numpy import save_file


def test_real_model_round_trips_byte_for_byte(pruned: Path, compressed: Path, tmp_path: Path) -> None:
    convert.decompress(compressed, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(pruned)
    # Its weights file was laid out as stock safetensors does it, so that the whole file comes back.
    assert verify.verify(compressed).problems == []
    assert verify.compare(compressed, pruned) == []


@pytest.mark.parametrize(("values", "version", "most"), [("auto", "1.1", 6.1), ("raw", "1.0", 9.1)])
def test_bits_per_weight_of_a_real_model(
    pruned: Path, tmp_path: Path, values: Values, version: str, most: float
) -> None:
    convert.compress(pruned, tmp_path / "endor", values=values)
    found = report.inspect(tmp_path / "endor")
    assert found.version == version
    assert len([row for row in found.pruned if "encoder.layer" in row.name]) == 36
    per_weight = found.bits_per_weight(found.pruned)
    assert per_weight is not None
    assert per_weight <= most
    for row in found.rows:
        if row.encoded:
            assert row.floor is not None
            assert row.bits_per_weight is not None
            assert row.bits_per_weight - 4 < row.floor < row.bits_per_weight
    config = json.loads((tmp_path / "endor" / "config.json").read_text())
    assert config["quantization_config"]["version"] == version
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(pruned)


def test_decoder_written_from_the_specification_alone(pruned: Path, compressed: Path) -> None:
    # examples/minimal_decoder.py was written by somebody who had not seen this code.
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import minimal_decoder
    finally:
        sys.path.pop(0)
    found = minimal_decoder.load(str(compressed / "model.endor.safetensors"))
    dense = dict(safetensors.deserialize((pruned / "model.safetensors").read_bytes()))
    assert found.keys() == dense.keys()
    for name, (dtype, shape, data) in found.items():
        assert (dtype, shape) == (dense[name]["dtype"], dense[name]["shape"])
        assert data.tobytes() == bytes(dense[name]["data"])


def test_sharded_checkpoint(sharded: Path, tmp_path: Path) -> None:
    before = tree(sharded)
    done = convert.compress(sharded, tmp_path / "endor")
    assert (done.tensors, done.encoded, done.left_out) == (8, 4, {})
    names = set(tree(tmp_path / "endor"))
    assert names == {
        "model.endor-00001-of-00002.safetensors",
        "model.endor-00002-of-00002.safetensors",
        "model.safetensors.index.endor.json",
        "model.safetensors.index.dense.json",
        "config.json",
        "config.dense.json",
        "tokenizer.json",
        "sub/model.safetensors",
    }
    index = json.loads((tmp_path / "endor" / "model.safetensors.index.endor.json").read_text())
    stock = {}
    for name in sorted(names):
        if name.startswith("model.endor"):
            found = dict(safetensors.deserialize((tmp_path / "endor" / name).read_bytes()))
            stock.update({tensor: (name, len(about["data"])) for tensor, about in found.items()})
    assert index["weight_map"] == {tensor: name for tensor, (name, _) in stock.items()}
    assert index["metadata"]["total_size"] == sum(length for _, length in stock.values())
    config = json.loads((tmp_path / "endor" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "endor", "version": "1.0"}
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert tree(tmp_path / "back") == before == tree(sharded)


def test_compressing_twice_gives_identical_bytes(sharded: Path, tmp_path: Path) -> None:
    convert.compress(sharded, tmp_path / "one")
    convert.compress(sharded, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_quantization_config_that_was_there_is_kept_inside(sharded: Path, tmp_path: Path) -> None:
    inner = {"quant_method": "fp8", "weights": {"dtype": "float8_e4m3fn"}}
    original = json.dumps({"quantization_config": inner, "hidden_size": 3})
    (sharded / "config.json").write_text(original)
    convert.compress(sharded, tmp_path / "endor")
    config = json.loads((tmp_path / "endor" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "endor", "version": "1.0", "inner": inner}
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == original
    # Should the original have been lost, it is put together again.
    (tmp_path / "endor" / "config.dense.json").unlink()
    (tmp_path / "endor" / "model.safetensors.index.dense.json").unlink()
    convert.decompress(tmp_path / "endor", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(original)
    restored, first = (
        json.loads((root / "model.safetensors.index.json").read_text())
        for root in (tmp_path / "again", sharded)
    )
    assert restored["weight_map"] == first["weight_map"]


def test_variants(tmp_path: Path) -> None:
    assert naming.endor_name("model.safetensors") == "model.endor.safetensors"
    assert naming.endor_name("model.fp16.safetensors") == "model.endor.fp16.safetensors"
    assert naming.endor_name("model.safetensors.index.json") == "model.safetensors.index.endor.json"
    name = "model.safetensors.index.fp16.json"
    assert naming.endor_name(name) == "model.safetensors.index.endor.fp16.json"
    assert naming.original_index(name) == "model.safetensors.index.dense.fp16.json"
    for dense in ("model.safetensors", "model-00001-of-00002.safetensors", name):
        assert naming.dense_name(naming.endor_name(dense)) == dense
    source = tmp_path / "variant"
    source.mkdir()
    safetensors.numpy.save_file({"x": np.zeros((64, 64))}, source / "model.fp16.safetensors")
    convert.compress(source, tmp_path / "endor")
    assert list(tree(tmp_path / "endor")) == ["model.endor.fp16.safetensors"]


def test_other_copies_of_the_weights_are_left_out_and_named(sharded: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.Q4.gguf"):
        (sharded / name).write_bytes(b"x")
    (sharded / ".git").mkdir()
    (sharded / ".git" / "HEAD").write_bytes(b"x")
    done = convert.compress(sharded, tmp_path / "endor")
    named = set(done.left_out)
    assert named == {".git", "pytorch_model.bin", "consolidated.00.pth", "model.Q4.gguf"}
    assert not named & {path.name for path in (tmp_path / "endor").iterdir()}


def test_the_cache_of_the_hub(sharded: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, path in enumerate(path for path in sharded.iterdir() if path.is_file()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / str(number))
    convert.compress(snapshot, tmp_path / "endor")
    assert not any(path.is_symlink() for path in (tmp_path / "endor").rglob("*"))
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert tree(tmp_path / "back").items() <= tree(sharded).items()


def test_single_files(tmp_path: Path, rng: np.random.Generator) -> None:
    source = tmp_path / "a.safetensors"
    weights = rng.integers(0, 2, (64, 64)).astype(np.float32)
    safetensors.numpy.save_file({"w": weights}, source, {"format": "pt", "note": "mine"})
    convert.compress(source, tmp_path / "b.endor.safetensors")
    convert.decompress(tmp_path / "b.endor.safetensors", tmp_path / "c.safetensors")
    with safetensors.safe_open(tmp_path / "c.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt", "note": "mine"}
        assert np.array_equal(opened.get_tensor("w"), weights)


def test_file_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes((2).to_bytes(8, "little") + b"{}")
    done = convert.compress(tmp_path / "a", tmp_path / "b")
    assert (done.tensors, done.encoded) == (0, 0)
    assert verify.verify(tmp_path / "b").problems == []


def refused(source: Path, destination: Path, match: str, **options: bool) -> None:
    before = {path: tree(path) for path in (source, destination) if path.is_dir()}
    with pytest.raises((UsageError, FormatError, OSError), match=match):
        convert.compress(source, destination, **options)  # type: ignore[arg-type]
    assert {path: tree(path) for path in before} == before
    for suffix in (atomic.SUFFIX, workspace.SUFFIX):
        assert not list(destination.parent.glob(".*" + suffix))


def test_already_compressed(sharded: Path, tmp_path: Path) -> None:
    convert.compress(sharded, tmp_path / "endor")
    refused(tmp_path / "endor", tmp_path / "x", "already")
    shard = tmp_path / "endor" / "model.endor-00001-of-00002.safetensors"
    refused(shard, tmp_path / "x", "already")
    with pytest.raises(UsageError, match="nothing to decompress"):
        convert.decompress(sharded, tmp_path / "x")
    with pytest.raises(UsageError, match="nothing to decompress"):
        convert.decompress(sharded / "model-00001-of-00002.safetensors", tmp_path / "x")


def test_directories_that_are_refused(sharded: Path, tmp_path: Path) -> None:
    refused(tmp_path / "missing", tmp_path / "x", "No such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "x", "no weights")
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"\x80")
    refused(tmp_path / "empty", tmp_path / "x", "pickle")
    refused(sharded, sharded, "in the source")
    refused(sharded, sharded / "inside", "in the source")
    refused(sharded, tmp_path, "in the destination", force=True)
    (tmp_path / "link").symlink_to(sharded)
    refused(sharded, tmp_path / "link", "in the source", force=True)
    refused(sharded, tmp_path / "no" / "where", "does not exist")
    refused(sharded, sharded / "config.json", "in the source")
    (tmp_path / "file").write_bytes(b"x")
    refused(sharded, tmp_path / "file", "not a directory", force=True)


def test_destination_that_exists(sharded: Path, tmp_path: Path) -> None:
    target = tmp_path / "endor"
    target.mkdir()
    convert.compress(sharded, target)  # an empty one is nobody's loss
    refused(sharded, target, "--force")
    (target / "stale").write_bytes(b"x")
    convert.compress(sharded, target, force=True)
    assert "stale" not in tree(target)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("thesis.tex", "config.json", "other.safetensors"):
        (home / name).write_bytes(b"x")
        refused(sharded, home, "no plain model directory", force=True)
    (target / ".git").mkdir()
    refused(sharded, target, "no plain model directory", force=True)
    shard = sharded / "model-00001-of-00002.safetensors"
    refused(shard, shard, "same file", force=True)
    refused(shard, target, "name a file")
    refused(shard, sharded / "tokenizer.json", "--force")


def test_the_current_directory_is_not_pulled_away(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(sharded, Path("."), "current directory")


def test_config_in_the_way(sharded: Path, tmp_path: Path) -> None:
    (sharded / "config.dense.json").write_text("{}")
    refused(sharded, tmp_path / "x", "in the way")
    (sharded / "config.dense.json").unlink()
    (sharded / "config.json").write_text('{"quantization_config": {"quant_method": "endor"}}')
    refused(sharded, tmp_path / "x", "already")
    for text in ("{", "[]", "[" * 100_000):
        (sharded / "config.json").write_text(text)
        with pytest.raises(FormatError) as caught:
            convert.compress(sharded, tmp_path / "x")
        assert caught.value.rule == "K-8"


INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"


def forget(index: dict[str, dict[str, str]], shard: str) -> None:
    """Drops a shard from an index."""
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != shard}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda root, index: (root / SHARD).unlink(), "K-2"),
        (lambda root, index: index["weight_map"].pop("layers.4.weight"), None),
        (lambda root, index: (root / INDEX).rename(root / "elsewhere"), None),
        (lambda root, index: shutil.copy(root / SHARD.replace("2-", "1-", 1), root / SHARD), None),
        (lambda root, index: (root / INDEX.replace("index", "index.endor")).write_text("{}"), "K-5"),
        (lambda root, index: forget(index, SHARD), None),
        (lambda root, index: index["weight_map"].update(x="../" + SHARD), "K-1"),
        (lambda root, index: index["weight_map"].update(x="/etc/passwd"), "K-1"),
        (lambda root, index: index["weight_map"].update(x="a\\b"), "K-1"),
        (lambda root, index: index["weight_map"].update(x="C:b"), "K-1"),
        (lambda root, index: index["weight_map"].update(x=""), "K-1"),
        (lambda root, index: index["weight_map"].update(x=3), "K-1"),
        (lambda root, index: index.update(weight_map=[]), "K-1"),
        (lambda root, index: (root / "model.endor.safetensors").write_bytes(b""), "K-5"),
        (lambda root, index: (root / SHARD).write_bytes(b""), "C-1"),
        (lambda root, index: os.truncate(root / SHARD, 3000), "C-9"),
    ],
)  # fmt: skip
def test_broken_directories(sharded: Path, tmp_path: Path, change: object, rule: str | None) -> None:
    index = json.loads((sharded / INDEX).read_text())
    assert callable(change)
    change(sharded, index)
    (sharded / INDEX).write_text(json.dumps(index))
    if rule is None:
        convert.compress(sharded, tmp_path / "x")
        return
    with pytest.raises(FormatError) as caught:
        convert.compress(sharded, tmp_path / "x")
    assert caught.value.rule == rule
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("text", "rule"), [(b"{", "K-1"), (b"\xff", "K-1"), (b'{"a":1,"a":1}', "K-1")])
def test_broken_index(sharded: Path, tmp_path: Path, text: bytes, rule: str) -> None:
    (sharded / INDEX).write_bytes(text)
    with pytest.raises(FormatError) as caught:
        convert.compress(sharded, tmp_path / "x")
    assert caught.value.rule == rule


def test_what_belongs_to_nobody_is_left_out_and_named(sharded: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    os.mkfifo(sharded / "pipe")
    (sharded / "notes.txt").symlink_to(secret)
    (sharded / "broken").symlink_to("nowhere")
    (sharded / "above").symlink_to("..")
    (sharded / "inside.json").symlink_to("tokenizer.json")
    done = convert.compress(sharded, tmp_path / "endor")
    assert done.left_out == {
        "pipe": "not a file",
        "notes.txt": "a link that leaves the directory",
        "broken": "a link to nothing",
        "above": "not a file",
    }
    assert (tmp_path / "endor" / "inside.json").read_text() == "{}"


def test_nothing_becomes_readable_that_was_not(sharded: Path, tmp_path: Path) -> None:
    sharded.chmod(0o700)
    for path in sharded.iterdir():
        if path.is_file():
            path.chmod(0o600)
    convert.compress(sharded, tmp_path / "endor")
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    for root in (tmp_path / "endor", tmp_path / "back"):
        assert root.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in root.iterdir() if path.is_file())


def test_directory_that_somebody_makes_meanwhile(sharded: Path, tmp_path: Path) -> None:
    target = tmp_path / "endor"

    def race(done: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "thesis.tex").write_bytes(b"x")

    with pytest.raises(UsageError, match="created by another process"):
        convert.compress(sharded, target, progress=race)
    assert tree(target) == {"thesis.tex": b"x"}


def test_kept_index_cannot_leave_the_directory(sharded: Path, tmp_path: Path) -> None:
    convert.compress(sharded, tmp_path / "endor")
    kept = tmp_path / "endor" / "model.safetensors.index.dense.json"
    good = kept.read_text()
    for name, rule in (("../../x.safetensors", "K-1"), ("model-00009-of-00009.safetensors", "K-10")):
        kept.write_text(good.replace(SHARD, name))
        assert {problem.rule for problem in verify.verify(tmp_path / "endor").problems} == {rule}
        with pytest.raises(FormatError) as caught:
            convert.decompress(tmp_path / "endor", tmp_path / "back")
        assert caught.value.rule == rule
    assert not (tmp_path / "back").exists()


def test_names_that_are_not_those_of_weights_are_carried(sharded: Path, tmp_path: Path) -> None:
    shutil.copy(sharded / SHARD, sharded / "model_fp16.safetensors")
    convert.compress(sharded, tmp_path / "endor")
    assert (tmp_path / "endor" / "model_fp16.safetensors").exists()
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(sharded)


def test_edited_config_is_not_lost(sharded: Path, tmp_path: Path) -> None:
    convert.compress(sharded, tmp_path / "endor")
    path = tmp_path / "endor" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 42}))
    done = convert.decompress(tmp_path / "endor", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["eos_token_id"] == 42
    assert "quantization_config" not in config
    assert "edited" in done.notes[0]


def test_unknown_digest_does_not_keep_anybody_from_the_tensors(tmp_path: Path) -> None:
    source = tmp_path / "a"
    safetensors.numpy.save_file({"w": np.zeros((64, 64))}, source, {"format": "pt"})
    convert.compress(source, tmp_path / "b")
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes().replace(b"xxh3_64:", b"blake_3:"))
    convert.decompress(tmp_path / "b", tmp_path / "c")
    assert filecmp.cmp(source, tmp_path / "c", shallow=False)


def test_names_that_a_dense_file_must_not_have(tmp_path: Path) -> None:
    save_file({"w.endor.index": np.zeros(8)}, tmp_path / "a")
    with pytest.raises(UsageError, match="T-6"):
        convert.decompress(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_damage_is_found_when_decompressing(sharded: Path, tmp_path: Path) -> None:
    convert.compress(sharded, tmp_path / "endor")
    shard = tmp_path / "endor" / "model.endor-00001-of-00002.safetensors"
    with file.open_file(shard) as opened:
        at = opened.tensor("layers.2.weight").parts["values"].start
    data = bytearray(shard.read_bytes())
    data[at] ^= 0x80
    shard.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert (caught.value.rule, caught.value.tensor) == ("D-2", "layers.2.weight")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_and_interrupt_leave_all_as_it_was(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "endor"
    convert.compress(sharded, target)
    before = tree(tmp_path)
    calls = 0

    def fail(done: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error

    # One job, so that no other shard is finished by then, which would be kept.
    with pytest.raises(type(error)):
        convert.compress(sharded, target, force=True, jobs=1, progress=fail)
    assert tree(tmp_path) == before
    # The same where only the very last step fails, the renaming, on systems that cannot exchange at once.
    monkeypatch.setattr(system, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)) as caught:
        convert.compress(sharded, target, force=True)
    assert tree(target) == {
        name.removeprefix("endor/"): data for name, data in before.items() if "endor/" in name
    }
    # What is finished is not lost.
    assert "2 finished files are kept in" in caught.value.__notes__[-1]
    monkeypatch.undo()
    convert.compress(sharded, target, force=True, progress=lambda done: None)
    assert tree(tmp_path) == before


def test_failing_to_swap_puts_the_old_directory_back(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "endor"
    convert.compress(sharded, target)
    before = tree(tmp_path)
    real = os.rename
    monkeypatch.setattr(system, "exchange", lambda *_: False)
    steps = iter([real, lambda a, b: os.stat("/missing"), real])

    def rename(a: Path, b: Path) -> None:
        next(steps)(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(FileNotFoundError):
        convert.compress(sharded, target, force=True)
    assert tree(target) == {
        name.removeprefix("endor/"): data for name, data in before.items() if "endor/" in name
    }
    monkeypatch.undo()
    convert.compress(sharded, target, force=True)
    assert tree(tmp_path) == before


def test_full_disk_for_real(sharded: Path, tmp_path: Path) -> None:
    # Files of at most 8 KiB: writing a shard fails with EFBIG, as it would with ENOSPC.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
        "sys.argv = ['endor', 'compress', *sys.argv[1:]]; from pyendor.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, sharded, tmp_path / "endor"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert re.search(r"model\.endor-0000[12]-of-00002\.safetensors': File too large", run.stderr)
    assert {path.name for path in tmp_path.iterdir()} == {"sharded"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_terminated_run_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    source = tmp_path / "big.safetensors"
    save_file({f"t{i}": np.zeros(1 << 22, np.float64) for i in range(8)}, source, min_saving=1.0)
    convert.decompress(source, tmp_path / "dense.safetensors")
    source.unlink()
    # With the slow codec, so that there is time to send the signal.
    # Shells start what runs in the background, these tests perhaps, with the signal of Ctrl-C ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv = ['endor', 'compress', 'dense.safetensors', 'out'];"
        "from pyendor.cli import main; main()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYENDOR_BACKEND": "reference"}
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert run.poll() is None, "it was done before it could be terminated"
    run.send_signal(how)
    assert run.wait(60) not in {0, -how}
    assert {path.name for path in tmp_path.iterdir()} == {"dense.safetensors"}


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    # 24 tensors of 16 MiB. Interpreter and libraries take some 60 MB; all tensors would take 400 MB.
    sources = [
        writer.TensorSource(f"t{i}", "F32", (1 << 22,), 1 << 24, lambda: np.zeros(1 << 24, np.uint8))
        for i in range(24)
    ]
    with open(tmp_path / "dense", "wb") as stream:
        writer.write_dense(stream, sources, {"format": "pt"})
    for command in (["compress", "dense", "endor"], ["decompress", "endor", "back"], ["verify", "endor"]):
        code = (
            "import re, sys; from pyendor.cli import app; app(sys.argv[1:], standalone_mode=False);"
            "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        peak = int(run.stdout.split()[-1]) * 1024
        assert peak < 100e6 + 4 * (1 << 24) + 30e6, command
    assert filecmp.cmp(tmp_path / "back", tmp_path / "dense", shallow=False)


@pytest.mark.parametrize("moment", ["_create", "take", "is_at"])
def test_an_interrupt_before_a_new_file_is_written(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come when the file has been made, and again and again until it is locked."""
    module = atomic if moment == "_create" else locks
    step = getattr(module, moment)

    def interrupted(*args: Any) -> Any:
        descriptor = step(*args)
        monkeypatch.undo()
        if moment == "_create":
            os.close(descriptor)  # a number that is lost; the process ends, or it stays open
        raise KeyboardInterrupt

    monkeypatch.setattr(module, moment, interrupted)
    with pytest.raises(KeyboardInterrupt), atomic.new_file(tmp_path / "x", force=False, alone=True):
        pytest.fail("it was interrupted before")
    assert not list(tmp_path.iterdir())
    with atomic.new_file(tmp_path / "x", force=False, alone=True) as stream:
        stream.write(b"new")
        with (
            pytest.raises(UsageError, match="being written by another process"),
            atomic.new_file(tmp_path / "x", force=False, alone=True),
        ):
            pytest.fail("two write the same file")
    assert (tmp_path / "x").read_bytes() == b"new", "the second took nothing away from the first"


def test_new_file_keeps_mode_and_follows_links(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    with atomic.new_file(tmp_path / "link", force=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    with atomic.new_file(tmp_path / "fresh", force=False) as stream:
        stream.write(b"new")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o666 & ~umask


def test_somebody_else_makes_the_file_meanwhile(tmp_path: Path) -> None:
    def race() -> None:
        with atomic.new_file(tmp_path / "x", force=False) as stream:
            (tmp_path / "x").write_bytes(b"theirs")
            stream.write(b"ours")

    with pytest.raises(UsageError, match="created by another process"):
        race()
    assert tree(tmp_path) == {"x": b"theirs"}
