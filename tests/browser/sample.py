"""Reports as a page gets them, of real puzzles, whose answers are made up: the truth with some cells changed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.sources import bundled
from data_pipeline.arc.task import Task
from data_pipeline.grid_puzzles.maze import generator as maze_generator
from data_pipeline.grid_puzzles.sudoku import generator as sudoku_generator
from data_pipeline.grid_puzzles.sudoku.puzzles import BOX_SHAPES
from data_pipeline.kinds import kind_named
from tools.report.grids import tokens_of
from tools.report.payload import (
    Answer,
    Asked,
    Attempt,
    Candidate,
    Curve,
    Figure,
    Grid,
    Puzzle,
    Report,
    Result,
    Run,
    Score,
    Status,
    Trajectory,
)
from tools.report.words import words

Cells = NDArray[np.uint8]
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def spelled(cells: Cells) -> Grid:
    """Return cells [height, width] as the payload spells them."""
    return "/".join("".join(DIGITS[token] for token in row) for row in cells)


def spoiled(
    cells: Cells, num_wrong: int, choices: Sequence[int], free: NDArray[np.bool_], rng: np.random.Generator
) -> Cells:
    """Return the cells with up to so many changed to another choice, among those that are free."""
    places = np.argwhere(free)
    result = cells.copy()
    for y, x in rng.permutation(places)[:num_wrong]:
        result[y, x] = rng.choice([choice for choice in choices if choice != cells[y, x]])
    return result


class _Model:
    """Answers an input with its truth, some cells of it changed."""

    def __init__(
        self, choices: Sequence[int], seed: int, *, num_attempts: int, has_trajectories: bool
    ) -> None:
        self.choices = choices
        self.rng = np.random.default_rng(seed)
        self.num_attempts = num_attempts
        self.has_trajectories = has_trajectories

    def answer(self, truth: Cells, free: NDArray[np.bool_], errors: int, *, is_known: bool) -> Answer:
        first = spoiled(truth, errors, self.choices, free, self.rng)
        others = [spoiled(truth, errors + 1 + i, self.choices, free, self.rng) for i in range(3)]
        grids = [first, *others] if self.num_attempts > 1 else [first]
        votes = sorted(self.rng.integers(1, 40, len(grids)).tolist(), reverse=True)

        def is_right(grid: Cells) -> bool | None:
            return bool((grid == truth).all()) if is_known else None

        def note_of(num_wrong: int) -> str:
            return f"{num_wrong} of {truth.size} cells wrong" if num_wrong else "right"

        attempts = [
            Attempt(
                grid=spelled(grid), is_right=is_right(grid),
                num_wrong=int((grid != truth).sum()) if is_known else None,
                note=note_of(int((grid != truth).sum())) if is_known else "",
            )
            for grid in grids[: self.num_attempts]
        ]  # fmt: skip
        candidates = [
            Candidate(
                rank=i + 1,
                grid=spelled(grid),
                votes=votes[i],
                q=float(self.rng.uniform(0.2, 0.9)),
                is_right=is_right(grid),
            )
            for i, grid in enumerate(grids)
        ]
        note = "" if not is_known else "the truth is candidate 1" if errors == 0 else "the truth got no vote"
        trajectories = [self._trajectory(first, free)] if self.has_trajectories else []
        return Answer(
            attempts=attempts, candidates=candidates if self.num_attempts > 1 else [], num_votes=sum(votes),
            num_candidates=len(grids), note=note, trajectories=trajectories,
        )  # fmt: skip

    def _trajectory(self, last: Cells, free: NDArray[np.bool_]) -> Trajectory:
        """Eight segments, whose answers near the last one and reach it at the sixth."""
        frames: list[Grid | None] = []
        for missing in (0.6, 0.35, 0.35, 0.12, 0.05, 0, 0, 0):
            grid = spelled(spoiled(last, int(missing * free.sum()), self.choices, free, self.rng))
            frames.append(None if missing == 0 and len(frames) > 5 else grid)
        q = [0.03, 0.08, 0.15, 0.3, 0.52, 0.8, 0.84, 0.86]
        residuals = [1.4, 0.9, 0.7, 0.45, 0.3, 0.16, 0.1, 0.08]
        return Trajectory(label="attempt 1", frames=frames, q=list(q), residuals=list(residuals))


def _run(name: str, index: int, shares: tuple[float, ...], what: str, num: int) -> Run:
    rng = np.random.default_rng(index)
    steps = list(range(10, 2001, 10))
    falling = 2.5 * np.exp(-np.array(steps) / (300 + 100 * index)) + 0.02 + 0.02 * rng.random(len(steps))
    curves = [
        Curve(panel="loss", name="train/lm_loss", steps=steps, values=falling.tolist()),
        Curve(panel="loss", name="train/q_loss", steps=steps, values=(0.3 * falling + 0.01).tolist()),
        Curve(panel="accuracy", name="train/cell_accuracy", steps=steps, values=(1 - falling / 3).tolist()),
        Curve(
            panel="accuracy", name="eval/task/pass@2", steps=steps[49::50], values=[0.02, 0.08, 0.11, 0.12]
        ),
        Curve(
            panel="learning rate",
            name="train/lr",
            steps=steps,
            values=[1e-4 * min(1, s / 100) for s in steps],
        ),
    ]
    scores = [
        Score(
            name=f"input pass@{k}", meaning=f"Share of the test inputs whose truth is among the first {k} candidates.",
            subset="all tasks", value=share, low=max(share - 0.05, 0), high=share + 0.06, right=round(share * num),
            num=num, what=what, is_headline=k == 2,
        )
        for k, share in zip((2, 1, 5, 10), shares, strict=True)
    ]  # fmt: skip
    settings = {f"arch.setting_{i}": str(i) for i in range(30)} | {
        "seed": str(index),
        "lr": f"{1 + index}e-4",
        "arch.name": name,
    }
    facts = {
        "dataset": "ARC-AGI-1, 400 tasks", "subset": "evaluation", "seed": str(index), "commit": "a360620",
        "date": "2026-11-27", "hardware": "1 x H100", "minutes": f"{31 + index}", "cost": "$1.20",
    }  # fmt: skip
    figures = (
        [Figure(title="Participation ratio", caption="z_H uses more directions than z_L.", uri=DOT)]
        if index == 0
        else []
    )
    return Run(name=name, facts=facts, settings=settings, scores=scores, curves=curves, figures=figures)


def _status(rng: np.random.Generator) -> tuple[Status, int]:
    drawn = rng.random()
    return ("solved", 0) if drawn < 0.3 else ("close", 1) if drawn < 0.5 else ("unsolved", 7)


def _result(status: Status, answers: list[Answer], is_known: bool, rng: np.random.Generator) -> Result:
    wrong = [answer.attempts[0].num_wrong for answer in answers]
    sizes = [answer.attempts[0].grid.replace("/", "") for answer in answers]
    return Result(
        status=status if is_known else "unknown",
        cells_right=1 - sum(w or 0 for w in wrong) / sum(map(len, sizes)) if is_known else None,
        agreement=float(rng.uniform(0.1, 1)), num_segments=float(rng.integers(1, 17)), answers=answers,
    )  # fmt: skip


def _report(kind: str, puzzles: list[Puzzle], names: Sequence[str], canvas: int, title: str) -> Report:
    look = kind_named(kind).look(canvas)
    shares = [(0.116, 0.087, 0.174, 0.217), (0.203, 0.15, 0.26, 0.3), (0.05, 0.04, 0.06, 0.08)]
    runs = [_run(name, i, shares[i % 3], "test inputs", 69) for i, name in enumerate(names)]
    return Report(
        title=title, kind=kind, made="2026-11-27 19:40, hrm-dist 0.1.0",
        tokens=tokens_of(kind_named(kind), look), box=look.box,
        blank=None if look.blank is None else DIGITS[look.blank], words=words(kind_named(kind), "count"),
        runs=runs, puzzles=puzzles, num_puzzles=len(puzzles),
    )  # fmt: skip


def arc_report(
    num_tasks: int,
    names: Sequence[str] = ("hrm",),
    *,
    num_hidden: int = 0,
    has_trajectories: bool = True,
    title: str = "ARC-AGI-1",
) -> Report:
    """Return a report of the first tasks of ARC-AGI-1's evaluation set; the truth of the last ones is hidden."""
    tasks = [task for task in bundled("arc-agi-1") if task.held_out][:num_tasks]
    models = [
        _Model(range(10), i, num_attempts=2, has_trajectories=has_trajectories) for i in range(len(names))
    ]
    puzzles = [
        _arc_puzzle(task, i, models, is_known=i < num_tasks - num_hidden) for i, task in enumerate(tasks)
    ]
    return _report("arc", puzzles, names, 30, title)


def _arc_puzzle(task: Task, index: int, models: Sequence[_Model], *, is_known: bool) -> Puzzle:
    results: list[Result | None] = []
    outputs = [test.output for test in task.tests if test.output is not None]
    for model in models:
        status, errors = _status(model.rng)
        answers = [
            model.answer(out, np.ones_like(out, dtype=bool), errors, is_known=is_known) for out in outputs
        ]
        results.append(_result(status, answers, is_known, model.rng))
    grids = [grid for pair in task.pairs for grid in pair if grid is not None]
    inputs = [
        Asked(grid=spelled(test.input), truth=spelled(out) if is_known else None)
        for test, out in zip(task.tests, outputs, strict=True)
    ]
    return Puzzle(
        id=task.id, title=task.id, split=("evaluation", "training")[index % 4 == 3],
        subsets=["tuned on"] if index % 3 == 0 else [],
        height=max(len(grid) for grid in grids), width=max(len(grid[0]) for grid in grids),
        demonstrations=[(spelled(pair.input), spelled(pair.output)) for pair in task.demos if pair.output is not None],
        inputs=inputs, results=results,
    )  # fmt: skip


def sudoku_report(num_puzzles: int, side: int = 9, names: Sequence[str] = ("trm",)) -> Report:
    """Return a report of generated Sudokus."""
    made = sudoku_generator.generate(
        sudoku_generator.Recipe(BOX_SHAPES[side]), "test", np.arange(num_puzzles)
    )
    inputs, labels = (np.asarray(grids).reshape(-1, side, side) + 1 for grids in (made.inputs, made.labels))
    return _filled_report("sudoku", inputs, labels, range(2, 2 + side), 1, names)


def maze_report(num_puzzles: int, side: int = 10, names: Sequence[str] = ("trm",)) -> Report:
    """Return a report of generated mazes."""
    made = maze_generator.generate(maze_generator.MazeRecipe(side, side), "test", np.arange(num_puzzles))
    inputs, labels = (np.asarray(cells).reshape(-1, side, side) for cells in (made.inputs, made.labels))
    return _filled_report("maze", inputs, labels, (2, 5), 2, names)


def _filled_report(
    kind: str, inputs: Cells, labels: Cells, choices: Sequence[int], blank: int, names: Sequence[str]
) -> Report:
    models = [_Model(choices, i, num_attempts=1, has_trajectories=True) for i in range(len(names))]
    puzzles = []
    for i, (given, truth) in enumerate(zip(inputs.astype(np.uint8), labels.astype(np.uint8), strict=True)):
        results: list[Result | None] = []
        for model in models:
            status, errors = _status(model.rng)
            results.append(
                _result(status, [model.answer(truth, given == blank, errors, is_known=True)], True, model.rng)
            )
        puzzles.append(
            Puzzle(
                id=f"{kind}-{i:03d}", title="", split="test", subsets=[], height=given.shape[0], width=given.shape[1],
                demonstrations=[], inputs=[Asked(grid=spelled(given), truth=spelled(truth))], results=results,
            )
        )  # fmt: skip
    return _report(kind, puzzles, names, inputs.shape[1], kind.capitalize())
