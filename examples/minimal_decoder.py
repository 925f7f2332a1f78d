"""A minimal decoder of the Endor format, for reading rather than for use.

An Endor file is a safetensors file. An encoded tensor X is stored as three tensors: "X" (the
elements that are not zero), "X.endor.bitmap" (where they are) and "X.endor.index" (which only a
reader of slices needs). This decoder trusts the file: it checks nothing.

    python minimal_decoder.py model.endor.safetensors
"""

import hashlib
import json
import math
import sys
import warnings

import numpy as np

Tensor = tuple[str, list[int], np.ndarray]  # dtype, shape, bytes

ITEMSIZE = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1}
ITEMSIZE |= {"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
ITEMSIZE |= {"I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}
PACKED = {"F4", "F6_E2M3", "F6_E3M2"}  # less than a byte per element; these are never encoded


def parse(text: str) -> dict:
    # Numbers that mean nothing here may be longer than Python's int() takes: cut them.
    return json.loads(text, parse_int=lambda digits: int(digits[:17]))


def expand(entry: dict, values: np.ndarray, bitmap: np.ndarray) -> np.ndarray:
    """The dense bytes of one tensor: zeros, but for the stored elements."""
    numel, itemsize = math.prod(entry["shape"]), ITEMSIZE[entry["dtype"]]
    stored = np.unpackbits(bitmap, count=numel, bitorder="little").view(bool)
    dense = np.zeros((numel, itemsize), np.uint8)
    dense[stored] = values.reshape(-1, itemsize)[: entry["nnz"]]  # the rest is padding
    return dense.ravel()


def load(path: str) -> dict[str, Tensor]:
    """All logical tensors of a file by name; what is not supported is left out with a warning."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse(file.read(length).decode())
        data = np.frombuffer(file.read(), np.uint8)

    endor = parse(header.pop("__metadata__", {}).get("endor", '{"version":"1.0","tensors":{}}'))
    if not endor["version"].startswith("1."):
        raise NotImplementedError(f"Endor version {endor['version']!r}")
    tensors: dict[str, Tensor] = {}

    def take(name: str) -> np.ndarray:
        begin, end = header.pop(name)["data_offsets"]
        return data[begin:end]

    for name, entry in endor["tensors"].items():
        encoding = entry["positions"], entry["values"]
        if encoding == ("bitmap", "raw") and entry["dtype"] in ITEMSIZE:
            dense = expand(entry, take(name), take(f"{name}.endor.bitmap"))
            tensors[name] = entry["dtype"], entry["shape"], dense
            del header[f"{name}.endor.index"]
        else:
            warnings.warn(f"{name!r} is left out: {entry['dtype']}, {encoding}", stacklevel=2)
            for part in [part for part in header if part.startswith(f"{name}.endor.")]:
                del header[part]
            header.pop(name, None)

    for name, plain in list(header.items()):
        if plain["dtype"] in ITEMSIZE or plain["dtype"] in PACKED:
            tensors[name] = plain["dtype"], plain["shape"], take(name)
        else:
            warnings.warn(f"{name!r} is left out: unknown dtype", stacklevel=2)
    return tensors


if __name__ == "__main__":
    for name, (dtype, shape, dense) in sorted(load(sys.argv[1]).items()):
        print(repr(name), dtype, shape, hashlib.sha256(dense).hexdigest())
