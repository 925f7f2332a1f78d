"""Decoding as operators of PyTorch, ``endor::decode`` and ``endor::decode_into``, on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyendor import layout, metadata, openmp, torch_cuda
from pyendor.encoded import EncodedTensor
from pyendor.errors import FormatError, quote
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import dtype_of, from_bytes, memory_of, to_bytes


def _decode(parts: Sequence[Tensor], meta: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    entry, named = _parsed(parts, meta)
    _require_type(entry, tuple(shape), dtype)
    device = named["values"].device
    if torch_cuda.usable(device):
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        _decode_there(named, entry, out)
        return out
    with openmp.used():
        dense = encoded(entry, named).decode()
    return from_bytes(dense, dtype, shape).to(device)


def _decode_into(parts: Sequence[Tensor], meta: str, out: Tensor) -> None:
    entry, named = _parsed(parts, meta)
    _require_type(entry, tuple(out.shape), out.dtype)
    device = named["values"].device
    _require_apart(named, out)
    if torch_cuda.usable(device) and out.device == device:
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
    """The entry of a tensor, and its parts by role, as many bytes as B-2 says, all on one device.

    Raises:
        ValueError: the parts are not like that.
    """
    entry = metadata.parse_entry(meta)
    specs = layout.part_specs(entry)
    if len(parts) != len(specs):
        roles = ", ".join(spec.role for spec in specs)
        raise ValueError(f"{len(parts)} parts were given; those of this encoding are {roles}")
    named = {spec.role: part for spec, part in zip(specs, parts, strict=True)}
    for spec in specs:
        part, what = named[spec.role], f"part {quote(spec.role)}"
        _, nbytes = memory_of(part, what)
        if nbytes != spec.nbytes:
            raise ValueError(f"{what} has {nbytes} bytes, expected {spec.nbytes}")
        if part.device != parts[0].device:
            raise ValueError(f"{what} is on {part.device}, other parts are on {parts[0].device}")
    return entry, named


def _require_type(meta: TensorMeta, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = dtype_of(meta)
    if (shape, dtype) != (meta.shape, expected):
        found = f"out is a {dtype} tensor of shape {list(shape)}"
        raise ValueError(f"{found}, expected {expected} of shape {list(meta.shape)}")


def _require_apart(parts: Mapping[str, Tensor], out: Tensor) -> None:
    """Raises ValueError if the output cannot be written to, or overlaps a part."""
    start, size = memory_of(out, "out")
    for role, part in parts.items():
        first, nbytes = memory_of(part, role)
        if part.device == out.device and first < start + size and start < first + nbytes:
            raise ValueError(f"out overlaps part {quote(role)} in memory")


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
