"""Shards to batches of tensors; the only module here that knows torch.

`TrainReader` gives the batch of any step in any order, so a resumed run needs no more than its step;
`TestReader` goes through the held-out examples in a fixed order.

The shards are webdataset's, under zstd. To go through one with functions of `webdataset.tariterators`:

    tar = ZstdDecompressor().stream_reader(open("train/row-000000-0000.tar.zst", "rb"))
    samples = group_by_keys({**file, "__url__": ""} for file in tar_file_iterator(tar))

or to have `wds.WebDataset("zst:train/row-000000-0000.tar.zst", shardshuffle=False).decode()` open them:

    from webdataset.gopen import gopen_schemes
    gopen_schemes["zst"] = lambda url, *_: ZstdDecompressor().stream_reader(Path(url[4:]).read_bytes())
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.sampler import SamplePlan, check_divisible, rank_slice
from data_pipeline.schema import (
    IGNORE_LABEL_ID,
    REBUILD,
    SPLITS,
    DatasetInfo,
    DatasetMetadata,
    ShardIndex,
    SplitIndex,
    SplitName,
    load_dataset_info,
    load_split_index,
    verify_document,
)
from data_pipeline.shards.reader import Shard, read_shard

CACHE_BYTES = 64 * 2**20
"""Decoded shards kept for the next steps: the whole of a small dataset, some ten rows of ARC."""


class TestBatch(TypedDict):
    """A batch of held-out examples; the last one of a run may be smaller than the others.

    Inputs are bytes, for the device; labels int32, IGNORE_LABEL_ID where padded, for the host, which counts what is
    right.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    puzzle_identifiers: torch.Tensor
    example_index: torch.Tensor


class Places(NamedTuple):
    """Where each held-out example comes from, all [N]."""

    rounds: NDArray[np.int64]
    """The row of the dataset: 0 every task as it is, then an augmentation of each."""
    groups: NDArray[np.int64]
    """Which task."""
    examples: NDArray[np.int64]
    """Which example of it."""


class OpenedDataset(NamedTuple):
    """A dataset of which every file is there."""

    info: DatasetInfo
    indexes: dict[SplitName, SplitIndex]


def open_dataset(dataset_dir: Path) -> OpenedDataset:
    """Read what describes a dataset, and look whether its shards are there and as long as they were.

    So a run does not begin on a dataset of which only a part has been copied. Raise InputError.
    """
    info = load_dataset_info(dataset_dir)
    indexes: dict[SplitName, SplitIndex] = {split: load_split_index(dataset_dir, split) for split in SPLITS}
    for name in info.document_names():
        verify_document(dataset_dir, info, name)
    for split, index in indexes.items():
        with os.scandir(dataset_dir / split) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        for shard in index.shards:
            if sizes.get(shard.file) != shard.size_bytes:
                state = "damaged, not as long as it was" if shard.file in sizes else "missing"
                raise InputError(f"{dataset_dir / split / shard.file}: {state}; {REBUILD}.")
    return OpenedDataset(info, indexes)


class _Shards:
    """The decoded shards of a split; the ones used last stay in memory."""

    def __init__(self, dataset_dir: Path, index: SplitIndex) -> None:
        self.index = index
        self._split_dir = dataset_dir / index.split
        self._verified: set[str] = set()
        self._cached: OrderedDict[str, Shard] = OrderedDict()

    def get(self, shard: ShardIndex) -> Shard:
        """Return a shard's content; its file is checked the first time."""
        if shard.file in self._cached:
            self._cached.move_to_end(shard.file)
            return self._cached[shard.file]
        decoded = read_shard(self._split_dir, self.index, shard, verified=shard.file in self._verified)
        self._verified.add(shard.file)
        self._cached[shard.file] = decoded
        while len(self._cached) > 1 and self._cached_bytes() > CACHE_BYTES:
            self._cached.popitem(last=False)
        return decoded

    def _cached_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self._cached.values())


class TrainReader:
    """A rank's slice of the global batch of any step."""

    def __init__(
        self, dataset_dir: Path | str, seed: int, global_batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_divisible(global_batch_size, world_size)
        self.info, indexes = open_dataset(Path(dataset_dir))
        self.metadata: DatasetMetadata = self.info.metadata("train")
        self._shards = _Shards(Path(dataset_dir), indexes["train"])
        index = self._shards.index
        self._plan = SamplePlan(index, seed, global_batch_size)
        self._rank, self._world_size = rank, world_size
        self._first_groups = np.array([shard.first_group for shard in index.shards if shard.row == 0])

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Return `inputs` and `labels` [b, S] uint8, `puzzle_identifiers` [b] int32, of a step counted from 0.

        `widen` makes of it what the model takes.
        """
        plan = self._plan.batch(step)
        row, group, example = (rank_slice(array, self._rank, self._world_size) for array in plan)
        shards_per_row = len(self._first_groups)
        shard_in_row = np.searchsorted(self._first_groups, group, side="right") - 1
        shard_number = row * shards_per_row + shard_in_row
        numbers = list(dict.fromkeys(shard_number.tolist()))  # in order of use: the last stays cached
        if len(numbers) == 1:
            examples, identifiers = self._read(numbers[0], group, example)
            return to_tensors(examples, identifiers)
        examples = np.empty((len(row), 2, self.info.seq_len), dtype=np.uint8)
        identifiers = np.empty(len(row), dtype=np.int32)
        for number in numbers:
            chosen = shard_number == number
            examples[chosen], identifiers[chosen] = self._read(number, group[chosen], example[chosen])
        return to_tensors(examples, identifiers)

    def _read(
        self, shard_number: int, group: NDArray[np.int64], example: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Read examples [k, 2, S] and identifiers [k] out of one shard."""
        shard = self._shards.get(self._shards.index.shards[shard_number])
        sample = group - self._first_groups[shard_number % len(self._first_groups)]
        return shard.examples(shard.starts[sample] + example), shard.identifiers[sample]


class TestReader:
    """Held-out examples in the order of (row, group, example): every task as it is, then augmented."""

    __test__ = False  # it is no test, whatever pytest thinks of the name

    def __init__(
        self,
        dataset_dir: Path | str,
        max_groups: int | None = None,
        num_aug: int | None = None,
        split: SplitName = "test",
    ) -> None:
        """Keep to the first `max_groups` groups, and to the original and `num_aug` augmentations of each.

        split: `train` goes through what trains in the same way, for people to look at.
        """
        self.info, indexes = open_dataset(Path(dataset_dir))
        self.metadata: DatasetMetadata = self.info.metadata(split)
        self._shards = _Shards(Path(dataset_dir), indexes[split])
        self._index = index = self._shards.index
        self._num_groups = len(range(len(index.groups))[:max_groups])
        self.group_names = list(index.groups.names or ())[:max_groups]
        num_rows = index.num_rows if num_aug is None else 1 + num_aug
        self._chosen = [
            shard for shard in index.shards if shard.row < num_rows and shard.first_group < self._num_groups
        ]
        sizes = [index.groups.num_examples[self._groups_of(shard)].sum() for shard in self._chosen]
        self._ends = np.cumsum(np.array(sizes, dtype=np.int64))  # of each shard's wanted examples

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[TestBatch]:
        """Yield examples start..stop-1 in batches; going straight to `start` costs no more than one shard."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, batch_size):
            yield self.take(np.arange(first, min(first + batch_size, stop)))

    def take(self, rows: NDArray[np.int64]) -> TestBatch:
        """Return the examples with these numbers, in this order; at least one."""
        examples = np.empty((len(rows), 2, self.info.seq_len), dtype=np.uint8)
        identifiers, example_index = np.empty((2, len(rows)), dtype=np.int32)
        numbers = self._ends.searchsorted(rows, side="right")
        for number in np.unique(numbers):
            chosen = numbers == number
            shard = self._shards.get(self._chosen[int(number)])
            row_in_shard = rows[chosen] - (self._ends[number - 1] if number > 0 else 0)
            sample = shard.starts.searchsorted(row_in_shard, side="right") - 1
            examples[chosen] = shard.examples(row_in_shard)
            identifiers[chosen] = shard.identifiers[sample]
            example_index[chosen] = row_in_shard - shard.starts[sample]
        tensors = to_tensors(examples, identifiers)
        return TestBatch(
            inputs=tensors["inputs"],
            labels=widen(tensors, self.info.pad_id)["labels"],
            puzzle_identifiers=tensors["puzzle_identifiers"],
            example_index=_tensor(example_index),
        )

    def places(self) -> Places:
        """Return where each example comes from, in order."""
        groups = [self._groups_of(shard) for shard in self._chosen]
        sizes = [self._index.groups.num_examples[of_shard] for of_shard in groups]
        size_of_sample = np.concatenate([np.empty(0, np.int64), *sizes])
        starts = np.cumsum(size_of_sample) - size_of_sample
        rounds = [
            np.full(len(of_shard), shard.row) for shard, of_shard in zip(self._chosen, groups, strict=True)
        ]
        return Places(
            rounds=np.repeat(np.concatenate([np.empty(0, np.int64), *rounds]), size_of_sample),
            groups=np.repeat(np.concatenate([np.empty(0, np.int64), *groups]), size_of_sample),
            examples=np.arange(len(self)) - np.repeat(starts, size_of_sample),
        )

    def _groups_of(self, shard: ShardIndex) -> NDArray[np.int64]:
        """Return the wanted groups of a shard, which lead it, in its order."""
        groups = self._index.groups_of_shard(shard)
        return groups[groups < self._num_groups]


def to_tensors(examples: NDArray[np.uint8], identifiers: NDArray[np.int32]) -> dict[str, torch.Tensor]:
    """Return examples [b, 2, S] and identifiers [b] as a batch of bytes, in which padding is as stored."""
    return {
        "inputs": _tensor(examples[:, 0].copy()),
        "labels": _tensor(examples[:, 1].copy()),
        "puzzle_identifiers": _tensor(identifiers),
    }


def widen(batch: Mapping[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """Return a batch as the model takes it, on the device it is on: all int32, labels of padding IGNORE_LABEL_ID."""
    wide = {name: tensor.to(torch.int32) for name, tensor in batch.items()}
    return {**wide, "labels": torch.where(batch["labels"] == pad_id, IGNORE_LABEL_ID, wide["labels"])}


def _tensor(array: NDArray[np.uint8] | NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
