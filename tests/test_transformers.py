"""Transformers loads Endor checkpoints as it loads dense ones, with our plug-in; without it, not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tree

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import pyendor.numpy  # noqa: E402
import pyendor.torch  # noqa: E402
import pyendor.transformers as plugin  # noqa: E402
from pyendor import convert, errors, prune  # noqa: E402
from pyendor.hf import files  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402
from pyendor.transformers import EndorConfig  # noqa: E402

MODERN = int(transformers.__version__.partition(".")[0]) >= 5
IDS = torch.arange(48).reshape(2, 24) * 5 % 256
COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA = {**COMMON, "intermediate_size": 160, "num_key_value_heads": 2}


def make(kind: str) -> Any:
    """A tiny model with random weights."""
    torch.manual_seed(20240617)
    if kind == "opt":
        config = transformers.OPTConfig(**COMMON, ffn_dim=128, word_embed_proj_dim=64)
        return transformers.OPTForCausalLM(config)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    if kind == "tied":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True))
    assert kind == "moe"
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, num_local_experts=4))


KINDS = ["opt", "llama", "tied", "moe"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``KIND/pruned`` and ``KIND/endor`` of every kind, in several files, and ``KIND/one`` in one file."""
    root = tmp_path_factory.mktemp("zoo")
    for kind in KINDS:
        make(kind).bfloat16().save_pretrained(root / kind / "dense", max_shard_size="100KB")
        prune.prune(root / kind / "dense", root / kind / "pruned", prune.Options(sparsity=0.5))
        convert.compress(root / kind / "pruned", root / kind / "endor")
        stock(root / kind / "pruned").save_pretrained(root / kind / "single")
        convert.compress(root / kind / "single", root / kind / "one")
        assert len(list((root / kind / "endor").glob("*.safetensors"))) > 1
        assert len(list((root / kind / "one").glob("*.safetensors"))) == 1
    return root


def stock(path: Path, **options: Any) -> Any:
    options.setdefault("dtype", "auto")
    return transformers.AutoModelForCausalLM.from_pretrained(path, **options)


def logits(model: Any, ids: Any = IDS) -> Any:
    with torch.no_grad():
        return model(ids).logits


def same(one: Any, other: Any) -> bool:
    """Whether tensors have the same bits."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    return one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))


def kept(model: Any) -> list[str]:
    return [name for name, tensor in model.named_parameters() if isinstance(tensor, EndorTensor)]


# Without the plug-in


def test_stock_transformers_stops(compressed: Path) -> None:
    code = """if True:
        import sys, transformers
        for variant in (None, "endor"):
            try:
                transformers.AutoModel.from_pretrained(sys.argv[1], variant=variant)
            except Exception as error:
                print(type(error).__name__, error)
            else:
                print("LOADED")
        print([name for name in sys.modules if name.startswith("pyendor")])
    """
    run = subprocess.run(
        [sys.executable, "-c", code, str(compressed)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "LOADED" not in run.stdout
    assert re.search(r"OSError Error no file named .*model\.safetensors", run.stdout)
    assert "RuntimeError" in run.stdout
    assert "mismatch" in run.stdout
    assert run.stdout.strip().endswith("[]")


def test_the_dense_model_loads(pruned: Path) -> None:
    model = transformers.AutoModel.from_pretrained(pruned)
    weight = model.encoder.layer[0].output.dense.weight
    assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


# Loading


@pytest.mark.parametrize("form", ["endor", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoded_while_loading(zoo: Path, kind: str, form: str) -> None:
    reference = stock(zoo / kind / "pruned")
    model = stock(zoo / kind / form, variant="endor")
    assert type(model) is type(reference)
    assert same(logits(model), logits(reference))
    for name, tensor in reference.state_dict().items():
        assert type(model.state_dict()[name]) is type(tensor)
        assert same(model.state_dict()[name], tensor), name
    # Nothing tells where it came from.
    assert not getattr(model, "is_quantized", False)
    assert getattr(model, "hf_quantizer", None) is None
    configs = [one.config.to_dict() | {"_name_or_path": ""} for one in (model, reference)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("form", ["endor", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_compressed(zoo: Path, kind: str, form: str) -> None:
    reference = stock(zoo / kind / "pruned")
    model = stock(zoo / kind / form, variant="endor", quantization_config=EndorConfig(keep_compressed=True))
    assert same(logits(model), logits(reference))
    pruned = {
        name
        for name, tensor in reference.named_parameters()
        if tensor.ndim >= 2 and (tensor == 0).float().mean() > 0.4
    }
    assert pruned
    assert pruned <= set(kept(model))  # fused experts too
    assert model.hf_quantizer.quantization_config.keep_compressed
    for name, tensor in model.named_parameters():
        assert same(tensor.decode() if name in kept(model) else tensor, reference.get_parameter(name)), name
    tied = reference.get_output_embeddings().weight is reference.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_the_tied_model_is_tied_and_the_moe_fuses(zoo: Path) -> None:
    tied = stock(zoo / "tied" / "endor", variant="endor")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    names = {name for name, _ in stock(zoo / "moe" / "endor", variant="endor").named_parameters()}
    assert any(name.endswith("experts.gate_up_proj") for name in names) == MODERN


def test_a_trained_model(pruned: Path, compressed: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(compressed)
    tokens = tokenizer(["A sentence.", "Another one, somewhat longer."], padding=True, return_tensors="pt")
    reference = transformers.AutoModel.from_pretrained(pruned, dtype="auto")
    with torch.no_grad():
        wanted = reference(**tokens).last_hidden_state
        for keep in (False, True):
            config = EndorConfig(keep_compressed=keep)
            model = transformers.AutoModel.from_pretrained(
                compressed, variant="endor", dtype="auto", quantization_config=config
            )
            assert same(model(**tokens).last_hidden_state, wanted)
            assert len(kept(model)) == (40 if keep else 0)  # 36 matrices, embeddings, pooler
            model = plugin.from_pretrained(compressed, keep_compressed=keep, verify=True)
            assert same(model(**tokens).last_hidden_state, wanted)


def test_it_takes_less_memory(compressed: Path) -> None:
    model = plugin.from_pretrained(compressed, keep_compressed=True)
    dense = sum(tensor.nbytes for tensor in model.parameters())
    held = sum(
        tensor.encoded_nbytes if isinstance(tensor, EndorTensor) else tensor.nbytes
        for tensor in model.parameters()
    )
    assert held < 0.56 * dense


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes(zoo: Path, dtype: Any, keep: bool) -> None:
    for kind in ("llama", "moe"):
        reference = stock(zoo / kind / "pruned", dtype=dtype)
        model = plugin.from_pretrained(zoo / kind / "endor", dtype=dtype, keep_compressed=keep)
        assert {tensor.dtype for tensor in model.parameters()} == {dtype}
        assert same(logits(model), logits(reference))
        assert bool(kept(model)) == keep


def test_the_dtype_of_the_weights_where_the_config_names_none(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "llama" / "one", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    assert stock(tmp_path / "x", variant="endor").dtype == torch.bfloat16


def test_generation(zoo: Path) -> None:
    options = {"max_new_tokens": 6, "do_sample": False}
    wanted = stock(zoo / "llama" / "pruned").generate(IDS[:1], **options)
    model = plugin.from_pretrained(zoo / "llama" / "endor", keep_compressed=True)
    assert model.generate(IDS[:1], **options).equal(wanted)


def test_a_dense_checkpoint_is_encoded_in_memory(zoo: Path) -> None:
    model = plugin.from_pretrained(zoo / "llama" / "pruned", keep_compressed=True)
    assert len(kept(model)) >= 14
    assert same(logits(model), logits(stock(zoo / "llama" / "pruned")))
    model = plugin.from_pretrained(zoo / "llama" / "pruned")
    assert kept(model) == []


# Devices


def device_map(kind: str, where: dict[str, str]) -> dict[str, str]:
    base = "model.decoder" if kind == "opt" else "model"
    with torch.device("meta"):
        model = make(kind)
    names = [f"{base}.{name}" for name, _ in model.get_submodule(base).named_children() if name != "layers"]
    names += [f"{base}.layers.0", f"{base}.layers.1", "lm_head"]
    return {name: where.get(name.removeprefix(f"{base}."), "cpu") for name in names}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", ["endor", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_offload_to_disk(
    zoo: Path, kind: str, form: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = logits(stock(zoo / kind / "pruned"))
    where = device_map(kind, {"layers.1": "disk"})
    options = {"device_map": where, "offload_folder": tmp_path / "folder"}
    model = plugin.from_pretrained(zoo / kind / form, keep_compressed=keep, **options)
    layer = model.get_submodule(next(name for name in where if name.endswith("layers.1")))
    assert {tensor.device.type for tensor in layer.parameters()} == {"meta"}
    written = list((tmp_path / "folder").iterdir()) if (tmp_path / "folder").exists() else []
    if kind == "moe" and MODERN:  # what was fused is in no file yet
        assert sorted(file.name.split(".")[-2] for file in written) == ["down_proj", "gate_up_proj"]
        for file in written:
            with pyendor.torch.safe_open(file) as opened:
                assert opened.get_encoded(file.stem).sparsity > 0.4
    else:
        assert written == []
    for _ in range(2):
        assert same(logits(model), wanted)
    assert bool(kept(model)) == keep


def test_device_maps(zoo: Path) -> None:
    wanted = logits(stock(zoo / "tied" / "pruned"))
    for where in ("cpu", {"": "cpu"}, "auto"):
        for keep in (False, True):
            model = plugin.from_pretrained(zoo / "tied" / "one", device_map=where, keep_compressed=keep)
            assert same(logits(model), wanted)


@pytest.mark.skipif(not MODERN, reason="an option of transformers 5")
def test_files_that_are_not_mapped(zoo: Path) -> None:
    model = plugin.from_pretrained(zoo / "llama" / "endor", disable_mmap=True)
    assert same(logits(model), logits(stock(zoo / "llama" / "pruned")))


# Nothing wrong is taken


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint of one file, its tensors changed."""
    shutil.copytree(source, target)
    tensors = pyendor.torch.load_file(target / "model.endor.safetensors")
    change(tensors)
    pyendor.torch.save_file(tensors, target / "model.endor.safetensors")
    return target


def test_weights_that_are_missing_or_too_many(zoo: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    lacking = rewritten(zoo / "llama" / "one", tmp_path / "a", lambda tensors: tensors.pop(name))
    with pytest.raises(errors.UsageError, match=rf"it lacks: '{name}'"):
        plugin.from_pretrained(lacking)
    assert plugin.from_pretrained(lacking, strict=False) is not None
    more = rewritten(
        zoo / "llama" / "one", tmp_path / "b", lambda tensors: tensors.update(x=torch.zeros(4, 4))
    )
    with pytest.raises(errors.UsageError, match="it has besides: 'x'"):
        plugin.from_pretrained(more)
    with pytest.raises(errors.UsageError, match="it lacks"):
        plugin.from_pretrained(
            zoo / "llama" / "one", model_class=transformers.AutoModelForSequenceClassification
        )


def test_a_weight_of_another_shape(zoo: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    wrong = rewritten(
        zoo / "llama" / "one", tmp_path / "a", lambda tensors: tensors.update({name: tensors[name][:-1]})
    )
    for keep in (False, True):
        with pytest.raises((RuntimeError, errors.UsageError)):
            plugin.from_pretrained(wrong, keep_compressed=keep)


def flip(path: Path, part: str) -> None:
    """Changes a byte of a part of a tensor."""
    with pyendor.numpy.safe_open(path) as opened:
        offsets = opened.get_encoded("model.layers.0.mlp.up_proj.weight").offsets
    data = bytearray(path.read_bytes())
    data[offsets[part] + 5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("keep", [False, True])
def test_damage_is_found(zoo: Path, tmp_path: Path, keep: bool) -> None:
    shutil.copytree(zoo / "llama" / "one", tmp_path / "x")
    flip(tmp_path / "x" / "model.endor.safetensors", "values")
    with pytest.raises(errors.FormatError, match=r"up_proj.*D-2"):
        plugin.from_pretrained(tmp_path / "x", verify=True, keep_compressed=keep)
    flip(tmp_path / "x" / "model.endor.safetensors", "bitmap")
    with pytest.raises(errors.FormatError, match="up_proj"):
        plugin.from_pretrained(tmp_path / "x", keep_compressed=keep)
    # What failed leaves nothing behind.
    assert kept(stock(zoo / "llama" / "one", variant="endor")) == []


def test_lost_metadata_is_found(zoo: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(zoo / "llama" / "one", tmp_path / "x")
    weights = tmp_path / "x" / "model.endor.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})
    with pytest.raises(errors.FormatError, match="metadata"):
        stock(tmp_path / "x", variant="endor")


def test_dense_and_endor_weights_in_one_directory(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "llama" / "one", tmp_path / "x")
    shutil.copy(zoo / "llama" / "single" / "model.safetensors", tmp_path / "x")
    with pytest.raises(errors.FormatError, match="K-5"):
        plugin.from_pretrained(tmp_path / "x")


def test_the_config_of_a_model_that_was_quantized_before() -> None:
    inner = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    config, rest = EndorConfig.from_dict({"inner": inner}, return_unused_kwargs=True, x=1)
    assert (config.quant_method, rest) == ("fp8", {"x": 1})
    given = {"quant_method": "endor", "version": "1.1"}
    config, rest = EndorConfig.from_dict(given, return_unused_kwargs=True, verify=True, x=1)
    assert (config.version, config.verify, config.dequantize, rest) == ("1.1", True, True, {"x": 1})
    with pytest.raises(errors.UnsupportedError, match="'nope'"):
        EndorConfig.from_dict({"inner": {"quant_method": "nope"}})


def test_a_transformers_that_reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(f"{files.REQUIRED}.safe_open")
    with pytest.raises(errors.UnsupportedError, match=transformers.__version__):
        files.install()


# Weights that were quantized before


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in 8-bit floats with scales, as transformers writes it, dense and Endor."""
    root = tmp_path_factory.mktemp("fp8")
    model = make("llama").bfloat16()
    model.save_pretrained(root / "x")
    tensors = pyendor.torch.load_file(root / "x" / "model.safetensors")
    for name in [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]:
        weight = tensors[name].float()
        weight[weight.abs() < weight.abs().median()] = 0
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        blocks = [-(-size // 32) for size in weight.shape]
        tensors[name.replace(".weight", ".weight_scale_inv")] = torch.full(blocks, scale.item())
    from safetensors.torch import save_file

    save_file(tensors, root / "x" / "model.safetensors", {"format": "pt"})
    config = json.loads((root / "x" / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [32, 32],
    }
    (root / "x" / "config.json").write_text(json.dumps(config))
    convert.compress(root / "x", root / "endor")
    return root / "x", root / "endor"


@pytest.mark.skipif(not MODERN, reason="transformers 4 loads 8-bit floats on GPUs alone")
def test_quantized_weights_are_loaded_by_their_own_quantizer(fp8: tuple[Path, Path]) -> None:
    dense, endor = fp8
    config = json.loads((endor / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["inner"]["quant_method"]) == ("endor", "fp8")
    with pyendor.torch.safe_open(endor / "model.endor.safetensors") as opened:
        assert opened.get_encoded("model.layers.0.mlp.up_proj.weight").dtype == torch.float8_e4m3fn
    models = [
        transformers.LlamaForCausalLM.from_pretrained(path, variant=variant, dtype=torch.bfloat16)
        for path, variant in ((dense, None), (endor, "endor"))
    ]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert all(same(states[0][name], states[1][name]) for name in states[0])
    model = plugin.from_pretrained(endor)
    assert model.state_dict().keys() == states[0].keys()


def test_quantized_weights_are_not_kept_encoded(fp8: tuple[Path, Path]) -> None:
    with pytest.raises(errors.UsageError, match="'fp8'"):
        plugin.from_pretrained(fp8[1], keep_compressed=True)


@pytest.mark.parametrize("inner", [{"quant_method": "no-such-method"}, {"bits": 4}, 7])
def test_quantized_in_a_way_that_nobody_knows(zoo: Path, tmp_path: Path, inner: Any) -> None:
    shutil.copytree(zoo / "llama" / "one", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["quantization_config"]["inner"] = inner
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    wanted = inner["quant_method"] if isinstance(inner, dict) and "quant_method" in inner else "quantized"
    with pytest.raises(errors.UnsupportedError, match=wanted):
        stock(tmp_path / "x", variant="endor")


# What others have pruned


def test_what_llm_compressor_leaves(zoo: Path, tmp_path: Path) -> None:
    """A directory as ``oneshot`` and ``save_pretrained(save_compressed=False)`` of it write one."""
    source = tmp_path / "pruned"
    shutil.copytree(zoo / "llama" / "pruned", source)
    recipe = (
        "default_stage:\n  default_modifiers:\n    SparseGPTModifier:\n      sparsity: 0.5\n"
        "      mask_structure: '0:0'\n      targets: [Linear]\n      ignore: [lm_head]\n"
    )
    (source / "recipe.yaml").write_text(recipe)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "tokenizer_config.json").write_text("{}")
    before = tree(source)
    endor = [sys.executable, "-m", "pyendor"]
    subprocess.run([*endor, "compress", source, tmp_path / "endor"], check=True, capture_output=True)
    assert tree(source) == before
    after = tree(tmp_path / "endor")
    for name in ("recipe.yaml", "chat_template.jinja", "tokenizer_config.json", "generation_config.json"):
        assert after[name] == before[name]
    assert same(logits(plugin.from_pretrained(tmp_path / "endor")), logits(stock(source)))
    subprocess.run(
        [*endor, "decompress", tmp_path / "endor", tmp_path / "back"], check=True, capture_output=True
    )
    assert tree(tmp_path / "back") == before


def test_what_older_releases_of_it_leave(zoo: Path, tmp_path: Path) -> None:
    """They say in the config that weights are dense; without the quantizer that is meant it is an error."""
    source = tmp_path / "pruned"
    shutil.copytree(zoo / "llama" / "single", source)
    config = json.loads((source / "config.json").read_text())
    sparsity = {"format": "dense", "global_sparsity": 0.5, "sparsity_structure": "unstructured"}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    (source / "config.json").write_text(json.dumps(config))
    convert.compress(source, tmp_path / "endor")
    convert.decompress(tmp_path / "endor", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)
    outcomes = []
    for path, variant in ((source, None), (tmp_path / "endor", "endor")):
        try:
            outcomes.append(logits(stock(path, variant=variant)).tolist())
        except ImportError as error:
            assert "compressed-tensors" in str(error)
            outcomes.append("not installed")
    assert outcomes[0] == outcomes[1]


# Saving


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_as_endor(zoo: Path, kind: str, keep: bool, tmp_path: Path) -> None:
    model = plugin.from_pretrained(zoo / kind / "one", keep_compressed=keep)
    done = plugin.save_pretrained(model, tmp_path / "saved")
    assert done.encoded
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    weights = "model.endor.safetensors"
    assert (tmp_path / "saved" / weights).read_bytes() == (zoo / kind / "one" / weights).read_bytes()
    assert same(logits(plugin.from_pretrained(tmp_path / "saved")), logits(model))
    with pytest.raises(errors.UsageError, match="exists"):
        plugin.save_pretrained(model, tmp_path / "saved")
    before = tree(tmp_path / "saved")
    plugin.save_pretrained(model, tmp_path / "saved", force=True)
    assert tree(tmp_path / "saved") == before
    plugin.save_pretrained(model, tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert same(logits(plugin.from_pretrained(tmp_path / "shards")), logits(model))


def test_stock_saving(zoo: Path, tmp_path: Path) -> None:
    plugin.from_pretrained(zoo / "llama" / "one").save_pretrained(tmp_path / "dense")
    single = zoo / "llama" / "single"
    assert (tmp_path / "dense" / "model.safetensors").read_bytes() == (
        single / "model.safetensors"
    ).read_bytes()
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    model = plugin.from_pretrained(zoo / "llama" / "one", keep_compressed=True)
    with pytest.raises(errors.UsageError, match=r"pyendor\.transformers\.save_pretrained"):
        model.save_pretrained(tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.safetensors"))
    with pytest.raises(errors.UsageError, match="push_to_hub"):
        plugin.save_pretrained(model, tmp_path / "kept", push_to_hub=True)
