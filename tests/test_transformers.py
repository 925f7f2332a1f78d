"""Stock transformers, without any plug-in of ours, stops instead of loading random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_without_the_variant(compressed: Path) -> None:
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.AutoModel.from_pretrained(compressed)


def test_with_the_variant(compressed: Path) -> None:
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModel.from_pretrained(compressed, variant="endor")


def test_the_dense_model_loads(pruned: Path) -> None:
    model = transformers.AutoModel.from_pretrained(pruned)
    weight = model.encoder.layer[0].output.dense.weight
    assert weight.dtype == torch.bfloat16
    assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
