"""Times decoding one BF16 tensor in other formats, one thread, and says how small they are.

    python benchmarks/peers.py -o results.json
    python benchmarks/peers.py -o results.json --only "not pruned"

A 4096 x 11008 matrix of normally distributed weights, the smallest half or 70 % of them zero, or none.
Formats whose packages are not installed are left out. Each is used as its documentation says. All end in a
new dense tensor, but memcpy and Endor, whose outputs are used again; pyperf runs it all.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
from collections.abc import Callable
from typing import Any

import data
import numpy as np

from pyendor import parallel

SHAPE = (4096, 11008)
TENSORS = {"50 % zero": 0.5, "70 % zero": 0.3, "not pruned": 1.0}
Decode = Callable[[], object]


@functools.cache
def _dense(tensor: str) -> np.ndarray:
    return data.weights(SHAPE[0] * SHAPE[1], 2, TENSORS[tensor])


def memcpy(dense: np.ndarray) -> tuple[Decode, int]:
    out = np.ones_like(dense)
    return lambda: np.copyto(out, dense), dense.size


def endor(dense: np.ndarray, encoding: str = "", backend: str = "native") -> tuple[Decode, int]:
    encoded = data.encode(dense, 2, (dense.size // 2,), encoding)
    out = np.ones_like(dense)
    return lambda: encoded.decode(out, backend=backend), encoded.nbytes


def _matrix(dense: np.ndarray) -> Any:
    import torch

    torch.set_num_threads(1)
    return torch.from_numpy(dense.view(np.int16)).view(torch.bfloat16).reshape(SHAPE)


def compressed_tensors(dense: np.ndarray) -> tuple[Decode, int]:
    from compressed_tensors.compressors.sparse_compressors import sparse_bitmask

    values, bitmask, offsets = sparse_bitmask.bitmask_compress(_matrix(dense))
    size = sum(part.numel() * part.element_size() for part in (values, bitmask, offsets))
    return lambda: sparse_bitmask.bitmask_decompress(values, bitmask, SHAPE), size


def torch_csr(dense: np.ndarray) -> tuple[Decode, int]:
    csr = _matrix(dense).to_sparse_csr()
    parts = (csr.values(), csr.col_indices(), csr.crow_indices())
    return csr.to_dense, sum(part.numel() * part.element_size() for part in parts)


def zstd(dense: np.ndarray) -> tuple[Decode, int]:
    import zstandard

    packed = zstandard.ZstdCompressor(3).compress(dense.tobytes())
    return lambda: zstandard.ZstdDecompressor().decompress(packed), len(packed)


def blosc2(dense: np.ndarray) -> tuple[Decode, int]:
    import blosc2

    filters = [blosc2.Filter.SHUFFLE]
    packed = blosc2.compress2(
        dense.view(np.int16), codec=blosc2.Codec.ZSTD, clevel=5, filters=filters, typesize=2, nthreads=1
    )
    return lambda: blosc2.decompress2(packed, nthreads=1), len(packed)


def zipnn(dense: np.ndarray) -> tuple[Decode, int]:
    from zipnn import ZipNN

    codec = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    packed = codec.compress(dense.tobytes())
    return lambda: codec.decompress(packed), len(packed)


# Formats for tensors with zeros, and those that take seconds, are not timed on every tensor.
ALL, PRUNED, HALF = tuple(TENSORS), ("50 % zero", "70 % zero"), ("50 % zero",)
# Called by its name in the table; the package that it needs, if any; how to set it up; the tensors.
PEERS: dict[str, tuple[str | None, Callable[[np.ndarray], tuple[Decode, int]], tuple[str, ...]]] = {
    "memcpy": (None, memcpy, ALL),
    "Endor": (None, endor, ALL),
    "Endor, raw values": (None, functools.partial(endor, encoding="bitmap/raw"), PRUNED),
    "Endor, reference codec (NumPy)": (None, functools.partial(endor, backend="reference"), HALF),
    "compressed-tensors 0.9.4, sparse-bitmask": ("compressed_tensors", compressed_tensors, HALF),
    "torch sparse CSR": ("torch", torch_csr, HALF),
    "zstd, level 3": ("zstandard", zstd, ALL),
    "blosc2, shuffle and zstd 5": ("blosc2", blosc2, ALL),
    "ZipNN": ("zipnn", zipnn, ALL),
}


def bench(loops: int, peer: str, tensor: str) -> float:
    """Times decoding; pyperf calls it in processes of its own."""
    decode, _ = PEERS[peer][1](_dense(tensor))
    return data.timed(loops, decode)


def main() -> None:
    """Runs all that are installed."""
    runner = data.runner("stored", "only")
    runner.argparser.add_argument("--only", default="", help="one of the tensors")
    runner.argparser.add_argument("--stored", type=int, default=0, help="set by the program itself")
    args = runner.parse_args()
    os.environ[parallel.THREADS] = "1"
    for tensor, (peer, (package, make, tensors)) in itertools.product(TENSORS, PEERS.items()):
        if tensor not in tensors or args.only not in {"", tensor}:
            continue
        if package is not None and importlib.util.find_spec(package) is None:
            continue
        if not args.worker:
            args.stored = make(_dense(tensor))[1]  # handed on to the processes that measure
        facts = {
            "section": "peers",
            "what": peer,
            "tensor": tensor,
            "threads": 1,
            "nbytes": _dense(tensor).size,
            "stored": args.stored,
        }
        runner.bench_time_func(f"peers | {tensor} | {peer}", bench, peer, tensor, metadata=facts)


if __name__ == "__main__":
    main()
