"""Rules M, T, D-1 and V: the endor object, and what belongs to whom."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from conftest import entry, raw_file

from pyendor import file, layout
from pyendor.errors import FormatError, UnsupportedError
from pyendor.metadata import Split, TensorMeta
from pyendor.numpy import save


class Forge:
    """A valid file in pieces, to be bent and put together again."""

    def __init__(self) -> None:
        dense = np.zeros((3, 50), np.uint16)
        dense[1, ::2] = 7
        data = save({"x": dense, "plain": np.ones(3, np.uint8)}, min_saving=None)
        length = int.from_bytes(data[:8], "little")
        self.header: dict[str, Any] = json.loads(data[8 : 8 + length])
        self.endor: Any = json.loads(self.header["__metadata__"]["endor"])
        self.data = data[8 + length :]
        self.dense = dense

    @property
    def x(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.endor["tensors"]["x"]
        return entry

    def bytes(self) -> bytes:
        header = copy.deepcopy(self.header)
        if "endor" in header.get("__metadata__", {}):
            text = self.endor if isinstance(self.endor, str) else json.dumps(self.endor)
            header["__metadata__"]["endor"] = text
        return raw_file(header, self.data)

    def rename(self, old: str, new: str) -> None:
        self.header[new] = self.header.pop(old)

    def append(self, name: str, dtype: str, length: int, nbytes: int) -> None:
        end = len(self.data)
        self.header[name] = entry(dtype, [length], end, end + nbytes)
        self.data += bytes(nbytes)


@pytest.fixture
def forge() -> Forge:
    return Forge()


def test_the_forge_is_valid(forge: Forge) -> None:
    with file.open_bytes(forge.bytes()) as opened:
        assert opened.get_bytes("x").tobytes() == forge.dense.tobytes()


BREAK = {
    "J-1 not JSON": "f.endor = '{'",
    "J-1 text behind": "f.endor = json.dumps(f.endor) + ' x'",
    "J-1 not an object": "f.endor = '[]'",
    "J-2 twice": 'f.endor = \'{"version":"1.0","version":"1.0","tensors":{}}\'',
    "J-3 surrogate": 'f.endor["more"] = "\\ud800"',
    "J-4 too deep": "f.endor['more'] = json.loads('[' * 16 + ']' * 16)",
    "J-5 nnz": "f.x['nnz'] = 25.0",
    "J-5 shape": "f.x['shape'] = [3, -50]",
    "M-2 missing": "del f.endor['version']",
    "M-2 number": "f.endor['version'] = 1.0",
    "M-2 form": "f.endor['version'] = '1'",
    "M-2 leading zero": "f.endor['version'] = '01.0'",
    "M-2 newline": "f.endor['version'] = '1.0\\n'",
    "M-3 missing": "del f.endor['tensors']",
    "M-3 array": "f.endor['tensors'] = []",
    "M-3 null": "f.endor['tensors']['x'] = None",
    "M-4 no dtype": "del f.x['dtype']",
    "M-4 no shape": "del f.x['shape']",
    "M-4 shape": "f.x['shape'] = '3x50'",
    "M-4 no positions": "del f.x['positions']",
    "M-4 values": "f.x['values'] = 1",
    "M-4 digest": "f.x['digest'] = None",
    "M-5 missing": "del f.x['nnz']",
    "M-5 string": "f.x['nnz'] = '25'",
    "M-5 more than numel": "f.x['nnz'] = 151",
    "C-8 rank": "f.x['shape'] = [3, 50] + [1] * 63",
    "D-1 no colon": "f.x['digest'] = 'xxh3_64'",
    "D-1 short": "f.x['digest'] = 'xxh3_64:0123'",
    "D-1 upper case": "f.x['digest'] = 'xxh3_64:0123456789ABCDEF'",
    "D-1 unknown, malformed": "f.x['digest'] = 'sha256:xyz'",
    "T-1 metadata": "f.endor['tensors']['__metadata__'] = f.x",
    "T-1 part": "f.endor['tensors']['x.endor.bitmap'] = f.x",
    "T-1 shares parts": "f.endor['tensors']['x.endor'] = f.x",
    "T-2 no tensor": "f.endor['tensors']['y'] = f.x",
    "T-2 no bitmap": "f.rename('x.endor.bitmap', 'y')",
    "T-2 no index": "f.rename('x.endor.index', 'x_endor_index')",
    "T-2 unsupported, no tensor": "f.endor['tensors'] = {'y': f.x | {'values': 'new'}}",
    "T-3 extra": "f.append('x.endor.more', 'U8', 64, 64)",
    "T-3 no part's name": "f.append('x.endor.a.b', 'U8', 0, 0)",
    "T-4 dtype": "f.header['x.endor.bitmap']['dtype'] = 'I8'",
    "T-4 unknown dtype": "f.header['x.endor.bitmap']['dtype'] = 'NEW'",
    "T-4 rank": "f.header['x.endor.bitmap']['shape'] = [64, 1]",
    "T-4 nnz": "f.x['nnz'] = 64",
    "T-4 shape": "f.x['shape'] = [3, 500]",
    "T-4 values dtype": "f.x['dtype'] = 'F16'",
    "T-4 numel beyond all": "f.x['shape'] = [2**53 - 1] * 64",
    "T-5 same shape": "f.x['shape'] = f.header['x']['shape']; f.x['nnz'] = 32",
    "T-6 stripped": "del f.header['__metadata__']",
    "T-6 metadata without endor": "f.header['__metadata__'] = {'format': 'pt'}",
}


@pytest.mark.parametrize("case", BREAK)
def test_broken(forge: Forge, case: str) -> None:
    exec(BREAK[case], {"f": forge, "json": json})
    with pytest.raises(FormatError) as caught:
        file.open_bytes(forge.bytes())
    assert caught.value.rule == case.split(maxsplit=1)[0]


UNSUPPORTED = {
    "positions": "f.x['positions'] = 'all'",
    "values": "f.x['values'] = 'split'; del f.x['nnz']",
    "dtype": "f.x['dtype'] = 'F7'",
    "sub-byte dtype": "f.x['dtype'] = 'F4'",
    "with parts of its own": "f.x['values'] = 'new'; f.append('x.endor.a.b', 'U8', 3, 3)",
}


@pytest.mark.parametrize("change", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_unsupported_tensor_is_hidden_and_the_rest_stays_readable(forge: Forge, change: str) -> None:
    exec(change, {"f": forge})
    with file.open_bytes(forge.bytes()) as opened:
        assert sorted(opened.layout.tensors) == ["plain", "x"]
        assert opened.tensor("x").shape == (3, 50)
        assert opened.get_bytes("plain").tolist() == [1, 1, 1]
        for read in (opened.get_bytes, opened.get_encoded):
            with pytest.raises(UnsupportedError, match="'x'"):
                read("x")


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "999999999.0"])
def test_other_major_versions_are_unsupported(forge: Forge, version: str) -> None:
    forge.endor = {"version": version}  # nothing else of it is looked at
    with pytest.raises(UnsupportedError, match=version):
        file.open_bytes(forge.bytes())


def test_newer_minor_version_and_unknown_members_are_read(forge: Forge) -> None:
    forge.endor |= {"version": "1.999999999", "more": [None, {"tensors": 1e300}]}
    forge.x["comment"] = {"nested": [True, 1.5]}
    forge.endor = "\r\n\t " + json.dumps(forge.endor, indent=3).replace("1e+300", "1e999") + " \n"
    with file.open_bytes(forge.bytes()) as opened:
        assert opened.get_bytes("x", verify=True).tobytes() == forge.dense.tobytes()
        assert opened.layout.version == "1.999999999"


def test_with_an_endor_object_names_like_parts_are_plain(forge: Forge) -> None:
    forge.append("y.endor.index", "I64", 8, 64)
    forge.append("xx.endor.bitmap", "U8", 64, 64)
    with file.open_bytes(forge.bytes()) as opened:
        assert {"y.endor.index", "xx.endor.bitmap"} < set(opened.layout.tensors)


def test_many_alike_names_take_no_quadratic_time() -> None:
    # 20,000 keys and names that all share a long prefix; a quadratic search would take minutes.
    long = "x.endor." * 100
    header = {f"{long}{i}": entry("U8", [0], 0, 0) for i in range(20_000)}
    meta = {"dtype": "U8", "shape": [0, 1], "positions": "bitmap", "values": "new"}
    endor = {"version": "1.0", "tensors": {f"{long}{i}": meta for i in range(20_000)}}
    opened = file.open_bytes(raw_file({"__metadata__": {"endor": json.dumps(endor)}, **header}))
    assert len(opened.layout.tensors) == 20_000


@pytest.mark.parametrize(
    ("dtype", "numel", "nnz", "lengths"),
    [
        ("BF16", 0, 0, (0, 0, 8)),
        ("BF16", 1, 0, (0, 64, 8)),
        ("BF16", 1, 1, (32, 64, 8)),
        ("U8", 512, 64, (64, 64, 8)),
        ("U8", 513, 65, (128, 128, 8)),
        ("F32", 4096 * 7, 17, (32, 3584, 8)),
        ("F64", 4096 * 7 + 1, 8, (8, 3648, 16)),
    ],
)
def test_parts_have_the_lengths_of_the_table(
    dtype: str, numel: int, nnz: int, lengths: tuple[int, ...]
) -> None:
    specs = layout.part_specs(TensorMeta(dtype, (numel,), "bitmap", "raw", nnz))
    assert tuple(spec.shape for spec in specs) == tuple((length,) for length in lengths)
    assert all(spec.nbytes % 64 == 0 for spec in specs)


@pytest.mark.parametrize(
    ("dtype", "numel", "nnz", "split", "shapes"),
    [
        ("BF16", 0, 0, Split(2, 7, 0), [(0, 80), (0,), (2, 8), (0,), (0, 3)]),
        ("BF16", 1, 1, Split(1, 0, 1), [(8, 16), (64,), (2, 8), (64,), (64, 3)]),
        ("F16", 4096 * 64 + 1, 513, Split(4, 10, 65), [(16, 120), (32832,), (2, 72), (128,), (128, 3)]),
        ("F32", 4096, None, Split(3, 23, 64), [(64, 216), (1, 8), (64,), (64, 3)]),
        ("F8_E4M3", 513, None, Split(1, 3, 0), [(16, 40), (1, 8), (64,), (0, 3)]),
    ],
)
def test_parts_of_split_values(
    dtype: str, numel: int, nnz: int | None, split: Split, shapes: list[tuple[int, ...]]
) -> None:
    positions = "all" if nnz is None else "bitmap"
    specs = layout.part_specs(TensorMeta(dtype, (numel,), positions, "split", nnz, split=split))
    assert [spec.shape for spec in specs] == shapes
    assert all(spec.nbytes % 64 == 0 for spec in specs)
