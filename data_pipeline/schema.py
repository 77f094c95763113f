"""What the JSON files of a dataset folder say.

dataset.json         DatasetInfo: what the whole is, of what it was made, and the sha256 of the other files
identifiers.json     list: puzzle identifier -> puzzle name
test_puzzles.json    task id -> {"train": [...], "test": [...]}: original grids of the held-out tasks
windows.json         of ARC, the part of the canvas that each puzzle needs; see data_pipeline.windows
train/index.json     SplitIndex, beside the shards that it lists; likewise test/
"""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from data_pipeline.base.errors import InputError, unreadable
from data_pipeline.base.files import json_bytes
from data_pipeline.base.models import Strict, reason_of

IGNORE_LABEL_ID = -100
"""Label that the loss leaves out; readers put it where the label is padding."""

FORMAT_VERSION = 1
MAX_GROUPS = 10**7
"""As many as the seven digits in the key of a sample can tell."""

Counts = NDArray[np.int32]
SplitName = Literal["train", "test"]
DOCUMENTS = ("identifiers.json", "test_puzzles.json", "train/index.json", "test/index.json")
"""The JSON files that every dataset has beside dataset.json, which has their checksums."""
WINDOWS = "windows.json"
"""A further one, of kinds that have windows; not in datasets of earlier versions."""
SPLITS: tuple[SplitName, SplitName] = ("train", "test")
BUILDING = "building"
"""Folder in that of a dataset with what is needed only until the dataset is complete."""
SHOWN_HASH = 12
"""Digits of a subset's hash that people see."""
BLANK_NAME = "<blank>"
"""Name of puzzle identifier 0, which no task may take."""
NOTHING_HELD_OUT = "nothing is held out of training"
HOW_TO_HOLD_OUT = "--source PATH:evaluation, or for ARC --holdout all"
REBUILD = "delete the dataset's folder and build it again with `python -m data_pipeline.build`"


class SourceInfo(Strict):
    """One source and the sha256 of its content: of the tasks read from it, or of the bytes of a CSV file."""

    name: str
    sha256: str
    num_tasks: int
    """Tasks or puzzles in it, chosen or not."""


class Identity(Strict):
    """What decides the bytes of a dataset."""

    kind: str
    """Of its puzzles; see data_pipeline.kinds."""
    options: dict[str, JsonValue]
    """Those of the kind."""
    seed: int
    sources: tuple[SourceInfo, ...]


class DatasetMetadata(Strict):
    """What a model and a schedule need to know of a split, in the published fields."""

    seq_len: int
    vocab_size: int
    pad_id: int = 0
    ignore_label_id: int | None = 0
    """Label token in the shards that carries no loss (the padding)."""
    blank_identifier_id: int = 0
    num_puzzle_identifiers: int
    """Including the blank one."""
    total_groups: int
    mean_puzzle_examples: float
    """Distinct examples / distinct puzzles."""
    sets: tuple[str, ...] = ("all",)


class Leak(Strict):
    """A held-out pair that also stands in the training data, as it is or as an augmentation makes it."""

    held_out: str
    num_in_training: int
    in_training: tuple[str, ...]
    """The first of the training pairs that it is among."""


class Leaks(Strict):
    """The held-out pairs that also stand in the training data; with `dropped`, that stood there."""

    dropped: bool = False
    num_pairs: int = 0
    pairs: tuple[Leak, ...] = ()
    """The first of them."""


class LeftOut(Strict):
    """Tasks or files of a source that are not in the dataset."""

    why: str
    num: int
    names: tuple[str, ...] = ()
    """The first of them."""


class SourceReading(Strict):
    """What was read from a source, and what became of it.

    Every task read is trained on, held out or left out.
    """

    source: str
    """As `SourceInfo.name`."""
    num_tasks: int
    """Tasks or puzzles read."""
    num_trained: int
    """Those of which everything trains."""
    num_held_out: int
    """Those whose test pairs are held out; demonstrations, if they have any, train."""
    num_without_output: int = 0
    """Those of them that cannot be scored, since an output is hidden."""
    left_out: tuple[LeftOut, ...] = ()
    """Tasks that were read."""
    not_read: tuple[LeftOut, ...] = ()
    """Files."""

    @model_validator(mode="after")
    def _all_are_accounted_for(self) -> Self:
        told = self.num_trained + self.num_held_out + sum(some.num for some in self.left_out)
        if told != self.num_tasks:
            raise ValueError(f"{self.source}: read {self.num_tasks}, but {told} are accounted for")
        return self


class SplitInfo(Strict):
    """Sizes of a split; puzzles and examples are counted once however often rows repeat them."""

    total_groups: int
    mean_puzzle_examples: float
    num_puzzles: int
    num_examples: int
    num_rows: int
    size_bytes: int


class Splits(Strict):
    train: SplitInfo
    test: SplitInfo


class SubsetInfo(Strict):
    """The puzzles of a split as they were before augmentation, by which anybody can tell the same set."""

    name: str | None = None
    """That of data_pipeline.subsets, where it is one of these."""
    num: int
    sha256: str
    """Of the set, whatever its order; see data_pipeline.subsets."""


class Subsets(Strict):
    """The puzzles of both splits."""

    train: SubsetInfo
    test: SubsetInfo

    def __getitem__(self, split: SplitName) -> SubsetInfo:
        return self.train if split == "train" else self.test


class DatasetHead(Strict):
    """What dataset.json says before the sizes of the splits are known."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: str
    canvas: int = Field(ge=1)
    """Side of a grid, with its padding."""
    seq_len: int
    vocab_size: int
    pad_id: int = 0
    ignore_label_id: int = 0
    blank_identifier_id: int = 0
    num_puzzle_identifiers: int
    sets: tuple[str, ...] = ("all",)
    seed: int
    options: dict[str, JsonValue]
    sources: tuple[SourceInfo, ...]
    num_tasks_left_out: int = 0
    """Tasks with a grid larger than the canvas."""
    leaks: Leaks
    readings: tuple[SourceReading, ...] = ()
    """A row per source; none in datasets of new puzzles and of earlier versions."""
    left_out_tests: dict[str, int] = Field(default_factory=dict)
    """Held-out tasks that were read but are not in the dataset, and how many test inputs each has."""
    subsets: Subsets | None = None
    """None in datasets of earlier versions."""

    @property
    def identity(self) -> Identity:
        """Return what decided its bytes."""
        return Identity(kind=self.kind, options=self.options, seed=self.seed, sources=self.sources)

    def subset(self, split: SplitName) -> str:
        """Return which puzzles a split holds, as NAME@HASH or else KIND@HASH; empty where that is not known."""
        found = self.subsets and self.subsets[split]
        return f"{found.name or self.kind}@{found.sha256[:SHOWN_HASH]}" if found and found.num else ""

    def subset_of_both(self) -> str:
        """Return the puzzles of both splits as `--subset` takes them, or as KIND@HASH+HASH; empty if not known."""
        if self.subsets is None:
            return ""
        names = {self.subsets[split].name for split in SPLITS if self.subsets[split].num}
        name = names.pop() if len(names) == 1 else None
        shown = (self.subsets[split].sha256[:SHOWN_HASH] for split in SPLITS if self.subsets[split].num)
        return f"{name or self.kind}@{'+'.join(shown)}"


# What earlier versions, which built the same datasets, did not report.
_REPORTED = ("readings", "left_out_tests", "subsets")


class DatasetInfo(DatasetHead):
    """The content of dataset.json."""

    splits: Splits
    documents: dict[str, str]
    """Path and sha256 of the other JSON files."""
    sha256: str
    """Of all the rest."""

    def document_names(self) -> tuple[str, ...]:
        """Return the JSON files that have to be there: those of every dataset, and what else has a checksum."""
        return tuple(dict.fromkeys((*DOCUMENTS, *self.documents)))

    def digest(self) -> str:
        """Return what `sha256` has to be."""
        absent = {name for name in _REPORTED if not getattr(self, name)}
        text = json.dumps(self.model_dump(exclude={"sha256", *absent}), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def content(self) -> bytes:
        """Return dataset.json as it would be without what the build only reports: the same for equal datasets."""
        listed = {name: digest for name, digest in self.documents.items() if name in DOCUMENTS}
        bare = self.model_copy(
            update={"readings": (), "left_out_tests": {}, "subsets": None, "documents": listed}
        )
        fields = bare.model_dump(exclude=set(_REPORTED)) | {"sha256": bare.digest()}
        return json_bytes(fields)

    def evaluated(self, max_groups: int | None = None) -> str:
        """Return of which puzzles a score is, that of all held-out groups or of the first; empty if not known."""
        subset, num = self.subset("test"), self.splits.test.total_groups
        is_whole = max_groups is None or max_groups >= num
        return subset if is_whole or not subset else f"the first {max_groups:,} of {subset}"

    def metadata(self, split: SplitName) -> DatasetMetadata:
        """Return the published view of one split."""
        known = dict(self) | dict(self.splits.train if split == "train" else self.splits.test)
        return DatasetMetadata(**{name: known[name] for name in DatasetMetadata.model_fields})


def _expand(value: object) -> Counts:
    """Return a column from its runs in JSON: [[value, how many consecutive groups have it], ...]."""
    if isinstance(value, np.ndarray):
        return cast(NDArray[np.integer], value).astype(np.int32)
    runs = _RUNS.validate_python(value)
    if sum(length for _, length in runs) > MAX_GROUPS:
        raise ValueError(f"more than {MAX_GROUPS} groups")
    values, lengths = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    return np.repeat(values.astype(np.int32), lengths)


def _shrink(column: Counts) -> list[list[int]]:
    """Return the runs of a column; see `_expand`."""
    if not column.size:
        return []
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(column)) + 1])
    lengths = np.diff(np.append(firsts, column.size))
    return np.stack([column[firsts], lengths], axis=1).tolist()


_RUNS = TypeAdapter(list[tuple[Annotated[int, Field(ge=0, lt=2**31)], Annotated[int, Field(ge=1)]]])
Column = Annotated[Counts, PlainValidator(_expand), PlainSerializer(_shrink)]
"""A number per group, in JSON as runs of equal ones: short for 4 million Sudokus and for 960 ARC tasks."""


class GroupTable(Strict):
    """The groups of a split, by columns of [G]."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    num_puzzles: Column
    num_examples: Column
    """Per puzzle."""
    first_identifier: Column
    """The puzzles have this identifier, +1, ..., the original first; where it is 0, all of them have 0."""
    names: tuple[str, ...] | None
    """The original tasks' ids, if they have any."""

    def __len__(self) -> int:
        return len(self.num_puzzles)

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Self:
        columns = (self.num_examples, self.first_identifier, self.names)
        if any(column is not None and len(column) != len(self) for column in columns):
            raise ValueError("columns are not equally long")
        if len(self) and min(self.num_puzzles.min(), self.num_examples.min()) < 1:
            raise ValueError("there is a group without puzzles or examples")
        return self


class ShardIndex(Strict):
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


class SplitLayout(Strict):
    """What a split consists of."""

    format_version: Literal[1] = FORMAT_VERSION
    split: SplitName
    num_rows: int = Field(ge=0)
    canvas: int = Field(ge=1)
    seq_len: int = Field(ge=1)
    groups: GroupTable

    def groups_in_row(self, row: int) -> NDArray[np.int64]:
        """Return the groups that have a sample in a row: in training all, else those with that many puzzles."""
        if self.split == "train":
            return np.arange(len(self.groups))
        return np.flatnonzero(self.groups.num_puzzles > row)

    def num_samples_in_rows(self) -> NDArray[np.int64]:
        """Count the samples of each row, [num_rows]."""
        if self.split == "train":
            return np.full(self.num_rows, len(self.groups))
        shorter = np.searchsorted(np.sort(self.groups.num_puzzles), np.arange(self.num_rows), side="right")
        return len(self.groups) - shorter


class SplitIndex(SplitLayout):
    """The content of <split>/index.json; shards in order of (row, first_group)."""

    shards: tuple[ShardIndex, ...]

    def sizes(self) -> SplitInfo:
        """Return what dataset.json says of the split."""
        num_puzzles = int(self.groups.num_puzzles.sum(dtype=np.int64))
        num_examples = int(np.dot(self.groups.num_puzzles.astype(np.int64), self.groups.num_examples))
        return SplitInfo(
            total_groups=len(self.groups),
            mean_puzzle_examples=num_examples / num_puzzles if num_puzzles else 0.0,
            num_puzzles=num_puzzles,
            num_examples=num_examples,
            num_rows=self.num_rows,
            size_bytes=sum(shard.size_bytes for shard in self.shards),
        )

    def groups_of_shard(self, shard: ShardIndex) -> NDArray[np.int64]:
        """Return the groups that have a sample in a shard, in its order; [samples]."""
        if self.split == "train":
            return np.arange(shard.first_group, min(shard.first_group + shard.num_samples, len(self.groups)))
        left = np.flatnonzero(self.groups.num_puzzles[shard.first_group :] > shard.row)
        return left[: shard.num_samples] + shard.first_group

    @model_validator(mode="after")
    def _shards_make_up_the_rows(self) -> Self:
        starts = [(shard.row, shard.first_group) for shard in self.shards]
        if starts != sorted(set(starts)):
            raise ValueError("shards are not in order of (row, first_group)")
        if self.num_rows != (starts[-1][0] + 1 if starts else 0):
            raise ValueError(f"num_rows={self.num_rows}, but the shards are of another number of rows")
        num_samples = np.array([shard.num_samples for shard in self.shards], dtype=np.int64)
        samples_of_row = np.bincount(
            [row for row, _ in starts], weights=num_samples, minlength=self.num_rows
        ).astype(np.int64)
        wrong = np.flatnonzero(samples_of_row != self.num_samples_in_rows())
        if wrong.size:
            raise ValueError(f"the shards of row {wrong[0]} do not make up its groups")
        first_groups = [shard.first_group for shard in self.shards if shard.row == 0]
        if self.split == "train" and starts != [
            (row, g) for row in range(self.num_rows) for g in first_groups
        ]:
            raise ValueError("the rows are not cut into shards at the same groups")
        return self


Document = TypeVar("Document", bound=Strict)


def load_dataset_info(dataset_dir: Path | str) -> DatasetInfo:
    """Read dataset.json; raise InputError when it is missing, damaged or of another format."""
    path = Path(dataset_dir) / "dataset.json"
    if (path.parent / BUILDING).exists() and not path.exists():
        raise InputError(
            f"{path.parent}: its build is not complete; run the command that began it again, or, if all of its "
            f"parts are built, `python -m data_pipeline.merge {shlex.quote(str(path.parent))}`."
        )
    if path.parent.is_file():
        raise InputError(
            f"{path.parent}: is a file; give the folder of a dataset, which has dataset.json in it."
        )
    if not path.exists():
        raise InputError(
            f"{path}: not found, so this is no dataset; build one with `python -m data_pipeline.build PRESET --out "
            f"{shlex.quote(str(path.parent))}`, whose --help lists the presets."
        )
    info = load_document(path, DatasetInfo)
    if info.sha256 != info.digest():
        raise InputError(
            f"{path}: has changed since it was built, its sha256 is not that of the rest; {REBUILD}."
        )
    return info


def dataset_sha256(dataset_dir: Path | str) -> str:
    """Return the digest of what lists the content that a model is trained on: equal for equal datasets."""
    digest = hashlib.sha256(load_dataset_info(dataset_dir).content())
    digest.update((Path(dataset_dir) / "train" / "index.json").read_bytes())
    return digest.hexdigest()


def load_split_index(dataset_dir: Path | str, split: SplitName) -> SplitIndex:
    """Read <split>/index.json; raise InputError when it is missing, damaged or of another format."""
    path = Path(dataset_dir) / split / "index.json"
    index = load_document(path, SplitIndex)
    if index.split != split:
        raise InputError(f"{path}: is of the {index.split} split; {REBUILD}.")
    return index


def verify_document(dataset_dir: Path | str, info: DatasetInfo, name: str) -> Path:
    """Return the path of a JSON file of a dataset; raise InputError unless it is as it was built."""
    path = Path(dataset_dir) / name
    if hashlib.sha256(read_file(path)).hexdigest() != info.documents.get(name):
        raise InputError(
            f"{path}: has changed since it was built, its sha256 is not the one in dataset.json; {REBUILD}."
        )
    return path


def read_file(path: Path) -> bytes:
    """Return the content of a file of a dataset; raise InputError when it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: missing, so it cannot be read; {REBUILD}.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def load_document(path: Path, document: type[Document]) -> Document:
    """Read a JSON file of a dataset; raise InputError when it is missing, damaged or of another format."""
    try:
        content: object = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, not JSON ({error}); {REBUILD}.") from None
    version = cast(dict[str, object], content).get("format_version") if isinstance(content, dict) else None
    if "format_version" in document.model_fields and version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version!r} is not {FORMAT_VERSION}, which this release reads; "
            f"{REBUILD}."
        )
    try:
        return document.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {reason_of(error)}; {REBUILD}.") from None
