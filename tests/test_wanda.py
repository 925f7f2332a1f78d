"""Wanda: the masks are those of the published method, block by block; what has none is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pyendor import cli, dtypes, prune
from pyendor.errors import UsageError
from pyendor.prune import Inputs, Options

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import pyendor.torch  # noqa: E402
from pyendor import wanda  # noqa: E402
from pyendor.torch_bytes import to_bytes  # noqa: E402
from pyendor.wanda import Calibration  # noqa: E402

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Weights that are pruned without structure are half zeros.",
    "Half of what crosses the link need not.",
    "A third sentence, of another length, with a comma or two, and an end.",
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def published(weight: Any, squares: Any, sparsity: float) -> Any:
    """The weight as the code of the paper's authors prunes it: |W| * ||X||, by rows, a stable sort."""
    metric = weight.float().abs() * squares.float().sqrt().reshape(1, -1)
    order = torch.sort(metric, dim=-1, stable=True)[1]
    mask = torch.zeros_like(metric, dtype=torch.bool)
    mask.scatter_(1, order[:, : int(metric.shape[1] * sparsity)], True)
    return weight.masked_fill(mask, 0)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 40),
    sparsity=st.sampled_from(["0", "0.1", "0.5", "0.7", "1"]),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_scores(rows: int, columns: int, sparsity: str, dtype: str, axis: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kind = dtypes.BY_NAME[dtype]
    # Few different values, so that there are ties.
    weight = torch.randint(-4, 5, (rows, columns), generator=generator).to(getattr(torch, kind.torch))
    squares = torch.randint(0, 4, (columns,), generator=generator).float() ** 2
    stored = weight.T.contiguous() if axis == 0 else weight
    inputs = Inputs(squares.sqrt().numpy(), axis)
    data = to_bytes(stored)
    pruned = prune.prune_bytes(data, kind, tuple(stored.shape), float(sparsity), "row", inputs)
    found = torch.from_numpy(pruned).view(weight.dtype).reshape(stored.shape)
    assert (found.T if axis == 0 else found).equal(published(weight, squares, float(sparsity)))


def test_over_a_tensor_and_of_what_is_no_number() -> None:
    weights = np.array([[1, 2, 3], [4, 5, -0.0]], np.float32)
    norms = np.array([100, 1, 1], np.float32)
    kept = prune.prune_bytes(
        weights.view(np.uint8).reshape(-1), dtypes.BY_NAME["F32"], (2, 3), 0.5, "tensor", Inputs(norms)
    )
    assert kept.view(np.float32).tolist() == [1, 0, 0, 4, 5, 0]
    weights = np.array([[np.nan, -np.nan, np.inf, 1]], np.float32)
    norms = np.array([1, 1, 0, 1], np.float32)
    kept = prune.prune_bytes(
        weights.view(np.uint8).reshape(-1), dtypes.BY_NAME["F32"], (1, 4), 0.25, "row", Inputs(norms)
    )
    assert kept.view(np.uint32).tolist() == [*weights.view(np.uint32)[0, :3], 0]
    with pytest.raises(UsageError, match="4 inputs"):
        prune.prune_bytes(np.zeros(12, np.uint8), dtypes.BY_NAME["F32"], (1, 3), 0.5, "row", Inputs(norms))


@pytest.fixture(scope="module")
def vocabulary(minilm: Path) -> list[Path]:
    """The files of a tokenizer that works."""
    return [minilm / name for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]


SIZE = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS: dict[str, tuple[str, Any]] = {
    "llama": (
        "LlamaForCausalLM",
        lambda: transformers.LlamaConfig(**SIZE, intermediate_size=64, num_key_value_heads=2),
    ),
    # Masks differ from layer to layer.
    "gemma": (
        "Gemma2ForCausalLM",
        lambda: transformers.Gemma2Config(
            **SIZE, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=4
        ),
    ),
    "opt": (
        "OPTForCausalLM",
        lambda: transformers.OPTConfig(
            **SIZE, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64
        ),
    ),
    # Matrices are stored transposed.
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(vocab_size=30522, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    ),
}


def saved(kind: str, path: Path, vocabulary: list[Path]) -> Path:
    torch.manual_seed(20240617)
    name, config = MODELS[kind]
    getattr(transformers, name)(config()).save_pretrained(path)
    for file in vocabulary:
        shutil.copy(file, path)
    return path


def linears(block: Any) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    return {name: one for name, one in block.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}


def sums_of_squares(model: Any, block: Any, samples: list[Any]) -> dict[str, Any]:
    """Of the inputs of all linear layers of a block, over all tokens."""
    squares: dict[str, Any] = {}

    def observer(name: str) -> Any:
        def observe(_: Any, inputs: Any, __: Any) -> None:
            columns = inputs[0].reshape(-1, inputs[0].shape[-1]).t().float()
            squares[name] = squares.get(name, 0) + torch.norm(columns, p=2, dim=1) ** 2

        return observe

    hooks = [one.register_forward_hook(observer(name)) for name, one in linears(block).items()]
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    for hook in hooks:
        hook.remove()
    return squares


def check(source: Path, pruned: Path, blocks: str, sparsity: float, texts: list[str]) -> int:
    """Holds every block against the published formula, with the blocks before it pruned; counts elements."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    after = transformers.AutoModel.from_pretrained(pruned, dtype=torch.float32)
    model = transformers.AutoModel.from_pretrained(source, dtype=torch.float32)
    count = 0
    for number, block in enumerate(model.get_submodule(blocks)):
        squares = sums_of_squares(model, block, [tokenizer(text, return_tensors="pt") for text in texts])
        for name, module in linears(block).items():
            found = after.get_submodule(f"{blocks}.{number}.{name}").weight.data
            transposed = not isinstance(module, torch.nn.Linear)
            weight = module.weight.data.T if transposed else module.weight.data
            wanted = published(weight, squares[name], sparsity)
            assert (found.T if transposed else found).equal(wanted), (number, name)
            count += wanted.numel()
        block.load_state_dict(after.get_submodule(f"{blocks}.{number}").state_dict())
    return count


def run(source: Path, target: Path, options: Options, texts: list[str] = TEXTS) -> prune.Outcome:
    inputs = wanda.collect(source, options, Calibration(texts))
    return prune.prune(source, target, options, inputs=inputs)


@pytest.mark.parametrize(
    ("kind", "blocks"), [("llama", "layers"), ("gemma", "layers"), ("opt", "decoder.layers"), ("gpt2", "h")]
)
def test_the_published_method(kind: str, blocks: str, vocabulary: list[Path], tmp_path: Path) -> None:
    source = saved(kind, tmp_path / "x", vocabulary)
    outcome = run(source, tmp_path / "y", Options(0.5, "row"))
    assert check(source, tmp_path / "y", blocks, 0.5, TEXTS) == outcome.numel
    assert outcome.zeros == outcome.numel // 2


def test_copies_of_the_model_are_let_alone(vocabulary: list[Path], tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "x", vocabulary)
    options = Options(0.5, "row")
    wanted = wanda.collect(source, options, Calibration(TEXTS))
    other = pyendor.torch.load_file(source / "model.safetensors")
    from safetensors.torch import save_file

    save_file({name: tensor * 3 for name, tensor in other.items()}, source / "model.tuned.safetensors")
    found = wanda.collect(source, options, Calibration(TEXTS))
    assert found.keys() == wanted.keys()
    assert all((found[name].norms == one.norms).all() for name, one in wanted.items())


def test_a_trained_model_through_the_command(minilm: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(TEXTS) + "\n\n")
    arguments = ["prune", str(minilm), str(tmp_path / "y"), "--method", "wanda", "--calibration", str(text)]
    done = CliRunner().invoke(cli.app, [*arguments, "--sparsity", "0.6", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert len(said["tensors"]) == 36
    assert said["sparsity"] == pytest.approx(0.6, abs=0.002)
    assert check(minilm, tmp_path / "y", "encoder.layer", 0.6, TEXTS) == said["numel"]
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 2
    assert "exists" in again.output


def test_one_block_is_in_memory(
    vocabulary: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved("llama", tmp_path / "x", vocabulary)
    there: list[set[str]] = []
    chain = wanda._Chain.run

    def spy(self: Any, model: Any, goal: str, sample: Any) -> Any:
        blocks = model.blocks.items()
        filled = {name for name, one in blocks if any(t.device.type != "meta" for t in one.parameters())}
        there.append(filled)
        assert filled == {goal}
        return chain(self, model, goal, sample)

    monkeypatch.setattr(wanda._Chain, "run", spy)
    run(source, tmp_path / "y", Options(0.5, "row"))
    assert len(there) == 3 * 2 * len(TEXTS)


def test_conversion_comes_first(vocabulary: list[Path], tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "x", vocabulary)
    outcome = run(source, tmp_path / "y", Options(0.5, "row", dtype="bf16"))
    assert outcome.zeros == outcome.numel // 2
    loaded = pyendor.torch.load_file(tmp_path / "y" / "model.safetensors")
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}


def test_what_is_refused(minilm: Path, vocabulary: list[Path], tmp_path: Path) -> None:
    options = Options(0.5, "row")
    source = saved("llama", tmp_path / "x", vocabulary)
    with pytest.raises(UsageError, match="in no numbered layer"):
        wanda.collect(source, Options(include=["*embed_tokens*"]), Calibration(TEXTS))
    with pytest.raises(UsageError, match="is a file"):
        wanda.collect(source / "model.safetensors", options, Calibration(TEXTS))
    with pytest.raises(UsageError, match="no tokens"):
        wanda.collect(source, options, Calibration([]))
    for file in vocabulary:
        (source / file.name).unlink()
    with pytest.raises(UsageError, match="tokenizer"):
        wanda.collect(source, options, Calibration(TEXTS))
    t5 = transformers.T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(UsageError, match="encoder and decoder"):
        wanda.collect(tmp_path / "t5", options, Calibration(TEXTS))
    with pytest.raises(UsageError, match="nothing is known of the inputs"):
        prune.prune(minilm, tmp_path / "y", options, inputs={})
    assert not (tmp_path / "y").exists()


def test_experts(vocabulary: list[Path], tmp_path: Path) -> None:
    """Where transformers keeps them apart they are pruned; where it fuses them that is said."""
    config = transformers.MixtralConfig(
        **SIZE, intermediate_size=64, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=1
    )
    torch.manual_seed(20240617)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "x")
    for file in vocabulary:
        shutil.copy(file, tmp_path / "x")
    options = Options(0.5, "row")
    if int(transformers.__version__.partition(".")[0]) >= 5:
        with pytest.raises(UsageError, match=r"experts.*llm-compressor"):
            run(tmp_path / "x", tmp_path / "y", options)
        return
    outcome = run(tmp_path / "x", tmp_path / "y", options, TEXTS[:1])
    assert outcome.zeros == outcome.numel // 2


def test_calibration_files(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("\n".join(str(number) for number in range(100)) + "\n  \n")
    assert Calibration.from_file(file, 4).texts == ["0", "25", "50", "75"]
    assert len(Calibration.from_file(file).texts) == 100
    for data, what in ((b"\n \n", "no lines"), (b"\xff\xfe", "UTF-8")):
        file.write_bytes(data)
        with pytest.raises(UsageError, match=what):
            Calibration.from_file(file)


@pytest.mark.parametrize("arguments", [["--method", "wanda"], ["--calibration", "x"]])
def test_the_command_wants_both(minilm: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["prune", str(minilm), str(tmp_path / "x"), *arguments])
    assert done.exit_code == 2
    assert "--calibration" in done.output


def test_the_table_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows what was measured; measuring a part of it anew gives the same."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quality

    assert quality.page() == quality.PAGE.read_text("utf-8")
    published = json.loads(quality.RESULTS.read_text("utf-8"))["rows"]
    by_method = {row["method"]: row["mean"] for row in published if row["sparsity"] == 0.6}
    assert by_method["Wanda"] > by_method["magnitude over each tensor"]
    for row in quality.measure((0.6,), 64):
        assert row["mean"] == pytest.approx(by_method[row["method"]], abs=0.03)
