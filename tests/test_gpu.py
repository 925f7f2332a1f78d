"""On a real GPU: what the other tests try on the CPU. ``make gpu`` runs these; elsewhere they are skipped.

Those called ``test_sanitized_...`` are small, and run a second time under compute-sanitizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENCODABLE, ROOT, SPLITTABLE, encode, encodings, some_floats, sparse_bytes

from pyendor import backends, checkpoint, cuda, dlpack, dtypes, layout, native, reference
from pyendor.cuda import Fault, Job, Memory
from pyendor.dtypes import DType
from pyendor.errors import FormatError, PartError
from pyendor.metadata import TensorMeta

torch = pytest.importorskip("torch")


def reason() -> str | None:
    """Why there is nothing to test."""
    return cuda.unavailable() or (None if torch.cuda.is_available() else "PyTorch has no CUDA here")


pytestmark = [pytest.mark.cuda, pytest.mark.skipif(reason() is not None, reason=str(reason()))]
LENGTHS = (0, 1, 65, 4095, 4096, 4097, 3 * 4096 + 5)
Parts = dict[str, np.ndarray]


def samples(dtype: DType, numel: int) -> list[tuple[TensorMeta, Parts, bytes]]:
    rng = np.random.default_rng(numel)
    make = some_floats if dtype.splittable else sparse_bytes
    dense = make(rng, numel, dtype if dtype.splittable else dtype.itemsize)  # type: ignore[arg-type]
    return [(meta, encode(backends.get(), meta, dense), dense.tobytes()) for meta in encodings(dense, dtype)]


def there(array: np.ndarray, offset: int = 0) -> Any:
    """Bytes in device memory of their own, which begin so many bytes behind an allocation's begin."""
    memory = torch.empty(array.size + offset, dtype=torch.uint8, device="cuda")[offset:]
    return memory.copy_(torch.from_numpy(array))


def decoded(
    meta: TensorMeta, parts: Parts, first: int = 0, stop: int | None = None, offset: int = 0
) -> bytes | Fault:
    last = layout.blocks(meta.numel) if stop is None else stop
    elements = max(0, min(last * layout.BLOCK, meta.numel) - first * layout.BLOCK)
    out = there(np.full(elements * dtypes.BY_NAME[meta.dtype].itemsize, 0x5A, np.uint8), offset)
    words = torch.zeros(1, dtype=torch.int64, device="cuda")
    held = {role: there(part, offset) for role, part in parts.items()}
    places = {role: Memory(part.data_ptr(), part.numel()) for role, part in held.items()}
    to = Memory(out.data_ptr(), out.numel())
    stream = torch.cuda.current_stream().cuda_stream
    cuda.decode([Job(meta, places, to, words.data_ptr(), first, stop)], stream)
    return cuda.fault(int(words)) or bytes(out.cpu().numpy())


@pytest.mark.parametrize("dtype", ENCODABLE, ids=lambda dtype: dtype.name)
def test_every_type_and_length(dtype: DType) -> None:
    for numel in LENGTHS:
        for meta, parts, dense in samples(dtype, numel):
            assert decoded(meta, parts) == dense, meta


@pytest.mark.parametrize("name", ["F8_E4M3", "BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("offset", [0, 2, 3, 8])
def test_sanitized_alignments(name: str, offset: int) -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME[name], 2 * 4096 + 77):
        assert decoded(meta, parts, offset=offset) == dense, meta


def test_sanitized_ranges() -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME["BF16"], 2 * 4096 + 5):
        for first, stop in ((0, 0), (0, 1), (1, 3), (2, 3), (3, 3)):
            assert decoded(meta, parts, first, stop) == dense[first * 8192 : stop * 8192]


@pytest.mark.parametrize("dtype", SPLITTABLE, ids=lambda dtype: dtype.name)
def test_sanitized_faults(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    for meta, parts, _ in samples(dtype, 4096 + 300):
        for role, part in parts.items():
            for _ in range(4 if part.size else 0):
                changed = parts | {role: part.copy()}
                changed[role][rng.integers(part.size)] ^= rng.integers(1, 256)
                try:
                    out = np.empty(layout.dense_nbytes(meta.dtype, meta.shape), np.uint8)
                    native.decode(meta, changed, out)
                except PartError as error:
                    found = decoded(meta, changed)
                    assert isinstance(found, Fault)
                    assert found.rule == error.rule
                else:
                    assert decoded(meta, changed) == out.tobytes()


def test_large_ones() -> None:
    for meta, parts, dense in samples(dtypes.BY_NAME["BF16"], 11008 * 1024 + 3):
        for _ in range(3):
            assert decoded(meta, parts) == dense


def cases() -> list[Path]:
    return sorted((ROOT / "conformance" / "cases").glob("*valid/*.safetensors"))


def test_the_corpus() -> None:
    """Every encoded tensor of it, good or bad, as the reference has it."""
    count = 0
    for path in cases():
        try:
            opened = checkpoint.open_all(path)
        except FormatError:
            continue
        for one in opened:
            for name, tensor in one.layout.tensors.items():
                if tensor.meta is None or tensor.unsupported is not None:
                    continue
                encoded = one.get_encoded(name)
                found = decoded(encoded.meta, dict(encoded.parts))
                count += 1
                try:
                    out = np.empty(tensor.nbytes, np.uint8)
                    reference.decode(encoded.meta, encoded.parts, out)
                except PartError as error:
                    assert isinstance(found, Fault), path
                    assert found.rule == error.rule, path
                else:
                    assert found == out.tobytes(), path
    assert count > 100 or not cases()


def weights() -> dict[str, Any]:
    torch.manual_seed(0)
    dense = torch.randn(1000, 1300)
    pruned = torch.where(dense.abs() > 0.6745, dense, 0.0)
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "fp8": torch.float8_e4m3fn}
    return {name: pruned.to(kind) for name, kind in kinds.items()} | {
        "whole": dense.to(torch.bfloat16),
        "norm": torch.ones(300),
        "none": torch.zeros(0, 7),
        "number": torch.tensor(3),
    }


def same(one: Any, other: Any) -> bool:
    left, right = one.cpu().reshape(-1).view(torch.uint8), other.cpu().reshape(-1).view(torch.uint8)
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(left, right)


@pytest.mark.parametrize("values", ["raw", "auto"])
def test_files(values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyendor.torch as ours

    dense = weights()
    ours.save_file(dense, tmp_path / "w", values=values)
    monkeypatch.setattr(native, "decode", None)  # nothing is decoded on the CPU
    for verify in (False, True):
        with ours.safe_open(tmp_path / "w", device="cuda", verify=verify) as opened:
            found = opened.get_tensors()
            for name, tensor in dense.items():
                assert found[name].device.type == "cuda"
                assert same(found[name], tensor), name
                assert same(opened.get_tensor(name), tensor), name
    for name, tensor in ours.iter_weights(tmp_path / "w", "cuda"):
        assert same(tensor, dense[name]), name


def test_files_larger_than_the_ring(tmp_path: Path) -> None:
    import pyendor.torch as ours

    dense = {f"x{i}": torch.randn(4096, 9000).to(torch.bfloat16) for i in range(3)}
    ours.save_file(dense, tmp_path / "w")
    found = ours.load_file(tmp_path / "w", device="cuda")
    assert all(same(found[name], tensor) for name, tensor in dense.items())


def test_graphs_and_compiled_layers() -> None:
    from pyendor.torch_tensor import EndorTensor

    dense = weights()["bf16"].cuda()
    layer = torch.nn.Linear(1300, 1000, bias=False, dtype=torch.bfloat16, device="cuda")
    layer.weight = torch.nn.Parameter(EndorTensor.from_dense(dense), requires_grad=False)
    assert layer.weight.parts["values"].is_cuda
    x = torch.randn(4, 1300, dtype=torch.bfloat16, device="cuda")
    out = torch.empty_like(dense)
    with pytest.raises(RuntimeError, match="decode it once before"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer.weight.decode(out=out)
    torch.cuda.synchronize()
    expected = torch.nn.functional.linear(x, dense)
    assert torch.equal(layer(x), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer.weight.decode(out=out)
        result = torch.nn.functional.linear(x, out)
    out.zero_()
    graph.replay()
    assert torch.equal(result, expected)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), expected)


def test_other_streams() -> None:
    from pyendor.torch_tensor import EndorTensor

    dense = weights()["bf16"]
    tensor = EndorTensor.from_dense(dense.cuda())
    tensor.decode()
    outs = [torch.zeros_like(dense, device="cuda") for _ in range(4)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in outs]
    for stream, out in zip(streams, outs, strict=True):
        with torch.cuda.stream(stream):
            tensor.decode(out=out)
    torch.cuda.synchronize()
    assert all(same(out, dense) for out in outs)


def test_pinned_parts() -> None:
    from pyendor.torch_tensor import EndorTensor

    dense = weights()["bf16"]
    pinned = EndorTensor.from_dense(dense).pin_memory()
    assert isinstance(pinned, EndorTensor)
    assert pinned.is_pinned()
    assert all(part.is_pinned() for part in pinned.parts.values())
    moved = pinned.to("cuda", non_blocking=True)
    assert isinstance(moved, EndorTensor)
    assert same(moved.decode(), dense)
    assert same(pinned.decode(), dense)


def test_arrays_by_dlpack() -> None:
    meta, parts, dense = samples(dtypes.BY_NAME["BF16"], 5000)[0]
    out, word = (
        torch.zeros(5000, dtype=torch.int16, device="cuda"),
        torch.zeros(1, dtype=torch.int64, device="cuda"),
    )
    dlpack.decode(meta, {role: there(part) for role, part in parts.items()}, out, status=word)
    cuda.check(int(word))
    assert out.cpu().numpy().tobytes() == dense
