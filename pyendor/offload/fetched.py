"""A weight of an offloaded model as a tensor: lent its elements while its layer runs, fetched at other times.

The parameter stays in its module for as long as the model is offloaded. It has the shape, dtype and device
of the weight and no memory: every operator that uses it gets the dense weight instead. A view of it is a
tensor of the same kind, which repeats the view on the dense weight whenever it is used, so that nothing that
a model keeps or returns lies in memory that the next layer is decoded into.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_any, tree_map_only

from pyendor import openmp, torch_product
from pyendor.errors import UsageError, quote
from pyendor.layout import Bytes
from pyendor.offload.stored import Stored
from pyendor.torch_bytes import to_bytes
from pyendor.torch_product import Encoded


class Stopwatch:
    """Adds up time.

    Attributes:
        seconds: in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """What a block of this takes is added."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


class Loan:
    """An encoded weight in a slot, decoded as it is used.

    Args:
        stored: the tensor, which is encoded.
        parts: its parts.
        room: memory for the dense weight, which nobody else writes to while this is lent.
        watch: a stopwatch for the time that decoding takes.
    """

    def __init__(self, stored: Stored, parts: Mapping[str, Bytes], room: Tensor, watch: Stopwatch) -> None:
        self._encoded, self._room, self._watch = stored.encoded(parts), room, watch
        self._decoded = False

    def dense(self) -> Tensor:
        """The dense weight, decoded at the first call.

        Raises:
            FormatError: the parts break a rule of section 8.
        """
        if not self._decoded:
            with self._watch.running(), openmp.used():
                self._encoded.decode(to_bytes(self._room))
            self._decoded = True
        return self._room

    def for_product(self) -> Encoded | None:
        """What it is multiplied as; None where all of it is decoded already."""
        if self._decoded:
            return None

        def decode(first: int, stop: int, out: Bytes) -> None:
            with self._watch.running():
                self._encoded.decode_blocks(first, stop, out, stream=False)

        meta = self._encoded.meta
        about = (meta.positions, meta.values)
        return Encoded(self._room.shape, self._room.dtype, lambda: decode, lambda: self._room, about)


class Source:
    """Where the elements of a weight come from.

    Attributes:
        name: of the weight in the model.
        shape, dtype: as the model wants it.
        fetch: gives the dense weight in memory that nobody writes to; with ``True`` it is the caller's own.
        rows: gives the rows that an embedding looks up; None where only the whole weight can be fetched.
    """

    def __init__(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), dtype
        self.fetch: Callable[[bool], Tensor] = self._nowhere
        self.rows: Callable[[Tensor], Tensor] | None = None
        self._lent: tuple[int, Tensor | Loan] | None = None

    @functools.cached_property
    def transposed(self) -> Tensor:
        """A tensor of the shape of the transposed weight, without memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta").t()

    def lend(self, loan: Tensor | Loan) -> None:
        """Use this on this thread until :meth:`take_back`."""
        self._lent = threading.get_ident(), loan

    def take_back(self) -> None:
        """End the loan: what is used after it is fetched."""
        self._lent = None

    @property
    def loan(self) -> Tensor | Loan | None:
        """What is lent to this thread."""
        lent = self._lent
        return lent[1] if lent is not None and lent[0] == threading.get_ident() else None

    def dense(self) -> Tensor:
        """The dense weight, in memory that is only to be read, and only until the layer has run."""
        loan = self.loan
        if loan is None:
            return self.fetch(False)
        return loan.dense() if isinstance(loan, Loan) else loan

    def _nowhere(self, _: bool) -> NoReturn:
        raise UsageError(f"weight {quote(self.name)} has no source yet: the model is still being loaded")


class Recent:
    """Dense weights that were fetched last, for models that use the same few outside of their layers.

    Args:
        limit: bytes that they may take together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Source, Tensor] = OrderedDict()

    def get(self, source: Source) -> Tensor | None:
        """The dense weight, if it is kept."""
        with self._lock:
            found = self._kept.get(source)
            if found is not None:
                self._kept.move_to_end(source)
            return found

    def put(self, source: Source, dense: Tensor) -> None:
        """Keep a weight, and forget those that were not used for the longest time."""
        if dense.nbytes > self._limit:
            return
        with self._lock:
            self._kept[source] = dense
            while sum(each.nbytes for each in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()


class _View(NamedTuple):
    """An operator that makes a view; ``number`` of several that it makes."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int | None

    def of(self, tensor: Tensor) -> Tensor:
        made: Any = self.func(tensor, *self.args, **self.kwargs)
        view: Tensor = made if self.number is None else made[self.number]
        return view


class Offloaded(Tensor):
    """A weight of an offloaded model, or a view of one.

    Args:
        source: where its elements come from.
        views: the operators that make this view of the weight.
        like: a tensor of the shape, strides and dtype of this.
        device: what the model runs on.
    """

    _source: Source
    _views: tuple[_View, ...]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, source: Source, views: tuple[_View, ...], like: Tensor, device: torch.device
    ) -> Offloaded:
        made: Offloaded = Tensor._make_wrapper_subclass(
            cls, like.shape, like.stride(), like.storage_offset(), dtype=like.dtype, device=device
        )
        made._source, made._views = source, views
        return made

    def __init__(self, *_: object) -> None:
        """Nothing is left to do."""

    @classmethod
    def parameter(cls, source: Source, device: torch.device) -> nn.Parameter:
        """The parameter that stands for a weight."""
        with torch.inference_mode(False), torch.no_grad():
            like = torch.empty(source.shape, dtype=source.dtype, device="meta")
            made = cls(source, (), like, device)
        made._is_param = True  # what makes a parameter of a subclass
        return cast(nn.Parameter, made)

    def own(self) -> Tensor:
        """The dense weight or view in memory of its own."""
        if self._source.loan is None:
            dense = self._seen(self._source.fetch(True))
            return dense.clone() if self._views else dense
        return self._dense().clone()

    def _dense(self) -> Tensor:
        return self._seen(self._source.dense())

    def _seen(self, dense: Tensor) -> Tensor:
        if dense.storage_offset() and any(view.func in _ABSOLUTE for view in self._views):
            dense = dense.clone()  # they count from the beginning of the memory
        for view in self._views:
            dense = view.of(dense)
        return dense

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        about = _about(func)
        if about.writes:
            _require_others(about.writes, args, kwargs)
        first = args[0] if args and isinstance(args[0], Offloaded) else None
        if first is not None and about.aliases:
            if torch.is_inference_mode_enabled() and not first.is_inference():
                # PyTorch notes what a view is a view of, which it cannot with tensors made in that mode.
                with torch.inference_mode(False), torch.no_grad():
                    return cls.__torch_dispatch__(func, types, args, kwargs)
            return (
                func.decompose(*args, **kwargs) if about.composed else first._viewed(func, args[1:], kwargs)
            )
        if func is _EMBEDDING and first is not None and not first._views and first._source.rows is not None:
            return first._source.rows(args[1])
        if func in _MULTIPLYING and (done := _product(args, kwargs)) is not None:
            return done
        if func in _PRODUCTS and any(map(_is_encoded, args)):
            return func.decompose(*args, **kwargs)
        dense: list[Tensor] = []

        def decoded(one: Any) -> Any:
            if isinstance(one, Offloaded):
                found = one._dense()
                if func in _ABSOLUTE and found.storage_offset():
                    found = found.clone()
                dense.append(found)
                return found
            return [*map(decoded, one)] if isinstance(one, list | tuple) else one

        result = func(*map(decoded, args), **{name: decoded(one) for name, one in kwargs.items()})
        return tree_map_only(Tensor, _apart(dense), result) if about.foreign else result

    def _viewed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A view of this, or several."""
        if func in _SAME:
            return Offloaded(self._source, self._views, self, self.device)
        if func is _TRANSPOSE and not self._views:  # what every linear layer does
            return self._view(func, args, kwargs, None, self._source.transposed)
        like: Any = torch.empty(self._source.shape, dtype=self._source.dtype, device="meta")
        like = func(self._seen(like), *args, **kwargs)
        if isinstance(like, Tensor):
            return self._view(func, args, kwargs, None, like)
        return [self._view(func, args, kwargs, index, each) for index, each in enumerate(like)]

    def _view(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int | None, like: Tensor
    ) -> Tensor:
        return Offloaded(self._source, (*self._views, _View(func, args, kwargs, index)), like, self.device)

    # What would hand out memory: copies that cannot be written to by mistake, or errors.

    def numpy(self, *, force: bool = False) -> Any:
        """A copy of the dense weight, which cannot be written to."""
        array = self.own().numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """As of a dense tensor."""
        return self.own().tolist()

    def data_ptr(self) -> int:
        """Where the dense weight lies, while its layer runs.

        Raises:
            UsageError: its layer does not run, so it lies nowhere.
        """
        if self._source.loan is None:
            self._refuse("has no memory while its layer does not run")
        return self._dense().data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Refused: the memory is lent, and is used again for the next layer."""
        self._refuse("has no memory of its own")

    def __dlpack__(self, **_: Any) -> Any:
        self._refuse("has no memory of its own")

    def share_memory_(self) -> NoReturn:
        """Refused: there is nothing to share."""
        self._refuse("has no memory of its own")

    def apply_(self, *_: object) -> NoReturn:
        """Refused, as all writes are."""
        self._refuse("cannot be written to")

    def map_(self, *_: object) -> NoReturn:
        """Refused, as all writes are."""
        self._refuse("cannot be written to")

    @property
    def data(self) -> Tensor:
        """The same weight; what is written to it is refused."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, Offloaded) or (other._source, other._views) != (self._source, self._views):
            self._refuse("cannot be given other memory")

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(
            f"weight {quote(self._source.name)} of an offloaded model {why}: clone() gives a dense copy; to "
            "change weights, load the model without offloading"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = self._alone()
        found: Tensor = memo[id(self)]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._alone().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def _alone(self) -> Tensor:
        dense = self.own()
        return nn.Parameter(dense, self.requires_grad) if isinstance(self, nn.Parameter) else dense

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        about = f"{list(self.shape)}, dtype={self.dtype}, device='{self.device}'"
        return f"Offloaded({quote(self._source.name)}, {about})"


_aten = torch.ops.aten
_EMBEDDING, _TRANSPOSE = _aten.embedding.default, _aten.t.default
# Operators that come as they are in inference mode alone, and otherwise as those that they are made of.
_PRODUCTS = {_aten.linear.default, _aten.matmul.default}
_MULTIPLYING = {_aten.mm.default, _aten.addmm.default}
_SAME = {_aten.detach.default, _aten.alias.default}
_ABSOLUTE = {_aten.as_strided.default, _aten.as_strided_copy.default, _aten.as_strided_scatter.default}


class _About(NamedTuple):
    """What the schema of an operator says.

    Attributes:
        writes: the arguments that it writes to: their places and names.
        aliases: whether its result may lie in the memory of its first argument.
        composed: whether it is made of other operators.
        foreign: whether its schema may lack that.
    """

    writes: tuple[tuple[int, str], ...]
    aliases: bool
    composed: bool
    foreign: bool


@functools.cache
def _about(func: Any) -> _About:
    arguments = list(enumerate(func._schema.arguments))
    aliased = [(place, one) for place, one in arguments if one.alias_info is not None]
    writes = tuple((place, one.name) for place, one in aliased if one.alias_info.is_write)
    aliases = (bool(aliased) and not writes) or func is _aten._unsafe_view.default
    composed = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return _About(writes, aliases, composed, func.namespace != "aten")


def _require_others(
    writes: tuple[tuple[int, str], ...], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raises UsageError if an operator would write to a weight."""
    written = [args[place] if place < len(args) else kwargs.get(name) for place, name in writes]
    tree_map_only(Offloaded, lambda weight: weight._refuse("cannot be written to"), written)


def _is_encoded(one: Any) -> bool:
    return isinstance(one, Offloaded) and isinstance(one._source.loan, Loan)


def _product(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """A product with a weight that is lent encoded, as a layer multiplies by it; None for all else."""
    if kwargs or not _is_encoded(args[-1]):
        return None
    weight: Offloaded = args[-1]
    if len(weight._views) != 1 or weight._views[0].func is not _TRANSPOSE:
        return None
    loan = weight._source.loan
    assert isinstance(loan, Loan)
    encoded = loan.for_product()
    bias = args[0] if len(args) == 3 else None
    return torch_product.product(bias, args[-2], encoded) if encoded is not None else None


def _apart(dense: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Gives a tensor that lies in the memory of one of these memory of its own."""
    taken = {one.untyped_storage()._cdata for one in dense}
    return lambda one: one.clone() if one.untyped_storage()._cdata in taken else one


def owned(output: Any) -> Any:
    """What a module returns, with weights and views of them as dense tensors in memory of their own."""
    # A copy of a dictionary of transformers has its members in another order, and a list's is another list.
    if type(output) is Tensor or not tree_any(lambda one: isinstance(one, Offloaded), output):
        return output
    return tree_map_only(Offloaded, Offloaded.own, output)


def put(owners: Sequence[tuple[nn.Module, str]], parameter: nn.Parameter) -> None:
    """Make a parameter that of some modules.

    One on the meta device becomes it in place, so that whoever else has it has it, too.
    """
    for module, name in owners:
        old = module._parameters[name]
        if old is parameter:
            continue
        if old is not None and old.device.type == "meta":
            try:
                torch.utils.swap_tensors(old, parameter)  # type: ignore[no-untyped-call]
            except RuntimeError:  # somebody has a weak reference, or a slot, which cannot be swapped
                pass
            else:
                parameter = old
        module._parameters[name] = parameter
        if isinstance(module, nn.RNNBase):  # has them in a list as well
            setattr(module, name, parameter)
