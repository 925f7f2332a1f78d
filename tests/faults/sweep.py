"""A fault at one file-system call after the other: no destination is lost, and the same command completes.

``compress``, ``decompress`` and ``prune`` are run on directories and single files, with and without
``--force``, where directories can be exchanged and where they cannot, where files can be locked and where
they cannot. Each run has one fault, at its N-th call of libc that reaches the file system:

    EIO, ENOSPC     the call fails, once
    EIO+            that call and all that follow fail
    SIGINT          Ctrl-C comes during the call
    SIGINT+         and again during all that follow
    SIGKILL         the process ends before the call

Afterwards the destination has to be the old or the new one, complete (or, where directories cannot be
exchanged, the old one has to be complete in the working directory); the source has to be as it was; the exit
status must not be 0 unless the new destination is complete and nothing is left beside it. Then the same
command, without a fault, has to give the exact result and leave nothing beside it.

    python tests/faults/sweep.py              a sample: every call that renames, links, removes, flushes or
                                              opens for writing, and of the others one in 100
    python tests/faults/sweep.py --every 1    all calls
    python tests/faults/sweep.py --strace     shows that strace sees the same calls, and that the same holds
                                              for faults that strace makes

Python is started once; each run is a fork of that process. A preloaded library, ``faults.c``, counts the
calls and makes the faults. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOGGED = 65536
# The letters that faults.c gives to calls. Those that change names or what is on disk are never left out.
ALWAYS = {"O": "open for writing", "r": "rename", "x": "renameat2", "u": "unlink, rmdir", "f": "fsync"}
ALWAYS |= {"l": "link"}
OTHERS = {"m": "mkdir", "h": "chmod", "k": "flock", "z": "truncate"}
OTHERS |= {"o": "open", "R": "read", "w": "write", "c": "close", "s": "stat", "e": "opendir", "d": "readdir"}
OTHERS |= {"j": "lseek", "a": "access", "y": "readlink", "t": "utimens", "g": "getcwd", "p": "mmap"}
OTHERS |= {"n": "fcntl", "v": "ioctl"}
NAMES = ALWAYS | OTHERS
SYSTEM_CALLS = {"rename": "r", "renameat2": "x", "unlink": "u", "unlinkat": "u", "rmdir": "u", "fsync": "f"}
SYSTEM_CALLS |= {"link": "l", "mkdir": "m", "chmod": "h", "fchmod": "h", "flock": "k", "ftruncate": "z"}
SYSTEM_CALLS |= {"write": "w", "read": "R", "pread64": "R", "preadv2": "R", "utimensat": "t"}
SEEN = {*SYSTEM_CALLS.values(), "o", "O"}
# Where strace makes faults, in a whole process each: at each of these calls.
# Where strace makes faults, at each of these calls in turn; each in a whole process, which takes long.
STRACED = [
    ("compress model --force without renameat2", "rename", "SIGKILL"),
    ("compress model --force without renameat2", "rename", "EIO"),
    ("prune model --force without renameat2", "rename", "SIGINT"),
    ("decompress endor --force", "renameat2", "SIGKILL"),
    ("compress a.safetensors --force", "rename", "SIGKILL"),
    ("compress a.safetensors", "renameat2", "EIO"),
]
PR_SET_PTRACER = 0x59616D61  # where Yama lets only parents trace
NONE, ERROR, ERRORS, INTERRUPT, INTERRUPTS, KILL = range(6)
EIO, ENOSPC = 5, 28
FAULTS = {
    "EIO": (ERROR, EIO),
    "ENOSPC": (ERROR, ENOSPC),
    "EIO+": (ERRORS, EIO),
    "SIGINT": (INTERRUPT, 0),
    "SIGINT+": (INTERRUPTS, 0),
    "SIGKILL": (KILL, 0),
}
NEVER = -1

Tree = dict[str, tuple[int, bytes]]


class Shared(ctypes.Structure):
    """What faults.c shares with this process."""

    _fields_ = (
        ("count", ctypes.c_int),
        ("when", ctypes.c_int),
        ("what", ctypes.c_int),
        ("code", ctypes.c_int),
        ("exchange", ctypes.c_int),
        ("locks", ctypes.c_int),
        ("flush", ctypes.c_int),
        ("names", ctypes.c_ubyte * LOGGED),
    )


@dataclass(frozen=True)
class Scenario:
    """A command, and what it runs on.

    Attributes:
        command: of ``endor``.
        source: what it reads.
        old: what is at the destination before; None: nothing.
        force: replace it.
        exchange: renameat2 is there.
        locks: flock is there.
        resumed: an interrupted run has left a finished shard.
    """

    command: str
    source: str
    old: str | None = None
    force: bool = False
    exchange: bool = True
    locks: bool = True
    resumed: bool = False

    def __str__(self) -> str:
        parts = [self.command, self.source]
        parts += ["--force"] * self.force + ["resumed"] * self.resumed
        parts += ["without renameat2"] * (not self.exchange) + ["without locks"] * (not self.locks)
        return " ".join(parts)

    @property
    def arguments(self) -> list[str]:
        options = ["--jobs", "1"] * (self.command != "prune" and not self.source.endswith(".safetensors"))
        return [self.command, f"../{self.source}", "x", *options, *["--force"] * self.force]


def scenarios() -> Iterator[Scenario]:
    """All of them."""
    for command, source in (("compress", "model"), ("decompress", "endor"), ("prune", "model")):
        yield Scenario(command, source)
        yield Scenario(command, source, "old", force=True)
        yield Scenario(command, source, "old", force=True, exchange=False)
        yield Scenario(command, source, "old", force=True, exchange=False, locks=False)
    yield Scenario("compress", "model", resumed=True)
    yield Scenario("compress", "model", "old", force=True, exchange=False, resumed=True)
    for command, source in (("compress", "a"), ("decompress", "b"), ("prune", "a")):
        name = f"{source}.safetensors"
        yield Scenario(command, name)
        yield Scenario(command, name, exchange=False)
        yield Scenario(command, name, "old.safetensors", force=True)
    yield Scenario("compress", "a.safetensors", exchange=False, locks=False)


def tree(path: Path) -> Tree | None:
    """Modes and bytes of a file, or of a directory and all below it; None if there is nothing."""
    if not os.path.lexists(path):
        return None
    paths = [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]
    return {
        str(one.relative_to(path)): (one.lstat().st_mode, b"" if one.is_dir() else one.read_bytes())
        for one in paths
    }


class Sweep:
    """Runs with faults, in a directory of its own.

    Args:
        root: the directory.
        library: faults.c, built, which has been preloaded.
    """

    def __init__(self, root: Path, library: Path) -> None:
        self.root = root
        self.place = root / "place"
        self.shared = Shared.from_buffer(mmap.mmap(-1, ctypes.sizeof(Shared)))
        self.library = ctypes.CDLL(str(library))
        self.failures: list[str] = []
        make(root, self.run)
        self.sources = self._sources()

    def run(self, scenario: Scenario, when: int = NEVER, fault: str = "EIO") -> tuple[int, str]:
        """Runs the command in a fork.

        Returns:
            Its exit status, negative for a signal, and what it printed to stderr.
        """
        shared = self.shared
        shared.count, shared.when = 0, when
        shared.what, shared.code = FAULTS[fault] if when != NEVER else (NONE, 0)
        shared.exchange, shared.locks = scenario.exchange, scenario.locks
        shown = self.root / "stderr"
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.chdir(self.place)
                with open(shown, "wb") as stream:
                    os.dup2(stream.fileno(), 1)
                    os.dup2(stream.fileno(), 2)
                code = self._command(scenario.arguments)
            finally:
                os._exit(code)
        deadline = time.monotonic() + 60
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return -999, "it hangs"
            time.sleep(0.0005)
        return os.waitstatus_to_exitcode(status), shown.read_text(errors="replace")

    def _command(self, arguments: list[str]) -> int:
        """The command, as the interpreter runs it."""
        from pyendor import cli

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["endor", *arguments]
        code: int | str | None = 0
        try:
            try:
                self.library.faults_arm(ctypes.byref(self.shared))
                cli.main()
            finally:
                self.library.faults_arm(None)
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        return code if isinstance(code, int) else 0 if code is None else 1

    def prepare(self, scenario: Scenario) -> None:
        """Makes the directory in which the destination is, as it is before."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.root / ("half" if scenario.resumed else "empty"), self.place)
        if scenario.old is not None:
            old = self.root / scenario.old
            (shutil.copytree if old.is_dir() else shutil.copy2)(old, self.place / "x")

    def calls(self, scenario: Scenario) -> str:
        """The calls of a run without a fault, a letter each; it has to succeed."""
        self.prepare(scenario)
        code, shown = self.run(scenario)
        assert code == 0, shown
        return bytes(self.shared.names[: self.shared.count]).decode()

    def expected(self, scenario: Scenario) -> tuple[Tree | None, Tree]:
        """The old destination and the new one; both of this scenario, as their modes depend on each other."""
        self.prepare(scenario)
        old = tree(self.place / "x")
        code, shown = self.run(scenario)
        assert code == 0, shown
        assert os.listdir(self.place) == ["x"]
        new = tree(self.place / "x")
        assert new is not None
        return old, new

    def check(self, scenario: Scenario, when: int, fault: str, old: Tree | None, new: Tree) -> bool:
        """Makes a fault, and looks at what has become of everything; False if the call did not come."""
        self.prepare(scenario)
        code, shown = self.run(scenario, when, fault)
        count = self.shared.count
        if count <= when:
            return False
        name = NAMES[chr(self.shared.names[when])]

        def wrong(what: str) -> None:
            self.failures.append(f"{scenario}: {fault} at call {when} of {count} ({name}): {what}\n{shown}")

        self.judge(scenario, code, shown, fault, old, new, wrong)
        return True

    def judge(
        self,
        scenario: Scenario,
        code: int,
        shown: str,
        fault: str,
        old: Tree | None,
        new: Tree,
        wrong: Callable[[str], None],
    ) -> None:
        """Checks what a run with a fault has left, and that the same command completes."""
        found, left = tree(self.place / "x"), self.left()
        lost = found not in (old, new)
        if lost and found is None and old is not None:
            aside = tree(self.place / ".x.endor-work" / "old")
            lost = aside != old or scenario.exchange
            told = "could not be moved back" in shown
            if not lost and not told and fault not in {"SIGKILL", "SIGINT+"}:  # which interrupts that, too
                wrong("the message does not say where the old destination is")
        if lost:
            wrong(f"the destination is neither the old nor the new one: {sorted(found or ())}")
        if fault == "SIGKILL" and code != -signal.SIGKILL:
            wrong(f"status {code}")
        if code == 0 and (found != new or left):
            wrong(f"status 0, but the destination is not complete, or {left} is left")
        if code < 0 and code != -signal.SIGKILL:
            wrong(f"status {code}")
        # Python itself tells of an interrupt that comes while it closes a generator; the next one is raised.
        if "Traceback" in shown and not (fault == "SIGINT+" and "Exception ignored in" in shown):
            wrong("a traceback")
        if self._sources() != self.sources:
            wrong("the source was changed")
        if code == 0:
            return
        self._again(scenario, found == new and found != old, new, wrong)

    def _again(self, scenario: Scenario, done: bool, new: Tree, wrong: Callable[[str], None]) -> None:
        """Checks that the same command completes."""
        code, shown = self.run(scenario)
        if done and not scenario.force:
            if code != 2 or "exists" not in shown:
                wrong(f"again: status {code}, not that the destination exists: {shown}")
        elif code != 0:
            wrong(f"again: status {code}: {shown}")
        if tree(self.place / "x") != new:
            wrong("again: another result")
        left = self.left()
        if not scenario.locks:  # nobody can know that nobody works there
            left = [name for name in left if not re.fullmatch(r"\.x\.[0-9a-f]{16}\.endor-tmp", name)]
        if left:
            wrong(f"again: {left} is left")

    def seen(self, scenario: Scenario) -> tuple[Counter[str], Counter[str]]:
        """The calls of a run as faults.c counts them, and as strace does: those that change or read files."""
        self.prepare(scenario)
        self.shared.flush = 1
        log = self.root / "strace"
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", "signal=none", "-o", log, "-p", str(os.getpid())],
            env=os.environ | {"LD_PRELOAD": ""},
        )
        while not re.search(r"TracerPid:\s*[1-9]", Path("/proc/self/status").read_text()):
            assert tracer.poll() is None, "strace cannot attach"
            time.sleep(0.01)
        code, shown = self.run(scenario)
        tracer.terminate()
        tracer.wait()
        assert code == 0, shown
        lines = log.read_text().splitlines()
        first = next(place for place, line in enumerate(lines) if "/faults armed" in line)
        last = next(place for place, line in enumerate(lines) if "/faults disarmed" in line)
        ours = {lines[first].split()[0]}
        counted: Counter[str] = Counter()
        for line in lines[first:last]:
            process, call = line.split(maxsplit=1)
            made = re.match(r"clone3?\(.* = (\d+)|<\.\.\. clone3? resumed>.* = (\d+)", call)
            if made and process in ours:
                ours.add(made[1] or made[2])
            elif process in ours and (letter := letter_of(call)) is not None:
                counted[letter] += 1
        names = bytes(self.shared.names[: self.shared.count]).decode()
        return Counter(name for name in names if name in SEEN), counted

    def check_with_strace(self, scenario: Scenario, call: str, when: int, fault: str) -> bool:
        """Makes strace fire a fault in a run of its own; False if the call did not come."""
        old, new = self.expected(scenario)
        self.prepare(scenario)
        how = {"SIGKILL": "signal=SIGKILL", "SIGINT": "signal=SIGINT"}.get(fault, f"error={fault}")
        command = ["strace", "-f", "-qq", "-e", f"trace={call},renameat2", "-o", str(self.root / "strace")]
        command += ["-e", f"inject={call}:{how}:when={when}"]
        if not scenario.exchange:
            command += ["-e", "inject=renameat2:error=EINVAL"]
        run = subprocess.run(
            [*command, sys.executable, "-m", "pyendor", *scenario.arguments],
            cwd=self.place,
            env=os.environ | {"LD_PRELOAD": ""},
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        log = (self.root / "strace").read_text()
        if not scenario.exchange:
            assert re.search(r"EINVAL.*\(INJECTED\)", log) or "RENAME_" not in log, log
        if not re.search(rf"\b{call}\(.*{fault} .*\(INJECTED\)|--- SIGINT|killed by SIGKILL", log):
            return False

        def wrong(what: str) -> None:
            self.failures.append(f"{scenario}: strace, {fault} at {call} {when}: {what}\n{run.stderr}")

        self.judge(scenario, run.returncode, run.stderr, fault, old, new, wrong)
        return True

    def left(self) -> list[str]:
        """What is beside the destination."""
        return sorted(name for name in os.listdir(self.place) if name != "x")

    def _sources(self) -> list[Tree | None]:
        return [tree(self.root / name) for name in ("model", "endor", "a.safetensors", "b.safetensors")]


def make(root: Path, run: Callable[[Scenario], tuple[int, str]]) -> None:
    """Makes small sources, and what is at destinations before; with this all modules are imported."""
    import numpy as np
    from rich import cells

    from pyendor import cli, writer

    rng = np.random.default_rng(11)

    def save(path: Path, name: str, count: int = 2048) -> None:
        words = rng.integers(0x3C00, 0x3D00, count).astype(np.uint16)
        words[rng.random(count) < 0.6] = 0
        data = words.view(np.uint8)
        source = writer.TensorSource(name, "BF16", (32, count // 32), data.size, lambda: data)
        with open(path, "wb") as stream:
            writer.write_dense(stream, [source], {"format": "pt"})

    for name in ("model", "empty", "half", "place"):
        (root / name).mkdir()
    model = root / "model"
    weight_map = {}
    for number in (1, 2):
        shard, tensor = f"model-{number:05}-of-00002.safetensors", f"model.layers.{number}.mlp.weight"
        save(model / shard, tensor)
        weight_map[tensor] = shard
    index = json.dumps({"metadata": {"total_size": 8192}, "weight_map": weight_map})
    (model / "model.safetensors.index.json").write_text(index)
    (model / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    (model / "inner").mkdir(0o750)
    (model / "inner" / "notes.txt").write_text("notes")
    (model / "inner" / "notes.txt").chmod(0o600)
    save(root / "a.safetensors", "model.layers.0.mlp.weight")
    shutil.copytree(model, root / "old")
    save(root / "old" / "model-00001-of-00002.safetensors", "model.layers.1.mlp.weight")
    (root / "old" / "precious.txt").write_text("the only copy")
    save(root / "old.safetensors", "model.layers.0.mlp.weight")
    for source, target in (("model", "endor"), ("a.safetensors", "b.safetensors")):
        code, shown = run(Scenario("compress", source))
        assert code == 0, shown
        (root / "place" / "x").rename(root / target)
    _half(root)
    # Modules that only errors and results need, or some characters of these.
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        cli.app(["compress", "../a.safetensors"])  # without a destination
    cells.cell_len("→")
    _fail_here(root, ["compress", "../missing", "x"])


def _half(root: Path) -> None:
    """Leaves what an interrupted run leaves that had finished its first shard."""
    from pyendor import cli, convert, shards

    real, calls = shards.Shard.run, 0

    def run(shard: shards.Shard, progress: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(ENOSPC, "No space left on device")
        return real(shard, progress)

    assert cli.convert is convert
    shards.Shard.run = run  # type: ignore[method-assign]
    _fail_here(root, Scenario("compress", "model").arguments)
    shards.Shard.run = real  # type: ignore[method-assign]
    (root / "half").rmdir()
    (root / "place").rename(root / "half")
    (root / "place").mkdir()
    assert (root / "half" / ".x.endor-work" / "journal").exists()


def _fail_here(root: Path, arguments: list[str]) -> None:
    """Runs a command in this process that fails."""
    from pyendor import cli

    before = os.getcwd()
    os.chdir(root / "place")
    try:
        with contextlib.redirect_stderr(open(os.devnull, "w")):
            code = cli.app(arguments, standalone_mode=False)
        assert code == 2, code
    finally:
        os.chdir(before)


def letter_of(call: str) -> str | None:
    """The letter of a system call in a line of strace; None for those that are not compared.

    Libraries read directories and clocks with calls of their own, and those on standard streams do not count.
    """
    match = re.match(r"(\w+)\((?:AT_FDCWD, )?(\d*)", call)
    if match is None or match[2] in {"0", "1", "2"}:
        return None
    if match[1] == "openat":
        if "O_DIRECTORY" in call and "O_NONBLOCK" in call:
            return None  # of opendir
        return "O" if re.search(r"O_WRONLY|O_RDWR|O_CREAT", call) else "o"
    return SYSTEM_CALLS.get(match[1])


def strace(options: argparse.Namespace) -> int:
    """Shows that faults.c misses no call, and that faults of strace have the same ends."""
    failures: list[str] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        sweep = Sweep(Path(directory), options.library)
        for scenario in scenarios():
            if scenario.locks and options.only in str(scenario):
                counted, seen = sweep.seen(scenario)
                same = counted == seen
                print(
                    f"{scenario!s:60} {counted.total():5} calls, strace sees {'them' if same else 'OTHERS'}"
                )
                if not same:
                    failures.append(f"{scenario}: {counted - seen} only here, {seen - counted} only there")
        total = 0
        named = {str(scenario): scenario for scenario in scenarios() if options.only in str(scenario)}
        for name, call, fault in STRACED:
            if name in named:
                for when in itertools.count(1):
                    if not sweep.check_with_strace(named[name], call, when, fault):
                        break
                    total += 1
    failures += sweep.failures
    for failure in failures:
        print(f"\nFAILED {failure}")
    print(f"{total} faults by strace, {len(failures)} failures")
    return bool(failures)


def chosen(calls: str, every: int) -> list[tuple[int, str]]:
    """At which calls which faults are made. In a sample, a call fails either with EIO or with ENOSPC."""
    places = [place for place, name in enumerate(calls) if name in ALWAYS or place % every == 0]
    spared = ("EIO", "ENOSPC") if every > 1 else ("", "")
    return [(place, fault) for place in places for fault in FAULTS if fault != spared[place % 2]]


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One part of the sweep: of all faults one in so many."""
    part, parts = options.part
    result: dict[str, Any] = {"faults": {}, "failures": [], "calls": {}, "missed": 0}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        sweep = Sweep(Path(directory), options.library)
        for scenario in scenarios():
            if options.only not in str(scenario):
                continue
            old, new = sweep.expected(scenario)
            calls = sweep.calls(scenario)
            unknown = set(calls) - NAMES.keys()
            assert not unknown, unknown
            result["calls"][str(scenario)] = len(calls)
            done = Counter[str]()
            for when, fault in chosen(calls, options.every)[part::parts]:
                if sweep.check(scenario, when, fault, old, new):
                    done[fault] += 1
                else:
                    result["missed"] += 1
            result["faults"][str(scenario)] = done
        result["failures"] = sweep.failures
    return result


def main() -> int:
    """Builds the library, and has the work done by as many processes as there are processors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--every", type=int, default=100, metavar="N", help="of the calls that change nothing"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios that have this in their names")
    parser.add_argument("--strace", action="store_true", help="compare with strace instead (Linux)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library is not None and options.strace:
        return strace(options)
    if options.part is not None:
        print(json.dumps(work(options)))
        return 0
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        library = Path(directory) / "faults.so"
        build = ["-O1", "-fPIC", "-shared", "-o", library, HERE / "faults.c", "-ldl"]
        subprocess.run([os.environ.get("CC", "cc"), *build], check=True)
        return sweep_all(options, Path(directory), library)


def sweep_all(options: argparse.Namespace, directory: Path, library: Path) -> int:
    """Runs all parts, and prints what they found."""
    begin = time.monotonic()
    command = [sys.executable, __file__, "--every", str(options.every), "--only", options.only]
    command += ["--library", str(library), "--directory", str(directory)]
    environment = os.environ | {"LD_PRELOAD": str(library), "PYENDOR_THREADS": "1"}
    if options.strace:
        return subprocess.run([*command, "--strace"], env=environment, check=False).returncode
    parts = [
        subprocess.Popen(
            [*command, "--part", str(part), str(options.processes)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(options.processes)
    ]
    results = []
    for part in parts:
        output = part.communicate()[0]
        if part.returncode != 0:
            print(f"a part of the sweep ended with status {part.returncode}", file=sys.stderr)
            return 1
        results.append(json.loads(output.splitlines()[-1]))
    total = 0
    for name, calls in results[0]["calls"].items():
        faults = sum((Counter(result["faults"][name]) for result in results), Counter())
        total += faults.total()
        print(f"{name:60} {calls:5} calls, {faults.total():6} faults")
    failures = [failure for result in results for failure in result["failures"]]
    for failure in failures:
        print(f"\nFAILED {failure}")
    missed = sum(result["missed"] for result in results)
    seconds = time.monotonic() - begin
    print(f"{total} faults in {seconds:.0f} s, {missed} calls did not come again, {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
