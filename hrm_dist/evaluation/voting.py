"""Predictions -> votes -> two attempts per test input, and their scores. No torch.

Every augmentation of a task predicts the same test input in its own colours and orientation. Undoing the
augmentation turns each prediction into one vote for one grid.

Memory is bounded whatever a model predicts. A vote takes 36 bytes, and at most some 430 where it is sorted and becomes
a candidate of its own. Grids, of up to 935 bytes each, are kept where they can still matter: of the best KEPT_GRIDS
candidates of a test input, of those that are right, and beside them of as many new ones until it is chosen again. So
the distinct grids of a test input take 190 kB at most, on average over the test inputs. Of a canvas of 30 x 30, no two
predictions alike, 400,000 take 360 MB in all, and 600,000 446 MB.

Shape legend: N predictions of a file or batch, S cells of the square canvas.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress, count, repeat
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from data_pipeline.arc.augment import (
    NUM_DIHEDRAL,
    AugmentationTable,
    dihedral,
    inverse_dihedral,
    parse_names,
)
from data_pipeline.arc.tokens import FIRST_COLOUR_ID, NUM_COLOURS, VOCAB_SIZE, Grid, crop_sizes, encode
from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.predictions import Predictions

TestPuzzles = Mapping[str, Mapping[str, Any]]
"""As in test_puzzles.json: task id -> {"train": [...], "test": [...]}, the original grids."""

PADDING_IDENTIFIER = 0
PASS_KS = (1, 2, 5, 10, 100, 1000)
VoteBy = Literal["count", "q", "probability"]
"""What a vote weighs: WEIGHT_MEANINGS. By cell means the geometric mean over the cells of a grid.

A grid's own probability would let small grids win, since it does not cover where a grid ends: over the ARC models of a
sweep it solved fewer test inputs than that of a cell (docs/benchmarks/evaluation.md).
"""
VOTE_BY: tuple[VoteBy, ...] = get_args(VoteBy)
WEIGHT_MEANINGS: Mapping[VoteBy, str] = {
    "count": "one",
    "q": "sigmoid(q_halt)",
    "probability": "the probability of its grid by cell",
}

KEPT_GRIDS = 100
"""Of each test input; the others have counts and digests alone."""
_LEAST_GRIDS = 20_000
"""As many are kept in any case, at most 20 MB, so that small votes do not stop to choose."""
_VOTE = np.dtype(
    [
        ("identifier", np.int32),
        ("example", np.int32),
        ("input", np.int32),  # which test input, over all tasks
        ("grid", np.uint64),  # digest
        ("q", np.float64),
        ("weight", np.float64),
    ]
)

EMPTY_ATTEMPT = [[0]]
"""What is submitted where there is nothing to submit: the competition wants a grid of at least one cell."""


@dataclass(eq=False, slots=True)
class Candidate:
    """One grid that was predicted for a test input."""

    key: bytes | None
    """Its `grid_key`; None of one that is neither among the best nor right, where there were too many to keep."""
    count: int
    mean_q: float
    """Mean over its votes of sigmoid(q_halt): how sure the model was of being right."""
    weight: float
    """Of its votes together; by count their number."""

    @property
    def grid(self) -> Grid:
        """Return [height, width] colours; 0 x 0 if the prediction held no colour in its corner."""
        if self.key is None:
            raise ValueError(f"only the best {KEPT_GRIDS} candidates of a test input have a grid")
        return grid_of(self.key)


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
    """q_halt_logits is NaN, or what votes weigh by, so the model's numbers were lost, and its grid means nothing."""
    examples: dict[str, str]
    """Of those above that are no vote, by name: where the first one is."""


def vote(
    predictions: Iterable[Predictions],
    identifiers: Sequence[str],
    test_puzzles: TestPuzzles,
    *,
    by: VoteBy = "count",
    allow_mixed_checkpoints: bool = False,
) -> Votes:
    """Count or weigh the predictions of each test input; their order and how they are split do not matter.

    A prediction belongs to the test input that equals its own input once the augmentation is undone.
    A row that occurs twice, as in overlapping files, is counted once. Two different predictions for the
    same puzzle and example come from two evaluations and raise InputError, unless mixing is allowed.
    """
    counter = VoteCounter(identifiers, test_puzzles, by)
    for block in predictions:
        for part in block.parts():  # a foreign file may hold everything
            counter.add(part)
    votes = counter.votes()
    if not allow_mixed_checkpoints:
        _refuse_contradictions(votes, identifiers)
    candidates = counter.candidates(votes)
    return Votes(
        tasks={task: [candidates[i] for i in numbers] for task, numbers in counter.inputs_of_task.items()},
        counted=len(votes),
        repeated=counter.num_votes - len(votes),
        **counter.skipped,
        examples=counter.examples,
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
    hits = _hits(votes, test_puzzles, ks, tasks)
    by_task = next(iter(hits.values()))
    result: dict[str, float] = {"inputs": sum(map(len, by_task)), "tasks": len(by_task)}
    if not by_task:
        return result
    for name, by_task in hits.items():
        result[f"input/{name}"] = sum(map(sum, by_task)) / result["inputs"]
    for name, by_task in hits.items():
        result[f"task/{name}"] = math.fsum(sum(right) / len(right) for right in by_task) / len(by_task)
    for name, by_task in hits.items():
        result[f"task_all/{name}"] = sum(map(all, by_task)) / len(by_task)
    return result


def task_shares(
    votes: Votes,
    test_puzzles: TestPuzzles,
    ks: Sequence[int] = PASS_KS,
    tasks: Iterable[str] | None = None,
) -> dict[str, list[float]]:
    """Return the share of right test inputs of each task that is scored; `task/pass@k` of `scores` are their means."""
    return {
        f"task/{name}": [sum(right) / len(right) for right in by_task]
        for name, by_task in _hits(votes, test_puzzles, ks, tasks).items()
    }


def _hits(
    votes: Votes, test_puzzles: TestPuzzles, ks: Sequence[int], tasks: Iterable[str] | None
) -> dict[str, list[list[bool]]]:
    """Return for each task with a known truth which of its test inputs are right, by what counts as right."""
    chosen = (
        test_puzzles if tasks is None else [task for task in dict.fromkeys(tasks) if task in test_puzzles]
    )
    ranks_of_task = [known for task in chosen if (known := _known_ranks(votes, test_puzzles, task))]
    limits = {f"pass@{k}": float(k) for k in ks} | {"oracle": math.inf}
    return {name: [[r < k for r in ranks] for ranks in ranks_of_task] for name, k in limits.items()}


def _known_ranks(votes: Votes, test_puzzles: TestPuzzles, task: str) -> list[float]:
    """Return the truth's rank among the candidates, from 0 or inf, for each test input with a known truth."""
    ranks = []
    for pair, candidates in zip(test_puzzles[task]["test"], votes.tasks[task], strict=True):
        if pair.get("output") is not None:
            truth = grid_key(pair["output"])
            matches = (rank for rank, c in enumerate(candidates) if c.key == truth)
            ranks.append(next(matches, math.inf))
    return ranks


def grid_key(grid: npt.ArrayLike) -> bytes:
    """Return a grid as bytes: height, width, cells. Equal keys, equal grids."""
    cells = np.asarray(grid, dtype=np.uint8)
    return bytes(cells.shape) + cells.tobytes()


def grid_of(key: bytes) -> Grid:
    """Return the grid that a `grid_key` spells."""
    return np.frombuffer(key, dtype=np.uint8, offset=2).reshape(key[0], key[1])


_EMPTY_KEY = grid_key(np.zeros((0, 0)))


def _digest(key: bytes) -> bytes:
    """Return 8 bytes for a grid; of 10,000 grids of a test input two share them with a chance below 1e-11."""
    return hashlib.blake2b(key, digest_size=8).digest()


def grid_number(grid: npt.ArrayLike) -> int:
    """Return what stands for a grid in the votes of a `VoteCounter`."""
    return int(np.frombuffer(_digest(grid_key(grid)), dtype=np.uint64)[0])


class _Grids(dict[bytes, bytes]):
    """Digests by grid key; that of a new grid is computed."""

    def __missing__(self, key: bytes) -> bytes:
        digest = self[key] = _digest(key)
        return digest


@cache  # at most 8 x canvas^2 entries
def _cells(dihedral: int, height: int, width: int, canvas: int) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Return the un-rotated crop's shape, as bytes, and its cells' indices on the canvas: crop and turn at once."""
    indices: Any = np.arange(canvas * canvas).reshape(canvas, canvas)[:height, :width]
    turned = inverse_dihedral(indices, dihedral)  # it turns indices as it turns colours
    return bytes(turned.shape), np.ascontiguousarray(turned, dtype=np.int64).reshape(-1)


class Undo:
    """Undo the augmentations of the rows of a block."""

    def __init__(self, augmentations: AugmentationTable) -> None:
        self._dihedrals: list[int] = augmentations.dihedrals.tolist()
        # Of each row: token -> original colour.
        tables = np.zeros((len(self._dihedrals), 256), dtype=np.uint8)
        tokens = augmentations.palettes.astype(np.intp) + FIRST_COLOUR_ID
        np.put_along_axis(tables, tokens, np.arange(NUM_COLOURS, dtype=np.uint8), axis=1)
        self._colours = [table.tobytes() for table in tables]

    def keys(self, tokens: npt.NDArray[np.uint8]) -> list[bytes]:
        """Crop each row of `tokens` [N, S] and return the original grid's key.

        Two lookups a row, one for the cells and one for the colours, cost a tenth of numpy calls per step.
        """
        canvas = math.isqrt(tokens.shape[1])
        heights, widths = crop_sizes(tokens)
        found = map(_cells, self._dihedrals, heights.tolist(), widths.tolist(), repeat(canvas))
        return [
            shape + row.take(cells).tobytes().translate(colours)
            for row, (shape, cells), colours in zip(tokens, found, self._colours, strict=True)
        ]


class VoteCounter:
    """Turn predictions into votes block by block, so that they need not stay in memory."""

    def __init__(self, identifiers: Sequence[str], test_puzzles: TestPuzzles, by: VoteBy = "count") -> None:
        self.identifiers = identifiers
        self._by = by
        # A new key gets the next number. Equal test inputs of one task share one, and so their votes.
        self.number_of_input = defaultdict[tuple[str, bytes], int](count().__next__)
        self.inputs_of_task: dict[str, list[int]] = {}
        self._truths = set[bytes]()
        for task, pairs in test_puzzles.items():
            keys = [(task, grid_key(pair["input"])) for pair in pairs["test"]]
            self.inputs_of_task[task] = [self.number_of_input[key] for key in keys]
            outputs = (pair.get("output") for pair in pairs["test"])
            self._truths |= {_digest(grid_key(output)) for output in outputs if output is not None}
        self.skipped = {"padding": 0, "unknown_task": 0, "unknown_input": 0, "lost": 0}
        self.examples: dict[str, str] = {}
        self.num_votes = 0
        self._turned_on: dict[int, dict[tuple[str, int], list[tuple[int, bytes]]]] = {}
        self._grids = _Grids()
        self._blocks = [np.empty(0, dtype=_VOTE)]

    def add(self, block: Predictions) -> None:
        """Count a block's predictions. Raises InputError for identifiers and tokens that the data does not have."""
        ids = block.puzzle_identifiers
        outside = ids[(ids < 0) | (ids >= len(self.identifiers))]
        if len(outside):
            raise InputError(
                f"{block.source}: puzzle_identifiers holds {outside[0]}, but the data has identifiers "
                f"0 to {len(self.identifiers) - 1}; give the data folder that the predictions were made from."
            )
        for name, tokens in (("inputs", block.inputs), ("preds", block.preds)):
            if tokens.max(initial=0) >= VOCAB_SIZE:
                row = int((tokens >= VOCAB_SIZE).any(axis=1).argmax())
                raise InputError(
                    f"{block.source}: {name} holds {tokens[row].max()} in row {row}, but the tokens of ARC are 0 to "
                    f"{VOCAB_SIZE - 1}; give predictions of a model of ARC."
                )
        numbers: list[int] = ids.tolist()
        tasks, augmentations = parse_names([self.identifiers[i] for i in numbers])
        inputs = self._inputs(tasks, augmentations, block.inputs)
        why_not = {
            "padding": ids == PADDING_IDENTIFIER,
            "unknown_task": np.array([task not in self.inputs_of_task for task in tasks], dtype=bool),
            "lost": np.isnan(block.q_halt_logits),
            "unknown_input": inputs < 0,
        }
        is_vote = np.ones(len(ids), dtype=bool)
        if self._by == "probability":
            why_not["lost"] |= np.isnan(_log_probs(block))
        for reason, applies in why_not.items():  # the first that applies
            found = np.flatnonzero(is_vote & applies)
            self.skipped[reason] += len(found)
            if len(found):
                name = self.identifiers[numbers[found[0]]]
                self.examples.setdefault(reason, f"{block.source}: row {found[0]}, of puzzle {name!r}")
            is_vote &= ~applies
        grids = self._grids
        keys = list(compress(Undo(augmentations).keys(block.preds), is_vote))
        votes = np.empty(len(keys), dtype=_VOTE)
        votes["identifier"] = ids[is_vote]
        votes["example"] = block.example_index[is_vote]
        votes["input"] = inputs[is_vote]
        votes["grid"] = np.frombuffer(b"".join([grids[key] for key in keys]), dtype=np.uint64)
        votes["q"] = _sigmoid(block.q_halt_logits[is_vote])
        if self._by == "probability":
            num_cells = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys)) - len(_EMPTY_KEY)
            per_cell = np.exp(_log_probs(block)[is_vote] / np.maximum(num_cells, 1))
            votes["weight"] = np.where(num_cells > 0, per_cell, 0)  # an empty grid is never right
        else:
            votes["weight"] = 1 if self._by == "count" else votes["q"]
        self._blocks.append(votes)
        self.num_votes += len(votes)
        if len(grids) > max(_LEAST_GRIDS, 2 * KEPT_GRIDS * len(self.number_of_input)):
            self._forget_grids()

    def _inputs(
        self, tasks: Sequence[str], augmentations: AugmentationTable, tokens: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int32]:
        """Return which test input each row of `tokens` [N, S] is; -1 where it is none of its task.

        Almost all rows are a test input of the task as we would augment and encode it, which takes half the time of
        undoing that. What remains may have other padding.
        """
        num_rows, size = tokens.shape
        # Of each row: original token -> token.
        tables = np.tile(np.arange(256, dtype=np.uint8), (num_rows, 1))
        tables[:, FIRST_COLOUR_ID:VOCAB_SIZE] = augmentations.palettes + FIRST_COLOUR_ID
        rows, colours = tokens.tobytes(), tables.tobytes()
        canvases_of = self._turned(math.isqrt(size))
        inputs = np.full(num_rows, -1, dtype=np.int32)
        for n, key in enumerate(zip(tasks, augmentations.dihedrals.tolist(), strict=True)):
            for number, canvas in canvases_of.get(key, ()):
                if canvas.translate(colours[256 * n : 256 * n + 256]) == rows[size * n : size * n + size]:
                    inputs[n] = number
                    break
        others = np.flatnonzero(inputs < 0)
        keys = Undo(AugmentationTable(*(column[others] for column in augmentations))).keys(tokens[others])
        for n, key in zip(others.tolist(), keys, strict=True):
            inputs[n] = self.number_of_input.get((tasks[n], key), -1)
        return inputs

    def _turned(self, canvas: int) -> dict[tuple[str, int], list[tuple[int, bytes]]]:
        """Return the tokens of the test inputs by task and dihedral id, each with its number."""
        if canvas not in self._turned_on:
            self._turned_on[canvas] = found = defaultdict[tuple[str, int], list[tuple[int, bytes]]](list)
            for (task, key), number in self.number_of_input.items():
                grid = grid_of(key)
                for t in range(NUM_DIHEDRAL) if max(grid.shape) <= canvas else ():
                    found[task, t].append((number, encode(dihedral(grid, t), canvas).tobytes()))
        return self._turned_on[canvas]

    def votes(self) -> npt.NDArray[np.void]:
        """Return the votes, each once, by identifier and example; their order of arrival does not matter.

        Pooled checkpoints give several votes to one example: the surer comes first, then the smaller digest.
        """
        votes = np.concatenate(self._blocks)
        by = (votes["grid"], -votes["q"], votes["input"], votes["example"], votes["identifier"])
        votes = votes[np.lexsort(by)]
        is_new = np.ones(len(votes), dtype=bool)
        is_new[1:] = votes[1:] != votes[:-1]  # equal in every field: one row, read twice
        return votes[is_new]

    def candidates(self, votes: npt.NDArray[np.void]) -> list[list[Candidate]]:
        """Return the candidates of each test input, best first."""
        key_of_grid = {digest: key for key, digest in self._grids.items()}
        ranked = _rank(votes)
        candidates: list[list[Candidate]] = [[] for _ in self.number_of_input]
        digests = ranked.grids.tobytes()
        columns = (ranked.inputs, ranked.counts, ranked.mean_q, ranked.weights)
        for n, (number, *values) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            candidates[number].append(Candidate(key_of_grid.get(digests[8 * n : 8 * n + 8]), *values))
        return candidates

    def _forget_grids(self) -> None:
        """Keep the grids of the best candidates so far, and of the truth.

        A grid that is predicted again comes back. One that is not can only fall in rank: those ahead of it stay ahead,
        since a further vote adds to their weight and count, which go before the mean of q. So the first KEPT_GRIDS
        have their grids at the end.
        """
        ranked = _rank(self.votes())
        first_of_input = np.searchsorted(ranked.inputs, ranked.inputs)
        is_kept = np.arange(len(ranked.inputs)) - first_of_input < KEPT_GRIDS
        digests = ranked.grids[is_kept].tobytes()
        kept = self._truths.union(digests[n : n + 8] for n in range(0, len(digests), 8))
        self._grids = _Grids({key: digest for key, digest in self._grids.items() if digest in kept})


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the sigmoid in float64, which still orders logits far from 0."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def _log_probs(block: Predictions) -> npt.NDArray[np.float64]:
    if block.log_probs is None:
        raise InputError(
            f"{block.source}: has no log_probs, so votes cannot be weighed by probability; vote by count or by q, or "
            "evaluate again with this version, into another folder."
        )
    return block.log_probs.astype(np.float64)


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


class _Ranked(NamedTuple):
    """All candidates by test input, best first."""

    inputs: npt.NDArray[np.int32]
    grids: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    mean_q: npt.NDArray[np.float64]
    weights: npt.NDArray[Any]


def _rank(votes: npt.NDArray[np.void]) -> _Ranked:
    """Rank candidates by weight, then by votes, mean q, and the smallest (identifier, example) that voted for them."""
    order = np.lexsort((votes["grid"], votes["input"]))  # stable, so each candidate's votes stay in order
    inputs, grids = votes["input"][order], votes["grid"][order]
    begins = np.ones(len(votes), dtype=bool)
    begins[1:] = (inputs[1:] != inputs[:-1]) | (grids[1:] != grids[:-1])
    starts = np.flatnonzero(begins)
    candidate_of_vote = np.empty(len(votes), dtype=np.int64)
    candidate_of_vote[order] = np.cumsum(begins) - 1
    counts = np.diff(starts, append=len(votes))
    weights, sum_of_q = (
        np.bincount(candidate_of_vote, weights=votes[field], minlength=len(starts))
        for field in ("weight", "q")
    )
    mean_q = sum_of_q / counts
    best = np.lexsort((order[starts], -mean_q, -counts, -weights, inputs[starts]))
    starts = starts[best]
    return _Ranked(inputs[starts], grids[starts], counts[best], mean_q[best], weights[best])
