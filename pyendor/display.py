"""What the ``endor`` command prints: tables and lines for people, JSON for scripts.

Text that comes from files is escaped here, so that it cannot steer a terminal (spec S-4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from pyendor import checkpoint, report
from pyendor.convert import Conversion
from pyendor.errors import ForeignError, FormatError, printable, quote
from pyendor.report import Report, Row
from pyendor.verify import Problem, Verification

# Where nobody looks at a terminal, lines are long enough for names of tensors.
UNSEEN_WIDTH = 160
LONGEST_SHAPE = 80
FOREIGN = (
    "Shown is the dense model that this stands for. Present releases of compressed-tensors do not read it, "
    "and loaders may fill its layers at random. endor compress writes it as Endor, endor decompress makes "
    "that the dense model."
)
NOT_WORTH_IT = "No tensor has enough zeros to gain from being encoded: this model is better kept dense."


def out() -> Console:
    """A console for results."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=UNSEEN_WIDTH)


def err() -> Console:
    """A console for progress and complaints."""
    console = Console(stderr=True, highlight=False, emoji=False)
    return console if console.is_terminal else Console(stderr=True, emoji=False, soft_wrap=True)


def message(error: Exception) -> str:
    """What an error says."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{printable(str(error.filename))}': {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: the file is too large for this machine"
    return str(error)


def print_notes(error: BaseException) -> None:
    """Prints what else is to be known of an error."""
    for note in notes(error):
        err().print(Text(f"endor: {note}"))


def notes(error: BaseException) -> list[str]:
    """What was noted of an error, what it left behind for instance."""
    return list(getattr(error, "__notes__", []))


def error_members(error: Exception) -> dict[str, Any]:
    """An error as JSON values."""
    members: dict[str, Any] = {"type": type(error).__name__, "message": message(error)}
    if isinstance(error, FormatError):
        members |= {key: getattr(error, key) for key in ("rule", "tensor", "offset", "path")}
    elif isinstance(error, ForeignError):
        members |= {key: getattr(error, key) for key in ("tensor", "path")}
    if notes(error):
        members["notes"] = notes(error)
    return members


def print_json(members: dict[str, Any]) -> None:
    """Prints JSON."""
    print(json.dumps(members, indent=2, default=str))


@contextmanager
def progress(what: str, path: Path) -> Iterator[Callable[[int], None]]:
    """A bar over the dense bytes of all tensors, on stderr, where that is a terminal."""
    console = err()
    if not console.is_terminal:
        yield lambda done: None
        return
    total = report.dense_bytes(path)
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def print_conversion(done: Conversion, as_json: bool) -> None:
    """Prints what a conversion has done."""
    if as_json:
        print_json(asdict(done))
        return
    console = out()
    change = 100 * (done.written_bytes / done.source_bytes - 1) if done.source_bytes else 0.0
    console.print(
        f"{escape(quote(str(done.destination)))}: {decimal(done.source_bytes)} → "
        f"{decimal(done.written_bytes)} ({change:+.1f} %), {count(done.tensors, 'tensor')}, "
        f"{done.encoded} of them encoded"
    )
    for note in done.notes:
        console.print(Text(note))
    print_left_out(done.left_out)


def print_left_out(left_out: Mapping[str, str]) -> None:
    """Prints what was not carried over, and warns of what a loader may miss."""
    missed = checkpoint.missed(left_out)
    for path, why in sorted(left_out.items()):
        out().print(Text(f"left out: {quote(path)}, {why}"))
    if missed:
        err().print(
            Text(
                f"endor: warning: a loader may miss what was left out, such as {quote(min(missed))}; see "
                "--strict"
            )
        )


def print_rows(rows: Sequence[Row], by_layer: bool) -> None:
    """Prints a table of tensors or of layers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer" if by_layer else "tensor", overflow="fold")
    for column in ("dtype", "shape") if not by_layer else ("weights",):
        table.add_column(column, justify="right" if by_layer else "left")
    for column in ("zeros", "encoding", "bits/weight", "floor", "saving"):
        table.add_column(column, justify="right")
    for row in rows:
        shape = "×".join(map(str, row.shape)) or "scalar"
        shape = shape if len(shape) < LONGEST_SHAPE else f"{len(row.shape)} dimensions"
        what = [f"{row.numel:,}"] if by_layer else [row.dtype, shape]
        cells = [row.name, *what, *_figures(row)]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    out().print(table)


def _figures(row: Row) -> list[str]:
    if row.unsupported is not None:
        return ["", "", "", "", f"unsupported: {row.unsupported}"]
    saves = row.encoded or row.endor_bytes < row.dense_bytes
    return [
        "" if row.sparsity is None else f"{100 * row.sparsity:.1f} %",
        row.encoding or "",
        "" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
        "" if row.floor is None else f"{row.floor:.2f}",
        f"{100 * row.saving:.1f} %" if saves else "plain",
    ]


def print_totals(found: Report) -> None:
    """Prints what all tensors together take."""
    console = out()
    kind = found.foreign or (f"Endor {found.version}" if found.version is not None else "dense")
    saved = max(0.0, 1 - found.endor_bytes / found.dense_bytes) if found.dense_bytes else 0.0
    size = "Endor size" if found.version is not None else "as Endor it would take"
    sizes = f"dense size {decimal(found.dense_bytes)}, {size} {decimal(found.endor_bytes)}"
    console.print(
        f"\n{escape(quote(found.path))} ({kind}): {count(len(found.rows), 'tensor')}, "
        f"{found.numel:,} elements\n"
        f"{sizes}: {100 * saved:.1f} % saved"
    )
    per_weight = found.bits_per_weight(found.encoded)
    if per_weight is not None:
        console.print(f"encoded tensors: {per_weight:.2f} bits per weight, padding and header included")
    if found.foreign is not None:
        console.print(FOREIGN)
    elif not found.worth_it:
        console.print(NOT_WORTH_IT)


def print_verification(
    checked: Verification, problems: Sequence[Problem], against: Path | None, compared: bool
) -> None:
    """Prints what was checked, and every problem."""
    for one in checked.sums:
        print(f"{one.sha256}  {printable(one.name)}")
    for problem in problems:
        err().print(f"[bold red]{problem.kind}[/]", Text(_located(problem)))
    line = "[bold red]not good[/]" if problems else "[bold green]good[/]"
    line += f": {count(checked.files, 'file')}, {count(checked.tensors, 'tensor')}, "
    line += f"{checked.encoded} of them encoded, {count(checked.digests, 'digest')} checked"
    if compared:
        line += f"; compared with {escape(quote(str(against)))}"
    elif against is not None:
        line += "; not compared, as it is not good"
    if problems:
        line += f"; {count(len(problems), 'problem')}"
    elif compared:
        line += "; bit-identical"
    out().print(line)


def _located(problem: Problem) -> str:
    """Where a problem is, and what it is."""
    where = [f"'{printable(problem.path)}'"]
    if problem.tensor is not None:
        where.append(f"tensor {quote(problem.tensor)}")
    if problem.offset is not None:
        where.append(f"byte {problem.offset}")
    rule = f" [rule {problem.rule}]" if problem.rule is not None else ""
    return ", ".join(where) + f": {problem.message}{rule}"


def count(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
