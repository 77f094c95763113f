"""Write the shards of a dataset, in this process or in many.

The same content has the same bytes on every machine.

A shard is a tar of samples (see sample_format) under zstd. Its tar is laid out in memory as a whole, hashed and
compressed in one call each, so that no step costs anything per sample.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from data_pipeline.base.files import replace_file
from data_pipeline.base.parallel import run_jobs
from data_pipeline.schema import GroupTable, ShardIndex, SplitLayout, SplitName
from data_pipeline.shards.sample_format import Samples, encode_tar

Compression = Literal["fast", "small"]
"""How a shard is compressed: "small" takes four times as long."""

_ZSTD: dict[Compression, zstandard.ZstdCompressionParameters] = {
    "fast": zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_DFAST,
        window_log=18,
        hash_log=12,
        chain_log=12,
        min_match=7,
        write_content_size=1,
    ),
    "small": zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_LAZY,
        window_log=17,
        hash_log=12,
        chain_log=12,
        search_log=2,
        min_match=6,
        write_content_size=1,
    ),
}
"""Near matches cost fewer bits and small tables stay in L1, so on ARC "fast" is as fast as levels 1 to 3 and 6 %
smaller, and "small" is another 14 to 16 % smaller. Sudokus and mazes gain 2 % from it."""


def write_shard(path: Path, row: int, samples: Samples, compression: Compression = "fast") -> ShardIndex:
    """Write the samples of a row, or a part of them, to a new file, and say what is in it."""
    tar = encode_tar(row, samples)
    compressed = compress(tar.data, compression)
    replace_file(path, compressed, make_folder=False)
    return ShardIndex(
        file=path.name,
        row=row,
        first_group=int(samples.groups[0]),
        num_samples=len(samples.groups),
        num_examples=len(samples.examples),
        size_bytes=len(compressed),
        sha256=hashlib.sha256(compressed).hexdigest(),
        tar_sha256=hashlib.sha256(tar.data).hexdigest(),
    )


def compress(tar: memoryview, compression: Compression) -> bytes:
    """Return a tar as a shard's file holds it."""
    return zstandard.ZstdCompressor(compression_params=_ZSTD[compression]).compress(tar)


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
        """Return the samples of some of the groups that have one in a row."""
        ...


class ShardId(NamedTuple):
    """Names a shard: number `number` of a row."""

    split: SplitName
    row: int
    number: int

    @property
    def file(self) -> str:
        """Return its path in the dataset's folder."""
        return f"{self.split}/row-{self.row:06d}-{self.number:04d}.tar.zst"


class WrittenShard(NamedTuple):
    """A shard on disk."""

    shard_id: ShardId
    entry: ShardIndex


def shard_ids(layout: SplitLayout) -> list[ShardId]:
    """Return all shards of a split, in the order of its index."""
    return [
        ShardId(layout.split, row, number)
        for row, num_samples in enumerate(layout.num_samples_in_rows().tolist())
        for number in range(-(-num_samples // MAX_SAMPLES_PER_SHARD))
    ]


class _ShardWriter:
    """Writes any shard of either split."""

    def __init__(
        self, folder: Path, layouts: Mapping[SplitName, SplitLayout], rows: Mapping[SplitName, Rows]
    ) -> None:
        self._folder = folder
        self._layouts = layouts
        self._rows = rows

    def write(self, job: Sequence[ShardId]) -> list[WrittenShard]:
        """Write some shards."""
        # A thread packs and writes a shard while the next one is made: else the disk's syncs would be waited for.
        with ThreadPoolExecutor(1) as background:
            writing: list[Future[ShardIndex]] = []
            for shard_id in job:
                path, samples = self._folder / shard_id.file, self._samples(shard_id)
                if writing:
                    writing[-1].result()  # so that no more than two are in memory
                compression = self._rows[shard_id.split].compression
                writing.append(background.submit(write_shard, path, shard_id.row, samples, compression))
            return [
                WrittenShard(shard_id, done.result()) for shard_id, done in zip(job, writing, strict=True)
            ]

    def _samples(self, shard_id: ShardId) -> Samples:
        groups = self._layouts[shard_id.split].groups_in_row(shard_id.row)
        first = shard_id.number * MAX_SAMPLES_PER_SHARD
        return self._rows[shard_id.split].samples(shard_id.row, groups[first : first + MAX_SAMPLES_PER_SHARD])


def write_shards(
    folder: Path,
    layouts: Mapping[SplitName, SplitLayout],
    rows: Mapping[SplitName, Rows],
    ids: Sequence[ShardId],
    workers: int,
) -> Iterator[list[WrittenShard]]:
    """Write these shards into the folder; yield them, some at a time, in any order, once they are on disk."""
    return run_jobs(_ShardWriter.write, _ShardWriter(folder, layouts, rows), _jobs(ids, workers), workers)


def _jobs(ids: Sequence[ShardId], workers: int) -> list[Sequence[ShardId]]:
    size = max(1, min(MAX_SHARDS_PER_JOB, len(ids) // (4 * workers)))
    return [ids[start : start + size] for start in range(0, len(ids), size)]
