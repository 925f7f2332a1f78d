"""The examples run, and do what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

from pyendor.torch import iter_weights, save_file  # noqa: E402


@pytest.fixture
def load_weights(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield __import__("load_weights")
    sys.modules.pop("load_weights")


def test_a_model_loads_its_weights(load_weights: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    load_weights.main(tmp_path)
    assert "15 tensors, fused into 9" in capsys.readouterr().out


def test_a_model_loads_its_weights_from_several_files(load_weights: Any, tmp_path: Path) -> None:
    tensors = load_weights.checkpoint(1)
    names = sorted(tensors)  # q, k and v of a layer in different files
    weight_map = {}
    for part in range(3):
        few = {name: tensors[name] for name in names[part::3]}
        shard = f"model.endor-0000{part + 1}-of-00003.safetensors"
        save_file(few, tmp_path / shard)
        with safetensors.safe_open(tmp_path / shard, "pt") as file:
            weight_map |= dict.fromkeys(file.keys(), shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.endor.json").write_text(json.dumps(index))
    model = load_weights.Model()
    assert model.load_weights(iter_weights(tmp_path)) == set(model.state_dict())
    whole = load_weights.Model()
    whole.load_weights(tensors.items())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
