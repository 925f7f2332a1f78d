"""Magnitude pruning, its choice of tensors, and the reports over the result."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import tree
from hypothesis import given, settings
from hypothesis import strategies as st

import pyendor.numpy
from pyendor import dtypes, prune, report
from pyendor.errors import UsageError
from pyendor.prune import Options


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(0, 40),
    sparsity=st.sampled_from(["0", "0.1", "0.29", "0.5", "0.7", "1"]),
    group=st.sampled_from(["tensor", "row"]),
    dtype=st.sampled_from(prune.PRUNABLE),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_smallest_go(
    rows: int, columns: int, sparsity: str, group: prune.Group, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kind = dtypes.BY_NAME[dtype]
    # Few different values, so that there are ties.
    weights = (rng.integers(1, 6, (rows, columns)) * rng.choice([-1, 1], (rows, columns))).astype(
        kind.to_numpy()
    )
    dense = np.ascontiguousarray(weights).reshape(-1).view(np.uint8)
    pruned = prune.prune_bytes(dense, kind, (rows, columns), float(sparsity), group)
    after = pruned.view(kind.to_numpy()).reshape(rows, columns).astype(np.float64)
    before = weights.astype(np.float64)
    groups = [(before, after)] if group == "tensor" else list(zip(before, after, strict=True))
    for old, new in groups:
        gone = new == 0
        assert gone.sum() == round(float(sparsity) * 100) * old.size // 100
        assert np.array_equal(new[~gone], old[~gone])
        if gone.any() and not gone.all():
            assert np.abs(old[gone]).max() <= np.abs(old[~gone]).min()
            tied = np.abs(old) == np.abs(old[gone]).max()
            assert not np.any(np.diff(gone[tied].astype(int)) > 0), "among equals, those in front go first"


def test_nans_stay_and_minus_zero_goes() -> None:
    weights = np.array([np.nan, -0.0, 5, -np.inf], np.float32)
    kept = prune.prune_bytes(weights.view(np.uint8), dtypes.BY_NAME["F32"], (4,), 0.5, "tensor")
    words = kept.view(np.uint32)
    assert words[1] == words[2] == 0
    assert words[[0, 3]].tolist() == weights.view(np.uint32)[[0, 3]].tolist()


@pytest.mark.parametrize(
    ("name", "shape", "selected"),
    [
        ("encoder.layer.0.attention.self.query.weight", (4, 4), True),
        ("model.layers.12.mlp.experts.gate_up_proj", (8, 4, 4), True),
        ("h.3.attn.c_attn.weight", (4, 12), True),
        ("model.embed_tokens.weight", (4, 4), False),
        ("lm_head.weight", (4, 4), False),
        ("model.layers.0.input_layernorm.weight", (4,), False),
        ("model.layers.0.mlp.gate.weight", (4, 4), False),
        ("model.layers.0.mlp.gate_proj.weight", (4, 4), True),
        ("pooler.dense.weight", (4, 4), False),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 4), False),
        ("model.layers.0.mlp.gate.wg.weight", (4, 4), False),
        ("model.layers.0.mlp.up_proj.weight_scale", (4, 1), False),
        ("backbone.layers.0.mixer.A_log", (4, 4), False),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (4, 4), False),
        ("h.0.attn.bias", (1, 1, 4, 4), False),
        ("layers.0.q_proj.lora_A.weight", (4, 4), False),
    ],
)
def test_default_choice(name: str, shape: tuple[int, ...], selected: bool) -> None:
    assert Options().selects(name, "BF16", shape) is selected
    assert not Options().selects(name, "I32", shape)
    assert not Options(exclude=["*"]).selects(name, "BF16", shape)
    assert Options(include=["*"]).selects(name, "BF16", shape)


def test_directory(sharded: Path, tmp_path: Path) -> None:
    before = tree(sharded)
    outcome = prune.prune(sharded, tmp_path / "out", Options(sparsity=0.9, dtype="bf16"))
    assert tree(sharded) == before
    assert outcome.tensors == [f"layers.{i}.weight" for i in (2, 3, 4, 5)]
    assert outcome.zeros == outcome.numel * 9 // 10 // 4 * 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert (
        index["weight_map"].keys() == json.loads(before["model.safetensors.index.json"])["weight_map"].keys()
    )
    assert index["metadata"]["total_size"] == 4 * (64 * 96 + 96) * 2
    loaded = pyendor.numpy.load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert {array.dtype for array in loaded.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert np.all(loaded["layers.2.norm"] == 1)


def test_rows_of_fused_experts_run_along_the_last_dimension(rng: np.random.Generator) -> None:
    weights = rng.standard_normal((3, 4, 10)).astype(np.float32)
    dense = weights.reshape(-1).view(np.uint8)
    pruned = prune.prune_bytes(dense, dtypes.BY_NAME["F32"], (3, 4, 10), 0.5, "row")
    assert np.all((pruned.view(np.float32).reshape(3, 4, 10) == 0).sum(axis=2) == 5)


def test_quantized_models_are_not_pruned_by_mistake(sharded: Path, tmp_path: Path) -> None:
    (sharded / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(UsageError, match="quantized"):
        prune.prune(sharded, tmp_path / "x", Options())
    prune.prune(sharded, tmp_path / "x", Options(include=["*.weight"]))


def test_dtypes_in_nested_configs_follow(sharded: Path, tmp_path: Path) -> None:
    config = {"dtype": "float32", "text_config": {"torch_dtype": "float32", "dtype": "other"}}
    (sharded / "config.json").write_text(json.dumps(config))
    prune.prune(sharded, tmp_path / "x", Options(dtype="bf16"))
    assert json.loads((tmp_path / "x" / "config.json").read_text()) == {
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16", "dtype": "other"},
    }


def test_conversion_rounds_to_nearest_and_refuses_to_overflow(tmp_path: Path) -> None:
    weights = np.array([[1.0, 1 + 2**-8, 1 + 3 * 2**-8, np.inf]], np.float32)
    safetensors.numpy.save_file({"layers.0.weight": weights}, tmp_path / "a")
    prune.prune(tmp_path / "a", tmp_path / "b", Options(sparsity=0, dtype="bf16"))
    loaded = pyendor.numpy.load_file(tmp_path / "b")["layers.0.weight"].astype(np.float32)
    assert loaded.tolist() == [[1.0, 1.0, 1 + 2**-6, np.inf]]
    safetensors.numpy.save_file({"layers.0.weight": np.full((1, 2), 1e6, np.float32)}, tmp_path / "a")
    with pytest.raises(UsageError, match="range of F16"):
        prune.prune(tmp_path / "a", tmp_path / "c", Options(dtype="f16"))
    assert not (tmp_path / "c").exists()


def test_what_is_refused(sharded: Path, tmp_path: Path, compressed: Path) -> None:
    with pytest.raises(UsageError, match="nothing to prune"):
        prune.prune(sharded, tmp_path / "x", Options(include=["nope"]))
    with pytest.raises(UsageError, match="between 0 and 1"):
        prune.prune(sharded, tmp_path / "x", Options(sparsity=1.5))
    for source in (compressed, compressed / "model.endor.safetensors"):
        with pytest.raises(UsageError, match="decompress it first"):
            prune.prune(source, tmp_path / "x", Options())
    assert not (tmp_path / "x").exists()


def test_report_on_dense_predicts_the_endor_file(pruned: Path, compressed: Path) -> None:
    dense, endor = report.inspect(pruned), report.inspect(compressed)
    assert {row.name: row.endor_bytes for row in dense.rows} == {
        row.name: row.endor_bytes for row in endor.rows
    }
    for before, after in zip(
        *(sorted(r.rows, key=lambda row: row.name) for r in (dense, endor)), strict=True
    ):
        # Where every element is stored, no file says how many of them are zero.
        assert after.nnz in {before.nnz, None}
        assert before.encoding == after.encoding
        assert before.floor == after.floor
    assert dense.worth_it
    assert endor.worth_it
    assert (dense.version, endor.version) == (None, "1.1")
    assert endor.file_bytes == (compressed / "model.endor.safetensors").stat().st_size
    json.dumps(endor.to_json())


def test_report_says_when_it_is_not_worth_it(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x": np.ones((100, 100))}, tmp_path / "x")
    assert not report.inspect(tmp_path / "x").worth_it


def test_a_sum_says_no_more_than_its_rows(compressed: Path) -> None:
    layers = report.by_layer(report.inspect(compressed).rows)
    assert layers["0"].sparsity == pytest.approx(0.5, abs=0.01)
    assert layers["other"].sparsity is None, "where all elements are stored, zeros were not counted"
    for layer in layers.values():
        assert layer.floor is not None
        assert layer.bits_per_weight is not None
        assert layer.floor < layer.bits_per_weight < 16


def test_layers_are_summed_in_order(pruned: Path) -> None:
    rows = report.inspect(pruned).rows
    layers = report.by_layer(rows)
    assert list(layers) == ["0", "1", "2", "3", "4", "5", "other"]
    assert sum(layer.dense_bytes for layer in layers.values()) == sum(row.dense_bytes for row in rows)
    assert sum(layer.numel for layer in layers.values()) == sum(row.numel for row in rows)
    hostile = report.Row("x." + "9" * 5000 + ".y", "U8", (), "", False, 0, 0, 0, 0, 0)
    assert list(report.by_layer([hostile])) == ["other"]


def test_plot(compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.plot(report.inspect(compressed), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    found = report.inspect(compressed)
    for path, match in (("plot.png", "--force"), ("plot.txt", "PNG")):
        with pytest.raises(UsageError, match=match):
            report.plot(found, tmp_path / path)
    report.plot(found, tmp_path / "plot.png", force=True)
    named = report.Report("$\\frac{$", None, found.rows, 0)
    report.plot(named, tmp_path / "math.png")
    rows = [report.Row(f"x.{i}.y", "U8", (1,), "", False, 1, 1, 1, 1, 1) for i in range(2000)]
    with pytest.raises(UsageError, match="too many"):
        report.plot(report.Report("x", None, tuple(rows), 0), tmp_path / "many.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="matplotlib"):
        report.plot(found, tmp_path / "other.png")
