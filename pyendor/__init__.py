"""Endor: sparse and dense LLM weights in far fewer bytes, bit for bit.

Importing the package is light. The front doors are modules of their own:

* :mod:`pyendor.numpy` mirrors ``safetensors.numpy``;
* the ``endor`` command compresses, inspects, verifies and restores checkpoints.

The format is specified in ``spec/endor-1.md``; rule IDs in errors (``B-6``) refer to it.
"""

from pyendor.errors import (
    BackendUnavailableError,
    EndorError,
    FormatError,
    UnsupportedError,
    UsageError,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "EndorError",
    "FormatError",
    "UnsupportedError",
    "UsageError",
    "__version__",
]
