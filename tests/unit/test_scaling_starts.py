"""Scaling over starts: what is simulated from one pass is what an evaluation with those starts answers."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import progress_bar
from data_pipeline.reader import TestReader
from hrm_dist.evaluation import puzzle_scores
from hrm_dist.evaluation.halting import ALL_SEGMENTS, LEARNED, HaltingRule
from hrm_dist.evaluation.output_dir import Evaluation
from hrm_dist.evaluation.predictions import Predictions, read_predictions, write_predictions
from hrm_dist.evaluation.starts import CHOICES, Choice
from hrm_dist.evaluation.trajectories import Recorder, segments_file, write_trajectories
from hrm_dist.train import main as train
from tools import evaluate
from tools.scaling.__main__ import main
from tools.scaling.outcomes import point, predictions_at, read_outcomes, stops
from tools.scaling.results import Evaluated
from tools.scaling.starts import ANY, ONE, Run, choices, runs, take

SUDOKU = Path(__file__).parents[1] / "golden" / "earlier" / "sudoku"
NUM_STARTS, MAX_SEGMENTS = 5, 6
UNCHANGED = HaltingRule("unchanged", 1)


class Said(NamedTuple):
    """What all starts of all inputs answer, after each segment."""

    preds: NDArray[np.uint8]  # [N, K, M, S]
    q_halt_logits: NDArray[np.float32]  # [N, K, M]
    residuals: NDArray[np.float32]  # [N, K, M]
    labels: NDArray[np.int32]  # [N, S]


@pytest.fixture(scope="module")
def reader() -> TestReader:
    return TestReader(SUDOKU, split="train")  # which has more than the test split


@pytest.fixture(scope="module")
def said(reader: TestReader) -> Said:
    """Of three answers to each input, one of which is right, those of one start after the other, some of them lost."""
    rng = np.random.default_rng(0)
    labels = reader.take(np.arange(len(reader)))["labels"].numpy()
    shape = (len(reader), NUM_STARTS, MAX_SEGMENTS)
    preds = np.broadcast_to(labels[:, None, None].astype(np.uint8), (*shape, labels.shape[1])).copy()
    preds[..., 0] += rng.choice(3, shape, p=[0.4, 0.4, 0.2]).astype(np.uint8)
    q_halt_logits, residuals = rng.standard_normal((2, *shape)).astype(np.float32)
    q_halt_logits[rng.random(shape) < 0.1] = np.nan
    residuals[..., 0] = np.inf
    return Said(preds, q_halt_logits, residuals, labels)


def write(path: Path, reader: TestReader, said: Said, rows: NDArray[np.int64]) -> None:
    """Write the segments of some inputs, and as predictions the last answers of start 1."""
    num, num_cells = len(rows) * NUM_STARTS, said.preds.shape[3]
    recorder, everywhere = Recorder(num, num_cells), np.ones(num, dtype=bool)
    for n in range(MAX_SEGMENTS):
        q, residuals = (of[rows, :, n].reshape(-1) for of in (said.q_halt_logits, said.residuals))
        answers = said.preds[rows, :, n].reshape(num, num_cells)
        begun = everywhere if n == 0 else ~everywhere
        recorder.add(everywhere, begun, answers, q, np.zeros_like(q), residuals, np.zeros_like(q))
    trajectories = [
        [recorder.take(entry * NUM_STARTS + start) for start in range(NUM_STARTS)]
        for entry in range(len(rows))
    ]
    batch, of_file = reader.take(rows), rows.astype(np.int32)
    identifiers, examples = batch["puzzle_identifiers"].numpy(), batch["example_index"].numpy()
    write_trajectories(segments_file(path), of_file, identifiers, examples, trajectories, num_cells)
    answers, q = said.preds[rows, 1, -1], said.q_halt_logits[rows, 1, -1]
    write_predictions(
        path, Predictions(identifiers, batch["inputs"].numpy(), answers, q, examples, rows=of_file)
    )


def read(folder: Path, reader: TestReader, num_starts: int = NUM_STARTS) -> Evaluated:
    record = Evaluation(
        checkpoint_id="", num_aug=None, max_groups=None, num_rows=len(reader), rows_per_file=128
    )
    with progress_bar("", "input", None, shown=False) as progress:
        outcomes = read_outcomes(folder, reader, progress, num_starts)
    return Evaluated(folder, folder, record, MAX_SEGMENTS, outcomes, num_starts, operations=1, seconds=1.0)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, reader: TestReader, said: Said) -> Evaluated:
    """In two files, of rows in order."""
    folder = tmp_path_factory.mktemp("predictions")
    for number, rows in enumerate(np.array_split(np.arange(len(reader)), 2)):
        write(folder / f"predictions_{number:05d}.npz", reader, said, rows)
    return read(folder, reader)


RUNS = [Run(ALL_SEGMENTS, 4, 3), Run(ALL_SEGMENTS, 1, 5), Run(LEARNED, 6, 4), Run(UNCHANGED, 6, 5)]


@pytest.mark.parametrize("run", RUNS)
def test_what_is_taken_is_what_is_scored(
    reader: TestReader, evaluated: Evaluated, said: Said, run: Run
) -> None:
    for choice in choices(run, has_residuals=True):
        taken = take(run, choice, evaluated)
        starts = taken.entries % NUM_STARTS
        inputs = np.arange(len(reader))
        np.testing.assert_array_equal(taken.entries // NUM_STARTS, inputs)
        assert starts.max() < run.num_starts
        assert len(np.unique(starts)) > 1
        blocks = list(predictions_at(evaluated.folder, taken, NUM_STARTS))
        preds, q = (
            np.concatenate([getattr(block, name) for block in blocks]) for name in ("preds", "q_halt_logits")
        )
        np.testing.assert_array_equal(preds, said.preds[inputs, starts, taken.stop - 1])
        np.testing.assert_array_equal(q, said.q_halt_logits[inputs, starts, taken.stop - 1])
        sound = ~np.isnan(q)
        found = point(evaluated.outcomes, taken, NUM_STARTS)
        assert found.right == (preds == said.labels)[sound].all(axis=1).sum()


@pytest.mark.parametrize("run", RUNS)
def test_any_is_right_where_one_of_the_starts_is(evaluated: Evaluated, said: Said, run: Run) -> None:
    stop = np.minimum(stops(run.rule, evaluated.outcomes), run.max_segments).reshape(-1, NUM_STARTS)
    at = (*np.indices(stop.shape), stop - 1)
    is_right = (said.preds[at] == said.labels[:, None]).all(axis=2) & ~np.isnan(said.q_halt_logits[at])
    found = point(evaluated.outcomes, take(run, ANY, evaluated), NUM_STARTS)
    assert found.right == is_right[:, : run.num_starts].any(axis=1).sum()


def test_all_starts_are_paid_for(evaluated: Evaluated) -> None:
    assert (take(Run(ALL_SEGMENTS, 3, 4), "vote", evaluated).segments == 12).all()
    stop = stops(UNCHANGED, evaluated.outcomes).reshape(-1, NUM_STARTS)[:, :2]
    np.testing.assert_array_equal(take(Run(UNCHANGED, 6, 2), "q", evaluated).segments, stop.sum(axis=1))


def test_no_start_outlasts_the_first_to_halt(evaluated: Evaluated) -> None:
    stop = stops(UNCHANGED, evaluated.outcomes).reshape(-1, NUM_STARTS)[:, :3]
    assert len(np.unique(stop)) > 2
    taken = take(Run(UNCHANGED, 6, 3), "first", evaluated)
    np.testing.assert_array_equal(taken.segments, 3 * stop.min(axis=1))
    is_early = stop.min(axis=1) < MAX_SEGMENTS
    np.testing.assert_array_equal(taken.stop[is_early], stop.min(axis=1)[is_early])


def test_a_single_start_is_start_0(evaluated: Evaluated) -> None:
    taken = take(Run(ALL_SEGMENTS, 6, 1), ONE, evaluated)
    assert (taken.entries % NUM_STARTS == 0).all()
    alone = evaluated.of_first_starts
    found = point(evaluated.outcomes, taken, NUM_STARTS)
    assert found.right == alone.is_right[:, -1].sum()
    assert (found.differing, found.gained, found.lost) == (0, 0, 0)


def test_gains_are_told_against_start_0_after_all_segments(evaluated: Evaluated) -> None:
    alone = evaluated.of_first_starts.is_right[:, -1].sum()
    for choice in ("q", "vote", ANY):
        found = point(evaluated.outcomes, take(Run(ALL_SEGMENTS, 6, 5), choice, evaluated), NUM_STARTS)
        assert found.right - alone == found.gained - found.lost
        assert found.gained > 0


def test_each_choice_is_tried_where_it_can_tell() -> None:
    assert choices(Run(LEARNED, 6, 1), has_residuals=True) == [ONE]
    assert set(choices(Run(LEARNED, 6, 2), has_residuals=True)) == {"q", "vote", "first", "residual", ANY}
    assert "first" not in choices(Run(ALL_SEGMENTS, 6, 2), has_residuals=True)
    assert "residual" not in choices(Run(ALL_SEGMENTS, 1, 2), has_residuals=True)
    assert "residual" not in choices(Run(LEARNED, 6, 2), has_residuals=False)


@pytest.mark.parametrize(("num_starts", "tried"), [(2, {1, 2}), (4, {1, 2, 4}), (6, {1, 2, 4, 6})])
def test_starts_double_and_segments_halve(num_starts: int, tried: set[int]) -> None:
    found = runs(num_starts, 12)
    assert len(set(found)) == len(found)
    assert {run.num_starts for run in found} == tried
    assert {run.max_segments for run in found if run.rule == ALL_SEGMENTS} == {1, 3, 6, 12}
    assert {run.max_segments for run in found if run.rule != ALL_SEGMENTS} == {12}


def test_scores_of_chosen_answers_are_those_of_the_puzzles(reader: TestReader, evaluated: Evaluated) -> None:
    taken = take(Run(ALL_SEGMENTS, 6, 5), "vote", evaluated)
    blocks = list(predictions_at(evaluated.folder, taken, NUM_STARTS))
    sound = [
        block._replace(preds=np.where(np.isnan(block.q_halt_logits)[:, None], 0, block.preds))
        for block in blocks
    ]
    labels = [
        reader.take(block.rows.astype(np.int64))["labels"].numpy()
        for block in blocks
        if block.rows is not None
    ]
    expected = puzzle_scores.scores(list(zip(sound, labels, strict=True)), reader.info.kind)
    found = point(evaluated.outcomes, taken, NUM_STARTS)
    assert found.right / found.num == pytest.approx(expected["exact_accuracy"])
    assert found.checked[0] / found.num == pytest.approx(expected["valid_accuracy"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train([str(config), f"checkpoint_path={run}", "max_steps=2"]) == 0
    return run / "checkpoints" / "latest"


OPTIONS = [
    "--max-groups",
    "2",
    "--num-aug",
    "2",
    "--max-segments",
    "6",
    "--starts",
    "4",
    "--segment-noise",
    "0.1",
]


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, dataset: Path
) -> tuple[Path, Evaluated, str]:
    """What the command writes and prints."""
    out = tmp_path_factory.mktemp("scaling") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([str(checkpoint), "--data", str(dataset), "--out", str(out), *OPTIONS]) == 0
    return out, read(out / "predictions", TestReader(dataset, 2, 2), num_starts=4), printed.getvalue()


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_simulated_is_what_an_evaluation_answers(
    compared: tuple[Path, Evaluated, str], checkpoint: Path, dataset: Path, tmp_path: Path, choice: Choice
) -> None:
    _, one, _ = compared
    taken = take(Run(UNCHANGED, 6, 4), choice, one)
    assert len(np.unique(taken.entries % 4)) > 1
    assert len(np.unique(taken.segments)) > 1
    command = [str(checkpoint), "--data", str(dataset), "--out", str(tmp_path), *OPTIONS]
    assert (
        evaluate.main([*command, "--halting", str(UNCHANGED), "--choose", choice, "--batch-size", "7"]) == 0
    )
    [simulated] = predictions_at(one.folder, taken, num_starts=4)
    [answered] = read_predictions([tmp_path])
    np.testing.assert_array_equal(answered.rows, simulated.rows)
    np.testing.assert_array_equal(answered.num_segments, taken.stop)
    np.testing.assert_array_equal(answered.preds, simulated.preds)
    np.testing.assert_allclose(answered.q_halt_logits, simulated.q_halt_logits, rtol=1e-5, atol=1e-5)


def test_one_command_tells_segments_rules_starts_and_choices(compared: tuple[Path, Evaluated, str]) -> None:
    out, _, printed = compared
    written = json.loads((out / "scaling.json").read_text())
    assert written["num_starts"] == 4
    assert written["segments"][-1]["score"] == written["rules"][0]["score"]
    tried = {(of["halting"], of["max_segments"], of["starts"], of["choice"]): of for of in written["starts"]}
    assert len(tried) == len(written["starts"])
    assert {name[:3] for name in tried} == {(str(run.rule), *run[1:]) for run in runs(4, 6)}
    assert "input/pass@2" in tried["none", 6, 4, "vote"]["by_checkpoint"][0]
    assert tried["none", 6, 1, ONE]["score"] == written["segments"][-1]["score"]
    assert tried["none", 3, 4, "q"]["segments_per_input"] == 12
    assert [of["can_be_chosen"] for of in written["starts"] if of["choice"] == ANY] == [False] * 10
    assert "against 1 x 6" in printed
    assert json.loads(printed.splitlines()[-1]).keys() == written.keys()
    for name in ("scaling.png", "scaling_starts.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_bad_starts_are_refused(
    compared: tuple[Path, Evaluated, str], checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    command = [str(checkpoint), "--data", str(dataset)]
    new = [*command, "--out", str(tmp_path / "new")]
    for options, message in (
        (["--starts", "0"], "--starts 0: must be at least 1"),
        (["--starts", "1001", "--segment-noise", "1"], "--starts 1001: must be"),
        (["--starts", "2"], "--starts 2: .*random"),
        (["--starts", "2", "--segment-noise", "-1"], "--segment-noise -1: must be"),
    ):
        with pytest.raises(InputError, match=message):
            main([*new, *options])
    assert not (tmp_path / "new").exists()
    out = compared[0]
    with pytest.raises(InputError, match=r"another evaluation \(starts 4, now 3\)"):
        main([*command, "--out", str(out), *OPTIONS, "--starts", "3"])
    shutil.copytree(out, tmp_path / "lost")
    segments_file(tmp_path / "lost" / "predictions" / "predictions_00000.npz").unlink()
    with pytest.raises(InputError, match="no such file; evaluate with --every-segment"):
        main([*command, "--out", str(tmp_path / "lost"), *OPTIONS])


def test_another_number_of_starts_is_refused(reader: TestReader, evaluated: Evaluated) -> None:
    with pytest.raises(InputError, match=r"has 5 starts of each input, not 4; give --starts 5"):
        read(evaluated.folder, reader, num_starts=4)
