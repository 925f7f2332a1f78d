"""Weights of offloaded models wherever they are used: in their layer or not, kept, returned, copied."""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_offload import Case, generate, make  # noqa: E402  needs torch
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402

from pyendor import offload  # noqa: E402
from pyendor.errors import UsageError  # noqa: E402
from pyendor.offload import engine, fetched, load, offload_model  # noqa: E402
from pyendor.offload.gpu import Gpu  # noqa: E402
from pyendor.offload.turn import Turn  # noqa: E402
from pyendor.torch import save_model  # noqa: E402

nn, F = torch.nn, torch.nn.functional
SIZE = 64


class Attention(nn.Module):
    """Its ``out_proj`` is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.MultiheadAttention(SIZE, 4, batch_first=True)
        self.many = nn.ModuleList([nn.MultiheadAttention(SIZE, 4, kdim=SIZE, vdim=SIZE) for _ in range(3)])
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(SIZE, 4, 96, batch_first=True), 2, enable_nested_tensor=False
        )

    def forward(self, x: Any) -> Any:
        x = self.one(x, x, x)[0]
        for each in self.many:
            x = each(x, x, x, need_weights=False)[0]
        return self.encoder(x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(2)]) for _ in range(3)]
        )

    def forward(self, x: Any) -> Any:
        for stage in self.stages:
            for block in stage:
                x = torch.tanh(block(x))
        return x


class Named(nn.Module):
    """Dictionaries in a list, sequences in dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                nn.ModuleDict(
                    {"up": nn.Linear(SIZE, 96), "down": nn.Sequential(nn.ReLU(), nn.Linear(96, SIZE))}
                )
                for _ in range(3)
            ]
        )

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = x + block["down"](block["up"](x))
        return x


class Direct(nn.Module):
    """Calls ``forward`` of its layers, past all hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(4)])

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = torch.tanh(block.forward(x))
        return x


class Others(nn.Module):
    """Uses the weights of layers that are not running, while one is running, and before any is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(SIZE, SIZE)
        self.blocks = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(4)])
        for number, block in enumerate(self.blocks):
            other = self.blocks[number - 1]
            block.register_forward_hook(
                lambda block, args, out, other=other: out + F.linear(args[0], other.weight) @ block.weight
            )

    def forward(self, x: Any) -> Any:
        x = x + self.table.weight[: x.shape[1]]
        for block in self.blocks:
            x = torch.tanh(block(x))
        return F.linear(x, self.table.weight)


class Within(nn.Module):
    """A layer that runs other layers of the model, and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.ModuleList([nn.Linear(SIZE, SIZE)])
        self.blocks = nn.ModuleList([Around(self.shared) for _ in range(2)])

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = self.shared[0](block(x))
        return x


class Around(nn.Module):
    def __init__(self, shared: Any) -> None:
        super().__init__()
        self.own = nn.Linear(SIZE, SIZE)
        self.shared = [shared]  # no child

    def forward(self, x: Any, again: bool = True) -> Any:
        x = torch.tanh(self.own(x))
        x = self.shared[0][0](x)
        x = self(x, again=False) if again else x
        return torch.tanh(self.own(x))


class Methods(nn.Module):
    """Runs its layers in methods that are not forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(2)])
        self.codebook = Codebook()

    def encode(self, x: Any) -> Any:
        for layer in self.encoder:
            x = layer(x)
        return self.codebook.quantize(x)

    def forward(self, x: Any) -> Any:
        return self.codebook.look_up(self.encode(x))


class Codebook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(40, SIZE))
        self.project = nn.Linear(SIZE, SIZE)

    def quantize(self, x: Any) -> Any:
        return torch.cdist(self.project(x).reshape(-1, SIZE), self.embed).argmin(-1).view(x.shape[:-1])

    def look_up(self, ids: Any) -> Any:
        return F.embedding(ids, self.embed) + self.embed.index_select(0, ids.view(-1)).view(*ids.shape, SIZE)

    def forward(self, x: Any) -> Any:
        return self.look_up(self.quantize(x))


class Operators(nn.Module):
    """What returns memory that nobody has written, when a weight is on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.line = nn.Linear(SIZE, SIZE), nn.Conv1d(SIZE, SIZE, 3, padding=1)
        self.plane, self.turned = nn.Conv2d(1, 1, 3, padding=1), nn.ConvTranspose1d(SIZE, SIZE, 3, padding=1)
        self.batch, self.bag = Held(2, SIZE, SIZE), nn.EmbeddingBag(SIZE, SIZE)

    def forward(self, x: Any) -> Any:
        square = self.square.weight
        x = F.linear(x, square, self.square.bias)
        x = torch.addmm(x[0], x[1], square).expand_as(x) + torch.matmul(x, square)
        x = torch.baddbmm(x, x @ square.t(), self.batch.weight) + torch.bmm(x, self.batch.weight)
        x = torch.tanh(x).transpose(1, 2)
        x = F.conv1d(x, self.line.weight, padding=1) + F.conv_transpose1d(x, self.turned.weight, padding=1)
        x = torch.tanh(x).transpose(1, 2)
        x = x + F.conv2d(x[:, None], self.plane.weight, padding=1)[:, 0]
        x = x + torch.einsum("bik,jk->bij", x, square) + (square * 2)[3] + square.view(2, -1, SIZE)[1].sum(0)
        x = x + F.pad(square.as_strided((SIZE - 1,), (SIZE + 1,), 1), (0, 1))
        x = x + torch.stack(square.chunk(2))[1, 2]
        return x + F.embedding_bag(torch.tensor([[1, 5], [7, 7]]), self.bag.weight)[:, None]


class Held(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / 8)

    def forward(self) -> Any:
        return self.weight


@dataclass
class Made:
    value: Any


class Returned(nn.Module):
    """Modules that return their weights and views of them, in whatever; the next layers run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.ModuleList([Latents(how) for how in range(6)])
        self.blocks = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(5)])

    def forward(self, x: Any) -> Any:
        first = self.latents[0](x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        found = [latents(x) for latents in self.latents]
        for block in self.blocks:
            x = torch.tanh(block(x))
        whole, part, pair, named, made, both = found
        x = x + first[0] + whole[0] + part + pair[1] + named["it"][0] + made.value[0]
        x = x + both[0][2] + both[1][1]
        return x, whole, part


class Latents(nn.Module):
    def __init__(self, how: int) -> None:
        super().__init__()
        self.how = how
        self.latents = nn.Parameter(torch.randn(SIZE, SIZE))

    def forward(self, x: Any) -> Any:
        w = self.latents
        return [w, w[5], (x, w.t()[7]), {"it": w.expand(3, -1, -1)[1]}, Made(w[9:]), [*w.split(32)]][self.how]


class Kept(nn.Module):
    """Modules that keep views of their weights, from one forward to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Keeper() for _ in range(4)])

    def forward(self, x: Any) -> Any:
        for _ in range(2):
            for block in self.blocks:
                x = block(x)
        return x


class Keeper(nn.Module):
    kept: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(SIZE, SIZE)

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.project(x))
        if self.kept is None:
            weight = self.project.weight
            self.kept = [weight[:8], weight.detach(), weight.data.t(), list(weight.unbind())[3]]
        first, whole, turned, row = self.kept
        return x + first.sum(0) + whole[9] + turned[4] + row


class Recurrent(nn.Module):
    """Has its weights in a list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(SIZE, SIZE, 2, batch_first=True), nn.GRU(SIZE, SIZE, batch_first=True)
        self.blocks = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(3)])
        self.also = [block.weight for block in self.blocks]

    def forward(self, x: Any) -> Any:
        for block, weight in zip(self.blocks, self.also, strict=True):
            x = self.gru(self.lstm(block(x))[0])[0] @ weight
        return x


class Embeddings(nn.Module):
    """Subclasses of embeddings, of which rows are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.first, self.block = Scaled(200, SIZE), First(200, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Any) -> Any:
        ids = x[..., 0].long() % 200
        return self.block(self.scaled(ids) + self.first(ids) + F.embedding(ids, self.scaled.weight))


class Scaled(nn.Embedding):
    def forward(self, ids: Any) -> Any:
        return super().forward(ids) * 3


class First(nn.Embedding):
    def forward(self, ids: Any) -> Any:
        return self.weight[: ids.shape[1]] + self.weight[ids]


MODELS = [
    Attention,
    Nested,
    Named,
    Direct,
    Others,
    Within,
    Methods,
    Operators,
    Returned,
    Kept,
    Recurrent,
    Embeddings,
]


def pruned(kind: Callable[[], Any]) -> Any:
    torch.manual_seed(5)
    model = kind().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            F.dropout(parameter, 0.5, inplace=True)
    return model


@pytest.fixture
def offloaded(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Offloads a model from a file, encoded or plain; closes it at the end."""
    models = []

    def open_it(kind: Callable[[], Any], encoded: bool = True, **options: Any) -> Any:
        path = tmp_path / f"{len(models)}.safetensors"
        save_model(pruned(kind), path, min_saving=None if encoded else 1.0)
        with offload.without_weights():
            model = kind().eval()
        models.append(offload_model(model, path, **options))
        return models[-1]

    yield open_it
    for model in models:
        offload.close(model)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is torch.Tensor and torch.equal(left, right)


@pytest.mark.parametrize("host_memory", [0, 40_000, None])
@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_models_that_use_weights_in_their_way(
    kind: Callable[[], Any], encoded: bool, host_memory: int | None, offloaded: Callable[..., Any]
) -> None:
    reference, model = pruned(kind), offloaded(kind, encoded, host_memory=host_memory)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        for shape in ((2, 5, SIZE), (2, 1, SIZE)):
            x = torch.randn(shape)
            with mode():
                assert same(model(x), reference(x)), (mode, shape)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_on_a_gpu(kind: Callable[[], Any], offloaded: Callable[..., Any], monkeypatch: Any) -> None:
    """On streams that are played."""
    from test_offload_gpu import Launch, Streams, check

    from pyendor import cuda

    monkeypatch.setattr(cuda, "Launch", Launch)
    monkeypatch.setattr(cuda, "check", check)
    monkeypatch.setattr(load, "open_device", lambda where: Gpu(Streams(random.Random(1), eager=True)))
    x, reference = torch.randn(2, 5, SIZE), pruned(kind)
    for encoded in (True, False):
        for gpu_memory, host_memory in ((0, 0), (30_000, 30_000), ("1GB", 0)):
            model = offloaded(kind, encoded, device="cuda", gpu_memory=gpu_memory, host_memory=host_memory)
            with torch.no_grad():
                for _ in range(2):
                    assert same(model(x), reference(x))


def test_a_module_in_memory(tmp_path: Path) -> None:
    for kind in MODELS:
        x, reference = torch.randn(2, 5, SIZE), pruned(kind)
        model = offload_model(pruned(kind))
        with torch.no_grad():
            assert same(model(x), reference(x))
        offload.close(model)


def test_methods_other_than_forward(offloaded: Callable[..., Any]) -> None:
    x, reference, model = torch.randn(2, 5, SIZE), pruned(Methods), offloaded(Methods, host_memory=0)
    with torch.no_grad():
        assert torch.equal(model.encode(x), reference.encode(x))
        assert torch.equal(model.codebook.quantize(x), reference.codebook.quantize(x))


def test_attention_is_one_layer(offloaded: Callable[..., Any]) -> None:
    names = [layer.name for layer in offloaded(Attention)._endor_offload.layers]
    assert names == ["one", "many.0", "many.1", "many.2", "encoder.layers.0", "encoder.layers.1"]
    names = [layer.name for layer in offloaded(Nested)._endor_offload.layers]
    assert names == [f"stages.{stage}.{block}" for stage in range(3) for block in range(2)]
    names = [layer.name for layer in offloaded(Named)._endor_offload.layers]
    assert names == [f"blocks.{block}.{part}" for block in range(3) for part in ("up", "down")]


def test_rows_of_embeddings_are_read_alone(offloaded: Callable[..., Any]) -> None:
    model = offloaded(lambda: nn.Sequential(Scaled(40_000, SIZE)), encoded=False, host_memory=0)
    before = offload.moved(model).disk
    with torch.no_grad():
        model(torch.tensor([3, 39_999, 3]))
    assert 0 < offload.moved(model).disk - before < 10_000
    with pytest.raises(IndexError, match="40000 rows"):
        model(torch.tensor([40_000]))


class Probed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Probe(SIZE, SIZE) for _ in range(3)])

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class Probe(nn.Linear):
    inside: Any = None

    def forward(self, x: Any) -> Any:
        if self.inside is not None:
            self.inside()
        return super().forward(x)


WRITES: list[Callable[[Any], Any]] = [
    lambda w: w.add_(1),
    lambda w: w.zero_(),
    lambda w: w.data.copy_(torch.ones(SIZE, SIZE)),
    lambda w: w.detach()[2:4].fill_(3),
    lambda w: w[0].mul_(2),
    lambda w: w.t().clamp_(0, 1),
    lambda w: w.__setitem__(0, 5),
    nn.init.normal_,
    lambda w: torch.add(w, w, out=w),
    lambda w: torch._foreach_mul_([w], 2),
    lambda w: w.set_(torch.ones(3)),
    lambda w: w.resize_(3),
    lambda w: setattr(w, "data", torch.ones(SIZE, SIZE)),
    lambda w: w.share_memory_(),
    lambda w: w.apply_(abs),
    lambda w: w.untyped_storage(),
    torch.from_dlpack,
    lambda w: torch.optim.SGD([w.requires_grad_()], 0.1).step(setattr(w, "grad", torch.ones(SIZE, SIZE))),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("running", [False, True])
def test_writes_are_refused(
    write: Callable[[Any], Any], running: bool, offloaded: Callable[..., Any]
) -> None:
    x, reference, model = torch.randn(2, 5, SIZE), pruned(Probed), offloaded(Probed, host_memory=0)
    layer, tried = model.blocks[1], []

    def change(*_: Any) -> None:
        with torch.no_grad(), pytest.raises(UsageError, match=r"weight 'blocks\.1\.weight' of an offloaded"):
            write(layer.weight)
        tried.append(True)

    if running:
        layer.inside = change
    else:
        change()
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))
    assert tried


def test_copies_are_dense_or_refused(offloaded: Callable[..., Any], tmp_path: Path) -> None:
    reference, model = pruned(Direct), offloaded(Direct, host_memory=0)
    want = reference.state_dict()
    state = model.state_dict()
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    dense = Direct()
    dense.load_state_dict(state)
    for found in (torch.load(stream, weights_only=True), dense.state_dict()):
        assert found.keys() == want.keys()
        assert all(
            type(found[name]) is torch.Tensor and torch.equal(found[name], want[name]) for name in want
        )
    weight = model.blocks[0].weight
    for made in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):  # noqa: S301
        assert type(made) is nn.Parameter
        assert torch.equal(made, reference.blocks[0].weight)
    array = weight.numpy()
    assert np.array_equal(array, reference.blocks[0].weight.numpy())
    assert not array.flags.writeable
    assert weight.tolist() == reference.blocks[0].weight.tolist()
    for copying in (copy.deepcopy, pickle.dumps):
        for what in (model, model.blocks[0], nn.Sequential(model)):
            with pytest.raises(UsageError, match="cannot be copied or pickled"):
                copying(what)
    with pytest.raises(RuntimeError, match="cannot be written to"):
        model.load_state_dict(want)


def test_moving_and_casting(offloaded: Callable[..., Any]) -> None:
    x, reference, model = torch.randn(2, 5, SIZE), pruned(Direct), offloaded(Direct, host_memory=0)
    assert model.to("cpu") is model.float() is model
    for change in (
        model.half,
        lambda: model.to("meta"),
        model.share_memory,
        lambda: model.to_empty(device="cpu"),
    ):
        with pytest.raises(UsageError, match=r"cannot be moved, cast or shared|has no memory of its own"):
            change()
    # As SwitchTransformers does in its forward.
    model.blocks[1].to(torch.float64)
    reference.blocks[1].to(torch.float64)
    with torch.no_grad():
        assert torch.equal(model.blocks[1](x.double()), reference.blocks[1](x.double()))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("llama", tmp_path_factory.mktemp("threads"))


@pytest.mark.parametrize("host_memory", [0, None])
@pytest.mark.parametrize("call", ["forward", "layers", "generate"])
def test_threads(case: Case, host_memory: int | None, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of them gets what the dense model gives, or an error."""
    model = offload_model(case.split, host_memory=host_memory)
    device, found = model._endor_offload.device, []
    decode, chance = device.decode, random.Random(3)

    def slowly(*args: Any) -> Any:
        """Where another thread could come in between."""
        done = decode(*args)
        time.sleep(chance.random() / 500)
        return done

    monkeypatch.setattr(device, "decode", slowly)
    start = threading.Barrier(3)
    enough = 4 if call == "generate" else 20

    def right() -> bool:
        with torch.no_grad():
            if call == "generate":
                return torch.equal(generate(model, case.ids), case.tokens)
            if call == "layers":  # no method of the model is outermost
                return torch.equal(model.lm_head(model.model(case.ids)[0]), case.logits)
            return torch.equal(model(case.ids).logits, case.logits)

    def run() -> None:
        start.wait(20)
        while len(found) - found.count("refused") < enough:
            try:
                found.append("exact" if right() else "WRONG")
            except UsageError as error:
                found.append("refused" if "one thread at a time" in str(error) else str(error))
                time.sleep(chance.random() / 500)
            except BaseException as error:  # told below
                found.append(repr(error))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(found) == {"exact", "refused"}
    assert found.count("exact") >= enough
    case.check(model)
    offload.close(model)


def test_generate_has_one_owner(case: Case) -> None:
    """Also between its forwards; a thread other than the one that loaded the model may run it."""
    model = offload_model(case.split, host_memory=0)
    inside, go, out = threading.Event(), threading.Event(), []

    class Streamer:
        def put(self, _: Any) -> None:
            inside.set()
            go.wait(20)

        def end(self) -> None:
            pass

    def run() -> None:
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        out.append(model.generate(case.ids[:1], streamer=Streamer(), **options))

    thread = threading.Thread(target=run, name="streams")
    thread.start()
    assert inside.wait(20)
    for use in (
        lambda: model(case.ids),
        lambda: generate(model, case.ids),
        lambda: model.lm_head(torch.ones(1)),
    ):
        with pytest.raises(UsageError, match=r"on thread .streams.*one thread at a time"):
            use()
    # Weights themselves can be read.
    assert model.lm_head.weight.sum().isfinite()
    go.set()
    thread.join(20)
    assert torch.equal(out[0], case.tokens[:1])
    case.check(model)
    offload.close(model)


def test_an_interrupt_ends_the_turn(case: Case) -> None:
    model = offload_model(case.split, host_memory=0)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in (model.model.layers[1].mlp, model.model.norm, model.lm_head):
        handle = place.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(model, case.ids)
        handle.remove()
        logits: list[Any] = []
        with torch.no_grad():
            thread = threading.Thread(target=lambda logits=logits: logits.append(model(case.ids).logits))
            thread.start()
            thread.join(20)
        assert torch.equal(logits[0].detach(), case.logits)
    offload.close(model)


def test_a_thread_that_ended_inside_keeps_nobody_out() -> None:
    turn = Turn()
    thread = threading.Thread(target=turn.__enter__)
    thread.start()
    thread.join()
    with turn:
        assert turn.depth == 1
        with turn:
            assert turn.depth == 2
            errors: list[UsageError] = []

            def enter() -> None:
                try:
                    turn.__enter__()
                except UsageError as error:
                    errors.append(error)

            other = threading.Thread(target=enter)
            other.start()
            other.join()
            assert len(errors) == 1
    assert turn.depth == 0


def test_what_runs_without_inputs_on_the_device_of_the_model(case: Case) -> None:
    import transformers

    reference = transformers.AutoModelForCausalLM.from_pretrained(case.dense, dtype="auto").eval()
    model = offload_model(case.split, host_memory=0)
    assert model.device.type == "cpu"
    assert model.dtype == reference.dtype
    options = {"max_new_tokens": 4, "do_sample": False}
    ids = case.ids[:1].to(model.device)
    for extra in ({}, {"inputs": ids, "prompt_lookup_num_tokens": 2}, {"inputs": ids, "num_beams": 3}):
        chosen: dict[str, Any] = options | extra | ({} if extra else {"bos_token_id": 1})
        with torch.no_grad():
            assert torch.equal(model.generate(**chosen), reference.generate(**chosen))
    offload.close(model)


def test_pipelines(case: Case) -> None:
    import transformers

    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({f"w{number}": number for number in range(300)}, unk_token="w0")
    whole = tokenizers.Tokenizer(words)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="w0", pad_token="w1")
    model = offload_model(case.split, host_memory=0)
    said = []
    for one in (model, transformers.AutoModelForCausalLM.from_pretrained(case.dense, dtype="auto").eval()):
        speak = transformers.pipeline("text-generation", model=one, tokenizer=tokenizer)
        said.append(speak("w5 w7 w9", max_new_tokens=5, do_sample=False))
    assert said[0] == said[1]
    offload.close(model)


def test_compiling_and_tracing_are_refused(offloaded: Callable[..., Any]) -> None:
    x, reference, model = torch.randn(2, 5, SIZE), pruned(Direct), offloaded(Direct, host_memory=0)
    for run in (lambda: torch.compile(model, backend="eager")(x), lambda: torch.jit.trace(model, x)):
        with torch.no_grad(), pytest.raises(UsageError, match="cannot be compiled, traced or exported"):
            run()
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))


def test_a_module_that_cannot_be_offloaded_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x, reference, model = torch.randn(2, 5, SIZE), pruned(Direct), pruned(Direct)
    calls = iter(range(100))
    put = engine.put

    def fail(*args: Any) -> None:
        if next(calls) == 2:
            raise MemoryError
        put(*args)

    monkeypatch.setattr(engine, "put", fail)
    with pytest.raises(MemoryError):
        offload_model(model)
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))


def test_a_graph_of_a_gpu_cannot_hold_it(offloaded: Callable[..., Any], monkeypatch: Any) -> None:
    from test_offload_gpu import Launch, Streams, check

    from pyendor import cuda

    monkeypatch.setattr(cuda, "Launch", Launch)
    monkeypatch.setattr(cuda, "check", check)
    monkeypatch.setattr(load, "open_device", lambda where: Gpu(Streams(random.Random(1), eager=True)))
    x, reference = torch.randn(2, 5, SIZE), pruned(Direct)
    for gpu_memory in (0, "1GB"):
        model = offloaded(Direct, device="cuda", gpu_memory=gpu_memory, host_memory=0)
        with monkeypatch.context() as patch:
            patch.setattr(model._endor_offload.device, "where", torch.device("cuda"))
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            with pytest.raises(UsageError, match="cannot be captured in a CUDA graph"):
                model(x)
        with torch.no_grad():
            assert torch.equal(model(x), reference(x))


def test_what_a_module_returns_stays_the_object_that_it_is() -> None:
    output = BaseModelOutputWithPooling(last_hidden_state=torch.ones(2))
    output.hidden_states = (torch.ones(3),)
    output.pooler_output = torch.ones(4)
    for one in (output, [torch.ones(2)], {"b": torch.ones(2), "a": 1}):
        assert fetched.owned(one) is one
    assert list(output.keys()) == ["last_hidden_state", "hidden_states", "pooler_output"]
