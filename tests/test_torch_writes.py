"""Writes to encoded tensors, to their aliases and to views of them: they arrive, or are errors."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pyendor.torch as ours  # noqa: E402
from pyendor.errors import EndorError, UnsupportedError, UsageError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

ROWS, COLUMNS = 6, 8


def dense() -> Any:
    torch.manual_seed(0)
    values = torch.randn(ROWS, COLUMNS)
    return torch.where(values.abs() > 0.6745, values, 0.0)


def pair(*, requires_grad: bool = False) -> tuple[Any, Any]:
    """The same parameter dense and encoded."""
    plain = torch.nn.Parameter(dense(), requires_grad=requires_grad)
    return plain, torch.nn.Parameter(EndorTensor.from_dense(dense()), requires_grad=requires_grad)


def plain(tensor: Any) -> Any:
    return tensor.decode() if isinstance(tensor, EndorTensor) else tensor.detach()


def same(one: Any, other: Any) -> bool:
    one, other = plain(one), plain(other)
    return one.dtype == other.dtype and torch.equal(one, other)


def seeded(function: Callable[..., Any], *args: Any) -> Callable[[Any], Any]:
    def run(p: Any) -> Any:
        torch.manual_seed(1)
        return function(p, *args)

    return run


def assigned(p: Any) -> None:
    p[0] = 5


def masked(p: Any) -> None:
    p[dense() > 0] = 5


def added_to_data(p: Any) -> None:
    p.data += 2


def shape_and_type(p: Any) -> None:
    p.data = torch.ones(3, dtype=torch.float64)


def by_adamw(p: Any) -> None:
    p.grad = torch.ones(ROWS, COLUMNS)
    torch.optim.AdamW([p], 0.1).step()


INDEX = torch.tensor([0, 2])
ONES = torch.ones(ROWS, COLUMNS)
WRITES: dict[str, Callable[[Any], Any]] = {
    "add_": lambda p: p.add_(1),
    "mul_": lambda p: p.mul_(2),
    "zero_": lambda p: p.zero_(),
    "fill_": lambda p: p.fill_(-0.0),
    "clamp_": lambda p: p.clamp_(0, 1),
    "masked_fill_": lambda p: p.masked_fill_(dense() > 0, 7),
    "index_copy_": lambda p: p.index_copy_(0, INDEX, torch.ones(2, COLUMNS)),
    "index_put_": masked,
    "setitem": assigned,
    "out=": lambda p: torch.add(ONES, 1, out=p),
    "out= of two": lambda p: torch.max(dense().reshape(1, ROWS, COLUMNS), 0, out=(p, torch.empty(0).long())),
    "out= through a view of it": lambda p: torch.kron(ONES[:2, :2], ONES[:3, :4], out=p),
    "foreach": lambda p: torch._foreach_mul_([p], 2),
    "foreach twice": lambda p: torch._foreach_mul_([p, p], 2),
    "by itself": lambda p: p.add_(p),
    "by an alias": lambda p: p.mul_(p.detach()),
    "by its transpose": lambda p: p.copy_(p.t().reshape(ROWS, COLUMNS)),
    "normal_": seeded(torch.nn.init.normal_),
    "kaiming_uniform_": seeded(torch.nn.init.kaiming_uniform_),
    "trunc_normal_": seeded(torch.nn.init.trunc_normal_),
    "orthogonal_": seeded(torch.nn.init.orthogonal_),
    "eye_": torch.nn.init.eye_,
    "sparse_": seeded(torch.nn.init.sparse_, 0.5),
    ".data": lambda p: p.data.copy_(ONES),
    ".data +=": added_to_data,
    ".data = of another kind": shape_and_type,
    "detach": lambda p: p.detach().copy_(ONES),
    "rows": lambda p: p[:2].copy_(ONES[:2]),
    "columns": lambda p: p[:, 2:4].add_(1),
    "a row": lambda p: p[3].fill_(2),
    "narrow": lambda p: p.narrow(1, 2, 3).zero_(),
    "flat": lambda p: p.view(-1)[3:9].mul_(3),
    "bits": lambda p: p.view(torch.int32).bitwise_xor_(5),
    "transpose": lambda p: p.t().add_(1),
    "part of the transpose": lambda p: p.t()[1:3].fill_(9),
    "twice transposed": lambda p: p.t().t().add_(1),
    "permute": lambda p: p.permute(1, 0)[2:4].mul_(5),
    "expand": lambda p: p.unsqueeze(0).expand(1, ROWS, COLUMNS)[0].add_(3),
    "unbind": lambda p: p.unbind(0)[2].add_(1),
    "chunk": lambda p: p.chunk(2)[1].zero_(),
    "split": lambda p: p.split([1, 2, 3])[2].zero_(),
    "foreach of chunks": lambda p: torch._foreach_add_(list(p.chunk(3)), 1),
    "as_strided": lambda p: p[2:].as_strided((3,), (1,), 4).fill_(4),
    "diagonal": lambda p: p.diagonal().fill_(8),
    "apply_": lambda p: p.apply_(lambda x: x + 1),
    "map_": lambda p: p.map_(ONES, lambda a, b: a + b),
    "map2_": lambda p: p.map2_(ONES, ONES, lambda a, b, c: a + b + c),
    "apply_ to rows": lambda p: p[2:3].apply_(lambda x: x + 1),
    "copy.copy": lambda p: copy.copy(p).add_(1),
    "its size again": lambda p: p.resize_(ROWS, COLUMNS),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_writes_arrive(mode: Any, write: Callable[[Any], Any]) -> None:
    """As for a dense tensor, and at all aliases of what is written to."""
    expected, found = pair()
    aliases = [(one.detach(), one[1:3]) for one in (expected, found)]
    with mode():
        results = [write(one) for one in (expected, found)]
    assert same(expected, found)
    assert isinstance(found, EndorTensor)
    assert isinstance(found, torch.nn.Parameter)
    for one, other in zip(*aliases, strict=True):
        assert same(one, other)
    assert (results[0] is expected) == (results[1] is found)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn]
)
def test_writes_of_all_types(dtype: Any) -> None:
    expected, found = dense().to(dtype), EndorTensor.from_dense(dense().to(dtype))
    for one in (expected, found):
        one.copy_(ONES)
        one[2:4] = torch.zeros(2, COLUMNS).to(dtype)
        one.view(torch.uint8)[5] = 255
    assert torch.equal(expected.view(torch.uint8), found.decode().view(torch.uint8))


def test_views_follow_writes() -> None:
    """Whatever is written, through whatever; NumPy's views of views too, which cannot be written to."""
    expected, found = pair()
    pairs = []
    for one in (expected, found):
        views = [one[1:3], one.t(), one.t()[2], one.view(-1)[4:], one.detach()[5], one.view(torch.int32)]
        arrays = [view.numpy() for view in (one[1:3], one.view(2, 24))]
        one.add_(1)
        one[1].mul_(3)
        views[3][2] = 17
        pairs.append((views, arrays))
    assert same(expected, found)
    for one, other in zip(pairs[0][0], pairs[1][0], strict=True):
        assert torch.equal(one, other)
        assert one.tolist() == other.tolist()
    for one, other in zip(pairs[0][1], pairs[1][1], strict=True):
        assert np.array_equal(one, other)
        with pytest.raises(ValueError, match="read-only"):
            other[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        found.numpy()[0] = 1
    found.numpy(force=True)[0] = 1  # a copy
    np.array(found)[0] = 1
    assert same(expected, found)


def test_a_part_of_two_copies_is_written_once() -> None:
    expected, found = pair()
    for one in (expected, found):
        first, second = one[:4], one[2:]
        first.add_(1)
        second.add_(first[2:4].clone().repeat(2, 1))
    assert same(expected, found)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "set_": (lambda p: p.set_(torch.ones(ROWS, COLUMNS)), r"\.data"),
    "resize_": (lambda p: p.resize_(3), "decode"),
    "resize_as_": (lambda p: p.resize_as_(torch.ones(3)), "decode"),
    "t_": (lambda p: p.t_(), "decode"),
    "t_ of a square": (lambda p: p[:, :6].t_(), "decode"),
    "squeeze_": (lambda p: p.unsqueeze(0).squeeze_(), "decode"),
    "out= of another shape": (lambda p: torch.add(torch.ones(3), 1, out=p), "decode"),
    "out= of a larger one": (lambda p: torch.cat([p, p], out=p.detach()), "decode"),
    "out= of all that is larger": (lambda p: torch.cat([ONES, ONES], out=p), "decode"),
    "an array": (lambda p: p.storage(), "decode"),
    "a storage": (lambda p: p.untyped_storage().fill_(0), "decode"),
    "a storage's element": (lambda p: p.untyped_storage().__setitem__(0, 1), "decode"),
    "a storage copied": (lambda p: p.untyped_storage().copy_(ONES.untyped_storage()), "decode"),
    "a storage of rows": (lambda p: p[:2].untyped_storage().fill_(0), "decode"),
    "data of rows": (lambda p: setattr(p[:2], "data", ONES[:2]), "copy_"),
    "rows shared": (lambda p: p[:2].share_memory_(), "clone"),
    ".data of no kind": (lambda p: setattr(p, "data", torch.ones(2, dtype=torch.complex128)), "complex128"),
    ".data of no tensor": (lambda p: setattr(p, "data", 3), "int"),
    ".data of nothing": (lambda p: setattr(p, "data", torch.ones(2, device="meta")), "meta"),
    "dlpack of its memory": (lambda p: p.__dlpack__(copy=False), "decode"),
    "reshaped columns": (lambda p: p[:, 2:6].view(-1).add_(1), "cannot write to this view"),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(("write", "says"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_written_is_an_error(write: Callable[[Any], Any], says: str) -> None:
    _, found = pair()
    with torch.no_grad(), pytest.raises(EndorError, match=says):
        write(found)
    assert same(found, dense())


def test_an_operator_that_fails_changes_nothing() -> None:
    _, found = pair()
    other = EndorTensor.from_dense(torch.ones(ROWS, COLUMNS))
    with pytest.raises(RuntimeError, match="size"):
        found.add_(torch.ones(5))
    with pytest.raises(RuntimeError, match="size"):
        torch._foreach_add_([other, found], [ONES, torch.ones(5)])
    assert same(found, dense())
    assert same(other, ONES)


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("SGD", {"lr": 0.1, **options})
        for options in ({"foreach": False}, {"foreach": True}, {"fused": True})
    ),
    *(
        ("AdamW", {"lr": 0.1, **options})
        for options in ({"foreach": False}, {"foreach": True}, {"fused": True})
    ),
    *((name, {}) for name in ("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop")),
    *((name, {}) for name in ("Rprop", "Adafactor")),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_optimizers_are_refused(name: str, options: dict[str, Any]) -> None:
    layer = torch.nn.Linear(COLUMNS, ROWS)
    layer.weight = torch.nn.Parameter(EndorTensor.from_dense(dense()))
    layer(torch.ones(2, COLUMNS)).sum().backward()
    optimizer = getattr(torch.optim, name)(layer.parameters(), **options)
    with pytest.raises(UsageError, match="LoRA"):
        optimizer.step()
    assert same(layer.weight, dense())


def test_what_requires_gradients_can_be_loaded_and_initialised() -> None:
    for write in (
        lambda p: p.copy_(ONES),
        seeded(torch.nn.init.xavier_normal_),
        torch.nn.init.zeros_,
        torch.nn.init.eye_,
        assigned,
        shape_and_type,
        lambda p: p.data.add_(1),
    ):
        expected, found = pair(requires_grad=True)
        with torch.no_grad():
            write(expected)
            write(found)
        assert same(expected, found)
        assert found.requires_grad
    with pytest.raises(RuntimeError, match="leaf"):
        pair(requires_grad=True)[1].add_(1)


def test_gradients_of_writes() -> None:
    """A tensor that requires none is written to with one that does, through a view too."""
    results = []
    for make in (lambda tensor: tensor, EndorTensor.from_dense):
        base, x = make(dense()), torch.full((COLUMNS,), 2.0, requires_grad=True)
        base[1:3].mul_(x)
        base.add_(x)
        (base * 3).sum().backward()
        results.append((plain(base), x.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_data_is_as_of_a_dense_tensor() -> None:
    expected, found = pair()
    old = [one.data for one in (expected, found)]
    for one in (expected, found):
        one.data = ONES
    assert same(*old)  # what shared its memory keeps that
    other = EndorTensor.from_dense(ONES)
    found.data = other
    other.zero_()
    assert same(found, torch.zeros(ROWS, COLUMNS))
    assert found.data.data_ptr() == found.data_ptr() == other.data_ptr() != old[1].data_ptr()
    copied = copy.deepcopy((found, found.data))
    copied[1].fill_(3)
    assert same(copied[0], torch.full((ROWS, COLUMNS), 3.0))
    assert same(found, torch.zeros(ROWS, COLUMNS))


def test_other_libraries_operators() -> None:
    with torch.library._scoped_library("endor_test", "FRAGMENT") as library:
        library.define("double_(Tensor(a!) x, *, Tensor(b!)? seen=None) -> ()")

        def double(x: Any, *, seen: Any = None) -> None:
            if seen is not None:
                seen.copy_(x)
            x.mul_(2)

        library.impl("double_", double, "CompositeExplicitAutograd")
        _, found = pair()
        other = EndorTensor.from_dense(ONES)
        torch.ops.endor_test.double_(found[:3], seen=other[:3])
        assert torch.equal(found.decode()[:3], 2 * dense()[:3])
        assert torch.equal(other.decode()[:3], dense()[:3])
        assert torch.equal(found.decode()[3:], dense()[3:])


@pytest.mark.parametrize("write", [lambda w: w.add_(1), lambda w: w[:2].add_(1), lambda w: w.t().add_(1)])
def test_compiled_functions_do_not_lose_writes(write: Callable[[Any], Any]) -> None:
    torch._dynamo.reset()
    _, found = pair()

    def function(w: Any, x: Any) -> Any:
        write(w)
        return x + 1

    with torch.no_grad():
        try:
            torch.compile(function, backend="aot_eager")(found, ONES)
        except Exception as error:  # PyTorch wraps it
            assert "encoded tensor" in str(error)
            assert same(found, dense())
        else:
            expected = dense()
            write(expected)
            assert same(found, expected)


def test_compiled_functions_read_views() -> None:
    torch._dynamo.reset()
    _, found = pair()

    def function(w: Any, x: Any) -> Any:
        return x @ w[2:4].t() + w.t()[0, :2] + w.view(-1)[:2], w[1:3], [part + 1 for part in w.unbind(1)]

    x = torch.ones(3, COLUMNS)
    with torch.no_grad():
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(found, x)
        expected = function(dense(), x)
    assert torch.equal(compiled[0], expected[0])
    assert torch.equal(compiled[1] + 0, expected[1])
    assert all(map(torch.equal, compiled[2], expected[2]))


def test_shared_memory() -> None:
    layer = torch.nn.Linear(COLUMNS, ROWS)
    layer.weight = torch.nn.Parameter(EndorTensor.from_dense(dense()), requires_grad=False)
    assert not layer.weight.is_shared()
    layer.share_memory()
    assert layer.weight.is_shared()
    assert same(layer.weight, dense())
    with pytest.raises(UsageError, match="shared memory"):
        layer.weight.add_(1)
    layer.weight.clone().add_(1)


STORAGE = """
import copy, sys, torch, numpy as np
import pyendor.torch as ours  # noqa: E402
from pyendor.errors import EndorError
from pyendor.torch_tensor import EndorTensor

tensor = EndorTensor.from_dense(torch.ones(6, 8))
for t in (tensor, tensor[1:4], tensor.t()):
    for call in (
        lambda: torch.from_dlpack(t), lambda: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t)),
        lambda: np.from_dlpack(t), lambda: np.asarray(t), lambda: t.tolist(), lambda: t.share_memory_(),
        lambda: t.apply_(lambda x: x), lambda: t.map_(t, lambda x, y: x), lambda: t._typed_storage().fill_(0),
        lambda: t.untyped_storage().fill_(0), lambda: t.untyped_storage().tolist(), lambda: t.is_shared(),
        lambda: t.untyped_storage().byteswap(torch.int16), lambda: t.untyped_storage().clone(),
        lambda: t.untyped_storage().resize_(0), lambda: bytes(t.untyped_storage()), lambda: t.storage(),
        lambda: t.untyped_storage().share_memory_(),
        lambda: t.set_(t.untyped_storage()), lambda: t.data_ptr(),
        lambda: t.untyped_storage().pin_memory(),
        lambda: copy.deepcopy(t.untyped_storage()), lambda: t.new(3),
        lambda: t.storage_type(), lambda: torch.as_tensor(t), lambda: torch.from_numpy(t.numpy()),
    ):
        try:
            found = call()
        except (EndorError, RuntimeError) as error:
            assert type(error) is not RuntimeError or "Cannot access data pointer" in str(error), error
        else:
            if isinstance(found, (torch.Tensor, np.ndarray)) and tuple(found.shape) == tuple(t.shape):
                assert np.array_equal(np.asarray(found), np.ones(t.shape))
sys.stdout.write("done")
"""


def test_no_call_for_memory_ends_the_process() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STORAGE],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (run.returncode, run.stdout) == (0, "done"), run.stderr


COLLECTIVES = """
import torch, torch.distributed as dist
from pyendor.errors import UsageError
from pyendor.torch_tensor import EndorTensor

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
ones, t = torch.ones(6, 8), EndorTensor.from_dense(torch.zeros(6, 8))
for call in (
    lambda t: dist.all_reduce(t), lambda t: dist.broadcast(t, 0), lambda t: dist.reduce(t, 0),
    lambda t: dist.scatter(t, [ones[:len(t)]], src=0), lambda t: dist.all_to_all_single(t, ones[:len(t)]),
    lambda t: dist.all_gather_into_tensor(t, ones[:len(t)]),
    lambda t: torch.ops._c10d_functional.all_reduce_(t, "sum", dist.group.WORLD.group_name),
):
    for target in (t, t[:2]):
        try:
            call(target)
        except UsageError as error:
            assert "copy_() that back" in str(error)
        else:
            raise AssertionError("lost")
dist.all_gather([t], ones)  # copies what it has received into the tensor
assert torch.equal(t.decode(), ones)
layer = torch.nn.Linear(8, 6)
layer.weight = torch.nn.Parameter(t, requires_grad=False)
module = torch.nn.parallel.DistributedDataParallel(layer)
assert torch.equal(module(ones[:1]), torch.nn.functional.linear(ones[:1], ones, layer.bias))
dist.destroy_process_group()
"""


def test_collectives() -> None:
    command = [sys.executable, "-W", "ignore", "-c", COLLECTIVES]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_pickles_are_read_with_weights_only(tmp_path: Path) -> None:
    _, found = pair()
    found.mark = "x"
    torch.save({"w": found, "again": found, "rows": found[:2], "t": found.t()}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(loaded["w"], EndorTensor)
    assert isinstance(loaded["w"], torch.nn.Parameter)
    assert loaded["w"] is loaded["again"]
    assert loaded["w"].mark == "x"
    assert same(loaded["w"], dense())
    assert type(loaded["rows"]) is type(loaded["t"]) is torch.Tensor
    assert torch.equal(loaded["rows"], dense()[:2])
    assert torch.equal(loaded["t"], dense().t())


def test_pickles_of_strangers_are_checked() -> None:
    _, found = pair()
    rebuild, (parts, entry, requires_grad, state) = found.__reduce_ex__(4)
    short = {**parts, "index": parts["index"][:-1]}
    for bad in (
        {},
        short,
        {**parts, "index": parts["index"].view(torch.int64)},
        list(parts),
        {**parts, "index": 3},
    ):
        with pytest.raises(UsageError, match="part"):
            rebuild(bad, entry, requires_grad, state)
    for bad in ("{}", "", '{"dtype":"F32"}'):
        with pytest.raises(EndorError):
            rebuild(parts, bad, requires_grad, state)
    with pytest.raises(UsageError, match="metadata"):
        rebuild(parts, 3, requires_grad, state)
    made = rebuild(parts, found.meta, requires_grad, {"meta": 1, "_part_values": 2, "memory": 3, "mark": 4})
    assert same(made, dense())
    assert made.mark == 4


def test_stock_safetensors_says_what_to_do(tmp_path: Path) -> None:
    stock = pytest.importorskip("safetensors.torch")
    _, found = pair()
    layer = torch.nn.Linear(COLUMNS, ROWS)
    layer.weight = found
    for save in (
        lambda: stock.save_file({"w": found}, tmp_path / "w"),
        lambda: stock.save({"w": found.t().contiguous().detach(), "t": found.t()}),
        lambda: stock.save_model(layer, str(tmp_path / "w")),
    ):
        with pytest.raises(
            UsageError, match=r"decode\(\) it first, or save it with pyendor\.torch\.save_file"
        ):
            save()
    assert not (tmp_path / "w").exists()
    ours.save_model(layer, tmp_path / "w")
    assert torch.equal(ours.load_file(tmp_path / "w")["weight"], dense())
    stock.save_file({"w": found.decode(), "rows": found[1:3]}, tmp_path / "w")
    loaded = stock.load_file(tmp_path / "w")
    assert torch.equal(loaded["w"], dense())
    assert torch.equal(loaded["rows"], dense()[1:3])


def test_no_elements_and_no_type() -> None:
    with pytest.raises(UsageError, match="meta"):
        EndorTensor.from_dense(torch.ones(3, device="meta"))
    _, found = pair()
    with pytest.raises(UnsupportedError):
        found.data = torch.ones(3, dtype=torch.complex128)
    nowhere = found.to("meta")
    with torch.no_grad():
        nowhere.copy_(ONES)
        nowhere[1:].add_(1)
    assert nowhere.device.type == "meta"
    buffer = io.BytesIO()
    torch.save(found.detach(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, map_location="meta", weights_only=True).device.type == "meta"
