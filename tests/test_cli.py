"""The endor command as people and scripts meet it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import entry, raw_file, tree

import pyendor.numpy


def endor(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyendor", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_main_job(minilm: Path, tmp_path: Path) -> None:
    run = endor("prune", minilm, "pruned", "--sparsity", "0.5", "--dtype", "bf16", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "36 tensors pruned, 50.00 %" in run.stdout
    run = endor("compress", "pruned", "endor", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "40 of them encoded" in run.stdout
    run = endor("inspect", "endor", "--plot", "plot.png", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "encoded tensors: 8.88 bits per weight" in run.stdout
    assert (tmp_path / "plot.png").exists()
    layers = endor("inspect", "endor", "--by-layer", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in layers[1:8]] == ["0", "1", "2", "3", "4", "5", "other"]
    run = endor("verify", "endor", "--against", "pruned", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "bit-identical" in run.stdout
    run = endor("decompress", "endor", "back", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "", "silent where there is no terminal"
    assert tree(tmp_path / "back") == tree(tmp_path / "pruned")


def test_json_wherever_a_script_would_want_it(sharded: Path, tmp_path: Path) -> None:
    for command in (
        ["prune", sharded, "p", "--sparsity", "0.8"],
        ["compress", "p", "e"],
        ["inspect", "e"],
        ["verify", "e", "--against", "p"],
        ["decompress", "e", "b"],
    ):
        run = endor(*command, "--json", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert isinstance(json.loads(run.stdout), dict)
    found = json.loads(endor("inspect", "e", "--json", cwd=tmp_path).stdout)
    assert found["version"] == "1.0"
    assert found["worth_encoding"] is True
    row = next(row for row in found["tensors"] if row["name"] == "layers.2.weight")
    assert row["encoded"] is True
    assert row["sparsity"] == pytest.approx(0.8, abs=1e-3)
    checked = json.loads(endor("verify", "e", "--json", cwd=tmp_path).stdout)
    assert checked["ok"] is True
    assert checked["digests"] == checked["encoded"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["compress", "missing", "x"], 2, "No such file"),
        (["compress", "good", "good"], 2, "same file"),
        (["compress", "good", "other"], 2, "--force"),
        (["compress", "pickle", "x"], 1, "pickle"),
        (["compress", "empty", "x"], 1, "C-1"),
        (["inspect", "broken"], 1, "C-13"),
        (["verify", "broken"], 1, "C-13"),
        (["verify", "unsupported"], 1, "NEW"),
        (["decompress", "good", "x"], 2, "nothing to decompress"),
        (["prune", "good", "x"], 2, "nothing to prune"),
        (["compress", "good", "x", "--backend", "magic"], 2, "no backend"),
        (["compress", "good"], 2, "DST"),
        (["nonsense"], 2, "nonsense"),
        (["compress", "good", ""], 2, "empty"),
        (["compress", "good", "x/"], 2, "name a file"),
        (["compress", "good", "x", "--min-saving", "nan"], 2, "saving"),
        (["inspect", "good", "--plot", "plot.txt"], 2, "PNG"),
        (["prune", "good", "x", "--sparsity", "2"], 2, "sparsity"),
    ],
)
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    good = {"x": entry("U8", [2], 0, 2)}
    (tmp_path / "good").write_bytes(raw_file(good, b"12"))
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "broken").write_bytes(raw_file(good, b"123"))
    (tmp_path / "pickle").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "unsupported").write_bytes(raw_file({"x": entry("NEW", [2], 0, 2)}, b"12"))
    before = tree(tmp_path)
    run = endor(*arguments, cwd=tmp_path)
    assert run.returncode == code
    assert says in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert tree(tmp_path) == before


def test_errors_as_json(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(raw_file({"x": entry("U8", [2], 0, 1)}, b"1"))
    run = endor("compress", "broken", "x", "--json", cwd=tmp_path)
    error = json.loads(run.stdout)["error"]
    assert (error["type"], error["rule"], error["tensor"]) == ("FormatError", "C-10", "x")
    assert error["path"] == "broken"


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    evil = "\x1b[31m[bold]\n\x9b:heart:\\"
    plain = {evil: entry(evil, [1], 0, 1), "y": entry("U8", [1], 1, 2)}
    (tmp_path / "plain").write_bytes(raw_file(plain, b"12"))
    meta = {"dtype": evil, "shape": [1], "positions": evil, "values": evil}
    endor_object = json.dumps({"version": "1.0", "tensors": {evil: meta}})
    encoded = {"__metadata__": {"endor": endor_object}, evil: entry(evil, [1], 0, 1)}
    (tmp_path / "encoded").write_bytes(raw_file(encoded, b"1"))
    (tmp_path / "broken").write_bytes(raw_file({evil: entry("U8", [1], 0, 2)}, b"12"))
    (tmp_path / "other").write_bytes(raw_file({"y": entry(evil, [1], 0, 1)}, b"1"))
    for name in ("plain", "encoded", "broken"):
        for command in (
            ["inspect", name],
            ["inspect", name, "--by-layer"],
            ["verify", name, "--sums"],
            ["verify", name, "--against", "other"],
            ["compress", name, f"{name}-c"],
            ["decompress", name, f"{name}-d"],
            ["prune", name, f"{name}-p", "--include", evil],
        ):
            run = endor(*command, cwd=tmp_path)
            assert not set("\x1b\x9b\x07❤") & set(run.stdout + run.stderr), command
            assert "Traceback" not in run.stderr
    assert "\\x1b[31m[bold]\\n\\x9b:heart:\\" in endor("inspect", "plain", cwd=tmp_path).stdout


def test_not_worth_encoding_is_said_plainly(tmp_path: Path) -> None:
    pyendor.numpy.save_file({"x": np.ones((50, 50))}, tmp_path / "a", min_saving=1.0)
    for command in (["inspect", "a"], ["inspect", "b"]):
        if command[1] == "b":
            assert endor("decompress", "a", "b", cwd=tmp_path).returncode == 0
        assert "better kept dense" in endor(*command, cwd=tmp_path).stdout
    assert "better kept dense" in endor("compress", "b", "c", cwd=tmp_path).stdout


def test_help_is_honest_about_pruning() -> None:
    text = endor("prune", "--help").stdout
    for word in ("costs quality", "Wanda", "SparseGPT", "llm-compressor"):
        assert word in text
    assert endor("--version").stdout.startswith("endor ")
    assert "format 1.1" in endor("--version").stdout


@pytest.mark.parametrize("number", ["1", "3"])
def test_progress_on_a_terminal(sharded: Path, tmp_path: Path, number: str) -> None:
    leader, follower = pty.openpty()
    arguments = ["compress", str(sharded), str(tmp_path / "x"), "--jobs", number]
    command = [sys.executable, "-m", "pyendor", *arguments]
    with subprocess.Popen(command, stderr=follower, stdout=subprocess.PIPE) as run:
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 1024):
                shown += chunk
        except OSError:
            pass  # how Linux says that the other side is closed
    os.close(leader)
    assert run.returncode == 0
    assert b"compressing" in shown
    assert re.search(rb"(?<![0-9.])([0-9.]+)/\1 [kM]B", shown)  # all of it
