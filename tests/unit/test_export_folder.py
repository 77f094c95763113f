"""tools.convert export DIR: a folder to give away, and its model card."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_pipeline.base.errors import exit_code
from data_pipeline.build import build
from data_pipeline.grid_puzzles.sudoku.kind import NewSudokus, SudokuOptions
from data_pipeline.shards.plan import Request
from hrm_dist.checkpoint import reader
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.evaluation.scores import scores_by_step
from hrm_dist.inference import load_solver
from hrm_dist.tensor_shards import replicated
from hrm_dist.train import main as train
from tests.conftest import TINY_CONFIG
from tests.training import command_line
from tests.unit.test_data_build import request, write_tasks
from tools import evaluate
from tools.convert import __main__ as convert

ROOT = Path(__file__).parents[2]
Export = Callable[..., int]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Export:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert", "export", *map(str, arguments)])
        return exit_code(convert.main)

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on Sudokus of 4 x 4 with two evaluations, of which the second is as good as the first."""
    folder = tmp_path_factory.mktemp("sudoku")
    options = SudokuOptions(generator=NewSudokus(side=4, num_train=40, num_test=20))
    build(Request("sudoku", [], folder / "data", options, seed=0, workers=1, quiet=True))
    (folder / "c.yaml").write_text(f"data_path: {folder / 'data'}\n{TINY_CONFIG}")
    settings = ["max_steps=10", "eval_interval=1", "ema=true", f"checkpoint_path={folder / 'run'}"]
    assert train([str(folder / "c.yaml"), *settings]) == 0
    return folder / "run"


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata of a card, and its text."""
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def section(body: str, head: str) -> str:
    [found] = re.findall(rf"## {head}\n(.*?)(?=\n## |\Z)", body, re.DOTALL)
    return found


# The lines of Python


def lines_of_python(folder: Path) -> str:
    [lines] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) == 3
    return lines


def run_in_an_empty_folder(exported: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the card's lines print in a new process, where nothing lies but a copy of the folder."""
    shutil.copytree(exported, empty / exported.name)
    monkeypatch.chdir(empty)
    done = command_line("-c", lines_of_python(empty / exported.name), environment={"PYTHONPATH": str(ROOT)})
    assert done.exit_code == 0, done.output
    return done.output


def test_the_card_s_three_lines_solve_a_sudoku(
    run: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = run.parent / "data"
    assert export(run / "checkpoints" / "latest", "--out", tmp_path / "out" / "my-model") == 0
    data.rename(data.with_name("away"))
    try:
        (tmp_path / "empty").mkdir()
        printed = run_in_an_empty_folder(tmp_path / "out" / "my-model", tmp_path / "empty", monkeypatch)
    finally:
        data.with_name("away").rename(data)
    rows = eval(printed)
    assert [len(row) for row in rows] == [4] * 4
    assert set("".join(rows)) <= set("01234_")  # a model that has learned nothing may answer padding


def test_the_card_s_three_lines_solve_an_arc_task(
    config: Path, dataset: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "data")
    settings = [f"data_path={copy}", "max_steps=1", f"checkpoint_path={tmp_path / 'run'}"]
    assert train([str(config), *settings]) == 0
    assert (
        export(tmp_path / "run" / "checkpoints" / "latest", "--out", tmp_path / "out" / 'an "arc" model') == 0
    )
    shutil.rmtree(copy)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    printed = run_in_an_empty_folder(tmp_path / "out" / 'an "arc" model', tmp_path / "empty", monkeypatch)
    assert re.match(r"\{'\w{8}': \[TaskAnswer\(attempts=\(\[\[", printed)
    assert "num_votes=9" in printed


# The card


def test_the_hub_s_own_parser_reads_the_card(run: Path, export: Export, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    out = tmp_path / "my-model"
    assert export(run / "checkpoints" / "latest", "--out", out, "--license", "apache-2.0") == 0
    card = hub.ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name, card.data.model_name) == (
        "apache-2.0",
        "hrm-dist",
        "my-model",
    )
    scores = scores_by_step(run / "metrics.jsonl")[10]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"exact_match": scores["exact_accuracy"], "valid": scores["valid_accuracy"]}
    [result, *_] = card.data.eval_results
    assert (result.dataset_type, result.dataset_split) == ("sudoku", "test")
    # What it writes again has lost nothing.
    assert hub.ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_a_card_has_the_facts_of_the_run(run: Path, export: Export, tmp_path: Path) -> None:
    assert export(run / "checkpoints" / "latest", "--out", tmp_path / "m") == 0
    front, body = card_of(tmp_path / "m")
    assert "license" not in front
    record = json.loads((run / "run.json").read_text())
    assert f"| parameters | {record['num_parameters']:,}, without the puzzle table |" in body
    assert record["dataset"]["sha256"] in body
    for line in ("| steps | 10 |", "| seed | 0 |", "| training puzzles | 40 |", "| held out | 20 puzzles |"):
        assert line in body
    assert re.search(r"\| options \| num_aug=0, .*side=4, num_train=40, num_test=20, seed=0 \|", body)
    num_right = round(scores_by_step(run / "metrics.jsonl")[10]["exact_accuracy"] * 20)
    assert re.search(rf"- exact \d+\.\d % \[.*\], {num_right} of 20 examples\n", section(body, "Scores"))
    assert "EMA" in body
    assert "unknown" not in body.replace("is not known", "")


def test_a_card_has_the_step_of_its_weights_where_the_run_went_on(
    run: Path, export: Export, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (copy / "run.json").unlink()  # as of an earlier version
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "eval/exact_accuracy": 0.5, "eval/examples": 20}\n')
    assert export(copy / "checkpoints" / "latest", "--out", tmp_path / "m") == 0
    assert "| steps | 10 |" in card_of(tmp_path / "m")[1]


def test_scores_are_those_of_the_exported_weights_alone(run: Path, export: Export, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "latest"
    assert export(checkpoint, "--out", tmp_path / "raw", "--weights", "raw") == 0
    front, body = card_of(tmp_path / "raw")
    assert "model-index" not in front
    assert section(body, "Scores").strip() == "None are known."
    assert "No score of these very weights is known" in section(body, "Limits")


def evaluated(run: Path, out: Path, *options: object) -> Path:
    checkpoint = run / "checkpoints" / "latest"
    arguments = [checkpoint, "--data", run.parent / "data", "--out", out, *options]
    assert exit_code(lambda: evaluate.main([*map(str, arguments)])) == 0
    return out / "scores.json"


def test_scores_of_predictions_come_with_their_rules(
    run: Path, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    evaluated(run, copy / "predictions" / "few", "--max-segments", 2)
    elsewhere = evaluated(run, tmp_path / "elsewhere", "--halting", "unchanged:1", "--max-segments", 9)
    raw = evaluated(run, copy / "raw", "--weights", "raw")
    given = ["--data", run.parent / "data", "--scores"]
    assert export(copy / "checkpoints" / "latest", "--out", tmp_path / "m", *given, elsewhere) == 0
    front, body = card_of(tmp_path / "m")
    scores = section(body, "Scores")
    assert scores.count("Evaluated after training, on sudoku@") == 2  # not those of the raw weights
    assert "Rules: halting unchanged:1, max_segments 9." in scores
    assert "Rules: max_segments 2." in scores
    assert len(front["model-index"][0]["results"]) == 3
    assert export(copy / "checkpoints" / "latest", "--out", tmp_path / "n", *given, raw) == 2
    assert re.search(
        r"--scores .*: is of step_10-\w+-raw, not of step_10-\w+-average", capsys.readouterr().err
    )
    assert not (tmp_path / "n").exists()


def test_a_checkpoint_kept_as_the_best_is_said_to_be_flattered(
    run: Path, export: Export, tmp_path: Path
) -> None:
    assert export(run / "checkpoints" / "best", "--out", tmp_path / "best") == 0
    assert "Of the run's 2 evaluations" in section(card_of(tmp_path / "best")[1], "Limits")
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    (copy / "checkpoints" / "best").unlink()
    assert export(copy / "checkpoints" / "latest", "--out", tmp_path / "latest") == 0
    assert "which flatters it" not in card_of(tmp_path / "latest")[1]


def test_of_a_checkpoint_without_its_run_the_card_leaves_out_the_rest(
    run: Path, export: Export, tmp_path: Path
) -> None:
    alone = shutil.copytree((run / "checkpoints" / "latest").resolve(), tmp_path / "x" / "y" / "step_10")
    assert export(alone, "--out", tmp_path / "m", "--data", run.parent / "data") == 0
    _, body = card_of(tmp_path / "m")
    training = section(body, "How it was trained")
    assert "| seed | 0 |" in training
    assert "| examples a step | 8 |" in training
    assert not re.search("minutes|hardware|commit|versions|Command|unknown", training)
    assert "None are known." in section(body, "Scores")
    assert "unknown" not in body


def test_a_dataset_of_the_hub_is_named_as_the_hub_does(run: Path, export: Export, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["dataset"] = {
        "preset": "sudoku",
        "source": ["hub:sapientinc/sudoku-extreme@12ab:train", "mine.csv"],
    }
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert export(copy / "checkpoints" / "latest", "--out", tmp_path / "m") == 0
    front, _ = card_of(tmp_path / "m")
    assert front["datasets"] == ["sapientinc/sudoku-extreme"]
    [result] = front["model-index"][0]["results"]
    assert result["dataset"]["type"] == "sapientinc/sudoku-extreme"


def test_leaks_are_told(config: Path, dataset: Path, export: Export, tmp_path: Path) -> None:
    leaks = json.loads((dataset / "dataset.json").read_text())["leaks"]
    assert leaks["num_pairs"] > 0
    settings = ["max_steps=1", f"checkpoint_path={tmp_path / 'run'}"]
    assert train([str(config), *settings]) == 0
    assert export(tmp_path / "run" / "checkpoints" / "latest", "--out", tmp_path / "m") == 0
    limits = section(card_of(tmp_path / "m")[1], "Limits")
    assert f"{leaks['num_pairs']} held-out pairs also stand in the training data" in limits
    assert "It can answer the 8 tasks" in limits


def test_where_nothing_is_held_out_a_training_input_is_to_try(export: Export, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks") / "training"
    build(request(tasks, tmp_path / "data"))
    (tmp_path / "c.yaml").write_text(f"data_path: {tmp_path / 'data'}\n{TINY_CONFIG}")
    assert train([str(tmp_path / "c.yaml"), "max_steps=1", f"checkpoint_path={tmp_path / 'run'}"]) == 0
    assert export(tmp_path / "run" / "checkpoints" / "latest", "--out", tmp_path / "m") == 0
    _, body = card_of(tmp_path / "m")
    assert "| held out | nothing |" in body
    assert "No score of these very weights is known" in body
    solver = load_solver(tmp_path / "m")
    assert isinstance(solver.example, dict)
    [(task, [grid])] = solver.example.items()
    pairs = json.loads((tasks / f"{task}.json").read_text())
    assert grid in [pair["input"] for pair in pairs["train"] + pairs["test"]]
    assert len(solver.solve_tasks(solver.example)[task]) == 1


# Whole or not at all


def test_a_folder_that_is_there_is_left_alone(
    run: Path, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "latest"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("mine")
    assert export(checkpoint, "--out", tmp_path / "mine") == 2
    assert "is there already; choose another name" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a"]
    (tmp_path / "empty").mkdir()
    assert export(checkpoint, "--out", tmp_path / "empty") == 0


def test_an_export_that_fails_leaves_nothing(
    run: Path, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = reader.open_checkpoint(run / "checkpoints" / "latest")
    values = opened.tensors("model")
    name = next(iter(values))
    values[name] = torch.full_like(values[name], float("nan"))
    shards = [replicated(f"model.{name}", tensor) for name, tensor in values.items()]
    CheckpointWriter(tmp_path / "lost", keep=1, in_background=False).write(opened.state, shards)
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "lost" / "latest", "--out", tmp_path / "out" / "m") == 2
    assert "no finite numbers" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    file = tmp_path / "out" / "m.safetensors"
    assert export(run / "checkpoints" / "latest", "--out", file, "--license", "mit") == 2
    assert "--license: is for a model card" in capsys.readouterr().err


def test_an_exported_folder_is_imported_with_the_same_bits(
    config: Path, dataset: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train([str(config), "max_steps=2", f"checkpoint_path={tmp_path / 'run'}"]) == 0
    checkpoint, out = tmp_path / "run" / "checkpoints" / "latest", tmp_path / "m"
    assert export(checkpoint, "--out", out) == 0
    arguments = ["import", out, "--data", dataset, "--config", config, "--out"]

    def imported(folder: Path) -> int:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments), str(folder)])
        return exit_code(convert.main)

    assert imported(tmp_path / "back") == 0
    expected = reader.open_checkpoint(checkpoint).tensors("model")
    got = reader.open_checkpoint(tmp_path / "back" / "checkpoints" / "latest").tensors("model")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    (out / "identifiers.json").write_text("[]")
    assert imported(tmp_path / "other") == 2
