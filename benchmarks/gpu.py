"""Times the CUDA decoder beside what memory and link allow, into one JSON file; some minutes on a GPU.

    python benchmarks/gpu.py -o build/cuda.json
    python benchmarks/gpu.py -o x.json --simt build/libendor_simt.so     tries the program, without a GPU

What is timed on the device is a CUDA graph that goes through copies of a tensor in turn, more than the
caches hold, between two events; the median of several. *limit* is a kernel of the same run that reads as
many bytes as the parts have and writes as many as the tensor has, and does nothing with them.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cuda_limit
import data
import numpy as np
import torch

from pyendor import cuda, torch_cuda
from pyendor import numpy as endor_numpy
from pyendor.cuda import Job, Launch, Memory
from pyendor.encoded import EncodedTensor

MIB = 1 << 20
# Matrices of a layer of Llama-2-7B.
LAYER = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)
ONE = ((4096, 4096),)
LARGE = ((11008, 4096),) * 12
SMALL = ((512, 512),)


@dataclass
class Machine:
    """Where it runs, and how large things are there."""

    device: torch.device
    real: bool
    repeats: int = 15
    ring: int = 1 << 30  # bytes that the copies of a tensor have together
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, section: str, **facts: Any) -> None:
        self.rows.append({"section": section} | facts)
        print(json.dumps(self.rows[-1]), flush=True)

    def seconds(self, work: Callable[[int], None], copies: int) -> float:
        """The median of what `work(i)`, for one of the copies, takes on the device."""
        if not self.real:
            start = time.perf_counter()
            work(0)
            return time.perf_counter() - start
        for i in range(copies):
            work(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(copies):
                work(i)
        found = []
        for _ in range(self.repeats + 2):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            found.append(start.elapsed_time(stop) / 1000 / copies)
        return statistics.median(found[2:])

    def wall(self, work: Callable[[], object]) -> float:
        """The median of what takes part of the host's time too."""
        found = []
        for _ in range(5 if self.real else 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:] or found)

    def wait(self) -> None:
        if self.real:
            torch.cuda.synchronize()

    def stream(self) -> int:
        """The current one."""
        return int(torch.cuda.current_stream(self.device).cuda_stream) if self.real else 0

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, device=self.device)


@dataclass(frozen=True)
class Case:
    """Tensors that are decoded in one launch."""

    dtype: str
    itemsize: int
    encoding: str
    density: float
    shapes: tuple[tuple[int, int], ...]
    size: str

    def facts(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "encoding": self.encoding,
            "density": self.density,
            "size": self.size,
            "tensors": len(self.shapes),
        }


def cases(real: bool) -> Iterator[Case]:
    """What is claimed first, then by dtype, density and size."""
    sizes = {"layer": LAYER, "4096 x 4096": ONE, "large": LARGE, "512 x 512": SMALL}
    if not real:
        tiny = (((64, 96),) * 7, ((128, 64),), ((96, 64),) * 3, ((70, 9),))
        sizes = dict(zip(sizes, tiny, strict=True))
    for size, shapes in sizes.items():
        for encoding in ("bitmap/raw", "bitmap/split"):
            yield Case("BF16", 2, encoding, 0.5, shapes, size)
    layer = sizes["layer"]
    yield Case("BF16", 2, "all/split", 1.0, layer, "layer")
    for density in (0.1, 0.3, 0.7, 0.9):
        for encoding in ("bitmap/raw", "bitmap/split"):
            yield Case("BF16", 2, encoding, density, layer, "layer")
    for dtype, itemsize in (("F8_E4M3", 1), ("F32", 4)):
        for encoding in ("bitmap/raw", "bitmap/split"):
            yield Case(dtype, itemsize, encoding, 0.5, layer, "layer")
    yield Case("F64", 8, "bitmap/raw", 0.5, layer, "layer")


class Sample:
    """The tensors of a case, encoded: in host memory, and as often as wanted on the device."""

    def __init__(self, case: Case) -> None:
        self.case = case
        made: dict[tuple[int, int], EncodedTensor] = {}
        self.dense: dict[tuple[int, int], np.ndarray] = {}
        for shape in dict.fromkeys(case.shapes):
            self.dense[shape] = data.weights(math.prod(shape), case.itemsize, case.density)
            made[shape] = data.encode(self.dense[shape], case.itemsize, shape, case.encoding)
        self.tensors = [made[shape] for shape in case.shapes]
        self.encoded_nbytes = sum(one.nbytes for one in self.tensors)
        self.dense_nbytes = sum(one.dense_nbytes for one in self.tensors)

    def packed(self) -> np.ndarray:
        return np.concatenate([part for one in self.tensors for part in one.parts.values()])

    def copies(self, machine: Machine) -> int:
        """So many are more than the caches hold."""
        return (
            max(2, min(64, machine.ring // (self.encoded_nbytes + self.dense_nbytes))) if machine.real else 1
        )

    def launches(self, machine: Machine, copies: int) -> tuple[list[Launch], list[torch.Tensor]]:
        """A launch for each copy, and the memory: all dense outputs, then all parts."""
        source = torch.from_numpy(self.packed()).to(machine.device)
        words = torch.zeros(1, dtype=torch.int64, device=machine.device)
        outs, sources, launches = [], [], []
        for i in range(copies):
            encoded = source if i == 0 else source.clone()
            out = machine.empty(self.dense_nbytes)
            jobs, at, to = [], encoded.data_ptr(), out.data_ptr()
            for one in self.tensors:
                parts = cuda.packed(one.meta, Memory(at, one.nbytes))
                jobs.append(Job(one.meta, parts, Memory(to, one.dense_nbytes), words.data_ptr()))
                at += one.nbytes
                to += one.dense_nbytes
            launches.append(Launch(jobs))
            launches[-1](machine.stream())
            outs.append(out)
            sources.append(encoded)
        machine.wait()
        cuda.check(int(words))
        expected = np.concatenate([self.dense[shape] for shape in self.case.shapes])
        assert all(np.array_equal(out.cpu().numpy(), expected) for out in (outs[0], outs[-1]))
        return launches, outs + sources


def decoding(machine: Machine, limit: cuda_limit.Limit) -> None:
    """Decoding beside the limit, and for the sizes that are claimed beside torch's own way."""
    for case in cases(machine.real):
        sample = Sample(case)
        copies = sample.copies(machine)
        launches, memory = sample.launches(machine, copies)
        seconds = machine.seconds(functools.partial(_launch, machine, launches), copies)
        facts = case.facts() | {"dense_nbytes": sample.dense_nbytes, "encoded_nbytes": sample.encoded_nbytes}
        facts |= {"bits": 8 * case.itemsize * sample.encoded_nbytes / sample.dense_nbytes}
        allowed = None
        if limit.here():
            outs, sources = memory[:copies], memory[copies:]
            ways = [
                machine.seconds(functools.partial(_move, machine, limit, sources, outs, tile), copies)
                for tile in (8 << 10, 32 << 10, 128 << 10)
            ]
            allowed = min(ways)
        machine.add("decode", what="decode", seconds=seconds, limit_seconds=allowed, **facts)
        del launches, memory
        if case.size in {"4096 x 4096", "layer"} and case.encoding == "bitmap/raw" and case.density == 0.5:
            masked_scatter(machine, sample)
        if case.size == "layer" and case.dtype == "BF16" and case.density == 0.5:
            link(machine, sample)
        gc.collect()
        if machine.real:
            torch.cuda.empty_cache()


def _launch(machine: Machine, launches: list[Launch], i: int) -> None:
    launches[i](machine.stream())


def _move(
    machine: Machine,
    limit: cuda_limit.Limit,
    sources: list[torch.Tensor],
    outs: list[torch.Tensor],
    tile: int,
    i: int,
) -> None:
    limit.run(sources[i], outs[i], tile, machine.stream())


def masked_scatter(machine: Machine, sample: Sample) -> None:
    """What PyTorch has for it: a mask of one byte per element, unpacked already, and the values."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[sample.case.itemsize]
    whole = np.concatenate([sample.dense[shape] for shape in sample.case.shapes])
    dense = torch.from_numpy(whole).view(kind).to(machine.device)
    mask, out = dense != 0, torch.zeros_like(dense)
    values = dense[mask]
    # On the host's clock: it may wait for the device, so that no graph can hold it.
    seconds = machine.wall(lambda: out.masked_scatter_(mask, values))
    assert torch.equal(out, dense)
    facts = sample.case.facts() | {"dense_nbytes": sample.dense_nbytes}
    machine.add("decode", what="masked_scatter", seconds=seconds, **facts)


def link(machine: Machine, sample: Sample) -> None:
    """A layer from host memory: dense, and encoded with decoding behind the copy."""
    facts = sample.case.facts() | {
        "dense_nbytes": sample.dense_nbytes,
        "encoded_nbytes": sample.encoded_nbytes,
    }
    whole = torch.from_numpy(np.concatenate([sample.dense[shape] for shape in sample.case.shapes]))
    packed = torch.from_numpy(sample.packed())
    out, there = machine.empty(sample.dense_nbytes), machine.empty(sample.encoded_nbytes)
    jobs, at, to = [], there.data_ptr(), out.data_ptr()
    for one in sample.tensors:
        parts = cuda.packed(one.meta, Memory(at, one.nbytes))
        jobs.append(Job(one.meta, parts, Memory(to, one.dense_nbytes)))
        at += one.nbytes
        to += one.dense_nbytes
    launch = Launch(jobs)

    def encoded(source: torch.Tensor) -> None:
        there.copy_(source, non_blocking=True)
        launch(machine.stream())

    for memory in ("pinned", "pageable"):
        pinned = memory == "pinned" and machine.real
        source, smaller = (one.pin_memory() if pinned else one for one in (whole, packed))
        ways = {
            "dense": functools.partial(out.copy_, source, non_blocking=True),
            "endor": functools.partial(encoded, smaller),
        }
        for what, work in ways.items():
            machine.add("link", what=what, memory=memory, seconds=machine.wall(work), **facts)


def loading(machine: Machine) -> None:
    """`load_file` of a model from the page cache: the same weights dense, raw and split, in turn."""
    import safetensors.torch

    import pyendor.torch

    shape, count = ((4096, 4096), 64) if machine.real else ((64, 64), 3)
    with tempfile.TemporaryDirectory() as folder:
        import ml_dtypes

        weights = data.weights(math.prod(shape), 2, 0.5).view(ml_dtypes.bfloat16).reshape(shape)
        model = {f"layers.{i}.weight": weights for i in range(count)}
        paths = {what: Path(folder) / what for what in ("dense", "raw", "split")}
        endor_numpy.save_file(model, paths["dense"], min_saving=1.0)
        endor_numpy.save_file(model, paths["raw"], values="raw")
        endor_numpy.save_file(model, paths["split"])
        del model
        where = str(machine.device)
        ways: dict[str, Callable[[], object]] = {
            "safetensors, dense": lambda: safetensors.torch.load_file(paths["dense"], device=where),
            "pyendor, dense": lambda: pyendor.torch.load_file(paths["dense"], device=where),
            "pyendor, raw": lambda: pyendor.torch.load_file(paths["raw"], device=where),
            "pyendor, split": lambda: pyendor.torch.load_file(paths["split"], device=where),
        }
        found: dict[str, list[float]] = {what: [] for what in ways}
        for turn in range(6 if machine.real else 1):
            for what in list(ways)[:: 1 if turn % 2 else -1]:
                gc.collect()
                machine.wait()
                start = time.perf_counter()
                loaded = ways[what]()
                machine.wait()
                found[what].append(time.perf_counter() - start)
                del loaded
        nbytes = count * math.prod(shape) * 2
        for what, times in found.items():
            size = paths[what.split(", ")[1]].stat().st_size
            facts = {"dense_nbytes": nbytes, "file_nbytes": size}
            machine.add("load_file", what=what, seconds=statistics.median(times[1:] or times), **facts)


def nvcomp(machine: Machine) -> None:
    """A matrix in formats of nvCOMP, if its Python package is here."""
    try:
        from nvidia import nvcomp as library
    except ImportError:
        machine.add("nvcomp", what="nvcomp", skipped="the package nvidia-nvcomp is not here")
        return
    dense = data.weights(4096 * 4096, 2, 0.5)
    array = library.as_array(torch.from_numpy(dense).to(machine.device))
    for algorithm in ("LZ4", "Snappy", "GDeflate", "Zstd", "ANS", "Bitcomp", "Cascaded"):
        try:
            codec = library.Codec(algorithm=algorithm)
            encoded = codec.encode(array)
            seconds = machine.wall(lambda codec=codec, encoded=encoded: codec.decode(encoded))
        except Exception as error:
            machine.add("nvcomp", what=algorithm, skipped=str(error)[:200])
            continue
        sizes = {"dense_nbytes": dense.size, "encoded_nbytes": int(encoded.buffer_size)}
        machine.add(
            "nvcomp", what=algorithm, dtype="BF16", density=0.5, size="4096 x 4096", seconds=seconds, **sizes
        )


def about(machine: Machine) -> dict[str, Any]:
    """The device, and what it runs with; nothing of whose it is."""
    found = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels_nbytes": cuda.kernels_nbytes(),
    }
    if not machine.real:
        return found | {"device": "none: lanes one by one on a CPU, no measurement"}
    properties = torch.cuda.get_device_properties(machine.device)
    return found | {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_nbytes": properties.total_memory,
        "cpus": os.cpu_count(),
    }


def copy_bandwidth(machine: Machine) -> None:
    """A copy from device memory to device memory, bytes read and written counted."""
    size = 512 * MIB if machine.real else 4096
    one, other = machine.empty(size), machine.empty(size)
    seconds = machine.seconds(lambda _: other.copy_(one), 1)
    machine.add("copy", what="copy", nbytes=size, seconds=seconds, bytes_per_second=2 * size / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--simt", help="a library in place of the driver's, to try this program without a GPU"
    )
    arguments = parser.parse_args()
    if arguments.simt:
        os.environ[cuda.DRIVER] = str(Path(arguments.simt).resolve())
        torch_cuda.DEVICE = "cpu"
    why = cuda.unavailable()
    if why is not None:
        raise SystemExit(f"nothing to measure: {why}")
    machine = Machine(torch.device(torch_cuda.DEVICE), real=not arguments.simt)
    if machine.real:
        torch.cuda.init()
        torch.empty(1, device=machine.device)
        cuda.load()
    start = time.monotonic()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    limit = cuda_limit.Limit(machine.real)
    for section in (copy_bandwidth, lambda machine: decoding(machine, limit), loading, nvcomp):
        if section is nvcomp and not machine.real:
            continue
        section(machine)
        # After each: what has been measured stays if time runs out.
        result = {"about": about(machine), "rows": machine.rows, "minutes": (time.monotonic() - start) / 60}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
