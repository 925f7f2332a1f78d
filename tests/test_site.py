"""The site: it builds without a warning, every link leads somewhere, and it can be read.

``make docs`` runs this on what it has built; otherwise the site is built here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from browsing import NEEDS_BROWSER, REQUIRED, barriers, serve
from conftest import ROOT
from test_spec import RULES

HERE = all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings"))
pytestmark = [
    pytest.mark.skipif(not HERE and not REQUIRED, reason="needs pip install 'pyendor[docs]'"),
    pytest.mark.xdist_group("browser"),
]
# What docs/reference documents, and docs/stability.md promises.
PUBLIC = {
    "pyendor": "reference/pyendor",
    "pyendor.numpy": "reference/numpy",
    "pyendor.torch": "reference/torch",
    "pyendor.transformers": "reference/transformers",
    "pyendor.accelerate": "reference/transformers",
    "pyendor.distributed": "reference/transformers",
    "pyendor.offload": "reference/offload",
    "pyendor.cuda": "reference/cuda",
    "pyendor.dlpack": "reference/cuda",
    "pyendor.convert": "reference/checkpoints",
    "pyendor.verify": "reference/checkpoints",
    "pyendor.report": "reference/checkpoints",
    "pyendor.prune": "reference/checkpoints",
    "pyendor.wanda": "reference/checkpoints",
    "pyendor.encoded": "reference/encoded",
    "pyendor.metadata": "reference/encoded",
    "pyendor.errors": "reference/errors",
}
# Where the method of a function is from: a rule, a section of the specification, a paper, what it mirrors.
SOURCE = re.compile(r"\b[JCMTBEDWKVS]-\d+\b|\bspec \d|section \d|arXiv|safetensors|specification")
LOOKED_AT = ("index", "start", "spec/endor-1", "faq", "reference/torch", "reference/command", "benchmarks")


class Document(HTMLParser):
    """The identifiers of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.identifiers: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.identifiers.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag in {"img", "script", "iframe", "source"} and given.get("src"):
            self.loaded.append(str(given["src"]))
        elif tag == "link" and given.get("rel") not in {"canonical", "prev", "next"}:
            self.loaded.append(str(given["href"]))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, somewhere below a path, as on a server of many projects."""
    below = tmp_path_factory.mktemp("server") / "a" / "project"
    built = ROOT / "build" / "site"
    if REQUIRED and built.exists():
        below.parent.mkdir()
        below.symlink_to(built)
        return below
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(below)]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    return below


@pytest.fixture(scope="session")
def documents(site: Path) -> dict[str, Document]:
    return {str(path.relative_to(site)): Document(path) for path in sorted(site.rglob("*.html"))}


def test_every_rule_has_its_anchor(documents: dict[str, Document]) -> None:
    assert set(RULES) <= documents["spec/endor-1.html"].identifiers


def test_rules_are_links(documents: dict[str, Document]) -> None:
    assert "spec/endor-1.html#B-7" in documents["design.html"].links
    assert "../spec/endor-1.html#D-3" in documents["reference/torch.html"].links
    linked = [link for link in documents["spec/endor-1.html"].links if link[1:] in RULES]
    assert len(linked) > 3 * len(RULES)
    assert not any("rule:" in link for document in documents.values() for link in document.links)


def test_links_lead_somewhere(documents: dict[str, Document], site: Path) -> None:
    broken = []
    for page, document in documents.items():
        for link in document.links:
            if urlparse(link).scheme:
                continue
            path, anchor = urldefrag(urljoin(f"/{page}", link))
            name = unquote(path).lstrip("/")
            name += "index.html" if not name or name.endswith("/") else ""
            there = documents.get(name)
            if there is None and not (site / name).is_file():
                broken.append(f"{page}: {link}")
            elif anchor and there is not None and unquote(anchor) not in there.identifiers | {"__top"}:
                broken.append(f"{page}: {link} (no such anchor)")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(documents: dict[str, Document], site: Path) -> None:
    for page, document in documents.items():
        for link in document.loaded:
            assert not urlparse(link).netloc, (page, link)
            assert page == "404.html" or not link.startswith("/"), (page, link)  # it knows no path of its own
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import", style.read_text("utf-8")), style


def elsewhere(kind: type) -> set[str]:
    """What a class has because an abstract class of another library asks for it, which documents it."""
    others = [one for one in kind.__mro__ if not one.__module__.startswith("pyendor")]
    return {name for one in others for name in getattr(one, "__abstractmethods__", ())}


def members(module: str) -> Iterator[tuple[str, Any, str]]:
    """Public functions, classes and methods: name, object, and the docstrings around it."""
    found = importlib.import_module(module)
    for name in found.__all__:
        one = getattr(found, name)
        if name.startswith("__"):
            continue
        yield f"{module}.{name}", one, found.__doc__ or ""
        if not inspect.isclass(one):
            continue
        ours = [kind for kind in one.__mro__ if kind.__module__.startswith("pyendor")]
        for below, raw in {name: raw for kind in reversed(ours) for name, raw in vars(kind).items()}.items():
            if below.startswith("_") or below in elsewhere(one):
                continue
            if isinstance(raw, property | classmethod | FunctionType):
                there = raw if isinstance(raw, property) else getattr(one, below)
                yield f"{module}.{name}.{below}", there, f"{found.__doc__}{one.__doc__}"


EVERYTHING = [(*one, module) for module in PUBLIC for one in members(module)]


@pytest.mark.parametrize(("name", "one", "around", "module"), EVERYTHING, ids=[one[0] for one in EVERYTHING])
def test_public_names_are_documented(
    name: str, one: Any, around: str, module: str, documents: dict[str, Document]
) -> None:
    page = documents[f"{PUBLIC[module]}.html"]
    assert name in page.identifiers or any(identifier.endswith(name) for identifier in page.identifiers)
    text = inspect.getdoc(one) or ""
    assert text
    assert SOURCE.search(text + around), "where is it from?"
    if isinstance(one, property) or inspect.isclass(one):
        return
    signature = inspect.signature(one)
    for parameter in signature.parameters:
        if parameter not in {"self", "cls"}:
            assert re.search(rf"^ +(?:\w+, )*\**{parameter}(?:, \w+)*: ", text, re.MULTILINE), parameter
    takes = len(signature.parameters.keys() - {"self", "cls"})
    if takes and signature.return_annotation not in {"None", None}:
        assert re.search(r"^(Returns|Yields):$", text, re.MULTILINE)


def test_what_others_document_is_left_to_them(documents: dict[str, Document]) -> None:
    from pyendor.distributed import EndorReader

    page, name = documents["reference/transformers.html"], "pyendor.distributed.EndorReader"
    assert name in page.identifiers
    assert elsewhere(EndorReader) > {"read_data", "read_metadata"}
    assert not {f"{name}.{method}" for method in elsewhere(EndorReader)} & page.identifiers


def test_docstrings_are_linked(documents: dict[str, Document], site: Path) -> None:
    assert "#pyendor.torch.save_file" in documents["reference/torch.html"].links
    assert "#pyendor.torch.safe_open.get_tensor" in documents["reference/torch.html"].links
    assert "torch.html#pyendor.torch.EndorTensor" in documents["reference/transformers.html"].links
    for page in set(PUBLIC.values()):
        assert not re.search(r":(attr|class|data|func|meth|mod):", (site / f"{page}.html").read_text("utf-8"))


def test_modules_that_are_promised_are_documented() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    assert set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE)) == PUBLIC.keys()


@pytest.fixture(scope="session", params=["http", "file"])
def address(request: pytest.FixtureRequest, site: Path) -> Iterator[str]:
    """The site as a server has it, below a path, and as a disk has it."""
    if request.param == "file":
        yield f"{site.as_uri()}/"
        return
    with serve(site.parent.parent) as root:
        yield f"{root}a/project/"


def opened(browser: Any, address: str, faults: list[str], **options: Any) -> Any:
    """A page that notes its faults, and requests to anywhere else."""
    page = browser.new_context(**options).new_page()
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.on(
        "request",
        lambda one: None if one.url.startswith((address, "data:", "blob:")) else faults.append(one.url),
    )
    page.on("console", lambda text: faults.append(text.text) if text.type in {"error", "warning"} else None)
    return page


@pytest.mark.usefixtures("documents")
class TestInABrowser:
    pytestmark = NEEDS_BROWSER

    def test_every_page_and_anchor(
        self, browser: Any, address: str, documents: dict[str, Document], site: Path
    ) -> None:
        faults: list[str] = []
        page = opened(browser, address, faults)
        waiting, seen = ["index.html"], set()
        while waiting:
            name = waiting.pop()
            answer = page.goto(address + name)
            assert answer is None or answer.ok, name
            links = page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")
            for link in links:
                if link.startswith(address):
                    path = unquote(urldefrag(link)[0].removeprefix(address)) or "index.html"
                    if path.endswith(".html") and path not in seen | set(waiting) | {name}:
                        waiting.append(path)
            seen.add(name)
            missing = page.evaluate(
                """() => [...document.querySelectorAll('a[href^="#"]')]
                    .map(one => decodeURIComponent(one.hash.slice(1)))
                    .filter(id => id && id !== "__top" && !document.getElementById(id))"""
            )
            assert not missing, name
        page.context.close()
        assert not faults
        assert {name for name in documents if name != "404.html" and not name.startswith("source/")} <= seen

    def test_a_rule_can_be_linked_to(self, browser: Any, address: str) -> None:
        page = opened(browser, address, [], viewport={"width": 1200, "height": 800})
        page.goto(f"{address}spec/endor-1.html#E-5")
        page.wait_for_function("window.scrollY > 1000")
        box = page.locator("#E-5").bounding_box()
        assert 40 < box["y"] < 400  # in sight, and not behind the bar above
        page.context.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_pages_are_accessible(self, browser: Any, site: Path, scheme: str) -> None:
        with serve(site) as address:
            page = opened(browser, address, faults := [], color_scheme=scheme)
            for name in LOOKED_AT:
                page.goto(f"{address}{name}.html")
                assert barriers(page) == [], name
            page.context.close()
        assert not faults

    def test_no_page_is_wider_than_a_phone(
        self, browser: Any, site: Path, documents: dict[str, Document]
    ) -> None:
        page = opened(browser, f"{site.as_uri()}/", [], viewport={"width": 360, "height": 740})
        for name in documents:
            if not name.startswith("source/"):
                page.goto(f"{site.as_uri()}/{name}")
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        page.context.close()

    def test_search_finds_a_rule(self, browser: Any, address: str) -> None:
        page = opened(browser, address, faults := [], viewport={"width": 1200, "height": 800})
        page.goto(f"{address}index.html")
        page.locator(".md-search__input").click()
        page.locator(".md-search__input").press_sequentially("patches strictly ascend")
        page.locator(".md-search-result__link", has_text="split").first.wait_for()
        page.context.close()
        assert not faults
