"""Files are written in one pass: every tensor is read once, and what it becomes waits in a spool."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from pyendor import convert, numpy, spool, storage, writer
from pyendor.file import open_file
from pyendor.layout import Bytes
from pyendor.spool import Spool
from pyendor.writer import TensorSource

RNG = np.random.default_rng(3)


def half_zero(numel: int) -> Bytes:
    words = RNG.standard_normal(numel).astype(np.float32).view(np.uint32) >> 16
    return (words.astype(np.uint16) * (RNG.random(numel) < 0.5)).view(np.uint8)


def test_what_is_kept_is_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 5000)
    monkeypatch.setattr(spool, "_CHUNK", 1000)
    pieces = [RNG.integers(0, 256, size, np.uint8) for size in (0, 1, 999, 1000, 1001, 4000, 2500)]
    stream = io.BytesIO(b"before")
    stream.seek(6)
    with Spool(stream) as waiting:
        extents = [waiting.keep(pieces[:4]), *(waiting.keep([piece]) for piece in pieces[4:])]
        for extent in reversed(extents):
            waiting.copy(extent, stream)
    expected = [*reversed(pieces[4:]), *pieces[:4]]
    assert stream.getvalue() == b"before" + b"".join(piece.tobytes() for piece in expected)


@pytest.mark.parametrize("in_memory", [1, 64 << 20])
def test_a_source_is_read_once(in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", in_memory)
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
    with (tmp_path / "file").open("wb") as stream:
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
    temporary = spool.tempfile.SpooledTemporaryFile

    def noted(size: int, *, dir: str | None) -> object:
        places.append(dir)
        return temporary(size, dir=dir)

    monkeypatch.setattr(spool.tempfile, "SpooledTemporaryFile", noted)
    numpy.save_file({"a": np.zeros(10_000, np.float32)}, tmp_path / "a.safetensors")
    numpy.save({"a": np.zeros(10_000, np.float32)})
    assert places == [str(tmp_path), None]
