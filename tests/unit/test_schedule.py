from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.schema import load_dataset_info
from hrm_dist.config import load_config
from hrm_dist.schedule import Schedule


def schedule(config: Path, dataset: Path, *overrides: str) -> Schedule:
    return Schedule(load_config(config, overrides), load_dataset_info(dataset).metadata("train"))


def steps(due: Callable[[int], bool], last_step: int) -> list[int]:
    return [step for step in range(1, last_step + 1) if due(step)]


def test_every_evaluation_has_a_row_and_a_checkpoint_and_the_last_step_has_all(
    config: Path, dataset: Path
) -> None:
    every = schedule(config, dataset, "eval_interval=1").evaluates
    interval = next(step for step in range(1, 100) if every(step))
    plan = schedule(config, dataset, "eval_interval=1", "log_interval=100", f"max_steps={3 * interval + 1}")
    evaluated = [interval, 2 * interval, 3 * interval, plan.last_step]
    assert plan.last_step == 3 * interval + 1
    for due in (plan.evaluates, plan.logs, plan.saves):
        assert steps(due, plan.last_step) == evaluated


def test_evaluations_fall_on_logged_steps_where_those_are_near(config: Path, dataset: Path) -> None:
    plan = schedule(config, dataset, "eval_interval=4", "log_interval=3", "max_steps=60")
    evaluated = steps(plan.evaluates, 60)
    assert len(evaluated) > 1
    assert all(step % 3 == 0 for step in evaluated)


def test_without_intervals_only_the_last_step_is_saved_and_none_is_evaluated(
    config: Path, dataset: Path
) -> None:
    plan = schedule(config, dataset, "log_interval=7", "max_steps=20")
    assert steps(plan.logs, 20) == [7, 14, 20]
    assert steps(plan.saves, 20) == [20]
    assert steps(plan.evaluates, 20) == []


def test_max_steps_ends_the_run_and_not_the_decay_of_the_learning_rate(config: Path, dataset: Path) -> None:
    whole, short = (schedule(config, dataset, "lr_min_ratio=0.1", *more) for more in ([], ["max_steps=20"]))
    config_lr = load_config(config).lr
    assert short.last_step == 20 < whole.last_step == whole.total_steps
    assert short.lr(20) == whole.lr(20) > 0.9 * config_lr
    assert whole.lr(whole.last_step) == pytest.approx(0.1 * config_lr)


def test_while_only_the_table_is_trained_the_weights_have_rate_zero_and_then_their_whole_schedule(
    config: Path, dataset: Path
) -> None:
    more = ["lr_min_ratio=0.1", "lr_warmup_steps=5", "lr=1", "puzzle_emb_lr=1"]
    plain, plan = (schedule(config, dataset, f"table_only_steps={n}", *more) for n in (0, 10))
    table_alone = range(1, 11)
    assert [plan.lr(step) for step in table_alone] == [0.0] * 10
    assert [plan.table_lr(step) for step in table_alone] == [plain.table_lr(step) for step in table_alone]
    assert [plan.lr(10 + step) for step in range(1, 6)] == pytest.approx(
        [plain.lr(step) for step in range(1, 6)]
    )
    assert plan.lr(plan.last_step) == pytest.approx(0.1)
