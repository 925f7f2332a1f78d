"""Views of encoded tensors: dense copies that follow writes to the tensor, and lead writes back to it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyendor import torch_writes
from pyendor.errors import UsageError
from pyendor.torch_memory import Backed, Copy, Memory, NoStorage, Step, no_dense_memory, replayed


class Decoding(Backed):
    """What decodes itself for operators that want elements, and for all that is done without operators."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def _view_by(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator that gives a view gives for this one."""
        raise NotImplementedError

    def _operate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator gives that need not decode all of this one; None for what has to."""
        return None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Decoding) and (func.is_view or func in _UNDECLARED):
            if torch.is_inference_mode_enabled() and not first.is_inference():
                # PyTorch notes what a view is a view of, which it cannot with tensors made in that mode.
                with torch.inference_mode(False), torch.no_grad():
                    return cls.__torch_dispatch__(func, types, args, kwargs)
            if not _is_composed(func):
                return first._view_by(func, args[1:], kwargs)
        if _is_composed(func):
            return func.decompose(*args, **kwargs)
        if places := torch_writes.written(func):
            return torch_writes.write(func, places, args, kwargs)
        for one in args:
            if isinstance(one, Decoding) and (done := one._operate(func, args, kwargs)) is not None:
                return done
        dense = tree_map_only(Decoding, lambda one: one.decode(), (args, kwargs))
        return func(*dense[0], **dense[1])

    # What PyTorch does without operators. Nobody gets memory that looks like the elements and is not.

    @property
    def data(self) -> Any:
        """The same memory, without gradients."""
        return _DATA.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        raise UsageError("the .data of a view of an encoded tensor cannot be replaced: use copy_()")

    def numpy(self, *, force: bool = False) -> Any:
        """A decoded array, read-only, as writes would not reach this tensor.

        Args:
            force: give a copy that can be written to, also of a tensor on a GPU or that requires gradients.

        Returns:
            An array of this shape and dtype.
        """
        dense = self.decode()
        if force:
            return dense.clone().numpy(force=True)
        array = dense.detach().requires_grad_(self.requires_grad).numpy()
        array.flags.writeable = False
        if isinstance(array.base, Tensor):
            # The copy of a view is renewed for as long as the array is there.
            array.base._copied = getattr(self, "_copied", None)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """As :meth:`numpy`; what is asked to be a copy can be written to."""
        if copy is False and not isinstance(self, View):
            raise no_dense_memory("an array without a copy")
        array = self.numpy(force=bool(copy))
        return array if dtype is None else array.astype(dtype, copy=False)

    def tolist(self) -> Any:
        """The decoded elements."""
        return self.decode().tolist()

    def __dlpack__(self, *args: Any, copy: bool | None = None, **kwargs: Any) -> Any:
        """The decoded elements, in memory of their own."""
        if copy is False:
            raise no_dense_memory("__dlpack__(copy=False)")
        return self.decode().clone().__dlpack__(*args, **kwargs)

    def apply_(self, function: Any) -> Any:
        """Replace each element by what a function gives for it, as of a dense tensor.

        Args:
            function: from a number to a number.

        Returns:
            This tensor, encoded again.
        """
        return self._rewritten("apply_", lambda dense: dense.apply_(function))

    def map_(self, other: Tensor, function: Any) -> Any:
        """Replace each element by what a function gives for it and another one, as of a dense tensor.

        Args:
            other: a tensor that can be expanded to this shape.
            function: from two numbers to a number.

        Returns:
            This tensor, encoded again.
        """
        return self._rewritten("map_", lambda dense: dense.map_(plain(other), function))

    def map2_(self, x: Tensor, y: Tensor, function: Any) -> Any:
        """Replace each element by what a function gives for it and two others, as of a dense tensor.

        Args:
            x: a tensor that can be expanded to this shape.
            y: another one.
            function: from three numbers to a number.

        Returns:
            This tensor, encoded again.
        """
        return self._rewritten("map2_", lambda dense: dense.map2_(plain(x), plain(y), function))

    def _rewritten(self, name: str, change: Callable[[Tensor], object]) -> Any:
        torch_writes.check(self, name)
        torch_writes.rewrite([self], lambda stand_in: change(stand_in(self)), name)
        return self

    def storage(self) -> Any:
        """Not there."""
        raise UsageError(
            "storage(): an encoded tensor has no dense memory; decode() it first, or save it with "
            "pyendor.torch.save_file, save_model or torch.save"
        )

    def _typed_storage(self) -> Any:
        raise no_dense_memory("storage()")

    def is_shared(self) -> bool:
        """False, but for encoded tensors whose parts are in shared memory."""
        return False

    def share_memory_(self) -> Any:
        """Not for views."""
        raise UsageError(
            "a view of an encoded tensor cannot be shared: share the tensor, or a clone() of this"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.decode())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = copy.deepcopy(self._as_dense(), memo)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._as_dense().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def _as_dense(self) -> Tensor:
        """The dense tensor that this is where it is copied or pickled, which ends its being a view."""
        if self.requires_grad and not self.is_leaf:
            raise UsageError(
                "only tensors that are no results of a computation can be copied so: detach() it first"
            )
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(self.decode(), requires_grad=self.requires_grad)
        return self.decode().detach().requires_grad_(self.requires_grad)


_DATA: Any = Tensor.data


def plain(tensor: Tensor) -> Tensor:
    """The tensor, dense."""
    return tensor.decode() if isinstance(tensor, Decoding) else tensor


# Views whose schema does not say so: operators write through them to out=, as kron does.
_UNDECLARED = {torch.ops.aten._unsafe_view.default}


@functools.cache
def _is_composed(func: Any) -> bool:
    """True for operators that are made of others, which come as they are in inference mode alone."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeExplicitAutograd")
    )


class View(Decoding):
    """A view of an encoded tensor, or of a view of one.

    Its elements are a dense copy, so that it can be read like any tensor, by code outside of PyTorch too. A
    write to the encoded tensor renews the copy; a write to the view decodes the encoded tensor, writes there
    and encodes that again.

    Where operators are traced there is no such copy, and the view is a wrapper that can only be read.
    """

    @staticmethod
    def __new__(
        cls, dense: Tensor, memory: Memory | None, steps: Sequence[Step], copied: Copy | None = None
    ) -> View:
        made: View
        if type(dense) is Tensor:
            made = Tensor._make_subclass(cls, dense)
        else:
            made = Tensor._make_wrapper_subclass(
                cls,
                dense.shape,
                dense.stride(),
                dense.storage_offset(),
                dtype=dense.dtype,
                device=dense.device,
            )
        made.dense = dense
        made.memory = memory
        made._steps = tuple(steps)
        made._copied = copied
        return made

    def __init__(
        self, dense: Tensor, memory: Memory | None, steps: Sequence[Step], copied: Copy | None = None
    ) -> None:
        self.dense: Tensor
        self._steps: tuple[Step, ...]
        self._copied: Copy | None  # lives for as long as a view shows it

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._steps

    def decode(self) -> Tensor:
        return self.dense

    def _view_by(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten.as_strided.default and self.memory is not None:
            # It counts from the beginning of the memory, which this has only a part of.
            return views(
                self.memory, replayed(self.memory.decode(), self.steps), self.steps, func, args, kwargs
            )
        return _views(self.dense, self.memory, self.steps, self._copied, func, args, kwargs)

    def untyped_storage(self) -> torch.UntypedStorage:
        """What tells where the memory of the copy is, and refuses to write there."""
        return NoStorage.of(self.dense) if type(self.dense) is Tensor else self.dense.untyped_storage()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["dense"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], about: None, outer_size: object, outer_stride: object
    ) -> View:
        return View(inner["dense"], None, ())


class Transposed(Decoding):
    """What a layer multiplies by: a matrix that is still encoded, transposed. For all else it is decoded."""

    base: Any  # the EndorTensor
    memory: Memory

    @staticmethod
    def __new__(cls, base: Any) -> Transposed:
        rows, columns = base.shape
        made: Transposed = Tensor._make_wrapper_subclass(
            cls, (columns, rows), (1, columns), dtype=base.dtype, device=base.device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.base = base
        made.memory = base.memory
        return made

    @property
    def steps(self) -> tuple[Step, ...]:
        return (torch.ops.aten.t.default,)

    def decode(self) -> Tensor:
        return replayed(self.base.decode(), self.steps)

    def _view_by(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in {torch.ops.aten.detach.default, torch.ops.aten.alias.default}:
            return Transposed(func(self.base))
        if func is torch.ops.aten.t.default:
            return torch.ops.aten.alias.default(self.base)
        return views(self.memory, self.decode(), self.steps, func, args, kwargs)

    def _operate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.base._product(func, args) if args[-1] is self and not kwargs else None

    def data_ptr(self) -> int:
        """As of the tensor."""
        return int(self.base.data_ptr())

    def untyped_storage(self) -> torch.UntypedStorage:
        """As of the tensor."""
        storage: torch.UntypedStorage = self.base.untyped_storage()
        return storage


def views(
    memory: Memory | None,
    dense: Tensor,
    steps: Sequence[Step],
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What an operator gives that makes views, from a tensor that was decoded for it.

    Args:
        memory: of the encoded tensor.
        dense: this memory decoded, after the steps.
        steps: from the memory to what the views are made of.
        func: the operator.
        args: its arguments after the tensor.
        kwargs: its options.

    Returns:
        A view, or a list of them.
    """
    copied = None
    if memory is not None and type(dense) is Tensor and dense.device.type != "meta":
        copied = Copy(dense, steps)
        memory.register(copied)
    return _views(dense, memory if type(dense) is Tensor else None, steps, copied, func, args, kwargs)


def copied_view(memory: Memory, dense: Tensor, step: Step) -> View:
    """A view, given its elements.

    Args:
        memory: of the encoded tensor.
        dense: the elements, in memory of their own.
        step: how they follow from the dense tensor.

    Returns:
        The view.
    """
    made = Copy(dense, [step])
    memory.register(made)
    return View(dense, memory, [step], made)


def step_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: int | None = None) -> Step:
    """An operator that gives a view, or the one of its views at this place."""

    def step(dense: Tensor) -> Tensor:
        found = func(dense, *args, **kwargs)
        view: Tensor = found if place is None else found[place]
        return view

    return step


def _views(
    dense: Tensor,
    memory: Memory | None,
    steps: Sequence[Step],
    copied: Copy | None,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    found = func(dense, *args, **kwargs)
    if isinstance(found, Tensor):
        return View(found, memory, [*steps, step_of(func, args, kwargs)], copied)
    return [
        View(one, memory, [*steps, step_of(func, args, kwargs, place)], copied)
        for place, one in enumerate(found)
    ]
