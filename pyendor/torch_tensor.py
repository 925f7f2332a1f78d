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

from pyendor import capi, layout, metadata, torch_decode, torch_product
from pyendor.encoded import EncodedTensor
from pyendor.errors import UsageError
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import dtype_of, from_bytes, without_data
from pyendor.torch_memory import Memory, Step, check_parts, encode
from pyendor.torch_product import Encoded
from pyendor.torch_views import Decoding, Transposed, View, copied_view, plain, step_of, views

# Before the roles of parts, in the names of the attributes that hold them.
_ATTRIBUTE = "_part_"


class EndorTensor(Decoding):
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

    memory: Memory

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
        return cls._of(Memory(parts, replace(meta, digest=None)))

    def __init__(
        self,
        parts: Mapping[str, Tensor] | Tensor,
        meta: TensorMeta | None = None,
        *,
        requires_grad: bool = False,
    ) -> None:
        pass

    @classmethod
    def _of(cls, memory: Memory) -> EndorTensor:
        """A tensor of this memory, which it may share with others."""
        parts, meta = memory.state
        made: EndorTensor = Tensor._make_wrapper_subclass(
            cls, meta.shape, dtype=dtype_of(meta), device=parts["values"].device
        )
        # Code that takes the address of the elements gets an error, not the address 0.
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.memory = memory
        return made

    @property
    def steps(self) -> tuple[Step, ...]:
        """As of all that has a memory: it is the whole tensor."""
        return ()

    @property
    def meta(self) -> TensorMeta:
        """The entry of the tensor."""
        return self.memory.meta

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts by role, in the order of B-2."""
        return dict(self.memory.parts)

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
            UsageError: it is on the meta device.
        """
        return cls(*encode(plain(tensor)))

    @classmethod
    def from_encoded(cls, encoded: EncodedTensor) -> EndorTensor:
        """An encoded tensor in PyTorch's hands; the memory is shared.

        Args:
            encoded: what :meth:`pyendor.numpy.safe_open.get_encoded` gives.

        Returns:
            A tensor of its dense shape and dtype, on the CPU.

        Raises:
            UnsupportedError: PyTorch does not have its type, or cannot count its dimensions.
        """
        if not encoded.meta.numel:
            without_data(encoded.shape, dtype_of(encoded.meta), "meta")
        parts = {role: from_bytes(part, torch.uint8, (part.size,)) for role, part in encoded.parts.items()}
        return cls(parts, encoded.meta)

    def to_encoded(self, name: str = "") -> EncodedTensor:
        """The same as :class:`~pyendor.encoded.EncodedTensor` on the CPU, where it is the same memory.

        Args:
            name: what it is called there.

        Returns:
            Its parts and metadata, without a digest.
        """
        parts, meta = self.memory.state
        return torch_decode.encoded(meta, parts, name)

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
            RuntimeError: the tensor was given other memory behind its back, through ``torch.Tensor.data``.
        """
        self._require_own_memory()
        if out is None:
            dense = self.memory.decode()
            return dense if device is None else dense.to(device)
        if device is not None and torch.device(device) != out.device:
            raise ValueError(f"out is on {out.device}, not on {torch.device(device)}")
        if (out.shape, out.dtype) != (self.shape, self.dtype) or not out.is_contiguous():
            raise ValueError(f"out must be a contiguous {self.dtype} tensor of shape {list(self.shape)}")
        torch.ops.endor.decode_into(list(self.parts.values()), metadata.entry_text(self.meta), out)
        return out

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
            raise RuntimeError(
                "an encoded tensor was given other memory behind its back; assign a new tensor"
            )

    @property
    def sparsity(self) -> float:
        """Share of the elements that are not stored; 0.0 for a tensor without elements."""
        return 1 - self.nnz / self.numel() if self.numel() else 0.0

    @property
    def encoded_nbytes(self) -> int:
        """Bytes of the parts; ``nbytes`` are those of the dense tensor."""
        return sum(part.numel() for part in self.parts.values())

    def _product(self, func: Any, args: Sequence[Any]) -> Tensor | None:
        """What an operator gives that multiplies by this one, transposed; None where it has to be decoded."""
        weight = self._for_product() if func in _MULTIPLYING else None
        if weight is None:
            return None
        given = [plain(one) if isinstance(one, View) else one for one in args[:-1]]
        return torch_product.product(given[0] if len(given) == 2 else None, given[-1], weight)

    # PyTorch's own of these would reach for dense memory, which there is none of.

    def data_ptr(self) -> int:
        """A number that tells tensors of different memory apart, as theirs does, but that is no address."""
        return -id(self.memory)

    def untyped_storage(self) -> torch.UntypedStorage:
        """The same object for all that share the memory. It has a size; to ask for its bytes is an error."""
        return self.memory.storage(self.nbytes)

    @property
    def data(self) -> Any:
        """An encoded tensor that shares the memory, without gradients.

        To assign a tensor gives this one other memory, of any shape, dtype and device: that of the other, if
        it is encoded too, and otherwise its elements, encoded. Tensors that shared the memory keep it.
        """
        return _DATA.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, Tensor):
            raise UsageError(f".data of a tensor must be a tensor, not {type(other).__name__}")
        made = other if isinstance(other, EndorTensor) else EndorTensor.from_dense(other.detach())
        _DATA.__set__(self, EndorTensor._of(made.memory))
        self.memory = made.memory

    def share_memory_(self) -> EndorTensor:
        """Move the parts to shared memory. After that it cannot be written to: others would not see it."""
        for part in self.parts.values():
            part.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def is_shared(self) -> bool:
        """True if all parts that have bytes are in shared memory."""
        return all(
            part.is_shared()  # type: ignore[no-untyped-call]
            for part in self.parts.values()
            if part.numel()
        )

    def __copy__(self) -> EndorTensor:
        made = EndorTensor._of(self.memory)
        made.requires_grad_(self.requires_grad)
        made.__dict__.update({**self.__dict__, "memory": made.memory})
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> EndorTensor:
        if id(self) in memo:
            return cast(EndorTensor, memo[id(self)])
        made = EndorTensor._of(copy.deepcopy(self.memory, memo))
        made.requires_grad_(self.requires_grad)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self._state(), memo))
        return made

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _rebuilt, (self.parts, metadata.entry_text(self.meta), self.requires_grad, self._state())

    def _state(self) -> dict[str, Any]:
        """Attributes, but for what the tensor is made of."""
        return {name: value for name, value in self.__dict__.items() if name != "memory"}

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
        return f"{_ATTRIBUTE} {metadata.entry_text(self.meta)} {self.device} {self.requires_grad}"

    def _view_by(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A view: encoded where that is possible, and otherwise a dense copy that behaves as one."""
        if func in _ALIASING:
            return EndorTensor._of(self.memory)
        if func is torch.ops.aten.t.default and self._for_product() is not None:
            return Transposed(self)
        if func in _CUTTING and (part := _cut(self, func, args, kwargs)) is not None:
            return copied_view(self.memory, part, step_of(func, args, kwargs))
        return views(self.memory, self.decode(), (), func, args, kwargs)

    def _operate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator gives whose first argument this is and that need not decode all of it."""
        operate = _OPERATORS.get(func) if args[0] is self else None
        return operate(self, func, args[1:], kwargs) if operate is not None else None


# Views that are encoded tensors, and those that decode only what they show.
_ALIASING = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
_CUTTING = {torch.ops.aten.slice.Tensor, torch.ops.aten.select.int}
# The products that torch.nn.functional.linear is made of.
_MULTIPLYING = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


_DATA: Any = Tensor.data


def _attribute(role: str) -> property:
    return property(lambda tensor: tensor.parts[role], doc=f"The part {role}.")


for _role in capi.ROLES:
    setattr(EndorTensor, _ATTRIBUTE + _role, _attribute(_role))


def _rebuilt(parts: object, entry: object, requires_grad: object, state: object) -> EndorTensor:
    """What was pickled, by whomever.

    Raises:
        FormatError: the metadata breaks a rule M.
        UsageError: the parts are not those that it asks for.
    """
    meta = metadata.parse_entry(entry) if isinstance(entry, str) else entry
    if not isinstance(meta, TensorMeta) or not isinstance(state, dict):
        raise UsageError(f"a pickled encoded tensor has no metadata, but {type(entry).__name__}")
    made = EndorTensor(check_parts(parts, meta), meta)
    made.requires_grad_(bool(requires_grad))
    # Earlier releases kept metadata and parts as attributes.
    own = {"memory", "meta", *(_ATTRIBUTE + role for role in capi.ROLES)}
    made.__dict__.update({str(name): value for name, value in state.items() if name not in own})
    return made


# So that torch.load reads it with weights_only too.
torch.serialization.add_safe_globals([_rebuilt])


# Elements or rows one by one cost more than the same number of those beside each other.
_FEW = 16


def _on_cpu(tensor: EndorTensor) -> bool:
    """Whether its parts can be read; not where operators are only noted down, as by torch.compile."""
    return tensor.device.type == "cpu" and all(type(part) is Tensor for part in tensor.parts.values())


def _keep(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """What leaves the elements as they are is done to the parts."""
    if options.get("dtype") not in {None, tensor.dtype}:
        return EndorTensor.from_dense(func(tensor.decode(), *args, **options))
    options = {key: value for key, value in options.items() if key not in {"dtype", "memory_format"}}
    return tensor._each(lambda part: func(part, *args, **options))


def _pinned(tensor: EndorTensor, func: Any, args: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether all parts are in pinned memory; empty ones never are."""
    pinned = [func(part, *args, **options) for part in tensor.parts.values() if part.numel()]
    return bool(pinned) and all(pinned)


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


# What need not decode all of a tensor, its first argument, and how it is done; None is given where it has to.
_OPERATORS: dict[Any, Callable[[EndorTensor, Any, Sequence[Any], dict[str, Any]], Any]] = {
    torch.ops.aten.clone.default: _keep,
    torch.ops.aten._to_copy.default: _keep,
    torch.ops.aten._pin_memory.default: _keep,
    torch.ops.aten.is_pinned.default: _pinned,
    torch.ops.aten.embedding.default: _rows,
}
