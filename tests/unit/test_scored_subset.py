"""Every score says which puzzles it is of, by name and hash."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.build import build, parse_arguments
from data_pipeline.inspect.__main__ import summary
from data_pipeline.inspect.verify import verify
from data_pipeline.reader import TestReader
from data_pipeline.schema import SPLITS, DatasetInfo, load_dataset_info
from hrm_dist.evaluation import puzzle_scores
from hrm_dist.evaluation.predictions import Predictions, read_prediction_file, write_predictions
from hrm_dist.evaluation.scores import evaluation_text
from hrm_dist.train import main as train
from tools import vote
from tools.report import __main__ as report

SUBSET = "sudoku-4x4@7aaad74326ea"
EARLIER = Path(__file__).parents[1] / "golden" / "earlier" / "sudoku"


@pytest.fixture(scope="module")
def sudokus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sudoku") / "data"
    build(parse_arguments(["sudoku", "--subset", "sudoku-4x4", "--quiet", "--out", str(out)]))
    return out


def right_predictions(dataset: Path, path: Path) -> None:
    """Write predictions that are all right."""
    reader = TestReader(dataset)
    [batch] = reader.batches(len(reader))
    arrays = {name: batch[name].numpy() for name in ("puzzle_identifiers", "inputs", "example_index")}
    preds = torch.where(batch["labels"] < 0, 0, batch["labels"]).numpy().astype(np.uint8)
    no_logits = np.zeros(len(reader), dtype=np.float32)
    write_predictions(
        path, Predictions(**arrays, preds=preds, q_halt_logits=no_logits, checkpoint_id="step_1")
    )


def shown(dataset: Path) -> DatasetInfo:
    return load_dataset_info(dataset)


def test_a_subset_is_shown_by_name_and_hash(sudokus: Path, dataset: Path) -> None:
    assert shown(sudokus).evaluated() == SUBSET
    assert shown(sudokus).subset_of_both() == "sudoku-4x4@0e9ef5e7bac8+7aaad74326ea"
    assert shown(dataset).subset("train").startswith("arc@")


@pytest.mark.parametrize(("max_groups", "words"), [(7, f"the first 7 of {SUBSET}"), (500, SUBSET)])
def test_the_first_puzzles_of_a_subset_are_not_the_subset(max_groups: int, words: str, sudokus: Path) -> None:
    assert shown(sudokus).evaluated(max_groups) == words


def test_a_dataset_of_an_earlier_version_has_none() -> None:
    info = shown(EARLIER)
    assert (info.subset("test"), info.subset_of_both(), info.evaluated(3)) == ("", "", "")


def test_inspecting_a_dataset_shows_its_subset(sudokus: Path) -> None:
    assert "  subset       sudoku-4x4@0e9ef5e7bac8+7aaad74326ea\n" in summary(
        verify(sudokus, 1, show_progress=False)
    )


def test_an_evaluation_in_training_shows_its_subset() -> None:
    text = evaluation_text(7, {"exact_accuracy": 0.5}, 3.0, None, None, SUBSET)
    assert text.startswith(f"evaluation at step 7 on {SUBSET} in 3 s: exact_accuracy 50.0 %")


def test_the_end_of_a_run_shows_the_subset(
    config: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["max_steps=1", "eval_interval=1", "epochs=1", "eval_num_aug=0", "eval_max_groups=2"]
    assert train([str(config), f"checkpoint_path={tmp_path}/run", *run]) == 0
    assert f"\nscores on the first 2 of {shown(dataset).subset('test')}: " in capsys.readouterr().out


def test_the_accuracy_of_predictions_is_told_with_their_subset(sudokus: Path, tmp_path: Path) -> None:
    right_predictions(sudokus, tmp_path / "p.npz")
    reader, predictions = TestReader(sudokus), read_prediction_file(tmp_path / "p.npz")
    labels = reader.take(np.arange(len(predictions.preds)))["labels"].numpy()
    text = puzzle_scores.summary_text(puzzle_scores.summary([(predictions, labels)], reader.info))
    assert text.endswith(f"cell accuracy 100.0%, on {SUBSET}")


def test_a_vote_and_its_report_show_both_subsets(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right_predictions(dataset, tmp_path / "p.npz")
    arguments = [str(tmp_path / "p.npz"), "--data", str(dataset), "--out"]
    assert vote.main([*arguments, f"{tmp_path}/submission.json"]) == 0
    train_subset, test_subset = (shown(dataset).subset(split) for split in SPLITS)
    lines = capsys.readouterr().out.splitlines()
    assert f"evaluated on {test_subset}, trained on {train_subset}" in lines
    found = json.loads(lines[-1])
    assert (found["evaluated_on"], found["trained_on"]) == (test_subset, train_subset)
    [run] = report.gather(report.parse([*arguments, f"{tmp_path}/report.html"])).runs
    assert (run.facts["evaluated on"], run.facts["trained on"]) == (test_subset, train_subset)


def test_a_vote_on_tasks_of_a_file_claims_no_subset(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right_predictions(dataset, tmp_path / "p.npz")
    files = ["--data", str(dataset), "--tasks", str(dataset / "test_puzzles.json")]
    assert vote.main([str(tmp_path / "p.npz"), *files, "--out", f"{tmp_path}/submission.json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["evaluated_on"] is None
