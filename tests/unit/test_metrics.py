import json
import os
from pathlib import Path
from typing import get_args

import pytest
import torch

from data_pipeline.base.errors import InputError, WriteError
from hrm_dist.config import ArchConfig
from hrm_dist.metrics import MetricSums
from hrm_dist.model import build_model
from hrm_dist.model.losses import LOSSES, act_loss
from hrm_dist.run_log.entry import Entry
from hrm_dist.run_log.metrics_file import JsonLines
from tests.unit.models import METADATA, arch_of, let_halting_vary, random_batch

APPLIED = torch.tensor(True)


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the rows of steps 10, 20 and 30."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "train/loss": 0.5}}\n' for step in (10, 20, 30)))
    return path


def append(path: Path, step: int, *steps: int) -> list[float]:
    sink = JsonLines(path, step, redone=())
    for step in steps:
        sink.write(Entry(step, {"train/loss": 0.25}))
    sink.close()
    return [row["step"] for row in rows(path)]


def test_rows_beyond_the_checkpoint_are_dropped_so_that_no_step_stands_twice(path: Path) -> None:
    assert append(path, 20, 30, 40) == [10, 20, 30, 40]
    assert [row["train/loss"] for row in rows(path)] == [0.5, 0.5, 0.25, 0.25]


def test_a_new_run_drops_all_rows(path: Path) -> None:
    assert append(path, 0, 10) == [10]


SCORES = '{"step": 30, "eval/exact_accuracy": 0.5}\n'
BOTH = '{"step": 30, "train/loss": 0.5, "eval/exact_accuracy": 0.5}\n'  # as earlier versions wrote them


@pytest.mark.parametrize(
    ("last", "redone", "num_kept"),
    [(SCORES, (), 4), (SCORES, ("eval/",), 3), (BOTH, (), 4), (BOTH, ("train/", "eval/"), 2)],
)
def test_of_the_step_reached_only_rows_that_are_redone_are_dropped(
    path: Path, last: str, redone: tuple[str, ...], num_kept: int
) -> None:
    with path.open("a") as file:
        file.write(last)
    JsonLines(path, 30, redone).close()
    assert len(rows(path)) == num_kept


@pytest.mark.parametrize("torn", ['{"step": 25, "train/lo', '{"step": 25}', '{"step"', "null\n", "[]\n"])
def test_a_torn_line_is_dropped(path: Path, torn: str) -> None:
    """Even one that ends where an object ends: the next row would go on in the same line."""
    with path.open("a") as file:
        file.write(torn)
    assert append(path, 30, 40) == [10, 20, 30, 40]


def test_a_row_is_in_the_file_as_soon_as_it_is_written(path: Path) -> None:
    sink = JsonLines(path, 30, redone=())
    sink.write(Entry(40, {}))
    assert len(rows(path)) == 4
    sink.close()


def test_losses_are_per_sequence_and_accuracies_per_halted_sequence() -> None:
    sums = MetricSums(torch.device("cpu"))
    for halted in (0, 4):
        step = {
            "lm_loss": 16.0, "q_halt_loss": 4.0, "q_continue_loss": 2.0, "count": halted,
            "exact_accuracy": halted / 4, "accuracy": halted / 2, "q_halt_accuracy": halted, "steps": 3 * halted,
        }  # fmt: skip
        sums.add({name: torch.tensor(value) for name, value in step.items()}, APPLIED)
    row = sums.row(global_batch_size=8)
    assert row["train/lm_loss"] == 2.0
    assert row["train/loss"] == 2.0 + 0.5 * (0.5 + 0.25)
    assert row["train/exact_accuracy"] == 0.25
    assert row["train/cell_accuracy"] == 0.5
    assert row["train/segments"] == 3.0
    assert row["train/halted"] == 0.25


def test_the_logged_loss_is_the_one_that_is_differentiated() -> None:
    sums = MetricSums(torch.device("cpu"))
    model = build_model(arch_of("hrm"), METADATA)
    let_halting_vary(model)
    batch = random_batch(4, seed=0)
    loss, metrics = act_loss(*model(model.initial_carry(batch), batch), model.arch.loss_type)
    sums.add(metrics, APPLIED)
    assert sums.row(global_batch_size=4)["train/loss"] == pytest.approx(loss.item() / 4)


def test_every_loss_that_a_configuration_may_name_exists() -> None:
    assert set(LOSSES) == set(get_args(ArchConfig.model_fields["loss_type"].annotation))


NEW_METRICS = {"lm_loss": 8.0, "q_halt_loss": 1.0, "count": 2.0, "right_rows": 3.0, "entropy_loss": 4.0}


def as_tensors(metrics: dict[str, float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in metrics.items()}


def test_a_new_metric_of_the_loss_is_summed_and_logged() -> None:
    sums = MetricSums(torch.device("cpu"))
    for _ in range(2):
        sums.add(as_tensors(NEW_METRICS), APPLIED)
    row = sums.row(global_batch_size=4)
    assert (row["train/right_rows"], row["train/entropy_loss"]) == (6 / 4, 8 / 8)


def test_sums_of_a_new_metric_survive_a_resume() -> None:
    before, after = MetricSums(torch.device("cpu")), MetricSums(torch.device("cpu"))
    before.add(as_tensors(NEW_METRICS), APPLIED)
    after.load(before.values, before.names)
    after.add(as_tensors(NEW_METRICS), APPLIED)
    assert after.row(global_batch_size=4)["train/right_rows"] == 6 / 4


def test_sums_belong_to_their_names_whatever_the_order() -> None:
    before, after = MetricSums(torch.device("cpu")), MetricSums(torch.device("cpu"))
    before.add(as_tensors({"count": 1, "cells": 5, "rows": 7}), APPLIED)
    after.load(before.values, before.names)
    after.add(as_tensors({"count": 1, "rows": 1, "cells": 2}), APPLIED)
    row = after.row(global_batch_size=4)
    assert (row["train/cells"], row["train/rows"]) == (7 / 2, 8 / 2)


def test_a_metric_that_is_gone_does_not_stop_a_resume() -> None:
    before, after = MetricSums(torch.device("cpu")), MetricSums(torch.device("cpu"))
    before.add(as_tensors({"count": 1, "gone": 5, "lm_loss": 8.0}), APPLIED)
    after.load(before.values, before.names)
    after.add(as_tensors({"count": 1, "lm_loss": 8.0}), APPLIED)
    assert after.row(global_batch_size=4)["train/lm_loss"] == 2.0


def test_sums_start_anew_after_a_row() -> None:
    sums = MetricSums(torch.device("cpu"))
    sums.add({"lm_loss": torch.tensor(8.0)}, APPLIED)
    sums.row(global_batch_size=8)
    sums.add({"lm_loss": torch.tensor(16.0)}, APPLIED)
    assert sums.row(global_batch_size=8)["train/lm_loss"] == 2.0


def test_without_a_halted_sequence_the_accuracies_are_zero() -> None:
    sums = MetricSums(torch.device("cpu"))
    sums.add({"lm_loss": torch.tensor(8.0), "count": torch.tensor(0)}, APPLIED)
    assert sums.row(global_batch_size=8)["train/exact_accuracy"] == 0.0


def test_a_skipped_update_is_counted_and_its_sums_are_not() -> None:
    sums = MetricSums(torch.device("cpu"))
    sums.add({"lm_loss": torch.tensor(torch.nan)}, ~APPLIED)
    sums.add({"lm_loss": torch.tensor(8.0)}, APPLIED)
    row = sums.row(global_batch_size=8)
    assert (row["train/skipped_updates"], row["train/lm_loss"]) == (1, 1.0)
    assert not any(sums.total())


def test_sums_of_a_checkpoint_that_did_not_count_skipped_updates_go_on() -> None:
    sums = MetricSums(torch.device("cpu"))
    sums.load(torch.tensor([2.0, *[0.0] * 5, 16.0, 0.0, 0.0], dtype=torch.float64))
    row = sums.row(global_batch_size=8)
    assert (row["train/lm_loss"], row["train/skipped_updates"]) == (1.0, 0)


def test_a_full_disk_under_the_log_ends_no_run_that_finds_room_before_its_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, 0, ())
    log.write(Entry(1, {}))
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda _descriptor, content: len(content) // 2)  # what still fits
        log.write(Entry(2, {}))
        log.write(Entry(3, {}))
        assert path.read_bytes() == b'{"step": 1}\n'
    assert caplog.text.count("cannot be written (No space left on device); training goes on") == 1
    log.flush()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_full_disk_at_a_checkpoint_is_a_message_that_names_the_log_and_leaves_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, 0, ())
    log.write(Entry(1, {}))
    monkeypatch.setattr(os, "write", lambda _descriptor, content: len(content) // 2)
    log.write(Entry(2, {}))
    with pytest.raises(
        WriteError, match=r"metrics\.jsonl: cannot be written \(No space left.*resumes from the latest"
    ):
        log.flush()
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be read \(Is a directory\)"):
        JsonLines(tmp_path / "metrics.jsonl", 0, ())
