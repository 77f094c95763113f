import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import exit_code
from data_pipeline.reader import TestReader
from data_pipeline.schema import load_dataset_info
from hrm_dist import evaluation
from hrm_dist.config import load_config
from hrm_dist.model.act import ACTModel, build_model
from hrm_dist.predictions import read_prediction_file
from hrm_dist.train import main as train
from tests.documents import edit_document
from tools import evaluate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train([str(config), f"checkpoint_path={run}", "max_steps=2", "ema=true", "ema_rate=0.5"]) == 0
    return run / "checkpoints" / "latest"


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, dataset: Path) -> Run:
    def run(checkpoint: Path, out: Path, *options: object, data: Path = dataset) -> int:
        arguments = [checkpoint, "--data", data, "--out", out, *options]
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        return exit_code(evaluate.main)

    return run


@pytest.fixture
def model(config: Path, dataset: Path) -> ACTModel:
    return build_model(load_config(config).arch, load_dataset_info(dataset).metadata("train"), seed=0)


def test_predictions_are_the_model_s_after_halt_max_steps_segments(model: ACTModel, dataset: Path) -> None:
    [batch] = TestReader(dataset, num_aug=0).batches(100)
    fields = {name: batch[name] for name in ("inputs", "labels", "puzzle_identifiers")}
    [answers] = evaluation.answer(model, [batch], torch.device("cpu"))
    model.eval()
    carry = model.initial_carry(fields)
    with torch.no_grad():
        for _ in range(4):
            carry, outputs = model(carry, fields)
    assert carry.halted.all()
    np.testing.assert_array_equal(answers.predictions.preds, outputs["logits"].argmax(-1).numpy())
    np.testing.assert_array_equal(answers.predictions.q_halt_logits, outputs["q_halt_logits"].numpy())


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_the_model_in_its_mode(model: ACTModel, dataset: Path, training: bool) -> None:
    model.train(training)
    list(evaluation.answer(model, TestReader(dataset, 1, 0).batches(4), torch.device("cpu")))
    assert model.training == training


def test_scores_do_not_depend_on_the_batch_size(model: ACTModel, dataset: Path) -> None:
    reader = TestReader(dataset)
    scores = [evaluation.evaluate(model, reader, dataset, n, torch.device("cpu")) for n in (108, 7)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert {"exact_accuracy", "cell_accuracy", "task/pass@2"} <= scores[0].keys()


def test_every_held_out_example_is_predicted_once_in_order(
    run: Run, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    assert run(checkpoint, tmp_path / "out") == 0
    [file] = (tmp_path / "out").glob("*.npz")
    predictions = read_prediction_file(file)
    batches = list(TestReader(dataset).batches(50))
    for name in ("puzzle_identifiers", "inputs", "example_index"):
        expected = torch.cat([batch[name] for batch in batches]).numpy()
        np.testing.assert_array_equal(getattr(predictions, name), expected)
    assert predictions.checkpoint_id is not None
    assert predictions.checkpoint_id.startswith("step_2-")


def test_averaged_and_raw_weights_predict_under_different_names(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    for weights in ("average", "raw"):
        assert run(checkpoint, tmp_path / weights, "--weights", weights) == 0
    files = [
        read_prediction_file(tmp_path / weights / "predictions_00000.npz") for weights in ("average", "raw")
    ]
    assert files[0].checkpoint_id != files[1].checkpoint_id
    assert not np.array_equal(files[0].q_halt_logits, files[1].q_halt_logits)


def test_bad_input_is_refused_and_writes_nothing(
    run: Run, checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    other = shutil.copytree(dataset, tmp_path / "other")
    edit_document(other, "test_puzzles.json", lambda tasks: tasks.popitem())
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    with (damaged / "ema-00000.safetensors").open("ab") as file:
        file.write(b"\0")
    cases = [
        ((tmp_path / "nowhere", out), {}, "no checkpoint here"),
        ((damaged, out), {}, "ema-00000.safetensors: its sha256"),
        ((checkpoint, out), {"data": tmp_path / "nowhere"}, "dataset.json: not found"),
        ((checkpoint, out), {"data": other}, "was trained on another dataset"),
        ((checkpoint, out, "--batch-size", 0), {}, "--batch-size 0: must be at least 1"),
        ((checkpoint, checkpoint / "state.json" / "out"), {}, "cannot be"),
    ]
    for arguments, keywords, reason in cases:
        assert run(*arguments, **keywords) == 2
        assert reason in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.parametrize("record", ["", "[]", "{"])
def test_a_folder_whose_record_is_damaged_is_refused(
    record: str, run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_text(record)
    assert run(checkpoint, out) == 2
    assert str(out) in capsys.readouterr().err


def test_predictions_of_unknown_origin_are_not_added_to(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions_00000.npz").write_bytes(b"")
    assert run(checkpoint, out) == 2
    assert "holds prediction files of unknown origin" in capsys.readouterr().err
