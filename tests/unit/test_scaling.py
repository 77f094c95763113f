"""Scaling: a rule applied to recorded segments gives what an evaluation with that rule gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import progress_bar
from data_pipeline.build import build
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from data_pipeline.shards.plan import Request
from hrm_dist.evaluation import puzzle_scores
from hrm_dist.evaluation.continuous import Answering, Finished, InOrder
from hrm_dist.evaluation.halting import HaltingRule
from hrm_dist.evaluation.predictions import Predictions, write_predictions
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.evaluation.trajectories import Recorder, read_trajectories, segments_file, write_trajectories
from hrm_dist.model.act import ACTModel
from hrm_dist.train import main as train
from tests.unit.models import halting_model
from tools.scaling.__main__ import main
from tools.scaling.outcomes import (
    Outcomes,
    Point,
    Taken,
    halting_rules,
    point,
    predictions_at,
    read_outcomes,
    stops,
)
from tools.scaling.results import Row, as_table

SUDOKU = Path(__file__).parents[1] / "golden" / "earlier" / "sudoku"
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
NUM_SLOTS, MAX_SEGMENTS = 8, 6
RULES = ("none", "learned", "q:1", "unchanged:1", "unchanged:2", "residual:0.5")


@pytest.fixture(scope="module")
def reader(dataset: Path) -> TestReader:
    return TestReader(dataset, max_groups=3)


@pytest.fixture(scope="module")
def model(dataset: Path) -> ACTModel:
    return halting_model(dataset)


def run(model: ACTModel, reader: TestReader, rule: str) -> Finished:
    """All that an evaluation with a rule answers, in the order of rows."""
    segment = EvaluationSegment(model, NUM_SLOTS, torch.device("cpu"), has_grids=True, residuals=True)
    answering = Answering(segment, reader, HaltingRule.parse(rule), MAX_SEGMENTS, keeps_trajectories=True)
    rows = np.arange(len(reader))
    return Finished.joined(list(answering.answers(InOrder(rows)))).of_rows(rows)


def write(path: Path, reader: TestReader, got: Finished, order: NDArray[np.int64]) -> None:
    """Write some rows of what was answered, with their segments."""
    batch, rows = reader.take(got.rows[order]), got.rows[order].astype(np.int32)
    identifiers, examples = batch["puzzle_identifiers"].numpy(), batch["example_index"].numpy()
    trajectories = [got.trajectories[i] for i in order]
    write_trajectories(segments_file(path), rows, identifiers, examples, trajectories, got.preds.shape[1])
    predictions = Predictions(
        identifiers,
        batch["inputs"].numpy(),
        got.preds[order],
        got.q_halt_logits[order],
        examples,
        rows=rows,
        num_segments=got.num_segments[order],
    )
    write_predictions(path, predictions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: ACTModel, reader: TestReader) -> Path:
    """All segments of all inputs, in two files whose rows are in no order."""
    out = tmp_path_factory.mktemp("predictions")
    got = run(model, reader, "none")
    for number, order in enumerate(np.array_split(np.random.default_rng(0).permutation(len(reader)), 2)):
        write(out / f"predictions_{number:05d}.npz", reader, got, order)
    return out


def read(folder: Path, reader: TestReader) -> Outcomes:
    with progress_bar("", "input", None, shown=False) as progress:
        return read_outcomes(folder, reader, progress)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_stops_and_answers_as_an_evaluation_with_it(
    model: ACTModel, reader: TestReader, folder: Path, rule: str
) -> None:
    alone = run(model, reader, rule)
    stop = stops(HaltingRule.parse(rule), read(folder, reader))
    blocks = list(predictions_at(folder, Taken.of_first_starts(stop)))
    rows = np.concatenate([block.rows for block in blocks if block.rows is not None])
    np.testing.assert_array_equal(stop, alone.num_segments[rows])
    for name in ("preds", "q_halt_logits"):
        got = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_allclose(got, getattr(alone, name)[rows], rtol=1e-5, atol=1e-5)


def test_rules_stop_some_inputs_early_and_not_all_alike(reader: TestReader, folder: Path) -> None:
    """Otherwise the test above would show little."""
    outcomes = read(folder, reader)
    assert all(len(np.unique(stops(HaltingRule.parse(rule), outcomes))) > 1 for rule in RULES[1:])


def teach(reader: TestReader, out: Path) -> Path:
    """Write answers that are often right, or nearly, and differ from most segments to the next."""
    rng = np.random.default_rng(0)
    truth = np.maximum(reader.take(np.arange(len(reader)))["labels"].numpy(), 0).astype(np.uint8)
    recorder = Recorder(len(truth), truth.shape[1])
    everywhere, zeros = np.ones(len(truth), dtype=bool), np.zeros((4, len(truth)), dtype=np.float32)
    preds = truth
    for n in range(MAX_SEGMENTS):
        is_wrong = (rng.random(truth.shape) < 0.1) & (rng.random((len(truth), 1)) < 0.5)
        preds = np.where(is_wrong, 5, truth).astype(np.uint8)
        recorder.add(everywhere, everywhere if n == 0 else ~everywhere, preds, *zeros)
    trajectories = [(recorder.take(slot),) for slot in range(len(truth))]
    num_segments = np.full(len(truth), MAX_SEGMENTS, dtype=np.int32)
    got = Finished(np.arange(len(truth)), num_segments, preds, zeros[0], zeros[0], trajectories)
    write(out / "predictions_00000.npz", reader, got, rng.permutation(len(truth)))
    return out


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, reader: TestReader) -> Path:
    return teach(reader, tmp_path_factory.mktemp("taught"))


@pytest.mark.parametrize("kind", ["arc", "sudoku"])
def test_each_segment_is_scored_as_its_answers_are(dataset: Path, tmp_path: Path, kind: str) -> None:
    reader = TestReader(dataset if kind == "arc" else SUDOKU, max_groups=30)
    folder = teach(reader, tmp_path)
    outcomes = read(folder, reader)
    before: NDArray[np.uint8] | None = None
    num_right = set[int]()
    for n in range(1, MAX_SEGMENTS + 1):
        taken = Taken.of_first_starts(np.full(len(reader), n))
        [block] = predictions_at(folder, taken)
        assert block.rows is not None
        labels = reader.take(block.rows.astype(np.int64))["labels"].numpy()
        expected = puzzle_scores.scores([(block, labels)], reader.info.kind)
        found = point(outcomes, taken)
        got = (found.num, found.right, *found.checked)
        shares = ("exact_accuracy", *kind_named(kind).checks)
        assert got == (expected["examples"], *(round(expected[name] * found.num) for name in shares))
        assert found.cell_accuracy == pytest.approx(expected["cell_accuracy"])
        num_right.add(found.right)
        if kind == "sudoku" and before is not None:
            is_repeated = outcomes.answers[:, n - 1] == outcomes.answers[:, n - 2]
            np.testing.assert_array_equal(is_repeated, (block.preds == before).all(1))
        before = block.preds
    assert len(num_right) > 1


@given(answers=arrays(np.uint64, (5, MAX_SEGMENTS), elements=st.integers(0, 1)), num=st.integers(1, 4))
def test_an_answer_is_unchanged_when_the_last_repeats_follow_each_other(
    reader: TestReader, taught: Path, answers: NDArray[np.uint64], num: int
) -> None:
    outcomes = Outcomes._make(field[:5] for field in read(taught, reader))._replace(answers=answers)
    is_repeated = np.diff(answers, axis=1, prepend=2) == 0
    expected = [
        next((n for n in range(num, MAX_SEGMENTS + 1) if row[n - num : n].all()), MAX_SEGMENTS)
        for row in is_repeated
    ]
    assert stops(HaltingRule("unchanged", num), outcomes).tolist() == expected


@given(seed=st.integers(0, 2**32 - 1))
def test_what_a_rule_gains_and_loses_is_the_difference_in_right_answers(
    reader: TestReader, taught: Path, seed: int
) -> None:
    outcomes = read(taught, reader)
    stop = np.random.default_rng(seed).integers(1, MAX_SEGMENTS + 1, len(reader))
    all_segments = Taken.of_first_starts(np.full(len(reader), MAX_SEGMENTS))
    found, last = point(outcomes, Taken.of_first_starts(stop)), point(outcomes, all_segments)
    assert found.right - last.right == found.gained - found.lost
    assert found.segments == stop.mean()
    assert (last.differing, last.gained, last.lost) == (0, 0, 0)


def test_inputs_of_hidden_truth_are_not_scored(reader: TestReader, taught: Path) -> None:
    outcomes = read(taught, reader)
    is_known = np.arange(len(reader)) % 3 > 0
    taken = Taken.of_first_starts(np.full(len(reader), 1))
    found = point(outcomes._replace(is_known=is_known), taken)
    assert (found.num, found.right) == (is_known.sum(), outcomes.is_right[is_known, 0].sum())


def test_rules_are_distinct_and_can_be_asked_for(reader: TestReader, folder: Path) -> None:
    rules = halting_rules([read(folder, reader)] * 2)
    assert len({str(rule) for rule in rules}) == len(rules) > 10
    assert [HaltingRule.parse(str(rule)) for rule in rules] == rules


def test_what_overflowed_counts_as_wrong_and_sets_no_limit(tmp_path: Path) -> None:
    reader = TestReader(SUDOKU, max_groups=30)
    sound = read(teach(reader, tmp_path / "taught"), reader)
    trajectories = read_trajectories(segments_file(tmp_path / "taught" / "predictions_00000.npz"))
    q_halt_logits = np.arange(trajectories.num_segments.sum(), dtype=np.float32)
    q_halt_logits[::3] = np.nan  # of the first segment and the fourth
    got = read(damaged(tmp_path / "taught", tmp_path / "lost", q_halt_logits=q_halt_logits), reader)
    is_lost = np.isnan(got.q_halt_logits)
    for name in ("is_right", "cells_right", "checks"):
        before, after = getattr(sound, name), getattr(got, name)
        assert before[is_lost].any()
        assert not after[is_lost].any()
        np.testing.assert_array_equal(after[~is_lost], before[~is_lost])
    limits = [rule.value for rule in halting_rules([got]) if rule.kind == "q"]
    assert len(limits) == 5
    assert np.isfinite(limits).all()


def damaged(folder: Path, out: Path, **fields: Any) -> Path:
    """Copy an evaluation, with other fields in the segments of the first file."""
    shutil.copytree(folder, out)
    path = segments_file(out / "predictions_00000.npz")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(path, allow_pickle=False, **(arrays | fields))
    return out


def test_segments_that_do_not_belong_to_their_predictions_are_refused(
    reader: TestReader, taught: Path, tmp_path: Path
) -> None:
    trajectories = read_trajectories(segments_file(taught / "predictions_00000.npz"))
    other_rows = damaged(taught, tmp_path / "a", rows=trajectories.rows[::-1])
    with pytest.raises(InputError, match="rows are not those of"):
        read(other_rows, reader)
    other_answers = damaged(taught, tmp_path / "b", tokens=np.full_like(trajectories.tokens, 3))
    with pytest.raises(InputError, match="preds are not the last answers"):
        read(other_answers, reader)
    segments_file(other_rows / "predictions_00000.npz").unlink()
    with pytest.raises(InputError, match="--every-segment"):
        read(other_rows, reader)


def test_an_evaluation_that_halted_early_is_refused(
    model: ACTModel, reader: TestReader, tmp_path: Path
) -> None:
    got = run(model, reader, "unchanged:1")
    write(tmp_path / "predictions_00000.npz", reader, got, np.arange(len(reader)))
    with pytest.raises(InputError, match=r"evaluate with --halting none"):
        read(tmp_path, reader)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train([str(config), f"checkpoint_path={run}", "max_steps=2"]) == 0
    return run / "checkpoints" / "latest"


def test_one_command_evaluates_compares_and_resumes(
    checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint), "--data", str(dataset), "--max-segments", "5", "--max-groups", "2"]
    command += ["--num-aug", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert json.loads(out.splitlines()[-1]).keys() == written.keys()
    assert [row["name"] for row in written["segments"]] == ["1", "2", "3", "4", "5"]
    assert written["rules"][0]["name"] == "none"
    assert written["rules"][0]["score"] == written["segments"][-1]["score"]
    assert "input/pass@2" in written["rules"][0]["by_checkpoint"][0]
    assert written["inputs"] == len(TestReader(dataset, 2, 2))
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    predictions = tmp_path / "out" / "predictions" / "predictions_00000.npz"
    before = predictions.stat().st_mtime_ns
    assert main(command) == 0
    assert predictions.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another evaluation"):
        main([*command, "--max-segments", "6"])


def test_costs_of_a_table_have_a_unit_and_equally_many_decimals() -> None:
    def row(name: str, operations: float, seconds: float) -> Row:
        found = Point(1.0, 4, 2, 0.5, [], 0, 0, 0)
        return Row(
            name, [found], [{"examples": 4, "exact_accuracy": 0.5, "cell_accuracy": 0.5}], operations, seconds
        )

    rows = [row("1", 6.4e7, 0.0008), row("32", 2.04e9, 1.6)]
    head, *lines = as_table(rows, rows[-1], "segments").splitlines()
    assert head.split("  ")[1:3] == ["Gop an input", "ms an input"]
    assert [line.split()[1:3] for line in lines] == [["0.064", "0.80"], ["2.040", "1,600.00"]]


def test_several_checkpoints_are_compared_one_by_one(
    checkpoint: Path, config: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([str(config), f"checkpoint_path={tmp_path / 'run'}", "max_steps=2", "seed=1"]) == 0
    command = [
        str(checkpoint),
        str(tmp_path / "run" / "checkpoints" / "latest"),
        "--data",
        str(dataset),
        "--max-groups",
        "1",
        "--num-aug",
        "0",
    ]
    with pytest.raises(InputError, match="--out is missing"):
        main(command)
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "against all segments" in capsys.readouterr().out
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert written["interval"] == "Student, checkpoints"
    assert len(written["checkpoints"]) == len(written["rules"][0]["by_checkpoint"]) == 2


def test_lost_inputs_are_warned_of(
    checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint), "--data", str(dataset), "--max-groups", "1", "--num-aug", "3"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "lost" not in capsys.readouterr().err
    predictions = tmp_path / "out" / "predictions"
    path = segments_file(predictions / "predictions_00000.npz")
    q_halt_logits = read_trajectories(path).q_halt_logits.copy()
    q_halt_logits[2:5] = np.nan  # of the first input's last two segments, and of the second's first
    shutil.move(damaged(predictions, tmp_path / "lost", q_halt_logits=q_halt_logits) / "segments", tmp_path)
    shutil.rmtree(path.parent)
    shutil.move(tmp_path / "segments", path.parent)
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    warning = "2 of 4 inputs are lost after some segments, 1 after the last (q_halt_logits is NaN)"
    assert warning in capsys.readouterr().err


def test_a_dataset_whose_truth_is_hidden_is_refused_at_the_start(checkpoint: Path, tmp_path: Path) -> None:
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    source = tmp_path / "source"
    source.mkdir()
    for task in ("00000001", "00000002"):
        (source / f"{task}.json").write_text(json.dumps({"train": [pair], "test": [{"input": [[3, 4]]}]}))
    data = tmp_path / "data"
    options = ArcOptions(num_aug=2, holdout="all", canvas=6)
    build(Request("arc", [str(source)], data, options, seed=0, workers=1, quiet=True))
    with pytest.raises(InputError, match="truth of all held-out puzzles is hidden"):
        main([str(checkpoint), "--data", str(data), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused_before_anything_is_written(
    checkpoint: Path, dataset: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeper = tmp_path / "deeper"
    assert train([str(config), f"checkpoint_path={deeper}", "max_steps=1", "arch.halt_max_steps=6"]) == 0
    both = [str(checkpoint), str(deeper / "checkpoints" / "latest"), "--data", str(dataset)]
    out = tmp_path / "out"
    with monkeypatch.context() as several:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING}.items():
            several.setenv(name, value)
        with pytest.raises(InputError, match="2 processes"):
            main([*both, "--out", str(out)])
    with pytest.raises(InputError, match="trained with 4, 6 segments"):
        main([*both, "--out", str(out)])
    with pytest.raises(InputError, match="--max-segments 0: must be at least 1"):
        main([*both, "--out", str(out), "--max-segments", "0"])
    with pytest.raises(InputError, match="is the same checkpoint as"):
        main([str(checkpoint), str(checkpoint.resolve()), "--data", str(dataset), "--out", str(out)])
    with pytest.raises(InputError, match="is no folder"):
        main([*both, "--out", str(config)])
    with pytest.raises(InputError, match="another dataset"):
        main([str(checkpoint), "--data", str(SUDOKU), "--out", str(out)])
    assert not out.exists()
