"""The repository as a site: documents that lie outside ``docs``, and links between all of them.

Documents stay where they are read on their own, such as ``README.md`` and ``spec/``; here they become pages.
Links are those of the repository. One to a document leads to its page; one to a program or a directory leads
to a page that shows it, so that the site is whole without the repository.

A page takes over a passage of another document with ``<!-- include README.md sizes -->``: what stands there
between ``<!-- sizes:begin -->`` and ``<!-- sizes:end -->``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Path in the repository, and on the site.
DOCUMENTS = {
    "spec/endor-1.md": "spec/endor-1.md",
    "spec/rationale.md": "spec/rationale.md",
    "spec/errata.md": "spec/errata.md",
    "conformance/README.md": "conformance.md",
    "benchmarks/README.md": "benchmarks.md",
    "native/README.md": "native.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
# Pages of these would say twice what is said already.
INSTEAD = {"README.md": "index.md"}
ORIGIN = {page: document for document, page in DOCUMENTS.items()}
LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".json": "json", ".js": "js", ".mjs": "js", ".sh": "sh"}

LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)$|^ {4,}.*?$)", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"^<!-- include (\S+) (\S+) -->$", re.MULTILINE)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Text with everything changed that is not a block of code."""
    parts, end = [], 0
    for block in CODE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def target(origin: str, link: str) -> str:
    """What a link of a document leads to, as a path in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def page_of(path: str) -> str | None:
    """The page of a file or directory of the repository; None if the link has to stay as it is."""
    if path in DOCUMENTS or path in INSTEAD:
        return DOCUMENTS.get(path) or INSTEAD[path]
    if path.startswith("docs/"):
        page = path.removeprefix("docs/")
        return f"{page}/index.html" if (ROOT / path / "index.html").exists() else page
    if f"{path}/README.md" in DOCUMENTS:
        return DOCUMENTS[f"{path}/README.md"]
    if path.startswith("benchmarks/results/"):
        return path
    return f"source/{path}.md" if (ROOT / path).exists() else None


def shown(path: str) -> str:
    """A page with a file of the repository, or with the files of a directory."""
    whole = ROOT / path
    front = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n"
    if whole.is_file():
        return front + block(whole)
    files = [one for one in sorted(whole.iterdir()) if one.is_file() and one.suffix in {*LANGUAGES, ".txt"}]
    return front + "\n".join(f"## `{one.name}`\n\n{block(one)}" for one in files)


def block(file: Path) -> str:
    """A file as a block of code."""
    text = file.read_text("utf-8")
    fence = "`" * (3 + max(map(len, re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}{fence}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents, and pages for all programs that a document links to."""
    texts = {path: (ROOT / path).read_text("utf-8") for path in [*DOCUMENTS, *INSTEAD]}
    for document, page in DOCUMENTS.items():
        files.append(File.generated(config, page, content=texts[document]))
    for file in files.documentation_pages():
        if file.src_uri not in ORIGIN:
            texts[f"docs/{file.src_uri}"] = file.content_string
    linked = {target(origin, found[1]) for origin, text in texts.items() for found in LINK.finditer(text)}
    for path in sorted(linked):
        page = page_of(path)
        if page is not None and page.startswith("source/"):
            file = File.generated(config, page, content=shown(path), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Resolves links, and takes passages over."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown

    def resolved(text: str, origin: str) -> str:
        def link(found: re.Match[str]) -> str:
            there = page_of(target(origin, found[1]))
            if there is None:
                return found[0]
            return posixpath.relpath(there, posixpath.dirname(here) or ".") + (found[2] or "")

        return outside_code(text, lambda part: LINK.sub(link, part))

    def passage(found: re.Match[str]) -> str:
        document, name = found.groups()
        text = (ROOT / document).read_text("utf-8")
        marks = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
        if marks is None:
            raise PluginError(f"{here}: {document} has no passage {name}")
        return resolved(marks[1], document)

    return INCLUDE.sub(passage, resolved(markdown, ORIGIN.get(here, f"docs/{here}")))
