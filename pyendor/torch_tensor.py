"""Tensors that stay encoded in PyTorch: a subclass that decodes itself where an operator wants elements.

In the style of torchao: the parts are ordinary tensors inside of a wrapper, ``__torch_dispatch__`` moves and
copies them as they are and decodes for everything else, and decoding is an operator of its own,
``endor::decode``, so that ``torch.compile`` can keep it in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyendor import dtypes, layout
from pyendor.dtypes import DType
from pyendor.encoded import EncodedTensor
from pyendor.errors import UnsupportedError
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta

ROLES = ("values", "bitmap", "index")
PARTS = tuple(f"part_{role}" for role in ROLES)  # attributes of a tensor
BY_TORCH: dict[torch.dtype, DType] = {
    getattr(torch, row.torch): row
    for row in dtypes.TABLE
    if row.torch is not None and hasattr(torch, row.torch)
}


def row_of(dtype: torch.dtype) -> DType:
    """The format's counterpart of a type.

    Raises:
        UnsupportedError: it has none.
    """
    row = BY_TORCH.get(dtype)
    if row is None:
        raise UnsupportedError(f"dtype {dtype} has no counterpart in the format")
    return row


def to_bytes(tensor: Tensor) -> Bytes:
    """The elements of a contiguous tensor as they are in memory, on the CPU."""
    data = tensor.detach().cpu().resolve_conj().resolve_neg()
    if not data.numel():
        return layout.allocate(0)
    # A dimension of one element may have any stride and still be contiguous.
    array: Bytes = data.as_strided((data.numel(),), (1,)).view(torch.uint8).numpy()
    return array


def from_bytes(data: Bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Bytes as a tensor, which keeps them."""
    if data.size == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    if not data.flags.writeable:
        data = data.copy()
    return torch.from_numpy(data).view(dtype).reshape(tuple(shape))


class EndorTensor(Tensor):
    """A tensor whose memory is its parts; wherever elements are wanted it is decoded.

    Args:
        parts: values, bitmap and index, ``uint8`` tensors of one dimension on one device, which are kept.
        nnz: number of stored elements.
        shape, dtype: of the dense tensor.
    """

    part_values: Tensor
    part_bitmap: Tensor
    part_index: Tensor
    nnz: int

    @staticmethod
    def __new__(
        cls, parts: Sequence[Tensor], nnz: int, shape: Sequence[int], dtype: torch.dtype
    ) -> EndorTensor:
        made: EndorTensor = Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=parts[0].device, requires_grad=False
        )
        return made

    def __init__(self, parts: Sequence[Tensor], nnz: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        for name, part in zip(PARTS, parts, strict=True):
            setattr(self, name, part)
        self.nnz = nnz
        self._made_for = (tuple(shape), dtype)

    @property
    def parts(self) -> list[Tensor]:
        """Values, bitmap and index."""
        return [getattr(self, name) for name in PARTS]

    @classmethod
    def from_dense(cls, tensor: Tensor) -> EndorTensor:
        """Encodes a tensor, whatever that saves.

        Raises:
            UnsupportedError: its dtype cannot be encoded.
        """
        row = row_of(tensor.dtype)
        encoded = EncodedTensor.encode(
            "", row.name, tuple(tensor.shape), to_bytes(tensor.contiguous()), digest=False
        )
        made = cls.from_encoded(encoded)
        return made._with_parts([part.to(tensor.device) for part in made.parts])

    @classmethod
    def from_encoded(cls, encoded: EncodedTensor) -> EndorTensor:
        """An encoded tensor in PyTorch's hands; the memory is shared.

        Raises:
            UnsupportedError: PyTorch does not have its type.
        """
        name = dtypes.BY_NAME[encoded.dtype].torch
        dtype = getattr(torch, name or "", None)
        if dtype is None:
            raise UnsupportedError(f"PyTorch has no counterpart of {encoded.dtype}")
        parts = [from_bytes(part, torch.uint8, (part.size,)) for part in encoded.parts.values()]
        return cls(parts, encoded.nnz, encoded.shape, dtype)

    def to_encoded(self, name: str = "") -> EncodedTensor:
        """The same as :class:`~pyendor.encoded.EncodedTensor` on the CPU, where it is the same memory."""
        meta = TensorMeta(row_of(self.dtype).name, tuple(self.shape), "bitmap", "raw", self.nnz)
        return EncodedTensor(
            name, meta, {role: to_bytes(part) for role, part in zip(ROLES, self.parts, strict=True)}
        )

    def decode(self, out: Tensor | None = None, *, device: torch.device | str | int | None = None) -> Tensor:
        """The dense tensor, in ``out`` if it is given; otherwise new, on ``device`` or where the parts are.

        Raises:
            FormatError: the parts break a rule of section 8.
        """
        self._require_own_memory()
        if out is None:
            dense: Tensor = torch.ops.endor.decode(*self.parts, self.nnz, list(self.shape), self.dtype)
            return dense if device is None else dense.to(device)
        if device is not None and torch.device(device) != out.device:
            raise ValueError(f"out is on {out.device}, not on {torch.device(device)}")
        if (out.shape, out.dtype) != (self.shape, self.dtype) or not out.is_contiguous():
            raise ValueError(f"out must be a contiguous {self.dtype} tensor of shape {list(self.shape)}")
        if out.device.type == "cpu":
            self.to_encoded().decode(to_bytes(out))
            return out
        return out.copy_(self.decode())

    def _require_own_memory(self) -> None:
        if (tuple(self.shape), self.dtype) != self._made_for:
            raise RuntimeError("an encoded tensor was given other memory through .data; assign a new tensor")

    @property
    def sparsity(self) -> float:
        """Share of zero elements; 0.0 for a tensor without elements."""
        return 1 - self.nnz / self.numel() if self.numel() else 0.0

    @property
    def encoded_nbytes(self) -> int:
        """Bytes of the parts; ``nbytes`` are those of the dense tensor."""
        return sum(part.numel() for part in self.parts)

    def _with_parts(self, parts: Sequence[Tensor]) -> EndorTensor:
        return EndorTensor(parts, self.nnz, self.shape, self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        about = f"dtype={self.dtype}, nnz={self.nnz}, device='{self.device}'"
        return f"EndorTensor({list(self.shape)}, {about})"

    def __tensor_flatten__(self) -> tuple[list[str], tuple[int, torch.Size, torch.dtype]]:
        return list(PARTS), (self.nnz, self.shape, self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        parts: dict[str, Tensor],
        about: tuple[int, torch.Size, torch.dtype],
        outer_size: object,
        outer_stride: object,
    ) -> EndorTensor:
        return EndorTensor([parts[name] for name in PARTS], *about)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, EndorTensor):
            if func in _KEEPING:
                if kwargs.get("dtype") not in {None, first.dtype}:
                    # Still encoded: Module.to() puts the result in the place of the parameter's memory.
                    return EndorTensor.from_dense(func(first.decode(), *args[1:], **kwargs))
                options = {
                    key: value for key, value in kwargs.items() if key not in {"dtype", "memory_format"}
                }
                return first._with_parts([func(part, *args[1:], **options) for part in first.parts])
            if func in _CUTTING and (part := _cut(first, func, args[1:], kwargs)) is not None:
                return part
            if func is torch.ops.aten.copy_.default:
                return _copy(first, args[1])
            if func is torch.ops.aten.is_pinned.default:
                return all(func(part, *args[1:], **kwargs) for part in first.parts)
        dense = tree_map_only(EndorTensor, EndorTensor.decode, (args, kwargs))
        return func(*dense[0], **dense[1])


# Operators that leave the elements as they are: done to the parts.
_KEEPING = {
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten._pin_memory.default,
}


# Operators that take a part of the elements, of which the others need not be decoded.
_CUTTING = {torch.ops.aten.slice.Tensor, torch.ops.aten.select.int}


def _cut(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor | None:
    """The part; None where decoding everything is better, or is only noted down, as by torch.compile."""
    if tensor.device.type != "cpu" or any(type(part) is not Tensor for part in tensor.parts):
        return None
    # Of a tensor that is nowhere: where a view of it begins and how it strides is all that is asked.
    view = func(torch.empty(tensor.shape, dtype=torch.uint8, device="meta"), *args, **options)
    # Elements one by one cost more than the same number of those beside each other.
    if view.ndim and view.stride(-1) != 1 and 16 * view.numel() > tensor.numel():
        return None
    tensor._require_own_memory()
    data = tensor.to_encoded().take(int(view.storage_offset()), view.shape, view.stride())
    return from_bytes(data, tensor.dtype, view.shape)


def _copy(into: EndorTensor, source: Tensor) -> EndorTensor:
    """``into.copy_(source)``: as when a state is loaded. The parts are replaced: their sizes may differ."""
    if source.shape != into.shape:
        source = source.expand(into.shape)
    if not isinstance(source, EndorTensor) or source.dtype != into.dtype:
        source = EndorTensor.from_dense(source.to(into.dtype))
    for name in PARTS:
        setattr(into, name, getattr(source, name).to(into.device, copy=True))
    into.nnz = source.nnz
    return into


_SCHEMA = "(Tensor values, Tensor bitmap, Tensor index, int nnz, int[] shape, ScalarType dtype) -> Tensor"


def _decode(
    values: Tensor, bitmap: Tensor, index: Tensor, nnz: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    parts = {role: to_bytes(part) for role, part in zip(ROLES, (values, bitmap, index), strict=True)}
    meta = TensorMeta(row_of(dtype).name, tuple(shape), "bitmap", "raw", nnz)
    return from_bytes(EncodedTensor("", meta, parts).decode(), dtype, shape).to(values.device)


torch.library.custom_op("endor::decode", _decode, mutates_args=(), schema=_SCHEMA).register_fake(
    lambda values, bitmap, index, nnz, shape, dtype: values.new_empty(shape, dtype=dtype)
)
