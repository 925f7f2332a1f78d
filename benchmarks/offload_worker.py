"""One run of an offloaded model, in a process of its own: its result is a line of JSON. See ``offload.py``.

Tokens are taken one by one, greedily, with a KV cache, and each is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = 8


def ours(root: Path, job: dict[str, Any]) -> tuple[Any, Callable[[], dict[str, float]]]:
    """This project's engine."""
    from pyendor import offload

    host = 0 if job["tier"] == "disk" else None
    options = {"gpu_memory": 0} if job["device"] != "cpu" else {}
    model = offload.offload_model(
        root / job["weights"], device=job["device"], host_memory=host, prefetch=job["prefetch"], **options
    )
    found = offload.summary(model)
    print(found, file=sys.stderr)
    last = [offload.moved(model)]

    def moved() -> dict[str, float]:
        now = offload.moved(model)
        past, last[0] = last[0], now
        since = now.since(past)
        about = {"disk": since.disk, "link": since.link, "fetching": since.fetching, "waiting": since.waiting}
        return about | {"decoding": since.decoding or 0.0}

    model.about_reading = f"{found.read}: {found.reason}"
    model.about_prefetch = found.prefetch
    model.stored = found.tiers["host"].stored + found.tiers["disk"].stored
    return model, moved


def accelerates(root: Path, job: dict[str, Any]) -> tuple[Any, Callable[[], dict[str, float]]]:
    """Hugging Face Accelerate on the dense checkpoint: ``cpu_offload`` or ``disk_offload``."""
    import torch
    import transformers
    from accelerate import cpu_offload, disk_offload, init_empty_weights

    where = torch.device(job["device"])
    if job["tier"] == "host":
        model = transformers.AutoModelForCausalLM.from_pretrained(root / "dense", dtype="auto")
        return cpu_offload(model.eval(), execution_device=where), dict
    config = transformers.AutoConfig.from_pretrained(root / "dense")
    with init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    return disk_offload(model.eval(), root / job["what"], execution_device=where), dict


def prepare(root: Path, what: str) -> None:
    """The folder that Accelerate reads from: its own format, or an index of the safetensors file."""
    from accelerate.utils import offload_state_dict
    from safetensors import safe_open

    folder, dense = root / what, root / "dense" / "model.safetensors"
    if (folder / "index.json").exists():
        return
    folder.mkdir(exist_ok=True)
    with safe_open(dense, "pt") as opened:
        names = {name: name for name in opened.keys()}  # noqa: SIM118  it is no dictionary
        tied = "lm_head.weight"
        if tied not in names:
            names[tied] = "model.decoder.embed_tokens.weight"
        if what == "accelerate":
            items = ((name, opened.get_tensor(stored)) for name, stored in names.items())

            class Lazy(dict[str, Any]):
                def items(self) -> Any:
                    return items

            offload_state_dict(folder, Lazy())
            return
    index = {
        name: {"safetensors_file": str(dense), "weight_name": stored, "dtype": "bfloat16"}
        for name, stored in names.items()
    }
    (folder / "index.json").write_text(json.dumps(index))


def timed_layers(model: Any) -> list[float]:
    """Takes down when the first of the numbered layers begins and when the last ends."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers, marks = max(lists, key=len), []

    def mark(*_: Any) -> None:
        marks.append(time.perf_counter())

    layers[0].register_forward_pre_hook(mark, prepend=True)
    layers[-1].register_forward_hook(mark)
    return marks


def read_bytes() -> int:
    """Bytes that this process has had read from disk, read ahead or not."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Loads a model and times so many tokens."""
    import torch

    root = Path(job["root"])
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    began = time.perf_counter()
    model, moved = (accelerates if job["what"].startswith("accelerate") else ours)(root, job)
    loading = time.perf_counter() - began
    marks = timed_layers(model)
    ids = torch.arange(PROMPT)[None].to(job["device"])
    past, tokens = None, []
    for _ in range(job["tokens"] + 1):
        before, began = read_bytes(), time.perf_counter()
        out = model(input_ids=ids, past_key_values=past, use_cache=True)
        ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
        chosen = int(ids)  # the host has it now
        seconds = time.perf_counter() - began
        start, stop = marks[-2:]
        found = {"seconds": seconds, "layers": stop - start, "read": read_bytes() - before, "token": chosen}
        tokens.append(found | moved())
    names = {"reading": "about_reading", "prefetch": "about_prefetch", "stored": "stored"}
    about = {key: getattr(model, name, None) for key, name in names.items()}
    # The first holds the prompt, and what was being fetched before.
    return {"loading": loading, "first": tokens[0], "tokens": tokens[1:]} | about


def main() -> None:
    """Joins a control group, if there is one, runs, and prints."""
    job = json.loads(sys.argv[1])
    if job.get("group"):
        Path(job["group"], "cgroup.procs").write_text(str(os.getpid()))
    if job.get("prepare"):
        prepare(Path(job["root"]), job["prepare"])
        return
    print(json.dumps(run(job)))


if __name__ == "__main__":
    main()
