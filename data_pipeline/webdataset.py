"""Open a split as a stock webdataset pipeline, to train something else on this data.

    loader = DataLoader(open_split("data/arc1", "train", shuffle=1000), batch_size=32, num_workers=4)
    for batch in loader:
        batch["inputs"], batch["labels"], batch["puzzle_name"]

An iteration goes through every row once. A puzzle with fewer augmentations than there are rows comes several times.
Shards are dealt out to processes (RANK and WORLD_SIZE, as torchrun sets them), and those of a process to the workers of
its DataLoader. So all of them together see everything once, but not equally much each, and nothing where there are
fewer shards than processes; `.with_epoch(n)` makes every worker yield n. Where ranks have to stay in step, or a run to
resume, use data_pipeline/reader.py.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from webdataset.filters import detshuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList, split_by_node, split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipeline.base.errors import InputError
from data_pipeline.reader import open_dataset, to_tensors, widen
from data_pipeline.schema import HOW_TO_HOLD_OUT, NOTHING_HELD_OUT, SplitIndex, SplitName
from data_pipeline.shards.reader import read_shard
from data_pipeline.shards.sample_format import NPY_HEADER

Item = dict[str, Any]


def open_split(
    dataset_dir: Path | str,
    split: SplitName,
    *,
    per: Literal["example", "puzzle"] = "example",
    shuffle: int = 0,
    seed: int = 0,
) -> DataPipeline:
    """Return a pipeline of dicts with the tensors of `data_pipeline.reader`, `puzzle_name` and `__key__`.

    Of an example they are `inputs` and `labels` [tokens] (padding: -100), `puzzle_identifiers` [] and `example_index`,
    its number in the puzzle; of a puzzle `inputs` and `labels` [examples, tokens] and `puzzle_identifiers` [examples].

    With `shuffle` shards come in random order, and that many items are held to draw the next one from. `seed` decides
    the order, so give all processes the same, and another one for every epoch: workers that are not persistent know of
    none. Every shard's checksum and headers are verified when it is read. Raises InputError, here or then.
    """
    dataset = open_dataset(Path(dataset_dir))
    index = dataset.indexes[split]
    if not index.shards:
        raise InputError(f"{dataset_dir}: {NOTHING_HELD_OUT}; build it with {HOW_TO_HOLD_OUT}.")
    names = json.loads((Path(dataset_dir) / "identifiers.json").read_bytes())
    stages = _Stages(Path(dataset_dir) / split, index, dataset.info.pad_id, names)
    num_shards = len(index.shards)
    return DataPipeline(
        SimpleShardList([shard.file for shard in index.shards]),
        detshuffle(num_shards, num_shards, seed) if shuffle else None,
        split_by_node,
        split_by_worker,
        stages.open_shards,
        tar_file_expander,
        group_by_keys,
        stages.puzzles if per == "puzzle" else stages.examples,
        detshuffle(shuffle, shuffle, seed) if shuffle else None,
    )


@dataclass(frozen=True)
class _Stages:
    """The stages that webdataset does not have. Workers get them pickled."""

    split_dir: Path
    index: SplitIndex
    pad_id: int
    names: list[str]

    def open_shards(self, sources: Iterable[Item]) -> Iterator[Item]:
        shards = {shard.file: shard for shard in self.index.shards}
        for source in sources:
            shard = read_shard(self.split_dir, self.index, shards[source["url"]])
            yield {**source, "stream": io.BytesIO(shard.tar.data)}

    def puzzles(self, samples: Iterable[Item]) -> Iterator[Item]:
        for sample in samples:
            # Not `np.load`: the header has been verified, and parsing it takes longer than all the rest.
            cells = np.frombuffer(sample["npy"], dtype=np.uint8, offset=NPY_HEADER)
            examples = cells.reshape(-1, 2, self.index.seq_len)
            identifier = int(sample["__key__"].rpartition("_p")[2])
            identifiers = np.full(len(examples), identifier, dtype=np.int32)
            tensors = widen(to_tensors(examples, identifiers), self.pad_id)
            yield {"__key__": sample["__key__"], "puzzle_name": self.names[identifier], **tensors}

    def examples(self, samples: Iterable[Item]) -> Iterator[Item]:
        for puzzle in self.puzzles(samples):
            for i in range(len(puzzle["inputs"])):
                tensors = {name: puzzle[name][i] for name in ("inputs", "labels", "puzzle_identifiers")}
                yield {**puzzle, **tensors, "example_index": i}
