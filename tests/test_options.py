"""``from_pretrained`` takes what that of transformers takes, and does with it what that does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import pyendor.transformers as plugin  # noqa: E402
from pyendor import convert  # noqa: E402
from pyendor.errors import UsageError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402
from pyendor.transformers import EndorConfig  # noqa: E402

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
MODERN = int(transformers.__version__.partition(".")[0]) >= 5


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense checkpoint, also in the folder ``sub`` and as variant ``fp16``; and the Endor form of each."""
    root = tmp_path_factory.mktemp("options")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**SIZES, vocab_size=64)
    model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data[parameter.abs() < parameter.abs().median()] = 0
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(root / "dense", max_shard_size="20KB")
    model.half().save_pretrained(root / "half", variant="fp16")
    for name in ("model.fp16.safetensors",):
        shutil.copy(root / "half" / name, root / "dense" / name)
    for name in ("dense", "endor"):
        (root / name).mkdir(exist_ok=True)
    shutil.rmtree(root / "endor")
    convert.compress(root / "dense", root / "endor")
    for name in ("dense", "endor"):
        shutil.copytree(root / name, root / "outer" / name / "sub")
    return root / "dense", root / "endor"


def described(model: Any) -> dict[str, Any]:
    """What a config says, without where it was read."""
    members = model.config.to_dict() | {"_name_or_path": ""}
    return {name: str(value) for name, value in members.items()}


def outcome(load: Callable[..., Any], path: Any, *args: Any, **options: Any) -> tuple[Any, Exception | None]:
    try:
        return load(path, *args, **options), None
    except Exception as error:
        return None, error


def check(places: tuple[Path, Path], *args: Any, kind: Any = None, **options: Any) -> None:
    """That an option has the effect on the dense and the Endor checkpoint that it has in transformers."""
    kind = kind or transformers.LlamaForCausalLM
    stock, failed = outcome(kind.from_pretrained, places[0], *args, **options)
    given = {} if kind is transformers.LlamaForCausalLM else {"model_class": kind}
    for path in places:
        ours, error = outcome(plugin.from_pretrained, path, *args, **given, strict=False, **options)
        if failed is not None:
            assert isinstance(error, type(failed)), error
            continue
        if error is not None:
            raise error
        if options.get("output_loading_info"):
            assert ours[1].keys() == stock[1].keys()
            same_state(ours[0], stock[0])
        else:
            same_state(ours, stock)


def same_state(ours: Any, stock: Any) -> None:
    assert type(ours).__name__ == type(stock).__name__
    assert described(ours) == described(stock)
    assert ours.training == stock.training
    found, wanted = ours.state_dict(), stock.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].device) == (tensor.dtype, tensor.device), name
        if tensor.device.type != "meta" and "score" not in name:  # a new head is random
            assert found[name].equal(tensor), name
    if stock.can_generate():
        assert ours.generation_config.to_dict() == stock.generation_config.to_dict()
    assert getattr(ours, "hf_device_map", None) == getattr(stock, "hf_device_map", None)
    assert getattr(ours, "hf_quantizer", None) is None


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "torch_dtype": {"torch_dtype": torch.float16},
    "torch_dtype-text": {"torch_dtype": "float16"},
    "torch_dtype-auto": {"torch_dtype": "auto"},
    "dtype": {"dtype": torch.float32},
    "dtype-text": {"dtype": "float32"},
    "dtype-auto": {"dtype": "auto"},
    "dtype-none": {"dtype": None},
    "dtype-both": {"dtype": torch.float16, "torch_dtype": torch.float32},
    "dtype-unknown": {"dtype": "nonsense"},
    "use_cache": {"use_cache": False},
    "pad_token_id": {"pad_token_id": 3},
    "output_hidden_states": {"output_hidden_states": True},
    "output_attentions": {"output_attentions": True, "attn_implementation": "eager"},
    "num_labels": {"num_labels": 5},
    "several": {"use_cache": False, "pad_token_id": 1, "torch_dtype": torch.float16},
    "attn_implementation": {"attn_implementation": "eager"},
    "attn_implementation-unknown": {"attn_implementation": "nonsense"},
    "variant": {"variant": "fp16"},
    "variant-missing": {"variant": "fp8"},
    "output_loading_info": {"output_loading_info": True},
    "ignore_mismatched_sizes": {"ignore_mismatched_sizes": True},
    "generation_config": {"generation_config": transformers.GenerationConfig(max_new_tokens=3)},
    "device_map": {"device_map": "cpu"},
    "device_map-auto": {"device_map": "auto", "max_memory": {"cpu": "1GB"}},
    "device_map-unknown": {"device_map": "nonsense"},
    "trust_remote_code": {"trust_remote_code": True},
    "trust_remote_code-not": {"trust_remote_code": False},
    "use_safetensors": {"use_safetensors": True},
    "use_safetensors-not": {"use_safetensors": False},
    "key_mapping": {"key_mapping": {"^model.norm": "model.norm"}},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "local_files_only": {"local_files_only": True, "token": None, "cache_dir": None, "force_download": False},
    "revision": {"revision": "main"},
    "return_unused_kwargs": {"return_unused_kwargs": True},
    "unknown": {"nonsense": 1},
    "state_dict": {"state_dict": {}},
    "tp_plan": {"tp_plan": "nonsense"},
    "gguf_file": {"gguf_file": "none.gguf"},
    "quantization_config-unknown": {"quantization_config": {"quant_method": "nonsense"}},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(places: tuple[Path, Path], option: str) -> None:
    if option == "use_safetensors-not":  # there is no pickle
        with pytest.raises(OSError, match="no file named"):
            plugin.from_pretrained(places[1], use_safetensors=False)
    check(places, **OPTIONS[option])


def test_subfolder(places: tuple[Path, Path]) -> None:
    outer = places[0].parent / "outer"
    check((outer / "dense", outer / "endor"), subfolder="sub")
    check((outer / "dense", outer / "endor"), subfolder="sub", variant="fp16", use_cache=False)
    check((outer / "dense", outer / "endor"))  # without it there is nothing


def test_configs(places: tuple[Path, Path], tmp_path: Path) -> None:
    dense, endor = places
    config = transformers.AutoConfig.from_pretrained(dense)
    config.use_cache = False
    check(places, config=config)
    check(places, config=str(dense))
    check(places, config=dense, use_cache=False)
    check(places, config={"model_type": "llama"})
    check(places, config=config, pad_token_id=1)  # with a config, members are for the model
    # The config of the Endor checkpoint, and the one that is kept beside it.
    wanted = transformers.LlamaForCausalLM.from_pretrained(dense)
    same_state(plugin.from_pretrained(endor, config=transformers.AutoConfig.from_pretrained(endor)), wanted)
    same_state(plugin.from_pretrained(endor, config=str(endor)), wanted)
    same_state(plugin.from_pretrained(endor, config=endor / "config.dense.json"), wanted)
    kept = plugin.from_pretrained(endor, config=config, keep_compressed=True)
    assert any(isinstance(one, EndorTensor) for one in kept.parameters())
    # Given a config, none is needed beside the weights.
    shutil.copytree(endor, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    found = plugin.from_pretrained(
        tmp_path / "bare", config=config, model_class=transformers.LlamaForCausalLM
    )
    assert found.state_dict().keys() == wanted.state_dict().keys()


def test_a_state_dict(places: tuple[Path, Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(places[0])
    state = transformers.LlamaForCausalLM.from_pretrained(places[0]).state_dict()
    stock = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=dict(state))
    same_state(plugin.from_pretrained(None, config=config, state_dict=dict(state)), stock)


def test_offloading_to_disk(places: tuple[Path, Path], tmp_path: Path) -> None:
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    where |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    check(places, device_map=where, offload_folder=tmp_path / "x", offload_buffers=True)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"])
def test_auto_classes(places: tuple[Path, Path], kind: str) -> None:
    auto = getattr(transformers, kind)
    check(places, kind=auto)
    check(places, kind=auto, use_cache=False, num_labels=4, code_revision="main")
    check(places, kind=auto, torch_dtype=torch.float16, config=str(places[0]))


def test_positional_arguments(places: tuple[Path, Path]) -> None:
    class Scaled(transformers.LlamaForCausalLM):  # type: ignore[name-defined,misc]
        def __init__(self, config: Any, scale: int = 1, *, shift: int = 0) -> None:
            super().__init__(config)
            self.given = (scale, shift)

    for path in places:
        model = plugin.from_pretrained(path, 3, model_class=Scaled, shift=4)
        assert model.given == (3, 4)
    check(places, 3)  # one too many


def test_endor_config_among_the_options(places: tuple[Path, Path]) -> None:
    for path in places:
        model = plugin.from_pretrained(path, quantization_config=EndorConfig(keep_compressed=True))
        assert any(isinstance(one, EndorTensor) for one in model.parameters())
        model = plugin.from_pretrained(
            path, quantization_config=EndorConfig(keep_compressed=True), use_cache=False, dtype=torch.float16
        )
        assert any(isinstance(one, EndorTensor) for one in model.parameters())
        assert (model.config.use_cache, model.dtype) == (False, torch.float16)


def test_another_quantizer_gets_the_dense_model(places: tuple[Path, Path]) -> None:
    from transformers.quantizers import auto, base
    from transformers.utils.quantization_config import QuantizationConfigMixin

    class Config(QuantizationConfigMixin):  # type: ignore[misc]
        def __init__(self, quant_method: str = "test-halves", **_: Any) -> None:
            self.quant_method = quant_method

    class Halves(base.HfQuantizer):  # type: ignore[misc]
        requires_calibration = False
        is_trainable = False

        def is_serializable(self, *_: Any, **__: Any) -> bool:
            return False

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            return model

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            for parameter in model.parameters():
                parameter.data /= 2
            return model

    auto.AUTO_QUANTIZATION_CONFIG_MAPPING["test-halves"] = Config
    auto.AUTO_QUANTIZER_MAPPING["test-halves"] = Halves
    try:
        stock = transformers.LlamaForCausalLM.from_pretrained(
            places[0], quantization_config=Config(), use_cache=False
        )
        for path in places:
            config = transformers.AutoConfig.from_pretrained(path)
            config.use_cache = False
            for options in ({"use_cache": False}, {"config": config}):
                found = plugin.from_pretrained(path, quantization_config=Config(), **options)
                assert found.config.quantization_config.quant_method == "test-halves"
                assert not found.config.use_cache
                for name, tensor in stock.state_dict().items():
                    assert found.state_dict()[name].equal(tensor)
        with pytest.raises(UsageError, match="keep_compressed and verify"):
            plugin.from_pretrained(places[1], quantization_config=Config(), verify=True)
    finally:
        del auto.AUTO_QUANTIZATION_CONFIG_MAPPING["test-halves"], auto.AUTO_QUANTIZER_MAPPING["test-halves"]


# Directories to save to


def tiny(seed: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES, vocab_size=64)
    return transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)


def test_saving_beside_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model"
    (path / "extra").mkdir(parents=True)
    for name in ("tokenizer.json", "extra/note.txt"):
        (path / name).write_text("{}")
    (path / "config.json").write_text('{"model_type": "stale"}')
    model = tiny()
    done = plugin.save_pretrained(model, path)
    assert done is not None
    assert done.destination == path
    assert (path / "tokenizer.json").read_text() == (path / "extra" / "note.txt").read_text() == "{}"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]
    for name, tensor in plugin.from_pretrained(path).state_dict().items():
        assert tensor.equal(model.state_dict()[name])
    with pytest.raises(UsageError, match="exists and holds weights"):
        plugin.save_pretrained(tiny(3), path)
    # Other weights take their place, and what else there is stays.
    plugin.save_pretrained(tiny(3), path, force=True, max_shard_size="20KB")
    assert not (path / "model.endor.safetensors").exists()
    assert (path / "tokenizer.json").read_text() == (path / "extra" / "note.txt").read_text() == "{}"
    found = plugin.from_pretrained(path).state_dict()
    assert found["lm_head.weight"].equal(tiny(3).lm_head.weight)
    for name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"x")
        with pytest.raises(UsageError, match="holds other weights"):
            plugin.save_pretrained(model, tmp_path / name, force=True)
        assert (tmp_path / name / name).read_bytes() == b"x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        plugin.save_pretrained(model, tmp_path / "file", force=True)


def test_saving_into_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    plugin.save_pretrained(tiny(), tmp_path / "x")
    assert plugin.from_pretrained(tmp_path / "x") is not None


def test_only_the_main_process_saves(tmp_path: Path) -> None:
    assert plugin.save_pretrained(tiny(), tmp_path / "x", is_main_process=False) is None
    assert list(tmp_path.iterdir()) == []
    assert plugin.save_pretrained(tiny(), tmp_path / "x", is_main_process=True) is not None
    assert plugin.from_pretrained(tmp_path / "x") is not None


# What a config may say


def with_config(source: Path, target: Path, **members: Any) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **members}))
    return target


HOSTILE: list[dict[str, Any]] = [
    {"architectures": ["AutoTokenizer"]},
    {"architectures": ["pipeline"]},
    {"architectures": ["PreTrainedModel"]},
    {"architectures": ["OPTForCausalLM"]},
    {"architectures": [7, None, ["LlamaForCausalLM"]]},
    {"architectures": 7},
    {"architectures": {"LlamaForCausalLM": 1}},
    {"dtype": "load"},
    {"torch_dtype": "nn", "dtype": None},
    {"dtype": 7},
    {"dtype": "os.system"},
    {"dtype": ["float32"]},
    {"model_type": "nonsense"},
    {"model_type": 7},
    {"model_type": None},
    {"model_type": ["llama"]},
    {"hidden_size": "x"},
    {"hidden_size": -5},
    {"hidden_size": 2**70},
    {"hidden_size": None},
    {"num_attention_heads": 0},
    {"num_hidden_layers": -1},
    {"num_hidden_layers": "2"},
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 1.5},
    {"vocab_size": 1e400},
    {"rope_parameters": {"rope_type": "nonsense"}},
    {"rope_parameters": 7},
    {"hidden_act": "nonsense"},
    {"auto_map": 7},
    {"auto_map": {"AutoModelForCausalLM": 7}, "architectures": ["X"]},
    {"auto_map": {"AutoTokenizer": "x.Y", "pipeline": "x.Y", "AutoConfig": "x.Y"}, "model_type": "nonsense"},
]


@pytest.mark.parametrize("members", HOSTILE, ids=str)
def test_hostile_configs(places: tuple[Path, Path], tmp_path: Path, members: dict[str, Any]) -> None:
    from pyendor.offload import close, offload_model

    # Some of them describe the model after all, as far as these can tell.
    right = transformers.LlamaForCausalLM.from_pretrained(places[0]).state_dict()
    for kind, source in zip(("dense", "endor"), places, strict=True):
        path = with_config(source, tmp_path / kind, **members)
        try:
            model = plugin.from_pretrained(path)
        except UsageError:
            pass
        else:
            assert all(tensor.equal(right[name]) for name, tensor in model.state_dict().items())
            assert model.state_dict().keys() == right.keys()
        try:
            model = offload_model(path)
        except UsageError:
            continue
        assert type(model) is transformers.LlamaForCausalLM
        close(model)


@pytest.mark.parametrize("layers", [1, 0])
@pytest.mark.parametrize("members", [{}, {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}])
def test_offloading_refuses_weights_that_are_left_over(
    places: tuple[Path, Path], tmp_path: Path, layers: int, members: dict[str, Any]
) -> None:
    from pyendor.offload import close, offload_model

    for kind, source in zip(("dense", "endor"), places, strict=True):
        path = with_config(source, tmp_path / kind, num_hidden_layers=layers, **members)
        for load in (plugin.from_pretrained, offload_model):
            with pytest.raises(UsageError, match=r"it has besides: 'model\.layers\.[01]\."):
                load(path)
        model = offload_model(path, strict=False)
        assert len(model.model.layers) == layers
        close(model)
        more = with_config(source, tmp_path / f"{kind}-more", num_hidden_layers=3)
        for load in (plugin.from_pretrained, offload_model):
            with pytest.raises(UsageError, match=r"it lacks: 'model\.layers\.2\."):
                load(more)


def test_what_models_ignore_is_no_surplus(places: tuple[Path, Path], tmp_path: Path) -> None:
    import safetensors.torch

    from pyendor.offload import close, offload_model

    shutil.copytree(places[0], tmp_path / "x")
    shard = next((tmp_path / "x").glob("model-00001-*.safetensors"))
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    safetensors.torch.save_file(safetensors.torch.load_file(shard) | old, shard, {"format": "pt"})
    assert plugin.from_pretrained(tmp_path / "x") is not None
    close(offload_model(tmp_path / "x"))
    safetensors.torch.save_file(safetensors.torch.load_file(shard) | {"x": torch.ones(8)}, shard)
    for load in (plugin.from_pretrained, offload_model):
        with pytest.raises(UsageError, match="it has besides: 'x'"):
            load(tmp_path / "x")


def test_weights_that_no_checkpoint_holds_are_computed(tmp_path: Path) -> None:
    from pyendor.offload import close, offload_model

    config = transformers.MarianConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        pad_token_id=0, decoder_start_token_id=0, eos_token_id=1, forced_eos_token_id=1,
    )  # fmt: skip
    transformers.MarianMTModel(config).eval().save_pretrained(tmp_path / "x")
    convert.compress(tmp_path / "x", tmp_path / "y", min_saving=None)
    reference = transformers.MarianMTModel.from_pretrained(tmp_path / "x")
    ids = torch.arange(2, 10).reshape(1, 8)
    for path in (tmp_path / "x", tmp_path / "y"):
        model = offload_model(path)
        with torch.no_grad():
            assert model(ids, decoder_input_ids=ids).logits.equal(
                reference(ids, decoder_input_ids=ids).logits
            )
        close(model)


# Code that comes with a checkpoint

CODE = """
import transformers

class Config(transformers.{config}):
    model_type = "own"

class Model(transformers.{base}):
    config_class = Config
"""
AUTO = {
    "AutoModelForCausalLM": "LlamaForCausalLM",
    "AutoModelForSequenceClassification": "BertForSequenceClassification",
    "AutoModelForTokenClassification": "BertForTokenClassification",
    "AutoModelForSeq2SeqLM": "LlamaForCausalLM",
    "AutoModelForImageTextToText": "LlamaForCausalLM",
    "AutoModel": "LlamaModel",
}


@pytest.mark.parametrize("auto", AUTO)
def test_remote_code(tmp_path: Path, auto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyendor.offload import close, offload_model

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    torch.manual_seed(4)
    kind = getattr(transformers, AUTO[auto])
    model = kind._from_config(kind.config_class(**SIZES, vocab_size=64), dtype=torch.bfloat16).eval()
    source = tmp_path / f"remote_{auto.lower()}"
    model.save_pretrained(source)
    (source / "own.py").write_text(CODE.format(base=AUTO[auto], config=kind.config_class.__name__))
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["Model"]}
    config["auto_map"] = {"AutoConfig": "own.Config", auto: "own.Model"}
    (source / "config.json").write_text(json.dumps(config))
    endor = tmp_path / f"endor_{auto.lower()}"
    convert.compress(source, endor)
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        wanted = model(ids)[0]
        for path in (source, endor):
            found = plugin.from_pretrained(path, trust_remote_code=True)
            assert type(found).__name__ == "Model"
            assert found(ids)[0].equal(wanted)
            with pytest.raises(UsageError, match="trust_remote_code"):
                plugin.from_pretrained(path, trust_remote_code=False)
            with pytest.raises(UsageError, match="trust_remote_code=True"):
                offload_model(path)
            offloaded = offload_model(path, trust_remote_code=True)
            assert type(offloaded).__name__ == "Model"
            assert offloaded(ids)[0].equal(wanted)
            close(offloaded)
