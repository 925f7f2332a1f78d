"""Tensors that stay encoded in PyTorch, and weights one by one."""

from __future__ import annotations

import copy
import io
import pickle
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import pyendor.torch as ours  # noqa: E402
from pyendor import backends, encoded, reference, torch_product  # noqa: E402
from pyendor.errors import FormatError, UnsupportedError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402


def weight(rows: int = 300, columns: int = 200, dtype: Any = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    dense = torch.randn(rows, columns)
    return torch.where(dense.abs() > 0.6745, dense, 0.0).to(dtype)


def linear(dense: Any, **options: Any) -> Any:
    layer = torch.nn.Linear(dense.shape[1], dense.shape[0], dtype=dense.dtype)
    layer.weight = torch.nn.Parameter(EndorTensor.from_dense(dense), **options)
    return layer


def traced(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that are left and that there were at most, done for the second time."""
    work()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(300, 200), (5,), (0, 3), ()], ids=str)
def test_there_and_back(dtype: Any, shape: tuple[int, ...]) -> None:
    dense = torch.randint(0, 3, shape).to(dtype)
    tensor = EndorTensor.from_dense(dense)
    assert (tensor.shape, tensor.dtype, tensor.nnz) == (dense.shape, dtype, int((dense.float() != 0).sum()))
    assert torch.equal(tensor.decode().float(), dense.float())
    out = torch.ones_like(dense)
    assert tensor.decode(out=out) is out
    assert torch.equal(out.float(), dense.float())
    with pytest.raises(ValueError, match="contiguous"):
        tensor.decode(out=torch.ones(shape, dtype=torch.float16))


def test_a_layer_works_unchanged() -> None:
    dense = weight()
    layer, plain = linear(dense), torch.nn.Linear(200, 300, dtype=torch.bfloat16)
    plain.load_state_dict({"weight": dense, "bias": layer.bias.detach()})
    x = torch.randn(4, 200, dtype=torch.bfloat16)
    assert isinstance(layer.weight, EndorTensor)
    assert isinstance(layer.weight, torch.nn.Parameter)
    assert torch.equal(layer(x), plain(x))
    layer(x).float().sum().backward()
    plain(x).float().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert layer.weight.encoded_nbytes < 0.6 * layer.weight.nbytes
    assert layer.weight.sparsity == pytest.approx(0.5, abs=0.01)
    assert "nnz" in repr(layer.weight)


def test_it_survives_what_a_model_goes_through(tmp_path: Path) -> None:
    dense = weight()
    layer = linear(dense, requires_grad=False)
    state = layer.state_dict()
    assert isinstance(state["weight"], EndorTensor)
    other = linear(weight().flip(0), requires_grad=False)
    other.load_state_dict(state)
    assert isinstance(other.weight, EndorTensor)
    assert torch.equal(other.weight.decode(), dense)
    other.load_state_dict({"weight": dense.flip(1), "bias": layer.bias})
    assert torch.equal(other.weight.decode(), dense.flip(1))
    plain = torch.nn.Linear(200, 300, dtype=torch.bfloat16)
    plain.load_state_dict(state)
    assert torch.equal(plain.weight, dense)
    copied = copy.deepcopy(layer)
    assert isinstance(copied.weight, EndorTensor)
    assert copied.weight.parts["values"].data_ptr() != layer.weight.parts["values"].data_ptr()
    assert torch.equal(copied.weight.decode(), dense)
    for moved in (layer.to("cpu"), layer.cpu(), layer.to(torch.bfloat16)):
        assert isinstance(moved.weight, EndorTensor)
    converted = copy.deepcopy(layer).to(torch.float32)
    assert isinstance(converted.weight, EndorTensor)
    assert torch.equal(converted.weight.decode(), dense.float())
    torch.Tensor.data.__set__(converted.weight, dense.double())  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="behind its back"):
        converted.weight.decode()
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=False)
    assert torch.equal(loaded["weight"].decode(), dense)


def test_copies_stay_what_they_were() -> None:
    """Parameters stay parameters, tied ones tied, attributes are copied, and nothing is shared."""
    layer = linear(weight(), requires_grad=True)
    layer.other = layer.weight
    layer.weight.mark = [1]
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  our own
        assert isinstance(copied.weight, torch.nn.Parameter)
        assert isinstance(copied.weight, EndorTensor)
        assert copied.weight.requires_grad
        assert copied.other is copied.weight
        assert copied.weight.mark == [1]
        assert copied.weight.mark is not layer.weight.mark
        assert copied.weight.data_ptr() not in {0, layer.weight.data_ptr()}
        assert torch.equal(copied.weight.decode(), weight())


@pytest.fixture
def pinning() -> Iterator[dict[int, int]]:
    """Memory is pinned without a GPU: where it is, and how many bytes.

    In the place of PyTorch's operators for dense tensors, which answer as for CUDA: an empty tensor never is.
    """
    pinned: dict[int, int] = {}

    def pin(part: Any, device: Any = None) -> Any:
        made = part.clone()
        pinned[made.data_ptr()] = made.numel()
        return made

    def is_pinned(part: Any, device: Any = None) -> bool:
        return bool(part.numel()) and part.data_ptr() in pinned

    library = torch.library.Library("aten", "IMPL")
    library.impl("_pin_memory", pin, "CPU")
    library.impl("is_pinned", is_pinned, "CPU")
    yield pinned
    library._destroy()


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["empty parts", "half"])
def test_pinning_keeps_it_encoded(share: float, pinning: dict[int, int]) -> None:
    dense = weight() * (torch.rand(300, 200) < share)
    tensor = EndorTensor.from_dense(dense)
    assert not tensor.is_pinned()
    made = tensor.pin_memory()
    assert isinstance(made, EndorTensor)
    assert sum(pinning.values()) == tensor.encoded_nbytes
    assert made.data_ptr() != tensor.data_ptr()
    assert made.is_pinned()
    assert made.pin_memory() is made
    assert not tensor.is_pinned()
    assert torch.equal(made.decode(), dense)
    assert made.meta == tensor.meta
    copied = tensor.clone()
    made.copy_(copied)  # other memory, as when a state is loaded
    assert not made.is_pinned()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="memory can be pinned")
def test_pinning_without_a_gpu_fails_as_for_a_dense_tensor() -> None:
    messages = []
    for tensor in (weight(), EndorTensor.from_dense(weight())):
        with pytest.raises(RuntimeError) as raised:
            tensor.pin_memory()
        messages.append(str(raised.value).splitlines()[0])
    assert messages[0] == messages[1]


def test_rows_of_an_embedding_are_looked_up() -> None:
    dense = weight().repeat(20, 1)
    encoded = EndorTensor.from_dense(dense)
    last = dense.shape[0] - 1
    for ids in (
        torch.tensor([[3, last], [3, 0]]),
        torch.tensor(7),
        torch.arange(last),
        torch.tensor([]).long(),
    ):
        got = torch.nn.functional.embedding(ids, encoded)
        assert type(got) is torch.Tensor
        assert torch.equal(got, torch.nn.functional.embedding(ids, dense))
    for wrong in (-1, last + 1):
        with pytest.raises(IndexError):
            torch.nn.functional.embedding(torch.tensor([wrong]), encoded)
    encoded.parts["bitmap"][5] ^= 1
    with pytest.raises(FormatError):
        torch.nn.functional.embedding(torch.tensor([0]), encoded)
    assert torch.equal(torch.nn.functional.embedding(torch.tensor([last]), encoded)[0], dense[last])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    torch._dynamo.reset()
    layer = linear(weight(), requires_grad=False)
    x = torch.randn(4, 200, dtype=torch.bfloat16)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="EndorTensor")
        assert torch.allclose(compiled(x).float(), layer(x).float(), atol=0.1)
    with torch.inference_mode():
        assert torch.allclose(compiled(x).float(), layer(x).float(), atol=0.1)


def test_a_layer_takes_one_dense_weight_more() -> None:
    """What decoding takes comes from NumPy, where it is counted; the result is small."""
    layer = linear(weight(1500, 1000), requires_grad=False)
    x = torch.randn(torch_product.FEW + 1, 1000, dtype=torch.bfloat16)
    dense = 1500 * 1000 * 2
    left, peak = traced(lambda: layer(x))
    assert dense <= peak < 1.02 * dense
    assert left < 0.01 * dense


def test_operators_decode() -> None:
    dense = weight(dtype=torch.float32)
    tensor = EndorTensor.from_dense(dense)
    assert torch.equal(tensor + 1, dense + 1)
    assert torch.equal(tensor[3:7, ::2], dense[3:7, ::2])
    assert torch.equal(torch.cat([tensor, dense]), torch.cat([dense, dense]))
    assert torch.equal(tensor.t(), dense.t())
    assert tensor.sum().item() == dense.sum().item()


def test_basic_indices_decode_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weight(300, 5000)
    tensor = EndorTensor.from_dense(dense)
    views: list[Callable[[Any], Any]] = [
        lambda w: w[7:50],
        lambda w: w[7:50, 20:30],
        lambda w: w[:, 100:900],
        lambda w: w[::7],
        lambda w: w[5],
        lambda w: w[5, 6],
        lambda w: w[:, 77],
        lambda w: w[-3:, None, ..., ::100],
        lambda w: w.narrow(0, 3, 200),
        lambda w: w.select(1, 4999),
        lambda w: w[300:],
    ]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded whole")

    with monkeypatch.context() as patch:
        patch.setattr(encoded.EncodedTensor, "decode_blocks", never)
        for view in views:
            assert torch.equal(view(tensor), view(dense))
    assert torch.equal(tensor[:, ::2], dense[:, ::2])
    parameter = torch.nn.Parameter(EndorTensor.from_dense(dense))
    parameter[3:5].float().sum().backward()
    assert parameter.grad is not None
    assert parameter.grad[3:5].eq(1).all()
    assert parameter.grad.sum() == 2 * 5000
    for wrong in (300, (0, 5000)):
        with pytest.raises(IndexError):
            tensor[wrong]
    tensor.parts["bitmap"][5] ^= 1
    assert torch.equal(tensor[1:], dense[1:])
    with pytest.raises(FormatError, match="B-6"):
        tensor[:1]


VIEWS: list[Callable[[Any], Any]] = [
    lambda x: x.t(),
    lambda x: x.T,
    lambda x: x.t()[3:5],
    lambda x: x.t().t(),
    lambda x: x[2:4],
    lambda x: x[1],
    lambda x: x.view(-1),
    lambda x: x.detach(),
    lambda x: x.chunk(2)[1],
    lambda x: x.unsqueeze(0),
    lambda x: x.expand(2, 300, 200),
    lambda x: x * 2,
]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_views_in_every_mode(mode: Any, requires_grad: bool) -> None:
    plain = torch.nn.Parameter(weight(), requires_grad=requires_grad)
    encoded = torch.nn.Parameter(EndorTensor.from_dense(weight()), requires_grad=requires_grad)
    with mode():
        for number, view in enumerate(VIEWS):
            found, expected = view(encoded), view(plain)
            assert torch.equal(found, expected), number
            assert found.stride() == expected.stride(), number
            assert found.is_inference() == expected.is_inference(), number


def test_decoding_elsewhere() -> None:
    dense = weight()
    tensor = EndorTensor.from_dense(dense)
    assert torch.equal(tensor.decode(device="cpu"), dense)
    assert tensor.decode(device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="out is on"):
        tensor.decode(out=torch.empty_like(dense), device="meta")


def test_saving_makes_no_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weight()
    state = {"layer": EndorTensor.from_dense(dense), "bias": torch.ones(300)}
    ours.save_file({"layer": dense, "bias": torch.ones(300)}, tmp_path / "dense")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("encoded or decoded")

    with monkeypatch.context() as patch:
        patch.setattr(encoded.EncodedTensor, "decode_blocks", never)
        patch.setattr(encoded.EncodedTensor, "encode", never)
        ours.save_file(state, tmp_path / "encoded")
    assert (tmp_path / "encoded").read_bytes() == (tmp_path / "dense").read_bytes()
    with ours.safe_open(tmp_path / "encoded", "pt") as opened:
        again = opened.get_encoded("layer")
    assert isinstance(again, EndorTensor)
    assert torch.equal(again.decode(), dense)
    # What is not worth encoding is written dense.
    full = torch.randn(300, 200)
    assert ours.save({"x": EndorTensor.from_dense(full)}) == ours.save({"x": full})


def test_bad_parts_are_found() -> None:
    tensor = EndorTensor.from_dense(weight())
    tensor.parts["bitmap"][5] ^= 1
    with pytest.raises(FormatError, match="B-6"):
        tensor + 1
    with pytest.raises(FormatError, match="B-6"):
        ours.save({"x": tensor})
    with pytest.raises(UnsupportedError):
        EndorTensor.from_dense(torch.ones(3, dtype=torch.complex128))


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    tensors = {f"t{i}": weight(400, 500) + i for i in range(3)}
    tensors |= {f"s{i}": weight(400, 500) for i in range(5)}
    ours.save_file(tensors, tmp_path / "model.endor.safetensors")
    return tensors


@pytest.mark.parametrize("prefetch", [0, 1, 3, 99])
def test_weights_one_by_one(tmp_path: Path, checkpoint: dict[str, Any], prefetch: int) -> None:
    with ours.safe_open(tmp_path / "model.endor.safetensors", "pt") as opened:
        order = opened.offset_keys()
    for path in (tmp_path, tmp_path / "model.endor.safetensors"):
        seen = list(ours.iter_weights(path, prefetch=prefetch))
        assert [name for name, _ in seen] == order
        assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in seen)
    # A loop that ends early leaves nothing behind.
    for _ in ours.iter_weights(tmp_path, prefetch=prefetch):
        break


def test_weights_one_by_one_hold_few(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    tracemalloc.start()
    try:
        for _, _ in ours.iter_weights(tmp_path):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = 400 * 500 * 2
    assert peak < 5 * one < len(checkpoint) * one


def test_weights_one_by_one_name_the_fault(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "model.endor.safetensors"
    with ours.safe_open(path, "pt") as opened:
        order = opened.offset_keys()
        start = opened._file.layout.tensors[order[2]].parts["index"].start
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    weights = ours.iter_weights(path)
    assert [next(weights)[0] for _ in range(2)] == order[:2]
    with pytest.raises(FormatError) as caught:
        next(weights)
    assert caught.value.tensor == order[2]


def test_reference_codec_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYENDOR_BACKEND", "reference")
    assert backends.get() is reference
    dense = weight()
    assert torch.equal(EndorTensor.from_dense(dense).decode(), dense)
    buffer = io.BytesIO(ours.save({"x": dense}))
    assert torch.equal(ours.load(buffer.getvalue())["x"], dense)
