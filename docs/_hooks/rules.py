"""Rules of the specification: each has an anchor, and every mention of one is a link to it.

``**B-7** (file)`` on a line of its own in ``spec/endor-1.md`` is where rule B-7 stands: the page gets the
anchor ``#B-7`` there. Wherever a page of prose or a docstring says B-7, it links to it; in the procedures
and worked examples of the specification too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

SPECIFICATION = "spec/endor-1.md"
DEFINITION = re.compile(r"^\*\*([A-Z])-(\d+)\*\* \((file|reader|writer)\)$", re.MULTILINE)
TEXT = (Path(__file__).resolve().parents[2] / SPECIFICATION).read_text("utf-8")
RULES = {f"{letter}-{number}" for letter, number, _ in DEFINITION.findall(TEXT)}
MENTION = r"\b([A-Z]-\d+)\b"
SCHEME = "rule:"  # of links, until it is known where the page that they stand on is
PREFORMATTED = re.compile(r"<pre\b.*?</pre>", re.DOTALL)


class Mention(InlineProcessor):
    """A rule's ID in running text, which is a link unless it stands in one."""

    ANCESTOR_EXCLUDES = ("a", "h1", "h2", "h3", "h4")

    def handleMatch(self, match: re.Match[str], data: str) -> Any:  # noqa: N802  its name in Markdown
        rule = match[1]
        if rule not in RULES:
            return None, None, None
        link = ElementTree.Element("a", {"href": f"{SCHEME}{rule}", "class": "rule"})
        link.text = rule
        return link, *match.span()


class Mentions(Extension):
    """Adds it to Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(Mention(MENTION), "rules", 50)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lets every page and every docstring link."""
    config.markdown_extensions.append(Mentions())  # type: ignore[arg-type]  it takes instances too
    return config


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Gives every rule its anchor."""
    if page.file.src_uri != SPECIFICATION:
        return markdown
    # An entity for its hyphen, so that this one is no mention.
    anchor = r'<a class="definition" id="\1-\2" href="#\1-\2"><strong>\1&#45;\2</strong></a> *\3*'
    return DEFINITION.sub(anchor, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links of mentions, now that it is known where the page stands."""
    specification = files.get_file_from_path(SPECIFICATION)
    assert specification is not None
    if page.file == specification:
        html = PREFORMATTED.sub(lambda block: re.sub(MENTION, _linked, block[0]), html)
        return html.replace(f'href="{SCHEME}', 'href="#')
    return html.replace(f'href="{SCHEME}', f'href="{specification.url_relative_to(page.file)}#')


def _linked(mention: re.Match[str]) -> str:
    rule = mention[1]
    return f'<a class="rule" href="#{rule}">{rule}</a>' if rule in RULES else rule
