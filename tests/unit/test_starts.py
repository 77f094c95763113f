"""Several starts of an input: the choice is a function of their trajectories, whatever runs beside them."""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.reader import TestReader
from hrm_dist.evaluation.continuous import Answering, Ended, Finished, InOrder
from hrm_dist.evaluation.halting import HaltingRule
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.evaluation.start_keys import start_keys
from hrm_dist.evaluation.starts import CHOICES, Choice, Starts, choose
from hrm_dist.model.act import ACTModel
from tests.unit.models import halting_model
from tests.unit.test_continuous import replayed

NUM_ROWS, MAX_SEGMENTS = 5, 4
NAN = math.nan


class Told(NamedTuple):
    """What each start of each row would say, if it ran to its end."""

    num_segments: NDArray[np.int64]  # [rows, starts]
    q: NDArray[np.float32]
    residuals: NDArray[np.float32]
    answers: NDArray[np.int64]

    @property
    def num_starts(self) -> int:
        return self.q.shape[1]


def told(num_starts: int, seed: int) -> Told:
    """Few values, so that ties are frequent, some lost."""
    rng = np.random.default_rng(seed)
    shape = NUM_ROWS, num_starts
    q = rng.choice([-1.0, 0.5, 2.0, NAN], shape, p=[0.3, 0.3, 0.3, 0.1])
    residuals = rng.choice([0.1, 0.2, math.inf, NAN], shape)
    chances = rng.dirichlet([1.5, 0.7, 0.4])
    return Told(
        rng.integers(1, MAX_SEGMENTS + 1, shape),
        q.astype(np.float32),
        residuals.astype(np.float32),
        rng.choice(3, shape, p=chances),
    )


def ended(told: Told, finished: list[int], going_on: dict[int, int]) -> Ended:
    """What `Answering` tells of starts that finished, and of those that go on."""
    numbers = np.array(finished, dtype=np.int64)
    rows, starts = numbers // told.num_starts, numbers % told.num_starts
    preds = np.repeat(told.answers[rows, starts].astype(np.uint8)[:, None] + 2, 4, axis=1)
    q = told.q[rows, starts]
    num_segments = told.num_segments[rows, starts].astype(np.int32)
    # Of each its number, to know it by.
    log_probs = -starts.astype(np.float32)
    answers = Finished(numbers, num_segments, preds, q, log_probs, [])
    others = np.array(list(going_on), dtype=np.int64)
    return Ended(
        answers, told.residuals[rows, starts], others, np.array(list(going_on.values()), dtype=np.int32)
    )


class Outcome(NamedTuple):
    chosen: dict[int, int]  # row -> start
    num_dropped: int


def run(told: Told, choice: Choice, num_slots: int, seed: int, *, drops: bool = True) -> Outcome:
    """Let slots run at any pace; nobody but Starts says who comes next, and who is of no more interest."""
    rng = np.random.default_rng(seed)
    starts = Starts(
        InOrder(np.arange(NUM_ROWS)), told.num_starts, choice, MAX_SEGMENTS, has_grids=True, drops=drops
    )
    running: dict[int, int] = {}
    chosen: dict[int, int] = {}
    num_dropped = 0
    while True:
        running |= dict.fromkeys(starts.take(num_slots - len(running)).tolist(), 0)
        if not running:
            break
        for number in [number for number in running if rng.random() < 0.6]:
            running[number] += 1
        seen = {number: n for number, n in running.items() if n}
        finished = [n for n, most in seen.items() if most == told.num_segments.flat[n]]
        going_on = {number: n for number, n in seen.items() if number not in finished}
        got = starts.add(ended(told, finished, going_on))
        num_dropped += starts.spent.num_dropped
        assert chosen.keys().isdisjoint(got.rows.tolist())
        chosen |= dict(zip(got.rows.tolist(), (-got.log_probs).tolist(), strict=True))
        numbers = np.array([number for number in running if number not in finished], dtype=np.int64)
        most = starts.most_segments(numbers)
        running = {
            n: running[n]
            for n, most in zip(numbers.tolist(), most.tolist(), strict=True)
            if running[n] < most
        }
    return Outcome(chosen, num_dropped)


def highest(scores: dict[int, float]) -> int:
    """The lowest number of the highest score; NaN is no score, unless there is no other."""
    known = {start: score for start, score in scores.items() if not math.isnan(score)}
    return min(start for start in known if known[start] == max(known.values())) if known else min(scores)


def plainly_chosen(told: Told, choice: Choice, row: int) -> int:
    """The start that is chosen, from the ends of all trajectories."""
    q = dict(enumerate(told.q[row].tolist()))
    num_segments, answers = told.num_segments[row].tolist(), told.answers[row].tolist()
    sound = [start for start in q if not math.isnan(q[start])]
    if choice == "residual":
        return highest({k: NAN if math.isnan(q[k]) else -float(told.residuals[row, k]) for k in q})
    if choice == "first":
        halted = [(num_segments[k], k) for k in sound if num_segments[k] < MAX_SEGMENTS]
        return min(halted)[1] if halted else highest(q)
    if choice == "vote":
        for num_voted in range(1, len(q) + 1):
            voters = [k for k in sound if k < num_voted]
            counts = Counter(answers[k] for k in voters)
            num_left = len(q) - num_voted
            for leader, most in counts.items():
                if all(most > counts[other] + num_left for other in (*(set(counts) - {leader}), "unseen")):
                    return highest({k: q[k] for k in voters if answers[k] == leader})
        tied = [k for k in sound if counts[answers[k]] == max(counts.values())]
        return highest({k: q[k] for k in tied} or q)
    return highest(q)


@pytest.mark.parametrize("choice", CHOICES)
@given(
    num_starts=st.integers(2, 9),
    num_slots=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    order=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_the_choice_is_that_of_all_trajectories_in_any_order(
    choice: Choice, num_starts: int, num_slots: int, seed: int, order: int
) -> None:
    world = told(num_starts, seed)
    expected = {row: plainly_chosen(world, choice, row) for row in range(NUM_ROWS)}
    assert run(world, choice, num_slots, order).chosen == expected


@pytest.mark.parametrize("choice", CHOICES)
@given(num_starts=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_all_trajectories_can_be_chosen_from_at_once(choice: Choice, num_starts: int, seed: int) -> None:
    world = told(num_starts, seed)
    said = world.num_segments, world.q, world.residuals, world.answers.astype(np.uint64)
    expected = [plainly_chosen(world, choice, row) for row in range(NUM_ROWS)]
    assert choose(choice, MAX_SEGMENTS, *said).tolist() == expected


def test_starts_that_cannot_be_chosen_do_not_run() -> None:
    """Of a unanimous vote no more than a majority; where one halts at once, of the others only those before it."""
    everywhere = np.ones((NUM_ROWS, 8))
    unanimous = Told(
        everywhere.astype(np.int64) * 2, everywhere.astype(np.float32), everywhere.astype(np.float32),
        everywhere.astype(np.int64),
    )  # fmt: skip
    assert run(unanimous, "vote", num_slots=5, seed=0).num_dropped >= (NUM_ROWS - 1) * 3
    assert run(unanimous, "first", num_slots=1, seed=0).num_dropped == NUM_ROWS * 7
    assert run(unanimous, "q", num_slots=5, seed=0).num_dropped == 0


# With a model

NUM_STARTS, SEED = 4, 11
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(dataset: Path) -> TestReader:
    return TestReader(dataset)


@pytest.fixture(scope="module")
def model(dataset: Path) -> ACTModel:
    return halting_model(dataset, segment_noise=0.5, update_noise=0.1, initial_states="random")


class Alone(NamedTuple):
    """Every segment of each start, from an evaluation of its own, in lockstep."""

    preds: NDArray[np.uint8]  # [starts, segments, rows, S]
    q: NDArray[np.float32]  # [starts, segments, rows]
    q_continue: NDArray[np.float32]
    residuals: NDArray[np.float32]

    def told(self) -> Told:
        """What each start says in the end, where the learned rule halts it."""
        halts = self.q > self.q_continue
        halts[:, -1] = True
        last = halts.argmax(1)  # [starts, rows]
        at = np.arange(NUM_STARTS)[:, None], last, np.arange(NUM_ROWS)
        answers = np.unique(self.preds[at].reshape(NUM_STARTS * NUM_ROWS, -1), axis=0, return_inverse=True)[1]
        return Told(last.T + 1, self.q[at].T, self.residuals[at].T, answers.reshape(NUM_STARTS, NUM_ROWS).T)


@pytest.fixture(scope="module")
def alone(model: ACTModel, reader: TestReader) -> Alone:
    batch = reader.take(np.arange(NUM_ROWS))
    fields = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
    found: list[list[NDArray]] = [[], [], [], []]
    for start in range(NUM_STARTS):
        segment = EvaluationSegment(model, NUM_ROWS, CPU, residuals=True)
        keys = start_keys(batch, start, SEED)
        segment.refill({**fields, "noise_keys": keys}, torch.ones(NUM_ROWS, dtype=torch.bool))
        results = []
        for _ in range(MAX_SEGMENTS):
            segment()
            results.append(segment.results())
        for values, name in zip(
            found, ("preds", "q_halt_logits", "q_continue_logits", "residuals"), strict=True
        ):
            values.append(np.stack([getattr(result, name).numpy() for result in results]))
    return Alone(*map(np.stack, found))


def answered(
    model: ACTModel, reader: TestReader, choice: Choice, num_slots: int, lag: int, *, keeps: bool = False
) -> tuple[Finished, int]:
    """What is chosen of each row, in order, and how many starts were dropped."""
    segment = EvaluationSegment(model, num_slots, CPU, residuals=True)
    answering = Answering(
        segment, reader, HaltingRule("learned"), MAX_SEGMENTS,
        lag=lag, keeps_trajectories=keeps, num_starts=NUM_STARTS, noise_seed=SEED,
    )  # fmt: skip
    queue = InOrder(np.arange(NUM_ROWS))
    starts = Starts(queue, NUM_STARTS, choice, MAX_SEGMENTS, has_grids=False, drops=not keeps)
    blocks, num_dropped = [], 0
    for block in starts.chosen(answering):
        blocks.append(block)
        num_dropped += starts.spent.num_dropped
    return Finished.joined(blocks).of_rows(np.arange(NUM_ROWS)), num_dropped


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("num_slots", [1, 3, 64])
@pytest.mark.parametrize("choice", CHOICES)
def test_an_answer_is_that_of_its_start_alone(
    model: ACTModel, reader: TestReader, alone: Alone, choice: Choice, num_slots: int, lag: int
) -> None:
    told = alone.told()
    got, _ = answered(model, reader, choice, num_slots, lag)
    for row in range(NUM_ROWS):
        start = plainly_chosen(told, choice, row)
        last = int(told.num_segments[row, start])
        assert got.num_segments[row] == last
        np.testing.assert_array_equal(got.preds[row], alone.preds[start, last - 1, row])
        np.testing.assert_allclose(got.q_halt_logits[row], told.q[row, start], rtol=1e-3, atol=1e-3)


def test_starts_differ_and_halt_at_different_segments(
    model: ACTModel, reader: TestReader, alone: Alone
) -> None:
    """Otherwise the test above would show little."""
    told = alone.told()
    assert len(np.unique(told.num_segments)) > 1
    assert all(len(np.unique(of_row)) == NUM_STARTS for of_row in told.q)
    assert any(len(np.unique(of_row)) > 1 for of_row in told.answers)
    assert (
        len({tuple(plainly_chosen(told, choice, row) for row in range(NUM_ROWS)) for choice in CHOICES}) > 2
    )
    assert answered(model, reader, "first", 3, 1)[1] > 0


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("num_slots", [3, 64])
def test_every_segment_of_every_start_can_be_kept(
    model: ACTModel, reader: TestReader, alone: Alone, num_slots: int, lag: int
) -> None:
    told = alone.told()
    got, num_dropped = answered(model, reader, "first", num_slots, lag, keeps=True)
    assert num_dropped == 0
    for row in range(NUM_ROWS):
        assert len(got.trajectories[row]) == NUM_STARTS
        for start, trajectory in enumerate(got.trajectories[row]):
            answers = replayed(trajectory, got.preds.shape[1])
            np.testing.assert_array_equal(answers, alone.preds[start, : told.num_segments[row, start], row])
