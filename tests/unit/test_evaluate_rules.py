"""tools.evaluate by other rules than the published ones: what it writes, proves and refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.reader import TestReader
from hrm_dist.evaluation import output_dir, proof
from hrm_dist.evaluation.fill_folder import planned_inputs
from hrm_dist.evaluation.output_dir import read_evaluation, read_records
from hrm_dist.evaluation.predictions import (
    Predictions,
    read_prediction_file,
    read_predictions,
    write_predictions,
)
from hrm_dist.evaluation.stopping import Calibration
from hrm_dist.evaluation.trajectories import read_trajectories, segments_file
from hrm_dist.train import main as train
from tests.training import evaluating, train_briefly
from tools import evaluate, vote

Run = Callable[..., int]
SETTLES = "confident:0.05:1"
"""Of a model that has learned nothing, some votes are settled by this."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    return train_briefly(config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def run(checkpoint: Path, dataset: Path) -> Run:
    return evaluating(checkpoint, dataset)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All segments of all inputs, each answer kept."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(out, "--every-segment") == 0
    return out


def by_row(out: Path) -> dict[int, bytes]:
    """Each answer of a folder."""
    return {
        row: block.preds[entry].tobytes()
        for block in read_predictions([out])
        for entry, row in enumerate(known(block.rows).tolist())
    }


def known(rows: np.ndarray | None) -> np.ndarray:
    assert rows is not None
    return rows


def test_every_segment_s_answers_end_with_the_prediction(whole: Path, dataset: Path) -> None:
    [path] = whole.glob("*.npz")
    predictions, trajectories = read_prediction_file(path), read_trajectories(segments_file(path))
    np.testing.assert_array_equal(trajectories.rows, known(predictions.rows))
    np.testing.assert_array_equal(trajectories.num_segments, known(predictions.num_segments))
    assert set(trajectories.num_segments.tolist()) == {4}
    *_, last = trajectories.answers()
    np.testing.assert_array_equal(last, predictions.preds)
    np.testing.assert_array_equal(trajectories.by_segment("q_halt_logits")[:, -1], predictions.q_halt_logits)
    np.testing.assert_array_equal(trajectories.by_segment("log_probs")[:, -1], predictions.log_probs)
    assert np.isinf(trajectories.by_segment("residuals")[:, 0]).all()
    assert np.isfinite(trajectories.by_segment("residuals")[:, 1:]).all()


def test_an_answer_s_probability_is_that_of_its_cells(whole: Path) -> None:
    [block] = read_predictions([whole])
    assert block.log_probs is not None
    assert (block.log_probs <= 0).all()
    assert len(np.unique(block.log_probs)) > 1


def test_fewer_segments_give_the_answers_that_more_had_on_the_way(
    run: Run, whole: Path, tmp_path: Path
) -> None:
    assert run(tmp_path / "out", "--max-segments", 2) == 0
    [path] = whole.glob("*.npz")
    answers = read_trajectories(segments_file(path)).answers()
    second = [next(answers).copy() for _ in range(2)][1]
    assert by_row(tmp_path / "out") == {row: answer.tobytes() for row, answer in enumerate(second)}


def test_a_folder_tells_by_which_rules_it_was_answered(
    run: Run, checkpoint: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", "--halting", "unchanged:1", "--max-segments", 6) == 0
    assert "each of 108 inputs is answered once" in capsys.readouterr().out
    found, published = read_evaluation(tmp_path / "out"), read_evaluation(whole)
    assert found is not None
    assert published is not None
    assert (found.halting, found.max_segments) == ("unchanged:1", 6)
    assert (published.halting, published.max_segments) == ("none", 4)
    assert found.planned_sha256 == published.planned_sha256
    assert found.checkpoint_sha256 is not None
    assert len(found.checkpoint_sha256) == 64
    for options in (["--halting", "unchanged:2"], ["--halting", "unchanged:1", "--max-segments", "7"], []):
        assert run(tmp_path / "out", *options) == 2
        assert "holds predictions of another evaluation" in capsys.readouterr().err


def test_what_a_rule_has_changed_is_told(
    run: Run, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", "--max-segments", 1, "--against", whole) == 0
    text = capsys.readouterr().out
    assert "of 108 answers that both have differ, 1.00 segments per input instead of 4.00; right " in text
    assert run(whole, "--every-segment", "--against", whole) == 0
    assert ": 0 of 108 answers that both have differ, 4.00 segments" in capsys.readouterr().out
    few = tmp_path / "few"
    assert run(few, "--max-groups", 2) == 0
    assert run(whole, "--every-segment", "--against", few) == 2
    assert "is no evaluation of the same inputs" in capsys.readouterr().err


# Adaptive votes


@pytest.fixture(scope="module")
def settled(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("settled") / "out"
    assert run(out, "--vote-until", SETTLES) == 0
    return out


def why(out: Path) -> list[tuple[str, int, int, str]]:
    evaluation = read_evaluation(out)
    assert evaluation is not None
    assert evaluation.cut is not None
    return sorted(
        (one.task, one.test, one.rounds, one.why)
        for record in read_records(out, evaluation.cut)
        for one in record.inputs
    )


def test_an_adaptive_vote_answers_as_a_full_one_where_it_answers(settled: Path, whole: Path) -> None:
    answers, all_answers = by_row(settled), by_row(whole)
    assert 0 < len(answers) < len(all_answers)
    assert answers == {row: all_answers[row] for row in answers}
    assert {reason for *_, reason in why(settled)} == {"settled", "all rounds"}


@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_an_adaptive_vote_give_the_same_result(
    run: Run, settled: Path, tmp_path: Path, count: int
) -> None:
    out = tmp_path / "out"
    for number in reversed(range(count)):
        assert number in output_dir.missing_parts(out, count)
        assert run(out, "--vote-until", SETTLES, "--part", f"{number}/{count}") == 0
    assert output_dir.missing_parts(out, count) == []
    assert run(out, "--vote-until", SETTLES) == 0
    assert by_row(out) == by_row(settled)
    assert why(out) == why(settled)


def test_an_adaptive_vote_that_lost_files_gives_the_same_result(
    run: Run,
    settled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(output_dir, "_MOST_ROWS", 24)
    out = tmp_path / "out"
    assert run(out, "--vote-until", SETTLES) == 0
    files = sorted(out.glob("*.npz"))
    assert len(files) > 2
    for lost in (files[0], files[-1]):
        lost.unlink()
        assert run(out, "--vote-until", SETTLES) == 2  # it is recorded as complete
        assert f"remove {out / 'rounds'}, and evaluate again" in capsys.readouterr().err
        shutil.rmtree(out / "rounds")
        assert run(out, "--vote-until", SETTLES) == 0
        assert lost.exists()
    assert by_row(out) == by_row(settled)
    assert why(out) == why(settled)


# Proof


def copied(out: Path, tmp_path: Path) -> Path:
    return shutil.copytree(out, tmp_path / "copy")


def test_missing_doubled_and_foreign_inputs_are_named(
    run: Run, whole: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path)
    [path] = out.glob("*.npz")
    sound = read_prediction_file(path)

    def with_rows(entries: list[int], **changed: np.ndarray) -> Predictions:
        fields = {name: value[entries] for name, value in sound.arrays().items()}
        return sound._replace(**fields)._replace(**changed)

    inputs = sound.inputs.copy()
    inputs[7, 0] ^= 1
    cases = {
        "1 of 108 inputs are not answered: row 5 (identifier": with_rows([i for i in range(108) if i != 5]),
        "answers 1 inputs a second time: row 9 (identifier": with_rows([*range(108), 9]),
        "holds 1 foreign inputs, which were not planned so: entry 7 (row 7)": with_rows(
            list(range(108)), inputs=inputs
        ),
        "entry 107 (row 108)": with_rows(list(range(108)), rows=np.array([*range(107), 108], dtype=np.int32)),
        "has no rows": sound._replace(rows=None),
    }
    for message, predictions in cases.items():
        write_predictions(path, predictions)
        assert run(out, "--every-segment") == 2
        assert message in capsys.readouterr().err
        if "not answered" not in message:  # of which a vote only warns
            assert vote.main([str(out), "--data", str(dataset), "--out", f"{tmp_path}/submission.json"]) == 2
            assert message in capsys.readouterr().err


def test_damaged_plans_and_records_are_refused(
    run: Run, settled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(settled, tmp_path)
    record = output_dir.block_record(out, 0)
    sound = record.read_text()
    for text in ("", "[]", '{"inputs": [{}]}'):
        record.write_text(text)
        assert run(out, "--vote-until", SETTLES) == 2
        assert f"{record}: unreadable" in capsys.readouterr().err
    record.write_text(sound)
    plan = proof.planned_file(out)
    other = plan.read_bytes()
    flipped = bytearray(other)
    flipped[len(other) // 2] ^= 0xFF
    for content in (b"", other[:-40], bytes(flipped)):
        plan.write_bytes(content)
        assert run(out, "--vote-until", SETTLES) == 2
        assert str(plan) in capsys.readouterr().err
    content = dict(np.load(settled / "planned" / "inputs.npz"))
    content["rounds"][3] += 1
    np.savez(plan, **content)
    assert run(out, "--vote-until", SETTLES) == 2
    assert "damaged, not what evaluation.json says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--halting", "often"), "--halting often: is no rule; give one of none, learned"),
        (("--max-segments", 0), "--max-segments 0: must be at least 1"),
        (("--vote-until", "soon"), "--vote-until soon: no such rule"),
        (("--against", "nowhere"), "--against nowhere: is no folder of predictions"),
    ],
)
def test_bad_options_are_refused_and_write_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], reason: str
) -> None:
    assert run(tmp_path / "out", *options) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predictions_of_another_checkpoint_are_refused(
    run: Run, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path)
    [path] = out.glob("*.npz")
    write_predictions(path, read_prediction_file(path)._replace(checkpoint_id="step_9-other"))
    assert run(out, "--every-segment") == 2
    assert "is of checkpoint 'step_9-other', but evaluation.json is of 'step_3-" in capsys.readouterr().err


def test_a_record_that_says_less_than_was_answered_is_refused(
    run: Run, settled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(settled, tmp_path)
    record = output_dir.block_record(out, 0)
    content = json.loads(record.read_text())
    content["inputs"][0]["rounds"] = 1
    record.write_text(json.dumps(content))
    assert run(out, "--vote-until", SETTLES) == 2
    assert "took 1 rounds, but more are answered" in capsys.readouterr().err


def test_a_plan_that_was_lost_is_made_again(run: Run, settled: Path, tmp_path: Path) -> None:
    out = copied(settled, tmp_path)
    for lost in ((), ("rounds/block_000.json",)):
        for name in ("planned/inputs.npz", *lost):
            (out / name).unlink()
        assert run(out, "--vote-until", SETTLES) == 0
        assert proof.planned_file(out).read_bytes() == proof.planned_file(settled).read_bytes()


def test_a_refused_command_leaves_the_plan_of_another(
    run: Run, dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was still planning when the other claimed the folder."""
    out = tmp_path / "out"

    def plan(reader: TestReader) -> proof.Planned:
        shutil.copytree(whole, out)
        return planned_inputs(reader)

    monkeypatch.setattr(evaluate, "planned_inputs", plan)
    assert run(out, "--num-aug", 1) == 2
    monkeypatch.undo()
    assert run(out, "--every-segment") == 0


def test_a_rule_says_where_its_calibration_does_not_hold(
    run: Run, whole: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = Calibration(
        rule="exact",
        most_changed=0.05,
        confidence=0.95,
        num_tasks=1,
        num_changed=0,
        bound=0.95,
        calibrated_on=TestReader(dataset).group_names[:3],
        checkpoint_ids=["step_9-other"],
        dataset_sha256=None,
    )
    (tmp_path / "stopping.json").write_text(calibration.model_dump_json())
    assert run(tmp_path / "out", "--vote-until", tmp_path / "stopping.json") == 0
    said = capsys.readouterr().err
    assert "calibrated with step_9-other, not with step_3-" in said
    assert "3 of these 8 tasks calibrated the rule" in said
    found = read_evaluation(tmp_path / "out")
    assert found is not None
    assert found.calibration == calibration


def test_predictions_are_not_put_into_a_dataset(
    run: Run, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset) == 2
    assert "is a dataset; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("num_inputs", "num_ranks"), [(419, 1), (419, 8), (419, 16), (60_000, 2), (1, 3)])
def test_files_of_an_adaptive_vote_are_small(num_inputs: int, num_ranks: int) -> None:
    cut = output_dir.cut_of_tasks(num_inputs * 1001, num_inputs, num_ranks)
    assert cut.num_blocks % num_ranks == 0
    inputs_of_block = -(-num_inputs // cut.num_blocks)
    assert inputs_of_block * cut.rounds_per_file <= 1024


def test_a_learned_rule_that_was_never_learned_is_noted(
    config: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([str(config), f"checkpoint_path={tmp_path}/run", "max_steps=1", "arch.halting=fixed"]) == 0
    arguments = [f"{tmp_path}/run/checkpoints/latest", "--data", str(dataset), "--num-aug", "0", "--halting"]
    for rule, is_noted in (("learned", True), ("unchanged:1", False)):
        assert evaluate.main([*arguments, rule, "--out", f"{tmp_path}/{rule}"]) == 0
        assert ("its Q-head has never decided" in capsys.readouterr().err) == is_noted
