"""Tensors that stay encoded in PyTorch: a subclass that decodes itself where an operator wants elements.

In the style of torchao: the parts are ordinary tensors inside of a wrapper, ``__torch_dispatch__`` moves and
copies them as they are and decodes for everything else, and decoding is an operator of its own,
``endor::decode``, so that ``torch.compile`` can keep it in a graph.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyendor import layout, metadata, torch_decode, torch_product
from pyendor.encoded import EncodedTensor
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import dtype_of, from_bytes, row_of, to_bytes
from pyendor.torch_product import Encoded

# Before the roles of parts, in the names of the attributes that hold them.
_ATTRIBUTE = "part_"


class _Decoding(Tensor):
    """What decodes itself for operators that want elements."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and func.is_view and torch.is_inference_mode_enabled() and not args[0].is_inference():
            # PyTorch notes what a view is a view of, which it cannot with tensors made in that mode.
            with torch.inference_mode(False), torch.no_grad():
                return cls.__torch_dispatch__(func, types, args, kwargs)
        if func in _COMPOSED:
            return func.decompose(*args, **kwargs)
        if (done := cls._operate(func, args, kwargs)) is not None:
            return done
        dense = tree_map_only(_Decoding, lambda one: one.decode(), (args, kwargs))
        return func(*dense[0], **dense[1])

    @classmethod
    def _operate(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What need not decode all of it; None for what does."""
        raise NotImplementedError

    def decode(self) -> Tensor:
        """The dense tensor."""
        raise NotImplementedError


# Operators that come as they are in inference mode alone, and otherwise as those that they are made of.
_COMPOSED = {torch.ops.aten.linear.default, torch.ops.aten.matmul.default}


class EndorTensor(_Decoding):
    """A tensor whose memory is its parts; wherever elements are wanted it is decoded.

    Args:
        parts: by role, in the order of B-2: ``uint8`` tensors of one dimension on one device, which are kept.
            Or an encoded tensor, of which a parameter is made, as its class is called by those who put
            parameters of any class in the place of others (accelerate).
        meta: the entry of the tensor, of a supported encoding.
        requires_grad: of the parameter.

    Raises:
        UnsupportedError: PyTorch does not have its type.
    """

    meta: TensorMeta

    @staticmethod
    def __new__(
        cls,
        parts: Mapping[str, Tensor] | Tensor,
        meta: TensorMeta | None = None,
        *,
        requires_grad: bool = False,
    ) -> EndorTensor:
        if isinstance(parts, Tensor):
            return cast(EndorTensor, torch.nn.Parameter(parts, requires_grad=requires_grad))
        assert meta is not None
        made: EndorTensor = Tensor._make_wrapper_subclass(
            cls, meta.shape, dtype=dtype_of(meta), device=parts["values"].device, requires_grad=False
        )
        return made

    def __init__(
        self,
        parts: Mapping[str, Tensor] | Tensor,
        meta: TensorMeta | None = None,
        *,
        requires_grad: bool = False,
    ) -> None:
        if meta is not None and not isinstance(parts, Tensor):
            self._take(parts, meta)

    def _take(self, parts: Mapping[str, Tensor], meta: TensorMeta) -> None:
        self.meta = replace(meta, digest=None)
        for role, part in parts.items():
            setattr(self, _ATTRIBUTE + role, part)

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts by role, in the order of B-2."""
        return {spec.role: getattr(self, _ATTRIBUTE + spec.role) for spec in layout.part_specs(self.meta)}

    @property
    def nnz(self) -> int:
        """Number of stored elements."""
        return self.meta.stored

    @classmethod
    def from_dense(cls, tensor: Tensor) -> EndorTensor:
        """Encodes a tensor in the smallest way (W-10), whatever that saves.

        Args:
            tensor: of any shape, memory layout and device.

        Returns:
            The same shape, dtype, device and elements.

        Raises:
            UnsupportedError: its dtype cannot be encoded (spec 5.3).
        """
        row = row_of(tensor.dtype)
        encoded = EncodedTensor.encode(
            "", row.name, tuple(tensor.shape), to_bytes(tensor.contiguous()), digest=False
        )
        made = cls.from_encoded(encoded)
        return made._each(lambda part: part.to(tensor.device))

    @classmethod
    def from_encoded(cls, encoded: EncodedTensor) -> EndorTensor:
        """An encoded tensor in PyTorch's hands; the memory is shared.

        Args:
            encoded: what :meth:`pyendor.numpy.safe_open.get_encoded` gives.

        Returns:
            A tensor of its dense shape and dtype, on the CPU.

        Raises:
            UnsupportedError: PyTorch does not have its type.
        """
        parts = {role: from_bytes(part, torch.uint8, (part.size,)) for role, part in encoded.parts.items()}
        return cls(parts, encoded.meta)

    def to_encoded(self, name: str = "") -> EncodedTensor:
        """The same as :class:`~pyendor.encoded.EncodedTensor` on the CPU, where it is the same memory.

        Args:
            name: what it is called there.

        Returns:
            Its parts and metadata, without a digest.
        """
        return torch_decode.encoded(self.meta, self.parts, name)

    def decode(self, out: Tensor | None = None, *, device: torch.device | str | int | None = None) -> Tensor:
        """The dense tensor, all rules of section 8 checked.

        Args:
            out: where to put it: contiguous, of this shape and dtype. Otherwise it is new.
            device: where to put a new one; otherwise where the parts are.

        Returns:
            ``out``, or the new tensor.

        Raises:
            FormatError: the parts break a rule of section 8. ``out`` then holds nothing of use.
            ValueError: ``out`` is of another shape, dtype or device, or not contiguous.
            RuntimeError: the tensor was given other memory through ``.data``.
        """
        self._require_own_memory()
        if out is None:
            about = (metadata.entry_text(self.meta), list(self.shape), self.dtype)
            dense: Tensor = torch.ops.endor.decode(list(self.parts.values()), *about)
            return dense if device is None else dense.to(device)
        if device is not None and torch.device(device) != out.device:
            raise ValueError(f"out is on {out.device}, not on {torch.device(device)}")
        if (out.shape, out.dtype) != (self.shape, self.dtype) or not out.is_contiguous():
            raise ValueError(f"out must be a contiguous {self.dtype} tensor of shape {list(self.shape)}")
        torch.ops.endor.decode_into(list(self.parts.values()), metadata.entry_text(self.meta), out)
        return out

    def _converted(self, dense: Tensor) -> Tensor:
        """What it is in another type: still encoded, as Module.to() puts it in the place of its memory."""
        return EndorTensor.from_dense(dense)

    def _for_product(self) -> Encoded | None:
        """What it is multiplied as; None where all of it has to be decoded, or is already."""
        if self.ndim != 2 or not _on_cpu(self):
            return None
        self._require_own_memory()

        def blocks() -> Callable[[int, int, Bytes], object]:
            return functools.partial(self.to_encoded().decode_blocks, stream=False)

        def room() -> Tensor:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")

        return Encoded(self.shape, self.dtype, blocks, room, (self.meta.positions, self.meta.values))

    def _require_own_memory(self) -> None:
        if (tuple(self.shape), self.dtype) != (self.meta.shape, dtype_of(self.meta)):
            raise RuntimeError("an encoded tensor was given other memory through .data; assign a new tensor")

    @property
    def sparsity(self) -> float:
        """Share of the elements that are not stored; 0.0 for a tensor without elements."""
        return 1 - self.nnz / self.numel() if self.numel() else 0.0

    @property
    def encoded_nbytes(self) -> int:
        """Bytes of the parts; ``nbytes`` are those of the dense tensor."""
        return sum(part.numel() for part in self.parts.values())

    def data_ptr(self) -> int:
        """Where the first part that has bytes is: like that of other tensors it tells them apart."""
        pointers = (part.data_ptr() for part in self.parts.values())
        return next((pointer for pointer in pointers if pointer), 0)

    # PyTorch copies and pickles by these what has no data_ptr, which this has.

    def __deepcopy__(self, memo: dict[int, Any]) -> EndorTensor:
        if id(self) in memo:
            return cast(EndorTensor, memo[id(self)])
        made = cast(EndorTensor, self.detach()).requires_grad_(self.requires_grad)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return cast(EndorTensor, made)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _rebuilt, (self.parts, self.meta, self.requires_grad, self.__dict__)

    def _each(self, function: Callable[[Tensor], Tensor]) -> EndorTensor:
        return EndorTensor({role: function(part) for role, part in self.parts.items()}, self.meta)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        about = f"dtype={self.dtype}, nnz={self.nnz}, device='{self.device}'"
        return f"EndorTensor({list(self.shape)}, {about})"

    def __tensor_flatten__(self) -> tuple[list[str], str]:
        return [_ATTRIBUTE + role for role in self.parts], metadata.entry_text(self.meta)

    @staticmethod
    def __tensor_unflatten__(
        parts: dict[str, Tensor], about: str, outer_size: object, outer_stride: object
    ) -> EndorTensor:
        named = {name.removeprefix(_ATTRIBUTE): part for name, part in parts.items()}
        return EndorTensor(named, metadata.parse_entry(about))

    def _stable_hash_for_caching(self) -> str:
        """All that a graph of torch.compile may depend on."""
        return f"{metadata.entry_text(self.meta)} {self.device} {self.requires_grad}"

    @classmethod
    def _operate(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operate = _OPERATORS.get(func) if args and isinstance(args[0], EndorTensor) else None
        return operate(args[0], func, args[1:], kwargs) if operate is not None else None


# The products that torch.nn.functional.linear is made of.
_MULTIPLYING = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


class _Transposed(_Decoding):
    """What a layer multiplies by: a matrix that is still encoded, transposed. For all else it is decoded."""

    base: EndorTensor

    @staticmethod
    def __new__(cls, base: EndorTensor) -> _Transposed:
        rows, columns = base.shape
        made: _Transposed = Tensor._make_wrapper_subclass(
            cls, (columns, rows), (1, columns), dtype=base.dtype, device=base.device
        )
        made.base = base
        return made

    def decode(self) -> Tensor:
        return self.base.decode().t()

    def data_ptr(self) -> int:
        return self.base.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.base.parts["values"].untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        return self.decode().numpy(force=force)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.decode(), memo)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _same, (self.decode(),)

    @classmethod
    def _operate(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in {torch.ops.aten.detach.default, torch.ops.aten.alias.default}:
            return _Transposed(func(args[0].base))
        if func is torch.ops.aten.t.default:
            return torch.ops.aten.alias.default(args[0].base)
        if func not in _MULTIPLYING or kwargs or not isinstance(args[-1], _Transposed):
            return None
        weight = args[-1].base._for_product()
        bias = args[0] if len(args) == 3 else None
        return torch_product.product(bias, args[-2], weight) if weight is not None else None


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _rebuilt(
    parts: Mapping[str, Tensor], meta: TensorMeta, requires_grad: bool, state: dict[str, Any]
) -> EndorTensor:
    """What was pickled."""
    made = EndorTensor(parts, meta)
    made.requires_grad_(requires_grad)
    made.__dict__.update(state)
    return made


# Elements or rows one by one cost more than the same number of those beside each other.
_FEW = 16


def _on_cpu(tensor: EndorTensor) -> bool:
    """Whether its parts can be read; not where operators are only noted down, as by torch.compile."""
    return tensor.device.type == "cpu" and all(type(part) is Tensor for part in tensor.parts.values())


def _keep(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """What leaves the elements as they are is done to the parts."""
    if options.get("dtype") not in {None, tensor.dtype}:
        return tensor._converted(func(tensor.decode(), *args, **options))
    options = {key: value for key, value in options.items() if key not in {"dtype", "memory_format"}}
    return tensor._each(lambda part: func(part, *args, **options))


def _pinned(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether all parts are in pinned memory; empty ones never are."""
    pinned = [func(part, *args, **options) for part in tensor.parts.values() if part.numel()]
    return bool(pinned) and all(pinned)


def _transpose(
    tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]
) -> _Transposed | None:
    return _Transposed(tensor) if tensor._for_product() is not None else None


def _rows(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor | None:
    """The rows of an embedding that are looked up; None where decoding everything is better."""
    indices = args[0]
    if tensor.ndim != 2 or not _on_cpu(tensor) or type(indices) is not Tensor or not indices.numel():
        return None
    rows, places = torch.unique(indices, return_inverse=True)
    if _FEW * rows.numel() > tensor.shape[0] or rows[0] < 0 or rows[-1] >= tensor.shape[0]:
        return None
    tensor._require_own_memory()
    encoded, width = tensor.to_encoded(), tensor.shape[1]
    out = layout.allocate(rows.numel() * width * tensor.element_size())
    for row, at in zip(rows.tolist(), range(0, out.size, width * tensor.element_size()), strict=True):
        encoded.take(row * width, (width,), (1,), out=out[at:])
    return from_bytes(out, tensor.dtype, (rows.numel(), width))[places]


def _cut(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor | None:
    """The part; None where decoding everything is better, or is only noted down, as by torch.compile."""
    if not _on_cpu(tensor):
        return None
    # Of a tensor that is nowhere: where a view of it begins and how it strides is all that is asked.
    view = func(torch.empty(tensor.shape, dtype=torch.uint8, device="meta"), *args, **options)
    if view.ndim and view.stride(-1) != 1 and _FEW * view.numel() > tensor.numel():
        return None
    tensor._require_own_memory()
    data = tensor.to_encoded().take(int(view.storage_offset()), view.shape, view.stride())
    return from_bytes(data, tensor.dtype, view.shape)


def _copy(into: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> EndorTensor:
    """``into.copy_(source)``: as when a state is loaded. The parts are replaced: their sizes may differ."""
    source = args[0]
    if source.shape != into.shape:
        source = source.expand(into.shape)
    if not isinstance(source, EndorTensor) or source.dtype != into.dtype:
        source = EndorTensor.from_dense(source.to(into.dtype))
    into._take({role: part.to(into.device, copy=True) for role, part in source.parts.items()}, source.meta)
    return into


# What need not decode all of a tensor, its first argument, and how it is done; None is given where it has to.
_OPERATORS: dict[Any, Callable[[EndorTensor, Any, Sequence[Any], dict[str, Any]], Any]] = {
    torch.ops.aten.detach.default: _keep,
    torch.ops.aten.alias.default: _keep,
    torch.ops.aten.clone.default: _keep,
    torch.ops.aten._to_copy.default: _keep,
    torch.ops.aten._pin_memory.default: _keep,
    torch.ops.aten.is_pinned.default: _pinned,
    torch.ops.aten.copy_.default: _copy,
    torch.ops.aten.t.default: _transpose,
    torch.ops.aten.slice.Tensor: _cut,
    torch.ops.aten.select.int: _cut,
    torch.ops.aten.embedding.default: _rows,
}
