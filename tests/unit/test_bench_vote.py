"""The benchmark of the vote: what it makes up is voted on whole, and what it cannot compare with is refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.arc.task import Pair, Task
from data_pipeline.base.errors import InputError, exit_code
from hrm_dist.evaluation.predictions import read_predictions
from hrm_dist.evaluation.voting import vote
from tools import bench_vote


@pytest.fixture
def _imports_undone() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("argdantic", "dataset", "evaluators"):
            del sys.modules[name]


def test_a_turn_is_timed_and_the_memory_of_a_vote_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_vote.main(["--predictions", "60", "--tasks", "3", "--turns", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["predictions"], result["tasks"]) == ("vote", 60, 3)
    assert result["vote_s"] > 0
    assert 20 < result["peak_rss_mb"] < 2000
    assert "ratio" not in result


def test_made_predictions_are_the_same_again_and_all_are_votes(tmp_path: Path) -> None:
    made, _ = (bench_vote.make_predictions(tmp_path / name, 300, 5, noise=False) for name in "ab")
    votes = vote(read_predictions([tmp_path / "a"]), made.identifiers, made.puzzles)
    assert votes.counted == 300
    assert all(candidates for task in votes.tasks.values() for candidates in task)
    [first], [second] = (read_predictions([tmp_path / name]) for name in "ab")
    np.testing.assert_array_equal(first.preds, second.preds)


def test_predictions_of_noise_are_all_different(tmp_path: Path) -> None:
    made = bench_vote.make_predictions(tmp_path, 100, 5, noise=True)
    votes = vote(read_predictions([tmp_path]), made.identifiers, made.puzzles)
    assert sum(len(candidates) for task in votes.tasks.values() for candidates in task) == 100


def test_more_predictions_than_the_tasks_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    black = Pair(np.zeros((1, 1), dtype=np.uint8), np.zeros((1, 1), dtype=np.uint8))  # has no augmentation
    monkeypatch.setattr(bench_vote, "bundled", lambda _: [Task("a", (black,), (black,), True, "test")])
    with pytest.raises(InputError, match="1 tasks have but 1 augmented inputs; give more --tasks"):
        bench_vote.make_predictions(tmp_path, 2, 1, noise=False)


@pytest.mark.usefixtures("_imports_undone")
@pytest.mark.parametrize(
    ("files", "message"),
    [((), "no evaluators/arc.py there"), (bench_vote.REFERENCE_FILES, "cannot be imported (module 'evaluat")],
)
def test_a_folder_without_the_published_evaluator_is_refused(
    files: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert exit_code(lambda: bench_vote.main(["--reference", str(tmp_path)])) == 2
    assert f"--reference {tmp_path}: {message}" in capsys.readouterr().err
