"""The NumPy front door against the one that it mirrors."""

from __future__ import annotations

import inspect
import os
import resource
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy as stock
from conftest import entry, raw_file

import pyendor.numpy as ours
from pyendor import dtypes
from pyendor.errors import UnsupportedError, UsageError


@pytest.fixture
def tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What people have."""
    sparse = rng.standard_normal((100, 200)).astype(np.float32)
    sparse[rng.random(sparse.shape) < 0.7] = 0
    return {
        "weight": sparse,
        "half": sparse.astype(np.float16),
        "ids": np.arange(12).reshape(3, 4),
        "flag": np.array([True, False]),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.int8),
        "complex": np.array([0, 1 - 0j, complex(0.0, -0.0)], np.complex64),
    }


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def test_round_trip(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ours.save_file(tensors, path, {"note": "mine"})
    assert same(ours.load_file(path), tensors)
    assert same(ours.load(path.read_bytes()), tensors)
    assert path.read_bytes() == ours.save(tensors, {"note": "mine"})
    assert path.stat().st_size < sum(array.nbytes for array in tensors.values())


def test_plain_safetensors_files_are_read(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stock.save_file(tensors, path, {"note": "mine"})
    assert same(ours.load_file(path), stock.load_file(path))
    with ours.safe_open(path) as mine, safetensors.safe_open(path, "np") as theirs:
        assert mine.keys() == list(theirs.keys())
        assert mine.offset_keys() == list(theirs.offset_keys())
        assert mine.metadata() == theirs.metadata()


def test_safe_open(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ours.save_file(tensors, path)
    with ours.safe_open(path, "np", "cpu", verify=True) as opened:
        assert opened.keys() == sorted(tensors)
        assert opened.metadata() == {"format": "pt"}
        assert same(opened.get_tensors(), tensors)
        encoded = opened.get_encoded("weight")
        assert encoded.shape == (100, 200)
        assert encoded.nbytes < encoded.dense_nbytes
        assert encoded.sparsity == pytest.approx(0.7, abs=0.02)
        out = np.empty(encoded.dense_nbytes, np.uint8)
        assert encoded.decode(out) is out
        assert out.tobytes() == tensors["weight"].tobytes()
        with pytest.raises(ValueError, match="out must be"):
            encoded.decode(out[1:])
        with pytest.raises(UsageError, match="plain"):
            opened.get_encoded("ids")
        with pytest.raises(UsageError, match="no tensor"):
            opened.get_tensor("nothing")


@pytest.mark.parametrize("name", ["save_file", "save", "load_file", "load"])
def test_every_argument_is_there(name: str) -> None:
    mine, other = (inspect.signature(getattr(module, name)).parameters for module in (ours, stock))
    assert [mine[key].replace(annotation=None) for key in other] == [
        parameter.replace(annotation=None) for parameter in other.values()
    ]
    assert list(mine)[: len(other)] == list(other)


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_backends(tensors: dict[str, np.ndarray], tmp_path: Path, backend: str) -> None:
    ours.save_file(tensors, tmp_path / "x")
    assert same(ours.load_file(tmp_path / "x", backend=backend), tensors)
    for module in (ours, stock):
        with pytest.raises(safetensors.SafetensorError, match="backend"):
            module.load_file(tmp_path / "x", backend="other")


def test_indices_that_an_array_does_not_take(tmp_path: Path) -> None:
    ours.save_file({"x": np.ones((3, 4))}, tmp_path / "x")
    with ours.safe_open(tmp_path / "x") as opened:
        for index in (3, (0, -5), (0, 0, 0), "x", 1.5, [3], (..., ...)):
            with pytest.raises(IndexError):
                opened.get_slice("x")[index]
        for backend in ("mmap", "pread"):
            with ours.safe_open(tmp_path / "x", backend=backend) as other:
                assert other.get_slice("x")[:: 2**62, :: 2**61].tolist() == [[1.0]]


def test_metadata_of_a_file_without_any_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stock.save_file({"x": np.zeros(1)}, path)
    with ours.safe_open(path) as opened:
        assert opened.metadata() is None


def test_any_memory_layout_and_byte_order() -> None:
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    for array in (base.T, base[::-1, ::2], base.astype(">i4"), np.asfortranarray(base)):
        loaded = ours.load(ours.save({"x": array}))["x"]
        assert np.array_equal(loaded, array)
        assert loaded.dtype == np.int32


@pytest.mark.parametrize("dtype", [d for d in dtypes.TABLE if d.numpy is not None], ids=lambda d: d.name)
def test_every_dtype_of_numpy(dtype: dtypes.DType) -> None:
    array = np.arange(64, dtype=np.uint8).view(dtype.to_numpy())
    loaded = ours.load(ours.save({"x": array}, min_saving=None))["x"]
    assert loaded.dtype == array.dtype
    assert loaded.tobytes() == array.tobytes()


def test_loaded_arrays_can_be_written_to(tensors: dict[str, np.ndarray]) -> None:
    for array in ours.load(stock.save(tensors)).values():
        assert array.flags.writeable


@pytest.mark.parametrize("array", [np.zeros(2, np.complex128), np.array(["x"]), np.zeros(3, np.longdouble)])
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UnsupportedError, match="no counterpart"):
        ours.save({"x": array})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"metadata": {"a": 1}}, "not text"),
        ({"metadata": {1: "a"}}, "not text"),
        ({"metadata": {"endor": "x"}}, "the format's own"),
        ({"min_saving": float("nan")}, "no share"),
        ({"min_saving": float("-inf")}, "no share"),
    ],
)
def test_arguments_that_would_make_no_file(tmp_path: Path, arguments: dict[str, object], match: str) -> None:
    path = tmp_path / "x"
    ours.save_file({"x": np.zeros(3)}, path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=match):
        ours.save_file({"x": np.zeros(3)}, path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a string"):
        ours.save_file({3: np.zeros(3)}, path)  # type: ignore[dict-item]
    assert path.read_bytes() == before


def test_masks_are_not_dropped_silently() -> None:
    with pytest.raises(UnsupportedError, match="mask"):
        ours.save({"x": np.ma.masked_array(np.zeros(3), [True, False, True])})


def test_files_are_closed_without_anybody_closing_them(tmp_path: Path) -> None:
    ours.save_file({"x": np.zeros(3)}, tmp_path / "x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        opened = ours.safe_open(tmp_path / "x")
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    with opened:
        pass
    with pytest.raises(ValueError, match="closed"):
        opened.get_tensor("x")


def test_tensors_beyond_all_memory_are_unsupported(tmp_path: Path) -> None:
    size = 1 << 36  # of a file with nothing in it, for a process that may have a sixteenth of that
    with open(tmp_path / "x", "wb") as stream:
        stream.write(raw_file({"x": entry("U8", [size], 0, size)}))
        stream.truncate(stream.tell() + size)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))

    for command in (["-c", "import pyendor.numpy as e; e.load_file('x')"], ["-m", "pyendor", "verify", "x"]):
        run = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            preexec_fn=limit,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 1
        assert "too large for this machine" in run.stderr
    assert "Traceback" not in run.stderr


def test_types_that_numpy_lacks_are_unsupported() -> None:
    data = safetensors.serialize({"x": _spec()})
    with pytest.raises(UnsupportedError, match="F4"):
        ours.load(bytes(data))


_FOUR = np.zeros(2, np.uint8)


def _spec() -> safetensors.TensorSpec:
    return safetensors.TensorSpec(dtype="float4_e2m1fn_x2", shape=[2], data_ptr=_FOUR.ctypes.data, data_len=2)


@pytest.mark.parametrize("arguments", [("pt",), ("np", "cuda")])
def test_other_frameworks_and_devices_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "x.safetensors"
    ours.save_file({}, path)
    with pytest.raises(UsageError):
        ours.safe_open(path, *arguments)


def test_save_file_replaces_at_once_or_not(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ours.save_file({"x": np.zeros(3, ml_dtypes.bfloat16)}, path)
    before = path.read_bytes()
    with pytest.raises(UnsupportedError):
        ours.save_file({"x": np.zeros(3), "y": np.zeros(3, np.complex128)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_empty_shapes_that_numpy_cannot_hold() -> None:
    data = raw_file({"x": entry("F32", [0, 2**53 - 1, 2**53 - 1], 0, 0)})
    with pytest.raises(UnsupportedError, match="shape"):
        ours.load(data)
