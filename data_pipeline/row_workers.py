"""Write the rows of a dataset, in this process or in many."""

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_pipeline.sample_format import Samples
from data_pipeline.schema import ShardIndex, SplitName
from data_pipeline.writer import write_shard

MAX_SAMPLES_PER_SHARD = 65536
"""A row of more groups is cut, so that readers need not hold more than this in memory."""
MAX_ROWS_PER_JOB = 8
"""Few enough to share the work evenly, and enough that a job's last shard is waited for but rarely."""


class Rows(Protocol):
    """The rows of a split, which workers get pickled and ask for in any order."""

    @property
    def split(self) -> SplitName: ...

    @property
    def num_rows(self) -> int: ...

    def groups_in_row(self, row: int) -> NDArray[np.int64]:
        """Places in the split of the groups that have a sample in a row, ascending."""
        ...

    def samples(self, row: int, groups: NDArray[np.int64]) -> Samples:
        """The samples of some of these groups."""
        ...


class _Job(NamedTuple):
    split: SplitName
    rows: range


class _RowWriter:
    """Writes rows of either split."""

    def __init__(self, folder: Path, plans: Sequence[Rows]) -> None:
        self._folder = folder
        self._plans = {plan.split: plan for plan in plans}

    def write(self, job: _Job) -> list[ShardIndex]:
        """Write the shards of some rows."""
        shards: list[ShardIndex] = []
        # A thread packs and writes a shard while the next one is made: else the disk's syncs would be waited for.
        with ThreadPoolExecutor(1) as background:
            writing: Future[ShardIndex] | None = None
            for path, row, samples in self._samples(job):
                if writing is not None:
                    shards.append(writing.result())
                writing = background.submit(write_shard, path, row, samples)
            if writing is not None:
                shards.append(writing.result())
        return shards

    def _samples(self, job: _Job) -> Iterator[tuple[Path, int, Samples]]:
        """The file, row and content of each shard."""
        plan = self._plans[job.split]
        for row in job.rows:
            groups = plan.groups_in_row(row)
            for part, start in enumerate(range(0, len(groups), MAX_SAMPLES_PER_SHARD)):
                path = self._folder / job.split / f"row-{row:06d}-{part:04d}.tar.zst"
                yield path, row, plan.samples(row, groups[start : start + MAX_SAMPLES_PER_SHARD])


def write_rows(
    folder: Path, plans: Sequence[Rows], workers: int, *, show_progress: bool
) -> dict[SplitName, list[ShardIndex]]:
    """Write every row of the splits into the folders named after them; the shards come in any order."""
    jobs = [job for plan in plans for job in _jobs(plan, workers)]
    shards: dict[SplitName, list[ShardIndex]] = {plan.split: [] for plan in plans}
    writer = _RowWriter(folder, plans)
    written = _write_here(writer, jobs) if workers == 1 else _write_in_workers(writer, jobs, workers)
    num_rows = sum(plan.num_rows for plan in plans)
    with tqdm(total=num_rows, desc="rows", unit="row", disable=not show_progress) as progress:
        for job, row_shards in written:
            shards[job.split].extend(row_shards)
            progress.update(len(job.rows))
    return shards


def _jobs(plan: Rows, workers: int) -> list[_Job]:
    size = max(1, min(MAX_ROWS_PER_JOB, plan.num_rows // (4 * workers)))
    starts = range(0, plan.num_rows, size)
    return [_Job(plan.split, range(start, min(start + size, plan.num_rows))) for start in starts]


def _write_here(writer: _RowWriter, jobs: list[_Job]) -> Iterator[tuple[_Job, list[ShardIndex]]]:
    for job in jobs:
        yield job, writer.write(job)


def _write_in_workers(
    writer: _RowWriter, jobs: list[_Job], workers: int
) -> Iterator[tuple[_Job, list[ShardIndex]]]:
    # The fork server imports numpy and the rest once, and the workers forked from it share its pages.
    context = get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.row_workers"])
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=_start_worker, initargs=(writer,)
    )
    try:
        with _interrupts_deferred():  # the first calls start the workers, who need all of the plan
            job_of_future = {pool.submit(_write_in_worker, job): job for job in jobs}
        for future in as_completed(job_of_future):
            yield job_of_future[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_deferred() -> Generator[None]:
    """Hold back an interrupt until the end of the block."""
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:  # whatever else it made fail: Ctrl-C reaches workers that are not yet deaf to it
            raise KeyboardInterrupt


_worker_writer: _RowWriter | None = None


def _start_worker(writer: _RowWriter) -> None:
    global _worker_writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which stops the workers
    threading.Thread(target=_exit_after_parent, daemon=True).start()
    _worker_writer = writer


def _exit_after_parent() -> None:
    """Not to wait for work forever when the parent was killed outright."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_worker(job: _Job) -> list[ShardIndex]:
    assert _worker_writer is not None
    return _worker_writer.write(job)
