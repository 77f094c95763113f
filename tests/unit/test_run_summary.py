"""What a run says of its evaluations and at its end."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.base.errors import exit_code
from hrm_dist.metrics import scores_text
from hrm_dist.train import main as train
from tools import evaluate, vote


def call(main: Callable[[], int], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    return exit_code(main)


def test_a_run_prints_its_evaluations_and_ends_with_commands_that_work(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run 1"  # to be quoted
    caplog.set_level("INFO")
    train([str(config), f"checkpoint_path={run}", "max_steps=4", "log_interval=1", "eval_interval=2"])
    evaluations = [line for line in caplog.messages if line.startswith("evaluation at step ")]
    assert len(evaluations) > 0
    assert "exact_accuracy 0." in evaluations[0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finished at step 4: 4 steps in ")
    assert lines[1].startswith("scores: task/pass@1 0.")
    assert f"run folder: {run}, with metrics.jsonl, checkpoints/latest, checkpoints/best" in lines
    for line, module in zip(lines[-2:], (evaluate, vote), strict=True):
        python, m, name, *arguments = shlex.split(line.removeprefix("next: "))
        assert (python, m, name) == ("python", "-m", module.__name__)
        assert call(module.main, arguments, monkeypatch) == 0
    assert (run / "submission.json").exists()


def test_a_run_that_is_resumed_says_since_when(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for max_steps in (2, 4, 4):
        train([str(config), f"checkpoint_path={tmp_path}/run", f"max_steps={max_steps}"])
    first, second, third = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("finished")
    ]
    assert "2 steps in" in first
    assert ", from step 2 on, " in second
    assert third == "finished at step 4: no step was left to do"


def test_a_run_of_one_step_says_step(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train([str(config), f"checkpoint_path={tmp_path}/run", "max_steps=1"])
    assert "finished at step 1: 1 step in " in capsys.readouterr().out


def test_scores_that_count_most_are_shown_by_name() -> None:
    scores = {
        "exact_accuracy": 0.25,
        "cell_accuracy": 0.5,
        "tasks": 2.0,
        "task/oracle": 1.0,
        "task/pass@2": 0.5,
    }
    assert scores_text(scores) == "task/pass@2 0.5000, exact_accuracy 0.2500, cell_accuracy 0.5000 (2 tasks)"
    assert scores_text({"of_my_own": 0.1}) == "of_my_own 0.1000"
    assert scores_text({}) == "nothing could be scored"
