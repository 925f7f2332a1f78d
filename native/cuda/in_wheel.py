"""Looks for the CUDA kernels in a wheel: `in_wheel.py WHEEL`. Fails if they are not there for all devices."""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path

MAGIC = b"\x50\xed\x55\xba"  # of a fatbin
ARCHITECTURES = {75, 80, 86, 89, 90, 100, 120}  # that releases have to have
PTX, ELF = 1, 2


def entries(image: bytes) -> list[tuple[int, int]]:
    """Kinds and compute capabilities of what is in a fatbin: behind its header, each has one too."""
    _, _, header, size = struct.unpack_from("<IHHQ", image)
    at, end, found = header, header + size, []
    while at < end:
        kind, _, header, length = struct.unpack_from("<HHIQ", image, at)
        (architecture,) = struct.unpack_from("<I", image, at + 28)
        found.append((kind, architecture))
        at += header + length
    return found


def check(wheel: Path) -> list[tuple[int, int]]:
    """The entries of the one fatbin in a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        (module,) = (name for name in opened.namelist() if "_native" in name and name.endswith(".so"))
        data = opened.read(module)
    found = []
    at = data.find(MAGIC)
    while at >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, at + 4)
        # The magic number may also be in code.
        if version == 1 and header == 16 and at + header + size <= len(data):
            found += entries(data[at : at + header + size])
        at = data.find(MAGIC, at + 1)
    return found


def main() -> int:
    (wheel,) = sys.argv[1:]
    found = check(Path(wheel))
    compiled = {architecture for kind, architecture in found if kind == ELF}
    intermediate = {architecture for kind, architecture in found if kind == PTX}
    print(f"{wheel}: kernels for {sorted(compiled)}, PTX for {sorted(intermediate)}")
    missing = ARCHITECTURES - compiled
    if missing or not intermediate:
        print(f"missing: {sorted(missing) or 'PTX'}")
    return 1 if missing or not intermediate else 0


if __name__ == "__main__":
    raise SystemExit(main())
