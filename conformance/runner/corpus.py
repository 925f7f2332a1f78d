"""The corpus as the runner sees it: the manifest in, cases and paths of their files out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent.parent
LEVELS = ["L0", "L1", "L2", "L3", "L4"]
VERSIONS = ["1.0", "1.1"]  # of the format, the newest last
Case = dict[str, Any]


class CorpusError(Exception):
    """The files are not what the manifest says, so no result would mean anything."""


def load(level: str, category: str | None, pattern: str, version: str = VERSIONS[-1]) -> list[Case]:
    """The cases of the levels up to `level` that the other filters let through, for a version."""
    cases = at_version(json.loads((HERE / "manifest.json").read_text("utf-8"))["cases"], version)
    levels = LEVELS[: LEVELS.index(level) + 1]
    return [
        case
        for case in cases
        if case["level"] in levels
        and category in (None, case["category"])
        and fnmatchcase(case["id"], pattern)
    ]


def at_version(cases: list[Case], version: str) -> list[Case]:
    """What is right for a decoder that knows a version of the format and none after it."""
    known = VERSIONS[: VERSIONS.index(version) + 1]
    expectation = {"expect", "answers", "error_rules", "tensors", "slices"}
    return [
        case
        if case["since"] in known
        else {key: value for key, value in case.items() if key not in expectation} | case["earlier"][version]
        for case in cases
        if case["since"] in known or version in case.get("earlier", {})
    ]


def verify(cases: list[Case]) -> None:
    for case in cases:
        for path, digest in files(case):
            if not path.is_file():
                raise CorpusError(f"{path} is missing: run make_cases.py")
            if sha256(path.read_bytes()).hexdigest() != digest:
                raise CorpusError(f"{path} has changed; did git convert its line ends?")


def files(case: Case) -> Iterator[tuple[Path, str]]:
    """What the case keeps on disk, with its SHA-256."""
    if isinstance(case["sha256"], dict):
        folder = HERE / "cases" / case["id"]
        yield from ((folder / path, digest) for path, digest in case["sha256"].items())
    elif "recipe" not in case:
        yield HERE / case["file"], case["sha256"]
    if "expected_file" in case:
        yield HERE / case["expected_file"], case["expected_sha256"]


@contextmanager
def path_of(case: Case) -> Iterator[Path]:
    """The file or directory of the case; files that are too large to keep are made for a while."""
    if "recipe" not in case:
        yield HERE / case["file"]
        return
    with TemporaryDirectory(prefix="endor-conformance-") as folder:
        path = Path(folder) / Path(case["file"]).name
        digest = sha256()
        with path.open("wb") as file:
            for chunk in chunks(case["recipe"]):
                file.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != case["sha256"]:
            raise CorpusError(f"the recipe of {case['id']} gives another file than it should")
        yield path


def chunks(recipe: list[dict[str, Any]]) -> Iterator[bytes]:
    for piece in recipe:
        if "hex" in piece:
            once, count = bytes.fromhex(piece["hex"]), piece["repeat"]
            at_a_time = max(1, 65536 // len(once))
            for _ in range(count // at_a_time):
                yield once * at_a_time
            yield once * (count % at_a_time)
        else:
            for i in range(piece["count"]):
                yield piece["text"].replace("#", f"{i:06d}").encode()
