"""Results of gpu.py as tables for docs/cuda.md; what nobody has measured is said to be so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "cuda"
NOT_MEASURED = "*not measured*"

# What it must reach: how much of the limit, by dtype, encoding and size (of halves of zeros).
WANTED = (
    ("BF16, raw, a layer of 7 matrices", "BF16", "bitmap/raw", "layer", 0.85),
    ("BF16, split, a layer of 7 matrices", "BF16", "bitmap/split", "layer", 0.80),
    ("F8_E4M3, raw, a layer of 7 matrices", "F8_E4M3", "bitmap/raw", "layer", 0.70),
    ("BF16, raw, one matrix of 4096 x 4096", "BF16", "bitmap/raw", "4096 x 4096", 0.425),
    ("BF16, split, one matrix of 4096 x 4096", "BF16", "bitmap/split", "4096 x 4096", 0.40),
)
FASTER = (("`load_file`, raw", "pyendor, raw", 1.6), ("`load_file`, split", "pyendor, split", 2.3))


def rows(head: list[str], lines: list[list[str]]) -> str:
    table = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table) + "\n"


def find(found: list[dict[str, Any]], **wanted: object) -> dict[str, Any] | None:
    matching = (row for row in found if all(row.get(key) == value for key, value in wanted.items()))
    return next(matching, None)


def claims(found: list[dict[str, Any]]) -> str:
    """What is asked of it, and what was measured."""
    lines = []
    copy = find(found, section="copy")
    for what, dtype, encoding, size, least in WANTED:
        row = find(found, what="decode", dtype=dtype, encoding=encoding, size=size, density=0.5)
        share = NOT_MEASURED
        if row is not None and row["limit_seconds"] and copy is not None:
            moved = (row["dense_nbytes"] + row["encoded_nbytes"]) / row["seconds"]
            of_copy = moved / copy["bytes_per_second"]
            share = f"{row['limit_seconds'] / row['seconds']:.0%}; {of_copy:.0%} of a copy's bandwidth"
        lines.append([what, f"{100 * least:g}% of the limit", share])
    dense = find(found, section="load_file", what="safetensors, dense")
    for what, ours, least in FASTER:
        row = find(found, section="load_file", what=ours)
        ratio = f"{dense['seconds'] / row['seconds']:.2f}x" if row and dense else NOT_MEASURED
        lines.append([what, f"{least}x as fast as safetensors of the dense file", ratio])
    return rows(["", "it must reach", "measured"], lines)


def decoding(found: list[dict[str, Any]]) -> str:
    lines = []
    for row in found:
        if row["section"] != "decode":
            continue
        limit = row.get("limit_seconds")
        lines.append(
            [
                f"{row['dtype']}, {row['density']:.0%} stored, {row['size']}",
                row["encoding"] if row["what"] == "decode" else f"torch, {row['what']}",
                f"{1e6 * row['seconds']:,.0f} µs",
                f"{row['dense_nbytes'] / row['seconds'] / 1e9:,.0f}",
                f"{limit / row['seconds']:.0%}" if limit else "",
            ]
        )
    return rows(["", "", "time", "GB/s of dense bytes", "of the limit"], lines)


def transfers(found: list[dict[str, Any]]) -> str:
    lines = []
    for row in found:
        if row["section"] not in {"link", "load_file", "nvcomp"} or "seconds" not in row:
            continue
        name = " ".join([row["section"], row.get("memory", ""), row.get("encoding", "")]).replace("  ", " ")
        speed = row["dense_nbytes"] / row["seconds"] / 1e9
        lines.append([name, row["what"], f"{1e3 * row['seconds']:,.2f} ms", f"{speed:,.1f}"])
    return rows(["", "", "time", "GB/s of dense bytes"], lines)


def tables() -> str:
    """All that was measured, by device; without any, what is asked of it."""
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        return "There are no results of a GPU yet; `make gpu` makes them.\n\n" + claims([])
    text = ""
    for path in paths:
        result = json.loads(path.read_text("utf-8"))
        about, found = result["about"], result["rows"]
        copy = find(found, section="copy")
        text += f"### {about['device']}\n\ntorch {about['torch']}, Python {about['python']}."
        if copy is not None:
            speed = copy["bytes_per_second"] / 1e9
            text += f" A copy in device memory moves {speed:,.0f} GB/s, read and written."
        text += f"\n\n{claims(found)}{decoding(found)}{transfers(found)}"
    return text
