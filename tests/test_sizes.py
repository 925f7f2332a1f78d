"""How small a trained model becomes: what is claimed, measured anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Bits per weight on file, headers and padding included.
AT_MOST = {
    "BF16, 50 % magnitude": 6.1,
    "BF16, 50 % Wanda": 6.35,
    "BF16, 70 % magnitude": 4.05,
    "BF16, not pruned": 11.5,
    "F16 cast from BF16, 50 % magnitude": 6.1,
}


def test_bits_per_weight_of_a_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sizes

    published = json.loads((ROOT / "benchmarks" / "results" / "sizes.json").read_text())
    measured = {what: sizes.measure(weights, tmp_path) for what, weights in sizes.cases() if what in AT_MOST}
    sys.modules.pop("sizes")
    assert measured.keys() == AT_MOST.keys()
    for what, found in measured.items():
        assert found["floor"] < found["auto"] <= AT_MOST[what]
        assert found["auto"] < found["raw"]
        # Wanda asks the model, whose arithmetic another PyTorch may round otherwise.
        for key in ("raw", "auto", "floor"):
            assert found[key] == pytest.approx(published[what][key], abs=0.01)
