# ruff: noqa: B023, E501, PLW0108  functions made in a loop are called at once; tables are long; calls look alike
"""Every public function and command ends in its result, an EndorError, OSError or MemoryError.

PYENDOR_FUZZ=300 looks for so many seconds in each of the searches, with seeds of its own.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as stock
from conftest import entry, raw_file
from typer.testing import CliRunner

import pyendor
import pyendor.file
import pyendor.numpy
from pyendor import checkpoint, cli, convert, dtypes, parallel, prune, report, verify
from pyendor.encoded import EncodedTensor
from pyendor.errors import EndorError
from pyendor.writer import TensorSource, write

torch = pytest.importorskip("torch")

import pyendor.torch  # noqa: E402
from pyendor import torch_bytes  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DECLARED = (EndorError, OSError, MemoryError)
LARGEST = 2**53 - 1
SECONDS = float(os.environ.get("PYENDOR_FUZZ", "0"))
RUNNER = CliRunner()


def rounds(count: int) -> Iterator[random.Random]:
    """Sources of chance: so many with fixed seeds, or new ones for as long as is asked for."""
    if not SECONDS:
        yield from map(random.Random, range(count))
        return
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        seed = random.SystemRandom().getrandbits(32)
        print("seed", seed)
        yield random.Random(seed)


def ends(call: Callable[[], Any], *more: type[BaseException]) -> Any:
    """The result of a call, or None where it ends in a declared error."""
    try:
        return call()
    except (*DECLARED, *more):
        return None


# --- files -----------------------------------------------------------------------------------------------

CASES = [
    path
    for path in sorted((ROOT / "conformance" / "cases").rglob("*.safetensors"))
    if path.is_file() and path.stat().st_size < 1 << 16
]
NUMBERS = ["0", "1", "-1", "-0", "1.5", "1e400", "64", "4096", "2147483648", str(LARGEST), str(LARGEST + 1)]
NUMBERS += [str(2**63 - 1), str(2**64), "9" * 5000, "null", '"x"', "[]", "{}", "true"]
NAMES = ["w", "", "\0", "../../x", "a/b", "x" * 300, "\ud83d\ude00", "w.endor", "w.endor.index", "\x1b[31m"]
NAMES += ["layers.0.w", "layers.99999999999999999999.w"]
SIZES = [0, 0, 1, 2, 3, 7, 64, 2**31, 2**32, 2**53 - 1]


def corpus(rng: random.Random) -> bytes:
    return rng.choice(CASES).read_bytes()


def mutated(rng: random.Random) -> bytes:
    """A file of the corpus with other bytes, or other words in its header."""
    data = bytearray(corpus(rng))
    if rng.random() < 0.5 or len(data) < 8:
        for _ in range(rng.randint(1, 4)):
            if data:
                data[rng.randrange(min(len(data), rng.choice([8, 600, 1 << 16])))] = rng.randrange(256)
        return bytes(data[: rng.choice([len(data), rng.randint(0, len(data))])])
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        return bytes(data)
    header = bytes(data[8 : 8 + length])
    words = [*re_numbers(header)]
    if words:
        low, high = rng.choice(words)
        header = header[:low] + rng.choice(NUMBERS).encode() + header[high:]
    return struct.pack("<Q", len(header)) + header + bytes(data[8 + length :])


def re_numbers(text: bytes) -> Iterator[tuple[int, int]]:
    """Where the numbers in a text are."""
    at = 0
    for digit, run in itertools.groupby(text, lambda byte: 48 <= byte <= 57):
        size = len(list(run))
        if digit:
            yield at, at + size
        at += size


def odd_shape(rng: random.Random) -> list[int]:
    """A shape of few elements: with numbers that are large, a factor is 0."""
    shape = [rng.choice(SIZES) for _ in range(rng.choice([0, 1, 2, 3, 5, 32, 33, 63, 64]))]
    if np.prod(np.array(shape, object)) > 10_000:
        shape[rng.randrange(len(shape))] = 0
    return shape


def odd(rng: random.Random) -> bytes:
    """A file that is valid, of tensors that few have."""
    header: dict[str, Any] = {}
    at = 0
    types = [*(row.name for row in dtypes.TABLE), "X9", "F4"]
    for name in rng.sample(NAMES, rng.randint(0, 4)):
        dtype, shape = rng.choice(types), odd_shape(rng)
        bits = dtypes.BY_NAME[dtype].bits if dtype in dtypes.BY_NAME else 8
        numel = 0 if 0 in shape else int(np.prod(np.array(shape, object)))
        if numel * bits % 8:
            continue
        header[name] = entry(dtype, shape, at, at + numel * bits // 8)
        at += numel * bits // 8
    if rng.random() < 0.3:
        header["__metadata__"] = {rng.choice(NAMES): rng.choice(NAMES)}
    data = rng.choice([rng.randbytes(at), bytes(at)])
    if rng.random() < 0.5:
        return raw_file(header, data)
    return ends(lambda: encoded(raw_file(header, data))) or b""


def encoded(plain: bytes) -> bytes:
    """The same with all tensors encoded that can be."""
    stream = io.BytesIO()
    with pyendor.file.open_bytes(plain) as opened:
        write(stream, opened.sources(), opened.layout.metadata, min_saving=None)
    return stream.getvalue()


def huge_and_empty() -> bytes:
    """Two empty tensors of a shape that no library counts, one of them encoded."""
    shape = (0, LARGEST, LARGEST)
    stream = io.BytesIO()
    sources = [
        TensorSource(name, dtype, shape, 0, lambda: np.empty(0, np.uint8))
        for name, dtype in (("encoded", "BF16"), ("plain", "F64"), ("packed", "F4"))
    ]
    write(stream, sources, None, min_saving=None)
    return stream.getvalue()


# --- indices ---------------------------------------------------------------------------------------------


def odd_item(rng: random.Random) -> Any:
    edge = rng.choice([None, 0, 1, -1, 2, 5, -7, 64, 2**31, 2**62, -(2**63), 2**63, 2**64, 10**30])
    items = [
        edge,
        slice(edge, rng.choice([None, 3, -1, 2**63]), rng.choice([None, 1, 2, -1, 0, 2**62])),
        ...,
        True,
        False,
        [0],
        [],
        [True],
        (0,),
        1.0,
        "x",
        b"x",
        {},
        object(),
        np.int64(1),
        np.uint8(200),
        np.bool_(1),
        np.zeros(2, int),
        np.array([0, 99]),
        slice("a"),
        slice(1.5),
        np.array(0),
        float("nan"),
    ]
    return rng.choice(items)


def odd_index(rng: random.Random) -> Any:
    if rng.random() < 0.4:
        return odd_item(rng)
    return tuple(odd_item(rng) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4, 70])))


def check_index(part: Any, whole: Any, index: Any, same: Callable[[Any, Any], bool]) -> None:
    """That a slice gives what the whole gives, or fails as that does.

    ``whole`` is None where the library cannot hold the tensor.
    """
    if whole is None:
        ends(lambda: part[index], IndexError, TypeError)
        return
    try:
        expected = whole[index]
    except Exception as error:
        with pytest.raises((*DECLARED, type(error))):
            part[index]
        return
    got = part[index]
    assert same(got, expected), (index, got, expected)


def check_error(part: Any, blank: Any, index: Any) -> None:
    """That a slice fails, if not as declared, then as that of a tensor of zeros does."""
    try:
        blank[index]
    except Exception as error:
        ends(lambda: part[index], type(error))
    else:
        ends(lambda: part[index])


def same_arrays(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype == right.dtype == bool and not left.shape:  # of NumPy's own scalars there are only two
        return bool(left) == bool(right) and not right.shape
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


def same_tensors(left: Any, right: Any) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return np.array_equal(*(torch_bytes.to_bytes(one.contiguous()) for one in (left, right)))


# --- what is done with a file ----------------------------------------------------------------------------


def use_encoded(tensor: EncodedTensor, rng: random.Random) -> None:
    for call in (
        lambda: tensor.decode(),
        lambda: tensor.validate(),
        lambda: tensor.check_digest(),
        lambda: tensor.decode_blocks(0, 1),
        lambda: tensor.cut(0, min(1, tensor.meta.numel)),
        lambda: tensor.renamed("other").digest(),
        lambda: tensor.decode(np.empty(rng.choice([0, 1, 64]), rng.choice([np.uint8, np.int16]))),
        lambda: tensor.decode(np.empty(2 * tensor.dense_nbytes, np.uint8)[::2]),
        lambda: tensor.cut(rng.choice([0, -1, 2**70]), rng.choice([0, 1, 2**70]), 1, 2),
        lambda: tensor.decode(backend=rng.choice(["reference", "native", "nothing", ""])),
    ):
        ends(call)
    assert tensor.nbytes >= 0
    assert 0 <= tensor.sparsity <= 1
    repr(tensor)


def use_front_door(
    path: Path, framework: str, rng: random.Random, same: Callable[[Any, Any], bool], indices: int
) -> None:
    opened = ends(lambda: pyendor.safe_open(path, framework, backend=rng.choice(["mmap", "pread"])))
    if opened is None:
        return
    with opened:
        opened.metadata()
        assert sorted(opened.offset_keys()) == opened.keys()
        ends(opened.get_tensors)
        for name in opened.keys()[:4]:
            whole = ends(lambda name=name: opened.get_tensor(name))
            part = ends(lambda name=name: opened.get_slice(name))
            compressed = ends(lambda name=name: opened.get_encoded(name))
            if isinstance(compressed, EncodedTensor):
                use_encoded(compressed, rng)
            elif compressed is not None:
                ends(compressed.decode)
                ends(lambda one=compressed: repr(one))
            if part is None:
                continue
            part.get_shape(), part.get_dtype()
            make = np.zeros if framework == "np" else torch.zeros
            blank = ends(
                lambda: make(part.get_shape(), dtype=make(0).dtype), ValueError, RuntimeError, TypeError
            )
            for _ in range(indices):
                index = odd_index(rng)
                if whole is None and compressed is not None and blank is not None:
                    check_error(part, blank, index)  # of a tensor at fault a slice may be whole
                else:
                    check_index(part, whole, index, same)


def use_file(path: Path, rng: random.Random, out: Path) -> None:
    data = path.read_bytes()
    ends(lambda: pyendor.numpy.load(data))
    ends(lambda: pyendor.torch.load(data))
    ends(lambda: pyendor.numpy.load_file(path))
    ends(lambda: pyendor.torch.load_file(path))
    ends(
        lambda: list(pyendor.torch.iter_weights(path, prefetch=rng.randint(0, 2), verify=rng.random() < 0.5))
    )
    use_front_door(path, "np", rng, same_arrays, 6)
    use_front_door(path, "pt", rng, same_tensors, 6)


def use_commands(path: Path, out: Path) -> None:
    """What the command is made of, and the command."""
    found = ends(lambda: report.inspect(path))
    if found is not None:
        json.dumps(found.to_json())
        report.by_layer(found.rows)
    ends(lambda: report.dense_bytes(path))
    verify.verify(path, sums=True) if path.exists() else ends(lambda: verify.verify(path))
    for name, call in (
        ("endor", convert.compress),
        ("dense", convert.decompress),
        ("pruned", lambda one, to: prune.prune(one, to, prune.Options())),
    ):
        ends(lambda name=name, call=call: call(path, out / name))
    ends(lambda: verify.compare(path, path))
    for arguments in (
        ["inspect", path],
        ["inspect", "--json", path],
        ["inspect", "--by-layer", path],
        ["verify", path],
        ["verify", "--json", "--sums", path, "--against", path],
        ["compress", "--json", path, out / "c"],
        ["decompress", path, out / "d"],
        ["prune", path, out / "p", "--dtype", "bf16"],
    ):
        command(*arguments)


def command(*arguments: object) -> None:
    done = RUNNER.invoke(
        cli.app, [os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments]
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in {0, 1, 2}, (arguments, done.output)


@pytest.mark.parametrize("kind", [corpus, mutated, odd], ids=lambda kind: kind.__name__)
def test_files(tmp_path: Path, kind: Callable[[random.Random], bytes]) -> None:
    path = tmp_path / "x.safetensors"
    for number, rng in enumerate(rounds(120)):
        path.write_bytes(kind(rng))
        use_file(path, rng, tmp_path)
        if number % 10 == 0:
            out = tmp_path / f"out{number}"
            out.mkdir()
            use_commands(path, out)


def test_a_shape_that_no_library_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(huge_and_empty())
    rng = random.Random(0)
    for _ in range(10):
        use_file(path, rng, tmp_path)
    use_commands(path, tmp_path)
    for framework in ("np", "pt"):
        with pyendor.safe_open(path, framework) as opened:
            for name in opened.offset_keys():
                assert opened.get_slice(name).get_shape() == [0, LARGEST, LARGEST]
                for index in (0, ..., (slice(None), 0), (slice(None), 0, 0)):
                    with pytest.raises(EndorError):
                        opened.get_slice(name)[index]
                with pytest.raises(EndorError):
                    opened.get_tensor(name)


# --- odd paths, arguments and directories ----------------------------------------------------------------


def odd_paths(root: Path) -> list[Any]:
    """What is no file of weights; made below ``root``."""
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to("loop")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    (root / "nowhere").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(root)
        one.bind("socket")
        os.chdir(here)
    (root / "empty").write_bytes(b"")
    (root / os.fsdecode(b"\xff\x1b[31m")).write_bytes(b"12345678")
    names = [
        "directory",
        "fifo",
        "loop",
        "one",
        "one/below",
        "nowhere",
        "socket",
        "empty",
        "missing",
        "empty/below",
        "a" * 300,
        "\0",
        "x\0y",
        "\udc80",
        os.fsdecode(b"\xff\x1b[31m"),
        "directory/",
    ]
    return [*(os.path.join(root, name) for name in names), "", "/dev/null", "/proc/self/mem", "a" * 5000]


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.safetensors"
    pyendor.numpy.save_file({"w": np.zeros((100, 100), np.float32)}, good)
    model = torch.nn.Linear(2, 2)
    arrays, tensors = {"x": np.zeros(3)}, {"x": torch.zeros(3)}
    root = tmp_path / "odd"
    root.mkdir()
    for path in odd_paths(root):
        for call in (
            lambda p: pyendor.numpy.load_file(p),
            lambda p: pyendor.torch.load_file(p),
            lambda p: pyendor.safe_open(p, "np"),
            lambda p: pyendor.safe_open(p, "pt"),
            lambda p: list(pyendor.torch.iter_weights(p)),
            lambda p: pyendor.torch.load_model(model, p),
            lambda p: report.inspect(Path(p)),
            lambda p: report.dense_bytes(Path(p)),
            lambda p: verify.verify(Path(p)),
            lambda p: verify.compare(good, Path(p)),
            lambda p: verify.compare(Path(p), good),
            lambda p: convert.compress(Path(p), tmp_path / "out"),
            lambda p: convert.decompress(Path(p), tmp_path / "out"),
            lambda p: prune.prune(Path(p), tmp_path / "out", prune.Options()),
            lambda p: checkpoint.scan(Path(p)),
            # Nothing is ever written over what is there.
            lambda p: convert.compress(good, Path(p)),
            lambda p: convert.decompress(good, Path(p)),
            lambda p: report.plot(report.inspect(good), Path(p)),
        ):
            ends(lambda call=call, path=path: call(path))
        if "\0" not in path:
            command("inspect", path)
            command("verify", path, "--against", good)
            command("verify", good, "--against", path)
            command("compress", path, tmp_path / "out")
            command("inspect", good, "--plot", path)
            if "fifo" not in path:  # waits for what somebody writes there, as <(...) does
                command("prune", good, tmp_path / "out", "--method", "wanda", "--calibration", path)
        if path != "/dev/null" and "empty" not in path and "\x1b" not in path:  # these are replaced
            ends(lambda path=path: pyendor.numpy.save_file(arrays, path))
            ends(lambda path=path: pyendor.torch.save_file(tensors, path))
            ends(lambda path=path: pyendor.torch.save_model(model, path))
    for wrong in (None, 1.5, object(), ["x"]):
        for call in (pyendor.numpy.load_file, pyendor.torch.load_file, lambda p: pyendor.safe_open(p, "pt")):
            with pytest.raises(TypeError):
                call(wrong)


ARGUMENTS: dict[str, list[Any]] = {
    "framework": ["", "xx", None, 3, "PT", b"pt", ["pt"]],
    "device": [
        "",
        "foo",
        "meta",
        -1,
        99,
        "cuda:99",
        "cpu:1",
        None,
        1.5,
        object(),
        ["cpu"],
        "cpu\0",
        "mps",
        "xla",
    ],
    "backend": ["", "foo", None, 3, b"mmap", ["mmap"]],
    "name": ["", "zz", None, 3, b"w", ["w"], "w\0", "\ud800"],
    "values": ["", "foo", None, 3, ["raw"]],
    "min_saving": [float("nan"), float("inf"), -float("inf"), -1e308, 2, "0.5", object()],
    "metadata": [
        {"a": 1},
        {1: "a"},
        {"endor": "x"},
        {"\ud800": "x"},
        {"x": "\ud800"},
        [],
        "x",
        3,
        {"x": "y" * (1 << 20)},
    ],
    "prefetch": [-1, 0, 100, None, "x", 1.5, 10**30],
    "tensors": [None, [], 3, {"x": None}, {3: 1}, {"x": 3}, {"\ud800": 1}, {"__metadata__": 1}, {"": 1}],
}


def test_arguments(tmp_path: Path) -> None:
    """Wrong types may end in a TypeError, as from any function of Python."""
    path = tmp_path / "x.safetensors"
    pyendor.numpy.save_file({"w": np.zeros((100, 100), np.float32)}, path)
    one, opened = {"x": torch.zeros(3)}, [pyendor.safe_open(path, framework) for framework in ("np", "pt")]
    calls: dict[str, list[Callable[[Any], Any]]] = {
        "framework": [
            lambda a: pyendor.safe_open(path, a),
            lambda a: pyendor.numpy.safe_open(path, a),
            lambda a: pyendor.torch.safe_open(path, a),
        ],
        "device": [
            lambda a: pyendor.torch.load_file(path, a),
            lambda a: pyendor.safe_open(path, "pt", a),
            lambda a: pyendor.safe_open(path, "np", a),
            lambda a: list(pyendor.torch.iter_weights(path, a)),
            lambda a: pyendor.torch.load_model(torch.nn.Linear(2, 2), path, False, a),
        ],
        "backend": [
            lambda a: pyendor.torch.load_file(path, backend=a),
            lambda a: pyendor.numpy.load_file(path, backend=a),
            lambda a: report.inspect(path, backend=a),
            lambda a: convert.compress(path, tmp_path / "out", backend=a, force=True),
        ],
        "name": [
            *(lambda a, file=file: file.get_tensor(a) for file in opened),
            *(lambda a, file=file: file.get_slice(a) for file in opened),
            *(lambda a, file=file: file.get_encoded(a) for file in opened),
        ],
        "values": [
            lambda a: pyendor.torch.save(one, values=a),
            lambda a: pyendor.numpy.save({"x": np.zeros(3)}, values=a),
            lambda a: convert.compress(path, tmp_path / "out", values=a, force=True),
            lambda a: EncodedTensor.encode("x", "BF16", (3,), np.zeros(6, np.uint8), values=a),
        ],
        "min_saving": [
            lambda a: pyendor.torch.save(one, min_saving=a),
            lambda a: pyendor.numpy.save({"x": np.zeros(3)}, min_saving=a),
            lambda a: convert.compress(path, tmp_path / "out", min_saving=a, force=True),
        ],
        "metadata": [
            lambda a: pyendor.torch.save(one, a),
            lambda a: pyendor.numpy.save({"x": np.zeros(3)}, a),
            lambda a: pyendor.torch.save_model(torch.nn.Linear(2, 2), tmp_path / "m", a),
        ],
        "prefetch": [lambda a: list(pyendor.torch.iter_weights(path, prefetch=a))],
        "tensors": [pyendor.torch.save, pyendor.numpy.save],
    }
    for argument, values in ARGUMENTS.items():
        for call, value in itertools.product(calls[argument], values):
            declared = (ValueError,) if call is pyendor.torch.save else ()
            ends(lambda call=call, value=value: call(value), TypeError, AttributeError, *declared)


def test_data_that_does_not_fit() -> None:
    for dtype, shape, size in (
        ("BF16", (3, 4), 5),
        ("X9", (1,), 1),
        ("F4", (2,), 1),
        ("U8", (0,), 0),
        ("F32", (-1,), 4),
        ("F64", (2**70,), 0),
        ("U8", (), 0),
        ("F32", (0, LARGEST, LARGEST), 0),
    ):
        ends(lambda: EncodedTensor.encode("x", dtype, shape, np.zeros(size, np.uint8)))


JSONS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"{",
    b"\xff",
    b"\xef\xbb\xbf{}",
    b'{"a": Infinity}',
    b'{"a": 1e999}',
    b'{"a": "\\ud800"}',
    b'{"n": ' + b"9" * 4301 + b"}",
    b'{"n": ' + b"[" * 985 + b"]" * 985 + b"}",
    b"[" * 100_000,
    b'{"quantization_config": {"quant_method": "endor", "inner": 3}}',
    b'{"quantization_config": [1]}',
    b'{"weight_map": {"w": "../x"}}',
    b'{"weight_map": {"w": "x\\u0000"}}',
    b'{"weight_map": {"w": "model.safetensors"}}',
    b'{"weight_map": {"w": 3}}',
    b'{"weight_map": []}',
    b'{"metadata": 3, "weight_map": {}}',
    b'{"a": 1, "a": 2}',
    b'{"quantization_config": {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}}',
    b'{"torch_dtype": [], "architectures": 3, "model_type": {}}',
]
PARTS = [
    "model.safetensors",
    "model.endor.safetensors",
    "model-00001-of-00002.safetensors",
    "config.json",
    "model.endor-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "config.dense.json",
    "model.safetensors.index.endor.json",
    "model.safetensors.index.dense.json",
    "tokenizer.json",
    ".git",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "sub",
    "\x1b[31m",
    os.fsdecode(b"\xff.json"),
    "model_index.json",
    "adapter_model.safetensors",
    "recipe.yaml",
]


def odd_directory(root: Path, rng: random.Random, weights: list[bytes]) -> None:
    """A directory that may be a checkpoint, and in which anything may stand for anything."""
    root.mkdir()
    for name in rng.sample(PARTS, rng.randint(1, 7)):
        path = root / name
        kind = rng.random()
        if kind < 0.1:
            path.mkdir()
        elif kind < 0.25:
            path.symlink_to(
                rng.choice([name, "missing", ".", "..", "config.json", "model.safetensors", "/dev/null"])
            )
        elif kind < 0.3:
            os.mkfifo(path)
        elif name.endswith("json"):
            path.write_bytes(rng.choice(JSONS))
        else:
            path.write_bytes(rng.choice(weights))


def test_directories(tmp_path: Path) -> None:
    for number, rng in enumerate(rounds(150)):
        weights = [odd(rng), corpus(rng), pyendor.numpy.save({"w": np.zeros((100, 100), np.float32)}), b"x"]
        root = tmp_path / str(number)
        odd_directory(root, rng, weights)
        out = tmp_path / f"{number}.out"
        for call in (
            lambda: checkpoint.scan(root),
            lambda: report.inspect(root),
            lambda: report.dense_bytes(root),
            lambda: verify.verify(root),
            lambda: list(pyendor.torch.iter_weights(root)),
            lambda: convert.compress(root, out),
            lambda: convert.compress(root, out, force=True, jobs=2),
            lambda: convert.decompress(out, tmp_path / f"{number}.back"),
            lambda: convert.decompress(root, tmp_path / f"{number}.dense"),
            lambda: verify.compare(out, root),
            lambda: prune.prune(root, tmp_path / f"{number}.pruned", prune.Options(dtype="bf16")),
        ):
            ends(call)
        if number % 10 == 0:
            command("inspect", root)
            command("verify", root, "--against", out)
            command("compress", root, tmp_path / f"{number}.c", "--json")


def test_loops_of_links(tmp_path: Path) -> None:
    """They are no files; what they are beside is read."""
    root = tmp_path / "model"
    root.mkdir()
    pyendor.numpy.save_file({"w": np.zeros((100, 100), np.float32)}, root / "plain")
    (root / "plain").rename(root / "model.endor.safetensors")
    (root / "loop.json").symlink_to("loop.json")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert verify.verify(root).problems == []
    done = convert.decompress(root, tmp_path / "dense")
    assert set(done.left_out) == {"loop.json", "one", "two"}
    for source, destination in ((root / "one", tmp_path / "x"), (root, root / "one")):
        with pytest.raises(DECLARED):
            convert.decompress(source, destination)
    with pytest.raises(DECLARED):
        pyendor.numpy.save_file({"w": np.zeros(3)}, root / "one" / "below")


# --- threads that the system refuses ---------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_refused_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """What cannot be done by others is done by the caller."""
    monkeypatch.setenv("PYENDOR_THREADS", "4")
    parallel._pool.cache_clear()
    rng = np.random.default_rng(0)
    arrays = {
        f"w{i}": np.where(rng.random((300, 700)) < 0.5, 0, rng.random((300, 700))).astype("<f4")
        for i in range(6)
    }
    root = tmp_path / "model"
    root.mkdir()
    for number in range(3):
        names = sorted(arrays)[2 * number : 2 * number + 2]
        stock.save_file(
            {name: arrays[name] for name in names}, root / f"model.{number}.safetensors", {"format": "pt"}
        )
    started = 0
    start = threading._start_new_thread

    def refuse(*arguments: Any, **keywords: Any) -> int:
        nonlocal started
        if started >= allowed:
            raise RuntimeError("can't start new thread")
        started += 1
        return start(*arguments, **keywords)

    monkeypatch.setattr(threading, "_start_new_thread", refuse)
    convert.compress(root, tmp_path / "endor", jobs=3)
    assert verify.verify(tmp_path / "endor", jobs=3).problems == []
    convert.decompress(tmp_path / "endor", tmp_path / "back", jobs=3)
    for path in root.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    got = {}
    for path in sorted((tmp_path / "endor").iterdir()):
        got |= pyendor.numpy.load_file(path)
        assert {
            name: tensor.numpy().tobytes() for name, tensor in pyendor.torch.iter_weights(path, prefetch=2)
        } == {name: array.tobytes() for name, array in pyendor.numpy.load_file(path).items()}
    assert got.keys() == arrays.keys()
    assert all(same_arrays(got[name], array) for name, array in arrays.items())
    command("inspect", tmp_path / "endor" / "model.endor.0.safetensors")
    assert started == allowed
    parallel._pool.cache_clear()


def test_work_of_which_some_fails_where_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading, "_start_new_thread", refuse)
    monkeypatch.setenv("PYENDOR_THREADS", "4")
    parallel._pool.cache_clear()
    with pytest.raises(ZeroDivisionError):
        parallel.each(lambda item: 1 // item, [1, 0, 2, 3, 4, 5])
    assert parallel.each(lambda item: 6 // item, [1, 2, 3, 6, 1, 2]) == [6, 3, 2, 1, 6, 3]
    with pytest.raises(ZeroDivisionError):
        list(parallel.ahead(lambda item: 1 // item, [1, 0]))
    assert list(parallel.ahead(lambda item: 6 // item, [1, 2, 3])) == [6, 3, 2]
    parallel._pool.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of POSIX")
def test_a_limit_of_address_space(tmp_path: Path) -> None:
    """The commands work in 400 MB of it, which holds the stacks of few threads."""
    path = tmp_path / "x.safetensors"
    pyendor.numpy.save_file({f"w{i}": np.eye(600, dtype=np.float32) for i in range(8)}, path)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (400_000 << 10,) * 2)\n"
        "from pyendor.cli import main; main()"
    )
    threads = {"PYENDOR_THREADS": "64", "OPENBLAS_NUM_THREADS": "1"}
    for arguments in (["verify", path], ["inspect", path], ["decompress", path, tmp_path / "y.safetensors"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **threads},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
