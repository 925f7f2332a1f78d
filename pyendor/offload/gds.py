"""GPUDirect Storage: from disk to the memory of a GPU without a detour, by way of kvikio (``pyendor[gds]``).

cuFile reads through the host where it cannot do that, and does not say so; what is used here is what has been
found to be direct, and everything else is left to :mod:`pyendor.offload.disk`, which is faster at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyendor.errors import FormatError
from pyendor.file import File
from pyendor.offload.disk import Disk
from pyendor.offload.stored import PAGE, Read

# Of the kernel module that does it. Every read that was direct is counted there.
_STATISTICS = Path("/proc/driver/nvidia-fs/stats")


class Gds:
    """Reads from files to device memory.

    Args:
        files: their files, of regular paths.
        disk: knows whether they change.
    """

    def __init__(self, files: Iterable[File], disk: Disk) -> None:
        import kvikio

        self._disk = disk
        self._open: dict[int, Any] = {}
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
        waiting = []
        for read in reads:
            size = read.stop - read.start
            opened = self._open[id(read.file)]
            waiting.append((read, opened.pread(memory[read.at : read.at + size], size, read.start)))
        for read, future in waiting:
            try:
                done = future.get()
            except RuntimeError as error:
                raise OSError(5, f"{error} at byte {read.start} of", str(read.file.path)) from error
            if done != read.stop - read.start:
                found = "the file became shorter while a model was running from it"
                raise FormatError("C-9", found, offset=read.start + done, path=read.file.path)
        self._disk.require_unchanged(reads)
        self._disk.count(sum(read.stop - read.start for read in reads))

    def close(self) -> None:
        """Closes the files."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()


def open_gds(disk: Disk, device: torch.device) -> Gds | str:
    """What reads the files of a disk directly; or why there is none."""
    if not disk.reads:
        return "nothing is read from disk"
    why = _unavailable()
    if why is not None:
        return why
    before = _direct_reads()
    try:
        gds = Gds({id(read.file): read.file for read in disk.reads}.values(), disk)
        try:
            _try(gds, disk.reads[0], device)
        except BaseException:
            gds.close()
            raise
    except (RuntimeError, OSError) as error:
        return str(error)
    if _direct_reads() == before:
        gds.close()
        return "a read did not go the direct way: its file system cannot, or cuFile's settings forbid it"
    return gds


def _try(gds: Gds, read: Read, device: torch.device) -> None:
    """A read of some length."""
    size = min(read.stop - read.start, 1 << 20)
    at = read.start % PAGE
    memory = torch.empty(at + size, dtype=torch.uint8, device=device)
    gds.read([Read(read.file, read.start, read.start + size, at)], memory)


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
