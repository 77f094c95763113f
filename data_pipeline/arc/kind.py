"""ARC as a kind of puzzles."""

import numpy as np

from data_pipeline.arc.dataset import ArcOptions, read
from data_pipeline.arc.tokens import COLOURS, FIRST_COLOUR_ID, VOCAB_SIZE
from data_pipeline.kind import PADDING, Boards, Kind, Look, Measured, Token
from data_pipeline.options import Options
from data_pipeline.schema import DatasetMetadata


def _expect(options: Options) -> DatasetMetadata:
    """Tell the sizes of the published data: ARC-AGI-1 and ConceptARC, 1000 augmentations."""
    assert isinstance(options, ArcOptions)
    return DatasetMetadata(
        seq_len=options.canvas**2, vocab_size=VOCAB_SIZE,
        num_puzzle_identifiers=876_413, total_groups=960, mean_puzzle_examples=4.0,
    )  # fmt: skip


def _look(canvas: int) -> Look:
    eos = Token("end of a row or column", "#5f5f5f")
    colours = (Token(f"colour {i}, {name}", code) for i, (name, code) in enumerate(COLOURS))
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
