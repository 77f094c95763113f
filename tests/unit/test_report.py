"""The report's content: what runs say, puzzle by puzzle, and what cannot be reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.arc.tokens import encode
from hrm_dist.evaluation.predictions import UNKNOWN_EXAMPLE, Predictions, write_predictions
from tests.training import evaluating, train_briefly
from tools.report.__main__ import gather, main, parse
from tools.report.payload import Report
from tools.report.trajectories import replay

GOLDEN = Path(__file__).parents[1] / "golden" / "arc_vote"
CANVAS = 5
HOSTILE = '<script>alert("x")</script>\'&{{ 7 * 7 }}'


def report_of(*words: object) -> Report:
    return gather(parse([str(word) for word in words]))


def write_data(folder: Path, identifiers: list[str], tasks: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "identifiers.json").write_text(json.dumps(identifiers))
    (folder / "test_puzzles.json").write_text(json.dumps(tasks))


def small_tasks() -> dict[str, Any]:
    """One solved, one half solved, one unsolved and one with hidden truth, whose id tries to be markup."""
    demonstrations = [{"input": [[1, 2]], "output": [[2, 1]]}]
    known = [{"input": [[colour]], "output": [[colour]]} for colour in (3, 4)]
    tests = {"right": known[:1], "half": known, "none": known[1:], HOSTILE: [{"input": [[5]]}]}
    return {task: {"train": demonstrations, "test": test} for task, test in tests.items()}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A vote over the small tasks: every prediction is colour 3."""
    tasks = small_tasks()
    write_data(tmp_path, ["<blank>", *tasks], tasks)
    ids = np.array([1, 2, 2, 3, 4], dtype=np.int32)
    colours = (3, 3, 4, 4, 5)
    predictions = Predictions(
        ids,
        inputs=np.stack([encode(np.full((1, 1), colour, dtype=np.uint8), CANVAS) for colour in colours]),
        preds=np.stack([encode(np.full((1, 1), 3, dtype=np.uint8), CANVAS)] * len(ids)),
        q_halt_logits=np.zeros(len(ids), dtype=np.float32),
        example_index=np.full(len(ids), UNKNOWN_EXAMPLE, dtype=np.int32),
        checkpoint_id=HOSTILE,
    )
    write_predictions(tmp_path / "p.npz", predictions)
    return [str(tmp_path / "p.npz"), "--data", str(tmp_path), "--out", str(tmp_path / "report.html")]


def statuses(report: Report, number: int = 0) -> dict[str, str | None]:
    results = {puzzle.id: puzzle.results[number] for puzzle in report.puzzles}
    return {key: result and result.status for key, result in results.items()}


def test_the_published_vote_becomes_a_report_of_every_task(tmp_path: Path) -> None:
    content = json.loads(GOLDEN.with_suffix(".json").read_text())
    write_data(tmp_path, content["identifiers"], content["tasks"])
    report = report_of(GOLDEN.with_suffix(".npz"), "--data", tmp_path, "--out", tmp_path / "report.html")
    assert [puzzle.id for puzzle in report.puzzles] == list(content["tasks"])
    scores = {score.name: score for score in report.runs[0].scores}
    two = scores["input pass@2"]
    assert (two.right, two.num) == (13, 16)
    assert two.low == pytest.approx(0.570, abs=1e-3)
    assert two.high == pytest.approx(0.934, abs=1e-3)
    assert [name for name, score in scores.items() if score.is_headline] == [
        "task pass@2", "input pass@2", "task all pass@2",
    ]  # fmt: skip
    assert list(statuses(report).values()).count("solved") == 13


def test_each_task_says_how_it_went(arguments: list[str]) -> None:
    report = report_of(*arguments)
    assert statuses(report) == {"right": "solved", "half": "close", "none": "unsolved", HOSTILE: "unknown"}
    _, half, none, hidden = report.puzzles
    assert half.results[0] is not None
    assert half.results[0].cells_right == 0.5
    right, wrong = half.results[0].answers
    assert (right.attempts[0].note, right.note) == ("right", "the truth is candidate 1")
    assert (wrong.attempts[0].note, wrong.attempts[0].num_wrong) == ("1 of 1 cells wrong", 1)
    assert wrong.note == "the truth got no vote"
    assert hidden.inputs[0].truth is None
    assert hidden.results[0] is not None
    assert [attempt.is_right for attempt in hidden.results[0].answers[0].attempts] == [None, None]
    assert none.demonstrations == [("12", "21")]
    assert report.tokens[3].meaning == "colour 3, green"


def test_the_page_keeps_names_from_files_as_text(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "subsets.json").write_text(json.dumps({HOSTILE: ["right"]}))
    assert main([*arguments, "--title", HOSTILE, "--subsets", str(tmp_path / "subsets.json")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert '<script>alert("x")' not in page


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of ARC, with every segment of its predictions."""
    folder = tmp_path_factory.mktemp("report") / "run"
    train_briefly(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(trained: Path, dataset: Path) -> Path:
    assert (
        evaluating(trained / "checkpoints" / "latest", dataset)(trained / "predictions", "--every-segment")
        == 0
    )
    return trained


def test_a_run_folder_says_all_that_is_needed(run: Path, tmp_path: Path) -> None:
    report = report_of(run, "--out", tmp_path / "report.html", "--price-per-hour", 3600)
    [one] = report.runs
    assert one.name == "run"
    assert one.facts["steps"] == "3"
    assert float(one.facts["cost"].partition(",")[0]) == pytest.approx(
        3600 * float(one.facts["device hours"]), rel=0.1
    )
    assert one.settings["arch.hidden_size"] == "32"
    assert one.curves[0].panel == "loss"
    assert {curve.panel for curve in one.curves} >= {"accuracy, training", "learning rate", "speed"}
    assert len(report.puzzles) == report.num_puzzles == 8


def test_the_last_frame_is_the_answer_that_it_led_to(run: Path, tmp_path: Path) -> None:
    report = report_of(run, "--out", tmp_path / "report.html")
    num_played = 0
    for puzzle in report.puzzles:
        [result] = puzzle.results
        assert result is not None
        for answer in result.answers:
            assert answer.trajectories
            for one in answer.trajectories:
                grids = replay(one.frames)
                assert len(grids) == len(one.q) == len(one.residuals) == 4
                for number in (1, 2):
                    if f"attempt {number}" in one.label.split(", "):
                        assert answer.candidates[number - 1].grid == grids[-1]
                        num_played += 1
    assert num_played >= 2 * 8


def test_runs_stand_side_by_side(run: Path, trained: Path, dataset: Path, tmp_path: Path) -> None:
    other = tmp_path / "few"
    assert evaluating(trained / "checkpoints" / "latest", dataset)(other, "--max-groups", 3) == 0
    report = report_of(run, other, "--data", dataset, "--out", tmp_path / "report.html")
    assert [one.name for one in report.runs] == ["run", "few"]
    assert [puzzle.results[1] is None for puzzle in report.puzzles] == [False] * 3 + [True] * 5
    assert "inputs have no prediction" in report.runs[1].warnings[-1]
