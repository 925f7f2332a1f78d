"""What the front doors share: an open file as users of safetensors know it, of whatever arrays."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from pyendor import dtypes, file
from pyendor.encoded import EncodedTensor
from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.layout import Tensor

BACKENDS = ("mmap", "pread")


class Opened:
    """An open file: names, metadata, and tensors that are still compressed.

    Args:
        filename: an Endor or plain safetensors file.
        backend: ``"mmap"`` takes slices of a map of the file, ``"pread"`` reads what they need; whole tensors
            are always read.
        verify: check each tensor's digest when it is read whole.
    """

    def __init__(self, filename: str | os.PathLike[str], backend: str, *, verify: bool) -> None:
        if backend not in BACKENDS:
            raise UsageError(f"backend {quote(str(backend))}: there are {' and '.join(BACKENDS)}")
        self._verify = verify
        self._opened: file.File | None = file.open_file(filename, mapped=backend == "mmap")

    @property
    def _file(self) -> file.File:
        if self._opened is None:
            raise UsageError("the file is closed")
        return self._opened

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file have been read; those of a map are not counted."""
        return self._file.bytes_read

    def keys(self) -> list[str]:
        """Names of all logical tensors (spec 7), sorted."""
        return sorted(self._file.layout.tensors)

    def offset_keys(self) -> list[str]:
        """Names of all logical tensors, in the order of their data."""
        return list(self._file.layout.tensors)

    def metadata(self) -> dict[str, str] | None:
        """The text that was saved with the tensors, the format's own left out."""
        if self._file.layout.header.metadata is None:
            return None
        return dict(self._file.layout.metadata)

    def get_encoded(self, name: str) -> EncodedTensor:
        """One encoded tensor, still compressed.

        Args:
            name: of the tensor.

        Returns:
            Its parts and metadata, in memory.

        Raises:
            UnsupportedError: this build cannot read it.
            UsageError: there is no such tensor, or it is plain.
        """
        return self._file.get_encoded(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


class Sliceable:
    """A tensor of an open file, of which parts can be taken: what ``get_slice`` of the front doors gives."""

    def __init__(self, opened: file.File, tensor: Tensor) -> None:
        tensor.require_supported()
        self._file = opened
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Its type, as the format calls it."""
        return self._tensor.dtype


def no_counterpart(tensor: Tensor, who: str) -> UnsupportedError:
    """The error for a type that a library does not have."""
    return UnsupportedError(f"tensor {quote(tensor.name)}: {who} has no counterpart of {tensor.dtype}")


def dtype_of(tensor: Tensor) -> dtypes.DType:
    """The row of the table for a tensor that can be read.

    Raises:
        UnsupportedError: this build cannot read it.
    """
    tensor.require_supported()
    return dtypes.BY_NAME[tensor.dtype]
