"""What a run says of its evaluations and at its end."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.base.errors import exit_code
from hrm_dist.evaluation.scores import count_text, evaluation_text, last_scores, scores_text
from hrm_dist.train import main as train
from tools import evaluate, show, vote
from tools.report import __main__ as report


def call(main: Callable[[], int], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    return exit_code(main)


def test_a_run_prints_its_evaluations_and_ends_with_commands_that_work(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run 1"  # to be quoted
    caplog.set_level("INFO")
    train([str(config), f"checkpoint_path={run}", "max_steps=8", "log_interval=1", "eval_interval=1"])
    first, second = [line for line in caplog.messages if line.startswith("evaluation at step ")]
    assert re.fullmatch(
        r"evaluation at step 4 on arc@[0-9a-f]{12} in .*: task/pass@1 .* %, .*; \d+ of 12 test inputs right .*",
        first,
    )
    assert re.fullmatch(
        r"evaluation at step 8 on arc@.* in .*: task/pass@1 .* % \([+-].*\), .*; .* so far.*", second
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finished at step 8: 8 steps in ")
    assert re.fullmatch(
        r"scores on arc@.*: task/pass@1 .* %, .*; \d+ of 12 test inputs right .*, .* % \[.*\]", lines[1]
    )
    places = "metrics.jsonl, checkpoints/latest (step 8), checkpoints/best (step 8)"
    assert f"run folder: {run}, with {places}" in lines
    for line, module in zip(lines[-4:], (show, evaluate, vote, report), strict=True):
        python, m, name, *arguments = shlex.split(line.removeprefix("next: "))
        assert (python, m, name) == ("python", "-m", module.__name__.removesuffix(".__main__"))
        assert call(module.main, arguments, monkeypatch) == 0
    assert (run / "submission.json").exists()
    assert (run / "report.html").exists()


def test_a_run_that_is_resumed_says_since_when(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for max_steps in (2, 4, 4):
        train([str(config), f"checkpoint_path={tmp_path}/run", f"max_steps={max_steps}"])
    first, second, third = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("finished")
    ]
    assert "2 steps in" in first
    assert re.search(", from step 2 on, .*; .* s of training in all$", second)
    assert third.startswith("finished at step 4: no step was left to do")


def test_a_run_of_one_step_says_step(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train([str(config), f"checkpoint_path={tmp_path}/run", "max_steps=1"])
    assert "finished at step 1: 1 step in " in capsys.readouterr().out


SUDOKU = {"examples": 100.0, "exact_accuracy": 0.25, "cell_accuracy": 0.5}
ARC = {
    "examples": 40.0, "exact_accuracy": 0.25, "inputs": 5.0, "tasks": 2.0, "input/pass@2": 0.4, "task/pass@2": 0.5,
    "task/oracle": 1.0,
}  # fmt: skip


def test_scores_that_count_most_are_shown_by_name() -> None:
    assert scores_text(ARC) == "task/pass@2 50.0 %, exact_accuracy 25.0 %"
    assert scores_text(SUDOKU | {"valid_accuracy": 0.5}).split(", ")[1] == "valid_accuracy 50.0 %"
    assert scores_text({"of_my_own": 0.1}) == "of_my_own 0.1000"
    assert scores_text({}) == "nothing could be scored"


def test_scores_show_their_change() -> None:
    before = {"exact_accuracy": 0.125}
    assert scores_text(SUDOKU, before) == "exact_accuracy 25.0 % (+12.5), cell_accuracy 50.0 %"


def test_what_is_right_is_counted_in_test_inputs_or_in_examples() -> None:
    assert count_text(SUDOKU, with_interval=True) == "25 of 100 examples right, 25.0 % [17.5, 34.3]"
    assert (
        count_text(ARC, with_interval=True) == "2 of 5 test inputs right by two attempts, 40.0 % [11.8, 76.9]"
    )


def test_scores_of_an_earlier_version_have_no_count() -> None:
    assert count_text({"exact_accuracy": 0.25}) == ""


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (None, "25 of 100 examples right"),
        (0.2, "the best so far"),
        (0.25, "as good as the best so far"),
        (0.3, "the best so far is 30.0 %"),
    ],
)
def test_an_evaluation_is_compared_with_the_best(best: float | None, words: str) -> None:
    assert evaluation_text(1000, SUDOKU, 3.0, None, best).endswith(f"; {words}")


def test_an_evaluation_of_nothing_says_so() -> None:
    assert (
        evaluation_text(1000, {}, 3.0, None, None)
        == "evaluation at step 1,000 in 3 s: nothing could be scored"
    )


def test_last_scores_are_those_of_the_last_line_with_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_scores(path) is None
    lines = [
        '{"step": 1, "eval/x": 0.5}',
        '{"step": 2, "eval/x": 0.75, "eval/y": null}',
        '{"step": 3}',
        '{"st',
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert last_scores(path) == {"x": 0.75}
