import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.parallel import Part
from data_pipeline.reader import TestReader
from data_pipeline.schema import load_dataset_info
from hrm_dist.checkpoint.reader import open_checkpoint
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.config import load_config
from hrm_dist.evaluation import evaluate as evaluation
from hrm_dist.evaluation.output_dir import Evaluation, claim, missing_parts, rows_per_file
from hrm_dist.evaluation.predictions import (
    Predictions,
    read_prediction_file,
    read_predictions,
)
from hrm_dist.evaluation.puzzle_scores import summary, summary_text
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.model.act import ACTModel, build_model
from hrm_dist.tensor_shards import replicated
from hrm_dist.train import main as train
from tests.documents import edit_document
from tests.training import Started, command_line
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


def test_an_evaluation_whose_numbers_overflow_says_so(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_checkpoint(checkpoint)
    huge = [replicated(f"model.{name}", tensor * 1e37) for name, tensor in opened.tensors("model").items()]
    CheckpointWriter(tmp_path, keep=1, in_background=False).write(opened.state, huge)
    assert run(tmp_path / "latest", tmp_path / "out", "--max-groups", 1, "--num-aug", 1) == 0
    assert re.search(r"warning: (\d+) of \1 predictions are lost", capsys.readouterr().err)


def test_predictions_are_the_model_s_after_halt_max_steps_segments(model: ACTModel, dataset: Path) -> None:
    [batch] = TestReader(dataset, num_aug=0).batches(100)
    fields = {name: batch[name].int() for name in ("inputs", "puzzle_identifiers")}
    segment = EvaluationSegment(model, len(batch["inputs"]), torch.device("cpu"))
    [answers] = evaluation.answer(segment, [batch])
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
    segment = EvaluationSegment(model, 4, torch.device("cpu"))
    list(evaluation.answer(segment, TestReader(dataset, 1, 0).batches(4)))
    assert model.training == training


def test_scores_do_not_depend_on_the_batch_size(model: ACTModel, dataset: Path) -> None:
    reader = TestReader(dataset)
    scores = [evaluation.evaluate(model, reader, dataset, n, torch.device("cpu")) for n in (108, 7)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert {"exact_accuracy", "cell_accuracy", "task/pass@2"} <= scores[0].keys()
    assert scores[0]["examples"] == len(reader)


def test_accuracy_is_told_with_its_interval_and_the_number_of_puzzles() -> None:
    """Of four Sudokus, one with a wrong cell."""
    reader = TestReader(Path(__file__).parents[1] / "golden" / "earlier" / "sudoku")
    [batch] = reader.batches(4)
    preds = batch["labels"].numpy().astype(np.uint8)
    preds[0, 0] ^= 1
    arrays = [batch[name].numpy() for name in ("puzzle_identifiers", "inputs")]
    rest = (np.zeros(4, dtype=np.float32), batch["example_index"].numpy())
    found = summary([(Predictions(*arrays, preds, *rest), batch["labels"].numpy())], reader.info)
    assert summary_text(found) == (
        "exact accuracy 75.0 % [30.1, 95.4] (3 of 4 puzzles right in every cell), "
        "valid accuracy 75.0 % [30.1, 95.4] (3 of 4 puzzles), cell accuracy 98.4%"
    )


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


def test_ema_and_raw_weights_predict_under_different_names(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    for weights in ("ema", "raw"):
        assert run(checkpoint, tmp_path / weights, "--weights", weights) == 0
    files = [read_prediction_file(tmp_path / weights / "predictions_00000.npz") for weights in ("ema", "raw")]
    assert files[0].checkpoint_id != files[1].checkpoint_id
    assert not np.array_equal(files[0].q_halt_logits, files[1].q_halt_logits)


def test_the_name_of_a_checkpoint_without_average_claims_none(run: Run, config: Path, tmp_path: Path) -> None:
    assert train([str(config), f"checkpoint_path={tmp_path / 'run'}", "max_steps=1"]) == 0
    for weights in ("ema", "raw"):
        assert run(tmp_path / "run" / "checkpoints" / "latest", tmp_path / weights, "--weights", weights) == 0
    ids = [
        read_prediction_file(tmp_path / weights / "predictions_00000.npz").checkpoint_id
        for weights in ("ema", "raw")
    ]
    assert ids[0] == ids[1]
    assert str(ids[0]).endswith("-raw")


def test_a_folder_begun_under_the_former_name_of_ema_is_completed(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, tmp_path / "out", "--weights", "average") == 0
    assert run(checkpoint, tmp_path / "out", "--weights", "ema") == 0
    assert "1 files, 0 of them new" in capsys.readouterr().out


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


# Parts


def rows_of(out: Path) -> list[np.ndarray]:
    """All fields of a folder's predictions."""
    files = list(read_predictions([out]))
    return [np.concatenate([getattr(file, name) for file in files]) for name in Predictions._fields[:5]]


@pytest.fixture(scope="module")
def few(dataset: Path) -> tuple[str, ...]:
    """Options for an evaluation of 14 rows."""
    assert len(TestReader(dataset, 6, 1)) == 14
    return ("--max-groups", "6", "--num-aug", "1", "--batch-size", "3")


@pytest.mark.parametrize("count", range(1, 6))
def test_parts_in_any_order_predict_as_one_command(
    count: int,
    few: tuple[str, ...],
    run: Run,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(checkpoint, tmp_path / "one", *few) == 0
    out = tmp_path / "parts"
    order = random.Random(count).sample(range(count), count)
    for number in order:
        assert number in missing_parts(out, count)
        assert run(checkpoint, out, *few, "--part", f"{number}/{count}") == 0
        assert number not in missing_parts(out, count)
    assert missing_parts(out, count) == []
    sizes = [len(file.preds) for file in read_predictions([out])]
    assert len(sizes) == count
    assert max(sizes) == -(-14 // count)
    capsys.readouterr()
    assert run(checkpoint, out, *few) == 0
    assert f"14 predictions in {count} files, 0 of them new" in capsys.readouterr().out
    for whole, in_parts in zip(rows_of(tmp_path / "one"), rows_of(out), strict=True):
        if whole.dtype == np.float32:  # the last batch of a file is smaller
            np.testing.assert_allclose(in_parts, whole, rtol=1e-5)
        else:
            np.testing.assert_array_equal(in_parts, whole)


def test_one_command_finishes_what_parts_have_left_out(
    few: tuple[str, ...], run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for number in (2, 0):
        assert run(checkpoint, out, *few, "--part", f"{number}/4") == 0
    assert (
        "part 0 of 4 is complete, 1 of its files new; 2 of the folder's 4 files are there"
        in capsys.readouterr().out
    )
    assert missing_parts(out, 4) == [1, 3]
    assert run(checkpoint, out, *few) == 0
    assert "14 predictions in 4 files, 2 of them new" in capsys.readouterr().out
    assert missing_parts(out, 4) == []


def test_a_complete_folder_is_summed_up_without_the_model(
    few: tuple[str, ...], run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(checkpoint, out, *few) == 0
    monkeypatch.delattr(evaluate, "load_model")
    assert run(checkpoint, out, *few) == 0
    assert run(checkpoint, out, "--max-groups", 5) == 2
    with pytest.raises(NameError, match="load_model"):
        run(checkpoint, tmp_path / "other", *few)


def test_a_complete_folder_is_not_summed_up_with_another_dataset(
    run: Run, checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, tmp_path / "out") == 0
    other = shutil.copytree(dataset, tmp_path / "other")
    edit_document(other, "test_puzzles.json", lambda tasks: tasks.popitem())
    assert run(checkpoint, tmp_path / "out", data=other) == 2
    assert "was trained on another dataset" in capsys.readouterr().err


def test_a_number_of_parts_that_cuts_files_otherwise_is_refused(
    few: tuple[str, ...], run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(checkpoint, out, *few, "--part", "0/9") == 0  # 2 rows a file, as with 10
    assert run(checkpoint, out, *few, "--part", "5/6") == 2
    message = (
        "begun with 2 predictions per file, but 6 parts would have 3; resume with as many parts as before"
    )
    assert message in capsys.readouterr().err
    with pytest.raises(InputError, match=message):
        missing_parts(out, 6)
    assert run(checkpoint, out, *few, "--part", "5/10") == 0
    assert missing_parts(out, 9) == [1, 2, 3, 4, 6]
    assert run(checkpoint, out, *few) == 0
    assert missing_parts(out, 6) == []


@pytest.mark.parametrize("part", ["4/4", "-1/4", "1", "a/b", "0/0"])
def test_a_part_that_is_none_is_refused(part: str, run: Run, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(checkpoint, tmp_path / "out", f"--part={part}")
    assert not (tmp_path / "out").exists()


def test_files_have_at_most_the_allowed_number_of_rows() -> None:
    assert [rows_per_file(20_000, n) for n in (1, 2, 20, 40)] == [1024, 1024, 1000, 500]
    assert [rows_per_file(n, 1) for n in (100, 129, 4000)] == [100, 128, 250]
    # A start is as dear as an input of one.
    assert [rows_per_file(n, 1, num_starts=16) for n in (100, 129, 4000)] == [8, 9, 250]


def test_a_file_has_a_row_however_many_parts_there_are() -> None:
    assert [rows_per_file(3, n) for n in (1, 2, 3, 7)] == [3, 2, 1, 1]
    assert rows_per_file(0, 4) == 1


def claim_at(moment: float, out: Path, count: int) -> int | str:
    size = rows_per_file(200, count)
    asked = Evaluation(checkpoint_id="c", num_aug=None, max_groups=None, num_rows=200, rows_per_file=size)
    while time.monotonic() < moment:
        pass
    try:
        return claim(out, asked, Part(0, count)).rows_per_file
    except InputError as error:
        return str(error)


def test_parts_that_start_at_once_agree_on_one_record(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, get_context("forkserver")) as pool:
        for attempt in range(10):
            out = tmp_path / str(attempt)
            moment = time.monotonic() + 0.02
            outcomes = list(pool.map(claim_at, [moment] * 4, [out] * 4, (2, 3, 2, 3)))
            sizes = {outcome for outcome in outcomes if isinstance(outcome, int)}
            assert sizes in ({100}, {67})
            refusals = [outcome for outcome in outcomes if isinstance(outcome, str)]
            assert len(refusals) == 2
            assert all("resume with as many parts as before" in refusal for refusal in refusals)
            assert [path.name for path in out.iterdir()] == ["evaluation.json"]


def test_what_is_missing_is_found_without_torch() -> None:
    program = (
        "import sys; from pathlib import Path; from hrm_dist.evaluation.output_dir import missing_parts; "
        "print(missing_parts(Path('nowhere'), 3), 'torch' in sys.modules)"
    )
    assert command_line("-c", program).output == "[0, 1, 2] False\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_an_evaluation_after_a_complete_file(
    number: int, run: Run, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "out", 27
    assert run(checkpoint, out, "--part", f"3/{parts}") == 0
    arguments = [checkpoint, "--data", dataset, "--out", out, "--batch-size", 1]
    started = Started(tmp_path / "log", "tools.evaluate", arguments, {})
    assert started.wait_until(lambda: (out / "predictions_00000.npz").exists())
    started.signal(number)
    finished = started.finish()
    files = list(out.glob("*.npz"))
    assert finished.exit_code == 75, finished.output
    assert len(files) < parts
    name = signal.Signals(number).name
    message = (
        f"stopped by {name}; {len(files)} of {parts} files of {out} are there, and the same command resumes"
    )
    assert message in finished.output
    assert "Traceback" not in finished.output
    assert {len(read_prediction_file(file).preds) for file in files} == {4}
