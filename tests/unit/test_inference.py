"""hrm_dist.inference: the answers of tools.evaluate and tools.vote, from checkpoints and from exported folders."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.build import build
from data_pipeline.grid_puzzles.maze.kind import MazeOptions, NewMazes
from data_pipeline.grid_puzzles.sudoku.kind import NewSudokus, SudokuOptions
from data_pipeline.reader import TestReader
from data_pipeline.shards.plan import Request
from hrm_dist.evaluation.predictions import Predictions, read_predictions
from hrm_dist.evaluation.trajectories import read_trajectories, segments_file
from hrm_dist.inference import load_solver
from hrm_dist.inference.exported import CONFIG, IDENTIFIERS, WEIGHTS
from hrm_dist.inference.solver import Solver
from hrm_dist.train import main as train
from tests.conftest import TINY_CONFIG
from tests.training import evaluating, train_briefly
from tools import vote
from tools.convert.export import export_weights

BATCH = 16
"""As many at a time as `evaluating` takes, so that the bits are the same."""


class Trained(NamedTuple):
    dataset: Path
    checkpoint: Path
    folder: Path
    """Where it was exported to."""


def trained(config: Path, dataset: Path, folder: Path) -> Trained:
    checkpoint = train_briefly(config, folder / "run")
    export_weights(checkpoint, folder / "my-model", None, ema=True)
    return Trained(dataset, checkpoint, folder / "my-model")


@pytest.fixture(scope="module", params=["sudoku", "maze"])
def puzzles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny model of 40 puzzles of a kind, which knows next to nothing."""
    options = {
        "sudoku": SudokuOptions(generator=NewSudokus(side=4, num_train=40, num_test=40)),
        "maze": MazeOptions(generator=NewMazes(side=5, min_steps=4, num_train=40, num_test=40)),
    }[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    build(Request(request.param, [], folder / "data", options, seed=0, workers=1, quiet=True))
    (folder / "c.yaml").write_text(f"data_path: {folder / 'data'}\n{TINY_CONFIG}")
    return trained(folder / "c.yaml", folder / "data", folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, config: Path, dataset: Path) -> Trained:
    """A tiny model of ARC tasks."""
    return trained(config, dataset, tmp_path_factory.mktemp("arc"))


def predictions_of(model: Trained, out: Path, *options: object) -> Predictions:
    assert evaluating(model.checkpoint, model.dataset)(out, *options) == 0
    [block] = read_predictions([out])
    return block


def grids_of(model: Trained) -> list[Any]:
    """The test split as a person would write it."""
    reader, example = TestReader(model.dataset), load_solver(model.folder)._plain
    assert example is not None
    inputs = reader.take(np.arange(len(reader)))["inputs"].numpy()
    return [example.decode(tokens, like="") for tokens in inputs]


# The same bits


@pytest.mark.parametrize(
    ("loading", "solving"),
    [
        ({}, {}),
        ({}, {"halting": "learned", "max_segments": 6}),
        ({}, {"halting": "unchanged:1"}),
        ({}, {"halting": "residual:0.5"}),
        ({"segment_noise": 0.5}, {"starts": 3, "choose": "vote", "noise_seed": 7}),
        ({"initial_states": "random"}, {"starts": 2}),
    ],
)
def test_solve_gives_the_answers_of_an_evaluation(
    loading: dict[str, Any], solving: dict[str, Any], puzzles: Trained, tmp_path: Path
) -> None:
    options = [
        text for name, value in (loading | solving).items() for text in (f"--{name.replace('_', '-')}", value)
    ]
    expected = predictions_of(puzzles, tmp_path / "out", *options)
    assert expected.num_segments is not None
    for path in (puzzles.checkpoint, puzzles.folder):
        solver = load_solver(path, **loading)
        answers = solver.solve(grids_of(puzzles), batch_size=BATCH, **solving)
        assert solver._plain is not None
        preds = [solver._plain.decode(tokens, like="") for tokens in expected.preds]
        assert [answer.grid for answer in answers] == preds
        assert len(set(preds)) > 1
        assert [answer.num_segments for answer in answers] == expected.num_segments.tolist()
        logits = expected.q_halt_logits.tolist()
        assert [answer.q for answer in answers] == [1 / (1 + math.exp(-logit)) for logit in logits]


def test_every_segment_is_that_of_an_evaluation(puzzles: Trained, tmp_path: Path) -> None:
    predictions_of(puzzles, tmp_path / "out", "--every-segment")
    [path] = (tmp_path / "out").glob("*.npz")
    expected = read_trajectories(segments_file(path))
    solver = load_solver(puzzles.folder)
    answers = solver.solve(grids_of(puzzles), batch_size=BATCH, every_segment=True)
    assert solver._plain is not None
    for number, preds in enumerate(expected.answers()):
        grids = [solver._plain.decode(tokens, like="") for tokens in preds]
        assert [answer.segments[number].grid for answer in answers] == grids
    assert all(answer.segments[-1] == (answer.grid, answer.q) for answer in answers)
    assert {len(answer.segments) for answer in answers} == {4}


@pytest.mark.parametrize("where", ["checkpoint", "folder"])
@pytest.mark.parametrize("by", ["count", "probability"])
def test_solve_tasks_gives_the_submission_of_evaluation_and_vote(
    where: str, by: str, tasks: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predictions_of(tasks, tmp_path / "out")
    arguments = ["vote", str(tmp_path / "out"), "--data", str(tasks.dataset), "--by", by]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path / "submission.json")])
    assert exit_code(vote.main) == 0
    submission = json.loads((tmp_path / "submission.json").read_text())
    given = json.loads((tasks.dataset / "test_puzzles.json").read_text())
    solver = load_solver(getattr(tasks, where))
    asked: list[Any] = []
    answers = solver._answers
    monkeypatch.setattr(solver, "_answers", lambda *of: asked.append((of[0], answers(*of))) or asked[-1][1])
    inputs = {task: [pair["input"] for pair in pairs["test"]] for task, pairs in given.items()}
    found = solver.solve_tasks(inputs, batch_size=BATCH, by=by)  # pyright: ignore[reportArgumentType]
    assert {
        task: [dict(zip(("attempt_1", "attempt_2"), one.attempts, strict=True)) for one in of_task]
        for task, of_task in found.items()
    } == {task: submission[task] for task in given}  # those beyond the canvas are in it, too
    [(questions, finished)] = asked
    np.testing.assert_array_equal(questions.inputs, expected.inputs)
    np.testing.assert_array_equal(questions.puzzle_identifiers, expected.puzzle_identifiers)
    np.testing.assert_array_equal(questions.example_index, expected.example_index)
    np.testing.assert_array_equal(finished.preds, expected.preds)
    np.testing.assert_array_equal(finished.q_halt_logits, expected.q_halt_logits)
    for of_task in found.values():
        assert all(one.num_votes == 9 and one.votes[0] >= 1 for one in of_task)


def test_a_model_that_skips_padding_does_so_from_a_folder(
    config: Path, dataset: Path, tmp_path: Path
) -> None:
    settings = ["padding=skip", "max_steps=2", f"checkpoint_path={tmp_path / 'run'}"]
    assert train([str(config), *settings]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "latest"
    export_weights(checkpoint, tmp_path / "out", None, ema=True)
    given = json.loads((dataset / "test_puzzles.json").read_text())
    inputs = {task: [pair["input"] for pair in pairs["test"]] for task, pairs in given.items()}
    from_folder, from_run = load_solver(tmp_path / "out"), load_solver(checkpoint)
    assert from_folder.model.windows is not None
    assert from_folder.solve_tasks(inputs) == from_run.solve_tasks(inputs)


def test_fewer_augmentations_are_the_first_ones(tasks: Trained) -> None:
    solver = load_solver(tasks.folder)
    [task, *_] = solver.tasks
    [one] = solver.solve_tasks({task: [[[1, 2], [3, 4]]]}, num_aug=2)[task]
    assert one.num_votes == 3
    assert solver.solve_tasks({task: []}) == {task: []}


def test_answers_do_not_depend_on_the_dataset_being_there(puzzles: Trained, tmp_path: Path) -> None:
    shutil.copytree(puzzles.folder, tmp_path / "copy")
    moved = load_solver(tmp_path / "copy")
    solver = load_solver(puzzles.checkpoint)
    assert moved.example == solver.example
    assert moved.solve([moved.example]) == solver.solve([solver.example])
    assert moved.solve([]) == []


# What cannot be


def test_arguments_that_cannot_be_are_refused_by_their_names(puzzles: Trained) -> None:
    solver = load_solver(puzzles.folder)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: solver.solve([solver.example], halting="soon"), "^halting soon: is no rule"),
        (lambda: solver.solve([solver.example], starts=0), "^starts 0: must be from 1 to 1,000"),
        (
            lambda: solver.solve([solver.example], starts=2),
            "^starts 2: nothing is random.*give segment_noise X",
        ),
        (lambda: solver.solve([solver.example], choose="q"), "^choose q: there is one try"),
        (lambda: solver.solve([solver.example], batch_size=0), "^batch_size=0: must be at least 1"),
        (lambda: solver.solve([solver.example], max_segments=0), "^max_segments=0: must be at least 1"),
        (lambda: solver.solve(solver.example[0]), r"^solve: str is no list of grids; give \[grid\]"),  # pyright: ignore
        (lambda: solver.solve([["1"]]), "^grid 0: has 1 rows"),
        (lambda: solver.solve_tasks({"a": [[[1]]]}), r"puzzles, which have no names; give solve \[grid"),
        (lambda: load_solver(puzzles.folder, segment_noise=-1), "^segment_noise -1: must be from 0 to 10"),
        (lambda: load_solver(puzzles.folder, initial_states="odd"), "initial_states='odd': give fixed"),  # pyright: ignore
        (lambda: load_solver(puzzles.folder, device="tpu"), "device='tpu': give one of auto, cpu, cuda"),  # pyright: ignore
    ]
    for call, why in cases:
        with pytest.raises(InputError, match=why):
            call()
    random = load_solver(puzzles.folder, segment_noise=1.0)
    with pytest.raises(InputError, match="every_segment: the segments are those of a single start"):
        random.solve([random.example], starts=2, every_segment=True)


def test_tasks_that_cannot_be_answered_are_refused(tasks: Trained) -> None:
    solver = load_solver(tasks.folder)
    [known, *_] = solver.tasks
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: solver.solve_tasks({"unheard": [[[1]]]}),
            "task unheard: .* no row for it.*8 tasks.*tools.adapt",
        ),
        (
            lambda: solver.solve_tasks({known: [[[1], [1, 2]]]}),
            f"task {known}, test input 0: row 1 has 2 cells",
        ),
        (lambda: solver.solve_tasks({known: [[[11]]]}), "row 0, column 0: 11 is no colour"),
        (lambda: solver.solve_tasks({known: [[[1] * 7]]}), "test input 0: is 1 x 7, but .* up to 6 x 6"),
        (lambda: solver.solve_tasks({known: None}), f"task {known}: NoneType is no list of test inputs"),  # pyright: ignore
        (lambda: solver.solve_tasks([[[1]]]), r"solve_tasks: list is no mapping; give {id: \[test input"),  # pyright: ignore
        (lambda: solver.solve_tasks({known: []}, num_aug=-1), "num_aug=-1: must be at least 0"),
        (lambda: solver.solve_tasks({known: []}, by="luck"), "by='luck': give one of count, q, probability"),  # pyright: ignore
        (lambda: solver.solve([[[1]]]), "solve: the model is of ARC tasks"),
    ]
    for call, why in cases:
        with pytest.raises(InputError, match=why):
            call()


def test_a_checkpoint_says_that_it_needs_its_dataset(
    puzzles: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=r"no dataset here, and a checkpoint needs it to be run.*with data\."
    ):
        load_solver(puzzles.checkpoint, data=tmp_path)
    with pytest.raises(InputError, match="no such folder; give one that"):
        load_solver(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no checkpoint here"):
        load_solver(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no checkpoint here"):
        load_solver(".")
    with pytest.raises(InputError, match=r"no evaluation has scored anything .* take .*latest"):
        load_solver(shutil.copytree(puzzles.checkpoint.parent, tmp_path / "c", symlinks=True) / "best")


def edited(folder: Path, **changes: object) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | changes))


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.popitem()
    save_file(tensors, folder / WEIGHTS)


def use_another_width(folder: Path) -> None:
    arch = json.loads((folder / CONFIG).read_text())["arch"]
    edited(folder, arch=arch | {"hidden_size": 64})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / CONFIG).unlink(), r"config\.json: missing, so the model cannot be run"),
        (lambda folder: (folder / CONFIG).write_text("{"), r"config\.json: damaged, not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), r"config\.json: format_version None is not 1"),
        (lambda folder: edited(folder, format_version=2), "format_version 2 .*; use the release .* or a later one"),
        (lambda folder: edited(folder, canvas=0), r"config\.json: canvas"),
        (lambda folder: edited(folder, new=1), r"config\.json: .*new"),
        (lambda folder: edited(folder, kind="chess"), "kind 'chess': unknown here"),
        (use_another_width, r"model\.safetensors: is of another model than config\.json says"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"model\.safetensors: missing"),
        (lambda folder: (folder / IDENTIFIERS).unlink(), r"identifiers\.json: missing"),
        (lambda folder: (folder / IDENTIFIERS).write_text("[]"), r"identifiers\.json: damaged, its sha256"),
        (drop_a_tensor, r"model\.safetensors: damaged, its sha256 is not the one in config\.json"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_it_was_written_is_refused(
    damage: Callable[[Path], object], why: str, tasks: Trained, tmp_path: Path
) -> None:
    folder = shutil.copytree(tasks.folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(InputError, match=why) as refused:
        load_solver(folder)
    assert "\n" not in str(refused.value)


def test_a_folder_without_its_card_is_whole(tasks: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(tasks.folder, tmp_path / "copy")
    (folder / "README.md").unlink()
    assert isinstance(load_solver(folder), Solver)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, IDENTIFIERS, WEIGHTS]
    assert yaml.safe_load((folder / CONFIG).read_text())["kind"] == "arc"
