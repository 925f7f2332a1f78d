"""The ``endor`` command: arguments in, tables or JSON out. What it does is done by other modules.

Exit codes: 0 all is well; 1 the input is at fault; 2 the command cannot be carried out as asked.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
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

import pyendor
from pyendor import checkpoint, convert, prune, report, verify
from pyendor.convert import Conversion
from pyendor.errors import (
    BackendUnavailableError,
    EndorError,
    FormatError,
    UsageError,
    quote,
)
from pyendor.metadata import LOWEST_VERSION
from pyendor.report import Report, Row

P = ParamSpec("P")

INPUT_FAULT, USAGE = 1, 2
# Where nobody looks at a terminal, lines are long enough for names of tensors.
UNSEEN_WIDTH = 160
NOT_WORTH_IT = "No tensor has enough zeros to gain from being encoded: this model is better kept dense."

app = typer.Typer(
    name="endor",
    help="Sparse LLM weights in far fewer bytes, bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Group(StrEnum):
    """Within what magnitudes are compared."""

    tensor = "tensor"
    row = "row"


class FloatType(StrEnum):
    """What floats can be converted to."""

    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"


Source = Annotated[
    Path,
    typer.Argument(metavar="SRC", help="A safetensors file, or a directory in Hugging Face layout."),
]
Destination = Annotated[Path, typer.Argument(metavar="DST", help="The file or directory to write.")]
Input = Annotated[Path, typer.Argument(metavar="PATH", help="A file or a checkpoint directory.")]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Backend = Annotated[
    str | None, typer.Option(help="The codec to use.", envvar="PYENDOR_BACKEND", show_envvar=True)
]


def _out() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=UNSEEN_WIDTH)


def _err() -> Console:
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, soft_wrap=True)


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turns errors into a line on stderr, or JSON on stdout, and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (EndorError, OSError) as error:
            usage = (UsageError, BackendUnavailableError, FileNotFoundError, PermissionError)
            if kwargs.get("as_json"):
                _print_json({"error": _error_members(error)})
            else:
                _err().print(f"[bold red]endor:[/] {escape(_message(error))}")
            raise typer.Exit(USAGE if isinstance(error, usage) else INPUT_FAULT) from None

    return run


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{quote(str(error.filename))}: {error.strerror}"
    return str(error)


def _error_members(error: Exception) -> dict[str, Any]:
    members: dict[str, Any] = {"type": type(error).__name__, "message": _message(error)}
    if isinstance(error, FormatError):
        members |= {key: getattr(error, key) for key in ("rule", "tensor", "offset", "path")}
    return members


@app.command()
@_reported
def compress(
    source: Source,
    destination: Destination,
    force: Force = False,
    min_saving: Annotated[
        float, typer.Option(help="Encode a tensor only where it saves so many percent.", max=100.0)
    ] = 5.0,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Write a dense model as Endor.

    The result holds every tensor bit for bit. SRC is only read.
    """
    with _progress("compressing", source) as progress:
        done = convert.compress(
            source,
            destination,
            force=force,
            min_saving=min_saving / 100,
            backend=backend,
            progress=progress,
        )
    _print_conversion(done, as_json)
    if not done.encoded and not as_json:
        _out().print(
            "No tensor has enough zeros to gain from being encoded: this model is better kept dense."
        )


@app.command()
@_reported
def decompress(
    source: Source,
    destination: Destination,
    force: Force = False,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Restore the dense model from Endor, bit for bit.

    All rules and digests are checked on the way. SRC is only read.
    """
    with _progress("decompressing", source) as progress:
        done = convert.decompress(source, destination, force=force, backend=backend, progress=progress)
    _print_conversion(done, as_json)


@app.command()
@_reported
def inspect(
    path: Input,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw sparsity and size by layer (needs matplotlib)."),
    ] = None,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Show a row for each layer, not for each tensor.")
    ] = False,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Show every tensor: shape, dtype, zeros, bits per weight, saving.

    Of a dense model, show what Endor would make of it.
    """
    with _progress("reading", path) as progress:
        found = report.inspect(path, backend=backend, progress=progress)
    if plot is not None:
        report.plot(found, plot)
    if as_json:
        _print_json(found.to_json())
        return
    _print_rows(list(report.by_layer(found.rows).values()) if by_layer else found.rows, by_layer)
    _print_totals(found)


@app.command(name="verify")
@_reported
def verify_command(
    path: Input,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DENSE", help="Also compare with this model, bit for bit."),
    ] = None,
    digests: Annotated[bool, typer.Option(help="Check the digests of tensors too.")] = True,
    sums: Annotated[
        bool, typer.Option("--sums", help="Print the SHA-256 of every tensor's dense bytes.")
    ] = False,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Check every rule of the format and every digest, and name all that is wrong."""
    with _progress("verifying", path) as progress:
        checked = verify.verify(path, check_digests=digests, sums=sums, backend=backend, progress=progress)
    problems = checked.problems
    compared = against is not None and not problems
    if against is not None and compared:
        with _progress("comparing", path) as progress:
            problems = verify.compare(path, against, progress=progress)
    if as_json:
        members = asdict(checked) | {"problems": [asdict(problem) for problem in problems]}
        members["against"] = str(against) if compared else None
        _print_json({"ok": not problems} | members)
    else:
        for one in checked.sums:
            print(f"{one.sha256}  {quote(one.name)[1:-1]}")
        for problem in problems:
            _err().print(f"[bold red]{problem.kind}[/] {escape(_located(problem))}")
        _out().print(
            ("[bold red]not good[/]" if problems else "[bold green]good[/]")
            + f": {_count(checked.files, 'file')}, {_count(checked.tensors, 'tensor')}, "
            f"{checked.encoded} of them encoded, {_count(checked.digests, 'digest')} checked"
            + (f"; compared with {escape(quote(str(against)))}" if compared else "")
            + (f"; {_count(len(problems), 'problem')}" if problems else "")
            + ("; bit-identical" if compared and not problems else "")
        )
    if problems:
        raise typer.Exit(INPUT_FAULT)


@app.command(name="prune")
@_reported
def prune_command(
    source: Source,
    destination: Destination,
    sparsity: Annotated[
        float, typer.Option(help="Share of the elements to set to zero.", min=0, max=1)
    ] = 0.5,
    per: Annotated[Group, typer.Option(help="Compare magnitudes over a tensor or a row.")] = Group.tensor,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Prune the tensors of these names; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these alone; may be repeated.")
    ] = None,
    dtype: Annotated[
        FloatType | None, typer.Option(help="First convert all floats of the model to this type.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a magnitude-pruned dense copy, to try Endor on.

    By default the matrices of numbered layers are pruned; embeddings, norms and the head are not.

    Magnitude pruning looks at no data and [bold]costs quality[/]: a language model pruned to 50 % this way is
    noticeably worse than before. To keep quality, prune with Wanda or SparseGPT, for instance through
    llm-compressor, and give the result to [bold]endor compress[/].
    """
    options = prune.Options(
        sparsity=sparsity,
        group=per.value,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        dtype=dtype.value if dtype is not None else None,
    )
    with _progress("pruning", source) as progress:
        outcome = prune.prune(source, destination, options, force=force, progress=progress)
    share = outcome.zeros / outcome.numel if outcome.numel else 0.0
    if as_json:
        _print_json(asdict(outcome) | {"sparsity": share})
        return
    _out().print(
        f"{escape(quote(str(destination)))}: {_count(len(outcome.tensors), 'tensor')} pruned, "
        f"{100 * share:.2f} % of their elements are zero"
    )


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of package and format.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"endor {pyendor.__version__}, format {LOWEST_VERSION}")
        raise typer.Exit


def main() -> None:
    """The entry point of the command."""
    # So that a terminated run, like an interrupted one, removes what it was writing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app()


@contextmanager
def _progress(what: str, path: Path) -> Iterator[Callable[[int], None]]:
    """A bar over the dense bytes of all tensors, on stderr, where that is a terminal."""
    console = _err()
    if not console.is_terminal:
        yield lambda done: None
        return
    total = sum(
        tensor.nbytes if tensor.unsupported is None else tensor.stored_nbytes
        for opened in checkpoint.open_all(path)
        for tensor in opened.layout.tensors.values()
    )
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


def _print_json(members: dict[str, Any]) -> None:
    print(json.dumps(members, indent=2, default=str))


def _print_conversion(done: Conversion, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(done))
        return
    out = _out()
    change = 100 * (done.written_bytes / done.source_bytes - 1) if done.source_bytes else 0.0
    out.print(
        f"{escape(quote(str(done.destination)))}: {decimal(done.source_bytes)} → "
        f"{decimal(done.written_bytes)} ({change:+.1f} %), {_count(done.tensors, 'tensor')}, "
        f"{done.encoded} of them encoded"
    )
    for path in done.left_out:
        out.print(f"left out: {escape(quote(str(path)))}")


def _print_rows(rows: Sequence[Row], by_layer: bool) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer" if by_layer else "tensor", overflow="fold")
    for column in ("dtype", "shape") if not by_layer else ("weights",):
        table.add_column(column, justify="right" if by_layer else "left")
    for column in ("zeros", "bits/weight", "saving"):
        table.add_column(column, justify="right")
    for row in rows:
        name = quote(row.name)[1:-1]
        what = [f"{row.numel:,}"] if by_layer else [row.dtype, "×".join(map(str, row.shape)) or "scalar"]
        table.add_row(*map(escape, [name, *what, *_figures(row)]))
    _out().print(table)


def _figures(row: Row) -> list[str]:
    if row.unsupported is not None:
        return ["", "", f"unsupported: {row.unsupported}"]
    saves = row.encoded or row.endor_bytes < row.dense_bytes
    return [
        "" if row.sparsity is None else f"{100 * row.sparsity:.1f} %",
        "" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
        f"{100 * row.saving:.1f} %" if saves else "plain",
    ]


def _print_totals(found: Report) -> None:
    out = _out()
    kind = f"Endor {found.version}" if found.version is not None else "dense"
    saved = max(0.0, 1 - found.endor_bytes / found.dense_bytes) if found.dense_bytes else 0.0
    size = "Endor size" if found.version is not None else "as Endor it would take"
    sizes = f"dense size {decimal(found.dense_bytes)}, {size} {decimal(found.endor_bytes)}"
    out.print(
        f"\n{escape(quote(found.path))} ({kind}): {_count(len(found.rows), 'tensor')}, "
        f"{found.numel:,} elements\n"
        f"{sizes}: {100 * saved:.1f} % saved"
    )
    per_weight = found.encoded_bits_per_weight
    if per_weight is not None:
        out.print(f"encoded tensors: {per_weight:.2f} bits per weight, padding and header included")
    if not found.worth_it:
        out.print(NOT_WORTH_IT)


def _located(problem: verify.Problem) -> str:
    where = [quote(problem.path)]
    if problem.tensor is not None:
        where.append(f"tensor {quote(problem.tensor)}")
    if problem.offset is not None:
        where.append(f"byte {problem.offset}")
    rule = f" [rule {problem.rule}]" if problem.rule is not None else ""
    return ", ".join(where) + f": {problem.message}{rule}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
