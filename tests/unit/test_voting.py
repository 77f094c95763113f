"""The vote: parity with the field's evaluator, independence of files, scores, and the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.arc.augment import Augmentation, apply
from data_pipeline.arc.tokens import EOS_ID, PAD_ID, encode
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.schema import dataset_sha256
from hrm_dist.evaluation import voting
from hrm_dist.evaluation.output_dir import BlockRecord, Cut, Evaluation, claim, write_record
from hrm_dist.evaluation.predictions import (
    MAX_ROWS_PER_FILE,
    UNKNOWN_EXAMPLE,
    Predictions,
    read_predictions,
    write_predictions,
)
from hrm_dist.evaluation.proof import Planned, digests, write_planned
from hrm_dist.evaluation.voting import Candidate, attempts, scores, submission, vote
from tools.report import __main__ as report
from tools.vote import main

GOLDEN = Path(__file__).parents[1] / "golden"
CANVAS = 6
SHAPE = (3, 2)
IDENTIFIERS = ["<blank>", "a", "a|||t1|||0213456789", "a_t6_0918273645", "b", "c"]
FILL = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.uint8)


def constant(colour: int) -> np.ndarray:
    return np.full(SHAPE, colour, dtype=np.uint8)


def pair(source: int, target: int | None) -> dict[str, Any]:
    output = {} if target is None else {"output": constant(target).tolist()}
    return {"input": (FILL + source).tolist(), **output}


def puzzles() -> dict[str, Any]:
    """Task a has two test inputs (truths 1 and 2), b one (3), c one whose truth is hidden."""
    demonstrations = [pair(3, 3)]
    tests = {"a": [pair(0, 1), pair(1, 2)], "b": [pair(2, 3)], "c": [pair(3, None)]}
    return {task: {"train": demonstrations, "test": test} for task, test in tests.items()}


def row(
    identifier: int, source: int, grid: np.ndarray, q: float = 0.0, example: int = UNKNOWN_EXAMPLE
) -> tuple[Any, ...]:
    """One prediction of `grid` for the test input FILL + source, both in the original's colours."""
    augmentation = {
        2: Augmentation(1, np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9], dtype=np.uint8)),
        3: Augmentation(6, np.array([0, 9, 1, 8, 2, 7, 3, 6, 4, 5], dtype=np.uint8)),
    }.get(identifier, Augmentation(0, np.arange(10, dtype=np.uint8)))
    sequence = np.zeros(CANVAS**2, dtype=np.uint8)
    if grid.size:
        sequence = encode(apply(grid, augmentation), CANVAS)
    return identifier, encode(apply(FILL + source, augmentation), CANVAS), sequence, q, example


def predictions(*rows: tuple[Any, ...], checkpoint_id: str | None = "step_1") -> Predictions:
    ids, inputs, preds, q, examples = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    return Predictions(
        np.array(ids, dtype=np.int32),
        np.array(inputs, dtype=np.uint8).reshape(-1, CANVAS**2),
        np.array(preds, dtype=np.uint8).reshape(-1, CANVAS**2),
        np.array(q, dtype=np.float32),
        np.array(examples, dtype=np.int32),
        checkpoint_id,
    )


def ranking(votes: Any, task: str, index: int = 0) -> list[tuple[int, int]]:
    """(colour, count) of each candidate of a test input."""
    return [(int(c.grid[0, 0]), c.count) for c in votes.tasks[task][index]]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content = json.loads((GOLDEN / "arc_vote.json").read_text())
    with np.load(GOLDEN / "arc_vote.npz") as arrays:
        fields = {name: arrays[name] for name in arrays.files}
    examples = np.full(len(fields["puzzle_identifiers"]), UNKNOWN_EXAMPLE, dtype=np.int32)
    return content | {"predictions": Predictions(example_index=examples, **fields)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "identifiers.json").write_text(json.dumps(IDENTIFIERS))
    (folder / "test_puzzles.json").write_text(json.dumps(puzzles()))
    return folder


def test_the_published_evaluator_is_reproduced_exactly(golden: dict[str, Any]) -> None:
    votes = vote([golden["predictions"]], golden["identifiers"], golden["tasks"])
    assert submission(votes) == golden["submission"]
    result = scores(votes, golden["tasks"])
    assert {f"ARC/pass@{k}": result[f"task/pass@{k}"] for k in (1, 2, 5, 10, 100, 1000)} == golden["metrics"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_files=st.integers(1, 6))
def test_order_splitting_and_overlap_of_files_do_not_matter(
    golden: dict[str, Any], seed: int, num_files: int
) -> None:
    rng = np.random.default_rng(seed)
    everything = golden["predictions"]
    num_rows = len(everything.puzzle_identifiers)
    order = np.concatenate([rng.permutation(num_rows), rng.integers(num_rows, size=20)])
    blocks = [
        Predictions(*(field[part] for field in everything[:5])) for part in np.array_split(order, num_files)
    ]
    votes = vote(blocks, golden["identifiers"], golden["tasks"])
    expected = vote([everything], golden["identifiers"], golden["tasks"])
    assert (votes.counted, votes.repeated) == (num_rows, 20)
    for task, task_vote in expected.tasks.items():
        found = [[(c.grid.tolist(), c.count, c.mean_q) for c in cs] for cs in votes.tasks[task]]
        assert found == [[(c.grid.tolist(), c.count, c.mean_q) for c in cs] for cs in task_vote]


grids_of_two_colours = st.integers(0, 2**6 - 1).map(
    lambda bits: np.array([bits >> n & 1 for n in range(6)], dtype=np.uint8).reshape(SHAPE)
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([(1, 0), (1, 1), (4, 2)]), grids_of_two_colours, st.integers(-2, 2)),
        min_size=30,
        max_size=120,
    )
)
def test_grids_that_are_not_kept_change_neither_the_first_nor_scores(
    answers: list[tuple[tuple[int, int], np.ndarray, int]],
) -> None:
    rows = [row(*asked, grid, q, example) for example, (asked, grid, q) in enumerate(answers)]
    blocks = [predictions(*rows[start : start + 5]) for start in range(0, len(rows), 5)]
    expected = vote(blocks, IDENTIFIERS, puzzles())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting, "KEPT_GRIDS", 2)
        patch.setattr(voting, "_LEAST_GRIDS", 0)
        found = vote(blocks, IDENTIFIERS, puzzles())
    assert scores(found, puzzles()) == scores(expected, puzzles())
    of_inputs = [
        [candidates for task in votes.tasks.values() for candidates in task] for votes in (found, expected)
    ]
    for some, all_of_them in zip(*of_inputs, strict=True):
        assert [(c.count, c.mean_q) for c in some] == [(c.count, c.mean_q) for c in all_of_them]
        assert [c.key for c in some[:2]] == [c.key for c in all_of_them[:2]]
    kept = {c.key for candidates in of_inputs[0] for c in candidates} - {None}
    assert len(kept) <= 2 * 2 * len(of_inputs[0])


def test_a_candidate_whose_grid_was_not_kept_says_so() -> None:
    with pytest.raises(ValueError, match="only the best 100 candidates"):
        _ = Candidate(key=None, count=1, mean_q=0.5, weight=1).grid


def test_augmentations_in_both_spellings_are_undone() -> None:
    grid = np.array([[1, 2], [0, 4], [9, 7]], dtype=np.uint8)
    votes = vote([predictions(*(row(i, 0, grid) for i in (1, 2, 3)))], IDENTIFIERS, puzzles())
    (candidate,) = votes.tasks["a"][0]
    np.testing.assert_array_equal(candidate.grid, grid)
    assert (candidate.count, candidate.mean_q) == (3, 0.5)


def test_count_comes_before_q_and_q_before_appearance() -> None:
    one, two, three = (constant(colour) for colour in (1, 2, 3))
    rows = [row(1, 0, one, q=9), row(2, 0, two, q=-1), row(3, 0, two, q=-1)]
    assert ranking(vote([predictions(*rows)], IDENTIFIERS, puzzles()), "a") == [(2, 2), (1, 1)]
    rows = [row(1, 0, one, q=-1), row(2, 0, two, q=0), row(3, 0, three, q=1)]
    assert ranking(vote([predictions(*rows)], IDENTIFIERS, puzzles()), "a") == [(3, 1), (2, 1), (1, 1)]


def grid_probabilities(block: Predictions, *of_a_cell: float) -> Predictions:
    """The block, with grids of which each cell has these probabilities."""
    num_cells = int(np.prod(SHAPE))
    return block._replace(log_probs=np.array([num_cells * np.log(p) for p in of_a_cell], dtype=np.float32))


def test_votes_may_weigh_what_the_model_expects_of_them() -> None:
    rows = [row(1, 0, constant(1), q=-3), row(2, 0, constant(1), q=-3), row(3, 0, constant(2), q=3)]
    block = grid_probabilities(predictions(*rows), 0.5, 0.5, 0.9)
    orders = {
        by: [int(c.grid[0, 0]) for c in vote([block], IDENTIFIERS, puzzles(), by=by).tasks["a"][0]]
        for by in voting.VOTE_BY
    }
    assert orders == {"count": [1, 2], "q": [2, 1], "probability": [1, 2]}


def test_a_candidate_weighs_the_sum_of_its_votes() -> None:
    rows = [row(1, 0, constant(1), q=0), row(2, 0, constant(1), q=1)]
    block = grid_probabilities(predictions(*rows), 0.5, 0.25)
    weights = {
        by: vote([block], IDENTIFIERS, puzzles(), by=by).tasks["a"][0][0].weight for by in voting.VOTE_BY
    }
    assert weights == pytest.approx({"count": 2, "q": 0.5 + 1 / (1 + np.exp(-1)), "probability": 0.75})


def test_probability_is_by_cell_and_that_of_an_empty_grid_nothing() -> None:
    large, small, empty = (
        np.full((4, 4), 1, np.uint8),
        np.full((1, 1), 2, np.uint8),
        np.zeros((0, 0), np.uint8),
    )
    rows = [row(1, 0, large), row(2, 0, small), row(3, 0, empty)]
    log_probs = np.array([16 * np.log(0.9), np.log(0.8), 0], dtype=np.float32)
    votes = vote([predictions(*rows)._replace(log_probs=log_probs)], IDENTIFIERS, puzzles(), by="probability")
    assert [c.grid.size for c in votes.tasks["a"][0]] == [16, 1, 0]
    assert votes.tasks["a"][0][2].weight == 0


def test_weights_that_are_equal_leave_the_order_to_counts() -> None:
    rows = [row(1, 0, constant(1), q=-np.inf), row(2, 0, constant(2), q=-np.inf)]
    rows.append(row(3, 0, constant(2), q=-np.inf))
    assert ranking(vote([predictions(*rows)], IDENTIFIERS, puzzles(), by="q"), "a") == [(2, 2), (1, 1)]


@pytest.mark.parametrize("command", [main, report.main])
def test_files_without_probabilities_are_not_weighed_by_them(
    command: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "p.npz", tmp_path / "out"
    write_predictions(file, predictions(row(1, 0, constant(1))))
    assert command([str(file), "--data", str(data), "--by", "probability", "--out", str(out)]) == 2
    assert f"{file}: has no log_probs" in capsys.readouterr().err
    assert not out.exists()


def test_ties_keep_the_order_of_identifiers_however_they_arrive() -> None:
    rows = [row(3, 0, constant(1)), row(1, 0, constant(5)), row(2, 0, constant(4))]
    assert ranking(vote([predictions(*rows)], IDENTIFIERS, puzzles()), "a") == [(5, 1), (4, 1), (1, 1)]


def test_q_far_from_zero_is_still_told_apart() -> None:
    rows = [row(1, 0, constant(1), q=-np.inf), row(2, 0, constant(2), q=-1e30), row(3, 0, constant(3), q=30)]
    rows.append(row(1, 1, constant(1), q=20))
    rows.append(row(2, 1, constant(2), q=21))
    votes = vote([predictions(*rows)], IDENTIFIERS, puzzles())
    assert ranking(votes, "a") == [(3, 1), (1, 1), (2, 1)]
    assert ranking(votes, "a", 1) == [(2, 1), (1, 1)]


def test_every_test_input_is_submitted_even_without_a_prediction() -> None:
    votes = vote([], IDENTIFIERS, puzzles())
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert submission(votes) == {"a": [nothing, nothing], "b": [nothing], "c": [nothing]}


def test_tasks_that_the_dataset_left_out_are_submitted_too() -> None:
    votes = vote([], IDENTIFIERS, puzzles())
    entries = submission(votes, {"d": 2})
    assert list(entries) == ["a", "b", "c", "d"]
    assert entries["d"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}] * 2


def test_a_single_candidate_is_submitted_twice() -> None:
    votes = vote([predictions(row(1, 0, constant(4)))], IDENTIFIERS, puzzles())
    assert attempts(votes.tasks["a"][0]) == (constant(4).tolist(), constant(4).tolist())


def test_an_empty_candidate_is_submitted_as_a_valid_grid() -> None:
    empty = np.zeros((0, 0), dtype=np.uint8)
    votes = vote([predictions(row(2, 1, empty))], IDENTIFIERS, puzzles())
    assert votes.tasks["a"][1][0].grid.shape == (0, 0)
    assert attempts(votes.tasks["a"][1]) == ([[0]], [[0]])


def test_an_input_with_other_padding_is_still_recognised() -> None:
    rows = [row(i, source, constant(1)) for i in (1, 2, 3) for source in (0, 1)]
    block = predictions(*rows)
    is_padding = block.inputs == PAD_ID
    assert is_padding.any()
    padded = block._replace(inputs=np.where(is_padding, EOS_ID, block.inputs).astype(np.uint8))
    votes = [vote([one], IDENTIFIERS, puzzles()) for one in (block, padded)]
    assert [[c.count for c in candidates] for candidates in votes[0].tasks["a"]] == [[3], [3]]
    assert ranking(votes[1], "a") == ranking(votes[0], "a")
    assert ranking(votes[1], "a", 1) == ranking(votes[0], "a", 1)


def test_an_input_too_large_for_the_canvas_gets_no_vote() -> None:
    large = puzzles()
    large["a"]["test"].append({"input": [[1] * (CANVAS + 1)], "output": [[1]]})
    votes = vote([predictions(row(1, 0, constant(1)))], IDENTIFIERS, large)
    assert [len(candidates) for candidates in votes.tasks["a"]] == [1, 0, 0]


def test_what_is_not_a_vote_is_counted_and_left_out() -> None:
    known = puzzles()
    del known["b"]
    rows = [row(0, 0, constant(1)), row(4, 2, constant(1)), row(1, 3, constant(1)), row(1, 0, constant(1))]
    votes = vote([predictions(*rows, rows[-1])], IDENTIFIERS, known)
    assert (votes.counted, votes.padding, votes.unknown_task, votes.unknown_input) == (1, 1, 1, 1)
    assert votes.repeated == 1


def test_a_prediction_without_a_number_is_no_vote() -> None:
    rows = [row(1, 0, constant(1), q=np.nan), row(2, 0, constant(2)), row(4, 2, constant(3), q=np.nan)]
    votes = vote([predictions(*rows)], IDENTIFIERS, puzzles())
    assert (votes.counted, votes.lost) == (1, 2)
    assert ranking(votes, "a") == [(2, 1)]


def test_contradicting_predictions_are_refused_unless_pooled() -> None:
    blocks = [predictions(row(1, 0, constant(1), q=1)), predictions(row(1, 0, constant(2)))]
    with pytest.raises(InputError, match=r"'a'.*several evaluations"):
        vote(blocks, IDENTIFIERS, puzzles())
    for arrival in (blocks, blocks[::-1]):
        votes = vote(arrival, IDENTIFIERS, puzzles(), allow_mixed_checkpoints=True)
        assert ranking(votes, "a") == [(1, 1), (2, 1)]


def test_the_three_scores_differ_as_defined() -> None:
    votes = vote([predictions(row(1, 0, constant(1)), row(1, 1, constant(9)))], IDENTIFIERS, puzzles())
    result = scores(votes, puzzles())
    assert (result["inputs"], result["tasks"]) == (3, 2)  # the hidden one is not scored
    assert result["input/pass@2"] == 1 / 3
    assert result["task/pass@2"] == (1 / 2 + 0) / 2
    assert result["task_all/pass@2"] == 0


def test_pass_at_k_and_oracle_look_at_more_candidates() -> None:
    rows = [row(1, 0, constant(7), q=3), row(2, 0, constant(8), q=2), row(3, 0, constant(1), q=1)]
    result = scores(vote([predictions(*rows)], IDENTIFIERS, puzzles()), puzzles(), ks=(2, 3))
    assert (result["input/pass@2"], result["input/pass@3"], result["input/oracle"]) == (0, 1 / 3, 1 / 3)


def test_scores_of_a_subset_and_of_nothing_but_hidden_truth() -> None:
    votes = vote([predictions(row(4, 2, constant(3)))], IDENTIFIERS, puzzles())
    assert scores(votes, puzzles(), tasks=["b"])["task_all/pass@1"] == 1
    assert scores(votes, puzzles(), tasks=["c"]) == {"inputs": 0, "tasks": 0}


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    written = predictions(row(1, 0, constant(1), q=2, example=5), checkpoint_id="step_7")
    write_predictions(tmp_path / "p.npz", written)
    (found,) = read_predictions([tmp_path, tmp_path / "p.npz"])  # given twice, read once
    assert (found.checkpoint_id, found.source) == ("step_7", str(tmp_path / "p.npz"))
    for field, expected in zip(found[:5], written[:5], strict=True):
        np.testing.assert_array_equal(field, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_what_is_known_of_a_row_survives_the_file_and_may_be_absent(tmp_path: Path) -> None:
    rows = [row(1, 0, constant(1)), row(2, 0, constant(2))]
    known = {
        "rows": np.array([5, 3], dtype=np.int32),
        "num_segments": np.array([16, 2], dtype=np.int32),
        "log_probs": np.array([-0.5, -3.0], dtype=np.float32),
    }
    write_predictions(tmp_path / "a.npz", predictions(*rows)._replace(**known))
    write_predictions(tmp_path / "b.npz", predictions(*rows))
    full, bare = read_predictions([tmp_path / "a.npz", tmp_path / "b.npz"])
    for name, values in known.items():
        np.testing.assert_array_equal(getattr(full, name), values)
        assert getattr(bare, name) is None


@given(st.integers(0, 7), st.integers(1, 9))
def test_parts_hold_every_row_once_and_in_order(num_rows: int, size: int) -> None:
    rows = [row(1, 0, constant(1), q=n, example=n) for n in range(num_rows)]
    known = predictions(*rows)._replace(log_probs=-np.arange(num_rows, dtype=np.float32))
    parts = list(known.parts(size))
    assert all(0 < len(part.preds) <= size and part.checkpoint_id == "step_1" for part in parts)
    assert [part.source for part in parts[1:2]] == [f"predictions, from row {size} on"][: len(parts) - 1]
    assert [n for part in parts for n in part.example_index] == list(range(num_rows))
    assert [-p for part in parts for p in part.arrays()["log_probs"]] == list(range(num_rows))


def test_too_many_rows_for_a_file_are_the_callers_mistake(tmp_path: Path) -> None:
    rows = [row(1, 0, constant(1))] * (MAX_ROWS_PER_FILE + 1)
    with pytest.raises(ValueError, match="at most 8192"):
        write_predictions(tmp_path / "p.npz", predictions(*rows))


def test_checkpoints_are_pooled_in_a_vote_only_if_asked_for(tmp_path: Path) -> None:
    for name, checkpoint_id in {"1": "step_1", "2": "step_2", "3": None}.items():
        write_predictions(
            tmp_path / f"{name}.npz", predictions(row(1, 0, constant(1)), checkpoint_id=checkpoint_id)
        )
    with pytest.raises(
        InputError, match=r"2\.npz: checkpoint_id is 'step_2'.*tools.vote --mix-checkpoints pools"
    ):
        list(read_predictions([tmp_path]))
    with pytest.raises(InputError, match=r"3\.npz: checkpoint_id is missing"):
        list(read_predictions([tmp_path / "1.npz", tmp_path / "3.npz"]))
    assert len(list(read_predictions([tmp_path], allow_mixed_checkpoints=True))) == 3


def save(path: Path, **changes: Any) -> Path:
    """A prediction file with fields replaced; None takes one out."""
    fields: dict[str, Any] = (
        dict(zip(Predictions._fields[:5], predictions(row(1, 0, constant(1)))[:5], strict=True)) | changes
    )
    np.savez(path, **{name: field for name, field in fields.items() if field is not None})
    return path


def bad_predictions(kind: str, folder: Path) -> Path:
    path = folder / "bad.npz"
    cells = np.zeros((1, CANVAS**2), dtype=np.uint8)
    match kind:
        case "absent":
            return path
        case "empty folder":
            (folder / "empty").mkdir()
            return folder / "empty"
        case "text":
            path.write_text("no archive")
        case "bare array":
            with path.open("wb") as file:
                np.save(file, cells)
        case "truncated":
            content = save(path).read_bytes()
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            content = bytearray(save(path).read_bytes())
            content[content.index(b"preds.npy") + 150] ^= 0xFF
            path.write_bytes(content)
        case "pickled":
            save(path, preds=np.array([{}], dtype=object))
        case "no preds":
            save(path, preds=None)
        case "wrong dtype":
            save(path, preds=cells.astype(np.int64))
        case "wrong rows":
            save(path, q_halt_logits=np.zeros(2, dtype=np.float32))
        case "wrong shape":
            save(path, preds=cells[:, :-1])
        case "no square":
            save(path, inputs=cells[:, :-1], preds=cells[:, :-1])
        case "identifier":
            save(path, puzzle_identifiers=np.array([99], dtype=np.int32))
        case "negative identifier":
            save(path, puzzle_identifiers=np.array([-1], dtype=np.int32))
        case "checkpoint":
            save(path, checkpoint_id=np.array([1, 2]))
        case "0 bytes":
            path.touch()
        case "0 rows":
            write_predictions(path, predictions())
        case "token":
            save(path, preds=cells + 12)
        case "example":
            save(path, example_index=np.array([-2], dtype=np.int32))
        case "row":
            save(path, rows=np.array([-1], dtype=np.int32))
        case "segments":
            save(path, num_segments=np.array([0], dtype=np.int32))
        case "probability":
            save(path, log_probs=np.array([0.5], dtype=np.float32))
        case "lost q":
            save(path, q_halt_logits=np.array([np.nan], dtype=np.float32))
        case "infinite q":
            save(path, q_halt_logits=np.array([np.inf], dtype=np.float32))
        case "lost probability":
            save(path, log_probs=np.array([np.nan], dtype=np.float32))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "no such file or folder"),
        ("empty folder", "no *.npz in this folder"),
        ("text", "not a readable .npz file (it is no archive of arrays of numbers); remove it and"),
        ("bare array", "not a readable .npz file (it is no archive of arrays of numbers)"),
        ("truncated", "; remove it and evaluate again."),
        ("flipped", "not a readable .npz"),
        ("pickled", "not a readable .npz file (it is no archive of arrays of numbers)"),
        ("no preds", "has no preds"),
        ("wrong dtype", "preds is int64 [1, 36]; it must be uint8 [1, S]"),
        ("wrong rows", "q_halt_logits is float32 [2]; it must be float32 [1]"),
        ("wrong shape", "they must agree"),
        ("no square", "35 cells a row"),
        ("identifier", "puzzle_identifiers holds 99, but the data has identifiers 0 to 5"),
        ("negative identifier", "puzzle_identifiers holds -1"),
        ("checkpoint", "checkpoint_id is int64 [2]"),
        ("0 bytes", "is empty (0 bytes)"),
        ("0 rows", "holds no predictions"),
        ("token", "preds holds 12 in row 0, but the tokens of ARC are 0 to 11"),
        ("example", "example_index is -2 in row 0; it must be at least 0, or -1 for unknown"),
        ("row", "rows is -1 in row 0; it must be at least 0"),
        ("segments", "num_segments is 0 in row 0; it must be at least 1"),
        ("probability", "log_probs is 0.5 in row 0; it must be at most 0"),
        ("lost q", "q_halt_logits is nan in row 0; the model's numbers overflowed"),
        ("infinite q", "q_halt_logits is inf in row 0"),
        ("lost probability", "log_probs is nan in row 0"),
    ],
)
def test_unusable_predictions_exit_2_and_write_nothing(
    kind: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = bad_predictions(kind, tmp_path), tmp_path / "out" / "submission.json"
    assert main([str(path), "--data", str(data), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.splitlines()[-1].startswith(f"error: {path}: ")
    assert not out.parent.exists()


def test_how_often_a_value_is_wrong_is_told(tmp_path: Path) -> None:
    rows = [row(n, 0, constant(1)) for n in (1, 2, 3)]
    known = predictions(*rows)._replace(num_segments=np.array([1, 0, -5], dtype=np.int32))
    write_predictions(tmp_path / "p.npz", known)
    with pytest.raises(
        InputError, match="num_segments is 0 in row 1 and wrong in 1 more; it must be at least 1"
    ):
        list(read_predictions([tmp_path]))


@pytest.mark.parametrize("by", voting.VOTE_BY)
def test_lost_predictions_are_left_out_if_asked_for(
    by: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(1, 0, constant(1)), row(2, 0, constant(2), q=np.nan), row(3, 0, constant(2))]
    known = predictions(*rows)._replace(log_probs=np.array([-1, np.nan, np.nan], dtype=np.float32))
    file, out = tmp_path / "p.npz", tmp_path / "s.json"
    write_predictions(file, known)
    arguments = [str(file), "--data", str(data), "--leave-out-lost", "--by", by, "--out", str(out)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    num_lost = 2 if by == "probability" else 1
    assert f"warning: {num_lost} predictions are of a model whose numbers were lost (NaN)" in captured.err
    counts = json.loads(captured.out.splitlines()[-1])["predictions"]
    assert (counts["counted"], counts["lost"]) == (3 - num_lost, num_lost)


@pytest.mark.parametrize(
    ("foreign", "puzzle"), [(row(4, 0, constant(1)), "'b'"), (row(5, 3, constant(1)), "'c'")]
)
def test_predictions_of_another_dataset_are_refused(
    foreign: tuple[Any, ...], puzzle: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_c = {task: pairs for task, pairs in puzzles().items() if task != "c"}
    (data / "test_puzzles.json").write_text(json.dumps(without_c))
    file, out = tmp_path / "p.npz", tmp_path / "out"
    write_predictions(file, predictions(row(1, 0, constant(1)), foreign))
    assert main([str(file), "--data", str(data), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert (
        f"{file}: row 1, of puzzle {puzzle}: answers an input that {data / 'test_puzzles.json'} does not"
        in error
    )
    assert not out.exists()


def test_a_folder_that_names_another_dataset_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identifiers = json.loads((dataset / "identifiers.json").read_text())
    task, puzzle = next(iter(json.loads((dataset / "test_puzzles.json").read_text()).items()))
    inputs = encode(np.array(puzzle["test"][0]["input"], dtype=np.uint8), CANVAS)
    block = predictions((identifiers.index(task), inputs, inputs, 0, 0))
    for name, sha256 in {"own": dataset_sha256(dataset), "other": "0" * 64, "unknown": None}.items():
        asked = Evaluation(
            checkpoint_id="step_1",
            num_aug=0,
            max_groups=1,
            num_rows=1,
            rows_per_file=1,
            dataset_sha256=sha256,
        )
        claim(tmp_path / name, asked, Part())
        write_predictions(tmp_path / name / "predictions_00000.npz", block)
        given, out = tmp_path / name / "predictions_00000.npz", tmp_path / f"{name}.json"
        expected = 2 if name == "other" else 0
        assert main([str(given), "--data", str(dataset), "--out", str(out)]) == expected
        assert out.exists() == (expected == 0)
    record = tmp_path / "other" / "evaluation.json"
    assert f"{record}: dataset_sha256 is 000000000000..., but that of {dataset}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("identifiers.json", None, "; give the file of the dataset that the predictions"),
        ("identifiers.json", '{"a": 1}', "must be a list of names"),
        ("test_puzzles.json", "{", "malformed JSON"),
        ("test_puzzles.json", "[]", "must be an object"),
        ("test_puzzles.json", '{"a": {"train": []}}', "task a"),
        ("test_puzzles.json", '{"a": {"train": [{"input": [[10]], "output": [[1]]}], "test": []}}', "10"),
        ("subsets.json", '{"half": ["nothing"]}', "'nothing', which is no task of the data"),
        ("subsets.json", None, "; give --subsets a JSON file, {name: [task ids]}."),
        ("subsets.json", "{", "; give --subsets a JSON file, {name: [task ids]}."),
        ("subsets.json", "[]", "must be an object"),
        ("subsets.json", '{"all tasks": []}', "give the subset another name"),
    ],
)
def test_unusable_data_exits_2_and_writes_nothing(
    name: str,
    content: str | None,
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = data / name, tmp_path / "submission.json"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    arguments = [str(save(tmp_path / "p.npz")), "--data", str(data), "--out", str(out)]
    assert main(arguments + ["--subsets", str(path)] * (name == "subsets.json")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert not out.exists()


@pytest.mark.parametrize("command", ["vote", "report"])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [row(4, 0, constant(1)), row(0, 0, constant(1))],
            "1 match no test input of their task, as those of another dataset; 1 are of no puzzle",
        ),
        ([row(5, 0, constant(1))], "1 are for tasks that are not in the data"),
        ([row(1, 0, constant(1), q=np.nan)], "1 are of a model whose numbers were lost"),
    ],
)
def test_predictions_of_which_none_is_a_vote_are_refused(
    rows: list[Any], reason: str, command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_c = {task: pairs for task, pairs in puzzles().items() if task != "c"}
    (data / "test_puzzles.json").write_text(json.dumps(without_c))
    file, out = tmp_path / "p.npz", tmp_path / "out"
    write_predictions(file, predictions(*rows))
    run = {"vote": main, "report": report.main}[command]
    assert run([str(file), "--data", str(data), "--leave-out-lost", "--out", str(out)]) == 2
    assert f"{file}: no prediction is a vote" in (shown := capsys.readouterr().err)
    assert reason in shown
    assert not out.exists()


def test_what_a_vote_lacks_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "predictions"
    asked = Evaluation(checkpoint_id="step_1", num_aug=None, max_groups=None, num_rows=14, rows_per_file=5)
    claim(folder, asked, Part())
    empty = np.zeros((0, 0), dtype=np.uint8)
    rows = [
        row(1, 0, constant(1)),
        row(4, 2, empty),
        row(4, 1, constant(1)),
        row(2, 1, constant(1), q=np.nan),
    ]
    write_predictions(folder / "predictions_00001.npz", predictions(*rows))
    tasks = ["--identifiers", str(data / "identifiers.json"), "--tasks", str(data / "test_puzzles.json")]
    assert main([str(folder), *tasks, "--leave-out-lost", "--out", str(tmp_path / "s.json")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: 1 predictions match no test input of their task, as those of another dataset; ignored",
        "warning: 1 predictions are of a model whose numbers were lost (NaN); ignored",
        f"warning: {folder}: 10 of 14 inputs are not answered (predictions_00000.npz is not there, "
        "predictions_00001.npz lacks 1, predictions_00002.npz is not there); run tools.evaluate again for the rest",
        "warning: 2 test inputs have no prediction; submitted as [[0]]",
        "warning: 1 test inputs are answered by empty grids; submitted as [[0]]",
    ]


def test_the_command_writes_a_submission_and_ends_with_its_scores(data: Path, tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.npz", predictions(row(1, 0, constant(1)), row(4, 2, constant(3))))
    (tmp_path / "subsets.json").write_text('{"second half": ["b"]}')
    out = tmp_path / "submission.json"
    command = [sys.executable, "-m", "tools.vote", str(tmp_path / "p.npz"), "--out", str(out)]
    command += ["--identifiers", str(data / "identifiers.json"), "--tasks", str(data / "test_puzzles.json")]
    command += ["--subsets", str(tmp_path / "subsets.json"), "--scores", str(tmp_path / "scores.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["scores"]["all tasks"]["task/pass@2"] == 0.75
    assert summary["scores"]["second half"]["task_all/pass@2"] == 1
    assert summary["intervals"]["all tasks"]["input/pass@2"] == pytest.approx([0.208, 0.939], abs=1e-3)
    assert "  2 of 3 test inputs right by two attempts, 66.7 % [20.8, 93.9]" in done.stdout.splitlines()
    assert json.loads((tmp_path / "scores.json").read_text()) == summary
    assert summary["predictions"]["counted"] == 2
    assert summary["checkpoint_ids"] == ["step_1"]
    assert "warning: 2 test inputs have no prediction" in done.stderr
    assert list(json.loads(out.read_text())) == ["a", "b", "c"]


def evaluated_folder(folder: Path, **known: Any) -> Path:
    """A folder of tools.evaluate whose predictions are right for one of two test inputs of task a, and for b."""
    asked = Evaluation(
        checkpoint_id="step_1", num_aug=0, max_groups=None, num_rows=3, rows_per_file=3, **known
    )
    claim(folder, asked, Part())
    rows = [row(1, 0, constant(1)), row(1, 1, constant(9)), row(4, 2, constant(3))]
    write_predictions(folder / "predictions_00000.npz", predictions(*rows))
    return folder


def test_scores_of_a_whole_folder_are_kept_in_it(data: Path, tmp_path: Path) -> None:
    rules = {"halting": "q:2", "max_segments": 8}
    digests = {name: str(n) * 64 for n, name in enumerate(("checkpoint_sha256", "dataset_sha256"))}
    folder = evaluated_folder(tmp_path / "predictions", **rules, **digests)
    arguments = ["--data", str(data), "--out", str(tmp_path / "s.json")]
    assert main([str(folder), *arguments]) == 0
    found = json.loads((folder / "scores.json").read_text())
    assert found["rules"] == {"vote": "count", **rules, "vote_rule": "none"}
    assert {name: found[name] for name in digests} == digests
    assert found["scores"]["all tasks"]["task/pass@2"] == 0.75


def test_scores_go_elsewhere_if_that_is_said_and_nowhere_for_a_file(data: Path, tmp_path: Path) -> None:
    folder = evaluated_folder(tmp_path / "predictions")
    arguments = ["--data", str(data), "--out", str(tmp_path / "s.json")]
    assert main([str(folder / "predictions_00000.npz"), *arguments]) == 0
    assert main([str(folder), "--scores", str(tmp_path / "kept.json"), *arguments]) == 0
    assert not (folder / "scores.json").exists()
    assert json.loads((tmp_path / "kept.json").read_text())["checkpoint_sha256"] is None


def test_digests_and_rules_that_differ_between_folders_are_not_told(data: Path, tmp_path: Path) -> None:
    for name, segments in (("a", 4), ("b", 8)):
        evaluated_folder(
            tmp_path / name, checkpoint_sha256="0" * 64, dataset_sha256=name * 64, max_segments=segments
        )
    folders = [str(tmp_path / name) for name in "ab"]
    arguments = ["--data", str(data), "--out", str(tmp_path / "s.json"), "--scores", str(tmp_path / "k.json")]
    assert main([*folders, *arguments]) == 0
    found = json.loads((tmp_path / "k.json").read_text())
    assert (found["rules"]["max_segments"], found["rules"]["halting"]) == (None, "none")
    assert (found["checkpoint_sha256"], found["dataset_sha256"]) == ("0" * 64, None)


def test_task_intervals_are_over_tasks_and_of_each_subset(data: Path, tmp_path: Path) -> None:
    (tmp_path / "subsets.json").write_text('{"both": ["a", "b"], "one": ["b"]}')
    folder = evaluated_folder(tmp_path / "predictions")
    options = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "s.json"),
        "--subsets",
        str(tmp_path / "subsets.json"),
    ]
    assert main([str(folder), *options]) == 0
    found = json.loads((folder / "scores.json").read_text())["task_intervals"]
    assert (
        found["all tasks"]["task/pass@2"] == found["both"]["task/pass@2"] == [0.5, 1]
    )  # a's share, b's share
    assert found["one"] == {}


def test_the_command_needs_to_know_the_data(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.vote",
        str(save(tmp_path / "p.npz")),
        "--out",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: identifiers.json is missing")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "output",
    [
        "predictions/predictions_00000.npz",
        "predictions/predictions_00001.npz",
        "predictions/evaluation.json",
        "predictions/planned/inputs.npz",
        "data/test_puzzles.json",
        "data/test/index.json",
        "subsets.json",
    ],
)
@pytest.mark.parametrize("option", ["--out", "--scores"])
def test_a_vote_never_writes_over_what_it_reads(
    option: str, output: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, subsets = evaluated_folder(tmp_path / "predictions"), tmp_path / "subsets.json"
    subsets.write_text('{"some": ["a"]}')
    (folder / "predictions_00001.npz").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outputs = {"--out": str(tmp_path / "s.json")} | {option: str(tmp_path / output)}
    arguments = [str(folder / "predictions_00000.npz"), "--data", str(data), "--subsets", str(subsets)]
    assert main([*arguments, *(word for pair in outputs.items() for word in pair)]) == 2
    assert f"{option} {tmp_path / output}: is among the files" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_submission_is_written_where_scores_cannot_be(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = evaluated_folder(tmp_path / "predictions"), tmp_path / "s.json"
    (tmp_path / "file").touch()
    for scores_file in (tmp_path, tmp_path / "file" / "scores.json", out):
        code = main([str(folder), "--data", str(data), "--out", str(out), "--scores", str(scores_file)])
        assert (code, out.exists()) == (2, False)
        assert str(scores_file) in capsys.readouterr().err


def test_only_counted_votes_on_a_complete_folder_leave_scores_there(data: Path, tmp_path: Path) -> None:
    complete, other = evaluated_folder(tmp_path / "complete"), evaluated_folder(tmp_path / "other")
    begun = evaluated_folder(tmp_path / "begun")
    known = json.loads((begun / "evaluation.json").read_text())
    (begun / "evaluation.json").write_text(json.dumps(known | {"num_rows": 4}))
    arguments = ["--data", str(data), "--out", str(tmp_path / "s.json")]
    for words in ([complete, "--by", "q"], [complete, other], [begun]):
        assert main([*map(str, words), *arguments]) == 0
    assert not list(tmp_path.rglob("scores.json"))
    assert main([str(complete), *arguments]) == 0
    assert list(tmp_path.rglob("scores.json")) == [complete / "scores.json"]


@pytest.mark.parametrize("by", ["count", "q"])
def test_a_rule_for_counted_votes_is_noted_where_votes_weigh_something_else(
    by: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluated_folder(tmp_path / "predictions", vote_rule="exact")
    assert main([str(folder), "--data", str(data), "--by", by, "--out", str(tmp_path / "s.json")]) == 0
    note = "note: votes ended by exact, which judges counted votes, not --by q\n"
    assert (note in capsys.readouterr().err) == (by == "q")


def test_planned_inputs_without_an_answer_are_named_where_votes_end_early(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = predictions(row(1, 0, constant(1)), row(1, 1, constant(9)), row(4, 2, constant(3)))
    rows = np.arange(3, dtype=np.int32)
    plan = Planned(block.puzzle_identifiers, block.example_index, rows * 0, rows * 0, digests(block.inputs))
    cut = Cut(num_blocks=1, rounds_per_file=1)
    folder = evaluated_folder(
        tmp_path / "predictions", vote_rule="exact", cut=cut, planned_sha256=plan.sha256()
    )
    write_planned(folder, plan)
    write_record(folder, BlockRecord(block=0, rule="exact", rounds=[], inputs=[]))
    some = next(block._replace(rows=rows).parts(2))
    write_predictions(folder / "predictions_00000.npz", some)
    assert main([str(folder), "--data", str(data), "--out", str(tmp_path / "s.json")]) == 0
    warning = f"warning: {folder}: 1 of 3 inputs are not answered: row 2 (identifier 4, example -1); run"
    assert f"{warning} tools.evaluate into another folder\n" in capsys.readouterr().err
