"""pyendor.torch and safetensors.torch side by side: every public call, argument and error."""

from __future__ import annotations

import inspect
import itertools
import random
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import safetensors  # noqa: E402
import safetensors.torch as theirs  # noqa: E402

import pyendor  # noqa: E402
import pyendor.torch as ours  # noqa: E402
from pyendor import dtypes, layout  # noqa: E402
from pyendor.encoded import EncodedTensor  # noqa: E402
from pyendor.errors import EndorError, UnsupportedError  # noqa: E402

DTYPES = [row for row in dtypes.TABLE if row.torch is not None and hasattr(torch, row.torch)]
SAVERS = [ours.save_file, theirs.save_file]


def sparse(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> Any:
    """A tensor of any dtype, two thirds of it zero, with every kind of bits in the rest."""
    rng = np.random.default_rng(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    count = int(np.prod(shape))
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if dtype == torch.bool:
        raw &= 1
    raw[rng.random(count) < 2 / 3] = 0
    return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)


def same(left: Any, right: Any) -> bool:
    """Bit for bit."""
    if (left.dtype, left.shape, left.device) != (right.dtype, right.shape, right.device):
        return False
    flat = [tensor.clone(memory_format=torch.contiguous_format).reshape(-1) for tensor in (left, right)]
    return left.numel() == 0 or torch.equal(*(tensor.view(torch.uint8) for tensor in flat))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the kind of its error."""
    try:
        return call()
    except Exception as error:
        return type(error)


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Path]:
    """The same tensors in files of both modules; large enough that they are encoded in ours."""
    tensors = {
        "a": sparse(torch.float32, (9, 70, 40)),
        "b": sparse(torch.bfloat16, (4100, 3), 1),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 5),
        "vector": sparse(torch.int16, (5000,), 2),
    }
    paths = {"ours": tmp_path / "ours", "theirs": tmp_path / "theirs"}
    ours.save_file(tensors, paths["ours"], min_saving=None)
    theirs.save_file(tensors, paths["theirs"])
    return paths


@pytest.mark.parametrize("name", ["save_file", "save", "load_file", "load", "save_model", "load_model"])
def test_every_argument_is_there(name: str) -> None:
    mine, other = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert list(mine)[: len(other)] == list(other)
    for parameter in other.values():
        assert mine[parameter.name].default == parameter.default
        assert mine[parameter.name].kind == parameter.kind


@pytest.mark.parametrize("row", DTYPES, ids=lambda row: row.name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (64, 130), (2, 0, 4)], ids=str)
def test_every_dtype(tmp_path: Path, row: dtypes.DType, shape: tuple[int, ...]) -> None:
    tensor = sparse(getattr(torch, row.torch or ""), shape)
    for number, save in enumerate(SAVERS):
        wrote = outcome(lambda save=save, number=number: save({"x": tensor}, tmp_path / str(number)))
        # A scalar of half a byte is nothing that a file can hold.
        assert wrote is None or (row.name, shape) == ("F4", ())
        assert wrote in {None, UnsupportedError} or number == 1
    if (tmp_path / "0").exists():
        assert same(ours.load_file(tmp_path / "0")["x"], tensor)
        assert same(ours.load((tmp_path / "0").read_bytes())["x"], tensor)
    if (tmp_path / "1").exists():
        assert same(ours.load_file(tmp_path / "1")["x"], tensor)
        got = outcome(lambda: theirs.load_file(tmp_path / "1")["x"])
        assert isinstance(got, type) or same(got, tensor)


def test_loading_is_the_same(model: dict[str, Path]) -> None:
    expected = theirs.load_file(model["theirs"])
    for path in model.values():
        for loaded in (ours.load_file(path, "cpu"), ours.load(path.read_bytes()), ours.load_file(path)):
            assert loaded.keys() == expected.keys()
            assert all(same(loaded[name], expected[name]) for name in expected)
            loaded["a"].add_(1)  # it is ours to change
    with ours.safe_open(model["ours"], "pt") as mine, safetensors.safe_open(model["theirs"], "pt") as other:
        assert sorted(mine.keys()) == sorted(other.keys())
        assert sorted(mine.offset_keys()) == sorted(other.offset_keys())
        assert all(same(mine.get_tensor(name), other.get_tensor(name)) for name in mine.offset_keys())
        assert mine.get_encoded("a").nnz == int((expected["a"] != 0).sum())
    with ours.safe_open(model["theirs"], framework="pt", device="cpu") as mine:
        assert mine.metadata() is None
        with safetensors.safe_open(model["theirs"], "pt") as other:
            assert mine.offset_keys() == other.offset_keys()


INDICES = [
    *("[:]", "[...]", "[()]", "[0]", "[-1]", "[2:5]", "[:, 1:3]", "[..., 0]", "[:, ..., 1]", "[0, 1, 2]"),
    *("[:1, :2, :3]", "[99]", "[-99]", "[5:7]", "[1:0]", "[-1:]", "[:-1]", "[::2]", "[None]", "[:, None]"),
    *("[[0, 1]]", "[torch.tensor([0])]", "[0:1, 0:1, 0:1, 0:1]", "[True]", "[:, [0, 2]]", "[1.5]", "['a']"),
    *("[np.int64(1)]", "[..., ...]", "[0:100]", "[-100:1]", "[::-1]", "[:, -2]", "[torch.tensor(1)]"),
    *("[:, :, 7:9]", "[1::3, 5:60:7, ::11]", "[[0, 1], [0, 1]]", "[[]]", "[(0,)]", "[4, :, 3]", "[:, 5, 3:]"),
    *("[True, 0]", "[3:3, 0]", "[:, :, :, ...]", "[slice(2, None)]", "[..., 38:]", "[[99]]", "[:, 3]"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("name", ["a", "b", "scalar", "empty", "vector"])
def test_slices_are_the_same(model: dict[str, Path], name: str, index: str) -> None:
    with safetensors.safe_open(model["theirs"], "pt") as opened:
        other = opened.get_slice(name)
        expected = outcome(lambda: eval(f"other{index}", {"other": other, "torch": torch, "np": np}))
    for path in model.values():
        with ours.safe_open(path, "pt") as opened:
            mine = opened.get_slice(name)
            assert (mine.get_shape(), mine.get_dtype()) == (other.get_shape(), other.get_dtype())
            got = outcome(lambda mine=mine: eval(f"mine{index}", {"mine": mine, "torch": torch, "np": np}))
        assert got is expected if isinstance(expected, type) else same(got, expected)


def test_random_slices(model: dict[str, Path]) -> None:
    chance = random.Random(0)
    expected = theirs.load_file(model["theirs"])["a"]
    with ours.safe_open(model["ours"], "pt") as opened:
        mine = opened.get_slice("a")
        for _ in range(400):
            index: list[Any] = []
            for size in expected.shape[: chance.randint(0, 3)]:
                edges = sorted(chance.randint(-size - 2, size + 2) for _ in range(2))
                index.append(
                    chance.randrange(-size, size)
                    if chance.random() < 0.3
                    else slice(*edges, chance.choice([None, 1, 2, 7]))
                )
            if chance.random() < 0.2:
                index.insert(chance.randint(0, len(index)), None)
            if chance.random() < 0.2:
                index.insert(chance.randint(0, len(index)), ...)
            results = [outcome(lambda of=of, index=index: of[tuple(index)]) for of in (mine, expected)]
            assert results[0] is results[1] if isinstance(results[1], type) else same(*results), index


@pytest.mark.parametrize("columns", [False, True])
def test_slices_read_what_they_need_and_no_more(columns: bool) -> None:
    """All bytes that a slice does not need are spoiled; those that it needs are counted."""
    rows, width = 512, 1024
    dense = sparse(torch.bfloat16, (rows, width)).view(torch.uint8).numpy().reshape(-1)
    encoded = EncodedTensor.encode("x", "BF16", (rows, width), dense, digest=False)
    runs = (128, 128, width, rows) if columns else (3 * rows // 8 * width, rows // 8 * width, 0, 1)
    expected = encoded.cut(*runs)
    start, count, stride, number = runs
    elements = itertools.chain.from_iterable(
        range(start + row * stride, start + row * stride + count) for row in range(number)
    )
    blocks = sorted({element // layout.BLOCK for element in elements})
    index = encoded.parts["index"].view("<i8")
    needed = {role: np.zeros(part.size, bool) for role, part in encoded.parts.items()}
    needed["index"][:8] = needed["index"][8 * layout.blocks(rows * width) :][:8] = True
    for block in blocks:
        needed["index"][8 * block : 8 * block + 16] = True
        needed["bitmap"][512 * block : 512 * (block + 1)] = True
        needed["values"][2 * int(index[block]) : 2 * int(index[block + 1])] = True
    if blocks[-1] == layout.blocks(rows * width) - 1:
        needed["index"][8 * layout.blocks(rows * width) :] = True
        needed["values"][2 * encoded.nnz :] = True
    total = sum(part.size for part in encoded.parts.values())
    read = sum(int(mask.sum()) for mask in needed.values())
    for role, part in encoded.parts.items():
        part[~needed[role]] ^= 0xA5
    assert encoded.cut(*runs).tobytes() == expected.tobytes()
    if not columns:
        one = total / layout.blocks(rows * width)
        assert read <= total / 8 + 2 * one
    elif columns:
        assert len(blocks) == layout.blocks(rows * width)  # a block holds four rows of this matrix


ERRORS: dict[str, tuple[Callable[[Any, Path], Any], type | tuple[type, ...]]] = {
    "not a dict": (lambda m, p: m.save([1]), ValueError),
    "not a tensor": (lambda m, p: m.save({"a": 1}), ValueError),
    "sparse": (lambda m, p: m.save({"a": torch.ones(2, 2).to_sparse()}), ValueError),
    "not contiguous": (lambda m, p: m.save({"a": torch.ones(2, 3).t()}), ValueError),
    "shared": (lambda m, p: m.save({"a": (x := torch.ones(4)), "b": x[:2]}), RuntimeError),
    "meta": (lambda m, p: m.save({"a": torch.empty(2, device="meta")}), NotImplementedError),
    "no file": (lambda m, p: m.load_file(p / "none"), FileNotFoundError),
    "a directory": (lambda m, p: m.load_file(p), (OSError, EndorError)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_the_same(tmp_path: Path, case: str) -> None:
    call, kind = ERRORS[case]
    for module in (ours, theirs):
        with pytest.raises(kind):
            call(module, tmp_path)


# Ours are EndorError throughout, theirs are SafetensorError; each names what is wrong.
OTHER_ERRORS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "no tensor": lambda m, o, p: o(p, "pt").get_tensor("zz"),
    "no slice": lambda m, o, p: o(p, "pt").get_slice("zz"),
    "framework": lambda m, o, p: o(p, "xx"),
    "device": lambda m, o, p: o(p, "pt", device="foo"),
    "negative device": lambda m, o, p: o(p, "pt", device=-1),
    "meta device": lambda m, o, p: o(p, "pt", device="meta"),
    "empty": lambda m, o, p: m.load(b""),
    "too long": lambda m, o, p: m.load(b"12345678"),
    "complex128": lambda m, o, p: m.save({"a": torch.ones(2, dtype=torch.complex128)}),
    "metadata": lambda m, o, p: m.save({}, {"x": 1}),
    "name": lambda m, o, p: m.save({1: torch.ones(2)}),
}


@pytest.mark.parametrize("case", OTHER_ERRORS)
def test_errors_of_their_own_kind(model: dict[str, Path], case: str) -> None:
    call = OTHER_ERRORS[case]
    with pytest.raises(EndorError) as caught:
        call(ours, ours.safe_open, model["ours"])
    assert isinstance(caught.value, safetensors.SafetensorError)
    with pytest.raises((safetensors.SafetensorError, KeyError, TypeError)):
        call(theirs, safetensors.safe_open, model["theirs"])


def test_a_closed_file(model: dict[str, Path]) -> None:
    with ours.safe_open(model["ours"], "pt") as opened:
        later = opened.get_slice("a")
    with pytest.raises(EndorError, match="closed"):
        opened.keys()
    with pytest.raises((EndorError, ValueError), match="closed"):
        later[0]


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 64)
        self.head = torch.nn.Linear(64, 300, bias=False)
        self.head.weight = self.embedding.weight
        self.square = torch.nn.Parameter(sparse(torch.float32, (64, 100)).nan_to_num(0, 0, 0).t())


@pytest.mark.parametrize("strict", [True, False])
def test_models(tmp_path: Path, strict: bool) -> None:
    torch.manual_seed(0)
    saved = Tied()
    for name, module in (("ours", ours), ("theirs", theirs)):
        module.save_model(saved, str(tmp_path / name), {"text": "mine"})
    with ours.safe_open(tmp_path / "ours") as mine, safetensors.safe_open(tmp_path / "theirs", "pt") as other:
        assert mine.keys() == sorted(other.keys())
        assert mine.metadata() == other.metadata()
    for module, name in itertools.product((ours, theirs), ("ours", "theirs")):
        if (module, name) == (theirs, "ours"):
            continue
        loaded = Tied()
        missing, unexpected = module.load_model(loaded, str(tmp_path / name), strict=strict)
        assert (set(missing), list(unexpected)) == (set(), [])
        assert all(same(loaded.state_dict()[key], value) for key, value in saved.state_dict().items())
    other_model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    results = [
        outcome(lambda module=module: module.load_model(other_model, tmp_path / "theirs", strict=strict))
        for module in (ours, theirs)
    ]
    if strict:
        assert results == [RuntimeError, RuntimeError]
    else:
        assert [set(part) for part in results[0]] == [set(part) for part in results[1]]


def test_views_that_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(40, dtype=torch.float32)
    views = {
        "one of many": base[3::7][:1],
        "row": torch.arange(12.0).reshape(3, 4)[1],
        "conjugate": torch.view_as_complex(torch.arange(8.0).reshape(4, 2)).conj(),
        "needs grad": torch.ones(3, requires_grad=True),
    }
    for name, tensor in views.items():
        ours.save_file({name: tensor}, tmp_path / "x")
        assert same(ours.load_file(tmp_path / "x")[name], tensor.detach().resolve_conj().clone())


def examples() -> list[str]:
    """The examples in the documentation of the safetensors package, which is installed."""
    functions = [theirs.save, theirs.save_file, theirs.load, theirs.load_file]
    texts = [inspect.getdoc(one) or "" for one in (*functions, *vars(safetensors.safe_open).values())]
    blocks = re.findall(r"```python\n(.*?)```", "\n".join(texts), re.DOTALL)
    return [textwrap.dedent(block) for block in blocks]


@pytest.mark.parametrize("number", range(len(examples())))
def test_examples_of_others_run_with_the_import_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_folder").mkdir()
    tensors = {"embedding": sparse(torch.float32, (512, 1024)), "attention": torch.zeros(256, 256)}
    for name in ("model.safetensors", "my_folder/bert.safetensors"):
        ours.save_file(tensors, tmp_path / name)
    code = examples()[number]
    assert "safetensors" in code
    changed = re.sub(r"from safetensors(\.torch)? import", r"from pyendor\1 import", code)
    # No GPU here, and no stepping in what is printed.
    exec(changed.replace("device=0", "device='cpu'").replace('device="mps"', 'device="cpu"'), {})


def test_examples_were_found() -> None:
    assert len(examples()) >= 5


def test_transformers_with_the_import_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loading and saving of checkpoints, with our functions in the place of those that it imports."""
    transformers = pytest.importorskip("transformers")
    from transformers import modeling_utils

    config = transformers.OPTConfig(
        hidden_size=64, num_hidden_layers=2, ffn_dim=128, num_attention_heads=4, vocab_size=300,
        word_embed_proj_dim=64, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.OPTForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.weight[layer.fc1.weight.abs() < 0.0135] = 0
    swapped = []
    for name, mine in (("safe_save_file", ours.save_file), ("safe_open", pyendor.safe_open)):
        if hasattr(modeling_utils, name):
            monkeypatch.setattr(modeling_utils, name, mine)
            swapped.append(name)
    assert swapped == ["safe_save_file", "safe_open"]
    model.save_pretrained(tmp_path)
    with ours.safe_open(tmp_path / "model.safetensors") as opened:
        assert opened.get_encoded("model.decoder.layers.0.fc1.weight").nnz
    loaded = transformers.OPTForCausalLM.from_pretrained(tmp_path)
    assert all(same(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_metadata(tmp_path: Path) -> None:
    for text in ({"a": "b", "format": "np"}, {"x": ""}, {}, None):
        ours.save_file({"w": torch.ones(3)}, tmp_path / "x", text)
        with ours.safe_open(tmp_path / "x") as opened:
            assert opened.metadata() == (text or {"format": "pt"})


def test_what_is_not_contiguous_and_how_to_save_it(tmp_path: Path) -> None:
    for module in (ours, theirs):
        with pytest.raises(ValueError, match=r"use save_model\(\.\.\., force_contiguous=True\)"):
            module.save_model(Tied(), str(tmp_path / "x"), force_contiguous=False)


def test_no_device_is_the_cpu_as_in_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x"
    ours.save_file({"a": torch.ones(3)}, path)
    theirs.save_file({"a": torch.ones(3)}, tmp_path / "stock")
    stock = theirs.load_file(tmp_path / "stock", device=None)["a"].device
    assert ours.load_file(path, device=None)["a"].device == stock
    with ours.safe_open(path, device=None) as opened:
        assert opened.get_tensor("a").device == opened.get_slice("a")[:].device == stock
    model = torch.nn.ParameterDict({"a": torch.zeros(3)})
    ours.load_model(model, path, device=None)
    assert model["a"].equal(torch.ones(3))


@pytest.mark.parametrize("around", ["meta device", "default device", "default dtype"])
def test_whatever_is_made_by_default(model: dict[str, Path], tmp_path: Path, around: str) -> None:
    """The caller's default device and dtype are for the caller's tensors."""
    expected, layer = ours.load_file(model["ours"]), torch.nn.Linear(3, 3)
    state = {name: value.clone() for name, value in layer.state_dict().items()}

    def use() -> None:
        for path in model.values():
            everything = [ours.load_file(path), ours.load(path.read_bytes()), dict(ours.iter_weights(path))]
            with ours.safe_open(path) as opened:
                everything.append({name: opened.get_tensor(name) for name in expected})
                everything.append({name: opened.get_slice(name)[...] for name in expected})
                assert same(opened.get_slice("empty")[:, 1:3], expected["empty"][:, 1:3])
                assert same(opened.get_slice("a")[2, 3:5], expected["a"][2, 3:5])
            assert all(same(loaded[name], expected[name]) for loaded in everything for name in expected)
        ours.save_file(expected, tmp_path / "again", min_saving=None)
        ours.save_model(layer, str(tmp_path / "layer"))
        assert ours.load_model(layer, tmp_path / "layer") == (set(), [])

    if around == "meta device":
        with torch.device("meta"):
            use()
    elif around == "default device":
        torch.set_default_device("meta")
        try:
            use()
        finally:
            torch.set_default_device(None)
    else:
        torch.set_default_dtype(torch.float64)
        try:
            use()
        finally:
            torch.set_default_dtype(torch.float32)
    assert (tmp_path / "again").read_bytes() == model["ours"].read_bytes()
    assert all(same(layer.state_dict()[name], value) for name, value in state.items())
