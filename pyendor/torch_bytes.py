"""Types of PyTorch and those of the format, and elements of tensors as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyendor import dtypes, layout
from pyendor.dtypes import DType
from pyendor.errors import UnsupportedError
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta

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


def memory_of(tensor: Tensor, what: str) -> tuple[int, int]:
    """Address and number of bytes of a tensor whose elements lie one behind the other in memory, as they are.

    Args:
        tensor: on any device.
        what: names it, for errors.

    Raises:
        ValueError: they do not; or the tensor's storage has been taken away or made smaller.
    """
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError(f"{what} must be a contiguous tensor; its strides are {_strides(tensor)}")
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(f"{what} is a conjugated or negated view: resolve it first, its memory is another")
    nbytes = tensor.numel() * tensor.element_size()
    held = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    if nbytes > held:
        raise ValueError(f"{what} has {nbytes} bytes, and its storage only {max(0, held)}")
    return (tensor.data_ptr(), nbytes) if nbytes else (0, 0)


def _strides(tensor: Tensor) -> str:
    return str(list(tensor.stride())) if tensor.layout == torch.strided else str(tensor.layout)


def from_bytes(data: Bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Bytes as a tensor on the CPU, which keeps them.

    Raises:
        UnsupportedError: it is empty, with dimensions that PyTorch cannot count.
    """
    if data.size == 0:
        return without_data(shape, dtype, "cpu")
    if not data.flags.writeable:
        data = data.copy()
    return torch.from_numpy(data).view(dtype).reshape(tuple(shape))


def without_data(shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    """A tensor that has no elements, or is on the device ``meta``, whatever the caller's default device is.

    Raises:
        UnsupportedError: PyTorch cannot count its dimensions.
    """
    try:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    except RuntimeError as error:
        raise UnsupportedError(f"PyTorch has no tensors of shape {list(shape)}: {error}") from error


def torch_dtype(name: str) -> torch.dtype | None:
    """What PyTorch calls a dtype of the format; None if it does not have it."""
    dtype = getattr(torch, dtypes.BY_NAME[name].torch or "", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def dtype_of(meta: TensorMeta) -> torch.dtype:
    """What PyTorch calls the dtype of a tensor.

    Raises:
        UnsupportedError: it does not have it.
    """
    dtype = torch_dtype(meta.dtype)
    if dtype is None:
        raise UnsupportedError(f"PyTorch has no counterpart of {meta.dtype}")
    return dtype
