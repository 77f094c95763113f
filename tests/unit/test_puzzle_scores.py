"""Scores of Sudokus and mazes beside the stored answers, and what is told of them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.maze.generator import MazeRecipe
from data_pipeline.grid_puzzles.maze.generator import generate as generate_mazes
from data_pipeline.grid_puzzles.sudoku import puzzles as sudoku
from data_pipeline.grid_puzzles.sudoku.generator import Recipe
from data_pipeline.grid_puzzles.sudoku.generator import generate as generate_sudokus
from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID, load_dataset_info
from hrm_dist.config import load_config
from hrm_dist.evaluation.evaluate import evaluate
from hrm_dist.evaluation.intervals import share_interval
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.puzzle_scores import ALL_PUZZLES, scores, summary, summary_text
from hrm_dist.model.act import build_model

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
MAZES = generate_mazes(MazeRecipe(side=10, min_steps=14, seed=2), "test", np.arange(60))
SUDOKUS = generate_sudokus(Recipe(sudoku.BOX_SHAPES[6], seed=4), "test", np.arange(20))


class Block(NamedTuple):
    """Predictions beside the stored answers."""

    predictions: Predictions
    labels: np.ndarray


def block(inputs: np.ndarray, preds: np.ndarray, labels: np.ndarray) -> Block:
    zeros = np.zeros(len(inputs), dtype=np.int32)
    return Block(Predictions(zeros, inputs, preds, zeros.astype(np.float32), zeros), labels.astype(np.int32))


def mazes_upside_down() -> Block:
    """A shortest path of each maze, another one than the stored where the way up and the way down are as short."""
    turned = maze.mark_shortest_paths(maze.dihedral(MAZES.inputs, 2))
    return block(MAZES.inputs, maze.dihedral(turned, 2), MAZES.labels)


def sudokus_with_errors() -> Block:
    inputs, labels = sudoku.encode(SUDOKUS.inputs), sudoku.encode(SUDOKUS.labels)
    preds = labels.copy()
    preds[:5, 0] ^= 1
    return block(inputs, preds, labels)


def test_another_shortest_path_is_optimal_and_not_exact() -> None:
    found = scores([mazes_upside_down()], "maze")
    assert found["valid_path"] == found["optimal_path"] == 1
    assert 0 < found["exact_accuracy"] < found["cell_accuracy"] < 1


def test_a_sudoku_with_one_solution_is_valid_where_it_is_exact() -> None:
    found = scores([sudokus_with_errors()], "sudoku")
    assert found["valid_accuracy"] == found["exact_accuracy"] == 0.75
    assert found["cell_accuracy"] == pytest.approx(1 - 5 / 20 / 36)


def test_examples_whose_answer_is_hidden_are_in_no_score() -> None:
    right_and_wrong = sudokus_with_errors()
    right_and_wrong.labels[:10] = IGNORE_LABEL_ID
    expected = {"examples": 10, "exact_accuracy": 1, "cell_accuracy": 1, "valid_accuracy": 1}
    assert scores([right_and_wrong], "sudoku") == expected


@pytest.mark.parametrize("blocks", [[], [Block(*block(*np.ones((3, 1, 4), np.uint8)))]])
def test_without_a_known_answer_there_are_no_scores(blocks: list[Block]) -> None:
    for one in blocks:
        one.labels[:] = IGNORE_LABEL_ID
    assert scores(blocks, "maze") == {}
    told = summary(blocks, load_dataset_info(EARLIER / "maze"))
    assert summary_text(told) == "no answer is known, so nothing is scored"


def test_tasks_have_accuracies_alone() -> None:
    grid = np.full((2, 9), 3, dtype=np.uint8)
    assert set(scores([block(grid, grid, grid)], "arc")) == {"examples", "exact_accuracy", "cell_accuracy"}


def test_scores_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(InputError, match="kind 'chess'"):
        scores([], "chess")


@given(st.permutations(range(60)), st.lists(st.integers(0, 60), max_size=4))
def test_scores_do_not_depend_on_how_predictions_are_put_into_blocks(
    order: list[int], cuts: list[int]
) -> None:
    whole = mazes_upside_down()
    arrays = whole.predictions.inputs, whole.predictions.preds, whole.labels
    parts = [block(*(array[part] for array in arrays)) for part in np.split(np.array(order), sorted(cuts))]
    assert scores(parts, "maze") == pytest.approx(scores([whole], "maze"))


def test_a_summary_has_wilsons_intervals_of_what_an_example_is_or_is_not() -> None:
    info = load_dataset_info(EARLIER / "maze")
    told = json.loads(json.dumps(summary([mazes_upside_down()], info)))
    [found], [bounds] = told["scores"].values(), told["intervals"].values()
    assert set(bounds) == {"exact_accuracy", "valid_path", "optimal_path"}
    for name, interval in bounds.items():
        assert interval == pytest.approx(share_interval(round(60 * found[name]), 60)[1:], abs=1e-6)


def test_a_summary_is_told_in_words() -> None:
    told = summary([mazes_upside_down()], load_dataset_info(EARLIER / "maze"))
    text = summary_text(told | {"evaluated_on": "maze@0123"})
    num_exact = round(60 * told["scores"][ALL_PUZZLES]["exact_accuracy"])
    assert (
        f"({num_exact} of 60 puzzles right in every cell), valid path 100.0 % [94.0, 100.0] (60 of 60" in text
    )
    assert text.endswith(", on maze@0123")


@pytest.mark.parametrize(
    ("kind", "checks"), [("maze", {"valid_path", "optimal_path"}), ("sudoku", {"valid_accuracy"})]
)
def test_an_evaluation_during_training_has_the_scores_of_the_kind(
    kind: str, checks: set[str], config: Path
) -> None:
    reader = TestReader(EARLIER / kind)
    model = build_model(load_config(config).arch, reader.metadata, seed=0)
    found = evaluate(model, reader, EARLIER / kind, 8, torch.device("cpu"))
    assert found is not None
    assert set(found) == {"examples", "exact_accuracy", "cell_accuracy", *checks}
    assert found["examples"] == len(reader)
