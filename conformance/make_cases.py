"""Writes the conformance corpus: `cases/` and `manifest.json`, the same bytes every time.

    python conformance/make_cases.py            write them
    python conformance/make_cases.py --check    compare them with what is there

It needs the standard library only, and nothing of any Endor implementation: the files follow
spec/endor-1.md and are put together byte by byte by the modules in `corpus/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from corpus import (
    checksum,
    directory,
    encode,
    invalid_contents,
    invalid_metadata,
    invalid_parts,
    languages,
    limits,
    malformed_header,
    malformed_layout,
    noncanonical,
    sizes,
    slices,
    split_checksum,
    split_encode,
    split_hostile,
    split_index,
    split_metadata,
    split_noncanonical,
    split_parts,
    split_patches,
    split_slices,
    split_valid,
    split_values,
    unsupported,
    valid,
)
from corpus.case import Case

HERE = Path(__file__).resolve().parent
MODULES = [
    valid,
    noncanonical,
    malformed_header,
    malformed_layout,
    invalid_metadata,
    invalid_parts,
    invalid_contents,
    unsupported,
    checksum,
    limits,
    encode,
    slices,
    directory,
    split_encode,
    split_metadata,
    split_parts,
    split_index,
    split_values,
    split_patches,
    split_hostile,
    split_checksum,
    split_slices,
    split_valid,
    split_noncanonical,
    sizes,
    languages,
]


def all_cases() -> list[Case]:
    cases = [case for module in MODULES for case in module.cases()]
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise SystemExit(f"two cases are called {case.id}")
        seen.add(case.id)
    return cases


def corpus_files() -> dict[str, bytes]:
    """Path, relative to this directory -> content: the whole corpus."""
    cases = all_cases()
    files: dict[str, bytes] = {}
    for case in cases:
        files |= case.files()
    # One case to a line: diffs of the manifest stay readable.
    rows = ",\n".join(json.dumps(case.row(), ensure_ascii=True) for case in cases)
    top = '{"$schema": "manifest.schema.json", "specification": "endor-1", "cases": [\n'
    files["manifest.json"] = (top + rows + "\n]}\n").encode()
    return files


def files_on_disk() -> dict[str, bytes]:
    paths = [HERE / "manifest.json", *(HERE / "cases").rglob("*")]
    return {p.relative_to(HERE).as_posix(): p.read_bytes() for p in paths if p.is_file()}


def check(wanted: dict[str, bytes]) -> int:
    found = files_on_disk()
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            missing, extra = path not in found, path not in wanted
            state = "missing" if missing else "not made by this script" if extra else "differs"
            print(f"{path}: {state}", file=sys.stderr)
    return 0 if wanted == found else 1


def write(wanted: dict[str, bytes]) -> int:
    for path in files_on_disk().keys() - wanted.keys():
        (HERE / path).unlink()
    for path, data in wanted.items():
        target = HERE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for folder in sorted((HERE / "cases").rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="make the conformance corpus")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    args = parser.parse_args()
    wanted = corpus_files()
    return check(wanted) if args.check else write(wanted)


if __name__ == "__main__":
    raise SystemExit(main())
