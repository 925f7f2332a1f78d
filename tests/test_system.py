"""A system without what POSIX has: the commands work there too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tree

# As Windows is seen from Python. What others need before is imported before.
WITHOUT = """
import concurrent.futures, os, signal, subprocess, sys, tempfile, threading
import ml_dtypes, numpy, rich.progress, typer, xxhash

for name in "O_CLOEXEC O_NOFOLLOW O_NONBLOCK preadv geteuid register_at_fork sched_getaffinity".split():
    delattr(os, name)
sys.modules["fcntl"] = None
members = dict(signal.Signals.__members__)
del members["SIGHUP"], signal.SIGHUP
signal.Signals = type("Signals", (), {"__members__": members, "__class_getitem__": members.__getitem__})

from pyendor import cli, locks, system

assert locks.fcntl is None and system.NO_FOLLOWING == 0
cli.main()
"""


def run(*arguments: object) -> None:
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("whole", [True, False], ids=["directory", "file"])
def test_commands(sharded: Path, tmp_path: Path, whole: bool) -> None:
    source = sharded if whole else sharded / "model-00001-of-00002.safetensors"
    endor, back = (tmp_path / f"{name}{'' if whole else '.safetensors'}" for name in ("endor", "back"))
    run("compress", source, endor)
    run("verify", endor, "--against", source)
    run("inspect", endor)
    run("decompress", endor, back)
    if whole:
        assert tree(back) == tree(source)
    else:
        assert back.read_bytes() == source.read_bytes()
    assert not list(tmp_path.rglob(".*"))
    run("compress", source, endor, "--force")
