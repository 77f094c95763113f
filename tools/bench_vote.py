"""Time the vote and measure its memory on made predictions of ARC, beside the field's evaluator where that is given.

examples:
  python -m tools.bench_vote
      400,000 predictions of the 400 tasks that ARC-AGI-1 holds out, on a canvas of 30 x 30
  python -m tools.bench_vote --reference ../TinyRecursiveModels
      beside evaluators/arc.py of an unchanged checkout of SamsungSAILMontreal/TinyRecursiveModels (commit e7b6871)
  python -m tools.bench_vote --noise
      no two predictions alike, as of a model that has learned nothing: the most memory that a vote can need

A seed makes up a model that solves some tasks: for each test input a share of its predictions is right, some are one of
twenty near misses, and the rest is noise. Both evaluators get the same files, block by block; a turn is all of them.
What is timed begins with a block in memory and ends with the scores; reading is timed apart. Peak memory is that of
tools.vote in a process of its own. The published evaluator needs numba; it begins afresh in every turn, since it would
keep the votes of the turn before. The last line printed is one JSON object.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.arc.augment import Augmentation, apply
from data_pipeline.arc.json_format import task_json
from data_pipeline.arc.rows import Group, plan_groups
from data_pipeline.arc.sources import bundled
from data_pipeline.arc.tokens import MAX_GRID_SIDE, NUM_COLOURS, Grid, encode
from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.files import write_json
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.table import table
from data_pipeline.schema import BLANK_NAME
from hrm_dist.evaluation.predictions import (
    MAX_ROWS_PER_FILE,
    Predictions,
    prediction_files,
    read_prediction_file,
    write_predictions,
)
from hrm_dist.evaluation.voting import scores, submission, vote
from hrm_dist.run_record import cpu_model

_PRESET = "arc-agi-1"
_SEED = 42
_NUM_NEAR_MISSES = 20
REFERENCE_FILES = ("evaluators/arc.py", "dataset/build_arc_dataset.py", "dataset/common.py")
_VOTE_AND_TELL_PEAK = (
    "import sys; from tools.vote import main; code = main(sys.argv[1:]); "
    "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]); sys.exit(code)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make predictions, vote on them in turns, and print what that took."""
    options = _parse(arguments)
    start_reference = options.reference and _published_evaluator(options.reference)
    with tempfile.TemporaryDirectory(prefix="bench-vote-") as name:
        folder = Path(name)
        made = make_predictions(folder, options.predictions, options.tasks, options.noise)
        peak_mb = _peak_megabytes(folder)
        turns = [_take_turn(made, folder, start_reference) for _ in range(options.turns)]
    result = {
        "benchmark": "vote",
        "predictions": options.predictions,
        "tasks": len(made.puzzles),
        "test_inputs": sum(len(puzzle["test"]) for puzzle in made.puzzles.values()),
        "candidates": turns[0].candidates,
        "noise": options.noise,
        "peak_rss_mb": round(peak_mb, 1),
        "turns": options.turns,
        **_summary(turns),
    }
    print(json.dumps({**result, "machine": {"cpu": cpu_model(), "load": os.getloadavg()[0]}}))
    return 0


class Made(NamedTuple):
    """Predictions that were made up: their names and tasks."""

    identifiers: list[str]
    puzzles: dict[str, Any]
    """As in test_puzzles.json."""


def make_predictions(folder: Path, num: int, num_tasks: int, noise: bool) -> Made:
    """Write prediction files, identifiers.json and test_puzzles.json to a folder; the same for the same arguments."""
    tasks = [task for task in bundled(_PRESET) if task.held_out][:num_tasks]
    num_inputs = sum(len(task.tests) for task in tasks)
    groups = plan_groups(tasks, max(8, 2 * num // num_inputs), _SEED)  # some have few augmentations
    rng = np.random.default_rng(_SEED)
    models = {
        (task.id, i): _Model(pair.output if pair.output is not None else pair.input, rng, noise)
        for task in tasks
        for i, pair in enumerate(task.tests)
    }
    rows = list(_rows(groups))[:num]
    if len(rows) < num:
        raise InputError(
            f"--predictions {num}: {num_tasks} tasks have but {len(rows)} augmented inputs; give more --tasks."
        )
    with progress_bar("make", "prediction", num, shown=True) as progress:
        for start in range(0, num, MAX_ROWS_PER_FILE):
            block = rows[start : start + MAX_ROWS_PER_FILE]
            answers = [models[group.task.id, i].answer() for group, _, i in block]
            write_predictions(folder / f"predictions_{start:09d}.npz", _block(block, answers))
            progress.update(len(block))
    made = Made(
        [BLANK_NAME, *(name for group in groups for name in group.names())],
        {task.id: task_json(task) for task in tasks},
    )
    write_json(folder / "identifiers.json", made.identifiers)
    write_json(folder / "test_puzzles.json", made.puzzles)
    return made


_Row = tuple[Group, int, int]
"""A group, the number of its puzzle, and of the test input."""


def _rows(groups: Sequence[Group]) -> Iterator[_Row]:
    """Yield all test inputs in the order of a dataset: the first augmentation of every task, then the second."""
    for number in range(max(group.num_puzzles for group in groups)):
        for group in groups:
            if number < group.num_puzzles:
                yield from ((group, number, i) for i in range(len(group.task.tests)))


class _Model:
    """What a model answers to one test input."""

    def __init__(self, truth: Grid, rng: np.random.Generator, noise: bool) -> None:
        self._truth, self._rng, self._noise = truth, rng, noise
        self._share_right = rng.beta(0.4, 0.6)
        self._near_misses = [self._changed(int(rng.integers(1, 4))) for _ in range(_NUM_NEAR_MISSES)]

    def answer(self) -> tuple[Grid, float]:
        """Return a grid, in the colours and the orientation of the original, and its q_halt_logit."""
        rng = self._rng
        if self._noise:
            side = MAX_GRID_SIDE
            return rng.integers(NUM_COLOURS, size=(side, side), dtype=np.uint8), float(rng.normal(-3))
        draw = rng.random()
        if draw < self._share_right:
            return self._truth, float(rng.normal(2))
        if rng.random() < 0.6:
            number = min(int(rng.exponential(_NUM_NEAR_MISSES / 5)), _NUM_NEAR_MISSES - 1)
            return self._near_misses[number], float(rng.normal(-1))
        return self._changed(1 + self._truth.size // 10), float(rng.normal(-3))

    def _changed(self, num_cells: int) -> Grid:
        cells = self._truth.reshape(-1).copy()
        cells[self._rng.integers(cells.size, size=num_cells)] = self._rng.integers(
            NUM_COLOURS, size=num_cells
        )
        return cells.reshape(self._truth.shape)


def _block(rows: Sequence[_Row], answers: Sequence[tuple[Grid, float]]) -> Predictions:
    inputs, preds = (np.empty((len(rows), MAX_GRID_SIDE**2), dtype=np.uint8) for _ in range(2))
    for n, ((group, number, i), (grid, _)) in enumerate(zip(rows, answers, strict=True)):
        table = group.augmentations
        augmentation = Augmentation(int(table.dihedrals[number]), table.palettes[number])
        inputs[n] = encode(apply(group.task.tests[i].input, augmentation), MAX_GRID_SIDE)
        preds[n] = encode(apply(grid, augmentation), MAX_GRID_SIDE)
    return Predictions(
        np.array([group.first_identifier + number for group, number, _ in rows], dtype=np.int32),
        inputs,
        preds,
        np.array([q for _, q in answers], dtype=np.float32),
        np.array([i for _, _, i in rows], dtype=np.int32),
        "step_1-raw",
    )


class Turn(NamedTuple):
    """What one vote over all files took."""

    read_s: float
    ours_s: float
    reference_s: float | None
    candidates: int
    other_answers: int
    """Test inputs to which the reference gives other first two answers."""


def _take_turn(made: Made, folder: Path, start_reference: Callable[[Path], "Reference"] | None) -> Turn:
    reference = start_reference(folder) if start_reference else None
    read_s = 0.0

    def blocks() -> Iterator[Predictions]:
        nonlocal read_s
        for file in prediction_files([folder]):
            started = time.perf_counter()
            block = read_prediction_file(file)
            read_s += time.perf_counter() - started
            if reference:
                reference.add(block)
            yield block

    started = time.perf_counter()
    votes = vote(blocks(), made.identifiers, made.puzzles)
    scores(votes, made.puzzles)
    seconds = time.perf_counter() - started
    other_answers = 0
    if reference:
        seconds -= reference.seconds
        answers = reference.answers(folder)
        own = submission(votes)
        other_answers = sum(
            theirs != ours for task in own for ours, theirs in zip(own[task], answers[task], strict=True)
        )
    return Turn(
        read_s,
        seconds - read_s,
        reference.seconds if reference else None,
        sum(len(candidates) for task in votes.tasks.values() for candidates in task),
        other_answers,
    )


def _summary(turns: Sequence[Turn]) -> dict[str, object]:
    """Return the medians of turns, and show all of them."""
    ratios = [turn.ours_s / turn.reference_s for turn in turns if turn.reference_s]
    columns = {
        "reading, s": [turn.read_s for turn in turns],
        "vote, s": [turn.ours_s for turn in turns],
        "reference, s": [turn.reference_s for turn in turns if turn.reference_s],
    }
    cells = [(head, *(f"{seconds:.2f}" for seconds in column)) for head, column in columns.items() if column]
    print("\n".join(table(list(zip(*cells, strict=True)), ">")), flush=True)
    result: dict[str, object] = {
        "read_s": round(statistics.median(turn.read_s for turn in turns), 3),
        "vote_s": round(statistics.median(turn.ours_s for turn in turns), 3),
    }
    if ratios:
        result |= {
            "reference_s": round(statistics.median(turn.reference_s or 0 for turn in turns), 3),
            "ratio": round(statistics.median(ratios), 4),
            "ratios": [round(ratio, 4) for ratio in ratios],
            "test_inputs_with_other_answers": max(turn.other_answers for turn in turns),
        }
    return result


def _peak_megabytes(folder: Path) -> float:
    """Vote in a process of its own, and return the most memory that it had."""
    command = [
        sys.executable,
        "-c",
        _VOTE_AND_TELL_PEAK,
        str(folder),
        "--out",
        str(folder / "submission.json"),
    ]
    command += [
        "--identifiers",
        str(folder / "identifiers.json"),
        "--tasks",
        str(folder / "test_puzzles.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"tools.vote stopped with exit code {done.returncode}: {done.stderr.strip()}")
    return int(done.stdout.split()[-2]) / 1024


class Reference:
    """One vote of the published evaluator, and the seconds that it has taken."""

    def __init__(self, module: Any, folder: Path) -> None:
        self._module = module
        self._evaluator = module.ARC(str(folder), SimpleNamespace(blank_identifier_id=0))
        self.seconds = 0.0

    def add(self, block: Predictions) -> None:
        """Give it a block of predictions, as its training script does after each batch."""
        import torch

        batch = {"inputs": block.inputs, "puzzle_identifiers": block.puzzle_identifiers}
        preds = {"preds": block.preds, "q_halt_logits": block.q_halt_logits}
        as_tensors = [
            {name: torch.from_numpy(field) for name, field in part.items()} for part in (batch, preds)
        ]
        started = time.perf_counter()
        self._evaluator.update_batch(*as_tensors)
        self.seconds += time.perf_counter() - started

    def answers(self, folder: Path) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Let it count and score, and return its submission, which it need not write for that."""
        kept: list[Any] = []
        self._module.json = SimpleNamespace(dump=lambda content, _: kept.append(content), load=json.load)
        started = time.perf_counter()
        self._evaluator.result(str(folder), rank=0, world_size=1)
        self.seconds += time.perf_counter() - started
        return kept[0]


def _published_evaluator(checkout: Path) -> Callable[[Path], Reference]:
    """Import the published evaluator unchanged; return what begins a vote of it.

    Stood in for: the parser of a command line that is not run, and the gathering over ranks, of which there is one.
    """
    for name in REFERENCE_FILES:
        if not (checkout / name).is_file():
            raise InputError(
                f"--reference {checkout}: no {name} there; give a checkout of SamsungSAILMontreal/TinyRecursiveModels."
            )
    parser: Any = ModuleType("argdantic")
    parser.ArgParser = lambda: SimpleNamespace(command=lambda **_: lambda function: function)
    sys.modules[parser.__name__] = parser
    for name in (
        "evaluators",
        "dataset",
    ):  # without __init__.py, so any other of this name would be found first
        package: Any = ModuleType(name)
        package.__path__ = [str((checkout / name).resolve())]
        sys.modules[name] = package
    try:
        module: Any = importlib.import_module("evaluators.arc")
        module.dist = SimpleNamespace(gather_object=lambda own, gathered, **_: gathered.__setitem__(0, own))
        module._crop(np.zeros(MAX_GRID_SIDE**2, dtype=np.uint8))  # compiled here, not in the first turn
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(
            f"--reference {checkout}: cannot be imported ({error}); give an unchanged checkout of "
            "SamsungSAILMontreal/TinyRecursiveModels, commit e7b6871, and install numba and torch."
        ) from None
    return lambda folder: Reference(module, folder)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("tools.bench_vote", __doc__)
    for option, default, meaning in (
        ("--predictions", 400_000, "predictions to make"),
        ("--tasks", 400, "tasks that they are of, from the first"),
        ("--turns", 3, "votes over all of them"),
    ):
        text = f"{meaning} (default: %(default)s)"
        parser.add_argument(option, type=whole_number(1), default=default, metavar="N", help=text)
    parser.add_argument("--noise", action="store_true", help="make every prediction another grid of 30 x 30")
    parser.add_argument(
        "--reference", type=path_argument, metavar="CHECKOUT", help="also time the published evaluator in it"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))
