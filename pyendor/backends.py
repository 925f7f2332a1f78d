"""The codecs that this build has: one table, name to codec.

All share the signature of :class:`Codec` and agree bit for bit, errors included.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pyendor import native, reference
from pyendor.choice import Survey
from pyendor.dtypes import DType
from pyendor.errors import BackendUnavailableError, quote
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta

ENVIRONMENT = "PYENDOR_BACKEND"


class Codec(Protocol):
    """What a codec offers; :mod:`pyendor.reference` has the contracts."""

    def count(self, dense: Bytes, itemsize: int) -> int:
        """nnz of dense data."""

    def survey(self, dense: Bytes, dtype: DType) -> Survey:
        """What decides how dense data is best encoded."""

    def encode(self, dense: Bytes, meta: TensorMeta, parts: Mapping[str, Bytes]) -> None:
        """Dense data into parts."""

    def decode(
        self,
        meta: TensorMeta,
        parts: Mapping[str, Bytes],
        out: Bytes | None,
        first: int = 0,
        stop: int | None = None,
        stream: bool = False,
    ) -> None:
        """A range of blocks of parts, checked, into dense data, or only checked."""

    def cut(
        self,
        meta: TensorMeta,
        parts: Mapping[str, Bytes],
        out: Bytes,
        start: int,
        count: int,
        stride: int,
        rows: int,
    ) -> None:
        """Runs of elements, the blocks that they touch checked, into dense data."""


TABLE: dict[str, Codec] = {"native": native, "reference": reference}
if not native.available():
    del TABLE["native"]


def get(backend: str | None = None) -> Codec:
    """The codec of that name; without one, that of ``PYENDOR_BACKEND``; else the fastest of this build.

    Raises:
        BackendUnavailableError: there is none of that name.
    """
    chosen = backend or os.environ.get(ENVIRONMENT) or _default()
    try:
        return TABLE[chosen]
    except KeyError:
        known = ", ".join(sorted(TABLE))
        found = f"no backend {quote(chosen)}; this build has: {known}"
        raise BackendUnavailableError(found) from None


@functools.cache
def _default() -> str:
    """The first of the table. Said once where that is the slow one."""
    chosen = next(iter(TABLE))
    if chosen == "reference":
        why = "pyendor was installed without its native codec, for which a C compiler is needed"
        source = Path(__file__).parent.parent
        if (source / "CMakeLists.txt").exists():
            why = (
                f"pyendor runs without its native codec, which its source in {quote(str(source))} does not "
                "have: run Python in another directory, or install that with pip install -e and a C compiler"
            )
        warnings.warn(f"{why}; NumPy is used, which is much slower", RuntimeWarning, stacklevel=3)
    return chosen
