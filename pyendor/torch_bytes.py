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


def from_bytes(data: Bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Bytes as a tensor, which keeps them."""
    if data.size == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    if not data.flags.writeable:
        data = data.copy()
    return torch.from_numpy(data).view(dtype).reshape(tuple(shape))


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
