"""Write the shards of a dataset, in this process or in many."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.parallel import run_jobs
from data_pipeline.schema import GroupTable, ShardIndex, SplitLayout, SplitName
from data_pipeline.shards.sample_format import Samples
from data_pipeline.shards.writer import Compression, write_shard

MAX_SAMPLES_PER_SHARD = 65536
"""A row of more groups is cut, so that readers need not hold more than this in memory."""
MAX_SHARDS_PER_JOB = 8
"""Few enough to share the work evenly, and enough that a job's last shard is waited for but rarely."""


class Rows(Protocol):
    """The rows of a split, which workers get pickled and ask for in any order."""

    @property
    def compression(self) -> Compression: ...

    @property
    def group_table(self) -> GroupTable: ...

    def samples(self, row: int, groups: NDArray[np.int64]) -> Samples:
        """The samples of some of the groups that have one in a row."""
        ...


class ShardPlace(NamedTuple):
    """Where a shard belongs: part `part` of a row."""

    split: SplitName
    row: int
    part: int

    @property
    def file(self) -> str:
        """Its path in the dataset's folder."""
        return f"{self.split}/row-{self.row:06d}-{self.part:04d}.tar.zst"


class WrittenShard(NamedTuple):
    """A shard on disk."""

    place: ShardPlace
    entry: ShardIndex


def shard_places(layout: SplitLayout) -> list[ShardPlace]:
    """All shards of a split, in the order of its index."""
    return [
        ShardPlace(layout.split, row, part)
        for row, num_samples in enumerate(layout.num_samples_in_rows().tolist())
        for part in range(-(-num_samples // MAX_SAMPLES_PER_SHARD))
    ]


class _ShardWriter:
    """Writes any shard of either split."""

    def __init__(
        self, folder: Path, layouts: Mapping[SplitName, SplitLayout], rows: Mapping[SplitName, Rows]
    ) -> None:
        self._folder = folder
        self._layouts = layouts
        self._rows = rows

    def write(self, job: Sequence[ShardPlace]) -> list[WrittenShard]:
        """Write some shards."""
        shards: list[WrittenShard] = []
        # A thread packs and writes a shard while the next one is made: else the disk's syncs would be waited for.
        with ThreadPoolExecutor(1) as background:
            writing: Future[ShardIndex] | None = None
            for number, place in enumerate(job):
                samples = self._samples(place)
                if writing is not None:
                    shards.append(WrittenShard(job[number - 1], writing.result()))
                writing = background.submit(
                    write_shard,
                    self._folder / place.file,
                    place.row,
                    samples,
                    self._rows[place.split].compression,
                )
            if writing is not None:
                shards.append(WrittenShard(job[-1], writing.result()))
        return shards

    def _samples(self, place: ShardPlace) -> Samples:
        groups = self._layouts[place.split].groups_in_row(place.row)
        first = place.part * MAX_SAMPLES_PER_SHARD
        return self._rows[place.split].samples(place.row, groups[first : first + MAX_SAMPLES_PER_SHARD])


def write_shards(
    folder: Path,
    layouts: Mapping[SplitName, SplitLayout],
    rows: Mapping[SplitName, Rows],
    places: Sequence[ShardPlace],
    workers: int,
) -> Iterator[list[WrittenShard]]:
    """Write these shards into the folder; gives them, some at a time, in any order, once they are on disk."""
    return run_jobs(_ShardWriter.write, _ShardWriter(folder, layouts, rows), _jobs(places, workers), workers)


def _jobs(places: Sequence[ShardPlace], workers: int) -> list[Sequence[ShardPlace]]:
    size = max(1, min(MAX_SHARDS_PER_JOB, len(places) // (4 * workers)))
    return [places[start : start + size] for start in range(0, len(places), size)]
