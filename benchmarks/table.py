"""Results of codec.py as tables: medians, and ratios to the copy of the same run.

python benchmarks/table.py RAW.json NAME     keeps RAW.json as results/NAME.json, without what tells of a
                                             person's machine and not of its speed, and renews README.md
python benchmarks/table.py                   renews README.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pyperf

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
MARKS = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)
KEPT = {"cpu_count", "cpu_freq", "cpu_model_name", "perf_version", "python_version", "timer", "unit"}


def keep(raw: Path, name: str) -> None:
    """Stores results, the machine described and nothing else of it told."""
    results = json.loads(raw.read_text("utf-8"))
    results["metadata"] = {key: value for key, value in results["metadata"].items() if key in KEPT}
    (HERE / "results" / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def table(path: Path) -> str:
    """Speed in GB/s of dense bytes, and in copies of them."""
    suite = pyperf.BenchmarkSuite.load(str(path))
    about = suite.get_metadata()
    lines = [
        f"### {path.stem}",
        "",
        f"{about['cpu_model_name']}, {about['cpu_count']} processors, Python {about['python_version']}",
        "",
        "| | GB/s | of memcpy |",
        "|---|---|---|",
    ]
    copies = {}
    for one in suite.get_benchmarks():
        where, what = one.get_name().split(": ")
        size = int(where.split(", ")[2].removesuffix(" MiB")) << 20
        if what == "memcpy":
            copies[where] = one.median()
        speed = size / one.median() / 1e9
        lines.append(f"| {where}: {what} | {speed:.1f} | {copies[where] / one.median():.2f} |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the tables of all results."""
    tables = "\n".join(table(path) for path in sorted((HERE / "results").glob("*.json")))
    return MARKS.sub(lambda mark: mark[1] + tables + mark[2], README.read_text("utf-8"))


def main() -> None:
    """Keeps results, if there are any, and renews the tables."""
    if len(sys.argv) == 3:
        keep(Path(sys.argv[1]), sys.argv[2])
    README.write_text(readme(), "utf-8")


if __name__ == "__main__":
    main()
