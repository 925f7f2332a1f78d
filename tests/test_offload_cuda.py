"""Offloading on a GPU: run by `make gpu-offload`, skipped elsewhere. All else is tested without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_offload import NEW, Case, make  # noqa: E402  needs torch

from pyendor import cuda, offload  # noqa: E402
from pyendor.errors import UsageError  # noqa: E402
from pyendor.offload import offload_model  # noqa: E402

WHY = cuda.unavailable() or (None if torch.cuda.is_available() else "PyTorch finds no GPU")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(WHY is not None, reason=str(WHY))]


@pytest.fixture(scope="module", params=["opt", "llama", "tied", "moe"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(request.param, tmp_path_factory.mktemp(request.param))


def say(model: Any, ids: Any) -> tuple[Any, Any]:
    with torch.no_grad():
        logits = model(ids).logits
        return logits, model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)


@pytest.mark.parametrize("weights", ["dense", "raw", "split"])
@pytest.mark.parametrize("memory", [(0, 0), (60_000, 60_000), ("1GB", 0), (0, "1GB")])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_what_the_dense_model_says(case: Case, weights: str, memory: tuple[Any, Any], prefetch: int) -> None:
    ids = case.ids.cuda()
    reference = transformers.AutoModelForCausalLM.from_pretrained(case.dense, dtype="auto").eval().cuda()
    want = say(reference, ids)
    gpu, host = memory
    model = offload_model(
        getattr(case, weights), device="cuda", gpu_memory=gpu, host_memory=host, prefetch=prefetch
    )
    for _ in range(3):
        for mine, theirs in zip(say(model, ids), want, strict=True):
            assert torch.equal(mine, theirs)
    offload.close(model)


def test_memory_is_given_back(tmp_path: Path) -> None:
    case = make("llama", tmp_path)
    ids = case.ids.cuda()
    for turn in range(4):
        model = offload_model(case.split, device="cuda", gpu_memory=0, host_memory="1GB")
        say(model, ids)
        offload.close(model)
        del model
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_allocated()
        if turn == 0:
            first = taken
        assert taken <= first


def test_too_little_memory(tmp_path: Path) -> None:
    case = make("llama", tmp_path)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-7)
    try:
        with pytest.raises(UsageError, match=r"not to be had.* prefetch= needs less"):
            offload_model(case.split, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
