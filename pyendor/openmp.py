"""The threads of PyTorch's OpenMP, for work that comes between its operators.

When an operator has been worked on by several threads, GNU's OpenMP has them spin for some milliseconds, in
case there is another one. Threads of anybody else share the processors with them for so long: a layer whose
weight is decoded for each use takes up to half as long again. So what is decoded between operators is decoded
by these threads, where that is the OpenMP that PyTorch has; elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from pyendor import parallel

_PROCESS = os.getpid()


def used() -> AbstractContextManager[None]:
    """In a block of this, several threads that decode are those of PyTorch, where they can be had."""
    return parallel.by(team())


def team() -> parallel.Team | None:
    """What has a function called by threads of PyTorch; None where that cannot be done, or is no better."""
    torch = sys.modules.get("torch")
    # A child of fork has none of its parent's threads, and GNU's OpenMP would wait for them forever.
    if torch is None or os.getpid() != _PROCESS:
        return None
    # A team of another size than the last would be made anew, each time.
    if not 1 < parallel.threads() == torch.get_num_threads():
        return None
    return _team()


@functools.cache
def _team() -> parallel.Team | None:
    """From the OpenMP that is loaded, if it is GNU's, and only one: PyTorch's own, or the system's."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    found = [path for path in paths if Path(path).name.startswith(("libgomp", "libiomp", "libomp"))]
    if len(found) != 1 or not Path(found[0]).name.startswith("libgomp"):
        return None
    try:
        # What compilers call for a parallel region; part of GNU's ABI.
        start = ctypes.CDLL(found[0]).GOMP_parallel
    except (OSError, AttributeError):
        return None
    address = ctypes.cast(start, ctypes.c_void_p).value
    return None if address is None else parallel.Team(address)
