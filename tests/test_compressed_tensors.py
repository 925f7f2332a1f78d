"""Checkpoints of compressed-tensors: those that its old releases wrote come back as what they stood for."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from pyendor import cli, convert, dtypes, file, prune, report, verify
from pyendor.errors import EndorError, ForeignError, UnsupportedError, UsageError
from pyendor.importers import compressed_tensors
from pyendor.importers.bitmask import BITMASK, BITMASK_24

# Written by the releases that their names tell, see make.py there.
REAL = ROOT / "tests" / "compressed-tensors"
MODELS = sorted(path.name for path in REAL.iterdir() if (path / "config.json").exists())
SINGLE = sorted(p.stem for p in REAL.glob("tensors-*.safetensors") if not p.stem.endswith(".dense"))
BACKENDS = ["native", "reference"]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
Arrays = dict[str, np.ndarray[Any, Any]]


def real(name: str) -> Path:
    return REAL / (name if name in MODELS else f"{name}.safetensors")


def tensors(path: Path) -> Tensors:
    found: Tensors = {}
    for weights in sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]:
        with file.open_file(weights) as opened:
            for name, tensor in opened.layout.tensors.items():
                assert name not in found
                found[name] = (tensor.dtype, tensor.shape, opened.get_bytes(name).tobytes())
    return found


def weights_files(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {path.name: path.read_bytes() for path in path.glob("model*.safetensors")}


def test_all_releases_are_there() -> None:
    assert MODELS == ["0.5.0", "0.8.1", "0.9.4", "0.9.4-24", "0.9.4-24-fp8"]
    assert SINGLE == ["tensors-0.8.1", "tensors-0.9.4", "tensors-24-0.9.4"]
    kinds = {dtype for name in MODELS + SINGLE for dtype, _, _ in tensors(real(name)).values()}
    assert kinds >= {"F32", "F16", "BF16", "F8_E4M3", "I8"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS + SINGLE)
def test_what_real_releases_wrote(name: str, backend: str, tmp_path: Path) -> None:
    dense = tensors(REAL / f"{name}.dense.safetensors")
    before = tree(real(name)) if name in MODELS else {}
    for number, min_saving in enumerate([0.05, None]):  # None: encode whatever can be
        to = tmp_path / str(number)
        done = convert.compress(real(name), to, backend=backend, min_saving=min_saving)
        assert tensors(to) == dense
        assert done.tensors == len(dense)
        assert (done.encoded > len(dense) / 2) == (min_saving is None)
        assert "compressed-tensors sparse-" in done.notes[0]
        assert verify.verify(to).problems == []
        # The dense checkpoint that it is restored to makes the very same files.
        back = tmp_path / f"back-{number}"
        convert.decompress(to, back, backend=backend)
        assert tensors(back) == dense
        again = tmp_path / f"again-{number}"
        convert.compress(back, again, min_saving=min_saving)
        assert weights_files(again) == weights_files(to)
        assert compressed_tensors.recognise(back) is compressed_tensors.recognise(to) is None
    assert before == (tree(real(name)) if name in MODELS else {})


@pytest.mark.parametrize("name", MODELS)
def test_processes_write_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert.compress(real(name), tmp_path / "one", jobs=1, min_saving=None)
    monkeypatch.chdir(real(name).parent)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        convert.compress(Path(real(name).name), tmp_path / "many", executor=executor, min_saving=None)
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


@pytest.mark.parametrize("name", MODELS)
def test_configs_of_real_releases(name: str, tmp_path: Path) -> None:
    original = (real(name) / "config.json").read_text()
    assert "sparsity_config" in original
    assert ("compression_config" in original) == (name == "0.5.0")
    convert.compress(real(name), tmp_path / "endor")
    convert.decompress(tmp_path / "endor", tmp_path / "dense")
    for root in (tmp_path / "endor", tmp_path / "dense"):
        assert (root / "config.compressed-tensors.json").read_text() == original
    text = (tmp_path / "dense" / "config.json").read_text()
    assert text == (tmp_path / "endor" / "config.dense.json").read_text()
    config, first = json.loads(text), json.loads(original)
    ours = json.loads((tmp_path / "endor" / "config.json").read_text())["quantization_config"]
    assert ours["quant_method"] == "endor"
    assert {key: first[key] for key in config if key != "quantization_config"}.keys() == first.keys() - {
        "quantization_config",
        "compression_config",
    }
    if name.endswith("fp8"):
        expected = {k: v for k, v in first["quantization_config"].items() if k != "sparsity_config"}
        assert config["quantization_config"] == ours["inner"] == expected
        assert expected["format"] == "float-quantized"
    else:
        assert "quantization_config" not in config
        assert "inner" not in ours


@pytest.mark.parametrize("name", ["0.8.1", "0.9.4"])
def test_shards_that_part_a_tensor(name: str, tmp_path: Path) -> None:
    index = json.loads((real(name) / "model.safetensors.index.json").read_text())["weight_map"]
    shards: dict[str, set[str]] = {}
    for part, shard in index.items():
        shards.setdefault(part.rpartition(".")[0], set()).add(shard)
    assert any(len(held) > 1 for held in shards.values())
    convert.compress(real(name), tmp_path / "endor")
    convert.decompress(tmp_path / "endor", tmp_path / "dense")
    restored = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())
    assert set(restored["weight_map"].values()) == set(index.values())
    held = tensors(tmp_path / "dense")
    assert restored["weight_map"].keys() == held.keys()
    assert restored["metadata"]["total_size"] == sum(len(data) for _, _, data in held.values())
    for tensor, shard in restored["weight_map"].items():
        assert tensor in tensors(tmp_path / "dense" / shard)


def test_one_shard_alone_has_not_all_parts(tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match="is missing; if it is in another shard, name the directory"):
        convert.compress(real("0.9.4") / "model-00001-of-00004.safetensors", tmp_path / "x")


def test_transformers_loads_what_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    convert.compress(real("0.9.4"), tmp_path / "endor")
    convert.decompress(tmp_path / "endor", tmp_path / "dense")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    dense = load_file(REAL / "0.9.4.dense.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, dense[name])


def packed(
    name: str, dense: np.ndarray[Any, Any], form: str = BITMASK, keep: np.ndarray[Any, Any] | None = None
) -> Arrays:
    """The parts of a tensor, as a release would write them."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        mask = dense != 0 if keep is None else keep
    kept = dense[mask]
    parts = {"bitmask": np.packbits(mask, axis=-1, bitorder="little")}
    if form == BITMASK:
        counts = np.asarray(mask.sum(axis=-1))
        offsets = counts.cumsum(axis=0).reshape(counts.shape) - counts if counts.ndim else counts * 0
        parts |= {"compressed": kept, "row_offsets": offsets.astype(np.int64)}
        parts["shape"] = np.array(dense.shape, np.int64)
    else:
        parts["compressed"] = kept.reshape(dense.shape[0], dense.shape[1] // 2)
        parts["shape"] = np.array(dense.shape, np.int64).reshape(-1, 1)
    return {f"{name}.{role}": np.array(part, order="C") for role, part in parts.items()}


def write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    save_file(dict(arrays), path, {"format": "pt"})
    return path


def check(path: Path, dense: Mapping[str, np.ndarray[Any, Any]], backend: str | None = None) -> None:
    foreign = compressed_tensors.recognise(path)
    assert foreign is not None
    with file.open_file(path) as opened:
        sources = {source.name: source for source in foreign.sources(opened, backend=backend)}
        assert sources.keys() == dense.keys()
        for name, array in dense.items():
            source = sources[name]
            known = dtypes.from_numpy(array.dtype)
            assert known is not None
            assert (source.dtype, source.shape) == (known.name, array.shape)
            for _ in range(2):  # as a writer asks
                assert source.checked_read().tobytes() == array.tobytes()


DTYPES = [np.float16, np.float32, np.float64, np.int8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 19), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(BACKENDS),
)
def test_any_bitmask(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    dtype: Any,
    density: float,
    seed: int,
    backend: str,
) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    bits[rng.random(shape) >= density] = 0
    dense = bits.view(dtype).reshape(shape)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        dense[dense == 0] = 0  # -0.0 is lost when it is written
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    check(write(path, packed("a.b", dense)), {"a.b.weight": dense}, backend)
    check(write(path, packed("a.b.weight", dense)), {"a.b.weight": dense}, backend)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(BACKENDS),
)
def test_any_two_of_four(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, dtype: Any, seed: int, backend: str
) -> None:
    rng = np.random.default_rng(seed)
    shape = (2 * rows, 2 * columns)
    keep = rng.permuted(np.arange(4 * rows * columns).reshape(-1, 4) % 4 < 2, axis=1).reshape(shape)
    bits = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    bits[~keep | (rng.random(shape) < 0.3)] = 0  # some of those that are kept are zero
    dense = bits.view(dtype).reshape(shape)
    path = tmp_path_factory.getbasetemp() / "any24.safetensors"
    check(write(path, packed("a.b", dense, BITMASK_24, keep)), {"a.b.weight": dense}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_a_block(tmp_path: Path, rng: np.random.Generator, backend: str) -> None:
    dense = {}
    arrays = {"norm": np.ones(7, np.float32)}
    for name, shape in zip("abcde", [(64, 64), (65, 64), (3, 4097), (9001,), (100, 3, 41)], strict=True):
        dense[f"{name}.weight"] = rng.integers(0, 2, shape).astype(np.float16)
        arrays |= packed(name, dense[f"{name}.weight"])
    check(write(tmp_path / "x", arrays), dense | {"norm": arrays["norm"]}, backend)


def good() -> Arrays:
    rng = np.random.default_rng(5)
    return packed("m.q", rng.integers(0, 2, (6, 11)).astype(np.float16)) | {"m.norm": np.ones(3, np.float32)}


def good_24() -> Arrays:
    keep = np.tile([True, False, False, True], 6).reshape(2, 12)
    return packed("m.q", np.arange(24).reshape(2, 12).astype(np.float32), BITMASK_24, keep)


def drop(arrays: Arrays, name: str) -> None:
    del arrays[name]


def put(arrays: Arrays, name: str, value: Any, dtype: Any = None) -> None:
    arrays[name] = np.array(value, dtype or arrays[name].dtype)


def flip(arrays: Arrays, name: str, at: int, mask: int) -> None:
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1).view(np.uint8)[at] ^= mask


FAULTS: list[tuple[Callable[[], Arrays], Callable[[Arrays], object], str]] = [
    (good, lambda a: put(a, "m.q.shape", [6, 10]), "bits beyond the 10 elements"),
    (good, lambda a: put(a, "m.q.shape", [11, 6]), r"part bitmask is 'U8' of shape \[6, 2\], expected"),
    (good, lambda a: put(a, "m.q.shape", [2, 3, 11]), "part bitmask"),
    (good, lambda a: put(a, "m.q.shape", [66]), "part bitmask"),
    (good, lambda a: put(a, "m.q.shape", [-6, 11]), "it has -6, not an integer from 0"),
    (good, lambda a: put(a, "m.q.shape", [6, -(2**63)]), "not an integer"),
    (good, lambda a: put(a, "m.q.shape", [2**62, 2**62]), "not an integer"),
    (good, lambda a: put(a, "m.q.shape", [2**52, 2**52]), "part bitmask"),
    (good, lambda a: put(a, "m.q.shape", [0, 2**53 - 1]), "part bitmask"),
    (good, lambda a: put(a, "m.q.shape", [1] * 65), r"expected 'I64' of shape \[rank\]"),
    (good, lambda a: put(a, "m.q.shape", [[6, 11]]), r"expected 'I64' of shape \[rank\]"),
    (good, lambda a: put(a, "m.q.shape", [6, 11], np.int32), "'I32'"),
    (good, lambda a: put(a, "m.q.shape", []), "part bitmask"),
    (good, lambda a: put(a, "m.q.bitmask", a["m.q.bitmask"].view(np.int8), np.int8), "part bitmask is 'I8'"),
    (good, lambda a: put(a, "m.q.bitmask", a["m.q.bitmask"].reshape(-1)), "part bitmask"),
    (good, lambda a: flip(a, "m.q.bitmask", 1, 0x80), "bits beyond the 11 elements"),
    (good, lambda a: flip(a, "m.q.bitmask", 0, 1), "row_offsets do not agree"),
    (good, lambda a: flip(a, "m.q.bitmask", 10, 1), "the bitmask keeps"),
    (good, lambda a: put(a, "m.q.compressed", a["m.q.compressed"][1:]), "elements, .* are stored"),
    (good, lambda a: put(a, "m.q.compressed", np.append(a["m.q.compressed"], 1)), "are stored"),
    (good, lambda a: put(a, "m.q.compressed", np.ones(1 << 20)), "are stored"),
    (good, lambda a: put(a, "m.q.compressed", []), "are stored"),
    (good, lambda a: put(a, "m.q.compressed", [a["m.q.compressed"]]), "part compressed"),
    (good, lambda a: put(a, "m.q.row_offsets", a["m.q.row_offsets"] + 1), "row_offsets do not agree"),
    (good, lambda a: put(a, "m.q.row_offsets", -a["m.q.row_offsets"]), "row_offsets do not agree"),
    (good, lambda a: put(a, "m.q.row_offsets", [2**62] * 6), "row_offsets do not agree"),
    (good, lambda a: put(a, "m.q.row_offsets", a["m.q.row_offsets"][1:]), "part row_offsets"),
    (good, lambda a: put(a, "m.q.row_offsets", a["m.q.row_offsets"], np.int32), "part row_offsets is 'I32'"),
    (good, lambda a: a.update({"m.q.weight": np.ones(3)}), "as it is"),
    (good, lambda a: a.update({"k.shape": np.ones(3)}), "'k.bitmask' is missing"),
    (good, lambda a: a.update(packed("k.weight", np.ones((2, 2)))), "are mixed"),
    (good_24, lambda a: a.update(packed("m.q.weight", np.ones((2, 2)))), "are mixed"),
    (good_24, lambda a: put(a, "m.q.shape", [[24]]), "no matrix"),
    (good_24, lambda a: put(a, "m.q.shape", [[2], [12], [1]]), "no matrix"),
    (good_24, lambda a: put(a, "m.q.shape", [[2], [11]]), "no matrix"),
    (good_24, lambda a: put(a, "m.q.shape", [[2], [14]]), "part compressed"),
    (good_24, lambda a: put(a, "m.q.shape", [[2], [10]]), "part compressed|no matrix"),
    (good_24, lambda a: put(a, "m.q.shape", []), "no matrix"),
    (good_24, lambda a: put(a, "m.q.compressed", a["m.q.compressed"][:1]), "part compressed"),
    (good_24, lambda a: put(a, "m.q.compressed", a["m.q.compressed"].reshape(-1)), "part compressed"),
    (good_24, lambda a: flip(a, "m.q.bitmask", 0, 0x11 << 1), "the bitmask keeps 14 elements, 12"),
    (good_24, lambda a: flip(a, "m.q.bitmask", 0, 0x12), "two of every four"),
    (good_24, lambda a: flip(a, "m.q.bitmask", 3, 0x10), "bits beyond the 12 elements"),
]  # fmt: skip


@pytest.mark.parametrize(("start", "change", "match"), FAULTS)
def test_faults(
    start: Callable[[], Arrays], change: Callable[[Arrays], object], match: str, tmp_path: Path
) -> None:
    arrays = start()
    convert.compress(write(tmp_path / "good", arrays), tmp_path / "fine")
    change(arrays)
    write(tmp_path / "x", arrays)
    with pytest.raises(ForeignError, match=match) as caught:
        convert.compress(tmp_path / "x", tmp_path / "y", min_saving=None)
    assert caught.value.tensor is not None
    assert caught.value.path == str(tmp_path if match in {"are mixed", "as it is"} else tmp_path / "x")
    assert not (tmp_path / "y").exists()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.tensor) == (str(caught.value), caught.value.tensor)
    run = CliRunner().invoke(cli.app, ["compress", str(tmp_path / "x"), str(tmp_path / "y"), "--json"])
    assert run.exit_code == cli.INPUT_FAULT
    assert json.loads(run.stdout)["error"]["tensor"] == caught.value.tensor


@pytest.mark.parametrize("start", [good, good_24])
def test_every_bit_of_a_bitmask_counts(start: Callable[[], Arrays], tmp_path: Path) -> None:
    first = start()
    for at in range(first["m.q.bitmask"].size):
        for bit in range(8):
            arrays = dict(first)
            flip(arrays, "m.q.bitmask", at, 1 << bit)
            with pytest.raises(ForeignError):
                convert.compress(write(tmp_path / "x", arrays), tmp_path / "y")


@pytest.mark.parametrize("role", ["shape", "bitmask", "compressed"])
def test_missing_parts(role: str, tmp_path: Path) -> None:
    arrays = good() | {key.replace("m.q", "m.k"): value for key, value in good().items()}
    del arrays[f"m.q.{role}"]
    with pytest.raises(ForeignError, match=f"its part 'm.q.{role}' is missing"):
        convert.compress(write(tmp_path / "x", arrays), tmp_path / "y")


def test_types_that_no_release_packed(tmp_path: Path) -> None:
    arrays = good()
    path = write(tmp_path / "x", arrays)
    data = path.read_bytes()
    assert data.count(b'"F16"') == 1
    path.write_bytes(data.replace(b'"F16"', b'"Q16"'))
    with pytest.raises(UnsupportedError, match=r"tensor 'm\.q\.weight': sparse-bitmask of dtype 'Q16'"):
        convert.compress(path, tmp_path / "y")


def test_names_that_only_look_like_it(tmp_path: Path) -> None:
    # Nothing but the full set of parts makes a file one of compressed-tensors.
    arrays = {"a.shape": np.ones(3), "a.bitmask": np.ones(3), "b.compressed": np.ones(3), "shape": np.ones(2)}
    path = write(tmp_path / "x", arrays)
    assert compressed_tensors.recognise(path) is None
    convert.compress(path, tmp_path / "y")
    assert tensors(tmp_path / "y") == tensors(path)


def test_many_tensors_and_long_names(tmp_path: Path) -> None:
    arrays = {}
    parts = packed("", np.eye(2, 3, dtype=np.float16))
    for number in range(5000):
        for role, part in parts.items():
            arrays[f"{'a.' * 50}{number}{role}"] = part
    path = write(tmp_path / "x", arrays)
    began = time.perf_counter()
    foreign = compressed_tensors.recognise(path)
    assert time.perf_counter() - began < 10
    assert foreign is not None
    assert len(foreign.packed["x"]) == 5000
    assert pickle.loads(pickle.dumps(foreign)) == foreign  # noqa: S301


def checkpoint(root: Path, config: object, arrays: Arrays | None = None) -> Path:
    root.mkdir()
    write(root / "model.safetensors", good() if arrays is None else arrays)
    (root / "config.json").write_text(json.dumps(config))
    return root


CLAIM = {"format": BITMASK, "targets": ["Linear"]}


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        ({"sparsity_config": CLAIM, "a": 1}, {"a": 1}),
        ({"compression_config": {"sparsity_config": CLAIM}, "a": 1}, {"a": 1}),
        ({"quantization_config": {"quant_method": "compressed-tensors", "version": "0.12.2",
                                  "sparsity_config": CLAIM, "transform_config": {}}}, {}),
        ({"compression_config": {"sparsity_config": CLAIM, "format": "int-quantized", "ignore": ["x"]}},
         {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized",
                                  "ignore": ["x"]}}),
        ({}, {}),
        ({"quantization_config": None}, {}),
        ({"quantization_config": {"quant_method": "compressed-tensors", "sparsity_config": {}}}, {}),
    ],
)  # fmt: skip
def test_configs(config: dict[str, Any], dense: dict[str, Any], tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "x", config)
    convert.compress(source, tmp_path / "y")
    assert json.loads((tmp_path / "y" / "config.dense.json").read_text()) == dense
    convert.decompress(tmp_path / "y", tmp_path / "z")
    assert json.loads((tmp_path / "z" / "config.json").read_text()) == dense
    assert tensors(tmp_path / "z").keys() == {"m.q.weight", "m.norm"}


@pytest.mark.parametrize(
    ("config", "kind", "match"),
    [
        ({"quantization_config": {"sparsity_config": {"format": "sparse-7z"}}},
         UnsupportedError, "'sparse-7z'"),
        ({"compression_config": {"sparsity_config": {"format": ["x"]}}}, UnsupportedError, "'x'"),
        ({"compression_config": {"sparsity_config": 7}}, UnsupportedError, "'7'"),
        ({"quantization_config": {"sparsity_config": CLAIM, "format": "marlin-24"}},
         UnsupportedError, "marlin-24"),
        ({"quantization_config": {"sparsity_config": CLAIM, "format": {}, "a": 1}},
         UnsupportedError, "format"),
        ({"sparseml_quantization_config": {"a": 1}, "sparsity_config": CLAIM}, UnsupportedError, "sparseml"),
        ({"quantization_config": {"sparsity_config": CLAIM, "ignore": ["a"]},
          "compression_config": {"ignore": ["b"]}}, UnsupportedError, "once"),
        ({"quantization_config": {"sparsity_config": {"format": BITMASK_24}}},
         ForeignError, "the config says sparse-24-bitmask"),
        ({"sparsity_config": CLAIM, "compression_config": {"sparsity_config": {"format": BITMASK_24}}},
         ForeignError, "of the formats"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(
    config: dict[str, Any], kind: type[EndorError], match: str, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "x", config)
    for work in (lambda: convert.compress(source, tmp_path / "y"), lambda: report.inspect(source)):
        with pytest.raises(kind, match=match):
            work()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_configs_are_left_alone(tmp_path: Path) -> None:
    config = {
        "sparsity_config": {"format": "of a model's own"},
        "quantization_config": {"quant_method": "gptq", "sparsity_config": {"format": "x"}},
    }
    source = checkpoint(tmp_path / "x", config, {"w": np.ones(3)})
    convert.compress(source, tmp_path / "y")
    convert.decompress(tmp_path / "y", tmp_path / "z")
    assert tree(tmp_path / "z") == tree(source)


def test_claimed_but_nothing_compressed(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "x", {"sparsity_config": CLAIM}, {"w": np.ones(3)})
    convert.compress(source, tmp_path / "y")
    assert json.loads((tmp_path / "y" / "config.dense.json").read_text()) == {}
    assert tensors(tmp_path / "y").keys() == {"w"}


def shards(root: Path, *files: Arrays) -> Path:
    root.mkdir()
    weight_map = {}
    for number, arrays in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        write(root / name, arrays)
        weight_map |= dict.fromkeys(arrays, name)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return root


def test_a_shard_of_nothing_but_parts_of_others(tmp_path: Path) -> None:
    # Its values are elsewhere; but an index names no shard without tensors.
    first, second = good(), packed("m.k", np.eye(5, 9, dtype=np.float32))
    last = {"m.k.bitmask": second.pop("m.k.bitmask")}
    source = shards(tmp_path / "x", first, second | packed("m.v", np.ones((1, 1))), last)
    convert.compress(source, tmp_path / "y")
    convert.decompress(tmp_path / "y", tmp_path / "z")
    assert tensors(tmp_path / "z").keys() == {"m.q.weight", "m.norm", "m.k.weight", "m.v.weight"}
    shard = "model-00003-of-00003.safetensors"
    name, (dtype, shape, data) = next(iter(tensors(tmp_path / "z" / shard).items()))
    assert (name, dtype, shape) == ("m.k.weight", "F32", (5, 9))
    assert data == np.eye(5, 9, dtype=np.float32).tobytes()


def test_a_part_twice(tmp_path: Path) -> None:
    source = shards(tmp_path / "x", good(), {"m.q.shape": np.ones(2, np.int64), "y": np.ones(2)})
    for refuse in (compressed_tensors.recognise, lambda path: convert.compress(path, tmp_path / "y")):
        with pytest.raises(ForeignError, match=r"it is in 'model-00001-of-00002\.safetensors' too"):
            refuse(source)


def test_another_shard_that_changes_meanwhile(tmp_path: Path) -> None:
    arrays = good()
    bitmask = arrays.pop("m.q.bitmask")
    source = shards(tmp_path / "x", arrays, {"m.q.bitmask": bitmask, "y": np.ones(2)})
    foreign = compressed_tensors.recognise(source)
    assert foreign is not None
    with file.open_file(source / "model-00001-of-00002.safetensors") as opened:
        (read,) = (source.read for source in foreign.sources(opened) if source.name == "m.q.weight")
        read()
        for changed in ({"m.q.bitmask": bitmask[:-1]}, {"y": np.ones(2)}, {"m.q.bitmask": bitmask ^ 1}):
            write(source / "model-00002-of-00002.safetensors", changed)
            with pytest.raises((ForeignError, UsageError)):
                read()


def test_variants_are_models_of_their_own(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "x", {"sparsity_config": CLAIM})
    write(source / "model.fp16.safetensors", good())
    convert.compress(source, tmp_path / "y")
    assert (tmp_path / "y" / "model.endor.fp16.safetensors").exists()


def test_the_original_config_has_a_place(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "x", {"sparsity_config": CLAIM})
    (source / "config.compressed-tensors.json").write_text("{}")
    with pytest.raises(UsageError, match="is in the way"):
        convert.compress(source, tmp_path / "y")


def test_commands(tmp_path: Path) -> None:
    source = tmp_path / "x"
    shutil.copytree(real("0.9.4-24"), source)
    run = CliRunner().invoke(cli.app, ["inspect", str(source)])
    assert run.exit_code == 0
    assert "(compressed-tensors sparse-24-bitmask): 12 tensors" in run.stdout
    assert "endor compress" in run.stdout
    found = report.inspect(source)
    assert found.foreign == "compressed-tensors sparse-24-bitmask"
    dense = tensors(REAL / "0.9.4-24.dense.safetensors")
    assert {row.name: (row.dtype, row.shape) for row in found.rows} == {
        name: (dtype, shape) for name, (dtype, shape, _) in dense.items()
    }
    assert found.dense_bytes == report.dense_bytes(source) == sum(len(data) for _, _, data in dense.values())
    stored = sum(row.stored_bytes for row in found.rows)
    assert stored < found.file_bytes < stored + 8192
    run = CliRunner().invoke(cli.app, ["compress", str(source), str(tmp_path / "y")])
    assert run.exit_code == 0
    assert "the source was compressed-tensors sparse-24-bitmask" in run.stdout
    assert report.inspect(tmp_path / "y").foreign is None
    with pytest.raises(UsageError, match=r"sparse-24-bitmask: compress it"):
        prune.prune(source, tmp_path / "z", prune.Options(sparsity=0.5))
