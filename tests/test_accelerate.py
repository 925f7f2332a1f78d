"""Accelerate offloads models whose weights stay encoded until they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from pyendor import errors  # noqa: E402
from pyendor.accelerate import EncodedWeights  # noqa: E402
from pyendor.torch import save_file  # noqa: E402
from pyendor.torch_tensor import EndorTensor  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)
        self.up = torch.nn.Linear(64, 256)
        self.down = torch.nn.Linear(256, 64, bias=False)

    def forward(self, x: Any) -> Any:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Tied(torch.nn.Module):
    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(128, 64)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.head = torch.nn.Linear(64, 128, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


IDS = torch.arange(40)[None]


@pytest.fixture
def dense() -> Any:
    torch.manual_seed(20240617)
    model = Tied().bfloat16().eval()
    for tensor in model.parameters():
        if tensor.ndim == 2:
            tensor.data[tensor.abs() < tensor.abs().median()] = 0
    return model


@pytest.fixture
def path(dense: Any, tmp_path: Path) -> Path:
    state = {name: tensor for name, tensor in dense.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "model.endor.safetensors", min_saving=0)
    return tmp_path


def empty(dtype: Any = torch.bfloat16) -> Any:
    with accelerate.init_empty_weights():
        model = Tied().to(dtype).eval()
    model.head.weight = model.embed.weight
    model.scale = torch.full((1,), 2.0, dtype=dtype)
    return model


def output(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cpu_offload(dense: Any, path: Path, dtype: Any, on_disk: bool) -> None:
    model = empty(dtype)
    weights = EncodedWeights(path, model, on_disk=on_disk)
    accelerate.cpu_offload(model, "cpu", state_dict=weights)
    wanted = output(dense.to(dtype))
    for _ in range(2):
        assert output(model).equal(wanted)
        assert {tensor.device.type for tensor in model.parameters()} == {"meta"}


@pytest.mark.parametrize("on_disk", [False, True])
def test_dispatch_model(dense: Any, path: Path, on_disk: bool) -> None:
    model = empty()
    # One block is on the device, and everything else is not.
    model.blocks[0].to_empty(device="cpu").load_state_dict(dense.blocks[0].state_dict())
    where = {"embed": "disk", "blocks.0": "cpu", "blocks.1": "disk", "blocks.2": "disk", "head": "disk"}
    accelerate.dispatch_model(
        model,
        {**where, "scale": "cpu"},
        main_device="cpu",
        state_dict=EncodedWeights(path, model, on_disk=on_disk),
        offload_index={},
    )
    for _ in range(2):
        assert output(model).equal(output(dense))


def test_tied_weights_that_stay_encoded_are_told_apart(dense: Any) -> None:
    """Accelerate knows tied weights by where they are, which all encoded ones have to tell."""
    for module in dense.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None and tensor.ndim == 2:
                encoded = torch.nn.Parameter(EndorTensor.from_dense(tensor.detach()), requires_grad=False)
                module._parameters[name] = encoded
    dense.head.weight = dense.embed.weight
    wanted = output(dense)
    names = [name for name, _ in dense.named_children() if name != "blocks"] + ["blocks.0", "blocks.1"]
    where = {**dict.fromkeys(names, "cpu"), "blocks.2": "disk", "scale": "cpu"}
    state = {name: tensor for name, tensor in dense.state_dict().items() if name.startswith("blocks.2")}
    accelerate.dispatch_model(dense, where, main_device="cpu", state_dict=state, offload_index={})
    for _ in range(2):
        assert output(dense).equal(wanted)
    empty_one = EndorTensor.from_dense(torch.zeros(64, 64))
    assert empty_one.data_ptr() not in {0, EndorTensor.from_dense(torch.zeros(64, 64)).data_ptr()}


def test_what_moves_is_encoded(path: Path) -> None:
    model = empty()
    weights = EncodedWeights(path, model)
    moved = {name: weights[name] for name in weights}
    encoded = {name for name, tensor in moved.items() if isinstance(tensor, EndorTensor)}
    assert encoded >= {f"blocks.{i}.{name}.weight" for i in range(3) for name in ("up", "down")}
    dense_bytes = sum(tensor.nbytes for tensor in moved.values())
    bytes_moved = sum(moved[name].encoded_nbytes for name in encoded) + sum(
        moved[name].nbytes for name in moved if name not in encoded
    )
    assert bytes_moved < 0.5 * dense_bytes
    assert weights["head.weight"] is weights["embed.weight"]


def test_a_mapping(path: Path) -> None:
    weights = EncodedWeights(path)
    assert set(weights) == {name for name in Tied().state_dict() if name != "head.weight"}
    assert len(weights) == len(list(weights))
    assert "scale" in weights
    assert "head.weight" not in weights
    assert 7 not in weights
    with pytest.raises(KeyError):
        weights["head.weight"]
    assert weights["scale"].item() == 2


def test_names_with_a_prefix(dense: Any, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in dense.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "x.safetensors")
    model = empty()
    accelerate.cpu_offload(model, "cpu", state_dict=EncodedWeights(tmp_path / "x.safetensors", model))
    assert output(model).equal(output(dense))


def test_what_does_not_fit(dense: Any, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in dense.state_dict().items() if name != "head.weight"}
    save_file(state | {"blocks.1.up.weight": torch.zeros(8, 8)}, tmp_path / "shape")
    with pytest.raises(errors.UsageError, match=r"\[8, 8\].*\[256, 64\]"):
        EncodedWeights(tmp_path / "shape", empty())
    del state["blocks.1.up.weight"]
    save_file(state, tmp_path / "lacking")
    with pytest.raises(errors.UsageError, match=r"no 'blocks\.1\.up\.weight'"):
        EncodedWeights(tmp_path / "lacking", empty())


def test_damage_is_found_at_once(path: Path) -> None:
    file = path / "model.endor.safetensors"
    weights = EncodedWeights(file)
    assert isinstance(weights["blocks.0.up.weight"], EndorTensor)
    from pyendor.numpy import safe_open

    with safe_open(file) as opened:
        encoded = opened.get_encoded("blocks.0.up.weight")
    data = bytearray(file.read_bytes())
    data[encoded.offsets["bitmap"]] ^= 1
    file.write_bytes(data)
    with pytest.raises(errors.FormatError, match=r"blocks\.0\.up"):
        EncodedWeights(file)
    with pytest.raises(errors.FormatError, match="D-2"):
        EncodedWeights(file, verify=True)
