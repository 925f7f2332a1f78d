"""All operators of PyTorch that write: an encoded tensor gets what a dense one gets, or there is an error.

The samples are those of PyTorch's own tests, and for every overload that says that it writes, arguments that
are made up from its schema.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # which PyTorch's samples need

from torch.utils._pytree import tree_leaves  # noqa: E402

from pyendor.errors import EndorError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLES = 3
TYPES = (torch.float32, torch.int64, torch.bool)
# For tensor subclasses PyTorch's own code computes a new tensor and leaves out= as it is.
FORGETS_OUT = {"linalg.matrix_rank"}


def plain(tensor: Any) -> Any:
    return tensor.decode() if isinstance(tensor, EndorTensor) else tensor.detach()


def same(one: Any, other: Any) -> bool:
    one, other = plain(one), plain(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.contiguous().reshape(-1), other.contiguous().reshape(-1)
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def tried(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    torch.manual_seed(0)
    try:
        return call(), None
    except Exception as error:
        return None, error


def samples(op: Any) -> Iterator[Any]:
    dtype = next((one for one in TYPES if one in op.supported_dtypes("cpu")), None)
    if dtype is None:
        return
    try:
        found = list(itertools.islice(op.sample_inputs("cpu", dtype), SAMPLES))
    except Exception:  # some need packages that are not here
        return
    for sample in found:
        if isinstance(sample.input, torch.Tensor) and sample.input.layout == torch.strided:
            yield sample


def _encoded(tensor: Any) -> Any:
    try:
        return EndorTensor.from_dense(tensor)
    except EndorError:
        return None


@torch.no_grad()
def test_in_place_variants() -> None:
    """On the tensor itself, and on a view of it."""
    arrived = 0
    for op in op_db:
        inplace = op.get_inplace()
        for sample in samples(op) if inplace is not None else ():
            for seen in (lambda tensor: tensor, lambda tensor: tensor.view(tensor.shape)):
                expected = sample.input.detach().clone().contiguous()
                found = EndorTensor.from_dense(expected)
                targets = [seen(one) for one in (expected, found)]
                tries = [tried(lambda t=t: inplace(t, *sample.args, **sample.kwargs)) for t in targets]  # noqa: B023
                if tries[1][1] is not None:
                    assert tries[0][1] is not None or isinstance(tries[1][1], EndorError), (op.name, tries)
                    expected = sample.input  # it is as it was; a dense one may be left with another shape
                else:
                    assert tries[0][1] is None, (op.name, tries)
                    assert (tries[0][0] is targets[0]) == (tries[1][0] is targets[1]), op.name
                    arrived += 1
                assert same(expected, found), op.name
    assert arrived > 500


@torch.no_grad()
def test_out() -> None:
    arrived = 0
    for op in op_db:
        if not op.supports_out or op.name in FORGETS_OUT or "empty" in op.name:
            continue
        for sample in samples(op):
            result, error = tried(lambda: op(sample.input, *sample.args, **sample.kwargs))  # noqa: B023
            if error is not None or not isinstance(result, torch.Tensor):
                continue
            blank = torch.zeros_like(result).contiguous()
            if (found := _encoded(blank)) is None:
                continue
            expected = blank.clone()
            tries = [
                tried(lambda out=out: op(sample.input, *sample.args, out=out, **sample.kwargs))  # noqa: B023
                for out in (expected, found)
            ]
            if tries[1][1] is not None:
                assert tries[0][1] is not None or isinstance(tries[1][1], EndorError), (op.name, tries)
                expected = blank
            else:
                assert tries[0][1] is None, (op.name, tries)
                arrived += 1
            assert same(expected, found), op.name
    assert arrived > 600


# Kernels of other devices and libraries, and what works on the state of something else.
OTHERS = (
    "cudnn",
    "miopen",
    "mkldnn",
    "_mkldnn",
    "_cudnn",
    "_miopen",
    "quantize",
    "fbgemm",
    "_mps",
    "mps",
    "rename",
)
OTHERS += (
    "_fused_moving",
    "fused_moving",
    "_sparse",
    "sparse",
    "_resize_output",
    "_backward",
    "_thnn",
    "_nested",
)
OTHERS += (
    "record_stream",
    "_coalesced",
    "_cslt",
    "_cufft",
    "_ctc",
    "_to_sparse",
    "lstm",
    "gru",
    "_rnn",
    "_sobol",
)


OTHERS += ("_batch_norm_no_update",)  # ends the process for what is made up, dense too
OTHERS += ("_weight_norm",)  # whose last bits depend on how memory is aligned
OTHERS += ("empty", "new_empty")  # what these give is whatever was in the memory


def overloads() -> Iterator[Any]:
    for name in sorted(dir(torch.ops.aten)):
        packet = getattr(torch.ops.aten, name)
        if (
            not hasattr(packet, "overloads")
            or name.startswith(OTHERS)
            or "backward" in name
            or "sparse" in name
        ):
            continue
        for overload in packet.overloads():
            func = getattr(packet, overload)
            if any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments):
                yield func


def made_up(argument: Any, written: Callable[[Any], Any], small: bool) -> Any:
    """A value for an argument; StopIteration for kinds that are not made up."""
    kind = str(argument.type)
    writes = argument.alias_info is not None and argument.alias_info.is_write
    base = torch.arange(16.0).reshape(4, 4) / 16
    tensor = (lambda: written(base)) if writes else (lambda: base.flip(0) + 0.25)
    if kind == "Tensor":
        return tensor()
    if kind == "List[Tensor]":
        return [tensor(), tensor()]
    if argument.has_default_value():
        return argument.default_value
    if kind.startswith("Optional"):
        return None
    values: dict[str, Any] = {
        "int": 0 if small else 2,
        "number": 2,
        "float": 0.5,
        "bool": True,
        "List[int]": [0] if small else [4, 4],
        "List[number]": [2, 3],
        "List[float]": [0.5, 0.5],
    }
    if kind not in values:
        raise StopIteration(kind)
    return values[kind]


@torch.no_grad()
def test_every_overload_that_says_that_it_writes() -> None:
    arrived, refused = set(), set()
    for func, small in itertools.product(overloads(), (False, True)):
        outcomes = []
        for make in (torch.clone, EndorTensor.from_dense):
            targets: list[Any] = []

            def written(base: Any, make: Any = make, targets: list[Any] = targets) -> Any:
                targets.append(make(base))
                return targets[-1]

            try:
                values = {one.name: made_up(one, written, small) for one in func._schema.arguments}
            except StopIteration:
                break
            positional = [values.pop(one.name) for one in func._schema.arguments if not one.kwarg_only]
            outcomes.append((targets, *tried(lambda: func(*positional, **values))))  # noqa: B023
        if len(outcomes) < 2 or outcomes[0][2] is not None:
            continue  # nothing that a dense tensor takes
        (expected, result, _), (found, other, error) = outcomes
        if isinstance(error, EndorError):
            refused.add(func._schema.name)
            assert all(same(one, torch.arange(16.0).reshape(4, 4) / 16) for one in found), func
            continue
        assert error is None, (func, error)
        assert all(map(same, expected, found)), func
        leaves = [
            [one for one in tree_leaves(each) if isinstance(one, torch.Tensor)] for each in (result, other)
        ]
        assert [any(one is each for each in expected) for one in leaves[0]] == [
            any(one is each for each in found) for one in leaves[1]
        ], func
        arrived.add(func._schema.name)
    assert len(arrived) > 300
    assert refused


# Not of a tensor alone; and what asks for its memory, which test_torch_writes.py has.
NO_METHODS = {"backward", "register_hook", "share_memory_", "_lazy_clone", "_view_func", "_view_func_unsafe"}
NO_METHODS |= {"__class__", "__del__", "__init__", "__init_subclass__", "__new__", "__subclasshook__"}


def half(*_: float) -> float:
    return 0.5


@torch.no_grad()
def test_every_method() -> None:
    """Called by its name, on a tensor and on a view of it, with what may fit."""
    base = torch.arange(16.0).reshape(4, 4) / 16
    ones = torch.ones(4, 4)
    given: list[tuple[Any, ...]] = [(), (1,), (ones,), (0, ones), (2.0, 2.0), (half,), (ones, half)]
    given += [(torch.float64,), ("cpu",), ((4, 4),)]
    changed = 0
    for name in sorted(set(dir(torch.Tensor)) - NO_METHODS):
        if not callable(getattr(torch.Tensor, name, None)):
            continue
        for arguments, viewed in itertools.product(given, (False, True)):
            targets = [base.clone(), EndorTensor.from_dense(base)]
            seen = [one[:] if viewed else one for one in targets]
            errors = [tried(lambda one=one: getattr(one, name)(*arguments))[1] for one in seen]  # noqa: B023
            if errors[1] is not None:
                assert errors[0] is not None or isinstance(errors[1], EndorError), (name, arguments, errors)
                assert same(base, targets[1]), (name, arguments)
            elif errors[0] is None:
                assert same(*targets), (name, arguments, viewed)
                changed += not same(base, targets[1])
    assert changed > 200
