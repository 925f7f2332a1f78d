"""PyTorch's default device and default dtype change nothing: tensors are where and what they are to be."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")

import pyendor.torch as ours  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

# Of torch, what makes tensors from nothing.
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand"),
    *("randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}


def factories() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted((ROOT / "pyendor").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value
            if isinstance(of, ast.Name) and of.id == "torch" and node.func.attr in FACTORIES:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_allocation_says_where() -> None:
    found = dict(factories())
    assert len(found) > 10
    for place, call in found.items():
        options = {option.arg for option in call.keywords}
        assert None in options or "device" in options, place  # **options hold it
        assert {None, "dtype", "generator"} & options, place


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "with meta": lambda: torch.device("meta"),
    "meta": default_device,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


def tensors() -> dict[str, Any]:
    """With parts that are empty, and without elements."""
    torch.manual_seed(0)
    return {
        "half": torch.randn(64, 64).relu(),
        "zeros": torch.zeros(40, 40),
        "none": torch.zeros(0, 3),
        "bf16": torch.randn(5000).bfloat16(),
        "scalar": torch.tensor(3.0),
    }


def same(found: Any, expected: Any) -> bool:
    return found.device.type == "cpu" and found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.fixture(params=DEFAULTS.values(), ids=list(DEFAULTS))
def defaults(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_files(tmp_path: Path, defaults: Any) -> None:
    expected = tensors()
    with defaults():
        ours.save_file(expected, tmp_path / "model.safetensors", min_saving=None)
        loaded = ours.load_file(tmp_path / "model.safetensors")
        again = ours.load(ours.save(loaded))
        weights = dict(ours.iter_weights(tmp_path / "model.safetensors"))
    for name, tensor in expected.items():
        assert all(same(found[name], tensor) for found in (loaded, again, weights))
    with defaults(), ours.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        for name, tensor in expected.items():
            part = opened.get_slice(name)
            assert same(part[...], tensor)
            assert same(opened.get_tensor(name), tensor)
            if tensor.numel() > 1:
                assert same(opened.get_encoded(name).decode(), tensor)
                assert same(part[1:3], tensor[1:3])
                assert same(part[:0], tensor[:0])
                assert same(part[[1, 2]], tensor[[1, 2]])


def test_encoded_tensors(defaults: Any) -> None:
    for tensor in tensors().values():
        with defaults(), torch.no_grad():
            encoded = EndorTensor.from_dense(tensor)
            assert same(encoded.decode(), tensor)
            encoded.mul_(2)
            assert same(encoded.decode(), tensor * 2)
            encoded.copy_(tensor)
            encoded.data = encoded.decode()
            assert same(encoded.clone().to(torch.float64).decode(), tensor.double())
            if tensor.numel() > 1:
                assert same(encoded[1:3] + 0, tensor[1:3])
                assert same(encoded[:0] + 0, tensor[:0])
                encoded[1:3].fill_(2)
                assert encoded.decode()[1:3].eq(2).all()
            assert same(encoded.zero_().decode(), tensor * 0)


def test_layers(defaults: Any) -> None:
    weight = tensors()["half"]
    encoded = EndorTensor.from_dense(weight)
    x, ids = torch.ones(1, 64), torch.tensor([3])
    with defaults():
        assert same(torch.nn.functional.linear(x, encoded), torch.nn.functional.linear(x, weight))
        assert same(torch.nn.functional.embedding(ids, encoded), weight[3:4])
