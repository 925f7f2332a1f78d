"""Plots of the committed results for the site: SVG, or tables whose cells are bars.

Bars are HTML: they can be read on a narrow screen, and by a screen reader.
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import offload_table
import table

HERE = Path(__file__).resolve().parent
# What the front page compares with: weights as they are, and formats that people keep weights in.
FORMATS = {
    "memcpy": "dense",
    "compressed-tensors": "compressed-tensors",
    "Endor, raw values": "Endor, raw values",
    "blosc2": "blosc2",
    "zstd": "zstd",
    "ZipNN": "ZipNN",
    "Endor": "Endor",
}


def of_results(name: str) -> str:
    """The plot of results/NAME.json, as SVG: of the codec, or, below ``offload``, of offloading."""
    stream = io.BytesIO()
    module: Any = offload_table if name.startswith("offload/") else table
    module.plot(module.Results(HERE / "results" / f"{name}.json"), stream)
    return stream.getvalue().decode()


def front() -> str:
    """Size and decoding speed of a pruned matrix in each format, as HTML."""
    results = table.newest()
    copy = results.seconds("peers", what="memcpy", tensor="50 % zero")
    assert copy is not None
    rows = []
    for facts, seconds in results.section("peers", tensor="50 % zero"):
        what = facts["what"]
        name = FORMATS.get(what) or FORMATS.get(what.split(",")[0].split(" ")[0])
        if name is not None and not what.startswith("Endor, reference"):
            rows.append((name, 16 * facts["stored"] / facts["nbytes"], copy / seconds))
    rows.sort(key=lambda row: -row[1])
    fastest = max(speed for _, _, speed in rows)
    lines = "".join(
        f'<tr{" class=ours" if name.startswith("Endor") else ""}><th scope="row">{html.escape(name)}</th>'
        + bar(bits / 16, f"{bits:.1f}")
        + bar(speed / fastest, f"{speed:.2f}" if speed >= 0.1 else f"{speed:.3f}")
        + "</tr>"
        for name, bits, speed in rows
    )
    caption = (
        "A 4096 × 11008 matrix in BF16, half of it zero, decoded by one thread of a server. "
        f"Machine and method: results/{results.name}.json, benchmarks/peers.py."
    )
    return (
        '<div class="plot"><table class="bars"><thead><tr><td></td>'
        '<th scope="col">bits per weight <small>less is better</small></th>'
        '<th scope="col">decoding speed <small>memcpy of the dense matrix = 1</small></th>'
        f"</tr></thead><tbody>{lines}</tbody></table><p>{html.escape(caption)}</p></div>"
    )


def bar(share: float, text: str) -> str:
    """A cell with a bar that takes this share of it."""
    return f'<td style="--share:{share:.4f}"><span>{text}</span></td>'


PLOTS = {"front": front}
