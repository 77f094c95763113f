"""Solve puzzles with a trained model, from Python.

    from hrm_dist.inference import load_solver

    solver = load_solver("my-sudoku-model")            # what tools.convert export wrote, or a run's checkpoint
    [answer] = solver.solve(["5300700006001950000980000608000600034008030017000200060600002800004190050000800790"])
    answer.grid, answer.q, answer.num_segments

    solver = load_solver("my-arc-model")
    answers = solver.solve_tasks({"00576224": [[[3, 2], [7, 8]]]})
    answers["00576224"][0].attempts

Answers are those of tools.evaluate (and of tools.vote) with the same options, bit for bit; all options that change
answers are described there. Whatever cannot be used raises InputError (data_pipeline.base.errors).
"""

import argparse
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.arc.augment import AugmentationTable, parse_names
from data_pipeline.arc.json_format import parse_grid
from data_pipeline.arc.tokens import Grid
from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import progress_bar
from data_pipeline.kind import Kind
from data_pipeline.kinds import kind_named
from data_pipeline.plain_grids import PlainGrid, PlainGrids
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.checkpoint import pointer
from hrm_dist.checkpoint.reader import read_state
from hrm_dist.config import ArchConfig
from hrm_dist.evaluation.continuous import Answering, Finished, InOrder
from hrm_dist.evaluation.halting import HaltingRule
from hrm_dist.evaluation.load_model import dataset_of_training, load_model
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.evaluation.start_options import (
    RANDOMNESS,
    Choice,
    changed_randomness,
    check_start_options,
)
from hrm_dist.evaluation.starts import Starts
from hrm_dist.evaluation.voting import VOTE_BY, Candidate, VoteBy, attempts, vote
from hrm_dist.freed_memory import keep_freed_memory
from hrm_dist.inference.examples import example_of
from hrm_dist.inference.exported import Example, is_exported, load_exported, read_exported, read_names
from hrm_dist.inference.questions import Questions, refuse_larger
from hrm_dist.model.act import ACTModel

Device = Literal["auto", "cpu", "cuda"]
_OPTION = re.compile(r"--([a-z][a-z-]*)")


class Segment(NamedTuple):
    """What the model says after a segment."""

    grid: Any
    """Written as the question."""
    q: float
    """The model's estimate of the chance that the whole answer is right, sigmoid(q_halt)."""


class Answer(NamedTuple):
    """The answer to a puzzle."""

    grid: Any
    """Written as the question."""
    q: float
    """The model's estimate of the chance that the whole answer is right; NaN if its numbers overflowed."""
    num_segments: int
    """After how many segments it was taken."""
    segments: tuple[Segment, ...] = ()
    """That after each segment, if asked for."""


class TaskAnswer(NamedTuple):
    """The answer to a test input of an ARC task."""

    attempts: tuple[list[list[int]], list[list[int]]]
    """The two grids to submit: the best two, or one twice."""
    votes: tuple[int, int]
    """How many augmentations voted for each."""
    num_votes: int
    """Of all augmentations."""
    q: tuple[float, float]
    """The mean of the model's estimates that an attempt is right, over its votes; NaN where it has none."""

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> Self:
        """Return the answer of what was predicted for a test input, best first."""
        num_votes = sum(candidate.count for candidate in candidates)
        best = [(candidate.count, candidate.mean_q) for candidate in candidates[:2]] or [(0, math.nan)]
        (first, q_of_first), (second, q_of_second) = best[0], best[-1]
        return cls(attempts(candidates), (first, second), num_votes, (q_of_first, q_of_second))


class Solver:
    """A trained model that answers; `load_solver` makes it."""

    def __init__(
        self,
        model: ACTModel,
        device: torch.device,
        kind: Kind,
        canvas: int,
        vocab_size: int,
        names: Sequence[str],
        example: Example,
    ) -> None:
        """names: of puzzle identifiers, as in identifiers.json."""
        self.model, self.kind, self.canvas = model, kind, canvas
        self._device = device
        self.example = example
        """A puzzle to try: an argument of `solve_tasks` for ARC, otherwise an element of one of `solve`."""
        self._has_grids = kind.scorer == "votes"
        self._plain = None if self._has_grids else PlainGrids.of(kind, canvas, vocab_size)
        self._names = names
        self._puzzles: dict[str, tuple[NDArray[np.int64], AugmentationTable]] | None = None

    def solve(
        self,
        grids: Sequence[PlainGrid],
        *,
        batch_size: int = 64,
        max_segments: int | None = None,
        halting: str = "none",
        starts: int = 1,
        choose: Choice | None = None,
        noise_seed: int = 0,
        every_segment: bool = False,
        progress: bool = False,
    ) -> list[Answer]:
        """Return the answers to Sudokus, mazes or whatever the model was trained on, all of its size.

        A grid is rows of digits (0: blank) or of text (`# SGo` for mazes); its answer is written as it is. batch_size:
        puzzles at a time; every_segment: keep the answer after each segment; the other options are those of
        tools.evaluate.
        """
        if self._plain is None:
            raise InputError(
                "solve: the model is of ARC tasks, whose puzzles have names; give solve_tasks {id: [test input, ...]}."
            )
        if isinstance(grids, str) or not isinstance(grids, Sequence | np.ndarray):
            raise InputError(
                f"solve: {type(grids).__name__} is no list of grids; give [grid] for a single one."
            )
        tokens = [self._plain.encode(grid, f"grid {number}") for number, grid in enumerate(grids)]
        if not tokens:
            return []
        options = self._options(batch_size, max_segments, halting, starts, choose, noise_seed, every_segment)
        finished = self._answers(Questions.of_puzzles(tokens), options, progress)
        return [self._answer(finished, number, grid) for number, grid in enumerate(grids)]

    def solve_tasks(
        self,
        tasks: Mapping[str, Sequence[Any]],
        *,
        num_aug: int | None = None,
        by: VoteBy = "count",
        batch_size: int = 64,
        max_segments: int | None = None,
        halting: str = "none",
        starts: int = 1,
        choose: Choice | None = None,
        noise_seed: int = 0,
        progress: bool = False,
    ) -> dict[str, list[TaskAnswer]]:
        """Return two attempts at each test input of ARC tasks, which have to be among those of training.

        tasks: by id the test inputs, lists of rows of colours 0 to 9. num_aug: augmentations of each task that vote
        beside the original (all that it was trained with); by: what a vote weighs, as in tools.vote; the other options
        are those of `solve`.
        """
        if not self._has_grids:
            raise InputError(
                f"solve_tasks: the model is of {self.kind.name} puzzles, which have no names; give solve [grid, ...]."
            )
        if not isinstance(tasks, Mapping):
            raise InputError(
                f"solve_tasks: {type(tasks).__name__} is no mapping; give {{id: [test input, ...]}}."
            )
        if by not in VOTE_BY:
            raise InputError(f"by={by!r}: give one of {', '.join(VOTE_BY)}.")
        if num_aug is not None and num_aug < 0:
            raise InputError(f"num_aug={num_aug}: must be at least 0.")
        options = self._options(batch_size, max_segments, halting, starts, choose, noise_seed, False)
        grids = {task: self._test_inputs(task, inputs) for task, inputs in tasks.items()}
        asked = [(*self._puzzles_of(task, num_aug), of_task) for task, of_task in grids.items() if of_task]
        if not asked:
            return {task: [] for task in tasks}
        questions = Questions.of_tasks(asked, self.canvas)
        finished = self._answers(questions, options, progress)
        predictions = Predictions(
            questions.puzzle_identifiers,
            questions.inputs,
            finished.preds,
            finished.q_halt_logits,
            questions.example_index,
            log_probs=finished.log_probs,
        )
        puzzles = {task: {"test": [{"input": grid} for grid in of_task]} for task, of_task in grids.items()}
        found = vote([predictions], self._names, puzzles, by=by).tasks
        return {
            task: [TaskAnswer.of(candidates) for candidates in of_task] for task, of_task in found.items()
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the ids of the ARC tasks that the model knows; none where puzzles have no names."""
        return tuple(self._by_task()) if self._has_grids else ()

    def _options(
        self,
        batch_size: int,
        max_segments: int | None,
        halting: str,
        starts: int,
        choose: Choice | None,
        noise_seed: int,
        every_segment: bool,
    ) -> argparse.Namespace:
        """Return the options of an evaluation; raise InputError for what cannot be."""
        for name, value in (("batch_size", batch_size), ("max_segments", max_segments)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: must be at least 1.")
        if choose is not None and choose not in get_args(Choice):
            raise InputError(f"choose={choose!r}: give one of {', '.join(get_args(Choice))}.")
        if every_segment and starts > 1:
            raise InputError("every_segment: the segments are those of a single start; leave out starts.")
        arch = self.model.arch
        with _as_arguments():
            options = argparse.Namespace(
                batch_size=batch_size,
                max_segments=max_segments,
                halting=HaltingRule.parse(halting),
                starts=starts,
                choose=choose,
                noise_seed=noise_seed,
                every_segment=every_segment,
                **dict.fromkeys(RANDOMNESS),
            )
            check_start_options(options)
            changed_randomness(options, arch)
        if options.halting.kind == "residual" and not arch.description.states:
            raise InputError(
                f"halting {halting}: architecture {arch.name} carries no state from one segment to the next; give "
                "another rule."
            )
        return options

    def _answers(self, questions: Questions, options: argparse.Namespace, progress: bool) -> Finished:
        """Return what the model says of each question, in order."""
        num = len(questions.inputs)
        rules = (options.halting.kind, options.choose)
        segment = EvaluationSegment(
            self.model, min(options.batch_size, num * options.starts), self._device,
            records=self._device.type == "cuda", has_grids=self._has_grids, residuals="residual" in rules,
        )  # fmt: skip
        answering = Answering(
            segment, questions, options.halting, options.max_segments or self.model.arch.halt_max_steps,
            keeps_trajectories=options.every_segment, num_starts=options.starts, noise_seed=options.noise_seed,
        )  # fmt: skip
        queue = InOrder(np.arange(num))
        if options.choose is None:
            answers = answering.answers(queue)
        else:
            answers = Starts(
                queue, options.starts, options.choose, answering.max_segments, has_grids=self._has_grids
            ).chosen(answering)
        found: list[Finished] = []
        with progress_bar("solve", "input", num, shown=progress) as bar:
            for finished in answers:
                found.append(finished)
                bar.update(len(finished.rows))
        return Finished.joined(found).of_rows(np.arange(num))

    def _answer(self, finished: Finished, number: int, grid: PlainGrid) -> Answer:
        assert self._plain is not None
        segments: tuple[Segment, ...] = ()
        if finished.trajectories:
            [trajectory] = finished.trajectories[number]
            segments = tuple(
                Segment(self._plain.decode(tokens, grid), _sigmoid(q))
                for tokens, q in zip(
                    trajectory.answers(finished.preds.shape[1]), trajectory.values[:, 0].tolist(), strict=True
                )
            )
        return Answer(
            self._plain.decode(finished.preds[number], grid),
            _sigmoid(float(finished.q_halt_logits[number])),
            int(finished.num_segments[number]),
            segments,
        )

    # ARC tasks

    def _test_inputs(self, task: str, inputs: Sequence[Any]) -> list[Grid]:
        if not isinstance(inputs, list | tuple | np.ndarray):
            raise InputError(
                f"task {task}: {type(inputs).__name__} is no list of test inputs; give [grid] for a single one."
            )
        grids = [
            parse_grid(
                one.tolist() if isinstance(one, np.ndarray) else one, f"task {task}, test input {number}"
            )
            for number, one in enumerate(inputs)
        ]
        for number, grid in enumerate(grids):
            refuse_larger(grid, self.canvas, f"task {task}, test input {number}")
        return grids

    def _puzzles_of(self, task: str, num_aug: int | None) -> tuple[NDArray[np.int64], AugmentationTable]:
        """Return the identifiers of a task and of its first augmentations, and what these are."""
        known = self._by_task()
        if task not in known:
            raise InputError(
                f"task {task}: the model's puzzle table has no row for it, as it was not among the {len(known):,} "
                "tasks of training, and so it cannot know what is asked for; `python -m tools.adapt` trains a model on "
                "new tasks."
            )
        identifiers, table = known[task]
        first = slice(None if num_aug is None else 1 + num_aug)
        return identifiers[first], AugmentationTable(*(column[first] for column in table))

    def _by_task(self) -> dict[str, tuple[NDArray[np.int64], AugmentationTable]]:
        """Return the identifiers of each task in order, which begin with the task itself, and the augmentations."""
        if self._puzzles is None:
            tasks, table = parse_names(self._names[1:])  # the first is the blank one
            numbers: dict[str, list[int]] = {}
            for number, task in enumerate(tasks):
                numbers.setdefault(task, []).append(number)
            self._puzzles = {
                task: (np.array(of_task) + 1, AugmentationTable(*(column[of_task] for column in table)))
                for task, of_task in numbers.items()
            }
        return self._puzzles


def load_solver(
    path: str | Path,
    *,
    data: str | Path | None = None,
    device: Device = "auto",
    initial_states: Literal["fixed", "random"] | None = None,
    segment_noise: float | None = None,
    update_noise: float | None = None,
) -> Solver:
    """Load a model, with the EMA of its weights where the run kept one, ready to answer.

    path: a folder that `tools.convert export` wrote, or a checkpoint such as runs/x/checkpoints/best, which needs the
    dataset of its training: data, or where it was then. device: auto is a GPU if there is one; on a CPU this process
    keeps memory that it has freed from then on, which saves a third of the time. The others are as in training unless
    given; they make several starts of a puzzle differ (see tools.evaluate).
    """
    folder, chosen = Path(path).expanduser(), _device(device)
    if not folder.name:
        folder = folder.resolve()  # such as "."
    keep_freed_memory(chosen)
    given = {"initial_states": initial_states, "segment_noise": segment_noise, "update_noise": update_noise}
    if is_exported(folder):
        exported = read_exported(folder)
        kind, names = kind_named(exported.kind), read_names(folder, exported)
        model = load_exported(folder, exported, chosen, _overrides(exported.arch, given))
        return Solver(
            model, chosen, kind, exported.canvas, exported.metadata.vocab_size, names, exported.example
        )
    if not folder.exists() and folder.name not in pointer.NAMES:
        raise InputError(
            f"{folder}: no such folder; give one that `python -m tools.convert export` wrote, or a run's checkpoint."
        )
    state = read_state(folder)
    with _as_arguments():
        dataset = dataset_of_training(
            folder,
            state,
            None if data is None else Path(data).expanduser(),
            "a checkpoint needs it to be run, unlike a folder of `python -m tools.convert export`",
        )
    info = load_dataset_info(dataset)
    names = json.loads(verify_document(dataset, info, "identifiers.json").read_bytes())
    overrides = _overrides(ArchConfig.model_validate(state.config["arch"]), given)
    model = load_model(folder, dataset, info.metadata("train"), ema=True, device=chosen, overrides=overrides)
    example = example_of(dataset, info, names)
    return Solver(model, chosen, kind_named(info.kind), info.canvas, info.vocab_size, names, example)


def _overrides(arch: ArchConfig, given: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of the architecture that are not as in training; raise InputError for what cannot be."""
    if given["initial_states"] not in (None, "fixed", "random"):
        raise InputError(f"initial_states={given['initial_states']!r}: give fixed or random.")
    options = argparse.Namespace(
        starts=1, choose=None, halting=HaltingRule(), noise_seed=0, max_segments=None, **given
    )
    with _as_arguments():
        check_start_options(options)
        return changed_randomness(options, arch)


def _device(device: Device) -> torch.device:
    if device not in get_args(Device):
        raise InputError(f"device={device!r}: give one of {', '.join(get_args(Device))}.")
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("device='cuda': torch sees no GPU here; give cpu, or leave it out.")
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")


@contextmanager
def _as_arguments() -> Iterator[None]:
    """Let messages about options of a command line name the arguments of Python that are called so."""
    try:
        yield
    except InputError as error:
        raise InputError(_OPTION.sub(lambda match: match[1].replace("-", "_"), str(error))) from None


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)), of any finite logit."""
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0 if logit == logit else math.nan
