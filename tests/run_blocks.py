"""Runs the blocks of code of a page, in their order, in the current directory.

Comes in, on stdin: a list of ``[language, text, where]``. Blocks of Python share their names; blocks of sh
share their directory and environment, which Python sees too, as in a terminal. ``console`` is sh with ``$``
before the commands and output between them; a ``c`` block is a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def shell(text: str, where: str) -> None:
    """Runs a script, and takes over where it went and what it exported."""
    with tempfile.NamedTemporaryFile() as state:
        kept = f"trap 'env -0 >{state.name}' EXIT\n"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", kept + text], check=False)
        if done.returncode:
            sys.exit(f"{where}: exit status {done.returncode}")
        environment = dict(line.split("=", 1) for line in Path(state.name).read_text().split("\0") if line)
    os.environ.update(environment)
    os.chdir(environment["PWD"])


def commands(text: str) -> str:
    """The commands of a transcript."""
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))


def main() -> None:
    """Runs them."""
    names: dict[str, object] = {"__name__": "__main__"}
    for language, text, where in json.load(sys.stdin):
        print(f"-- {where} ({language})", flush=True)
        if language == "python":
            line = int(where.rpartition(":")[2])
            exec(compile("\n" * line + text, where, "exec"), names)
        elif language == "c":
            Path("decode.c").write_text(text)
        elif language == "console":
            shell("set +e\n" + commands(text), where)
        else:
            shell(text, where)


if __name__ == "__main__":
    main()
