"""A minimal decoder of the Endor format, for reading rather than for use.

An Endor file is a safetensors file. An encoded tensor X is stored as several tensors: "X" (the
elements that are not zero, or all of them), "X.endor.bitmap" (where they are) and "X.endor.index"
(where those of each block begin). The elements are there as they are, or split: what is left of each
when its exponent is told in a few bits, as the distance from the base of its block ("X.endor.bases"),
and "X.endor.patches" for exponents that are too far off. This decoder trusts the file: it checks
nothing.

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
FIELDS = {"BF16": (8, 7), "F16": (5, 10), "F32": (8, 23)}  # bits of exponent and mantissa
FIELDS |= {"F8_E4M3": (4, 3), "F8_E4M3FNUZ": (4, 3), "F8_E5M2": (5, 2), "F8_E5M2FNUZ": (5, 2)}
ENCODINGS = {("bitmap", "raw"), ("bitmap", "split"), ("all", "split")}
BLOCK = 4096
PACKED = {"F4", "F6_E2M3", "F6_E3M2"}  # less than a byte per element; these are never encoded


def parse(text: str) -> dict:
    # Numbers that mean nothing here may be longer than Python's int() takes: cut them.
    return json.loads(text, parse_int=lambda digits: int(digits[:17]))


def decode(entry: dict, part: dict[str, np.ndarray]) -> np.ndarray:
    """The dense bytes of one tensor: zeros, but for the stored elements."""
    numel, itemsize = math.prod(entry["shape"]), ITEMSIZE[entry["dtype"]]
    if entry["values"] == "raw":
        elements = part["values"].reshape(-1, itemsize)
    else:
        elements = join(entry, part).astype(f"<u{itemsize}").view(np.uint8).reshape(-1, itemsize)
    if entry["positions"] == "all":
        return elements[:numel].ravel()
    stored = np.unpackbits(part["bitmap"], count=numel, bitorder="little").view(bool)
    dense = np.zeros((numel, itemsize), np.uint8)
    dense[stored] = elements[: entry["nnz"]]  # the rest is padding
    return dense.ravel()


def join(entry: dict, part: dict[str, np.ndarray]) -> np.ndarray:
    """The stored elements, as integers, from their split values."""
    exponent_bits, mantissa_bits = FIELDS[entry["dtype"]]
    numel, kept, width = math.prod(entry["shape"]), entry["mantissa"], entry["w"]
    whole, rest = divmod(1 + kept, 8)
    groups = part["values"].reshape(-1, 8 * (1 + kept + width))
    rows = [groups[:, 64 * p : 64 * p + 64].astype(int) << 8 * p for p in range(whole)]
    planes = np.unpackbits(groups[:, 64 * whole :], axis=1, bitorder="little").astype(int)
    rows += [planes[:, 64 * q : 64 * q + 64] << 8 * whole + q for q in range(rest + width)]
    symbols = sum(rows).ravel()  # in each the residue, and above it the code
    residue, code = symbols & (2 << kept) - 1, symbols >> 1 + kept

    nb = -(-numel // BLOCK)
    sparse = entry["positions"] == "bitmap"
    index = part["index"].view("<i8").reshape(1 + sparse, -1)[:, : nb + 1]
    first = index[0] if sparse else np.minimum(np.arange(nb + 1) * BLOCK, numel)
    n = first[-1]
    exponent = code[:n] + np.repeat(part["bases"][:nb], np.diff(first))
    patches = part["patches"].reshape(-1, 3)[: entry["patches"]].astype(int)
    ranks = np.repeat(first[:-1], np.diff(index[-1])) + patches[:, 0] + 256 * patches[:, 1]
    exponent[ranks] = patches[:, 2]
    sign, mantissa = residue[:n] >> kept, residue[:n] & (1 << kept) - 1
    return (sign << exponent_bits | exponent) << mantissa_bits | mantissa << mantissa_bits - kept


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
        known = FIELDS if entry["values"] == "split" else ITEMSIZE
        mine = [part for part in header if part.startswith(f"{name}.endor.")]
        parts = {part.removeprefix(f"{name}.endor."): take(part) for part in mine} | {"values": take(name)}
        if encoding in ENCODINGS and entry["dtype"] in known:
            tensors[name] = entry["dtype"], entry["shape"], decode(entry, parts)
        else:
            warnings.warn(f"{name!r} is left out: {entry['dtype']}, {encoding}", stacklevel=2)

    for name, plain in list(header.items()):
        if plain["dtype"] in ITEMSIZE or plain["dtype"] in PACKED:
            tensors[name] = plain["dtype"], plain["shape"], take(name)
        else:
            warnings.warn(f"{name!r} is left out: unknown dtype", stacklevel=2)
    return tensors


if __name__ == "__main__":
    for name, (dtype, shape, dense) in sorted(load(sys.argv[1]).items()):
        print(repr(name), dtype, shape, hashlib.sha256(dense).hexdigest())
