"""Long reads from files into aligned memory: past the page cache, or through it, whichever is faster here.

A file that changes while it is in use, an error of the disk, a read that ends early: errors that say so.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Literal

from pyendor import layout, parallel
from pyendor.errors import FormatError, UsageError, quote
from pyendor.file import File
from pyendor.layout import Bytes
from pyendor.offload.stored import PAGE, Read

Mode = Literal["direct", "cache", "gds"]
MODES = ("auto", "direct", "cache", "gds")

# What one request asks for, and how many are on their way: some disks are faster with several. Short ones
# leave gaps between them, as a thread that has read waits for its turn beside the one that computes.
REQUEST = 16 << 20
REQUESTS = 4
# How much is read in each way to find out which is faster; below _WORTH both together it is not worth it.
_SAMPLE = 16 << 20
_WORTH = 256 << 20


def aligned(nbytes: int) -> Bytes:
    """Memory that direct reads can fill, not yet mapped.

    Raises:
        UnsupportedError: this machine has not so much.
    """
    memory = layout.allocate(layout.roundup(nbytes, PAGE) + PAGE)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + layout.roundup(nbytes, PAGE)]


class Disk:
    """Reads from open files, which stay open until :meth:`close`.

    Args:
        files: their files.
        reads: all that will be read again and again.
        mode: ``direct``, ``cache``, or ``auto`` to measure both where that is worth it; ``gds`` as ``auto``.

    Attributes:
        reads: as given.
        mode: the way that is used: ``direct`` (``O_DIRECT``, past the page cache) or ``cache``; ``gds`` where
            somebody else reads, to the memory of a GPU.
        reason: why, in words.
        nbytes: bytes read so far.
    """

    def __init__(self, files: Iterable[File], reads: Sequence[Read], mode: str = "auto") -> None:
        if mode not in MODES:
            raise UsageError(f"read {quote(mode)}: there are {', '.join(MODES)}")
        self._open = _open_all(files)
        self._close = weakref.finalize(self, _close_all, list(self._open.values()))
        self._pool = parallel.Pool(REQUESTS, "pyendor-read")
        self._lock = threading.Lock()
        self.reads = reads
        self.nbytes = 0
        self.mode: Mode = "cache"
        self.reason = "as was asked for"
        try:
            self._choose(mode, reads)
        except BaseException:
            self.close()
            raise

    def read(self, reads: Sequence[Read], buffer: Bytes) -> None:
        """Fills a buffer that :func:`aligned` gave.

        Raises:
            OSError: a file cannot be read.
            FormatError: one has become shorter.
            UsageError: one has changed since it was opened.
        """
        self._read(reads, buffer, self.mode)

    def read_small(self, file: File, start: int, out: Bytes) -> None:
        """Fills ``out`` with bytes from ``start`` on, through the page cache; errors as of :meth:`read`."""
        descriptors = self._descriptors(file)
        descriptors.fill(out, start, direct=False)
        descriptors.require_unchanged()
        self.count(out.size)

    def require_unchanged(self, reads: Sequence[Read]) -> None:
        """Raises UsageError if somebody has written to one of the files since it was opened."""
        for file in {id(read.file): read.file for read in reads}.values():
            self._descriptors(file).require_unchanged()

    def count(self, nbytes: int) -> None:
        """Adds to what has been read."""
        with self._lock:
            self.nbytes += nbytes

    def close(self) -> None:
        """Closes the files, when all that is being read has been read; closing twice is fine."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._close()

    def _descriptors(self, file: File) -> _Descriptors:
        if not self._close.alive:
            raise UsageError("the files of the offloaded model are closed")
        return self._open[id(file)]

    def _read(self, reads: Sequence[Read], buffer: Bytes, mode: Mode) -> None:
        futures: list[Future[None]] = []
        try:
            for read in reads:
                descriptors = self._descriptors(read.file)
                start = read.start
                while start < read.stop:
                    # Requests end where a page of the file does.
                    stop = min(read.stop, (start // REQUEST + 1) * REQUEST)
                    at = read.at + start - read.start
                    futures.append(self._pool.submit(descriptors.request, buffer, at, start, stop, mode))
                    start = stop
            for future in futures:
                future.result()
            self.require_unchanged(reads)
        finally:
            # When this returns, nobody writes to the buffer any more.
            for future in futures:
                if not future.cancel():
                    future.exception()
        self.count(sum(read.stop - read.start for read in reads))

    def _choose(self, mode: str, reads: Sequence[Read]) -> None:
        if mode == "cache" or not reads:
            return
        refusal = next((one.refusal for one in self._open.values() if one.refusal is not None), None)
        if refusal is not None:
            self.reason = f"the file system has no direct reads: {refusal}"
        elif mode == "direct":
            self.mode = "direct"
        elif sum(read.stop - read.start for read in reads) < _WORTH:
            self.reason = "too little to find out what is faster"
        else:
            self._measure(reads)

    def _measure(self, reads: Sequence[Read]) -> None:
        """Chooses what reads faster here and now, by turns in different places, none of them twice."""
        buffer = aligned(_SAMPLE)
        buffer[::PAGE] = 0  # mapped, so that the first is not the one that pays for that
        long = [read for read in reads if read.stop - read.start >= _SAMPLE] or list(reads)
        modes: tuple[Mode, ...] = ("direct", "cache", "cache", "direct", "direct") * 2
        places = [long[len(long) * turn // len(modes)] for turn in range(len(modes))]
        times: dict[Mode, list[float]] = {"direct": [], "cache": []}
        for turn, (read, mode) in enumerate(zip(places, modes, strict=True)):
            length = min(_SAMPLE // 2, read.stop - read.start)
            room = read.stop - read.start - length
            start = (read.start + room * turn // len(modes)) // PAGE * PAGE
            began = time.perf_counter()
            self._read([Read(read.file, start, start + length, 0)], buffer, mode)
            times[mode].append((time.perf_counter() - began) / length)
        self.nbytes = 0
        direct, cache = statistics.median(times["direct"]), statistics.median(times["cache"])
        self.mode = "direct" if direct <= cache else "cache"
        self.reason = f"direct {1e-9 / direct:.2f} GB/s, page cache {1e-9 / cache:.2f} GB/s when opened"


class _Descriptors:
    """One file, open twice: through the page cache and past it."""

    def __init__(self, file: File) -> None:
        self.path = path = str(file.path)
        self.cached = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.direct: int | None = None
        self.refusal: str | None = None
        try:
            self._first = self._version()
            if self._first[0] != file.layout.header.file_length:
                raise self._changed()
            self._try_direct()
        except BaseException:
            self.close()
            raise

    def _try_direct(self) -> None:
        try:
            self.direct = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            # Some file systems let it be opened and refuse to read.
            os.preadv(self.direct, [aligned(PAGE).data], 0)
        except (OSError, AttributeError) as error:
            self.refusal = error.strerror if isinstance(error, OSError) else "this system has no O_DIRECT"
            if self.direct is not None:
                os.close(self.direct)
                self.direct = None

    def _version(self) -> tuple[int, int]:
        status = os.fstat(self.cached)
        return status.st_size, status.st_mtime_ns

    def require_unchanged(self) -> None:
        """Raises UsageError if somebody has written to the file since it was opened."""
        if self._version() != self._first:
            raise self._changed()

    def _changed(self) -> UsageError:
        return UsageError(
            f"{quote(self.path)} has changed since it was opened; what it holds may not fit together any "
            "more: load the model again"
        )

    def request(self, buffer: Bytes, at: int, start: int, stop: int, mode: Mode) -> None:
        """Bytes ``start`` to ``stop`` of the file to ``at`` in a buffer that is aligned."""
        if mode == "cache":
            self.fill(buffer[at : at + stop - start], start, direct=False)
            return
        # Whole pages; what comes before and after is room in the buffer.
        first, last = start // PAGE * PAGE, layout.roundup(stop, PAGE)
        self.fill(buffer[at - (start - first) : at + last - start], first, direct=True, enough=stop - first)

    def fill(self, out: Bytes, start: int, *, direct: bool, enough: int | None = None) -> None:
        """Fills ``out`` from ``start`` on, at least the first ``enough`` bytes."""
        enough = out.size if enough is None else enough
        done = 0
        while done < enough:
            # A direct read that ended within a page, be it the end of the file, goes on through the cache.
            past = direct and self.direct is not None and done % PAGE == 0
            descriptor = self.direct if past else self.cached
            assert descriptor is not None
            try:
                count = os.preadv(descriptor, [out[done:].data], start + done)
            except OSError as error:
                what = f"{error.strerror} at byte {start + done} of"
                raise OSError(error.errno, what, self.path) from error
            if count == 0:
                found = "the file became shorter while a model was running from it"
                raise FormatError("C-9", found, offset=start + done, path=self.path)
            done += count

    def close(self) -> None:
        for descriptor in (self.cached, self.direct):
            if descriptor is not None:
                os.close(descriptor)
        self.direct = None


def _open_all(files: Iterable[File]) -> dict[int, _Descriptors]:
    opened: dict[int, _Descriptors] = {}
    try:
        for file in files:
            opened[id(file)] = _Descriptors(file)
    except BaseException:
        _close_all(opened.values())
        raise
    return opened


def _close_all(descriptors: Iterable[_Descriptors]) -> None:
    for one in descriptors:
        one.close()
