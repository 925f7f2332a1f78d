"""The errors of the package beside those of safetensors."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from pyendor import errors

# Each in a process of its own: in that of the tests, safetensors has been imported.
EACH = """
import sys
from pyendor import errors

assert "safetensors" not in sys.modules
before = errors.UsageError("early")
{}
assert "safetensors" not in sys.modules
"""
AFTERWARDS = """
import pickle, sys
import pyendor
from pyendor import errors

early = errors.UsageError("early")
from safetensors import SafetensorError

each = [
    errors.FormatError("B-6", "x", tensor="w", offset=3, path="p"),
    errors.PartError("B-6", "x", "bitmap", 3),
    errors.ForeignError("x"),
    errors.UnsupportedError("x"),
    errors.BackendUnavailableError("x"),
    errors.UsageError("x"),
]
for error in each:
    for again in (error, pickle.loads(pickle.dumps(error))):
        try:
            raise again
        except SafetensorError as caught:
            assert type(caught) is type(error) and str(caught) == str(error)
try:
    pyendor.safe_open("x", "nothing")
except SafetensorError as caught:
    assert type(caught) is errors.UsageError
else:
    raise AssertionError
assert isinstance(each[0], ValueError) and isinstance(early, SafetensorError)
"""


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_safetensors_is_not_imported_for_an_error() -> None:
    python(EACH.format('errors.FormatError("B-6", "x")'))


def test_except_clauses_for_those_of_safetensors() -> None:
    pytest.importorskip("safetensors")
    python(AFTERWARDS)


@pytest.mark.parametrize("other", [None, 3, int, type("Odd", (OSError,), {}), type("Odd", (Exception,), {})])
def test_another_safetensors(monkeypatch: pytest.MonkeyPatch, other: object) -> None:
    """Whatever a module of that name has, the error is made."""
    before = errors.EndorError.__bases__
    monkeypatch.setitem(sys.modules, "safetensors", type("Module", (), {"SafetensorError": other})())
    try:
        error = errors.UsageError("x")
        assert str(error) == "x"
        assert isinstance(error, ValueError)
        assert type(pickle.loads(pickle.dumps(error))) is errors.UsageError  # noqa: S301  our own
    finally:
        errors.EndorError.__bases__ = before
