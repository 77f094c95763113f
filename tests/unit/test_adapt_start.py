"""From a checkpoint to the first step of an adaptation, and what log_loss says of one."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import InputError
from data_pipeline.build import build
from data_pipeline.schema import load_dataset_info
from hrm_dist.checkpoint.reader import dataset_identity, open_checkpoint, read_state
from hrm_dist.config import load_config
from hrm_dist.train import main as train
from tools.adapt.__main__ import parse_arguments
from tools.adapt.asked import Adaptation, check
from tools.adapt.plan import Plan, PredictionRate, TrainingRate
from tools.adapt.record import Clock, Record, read_record
from tools.adapt.stages import Run, adapt
from tools.adapt.start import start_from
from tools.convert.fit import TABLE
from tools.convert.import_ import write_step_0
from tools.log_loss import log_loss

NEW = "aaaaaaaa"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train([str(config), f"checkpoint_path={folder}", "max_steps=3", "ema=true", "ema_rate=0.5"]) == 0
    return folder / "checkpoints" / "latest"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A task that the checkpoint has been trained on, and the same under a name that it does not know."""
    known: dict[str, Any] = json.loads((dataset / "test_puzzles.json").read_bytes())
    name, task = next(iter(known.items()))
    path = tmp_path_factory.mktemp("tasks") / "tasks.json"
    path.write_text(json.dumps({name: task, NEW: task}))
    return path


def asked(checkpoint: Path, tasks: Path, run: Path, *words: str) -> Adaptation:
    options = [str(checkpoint), "--tasks", str(tasks), "--out", str(run), "--num-aug", "8", *words]
    return check(parse_arguments(options))


def started(checkpoint: Path, tasks: Path, run: Path, *words: str) -> dict[str, Tensor]:
    """The tensors of step 0."""
    given = asked(checkpoint, tasks, run, *words)
    build(given.request)
    folders = {"data_path": str(run / "data"), "checkpoint_path": str(run)}
    start_from(checkpoint, given.identifiers, given.config.model_copy(update=folders))
    return open_checkpoint(run / "checkpoints" / "latest").tensors("model")


def test_an_adaptation_begins_with_averaged_weights_and_rows_by_name_or_their_mean(
    trained: Path, tasks: Path, dataset: Path, tmp_path: Path
) -> None:
    tensors = started(trained, tasks, tmp_path / "run")
    opened = open_checkpoint(trained)
    before = opened.tensors("model")
    averages = opened.tensors("ema")
    assert all(torch.equal(tensors[name], average) for name, average in averages.items())
    then, now = (
        json.loads((data / "identifiers.json").read_bytes()) for data in (dataset, tmp_path / "run" / "data")
    )
    mean = before[TABLE][1:].mean(0)
    for row, name in enumerate(now[1:], start=1):
        expected = before[TABLE][then.index(name)] if name in then else mean
        torch.testing.assert_close(tensors[TABLE][row], expected)
    assert sum(name in then for name in now[1:]) >= 1
    assert sum(name.startswith(NEW) for name in now) > 1


def test_without_the_names_of_its_rows_all_begin_with_the_mean(
    trained: Path, tasks: Path, dataset: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "step_3"
    shutil.copytree(trained.resolve(), moved)
    away = dataset.with_name("away")
    dataset.rename(away)
    try:
        table = started(moved, tasks, tmp_path / "run")[TABLE]
        assert torch.equal(table, table[:1].expand_as(table))
        names = ["--identifiers", str(away / "identifiers.json")]
        table = started(moved, tasks, tmp_path / "named", *names)[TABLE]
        assert not torch.equal(table, table[:1].expand_as(table))
    finally:
        away.rename(dataset)


def test_identifiers_of_other_data_are_refused(trained: Path, tasks: Path, tmp_path: Path) -> None:
    file = tmp_path / "identifiers.json"
    for content, why in (
        ('["<blank>", "x"]', "names 2 puzzles, but .* has 73 rows"),
        ("{}", "no list of names"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=why):
            asked(trained, tasks, tmp_path / "run", "--identifiers", str(file))


def test_network_and_padding_are_the_checkpoints(trained: Path, tasks: Path, tmp_path: Path) -> None:
    given = asked(trained, tasks, tmp_path / "run", "lr=0.5")
    arch = read_state(trained).config["arch"]
    assert given.config.arch.model_dump(mode="json") == arch
    assert given.config.lr == 0.5
    assert given.asked.table_share > 0
    for setting in ("arch.hidden_size=64", "padding=skip"):
        with pytest.raises(InputError, match="the checkpoint is of"):
            asked(trained, tasks, tmp_path / "run", setting)
    with pytest.raises(InputError, match=r"settings of .*latest with the command line: precision=bf16 and"):
        asked(trained, tasks, tmp_path / "run", "precision=bf16")


def test_tasks_that_no_canvas_of_the_checkpoint_holds_are_refused(trained: Path, tmp_path: Path) -> None:
    wide = {"input": [[0] * 7], "output": [[0] * 7]}
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({NEW: {"train": [wide], "test": [{"input": [[1] * 7]}]}}))
    with pytest.raises(InputError, match="no task fits the canvas of the checkpoint, 6 x 6"):
        asked(trained, file, tmp_path / "run")


def test_a_checkpoint_decides_about_the_dataset(trained: Path, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="makes the dataset, with the canvas of the checkpoint"):
        asked(trained, tasks, tmp_path / "run", "dataset.preset=arc", "dataset.canvas=6")


def test_a_checkpoint_of_sudokus_is_refused(config: Path, dataset: Path, tasks: Path, tmp_path: Path) -> None:
    identity: dict[str, Any] = dataset_identity(dataset, load_dataset_info(dataset).metadata("train"))
    metadata = {**identity["metadata"], "seq_len": 81, "vocab_size": 11, "num_puzzle_identifiers": 1}
    of_sudokus: dict[str, object] = {**identity, "metadata": metadata}
    write_step_0(tmp_path / "sudoku", load_config(config), of_sudokus, {})
    with pytest.raises(InputError, match="81 cells with 11 tokens and 1 identifiers, not of ARC"):
        asked(tmp_path / "sudoku" / "checkpoints" / "latest", tasks, tmp_path / "run")


def test_what_was_measured_within_too_little_time_is_measured_anew(
    trained: Path, tasks: Path, tmp_path: Path
) -> None:
    given = asked(trained, tasks, tmp_path, "num_threads=1")
    clock = Clock(tmp_path, Record(asked=given.asked, budget_s=1))
    with pytest.raises(InputError, match="nothing could be predicted"):
        Run(given, clock, 1, "cpu").finish()
    record = read_record(tmp_path)
    assert record is not None
    assert (record.stage, record.training, record.prediction) == ("measure", None, None)


def test_a_run_folder_that_cannot_be_made_is_refused(trained: Path, tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*file/run: cannot be written"):
        adapt(asked(trained, tasks, tmp_path / "file" / "run"), 1, "cpu")


def test_training_cut_short_and_a_submission_of_other_weights_are_said(
    trained: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked(trained, tasks, tmp_path)
    shutil.copytree(trained.parent, tmp_path / "checkpoints", symlinks=True)
    planned = Plan(chunks=(10,), table_only_steps=2, rounds_between=1, for_predictions_s=60)
    prediction = PredictionRate(rows_per_s=1, start_s=5)
    training = TrainingRate(steps_per_s=1, start_s=5)
    record = Record(asked=given.asked, budget_s=1, plan=planned, prediction=prediction, training=training)
    Run(given, Clock(tmp_path, record), 1, "cpu").finish()
    said = capsys.readouterr().err
    assert "training stopped at step 3 of 10: " in said
    assert "warning: it is not of the last weights, those of step 3: " in said


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(
    config: Path, dataset: Path, trained: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(trained)
    tensors = opened.tensors("model")
    tensors["network.lm_head.weight"].zero_()
    write_step_0(tmp_path / "run", load_config(config), opened.state.dataset, tensors)
    found = log_loss(
        tmp_path / "run" / "checkpoints" / "latest", dataset, num_aug=0, batch_size=4, device="cpu"
    )
    assert found["log_loss"] == pytest.approx(math.log(12))
    assert found["cell_accuracy"] == found["exact_accuracy"] == 0  # all token 0, padding
    tests = json.loads((dataset / "test_puzzles.json").read_bytes()).values()
    assert found["inputs"] == sum(len(task["test"]) for task in tests)


def test_the_log_loss_of_hidden_outputs_is_refused_before_any_model_is_read(
    trained: Path, tmp_path: Path
) -> None:
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    file = tmp_path / "x_challenges.json"
    file.write_text(json.dumps({NEW: {"train": [pair], "test": [{"input": [[1]]}]}}))
    build(asked(trained, file, tmp_path / "run").request)
    with pytest.raises(InputError, match="all outputs of its test inputs are hidden"):
        log_loss(tmp_path / "none", tmp_path / "run" / "data", num_aug=0, batch_size=4, device="cpu")


def test_the_log_loss_of_a_model_with_noise_repeats(config: Path, dataset: Path, tmp_path: Path) -> None:
    assert train([str(config), f"checkpoint_path={tmp_path}", "max_steps=1", "arch.segment_noise=0.1"]) == 0
    latest = tmp_path / "checkpoints" / "latest"
    one, other = (log_loss(latest, dataset, num_aug=0, batch_size=size, device="cpu") for size in (4, 3))
    assert one == pytest.approx(other, rel=1e-5)
