"""Every block of code of the documents and of the site runs, page by page, in a directory of its own.

A page says in comments, which its readers do not see, what it takes for granted:
``<!-- needs my-model -->`` has that put into the directory (:data:`THINGS`), and what stands in
``<!-- run python`` or ``<!-- run sh``, up to ``-->``, runs there.

Commands that would install something, build the whole project or measure for an hour are stood in for:
``pip``, ``make``, ``python3 -m venv``, ``python benchmarks/…``. These check that the extras, targets and
programs that they are asked for exist. What they do is done by CI, step by step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from pyendor import prune

SHOWN = {"text", "hex", "json"}  # not code
# Blocks that do not run, by their place on their page, and why. Three are the most.
SKIPPED = {
    ("docs/how-to/prune.md", 0): "llm-compressor wants a model of the Hub and a GPU",
    ("docs/cuda.md", 0): "PyTorch on a GPU: tests/test_gpu.py does this where there is one",
    ("docs/cuda.md", 1): "device addresses and a stream of a GPU: tests/test_cuda.py does this in its place",
}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *(ROOT / name / "README.md" for name in ("benchmarks", "conformance", "native")),
    *sorted((ROOT / "spec").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"^```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<text>.*?)^```$"
    r"|^<!-- run (?P<hidden>python|sh)\n(?P<setup>.*?)^-->$"
    r"|^<!-- needs (?P<needs>.*?) -->$",
    re.MULTILINE | re.DOTALL,
)
STAND_INS = {
    "pip": """
test "$1" = install || { echo "pip $1?"; exit 1; }
exec python - "$@" <<'END'
import re, sys, tomllib
extras = tomllib.load(open(ROOT + "/pyproject.toml", "rb"))["project"]["optional-dependencies"]
for asked in re.findall(r"(?:endor|\\.)\\[([^\\]]*)\\]", " ".join(sys.argv)):
    assert set(asked.split(",")) <= extras.keys(), asked
END
""",
    "make": 'exec "$MAKE_ITSELF" -C "$ROOT" --dry-run "$@"',
    "python": """
case "${1-}" in benchmarks/*) test -f "$ROOT/$1" ;; *) exec "$PYTHON_ITSELF" "$@" ;; esac
""",
    "python3": """
if test "$1 $2" = "-m venv"; then mkdir -p "$3/bin"; : >"$3/bin/activate"; else exec python "$@"; fi
""",
}


def blocks(page: Path) -> tuple[list[str], list[tuple[str, str, str]]]:
    """What a page needs, and its blocks that run: language, text, place."""
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    needs: list[str] = []
    found = []
    visible = 0
    for match in BLOCK.finditer(text):
        where = f"{name}:{text[: match.start()].count(chr(10)) + 1}"
        if match["needs"]:
            needs += match["needs"].split()
        elif match["hidden"]:
            found.append((match["hidden"], match["setup"], where))
        elif match["language"] not in SHOWN:
            if (name, visible) not in SKIPPED:
                found.append((match["language"], match["text"], where))
            visible += 1
    return needs, found


def with_code() -> list[Path]:
    return [page for page in PAGES if any(language for language, *_ in blocks(page)[1])]


def test_blocks_say_what_they_are() -> None:
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^ *(`{3,}|~{3,})(\w*).*?^ *\1 *$", text, re.MULTILINE | re.DOTALL):
            known = SHOWN | {"python", "sh", "console", "c"}
            assert match[2] in known, (page, match[0][:80])
            assert BLOCK.fullmatch(match[0]), (page, match[0][:80])  # else it would be passed over


def test_few_are_skipped() -> None:
    assert len(SKIPPED) <= 3
    counts = {name: len(list(BLOCK.finditer((ROOT / name).read_text()))) for name, _ in SKIPPED}
    assert all(place < counts[name] for name, place in SKIPPED)


def small(at: Path, sparsity: float) -> None:
    """A checkpoint of two layers, as a Hugging Face library would write it."""
    import torch
    from safetensors.torch import save_file

    at.mkdir()
    rng = torch.Generator().manual_seed(1)
    names = [f"layers.{layer}.{part}.weight" for layer in range(2) for part in ("q_proj", "mlp.up_proj")]
    tensors = {name: (torch.randn(512, 256, generator=rng) / 16).to(torch.bfloat16) for name in names}
    tensors["embed.weight"] = torch.randn(100, 256, generator=rng).to(torch.bfloat16)
    save_file(tensors, at / "model.safetensors", {"format": "pt"})
    (at / "config.json").write_text('{"architectures": ["None"], "dtype": "bfloat16"}\n')
    if sparsity:
        whole = at.with_name(f"{at.name}-before")
        at.rename(whole)
        prune.prune(whole, at, prune.Options(sparsity=sparsity))
        shutil.rmtree(whole)


def llama(at: Path) -> None:
    """An Endor checkpoint of a tiny Llama, pruned."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import pyendor.transformers

    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 160}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in filter(lambda one: one.dim() == 2, layer.parameters()):
                weight.mul_(torch.rand_like(weight) < 0.5)
    pyendor.transformers.save_pretrained(model, at)


def corpus(at: Path) -> None:
    """The conformance suite with a few of its cases: the others would be like them."""
    shutil.copytree(ROOT / "conformance", at, ignore=shutil.ignore_patterns("cases", "__pycache__"))
    manifest = json.loads((at / "manifest.json").read_text())
    manifest["cases"] = [
        case
        for case in manifest["cases"]
        if hash_of(case["id"]) % 20 == 0 or "b-1-negative-zero-f16" in case["id"] or "b-6-comp" in case["id"]
    ]
    for case in manifest["cases"]:
        if isinstance(case["sha256"], dict):
            shutil.copytree(ROOT / "conformance" / "cases" / case["id"], at / "cases" / case["id"])
            continue
        for path in filter(None, (case.get("file"), case.get("expected_file"))):
            source, copy = ROOT / "conformance" / path, at / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.exists():
                shutil.copy(source, copy)
    (at / "manifest.json").write_text(json.dumps(manifest))


def copied(source: Path, at: Path) -> None:
    shutil.copytree(source, at)


def hash_of(text: str) -> int:
    return sum(text.encode())


def clone(at: Path) -> None:
    """The repository, as far as it is needed."""
    at.mkdir()
    for name in ("CMakeLists.txt", "native", "spec", "pyendor", "examples"):
        (at / name).symlink_to(ROOT / name)
    corpus(at / "conformance")


THINGS: dict[str, Callable[[Path], None]] = {
    "my-model": lambda at: small(at, 0),
    "my-pruned-model": lambda at: small(at, 0.5),
    "my-bitmask-model": lambda at: (
        shutil.copytree(ROOT / "tests" / "compressed-tensors" / "0.9.4", at) and None
    ),
    "my-model-endor": llama,
    "endor": clone,
    "conformance": corpus,
    "spec": lambda at: at.symlink_to(ROOT / "spec"),
}


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell in which the commands of this environment are found first, and stand-ins before them."""
    folder = tmp_path_factory.mktemp("bin")
    make = shutil.which("make")
    for name, script in STAND_INS.items():
        text = script.replace("ROOT +", f'"{ROOT}" +')
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {
        "PATH": path,
        "ROOT": str(ROOT),
        "PYTHON_ITSELF": sys.executable,
        "MAKE_ITSELF": make or "make",
        "MAKEFLAGS": "",
    }


@pytest.mark.parametrize("page", with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    needs, found = blocks(page)
    if any(language == "c" for language, *_ in found):
        missing = [tool for tool in ("cmake", "cc", "pkg-config") if shutil.which(tool) is None]
        if missing and not os.environ.get("CI"):
            pytest.skip(f"needs {', '.join(missing)}")
    for thing in needs:
        THINGS[thing](tmp_path / thing)
    log = tmp_path.with_name(f"{tmp_path.name}.log")
    with log.open("w") as out:
        run = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "run_blocks.py"],
            stdin=subprocess.PIPE,
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            run.communicate(json.dumps(found), timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # and with it what was started in the background
    assert run.returncode == 0, log.read_text()[-4000:]
