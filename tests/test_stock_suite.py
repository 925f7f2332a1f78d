"""The tests of safetensors itself, their imports turned to pyendor: all pass but those that are listed.

`make test` gets them: they are in its source distribution, in build/stock.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.8.0"
SOURCES = ROOT / "build" / "stock" / f"safetensors-{VERSION}.tar.gz"
# Of frameworks that pyendor does not have.
OTHERS = ("flax", "mlx", "paddle", "tf")

pytestmark = pytest.mark.skipif(not SOURCES.exists(), reason="not downloaded: make test does it")


class Turn(ast.NodeTransformer):
    """Imports from safetensors what is imported from pyendor where that has it."""

    def __init__(self) -> None:
        self.ours: set[str] = set()
        self.theirs: set[str] = set()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.stmt]:
        module = node.module or ""
        if module.partition(".")[0] != "safetensors":
            return [node]
        name = "pyendor" + module.removeprefix("safetensors")
        known = importlib.import_module(name).__all__
        mine = [alias for alias in node.names if alias.name in known]
        other = [alias for alias in node.names if alias.name not in known]
        self.ours |= {alias.name for alias in mine}
        self.theirs |= {alias.name for alias in other}
        turned = [ast.ImportFrom(name, mine, 0)] if mine else []
        return [*turned, *([ast.ImportFrom(module, other, 0)] if other else [])]


def unpack(into: Path) -> Path:
    """The tests of the frameworks that there are."""
    with tarfile.open(SOURCES) as archive:
        archive.extractall(into, filter="data")
    (found,) = into.glob("*/bindings/python/tests")
    for path in found.glob("test_*.py"):
        if path.name.removeprefix("test_").partition("_")[0] in OTHERS:
            path.unlink()
    return found


def run(tests: Path) -> dict[str, str | None]:
    """How they end: by name, what a failure says, None for a pass; those that are skipped are left out."""
    report = tests.parent / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "tests"]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    ends: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.attrib['classname'].removeprefix('tests.')}.{case.attrib['name']}"
        if case.find("skipped") is None:
            faults = [*case.findall("failure"), *case.findall("error")]
            ends[name] = faults[0].attrib["message"] + (faults[0].text or "") if faults else None
    return ends


def test_their_tests_with_our_imports(tmp_path: Path) -> None:
    stock = run(unpack(tmp_path / "stock"))
    assert len(stock) >= 66
    assert {name for name, fault in stock.items() if fault} == set()
    tests = unpack(tmp_path / "turned")
    turn = Turn()
    for path in tests.glob("test_*.py"):
        tree = turn.visit(ast.parse(path.read_text(encoding="utf-8")))
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
    assert turn.ours == {
        "load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model",
    }  # fmt: skip
    # Raw bytes in and out, which pyendor does not have, and what is private.
    assert {name for name in turn.theirs if not name.startswith("_")} == {
        "SafetensorError", "TensorSpec", "serialize", "serialize_file", "storage_ptr", "storage_size",
    }  # fmt: skip
    turned = run(tests)
    assert turned.keys() == stock.keys()
    listed = tomllib.loads((ROOT / "tests" / "stock" / "differences.toml").read_text())["differences"]
    expected = {name: group["message"] for group in listed for name in group["tests"]}
    faults = {name: fault for name, fault in turned.items() if fault}
    assert faults.keys() == expected.keys()
    for name, message in expected.items():
        assert re.search(message, faults[name], re.DOTALL), (name, faults[name])
