"""Decoding as operators of PyTorch, ``endor::decode`` and ``endor::decode_into``, on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyendor import layout, metadata, openmp, torch_cuda
from pyendor.encoded import EncodedTensor
from pyendor.errors import FormatError
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import from_bytes, to_bytes


def _decode(parts: Sequence[Tensor], meta: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    entry, named = _parsed(parts, meta)
    if torch_cuda.usable(parts[0].device):
        out = torch.empty(tuple(shape), dtype=dtype, device=parts[0].device)
        _decode_there(named, entry, out)
        return out
    with openmp.used():
        dense = encoded(entry, named).decode()
    return from_bytes(dense, dtype, shape).to(parts[0].device)


def _decode_into(parts: Sequence[Tensor], meta: str, out: Tensor) -> None:
    entry, named = _parsed(parts, meta)
    if torch_cuda.usable(parts[0].device) and out.device == parts[0].device:
        _decode_there(named, entry, out)
    elif out.device.type == "cpu":
        with openmp.used():
            encoded(entry, named).decode(to_bytes(out))
    else:
        out.copy_(_decode(parts, meta, out.shape, out.dtype))


def _decode_there(parts: Mapping[str, Tensor], meta: TensorMeta, out: Tensor) -> None:
    """Decodes on the device. Where in a part a fault is, the codec of the CPU says."""
    try:
        torch_cuda.decode(parts, meta, out)
    except FormatError:
        encoded(meta, parts).validate()
        raise


def encoded(meta: TensorMeta, parts: Mapping[str, Tensor], name: str = "") -> EncodedTensor:
    """Parts that are on the CPU, or are brought there, for its codec."""
    return EncodedTensor(name, meta, {role: to_bytes(part) for role, part in parts.items()})


def _parsed(parts: Sequence[Tensor], meta: str) -> tuple[TensorMeta, dict[str, Tensor]]:
    entry = metadata.parse_entry(meta)
    roles = (spec.role for spec in layout.part_specs(entry))
    return entry, dict(zip(roles, parts, strict=True))


# Operators, so that torch.compile keeps them in a graph as they are.
torch.library.custom_op(
    "endor::decode",
    _decode,
    mutates_args=(),
    schema="(Tensor[] parts, str meta, int[] shape, ScalarType dtype) -> Tensor",
).register_fake(lambda parts, meta, shape, dtype: parts[0].new_empty(shape, dtype=dtype))
torch.library.custom_op(
    "endor::decode_into",
    _decode_into,
    mutates_args=("out",),
    schema="(Tensor[] parts, str meta, Tensor(a!) out) -> ()",
).register_fake(lambda parts, meta, out: None)
