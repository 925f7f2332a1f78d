"""Pictures, made a part of the page, so that they take its colours, light or dark.

``<!-- plot NAME -->`` is a plot of ``benchmarks/plots.py``, drawn from the committed results, and
``<!-- drawing NAME -->`` is ``docs/assets/NAME.svg``. The plots of results in
``benchmarks/README.md`` are drawn anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!-- (plot|drawing|results) (\S+)(?: (.*?))? -->")
RESULTS = re.compile(r"^!\[(.*)\]\((?:\.\./)*benchmarks/results/(\S+)\.svg\)$", re.MULTILINE)
IDENTIFIER = re.compile(r'((?:xlink:)?href="#|\bid="|url\(#)')


def inline(svg: str, name: str, about: str) -> str:
    """An SVG as a part of a page, its identifiers its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = IDENTIFIER.sub(rf"\g<1>{name}-", svg)
    svg = re.sub(r"<svg\b", f'<svg role="img" aria-label="{about}"', svg, count=1)
    return f'<figure class="picture {name}">{svg}</figure>'


def plots() -> Any:
    """The module that draws."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import plots as module
    finally:
        sys.path.pop(0)
    return module


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Marks the plots of results."""
    return RESULTS.sub(r"<!-- results \2 \1 -->", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Draws what a page shows."""

    def picture(found: re.Match[str]) -> str:
        kind, name, about = found.groups()
        if kind == "plot":
            plot: str = plots().PLOTS[name]()
            return plot
        if kind == "results":
            return inline(plots().of_results(name), f"results-{name}".replace("/", "-"), about)
        svg = (ROOT / "docs" / "assets" / f"{name}.svg").read_text("utf-8")
        title = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
        assert title is not None, f"{name}.svg has no title"
        return inline(svg, name, title[1])

    return MARK.sub(picture, html)
