"""Work on several threads: as many as ``PYENDOR_THREADS`` says, otherwise one for each processor.

Work that is itself part of such work is done where it is: threads that wait for others could wait forever.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, NewType, TypeVar

THREADS = "PYENDOR_THREADS"

Item = TypeVar("Item")
Result = TypeVar("Result")

# The address of a function like GNU's GOMP_parallel: it has another one called by threads of its own.
Team = NewType("Team", int)

_here = threading.local()


class _Once(Generic[Result]):
    """A call that is made by the first of those that are to make it; the others get nothing."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._calls = [call]

    def __call__(self) -> Result | None:
        try:
            call = self._calls.pop()
        except IndexError:
            return None
        return call()


class Pool(ThreadPoolExecutor):
    """Threads, as many as the system starts: what it refuses another one for is done by the caller.

    A system refuses threads where memory for their stacks or their number is limited. Python's pool raises a
    RuntimeError then, and leaves the work in its queue, where it may be done all the same.
    """

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        once = _Once(functools.partial(fn, *args, **kwargs))
        try:
            return super().submit(once)  # type: ignore[arg-type]  # nobody else has called it
        except RuntimeError:
            if self._shutdown:
                raise
            done: Future[Result] = Future()
            try:
                done.set_result(once())  # type: ignore[arg-type]
            except Exception as error:
                done.set_exception(error)
            return done


def threads() -> int:
    """How many threads may work at a time; 1 on a thread that is one of several."""
    if getattr(_here, "busy", False):
        return 1
    text = os.environ.get(THREADS, "")
    if text.isascii() and text.isdecimal() and int(text[:4]):
        return int(text[:4])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of all items, in their order; if some raise, what the first of them raises.

    When it returns, no thread is at work on them any more: they may write to the caller's memory.
    """
    if len(items) < 2 or (count := threads()) == 1:
        return [work(item) for item in items]
    pool = _pool(count)
    # Where each item has a thread anyway, the first is done on this one: to hand over takes time as well.
    here = 1 if len(items) <= count else 0
    futures = [pool.submit(work, item) for item in items[here:]]
    try:
        return [*_here_done(work, items[:here]), *(future.result() for future in futures)]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@contextmanager
def by(team: Team | None) -> Iterator[None]:
    """In this block a team, if there is one, decodes what this thread has decoded by several."""
    before = getattr(_here, "team", None)
    _here.team = team
    try:
        yield
    finally:
        _here.team = before


def team() -> Team | None:
    """The team of the block that this thread is in."""
    found: Team | None = getattr(_here, "team", None)
    return found


def ahead(work: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result]:
    """The results of all items, in their order, the next one being worked on while the caller uses one.

    It is begun when the caller asks for the one before: whatever a result holds, there are two of them.
    """
    if len(items) < 2:
        yield from map(work, items)
        return
    with Pool(1, "pyendor-ahead") as pool:
        following = pool.submit(work, items[0])
        try:
            for item in items[1:]:
                result = following.result()
                following = pool.submit(work, item)
                yield result
                del result
            yield following.result()
        finally:
            following.cancel()


def _here_done(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    _here.busy = True
    try:
        return [work(item) for item in items]
    finally:
        _here.busy = False


def _mark() -> None:
    _here.busy = True


@functools.lru_cache(maxsize=1)
def _pool(count: int) -> Pool:
    return Pool(count, "pyendor", initializer=_mark)


# A child of fork has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
