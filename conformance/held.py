"""Holds every implementation in this repository against the corpus, and keeps the table of results.

    python conformance/held.py            writes results.json and the tables in README.md
    python conformance/held.py --check    fails if they would change, or if anything fails
    python conformance/held.py --all      also fails if one of them cannot be run here

Every implementation is run on all levels; what it does not offer is not a failure. One that cannot be run,
for want of a processor's instructions or because `make native arm` has not built it, keeps its old results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from runner import report  # noqa: E402
from runner.corpus import load  # noqa: E402
from runner.judge import PASS, Outcome  # noqa: E402

from pyendor import native  # noqa: E402

RESULTS = HERE / "results.json"
TABLES = (HERE / "README.md", ROOT / "README.md")
MARKS = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)
EXAMPLE = re.compile(r"(<!-- example:begin -->\n).*?(<!-- example:end -->)", re.DOTALL)
LEVELS = {
    "L0": "container",
    "L1": "decode",
    "L2": "strict",
    "L3": "encode",
    "L4": "slices, directories",
}


CODEC = "conformance/adapters/pyendor_codec.py"
CUDA = ("conformance/adapters/cuda_kernels.py", "build/libendor_simt.so")
ARM = ("qemu-aarch64", "build/arm/c/endor_read")


@dataclass(frozen=True)
class Implementation:
    """Somebody's decoder: name, adapter (a command, or a program in Python), further arguments of the runner.

    ``target`` is an instruction set of the native codec, ``reference`` for the other codec.
    """

    name: str
    adapter: tuple[str, ...]
    options: tuple[str, ...] = ("--strict-rules",)
    target: str = "auto"

    def command(self) -> list[str]:
        """The adapter as it is started."""
        return [sys.executable, *self.adapter] if self.adapter[0].endswith(".py") else list(self.adapter)

    def here(self) -> bool:
        """Whether it can be run."""
        there = [(ROOT / part).exists() if "/" in part else shutil.which(part) for part in self.command()]
        return all(there) and self.target in {"auto", "reference", *native.targets()}

    def environment(self) -> dict[str, str]:
        """What makes the package take the codec and the instruction set."""
        if self.target == "reference":
            return os.environ | {"PYENDOR_BACKEND": "reference"}
        return os.environ | {"PYENDOR_BACKEND": "native", "PYENDOR_TARGET": self.target}


IMPLEMENTATIONS = (
    Implementation("`pyendor`, reference codec", (CODEC,), target="reference"),
    Implementation("`pyendor`, native codec, scalar", (CODEC,), target="scalar"),
    Implementation("`pyendor`, native codec, AVX2", (CODEC,), target="avx2"),
    Implementation("`pyendor`, native codec, AVX-512", (CODEC,), target="avx512"),
    Implementation("the CUDA kernels, lane by lane on a CPU", CUDA),
    Implementation("the `endor` command", ("conformance/adapters/endor_command.py",)),
    Implementation("`examples/c`, a C program on libendor", ("build/c/endor_read",)),
    Implementation("`examples/c` on 64-bit ARM, NEON", ARM),
    Implementation("`spec/decoder.py`, educational", ("spec/decoder.py",)),
    Implementation(
        "`safetensors` 0.8.0",
        ("conformance/adapters/stock_safetensors.py",),
        ("--level", "L0", "--quiet", "--expect", "conformance/adapters/stock_safetensors.expected.json"),
    ),
)


def run(implementation: Implementation) -> tuple[bool, dict[str, Any]]:
    """Whether nothing failed, and the results by level."""
    print(f"\n== {implementation.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "conformance/run.py", "--batch", "--json", str(out)]
        done = subprocess.run(
            [*command, *implementation.options, "--", *implementation.command()],
            cwd=ROOT,
            env=implementation.environment(),
            check=False,
        )
        levels = json.loads(out.read_text("utf-8"))["levels"] if out.exists() else {}
    return done.returncode == 0, levels


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| | " + " | ".join(f"{level} {name}" for level, name in LEVELS.items()) + " |",
        "|---" * (len(LEVELS) + 1) + "|",
    ]
    for name, levels in results.items():
        cells = [cell(levels.get(level)) for level in LEVELS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def example() -> str:
    """What the runner prints of a decoder that passes all of L0."""
    good = [Outcome(case, PASS, "") for case in load("L0", None, "*")]
    return f"```text\n{report.text(good, strict_rules=False, verbose=True)}\n```\n"


def cell(row: dict[str, Any] | None) -> str:
    if row is None or row.get("not_offered") == row["cases"]:
        return "–"
    if row["pass"]:
        return f"**all {row['cases']}**"
    rest = row.get("not_offered", 0)
    offered = row["cases"] - rest
    passed = f"{row['passed']} of {offered}" if row["passed"] < offered else f"all {offered}"
    return passed + (f", {rest} not offered" if rest else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    check = arguments.check
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    absent = [one.name for one in IMPLEMENTATIONS if not one.here()]
    outcomes = {
        one.name: run(one) if one.here() else (True, kept.get(one.name, {})) for one in IMPLEMENTATIONS
    }
    results = {name: levels for name, (_, levels) in outcomes.items()}
    failed = [name for name, (good, _) in outcomes.items() if not good]
    texts = {RESULTS: json.dumps(results, indent=1) + "\n"}
    for path in TABLES:
        text = path.read_text("utf-8")
        text = MARKS.sub(lambda mark: mark[1] + table(results) + mark[2], text)
        texts[path] = EXAMPLE.sub(lambda mark: mark[1] + example() + mark[2], text)
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    if not check:
        for path in changed:
            path.write_text(texts[path], "utf-8")
    print("\n" + table(results))
    for name in absent:
        print(f"NOT RUN HERE: {name}")
    for name in failed:
        print(f"FAILED: {name}")
    if check and changed:
        print("out of date: " + ", ".join(str(path.relative_to(ROOT)) for path in changed))
    return 1 if failed or (check and changed) or (arguments.all and absent) else 0


if __name__ == "__main__":
    raise SystemExit(main())
