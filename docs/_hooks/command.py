"""The page about the ``endor`` command, from what the command is declared as."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from enum import Enum
from types import NoneType, UnionType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.models import ArgumentInfo, ParameterInfo

from pyendor import cli

PAGE = "reference/command.md"
BOLD = re.compile(r"\[/?bold\]")


def one_line(text: object) -> str:
    """Text for a cell of a table, bold as Markdown has it."""
    return BOLD.sub("**", " ".join(str(text).split())).replace("|", "\\|")


def value(kind: Any) -> str:
    """What an option takes, if it takes something."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " \\| ".join(f"`{one.value}`" for one in kind)
    if typing.get_origin(kind) is typing.Literal:
        return " \\| ".join(f"`{one}`" for one in typing.get_args(kind))
    inner = [one for one in typing.get_args(kind) if one is not NoneType]
    if isinstance(kind, UnionType) or inner:
        return value(inner[0])
    return "" if kind is bool else f"`{getattr(kind, '__name__', 'text').upper().replace('STR', 'TEXT')}`"


def row(name: str, kind: Any, info: ParameterInfo, default: object) -> str:
    """An argument or option: how it is spelt, what it does, what it is unless given."""
    if isinstance(info, ArgumentInfo):
        return f"| `{info.metavar}` | {one_line(info.help)} | |"
    plain = f"--{name.replace('_', '-')}"
    declared = (info.default, *(info.param_decls or ()))  # what an annotation gives first is no default
    given = [str(one) for one in declared if str(one).startswith("-")]
    spelt = given or ([plain, f"--no-{plain[2:]}"] if kind is bool else [plain])
    takes = f" `{info.metavar}`" if info.metavar else f" {value(kind)}"
    about = one_line(info.help or "")
    if info.envvar:
        about += f" Also taken from the environment, `{info.envvar}`."
    if isinstance(info.show_default, str):
        default = info.show_default
    default = "yes" if default is True else default
    shown = "" if default in (None, False) else one_line(getattr(default, "value", default))
    return f"| {', '.join(f'`{one}`' for one in spelt)}{takes} | {about} | {shown} |"


def section(name: str, function: Callable[..., Any], about: str) -> str:
    """One command."""
    hints = typing.get_type_hints(function, include_extras=True)
    rows, usage = [], [f"endor {name}"]
    for parameter in inspect.signature(function).parameters.values():
        kind, info = typing.get_args(hints[parameter.name])
        rows.append(row(parameter.name, kind, info, parameter.default))
        if isinstance(info, ArgumentInfo):
            usage.append(str(info.metavar))
    text = BOLD.sub("**", inspect.cleandoc(about))
    table = "\n".join(["| option | | unless given |", "| --- | --- | --- |", *rows])
    return f"## endor {name}\n\n```text\n{' '.join(usage)} [OPTIONS]\n```\n\n{text}\n\n{table}\n"


def text() -> str:
    """The page."""
    head = (cli.__doc__ or "").partition("\n\n")[2]
    commands = []
    for info in cli.app.registered_commands:
        assert info.callback is not None
        name = info.name or info.callback.__name__
        commands.append(section(name, info.callback, info.help or info.callback.__doc__ or ""))
    tail = "All commands have `--help`; `endor --version` says what there is."
    return "\n\n".join(["# The endor command", str(cli.app.info.help), head, tail, *commands])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page."""
    files.append(File.generated(config, PAGE, content=text()))
    return files
