"""Plants faults into the CUDA kernels and sees whether the tests on a CPU find them.

    python native/cuda/bite.py [PART OF A NAME]

Each fault is planted into a copy of the sources, which are compiled for the CPU under the sanitizers and
tested as ctest does it (native/tests/test_cuda.c). A test that passes has missed its fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CODEC = ("endor", "encode", "decode", "block", "cpu", "shuffle", "scalar")
HOST = ("host", "driver", "image")
SIMT = ("simt", "driver")
SHARED = ("-std=c++17", "-Wno-unknown-pragmas", "-fPIC")
ROUNDS = "600"


@dataclass(frozen=True)
class Fault:
    """A fault to plant: what to replace where, and how often it is there."""

    name: str
    file: str
    old: str
    new: str
    times: int = 1


FAULTS = (
    Fault(
        "no barrier before staged values are used",
        "kernels.cu",
        "int zero = __syncthreads_or(values.zero);",
        "int zero = values.zero;",
    ),
    Fault(
        "no barrier before joined elements are used",
        "kernels.cu",
        "bool may = base == 0;\n            __syncthreads();",
        "bool may = base == 0;",
    ),
    Fault(
        "no barrier between checking patches and applying them",
        "split.cuh",
        "if (__syncthreads_or(broken)) return false;",
        "",
    ),
    Fault("no barrier before patched elements are used", "kernels.cu", "may = __syncthreads_or(may);", ""),
    Fault(
        "whole 16 bytes are read at the ends of a part",
        "memory.cuh",
        "low >= skew && low - skew + 16 <= size",
        "true",
        2,
    ),
    Fault("the last 16 bytes of a part are read whole", "memory.cuh", "&& low - skew + 16 <= size", "", 2),
    Fault("the bitmap is read as a whole block", "positions.cuh", "if (first >= count) return 0;", ""),
    Fault("the last elements are written as whole 16 bytes", "memory.cuh", "there >= 16 && ", ""),
    Fault("16 bytes are written wherever", "memory.cuh", "there >= 16 && aligned(to, 16)", "there >= 16"),
    Fault("numbers are read wherever", "memory.cuh", "if (aligned(from, sizeof(Number)))", "if (true)"),
    Fault(
        "where staged values begin is forgotten",
        "memory.cuh",
        "staged done = {skew, false}",
        "staged done = {0, false}",
    ),
    Fault("the index may leave its range", "kernels.cu", " && high <= last}", "}"),
    Fault("the index may fall", "kernels.cu", "low <= high && high <= last", "high <= last"),
    Fault("the bits of a block are not counted", "kernels.cu", "job.has_bitmap && all != stored", "false"),
    Fault(
        "bases may be too high",
        "kernels.cu",
        "(base > most || (stored == 0 && base != 0))",
        "(stored == 0 && base != 0)",
    ),
    Fault("stored elements may be zero", "kernels.cu", "if (zero && job.has_bitmap) {", "if (false) {"),
    Fault(
        "zeros among staged values are not seen", "memory.cuh", "done.zero |= zero_in<UNIT>(batch[j]);", ""
    ),
    Fault(
        "ranks of patches may leave the block",
        "split.cuh",
        "one.rank < least || one.rank >= stored",
        "one.rank < least",
    ),
    Fault("ranks of patches may repeat", "split.cuh", ".rank + 1;", ".rank;"),
    Fault(
        "patches may be inside of the window", "split.cuh", " || one.exponent - base < 1u << job.width", ""
    ),
    Fault("elements with patches may have codes", "split.cuh", "exponent != base ? ENDOR_E7 : 0", "0"),
    Fault("patches are not applied", "split.cuh", "(base ^ one.exponent) << job.mantissa", "0"),
    Fault("padding of values is not looked at", "edges.cuh", "job.stored * SIZE, job.values_size", "0, 0"),
    Fault(
        "padding of groups is not looked at",
        "edges.cuh",
        "found | dirty(job.values, last, job.values_size)",
        "found",
    ),
    Fault(
        "the last group may have more elements",
        "edges.cuh",
        "(job.values[last + at] & none_of(at, rows, some)) != 0",
        "false",
    ),
    Fault("a later fault replaces an earlier one", "fault.cuh", "uint64_t word = ~(", "uint64_t word = ("),
    Fault(
        "lanes get the words of others",
        "positions.cuh",
        "place / 32);\n        unsigned rank",
        "place / 64);\n        unsigned rank",
    ),
    Fault(
        "sizes of parts are not looked at",
        "host.c",
        "memcmp(sizes, t->sizes, sizeof sizes) != 0 || ",
        "",
    ),
    Fault(
        "the size of the output is not looked at",
        "host.c",
        "job->out_size != (job->out != NULL ? size : 0) || ",
        "",
    ),
    Fault("buffers may be nowhere", "host.c", "spans[i].start == 0 || ", ""),
    Fault(
        "buffers may pass the end of memory",
        "host.c",
        " || spans[i].size > UINT64_MAX - spans[i].start",
        "",
    ),
    Fault("the output may be in a part", "host.c", "int written = 5;", "int written = 6;"),
    Fault("a status word may be in a part", "host.c", "written < 7;", "written < 6;"),
    Fault("there may be no context", "host.c", "*result = device_of(cuda, jobs, count, &device);", ";"),
    Fault("a device's context is not entered", "host.c", "result = cuda->driver.push(context);", ";"),
    Fault("the caller's context is not put back", "host.c", "cuda->driver.pop(&context) : 0", "0 : 0"),
    Fault(
        "kernels are taken to be loaded",
        "host.c",
        "*result = cuda->driver.find_function(&function, cuda->kernels[i]);",
        "function = NULL;",
    ),
    Fault("too little shared memory", "table.h", "/ 16 * 16 + 32)", "/ 16 * 16)"),
)


def compiled(compiler: str, sources: list[Path], output: Path, *options: str) -> None:
    command = [compiler, *SANITIZERS, *options, f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}"]
    subprocess.run([*command, *map(str, sources), "-o", str(output), "-ldl"], check=True)


def build_test(cuda: Path, output: Path) -> Path:
    """The test, with the host's side from this folder."""
    sources = [NATIVE / "src" / f"{name}.c" for name in CODEC] + [cuda / f"{name}.c" for name in HOST]
    compiled("cc", [*sources, NATIVE / "tests" / "test_cuda.c"], output, "-std=c11", f"-I{cuda}")
    return output


def found(fault: Fault | None, folder: Path, test: Path) -> bool:
    """Whether the test fails with a fault, or without one."""
    shutil.copytree(HERE, folder)
    if fault is not None:
        text = (folder / fault.file).read_text("utf-8")
        if text.count(fault.old) != fault.times:
            sys.exit(f"{fault.name}: {fault.file} has what is to be replaced {text.count(fault.old)} times")
        (folder / fault.file).write_text(text.replace(fault.old, fault.new), "utf-8")
        if fault.file in {"table.h", "host.c"}:  # the host's side, and what it goes by too
            test = build_test(folder, folder / "test_cuda")
    driver = folder / "libsimt.so"
    sources = [folder / "simt" / "kernels.cpp", *(folder.parent / f"{name}.o" for name in SIMT)]
    compiled("c++", sources, driver, *SHARED, "-shared", f"-I{folder}")
    inputs = sorted((NATIVE / "fuzz" / "inputs" / "decode").iterdir())
    done = subprocess.run(
        [str(test), str(driver), ROUNDS, *map(str, inputs)], capture_output=True, check=False, timeout=600
    )
    return done.returncode != 0


def main() -> int:
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    wanted = [None, *(fault for fault in FAULTS if only in fault.name)]
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in SIMT:  # in which nothing is planted
            compiled("c++", [HERE / "simt" / f"{name}.cpp"], root / f"{name}.o", *SHARED, "-c", f"-I{HERE}")
        test = build_test(HERE, root / "test_cuda")

        def bitten(pair: tuple[int, Fault | None]) -> tuple[Fault | None, bool, float]:
            start = time.monotonic()
            return pair[1], found(pair[1], root / str(pair[0]), test), time.monotonic() - start

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for fault, bites, seconds in pool.map(bitten, enumerate(wanted)):
                name = fault.name if fault is not None else "no fault"
                good = bites == (fault is not None)
                missed += [] if good else [name]
                print(
                    f"{name}: {('found' if bites else 'passed') if good else 'WRONG'}, {seconds:.0f} s",
                    flush=True,
                )
    if missed:
        print(f"wrong: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
