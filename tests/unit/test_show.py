"""A puzzle and the model's answers as text: what is marked, how it is laid out, what is said of it."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import exit_code
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.checkpoint.reader import open_checkpoint
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.evaluation.evaluate import answer
from hrm_dist.evaluation.load_model import load_model
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.tensor_shards import replicated
from hrm_dist.train import main as train
from tests.training import command_line
from tools import show
from tools.show import Answer, Panel, Puzzle

SUDOKU = kind_named("sudoku").look(4)
SOLUTION = np.array([[2, 3, 4, 5], [4, 5, 2, 3], [3, 2, 5, 4], [5, 4, 3, 2]])
INPUTS = np.where(np.eye(4) == 1, SOLUTION, 1)  # the diagonal is given


def sudoku(*wrong: Sequence[tuple[int, int]]) -> Puzzle:
    """A puzzle whose answers are wrong in these cells, a sequence of them for each segment."""
    answers: list[Answer] = []
    for cells in wrong:
        preds = SOLUTION.copy()
        for cell in cells:
            preds[cell] = 1 + SOLUTION[cell] % 5
        answers.append(Answer(preds, 0.25, halts=False))
    return Puzzle("a puzzle", INPUTS, SOLUTION, answers)


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


# What is said


def test_a_puzzle_is_solved_from_the_segment_after_the_last_wrong_one() -> None:
    assert show.outcome(sudoku([(0, 1)], [], [(0, 2)], [], [])) == "solved after segment 4 of 5"
    assert show.outcome(sudoku([], [])) == "solved after segment 1 of 2"


def test_an_unsolved_puzzle_says_how_many_cells_are_wrong_and_that_it_was_solved() -> None:
    never = "not solved: 2 of 16 cells are wrong after segment 2"
    assert show.outcome(sudoku([(0, 1)], [(0, 1), (3, 1)])) == never
    assert show.outcome(sudoku([], [(0, 1), (3, 1)])) == f"{never}, though all were right after segment 1"


def test_a_hidden_truth_leaves_the_outcome_open() -> None:
    hidden = sudoku([])._replace(labels=np.full((4, 4), IGNORE_LABEL_ID))
    assert "the truth is hidden" in show.outcome(hidden)
    assert show.summary([hidden]) == "no truth is known"


def test_the_summary_counts_solved_puzzles_and_right_cells() -> None:
    puzzles = [sudoku([(0, 1)], []), sudoku([], [(0, 1), (0, 2)])]
    assert show.summary(puzzles) == "solved 1 of 2; cells right after each segment: 96.9%, 93.8%"


def test_only_marks_that_are_there_are_explained() -> None:
    assert show.marks_in_words([sudoku([])], SUDOKU, in_colour=False) == []
    assert show.marks_in_words([sudoku([(0, 1)])], SUDOKU, in_colour=False) == ["marks: * wrong"]
    both = show.marks_in_words([sudoku([(0, 1), (0, 0)])], SUDOKU, in_colour=False)
    assert both == ["marks: * wrong, ! given, and changed by the model"]


# What is drawn


def test_a_sudoku_is_drawn_with_boxes_marks_and_captions() -> None:
    puzzle = sudoku([(0, 1), (3, 3)], [])
    assert show.drawn(puzzle, SUDOKU, 80, in_colour=False) == [
        "1 . | . .   1 3*| 3 4       1 2 | 3 4",
        ". 4 | . .   3 4 | 1 2       3 4 | 1 2",
        "----+-----  ----+-----      ----+-----",
        ". . | 4 .   2 1 | 4 3       2 1 | 4 3",
        ". . | . 1   4 3 | 2 2!      4 3 | 2 1",
        "input       segment 1       segment 2",
        "            14 of 16 right  16 of 16 right",
        "            q_halt 0.250    q_halt 0.250",
        "            goes on         goes on",
        "",
    ]


def test_the_truth_stands_beside_answers_that_do_not_reach_it() -> None:
    assert any("truth" in line for line in show.drawn(sudoku([], [(0, 1)]), SUDOKU, 200, in_colour=False))
    assert not any("truth" in line for line in show.drawn(sudoku([(0, 1)], []), SUDOKU, 200, in_colour=False))


def test_colours_stand_in_place_of_marks() -> None:
    puzzle = sudoku([(0, 1), (3, 3)])
    coloured = show.drawn(puzzle, SUDOKU, 200, in_colour=True)
    assert "\x1b[97;41m3\x1b[0m " in coloured[0]
    assert "\x1b[97;45m2\x1b[0m" in coloured[4]
    marked = show.drawn(puzzle, SUDOKU, 200, in_colour=False)
    unmarked = [re.sub(r"[*!]", " ", line).rstrip() for line in marked]
    assert [plain(line).rstrip() for line in coloured] == unmarked


def test_a_changed_given_is_told_from_another_wrong_cell() -> None:
    puzzle = sudoku([(0, 1), (1, 1)])
    marks = show.cell_marks(puzzle, puzzle.answers[0].preds, SUDOKU.blank)
    assert marks[:2].tolist() == [
        ["", "wrong", "filled", "filled"],
        ["filled", "changed", "filled", "filled"],
    ]


@pytest.mark.parametrize("kind", ["maze", "maze-unique"])
def test_mazes_are_drawn_as_they_are_written(kind: str) -> None:
    cells = np.array([[1, 3, 1], [1, 2, 2], [1, 1, 4]])
    solved = np.array([[1, 3, 1], [1, 5, 5], [1, 1, 4]])
    puzzle = Puzzle("", cells, solved, [Answer(solved, 1.0, halts=True)])
    lines = show.drawn(puzzle, kind_named(kind).look(3), 80, in_colour=False)
    assert [line[6:].split() for line in lines[:3]] == [["#", "S", "#"], ["#", "o", "o"], ["#", "#", "G"]]
    assert lines[1].startswith("#      ")
    without_path_and_wall = Answer(np.where(cells == 1, 2, cells), 1.0, halts=True)
    lines = show.drawn(
        puzzle._replace(answers=[without_path_and_wall]), kind_named(kind).look(3), 80, in_colour=False
    )
    assert lines[1].startswith("#        ! * *")


def arc(label: np.ndarray, preds: np.ndarray) -> list[str]:
    puzzle = Puzzle("", np.array([[2, 1, 0], [1, 0, 0], [0, 0, 0]]), label, [Answer(preds, 0.5, halts=False)])
    return show.drawn(puzzle, kind_named("arc").look(3), 80, in_colour=False)


def test_an_arc_grid_is_cropped_and_what_counts_beyond_it_is_shown() -> None:
    ignored = IGNORE_LABEL_ID
    label = np.array([[3, 4, 1], [1, 1, ignored], [ignored] * 3])
    lines = arc(label, np.array([[3, 4, 1], [1, 7, 9], [9, 9, 9]]))
    assert lines[:3] == [
        "0 +    1 2 +         1 2 +",
        "+      + 5*          + +",
        "input  segment 1     truth",
    ]


def test_without_truth_an_arc_answer_is_the_grid_that_it_spells() -> None:
    hidden = np.full((3, 3), IGNORE_LABEL_ID)
    lines = arc(hidden, np.array([[3, 4, 1], [1, 7, 9], [9, 9, 9]]))
    assert lines[0] == "0 +    1 2"
    assert lines[1].startswith("+      segment 1")
    assert arc(hidden, np.zeros((3, 3), dtype=int))[0] == "0 +    (nothing)"


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_line_of_a_grid_takes_the_columns_it_says(
    height: int, width: int, box: tuple[int, int] | None, in_colour: bool, seed: int
) -> None:
    marks = np.random.default_rng(seed).choice(list(show.MARKS), (height, width))
    panel = show.grid_panel(np.full((height, width), "7"), marks, box, in_colour)
    assert {len(plain(line)) for line in panel.lines} == {panel.width}


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=9), st.integers(30, 100)
)
def test_panels_side_by_side_fit_the_terminal_and_none_is_lost(
    sizes: list[tuple[int, int]], columns: int
) -> None:
    panels = [Panel([chr(65 + i) * width] * height, width) for i, (width, height) in enumerate(sizes)]
    lines = show.side_by_side(panels, columns)
    assert max(map(len, lines)) <= columns
    for i, (width, height) in enumerate(sizes):
        assert sum(line.count(chr(65 + i)) for line in lines) == width * height


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_that_allows_it_is_written_to_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show.colour_is_wanted(_Terminal())
    assert not show.colour_is_wanted(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not show.colour_is_wanted(_Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not show.colour_is_wanted(_Terminal())


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    run = tmp_path_factory.mktemp("shown") / "run"
    assert train([str(config), f"checkpoint_path={run}", "max_steps=2", "ema=true", "ema_rate=0.5"]) == 0
    return run / "checkpoints" / "latest"


Shown = Callable[..., tuple[int, str]]


@pytest.fixture
def shown(
    checkpoint: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shown:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*options: object, checkpoint: Path = checkpoint, data: Path = dataset) -> tuple[int, str]:
        arguments = [str(checkpoint), "--data", str(data), *map(str, options)]
        code = exit_code(lambda: show.main(arguments))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_what_is_shown_is_what_an_evaluation_predicts(
    checkpoint: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    reader = TestReader(dataset)
    model = load_model(checkpoint, dataset, reader.info.metadata("train"), ema=True)
    [batch] = reader.batches(10, 0, 10)
    [expected] = answer(EvaluationSegment(model, 10, torch.device("cpu")), [batch])
    puzzles: list[Puzzle] = []
    monkeypatch.setattr(show, "drawn", lambda puzzle, *_: puzzles.append(puzzle) or [])
    assert shown("--puzzle", 7, 2)[0] == 0
    for puzzle, number in zip(puzzles, (7, 2), strict=True):
        assert len(puzzle.answers) == model.arch.halt_max_steps
        np.testing.assert_array_equal(puzzle.inputs.ravel(), expected.predictions.inputs[number])
        np.testing.assert_array_equal(puzzle.labels.ravel(), expected.labels[number])
        np.testing.assert_array_equal(puzzle.answers[-1].preds.ravel(), expected.predictions.preds[number])
        q_halt = torch.tensor(expected.predictions.q_halt_logits[number]).sigmoid().item()
        assert puzzle.answers[-1].q_halt == pytest.approx(q_halt, rel=1e-5)
        assert [said.halts for said in puzzle.answers] == [False, False, False, True]


def test_a_model_that_draws_random_numbers_is_shown(
    config: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = ["arch.segment_noise=0.1", "arch.halt_max_steps=2"]
    assert train([str(config), f"checkpoint_path={tmp_path}/run", "max_steps=1", *noise]) == 0
    checkpoint = f"{tmp_path}/run/checkpoints/latest"
    assert exit_code(lambda: show.main([checkpoint, "--data", str(dataset)])) == 0
    assert "segment 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("halt_bias", "halting", "states"),
    [
        (1.0, "learned", ["halts"] * 4),
        (-1.0, "learned", ["goes on"] * 3 + ["halts"]),
        (1.0, "fixed", ["goes on"] * 3 + ["halts"]),
    ],
)
def test_a_segment_halts_where_halting_is_worth_more_or_at_the_limit(
    halt_bias: float, halting: str, states: list[str], checkpoint: Path, tmp_path: Path, shown: Shown
) -> None:
    opened = open_checkpoint(checkpoint)
    opened.state.config["arch"]["halting"] = halting
    tensors = opened.tensors("model")
    [bias] = [name for name in tensors if name.endswith("q_head.bias")]
    tensors[bias] = torch.tensor([halt_bias, 0.0])
    shards = [replicated(f"model.{name}", tensor) for name, tensor in tensors.items()]
    CheckpointWriter(tmp_path, keep=1, in_background=False).write(opened.state, shards)
    code, text = shown(checkpoint=tmp_path / "latest")
    assert (code, re.findall("halts|goes on", text)) == (0, states)


def test_the_first_held_out_example_is_shown_with_its_name(shown: Shown, dataset: Path) -> None:
    code, text = shown("--segments", 6)
    name = TestReader(dataset).group_names[0]
    assert (code, text.splitlines()[0]) == (
        0,
        f"test example 0 (of 0 to {len(TestReader(dataset)) - 1}): {name}",
    )
    assert "segment 6" in text
    assert "segment 7" not in text


def test_examples_that_train_can_be_shown(shown: Shown, dataset: Path) -> None:
    last = len(TestReader(dataset, split="train")) - 1
    code, text = shown("--split", "train", "--puzzle", last)
    assert (code, text[:13]) == (0, "train example")


def test_an_example_that_is_not_there_is_refused_before_torch_is_loaded(dataset: Path) -> None:
    program = (
        "import sys; from data_pipeline.base.errors import exit_code; from tools import show; "
        "print(exit_code(show.main), 'torch' in sys.modules)"
    )
    done = command_line("-c", program, "nowhere", "--data", dataset, "--puzzle", "10000")
    assert re.search(r"error: --puzzle 10000: the test split of .* has \d+ examples; give", done.output)
    assert done.output.endswith("2 False\n")


def test_bad_input_is_refused(shown: Shown, tmp_path: Path) -> None:
    code, text = shown(data=tmp_path / "nowhere")
    assert (code, "dataset.json: not found" in text) == (2, True)
    code, text = shown(checkpoint=tmp_path / "nowhere")
    assert (code, "no checkpoint here" in text) == (2, True)
    with pytest.raises(SystemExit, match="2"):
        shown("--puzzle", "-1")


def test_a_trained_sudoku_is_shown_on_a_narrow_terminal(
    shown: Shown, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    section = "dataset: {preset: sudoku, side: 4, num_train: 9, num_test: 5, num_aug: 2}"
    own = tmp_path / "sudoku.yaml"
    own.write_text(f"{config.read_text()}\n{section}\n")
    run = tmp_path / "run"
    assert train([str(own), f"data_path={data}", f"checkpoint_path={run}", "max_steps=1"]) == 0
    monkeypatch.setenv("COLUMNS", "40")
    code, text = shown("--puzzle", 0, 4, checkpoint=run / "checkpoints/latest", data=data)
    assert code == 0
    grids = [line for line in text.splitlines() if re.match(r"[.\d] |--|input|seg", line)]
    assert max(map(len, grids)) <= 40
    assert len(re.findall(r"^not solved: \d+ of 16 cells are wrong after segment 4$", text, re.M)) == 2
    assert re.search(r"^solved 0 of 2; cells right after each segment: ([\d.]+%, ){3}[\d.]+%$", text, re.M)
