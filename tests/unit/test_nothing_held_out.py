"""Datasets of which nothing is held out: they train, and every command that needs held-out puzzles says so."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from data_pipeline import build
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.inspect import __main__ as inspect
from data_pipeline.schema import load_dataset_info
from hrm_dist.train import main as train
from launch.jobs import spec
from launch.jobs.cluster import Cluster
from tests.conftest import TINY_CONFIG
from tests.training import rows
from tests.unit.test_data_build import write_tasks
from tests.unit.test_data_puzzle_dataset import TYPES, new_puzzles, write_csv
from tools import evaluate, vote
from tools.scaling import __main__ as scaling

KINDS = ("arc", "sudoku")
MESSAGE = "nothing is held out of training"
OVERRIDES = ["eval_interval=1", "max_steps=3"]


def call(command: list[object], main: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, command)])
    return exit_code(main)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A preset and puzzles all of which train."""
    folder = tmp_path_factory.mktemp("source")
    if request.param == "sudoku":
        return "sudoku", write_csv(
            folder / "train.csv", TYPES["sudoku"], new_puzzles(TYPES["sudoku"], "train", 24)
        )
    write_tasks(folder)
    shutil.rmtree(folder / "evaluation")
    return "arc", folder / "training"


@pytest.fixture(scope="module")
def data(source: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "data"
    canvas = ["--canvas", "5"] if source[0] == "arc" else []
    arguments = [source[0], "--source", str(source[1]), *canvas, "--num-aug", "3", "--out", str(out)]
    build.build(build.parse_arguments([*arguments, "--workers", "1", "--quiet"]))
    return out


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"data_path: {data}\n{TINY_CONFIG}".replace("global_batch_size: 8", "global_batch_size: 4")
    )
    return path


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train([str(config), f"checkpoint_path={run}", *OVERRIDES]) == 0
    return run


def test_training_goes_on_to_its_last_step_without_scores(run: Path) -> None:
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    assert not any(key.startswith("eval/") for row in rows(run) for key in row)
    assert not (run / "checkpoints" / "best").exists()


def test_training_says_once_why_there_are_no_scores(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train([str(config), f"checkpoint_path={tmp_path / 'run'}", *OVERRIDES]) == 0
    assert caplog.text.count(MESSAGE) == 1
    caplog.clear()
    assert train([str(config), f"checkpoint_path={tmp_path / 'other'}", "max_steps=3"]) == 0
    assert MESSAGE not in caplog.text  # eval_interval is null


def test_build_and_inspection_say_so(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"test: {MESSAGE} (to hold out: --source" in build.summary(data, load_dataset_info(data))
    assert call([data, "--workers", "1", "--quiet"], inspect.main, monkeypatch) == 0
    assert MESSAGE in capsys.readouterr().out


def test_dry_run_and_submission_of_a_training_say_so(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"checkpoint_path={tmp_path / 'run'}"
    assert train([str(config), run, "--dry-run"]) == 0
    assert f"held out: {MESSAGE}\n" in capsys.readouterr().out
    assert MESSAGE in spec.training([str(config), run], Cluster(cluster="local")).about[-1]


def test_predicting_is_refused_alone_and_as_jobs(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [run / "checkpoints" / "latest", "--data", data, "--out", out]
    assert call(arguments, evaluate.main, monkeypatch) == 2
    err = capsys.readouterr().err
    assert f"error: {data}: {MESSAGE}, so there is nothing to predict; build a dataset with" in err
    assert "Traceback" not in err
    with pytest.raises(InputError, match=MESSAGE):
        scaling.main([str(argument) for argument in arguments])
    with pytest.raises(InputError, match=MESSAGE):
        spec.evaluation([str(argument) for argument in arguments], 2, Cluster(cluster="local"))
    assert not out.exists()


def test_voting_is_refused_with_the_reason(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions").mkdir()
    out = tmp_path / "out"
    arguments = [str(tmp_path / "predictions"), "--data", str(data), "--out", str(out)]
    assert vote.main(arguments) == 2
    assert "the dataset holds none out, or is of Sudokus or mazes" in capsys.readouterr().err
    assert not out.exists()
    assert json.loads((data / "test_puzzles.json").read_text()) == {}
