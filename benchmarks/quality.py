"""Measures what pruning costs a trained model: how near its embeddings stay to those of the unpruned one.

    python benchmarks/quality.py            measures anew, into results/quality.json and docs/pruning.md
    python benchmarks/quality.py --table    renews the table in docs/pruning.md alone

The 36 weight matrices of the layers of all-MiniLM-L6-v2, in F32, are pruned as ``endor prune`` does it. The
embeddings of sentences (mean over the tokens, as the model is meant to be used) are compared by their cosine.
Calibration for Wanda and the sentences are lines of different chapters of Python's manual.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path

import torch
from sizes import CALIBRATION, MODEL, calibration_texts, held_out_texts
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from pyendor.prune import Group, Options, prune
from pyendor.wanda import Calibration, collect

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "quality.json"
PAGE = HERE.parent / "docs" / "pruning.md"
MARKS = re.compile(r"(<!-- quality:begin -->\n).*?(<!-- quality:end -->)", re.DOTALL)
SENTENCES = 512
SPARSITIES = (0.5, 0.6, 0.7)
METHODS: dict[str, tuple[Group, bool]] = {
    "magnitude over each tensor": ("tensor", False),
    "magnitude by row": ("row", False),
    "Wanda": ("row", True),
}


def embeddings(model: Path, sentences: list[str]) -> Tensor:
    """Of each sentence, float64 [sentences, 384], of length 1."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for sentence in sentences:
            tokens = tokenizer(sentence, truncation=True, max_length=256, return_tensors="pt")
            found.append(network(**tokens).last_hidden_state[0].double().mean(0))
    return torch.nn.functional.normalize(torch.stack(found), dim=1)


def measure(
    sparsities: tuple[float, ...] = SPARSITIES, sentences: int = SENTENCES
) -> list[dict[str, object]]:
    """The mean cosine, and that of the worst twentieth, by method and sparsity."""
    texts = held_out_texts(sentences)
    reference = embeddings(MODEL, texts)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in sparsities:
            for method, (group, with_inputs) in METHODS.items():
                options = Options(sparsity, group)
                inputs = collect(MODEL, options, Calibration(calibration_texts())) if with_inputs else None
                prune(MODEL, Path(folder) / "pruned", options, inputs=inputs, force=True)
                cosines = (embeddings(Path(folder) / "pruned", texts) * reference).sum(1)
                rows.append(
                    {
                        "method": method,
                        "sparsity": sparsity,
                        "mean": round(cosines.mean().item(), 4),
                        "worst twentieth": round(cosines.quantile(0.05).item(), 4),
                    }
                )
                print(rows[-1])
    return rows


def table() -> str:
    """What was measured, in Markdown."""
    found = json.loads(RESULTS.read_text("utf-8"))
    sparsities = sorted({row["sparsity"] for row in found["rows"]})
    lines = [["zeros", *(f"{sparsity:.0%}" for sparsity in sparsities)], ["---"] * (len(sparsities) + 1)]
    for method in METHODS:
        cells = {
            row["sparsity"]: f"{row['mean']:.3f} ({row['worst twentieth']:.3f})"
            for row in found["rows"]
            if row["method"] == method
        }
        lines.append([method, *(cells[sparsity] for sparsity in sparsities)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def page() -> str:
    """The page with the table in it."""
    return MARKS.sub(lambda mark: mark[1] + table() + mark[2], PAGE.read_text("utf-8"))


def main() -> None:
    """Measures, unless only the table is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        results = {"sentences": SENTENCES, "calibration": CALIBRATION, "rows": measure()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
