"""Verifying and comparing: everything that is wrong is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import entry, raw_file

from pyendor import convert, file, verify
from pyendor.errors import UsageError

SHARD = "model.endor-00001-of-00002.safetensors"
OTHER = "model.endor-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.endor.json"


@pytest.fixture
def endor(sharded: Path) -> Path:
    """A sharded Endor checkpoint."""
    path = sharded.parent / "endor"
    convert.compress(sharded, path)
    return path


def rules(path: Path) -> set[str | None]:
    return {problem.rule for problem in verify.verify(path).problems}


def poke(path: Path, at: int, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] = byte
    path.write_bytes(data)


def test_good(endor: Path, sharded: Path) -> None:
    found = verify.verify(endor)
    assert (found.files, found.tensors, found.encoded, found.digests) == (2, 8, 4, 4)
    assert found.problems == []
    assert verify.verify(sharded).problems == []
    assert verify.compare(endor, sharded) == []
    assert verify.compare(endor / SHARD, sharded / SHARD.replace(".endor", "")) == []


def test_all_faults_are_found_not_only_the_first(endor: Path) -> None:
    with file.open_file(endor / SHARD) as opened:
        places = [opened.tensor(f"layers.{i}.weight").parts["bitmap"].start for i in (2, 3)]
    for place in places:
        poke(endor / SHARD, place, 0xFF)
    poke(endor / OTHER, 8, 0x20)
    problems = verify.verify(endor / SHARD).problems
    assert [(problem.rule, problem.tensor) for problem in problems] == [
        ("B-6", "layers.2.weight"),
        ("B-6", "layers.3.weight"),
    ]
    assert all(problem.offset is not None for problem in problems)
    assert rules(endor) == {"B-6", "C-5"}


def change_index(endor: Path, tensor: str, name: str | None) -> None:
    index = json.loads((endor / INDEX).read_text())
    index["weight_map"].pop(tensor, None)
    if name is not None:
        index["weight_map"][tensor] = name
    (endor / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("tensor", "name"), [("layers.2.norm", OTHER), ("layers.2.norm", None), ("layers.9.norm", SHARD)]
)
def test_index_that_disagrees_with_its_files(endor: Path, tensor: str, name: str | None) -> None:
    change_index(endor, tensor, name)
    assert rules(endor) == {"K-3"}


def test_tensor_in_two_shards(endor: Path) -> None:
    shutil.copy(endor / SHARD, endor / OTHER)
    assert rules(endor) == {"K-3"}


def test_parts_scattered_over_shards(tmp_path: Path) -> None:
    root = tmp_path / "scattered"
    root.mkdir()
    whole = json.dumps({"version": "1.0", "tensors": {"x": unknown()}})
    (root / SHARD).write_bytes(raw_file({"__metadata__": {"endor": whole}, "x": entry("U8", [0], 0, 0)}))
    empty = json.dumps({"version": "1.0", "tensors": {}})
    stray = raw_file({"__metadata__": {"endor": empty}, "x.endor.more": entry("U8", [0], 0, 0)})
    (root / OTHER).write_bytes(stray)
    weight_map = {"x": SHARD, "x.endor.more": OTHER}
    (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "K-4" in rules(root)


def test_faults_of_the_directory_hide_none_of_the_files(endor: Path) -> None:
    (endor / "pytorch_model.bin").write_bytes(b"x")
    (endor / "config.json").write_text("[]")
    poke(endor / OTHER, 8, 0x20)
    assert rules(endor) == {"K-5", "K-8", "C-5"}
    assert verify.verify(endor).tensors == 4


def unknown() -> dict[str, object]:
    return {"dtype": "U8", "shape": [3, 3], "positions": "bitmap", "values": "new"}


def test_unsupported_is_told_apart_from_invalid(tmp_path: Path) -> None:
    endor = json.dumps({"version": "1.1", "tensors": {"x": unknown()}})
    path = tmp_path / "x"
    path.write_bytes(raw_file({"__metadata__": {"endor": endor}, "x": entry("U8", [0], 0, 0)}))
    (problem,) = verify.verify(path).problems
    assert (problem.kind, problem.rule, problem.tensor) == ("unsupported", None, "x")
    path.write_bytes(raw_file({"__metadata__": {"endor": '{"version":"2.0"}'}}))
    assert [problem.kind for problem in verify.verify(path).problems] == ["unsupported"]


def test_sums_are_those_of_the_dense_bytes(endor: Path, sharded: Path) -> None:
    ours, dense = (verify.verify(path, sums=True).sums for path in (endor, sharded))
    assert sorted(ours, key=str) == sorted(dense, key=str)
    assert len(ours) == 8
    with safetensors.safe_open(sharded / SHARD.replace(".endor", ""), "np") as opened:
        words = opened.get_tensor("layers.2.weight")
    assert hashlib.sha256(words.tobytes()).hexdigest() in {one.sha256 for one in ours}


def test_digests_may_be_skipped(endor: Path) -> None:
    with file.open_file(endor / SHARD) as opened:
        at = opened.tensor("layers.2.weight").parts["values"].start
    poke(endor / SHARD, at, (endor / SHARD).read_bytes()[at] ^ 0x80)
    assert rules(endor) == {"D-2"}
    assert verify.verify(endor, check_digests=False).problems == []


def test_differences(tmp_path: Path) -> None:
    def model(name: str, **tensors: np.ndarray) -> Path:
        safetensors.numpy.save_file(tensors, tmp_path / name)
        return tmp_path / name

    zeros = np.zeros((4, 4), np.float32)
    first = model("a", same=zeros, bits=zeros, shape=zeros, dtype=zeros, gone=zeros)
    changed = zeros.copy()
    changed[0, 1] = -0.0
    second = model("b", same=zeros, bits=changed, shape=zeros[:2], dtype=zeros.astype(np.int32), new=zeros)
    problems = {problem.tensor: problem.message for problem in verify.compare(first, second)}
    assert problems.keys() == {"bits", "shape", "dtype", "gone", "new"}
    assert problems["bits"] == "differs in 1 bytes, the first of them byte 7 of its dense data"
    assert problems["shape"] == "is F32 [4, 4], not F32 [2, 4]"


def test_copies_are_compared_with_their_like(tmp_path: Path) -> None:
    one, other = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    for name, (default, tuned) in {"a": (one, other), "b": (other, one), "c": (one, other)}.items():
        (tmp_path / name).mkdir()
        safetensors.numpy.save_file({"x": default}, tmp_path / name / "model.safetensors")
        safetensors.numpy.save_file({"x": tuned}, tmp_path / name / "model.tuned.safetensors")
    assert verify.compare(tmp_path / "a", tmp_path / "c") == []
    # Both copies differ.
    assert [problem.tensor for problem in verify.compare(tmp_path / "a", tmp_path / "b")] == ["x", "x"]
    (tmp_path / "b" / "model.safetensors").write_bytes((tmp_path / "a" / "model.safetensors").read_bytes())
    assert len(verify.compare(tmp_path / "a", tmp_path / "b")) == 1
    (tmp_path / "c" / "model.tuned.safetensors").unlink()
    (problem,) = verify.compare(tmp_path / "a", tmp_path / "c")
    assert problem.message.endswith("c, variant 'tuned'")
    safetensors.numpy.save_file({"x": other}, tmp_path / "c" / "model-more.safetensors")
    assert len(verify.compare(tmp_path / "a", tmp_path / "c")) == 2
    # Of the only copy of each the name does not matter.
    (tmp_path / "a" / "model.safetensors").unlink()
    assert verify.compare(tmp_path / "a", tmp_path / "a" / "model.tuned.safetensors") == []


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        verify.verify(tmp_path)
    with pytest.raises(FileNotFoundError):
        verify.verify(tmp_path / "missing")
