"""Sharded loading: real processes, each of which reads its own slices, against the whole."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import tree

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from pyendor import convert, errors, file, layout, prune  # noqa: E402
from pyendor.distributed import EndorReader  # noqa: E402
from pyendor.torch import load_file, save_file  # noqa: E402

WIDTH = 4096


class MLP(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, WIDTH)
        self.down = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, x: Any) -> Any:
        return self.norm(self.down(torch.relu(self.up(x))) + x)


def sparse() -> Any:
    torch.manual_seed(20240617)
    model = MLP().bfloat16()
    for tensor in model.parameters():
        if tensor.ndim == 2:
            tensor.data[tensor.abs() < 0.5 / 64] = 0
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two shards."""
    root = tmp_path_factory.mktemp("sharded")
    state = sparse().state_dict()
    shards = {"model-00001-of-00002": ["up.weight", "up.bias"], "model-00002-of-00002": ["down.weight"]}
    shards["model-00002-of-00002"] += ["norm.weight", "norm.bias"]
    from safetensors.torch import save_file as save_dense

    (root / "dense").mkdir()
    weight_map = {}
    for name, keys in shards.items():
        save_dense(
            {key: state[key] for key in keys}, root / "dense" / f"{name}.safetensors", {"format": "pt"}
        )
        weight_map |= dict.fromkeys(keys, f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (root / "dense" / "model.safetensors.index.json").write_text(json.dumps(index))
    convert.compress(root / "dense", root / "endor")
    return root / "endor"


def everything(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for weights in path.glob("*.safetensors"):
        state |= load_file(weights)
    return state


def system_count() -> int:
    """Bytes that this process has had from read calls, as the system counts them."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError


class Counted(EndorReader):
    """A reader that also asks the system what it has read."""

    counted = 0

    def read_data(self, plan: Any, planner: Any) -> Any:
        own = system_count()
        before, read = system_count(), self.bytes_read
        done = super().read_data(plan, planner)
        self.counted = system_count() - before - (before - own)
        self.bytes_read -= read
        return done


def shard(model: Any, kind: str, ranks: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (ranks,))
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        return fully_shard(model, mesh=mesh)
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def work(rank: int, ranks: int, port: int, path: Path, out: Path) -> None:
    """What one process does; what it finds goes to a file."""
    torch.set_num_threads(1)
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYENDOR_THREADS": "1"})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    from torch.distributed.tensor import DTensor

    found: dict[str, Any] = {}
    state = everything(path)
    reference = MLP().bfloat16()
    reference.load_state_dict(state)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    for kind in ("fsdp", "tp"):
        with torch.device("meta"):
            model = shard(MLP().bfloat16(), kind, ranks)
        model.to_empty(device="cpu")
        wanted = model.state_dict()
        reader = Counted(path)
        dcp.load(wanted, storage_reader=reader)
        model.load_state_dict(wanted)
        shards = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, DTensor)}
        with torch.no_grad():
            near = torch.allclose(model(x).float(), reference(x).float(), atol=0.05, rtol=0.05)
        found[kind] = {
            "equal": all(tensor.full_tensor().equal(state[name]) for name, tensor in shards.items())
            and all(tensor.equal(state[name]) for name, tensor in wanted.items() if name not in shards),
            "near": near,
            "shapes": {name: list(tensor.to_local().shape) for name, tensor in shards.items()},
            "bytes": reader.bytes_read,
            "counted": reader.counted,
        }
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_reads_its_slices(ranks: int, path: Path, tmp_path: Path) -> None:
    before = tree(path)
    torch.multiprocessing.spawn(work, (ranks, free_port(), path, tmp_path), nprocs=ranks)
    assert tree(path) == before
    total = sum(weights.stat().st_size for weights in path.glob("*.safetensors"))
    rows = WIDTH // ranks
    for rank in range(ranks):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert all(one["equal"] and one["near"] for one in found.values())
        assert found["fsdp"]["shapes"]["up.weight"] == found["fsdp"]["shapes"]["down.weight"] == [rows, WIDTH]
        assert found["tp"]["shapes"] == {
            "up.weight": [rows, WIDTH],
            "up.bias": [rows],
            "down.weight": [WIDTH, rows],
        }
        # Blocks, the indices whole, and two headers.
        share, extra = total / ranks, 100_000
        assert found["fsdp"]["bytes"] == pytest.approx(share, rel=0.02, abs=extra)
        # Of a matrix that is split by columns every block of 4096 elements is wanted by everyone.
        assert found["tp"]["bytes"] == pytest.approx(share / 2 + total / 2, rel=0.02, abs=extra)
        for one in found.values():
            assert one["bytes"] == one["counted"]


def parallel_transformers(rank: int, ranks: int, port: int, path: Path, out: Path) -> None:
    """Tensor parallelism as transformers does it, of a model with fused experts."""
    import transformers

    import pyendor.transformers  # noqa: F401

    torch.set_num_threads(1)
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"})
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    from torch.distributed.tensor import DTensor
    from transformers.distributed import DistributedConfig

    whole: list[str] = []
    get_bytes = file.File.get_bytes

    def spy(self: file.File, name: str, **options: Any) -> Any:
        whole.append(name)
        return get_bytes(self, name, **options)

    file.File.get_bytes = spy  # type: ignore[method-assign]
    load = transformers.MixtralForCausalLM.from_pretrained
    reference = load(path / "dense", dtype="auto")
    model = load(
        path / "endor", variant="endor", dtype="auto", distributed_config=DistributedConfig(tp_plan="auto")
    )
    equal = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).equal(
            reference.get_parameter(name)
        )
        for name, tensor in model.named_parameters()
    }
    sharded = [name for name, tensor in model.named_parameters() if isinstance(tensor, DTensor)]
    found = {"equal": equal, "sharded": sharded, "whole": whole}
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_tensor_parallelism_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.MixtralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    torch.manual_seed(20240617)
    transformers.MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path / "x")
    prune.prune(tmp_path / "x", tmp_path / "dense", prune.Options())
    convert.compress(tmp_path / "dense", tmp_path / "endor")
    arguments = (2, free_port(), tmp_path, tmp_path)
    torch.multiprocessing.spawn(parallel_transformers, arguments, nprocs=2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert all(found["equal"].values())
        assert any("experts" in name for name in found["sharded"])
        assert any("self_attn" in name for name in found["sharded"])
        assert not any("experts" in name or "self_attn" in name for name in found["whole"])


def test_only_the_blocks_that_are_wanted_are_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    cut = file.File.cut

    def spy(self: file.File, name: str, start: int, shape: Any, strides: Any, **options: Any) -> Any:
        data = cut(self, name, start, shape, strides, **options)
        asked.append(data.size)
        return data

    monkeypatch.setattr(file.File, "cut", spy)
    state = {"up.weight": _Part(path)}
    state["up.weight"].load()
    assert asked == [64 * WIDTH * 2]
    assert layout.BLOCK == WIDTH


class _Part:
    """Rows 128 to 191 of a matrix, loaded by a plan that asks for these."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> None:
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

        target = torch.zeros(64, WIDTH, dtype=torch.bfloat16)
        index = MetadataIndex("up.weight", torch.Size([0, 0]))
        zero, size = torch.Size([0, 0]), torch.Size([64, WIDTH])
        item = ReadItem(LoadItemType.TENSOR, index, zero, index, torch.Size([128, 0]), size)

        class Planner:
            def resolve_tensor(self, item: Any) -> Any:
                return target

            def commit_tensor(self, item: Any, tensor: Any) -> None:
                assert tensor.data_ptr() == target.data_ptr()

        reader = EndorReader(self.path)
        reader.read_metadata()
        reader.read_data(LoadPlan([item]), Planner()).wait()  # type: ignore[arg-type]
        assert target.equal(everything(self.path)["up.weight"][128:192])
        reader.reset(self.path)


def test_without_other_processes(path: Path) -> None:
    state = everything(path)
    filled = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(filled, storage_reader=EndorReader(path, verify=True))
    assert all(filled[name].equal(state[name]) for name in state)
    dense = path.parent / "dense"
    filled = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(filled, checkpoint_id=dense, storage_reader=EndorReader(path))
    assert all(filled[name].equal(state[name]) for name in state)


def test_other_names(path: Path) -> None:
    state = everything(path)
    filled = {"up.weight": torch.zeros(WIDTH, WIDTH, dtype=torch.bfloat16)}
    filled["tied"] = torch.zeros_like(filled["up.weight"])
    dcp.load(filled, storage_reader=EndorReader(path, {"tied": "up.weight"}))
    assert filled["tied"].equal(state["up.weight"])
    with pytest.raises(CheckpointException, match="no tensor 'nope'"):
        dcp.load(filled, storage_reader=EndorReader(path, {"tied": "nope"}))


def test_what_does_not_fit(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="other"):
        dcp.load({"other": torch.zeros(4)}, storage_reader=EndorReader(path))
    with pytest.raises(CheckpointException, match=r"up\.weight"):
        dcp.load({"up.weight": torch.zeros(8, 8)}, storage_reader=EndorReader(path))
    weight = torch.zeros(64, 64)
    weight[::2] = 1
    save_file({"x": weight}, tmp_path / "x", values="raw")
    data = bytearray((tmp_path / "x").read_bytes())
    with file.open_file(tmp_path / "x") as opened:
        data[opened.get_encoded("x").offsets["bitmap"]] ^= 1
    (tmp_path / "x").write_bytes(data)
    target = {"x": torch.zeros(64, 64)}
    with pytest.raises(CheckpointException, match="'x'") as error:
        dcp.load(target, storage_reader=EndorReader(tmp_path / "x"))
    ((cause, _),) = error.value.failures.values()
    assert isinstance(cause, errors.FormatError)
    assert not EndorReader.validate_checkpoint_id(tmp_path / "nothing")
