"""Offloaded models give bit for bit what the dense pruned model in memory gives, wherever weights lie."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyendor import convert, prune
from pyendor.errors import FormatError, UnsupportedError, UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pyendor import offload, torch_product  # noqa: E402  needs torch
from pyendor.offload import empty, offload_model, plan  # noqa: E402
from pyendor.torch import load_file, save_model  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

COMMON = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = COMMON | {"intermediate_size": 160, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "opt": lambda: transformers.OPTConfig(
        **COMMON, ffn_dim=160, word_embed_proj_dim=64, max_position_embeddings=64
    ),
    "llama": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "tied": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "moe": lambda: transformers.MixtralConfig(**LLAMA, num_local_experts=4),
    "moe-shared": lambda: transformers.Qwen2MoeConfig(
        **LLAMA, num_experts=4, moe_intermediate_size=96, shared_expert_intermediate_size=96
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=64),
}
NEW = 6


@dataclass(frozen=True)
class Case:
    """A pruned model as a dense checkpoint and as Endor ones, and what it says."""

    dense: Path
    raw: Path
    split: Path
    ids: Any
    logits: Any
    tokens: Any

    def check(self, model: Any) -> None:
        """That a model says the same, bit for bit, in one go and token by token."""
        with torch.no_grad():
            assert torch.equal(model(self.ids).logits, self.logits)
            assert torch.equal(generate(model, self.ids), self.tokens)


def generate(model: Any, ids: Any) -> Any:
    return model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)


@pytest.fixture(scope="session", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("llama", tmp_path_factory.mktemp("one"))


def make(kind: str, root: Path) -> Case:
    torch.manual_seed(len(kind))
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.bfloat16)
    model.save_pretrained(root / "whole")
    prune.prune(root / "whole", root / "dense", prune.Options(sparsity=0.5))
    # Tiny matrices have headers of their size: to be encoded all the same.
    convert.compress(root / "dense", root / "raw", values="raw", min_saving=None)
    convert.compress(root / "dense", root / "split", values="split", min_saving=None)
    reference = transformers.AutoModelForCausalLM.from_pretrained(root / "dense", dtype="auto").eval()
    ids = torch.randint(0, 300, (2, 7))
    with torch.no_grad():
        logits, tokens = reference(ids).logits, generate(reference, ids)
    return Case(root / "dense", root / "raw", root / "split", ids, logits, tokens)


@pytest.fixture
def open_model() -> Iterator[Callable[..., Any]]:
    """Opens models that are closed at the end, and makes sure that nothing is left of them."""
    models = []

    def open_it(*args: Any, **options: Any) -> Any:
        models.append(offload_model(*args, **options))
        return models[-1]

    yield open_it
    for model in models:
        offload.close(model)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pyendor-offload")]


@pytest.mark.parametrize("weights", ["dense", "raw", "split"])
@pytest.mark.parametrize("host_memory", [0, 60_000, "1GB"])
def test_logits_are_bit_identical(
    case: Case, weights: str, host_memory: int | str, open_model: Callable[..., Any]
) -> None:
    case.check(open_model(getattr(case, weights), host_memory=host_memory))


@pytest.mark.parametrize("prefetch", [0, 1, 2, 7])
@pytest.mark.parametrize("read", ["direct", "cache"])
def test_however_it_is_fetched(llama: Case, prefetch: int, read: str, open_model: Callable[..., Any]) -> None:
    model = open_model(llama.split, host_memory=0, prefetch=prefetch, read=read)
    for _ in range(2):
        llama.check(model)


def test_parameters_stay_what_they_are(llama: Case, open_model: Callable[..., Any]) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(llama.dense, dtype="auto").eval()
    model = open_model(llama.split, host_memory=0)
    before = dict(model.named_parameters())
    assert model.device == torch.device("cpu")
    llama.check(model)
    after = dict(model.named_parameters())
    want = dict(reference.named_parameters())
    assert before.keys() == after.keys() == want.keys()
    for name, parameter in after.items():
        assert parameter is before[name]
        assert isinstance(parameter, torch.nn.Parameter)
        assert not parameter.requires_grad
        found = (parameter.device, parameter.dtype, parameter.shape, parameter.stride())
        assert found == (want[name].device, want[name].dtype, want[name].shape, want[name].stride())
        assert torch.equal(parameter, want[name])


def test_a_weight_that_was_kept(llama: Case, open_model: Callable[..., Any]) -> None:
    """Also a view of one that was made while its layer ran."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(llama.dense, dtype="auto").eval()
    for weights in (llama.split, llama.dense):
        model = open_model(weights, host_memory=0)
        kept: list[Any] = []
        model.model.layers[0].mlp.register_forward_pre_hook(
            lambda mlp, _, kept=kept: kept.append((mlp.up_proj.weight, mlp.up_proj.weight[3:9].t()))
        )
        llama.check(model)
        want = reference.model.layers[0].mlp.up_proj.weight
        for weight, view in kept:
            assert weight is model.model.layers[0].mlp.up_proj.weight
            assert torch.equal(weight, want)
            assert torch.equal(view, want[3:9].t())


def test_what_the_summary_says_is_what_moves(case: Case, open_model: Callable[..., Any]) -> None:
    model = open_model(case.split, host_memory=60_000)
    found = offload.summary(model)
    assert sum(share.stored for share in found.tiers.values()) > 60_000 >= found.tiers["host"].stored > 0
    with torch.no_grad():
        model(case.ids)
        offload.close(model)
    before = offload.moved(model)
    # A layer too many may have been fetched; rows of embeddings, and what lies between tensors, are read too.
    assert found.token_disk <= before.disk < 2.5 * found.token_disk + found.embeddings
    assert found.token_link == before.link == 0
    assert "a token moves" in str(found)
    assert found.token_dense > 1.9 * found.token_disk


def test_all_in_memory_reads_nothing(llama: Case, open_model: Callable[..., Any]) -> None:
    model = open_model(llama.split)
    llama.check(model)
    rows = offload.summary(model).embeddings
    assert offload.moved(model).disk < (NEW + 2) * rows
    assert offload.moved(model).fetching == 0
    assert offload.summary(model).token_disk == 0


def test_shards(case: Case, tmp_path: Path, open_model: Callable[..., Any]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(case.dense, dtype="auto")
    model.save_pretrained(tmp_path / "dense", max_shard_size="100KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    convert.compress(tmp_path / "dense", tmp_path / "endor")
    case.check(open_model(tmp_path / "endor", host_memory=0))


def test_another_dtype(llama: Case, open_model: Callable[..., Any]) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(llama.dense, dtype=torch.float32).eval()
    for directory in (llama.split, llama.dense):
        model = open_model(directory, host_memory=0, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(model(llama.ids).logits, reference(llama.ids).logits)


@pytest.mark.parametrize("encoded", [False, True])
def test_a_module_in_memory(case: Case, encoded: bool, open_model: Callable[..., Any]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(case.dense, dtype="auto")
    if encoded:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim > 1:
                    kept = EndorTensor.from_dense(parameter.detach())
                    module._parameters[name] = torch.nn.Parameter(kept, requires_grad=False)
    model = open_model(model)
    case.check(model)
    assert offload.summary(model).tiers["host"].stored < 0.75 * offload.summary(model).tiers["host"].dense
    assert offload.moved(model).disk == 0


def test_a_module_in_memory_that_does_not_fit(llama: Case) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama.dense, dtype="auto")
    with pytest.raises(UsageError, match="save it"):
        offload_model(model, host_memory=1000)
    with torch.no_grad():
        assert torch.equal(model(llama.ids).logits, llama.logits), "it was taken apart"


class Plain(torch.nn.Module):
    """No model of transformers: a list of layers, and a weight of its own beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 32, padding_idx=40)
        self.scale = torch.nn.Parameter(torch.randn(32, 32))
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(4)])
        self.norm = torch.nn.BatchNorm1d(32)

    def forward(self, ids: Any) -> Any:
        x = self.table(input=ids) @ self.scale
        for block in reversed(self.blocks):  # not in the order of their names
            x = torch.relu(block(x))
        return self.norm(x)


def test_any_module(tmp_path: Path, open_model: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    reference = Plain().eval()
    reference.norm.running_mean += 1
    save_model(reference, tmp_path / "x.safetensors", min_saving=None)
    with empty.without_weights():
        model = Plain()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    model = open_model(model, tmp_path / "x.safetensors", host_memory=0)
    ids = torch.tensor([3, 40, 49, 3, 0])
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(ids), reference(ids))
    with pytest.raises(IndexError, match="50 rows"):
        model(torch.tensor([50]))
    with pytest.raises(IndexError, match="50 rows"):
        model(torch.tensor([-1]))
    with torch.no_grad():
        assert torch.equal(model(ids), reference(ids))
    assert model.table.padding_idx == 40
    with pytest.raises(UsageError, match="offloaded already"):
        offload_model(model)


class Wide(torch.nn.Module):
    """Matrices that are decoded by chunks, and uses of them that need all of one, also by way of C++."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(256, 1024), torch.nn.Linear(1024, 256, bias=False)
        self.attention = torch.nn.TransformerEncoderLayer(256, 4, 512, batch_first=True)
        self.heads = torch.nn.Linear(256, 512)

    def forward(self, x: Any) -> Any:
        turned = self.up.weight.t()
        x = x + self.down(torch.relu(self.up(x)))
        x = x + self.up(x) @ self.up.weight  # all of it, and then
        x = x + (x @ turned) @ self.down.weight.t()
        x = x + self.heads(x)[..., :256] + (x @ self.heads.weight.view(2, 256, 256)[1])
        return self.attention(torch.tanh(x))


def test_products_by_chunks(
    tmp_path: Path, open_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_product, "CHUNK", 256 << 10)
    monkeypatch.setattr(torch_product, "_found", {})
    monkeypatch.setattr(torch_product, "_pace", torch_product.Pace())
    monkeypatch.setattr(torch_product, "SLOW", math.inf)  # however busy this machine is
    torch.manual_seed(2)
    reference = Wide().eval()
    for parameter in reference.parameters():
        if parameter.ndim > 1:
            torch.nn.functional.dropout(parameter.data, 0.5, inplace=True)
    save_model(reference, tmp_path / "x.safetensors")
    with empty.without_weights():
        model = Wide().eval()
    model = open_model(model, tmp_path / "x.safetensors", host_memory=0)
    for mode in (torch.no_grad, torch.inference_mode):
        for shape in ((1, 1), (2, 3), (1, 1), (4, 10)):
            x = torch.randn(*shape, 256)
            with mode():
                assert torch.equal(model(x), reference(x))
    assert len(torch_product._found) >= 4
    assert all(torch_product._found.values())


def test_a_single_layer(tmp_path: Path, open_model: Callable[..., Any]) -> None:
    reference = torch.nn.Linear(8, 8)
    x = torch.randn(3, 8)
    want = reference(x)
    assert torch.equal(open_model(reference)(x), want)


def test_missing_and_misshapen_weights(llama: Case, tmp_path: Path) -> None:
    tensors = load_file(llama.dense / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama.dense / "config.json").read_bytes())
    from safetensors.torch import save_file

    some = {name: tensor for name, tensor in tensors.items() if "up_proj" not in name}
    save_file(some, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"it lacks: 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        offload_model(tmp_path)
    wrong = tensors | {"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 160, dtype=torch.bfloat16)}
    save_file(wrong, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"has shape \[160, 64\], the checkpoint \[\[64, 160\]\]"):
        offload_model(tmp_path)


def test_wrong_requests(llama: Case, tmp_path: Path) -> None:
    for options, found in (
        ({"device": "meta"}, "'cpu' and 'cuda'"),
        ({"device": "nonsense"}, "is none"),
        ({"gpu_memory": 5}, "is for a GPU"),
        ({"prefetch": -1}, "prefetch -1"),
        ({"host_memory": "much"}, "no amount of memory"),
        ({"read": "slowly"}, "there are auto, direct, cache"),
    ):
        with pytest.raises(UsageError, match=found):
            offload_model(llama.split, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no config\.json"):
        offload_model(tmp_path)
    with pytest.raises(UsageError, match="meta device"):
        offload_model(empty.build(llama.split, None))
    with pytest.raises(UsageError, match="not offloaded"):
        offload.summary(torch.nn.Linear(2, 2))
    config = json.loads((llama.split / "config.json").read_text())
    config["quantization_config"]["inner"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="gptq"):
        offload_model(tmp_path)


def test_too_little_memory(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_host_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"0\.00 GB are free: a smaller prefetch"):
        offload_model(llama.split, host_memory=0)


def test_a_faulty_layer(llama: Case, tmp_path: Path, open_model: Callable[..., Any]) -> None:
    from pyendor.file import open_file

    broken = tmp_path / "model"
    broken.mkdir()
    for path in llama.split.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (weights,) = broken.glob("*.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    with open_file(weights) as opened:
        at = opened.layout.tensors[name].parts["index"].start
    data = bytearray(weights.read_bytes())
    data[at + 8] ^= 0xFF
    weights.write_bytes(data)
    model = open_model(broken, host_memory=0)
    for _ in range(2):
        with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*rule B-"):
            model(llama.ids)


def test_closed(llama: Case) -> None:
    model = offload_model(llama.split, host_memory=0)
    llama.check(model)
    offload.close(model)
    offload.close(model)
    for use in (lambda: model(llama.ids), lambda: model.lm_head.weight + 1):
        with pytest.raises(UsageError, match="was closed"):
            use()


MEASURE = """
import resource, sys, torch
from pyendor.offload import empty, offload_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

class Model(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(1024, 1024, bias=False) for _ in range(layers)])
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

def run(layers):
    with empty.without_weights():
        model = Model(layers)
    model = offload_model(model, sys.argv[1], host_memory=0, strict=False)
    with torch.no_grad():
        return model(torch.ones(1, 1024)).sum().item()

run(2)
before = peak()
print(run(int(sys.argv[2])), peak() - before)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers, tensors = 24, {}
    for number in range(layers):
        weight = torch.randn(1024, 1024)
        tensors[f"layers.{number}.weight"] = torch.where(weight.abs() < 0.6745, 0.0, weight / 40)
    from pyendor.torch import save_file

    save_file(tensors, tmp_path / "x.safetensors")
    x = torch.ones(1, 1024)
    for number in range(layers):
        x = torch.tanh(torch.nn.functional.linear(x, tensors[f"layers.{number}.weight"]))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "x.safetensors"), str(layers)],
        capture_output=True,
        text=True,
        check=True,
    )
    result, grown = run.stdout.split()
    assert float(result) == x.sum().item()
    # The model has 96 MiB, and 54 compressed: of these there are three layers of the one, one of the other.
    assert int(grown) < 20 << 20
