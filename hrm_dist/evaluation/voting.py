"""Predictions -> votes -> two attempts per test input, and their scores. No torch.

Every augmentation of a task predicts the same test input in its own colours and orientation. Undoing the
augmentation turns each prediction into one vote for one grid.

Shape legend: N predictions of a file or batch, S cells of the square canvas.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import compress, count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.arc.augment import inverse_dihedral, parse_name
from data_pipeline.arc.tokens import FIRST_COLOUR_ID, NUM_COLOURS, Grid, crop_sizes
from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.predictions import Predictions

TestPuzzles = Mapping[str, Mapping[str, Any]]
"""As in test_puzzles.json: task id -> {"train": [...], "test": [...]}, the original grids."""

PADDING_IDENTIFIER = 0
PASS_KS = (1, 2, 5, 10, 100, 1000)
_COLOURS = bytes(range(NUM_COLOURS))
_TOKEN_OF_COLOUR = bytes.maketrans(_COLOURS, bytes(range(FIRST_COLOUR_ID, FIRST_COLOUR_ID + NUM_COLOURS)))
_VOTE = np.dtype(
    [
        ("identifier", np.int64),
        ("example", np.int64),
        ("input", np.int64),  # which test input, over all tasks
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


class Votes(NamedTuple):
    """Every task of test_puzzles with its candidates, and what became of the predictions."""

    tasks: dict[str, list[list[Candidate]]]
    """Of each test input of a task, in order: its candidates, best first."""
    counted: int
    """Predictions that are a vote; the others are one of these:"""
    padding: int
    """Rows of identifier 0, with which other tools fill their last batch."""
    repeated: int
    """The same row again."""
    unknown_task: int
    unknown_input: int
    """The task is known, but has no such test input."""
    lost: int
    """q_halt_logits is NaN, so the model's numbers were lost, and its grid means nothing."""


def vote(
    predictions: Iterable[Predictions],
    identifiers: Sequence[str],
    test_puzzles: TestPuzzles,
    *,
    allow_mixed_checkpoints: bool = False,
) -> Votes:
    """Count the predictions of each test input; the order and the splitting of `predictions` do not matter.

    A prediction belongs to the test input that equals its own input once the augmentation is undone.
    A row that occurs twice, as in overlapping files, is counted once. Two different predictions for the
    same puzzle and example come from two evaluations and raise InputError, unless mixing is allowed.
    """
    counter = VoteCounter(identifiers, test_puzzles)
    for block in predictions:
        counter.add(block)
    votes, keys = counter.in_canonical_order()
    is_new = np.ones(len(votes), dtype=bool)
    is_new[1:] = votes[1:] != votes[:-1]  # equal in every field: one row, read twice
    votes = votes[is_new]
    if not allow_mixed_checkpoints:
        _refuse_contradictions(votes, identifiers)
    candidates = _rank(votes, keys, len(counter.number_of_input))
    return Votes(
        tasks={task: [candidates[i] for i in numbers] for task, numbers in counter.inputs_of_task.items()},
        counted=len(votes),
        repeated=int((~is_new).sum()),
        **counter.skipped,
    )


def attempts(candidates: Sequence[Candidate]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the two grids to submit: the best two, or one twice; `EMPTY_ATTEMPT` for none or an empty one."""
    grids = [c.grid.tolist() if c.grid.size else EMPTY_ATTEMPT for c in candidates[:2]] or [EMPTY_ATTEMPT]
    return grids[0], grids[-1]


def submission(
    votes: Votes, left_out: Mapping[str, int] | None = None
) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Return the ARC Prize format: an entry for every task and every test input, voted on or not.

    left_out: further tasks, and how many test inputs each has.
    """
    unanswered = {task: [[]] * num_inputs for task, num_inputs in (left_out or {}).items()}
    entries = {}
    for task, inputs in (votes.tasks | unanswered).items():
        pairs = [attempts(candidates) for candidates in inputs]
        entries[task] = [{"attempt_1": first, "attempt_2": second} for first, second in pairs]
    return entries


def scores(
    votes: Votes,
    test_puzzles: TestPuzzles,
    ks: Sequence[int] = PASS_KS,
    tasks: Iterable[str] | None = None,
) -> dict[str, float]:
    """Return how often the truth is among the first k candidates; only inputs with a known truth are scored.

    `input/pass@k` is the share of test inputs, `task/pass@k` the mean over tasks of the share of a task's
    test inputs (the competition's score), `task_all/pass@k` the share of tasks with all test inputs right.
    `.../oracle` takes any candidate. `inputs` and `tasks` say how many were scored; with none, the rest is
    absent. `tasks` restricts to a subset.
    """
    chosen = (
        test_puzzles if tasks is None else [task for task in dict.fromkeys(tasks) if task in test_puzzles]
    )
    ranks_of_task = [known for task in chosen if (known := _known_ranks(votes, test_puzzles, task))]
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


def _known_ranks(votes: Votes, test_puzzles: TestPuzzles, task: str) -> list[float]:
    """Return the truth's rank among the candidates, from 0 or inf, for each test input with a known truth."""
    ranks = []
    for pair, candidates in zip(test_puzzles[task]["test"], votes.tasks[task], strict=True):
        if pair.get("output") is not None:
            truth = _grid_key(np.asarray(pair["output"], dtype=np.uint8))
            matches = (rank for rank, c in enumerate(candidates) if _grid_key(c.grid) == truth)
            ranks.append(next(matches, math.inf))
    return ranks


class Puzzle(NamedTuple):
    """The task and the augmentation of an identifier."""

    task: str
    dihedral: int
    to_colours: bytes  # translation table: token -> original colour


@lru_cache(maxsize=8)  # a puzzle's examples follow each other
def read_puzzle(name: str) -> Puzzle:
    task, augmentation = parse_name(name)
    tokens = augmentation.palette.tobytes().translate(_TOKEN_OF_COLOUR)
    return Puzzle(task, augmentation.dihedral, bytes.maketrans(tokens, _COLOURS))


def _grid_key(grid: npt.NDArray[np.uint8]) -> bytes:
    """Return a grid as bytes: height, width, cells. Equal keys, equal grids."""
    return bytes(grid.shape) + grid.tobytes()


def _key_grid(key: bytes) -> Grid:
    return np.frombuffer(key, dtype=np.uint8, offset=2).reshape(key[0], key[1])


@cache  # at most 8 x canvas^2 entries
def _cells(dihedral: int, height: int, width: int, canvas: int) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Return the un-rotated crop's shape, as bytes, and its cells' indices on the canvas: crop and turn at once."""
    indices: Any = np.arange(canvas * canvas).reshape(canvas, canvas)[:height, :width]
    turned = inverse_dihedral(indices, dihedral)  # it turns indices as it turns colours
    return bytes(turned.shape), np.ascontiguousarray(turned, dtype=np.int64).reshape(-1)


def original_keys(tokens: npt.NDArray[np.uint8], puzzles: Sequence[Puzzle]) -> list[bytes]:
    """Crop each row of `tokens` [N, S], undo its augmentation, and return the original grid's key.

    Two lookups a row, one for the cells and one for the colours, cost a tenth of numpy calls per step.
    """
    canvas = math.isqrt(tokens.shape[1])
    heights, widths = crop_sizes(tokens)
    keys = []
    for row, height, width, puzzle in zip(tokens, heights.tolist(), widths.tolist(), puzzles, strict=True):
        shape, cells = _cells(puzzle.dihedral, height, width, canvas)
        keys.append(shape + row.take(cells).tobytes().translate(puzzle.to_colours))
    return keys


class VoteCounter:
    """Turn predictions into votes block by block, so that they need not stay in memory."""

    def __init__(self, identifiers: Sequence[str], test_puzzles: TestPuzzles) -> None:
        self.identifiers = identifiers
        # A new key gets the next number. Equal test inputs of one task share one, and so their votes.
        self.number_of_input = defaultdict[tuple[str, bytes], int](count().__next__)
        self.inputs_of_task: dict[str, list[int]] = {}
        for task, pairs in test_puzzles.items():
            keys = [(task, _grid_key(np.asarray(pair["input"], dtype=np.uint8))) for pair in pairs["test"]]
            self.inputs_of_task[task] = [self.number_of_input[key] for key in keys]
        self.number_of_grid = defaultdict[bytes, int](count().__next__)
        self.skipped = {"padding": 0, "unknown_task": 0, "unknown_input": 0, "lost": 0}
        self.blocks = [np.empty(0, dtype=_VOTE)]

    def add(self, block: Predictions) -> None:
        """Count a block's predictions. Raises InputError for identifiers that the data does not have."""
        ids = block.puzzle_identifiers
        outside = ids[(ids < 0) | (ids >= len(self.identifiers))]
        if len(outside):
            raise InputError(
                f"{block.source}: puzzle_identifiers holds {outside[0]}, but the data has identifiers "
                f"0 to {len(self.identifiers) - 1}; give the data folder that the predictions were made from."
            )
        rows = np.flatnonzero(ids != PADDING_IDENTIFIER)
        puzzles = [read_puzzle(self.identifiers[i]) for i in ids[rows].tolist()]
        is_known = np.array([puzzle.task in self.inputs_of_task for puzzle in puzzles], dtype=bool)
        self.skipped["padding"] += len(ids) - len(rows)
        self.skipped["unknown_task"] += int((~is_known).sum())

        is_lost = np.isnan(block.q_halt_logits[rows])
        self.skipped["lost"] += int((is_known & is_lost).sum())
        is_usable = is_known & ~is_lost
        rows, puzzles = rows[is_usable], list(compress(puzzles, is_usable))
        input_keys, grid_keys = (original_keys(field[rows], puzzles) for field in (block.inputs, block.preds))
        votes = np.empty(len(rows), dtype=_VOTE)
        votes["identifier"] = ids[rows]
        votes["example"] = block.example_index[rows]
        votes["input"] = [
            self.number_of_input.get((puzzle.task, key), -1)
            for puzzle, key in zip(puzzles, input_keys, strict=True)
        ]
        votes["grid"] = [self.number_of_grid[key] for key in grid_keys]
        votes["q"] = _sigmoid(block.q_halt_logits[rows])
        votes = votes[votes["input"] >= 0]
        self.skipped["unknown_input"] += len(rows) - len(votes)
        self.blocks.append(votes)

    def in_canonical_order(self) -> tuple[npt.NDArray[np.void], list[bytes]]:
        """Return all votes by (identifier, example), and the grids' keys; neither depends on arrival order.

        Pooled checkpoints give several votes to one example: the surer, then the smaller grid comes first.
        """
        keys = sorted(self.number_of_grid)
        rank = np.empty(len(keys), dtype=np.int64)
        rank[[self.number_of_grid[key] for key in keys]] = np.arange(len(keys))
        votes = np.concatenate(self.blocks)
        votes["grid"] = rank[votes["grid"]]
        by = (votes["grid"], -votes["q"], votes["input"], votes["example"], votes["identifier"])
        return votes[np.lexsort(by)], keys


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the sigmoid in float64, which still orders logits far from 0."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def _refuse_contradictions(votes: npt.NDArray[np.void], identifiers: Sequence[str]) -> None:
    asked = votes[["identifier", "example", "input"]]
    repeats = asked[1:] == asked[:-1]
    if repeats.any():
        name = identifiers[asked["identifier"][np.argmax(repeats)]]
        raise InputError(
            f"puzzle {name!r}: the predictions answer the same input differently "
            f"({int(repeats.sum())} such rows), so they come from several evaluations; "
            "give those of one, or pool them with --mix-checkpoints."
        )


def _rank(votes: npt.NDArray[np.void], keys: Sequence[bytes], num_inputs: int) -> list[list[Candidate]]:
    """Return the candidates of each test input with the most votes first.

    Ties: the higher mean q, then the smallest (identifier, example) that voted for it.
    """
    num_grids = max(len(keys), 1)
    groups, first, group_of_vote, counts = np.unique(
        votes["input"] * num_grids + votes["grid"],
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    mean_q = np.bincount(group_of_vote, weights=votes["q"], minlength=len(groups)) / counts
    inputs, grids = (numbers.tolist() for numbers in np.divmod(groups, num_grids))
    candidates: list[list[Candidate]] = [[] for _ in range(num_inputs)]
    for group in np.lexsort((first, -mean_q, -counts, inputs)).tolist():
        candidate = Candidate(_key_grid(keys[grids[group]]), int(counts[group]), float(mean_q[group]))
        candidates[inputs[group]].append(candidate)
    return candidates
