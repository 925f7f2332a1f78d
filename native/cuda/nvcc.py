"""Prints where nvcc of the package nvidia-cuda-nvcc is, if this Python has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

found = importlib.util.find_spec("nvidia")
for root in (found.submodule_search_locations or []) if found else []:
    for nvcc in sorted(Path(root).glob("cu*/bin/nvcc")):
        print(nvcc.parent)
