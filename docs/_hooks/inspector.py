"""The inspector in one file, which runs from a disk too, where browsers load no modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.nav import Link, Navigation

HERE = Path(__file__).resolve().parents[1] / "inspector"
SPECIFICATION = "../spec/endor-1.html"


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Adds it to the pages; it is none of Markdown."""
    if HERE.exists():
        nav.items.append(Link("Inspector", "inspector/index.html"))
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Writes it in place of its parts."""
    if not HERE.exists():
        return
    spec = importlib.util.spec_from_file_location("standalone", HERE / "standalone.py")
    assert spec is not None
    assert spec.loader is not None
    standalone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standalone)
    html = standalone.page(SPECIFICATION).replace('href="../spec/endor-1/"', f'href="{SPECIFICATION}"')
    (Path(config.site_dir) / "inspector" / "index.html").write_text(html, "utf-8")
