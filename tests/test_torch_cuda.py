"""PyTorch with the CUDA decoder, on a driver in its place: tensors on the CPU are taken for a GPU's."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import pyendor.torch as ours  # noqa: E402
from pyendor import cuda, metadata, native, torch_cuda  # noqa: E402
from pyendor.errors import FormatError  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402

if not native.available():
    pytest.skip("pyendor was installed without a C compiler", allow_module_level=True)


@pytest.fixture(autouse=True)
def device(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU are taken for a GPU's, and files come by way of a ring that is small."""
    monkeypatch.setattr(torch_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(torch_cuda, "SLOT", 64 << 10)
    monkeypatch.setattr(torch_cuda, "PIECE", 5000)
    monkeypatch.setattr(torch_cuda, "_checked", type(torch_cuda._checked)())


def weights() -> dict[str, Any]:
    torch.manual_seed(0)
    dense = torch.randn(200, 300)
    pruned = torch.where(dense.abs() > 0.6745, dense, 0.0)
    return {
        "bf16": pruned.to(torch.bfloat16),
        "whole": dense.to(torch.bfloat16),
        "f32": pruned,
        "fp8": pruned.to(torch.float8_e4m3fn),
        "norm": torch.ones(300),
        "none": torch.zeros(0, 7),
        "number": torch.tensor(3),
    }


def same(one: Any, other: Any) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and ours.save({"x": one}) == ours.save({"x": other})
    )


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("values", ["raw", "auto"])
def test_a_file_is_loaded_by_the_kernels(
    values: Any, verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = weights()
    ours.save_file(dense, tmp_path / "w", values=values)
    monkeypatch.setattr(native, "decode", None)  # nothing is decoded by the CPU's codec
    with ours.safe_open(tmp_path / "w", device="cpu", verify=verify) as opened:
        found = opened.get_tensors()
        one = {name: opened.get_tensor(name) for name in dense}
    monkeypatch.undo()
    for name, tensor in dense.items():
        assert same(found[name], tensor), name
        assert same(one[name], tensor), name


def test_other_orders_of_parts_are_loaded_too(tmp_path: Path) -> None:
    dense = weights()["bf16"]
    data = ours.save({"x": dense})
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    entries = {name: header[name] for name in header if name != "__metadata__"}
    at, moved, body = 0, {}, b""
    for name, entry in reversed(entries.items()):  # the last part first
        begin, end = entry["data_offsets"]
        body += data[8 + length + begin : 8 + length + end]
        moved[name] = entry | {"data_offsets": [at, at + end - begin]}
        at += end - begin
    text = json.dumps({"__metadata__": header["__metadata__"]} | moved).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + body)
    assert same(ours.load_file(tmp_path / "w")["x"], dense)


def test_a_fault_is_told_as_the_codec_of_the_cpu_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.save_file(weights(), tmp_path / "w", values="raw")
    data = bytearray((tmp_path / "w").read_bytes())
    with ours.safe_open(tmp_path / "w") as opened:
        start = opened._file.layout.tensors["bf16"].parts["bitmap"].start
    data[start + 700] ^= 1
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(FormatError) as here:
        ours.load_file(tmp_path / "w")
    monkeypatch.setattr(torch_cuda, "DEVICE", "none")
    with pytest.raises(FormatError) as there:
        ours.load_file(tmp_path / "w")
    assert str(here.value) == str(there.value)
    assert here.value.rule == "B-6"


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    ours.save_file({"x": torch.randn(300, 200)}, tmp_path / "w", min_saving=None)
    with ours.safe_open(tmp_path / "w") as opened:
        (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-1000])
        with pytest.raises(FormatError, match="became shorter"):
            opened.get_tensors()


@pytest.mark.parametrize("name", ["bf16", "whole", "f32", "fp8"])
def test_an_encoded_tensor_decodes_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weights()[name]
    tensor = EndorTensor.from_dense(dense)
    launched: list[int] = []
    launch = cuda.Launch.__call__
    monkeypatch.setattr(cuda.Launch, "__call__", lambda self, *a: (launched.append(1), launch(self, *a))[1])
    monkeypatch.setattr(native, "decode", None)
    out = torch.empty_like(dense)
    for count in range(1, 4):
        assert tensor.decode(out=out) is out
        assert len(launched) == count
    decoded = tensor.decode()
    monkeypatch.undo()
    assert same(decoded, dense)
    assert same(out, dense)


def test_parts_are_checked_once_and_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weights()["bf16"]
    tensor = EndorTensor.from_dense(dense)
    read: list[int] = []
    check = cuda.check
    monkeypatch.setattr(cuda, "check", lambda word, **names: (read.append(word), check(word, **names)))
    for _ in range(3):
        tensor.decode()
    assert read == [0]
    other = EndorTensor.from_dense(weights()["whole"])
    tensor.copy_(other)
    assert same(tensor.decode(), weights()["whole"])
    assert read == [0, 0]
    broken = EndorTensor.from_dense(dense)
    broken.part_bitmap[3] ^= 1
    for _ in range(2):
        with pytest.raises(FormatError, match="B-6"):
            broken.decode()


def test_compiled_layers_keep_it_encoded() -> None:
    dense = weights()["bf16"]
    layer = torch.nn.Linear(300, 200, bias=False, dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(EndorTensor.from_dense(dense), requires_grad=False)
    x = torch.randn(4, 300, dtype=torch.bfloat16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), torch.nn.functional.linear(x, dense))
    out = torch.empty_like(dense)

    def into(tensor: Any, out: Any) -> Any:
        parts = list(tensor.parts.values())
        torch.ops.endor.decode_into(parts, about, out)
        return out + 0

    about = metadata.entry_text(layer.weight.meta)
    result = torch.compile(into, backend="aot_eager", fullgraph=True)(layer.weight, out)
    assert torch.equal(result, dense)


def test_the_operators_are_as_pytorch_wants_them() -> None:
    tensor = EndorTensor.from_dense(weights()["bf16"])
    parts, about = list(tensor.parts.values()), metadata.entry_text(tensor.meta)
    torch.library.opcheck(torch.ops.endor.decode, (parts, about, list(tensor.shape), tensor.dtype))
    torch.library.opcheck(
        torch.ops.endor.decode_into, (parts, about, torch.empty(tensor.shape, dtype=tensor.dtype))
    )


def test_weights_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weights()
    ours.save_file(dense, tmp_path / "w")
    monkeypatch.setattr(native, "decode", None)
    found = dict(ours.iter_weights(tmp_path / "w", "cpu"))
    monkeypatch.undo()
    assert all(same(found[name], tensor) for name, tensor in dense.items())


def test_threads_share_what_is_checked() -> None:
    dense = weights()["bf16"]
    tensor = EndorTensor.from_dense(dense)
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda _: tensor.decode(out=torch.empty_like(dense)), range(8)))
    assert all(torch.equal(out, dense) for out in outs)
