"""References of docstrings, such as ``:func:`save_file```, as links to what they name.

Docstrings refer to one another in the roles of Sphinx, which editors know too. A name is looked up from where
the docstring stands, as Python looks it up; one that is on no page is shown as code.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString
from mkdocs.config.defaults import MkDocsConfig
from mkdocs_autorefs import AutorefsInlineProcessor

ROLE = r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`"


class Role(InlineProcessor):
    """A reference, which the plug-in autorefs makes a link of when it knows all pages."""

    def handleMatch(self, match: re.Match[str], data: str) -> Any:  # noqa: N802  its name in Markdown
        short, target = match.groups()
        references: Any = self.md.inlinePatterns[AutorefsInlineProcessor.name]
        found = references.hook.expand_identifier(target) if references.hook is not None else target
        link = Element("autoref", {"identifier": found, "optional": ""})
        SubElement(link, "code").text = AtomicString(target.rpartition(".")[2] if short else target)
        return link, *match.span()


class Roles(Extension):
    """Adds it to Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(Role(ROLE, md), "roles", 195)  # before code


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lets every docstring link."""
    config.markdown_extensions.append(Roles())  # type: ignore[arg-type]  it takes instances too
    return config
