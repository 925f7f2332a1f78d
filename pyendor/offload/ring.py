"""What will be needed next is fetched on threads of their own, into slots that are used again.

Knows neither files nor devices: ``fetch(key, slot)`` is given. What follows what is learnt from the calls:
the first time it is the order that is given, later that of the last time. A wrong guess costs time only.

Slots are of several sizes, each size on a shelf: the head of a model may be four times as large as a layer,
and slots that could all hold it would be too few, or too much memory.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pyendor.errors import UsageError

# A second one has begun when the first comes to its end, so that a disk always has something to do.
_THREADS = 2

Key = TypeVar("Key", bound=Hashable)
Slot = TypeVar("Slot")


@dataclass(eq=False)
class _Job(Generic[Key, Slot]):
    key: Key
    slot: Slot
    begun: bool = False
    done: bool = False
    error: BaseException | None = None


class Ring(Generic[Key, Slot]):
    """Slots that go round between threads that fill them and one caller that uses them, one at a time.

    Args:
        fetch: fills a slot; called on two threads, in the order of the keys.
        shelves: slots, by the keys that they are for: several keys have the same ones.
        order: all keys, in the order in which they are expected first.
        ahead: whether anything is fetched before it is asked for. If not, there are no threads: the caller
            does every fetch.

    Attributes:
        waited: seconds that the caller waited.
    """

    def __init__(
        self,
        fetch: Callable[[Key, Slot], None],
        shelves: Mapping[Key, Sequence[Slot]],
        order: Sequence[Key],
        *,
        ahead: bool = True,
    ) -> None:
        self._fetch = fetch
        self._shelves = shelves
        self._ahead = ahead
        self._follows = dict(itertools.pairwise([*order, *order[:1]]))
        self._last: Key | None = None
        # The queue; what the threads are at, which may be in no queue any more; and what the caller has. A
        # slot that is in none of them is idle, also after an interrupt at any moment.
        self._jobs: deque[_Job[Key, Slot]] = deque()
        self._running: list[_Job[Key, Slot]] = []
        self._taken: Slot | None = None
        self._turn = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name="pyendor-offload", daemon=True) for _ in range(_THREADS)
        ]
        self._closed = False
        self._busy = self._since = 0.0
        self.waited = 0.0

    @property
    def busy(self) -> float:
        """Seconds in which something was being fetched."""
        with self._turn:
            self._count()
            return self._busy if self._ahead else self.waited

    def take(self, key: Key) -> Slot:
        """A slot that holds what was asked for. It is the caller's until it is given back, or the next call.

        Raises:
            what ``fetch`` raised. The next call for the same key tries again.
        """
        began = time.perf_counter()
        with self._turn:
            self._taken = None
            job = self._job(key)
            if self._ahead and self._start():
                self._turn.wait_for(lambda: job.done or self._closed)
        if not job.done and not self._started():
            job.begun = True
            self._run(job)
        with self._turn:
            self.waited += time.perf_counter() - began
            self._require_open()
            if job.error is None:
                self._taken = job.slot
            self._jobs.popleft()
            if job.error is not None:
                raise job.error
            self._guess()
            return job.slot

    def give_back(self) -> None:
        """The slot that was taken may be filled again."""
        with self._turn:
            self._taken = None
            self._guess()

    def close(self) -> None:
        """Ends the threads, and waits until they have ended: nothing is written to slots after that."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("the offloaded model was closed: its weights cannot be read any more")

    def _job(self, key: Key) -> _Job[Key, Slot]:
        """The job that fetches a key, first in the queue: the one that was guessed, or a new one."""
        self._require_open()
        if self._last is not None:
            self._follows[self._last] = key
        self._last = key
        # What failed when it was only guessed is tried again now that it is wanted.
        if not self._jobs or self._jobs[0].key != key or self._jobs[0].error is not None:
            self._jobs.clear()
            # Only where the last slot is being filled with what is not wanted, this has to wait.
            self._turn.wait_for(lambda: bool(self._idle(key)) or self._closed)
            self._require_open()
            self._jobs.append(_Job(key, self._idle(key)[0]))
        self._guess()
        return self._jobs[0]

    def _idle(self, key: Key) -> list[Slot]:
        used = [job.slot for job in (*self._jobs, *self._running)]
        if self._taken is not None:
            used.append(self._taken)
        return [slot for slot in self._shelves[key] if all(slot is not other for other in used)]

    def _guess(self) -> None:
        """Gives idle slots to what is expected next, up to the first for which there is none."""
        key = self._jobs[-1].key if self._jobs else self._last
        while self._ahead and key is not None:
            key = self._follows.get(key)
            idle = self._idle(key) if key is not None else []
            if key is None or not idle:
                break
            self._jobs.append(_Job(key, idle[0]))
        self._turn.notify_all()

    def _start(self) -> bool:
        """Start the threads; False if the system refuses them all, and the caller has to fetch."""
        for thread in self._threads:
            if thread.ident is None:
                with contextlib.suppress(RuntimeError):
                    thread.start()
        return self._started()

    def _started(self) -> bool:
        return any(thread.ident is not None for thread in self._threads)

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closed or any(not job.begun for job in self._jobs))
                if self._closed:
                    return
                job = next(job for job in self._jobs if not job.begun)
                job.begun = True
                self._count()
                self._running.append(job)
            self._run(job)

    def _count(self) -> None:
        """To be called before anything begins or ends."""
        now = time.perf_counter()
        if self._running:
            self._busy += now - self._since
        self._since = now

    def _run(self, job: _Job[Key, Slot]) -> None:
        try:
            self._fetch(job.key, job.slot)
        except BaseException as error:  # handed to the caller, on whose thread it belongs
            job.error = error
        with self._turn:
            self._count()
            job.done = True
            if job in self._running:
                self._running.remove(job)
            self._turn.notify_all()
