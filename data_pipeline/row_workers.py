"""Write the rows of a dataset, in this process or in many."""

import os
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data_pipeline.rows import SplitPlan
from data_pipeline.schema import ShardIndex, SplitName

MAX_SAMPLES_PER_SHARD = 65536
"""A row of more groups is cut, so that readers need not hold more than this in memory."""


class _Job(NamedTuple):
    split: SplitName
    row: int


class _RowWriter:
    """Writes rows of either split."""

    def __init__(self, folder: Path, plans: list[SplitPlan]) -> None:
        self._folder = folder
        self._plans = {plan.split: plan for plan in plans}

    def write(self, job: _Job) -> list[ShardIndex]:
        """Write the shards of one row."""
        from data_pipeline.writer import (
            write_shard,
        )  # loads torch (through webdataset), so only for good input

        plan = self._plans[job.split]
        groups = plan.groups_in_row(job.row)
        shards: list[ShardIndex] = []
        for part, start in enumerate(range(0, len(groups), MAX_SAMPLES_PER_SHARD)):
            path = self._folder / job.split / f"row-{job.row:06d}-{part:04d}.tar.zst"
            samples = plan.samples(job.row, groups[start : start + MAX_SAMPLES_PER_SHARD])
            shards.append(write_shard(path, job.row, samples))
        return shards


def write_rows(
    folder: Path, plans: list[SplitPlan], workers: int, *, show_progress: bool
) -> dict[SplitName, list[ShardIndex]]:
    """Write every row of the splits into the folders named after them; the shards come in any order."""
    jobs = [_Job(plan.split, row) for plan in plans for row in range(plan.num_rows)]
    shards: dict[SplitName, list[ShardIndex]] = {plan.split: [] for plan in plans}
    writer = _RowWriter(folder, plans)
    written = _write_here(writer, jobs) if workers == 1 else _write_in_workers(writer, jobs, workers)
    for job, row_shards in tqdm(written, total=len(jobs), desc="rows", unit="row", disable=not show_progress):
        shards[job.split].extend(row_shards)
    return shards


def _write_here(writer: _RowWriter, jobs: list[_Job]) -> Iterator[tuple[_Job, list[ShardIndex]]]:
    for job in jobs:
        yield job, writer.write(job)


def _write_in_workers(
    writer: _RowWriter, jobs: list[_Job], workers: int
) -> Iterator[tuple[_Job, list[ShardIndex]]]:
    # The fork server imports torch once, and the workers forked from it share its pages.
    context = get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.writer"])
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
