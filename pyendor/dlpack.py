"""Arrays of whatever library, by DLPack, to addresses for the CUDA decoder: CuPy, JAX, Numba, torch.

    word = cupy.zeros(1, cupy.uint64)
    dlpack.decode(meta, cupy.asarray(parts), out, status=word)  # on CuPy's device, on its default stream
    cuda.check(int(word[0]))

What is decoded are the parts of section 8 of the specification. Arrays are borrowed, never owned: nothing is
copied, and who made them frees them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyendor import cuda, layout
from pyendor.cuda import Job, Memory
from pyendor.metadata import TensorMeta

__all__ = ["Borrowed", "borrow", "decode"]

# kDLCUDA, kDLCUDAHost, kDLCUDAManaged: what kernels can read and write; the latter two those of any device.
DEVICES = frozenset({2, 3, 13})
_ONE_DEVICE = 2
_LEGACY_STREAM = 1  # what the protocol calls CUDA's default stream
_WORD = 8  # bytes of a status word


@dataclass(frozen=True)
class Borrowed:
    """Memory of an array, which stays as long as this is kept.

    Attributes:
        address: of its first element, as a number.
        nbytes: how many bytes there are, one behind the other.
        device: type and number, as ``__dlpack_device__`` of the array API says.
        keep: what keeps it alive.
    """

    address: int
    nbytes: int
    device: tuple[int, int]
    keep: Any

    @property
    def memory(self) -> Memory:
        """The same for :class:`pyendor.cuda.Job`."""
        return Memory(self.address, self.nbytes)


def borrow(array: Any, stream: int = 0) -> Borrowed:
    """The memory of an array that has ``__dlpack__``, to be used on a stream.

    Args:
        array: of any shape and dtype, contiguous, in memory of a CUDA device, or in managed or pinned memory.
        stream: a stream of CUDA as a number, that the array is to be ready for; 0 is the default one.

    Returns:
        Where it lies. Keep it as long as the memory is used.

    Raises:
        ValueError: it is not contiguous, or not where kernels can reach it.
        AttributeError: it has no ``__dlpack__``.
    """
    kind, number = (int(value) for value in array.__dlpack_device__())
    if kind not in DEVICES:
        raise ValueError(f"the array is on a device of DLPack's type {kind}, which no CUDA kernel can reach")
    capsule = array.__dlpack__(stream=stream or _LEGACY_STREAM) if kind in {2, 13} else array.__dlpack__()
    tensor = _Managed.from_address(_pointer(capsule, b"dltensor")).tensor
    shape = tensor.shape[: tensor.ndim]
    if tensor.strides and math.prod(shape) and not _contiguous(shape, tensor.strides[: tensor.ndim]):
        raise ValueError("the array is not contiguous")
    nbytes = math.prod(shape) * tensor.bits * tensor.lanes // 8
    return Borrowed((tensor.data or 0) + tensor.byte_offset, nbytes, (kind, number), capsule)


def decode(
    meta: TensorMeta,
    parts: Any,
    out: Any,
    *,
    status: Any = None,
    first: int = 0,
    stop: int | None = None,
    stream: int = 0,
) -> None:
    """Launches the decoding of one tensor.

    Arrays are contiguous, of any dtype and shape: bytes count. Those in device memory are all on one device,
    which decodes them, whatever device is current.

    Args:
        meta: entry of the tensor, of a supported encoding.
        parts: arrays by role, of the lengths of B-2; or one array of all parts one behind the other, in the
            order of B-2.
        out: an array of exactly as many bytes as the elements have; None to check only.
        status: an array of 8 bytes that are 0, for what :func:`pyendor.cuda.check` takes; None for parts that
            were checked before.
        first: the block of 4096 elements to begin with.
        stop: the block behind the last one; None stands for the number of blocks.
        stream: a stream of CUDA as a number; 0 is the default one. The arrays are to be kept until it has got
            there.

    Raises:
        ValueError: an array has another size, is not contiguous, not where kernels can reach it, or on
            another device than the others; ``out`` or ``status`` overlap other memory; the range is invalid.
        KeyError: a part is missing.
        AttributeError: an array has no ``__dlpack__``.
        BackendUnavailableError: there is no CUDA here.
        RuntimeError: the driver refused.
    """
    if isinstance(parts, Mapping):
        lent = {spec.role: borrow(parts[spec.role], stream) for spec in layout.part_specs(meta)}
        memory = {role: one.memory for role, one in lent.items()}
    else:
        lent = {"values": borrow(parts, stream)}
        memory = cuda.packed(meta, lent["values"].memory)
        if lent["values"].nbytes != cuda.packed_nbytes(meta):
            found = f"the parts have {lent['values'].nbytes} bytes"
            raise ValueError(f"{found}, expected {cuda.packed_nbytes(meta)}")
    to = borrow(out, stream) if out is not None else None
    word = borrow(status, stream) if status is not None else None
    if word is not None and word.nbytes != _WORD:
        raise ValueError(f"status has {word.nbytes} bytes, expected {_WORD}")
    others = {"out": to, "status": word}
    device = _device({**lent, **{name: one for name, one in others.items() if one is not None}})
    job = Job(
        meta,
        memory,
        None if to is None else to.memory,
        None if word is None else word.address,
        first,
        stop,
    )
    cuda.decode([job], stream, device)


def _device(arrays: Mapping[str, Borrowed]) -> int | None:
    """The number of the device that arrays are on; None if they are all in memory that any device reaches.

    Raises:
        ValueError: they are on several.
    """
    numbers = {name: one.device[1] for name, one in arrays.items() if one.device[0] == _ONE_DEVICE}
    if len(set(numbers.values())) > 1:
        where = ", ".join(f"{name} on {number}" for name, number in numbers.items())
        raise ValueError(f"the arrays are on several CUDA devices: {where}")
    return next(iter(numbers.values()), None)


class _Tensor(ctypes.Structure):
    """``DLTensor`` of DLPack's C interface."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """``DLManagedTensor``, of which only the tensor is looked at."""

    _fields_ = (("tensor", _Tensor),)


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def _contiguous(shape: list[int], strides: list[int]) -> bool:
    """Whether elements lie one behind the other, row by row."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True
