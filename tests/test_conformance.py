"""The corpus is what it says: every rule has its cases, every case its rule. ``make conformance`` runs it."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import Counter
from hashlib import sha256
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

FOLDER = ROOT / "conformance"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
CASES: list[dict[str, Any]] = MANIFEST["cases"]
SPEC = (ROOT / "spec" / "endor-1.md").read_text()
RULES = dict(re.findall(r"^\*\*([A-Z]-\d+)\*\* \((file|reader|writer)\)$", SPEC, re.M))
FEWEST = 120
READABLE = {"accept", "accept-noncanonical", "unsupported"}


def test_manifest_is_as_its_schema_says() -> None:
    schema = json.loads((FOLDER / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(MANIFEST)
    assert len(CASES) >= FEWEST
    assert max(Counter(case["id"] for case in CASES).values()) == 1


@pytest.mark.parametrize("rule", [rule for rule, kind in RULES.items() if kind == "file"])
def test_every_rule_that_bytes_can_break_has_a_case_about_it(rule: str) -> None:
    about = [case for case in CASES if case.get("error_rules", [None])[0] == rule]
    assert about, f"no case is rejected for {rule} in the first place"


def test_every_case_names_rules_that_exist() -> None:
    for case in CASES:
        assert case["rules"] or case["category"] == "encode", case["id"]
        assert set(case["rules"]) | set(case.get("error_rules", [])) <= set(RULES), case["id"]
        if case["expect"] == "reject" and "slices" not in case:
            assert case["error_rules"], case["id"]


def test_cases_are_named_after_a_rule_that_they_are_about() -> None:
    for case in CASES:
        match = re.match(r"([a-z]-\d+)-", case["id"].split("/")[1])
        assert match, case["id"]
        assert match[1].upper() in RULES, case["id"]


def test_every_reader_rule_that_files_can_show_is_exercised() -> None:
    exercised = {rule for case in CASES for rule in case["rules"]}
    processes = {"K-6", "K-7", "K-9", "K-12", "S-1", "S-3", "S-4", "W-1", "W-8"}  # of programs, not of files
    assert set(RULES) - exercised <= processes


def at_version(version: str) -> list[dict[str, Any]]:
    """The cases as the runner takes them for a version."""
    sys.path.insert(0, str(FOLDER))
    try:
        from runner.corpus import at_version
    finally:
        sys.path.pop(0)
    return at_version(CASES, version)


def test_cases_of_1_1_say_what_a_decoder_of_1_0_answers() -> None:
    assert at_version("1.1") == CASES
    old = {case["id"]: case for case in at_version("1.0")}
    for case in CASES:
        if case["since"] == "1.0":
            assert old[case["id"]] == case
        elif case["id"] in old:
            # Whatever is wrong with a tensor that it does not know, it knows nothing of it.
            expect = case["earlier"]["1.0"]["expect"]
            assert expect == "unsupported" or expect == case["expect"], case["id"]
        else:
            assert case["category"] in {"encode", "slice"}, case["id"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_minimal_decoder_reads_what_its_version_has(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    # It checks nothing. Without the encodings that 1.1 brought it is a decoder of 1.0.
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import minimal_decoder

    if version == "1.0":
        monkeypatch.setattr(minimal_decoder, "ENCODINGS", {("bitmap", "raw")})
    read = 0
    for case in at_version(version):
        if case["level"] not in {"L0", "L1"} or case["expect"] not in READABLE or "recipe" in case:
            continue
        wanted = {t["name"]: t for t in case["tensors"] if not t.get("unsupported")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = minimal_decoder.load(str(FOLDER / case["file"]))
            except NotImplementedError:
                found = {}
        assert found.keys() == wanted.keys(), case["id"]
        for name, (dtype, shape, data) in found.items():
            told = {"name": name, "dtype": dtype, "shape": shape, "sha256": sha256(data).hexdigest()}
            assert told == wanted[name], case["id"]
        read += case["since"] == "1.1"
    assert read > FEWEST
