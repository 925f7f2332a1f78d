"""Directories with several copies of a model: every reader takes the one that transformers takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch.distributed.checkpoint as dcp  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import pyendor.transformers as plugin  # noqa: E402
from pyendor import convert, selection  # noqa: E402
from pyendor.accelerate import EncodedWeights  # noqa: E402
from pyendor.distributed import EndorReader  # noqa: E402
from pyendor.errors import FormatError, UsageError  # noqa: E402
from pyendor.offload import close, offload_model  # noqa: E402
from pyendor.torch import iter_weights  # noqa: E402

State = dict[str, Any]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES, vocab_size=64)
    made = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data[parameter.abs() < parameter.abs().median()] = 0
    return made


def save(root: Path, seed: int, form: str = "single", variant: str | None = None) -> State:
    """Saves a model, whose weights depend on the seed, beside what is there; its weights."""
    made = model(seed)
    size = {"single": "1GB", "split": "20KB", "other split": "12KB"}[form]
    made.save_pretrained(root.parent / "new", max_shard_size=size, variant=variant)
    shutil.copytree(root.parent / "new", root, dirs_exist_ok=True)
    shutil.rmtree(root.parent / "new")
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def by_iterating(path: Path, variant: str | None) -> State:
    found: State = {}
    for name, tensor in iter_weights(path, variant=variant):
        assert name not in found
        found[name] = tensor
    return found


def by_name(path: Path, variant: str | None) -> State:
    return {
        name: tensor.decode() if hasattr(tensor, "decode") else tensor
        for name, tensor in EncodedWeights(path, variant=variant).items()
    }


def distributed(path: Path, variant: str | None) -> State:
    state = {name: torch.zeros_like(tensor) for name, tensor in model(0).state_dict().items()}
    dcp.load(state, storage_reader=EndorReader(path, variant=variant), no_dist=True)
    return state


def loaded(path: Path, variant: str | None) -> State:
    return dict(plugin.from_pretrained(path, variant=variant).state_dict())


READERS: list[Callable[[Path, str | None], State]] = [by_iterating, by_name, distributed, loaded]
IDS = torch.arange(12).reshape(1, 12) % 64


def reference(state: State) -> Any:
    """The model of these weights."""
    made = model(0)
    made.load_state_dict(state)
    return made.eval()


def check(path: Path, wanted: State, variant: str | None = None) -> None:
    """Every reader gets these weights."""
    for reader in READERS:
        found = reader(path, variant)
        assert found.keys() == wanted.keys(), reader
        assert all(found[name].equal(tensor) for name, tensor in wanted.items()), reader
    with torch.no_grad():
        offloaded = offload_model(path, variant=variant)
        assert offloaded(IDS).logits.equal(reference(wanted)(IDS).logits)
        close(offloaded)


# What is saved in turn, the form and the variant; which of them is read by default.
LAYOUTS = {
    "variant-after": ([("single", None), ("single", "tuned")], 0),
    "variant-before": ([("single", None), ("single", "a")], 0),
    "split-beside-split-variant": ([("split", None), ("split", "fp16")], 0),
    "split-beside-single-variant": ([("split", None), ("single", "fp16")], 0),
    "single-beside-split": ([("split", None), ("single", None)], 1),
}


@pytest.mark.parametrize("kind", ["dense", "endor"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_copy_is_read(tmp_path: Path, layout: str, kind: str) -> None:
    saved, default = LAYOUTS[layout]
    root = tmp_path / "model"
    states = [save(root, seed, form, variant) for seed, (form, variant) in enumerate(saved)]
    stock = transformers.AutoModelForCausalLM.from_pretrained(root).state_dict()
    assert all(stock[name].equal(tensor) for name, tensor in states[default].items())
    if kind == "endor":
        convert.compress(root, tmp_path / "endor")
        root = tmp_path / "endor"
    check(root, states[default])
    for state, (_, variant) in zip(states, saved, strict=True):
        if variant is not None:
            check(root, state, variant)
            if kind == "endor":
                check(root, state, f"endor.{variant}")


@pytest.mark.parametrize("kind", ["dense", "endor"])
def test_a_directory_without_the_default_variant(tmp_path: Path, kind: str) -> None:
    """Stock transformers finds no file then; the message says what to ask for."""
    root = tmp_path / "model"
    state = save(root, 1, "single", "fp16")
    with pytest.raises(OSError, match="no file named"):
        transformers.AutoModelForCausalLM.from_pretrained(root)
    if kind == "endor":
        convert.compress(root, tmp_path / "endor")
        root = tmp_path / "endor"
    for reader in READERS[:2]:
        with pytest.raises(UsageError, match="it has 'fp16': choose with variant="):
            reader(root, None)
        with pytest.raises(UsageError, match="no variant 'fp8'"):
            reader(root, "fp8")
    with pytest.raises(UsageError, match="'fp16': choose"):
        offload_model(root)
    check(root, state, "fp16")


def test_two_splits_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "model"
    save(root, 1, "other split")
    check(root, save(root, 2, "split"))  # its index took the place of the other one


def renamed(root: Path, names: dict[str, str]) -> None:
    """Gives files other names, in the index too."""
    index = root / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for old, new in names.items():
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    mapped = content["weight_map"]
    content["weight_map"] = {tensor: names.get(name, name) for tensor, name in mapped.items()}
    index.write_text(json.dumps(content))


NAMES = [
    "mtp.safetensors",
    "model_extra_tensors.safetensors",
    "pytorch_model-{}.safetensors",
    "layers-{}.safetensors",
    "weights/{}.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_index_names_is_read(tmp_path: Path, name: str) -> None:
    root = tmp_path / "model"
    state = save(root, 1, "split")
    shards = sorted(path.name for path in root.glob("model-*.safetensors"))
    changed = shards if "{}" in name else shards[-1:]
    renamed(root, {shard: name.format(place) for place, shard in enumerate(changed)})
    check(root, state)


def test_the_index_decides_where_two_shards_hold_a_tensor(tmp_path: Path) -> None:
    root = tmp_path / "model"
    state = save(root, 1, "split")
    index = json.loads((root / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    from safetensors.torch import load_file

    first = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    assert len(shards) > 2
    for place, shard in enumerate(shards[1:]):
        other = load_file(root / shard) | {first: torch.full([3], place)}
        save_file(other, root / shard, {"format": "pt"})
    for reader in (by_iterating, by_name, distributed):
        assert reader(root, None)[first].equal(state[first])
    # Where the index does not tell, the last one that holds it is read, as by transformers.
    del index["weight_map"][first]
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    assert by_iterating(root, None)[first].equal(torch.full([3], len(shards) - 2))


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("../x.safetensors", FormatError, "no file below its directory"),
        ("/etc/x.safetensors", FormatError, "no file below its directory"),
        ("gone.safetensors", FormatError, "no such file"),
        ("weights.bin", UsageError, "a pickle can run code"),
        (7, FormatError, "K-1"),
        ([], FormatError, "K-1"),
    ],
)
def test_indices_that_name_no_weights(tmp_path: Path, file: Any, error: type, message: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    text = json.dumps({"metadata": {}, "weight_map": {"a": file}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(error, match=message):
        selection.select(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000, '{"weight_map": {}}'])
def test_malformed_indices(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match=r"K-[12]"):
        selection.select(tmp_path)


def test_a_variant_of_a_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="is a file"):
        selection.select(tmp_path / "x.safetensors", "fp16")
    with pytest.raises(UsageError, match="has no weights"):
        selection.select(tmp_path)


@pytest.mark.parametrize("form", ["single", "split"])
@pytest.mark.parametrize("kind", ["dense", "endor"])
def test_load_checkpoint_and_dispatch_takes_the_directory(tmp_path: Path, form: str, kind: str) -> None:
    import accelerate

    root = tmp_path / "model"
    state = save(root, 1, form)
    if kind == "endor":
        save(root, 2, "single", "tuned")
        convert.compress(root, tmp_path / "endor")
        root = tmp_path / "endor"
    where = {"model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    where |= {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu"}
    for options in ({}, {"device_map": {"": "cpu"}}, {"device_map": where, "offload_folder": tmp_path / "o"}):
        with accelerate.init_empty_weights(include_buffers=False):
            empty = model(0)
        found = accelerate.load_checkpoint_and_dispatch(empty, root, **options) if options else model(0)
        if not options:
            accelerate.load_checkpoint_in_model(found, root)
        with torch.no_grad():
            assert found(IDS).logits.equal(reference(state)(IDS).logits)


def test_no_device_is_the_default_device(tmp_path: Path) -> None:
    root = tmp_path / "model"
    save(root, 1)
    offloaded = offload_model(root, device=None)
    close(offloaded)
    with torch.device("meta"), pytest.raises(UsageError, match="models run offloaded on"):
        offload_model(model(1), device=None)
    # Where safetensors is mirrored it is the CPU, as there, whatever the default is.
    with torch.device("meta"):
        assert {tensor.device.type for _, tensor in iter_weights(root, None)} == {"cpu"}
