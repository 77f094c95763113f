"""What is about to be built, whatever kind of puzzles it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from data_pipeline.base.parallel import Part
from data_pipeline.options import Options
from data_pipeline.schema import DatasetHead, Identity, SourceInfo, SplitLayout, SplitName
from data_pipeline.shards.writer import Rows


class Request(NamedTuple):
    """What to build and how; `preset`, `sources`, `options` and `seed` decide the bytes."""

    preset: str
    """One of those that data_pipeline.kinds lists."""
    sources: list[str]
    out: Path
    options: Options
    seed: int
    workers: int
    quiet: bool
    part: Part = Part()
    subset: str | None = None
    """Which of data_pipeline.subsets it has to be, as NAME[@HASH[+HASH]]."""

    def identity(self, kind: str, sources: tuple[SourceInfo, ...]) -> Identity:
        """Return what decides the bytes, now that the sources have been read."""
        return Identity(kind=kind, options=self.options.model_dump(), seed=self.seed, sources=sources)


class DatasetPlan(NamedTuple):
    """All of a dataset but its shards."""

    head: DatasetHead
    rows: Mapping[SplitName, Rows]
    documents: Mapping[str, object]
    """Content of the further JSON files in its folder."""

    def layouts(self) -> dict[SplitName, SplitLayout]:
        """Return what the splits consist of."""
        return {
            split: SplitLayout(
                split=split,
                num_rows=int(rows.group_table.num_puzzles.max(initial=0)),
                canvas=self.head.canvas,
                seq_len=self.head.seq_len,
                groups=rows.group_table,
            )
            for split, rows in self.rows.items()
        }


class Content(Protocol):
    """Sources that have been read and found good."""

    @property
    def identity(self) -> Identity: ...

    def write_scratch(self, folder: Path) -> None:
        """Write what workers need to find on disk, unless it is there already."""
        ...

    def plan(self, folder: Path) -> DatasetPlan:
        """Return everything but the shards; the scratch files are in the folder."""
        ...
