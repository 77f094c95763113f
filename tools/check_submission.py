"""Check an ARC Prize submission before it is handed in; score it where the solutions are known.

SUBMISSION is what tools.vote writes: {task id: [{"attempt_1": grid, "attempt_2": grid}, ...]}, an entry per test input,
in order. Every task and test input has to be there, no other task, and nothing but the two attempts; a grid has 1 to 30
rows of 1 to 30 whole numbers from 0 to 9. The first thing that is wrong is named, with exit code 2.

--tasks takes the competition's challenges, a folder of tasks, or the dataset folder that was voted on. Outputs that
come with the tasks, or in solutions beside the challenges, are scored by; --solutions names another file of them.

A test input is right if either attempt is. The organiser's own scorers take the mean over tasks, while Kaggle's page
speaks of the share of all test inputs: both are printed. Those scorers refuse less than this check: to them a missing
task costs nothing, a third attempt counts, and 1.0 and true pass for 1. Intervals are at 95 %: of the mean over tasks
that of a bootstrap over tasks, as tools.vote has it, of the shares Wilson's. The last line is one JSON object.

examples:
  python -m tools.check_submission submission.json --tasks arc-agi_test_challenges.json
  python -m tools.check_submission submission.json --tasks arc-agi_evaluation_challenges.json \\
      --solutions arc-agi_evaluation_solutions.json --by-task
  python -m tools.check_submission runs/demo/submission.json --tasks data/demo
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.arc.json_format import as_list, as_object, describe, parse_grid, read_json
from data_pipeline.arc.sources import from_path
from data_pipeline.arc.tokens import MAX_GRID_SIDE, NUM_COLOURS
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code, unreadable
from data_pipeline.base.paths import path_argument
from data_pipeline.base.table import table
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.evaluation.intervals import Interval, interval_text, share_interval, task_intervals
from hrm_dist.evaluation.voting import EMPTY_ATTEMPT

JsonGrid = list[list[int]]
Truths = dict[str, list[JsonGrid | None]]
"""Of each task, the output of each test input in order; None where it is hidden."""

ATTEMPTS = ("attempt_1", "attempt_2")
SCORE_MEANINGS = {
    "task": "mean over tasks of the share of a task's test inputs that are right (the organiser's scorers)",
    "input": "share of test inputs that are right (Kaggle's page)",
    "task_all": "share of tasks with every test input right",
}


class _Object(dict[str, Any]):
    """An object of a submission, which knows if a key stood in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        times = Counter(key for key, _ in pairs)
        self.repeated = [key for key in times if times[key] > 1]


def read_submission(file: Path) -> Any:
    """Read a submission, well formed or not; raise InputError unless it is plain JSON.

    Stricter than what reads tasks: no compressed file, no other encoding than UTF-8, no second document.
    """
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError as error:
        reason = f"no UTF-8 text ({error.reason} at byte {error.start})"
        raise InputError(f"{file}: is {reason}; give the submission itself, as plain JSON.") from None
    if text.startswith("\ufeff"):
        raise InputError(
            f"{file}: begins with a byte order mark, which JSON must not have; save it as UTF-8 without one."
        )
    if not text.strip():
        raise InputError(f"{file}: is empty; write the submission again.")
    return parse(text, file)


def parse(text: str, file: Path) -> Any:
    """Parse JSON whose objects know if a key stood in them twice."""
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except RecursionError:
        raise InputError(f"{file}: is nested too deeply for a submission; write it again.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: is not JSON ({error}); write the submission again.") from None
    except ValueError:
        digits = sys.get_int_max_str_digits()
        raise InputError(
            f"{file}: holds a number of more than {digits:,} digits; write the submission again."
        ) from None


def read_tasks(path: Path) -> Truths:
    """Read the tasks that a submission has to answer; raise InputError."""
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; give the competition's challenges, a folder of tasks, or the "
            "dataset that was voted on."
        )
    return _tasks_of_dataset(path) if (path / "test_puzzles.json").exists() else _tasks_of_files(path)


def _tasks_of_dataset(folder: Path) -> Truths:
    """Return the tasks that a dataset holds out, with those that tools.vote submits though they were left out of it."""
    file = folder / "test_puzzles.json"
    left_out: dict[str, int] = {}
    if (folder / "dataset.json").exists():
        info = load_dataset_info(folder)
        file, left_out = verify_document(folder, info, file.name), info.left_out_tests
    tasks = {} if read_json(file, "build the dataset again") == {} else _tasks_of_files(file)
    tasks.update((task, [None] * num_inputs) for task, num_inputs in left_out.items())
    if not tasks:
        raise InputError(
            f"{file}: holds no task to answer: the dataset holds none out, or is of Sudokus or mazes; give the tasks "
            "that were voted on."
        )
    return tasks


def _tasks_of_files(path: Path) -> Truths:
    tasks: Truths = {}
    for task in from_path(path, "evaluation").tasks:
        if task.id in tasks:
            raise InputError(f"{task.origin}: task {task.id} is in {path} twice; give one of its files.")
        tasks[task.id] = [None if pair.output is None else pair.output.tolist() for pair in task.tests]
    return tasks


def read_solutions(file: Path, tasks: Truths) -> Truths:
    """Return the truths that a file of solutions, {task id: [grid, ...]}, has of the tasks; raise InputError."""
    solutions = as_object(read_json(file, "give --solutions a JSON file, {task id: [grid, ...]}"))
    truths: Truths = {}
    for task, known in tasks.items():
        outputs = as_list(solutions.get(task))
        if len(outputs) != len(known):
            raise InputError(
                f"{file}: task {task}: {describe(solutions.get(task))} is not a list of {len(known)} outputs, one per "
                "test input; give the solutions of the same release as the tasks."
            )
        truths[task] = [
            parse_grid(output, f"{file}: task {task}: output {i}").tolist()
            for i, output in enumerate(outputs)
        ]
        for i, (output, other) in enumerate(zip(truths[task], known, strict=True)):
            if other is not None and output != other:
                raise InputError(
                    f"{file}: task {task}: output {i} differs from the one that comes with the tasks; give the "
                    "solutions of the same release."
                )
    return truths


def faults(submission: Any, tasks: Truths, tasks_path: Path) -> Iterator[str]:
    """Yield of each wrong entry what is wrong and what to do: in the file's order, then the tasks that are missing."""
    if not isinstance(submission, _Object):
        yield f"{describe(submission)} is no submission, which is an object: task id -> list of entries."
        return
    for task, entries in submission.items():
        place = f"task {task if task.isprintable() else describe(task)}"
        if task in submission.repeated:
            yield f"{place}: stands there twice; keep one of them."
        elif task not in tasks:
            yield f"{place}: is no task of {tasks_path}; take it out, or give the tasks that were answered."
        elif not isinstance(entries, list):
            yield f"{place}: {describe(entries)} is no list; give a list with an entry per test input."
        elif len(entries) != len(tasks[task]):
            num_inputs = len(tasks[task])
            yield (
                f"{place}: entries: {len(entries)}, but test inputs: {num_inputs}; give one entry for each, in order."
            )
        else:
            for i, entry in enumerate(entries):
                yield from _entry_faults(entry, f"{place}: test input {i}")
    for task in tasks:
        if task not in submission:
            yield f"task {task}: is missing; add it, with {EMPTY_ATTEMPT} where there is no answer."


def _entry_faults(entry: Any, place: str) -> Iterator[str]:
    wanted = " and ".join(ATTEMPTS)
    if not isinstance(entry, _Object):
        yield f"{place}: {describe(entry)} is no entry; give an object with {wanted}."
        return
    for name in entry.repeated:
        yield f"{place}: {describe(name)} stands there twice; keep one of them."
    for name in entry:
        if name not in ATTEMPTS:
            yield f"{place}: {describe(name)} is none of {wanted}; take it out."
    for name in ATTEMPTS:
        if name not in entry:
            yield f"{place}: {name} is missing; repeat the other attempt, or give {EMPTY_ATTEMPT}."
        elif fault := _grid_fault(entry[name]):
            yield f"{place}: {name}: {fault}"


def _grid_fault(grid: Any) -> str | None:
    """Return what is wrong with a grid and what to do, if anything is."""
    if not as_list(grid):
        return f"{describe(grid)} is no grid; give a list of rows, {EMPTY_ATTEMPT} for no answer."
    for r, row in enumerate(grid):
        if not as_list(row):
            return f"row {r}: {describe(row)} is no row; give a list of colours."
        if len(row) != len(grid[0]):
            return f"row {r} has {len(row)} cells where row 0 has {len(grid[0])}; make all rows equally long."
        for c, cell in enumerate(row):
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:  # True is an int to isinstance
                return (
                    f"row {r}, column {c}: {describe(cell)} is no colour; write a whole number from 0 to 9."
                )
    height, width = len(grid), len(grid[0])
    if max(height, width) > MAX_GRID_SIDE:
        return f"the grid is {height} x {width}; give one of at most {MAX_GRID_SIDE} x {MAX_GRID_SIDE}."
    return None


def refuse_faults(submission: Any, file: Path, tasks: Truths, tasks_path: Path) -> None:
    """Raise InputError unless a submission is as the competition wants it."""
    found = list(faults(submission, tasks, tasks_path))
    if found:
        more = f" Further wrong entries: {len(found) - 1}." if found[1:] else ""
        raise InputError(f"{file}: {found[0]}{more}")


class Counts(NamedTuple):
    """What a submission consists of."""

    tasks: int
    inputs: int
    alike: int
    """Test inputs with two equal attempts, other than these:"""
    unanswered: int
    """Test inputs with nothing but the placeholder for no answer."""


def count(submission: Mapping[str, Any]) -> Counts:
    """Count what a well-formed submission consists of."""
    pairs = [[entry[name] for name in ATTEMPTS] for entries in submission.values() for entry in entries]
    num_unanswered = sum(first == second == EMPTY_ATTEMPT for first, second in pairs)
    num_equal = sum(first == second for first, second in pairs)
    return Counts(len(submission), len(pairs), num_equal - num_unanswered, num_unanswered)


def right_attempts(submission: Mapping[str, Any], truths: Truths) -> dict[str, list[int | None]]:
    """Return, by task, which attempt is the first right one of each test input; 0 for none, None for a hidden truth."""

    def first_right(entry: Mapping[str, JsonGrid], truth: JsonGrid | None) -> int | None:
        if truth is None:
            return None
        return next((number for number, name in enumerate(ATTEMPTS, start=1) if entry[name] == truth), 0)

    return {task: list(map(first_right, submission[task], outputs)) for task, outputs in truths.items()}


def score(right: Mapping[str, Sequence[int | None]]) -> dict[str, tuple[float, int]]:
    """Return the points of each kind of score, and how many were to be had; none where no truth is known."""
    known = _known(right)
    if not known:
        return {}
    num_tasks = len(known)
    return {
        "task": (math.fsum(map(_share, known)), num_tasks),
        "input": (sum(map(sum, known)), sum(map(len, known))),
        "task_all": (sum(map(all, known)), num_tasks),
    }


def score_intervals(right: Mapping[str, Sequence[int | None]]) -> dict[str, Interval]:
    """Return the interval of each kind of score: a bootstrap's of the mean over tasks, Wilson's of the shares."""
    intervals = {kind: share_interval(*gained) for kind, gained in score(right).items()}
    if intervals:
        [over_tasks] = task_intervals([[_share(numbers) for numbers in _known(right)]])
        intervals["task"] = over_tasks._replace(value=intervals["task"].value)  # the sum of which is exact
    return intervals


def _known(right: Mapping[str, Sequence[int | None]]) -> list[list[bool]]:
    """Return of each task with a known truth which of its test inputs are right."""
    known = ([bool(number) for number in numbers if number is not None] for numbers in right.values())
    return [numbers for numbers in known if numbers]


def _share(numbers: Sequence[bool]) -> float:
    return sum(numbers) / len(numbers)


def summary(
    counts: Counts, points: Mapping[str, tuple[float, int]], intervals: Mapping[str, Interval]
) -> dict[str, Any]:
    """Return the JSON object; scores are called as in the votes', whose second attempt they include."""
    scores: dict[str, float] = {}
    if points:
        scores = {"inputs": points["input"][1], "tasks": points["task"][1]}
    scores |= {f"{kind}/pass@{len(ATTEMPTS)}": interval.value for kind, interval in intervals.items()}
    bounds = {
        f"{kind}/pass@{len(ATTEMPTS)}": [round(interval.low, 6), round(interval.high, 6)]
        for kind, interval in intervals.items()
        if not math.isnan(interval.low)  # over a single task
    }
    return {**counts._asdict(), "scores": scores, "intervals": bounds}


def run(args: argparse.Namespace) -> int:
    """Check, count and score; print it."""
    file, tasks_path = Path(args.submission), Path(args.tasks)
    submission = read_submission(file)
    truths = read_tasks(tasks_path)
    refuse_faults(submission, file, truths, tasks_path)
    if args.solutions:
        truths = read_solutions(Path(args.solutions), truths)
    counts = count(submission)
    print(f"{file}: well formed, an entry for every test input of {tasks_path}")
    print(
        f"{counts.tasks} tasks, {counts.inputs} test inputs: {counts.alike} with two equal attempts, "
        f"{counts.unanswered} with nothing but {EMPTY_ATTEMPT}"
    )
    right = right_attempts(submission, truths)
    points = score(right)
    intervals = score_intervals(right)
    if points:
        print(
            f"scored by the outputs that are known: {points['task'][1]} of {counts.tasks} tasks, "
            f"{points['input'][1]} of {counts.inputs} test inputs"
        )
        print(score_table(points, intervals))
    else:
        print("not scored, as no output is known; give --solutions to score it")
    result = summary(counts, points, intervals)
    if args.by_task:
        print("\n".join(task_table(right)))
        result["right_attempts"] = right
    print(json.dumps(result))
    return 0


def score_table(points: Mapping[str, tuple[float, int]], intervals: Mapping[str, Interval]) -> str:
    """Return a line for each kind of score, with what it means below."""
    rows = [("score", "right", "of", "share")]
    for kind, (gained, num) in points.items():
        rows.append((kind, f"{gained:.2f}".removesuffix(".00"), str(num), interval_text(intervals[kind])))
    meanings = [f"{kind}: {meaning}" for kind, meaning in SCORE_MEANINGS.items()]
    return "\n".join([*table(rows, "<>>>"), *meanings])


def task_table(right: Mapping[str, Sequence[int | None]]) -> list[str]:
    """Return a line for each task: how many test inputs are right, and by which attempts."""
    words = {None: "hidden", 0: "wrong", 1: ATTEMPTS[0], 2: ATTEMPTS[1]}
    rows = [
        (task, f"{sum(map(bool, numbers))} of {len(numbers)}", ", ".join(words[number] for number in numbers))
        for task, numbers in right.items()
    ]
    return table([("task", "right", "each test input"), *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_parser("tools.check_submission", __doc__)
    add = parser.add_argument
    add("submission", type=path_argument, metavar="SUBMISSION", help="the file to be handed in")
    add("--tasks", type=path_argument, required=True, metavar="PATH", help="the tasks that it has to answer")
    add(
        "--solutions",
        type=path_argument,
        metavar="F",
        help="JSON {task id: [grid, ...]}: what would be right",
    )
    add("--by-task", action="store_true", help="show of each task which test inputs are right")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
