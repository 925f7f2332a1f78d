"""A build backend that gives pip the metadata of safetensors' source distribution, and builds nothing.

`pip download` asks the backend of a source distribution for its metadata. The real one asks cargo, which
needs a Rust toolchain and a registry of crates; all that is wanted of the package is its tests.
"""

from __future__ import annotations

import re
from pathlib import Path


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    """Copy what the distribution says of itself (PEP 517)."""
    text = Path("PKG-INFO").read_text(encoding="utf-8")
    name, version = (re.search(rf"^{key}: (\S+)$", text, re.MULTILINE)[1] for key in ("Name", "Version"))
    folder = Path(metadata_directory, f"{name}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return folder.name
