"""The codecs that this build has: one table, name to codec.

All share the signature of :class:`Codec` and agree bit for bit, errors included.
"""

from __future__ import annotations

import os
from typing import Protocol

from pyendor import reference
from pyendor.errors import BackendUnavailableError, quote
from pyendor.reference import Bytes

ENVIRONMENT = "PYENDOR_BACKEND"
DEFAULT = "reference"


class Codec(Protocol):
    """What a codec offers; :mod:`pyendor.reference` has the contracts."""

    def count(self, dense: Bytes, itemsize: int) -> int:
        """nnz of dense data."""

    def encode(self, dense: Bytes, itemsize: int, values: Bytes, bitmap: Bytes, index: Bytes) -> None:
        """Dense data into parts."""

    def decode(
        self,
        values: Bytes,
        bitmap: Bytes,
        index: Bytes,
        itemsize: int,
        numel: int,
        nnz: int,
        out: Bytes,
        first: int = 0,
        stop: int | None = None,
    ) -> None:
        """A range of blocks of parts, checked, into dense data."""


TABLE: dict[str, Codec] = {"reference": reference}


def get(backend: str | None = None) -> Codec:
    """The codec of that name; without one, that of ``PYENDOR_BACKEND``; else the default.

    Raises:
        BackendUnavailableError: there is none of that name.
    """
    chosen = backend or os.environ.get(ENVIRONMENT) or DEFAULT
    try:
        return TABLE[chosen]
    except KeyError:
        known = ", ".join(sorted(TABLE))
        found = f"no backend {quote(chosen)}; this build has: {known}"
        raise BackendUnavailableError(found) from None
