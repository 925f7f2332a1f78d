"""Changes of models whose weights stay encoded: adapters of PEFT, and embeddings that are resized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import pyendor.transformers  # noqa: E402
from pyendor.errors import UsageError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

IDS = torch.tensor([[1, 5, 2, 9]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(torch.rand_like(parameter) < 0.5)
    path = tmp_path_factory.mktemp("peft") / "model"
    pyendor.transformers.save_pretrained(model, path)
    return path


def adapted(checkpoint: Path, *, keep_compressed: bool, dora: bool) -> Any:
    model = pyendor.transformers.from_pretrained(checkpoint, keep_compressed=keep_compressed)
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=4, use_dora=dora, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def state(model: Any) -> dict[str, Any]:
    return {
        name: (tensor.decode() if isinstance(tensor, EndorTensor) else tensor).clone()
        for name, tensor in model.state_dict().items()
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def merge_adapter(model: Any) -> Any:
    model.merge_adapter()
    return model


def unmerge_adapter(model: Any) -> Any:
    model.merge_adapter()
    model.unmerge_adapter()
    return model


MERGES = {
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "safe_merge": lambda model: model.merge_and_unload(safe_merge=True),
    "merge_adapter": merge_adapter,
    "unmerge_adapter": unmerge_adapter,
}


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("merge", MERGES.values(), ids=list(MERGES))
def test_merging_gives_the_dense_merge(checkpoint: Path, merge: Any, dora: bool) -> None:
    base = state(pyendor.transformers.from_pretrained(checkpoint))
    models = [merge(adapted(checkpoint, keep_compressed=keep, dora=dora)) for keep in (False, True)]
    states = [state(model) for model in models]
    assert same(*states)
    names = [name for name in states[0] if name.endswith(("q_proj.weight", "q_proj.base_layer.weight"))]
    assert len(names) == 1
    if merge is not unmerge_adapter:
        assert not torch.equal(states[0][names[0]], base["model.layers.0.self_attn.q_proj.weight"])
    assert sum(isinstance(parameter, EndorTensor) for parameter in models[1].parameters()) >= 7
    with torch.no_grad():
        assert torch.equal(models[0](IDS).logits, models[1](IDS).logits)


def test_a_merged_model_is_saved_merged(checkpoint: Path, tmp_path: Path) -> None:
    merged = adapted(checkpoint, keep_compressed=True, dora=False).merge_and_unload()
    pyendor.transformers.save_pretrained(merged, tmp_path / "merged")
    assert same(state(pyendor.transformers.from_pretrained(tmp_path / "merged")), state(merged))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_resized(checkpoint: Path, tied: bool) -> None:
    """What was there stays; what is new comes from the same random numbers."""
    resized = []
    for keep in (False, True):
        model = pyendor.transformers.from_pretrained(checkpoint, keep_compressed=keep)
        if tied:
            model.config.tie_word_embeddings = True
            model.lm_head.weight = model.get_input_embeddings().weight
        torch.manual_seed(2)
        model.resize_token_embeddings(80)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        resized.append(model)
    assert same(*map(state, resized))
    with torch.no_grad():
        assert torch.equal(resized[0](IDS + 70).logits, resized[1](IDS + 70).logits)


def test_adapters_are_trained_and_saved(checkpoint: Path, tmp_path: Path) -> None:
    """What is under them does not change; training that itself is refused."""
    trained = []
    for keep in (False, True):
        model = adapted(checkpoint, keep_compressed=keep, dora=False)
        before = state(model.get_base_model())
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 0.01)
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        model.save_pretrained(tmp_path / str(keep))
        trained.append(state(model))
        after = state(model.get_base_model())
        assert any(not torch.equal(before[name], after[name]) for name in before if "lora" in name)
        assert all(torch.equal(before[name], after[name]) for name in before if "lora" not in name)
    assert same(*trained)
    base = pyendor.transformers.from_pretrained(checkpoint, keep_compressed=True)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "True"))
    assert same(state(loaded), trained[1])
    base.requires_grad_(True)
    loaded(input_ids=IDS, labels=IDS).loss.backward()
    with pytest.raises(UsageError, match="LoRA"):
        torch.optim.SGD(loaded.parameters(), 0.1).step()
