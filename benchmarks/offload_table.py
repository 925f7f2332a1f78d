"""Results of offload.py as tables in docs/offload.md, and as a plot with the paper's bars beside ours.

python benchmarks/offload_table.py RAW.json NAME   keeps RAW.json as results/offload/NAME.json; renews both
python benchmarks/offload_table.py                 renews the tables
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "offload"
PAGE = HERE.parent / "docs" / "offload.md"
MARKS = re.compile(r"(<!-- offload:begin -->\n).*?(<!-- offload:end -->)", re.DOTALL)

# Faster than Accelerate by so much, says the paper: and so much with disks read to the GPU directly.
PAPER = {"opt-66b": (1.70, 2.25), "llama2-70b": (1.78, 2.37)}
NAMES = {
    "accelerate": "Accelerate `disk_offload`",
    "accelerate-safetensors": "Accelerate `disk_offload`, from safetensors",
    "accelerate-cpu": "Accelerate `cpu_offload`",
    "dense": "this engine, dense weights",
    "raw": "Endor, raw values",
    "split": "Endor, split values",
}
STATES = {
    ("cold", "disk"): "Cold: from disk, with too little memory for the model",
    ("warm", "disk"): "Warm: the files are in the page cache",
    ("warm", "host"): "In memory: Accelerate has the dense model there, Endor the compressed one",
}
KEPT = {"disk_rate", "first", "loading", "model", "prefetch", "reading", "round", "state", "stored", "tier"}
KEPT |= {"device", "error", "limited", "tokens", "what"}

Run = dict[str, Any]


class Results:
    """Runs of one machine, the first round left out."""

    def __init__(self, path: Path) -> None:
        found = json.loads(path.read_text("utf-8"))
        self.name = path.stem
        self.machine: dict[str, Any] = found["machine"]
        self.models: dict[str, Any] = found["models"]
        last = max((run["round"] for run in found["runs"]), default=0)
        self.runs: list[Run] = [run for run in found["runs"] if run["round"] > 0 or last == 0]

    def of(self, model: str, state: str, tier: str, what: str) -> list[Run]:
        """What was run of it and has an end."""
        wanted = {"model": model, "state": state, "tier": tier, "what": what}
        mine = [run for run in self.runs if all(run[key] == value for key, value in wanted.items())]
        return [run for run in mine if isinstance(run.get("tokens"), list)]

    def seconds(self, *which: str) -> float | None:
        """Median time of a token."""
        found = [token["seconds"] for run in self.of(*which) for token in run["tokens"]]
        return statistics.median(found) if found else None

    def whole(self, *which: str) -> float | None:
        """Median time of a token of the whole model: that of the layers that were run, times so many more."""
        about = self.models[which[0]]
        more = about["of"] / about["layers"] - 1
        found = [
            token["seconds"] + more * token["layers"]
            for run in self.of(*which)
            for token in run["tokens"]
            if "layers" in token
        ]
        return statistics.median(found) if found and more else None

    def total(self, key: str, *which: str) -> float:
        """Sum over all tokens."""
        return sum(token.get(key, 0) for run in self.of(*which) for token in run["tokens"])

    def accelerate(self, model: str, state: str, tier: str) -> float | None:
        """The faster of the ways to use Accelerate."""
        ways = [what for what in NAMES if what.startswith("accelerate")]
        found = [self.seconds(model, state, tier, what) for what in ways]
        return min((seconds for seconds in found if seconds is not None), default=None)


def row(cells: Iterable[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |\n"


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return row(head) + row(["---"] * len(head)) + "".join(map(row, lines)) + "\n"


def speeds(results: Results, model: str, state: str, tier: str) -> str:
    """Tokens per second of everything that was run in that way."""
    base, fair = results.accelerate(model, state, tier), results.seconds(model, state, tier, "dense")
    lines = []
    for what, name in NAMES.items():
        which = (model, state, tier, what)
        seconds = results.seconds(*which)
        if seconds is None:
            continue
        tokens = sum(len(run["tokens"]) for run in results.of(*which))
        fetching, waiting = results.total("fetching", *which), results.total("waiting", *which)
        line = [name, f"{1 / seconds:.3f}", f"{results.total('read', *which) / tokens / 1e9:.2f} GB"]
        line.append(f"{max(0.0, 1 - waiting / fetching):.0%}" if fetching else "")
        line += [f"{other / seconds:.2f}x" if other else "" for other in (base, fair)]
        whole = results.whole(*which)
        line += [] if whole is None else [f"{whole:.1f} s"]
        lines.append(line)
    if not lines:
        return ""
    rates = [run["disk_rate"] / 1e9 for what in NAMES for run in results.of(model, state, tier, what)]
    about = f"{results.models[model]['about']}. {STATES[state, tier]}"
    about += f" (the disk alone: {statistics.median(rates):.2f} GB/s)" if state == "cold" else ""
    head = ["", "tokens/s", "read from disk for a token", "hidden", "of Accelerate", "of dense weights"]
    if len(lines[0]) > len(head):
        head.append(f"a token of all {results.models[model]['of']} layers would take")
    return f"{about}:\n\n" + table(head, lines)


def sizes(results: Results) -> str:
    """Bytes that a token moves."""
    lines = []
    for model, about in results.models.items():
        for what, kinds in (("layers", about["layers_bytes"]), ("layers and head", _stored(results, model))):
            if kinds:
                ratios = [
                    f"{kinds[kind] / 1e9:.3f} GB ({kinds['dense'] / kinds[kind]:.2f}x)"
                    for kind in ("raw", "split")
                ]
                lines.append([f"{about['about']}: {what}", f"{kinds['dense'] / 1e9:.3f} GB", *ratios])
    return "Bytes that a token moves:\n\n" + table(["", "dense", "raw", "split"], lines)


def _stored(results: Results, model: str) -> dict[str, int]:
    found = {}
    for kind in ("dense", "raw", "split"):
        runs = [
            run for run in results.runs if run["model"] == model and run["what"] == kind and run.get("stored")
        ]
        if not runs:
            return {}
        found[kind] = runs[0]["stored"]
    return found


def text(results: Results) -> str:
    """All tables of one machine."""
    about = results.machine
    where = about.get("gpu") or f"{about['cpu_model_name']}, {about['cpu_count']} processors"
    software = ", ".join(f"{name} {about[name]}" for name in ("torch", "transformers", "accelerate"))
    parts = [f"### {results.name}\n\n{where}, {software}. BF16, batch 1, medians.\n\n", sizes(results)]
    parts += [speeds(results, model, *state) for model in results.models for state in STATES]
    if (RESULTS / f"{results.name}.svg").exists():
        parts.append(f"![speed against Accelerate](../benchmarks/results/offload/{results.name}.svg)\n\n")
    return "".join(parts)


def page() -> str:
    """docs/offload.md with the tables of all results."""
    found = [Results(path) for path in sorted(RESULTS.glob("*.json"))]
    tables = "".join(map(text, found)) or "Not measured yet.\n\n"
    if not any(results.machine["device"] != "cpu" for results in found):
        tables += "On a GPU: *not measured*. `make gpu-offload` on a machine that has one measures it.\n"
    return MARKS.sub(lambda mark: mark[1] + tables.rstrip() + "\n" + mark[2], PAGE.read_text("utf-8"))


def plot(results: Results, file: Path | BinaryIO) -> None:
    """How much faster than Accelerate, the paper's bars beside ours, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "endor", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    state, tier = ("cold", "disk") if results.machine["device"] == "cpu" else ("warm", "host")
    bars: dict[str, dict[str, float]] = {}
    for model in results.models:
        base = results.accelerate(model, state, tier)
        here = bars.setdefault(model, {})
        if model in PAPER:
            here["paper, Endor"], here["paper, SSD to GPU directly"] = PAPER[model]
        for what in ("dense", "raw", "split"):
            seconds = results.seconds(model, state, tier, what)
            if base and seconds:
                here[NAMES[what]] = base / seconds
    figure, axes = plt.subplots(figsize=(8, 4))
    kinds = list(dict.fromkeys(kind for here in bars.values() for kind in here))
    for number, kind in enumerate(kinds):
        places = [place for place, model in enumerate(bars) if kind in bars[model]]
        heights = [bars[model][kind] for model in bars if kind in bars[model]]
        left = [place + (number - (len(kinds) - 1) / 2) * 0.8 / len(kinds) for place in places]
        drawn = axes.bar(left, heights, 0.8 / len(kinds), label=kind)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7)
    axes.axhline(1, color="gray", linewidth=1)
    axes.set_xticks(range(len(bars)), [results.models[model]["about"] for model in bars])
    axes.set(ylabel="speed, Accelerate = 1")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None}, transparent=True)
    plt.close(figure)


def keep(raw: Path, name: str) -> None:
    """Stores results, and nothing that tells of a person's machine and not of its speed."""
    found = json.loads(raw.read_text("utf-8"))
    found["runs"] = [{key: value for key, value in run.items() if key in KEPT} for run in found["runs"]]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found) + "\n", "utf-8")


def main() -> None:
    """Keeps results, if there are any, and renews the tables."""
    if len(sys.argv) == 3:
        keep(Path(sys.argv[1]), sys.argv[2])
        plot(Results(RESULTS / f"{sys.argv[2]}.json"), RESULTS / f"{sys.argv[2]}.svg")
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
