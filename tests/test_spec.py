"""The specification agrees with itself and with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import ml_dtypes
import numpy as np
import pytest
import xxhash
from conftest import ROOT

from pyendor import choice, container, dtypes, file, jsontext, layout, metadata, reference
from pyendor.encoded import EncodedTensor
from pyendor.numpy import save

SPEC = (ROOT / "spec" / "endor-1.md").read_text()
RULES = dict(re.findall(r"^\*\*([A-Z]-\d+)\*\* \((file|reader|writer)\)$", SPEC, re.M))
CODE = "".join(path.read_text() for path in sorted((ROOT / "pyendor").rglob("*.py")))
RAISED = set(re.findall(r'(?:FormatError|PartError|_fault|_check_zero)\(\s*"([A-Z]-\d+)"', CODE)) | set(
    re.findall(r'(?:parse_shape|_integer)\([^)]*"([A-Z]-\d+)"\)', CODE)
)


def test_rules_are_numbered_without_gaps() -> None:
    for letter in {rule[0] for rule in RULES}:
        numbers = [int(rule[2:]) for rule in RULES if rule[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter


def test_rules_that_are_mentioned_exist() -> None:
    mentioned = set(re.findall(r"\b([JCMTBEDWKVS]-\d+)\b", SPEC + CODE))
    assert mentioned <= set(RULES)


def test_every_rule_that_bytes_can_break_is_checked() -> None:
    assert {rule for rule, kind in RULES.items() if kind == "file"} == RAISED


def test_dtype_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", SPEC, re.M)
    assert rows == [(d.name, str(d.bits), "yes" if d.encodable else "no") for d in dtypes.TABLE]


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (container.LONGEST_HEADER, r"N is at most ([\d,]+)\."),
        (container.LONGEST_WRITTEN_HEADER, r"header is at most ([\d,]+) bytes\. \(Some"),
        (container.HIGHEST_RANK, r"physical or logical, has at most (\d+) members"),
        (jsontext.DEEPEST, r"nested at most (\d+) deep"),
        (jsontext.LARGEST_INTEGER, r"2\^53 − 1 = (\d+)"),
        (layout.BLOCK, r"\*\*block\*\*\n: (\d+) consecutive"),
        (choice.HEADER_SHARE["raw"], r"(\d+) with values `raw`"),
        (choice.HEADER_SHARE["split"], r"`raw`, (\d+) with values `split`"),
        (layout.GROUP, r"\*\*group\*\*\n: (\d+) stored"),
    ],
)
def test_limits(value: int, pattern: str) -> None:
    found = re.search(pattern, SPEC)
    assert found is not None
    assert int(found[1].replace(",", "")) == value


def hex_blocks() -> list[bytes]:
    """The worked examples, as bytes; offsets are checked on the way."""
    blocks = []
    for text in re.findall(r"```hex\n(.*?)```", SPEC, re.S):
        block = b""
        for line in text.splitlines():
            if line.startswith(" "):
                continue
            offset, rest = line.split("  ", 1)
            assert int(offset, 16) == len(block), line
            what = rest.rsplit("|", 1)[0].strip() if not rest.startswith("'") else rest.strip()
            if what.startswith("'"):
                block += what[1:-1].encode()
            elif "×" in what:
                byte, times = what.split("×")
                block += bytes([int(byte, 16)]) * int(times)
            else:
                block += bytes.fromhex(what)
        blocks.append(block)
    return blocks


def test_worked_example_of_a_file() -> None:
    example = hex_blocks()[0]
    with file.open_bytes(example) as opened:
        words = opened.get_bytes("w", verify=True).view(np.uint16)
    assert words.tolist() == [0x3F80, 0, 0xC000, 0x8000, 0, 0x7FC1]
    again = save({"w": words.view(ml_dtypes.bfloat16).reshape(2, 3)}, min_saving=None)
    assert again == example


def test_worked_example_of_two_blocks() -> None:
    dense = np.zeros(4097, np.uint8)
    dense[[0, 4095, 4096]] = 7, 8, 9
    encoded = EncodedTensor.encode("t", "U8", (1, 4097), dense)
    assert b"".join(part.tobytes() for part in encoded.parts.values()) == hex_blocks()[1]
    members = encoded.meta.members() | {"digest": encoded.meta.digest}
    assert jsontext.canonical({"t": members}) in SPEC


@pytest.mark.parametrize(
    ("example", "dtype", "shape", "words", "wanted"),
    [
        (
            2,
            "BF16",
            (2, 70),
            [0x3F80, 0xBFC0, 0x3E80, 0xFF80, *[0x3F80] * 66, *[0] * 69, 0x4049],
            ("bitmap", 2),
        ),
        (3, "F8_E4M3", (2, 3), [0x38, 0xB9, 0, 0x42, 0x80, 0x3E], ("all", 1)),
    ],
)
def test_worked_examples_of_split_values(
    example: int, dtype: str, shape: tuple[int, ...], words: list[int], wanted: tuple[str, int]
) -> None:
    row = dtypes.BY_NAME[dtype]
    dense = np.array(words, f"<u{row.itemsize}").view(np.uint8)
    for meta in choice.candidates(dtype, shape, reference.survey(dense, row), "split"):
        if meta.split is not None and (meta.positions, meta.split.w) == wanted:
            encoded = EncodedTensor.filled("t", meta, dense)
    assert b"".join(part.tobytes() for part in encoded.parts.values()) == hex_blocks()[example]
    assert jsontext.canonical({"t": encoded.meta.members() | {"digest": encoded.meta.digest}}) in SPEC
    assert encoded.decode().tobytes() == dense.tobytes()


def test_vectors_of_the_hash() -> None:
    found = re.findall(
        r"^\| (160 bytes 0|the bytes 0, 1, 2, \.\.\., \d+(?:, five times)?) \| `([0-9a-f]{16})` \|",
        SPEC,
        re.M,
    )
    assert len(found) == 5
    for what, digits in found:
        last = re.search(r"\.\.\., (\d+)", what)
        data = bytes(range(int(last[1]) + 1)) if last else bytes(160)
        assert xxhash.xxh3_64(data * (5 if "five" in what else 1)).hexdigest() == digits
    (secret,) = re.findall(r"secret \(192 bytes\) =\n((?:[0-9a-f]{64}\n){6})", SPEC)
    assert secret.replace("\n", "") in (ROOT / "spec" / "decoder.py").read_text().replace('"\n    "', "")


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    text = (ROOT / "spec" / "metadata.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


def test_schema_accepts_what_is_written(schema: jsonschema.Draft202012Validator, compressed: Path) -> None:
    with file.open_file(compressed / "model.endor.safetensors") as opened:
        text = (opened.layout.header.metadata or {})[metadata.KEY]
    schema.validate(json.loads(text))
    assert text == jsontext.canonical(json.loads(text))


GOOD = {"dtype": "BF16", "nnz": 1, "positions": "bitmap", "shape": [2, 2], "values": "raw"}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": 3},
        {"nnz": -1},
        {"nnz": None},
        {"nnz": 2**53},
        {"shape": [2.5]},
        {"shape": [0] * 65},
        {"digest": "xxh3_64:12"},
        {"digest": "XXH3:12"},
        {"positions": None},
        {"nnz": "many"},
        {"values": []},
    ],
)
def test_schema_refuses_what_breaks_a_rule(
    schema: jsonschema.Draft202012Validator, change: dict[str, object]
) -> None:
    assert schema.is_valid({"version": "1.0", "tensors": {"x": GOOD}})
    assert not schema.is_valid({"version": "1.0", "tensors": {"x": GOOD | change}})


@pytest.mark.parametrize("version", ["1", "01.0", "1.", "1.0.0", "v1.0"])
def test_schema_refuses_versions(schema: jsonschema.Draft202012Validator, version: str) -> None:
    assert not schema.is_valid({"version": version, "tensors": {}})


def test_schema_admits_what_later_versions_add(schema: jsonschema.Draft202012Validator) -> None:
    unknown = {"dtype": "BF16", "positions": "all", "shape": [2, 2], "values": "huffman", "w": -2}
    assert schema.is_valid({"version": "1.7", "tensors": {"x": unknown}, "more": [1]})
    for change in ({"dtype": "F4"}, {"positions": "vbyte"}):
        assert schema.is_valid({"version": "1.1", "tensors": {"x": GOOD | change | {"nnz": "many"}}})
