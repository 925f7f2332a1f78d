"""Fuzzes libendor with libFuzzer (needs clang): all targets of this machine, under the sanitizers.

    python native/fuzz/fuzz.py run --seconds 60    each harness for so long; what it finds is left in build/
    python native/fuzz/fuzz.py coverage            of the committed inputs: fails below 95 % of the code
    python native/fuzz/fuzz.py bite                plants faults and sees whether they are found in a minute
    python native/fuzz/fuzz.py keep                adds to the committed inputs those that reach more code

`inputs/` holds what reaches all of the code, and what once failed. `ctest` replays it, with any compiler.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent
BUILD = NATIVE.parent / "build" / "fuzz"
INPUTS = HERE / "inputs"
HARNESSES = ("decode", "encode")
LONGEST = 4096  # bytes of an input
# Without the tracing of comparisons: in loops over elements it takes most of the time, and what to change in
# parts the harnesses know themselves.
SANITIZERS = (
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-sanitize-coverage=trace-cmp",
)
COVERAGE = ("-fsanitize=fuzzer", "-fprofile-instr-generate", "-fcoverage-mapping")
LEAST_COVERAGE = 95.0
SECONDS_TO_BITE = 60


@dataclass(frozen=True)
class Fault:
    """A fault to plant: which harness must find it, and what to replace where."""

    name: str
    harness: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault(
        "the loop reads past the values", "decode", "expand.h", "end - values >= WORD_SIZE", "end > values"
    ),
    Fault(
        "the last values are read as a whole word",
        "decode",
        "scan.h",
        "i + 64 <= count; i += 64) found",
        "i < count; i += 64) found",
    ),
    Fault("the last word is written whole", "decode", "expand.h", "to, elements * SIZE", "to, WORD_SIZE"),
    Fault(
        "the bitmap is read as a whole block",
        "decode",
        "block.c",
        "(count + 7) / 8);\n    if (count % 64",
        "512);\n    if (count % 64",
    ),
    Fault(
        "the index may leave its range", "decode", "block.c", " || taken > (int64_t)last_of(&r->t, row)", ""
    ),
    Fault("the index may fall", "decode", "block.c", "taken < (int64_t)least || ", ""),
    Fault("the bits of a block are not counted", "decode", "block.c", "high - low != s.count", "0"),
    Fault("bits past the end are allowed", "decode", "block.c", "bitmap[at] >> (r->t.numel % 8) != 0", "0"),
    Fault(
        "a slice may end behind the tensor", "decode", "decode.c", " || runs->start > t->numel - count", ""
    ),
    Fault(
        "padding of values is not looked at",
        "decode",
        "block.c",
        "return at < r->parts.values_size ?",
        "return 0 ?",
    ),
    Fault("bits of a group past the end are allowed", "decode", "block.c", "if (found)", "if (0)"),
    Fault(
        "groups past the end are not looked at",
        "decode",
        "block.c",
        "first_nonzero(values, at, size)",
        "size",
    ),
    Fault(
        "a base may be any",
        "decode",
        "block.c",
        "base > (1u << fields->exponent) - (1u << fields->width)",
        "0",
    ),
    Fault("the rank of a patch is not checked", "decode", "split.h", " || rank >= stored", ""),
    Fault("the rank of a patch may come again", "decode", "split.h", "rank < next || ", ""),
    Fault("a patch is written wherever it belongs", "decode", "split.h", "rank - from >= some", "0"),
    Fault("the exponent of a patch is not checked", "decode", "split.h", "exponent >= exponents || ", ""),
    Fault("the code below a patch is not checked", "decode", "split.h", "status = ENDOR_E7;", "if (0)"),
    Fault(
        "one group more is joined",
        "decode",
        "block.c",
        "+ s->some + GROUP - 1) / GROUP",
        "+ s->some + GROUP) / GROUP",
    ),
    Fault("zeros of patches are overlooked", "decode", "block.c", "t->bitmap && p.zeros", "0"),
    Fault(
        "AVX2 makes a sign of the wrong bit",
        "decode",
        "shuffle_split.h",
        "both(EACH(left)(v[i], to_sign), sign)",
        "both(EACH(left)(v[i], to_sign - 1), sign)",
    ),
    Fault(
        "AVX2 overlooks a zero",
        "decode",
        "avx2.c",
        "_mm256_cmpeq_epi16(v, _mm256_setzero_si256())",
        "_mm256_setzero_si256()",
    ),
    Fault(
        "the loop writes past the values", "encode", "compress.h", "end - values >= WORD_SIZE", "end > values"
    ),
    Fault(
        "the room for values is not looked at",
        "encode",
        "compress.h",
        "(size_t)ones * SIZE > (size_t)(end - values)",
        "0",
    ),
    Fault(
        "patches of a range are not counted",
        "encode",
        "encode.c",
        "stored - held > w->range->patch_high - w->patch",
        "0",
    ),
    Fault("a shared group is overwritten", "encode", "encode.c", "at[i] |= made[i]", "at[i] = made[i]"),
    Fault(
        "bits that are not kept are dropped",
        "encode",
        "encode.c",
        "(any & ((UINT32_C(1) << dropped) - 1)) != 0",
        "0",
    ),
    Fault(
        "the window may be the next one",
        "encode",
        "encode.c",
        "while (sums[base] != *held) base++;",
        "while (sums[base] != *held) base++;\n    while (base < 2 && sums[base + 1] == *held) base++;",
    ),
    Fault(
        "AVX-512 counts one lane too few",
        "encode",
        "avx512_words.h",
        "for (unsigned j = 0; j < 64; j += LANES)\n        word",
        "for (unsigned j = LANES; j < 64; j += LANES)\n        word",
    ),
)


def clang() -> str:
    """The compiler: ``CLANG``, or the one that is there."""
    names = [os.environ.get("CLANG", "clang"), *(f"clang-{version}" for version in range(30, 13, -1))]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        sys.exit("no clang: set CLANG, or install it")
    return found


def tool(name: str) -> str:
    """A tool of LLVM, of the same version as the compiler."""
    folder = Path(clang()).resolve().parent
    return str(folder / name) if (folder / name).exists() else name


def build(harness: str, source: Path, name: str, options: tuple[str, ...] = SANITIZERS) -> Path:
    """A harness on the sources in a folder, with the targets of this machine."""
    program = BUILD / name
    program.parent.mkdir(parents=True, exist_ok=True)
    machine = subprocess.run([clang(), "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    target = "-DENDOR_ARM" if "aarch64" in machine else "-DENDOR_X86"
    sources = [str(path) for path in sorted(source.glob("*.c"))]
    command = [clang(), "-std=gnu11", "-g", "-O1", target, f"-I{NATIVE / 'include'}", f"-I{source}"]
    harness_source = str(HERE / f"fuzz_{harness}.c")
    subprocess.run([*command, *options, harness_source, *sources, "-o", str(program)], check=True)
    return program


def fuzz(program: Path, harness: str, corpus: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Runs a harness, from the committed inputs on, until it finds something or time is up."""
    corpus.mkdir(parents=True, exist_ok=True)
    (INPUTS / harness).mkdir(parents=True, exist_ok=True)
    artifacts = f"-artifact_prefix={program.parent}/found-{harness}-"
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=10", artifacts]
    command = [str(program), *options, str(corpus), str(INPUTS / harness)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(seconds: int, only: str) -> int:
    """Fuzzes; 1 if something was found."""
    found = 0
    for harness in [name for name in HARNESSES if only in name]:
        program = build(harness, NATIVE / "src", f"fuzz_{harness}")
        done = fuzz(program, harness, BUILD / "corpus" / harness, seconds)
        runs = re.search(r"Done (\d+) runs", done.stderr)
        if done.returncode:
            print(done.stderr[-4000:])
            found = 1
        print(f"{harness}: {runs[1] if runs else 'stopped after some'} inputs in {seconds} s", flush=True)
    return found


def found(number: int, fault: Fault) -> bool:
    """Plants one fault; whether it is found."""
    source = BUILD / "planted" / str(number)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(NATIVE / "src", source)
    text = (source / fault.file).read_text("utf-8")
    if text.count(fault.old) != 1:
        sys.exit(f"{fault.name}: {fault.file} has the text to replace {text.count(fault.old)} times")
    (source / fault.file).write_text(text.replace(fault.old, fault.new), "utf-8")
    program = build(fault.harness, source, f"planted/{number}/fuzz")
    corpus = source / "corpus"
    corpus.mkdir()
    # Time of its own, which is the same on a machine that is busy; it may take more by the clock.
    options = [f"-max_total_time={5 * SECONDS_TO_BITE}", f"-max_len={LONGEST}", f"-artifact_prefix={source}/"]
    # Names for the addresses in a report that nobody reads take longer than finding the fault.
    quick = {**os.environ, "ASAN_OPTIONS": "symbolize=0", "UBSAN_OPTIONS": "symbolize=0"}
    silent = subprocess.DEVNULL
    fuzzer = subprocess.Popen([str(program), *options, str(corpus)], stdout=silent, stderr=silent, env=quick)
    _, status, usage = os.wait4(fuzzer.pid, 0)
    fuzzer.returncode = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    good = fuzzer.returncode != 0 and seconds <= SECONDS_TO_BITE
    print(f"{fault.name}: {f'found after {seconds:.0f} s' if good else 'MISSED'}", flush=True)
    return good


def bite(only: str) -> int:
    """Plants faults, each in its own copy; 1 if one is not found. Starts without the committed inputs."""
    wanted = [(number, fault) for number, fault in enumerate(FAULTS) if only in fault.name]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(lambda one: found(*one), wanted))
    missed = [fault.name for (_, fault), outcome in zip(wanted, outcomes, strict=True) if not outcome]
    if missed:
        print(f"not found: {', '.join(missed)}")
    return 1 if missed else 0


def coverage() -> int:
    """How much of the code the committed inputs reach; 1 if it is too little."""
    programs = []
    profiles = []
    for harness in HARNESSES:
        program = build(harness, NATIVE / "src", f"coverage_{harness}", COVERAGE)
        profile = BUILD / f"{harness}.profraw"
        command = [str(program), "-runs=0", str(INPUTS / harness)]
        subprocess.run(
            command, env=os.environ | {"LLVM_PROFILE_FILE": str(profile)}, capture_output=True, check=True
        )
        programs.append(program)
        profiles.append(str(profile))
    merged = str(BUILD / "merged.profdata")
    subprocess.run([tool("llvm-profdata"), "merge", "-o", merged, *profiles], check=True)
    command = [tool("llvm-cov"), "report", str(programs[0]), f"-object={programs[1]}"]
    ignore = f"-ignore-filename-regex={HERE}/.*"
    done = subprocess.run(
        [*command, f"-instr-profile={merged}", ignore], capture_output=True, text=True, check=True
    )
    print(done.stdout)
    regions, lines = (
        float(share) for share in re.findall(r"([\d.]+)%", done.stdout.splitlines()[-1])[::2][:2]
    )
    print(f"regions {regions} %, lines {lines} %")
    return 0 if min(regions, lines) >= LEAST_COVERAGE else 1


def keep() -> int:
    """Adds to the committed inputs what reaches more code than they do."""
    for harness in HARNESSES:
        program = build(harness, NATIVE / "src", f"fuzz_{harness}")
        (INPUTS / harness).mkdir(parents=True, exist_ok=True)
        # What code is reached is asked for, not how often: else there would be thousands of them.
        options = ["-merge=1", "-use_counters=0", f"-max_len={LONGEST}"]
        command = [str(program), *options, str(INPUTS / harness)]
        subprocess.run([*command, str(BUILD / "corpus" / harness)], capture_output=True, check=True)
        print(f"{harness}: {len(list((INPUTS / harness).iterdir()))} inputs")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "coverage", "bite", "keep"])
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--only", default="", help="only harnesses or faults with this in their name")
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            return run(arguments.seconds, arguments.only)
        case "bite":
            return bite(arguments.only)
        case "coverage":
            return coverage()
        case _:
            return keep()


if __name__ == "__main__":
    raise SystemExit(main())
