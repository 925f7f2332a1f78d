"""What the documents say is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pyendor import cli, report

README = (ROOT / "README.md").read_text()


def test_python_example(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("0.500")
    (file,) = tmp_path.iterdir()
    assert f"# {file.stat().st_size / 1e6:.0f} MB instead of 67" in README


def test_numbers_of_the_demo(pruned: Path, compressed: Path) -> None:
    before, after = report.inspect(pruned), report.inspect(compressed)
    stored = sum(row.stored_bytes for row in after.pruned) + after.header_bytes
    pairs = [
        (sum(row.dense_bytes for row in after.pruned), stored),
        (before.file_bytes, after.file_bytes),
    ]
    for dense, endor in pairs:
        numbers = (f"{dense / 1e6:.2f} MB", f"{endor / 1e6:.2f} MB", f"{100 * (1 - endor / dense):.1f} %")
        assert re.search(r"\s+".join(map(re.escape, numbers)), README), numbers
    assert f"16.00        {after.bits_per_weight(after.pruned):5.2f}" in README


def test_tables_of_the_benchmarks() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import table
    finally:
        sys.path.pop(0)
    assert table.readme() == table.README.read_text()
    assert table.front() == README
    assert table.cuda() == table.CUDA.read_text()
    for path in (ROOT / "benchmarks" / "results").glob("2*.json"):
        assert set(json.loads(path.read_text())["metadata"]) <= table.KEPT


def test_tables_of_offloading() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import offload_table
    finally:
        sys.path.pop(0)
    assert offload_table.page() == offload_table.PAGE.read_text()


@pytest.mark.parametrize("command", ["compress", "decompress", "inspect", "verify", "prune"])
def test_commands_that_are_mentioned_exist(command: str) -> None:
    assert f"endor {command}" in README
    names = {info.name or getattr(info.callback, "__name__", "") for info in cli.app.registered_commands}
    assert command in names


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("spec/*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name) if name else path
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
