"""The scores of an evaluation as a table: how many are right of how many, with intervals."""

from collections.abc import Sequence
from typing import NamedTuple

from hrm_dist.evaluation.intervals import share_interval
from hrm_dist.evaluation.scores import SHARES_OF_EXAMPLES, Scores

_COUNTS = {"input": "inputs", "task_all": "tasks"}
"""Of a vote's scores, by what stands before the slash: what the score counts, each right or wrong as a whole."""


class ScoreLine(NamedTuple):
    """A score, and how sure it is; None where that does not follow from how many are right."""

    score: str
    value: float
    low: float | None
    """Wilson's bounds at 95 %."""
    high: float | None
    right: int | None
    of: int | None
    subset: str
    """Of which puzzles, if that is known."""


def score_table(scores: Scores, subset: str) -> list[ScoreLine]:
    """Return a line for each score that is a share.

    Shares of augmented examples have no bounds: those of one task are no independent tries.
    """
    lines: list[ScoreLine] = []
    for name, value in scores.items():
        if name in ("examples", *_COUNTS.values()):
            continue
        counted = "examples" if name in SHARES_OF_EXAMPLES else _COUNTS.get(name.partition("/")[0])
        num = int(scores.get(counted, 0)) if counted else 0
        right = round(value * num) if num else None
        low = high = None
        is_independent = counted != "examples" or "inputs" not in scores
        if right is not None and is_independent:
            _, low, high = share_interval(right, num)
        lines.append(ScoreLine(name, value, low, high, right, num or None, subset))
    return lines


def markdown(lines: Sequence[ScoreLine]) -> str:
    """Return the table as Markdown."""
    rows = [
        (name, f"{value:.4f}", *("" if x is None else f"{x:.4f}" for x in bounds), right, of, subset)
        for name, value, *bounds, right, of, subset in lines
    ]
    return markdown_table(ScoreLine._fields, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown; None is an empty cell."""
    cells = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = (f"| {' | '.join(row)} |" for row in [list(header), ["---"] * len(header), *cells])
    return "\n".join(lines)
