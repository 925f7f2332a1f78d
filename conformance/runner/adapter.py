"""Talks to an adapter: arguments in, an `Answer` out, whatever the adapter does."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

Json = dict[str, Any]
RESULTS = {"accept": 0, "reject": 1, "unsupported": 2}
NOT_IMPLEMENTED = 64
# What a limits case may have of data memory in all. A decoder that believes a lying header asks for
# much more, and gets nothing even where the system would promise it anything.
DATA_LIMIT = 4 << 30
# ru_maxrss is in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
BATCH_START = 30.0


@dataclass(frozen=True)
class Answer:
    """`crash` says what went wrong where there is no answer by the contract."""

    output: Json
    seconds: float
    crash: str = ""
    peak_mib: float | None = None
    not_implemented: bool = False

    @property
    def result(self) -> str:
        return "crash" if self.crash else str(self.output["result"])


def checked(code: int, output: Any, seconds: float, peak: float | None, stderr: str) -> Answer:
    """An answer by the contract, or what is wrong with it."""
    if code == NOT_IMPLEMENTED:
        return Answer({}, seconds, "not implemented", peak, not_implemented=True)
    if code not in RESULTS.values():
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        return Answer({}, seconds, f"{how}{stderr}", peak)
    if not isinstance(output, dict) or output.get("result") not in RESULTS:
        return Answer({}, seconds, f"exit {code}, but no answer on stdout{stderr}", peak)
    if RESULTS[output["result"]] != code:
        return Answer({}, seconds, f"exit {code}, but the answer is {output['result']}", peak)
    return Answer(output, seconds, "", peak)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the adapter and what it started: it has a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def tail(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    # Some runtimes print the error last, others their version.
    telling = [line for line in lines if "rror" in line or "panic" in line] or lines[-1:]
    return f": {ascii(telling[-1].strip())[:200]}" if telling else ""


class OneShot:
    """A process for each request."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def ask(self, args: list[str], timeout: float, limited: bool = False) -> Answer:
        command = [*self.command, *args]
        if limited:
            launcher = Path(__file__).with_name("limited.py")
            command = [sys.executable, "-S", "-E", str(launcher), str(DATA_LIMIT), *command]
        with TemporaryFile() as out, TemporaryFile() as err:
            start = time.monotonic()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            late = threading.Event()

            def stop() -> None:
                late.set()
                kill(process)

            timer = threading.Timer(timeout, stop)
            timer.start()
            # wait4 and not Popen.wait: it tells the peak memory of this very process.
            _, status, usage = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds, peak = time.monotonic() - start, usage.ru_maxrss * RSS_UNIT / 2**20
            if late.is_set():
                return Answer({}, seconds, f"time-out after {timeout:g} s", peak)
            out.seek(0)
            output = parsed(out.read())
            return checked(process.returncode, output, seconds, peak, tail(err))

    def close(self) -> None:
        pass


def parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class Batch:
    """One process that answers line by line; after a crash or a time-out it is started anew."""

    def __init__(self, command: list[str]) -> None:
        self.command = [*command, "batch"]
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.stderr: IO[bytes] = BytesIO()

    def start(self) -> subprocess.Popen[bytes]:
        self.stderr = TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.lines = queue.Queue()
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            start_new_session=True,
        )
        reader = threading.Thread(target=read_lines, args=(process, self.lines), daemon=True)
        reader.start()
        self.process = process
        return process

    def ask(self, args: list[str], timeout: float) -> Answer:
        fresh = self.process is None
        process = self.process or self.start()
        assert process.stdin is not None
        start = time.monotonic()
        try:
            process.stdin.write(json.dumps({"args": args}).encode() + b"\n")
            process.stdin.flush()
            # The first answer includes the start that batch mode exists to save.
            line = self.lines.get(timeout=timeout + (BATCH_START if fresh else 0))
        except queue.Empty:
            line, crash = b"", f"time-out after {timeout:g} s"
        except BrokenPipeError:
            line, crash = b"", "the batch process has ended"
        else:
            crash = "" if line else "the batch process has ended"
        seconds = time.monotonic() - start
        reply = parsed(line)
        if not crash and not (isinstance(reply, dict) and isinstance(reply.get("exit"), int)):
            crash = f"not a line of the batch mode: {ascii(line)[:100]}"
        if crash:
            self.close()
            return Answer({}, seconds, crash + tail(self.stderr))
        return checked(reply["exit"], reply.get("output"), seconds, None, "")

    def close(self) -> None:
        if self.process is not None:
            kill(self.process)
            self.process.wait()
            self.process = None


def read_lines(process: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(b"")
