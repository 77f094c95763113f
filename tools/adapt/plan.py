"""How a budget of time is spent: pure functions of what was measured. Loads no torch.

The plan is made once, after speeds have been measured. What follows keeps to its number of steps, and so to one
schedule of learning rates; should the machine turn out slower, training ends early for the sake of the predictions.
"""

import math
import re
import time
from collections.abc import Sequence

from pydantic import Field

from data_pipeline.base.models import Strict

TRAIN_SHARE = 0.75
"""Of the time that is left once speeds are known; more where all predictions take less than the rest."""
STOP_S = 6.0
"""Within which a command that is told to stop has written what it has."""
MOST_CHUNKS = 6
CHECKS_SHARE = 0.15
"""Of the time of training, at most, for starting commands and for predictions between chunks."""
MOST_ROUNDS_BETWEEN = 8
MOST_SEQUENCES = 1_000_000
"""Of the training that is measured, and so of a step."""
LEAST_STEPS = 20
"""Fewer are not worth a start."""
SLACK = 1.05
"""Training takes so much longer than measured."""
PREDICTION_SLACK = 1.5
"""So do the last predictions, without which all of it would be in vain."""
_LEAST_BUILD_S, _PUZZLES_PER_S = 15.0, 20_000
_SPEED = re.compile(r"after the first segments ([\d,.]+) inputs/s")
"""As tools.evaluate says it."""


class TrainingRate(Strict):
    """How fast this machine trains."""

    steps_per_s: float = Field(ge=0)
    """Without compiling; 0: too slow to be measured within the budget."""
    start_s: float = Field(ge=0)
    """What starting, stopping and saving add."""


class PredictionRate(Strict):
    """How fast this machine predicts and votes."""

    rows_per_s: float = Field(gt=0)
    start_s: float = Field(ge=0)
    vote_s_per_row: float = Field(default=0.0, ge=0)


class Work(Strict):
    """What there is to do, whatever the time."""

    rows_per_round: int = Field(ge=1)
    """Test inputs; a round predicts each of them once."""
    num_rounds: int = Field(ge=1)
    """The original tasks and their augmentations."""
    rows_per_file: int = Field(default=1, ge=1)
    """Predictions that are there together, of all processes; those of a file that is not full are lost."""

    @property
    def num_rows(self) -> int:
        """Return the predictions of all rounds, at most: some tasks have fewer augmentations."""
        return self.rows_per_round * self.num_rounds

    @property
    def least_rows(self) -> int:
        """Return the predictions after which each test input has one: the files of the first round."""
        num_files = math.ceil(self.rows_per_round / self.rows_per_file)
        return min(self.num_rows, num_files * self.rows_per_file)


class Plan(Strict):
    """What is done until the budget ends."""

    chunks: tuple[int, ...]
    """Steps after which training pauses for predictions; the last one is where it ends. None: no training."""
    table_only_steps: int = Field(ge=0)
    rounds_between: int = Field(ge=1)
    """Rounds of predictions after a chunk but the last."""
    for_predictions_s: float
    """Training ends at the latest so long before the budget does."""

    @property
    def num_steps(self) -> int:
        return self.chunks[-1] if self.chunks else 0

    def text(self) -> str:
        """Return the plan in words."""
        if not self.chunks:
            return "no training, for which there is no time; predictions until the budget ends"
        parts = (
            "in one go"
            if len(self.chunks) == 1
            else f"with predictions after each of {len(self.chunks)} parts"
        )
        return (
            f"{self.num_steps:,} steps ({self.table_only_steps:,} of the puzzle table alone) {parts}, then predictions "
            "until the budget ends"
        )


def least_s(num_puzzles: int) -> float:
    """Return the seconds below which not even a build of so many puzzles and one vote can be expected."""
    return _LEAST_BUILD_S + num_puzzles / _PUZZLES_PER_S


def make_plan(
    budget_s: float,
    used_s: float,
    training: TrainingRate,
    prediction: PredictionRate,
    work: Work,
    table_share: float,
) -> Plan:
    """Return how the rest of a budget is spent; table_share: of the steps that train the puzzle table alone."""
    for_vote_s = vote_s(prediction, work)
    left_s = max(0.0, budget_s - used_s - for_vote_s)
    predict_s = _predict_s(left_s, prediction, work)
    train_s = max(0.0, left_s - predict_s - STOP_S)
    num_chunks, rounds = _num_chunks(train_s, training, prediction, work)
    num_steps = 0
    if num_chunks:
        for_steps_s = train_s - _checks_s(num_chunks, rounds, training, prediction, work)
        num_steps = int(for_steps_s * training.steps_per_s / SLACK)
    if num_steps < LEAST_STEPS:
        num_steps = num_chunks = 0
    ends = tuple(num_steps * (number + 1) // num_chunks for number in range(num_chunks))
    return Plan(
        chunks=ends,
        table_only_steps=round(table_share * num_steps),
        rounds_between=rounds,
        for_predictions_s=for_vote_s + predict_s + STOP_S,
    )


def time_text(now: float, later_s: float) -> str:
    """Return the time of day so many seconds from now, with the date if that is another day."""
    day, then = time.localtime(now), time.localtime(now + later_s)
    return time.strftime("%H:%M" if then[:3] == day[:3] else "%Y-%m-%d %H:%M", then)


def vote_s(prediction: PredictionRate, work: Work) -> float:
    """Return how long before the budget ends the last predictions do: two votes on all of them may follow."""
    return STOP_S + 2 * prediction.vote_s_per_row * work.num_rows


def _predict_s(left_s: float, prediction: PredictionRate, work: Work) -> float:
    """Return the seconds kept for the last predictions: for all, or else a share, but one round at least."""
    all_s, one_s = (
        PREDICTION_SLACK * (2 * prediction.start_s + num_rows / prediction.rows_per_s)
        for num_rows in (work.num_rows, work.least_rows)
    )
    return min(all_s, max((1 - TRAIN_SHARE) * left_s, one_s))


def _num_chunks(
    train_s: float, training: TrainingRate, prediction: PredictionRate, work: Work
) -> tuple[int, int]:
    """Return the number of chunks, and the rounds that are predicted between them: as many as may be."""
    for num_chunks in range(MOST_CHUNKS, 0, -1):
        free_s = CHECKS_SHARE * train_s - _checks_s(num_chunks, 0, training, prediction, work)
        per_round_s = max(1, num_chunks - 1) * work.rows_per_round / prediction.rows_per_s
        if free_s >= (per_round_s if num_chunks > 1 else 0):
            return num_chunks, max(1, min(work.num_rounds, MOST_ROUNDS_BETWEEN, int(free_s / per_round_s)))
    # A start takes more than that share: there is time for one at most.
    return (1 if train_s > _checks_s(1, 0, training, prediction, work) else 0), 1


def _checks_s(
    num_chunks: int, rounds: int, training: TrainingRate, prediction: PredictionRate, work: Work
) -> float:
    """Return what training takes beside its steps."""
    check_s = prediction.start_s + rounds * work.rows_per_round / prediction.rows_per_s
    return num_chunks * training.start_s + (num_chunks - 1) * check_s


def steps_rate(seconds_per_step: Sequence[float]) -> float:
    """Return steps per second of what was measured of several intervals: their median; 0 without any."""
    if not seconds_per_step:
        return 0.0
    return 1 / sorted(seconds_per_step)[len(seconds_per_step) // 2]


def prediction_rate(num_rows: int, seconds: float, said: str) -> PredictionRate | None:
    """Return the rate of a tools.evaluate that ran for `seconds`, given its new rows and what it said; None for none.

    It says its speed without start and compilation, which take more time than the first round; where it ended too
    early to know, all of its time may have been these.
    """
    if not num_rows:
        return None
    least_per_s = num_rows / max(seconds, 1e-3)
    found = _SPEED.search(said)
    if found is None:
        return PredictionRate(rows_per_s=least_per_s, start_s=seconds)
    rate = max(least_per_s, float(found[1].replace(",", "")))
    return PredictionRate(rows_per_s=rate, start_s=max(0.0, seconds - num_rows / rate))


def epochs_of(num_steps: int, examples_per_pass: float, global_batch_size: int) -> int:
    """Return as many passes as make up the steps, at least; `max_steps` ends the last one."""
    return max(1, math.ceil(num_steps * global_batch_size / examples_per_pass))


def fitting_ema_rate(rate: float, num_steps: int) -> float:
    """Return the rate of a moving average over a twentieth of the run at most, which so leaves its beginning behind."""
    return max(0.0, min(rate, 1 - 20 / max(20, num_steps)))
