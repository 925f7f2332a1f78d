"""Decoding by PyTorch's threads: the same results and errors, wherever it is done."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sparse_bytes

torch = pytest.importorskip("torch")

from pyendor import native, openmp, parallel  # noqa: E402  needs torch
from pyendor.encoded import EncodedTensor  # noqa: E402
from pyendor.errors import FormatError  # noqa: E402


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(parallel.THREADS, "2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def team() -> parallel.Team:
    found = openmp.team()
    if found is None:
        pytest.skip("PyTorch has another OpenMP here")
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="wheels for Linux have GNU's OpenMP")
def test_the_openmp_of_the_wheels_is_found() -> None:
    assert openmp.team() is not None


def encoded(rng: np.random.Generator) -> tuple[EncodedTensor, np.ndarray]:
    shape = (700, 4099)  # the last block is a part of one
    dense = sparse_bytes(rng, shape[0] * shape[1], 2)
    return EncodedTensor.encode("x", "U16", shape, dense, digest=False), dense


def test_every_thread_takes_pieces_until_none_is_left(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a team of our own: what it is asked for, threads that begin late, and one that never comes."""
    tensor, dense = encoded(rng)
    calls = []
    work_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    signature = ctypes.CFUNCTYPE(None, work_type, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

    @signature
    def start(work: Any, job: Any, threads: int, flags: int) -> None:
        calls.append((threads, flags))
        late = [threading.Thread(target=work, args=(job,)) for _ in range(len(calls) - 1)]
        for thread in late:
            thread.start()
        work(job)
        for thread in late:
            thread.join()

    address = ctypes.cast(start, ctypes.c_void_p).value
    assert address is not None
    with parallel.by(parallel.Team(address)):
        for _ in range(4):
            assert np.array_equal(tensor.decode(), dense)
        tensor.validate()  # writes nothing: by threads of ours
        assert np.array_equal(tensor.decode_blocks(3, 5), dense[3 * 8192 : 5 * 8192])  # too few for two
        monkeypatch.setenv(parallel.THREADS, "64")  # more than there are shares
        assert np.array_equal(tensor.decode(), dense)
    assert calls == [(2, 0)] * 4 + [(64, 0)]


def test_tensors_are_the_same(team: parallel.Team, rng: np.random.Generator) -> None:
    tensor, dense = encoded(rng)
    matrix = torch.ones(512, 512)
    with parallel.by(team):
        for _ in range(5):
            torch.mm(matrix, matrix)  # its threads have just been at work
            assert np.array_equal(tensor.decode(), dense)
        for word in (600, 20):
            tensor.parts["bitmap"][512 * word] ^= 1
        with pytest.raises(FormatError) as ours:
            tensor.decode()
    with pytest.raises(FormatError) as pools:
        tensor.decode()
    assert str(ours.value) == str(pools.value)


def test_only_where_both_have_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parallel.THREADS, "3")
    assert openmp.team() is None
    monkeypatch.setenv(parallel.THREADS, "1")
    torch.set_num_threads(1)
    assert openmp.team() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_fork_has_threads_of_its_own(tmp_path: Path) -> None:
    code = """if True:
        import os, numpy as np, torch
        from pyendor.torch_tensor import EndorTensor
        from pyendor import openmp
        torch.set_num_threads(2)
        dense = torch.from_numpy(np.where(np.arange(1 << 22) % 2, 0, 7).astype("<u2")).view(torch.bfloat16)
        encoded = EndorTensor.from_dense(dense.reshape(1024, -1))
        torch.mm(torch.ones(512, 512), torch.ones(512, 512))
        assert torch.equal(encoded.decode().view(-1), dense)
        child = os.fork()
        if not child:
            torch.set_num_threads(1)  # as DataLoader has it: PyTorch itself would hang
            alright = openmp.team() is None and encoded.decode().count_nonzero() == 1 << 21
            os._exit(0 if alright else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env=os.environ | {parallel.THREADS: "2"}
    )


def test_native_decodes_large_tensors_in_pieces() -> None:
    """Otherwise nothing of this would be at work."""
    assert not native.available() or len(native._ranges(0, 700)) == 2
