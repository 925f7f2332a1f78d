"""Files are written in one pass: tensors are read once, and moved behind the header when that is known."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from pyendor import convert, draft, numpy, storage, writer
from pyendor.draft import Draft
from pyendor.file import open_file
from pyendor.layout import Bytes
from pyendor.writer import TensorSource

RNG = np.random.default_rng(3)


def half_zero(numel: int) -> Bytes:
    words = RNG.standard_normal(numel).astype(np.float32).view(np.uint32) >> 16
    return (words.astype(np.uint16) * (RNG.random(numel) < 0.5)).view(np.uint8)


@pytest.mark.parametrize("in_memory", [1, 5000])
@pytest.mark.parametrize("header", [0, 1, 99, 100, 101, 2500, 9000])
def test_a_draft_becomes_what_it_is_to_be(
    header: int, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "IN_MEMORY", in_memory)
    monkeypatch.setattr(draft, "_CHUNK", 1000)
    pieces = [RNG.integers(0, 256, size, np.uint8) for size in (0, 1, 999, 1000, 1001, 4000, 2500)]
    stream = io.BytesIO(b"before" + b"what was there" * 2000)
    stream.seek(6)
    with Draft(stream, 100) as made:
        made.add(pieces[:3])
        later = [made.add_later(piece) for piece in pieces[3:5]]
        made.add(pieces[5:])
        made.finish(b"h" * header)
        for at, piece in reversed(list(zip(later, pieces[3:5], strict=True))):
            made.write_later(at, piece.size)
    order = [*pieces[:3], *pieces[5:], pieces[4], pieces[3]]
    assert stream.getvalue() == b"before" + b"h" * header + b"".join(piece.tobytes() for piece in order)


@pytest.mark.parametrize("in_memory", [1, 64 << 20])
def test_a_source_is_read_once(in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "IN_MEMORY", in_memory)
    calls: list[str] = []

    def source(name: str, dtype: str, data: Bytes, bits: int) -> TensorSource:
        def read() -> Bytes:
            calls.append(name)
            return data

        return TensorSource(name, dtype, (data.size * 8 // bits,), data.size, read)

    noise = RNG.integers(0, 256, 40_000, np.uint8)
    sources = [
        source("plain", "U8", noise, 8),  # of a type that can be encoded, and gains nothing
        source("one", "BF16", half_zero(50_000), 16),
        source("flags", "BOOL", noise & 1, 8),
        source("two", "BF16", half_zero(70_000), 16),
        source("small", "F32", noise[:16], 32),
    ]
    with (tmp_path / "file").open("w+b") as stream:
        writer.write(stream, sources)
    assert sorted(calls) == sorted(one.name for one in sources)
    with numpy.safe_open(tmp_path / "file") as opened:
        assert set(opened.keys()) == {one.name for one in sources}
        assert opened.get_encoded("one") is not None
        for one in sources:
            assert opened.get_tensor(one.name).tobytes() == one.read().tobytes()
    assert os.listdir(tmp_path) == ["file"]


def test_a_shard_is_read_once(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int, int]] = []
    one_read = storage.FileStorage.read

    def counted(self: storage.FileStorage, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        read.append((self.path, start, stop))
        return one_read(self, start, stop, out)

    monkeypatch.setattr(storage.FileStorage, "read", counted)
    convert.compress(sharded, tmp_path / "endor", jobs=1)
    for shard in sharded.glob("*.safetensors"):
        with open_file(shard) as opened:
            header = opened.layout.header
        pieces = sorted((start, stop) for path, start, stop in read if path == str(shard) and start > 8)
        assert pieces == sorted((entry.start, entry.stop) for entry in header.entries.values())


def test_what_does_not_fit_into_memory_waits_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    temporary = draft.tempfile.SpooledTemporaryFile

    def noted(size: int, *, dir: str | None) -> object:
        places.append(dir)
        return temporary(size, dir=dir)

    monkeypatch.setattr(draft.tempfile, "SpooledTemporaryFile", noted)
    numpy.save_file({"a": np.zeros(10_000, np.float32)}, tmp_path / "a.safetensors")
    numpy.save({"a": np.zeros(10_000, np.float32)})
    assert places == [str(tmp_path), None]
