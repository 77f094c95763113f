import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.adapt.plan import (
    LEAST_STEPS,
    MOST_CHUNKS,
    STOP_S,
    TRAIN_SHARE,
    Plan,
    PredictionRate,
    TrainingRate,
    Work,
    epochs_of,
    fitting_ema_rate,
    make_plan,
    prediction_rate,
    steps_rate,
    time_text,
    vote_s,
)

seconds = st.floats(0, 1e5)
trainings = st.builds(TrainingRate, steps_per_s=st.floats(0, 1e3), start_s=st.floats(0, 300))
predictions = st.builds(
    PredictionRate,
    rows_per_s=st.floats(1e-2, 1e5),
    start_s=st.floats(0, 300),
    vote_s_per_row=st.floats(0, 1e-2),
)
works = st.builds(
    Work,
    rows_per_round=st.integers(1, 500),
    num_rounds=st.integers(1, 1001),
    rows_per_file=st.integers(1, 4096),
)
TRAINING = TrainingRate(steps_per_s=10, start_s=5)
PREDICTION = PredictionRate(rows_per_s=100, start_s=5, vote_s_per_row=1e-4)
WORK = Work(rows_per_round=100, num_rounds=301)


def seconds_of(plan: Plan, training: TrainingRate, prediction: PredictionRate, work: Work) -> float:
    """What training takes by the rates, its pauses with it."""
    pauses = max(0, len(plan.chunks) - 1)
    check_s = prediction.start_s + plan.rounds_between * work.rows_per_round / prediction.rows_per_s
    steps_s = plan.num_steps / training.steps_per_s if plan.num_steps else 0
    return len(plan.chunks) * training.start_s + pauses * check_s + steps_s


@given(seconds, seconds, trainings, predictions, works)
def test_training_as_planned_ends_before_it_is_cut_short(
    budget_s: float, used_s: float, training: TrainingRate, prediction: PredictionRate, work: Work
) -> None:
    plan = make_plan(budget_s, used_s, training, prediction, work, 0.2)
    took = seconds_of(plan, training, prediction, work)
    assert took == 0 or used_s + took <= budget_s - plan.for_predictions_s + 1e-6 * budget_s


@given(seconds, seconds, trainings, predictions, works)
def test_what_is_kept_for_predictions_is_a_share_all_of_them_or_the_first_files(
    budget_s: float, used_s: float, training: TrainingRate, prediction: PredictionRate, work: Work
) -> None:
    plan = make_plan(budget_s, used_s, training, prediction, work, 0)
    left_s = max(0, budget_s - used_s - vote_s(prediction, work))
    kept_s = plan.for_predictions_s - vote_s(prediction, work) - STOP_S
    one_s = 2 * prediction.start_s + work.least_rows / prediction.rows_per_s
    all_s = 2 * prediction.start_s + work.num_rows / prediction.rows_per_s
    assert kept_s >= min(one_s, all_s)
    assert kept_s <= max((1 - TRAIN_SHARE) * left_s, 1.51 * one_s) + 1e-6
    assert kept_s <= 1.51 * all_s


@given(seconds, seconds, trainings, predictions, works, st.floats(0, 1))
def test_chunks_grow_to_the_last_step_and_are_few(
    budget_s: float,
    used_s: float,
    training: TrainingRate,
    prediction: PredictionRate,
    work: Work,
    share: float,
) -> None:
    plan = make_plan(budget_s, used_s, training, prediction, work, share)
    assert len(plan.chunks) <= MOST_CHUNKS
    assert list(plan.chunks) == sorted(set(plan.chunks))
    assert plan.num_steps == 0 or plan.num_steps >= LEAST_STEPS
    assert 0 <= plan.table_only_steps <= plan.num_steps
    assert plan.table_only_steps == pytest.approx(share * plan.num_steps, abs=1)


@given(st.floats(1, 1e5), st.floats(1, 1e4), trainings, predictions, works)
def test_without_pauses_more_time_never_means_fewer_steps(
    budget_s: float, more_s: float, training: TrainingRate, prediction: PredictionRate, work: Work
) -> None:
    free = training.model_copy(update={"start_s": 0.0})
    quick = prediction.model_copy(update={"start_s": 0.0, "rows_per_s": 1e9})
    short, long = (make_plan(s, 0, free, quick, work, 0) for s in (budget_s, budget_s + more_s))
    assert short.num_steps <= long.num_steps


def test_a_budget_is_spent_on_training_where_predictions_are_cheap() -> None:
    plan = make_plan(3600, 0, TRAINING, PREDICTION, WORK, 0.25)
    assert len(plan.chunks) == MOST_CHUNKS
    assert 0.75 * 3600 * 10 < plan.num_steps < 3600 * 10
    assert plan.table_only_steps == pytest.approx(plan.num_steps / 4, abs=1)


@pytest.mark.parametrize("budget_s", [0, 10, 30])
def test_a_short_budget_is_for_predictions_alone(budget_s: float) -> None:
    assert make_plan(budget_s, 0, TRAINING, PREDICTION, WORK, 0.2).chunks == ()


def test_a_machine_too_slow_to_be_measured_does_not_train() -> None:
    assert (
        make_plan(1000, 100, TRAINING.model_copy(update={"steps_per_s": 0.0}), PREDICTION, WORK, 0.2).chunks
        == ()
    )


@given(works)
def test_the_first_files_hold_a_round_and_hardly_more(work: Work) -> None:
    assert work.rows_per_round <= work.least_rows <= work.num_rows
    assert work.least_rows < work.rows_per_round + work.rows_per_file


SAID = "35 inputs answered, 2.00 segments per input\nafter the first segments 1,064.5 inputs/s, 37.7% of"


def test_the_rate_leaves_out_start_and_compilation() -> None:
    rate = prediction_rate(2129, 65.0, SAID)
    assert rate is not None
    assert rate.rows_per_s == 1064.5
    assert rate.start_s == pytest.approx(63)


def test_where_no_speed_is_said_a_round_is_thought_to_take_as_long_as_the_command() -> None:
    rate = prediction_rate(128, 64.0, "stopped by SIGTERM")
    assert rate is not None
    assert (rate.rows_per_s, rate.start_s) == (2, 64)
    assert prediction_rate(0, 64.0, SAID) is None


def test_the_date_is_shown_where_the_end_is_not_today() -> None:
    noon = time.mktime((2026, 2, 27, 12, 0, 0, 0, 0, -1))
    assert time_text(noon, 3660) == "13:01"
    assert time_text(noon, 48 * 3600) == "2026-03-01 12:00"


def test_one_slow_interval_does_not_change_the_rate_of_steps() -> None:
    assert steps_rate([0.1, 0.1, 9.0]) == 10
    assert steps_rate([]) == 0


@given(st.integers(1, 10**6), st.floats(1, 1e4), st.integers(1, 1000))
def test_the_passes_of_a_schedule_hold_all_its_steps_and_not_a_pass_more(
    num_steps: int, examples: float, batch: int
) -> None:
    epochs = epochs_of(num_steps, examples, batch)
    assert epochs * examples / batch >= num_steps * (1 - 1e-9)
    assert epochs == 1 or (epochs - 1) * examples / batch < num_steps


@given(st.floats(0, 0.9999), st.integers(1, 10**6))
def test_the_average_spans_no_more_than_a_twentieth_of_the_run(rate: float, num_steps: int) -> None:
    fitted = fitting_ema_rate(rate, num_steps)
    assert fitted <= rate
    assert fitted == rate or math.isclose(1 / (1 - fitted), max(1, num_steps / 20))
