"""What is about to be built, whatever kind of puzzles it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from data_pipeline.base.parallel import Part
from data_pipeline.options import ArcOptions, Identity, PuzzleOptions
from data_pipeline.schema import DatasetHead, SplitLayout, SplitName
from data_pipeline.shards.write_parallel import Rows


class Request(NamedTuple):
    """What to build and how; `preset`, `sources`, `options` and `seed` decide the bytes."""

    preset: str
    """One of arc-agi-1, arc-agi-2, arc, sudoku and maze."""
    sources: list[str]
    out: Path
    options: ArcOptions | PuzzleOptions
    seed: int
    workers: int
    quiet: bool
    part: Part = Part()


class DatasetPlan(NamedTuple):
    """All of a dataset but its shards."""

    head: DatasetHead
    rows: Mapping[SplitName, Rows]
    documents: Mapping[str, object]
    """Content of the further JSON files in its folder."""

    def layouts(self) -> dict[SplitName, SplitLayout]:
        """What the splits consist of."""
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

    def plan(self, folder: Path) -> DatasetPlan:
        """Everything up to the shards; what workers need to find on disk goes into the folder."""
        ...
