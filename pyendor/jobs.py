"""Jobs, one for each file of a checkpoint, on any executor: threads, processes, other machines.

A job is an object that can be pickled. It reads files and writes at most one of its own, which it renames
when that is whole: it may be run again, and twice at a time, as executors do whose workers are lost.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

from pyendor import parallel
from pyendor.errors import EndorError, UsageError

Progress = Callable[[int], None]
Result_co = TypeVar("Result_co", covariant=True)
Value = TypeVar("Value")

# More of them wait for the same disk, and take memory: each may need three times its largest tensor.
MOST = 4


class Job(Protocol[Result_co]):
    """What can be run."""

    def run(self, progress: Progress) -> Result_co:
        """Does the work, telling the bytes that are done."""

    def __str__(self) -> str:
        """What it works on, for messages."""


class _Stopped(Exception):  # noqa: N818
    """Another job has failed."""


class _Reporter:
    """What jobs on threads of this process report to, and are stopped through."""

    def __init__(self, progress: Progress | None) -> None:
        self.stop = threading.Event()
        self._turn = threading.Lock()
        self._progress = progress

    def __call__(self, done: int) -> None:
        if self.stop.is_set():
            raise _Stopped
        if self._progress is not None and done:
            with self._turn:
                self._progress(done)


class _Outcome(Generic[Value]):
    """What a job comes to: errors are handed over too, so that those of the executor can be told apart."""

    def __init__(self, result: Value | None, error: BaseException | None, reported: int) -> None:
        self.result = result
        self.error = error
        self.reported = reported


def default() -> int:
    """How many jobs run at a time unless a number is asked for: one for each processor, at most 4."""
    return min(MOST, parallel.threads())


def run(
    work: Sequence[Job[Value]],
    done: Callable[[int, Value], None],
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> None:
    """Runs jobs; when it returns or raises, none that can be waited for is at work any more.

    Args:
        work: the jobs.
        done: called on this thread with the place and the result of every job that succeeds, as they do.
        jobs: how many threads of this process do the work; None: :func:`default` many.
        executor: does the work instead.
        progress: called with bytes as they are done, one call at a time; on other threads where these do
            the work, otherwise job by job.

    Raises:
        UsageError: there is no such number of jobs.
        ChildProcessError: the executor gave up, for instance because its workers died.
        Exception: what a job raises; of several, what the first of them does.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"{jobs} jobs cannot do anything: at least one is needed")
    if executor is not None:
        _run(work, done, executor, progress)
        return
    with parallel.Pool(max(1, min(jobs or default(), len(work))), "pyendor-job") as threads:
        _run(work, done, threads, progress)


def _run(
    work: Sequence[Job[Value]],
    done: Callable[[int, Value], None],
    executor: Executor,
    progress: Progress | None,
) -> None:
    report = _Reporter(progress)
    here = isinstance(executor, ThreadPoolExecutor)
    places: dict[Future[_Outcome[Value]], int] = {}
    pending: set[int] = set()
    failures: dict[int, BaseException] = {}

    def take(future: Future[_Outcome[Value]]) -> None:
        place = places[future]
        pending.discard(place)
        outcome = _outcome(future, work[place])
        if isinstance(outcome.error, _Stopped):
            return  # why will be told by the one that failed
        if outcome.error is not None:
            failures[place] = outcome.error
            raise outcome.error
        done(place, outcome.result)  # type: ignore[arg-type]
        if not here and progress is not None:
            progress(outcome.reported)

    try:
        for place, job in enumerate(work):
            places[_submit(executor, job, report if here else None)] = place
            pending.add(place)
        for future in as_completed(places):
            take(future)
    except BaseException as error:
        report.stop.set()
        running = [future for future in places if not future.cancel()]
        wait(running)
        # What others have finished meanwhile is not lost.
        for future in running:
            if places[future] in pending:
                with suppress(Exception):
                    take(future)
        if isinstance(error, Exception) and error in failures.values():
            raise failures[min(failures)] from None
        raise


def _submit(executor: Executor, job: Job[Value], report: _Reporter | None) -> Future[_Outcome[Value]]:
    try:
        return executor.submit(_call, job, report)
    except Exception as error:
        raise _given_up(job, error) from error


def _call(job: Job[Value], report: _Reporter | None) -> _Outcome[Value]:
    """Runs a job where the executor does it."""
    reported = 0

    def count(done: int) -> None:
        nonlocal reported
        reported += done

    try:
        if report is not None:
            report(0)
        return _Outcome(job.run(report or count), None, reported)
    except BaseException as error:
        if report is not None:
            report.stop.set()  # at once: this thread may be given the next job
        return _Outcome(None, error, reported)


def _outcome(future: Future[_Outcome[Value]], job: Job[Value]) -> _Outcome[Value]:
    try:
        return future.result()
    except BaseException as error:
        if future.done():  # not an interrupt of the wait for it
            raise _given_up(job, error) from error
        raise


def _given_up(job: Job[Value], error: BaseException) -> ChildProcessError:
    why = str(error) or type(error).__name__
    return ChildProcessError(f"{job}: the executor gave up ({type(error).__name__}): {why}")


@contextmanager
def dask(address: str | None) -> Iterator[Executor | None]:
    """The workers of a Dask cluster as an executor; without an address there is none.

    Raises:
        UsageError: the package distributed is missing.
        OSError: nobody answers at that address; a worker does not find a file.
    """
    if address is None:
        yield None
        return
    if importlib.util.find_spec("distributed") is None:
        raise UsageError("--dask needs the package distributed: pip install 'pyendor[dask]'")
    import distributed

    connect: Any = distributed.Client  # which has no types
    with connect(address, set_as_default=False) as client:
        try:
            # Not pure: work that failed is done anew when it is asked for again.
            yield client.get_executor(pure=False)
        except (EndorError, OSError) as error:
            error.add_note("with --dask all paths have to be the same files on all workers")
            raise
