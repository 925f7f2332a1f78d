"""The front door for NumPy: the functions of ``safetensors.numpy`` over Endor files.

Plain safetensors files are read too. BF16 and the 8-bit floats come as the types of ``ml_dtypes``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyendor import atomic, dtypes, file, slicing, writer
from pyendor.choice import MIN_SAVING, Values
from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.layout import Bytes, Tensor
from pyendor.opened import Opened, Sliceable, dtype_of, no_counterpart
from pyendor.writer import TensorSource

__all__ = ["ArraySlice", "load", "load_file", "safe_open", "save", "save_file"]

Array = npt.NDArray[Any]


def save_file(
    tensor_dict: Mapping[str, Array],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
) -> None:
    """Saves arrays as an Endor file, in the order of the mapping; replaces an existing file, all or nothing.

    Args:
        tensor_dict: arrays by name, of any shape, memory layout and byte order.
        filename: the file to write.
        metadata: text of your own, kept beside the format's; None is ``{"format": "pt"}`` (W-3).
        values: ``auto`` takes for each tensor the smallest encoding (W-10); ``raw`` keeps to what readers of
            format 1.0 know; ``split`` takes split values where a dtype has them.
        min_saving: encode a tensor only where that saves this share of its size (W-7); None encodes every one
            that can be.

    Raises:
        UnsupportedError: an array's dtype has no counterpart in the format.
        UsageError: names that the format does not have (W-8), or a header that gets too long (W-1).
        OSError: writing failed; a file that was there is as it was.
    """
    with atomic.new_file(filename, force=True) as stream:
        writer.write(stream, _sources(tensor_dict), metadata, values=values, min_saving=min_saving)


def save(
    tensor_dict: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
) -> bytes:
    """The bytes that :func:`save_file` would write.

    Args:
        tensor_dict: arrays by name, of any shape, memory layout and byte order.
        metadata: text of your own, kept beside the format's; None is ``{"format": "pt"}`` (W-3).
        values: as in :func:`save_file`.
        min_saving: as in :func:`save_file`.

    Returns:
        A whole file.

    Raises:
        UnsupportedError, UsageError: as :func:`save_file`.
    """
    stream = io.BytesIO()
    writer.write(stream, _sources(tensor_dict), metadata, values=values, min_saving=min_saving)
    return stream.getvalue()


def load_file(filename: str | os.PathLike[str], *, backend: str = "mmap") -> dict[str, Array]:
    """Loads all tensors of an Endor or plain safetensors file into new arrays.

    Args:
        filename: the file.
        backend: of the safetensors package; there is no difference here.

    Returns:
        Arrays by name in the order of their data, little-endian, of the shapes and dtypes that were saved;
        BF16 and the 8-bit floats as the types of ``ml_dtypes``.

    Raises:
        FormatError: the file breaks a rule. Digests are checked by :class:`safe_open` if asked for (D-3).
        UnsupportedError: it needs what this build does not have, or a type that NumPy does not have.
        UsageError: the backend is unknown.
        OSError: it cannot be read.
    """
    with safe_open(filename, backend=backend) as opened:
        return opened.get_tensors()


def load(data: bytes) -> dict[str, Array]:
    """Loads all tensors from the bytes of a file.

    Args:
        data: a whole file.

    Returns:
        What :func:`load_file` returns.

    Raises:
        FormatError, UnsupportedError: as :func:`load_file`.
    """
    with file.open_bytes(bytes(data)) as opened:
        return _arrays(opened)


class safe_open(Opened):  # noqa: N801  the name that users of safetensors know
    """An open file whose tensors are read one by one.

    Args:
        filename: an Endor or plain safetensors file.
        framework: ``"np"`` or ``"numpy"``.
        device: ``"cpu"``.
        backend: ``"mmap"`` takes slices of a map of the file, ``"pread"`` reads what they need.
        verify: check each tensor's digest when it is read whole (D-3).

    Raises:
        FormatError: its header breaks a rule J, C, M or T.
        UnsupportedError: its major version is unknown (V-1).
        UsageError: the framework, the device or the backend is unknown.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str = "np",
        device: str = "cpu",
        *,
        backend: str = "mmap",
        verify: bool = False,
    ) -> None:
        if framework not in {"np", "numpy"}:
            raise UsageError(f"framework {quote(framework)}: this is the NumPy front door")
        if device != "cpu":
            raise UsageError(f"device {quote(str(device))}: NumPy arrays live on the CPU")
        super().__init__(filename, backend, verify=verify)

    def get_tensor(self, name: str) -> Array:
        """One tensor, decoded into a new array.

        Args:
            name: of the tensor.

        Returns:
            An array of its shape and dtype.

        Raises:
            FormatError: its parts break a rule of section 8, or its digest, if checked, does not match.
            UnsupportedError: this build cannot read it, or NumPy does not have its type.
            UsageError: there is no such tensor.
        """
        return _array(self._file, name, verify=self._verify)

    def get_tensors(self) -> dict[str, Array]:
        """All tensors, decoded into new arrays.

        Returns:
            Arrays by name, in the order of their data.

        Raises:
            FormatError, UnsupportedError: as :meth:`get_tensor`.
        """
        return _arrays(self._file, verify=self._verify)

    def get_slice(self, name: str) -> ArraySlice:
        """A tensor to be indexed: ``get_slice(name)[:, 8:16]``.

        Only what that needs is read, checked and decoded (B-11).

        Args:
            name: of the tensor.

        Returns:
            What has its shape and dtype, and gives arrays when it is indexed.

        Raises:
            UnsupportedError: this build cannot read it.
            UsageError: there is no such tensor.
            IndexError, TypeError, ValueError: when it is indexed, what the index makes an array of its shape
                raise.
        """
        return ArraySlice(self._file, self._file.tensor(name))


class ArraySlice(Sliceable):
    """A tensor of an open file that is indexed as the array would be."""

    def __getitem__(self, index: Any) -> Array:
        dtype = _dtype(self._tensor)
        view = slicing.basic(self._tensor.shape, index)
        if view is None:
            return np.array(_array(self._file, self._tensor.name)[index])
        data = self._file.cut(self._tensor.name, view.start, view.shape, view.strides)
        return view.turned(data.view(dtype))


def _array(opened: file.File, name: str, *, verify: bool = False) -> Array:
    tensor = opened.tensor(name)
    dtype = _dtype(tensor)
    return _view(opened.get_bytes(name, verify=verify), dtype, tensor)


def _arrays(opened: file.File, *, verify: bool = False) -> dict[str, Array]:
    tensors = opened.layout.tensors
    wanted = {name: _dtype(tensor) for name, tensor in tensors.items()}
    data = opened.load(verify=verify)
    return {name: _view(data.pop(name), dtype, tensors[name]) for name, dtype in wanted.items()}


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    """What NumPy calls the type of a tensor's elements, little-endian as they are in the file."""
    dtype = dtype_of(tensor).to_numpy()
    if dtype is None:
        raise no_counterpart(tensor, "NumPy")
    return dtype.newbyteorder("<")


def _view(data: Bytes, dtype: np.dtype[Any], tensor: Tensor) -> Array:
    try:
        array = slicing.shaped(data.view(dtype), tensor.shape)
    except UnsupportedError as error:
        raise UnsupportedError(f"tensor {quote(tensor.name)}: {error}") from error
    # Bytes handed to load() cannot be written to; what it returns can.
    return array if array.flags.writeable else array.copy()


def _sources(tensors: Mapping[str, Array]) -> list[TensorSource]:
    return [_source(name, array) for name, array in tensors.items()]


def _source(name: str, array: Array) -> TensorSource:
    if isinstance(array, np.ma.MaskedArray):
        raise UnsupportedError(f"tensor {quote(str(name))}: the format has no masks; save array.filled(...)")
    dtype = dtypes.from_numpy(array.dtype)
    if dtype is None:
        found = f"dtype {array.dtype} has no counterpart in the format"
        raise UnsupportedError(f"tensor {quote(str(name))}: {found}")
    return TensorSource(name, dtype.name, array.shape, array.nbytes, _reader(array))


def _reader(array: Array) -> Callable[[], Bytes]:
    def read() -> Bytes:
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        return np.ascontiguousarray(little).reshape(-1).view(np.uint8)

    return read
