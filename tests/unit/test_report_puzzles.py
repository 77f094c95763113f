"""Reports on Sudokus and mazes: statuses, starts, segments, ids, and which of many puzzles are shown."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.predictions import Predictions, write_predictions
from hrm_dist.evaluation.trajectories import Trajectories
from hrm_dist.train import main as train
from tests.training import evaluating
from tools.report.__main__ import gather, parse
from tools.report.answered import Answered, Block, Starts
from tools.report.column import SHOWN_CANDIDATES, Shown, choose
from tools.report.grids import puzzle_id, tokens_of
from tools.report.payload import Report, Score, Status
from tools.report.trajectories import replay

DATA_OF = {
    "sudoku": "dataset: {preset: sudoku, side: 4, num_train: 9, num_test: 30, num_aug: 2}",
    "maze": "dataset: {preset: maze, side: 6, min_steps: 5, num_train: 9, num_test: 30}",
}
STARTS = ("--every-segment", "--starts", 3, "--segment-noise", 2)
FREE, START, GOAL, PATH = 2, 3, 4, 5  # tokens of mazes

Preds = NDArray[np.uint8]


@pytest.mark.parametrize("kind", ["maze", "maze-unique"])
def test_ends_and_path_of_a_maze_are_told_by_letters(kind: str) -> None:
    tokens = tokens_of(kind_named(kind), kind_named(kind).look(6))
    assert [token.text for token in tokens] == ["", "", "", "S", "G", "o"]


def test_the_page_writes_nothing_into_colours_of_arc_unasked() -> None:
    tokens = tokens_of(kind_named("arc"), kind_named("arc").look(30))
    assert [(token.text, token.letter) for token in tokens] == [("", str(digit)) for digit in range(10)]


def report_of(*words: object) -> Report:
    return gather(parse([str(word) for word in words]))


@pytest.fixture(scope="module", params=list(DATA_OF))
def run(request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder beside its dataset, and predictions of three starts with every segment."""
    folder = tmp_path_factory.mktemp("puzzles")
    own = folder / "own.yaml"
    own.write_text(f"{config.read_text()}\n{DATA_OF[request.param]}\n")
    run = folder / request.param
    assert train([str(own), f"data_path={folder}/data", f"checkpoint_path={run}", "max_steps=2"]) == 0
    assert evaluating(run / "checkpoints" / "latest", folder / "data")(run / "predictions", *STARTS) == 0
    return run


def answered(run: Path, out: Path, change: Callable[[int, Preds, Preds], Preds]) -> Path:
    """Predictions of all held-out puzzles: what `change` makes of a number, the input and the stored answer."""
    reader = TestReader(run.parent / "data")
    rows = np.arange(len(reader))
    batch = reader.take(rows)
    inputs, labels = (batch[name].numpy().astype(np.uint8) for name in ("inputs", "labels"))  # type: ignore[literal-required]
    given = zip(inputs, labels, strict=True)
    preds = np.stack([change(n, asked, stored.copy()) for n, (asked, stored) in enumerate(given)])
    predictions = Predictions(
        batch["puzzle_identifiers"].numpy(), inputs, preds, np.zeros(len(rows), dtype=np.float32),
        batch["example_index"].numpy(), rows=rows.astype(np.int32),
    )  # fmt: skip
    out.parent.mkdir(exist_ok=True)
    write_predictions(out, predictions)
    return out


def with_errors(numbers: dict[int, int]) -> Callable[[int, Preds, Preds], Preds]:
    """Change so many of the last cells of these answers."""

    def change(n: int, asked: Preds, stored: Preds) -> Preds:
        if num := numbers.get(n, 0):
            stored[-num:] = np.where(stored[-num:] == 2, 3, 2)
        return stored

    return change


def statuses(report: Report, number: int = 0) -> list[str | None]:
    results = (puzzle.results[number] for puzzle in report.puzzles)
    return [result and result.status for result in results]


def test_answers_are_solved_close_or_unsolved(run: Path, tmp_path: Path) -> None:
    file = answered(run, tmp_path / "p.npz", with_errors({0: 1, 1: 9}))
    report = report_of(file, "--data", run.parent / "data", "--out", tmp_path / "r.html")
    assert statuses(report) == ["close", "unsolved", *["solved"] * 28]
    close, unsolved, solved = (puzzle.results[0] for puzzle in report.puzzles[:3])
    assert close is not None
    assert unsolved is not None
    assert solved is not None
    [attempt] = unsolved.answers[0].attempts
    assert (attempt.is_right, attempt.num_wrong) == (False, 9)
    assert attempt.note.startswith("9 of ")
    assert unsolved.answers[0].trajectories == []
    assert unsolved.agreement is None
    assert solved.cells_right == 1
    exact = next(score for score in report.runs[0].scores if score.name == "exact accuracy")
    assert (exact.right, exact.num) == (28, 30)
    assert exact.low is not None
    assert exact.high is not None
    assert exact.low < exact.value < exact.high


def test_ids_follow_from_the_input_and_titles_from_the_dataset(run: Path, tmp_path: Path) -> None:
    report = report_of(run, "--out", tmp_path / "r.html")
    inputs = TestReader(run.parent / "data").take(np.arange(30))["inputs"].numpy()
    for number, (puzzle, tokens) in enumerate(zip(report.puzzles, inputs, strict=True)):
        assert puzzle.title == f"test {number}"
        grid = puzzle.inputs[0].grid
        assert [int(cell, 36) for cell in grid.replace("/", "")] == tokens.tolist()
        assert puzzle.id == puzzle_id(report.kind, grid)
        assert (puzzle.height, puzzle.width) == (len(grid.split("/")), len(grid.split("/")[0]))


def test_the_chosen_start_is_played_and_the_others_agree_or_not(run: Path, tmp_path: Path) -> None:
    report = report_of(run, "--out", tmp_path / "r.html")
    num_starts = Counter[str]()
    for puzzle in report.puzzles:
        [result] = puzzle.results
        assert result is not None
        [answer] = result.answers
        [played] = answer.trajectories
        grids = replay(played.frames)
        assert grids[-1] == answer.attempts[0].grid
        assert len(grids) == result.num_segments == len(played.q) == len(played.residuals)
        assert all(new is None or new != old for old, new in zip(grids, played.frames[1:], strict=False))
        assert answer.num_votes == 3
        assert sum(one.votes for one in answer.candidates) == 3
        own = next(one for one in answer.candidates if one.grid == grids[-1])
        assert result.agreement == pytest.approx(own.votes / 3, abs=1e-4)
        num_starts[played.label] += 1
    assert len(num_starts) > 1  # it is not always the first


def test_the_right_answer_is_among_those_shown_however_few_starts_came_to_it() -> None:
    num_starts, truth = SHOWN_CANDIDATES + 3, np.full((1, 4), 2, dtype=np.uint8)
    ends = np.arange(3, 3 + num_starts, dtype=np.uint8)[:, None].repeat(4, axis=1)
    ends[-1] = truth  # which is the least sure
    qs = -np.arange(num_starts, dtype=np.float32)
    number, each = np.zeros(1, dtype=np.int32), np.arange(num_starts, dtype=np.int32)
    segments = Trajectories(
        each * 0, each, each * 0 + 1, qs, qs, qs, qs,
        np.arange(num_starts + 1) * 4, np.tile(np.arange(4, dtype=np.uint16), num_starts), ends.reshape(-1), 4,
    )  # fmt: skip
    predictions = Predictions(number, truth, ends[:1], qs[:1], number, rows=number)
    not_right, share = np.zeros(1, dtype=bool), np.zeros(1)
    block = Block(predictions, truth.astype(np.int32), truth.reshape(1, 2, 2), 0, not_right, share, not_right)
    [answer] = Answered(block, 0, Starts(segments, ends[None])).result().answers
    assert [one.rank for one in answer.candidates] == [*range(1, SHOWN_CANDIDATES + 1), num_starts]
    assert [one.is_right for one in answer.candidates] == [False] * SHOWN_CANDIDATES + [True]
    assert answer.num_candidates == num_starts


@pytest.mark.parametrize("run", ["maze"], indirect=True)
def test_another_shortest_path_is_told_from_a_wrong_one(run: Path, tmp_path: Path) -> None:
    others = list[int]()

    def another(n: int, asked: Preds, stored: Preds) -> Preds:
        found = other_path(asked, stored)
        if found is None:
            return stored
        others.append(n)
        return found

    file = answered(run, tmp_path / "p.npz", another)
    report = report_of(file, "--data", run.parent / "data", "--out", tmp_path / "r.html")
    assert others
    assert statuses(report) == ["close" if n in others else "solved" for n in range(30)]
    result = report.puzzles[others[0]].results[0]
    assert result is not None
    assert result.answers[0].attempts[0].is_right is False
    assert result.answers[0].attempts[0].note.startswith("another answer that obeys the rules")


def other_path(asked: Preds, stored: Preds) -> Preds | None:
    """A shortest path of a maze that is not the stored one, if there is any."""
    board = asked.reshape(6, 6)
    grid = nx.grid_2d_graph(6, 6).subgraph([(int(r), int(c)) for r, c in np.argwhere(board >= FREE)])
    start, goal = (tuple(np.argwhere(board == token)[0].tolist()) for token in (START, GOAL))
    for path in nx.all_shortest_paths(grid, start, goal):
        found = board.copy()
        for place in path[1:-1]:
            found[place] = PATH
        if (found.reshape(-1) != stored).any():
            return found.reshape(-1)
    return None


def test_runs_are_compared_by_puzzle_whatever_was_asked(run: Path, tmp_path: Path) -> None:
    files = [answered(run, tmp_path / name / "p.npz", with_errors({n: 1})) for n, name in enumerate("ab")]
    report = report_of(
        *(file.parent for file in files), "--data", run.parent / "data", "--out", tmp_path / "r.html"
    )
    assert [one.name for one in report.runs] == ["a", "b"]
    assert statuses(report, 0)[:3] == ["close", "solved", "solved"]
    assert statuses(report, 1)[:3] == ["solved", "close", "solved"]
    assert report.notes == []


@pytest.mark.parametrize("run", ["sudoku"], indirect=True)
def test_runs_on_puzzles_of_two_sizes_stand_side_by_side(run: Path, config: Path, tmp_path: Path) -> None:
    own, other = tmp_path / "six.yaml", tmp_path / "six"
    section = "dataset: {preset: sudoku, side: 6, num_train: 9, num_test: 5}"
    own.write_text(f"{config.read_text()}\n{section}\n")
    assert train([str(own), f"data_path={tmp_path}/data", f"checkpoint_path={other}", "max_steps=1"]) == 0
    assert evaluating(other / "checkpoints" / "latest", tmp_path / "data")(other / "predictions") == 0
    report = report_of(run, other, "--out", tmp_path / "r.html")
    assert report.num_puzzles == 35
    assert [puzzle.height for puzzle in report.puzzles] == [4] * 30 + [6] * 5
    assert all((puzzle.results[0] is None) == (puzzle.height == 6) for puzzle in report.puzzles)
    assert "different datasets" in report.notes[0]
    assert report.box is None  # boxes of one size would be wrong for the other


def test_a_puzzle_that_is_answered_twice_is_refused_rather_than_counted_twice(
    run: Path, tmp_path: Path
) -> None:
    files = [answered(run, tmp_path / name / "p.npz", with_errors({0: n})) for n, name in enumerate("ab")]
    with pytest.raises(InputError, match=r"b/p\.npz: answers row 0, which is answered before"):
        report_of(*files, "--data", run.parent / "data", "--out", tmp_path / "r.html")


def test_of_many_puzzles_those_that_differ_are_shown(run: Path, tmp_path: Path) -> None:
    file = answered(run, tmp_path / "p.npz", with_errors({3: 1, 29: 9}))
    words = (file, "--data", run.parent / "data", "--out", tmp_path / "r.html", "--max-puzzles", 6)
    report = report_of(*words)
    assert statuses(report).count("solved") == 4
    assert {puzzle.title for puzzle in report.puzzles} > {"test 3", "test 29"}
    assert report.num_puzzles == 30
    assert report.notes[0].startswith("6 of 30 puzzles are shown")
    assert report.runs[0].scores[0].num == 30
    assert report_of(*words).puzzles == report.puzzles


class Few:
    """A column without puzzles to show."""

    def __init__(self, statuses: dict[str, Status | None]) -> None:
        self.scores: list[Score] = []
        self.warnings: list[str] = []
        self.statuses = statuses

    def shown(self, ids: object) -> dict[str, Shown]:
        return {}


columns = st.lists(
    st.dictionaries(st.integers(0, 60).map(str), st.sampled_from([*get_args(Status), None])),
    min_size=1,
    max_size=3,
).map(lambda found: [Few(one) for one in found])


@given(columns, st.integers(1, 40))
def test_as_many_are_chosen_of_each_combination_as_there_are(found: list[Few], most: int) -> None:
    chosen, num = choose(found, most)
    ids = list(dict.fromkeys(one for column in found for one in column.statuses))
    assert num == len(ids)
    assert len(chosen) == len(set(chosen)) == min(most, num)
    assert chosen == [one for one in ids if one in set(chosen)]

    def combinations(some: list[str]) -> Counter[tuple[Status | None, ...]]:
        return Counter(tuple(column.statuses.get(one) for column in found) for one in some)

    of_all, of_chosen = combinations(ids), combinations(chosen)
    if len(chosen) < num:
        cut = [of_chosen[one] for one in of_all if of_chosen[one] < of_all[one]]
        whole = [of_chosen[one] for one in of_all if of_chosen[one] == of_all[one]]
        assert max(cut) - min(cut) <= 1
        assert max(whole, default=0) <= max(cut) + 1
