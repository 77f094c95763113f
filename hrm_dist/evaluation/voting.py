"""Predictions -> votes -> two attempts per test input, and their scores. No torch.

Every augmentation of a task predicts the same test input in its own colours and orientation. Undoing the
augmentation turns each prediction into one vote for one grid.

Shape legend: N predictions of a file or batch, S cells of the square canvas.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.arc.augment import inverse_dihedral, parse_name
from data_pipeline.arc.tokens import FIRST_COLOUR_ID, NUM_COLOURS, Grid, crop_sizes
from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.predictions import Predictions, read_predictions, write_predictions

__all__ = [
    "Candidate",
    "Predictions",
    "TaskVote",
    "Votes",
    "attempts",
    "known_ranks",
    "read_predictions",
    "scores",
    "submission",
    "vote",
    "write_predictions",
]

TestPuzzles = Mapping[str, Mapping[str, Any]]
"""As in test_puzzles.json: task id -> {"train": [...], "test": [...]}, the original grids."""

PADDING_IDENTIFIER = 0
PASS_KS = (1, 2, 5, 10, 100, 1000)
_COLOURS = bytes(range(NUM_COLOURS))
_TOKEN_OF_COLOUR = bytes.maketrans(_COLOURS, bytes(range(FIRST_COLOUR_ID, FIRST_COLOUR_ID + NUM_COLOURS)))
_BALLOT = np.dtype(
    [
        ("identifier", np.int64),
        ("example", np.int64),
        ("slot", np.int64),  # which test input, over all tasks
        ("grid", np.int64),  # which distinct grid
        ("q", np.float64),
    ]
)

EMPTY_ATTEMPT = [[0]]
"""What is submitted where there is nothing to submit: the competition wants a grid of at least one cell."""


@dataclass(eq=False, slots=True)
class Candidate:
    """One grid that was predicted for a test input."""

    grid: Grid
    """[height, width] colours; 0 x 0 if the prediction held no colour in its corner."""
    count: int
    mean_q: float
    """Mean over its votes of sigmoid(q_halt): how sure the model was of being right."""


class TaskVote(NamedTuple):
    """The candidates of each test input, in the order of the task's test inputs, best first."""

    inputs: list[list[Candidate]]


class Votes(NamedTuple):
    """Every task of test_puzzles with its votes, and what became of the predictions."""

    tasks: dict[str, TaskVote]
    counted: int
    """Predictions that are a vote; the others are one of these:"""
    padding: int
    """Rows of identifier 0, with which other tools fill their last batch."""
    repeated: int
    """The same row again."""
    unknown_task: int
    unknown_input: int
    """The task is known, but has no such test input."""


def vote(
    predictions: Iterable[Predictions],
    identifiers: Sequence[str],
    test_puzzles: TestPuzzles,
    *,
    allow_mixed_checkpoints: bool = False,
) -> Votes:
    """Count the predictions of each test input; the order and the splitting of `predictions` do not matter.

    A prediction belongs to the test input that equals its own input once the augmentation is undone.
    A row that stands twice, as in overlapping files, is counted once. Two different predictions for the
    same puzzle and example come from two evaluations and raise InputError, unless mixing is allowed.
    """
    slot_of_input, slots_of_task = _index_test_inputs(test_puzzles)
    tally = _Tally(identifiers, slot_of_input, slots_of_task)
    for block in predictions:
        tally.add(block)
    ballots, keys = tally.in_canonical_order()
    ballots, repeated = _drop_repeats(ballots)
    if not allow_mixed_checkpoints:
        _refuse_contradictions(ballots, identifiers)
    candidates = _rank(ballots, keys, num_slots=len(slot_of_input))
    return Votes(
        tasks={task: TaskVote([candidates[slot] for slot in slots]) for task, slots in slots_of_task.items()},
        counted=len(ballots),
        repeated=repeated,
        padding=tally.skipped["padding"],
        unknown_task=tally.skipped["unknown_task"],
        unknown_input=tally.skipped["unknown_input"],
    )


def attempts(candidates: Sequence[Candidate]) -> tuple[list[list[int]], list[list[int]]]:
    """The two grids to submit: the best two, or one twice; `EMPTY_ATTEMPT` for none or an empty one."""
    grids = [c.grid.tolist() if c.grid.size else EMPTY_ATTEMPT for c in candidates[:2]] or [EMPTY_ATTEMPT]
    return grids[0], grids[-1]


def submission(votes: Votes) -> dict[str, list[dict[str, list[list[int]]]]]:
    """The ARC Prize format: an entry for every task and every test input, voted on or not."""
    entries = {}
    for task, task_vote in votes.tasks.items():
        pairs = [attempts(candidates) for candidates in task_vote.inputs]
        entries[task] = [{"attempt_1": first, "attempt_2": second} for first, second in pairs]
    return entries


def scores(
    votes: Votes,
    test_puzzles: TestPuzzles,
    ks: Sequence[int] = PASS_KS,
    tasks: Iterable[str] | None = None,
) -> dict[str, float]:
    """How often the truth is among the first k candidates; only inputs with a known truth are scored.

    `input/pass@k` is the share of test inputs, `task/pass@k` the mean over tasks of the share of a task's
    test inputs (the competition's score), `task_all/pass@k` the share of tasks with all test inputs right.
    `.../oracle` takes any candidate. `inputs` and `tasks` say how many were scored; with none, the rest is
    absent. `tasks` restricts to a subset.
    """
    chosen = (
        test_puzzles if tasks is None else [task for task in dict.fromkeys(tasks) if task in test_puzzles]
    )
    ranks_of_task = [known for task in chosen if (known := known_ranks(votes, test_puzzles, task))]
    result: dict[str, float] = {"inputs": sum(map(len, ranks_of_task)), "tasks": len(ranks_of_task)}
    if not ranks_of_task:
        return result
    limits = {f"pass@{k}": float(k) for k in ks} | {"oracle": math.inf}
    hits = {name: [[r < k for r in ranks] for ranks in ranks_of_task] for name, k in limits.items()}
    for name, by_task in hits.items():
        result[f"input/{name}"] = sum(map(sum, by_task)) / result["inputs"]
    for name, by_task in hits.items():
        result[f"task/{name}"] = math.fsum(sum(right) / len(right) for right in by_task) / len(by_task)
    for name, by_task in hits.items():
        result[f"task_all/{name}"] = sum(map(all, by_task)) / len(by_task)
    return result


def known_ranks(votes: Votes, test_puzzles: TestPuzzles, task: str) -> list[float]:
    """Place of the truth among the candidates, from 0, for each test input with a known truth; else inf."""
    ranks = []
    for pair, candidates in zip(test_puzzles[task]["test"], votes.tasks[task].inputs, strict=True):
        if pair.get("output") is not None:
            truth = _grid_key(np.asarray(pair["output"], dtype=np.uint8))
            places = (place for place, c in enumerate(candidates) if _grid_key(c.grid) == truth)
            ranks.append(next(places, math.inf))
    return ranks


class _Puzzle(NamedTuple):
    """What an identifier stands for."""

    task: str
    dihedral: int
    to_colours: bytes  # translation table: token -> original colour


@lru_cache(maxsize=8)  # a puzzle's examples follow each other
def _read_puzzle(name: str) -> _Puzzle:
    task, augmentation = parse_name(name)
    tokens = augmentation.palette.tobytes().translate(_TOKEN_OF_COLOUR)
    return _Puzzle(task, augmentation.dihedral, bytes.maketrans(tokens, _COLOURS))


def _grid_key(grid: npt.NDArray[np.uint8]) -> bytes:
    """A grid as bytes: height, width, cells. Equal keys, equal grids."""
    return bytes(grid.shape) + grid.tobytes()


def _key_grid(key: bytes) -> Grid:
    return np.frombuffer(key, dtype=np.uint8, offset=2).reshape(key[0], key[1])


def _index_test_inputs(
    test_puzzles: TestPuzzles,
) -> tuple[dict[tuple[str, bytes], int], dict[str, list[int]]]:
    """Number the test inputs. Equal test inputs of one task share a number, and so their votes."""
    slot_of_input: dict[tuple[str, bytes], int] = {}
    slots_of_task: dict[str, list[int]] = {}
    for task, pairs in test_puzzles.items():
        keys = [(task, _grid_key(np.asarray(pair["input"], dtype=np.uint8))) for pair in pairs["test"]]
        slots_of_task[task] = [slot_of_input.setdefault(key, len(slot_of_input)) for key in keys]
    return slot_of_input, slots_of_task


@cache  # at most 8 x canvas^2 entries
def _cells(dihedral: int, height: int, width: int, canvas: int) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Shape, as bytes, and places on the canvas of the un-rotated crop: cropping and turning at once."""
    places: Any = np.arange(canvas * canvas).reshape(canvas, canvas)[:height, :width]
    turned = inverse_dihedral(places, dihedral)  # it turns places as it turns colours
    return bytes(turned.shape), np.ascontiguousarray(turned, dtype=np.int64).reshape(-1)


def _original_keys(tokens: npt.NDArray[np.uint8], puzzles: Sequence[_Puzzle]) -> list[bytes]:
    """Crop each row of `tokens` [N, S], undo its augmentation, and give the original grid's key.

    Two lookups a row, one for the cells and one for the colours, cost a tenth of numpy calls per step.
    """
    canvas = math.isqrt(tokens.shape[1])
    heights, widths = crop_sizes(tokens)
    keys = []
    for row, height, width, puzzle in zip(tokens, heights.tolist(), widths.tolist(), puzzles, strict=True):
        shape, cells = _cells(puzzle.dihedral, height, width, canvas)
        keys.append(shape + row.take(cells).tobytes().translate(puzzle.to_colours))
    return keys


class _Tally:
    """Collects ballots block by block, so that the predictions themselves need not stay in memory."""

    def __init__(
        self,
        identifiers: Sequence[str],
        slot_of_input: dict[tuple[str, bytes], int],
        slots_of_task: dict[str, list[int]],
    ) -> None:
        self.identifiers = identifiers
        self.slot_of_input = slot_of_input
        self.slots_of_task = slots_of_task
        self.number_of_grid: dict[bytes, int] = {}
        self.skipped: Counter[str] = Counter()
        self.blocks = [np.empty(0, dtype=_BALLOT)]

    def add(self, block: Predictions) -> None:
        self._check(block)
        is_real = block.puzzle_identifiers != PADDING_IDENTIFIER
        puzzles = [self._puzzle(i) for i in block.puzzle_identifiers.tolist()]
        is_known = np.array([puzzle.task in self.slots_of_task for puzzle in puzzles], dtype=bool)
        self.skipped["padding"] += int((~is_real).sum())
        self.skipped["unknown_task"] += int((is_real & ~is_known).sum())

        rows = np.flatnonzero(is_real & is_known)
        puzzles = [puzzles[row] for row in rows]
        input_keys = _original_keys(block.inputs[rows], puzzles)
        slots = [
            self.slot_of_input.get((puzzle.task, key), -1)
            for puzzle, key in zip(puzzles, input_keys, strict=True)
        ]
        is_matched = np.array(slots, dtype=np.int64) >= 0
        self.skipped["unknown_input"] += int((~is_matched).sum())

        rows = rows[is_matched]
        puzzles = [puzzle for puzzle, slot in zip(puzzles, slots, strict=True) if slot >= 0]
        grid_keys = _original_keys(block.preds[rows], puzzles)
        numbers = [self.number_of_grid.setdefault(key, len(self.number_of_grid)) for key in grid_keys]
        ballots = np.empty(len(rows), dtype=_BALLOT)
        ballots["identifier"] = block.puzzle_identifiers[rows]
        ballots["example"] = block.example_index[rows]
        ballots["slot"] = np.array(slots, dtype=np.int64)[is_matched]
        ballots["grid"] = numbers
        ballots["q"] = _sigmoid(block.q_halt_logits[rows])
        self.blocks.append(ballots)

    def in_canonical_order(self) -> tuple[npt.NDArray[np.void], list[bytes]]:
        """All ballots by (identifier, example), and the grids' keys; neither depends on arrival order.

        Pooled checkpoints give several ballots to one example: the surer, then the smaller grid comes first.
        """
        keys = sorted(self.number_of_grid)
        rank = np.empty(len(keys), dtype=np.int64)
        rank[[self.number_of_grid[key] for key in keys]] = np.arange(len(keys))
        ballots = np.concatenate(self.blocks)
        ballots["grid"] = rank[ballots["grid"]]
        by = (ballots["grid"], -ballots["q"], ballots["slot"], ballots["example"], ballots["identifier"])
        return ballots[np.lexsort(by)], keys

    def _check(self, block: Predictions) -> None:
        ids = block.puzzle_identifiers
        outside = ids[(ids < 0) | (ids >= len(self.identifiers))]
        if len(outside):
            raise InputError(
                f"{block.source}: puzzle_identifiers holds {outside[0]}, but the data has identifiers "
                f"0 to {len(self.identifiers) - 1}; give the data folder that the predictions were made from."
            )

    def _puzzle(self, identifier: int) -> _Puzzle:
        if identifier == PADDING_IDENTIFIER:  # its name is no puzzle's
            return _Puzzle("", 0, b"")
        return _read_puzzle(self.identifiers[identifier])


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """In float64, which still orders logits far from 0; NaN, from a diverged model, counts as 0."""
    with np.errstate(over="ignore"):
        return np.nan_to_num(1.0 / (1.0 + np.exp(-logits.astype(np.float64))), nan=0.0)


def _drop_repeats(ballots: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.void], int]:
    """Ballots in canonical order, equal in every field, are one row read twice."""
    is_new = np.ones(len(ballots), dtype=bool)
    is_new[1:] = ballots[1:] != ballots[:-1]
    return ballots[is_new], int((~is_new).sum())


def _refuse_contradictions(ballots: npt.NDArray[np.void], identifiers: Sequence[str]) -> None:
    place = ballots[["identifier", "example", "slot"]]
    repeats = place[1:] == place[:-1]
    if repeats.any():
        name = identifiers[place["identifier"][np.argmax(repeats)]]
        raise InputError(
            f"puzzle {name!r}: the predictions answer the same input differently "
            f"({int(repeats.sum())} such rows), so they come from several evaluations; "
            "give those of one, or pool them with --mix-checkpoints."
        )


def _rank(ballots: npt.NDArray[np.void], keys: Sequence[bytes], num_slots: int) -> list[list[Candidate]]:
    """Candidates of each test input by (count, mean q) descending, then by first appearance."""
    num_grids = max(len(keys), 1)
    groups, first, group_of_ballot, counts = np.unique(
        ballots["slot"] * num_grids + ballots["grid"],
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    mean_q = np.bincount(group_of_ballot, weights=ballots["q"], minlength=len(groups)) / counts
    slots, grids = (part.tolist() for part in np.divmod(groups, num_grids))
    candidates: list[list[Candidate]] = [[] for _ in range(num_slots)]
    for group in np.lexsort((first, -mean_q, -counts, slots)).tolist():
        candidate = Candidate(_key_grid(keys[grids[group]]), int(counts[group]), float(mean_q[group]))
        candidates[slots[group]].append(candidate)
    return candidates
