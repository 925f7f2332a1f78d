"""Products with matrices that stay encoded: the bits of the dense matrix, without it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_torch_tensor import linear, traced, weight

torch = pytest.importorskip("torch")

import pyendor.torch as ours  # noqa: E402
from pyendor import backends, torch_product  # noqa: E402
from pyendor.errors import FormatError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

CHUNK = 256 << 10


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_product, "CHUNK", CHUNK)
    monkeypatch.setattr(torch_product, "_found", {})
    monkeypatch.setattr(torch_product, "_pace", torch_product.Pace())
    monkeypatch.setattr(torch_product, "SLOW", math.inf)  # however busy this machine is


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each product was done by chunks."""
    done: list[bool] = []
    product = torch_product.product

    def noted(*args: Any) -> Any:
        result = product(*args)
        done.append(result is not None)
        return result

    monkeypatch.setattr(torch_product, "product", noted)
    return done


def same(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8)))


@pytest.fixture(
    params=[torch.no_grad, torch.enable_grad, torch.inference_mode], ids=lambda mode: mode.__name__
)
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (2, 5), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize("rows", [5, 255, 300, 1000, 1024], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_layers_give_the_same_bits(
    dtype: Any, rows: int, bias: bool, shape: tuple[int, ...], products: list[bool]
) -> None:
    dense = weight(rows, 256, dtype)
    plain = torch.nn.Linear(256, rows, bias=bias, dtype=dtype).requires_grad_(False)
    plain.weight = torch.nn.Parameter(dense, requires_grad=False)
    layer = copy.deepcopy(plain)
    layer.weight = torch.nn.Parameter(EndorTensor.from_dense(dense), requires_grad=False)
    x = torch.randn(*shape, 256).to(dtype)
    for _ in range(2):
        assert same(layer(x), plain(x))
    assert products == [True, True]


def test_gradients_flow_through(products: list[bool]) -> None:
    dense = weight(600, 256, torch.float32)
    layer, plain = linear(dense, requires_grad=True), torch.nn.Linear(256, 600)
    plain.load_state_dict({"weight": dense, "bias": layer.bias.detach()})
    results = []
    for one in (layer, plain):
        x = torch.linspace(-1, 1, 3 * 256).view(3, 256).requires_grad_()
        one(x).square().sum().backward()
        results.append((x.grad, one.weight.grad, one.bias.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert products[0]


def test_it_takes_no_dense_weight() -> None:
    layer = linear(weight(2048, 1024), requires_grad=False)
    x = torch.randn(1, 1024, dtype=torch.bfloat16)
    left, peak = traced(lambda: layer(x))
    assert max(left, peak) < CHUNK // 4  # memory for the chunk is there from the first time


def test_chunks_begin_at_blocks_and_are_alike() -> None:
    for rows, columns, chunks in ((1000, 256, 2), (1024, 256, 2), (255, 256, 1), (4096, 512, 16), (1, 32, 1)):
        matrix = EndorTensor.from_dense(torch.zeros(rows, columns).bfloat16())._for_product()
        edges = torch_product._edges(matrix)
        assert edges is not None
        assert (len(edges) - 1, edges[0], edges[-1]) == (chunks, 0, rows)
        assert not any(edge % torch_product.UNIT for edge in edges[:-1])


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    [
        (600, 520, torch.bfloat16),  # chunks would begin within blocks
        (600, 4096, torch.bfloat16),  # the smallest would be too large
        (0, 256, torch.bfloat16),
        (300, 256, torch.int32),
    ],
    ids=str,
)
def test_others_are_decoded_as_a_whole(rows: int, columns: int, dtype: Any, products: list[bool]) -> None:
    dense = weight(rows, columns, dtype)
    encoded, x = EndorTensor.from_dense(dense), torch.ones(1, columns).to(dtype)
    assert same(torch.nn.functional.linear(x, encoded), torch.nn.functional.linear(x, dense))
    assert products == [False]


def test_other_products_are_those_of_dense_tensors(products: list[bool]) -> None:
    dense = weight(256, 256)
    encoded = EndorTensor.from_dense(dense)
    x = torch.randn(torch_product.FEW + 1, 256).bfloat16()
    assert same(x @ encoded.t(), x @ dense.t())
    assert same(x[:2].t().contiguous().t() @ encoded.t(), x[:2].t().contiguous().t() @ dense.t())
    assert same(encoded.t() @ encoded.t(), dense.t() @ dense.t())
    assert same(encoded @ encoded.t(), dense @ dense.t())
    assert same(torch.addmm(x[0], x[:2], encoded.t(), beta=2), torch.addmm(x[0], x[:2], dense.t(), beta=2))
    assert same(torch.addmm(x[0, :1], x[:2], encoded.t()), torch.addmm(x[0, :1], x[:2], dense.t()))
    assert not any(products)
    for bad in (torch.ones(1, 511).bfloat16(), torch.ones(1, 256), torch.ones(0, 511).bfloat16()):
        messages = []
        for one in (dense, encoded):
            with pytest.raises(RuntimeError) as raised:
                torch.nn.functional.linear(bad, one)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


def test_a_transposed_matrix_is_a_tensor_as_others() -> None:
    dense = weight(300, 256)
    encoded = EndorTensor.from_dense(dense)
    turned = encoded.t()
    assert (turned.shape, turned.stride(), turned.dtype) == ((256, 300), (1, 256), dense.dtype)
    assert not turned.is_contiguous()
    assert turned.data_ptr() == encoded.data_ptr()
    assert isinstance(turned.t(), EndorTensor)
    for made in (turned.contiguous(), copy.deepcopy(turned), pickle.loads(pickle.dumps(turned))):  # noqa: S301
        assert type(made) is torch.Tensor
        assert same(made.contiguous(), dense.t().contiguous())
    numbers = EndorTensor.from_dense(dense.int())
    assert np.array_equal(np.asarray(numbers.t()), dense.int().t().numpy())
    assert torch.equal(turned[3:5], dense.t()[3:5])
    assert torch.equal(turned.detach() * 2, dense.t() * 2)
    with pytest.raises(ValueError, match="contiguous"):
        ours.save({"x": turned})


def test_defaults_of_the_caller_change_nothing(products: list[bool]) -> None:
    dense = weight(1024, 256)
    encoded, x = EndorTensor.from_dense(dense), torch.ones(1, 256).bfloat16()
    torch.set_default_dtype(torch.float64)
    state = torch.get_rng_state()
    try:
        with torch.device("meta"):
            result = x @ encoded.t()
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(result, x @ dense.t())
    assert torch.equal(torch.get_rng_state(), state)
    assert products == [True]


def test_faults_are_found() -> None:
    layer = linear(weight(1024, 256), requires_grad=False)
    x = torch.randn(1, 256, dtype=torch.bfloat16)
    layer(x)
    layer.weight.parts["bitmap"][20000] ^= 1
    with pytest.raises(FormatError, match="B-6"):
        layer(x)


def test_other_memory_is_an_error() -> None:
    """As wherever such a tensor is decoded: its parts are not what it is any more."""
    layer = linear(weight(1024, 256), requires_grad=False)
    torch.Tensor.data.__set__(layer.weight, torch.zeros(512, 256, dtype=torch.bfloat16))  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="given other memory behind its back"):
        torch.ones(1, 256).bfloat16() @ layer.weight.t()


def test_another_order_of_sums_is_seen(monkeypatch: pytest.MonkeyPatch, products: list[bool]) -> None:
    """The trial: rows that are summed up in two halves are another result, and chunks are not used then."""
    by_chunks = torch_product._by_chunks

    def otherwise(bias: Any, x: Any, edges: Any, rows: Any) -> Any:
        half = x.shape[1] // 2
        parts = [(x[:, :half], slice(0, half)), (x[:, half:], slice(half, None))]
        sums = [by_chunks(None, part, edges, lambda a, b, c=c: rows(a, b)[:, c]) for part, c in parts]
        return sums[0] + sums[1] if bias is None else sums[0] + sums[1] + bias

    monkeypatch.setattr(torch_product, "_by_chunks", otherwise)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        dense = weight(1024, 256, dtype)
        encoded, x = EndorTensor.from_dense(dense), torch.ones(1, 256).to(dtype)
        for _ in range(2):
            assert same(x @ encoded.t(), x @ dense.t())
    assert products == [False] * 8
    assert list(torch_product._found.values()) == [False] * 4


def test_where_others_have_the_processors(monkeypatch: pytest.MonkeyPatch, products: list[bool]) -> None:
    """Whole matrices for a while when products have become slow; one that is slow may be chance."""
    now = [100.0]
    monkeypatch.setattr(torch_product, "SLOW", 4)
    monkeypatch.setattr(torch_product.time, "perf_counter", lambda: now[0])
    pace = torch_product.Pace()
    for seconds in (3.0, 1.0, 1.0, 1.0, 9.0, 1.0, 3.0, 3.0, 3.0):
        pace.note(("this",), seconds)
    pace.note(("other",), 100.0)
    assert not pace.is_slow()
    pace.note(("this",), 10.0)
    pace.note(("this",), 10.0)
    assert pace.is_slow()
    monkeypatch.setattr(torch_product, "_pace", pace)
    dense = weight(1024, 256)
    encoded, small, x = (
        EndorTensor.from_dense(dense),
        EndorTensor.from_dense(dense[:5]),
        torch.ones(1, 256).bfloat16(),
    )
    assert same(x @ encoded.t(), x @ dense.t())
    assert same(x @ small.t(), x @ dense[:5].t())  # one chunk: nothing to wait for
    now[0] += torch_product.LATER
    assert same(x @ encoded.t(), x @ dense.t())
    assert products == [False, True, True]


def test_the_reference_codec_is_enough(monkeypatch: pytest.MonkeyPatch, products: list[bool]) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT, "reference")
    dense = weight(600, 256)
    x = torch.ones(1, 256).bfloat16()
    assert same(x @ EndorTensor.from_dense(dense).t(), x @ dense.t())
    assert products == [True]
