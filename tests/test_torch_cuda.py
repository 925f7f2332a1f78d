"""PyTorch with the CUDA decoder, on a driver in its place: tensors on the CPU are taken for a GPU's."""

from __future__ import annotations

import json
import shutil
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


@pytest.fixture(params=["device", "host"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The codec by which an operator decodes: that of the device, or that of the CPU."""
    if request.param == "host":
        monkeypatch.setattr(torch_cuda, "DEVICE", "none")
    return str(request.param)


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
    broken.parts["bitmap"][3] ^= 1
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


def operands(name: str = "bf16") -> tuple[dict[str, Any], str, Any, Any]:
    """Parts by role, the text of the entry, the dense tensor and one to decode into."""
    dense = weights()[name]
    tensor = EndorTensor.from_dense(dense)
    return dict(tensor.parts), metadata.entry_text(tensor.meta), dense, torch.empty_like(dense)


def into(parts: dict[str, Any], about: str, out: Any) -> None:
    torch.ops.endor.decode_into(list(parts.values()), about, out)


def changed(part: Any) -> list[Any]:
    """A part as it must not be, each of the right bytes as far as it goes."""
    apart = torch.empty(2 * part.numel(), dtype=torch.uint8)[::2]
    apart.copy_(part)
    short = part.clone()
    short.untyped_storage().resize_(part.numel() - 1)
    gone = part.clone()
    gone.untyped_storage().resize_(0)
    return [part[:-1], part[64:], torch.cat([part, part[:1]]), part[:0], apart, short, gone]


@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("name", ["bf16", "f32", "whole"])
def test_parts_are_of_the_size_that_they_need(name: str) -> None:
    parts, about, dense, out = operands(name)
    into(parts, about, out)
    assert torch.equal(out, dense)
    for role, part in parts.items():
        for wrong in changed(part) if part.numel() else [torch.zeros(64, dtype=torch.uint8)]:
            given = parts | {role: wrong}
            with pytest.raises(ValueError, match=f"part '{role}' "):
                into(given, about, out)
            with pytest.raises(ValueError, match=f"part '{role}' "):
                torch.ops.endor.decode(list(given.values()), about, dense.shape, dense.dtype)
    for few in (list(parts.values())[:-1], [*parts.values(), out], []):
        with pytest.raises(ValueError, match="parts were given"):
            torch.ops.endor.decode_into(few, about, out)
    # Bytes count, not their type.
    into(parts | {"index": parts["index"].view(torch.int64)}, about, out)
    assert torch.equal(out, dense)


@pytest.mark.usefixtures("codec")
def test_outputs_are_of_the_size_that_they_need() -> None:
    parts, about, dense, _ = operands()
    rows, columns = dense.shape
    for shape, dtype in (
        ((rows - 1, columns), dense.dtype),
        ((columns, rows), dense.dtype),
        ((rows, columns), torch.float16),
        ((rows, columns), torch.uint8),
        ((0,), dense.dtype),
        ((rows, 1 << 40), dense.dtype),
    ):
        with pytest.raises(ValueError, match=r"expected torch\.bfloat16 of shape"):
            torch.ops.endor.decode(list(parts.values()), about, shape, dtype)
        if shape[-1] < 1 << 30:
            with pytest.raises(ValueError, match=r"expected torch\.bfloat16 of shape"):
                into(parts, about, torch.empty(shape, dtype=dtype))
    wide = torch.zeros(rows, 2 * columns, dtype=dense.dtype)
    for wrong in (wide[:, :columns], wide[:, ::2], torch.empty(columns, rows, dtype=dense.dtype).t()):
        with pytest.raises(ValueError, match="out must be a contiguous tensor"):
            into(parts, about, wrong)
    taken = torch.empty_like(dense)
    taken.untyped_storage().resize_(100)
    with pytest.raises(ValueError, match="its storage only 100"):
        into(parts, about, taken)
    assert not wide.any()
    # A tensor may begin anywhere in its storage.
    into(parts, about, wide.view(-1)[77 : 77 + dense.numel()].view(rows, columns))
    assert torch.equal(wide.view(-1)[77 : 77 + dense.numel()].view(rows, columns), dense)
    assert not wide.view(-1)[77 + dense.numel() :].any()


def test_views_that_only_seem_to_be_their_memory() -> None:
    dense = weights()["f32"]
    tensor = EndorTensor.from_dense(dense)
    with pytest.raises(ValueError, match="out is a conjugated or negated view"):
        torch_cuda.decode(tensor.parts, tensor.meta, torch._neg_view(torch.zeros_like(dense)))
    negative = {"values": torch._neg_view(tensor.parts["values"].view(torch.int8))}
    with pytest.raises(ValueError, match="part 'values' is a conjugated or negated view"):
        torch_cuda.decode(tensor.parts | negative, tensor.meta, torch.zeros_like(dense))


@pytest.mark.usefixtures("codec")
def test_an_output_among_the_parts() -> None:
    parts, about, dense, _ = operands()
    nbytes = dense.numel() * 2
    for role, part in parts.items():
        memory = torch.zeros(nbytes + part.numel(), dtype=torch.uint8)
        memory[nbytes - 2 : nbytes - 2 + part.numel()] = part
        given = parts | {role: memory[nbytes - 2 : nbytes - 2 + part.numel()]}
        if not part.numel():
            continue
        with pytest.raises(ValueError, match=f"out overlaps part '{role}'"):
            into(given, about, memory[:nbytes].view(dense.dtype).view(dense.shape))


def test_the_decoder_checks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weights()["bf16"]
    tensor = EndorTensor.from_dense(dense)
    parts, out = tensor.parts, torch.empty_like(dense)
    for wrong in (
        {"values": parts["values"]},
        parts | {"values": parts["values"][:-64]},
        parts | {"more": out},
    ):
        with pytest.raises(ValueError, match="part"):
            torch_cuda.decode(wrong, tensor.meta, out)
    with pytest.raises(ValueError, match="the output has"):
        torch_cuda.decode(parts, tensor.meta, out[1:])
    elsewhere = parts | {"index": parts["index"].to("meta")}
    with pytest.raises(ValueError, match="part 'index' is on meta, out is on cpu"):
        torch_cuda.decode(elsewhere, tensor.meta, out)
    torch_cuda.decode(parts, tensor.meta, out)
    # Known now; what is given is checked all the same.
    with pytest.raises(ValueError, match="the output has"):
        torch_cuda.decode(parts, tensor.meta, out[1:])
    with pytest.raises(ValueError, match="'index' has"):
        torch_cuda.decode(parts | {"index": parts["index"][:-8]}, tensor.meta, out)


def test_other_tensors_at_the_same_place_are_checked_anew() -> None:
    dense = weights()["bf16"]
    tensor = EndorTensor.from_dense(dense)
    parts, out = tensor.parts, torch.empty_like(dense)
    torch_cuda.decode(parts, tensor.meta, out)
    index = parts["index"]
    again = index.view(-1)  # as a tensor that was given the memory of one that is gone
    again[9] ^= 1
    assert again.data_ptr() == index.data_ptr()
    with pytest.raises(FormatError):
        torch_cuda.decode(parts | {"index": again}, tensor.meta, out)


def test_a_device_without_kernels_is_decoded_for_by_the_cpu(
    simt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "libsimt.so"
    shutil.copy(simt, own)
    monkeypatch.setenv(cuda.DRIVER, str(own))
    monkeypatch.setenv("ENDOR_SIMT_DEVICES", "2")
    monkeypatch.setenv("ENDOR_SIMT_WITHOUT", "1")
    monkeypatch.setattr(cuda.Launch, "__init__", None)  # nothing is launched
    dense = weights()["bf16"]
    tensor = EndorTensor.from_dense(dense)
    for number in (0, 1):
        monkeypatch.setattr(torch_cuda, "_number", lambda device, number=number: number)
        assert torch_cuda.usable(torch.device("cpu")) == (number == 0)
    assert same(tensor.decode(), dense)
    ours.save_file({"x": dense}, tmp_path / "w")
    assert same(ours.load_file(tmp_path / "w")["x"], dense)
