"""Endor: sparse and dense LLM weights in far fewer bytes, bit for bit.

Importing the package is light. The front doors are modules of their own:

* :mod:`pyendor.numpy` mirrors ``safetensors.numpy``, :mod:`pyendor.torch` mirrors ``safetensors.torch``, and
  :func:`safe_open` opens a file for either;
* :mod:`pyendor.transformers` loads and saves models, :mod:`pyendor.offload` runs those that do not fit;
* the ``endor`` command compresses, inspects, verifies and restores checkpoints.

The format is specified in ``spec/endor-1.md``; rule IDs in errors (``B-6``) refer to it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyendor.errors import (
    BackendUnavailableError,
    EndorError,
    ForeignError,
    FormatError,
    UnsupportedError,
    UsageError,
    quote,
)

if TYPE_CHECKING:
    from pyendor.opened import Opened

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "EndorError",
    "ForeignError",
    "FormatError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "safe_open",
]


def safe_open(
    filename: str | os.PathLike[str],
    framework: str,
    device: Any = "cpu",
    *,
    backend: str = "mmap",
    verify: bool = False,
) -> Opened:
    """Opens an Endor or plain safetensors file, as ``safetensors.safe_open`` does.

    Args:
        filename: the file.
        framework: ``"pt"``, ``"torch"`` or ``"pytorch"``; ``"np"`` or ``"numpy"``.
        device: where tensors go, of PyTorch.
        backend: ``"mmap"`` takes slices of a map of the file, ``"pread"`` reads what they need.
        verify: check each tensor's digest when it is read whole (D-3).

    Returns:
        The open file, a :class:`pyendor.torch.safe_open` or a :class:`pyendor.numpy.safe_open`.

    Raises:
        FormatError: the header of the file breaks a rule J, C, M or T.
        UnsupportedError: its major version is unknown (V-1).
        OSError: it cannot be read.
        UsageError: the framework or the device is unknown.
    """
    if framework in {"pt", "torch", "pytorch"}:
        import pyendor.torch

        return pyendor.torch.safe_open(filename, framework, device, backend=backend, verify=verify)
    if framework in {"np", "numpy"}:
        import pyendor.numpy

        return pyendor.numpy.safe_open(filename, framework, device, backend=backend, verify=verify)
    raise UsageError(f"framework {quote(str(framework))}: there are 'pt' and 'np'")
