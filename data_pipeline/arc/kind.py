"""ARC as a kind of puzzles."""

import numpy as np

from data_pipeline.arc.dataset import ArcOptions, read
from data_pipeline.arc.tokens import COLOURS, FIRST_COLOUR_ID, VOCAB_SIZE
from data_pipeline.kind import PADDING, Boards, Kind, Look, Measured, Token
from data_pipeline.schema import DatasetMetadata
from data_pipeline.shards.plan import Request

# The tasks that a preset starts from, and about as many for each further source: those of ConceptARC.
_NUM_TASKS = {"arc-agi-1": 800, "arc-agi-2": 1120}
_NUM_IN_SOURCE = 160


def _expect(request: Request) -> DatasetMetadata:
    """Tell the most puzzles that there can be: some tasks do not fit, and some augmentations are the same."""
    options = request.options
    assert isinstance(options, ArcOptions)
    num_tasks = _NUM_TASKS.get(request.preset, 0) + _NUM_IN_SOURCE * len(request.sources)
    num_tasks = min(num_tasks, options.limit_groups or num_tasks)
    return DatasetMetadata(
        seq_len=options.canvas**2, vocab_size=VOCAB_SIZE,
        num_puzzle_identifiers=1 + num_tasks * (1 + options.num_aug), total_groups=num_tasks, mean_puzzle_examples=4.0,
    )  # fmt: skip


def _look(canvas: int) -> Look:
    eos = Token("end of a row or column", "#5f5f5f", letter="+")
    colours = (Token(f"colour {i}, {name}", code, letter=str(i)) for i, (name, code) in enumerate(COLOURS))
    return Look((PADDING, eos, *colours), "longer side of the grids", _longer_sides)


def _longer_sides(inputs: Boards, labels: Boards) -> Measured:
    """Measure what augmentation leaves alone: it turns grids and moves them on the canvas."""
    sides: Measured = {}
    for name, boards in (("inputs", inputs), ("outputs", labels)):
        coloured = boards >= FIRST_COLOUR_ID
        longer = np.maximum(coloured.any(axis=1).sum(axis=1), coloured.any(axis=2).sum(axis=1))
        sides[name] = longer[longer > 0]  # a hidden output is all padding
    return sides


ARC = Kind(
    name="arc",
    presets={
        "arc-agi-1": "the 800 tasks of ARC-AGI-1, and those of further sources",
        "arc-agi-2": "the 1120 tasks of ARC-AGI-2, and those of further sources",
        "arc": "ARC tasks of given sources alone",
    },
    source_help="tasks to add: a file, folder or .zip, or arc-agi-1 or arc-agi-2; repeatable. Names decide which are "
    "held out (`evaluation`, `test`; see docs/data.md), unless :train or :evaluation says otherwise",
    options=ArcOptions,
    read=read,
    expect=_expect,
    look=_look,
    scorer="votes",
)
