"""What the JSON files of a dataset folder say.

dataset.json         DatasetInfo: what the whole is, and of what it was made
identifiers.json     list: puzzle identifier -> puzzle name
test_puzzles.json    task id -> {"train": [...], "test": [...]}: original grids of the held-out tasks
train/index.json     SplitIndex, beside the shards that it lists; likewise test/
"""

import json
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.errors import InputError

IGNORE_LABEL_ID = -100
"""Label that the loss leaves out; readers put it where the label is padding."""

FORMAT_VERSION = 1
SplitName = Literal["train", "test"]
REBUILD = "delete the dataset's folder and build it again with `python -m data_pipeline.build`"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetMetadata(_Strict):
    """What a model and a schedule need to know of a split, in the published fields."""

    seq_len: int
    vocab_size: int
    pad_id: int
    ignore_label_id: int | None
    """Label token in the shards that carries no loss (the padding)."""
    blank_identifier_id: int
    num_puzzle_identifiers: int
    """Including the blank one."""
    total_groups: int
    mean_puzzle_examples: float
    """Distinct examples / distinct puzzles."""
    sets: tuple[str, ...]


class SourceInfo(_Strict):
    """One source and the sha256 of the tasks read from it."""

    name: str
    sha256: str
    num_tasks: int


class BuildOptions(_Strict):
    """The options that decide a dataset's content, beside sources and seed."""

    num_aug: int
    holdout: Literal["evaluation", "all"]
    canvas: int
    limit_groups: int | None


class SplitInfo(_Strict):
    """Sizes of a split; puzzles and examples are counted once however often rows repeat them."""

    total_groups: int
    mean_puzzle_examples: float
    num_puzzles: int
    num_examples: int
    num_rows: int
    size_bytes: int


class Splits(_Strict):
    train: SplitInfo
    test: SplitInfo


class DatasetInfo(_Strict):
    """The content of dataset.json."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["arc"]
    canvas: int = Field(ge=1)
    seq_len: int
    vocab_size: int
    pad_id: int
    ignore_label_id: int
    blank_identifier_id: int
    num_puzzle_identifiers: int
    sets: tuple[str, ...]
    seed: int
    options: BuildOptions
    sources: tuple[SourceInfo, ...]
    num_tasks_left_out: int
    """Tasks with a grid larger than the canvas."""
    splits: Splits

    def metadata(self, split: SplitName) -> DatasetMetadata:
        """The published view of one split."""
        info = self.splits.train if split == "train" else self.splits.test
        return DatasetMetadata(
            seq_len=self.seq_len,
            vocab_size=self.vocab_size,
            pad_id=self.pad_id,
            ignore_label_id=self.ignore_label_id,
            blank_identifier_id=self.blank_identifier_id,
            num_puzzle_identifiers=self.num_puzzle_identifiers,
            total_groups=info.total_groups,
            mean_puzzle_examples=info.mean_puzzle_examples,
            sets=self.sets,
        )


class GroupIndex(_Strict):
    """One original task: its puzzles have the identifiers first_identifier, +1, ..., the original first."""

    name: str
    num_puzzles: int = Field(ge=1)
    num_examples: int = Field(ge=1)
    """Per puzzle."""
    first_identifier: int = Field(ge=0)


class ShardIndex(_Strict):
    """One `.tar.zst` file: consecutive samples of a row, one per group."""

    file: str = Field(pattern=r"^[a-z0-9-]+\.tar\.zst$")
    row: int = Field(ge=0)
    first_group: int = Field(ge=0)
    num_samples: int = Field(ge=1)
    num_examples: int = Field(ge=1)
    size_bytes: int
    sha256: str
    tar_sha256: str
    """Of the uncompressed tar, which other zstd releases leave alone."""


class SplitIndex(_Strict):
    """The content of <split>/index.json; shards in order of (row, first_group)."""

    format_version: Literal[1] = FORMAT_VERSION
    split: SplitName
    num_rows: int = Field(ge=0)
    canvas: int = Field(ge=1)
    seq_len: int = Field(ge=1)
    groups: tuple[GroupIndex, ...]
    shards: tuple[ShardIndex, ...]

    @model_validator(mode="after")
    def _shards_make_up_the_rows(self) -> Self:
        places = [(shard.row, shard.first_group) for shard in self.shards]
        if places != sorted(set(places)):
            raise ValueError("shards are not in order of (row, first_group)")
        num_puzzles = sorted(group.num_puzzles for group in self.groups)
        samples_of_row = Counter[int]()
        for shard in self.shards:
            samples_of_row[shard.row] += shard.num_samples
        for row in range(self.num_rows):
            missing = bisect_right(num_puzzles, row) if self.split == "test" else 0
            if samples_of_row.pop(row, 0) != len(self.groups) - missing:
                raise ValueError(f"the shards of row {row} do not make up its groups")
        if samples_of_row:
            raise ValueError(f"there are shards of rows beyond num_rows={self.num_rows}")
        return self


_Document = TypeVar("_Document", bound=_Strict)


def load_dataset_info(dataset_dir: Path | str) -> DatasetInfo:
    """Read dataset.json; raises InputError when it is missing, damaged or of another format."""
    return _load(Path(dataset_dir) / "dataset.json", DatasetInfo)


def load_split_index(dataset_dir: Path | str, split: SplitName) -> SplitIndex:
    """Read <split>/index.json; raises InputError when it is missing, damaged or of another format."""
    return _load(Path(dataset_dir) / split / "index.json", SplitIndex)


def _load(path: Path, document: type[_Document]) -> _Document:
    try:
        content: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found, so this is no dataset; build one with "
            "`python -m data_pipeline.build arc-agi-1 --out DIR`."
        ) from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the path and its rights."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, not JSON ({error}); {REBUILD}.") from None
    version = cast(dict[str, object], content).get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version!r} is not {FORMAT_VERSION}, which this release reads; "
            f"{REBUILD}."
        )
    try:
        return document.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "content"
        value = "" if problem["type"] == "value_error" else f" (got {problem['input']!r:.60})"
        raise InputError(f"{path}: {key}: {problem['msg']}{value}; {REBUILD}.") from None
