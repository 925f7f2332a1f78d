"""Forty architectures of transformers in every mode; ``architectures.py`` runs all and makes the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

import architectures  # noqa: E402  needs torch
import tiny  # noqa: E402

from pyendor.errors import UsageError  # noqa: E402

# By what is special about them.
SAMPLE = (
    *("llama", "opt", "gpt2", "bloom", "falcon"),  # decoders, tied and not, with 1-D and transposed weights
    *("mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "mamba"),  # experts, convolutions, states
    *(
        "bert",
        "nomic_bert",
        "squeezebert",
        "layoutlmv3",
        "perceiver",
    ),  # encoders; positions that a parent reads
    *("t5", "switch_transformers", "bart", "marian", "fsmt"),  # two halves; positions that are not saved
    *("aria", "glm4v", "qwen3_vl_moe", "step3p7", "gemma3"),  # pictures and text, converted experts
    *("llava", "qwen2_vl", "clip", "radio", "hrm_text"),  # methods beside forward, chunked projections
    *("vit", "pvt", "detr", "resnet", "dinov2"),  # pictures: nested lists, a frozen backbone, convolutions
    *("whisper", "voxtral", "wav2vec2", "mimi", "encodec"),  # sound: generate, encode, weight norm
)
GROUPS = [SAMPLE[start : start + 5] for start in range(0, len(SAMPLE), 5)]


def examine(names: tuple[str, ...], out: Path) -> dict[str, Any]:
    command = [sys.executable, architectures.__file__, "--only", ",".join(names), "--out", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())["architectures"]
    return found


@pytest.mark.parametrize("names", GROUPS, ids=",".join)
def test_architectures_are_exact_in_every_mode(names: tuple[str, ...], tmp_path: Path) -> None:
    found = examine(names, tmp_path / "results.json")
    assert found.keys() == set(names)
    bad = {
        f"{name} {mode}": one
        for name, result in found.items()
        for mode, one in result.get("modes", {"any": {"outcome": str(result)}}).items()
        if one["outcome"] not in {architectures.EXACT, architectures.ALIGNMENT}
    }
    assert not bad, json.dumps(bad, indent=1)
    assert all(result["modes"].keys() == architectures.MODES.keys() for result in found.values())


def outcome(change: Any) -> str:
    """How the runner judges a model that was changed after it was made."""
    made = architectures._make("bert")
    assert isinstance(made, tuple)
    model, arguments, _ = made
    model.requires_grad_(False)
    calls = architectures._calls(model, arguments)
    wanted = architectures._observe(model, calls)
    wanted = {label: [one.clone() for one in tensors] for label, tensors in wanted.items()}
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    name = "changed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architectures.MODES, name, ("", lambda dense, endor, kind: change(other)))
        return str(architectures._outcome(name, ROOT, ROOT, type(model), calls, wanted, model, [])["outcome"])


def moved(model: Any) -> Any:
    for parameter in model.parameters():
        memory = torch.empty(parameter.nbytes + 4, dtype=torch.uint8)[4:]
        parameter.data = memory.view(parameter.dtype).view(parameter.shape).copy_(parameter.data)
    return model


def off_by_a_bit(model: Any) -> Any:
    weight = model.get_input_embeddings().weight
    weight.requires_grad_(False).view(torch.int32)[:] ^= 1
    return model


def reads_its_weights_too_late(model: Any) -> Any:
    model.get_output_embeddings().weight = torch.nn.Parameter(torch.empty(0))
    return model


def missing(model: Any) -> Any:
    raise UsageError("this one")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (moved, {architectures.EXACT, architectures.ALIGNMENT}),
        (off_by_a_bit, {architectures.WRONG}),
        (reads_its_weights_too_late, {architectures.FAILS}),
        (missing, {architectures.REFUSED}),
    ],
)
def test_the_runner_tells_outcomes_apart(change: Any, expected: set[str]) -> None:
    assert outcome(change) in expected


def test_small_models_have_small_configs_of_their_architecture() -> None:
    config = tiny.config("llama", 0)
    assert config is not None
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (256, 2, 512)
    assert config.hidden_size // config.num_attention_heads == config.head_dim


def test_the_page_shows_the_results() -> None:
    results = json.loads(architectures.RESULTS.read_text())
    assert architectures.PAGE.read_text() == architectures.page(results)
