"""The tree: imports point one way, modules are small and open with their job, importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# Every module may import those before it. A set: modules of one step, which do not import one another.
ORDER: list[set[str]] = [
    {"errors", "parallel", "slicing"},
    {"dtypes", "jobs", "locks"},
    {"jsontext"},
    {"container"},
    {"metadata"},
    {"layout"},
    {"choice", "split"},
    {"reference", "native"},
    {"backends"},
    {"encoded", "storage"},
    {"atomic"},
    {"writer", "workspace"},
    {"file"},
    {"checkpoint", "opened", "torch_tensor", "entropy"},
    {"shards"},
    {"convert"},
    {"prune", "report", "verify", "numpy", "torch"},
    {"display"},
    {"cli"},
    {"__main__"},
]
MODULES = sorted(path.stem for path in (ROOT / "pyendor").glob("*.py") if path.stem != "__init__")
LONGEST = 420


def imported(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / "pyendor" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pyendor":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyendor."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pyendor.")}
    return found


def test_every_module_has_its_place() -> None:
    assert sorted(set().union(*ORDER)) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    step = next(place for place, step in enumerate(ORDER) if module in step)
    allowed = set().union(*ORDER[:step])
    assert imported(module) - {"_native"} <= allowed  # the compiled module, which imports nothing


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small_and_say_what_they_do(module: str) -> None:
    source = (ROOT / "pyendor" / f"{module}.py").read_text()
    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= LONGEST


@pytest.mark.parametrize("module", ["pyendor", "pyendor.numpy", "pyendor.cli"])
def test_importing_is_light(module: str) -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'distributed', 'safetensors', 'huggingface_hub'}"
    check = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", check], check=True)
