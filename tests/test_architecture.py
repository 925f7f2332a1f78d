"""The tree: imports point one way, modules are small and open with their job, importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# Every module may import those before it. A set: modules of one step, which do not import one another.
ORDER: list[set[str]] = [
    {"errors"},
    {"parallel", "system"},
    {"dtypes", "exact", "jobs", "locks", "openmp", "rights", "slicing"},
    {"jsontext", "naming", "stamps"},
    {"container", "manifest"},
    {"metadata"},
    {"layout"},
    {"choice", "split", "partial", "capi"},
    {"reference", "native", "cuda"},
    {"backends"},
    {"encoded", "storage", "dlpack"},
    {"atomic", "draft"},
    {"writer", "workspace"},
    {"file"},
    {"torch_bytes"},
    {"torch_cuda", "torch_product"},
    {"torch_decode", "torch_memory"},
    {"torch_writes"},
    {"torch_views"},
    {"checkpoint", "opened", "torch_tensor", "entropy", "importers", "importers.bitmask"},
    {"importers.compressed_tensors", "selection"},
    {"shards"},
    {"convert"},
    {"prune", "report", "verify", "numpy", "torch"},
    {"accelerate", "distributed", "wanda", "hf"},
    {"hf.files", "hf.classes"},
    {"hf.config"},
    {"hf.quantizer"},
    {"hf.models"},
    {"transformers"},
    {"offload.stored", "offload.ring", "offload.empty", "offload.report", "offload.turn"},
    {"offload.disk", "offload.fetched", "offload.converted", "offload.rows"},
    {"offload.names"},
    {"offload.layers"},
    {"offload.plan"},
    {"offload.device", "offload.streams", "offload.gds"},
    {"offload.cpu"},
    {"offload.gpu"},
    {"offload.engine"},
    {"offload.load"},
    {"offload"},
    {"display"},
    {"cli"},
    {"__main__"},
]
PACKAGE = ROOT / "pyendor"
# By their names below pyendor: "file", "importers" for its __init__, "importers.bitmask".
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}
MODULES = sorted(FILES)
LONGEST = 390  # lines, docstrings aside: they are the reference of the site


def imported(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0  # imports are absolute
            package, _, below = (node.module or "").partition(".")
            inside = {f"{below}.{alias.name}".removeprefix(".") for alias in node.names}
            if package == "pyendor":  # of what is imported from a module below, only modules count
                modules = inside & FILES.keys() if below else inside
                found |= modules if modules == inside else modules | {below}
        elif isinstance(node, ast.Import):
            names = (alias.name.partition(".") for alias in node.names)
            found |= {below for package, _, below in names if package == "pyendor" and below}
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
    source = FILES[module].read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    documented = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    )
    docstrings = sum((text := node.body[0]).end_lineno - text.lineno + 1 for node in documented)
    assert len(source.splitlines()) - docstrings <= LONGEST


@pytest.mark.parametrize("module", ["pyendor", "pyendor.numpy", "pyendor.cli"])
def test_importing_is_light(module: str) -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'distributed', 'safetensors', 'huggingface_hub'}"
    check = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", check], check=True)
