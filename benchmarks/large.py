"""Times commands on a checkpoint of 5 GB, BF16, half of it zero, from the page cache, with pyperf.

    python benchmarks/large.py -o results.json --folder FOLDER

``endor compress``, ``decompress`` and ``verify`` with two jobs beside what copies and sums the same bytes.
``endor`` has what it wrote flushed to the disk before it gives it its name; ``cp`` leaves that to the system.
So a copy is timed with and without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data

SHARDS, TENSORS, SHAPE = 4, 14, (4096, 11008)
NBYTES = SHARDS * TENSORS * SHAPE[0] * SHAPE[1] * 2
JOBS = "2"


def checkpoint(folder: Path) -> Path:
    """The dense checkpoint, written if it is not there."""
    dense = folder / "dense"
    if dense.exists():
        return dense
    import json

    import ml_dtypes
    from safetensors.numpy import save_file

    being_written = folder / "dense.part"
    being_written.mkdir(parents=True, exist_ok=True)
    weights = data.weights(SHAPE[0] * SHAPE[1], 2, 0.5).view(ml_dtypes.bfloat16).reshape(SHAPE)
    files = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        model = {f"layers.{shard}.{number}.weight": weights for number in range(TENSORS)}
        save_file(model, being_written / name)
        files |= dict.fromkeys(model, name)
    index = {"metadata": {"total_size": NBYTES}, "weight_map": files}
    (being_written / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (being_written / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    being_written.rename(dense)
    return dense


def endor(*arguments: object) -> list[str]:
    """The command of this interpreter's package."""
    return [sys.executable, "-m", "pyendor", *map(str, arguments), "--jobs", JOBS]


def bench(loops: int, what: str, folder: str) -> float:
    """Times one command; pyperf calls it in processes of its own."""
    here = Path(folder)
    dense, compressed, scratch = checkpoint(here), here / "endor", here / "scratch"
    if not compressed.exists():
        subprocess.run(endor("compress", dense, compressed), check=True, stdout=subprocess.DEVNULL)
    sums = ["sha256sum", *map(str, sorted(compressed.iterdir()))]
    commands = {
        "cp -r, dense": [["cp", "-r", str(dense), str(scratch)]],
        "cp -r and sync, dense": [["cp", "-r", str(dense), str(scratch)], ["sync", "-f", str(here)]],
        "endor compress": [endor("compress", dense, scratch)],
        "endor decompress": [endor("decompress", compressed, scratch)],
        "endor verify": [endor("verify", compressed)],
        "sha256sum": [sums],
    }
    source = dense if what.endswith(("dense", "compress")) and "decompress" not in what else compressed
    seconds = 0.0
    for _ in range(loops):
        shutil.rmtree(scratch, ignore_errors=True)
        subprocess.run(["cat", *map(str, source.iterdir())], check=True, stdout=subprocess.DEVNULL)
        os.sync()
        start = time.perf_counter()
        for command in commands[what]:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds += time.perf_counter() - start
    shutil.rmtree(scratch, ignore_errors=True)
    return seconds


def main() -> None:
    """Runs all of it."""
    runner = data.runner("folder")
    runner.argparser.set_defaults(values=1, warmups=0, loops=1)
    runner.argparser.add_argument("--folder", default="", help="where the checkpoints are, or are to be")
    args = runner.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or temporary
        for what in (
            "cp -r, dense",
            "cp -r and sync, dense",
            "endor compress",
            "endor decompress",
            "endor verify",
            "sha256sum",
        ):
            facts = {"section": "large", "what": what, "threads": int(JOBS), "nbytes": NBYTES}
            runner.bench_time_func(f"large | {what}", bench, what, args.folder, metadata=facts)


if __name__ == "__main__":
    main()
