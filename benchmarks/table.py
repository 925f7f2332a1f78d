"""Results as tables and a plot: medians, and ratios to the copy of the same run.

python benchmarks/table.py RAW.json NAME     keeps RAW.json as results/NAME.json, without what tells of a
                                             person's machine and not of its speed, and renews both READMEs
python benchmarks/table.py                   renews both
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cuda_table
import pyperf

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
FRONT = HERE.parent / "README.md"
CUDA = HERE.parent / "docs" / "cuda.md"
CUDA_MARKS = re.compile(r"(<!-- cuda:begin -->\n).*?(<!-- cuda:end -->)", re.DOTALL)
SIZES = HERE / "results" / "sizes.json"
SIZES_MARKS = re.compile(r"(<!-- sizes:begin -->\n).*?(<!-- sizes:end -->)", re.DOTALL)
SPEED_MARKS = re.compile(r"(<!-- speed:begin -->\n).*?(<!-- speed:end -->)", re.DOTALL)
MARKS = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)
MACHINE = {"cpu_count", "cpu_model_name", "python_version", "platform"}
CASE = {"name", "section", "what", "target", "threads", "itemsize", "density", "nbytes", "stored"}
CASE |= {"encoding", "tensor"}
# What results that are older than a key mean.
MEANT = {"encoding": "bitmap/raw", "tensor": "50 % zero"}
KEPT = MACHINE | CASE | {"loops", "perf_version", "timer", "unit"}
TARGETS = {"scalar": "scalar", "avx2": "AVX2", "avx512": "AVX-512", "neon": "NEON"}


class Results:
    """Medians in seconds, found by what was timed."""

    def __init__(self, path: Path) -> None:
        suite = pyperf.BenchmarkSuite.load(str(path))
        self.name = path.stem
        self.rows: list[tuple[dict[str, Any], float]] = [
            (MEANT | one.get_metadata(), one.median()) for one in suite.get_benchmarks()
        ]
        self.machine = self.rows[0][0]

    def section(self, name: str, **wanted: object) -> Iterator[tuple[dict[str, Any], float]]:
        """What was timed there, and the median."""
        for facts, seconds in self.rows:
            if facts["section"] == name and all(facts[key] == value for key, value in wanted.items()):
                yield facts, seconds

    def seconds(self, name: str, **wanted: object) -> float | None:
        """The median of the one that is wanted; None if it was not timed."""
        return next((seconds for _, seconds in self.section(name, **wanted)), None)

    def speed(self, name: str, nbytes: int, copy: float | None = None, **wanted: object) -> str:
        """GB/s of dense bytes, and in copies."""
        seconds = self.seconds(name, **wanted)
        if seconds is None:
            return ""
        return f"{nbytes / seconds / 1e9:.1f}" + (f" ({copy / seconds:.2f})" if copy else "")

    def values(self, section: str, key: str) -> list[Any]:
        """Values of a key, in their order."""
        return list(dict.fromkeys(facts[key] for facts, _ in self.section(section)))


def keep(raw: Path, name: str) -> None:
    """Stores results, the machine described and nothing else of it told."""
    results = json.loads(raw.read_text("utf-8"))
    for holder in [results, *results["benchmarks"]]:
        holder["metadata"] = {key: value for key, value in holder["metadata"].items() if key in KEPT}
    for benchmark in results["benchmarks"]:
        benchmark["runs"] = [
            {key: value for key, value in run.items() if key != "metadata"} for run in benchmark["runs"]
        ]
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(json.dumps(results) + "\n", "utf-8")


def rows(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n\n"


def main_table(results: Results) -> str:
    nbytes = 512 << 20
    lines = [
        ["memcpy"] + [results.speed("main", nbytes, what="memcpy", threads=t) for t in (1, 2)] + [""] * 4
    ]
    for target in results.values("main", "target"):
        if target == "auto":
            continue
        line = [TARGETS[target]]
        for what in ("decode", "encode", "validate"):
            for threads in (1, 2):
                copy = results.seconds("main", what="memcpy", threads=threads)
                wanted = {"what": what, "target": target, "threads": threads}
                line.append(results.speed("main", nbytes, copy, **wanted))
        lines.append(line)
    head = ["", *(f"{what}, {t}" for what in ("decode", "encode", "validate") for t in ("1 thread", "2"))]
    return "512 MiB of BF16, half of it zero:\n\n" + rows(head, lines)


def itemsizes_table(results: Results) -> str:
    nbytes = 512 << 20
    head = ["", *(f"{what}, {8 * size}-bit" for size in (1, 4, 8) for what in ("decode", "encode"))]
    lines = []
    for target in results.values("itemsizes", "target"):
        if target == "auto":
            continue
        line = [TARGETS[target]]
        for size in (1, 4, 8):
            copy = results.seconds("itemsizes", what="memcpy", itemsize=size)
            for what in ("decode", "encode"):
                wanted = {"what": what, "target": target, "itemsize": size}
                line.append(results.speed("itemsizes", nbytes, copy, **wanted))
        lines.append(line)
    return "Other sizes of elements, one thread:\n\n" + rows(head, lines)


def split_table(results: Results) -> str:
    text = ""
    about = {
        "bitmap/split": "The same with split values, two bits for an exponent (6 bits per weight)",
        "all/split": "BF16 that is not pruned, three bits for an exponent (11.4 bits per weight)",
    }
    kinds = ("decode", "encode", "survey", "validate")
    for encoding, caption in about.items():
        lines = []
        for target in results.values("split", "target"):
            if target == "auto":
                continue
            line = [TARGETS[target]]
            for what in kinds:
                for threads in (1, 2) if what == "decode" else (1,):
                    copy = results.seconds("split", what="memcpy", threads=threads, encoding=encoding)
                    wanted = {"what": what, "target": target, "threads": threads, "encoding": encoding}
                    line.append(results.speed("split", 512 << 20, copy, **wanted))
            lines.append(line)
        text += f"{caption}:\n\n" + rows(["", "decode, 1 thread", "decode, 2", *kinds[1:]], lines)
    return text


def split_itemsizes_table(results: Results) -> str:
    sizes, kinds = (1, 4), ("decode", "encode")
    head = ["", *(f"{what}, {8 * size}-bit" for size in sizes for what in kinds)]
    lines = []
    for target in results.values("split itemsizes", "target"):
        if target == "auto":
            continue
        line = [TARGETS[target]]
        for size in sizes:
            copy = results.seconds("split itemsizes", what="memcpy", itemsize=size)
            for what in kinds:
                wanted = {"what": what, "target": target, "itemsize": size}
                line.append(results.speed("split itemsizes", 512 << 20, copy, **wanted))
        lines.append(line)
    return "Split values of F8_E4M3 and F32, half of them zero, one thread:\n\n" + rows(head, lines)


def limit(density: float, itemsize: int = 2) -> float:
    """How much faster than a copy decoding can be if only bytes count: a copy moves two for each."""
    return 2 / (1 + density + 1 / (8 * itemsize) + 8 / (4096 * itemsize))


def densities_table(results: Results) -> str:
    lines = []
    for density in results.values("densities", "density"):
        here = {"density": density}
        copy = results.seconds("densities", what="memcpy", **here)
        speeds = [
            results.speed("densities", 256 << 20, copy, what=what, encoding=encoding, **here)
            for encoding in ("bitmap/raw", "bitmap/split")
            for what in ("decode", "encode")
        ]
        lines.append([f"{density:.0%}", *speeds[:2], f"{limit(density):.2f}", *speeds[2:]])
    return "256 MiB of BF16 by share of stored elements, one thread:\n\n" + rows(
        ["stored", "decode", "encode", "if only bytes counted", "decode, split", "encode, split"], lines
    )


def calls_table(results: Results) -> str:
    lines = []
    for nbytes in results.values("sizes", "nbytes"):
        copy = results.seconds("sizes", what="memcpy", nbytes=nbytes)
        assert copy
        line = [f"{nbytes >> 10} KiB" if nbytes < 1 << 20 else f"{nbytes >> 20} MiB", f"{1e6 * copy:,.1f} µs"]
        for encoding in ("bitmap/raw", "bitmap/split"):
            decode = results.seconds("sizes", what="decode", nbytes=nbytes, encoding=encoding)
            if decode is None:
                line += ["", ""]
            else:
                line += [f"{1e6 * decode:,.1f} µs", f"{nbytes / decode / 1e9:.1f} ({copy / decode:.2f})"]
        lines.append(line)
    head = ["dense size", "memcpy", "decode", "decode, GB/s", "decode, split", "GB/s"]
    return "One call through Python, by size, one thread:\n\n" + rows(head, lines)


def loading_table(results: Results) -> str:
    base = "safetensors.torch + clone"
    lines = []
    for what in results.values("loading", "what"):
        line = [what]
        for threads in (1, 2):
            seconds = results.seconds("loading", what=what, threads=threads)
            other = results.seconds("loading", what=base, threads=threads)
            assert seconds
            assert other
            line.append(f"{seconds:.3f} s ({other / seconds:.2f})")
        lines.append(line)
    model = "1 GiB of BF16 in 64 tensors, half of it zero"
    text = f"`load_file` of {model}, from the page cache into fresh memory:\n\n"
    return text + rows(["", "1 thread", "2 threads"], lines)


def peers_table(results: Results) -> str:
    text = ""
    for tensor in results.values("peers", "tensor"):
        copy = results.seconds("peers", what="memcpy", tensor=tensor)
        lines = []
        for facts, seconds in sorted(results.section("peers", tensor=tensor), key=lambda row: row[1]):
            bits = 16 * facts["stored"] / facts["nbytes"]
            speed = f"{facts['nbytes'] / seconds / 1e9:.2f}"
            assert copy
            lines.append([facts["what"], f"{bits:.2f}", speed, f"{copy / seconds:.3f}"])
        text += f"Decoding a 4096 x 11008 BF16 matrix, {tensor}, one thread ([`peers.py`](peers.py)):\n\n"
        text += rows(["", "bits per weight", "GB/s", "of memcpy"], lines)
    return text


def large_table(results: Results) -> str:
    lines = []
    for facts, seconds in results.section("large"):
        peer = "sha256sum" if facts["what"] in {"endor verify", "sha256sum"} else "cp -r, dense"
        base = results.seconds("large", what=peer)
        assert base
        name = peer.split(",", maxsplit=1)[0]
        lines.append([f"`{facts['what']}`", f"{seconds:.2f} s", f"{base / seconds:.2f} of `{name}`"])
    model = "A checkpoint of 5 GB, BF16, half of it zero, page cache warm, two jobs"
    notes = "the last two read what `compress` wrote; `endor` has what it writes flushed to the disk"
    return f"{model} ({notes}):\n\n" + rows(["", "time", "speed"], lines)


def slices_table(results: Results) -> str:
    lines = []
    for what in results.values("slices", "what"):
        which = what.split(", ")[0]
        line = [what]
        for threads in (1, 2):
            seconds = results.seconds("slices", what=what, threads=threads)
            other = results.seconds("slices", what=f"{which}, safetensors + clone", threads=threads)
            assert seconds
            assert other
            line.append(f"{1e3 * seconds:.2f} ms ({other / seconds:.2f})")
        lines.append(line)
    text = "An eighth of a 4096 x 11008 BF16 matrix, half of it zero, the file opened each time:\n\n"
    return text + rows(["", "1 thread", "2 threads"], lines)


def layer_table(results: Results) -> str:
    lines = []
    for what in results.values("layer", "what"):
        seconds = [results.seconds("layer", what=what, threads=threads) or 0.0 for threads in (1, 2)]
        lines.append([what, *(f"{1e3 * one:.2f} ms" for one in seconds)])
    text = "`nn.Linear` with such a weight, which stays encoded, batch 1, and its two parts alone:\n\n"
    return text + rows(["", "1 thread", "2 threads"], lines)


def table(results: Results) -> str:
    """All tables of one machine."""
    about = results.machine
    cpu = f"{about['cpu_model_name']}, {about['cpu_count']} processors, Python {about['python_version']}"
    text = f"## {results.name}\n\n{cpu}. GB/s of dense bytes, and (in brackets) of memcpy.\n\n"
    makers = {
        "main": main_table,
        "split": split_table,
        "split itemsizes": split_itemsizes_table,
        "itemsizes": itemsizes_table,
        "densities": densities_table,
        "sizes": calls_table,
        "loading": loading_table,
        "slices": slices_table,
        "layer": layer_table,
        "large": large_table,
        "peers": peers_table,
    }
    there = {facts["section"] for facts, _ in results.rows}
    text += "".join(make(results) for name, make in makers.items() if name in there)
    return text + f"![decoding speed by density and by format](results/{results.name}.svg)\n"


def plot(results: Results, file: Path | BinaryIO) -> None:
    """Speed by density, and by format, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "endor", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    densities = results.values("densities", "density")
    for what, encoding in (("decode", "bitmap/raw"), ("decode", "bitmap/split"), ("encode", "bitmap/raw")):
        ratios = []
        for density in densities:
            copy = results.seconds("densities", what="memcpy", density=density)
            seconds = results.seconds("densities", what=what, density=density, encoding=encoding)
            if copy and seconds:
                ratios.append(copy / seconds)
        if ratios:
            left.plot(densities, ratios, marker="o", label=f"{what}, {encoding.split('/')[1]} values")
    left.plot(
        densities,
        [limit(density) for density in densities],
        "--",
        label="decode, raw, if only bytes counted",
    )
    left.axhline(1, color="gray", linewidth=1)
    left.set(xlabel="share of stored elements", ylabel="speed, memcpy = 1", ylim=(0, None))
    left.legend()
    for facts, seconds in results.section("peers", tensor="50 % zero"):
        bits = 16 * facts["stored"] / facts["nbytes"]
        if bits > 16:
            continue  # larger than dense
        place = (bits, facts["nbytes"] / seconds / 1e9)
        right.plot(*place, "o")
        name = facts["what"] if facts["what"].startswith("Endor") else facts["what"].split(",")[0]
        right.annotate(name, place, (5, 2), textcoords="offset points", fontsize=8)
    right.set(xlim=(None, 19), xlabel="bits per weight", ylabel="decoding, GB/s of dense bytes", yscale="log")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None}, transparent=True)
    plt.close(figure)


def sizes_table(dtypes: tuple[str, ...]) -> str:
    """Bits per weight of a trained model, of these dtypes; what ``sizes.py`` found."""
    results = json.loads(SIZES.read_text("utf-8"))
    peers = list(dict.fromkeys(name for found in results.values() for name in found.get("peers", ())))
    lines = []
    for what, found in results.items():
        if what.startswith(dtypes):
            here = [found["raw"], found["floor"], *(found.get("peers", {}).get(peer) for peer in peers)]
            figures = ["" if bits is None else f"{bits:.2f}" for bits in here]
            smaller = f"{found['dense'] / found['auto']:.2f}x"
            lines.append([what, f"{found['dense']:.0f}", f"**{found['auto']:.2f}**", smaller, *figures])
    names = [peer.split(",", maxsplit=1)[0] for peer in peers]
    return rows(["", "dense", "Endor", "smaller by", "bitmap and values", "entropy floor", *names], lines)


def newest() -> Results:
    """Of the results that have other formats too, those of the last day."""
    found = (Results(path) for path in sorted(HERE.glob("results/2*.json"), reverse=True))
    return next(results for results in found if any(results.section("peers")))


def front() -> str:
    """The README of the project with sizes and speeds in it."""
    text = FRONT.read_text("utf-8")
    text = SIZES_MARKS.sub(lambda mark: mark[1] + sizes_table(("BF16",)) + mark[2], text)
    return SPEED_MARKS.sub(lambda mark: mark[1] + speed_table(newest()) + mark[2], text)


def speed_table(results: Results) -> str:
    """How fast formats are decoded, in copies of the dense bytes."""
    whats = dict.fromkeys(facts["what"] for facts, _ in results.section("peers"))
    lines = []
    for what in whats:
        line = [what]
        for tensor in results.values("peers", "tensor"):
            copy = results.seconds("peers", what="memcpy", tensor=tensor)
            seconds = results.seconds("peers", what=what, tensor=tensor)
            ratio = copy / seconds if copy and seconds else None
            line.append("" if ratio is None else f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}")
        lines.append(line)
    return rows(["", *results.values("peers", "tensor")], lines)


def cuda() -> str:
    """docs/cuda.md with what was measured on GPUs; ``gpu.py`` writes results/cuda/*.json."""
    return CUDA_MARKS.sub(lambda mark: mark[1] + cuda_table.tables() + mark[2], CUDA.read_text("utf-8"))


def readme() -> str:
    """README.md with the tables of all results."""
    found = [Results(path) for path in sorted((HERE / "results").glob("2*.json"))]
    tables = "\n".join(table(results) for results in found)
    text = SIZES_MARKS.sub(lambda mark: mark[1] + sizes_table(("",)) + mark[2], README.read_text("utf-8"))
    return MARKS.sub(lambda mark: mark[1] + tables + mark[2], text)


def main() -> None:
    """Keeps results, if there are any, and renews the tables."""
    if len(sys.argv) == 3:
        keep(Path(sys.argv[1]), sys.argv[2])
        kept = HERE / "results" / sys.argv[2]
        plot(Results(kept.with_suffix(".json")), kept.with_suffix(".svg"))
    README.write_text(readme(), "utf-8")
    FRONT.write_text(front(), "utf-8")
    CUDA.write_text(cuda(), "utf-8")


if __name__ == "__main__":
    main()
