"""The sweep of faults, for one command: ``make faults`` runs all of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and cc")
def test_faults_at_every_call_that_changes_names() -> None:
    sweep = [sys.executable, ROOT / "tests" / "faults" / "sweep.py", "--only", "compress a.safetensors"]
    run = subprocess.run(
        [*sweep, "--every", "1000000", "--processes", "1"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.search(r"^(\d+) faults in .* 0 failures$", run.stdout, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 60
