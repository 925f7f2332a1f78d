"""GPUDirect Storage: from disk to the memory of a GPU without a detour, by way of kvikio (``pyendor[gds]``).

cuFile reads through the host where it cannot do that, and does not say so; what is used here is what has been
found to be direct, and everything else is left to :mod:`pyendor.offload.disk`, which is faster at it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyendor.errors import FormatError, UsageError
from pyendor.file import File
from pyendor.offload.disk import REQUEST, REQUESTS, Disk
from pyendor.offload.stored import PAGE, Read

# Of the kernel module that does it. Every read that was direct is counted there.
_STATISTICS = Path("/proc/driver/nvidia-fs/stats")
# Memory that is needed to find out whether reads are direct.
TRIAL = (1 << 20) + PAGE


class Gds:
    """Reads from files to device memory.

    Args:
        files: their files, of regular paths.
        disk: knows whether they change.
    """

    def __init__(self, files: Iterable[File], disk: Disk) -> None:
        import kvikio

        self._disk = disk
        self._kvikio = kvikio
        self._open: dict[int, Any] = {}
        self._registered: list[torch.Tensor] = []
        _allow_threads(kvikio)
        try:
            for file in files:
                self._open[id(file)] = kvikio.CuFile(str(file.path), "r")
        except BaseException:
            self.close()
            raise

    def read(self, reads: Sequence[Read], memory: torch.Tensor) -> None:
        """Fills device memory.

        Raises:
            OSError: a file cannot be read.
            FormatError: one has become shorter.
            UsageError: one has changed since it was opened.
        """
        waiting: list[tuple[Read, Any]] = []
        try:
            for read in reads:
                size, opened = read.stop - read.start, self._open[id(read.file)]
                part = memory[read.at : read.at + size]
                waiting.append((read, _told(read, opened.pread, part, size, read.start, REQUEST)))
        finally:
            # When this returns nobody writes to the memory any more, also after an error.
            results = [(read, _result(future)) for read, future in waiting]
        for read, done in results:
            if isinstance(done, Exception):
                raise _error(done, read) from done
            if done != read.stop - read.start:
                found = "the file became shorter while a model was running from it"
                raise FormatError("C-9", found, offset=read.start + done, path=read.file.path)
        self._disk.require_unchanged(reads)
        self._disk.count(sum(read.stop - read.start for read in reads))

    def slot(self, memory: torch.Tensor, nbytes: int) -> torch.Tensor:
        """Memory that is read into again and again: of this, so many bytes from the first whole page on.

        It is registered with cuFile, which otherwise takes a detour by way of memory of its own.
        """
        with contextlib.suppress(
            RuntimeError
        ):  # as where two slots are of one allocation; it works all the same
            self._kvikio.memory_register(memory)
            self._registered.append(memory)
        start = -memory.data_ptr() % PAGE
        return memory[start : start + nbytes]

    def close(self) -> None:
        """Closes the files, and lets go of memory."""
        for memory in self._registered:
            with contextlib.suppress(RuntimeError):
                self._kvikio.memory_deregister(memory)
        self._registered.clear()
        for opened in self._open.values():
            opened.close()
        self._open.clear()


def _allow_threads(kvikio: Any) -> None:
    """As many reads at the same time as :mod:`pyendor.offload.disk` has, unless the user has set a number.

    The threads are the whole process's: their number is raised and never lowered, as others may use them.
    """
    if "KVIKIO_NTHREADS" not in os.environ and kvikio.defaults.get("num_threads") < REQUESTS:
        kvikio.defaults.set("num_threads", REQUESTS)


def _told(read: Read, start: Callable[..., Any], *arguments: Any) -> Any:
    """Begins a read."""
    try:
        return start(*arguments)
    except RuntimeError as error:
        raise _error(error, read) from error


def _result(future: Any) -> int | Exception:
    """How many bytes were read, or the error that it ended in."""
    try:
        return int(future.get())
    except (RuntimeError, OSError) as error:
        return error


def _error(error: Exception, read: Read) -> Exception:
    if isinstance(error, OSError):
        return error
    return OSError(5, f"{error} at byte {read.start} of", str(read.file.path))


def open_gds(disk: Disk, trial: Callable[[], torch.Tensor]) -> Gds | str:
    """What reads the files of a disk directly; or why there is none.

    Args:
        disk: has their files, and what will be read.
        trial: gives ``uint8 [TRIAL]`` on the device, that nothing else is at work on.
    """
    if not disk.reads:
        return "nothing is read from disk"
    why = _unavailable()
    if why is not None:
        return why
    before = _direct_reads()
    try:
        gds = Gds({id(read.file): read.file for read in disk.reads}.values(), disk)
        try:
            _try(gds, disk.reads[0], trial())
        except BaseException:
            gds.close()
            raise
    except (RuntimeError, OSError, UsageError) as error:
        return str(error)
    if _direct_reads() == before:
        gds.close()
        return "a read did not go the direct way: its file system cannot, or cuFile's settings forbid it"
    return gds


def _try(gds: Gds, read: Read, trial: torch.Tensor) -> None:
    """A read of some length, as those to slots are."""
    size = min(read.stop - read.start, 1 << 20)
    room = gds.slot(trial, trial.numel() - PAGE)
    at = read.start % PAGE
    gds.read([Read(read.file, read.start, read.start + min(size, room.numel() - at), at)], room)


def _unavailable() -> str | None:
    try:
        import kvikio
    except ImportError:
        return "kvikio is not installed (pyendor[gds])"
    if not _driver_says(kvikio):
        return "the driver of GPUDirect Storage (nvidia-fs) is not there"
    if _direct_reads() is None:
        return f"{_STATISTICS} is not there, so that nobody can tell whether a read was direct"
    return None


def _driver_says(kvikio: Any) -> bool:
    driver = kvikio.cufile_driver
    try:
        if hasattr(driver, "get"):
            return bool(driver.get("is_gds_available"))
        return bool(driver.DriverProperties().is_gds_available)
    except (RuntimeError, ValueError, KeyError):
        return False


def _direct_reads() -> int | None:
    """How many reads have been direct so far, on this machine; None if nobody counts."""
    try:
        lines = _STATISTICS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # Reads				: n=12 ok=12 err=0 readMiB=34 io_state_err=0
        name, _, rest = line.partition(":")
        fields = dict(field.split("=", 1) for field in rest.split() if "=" in field)
        if name.strip() == "Reads" and fields.get("ok", "").isdecimal():
            return int(fields["ok"])
    return None
