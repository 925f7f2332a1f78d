"""Models that are run offloaded: real configurations, random weights, half of those of the layers zero.

Matrices of layers are pruned, as Wanda and SparseGPT do it; embeddings and heads are not. Each model is there
dense, and as Endor with raw and with split values.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data
import numpy as np

from pyendor import convert, writer
from pyendor.layout import Bytes
from pyendor.writer import TensorSource

KINDS = ("dense", "raw", "split")


@dataclass(frozen=True)
class Model:
    """A model of the benchmark.

    Attributes:
        about: what it is, for a table.
        layers: how many layers of it are run.
        of: how many the real one has.
        config: makes its configuration with so many layers.
    """

    about: str
    layers: int
    of: int
    config: Callable[[int], Any]


def opt(hidden: int, ffn: int, heads: int) -> Callable[[int], Any]:
    """The configuration of an OPT model (arXiv 2205.01068)."""

    def make(layers: int) -> Any:
        from transformers import OPTConfig

        return OPTConfig(
            hidden_size=hidden,
            ffn_dim=ffn,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            word_embed_proj_dim=hidden,
            vocab_size=50272,
            max_position_embeddings=2048,
        )

    return make


def llama2_70b(layers: int) -> Any:
    """The configuration of Llama-2-70B (arXiv 2307.09288)."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        num_hidden_layers=layers,
        vocab_size=32000,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


MODELS = {
    "opt-1.3b": Model("OPT-1.3B, whole", 24, 24, opt(2048, 8192, 32)),
    "opt-66b": Model("OPT-66B, 3 of 64 layers", 3, 64, opt(9216, 36864, 72)),
    "llama2-70b": Model("Llama2-70B, 4 of 80 layers", 4, 80, llama2_70b),
    "tiny": Model("a tiny OPT, to try the benchmark", 2, 2, opt(256, 1024, 4)),
}


def build(name: str, folder: Path) -> Path:
    """The directories ``dense``, ``raw`` and ``split`` of a model, written if they are not there."""
    from pyendor.offload import empty

    root = folder / name
    if (root / "done").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    (root / "dense").mkdir(parents=True)
    config = MODELS[name].config(MODELS[name].layers)
    config.dtype = "bfloat16"
    config.architectures = ["OPTForCausalLM" if config.model_type == "opt" else "LlamaForCausalLM"]
    config.save_pretrained(root / "dense")
    model: Any = empty.build(root / "dense", None)
    seen: set[int] = set()
    sources = []
    for path, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:  # tied weights are there once
            seen.add(id(value))
            sources.append(_source(path, tuple(value.shape)))
    with (root / "dense" / "model.safetensors").open("wb") as stream:
        writer.write_dense(stream, sources, {"format": "pt"})
    for values in ("raw", "split"):
        convert.compress(root / "dense", root / values, values="raw" if values == "raw" else "auto")
    (root / "done").touch()
    return root


def _source(name: str, shape: tuple[int, ...]) -> TensorSource:
    numel = math.prod(shape)

    def read() -> Bytes:
        if len(shape) == 1:
            ones = name.endswith("weight")
            return np.full(numel, 0x3F80 if ones else 0, np.uint16).view(np.uint8)
        # A spread such as layers of that width have: a smaller exponent.
        tile = _tile(".layers." in name, round(math.log2(math.sqrt(shape[-1]))))
        return np.resize(tile, numel).view(np.uint8)

    return TensorSource(name, "BF16", shape, 2 * numel, read)


@functools.cache
def _tile(pruned: bool, scale: int) -> np.ndarray:
    """BF16 elements, divided by two so often, that tensors repeat."""
    words = data.weights(data.TILE, 2, 0.5 if pruned else 1.0).view(np.uint16)
    return np.where(words & 0x7FFF, words - (scale << 7), words).astype(np.uint16)
