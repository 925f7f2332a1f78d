"""Times models whose weights do not fit: tokens per second, bytes for a token, and how much of it is hidden.

    python benchmarks/offload.py cpu -o build/offload.json [--models opt-1.3b]     an hour for all
    python benchmarks/offload.py gpu -o build/offload-gpu.json                     under ten, on a GPU
    python benchmarks/offload_table.py build/offload.json my-machine    into results/offload/, docs/offload.md

Every run is a process of its own. *Cold*: in a control group with too little memory for the model, the page
cache emptied before; pages of files count, so that each token is read again, whoever reads. *Warm*: all is in
the page cache, or in memory. The rate of the disk is measured before every run. Runs take turns, forwards in
one round and backwards in the next; the first round is not counted. Needs root, for the group and the cache.
What the file that is written holds of other models stays in it, so that they can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import offload_models
import torch
from offload_models import MODELS

from pyendor import checkpoint
from pyendor.offload.disk import aligned

HERE = Path(__file__).resolve().parent
GROUP = "pyendor-offload"
DISK = ("accelerate", "accelerate-safetensors", "dense", "raw", "split")
HOST = ("accelerate-cpu", "dense", "raw", "split")
# Memory for a run that must not have the model in memory: Python, PyTorch, the largest buffers, little else.
LIMIT = {"opt-1.3b": 1.5e9, "opt-66b": 6e9, "llama2-70b": 5.5e9, "tiny": 1e9}
TOKENS = {"opt-1.3b": 6, "opt-66b": 3, "llama2-70b": 3, "tiny": 4}
# Layers that are fetched ahead: for all weights what there is room for with dense ones.
AHEAD = {"opt-1.3b": 3, "opt-66b": 1, "llama2-70b": 1, "tiny": 2}


def disk_rate(path: Path, nbytes: int = 1 << 29) -> float:
    """Bytes per second of reading a file past the page cache, as one long read after the other."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer, done = aligned(16 << 20), 0
        buffer[:] = 0
        began = time.perf_counter()
        while done < nbytes:
            count = os.preadv(descriptor, [buffer.data], done)
            if count < buffer.size:
                break
            done += count
        return done / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def drop_caches(root: Path) -> None:
    """Empties the page cache of the machine, or, without the right to do so, of a model's files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in root.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def group(limit: float) -> Iterator[str | None]:
    """A control group of so many bytes, page cache included, of version 1 or 2; None if there can be none."""
    old = Path("/sys/fs/cgroup/memory")
    root, name = (old, "memory.limit_in_bytes") if old.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    place = root / GROUP
    try:
        place.mkdir(exist_ok=True)
        (place / name).write_text(str(int(limit)))
    except OSError:
        yield None
        return
    try:
        yield str(place)
    finally:
        for _ in range(50):
            try:
                place.rmdir()
                break
            except OSError:  # a process is still ending
                time.sleep(0.1)


def worker(job: dict[str, Any]) -> dict[str, Any]:
    """What a run in a process of its own has found."""
    command = [sys.executable, str(HERE / "offload_worker.py"), json.dumps(job)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:], "code": done.returncode}
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return found


def jobs(args: argparse.Namespace, model: str, root: Path) -> list[dict[str, Any]]:
    """All runs of a model."""
    ahead = AHEAD[model] if args.prefetch is None else args.prefetch
    common = {"root": str(root), "model": model, "device": args.device, "prefetch": ahead}
    common["tokens"] = TOKENS[model] * (1 if args.device == "cpu" else 4)
    # Of the large ones what does not fit is of interest.
    states = (args.states or ("cold,warm" if model in {"opt-1.3b", "tiny"} else "cold")).split(",")
    chosen = [(what, "disk", state) for state in states if state != "host" for what in DISK]
    chosen += [(what, "host", "warm") for what in HOST if {"warm", "host"} & set(states)]
    return [
        common | {"what": what, "weights": what, "tier": tier, "state": state}
        for what, tier, state in chosen
        if args.what in {"", what}
    ]


def measure(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """One run, and how fast the disk was before it."""
    dense = root / "dense" / "model.safetensors"
    about = {"disk_rate": disk_rate(dense)}
    drop_caches(root)
    if job["state"] == "cold":
        # With a GPU its driver takes some, too.
        with group(LIMIT[job["model"]] + (0 if job["device"] == "cpu" else 2e9)) as place:
            return job | about | {"limited": place is not None} | worker(job | {"group": place})
    if job["tier"] == "disk":  # into the page cache
        for path in (root / job["weights"]).iterdir():
            with path.open("rb") as stream:
                while stream.read(16 << 20):
                    pass
    return job | about | worker(job)


def layers_nbytes(folder: Path) -> int:
    """Stored bytes of what lies in numbered layers."""
    total = 0
    for opened in checkpoint.open_all(folder):
        tensors = opened.layout.tensors.items()
        total += sum(tensor.stored_nbytes for name, tensor in tensors if ".layers." in name)
    return total


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What it was measured on."""
    import accelerate
    import transformers

    from pyendor import __version__, native

    text = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    about = {
        "cpu_model_name": names[0] if names else platform.machine(),
        "cpu_count": os.cpu_count(),
        "python_version": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "pyendor": __version__,
        "target": native.target(),
        "device": args.device,
        "date": time.strftime("%Y-%m-%d"),
    }
    if args.device != "cpu":
        about["gpu"] = torch.cuda.get_device_name(args.device)
    return about


def earlier(path: Path, about: dict[str, Any], chosen: list[str]) -> dict[str, Any]:
    """What a file holds of other models; none of what was measured elsewhere, or with other versions."""
    found: dict[str, Any] = {"machine": about, "models": {}, "runs": []}
    if path.exists():
        old = json.loads(path.read_text())
        if {**old["machine"], "date": ""} != {**about, "date": ""}:
            raise SystemExit(f"{path} is of another machine, or of other versions: choose another file")
        found["models"] = {name: model for name, model in old["models"].items() if name not in chosen}
        found["runs"] = [run for run in old["runs"] if run["model"] not in chosen]
    return found


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("where", choices=["cpu", "gpu"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", default="")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/offload"), help="where the models are written"
    )
    parser.add_argument("--rounds", type=int, default=0, help="the first of them is not counted")
    parser.add_argument("--states", default="", help="cold, warm, host; several with commas between")
    parser.add_argument(
        "--clean", action="store_true", help="remove each model when it is done: 25 GB at most"
    )
    parser.add_argument("--what", default="", help="only this one")
    parser.add_argument("--prefetch", type=int, help="otherwise 1 for the large models, 3 for OPT-1.3B")
    args = parser.parse_args()
    args.device = "cpu" if args.where == "cpu" else "cuda"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("nothing to measure: PyTorch finds no GPU here")
    if args.where == "gpu":
        # Ten minutes: the largest matrices, one round that counts, and from disk only cold.
        args.models, args.states = args.models or "llama2-70b", "cold,host"
    args.rounds = args.rounds or (4 if args.where == "cpu" else 2)
    chosen = (args.models or "opt-1.3b,opt-66b,llama2-70b").split(",")
    results = earlier(args.output, machine(args), chosen)
    for model in chosen:
        root = offload_models.build(model, args.folder.absolute())
        about = MODELS[model]
        sizes = {
            kind: sum(path.stat().st_size for path in (root / kind).glob("*.safetensors"))
            for kind in offload_models.KINDS
        }
        results["models"][model] = {
            "about": about.about,
            "layers": about.layers,
            "of": about.of,
            "bytes": sizes,
            "layers_bytes": {kind: layers_nbytes(root / kind) for kind in offload_models.KINDS},
        }
        for what in ("accelerate", "accelerate-safetensors"):
            worker({"root": str(root), "prepare": what})
        todo = jobs(args, model, root)
        for turn in range(args.rounds):
            for job in todo if turn % 2 == 0 else todo[::-1]:
                found = measure(job, root) | {"round": turn}
                found.pop("root")
                results["runs"].append(found)
                say(found)
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(results, indent=1) + "\n")
        # Accelerate's copy is as large as the model.
        shutil.rmtree(root if args.clean else root / "accelerate")


def say(found: dict[str, Any]) -> None:
    """A line for who is waiting."""
    name = f"{found['round']} {found['model']} {found['state']} {found['tier']} {found['what']}"
    if "tokens" not in found or not isinstance(found["tokens"], list):
        print(f"{name:52} {found.get('error')}", flush=True)
        return
    seconds = sorted(token["seconds"] for token in found["tokens"])
    middle = seconds[len(seconds) // 2]
    read = found["tokens"][-1]["read"] / 1e9
    rate = f"{1 / middle:7.3f} tokens/s, {read:6.3f} GB from disk"
    print(f"{name:52} {rate}, disk {found['disk_rate'] / 1e9:.2f} GB/s", flush=True)


if __name__ == "__main__":
    main()
