"""Replayed votes: what rules would have saved and changed, the choice of a limit, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.parallel import Part
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.output_dir import Evaluation, claim
from hrm_dist.evaluation.predictions import Predictions, read_prediction_file, write_predictions
from hrm_dist.evaluation.proof import Planned, digests, write_planned
from hrm_dist.evaluation.stopping import VoteRule, parse_vote_rule, read_calibration
from tools import vote
from tools.calibrate_vote import (
    COLUMNS,
    EXACT,
    LIMITS,
    Agreement,
    InputVotes,
    agreement,
    agreement_table,
    choose,
    design_effect,
    main,
    replay,
    split_tasks,
)

RULES = [EXACT, *(VoteRule("confident", limit) for limit in LIMITS)]


def votes_for(grids: list[int], truth: int = 0, task: str = "a", per_round: int = 1) -> InputVotes:
    """Return votes whose q tell their order: the first vote for a grid is its surest."""
    numbers = np.array(grids)
    return InputVotes(
        task, truth, numbers, 1 / (2.0 + np.arange(len(grids))), np.arange(len(grids)) // per_round
    )


some_votes = st.builds(
    votes_for, st.lists(st.integers(0, 4), min_size=1, max_size=40), per_round=st.integers(1, 3)
)


@given(votes=some_votes)
def test_the_exact_rule_changes_neither_attempts_nor_their_order(votes: InputVotes) -> None:
    found = replay(votes, [EXACT])
    assert found.stops[EXACT].attempts == found.full.attempts


@given(votes=some_votes)
def test_laxer_limits_stop_no_later_in_a_replay(votes: InputVotes) -> None:
    stops = replay(votes, RULES).stops
    seen = [stops[rule].num_votes for rule in RULES[1:]]
    assert seen == sorted(seen, reverse=True)


@given(votes=some_votes, rule=st.sampled_from(RULES))
def test_a_replay_stops_after_the_first_round_that_settles(votes: InputVotes, rule: VoteRule) -> None:
    stop = replay(votes, RULES).stops[rule]
    ends = np.cumsum(np.bincount(votes.rounds)).tolist()
    settled = []
    for end in ends:
        counts = sorted(np.bincount(votes.grids[:end]).tolist(), reverse=True)
        settled.append(rule.is_settled([c for c in counts if c], ends[-1] - end, ends[-1]))
    assert stop.num_votes == ends[settled.index(True)]


def test_equal_counts_are_ordered_by_mean_q_in_a_replay() -> None:
    votes = votes_for([3, 1, 1, 2])._replace(q=np.array([0.2, 0.1, 0.1, 0.9]))
    assert replay(votes, [EXACT]).full.attempts == (1, 2)


def test_votes_in_random_order_have_no_design_effect() -> None:
    rng = np.random.default_rng(0)
    inputs = [votes_for(rng.choice(4, size=200, p=[0.5, 0.3, 0.1, 0.1]).tolist()) for _ in range(400)]
    assert design_effect(inputs) == pytest.approx(1, abs=0.1)


def test_alike_votes_in_a_row_have_a_design_effect() -> None:
    rng = np.random.default_rng(0)
    inputs = [votes_for(np.repeat(rng.integers(0, 4, 20), 10).tolist()) for _ in range(400)]
    assert design_effect(inputs) == pytest.approx(10, rel=0.2)


def test_a_task_counts_as_changed_when_one_vote_solves_it_and_the_other_not() -> None:
    rule = VoteRule("confident", 0.5)
    lost = replay(votes_for([1, 1, 2, *[0] * 9], truth=0, task="lost"), [rule])
    wrong = replay(votes_for([1, 1, 2, *[3] * 9], truth=0, task="wrong"), [rule])
    solved = replay(votes_for([0] * 12, truth=0, task="solved"), [rule])
    found = agreement(rule, [lost, wrong, solved])
    assert (found.num_changed, found.num_tasks, found.solved, found.solved_in_full) == (1, 3, 1, 2)
    assert (found.first_same, found.both_same, found.solved_same) == (1, 1, 2)


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    replays = [replay(votes_for([0, 0], task=str(number)), [EXACT]) for number in range(59)]
    assert agreement(EXACT, replays).bound == pytest.approx(1 - 0.05 ** (1 / 59))


def test_limits_after_the_first_that_fails_are_not_chosen() -> None:
    empty = Agreement(EXACT, 0.0, *[0] * 9)
    bounds = [0.01, 0.04, 0.06, 0.02]
    found = [empty._replace(saved=float(number), bound=bound) for number, bound in enumerate(bounds)]
    chosen = choose(found, 0.05)
    assert chosen is not None
    assert chosen.saved == 1
    assert choose(found[2:], 0.05) is None


def test_each_task_calibrates_or_tests() -> None:
    inputs = [votes_for([0], task=str(number // 2)) for number in range(20)]
    calibrating, testing = ({votes.task for votes in part} for part in split_tasks(inputs, None))
    assert calibrating | testing == {str(number) for number in range(10)}
    assert not calibrating & testing
    assert len(calibrating) == 5


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Predictions that are mostly right for the first tasks and mostly wrong for the last."""
    reader = TestReader(dataset)
    [batch] = reader.batches(len(reader))
    identifiers, inputs, index = (
        batch[name].numpy() for name in ("puzzle_identifiers", "inputs", "example_index")
    )
    preds = np.maximum(batch["labels"].numpy(), 0).astype(np.uint8)
    rng = np.random.default_rng(0)
    is_wrong = rng.random(len(preds)) < 0.1 + 0.8 * identifiers / identifiers.max()
    preds[is_wrong, 0] = rng.integers(2, 12, is_wrong.sum())  # one cell in another colour
    q = rng.normal(size=len(preds)).astype(np.float32)
    path = tmp_path_factory.mktemp("predictions") / "all.npz"
    write_predictions(path, Predictions(identifiers, inputs, preds, q, index, "step_1"))
    return path


def calibrate(predictions: Path, dataset: Path, out: Path, *options: str) -> int:
    return main([str(predictions), "--data", str(dataset), "--out", str(out), *options])


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_calibration_is_a_rule_that_the_command_line_reads(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stopping.json"
    assert calibrate(predictions, dataset, out, "--most-changed", "0.9") == 0
    result = last_line(capsys)
    found = read_calibration(out)
    assert parse_vote_rule(str(out)) == found.vote_rule
    assert (found.vote_rule.name, found.rule, found.checkpoint_ids) == (
        "confident",
        result["rule"],
        ["step_1"],
    )
    assert len(found.calibrated_on) == found.num_tasks == result["calibrated"][0]["num_tasks"] == 4


def test_the_full_vote_solves_what_the_vote_command_says(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(predictions, dataset, tmp_path / "stopping.json") == 0
    result = last_line(capsys)
    assert (
        vote.main([str(predictions), "--data", str(dataset), "--out", str(tmp_path / "submission.json")]) == 0
    )
    scores = last_line(capsys)["scores"]["all tasks"]
    solved = sum(result[part][0]["solved_in_full"] for part in ("calibrated", "tested"))
    assert 0 < solved == round(scores["input/pass@2"] * scores["inputs"])


def test_too_few_tasks_for_the_bound_leave_the_exact_rule(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stopping.json"
    assert calibrate(predictions, dataset, out) == 0
    assert parse_vote_rule(str(out)) == EXACT
    assert "at least 59 tasks without a change are needed" in capsys.readouterr().out


def test_a_subset_calibrates_and_the_other_tasks_test(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = list(json.loads((dataset / "test_puzzles.json").read_text()))
    (tmp_path / "subsets.json").write_text(json.dumps({"some": tasks[:3]}))
    options = ["--subsets", str(tmp_path / "subsets.json"), "--on", "some"]
    assert calibrate(predictions, dataset, tmp_path / "out.json", *options) == 0
    result = last_line(capsys)
    assert [result[part][0]["num_tasks"] for part in ("calibrated", "tested")] == [3, 5]
    assert read_calibration(tmp_path / "out.json").calibrated_on == sorted(tasks[:3])


def refused(capsys: pytest.CaptureFixture[str], out: Path, code: int) -> str:
    """Return the message of a command that was refused and has written nothing."""
    assert (code, out.exists()) == (2, False)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            "none",
            "predictions_00001.npz is not there); run tools.evaluate again",
        ),
        ("exact", "its votes ended early (by exact)"),
    ],
)
def test_an_evaluation_without_full_votes_is_refused(
    predictions: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rule: str,
    words: str,
) -> None:
    folder, out = tmp_path / "predictions", tmp_path / "out.json"
    asked = Evaluation(
        checkpoint_id="step_1", num_aug=None, max_groups=None, num_rows=9, rows_per_file=5, vote_rule=rule
    )
    claim(folder, asked, Part())
    (folder / "predictions_00000.npz").write_bytes(predictions.read_bytes())
    assert words in refused(capsys, out, calibrate(folder, dataset, out))


def test_two_evaluations_at_once_are_refused(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out = read_prediction_file(predictions), tmp_path / "out.json"
    write_predictions(
        tmp_path / "other.npz", found._replace(q_halt_logits=found.q_halt_logits + np.float32(1))
    )
    code = main([str(predictions), str(tmp_path / "other.npz"), "--data", str(dataset), "--out", str(out)])
    assert "they come from several evaluations" in refused(capsys, out, code)


def test_a_subset_that_is_not_there_is_refused(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = list(json.loads((dataset / "test_puzzles.json").read_text()))
    (tmp_path / "subsets.json").write_text(json.dumps({"some": tasks[:3]}))
    out, options = tmp_path / "out.json", ["--subsets", str(tmp_path / "subsets.json")]
    code = calibrate(predictions, dataset, out, *options, "--on", "none")
    assert "--on 'none': no such subset" in refused(capsys, out, code)
    assert "--subsets and --on: give both" in refused(
        capsys, out, calibrate(predictions, dataset, out, *options)
    )


def test_predictions_of_another_dataset_are_refused(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out = read_prediction_file(predictions), tmp_path / "out.json"
    write_predictions(tmp_path / "other.npz", found._replace(inputs=np.roll(found.inputs, 1, axis=0)))
    message = refused(capsys, out, calibrate(tmp_path / "other.npz", dataset, out))
    assert "predictions are for none of its test inputs" in message


def test_a_calibration_never_writes_over_what_it_reads(
    predictions: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (predictions, dataset / "test_puzzles.json"):
        before = file.read_bytes()
        assert calibrate(predictions, dataset, file) == 2
        assert "is among the files that are read" in capsys.readouterr().err
        assert file.read_bytes() == before


def planned_folder(folder: Path, block: Predictions) -> tuple[Path, Predictions]:
    """Return an evaluation that has planned the inputs of a block, and the block with its rows."""
    zeros = np.zeros(len(block.preds), dtype=np.int32)
    plan = Planned(block.puzzle_identifiers, block.example_index, zeros, zeros, digests(block.inputs))
    known = Evaluation(
        checkpoint_id="step_1", num_aug=None, max_groups=None, num_rows=len(zeros), rows_per_file=8192,
        planned_sha256=plan.sha256(),
    )  # fmt: skip
    claim(folder, known, Part())
    write_planned(folder, plan)
    return folder / "predictions_00000.npz", block._replace(rows=np.arange(len(zeros), dtype=np.int32))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda block: next(block.parts(20)), "inputs are not answered: row 20 (identifier"),
        (lambda block: block._replace(inputs=np.roll(block.inputs, 1, axis=0)), "foreign inputs"),
        (lambda block: block._replace(q_halt_logits=block.q_halt_logits * np.float32(np.nan)), "is nan"),
    ],
)
def test_a_calibration_wants_each_planned_input_answered(
    predictions: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Any,
    words: str,
) -> None:
    path, block = planned_folder(tmp_path / "predictions", read_prediction_file(predictions))
    write_predictions(path, spoil(block))
    out = tmp_path / "out.json"
    assert words in refused(capsys, out, calibrate(path.parent, dataset, out))
    write_predictions(path, block)
    assert calibrate(path.parent, dataset, out) == 0


def test_a_calibration_refuses_an_input_answered_twice(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, block = planned_folder(tmp_path / "predictions", read_prediction_file(predictions))
    write_predictions(path, block)
    write_predictions(path.with_name("copy.npz"), next(block.parts(2)))
    out = tmp_path / "out.json"
    assert "answers 2 inputs a second time: row 0" in refused(
        capsys, out, calibrate(path.parent, dataset, out)
    )


def test_a_bound_on_votes_that_solve_nothing_is_said_to_tell_nothing(
    predictions: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_prediction_file(predictions)
    write_predictions(tmp_path / "wrong.npz", found._replace(preds=np.full_like(found.preds, 2)))
    out = tmp_path / "stopping.json"
    assert calibrate(tmp_path / "wrong.npz", dataset, out, "--most-changed", "0.9") == 0
    note = "note: the full vote solves none of these test inputs, so the bound says nothing of what would be lost;"
    assert note in capsys.readouterr().out


def test_the_table_fits_on_a_line_of_120_characters() -> None:
    long = VoteRule("confident", 0.001, 12345.678)
    found = Agreement(long, 1.0, *[99_999] * 6, num_tasks=99_999, num_changed=99_999, bound=1.0)
    assert max(map(len, agreement_table([found]))) < 120


def test_the_help_explains_each_column_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    explained = [line.strip().split("  ")[0] for line in capsys.readouterr().out.splitlines() if line]
    assert set(COLUMNS) <= set(explained)
