"""Verify a whole dataset: that every file is there, and is what it was when it was built."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import map_threads
from data_pipeline.base.progress import progress_bar
from data_pipeline.schema import (
    REBUILD,
    SPLITS,
    DatasetInfo,
    ShardIndex,
    SplitIndex,
    SplitName,
    load_dataset_info,
    load_split_index,
    verify_document,
)
from data_pipeline.shards.reader import read_shard

MAX_LISTED = 20
"""Problems that a message lists one by one."""

_Content = TypeVar("_Content")


class Dataset(NamedTuple):
    """A dataset that was found sound."""

    folder: Path
    info: DatasetInfo
    indexes: dict[SplitName, SplitIndex]
    names: list[str]
    """Of each puzzle identifier."""

    @property
    def splits_with_rows(self) -> list[SplitName]:
        """Return at least one, the training split first."""
        return [split for split, index in self.indexes.items() if index.shards]


def verify(folder: Path, workers: int, *, show_progress: bool) -> Dataset:
    """Read every file of a dataset; raise InputError that names all that are not as they should be."""
    info = load_dataset_info(folder)
    names = info.document_names()
    expected = {"dataset.json", *(Path(name).parts[0] for name in names)}
    problems = [
        f"{folder / name}: not a part of the dataset; delete it."
        for name in sorted(set(os.listdir(folder)) - expected)
    ]
    documents = {
        name: _noting(problems, lambda name=name: verify_document(folder, info, name)) for name in names
    }
    indexes: dict[SplitName, SplitIndex] = {}
    for split in SPLITS:
        if documents[f"{split}/index.json"] is not None:
            indexes[split] = load_split_index(folder, split)
            problems += _problems_of_index(folder, indexes[split], info)
    problems += _problems_of_shards(folder, list(indexes.values()), workers, show_progress)
    identifiers = documents["identifiers.json"]
    if problems or identifiers is None:
        raise InputError(_problem_list(folder, problems))
    return Dataset(folder, info, indexes, json.loads(identifiers.read_bytes()))


def _noting(problems: list[str], read: Callable[[], _Content]) -> _Content | None:
    """Return what is read, or None when that fails; the reason joins the problems then."""
    try:
        return read()
    except InputError as error:
        problems.append(str(error))
        return None


def _problem_list(folder: Path, problems: list[str]) -> str:
    listed = "\n  ".join(problems[:MAX_LISTED])
    rest = f"\n  and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    return f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  {listed}{rest}"


def _problems_of_index(folder: Path, index: SplitIndex, info: DatasetInfo) -> Iterator[str]:
    """Find where dataset.json, which has no checksum itself, or the files of a split are unlike the split's index."""
    said = {"canvas": info.canvas, "seq_len": info.seq_len}
    said |= (info.splits.train if index.split == "train" else info.splits.test).model_dump()
    counted = {"canvas": index.canvas, "seq_len": index.seq_len} | index.sizes().model_dump()
    for key, value in counted.items():
        if said[key] != value:
            yield (
                f"{folder / 'dataset.json'}: {key} of {index.split} is {said[key]}, but {value} in its index.json; "
                f"{REBUILD}."
            )
    listed = {"index.json", *(shard.file for shard in index.shards)}
    for file in sorted(set(os.listdir(folder / index.split)) - listed):
        yield f"{folder / index.split / file}: not a part of the dataset; delete it."


def _problems_of_shards(
    folder: Path, indexes: list[SplitIndex], workers: int, show_progress: bool
) -> list[str]:
    jobs = [(index, entry) for index in indexes for entry in index.shards]

    def check(job: tuple[SplitIndex, ShardIndex]) -> str | None:
        return _problem_of_shard(folder / job[0].split, *job)

    problems: list[str] = []
    with progress_bar("verifying", "shard", len(jobs), shown=show_progress) as progress:
        for problem in map_threads(check, jobs, workers):
            problems += [problem] if problem else []
            progress.update()
    return problems


def _problem_of_shard(split_dir: Path, index: SplitIndex, entry: ShardIndex) -> str | None:
    """Return what is wrong with a shard; None if nothing is."""
    try:
        shard = read_shard(split_dir, index, entry)
    except InputError as error:
        return str(error)
    if hashlib.sha256(shard.tar.data).hexdigest() != entry.tar_sha256:
        return f"{split_dir / entry.file}: the tar within has another sha256 than index.json says; {REBUILD}."
    return None
