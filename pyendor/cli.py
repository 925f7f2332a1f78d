"""The ``endor`` command: arguments in, tables or JSON out. What it does is done by other modules.

Exit codes: 0 all is well; 1 the input is at fault; 2 the command cannot be carried out as asked.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.markup import escape
from rich.text import Text

import pyendor
from pyendor import convert, display, prune, report, verify
from pyendor.choice import Values
from pyendor.errors import (
    BackendUnavailableError,
    EndorError,
    UsageError,
    quote,
)
from pyendor.jobs import dask as run_on
from pyendor.metadata import VERSION

P = ParamSpec("P")

INPUT_FAULT, USAGE = 1, 2
PRUNE_HELP = """Write a pruned dense copy, to try Endor on.

By default the weights of numbered layers are pruned; embeddings, norms, the head and routers are not.

""" + (
    "Magnitude pruning looks at no data and [bold]costs quality[/]: a language model pruned to 50 % this way "
    "is noticeably worse than before. Wanda shows text to the model (--calibration) and keeps more of it. To "
    "keep still more, prune with SparseGPT through llm-compressor, and give the result to "
    "[bold]endor compress[/]."
)

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


class Method(StrEnum):
    """By what elements are compared."""

    magnitude = "magnitude"
    wanda = "wanda"


class FloatType(StrEnum):
    """What floats can be converted to."""

    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"


Source = Annotated[
    Path,
    typer.Argument(metavar="SRC", help="A safetensors file, or a directory in Hugging Face layout."),
]
Destination = Annotated[str, typer.Argument(metavar="DST", help="The file or directory to write.")]
Input = Annotated[Path, typer.Argument(metavar="PATH", help="A file or a checkpoint directory.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Refuse a directory of which anything would be left out that a loader may miss."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        show_default="one for each processor, at most 4",
        help="How many files of a directory to work on at a time. Each may take three times the memory of "
        "its largest tensor.",
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Let the workers of a Dask cluster do the work; all paths have to be the same files there.",
    ),
]
Backend = Annotated[
    str | None, typer.Option(help="The codec to use.", envvar="PYENDOR_BACKEND", show_envvar=True)
]


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turns errors into a line on stderr, or JSON on stdout, and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (EndorError, OSError, MemoryError) as error:
            usage = (UsageError, BackendUnavailableError, OSError)
            if kwargs.get("as_json"):
                display.print_json({"error": display.error_members(error)})
            else:
                display.err().print("[bold red]endor:[/]", Text(display.message(error)))
                display.print_notes(error)
            raise typer.Exit(USAGE if isinstance(error, usage) else INPUT_FAULT) from None
        except (KeyboardInterrupt, SystemExit) as error:
            display.print_notes(error)
            raise

    return run


@app.command()
@_reported
def compress(
    source: Source,
    destination: Destination,
    force: Force = False,
    strict: Strict = False,
    values: Annotated[
        Values,
        typer.Option(
            help="auto: the smallest encoding for each tensor; raw: only what readers of format 1.0 know; "
            "split: split values wherever the type has them."
        ),
    ] = "auto",
    min_saving: Annotated[
        float, typer.Option(help="Encode a tensor only where it saves so many percent.", max=100.0)
    ] = 5.0,
    jobs: Jobs = None,
    dask: Dask = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Write a dense model as Endor.

    The result holds every tensor bit for bit. SRC is only read. It may also be a model that
    compressed-tensors has compressed as sparse-bitmask or sparse-24-bitmask. If this is cut short, the
    same command goes on from there.
    """
    with run_on(dask) as executor, display.progress("compressing", source) as progress:
        done = convert.compress(
            source,
            _destination(source, destination),
            force=force,
            strict=strict,
            values=values,
            min_saving=min_saving / 100,
            backend=backend,
            jobs=jobs,
            executor=executor,
            progress=progress,
        )
    display.print_conversion(done, as_json)
    if not done.encoded and not as_json:
        display.out().print("No tensor gains enough from being encoded: this model is better kept dense.")


@app.command()
@_reported
def decompress(
    source: Source,
    destination: Destination,
    force: Force = False,
    strict: Strict = False,
    jobs: Jobs = None,
    dask: Dask = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Restore the dense model from Endor, bit for bit.

    All rules and digests are checked on the way. SRC is only read. If this is cut short, the same
    command goes on from there.
    """
    with run_on(dask) as executor, display.progress("decompressing", source) as progress:
        done = convert.decompress(
            source,
            _destination(source, destination),
            force=force,
            strict=strict,
            backend=backend,
            jobs=jobs,
            executor=executor,
            progress=progress,
        )
    display.print_conversion(done, as_json)


@app.command()
@_reported
def inspect(
    path: Input,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw sparsity and size by layer (needs matplotlib)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the plot if it exists.")] = False,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Show a row for each layer, not for each tensor.")
    ] = False,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Show every tensor: shape, dtype, zeros, encoding, bits per weight and their entropy floor, saving.

    Of a dense model, show what Endor would make of it.
    """
    if plot is not None:
        report.check_plot(plot, force=force)
    with display.progress("reading", path) as progress:
        found = report.inspect(path, backend=backend, progress=progress)
    if plot is not None:
        report.plot(found, plot, force=force)
    if as_json:
        display.print_json(found.to_json())
        return
    display.print_rows(list(report.by_layer(found.rows).values()) if by_layer else found.rows, by_layer)
    display.print_totals(found)


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
    jobs: Jobs = None,
    dask: Dask = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Check every rule of the format and every digest, and name all that is wrong."""
    with run_on(dask) as executor, display.progress("verifying", path) as progress:
        checked = verify.verify(
            path,
            check_digests=digests,
            sums=sums,
            backend=backend,
            jobs=jobs,
            executor=executor,
            progress=progress,
        )
    problems = checked.problems
    compared = against is not None and not problems
    if against is not None and compared:
        with run_on(dask) as executor, display.progress("comparing", path) as progress:
            problems = verify.compare(path, against, jobs=jobs, executor=executor, progress=progress)
    if as_json:
        members = asdict(checked) | {"problems": [asdict(problem) for problem in problems]}
        members["against"] = str(against) if compared else None
        display.print_json({"ok": not problems} | members)
    else:
        display.print_verification(checked, problems, against, compared)
    if problems:
        raise typer.Exit(INPUT_FAULT)


@app.command(name="prune", help=PRUNE_HELP)
@_reported
def prune_command(
    source: Source,
    destination: Destination,
    sparsity: Annotated[
        float, typer.Option(help="Share of the elements to set to zero.", min=0, max=1)
    ] = 0.5,
    method: Annotated[Method, typer.Option(help="By magnitude, or times input norms.")] = Method.magnitude,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text for Wanda, a sample a line; like what the model is for."),
    ] = None,
    samples: Annotated[int, typer.Option(help="How many lines of it, evenly spread.", min=1)] = 128,
    device: Annotated[str, typer.Option(help="Where Wanda runs the model, such as cuda.")] = "cpu",
    per: Annotated[
        Group | None,
        typer.Option(
            help="Compare elements over a tensor or a row.", show_default="a row for Wanda, else a tensor"
        ),
    ] = None,
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
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Write a pruned dense copy, to try Endor on."""
    if (method is Method.wanda) != (calibration is not None):
        raise UsageError("--method wanda needs --calibration FILE, and nothing else takes it")
    if per is None:
        per = Group.row if method is Method.wanda else Group.tensor
    options = prune.Options(
        sparsity=sparsity,
        group=per.value,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        dtype=dtype.value if dtype is not None else None,
    )
    target = _destination(source, destination)
    inputs = None
    if calibration is not None:
        if target.exists() and not force:
            raise UsageError(f"{quote(str(target))} exists; use --force to replace it")
        inputs = _wanda_inputs(source, options, calibration, samples, device)
    with display.progress("pruning", source) as progress:
        outcome = prune.prune(
            source, target, options, inputs=inputs, force=force, strict=strict, progress=progress
        )
    share = outcome.zeros / outcome.numel if outcome.numel else 0.0
    if as_json:
        display.print_json(asdict(outcome) | {"sparsity": share})
        return
    display.out().print(
        f"{escape(quote(str(destination)))}: {display.count(len(outcome.tensors), 'tensor')} pruned, "
        f"{100 * share:.2f} % of their elements are zero"
    )
    display.print_left_out(outcome.left_out)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of package and format.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"endor {pyendor.__version__}, format {VERSION}")
        raise typer.Exit


def main() -> None:
    """The entry point of the command."""
    # So that a terminated run, like an interrupted one, removes what it was writing.
    for name in {"SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):
        number = signal.Signals[name]
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may have what a terminal has not
    warnings.showwarning = lambda message, *_, **__: display.err().print(Text(f"endor: {message}"))
    app()


def _wanda_inputs(
    source: Path, options: prune.Options, text: Path, samples: int, device: str
) -> dict[str, prune.Inputs]:
    """Shows text to a model."""
    try:
        from pyendor import wanda
    except ImportError as error:
        raise UsageError(f"Wanda needs {error.name}: pip install 'pyendor[transformers]'") from error
    calibration = wanda.Calibration.from_file(text, samples, device=device)
    with display.progress("calibrating", source) as progress:
        return wanda.collect(source, options, calibration, progress=progress)


def _destination(source: Path, destination: str) -> Path:
    """The destination as a path, which would not show what it was spelt like."""
    if not destination:
        raise UsageError("the name of the destination is empty")
    if destination.endswith(os.sep) and not source.is_dir():
        raise UsageError(f"{quote(destination)} names a directory, the source is a file: name a file")
    return Path(destination)
