"""Chromium for tests of pages: where it is, a server for a folder, and what axe says.

Without it, or without the extra ``browser``, tests are skipped; with PYENDOR_BROWSER=1, as in CI, they fail.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HERE = bool(CHROMIUM) and importlib.util.find_spec("playwright") is not None
REQUIRED = os.environ.get("PYENDOR_BROWSER") == "1"
NEEDS_BROWSER = [
    pytest.mark.skipif(not HERE and not REQUIRED, reason="needs Chromium and pip install 'pyendor[browser]'"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox of Chromium needs rights that containers do not give to root.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a folder on a server of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def barriers(page: Any) -> list[str]:
    """What axe finds on a page: names, roles, contrast."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['target']} {node['html'][:120]}" for one in found for node in one["nodes"]]
