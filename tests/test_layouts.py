"""Layouts of checkpoints as they are in the field: what transformers loads, Endor takes and gives back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sparse_bytes, tree
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from pyendor import checkpoint, cli, convert, naming, prune, report, selection, verify
from pyendor.errors import FormatError, UsageError

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def rename(root: Path, names: dict[str, str]) -> None:
    """Gives files other names, in the index too."""
    content = json.loads((root / INDEX).read_text())
    for old, new in names.items():
        (root / new).parent.mkdir(exist_ok=True, parents=True)
        (root / old).rename(root / new)
    content["weight_map"] = {one: names.get(name, name) for one, name in content["weight_map"].items()}
    (root / INDEX).write_text(json.dumps(content))


def other(seed: int, **more: Any) -> dict[str, Any]:
    words = sparse_bytes(np.random.default_rng(seed), 64 * 96, 2).view(np.float16).reshape(64, 96)
    return {"layers.2.weight": words, **more}


def stray_shard(root: Path) -> None:
    save_file(other(1), root / "model-00003-of-00003.safetensors")


def broken_stray(root: Path) -> None:
    (root / "model-00003-of-00003.safetensors").write_bytes(b"a download that was cut short")


def two_splits(root: Path) -> None:
    for number in range(1, 4):
        save_file(other(number), root / f"model-0000{number}-of-00003.safetensors")


def single_beside(root: Path) -> None:
    whole = load_file(root / FIRST) | load_file(root / SECOND)
    save_file(whole, root / "model.safetensors", {"format": "pt"})


def single_beside_broken_index(root: Path) -> None:
    single_beside(root)
    (root / SECOND).unlink()
    (root / INDEX).write_text("{")


def variant(root: Path) -> None:
    save_file(other(5), root / "model.fp16.safetensors", {"format": "pt"})
    save_file(other(6), root / "model.fp8-00001-of-00001.safetensors")


def tensor_in_two(root: Path) -> None:
    save_file(load_file(root / SECOND) | other(7), root / SECOND, {"format": "pt"})


def tensor_in_two_and_folders(root: Path) -> None:
    tensor_in_two(root)
    rename(root, {SECOND: "weights/b.safetensors"})


def shard_all_in_another(root: Path) -> None:
    content = json.loads((root / INDEX).read_text())
    shutil.copy(root / FIRST, root / "model-00000-of-00002.safetensors")
    content["weight_map"]["ghost"] = "model-00000-of-00002.safetensors"
    (root / INDEX).write_text(json.dumps(content))


def unlisted_tensor(root: Path) -> None:
    save_file(load_file(root / SECOND) | {"more": np.ones(3, np.float32)}, root / SECOND, {"format": "pt"})


def named(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        rename(root, {FIRST: pattern.format(1), SECOND: pattern.format(2)})

    change.__name__ = pattern
    return change


def one_named(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        rename(root, {SECOND: name})

    change.__name__ = name
    return change


def twice_named(root: Path) -> None:
    """A name of the index, and a file of the form that it is given in Endor."""
    rename(root, {SECOND: "mtp.safetensors"})
    save_file(other(8), root / "model-mtp.file.safetensors", {"format": "pt"})


def linked_folder(root: Path) -> None:
    rename(root, {SECOND: "weights/b.safetensors"})
    (root / "weights").rename(root.parent / "elsewhere")
    (root / "weights").symlink_to("../elsewhere")


LAYOUTS = [
    one_named("mtp.safetensors"),
    one_named("model_extra_tensors.safetensors"),
    named("pytorch_model-0000{}-of-00002.safetensors"),
    named("layers-{}.safetensors"),
    named("weights/{}.safetensors"),
    named("a%b/c d/é{}.safetensors"),
    named("model.{}.file.safetensors"),
    named("model-{}.file.safetensors"),
    twice_named,
    tensor_in_two,
    tensor_in_two_and_folders,
    shard_all_in_another,
    unlisted_tensor,
    two_splits,
    stray_shard,
    broken_stray,
    single_beside,
    single_beside_broken_index,
    variant,
]
#: The same with a link to a folder, which is restored as a folder.
LOADED = [*LAYOUTS, linked_folder]


def loaded(root: Path) -> dict[str, Any]:
    """What stock transformers reads: the single file, else what the index names."""
    if (root / "model.safetensors").exists():
        return load_file(root / "model.safetensors")
    mapped = json.loads((root / INDEX).read_text())["weight_map"]
    files = {name: load_file(root / name) for name in sorted(set(mapped.values()))}
    found = {tensor: held for tensors in files.values() for tensor, held in tensors.items()}
    return found | {one: files[name][one] for one, name in mapped.items() if one in files[name]}


def read(root: Path) -> dict[str, Any]:
    with selection.open_weights(root) as weights:
        return {name: opened.get_bytes(name) for name, opened in weights.places.items()}


@pytest.mark.parametrize("layout", LOADED, ids=lambda layout: layout.__name__)
def test_layouts(sharded: Path, tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(sharded)
    wanted = loaded(sharded)
    before = tree(sharded)
    if layout is linked_folder:
        before["weights/b.safetensors"] = (sharded / "weights" / "b.safetensors").read_bytes()
    endor, back, pruned = (tmp_path / name for name in ("endor", "back", "pruned"))
    done = convert.compress(sharded, endor)
    assert verify.verify(endor).problems == []
    assert verify.verify(sharded).problems == []
    assert verify.compare(endor, sharded) == []
    for root in (sharded, endor):
        found = read(root)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].tobytes() == tensor.tobytes(), name
    names = {row.name for row in report.inspect(sharded).rows}
    assert names == {row.name for row in report.inspect(endor).rows} >= wanted.keys()
    convert.decompress(endor, back)
    assert tree(back) == before
    # What is part of no copy is named, and nothing else.
    said = " ".join(done.notes)
    whole = {name for one in selection.copies(sharded).values() for name in one.names}
    for name in before:
        stray = name.startswith("model") and name not in whole and name != INDEX
        assert (f"'{name}' is read by no loader" in said) == (
            stray or name in checkpoint.scan(sharded).superseded
        )
    outcome = prune.prune(sharded, pruned, prune.Options(0.9))
    assert outcome.zeros
    assert tree(pruned).keys() == before.keys()
    zeros = read(pruned)
    assert zeros.keys() == wanted.keys()
    assert np.count_nonzero(zeros["layers.2.weight"].view(np.uint16)) <= 0.11 * 64 * 96
    again = json.loads((sharded / INDEX).read_text() if layout is not single_beside_broken_index else "{}")
    if "weight_map" in again and not (sharded / "model.safetensors").exists():
        assert again["weight_map"].items() <= json.loads((pruned / INDEX).read_text())["weight_map"].items()


def test_what_is_not_read_is_named(sharded: Path, tmp_path: Path) -> None:
    stray_shard(sharded)
    tensor_in_two(sharded)
    run = CliRunner().invoke(cli.app, ["compress", str(sharded), str(tmp_path / "x")])
    assert run.exit_code == 0, run.output
    said = " ".join(run.output.split())
    assert "'model-00003-of-00003.safetensors' is read by no loader" in said
    assert f"'{SECOND}' holds 'layers.2.weight', for which the index names another file" in said


def test_a_kept_file_that_was_changed(sharded: Path, tmp_path: Path) -> None:
    tensor_in_two(sharded)
    convert.compress(sharded, tmp_path / "x")
    kept = tmp_path / "x" / f"{SECOND}.dense"
    tensors = load_file(kept)
    tensors["layers.4.weight"][0, 0] += 1
    save_file(tensors, kept, {"format": "pt"})
    with pytest.raises(UsageError, match=r"differ in tensor 'layers\.4\.weight'"):
        convert.decompress(tmp_path / "x", tmp_path / "y")
    assert not (tmp_path / "y").exists()
    kept.unlink()
    convert.decompress(tmp_path / "x", tmp_path / "y")
    assert load_file(tmp_path / "y" / SECOND).keys() == tensors.keys() - {"layers.2.weight"}


def test_names_that_are_taken(sharded: Path, tmp_path: Path) -> None:
    stray_shard(sharded)
    (sharded / "model-00003-of-00003.safetensors.dense").write_bytes(b"x")
    with pytest.raises(UsageError, match="is in the way"):
        convert.compress(sharded, tmp_path / "x")


@pytest.mark.parametrize(
    ("dense", "endor"),
    [
        ("mtp.safetensors", "model.endor-mtp.file.safetensors"),
        ("weights/a.safetensors", "model.endor-weights%2Fa.file.safetensors"),
        ("a%2Fb.safetensors", "model.endor-a%252Fb.file.safetensors"),
        ("model-a.file.safetensors", "model.endor-model-a.file.file.safetensors"),
        ("model.a.file.safetensors", "model.endor.a.file.safetensors"),
        ("x/model.safetensors", "model.endor-x%2Fmodel.file.safetensors"),
        (
            "pytorch_model-00001-of-00002.safetensors",
            "model.endor-pytorch_model-00001-of-00002.file.safetensors",
        ),
    ],
)
def test_names(dense: str, endor: str) -> None:
    assert naming.endor_name(dense) == endor
    assert naming.dense_name(endor) == dense


@pytest.mark.parametrize(
    "name", ["..%2Fx", "%2Fx", "x%2F", "%2e", "%", "%2", "a%62", "model", "model-1", ".", "a%5Cb"]
)
def test_endor_names_that_stand_for_nothing(sharded: Path, tmp_path: Path, name: str) -> None:
    """K-11."""
    convert.compress(sharded, tmp_path / "x")
    shutil.copy(
        tmp_path / "x" / naming.endor_name(FIRST), tmp_path / "x" / f"model.endor-{name}.file.safetensors"
    )
    with pytest.raises(FormatError, match="K-11"):
        convert.decompress(tmp_path / "x", tmp_path / "y")
    assert "K-11" in {problem.rule for problem in verify.verify(tmp_path / "x").problems}


# Links


def hub(source: Path, root: Path) -> Path:
    """A checkpoint as the cache of the Hub holds it; its snapshot."""
    snapshot = root / "models--a--b" / "snapshots" / "0123"
    blobs = root / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    return snapshot


@pytest.mark.parametrize("way", ["itself", "link", "link to a link", "relative", "below"])
def test_a_source_that_is_a_link_to_a_snapshot(
    sharded: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sharded / "modeling.py").write_text("x")
    wanted = tree(sharded)
    if way == "below":
        (tmp_path / "outer").mkdir()
        sharded.rename(tmp_path / "outer" / "sub")
        source = hub(tmp_path / "outer", tmp_path / "cache") / "sub"
    else:
        source = hub(sharded, tmp_path / "cache")
    if way not in {"itself", "below"}:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "link").symlink_to(source)
        source = tmp_path / "a" / "link"
    if way == "link to a link":
        (tmp_path / "other").symlink_to(source)
        source = tmp_path / "other"
    if way == "relative":
        monkeypatch.chdir(tmp_path / "a")
        source = Path("link")
    done = convert.compress(source, tmp_path / "x", strict=True)
    assert done.left_out == {}
    convert.decompress(tmp_path / "x", tmp_path / "y", strict=True)
    assert tree(tmp_path / "y") == wanted
    outcome = prune.prune(source, tmp_path / "z", prune.Options(0.9), strict=True)
    assert outcome.left_out == {}
    assert tree(tmp_path / "z").keys() == wanted.keys()


def leaving(root: Path) -> str:
    (root.parent / "secret").write_text("x")
    (root / "tokenizer.model").symlink_to("../secret")
    return "tokenizer.model"


def dangling(root: Path) -> str:
    (root / "vocab.txt").symlink_to("nothing")
    return "vocab.txt"


def circle(root: Path) -> str:
    (root / "a.txt").symlink_to("b.txt")
    (root / "b.txt").symlink_to("a.txt")
    return "a.txt"


def pickle(root: Path) -> str:
    (root / "pytorch_model.bin").write_bytes(b"x")
    return "pytorch_model.bin"


@pytest.mark.parametrize("spoil", [leaving, dangling, circle, pickle])
@pytest.mark.parametrize("command", ["compress", "decompress", "prune"])
def test_strict(sharded: Path, tmp_path: Path, spoil: Callable[[Path], str], command: str) -> None:
    source = sharded
    if command == "decompress":
        convert.compress(sharded, tmp_path / "endor")
        source = tmp_path / "endor"
        if spoil is pickle:
            return  # K-5
    name = spoil(source)
    (source / ".git").mkdir()
    arguments = [command, str(source), str(tmp_path / "x")]
    run = CliRunner().invoke(cli.app, [*arguments, "--strict"])
    assert run.exit_code == 2
    assert f"'{name}' would be left out" in " ".join(run.output.split())
    assert not (tmp_path / "x").exists()
    run = CliRunner().invoke(cli.app, arguments)
    assert run.exit_code == 0, run.output
    assert f"left out: '{name}'" in run.output
    assert f"warning: a loader may miss what was left out, such as '{name}'" in " ".join(run.output.split())


def test_version_control_is_not_missed(sharded: Path, tmp_path: Path) -> None:
    (sharded / ".git").mkdir()
    run = CliRunner().invoke(cli.app, ["compress", str(sharded), str(tmp_path / "x"), "--strict"])
    assert run.exit_code == 0
    assert "warning" not in run.output
