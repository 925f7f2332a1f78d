"""Times decoding one sparse BF16 tensor in other formats, one thread, and says how small they are.

    python benchmarks/peers.py -o results.json

A 4096 x 11008 matrix of normally distributed weights, half of them zero. Formats whose packages are not
installed are left out. Each is used as its documentation says. All end in a new dense tensor, but memcpy and
Endor, whose outputs are used again; pyperf runs it all.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable

import data
import numpy as np

from pyendor import parallel
from pyendor.encoded import EncodedTensor

SHAPE = (4096, 11008)
Decode = Callable[[], object]


def _torch_weights() -> object:
    import torch

    torch.set_num_threads(1)
    return torch.from_numpy(_dense().view(np.int16)).view(torch.bfloat16).reshape(SHAPE)


@functools.cache
def _dense() -> np.ndarray:
    return data.weights(SHAPE[0] * SHAPE[1], 2, 0.5)


def memcpy() -> tuple[Decode, int]:
    out = np.ones_like(_dense())
    return lambda: np.copyto(out, _dense()), _dense().size


def endor(backend: str) -> tuple[Decode, int]:
    encoded = EncodedTensor.encode("x", "BF16", SHAPE, _dense(), digest=False)
    out = np.ones_like(_dense())
    return lambda: encoded.decode(out, backend=backend), encoded.nbytes


def compressed_tensors() -> tuple[Decode, int]:
    from compressed_tensors.compressors.sparse_compressors import sparse_bitmask

    values, bitmask, offsets = sparse_bitmask.bitmask_compress(_torch_weights())
    size = sum(part.numel() * part.element_size() for part in (values, bitmask, offsets))
    return lambda: sparse_bitmask.bitmask_decompress(values, bitmask, SHAPE), size


def torch_csr() -> tuple[Decode, int]:
    csr = _torch_weights().to_sparse_csr()  # type: ignore[attr-defined]
    parts = (csr.values(), csr.col_indices(), csr.crow_indices())
    return csr.to_dense, sum(part.numel() * part.element_size() for part in parts)


def zstd() -> tuple[Decode, int]:
    import zstandard

    packed = zstandard.ZstdCompressor(3).compress(_dense().tobytes())
    return lambda: zstandard.ZstdDecompressor().decompress(packed), len(packed)


def blosc2() -> tuple[Decode, int]:
    import blosc2

    filters = [blosc2.Filter.SHUFFLE]
    packed = blosc2.compress2(
        _dense().view(np.int16), codec=blosc2.Codec.ZSTD, clevel=5, filters=filters, typesize=2, nthreads=1
    )
    return lambda: blosc2.decompress2(packed, nthreads=1), len(packed)


def zipnn() -> tuple[Decode, int]:
    from zipnn import ZipNN

    codec = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    packed = codec.compress(_dense().tobytes())
    return lambda: codec.decompress(packed), len(packed)


# Called by its name in the table; the package that it needs, if any; how to set it up.
PEERS: dict[str, tuple[str | None, Callable[[], tuple[Decode, int]]]] = {
    "memcpy": (None, memcpy),
    "Endor": (None, functools.partial(endor, "native")),
    "Endor, reference codec (NumPy)": (None, functools.partial(endor, "reference")),
    "compressed-tensors 0.9.4, sparse-bitmask": ("compressed_tensors", compressed_tensors),
    "torch sparse CSR": ("torch", torch_csr),
    "zstd, level 3": ("zstandard", zstd),
    "blosc2, shuffle and zstd 5": ("blosc2", blosc2),
    "ZipNN": ("zipnn", zipnn),
}


def bench(loops: int, peer: str) -> float:
    """Times decoding; pyperf calls it in processes of its own."""
    decode, _ = PEERS[peer][1]()
    return data.timed(loops, decode)


def main() -> None:
    """Runs all that are installed."""
    runner = data.runner("stored")
    runner.argparser.add_argument("--stored", type=int, default=0, help="set by the program itself")
    args = runner.parse_args()
    os.environ[parallel.THREADS] = "1"
    for peer, (package, make) in PEERS.items():
        if package is not None and importlib.util.find_spec(package) is None:
            continue
        if not args.worker:
            args.stored = make()[1]  # handed on to the processes that measure
        facts = {
            "section": "peers",
            "what": peer,
            "threads": 1,
            "nbytes": _dense().size,
            "stored": args.stored,
        }
        runner.bench_time_func(f"peers | {peer}", bench, peer, metadata=facts)


if __name__ == "__main__":
    main()
