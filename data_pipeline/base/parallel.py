"""Do independent jobs in this process or in many."""

import argparse
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from typing import Any, TypeVar

from data_pipeline.base import signals

logger = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"
LONGEST_TEMPORARY = 75
"""Characters of the folder for temporary files: sockets have paths of at most 107, and multiprocessing adds to it."""

_Tool = TypeVar("_Tool")
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Part:
    """One of the commands that share work, perhaps on many machines; `number` counts from 0."""

    number: int = 0
    count: int = 1

    def share(self, jobs: Sequence[_Job]) -> Sequence[_Job]:
        """Return the jobs that are this part's to do."""
        return jobs[self.number :: self.count]


def parse_part(text: str) -> Part:
    """Parse I/N, as an argparse type."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not I/N with I from 0 to N-1, as in 0/4, 1/4, 2/4, 3/4"
        )
    return Part(int(number), int(count))


def map_threads(
    function: Callable[[_Job], _Result], jobs: Iterable[_Job], workers: int | None = None
) -> Iterator[_Result]:
    """Yield function(job) of every job, in order, for work that leaves the interpreter to the other threads.

    Jobs that have not begun when one of them raises, or the iterator is closed, are left.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def run_jobs(
    function: Callable[[_Tool, _Job], _Result], tool: _Tool, jobs: Sequence[_Job], workers: int
) -> Iterator[_Result]:
    """Yield function(tool, job) of every job, in any order, as they get done.

    A worker gets the tool once, pickled, and then jobs. Closing the iterator waits for the jobs that have begun.
    Raises what a job raises, and BrokenProcessPool when a worker was killed.
    """
    if workers == 1:
        for job in jobs:
            yield function(tool, job)
    elif jobs:
        yield from _in_workers(function, tool, jobs, workers)


def _in_workers(
    function: Callable[[_Tool, _Job], _Result], tool: _Tool, jobs: Sequence[_Job], workers: int
) -> Iterator[_Result]:
    # The fork server imports numpy and the rest once, and the workers forked from it share its pages.
    context = get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.shards.writer"])
    try:
        resource_tracker.ensure_running()
        with signals.kept_from_children():
            forkserver.ensure_running()
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), context, initializer=_start_worker, initargs=(function, tool)
        )
    except (OSError, ImportError, NotImplementedError) as error:
        logger.warning(
            "no worker processes can be started here (%s), so this one does all the work; for more, %s",
            error, _what_workers_need(),
        )  # fmt: skip
        yield from run_jobs(function, tool, jobs, workers=1)
        return
    try:
        with _interrupts_deferred():  # the first calls start the workers, who need all of the tool
            futures = _submit(pool, jobs)
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _what_workers_need() -> str:
    """Return what to change where worker processes cannot be started."""
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return f"{SHARED_MEMORY} has to be a folder where this user can write"
    try:
        folder = tempfile.gettempdir()
    except OSError:
        folder = ""
    if not folder or len(folder) > LONGEST_TEMPORARY:
        return (
            f"TMPDIR has to be a folder where this user can write, of at most {LONGEST_TEMPORARY} characters"
        )
    return f"make room in {SHARED_MEMORY} and {folder}, and look at the limits of processes and files (`ulimit -a`)"


def _submit(pool: ProcessPoolExecutor, jobs: Sequence[object]) -> list[Future[Any]]:
    try:
        return [pool.submit(_do, job) for job in jobs]
    except BrokenPipeError as error:  # a worker was killed while it started
        raise BrokenProcessPool from error


@contextmanager
def _interrupts_deferred() -> Generator[None]:
    """Hold back an interrupt until the end of the block."""
    received: list[int] = []
    handlers = signals.catch(lambda number, _: received.append(number))
    try:
        yield
    finally:
        signals.restore(handlers)
        if received:  # whatever else it made fail: SIGTERM may have ended workers
            raise KeyboardInterrupt


_function_and_tool: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start_worker(function: Callable[[Any, Any], Any], tool: object) -> None:
    global _function_and_tool
    threading.Thread(target=_exit_after_parent, daemon=True).start()
    _function_and_tool = function, tool


def _exit_after_parent() -> None:
    """End this worker when its parent was killed outright, instead of waiting for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(job: object) -> Any:
    assert _function_and_tool is not None
    function, tool = _function_and_tool
    return function(tool, job)
