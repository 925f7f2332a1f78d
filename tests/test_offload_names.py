"""Weights that transformers converts, or does not save, are those that its own loading gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pyendor import convert, offload
from pyendor.errors import UnsupportedError, UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
loading = pytest.importorskip("transformers.core_model_loading")
from transformers import conversion_mapping as mapping  # noqa: E402

from pyendor.offload import offload_model, without_weights  # noqa: E402
from pyendor.torch import save_file  # noqa: E402

EXPERTS, HEADS, WIDTH = 4, 2, 24


class ToyConfig(transformers.PreTrainedConfig):  # type: ignore[misc,name-defined]
    model_type = "endor-toy"
    num_attention_heads = HEADS


class Toy(transformers.PreTrainedModel):  # type: ignore[misc,name-defined]
    """A model that has the parameters of a case, each in a module of its own, and gives all of them."""

    config_class = ToyConfig
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, shape in self.shapes.items():
            self.add_module(name, torch.nn.Module())
            self.get_submodule(name).weight = torch.nn.Parameter(torch.empty(shape))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        pass


Op = Callable[[], list[Any]]
# What a checkpoint has, what the model has, and the operations between.
CASES: dict[str, tuple[dict[str, tuple[int, ...]], list[str], list[str], dict[str, tuple[int, ...]], Op]] = {
    "chunk": (
        {"qkv.weight": (3 * WIDTH, 16)},
        ["qkv"],
        ["q", "k", "v"],
        {"q": (WIDTH, 16), "k": (WIDTH, 16), "v": (WIDTH, 16)},
        lambda: [loading.Chunk(dim=0)],
    ),
    "chunk columns": (
        {"gu.weight": (WIDTH, 32)},
        ["gu"],
        ["gate", "up"],
        {"gate": (WIDTH, 16), "up": (WIDTH, 16)},
        lambda: [loading.Chunk(dim=1)],
    ),
    "split": (
        {"qkv.weight": (WIDTH + 16, 16)},
        ["qkv"],
        ["q", "k", "v"],
        {"q": (WIDTH, 16), "k": (8, 16), "v": (8, 16)},
        lambda: [loading.Split(dim=0)],
    ),
    "concatenate rows": (
        {"gate.weight": (8, 16), "up.weight": (WIDTH, 16)},
        ["gate", "up"],
        ["gu"],
        {"gu": (WIDTH + 8, 16)},
        lambda: [loading.Concatenate(dim=0)],
    ),
    "concatenate columns": (
        {"gate.weight": (8, 16), "up.weight": (8, WIDTH)},
        ["gate", "up"],
        ["gu"],
        {"gu": (8, WIDTH + 16)},
        lambda: [loading.Concatenate(dim=1)],
    ),
    "transpose": (
        {"down.weight": (EXPERTS, 8, WIDTH)},
        ["down"],
        ["down"],
        {"down": (EXPERTS, WIDTH, 8)},
        lambda: [loading.Transpose(1, 2, check_dims=True)],
    ),
    "transpose unless it is": (
        {"down.weight": (EXPERTS, WIDTH, 8)},
        ["down"],
        ["down"],
        {"down": (EXPERTS, WIDTH, 8)},
        lambda: [loading.Transpose(1, 2, check_dims=True)],
    ),
    "experts": (
        {f"e.{number}.{name}.weight": (8, 16) for number in range(12) for name in ("gate", "up")},
        ["e.*.gate", "e.*.up"],
        ["gu"],
        {"gu": (12, 16, 16)},
        lambda: [loading.MergeModulelist(dim=0), loading.Concatenate(dim=1)],
    ),
    "one expert": (
        {"e.0.down.weight": (8, 16)},
        ["e.*.down"],
        ["down"],
        {"down": (1, 8, 16)},
        lambda: [loading.MergeModulelist(dim=0)],
    ),
    "experts by column": (
        {f"e.{number}.{name}.weight": (8, 16) for number in range(12) for name in ("gate", "up")},
        ["e.*.gate", "e.*.up"],
        ["gu"],
        {"gu": (12, 8, 32)},
        lambda: [loading.MergeModulelist(dim=0), loading.Concatenate(dim=2)],
    ),
    "experts in the middle": (
        {f"e.{number}.down.weight": (8, 16) for number in range(12)},
        ["e.*.down"],
        ["down"],
        {"down": (8, 12, 16)},
        lambda: [loading.MergeModulelist(dim=1)],
    ),
    "rope": (
        {"q.weight": (WIDTH, 16)},
        ["q"],
        ["q_proj"],
        {"q_proj": (WIDTH, 16)},
        lambda: [loading.PermuteForRope()],
    ),
    "chunk and rope": (
        {"qk.weight": (2 * WIDTH, 16)},
        ["qk"],
        ["q_proj", "k_proj"],
        {"q_proj": (WIDTH, 16), "k_proj": (WIDTH, 16)},
        lambda: [loading.Chunk(dim=0), loading.PermuteForRope()],
    ),
    "interleave and chunk": (
        {"w13.weight": (2 * WIDTH, 16)},
        ["w13"],
        ["gate", "up"],
        {"gate": (WIDTH, 16), "up": (WIDTH, 16)},
        lambda: [loading.Interleave(dim=0), loading.Chunk(dim=0)],
    ),
    "convolution": (
        {"patch.weight": (WIDTH, 3, 2, 4, 4)},
        ["patch"],
        ["patch"],
        {"patch": (WIDTH, 96)},
        lambda: [loading.Conv3dToLinear(3, (2, 4, 4))],
    ),
    "text and vision experts": (
        {f"e.{number}.{name}.weight": (8, 16) for number in range(8) for name in ("gate", "up")},
        ["e.*.gate", "e.*.up"],
        ["text", "vision"],
        {"text": (4, 16, 16), "vision": (4, 16, 16)},
        lambda: [loading.ErnieFuseAndSplitTextVisionExperts(stack_dim=0, concat_dim=1)],
    ),
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Makes a class for a case, with its conversion registered at transformers."""

    def make(name: str) -> Any:
        _, sources, targets, shapes, operations = CASES[name]
        kind = type("EndorToy", (Toy,), {"shapes": shapes})
        rule = loading.WeightConverter(list(sources), list(targets), operations=operations())
        mapping.register_checkpoint_conversion_mapping("EndorToy", [rule], overwrite=True)
        return kind

    return make


def checkpoint(name: str, root: Path) -> None:
    torch.manual_seed(5)
    stored = {key: torch.randn(shape) for key, shape in CASES[name][0].items()}
    for value in stored.values():
        value[value.abs() < 0.6] = 0
    ToyConfig().save_pretrained(root)
    save_file(stored, root / "model.safetensors", min_saving=2)  # none of them encoded
    save_file(stored, root / "encoded.endor", min_saving=None)


@pytest.mark.parametrize("name", CASES)
def test_converted_weights_are_those_that_transformers_loads(
    name: str, toy: Callable[[str], Any], tmp_path: Path
) -> None:
    checkpoint(name, tmp_path)
    kind = toy(name)
    expected, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for weights in (tmp_path / "model.safetensors", tmp_path / "encoded.endor"):
        for host_memory in (0, None):
            with without_weights():
                model = kind(ToyConfig())
            offload_model(model, weights, host_memory=host_memory)
            for part in CASES[name][3]:
                wanted = expected.get_submodule(part).weight
                assert torch.equal(seen(model, part), wanted), part
            offload.close(model)


def seen(model: Any, part: str) -> Any:
    """The weight of a module as it is while the module runs."""
    module = model.get_submodule(part)
    kept = []
    module.forward = lambda: kept.append(module.weight.clone())
    with torch.no_grad():
        module()
    (weight,) = kept
    return weight.decode() if hasattr(weight, "decode") else weight


def test_nothing_is_left_of_the_temporary_file(
    toy: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    checkpoint("chunk", tmp_path)
    with without_weights():
        model = toy("chunk")(ToyConfig())
    offload_model(model, tmp_path / "model.safetensors", host_memory=0)
    assert not list((tmp_path / "temporary").iterdir())
    offload.close(model)


def test_a_conversion_that_does_not_fit_is_refused(toy: Callable[[str], Any], tmp_path: Path) -> None:
    checkpoint("chunk", tmp_path)
    kind = toy("chunk")
    kind.shapes = {"q": (WIDTH, 16), "k": (WIDTH, 16), "v": (WIDTH, 8)}
    with without_weights():
        model = kind(ToyConfig())
    with pytest.raises(UsageError, match=r"'v\.weight' has shape"):
        offload_model(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "shapes"), [("experts", [(16, 8)]), ("concatenate rows", [(16, 8), (24, 16)])]
)
def test_tensors_of_another_shape_are_refused(
    case: str, shapes: list[tuple[int, ...]], toy: Callable[[str], Any], tmp_path: Path
) -> None:
    names = CASES[case][0]
    stored = {name: torch.ones(shape) for name, shape in zip(names, shapes * len(names), strict=False)}
    save_file(stored, tmp_path / "model.safetensors")
    with without_weights():
        model = toy(case)(ToyConfig())
    with pytest.raises((UsageError, UnsupportedError), match="'gu"):
        offload_model(model, tmp_path / "model.safetensors")


def test_operations_that_fail_are_named(toy: Callable[[str], Any], tmp_path: Path) -> None:
    checkpoint("rope", tmp_path)
    save_file({"q.weight": torch.ones(7, 16)}, tmp_path / "model.safetensors")
    with without_weights():
        model = toy("rope")(ToyConfig())
    with pytest.raises(UnsupportedError, match=r"'q_proj\.weight' is made of 1 tensors by PermuteForRope"):
        offload_model(model, tmp_path / "model.safetensors")


MARIAN = {"vocab_size": 300, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "pad_token_id": 299}
HEADS_OF = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


@pytest.mark.parametrize("host_memory", [0, None])
def test_positions_that_are_not_saved_are_computed(host_memory: int | None, tmp_path: Path) -> None:
    config = transformers.MarianConfig(
        **MARIAN, **HEADS_OF, encoder_ffn_dim=96, decoder_ffn_dim=96, decoder_start_token_id=299
    )
    torch.manual_seed(1)
    transformers.MarianMTModel(config).save_pretrained(tmp_path / "dense")
    convert.compress(tmp_path / "dense", tmp_path / "endor", min_saving=None)
    expected = transformers.MarianMTModel.from_pretrained(tmp_path / "dense").eval()
    ids = torch.randint(0, 299, (2, 7))
    state = torch.random.get_rng_state()
    model = offload_model(tmp_path / "endor", host_memory=host_memory)
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        wanted = expected(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, wanted)
    offload.close(model)


def test_weights_that_are_random_without_a_checkpoint_are_missing(tmp_path: Path) -> None:
    class Random(Toy):
        shapes: ClassVar[dict[str, tuple[int, ...]]] = {"one": (8, 16)}
        _keys_to_ignore_on_load_missing: ClassVar[list[str]] = ["one"]

        def _init_weights(self, module: Any) -> None:
            if hasattr(module, "weight"):
                torch.nn.init.normal_(module.weight)

    save_file({"other": torch.ones(3)}, tmp_path / "model.safetensors")
    with without_weights():
        model = Random(ToyConfig())
    with pytest.raises(UsageError, match=r"it lacks: .one\.weight"):
        offload_model(model, tmp_path / "model.safetensors")
