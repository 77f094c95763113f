import json
from pathlib import Path

import pytest

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.build import build
from data_pipeline.shards.plan import Request
from tests.training import Finished, Started, command_line, train
from tools.report.__main__ import gather, parse

pytestmark = pytest.mark.e2e


def test_the_command_line_goes_from_tasks_to_submission_and_report(config: Path, tmp_path: Path) -> None:
    data, run, predictions = tmp_path / "data", tmp_path / "run", tmp_path / "predictions"
    submission, report = tmp_path / "submission.json", tmp_path / "report.html"
    evaluated = [predictions, "--data", data, "--out"]
    page = [*evaluated, report, "--metrics", run / "metrics.jsonl"]
    for command in (
        ["data_pipeline.build", "arc-agi-1", "--canvas", 6, "--num-aug", 3, "--limit-groups", 12,
         "--holdout", "all", "--workers", 1, "--out", data],
        ["hrm_dist.train", config, f"data_path={data}", f"checkpoint_path={run}", "max_steps=5"],
        ["tools.evaluate", run / "checkpoints" / "latest", "--data", data, "--out", predictions],
        ["tools.vote", *evaluated, submission],
        ["tools.check_submission", submission, "--tasks", data],
        ["tools.report", *page],
    ):  # fmt: skip
        finished = command_line("-m", *command)
        assert finished.exit_code == 0, finished.output

    tasks = json.loads((data / "test_puzzles.json").read_text())
    answers = json.loads(submission.read_text())
    assert len(tasks) == 12
    left_out = answers.keys() - tasks.keys()
    assert len(left_out) == 800 - 12
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert all(answer == nothing for name in left_out for answer in answers[name])
    assert any(len(task["test"]) > 1 for task in tasks.values())
    for name, task in tasks.items():
        assert len(answers[name]) == len(task["test"])
        for answer in answers[name]:
            assert answer.keys() == {"attempt_1", "attempt_2"}
            assert all(is_grid(grid) for grid in answer.values())
    assert report.read_text().lower().startswith("<!doctype html>")
    shown = gather(parse([*map(str, page)]))
    assert [puzzle.id for puzzle in shown.puzzles] == list(tasks)
    assert shown.runs[0].curves


def is_grid(grid: list[list[int]]) -> bool:
    return (
        1 <= len(grid) <= 30
        and 1 <= len(grid[0]) <= 30
        and all(len(row) == len(grid[0]) for row in grid)
        and all(type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> tuple[Path, Path]:
    """A dataset whose predictions fill four files, and a checkpoint that predicts them fast."""
    folder = tmp_path_factory.mktemp("evaluate")
    options = ArcOptions(num_aug=50, holdout="all", canvas=6, limit_groups=None)
    build(Request("arc-agi-1", [], folder / "data", options, seed=0, workers=1, quiet=True))
    settings = ["max_steps=2", "arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=2"]
    finished = train(config, folder / "run", f"data_path={folder / 'data'}", *settings)
    assert finished.exit_code == 0, finished.output
    return folder / "data", folder / "run" / "checkpoints" / "latest"


def start_evaluate(trained: tuple[Path, Path], out: Path, *options: object) -> Started:
    data, checkpoint = trained
    arguments = [checkpoint, "--data", data, "--out", out, "--batch-size", 512, *options]
    return Started(out.with_suffix(".log"), "tools.evaluate", arguments, {})


def evaluate(trained: tuple[Path, Path], out: Path, *options: object) -> Finished:
    return start_evaluate(trained, out, *options).finish()


@pytest.mark.parametrize(
    "rules",
    [(), ("--halting", "unchanged:1", "--every-segment"), ("--vote-until", "confident:0.1:1")],
    ids=["none", "halting", "vote"],
)
def test_an_evaluation_killed_and_resumed_is_one_that_was_never_killed(
    trained: tuple[Path, Path], tmp_path: Path, rules: tuple[str, ...]
) -> None:
    """Whatever is complete stays, and what is lost is no more than the files that were not."""
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert evaluate(trained, plain, *rules).exit_code == 0
    kept: dict[str, int] = {}
    for num_files in (1, 2):
        started = start_evaluate(trained, out, *rules)
        assert started.wait_until(lambda n=num_files: len(list(out.glob("*.npz"))) >= n)
        started.process.kill()
        started.process.join()
        there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
        assert there.items() >= kept.items()
        kept = there
    again = evaluate(trained, out, *rules)
    assert again.exit_code == 0, again.output
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(out) == contents(plain)
    assert len(contents(plain)) > 2


def contents(out: Path) -> dict[str, bytes]:
    """What a folder says, but for names of temporary files."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_folder_with_predictions_of_another_evaluation_is_refused(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert evaluate(trained, out, "--num-aug", 0).exit_code == 0
    before = contents(out)
    refused = evaluate(trained, out, "--num-aug", 1)
    assert refused.exit_code == 2
    assert f"{out}: holds predictions of another evaluation (num_aug 0, now 1, num_rows " in refused.output
    assert contents(out) == before
