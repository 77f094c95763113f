"""Vote over augmented predictions: write an ARC Prize submission and print its scores.

PREDICTIONS are the *.npz files of tools.evaluate, or folders of them. The tasks come from the dataset folder
that they were made from. Every task and every test input gets two attempts, predicted or not; so does
every held-out task that the dataset's sources had and --canvas or --limit-groups left out. Scores are
printed as a table and, as the last line, as one JSON object; inputs with a hidden truth are not scored. An interval
is Wilson's, at 95 %, over test inputs: what other inputs might have given; the object also has those of a bootstrap
over tasks, which checkpoint, dataset and rules the scores are of. It is written where --scores says; in a run folder
tools.results reads it. Without --scores, counted votes (--by count) on one whole, complete folder of tools.evaluate
leave it there as scores.json.

A grid is ranked by its number of votes, then by its mean of sigmoid(q_halt), as published; --by has votes weigh
something else, with which these two decide ties.

examples:
  python -m tools.vote runs/demo/predictions --data data/demo --out runs/demo/submission.json
  python -m tools.vote preds.0.npz preds.1.npz --identifiers identifiers.json --tasks test_puzzles.json \\
      --out submission.json
  python -m tools.vote runs/demo/predictions --data data/demo --out submission.json --subsets halves.json \\
      --scores runs/demo/scores.json
  python -m tools.vote runs/demo/predictions --data data/demo --out submission.json --by probability
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.arc.json_format import parse_task, read_json
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.files import atomic_write, refuse_outputs
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.table import table
from data_pipeline.schema import (
    DOCUMENTS,
    SPLITS,
    WINDOWS,
    dataset_sha256,
    load_dataset_info,
    verify_document,
)
from hrm_dist.evaluation.given_folders import GivenFolders
from hrm_dist.evaluation.intervals import share_interval, task_intervals
from hrm_dist.evaluation.output_dir import RECORD, Evaluation, read_evaluation
from hrm_dist.evaluation.predictions import Predictions, prediction_files, read_predictions, refuse_lost
from hrm_dist.evaluation.scores import SCORES_FILE, count_text
from hrm_dist.evaluation.voting import (
    VOTE_BY,
    WEIGHT_MEANINGS,
    VoteBy,
    Votes,
    scores,
    submission,
    task_shares,
    vote,
)

ALL_TASKS = "all tasks"
_MOST_NAMED = 3
_OF_DATASET = "give the file of the dataset that the predictions were made from"
NOT_PREDICTIONS = ("planned", "rounds", "segments", RECORD)
"""What tools.evaluate writes beside predictions."""
SCORE_MEANINGS = {
    "task": "mean over tasks of the share of a task's test inputs that are right (the competition's score)",
    "input": "share of test inputs that are right",
    "task_all": "share of tasks with every test input right",
}


class VoteResult(NamedTuple):
    """A finished vote with what it was about."""

    votes: Votes
    test_puzzles: dict[str, Any]
    scores: dict[str, dict[str, float]]
    """By set of tasks: all of them, then each subset."""
    subsets: dict[str, list[str]]
    checkpoint_ids: list[str]
    unanswered: list[str]
    """Of each whole folder that is not complete: which inputs are not answered, and what to do."""
    left_out: dict[str, int]
    """Held-out tasks that are not in the dataset, and how many test inputs each has."""
    evaluated_on: str | None
    """The dataset's test split, by name and hash; None where that is not known."""
    trained_on: str | None
    dataset_sha256: str | None
    by: VoteBy
    evaluations: list[Evaluation]
    """What tools.evaluate says of the folders of the predictions."""


def add_predictions(parser: argparse.ArgumentParser) -> None:
    """Add the prediction files to read."""
    parser.add_argument(
        "predictions",
        nargs="+",
        type=path_argument,
        metavar="PREDICTIONS",
        help="*.npz files, or folders of them",
    )


def add_vote_options(
    parser: argparse.ArgumentParser,
    data_help: str = "dataset folder with identifiers.json and test_puzzles.json",
) -> None:
    """Add what a vote is made from beside predictions; the report takes the same."""
    add = parser.add_argument
    add(
        "--data",
        type=path_argument,
        metavar="DIR",
        help=data_help,
    )
    add(
        "--identifiers",
        type=path_argument,
        metavar="F",
        help="identifiers.json, in place of the one in --data",
    )
    add("--tasks", type=path_argument, metavar="F", help="test_puzzles.json, in place of the one in --data")
    add("--subsets", type=path_argument, metavar="F", help="JSON {name: [task ids]}: scores of these, too")
    add(
        "--by",
        choices=VOTE_BY,
        default="count",
        help="what a vote weighs (%(default)s, as published): "
        + "; ".join(f"{by}: {text}" for by, text in WEIGHT_MEANINGS.items()),
    )
    add(
        "--leave-out-lost",
        action="store_true",
        help="vote without predictions that are NaN (by default an error, as infinite q_halt_logits are)",
    )
    add("--mix-checkpoints", action="store_true", help="pool predictions of several checkpoints in one vote")


def refuse_inputs_as_outputs(args: argparse.Namespace, outputs: Mapping[str, Path | None]) -> None:
    """Raise InputError for an output that would take the place of what is read, of what lies with it, or of another."""
    given = {Path(path) for path in args.predictions}
    folders = {path if path.is_dir() else path.parent for path in given}
    inputs = {folder / name for folder in folders for name in NOT_PREDICTIONS}
    inputs |= given - folders | {file for folder in folders for file in folder.glob("*.npz")}
    if args.data is not None:
        inputs |= {Path(args.data) / name for name in (*SPLITS, *DOCUMENTS, WINDOWS, "dataset.json")}
    others = (getattr(args, name, None) for name in ("identifiers", "tasks", "subsets", "metrics"))
    refuse_outputs(outputs, inputs | {path for path in others if path is not None})


def run_vote(args: argparse.Namespace) -> VoteResult:
    """Read what `add_predictions` and `add_vote_options` name, check it, vote and score."""
    identifiers = read_identifiers(data_file(args, "identifiers", "identifiers.json"))
    tasks_file = data_file(args, "tasks", "test_puzzles.json")
    test_puzzles = read_test_puzzles(tasks_file)
    if not test_puzzles:
        raise InputError(
            f"{tasks_file}: holds no task to vote on: the dataset holds "
            "none out, or is of Sudokus or mazes, whose accuracy tools.evaluate prints."
        )
    subsets = read_subsets(Path(args.subsets), test_puzzles) if args.subsets else {}
    folders = GivenFolders(args.predictions)
    sha256 = refuse_other_dataset(folders.evaluations, args.data)
    checkpoint_ids = set[str]()

    def blocks() -> Iterator[Predictions]:
        files = prediction_files(args.predictions)
        reader = read_predictions(files, allow_mixed_checkpoints=args.mix_checkpoints)
        with progress_bar("vote", "file", len(files), shown=True) as progress:
            for block in reader:
                if not args.leave_out_lost:
                    refuse_lost(block)
                if block.checkpoint_id is not None:
                    checkpoint_ids.add(block.checkpoint_id)
                folders.add(block)
                yield block
                progress.update()

    votes = vote(
        blocks(), identifiers, test_puzzles, by=args.by, allow_mixed_checkpoints=args.mix_checkpoints
    )
    if not votes.counted:
        given = ", ".join(map(str, args.predictions))
        why_not = _not_counted(votes) | {"are of no puzzle (identifier 0)": votes.padding}
        found = "; ".join(f"{count} {what}" for what, count in why_not.items() if count)
        raise InputError(
            f"{given}: no prediction is a vote on a task of {tasks_file} ({found or 'there are none'}), so there is "
            "nothing to submit; give predictions that a sound checkpoint made from this dataset, or their own dataset."
        )
    if args.tasks is None:  # which may name some of the tasks
        _refuse_foreign(votes, tasks_file)
    by_set = {ALL_TASKS: scores(votes, test_puzzles)}
    by_set |= {name: scores(votes, test_puzzles, tasks=tasks) for name, tasks in subsets.items()}
    info = None if args.tasks or not is_dataset(args.data) else load_dataset_info(args.data)
    return VoteResult(
        votes, test_puzzles, by_set, subsets, sorted(checkpoint_ids), folders.unanswered(),
        left_out=info.left_out_tests if info else {},
        evaluated_on=(info and info.subset("test")) or None,
        trained_on=(info and info.subset("train")) or None,
        dataset_sha256=sha256, by=args.by, evaluations=list(folders.evaluations.values()),
    )  # fmt: skip


def refuse_other_dataset(evaluations: Mapping[Path, Evaluation], data: Path | str | None) -> str | None:
    """Return the dataset's digest; raise InputError for predictions of another one.

    A copy of identifiers.json and test_puzzles.json alone has none, nor have evaluations of earlier versions.
    """
    if data is None or not is_dataset(data) or not (Path(data) / "train" / "index.json").exists():
        return _in_common(evaluations.values(), "dataset_sha256")
    expected = dataset_sha256(data)
    for folder, evaluation in evaluations.items():
        found = evaluation.dataset_sha256
        if found is not None and found != expected:
            raise InputError(
                f"{folder / RECORD}: dataset_sha256 is {found[:12]}..., but that of {data} is {expected[:12]}..., so "
                "the predictions are of another dataset; give theirs with --data."
            )
    return expected


def _in_common(evaluations: Iterable[Evaluation], name: str) -> Any:
    """Return what evaluations have in a field, if that is the same in all."""
    found = {getattr(evaluation, name) for evaluation in evaluations}
    return found.pop() if len(found) == 1 else None


def _refuse_foreign(votes: Votes, tasks_file: Path) -> None:
    num = votes.unknown_task + votes.unknown_input
    if num:
        example = votes.examples.get("unknown_task") or votes.examples["unknown_input"]
        raise InputError(
            f"{example}: answers an input that {tasks_file} does not have ({num:,} such predictions), so it was made "
            "from another dataset; give that with --data, or, to vote on some tasks only, these with --tasks."
        )


def read_identifiers(path: Path) -> list[str]:
    """Read identifiers.json: the name of each identifier."""
    names = read_json(path, _OF_DATASET)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{path}: must be a list of names, one for each identifier; build the dataset again."
        )
    return names


def read_test_puzzles(path: Path) -> dict[str, Any]:
    """Read test_puzzles.json and check every grid; a test output may be absent or null: a hidden truth."""
    puzzles = read_json(path, _OF_DATASET)
    if not isinstance(puzzles, dict):
        raise InputError(f"{path}: must be an object, task id -> {{train, test}}; build the dataset again.")
    for task, pairs in puzzles.items():
        parse_task(pairs, task, held_out=True, origin=str(path))
    return puzzles


def read_subsets(path: Path, test_puzzles: dict[str, Any]) -> dict[str, list[str]]:
    """Read named lists of task ids, all of them in test_puzzles."""
    subsets = read_json(path, "give --subsets a JSON file, {name: [task ids]}")
    if not isinstance(subsets, dict) or not all(isinstance(tasks, list) for tasks in subsets.values()):
        raise InputError(f"{path}: must be an object, name -> list of task ids.")
    if ALL_TASKS in subsets:
        raise InputError(f"{path}: {ALL_TASKS!r} is the name of the whole set; give the subset another name.")
    for name, tasks in subsets.items():
        if not tasks:
            raise InputError(f"{path}: subset {name!r} lists no task; name some, or leave it out.")
        for task in tasks:
            if not isinstance(task, str) or task not in test_puzzles:
                raise InputError(
                    f"{path}: subset {name!r} lists {task!r}, which is no task of the data; remove it."
                )
    return subsets


def pass_columns(values: dict[str, float]) -> list[str]:
    """Return what scores were computed at, pass@1 to oracle; none where no truth is known."""
    return [key.removeprefix("task/") for key in values if key.startswith("task/")]


def score_table(by_set: dict[str, dict[str, float]]) -> str:
    """Return percentages, a block for each set of tasks and a line for each kind of score."""
    lines = []
    for name, values in by_set.items():
        lines.append(f"{name}: {values['tasks']} tasks, {values['inputs']} test inputs scored")
        columns = pass_columns(values)
        if not columns:
            lines.append("  no test input has a known truth")
            continue
        count = count_text(values, with_interval=True)
        lines.append(f"  {count}")
        rows = [
            (kind, *(f"{values[f'{kind}/{column}']:.2%}" for column in columns)) for kind in SCORE_MEANINGS
        ]
        lines += table([("", *columns), *rows], "<>", indent="  ")
    lines += [f"{kind}: {meaning}" for kind, meaning in SCORE_MEANINGS.items()]
    return "\n".join(lines)


def summary(result: VoteResult) -> dict[str, Any]:
    """Return the scores and what they are of.

    `intervals` are Wilson's of the shares of test inputs, `task_intervals` a bootstrap's over tasks, and `rules` by
    what the model stopped thinking, by what the vote on a test input did, and what a vote weighed.
    """
    names = {name: None for evaluation in result.evaluations for name in evaluation.rules()}
    return {
        "evaluated_on": result.evaluated_on,
        "trained_on": result.trained_on,
        "scores": result.scores,
        "intervals": {name: input_intervals(values) for name, values in result.scores.items()},
        "task_intervals": {name: _task_intervals(result, name) for name in result.scores},
        "predictions": {
            name: count for name, count in result.votes._asdict().items() if isinstance(count, int)
        },
        "checkpoint_ids": result.checkpoint_ids,
        "checkpoint_sha256": _in_common(result.evaluations, "checkpoint_sha256"),
        "dataset_sha256": result.dataset_sha256,
        "planned_sha256": _in_common(result.evaluations, "planned_sha256"),
        "rules": {"vote": result.by} | {name: _in_common(result.evaluations, name) for name in names},
    }


def input_intervals(values: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return the bounds of the interval of each share of test inputs."""
    keys = [f"input/{column}" for column in pass_columns(values)]
    intervals = {
        key: share_interval(round(values[key] * values["inputs"]), round(values["inputs"])) for key in keys
    }
    return {key: (round(interval.low, 6), round(interval.high, 6)) for key, interval in intervals.items()}


def _task_intervals(result: VoteResult, name: str) -> dict[str, tuple[float, float]]:
    """Return the bounds of the interval of each mean over the tasks of a set, if these are several."""
    if result.scores[name]["tasks"] < 2:
        return {}
    shares = task_shares(result.votes, result.test_puzzles, tasks=result.subsets.get(name))
    return {
        key: (round(interval.low, 6), round(interval.high, 6))
        for key, interval in zip(shares, task_intervals(list(shares.values())), strict=True)
    }


def warn_of_ignored(result: VoteResult) -> None:
    """Say on stderr what did not become a vote, and what went without one."""
    for text in ignored(result):
        print(f"warning: {text}", file=sys.stderr)
    for text in notes(result):
        print(f"note: {text}", file=sys.stderr)


def ignored(result: VoteResult) -> list[str]:
    """Return what did not become a vote, and what went without one."""
    votes = result.votes
    found = [f"{count} predictions {what}; ignored" for what, count in _not_counted(votes).items()]
    found += result.unanswered
    if result.left_out:
        found.append(
            f"{len(result.left_out)} held-out tasks of the sources are not in the dataset (--canvas, "
            "--limit-groups): neither predicted nor scored; submitted as [[0]]"
        )
    by_input = [candidates for task in votes.tasks.values() for candidates in task]
    num_without = sum(not candidates for candidates in by_input)
    if num_without:
        found.append(f"{num_without} test inputs have no prediction; submitted as [[0]]")
    num_empty = sum(bool(some) and not any(c.grid.size for c in some[:2]) for some in by_input)
    if num_empty:
        found.append(f"{num_empty} test inputs are answered by empty grids; submitted as [[0]]")
    return found


def notes(result: VoteResult) -> list[str]:
    """Return what is as it should be, and may surprise."""
    found: list[str] = []
    if result.votes.repeated:
        found.append(f"{result.votes.repeated} predictions occur twice in the files; counted once")
    rules = sorted({evaluation.vote_rule for evaluation in result.evaluations} - {"none"})
    if rules and result.by != "count":
        found.append(f"votes ended by {', '.join(rules)}, which judges counted votes, not --by {result.by}")
    return found


def _not_counted(votes: Votes) -> dict[str, int]:
    """Return how many predictions are no votes, by the reason."""
    reasons = {
        "are for tasks that are not in the data": votes.unknown_task,
        "match no test input of their task, as those of another dataset": votes.unknown_input,
        "are of a model whose numbers were lost (NaN)": votes.lost,
    }
    return {what: count for what, count in reasons.items() if count}


def data_file(args: argparse.Namespace, option: str, name: str) -> Path:
    """Return a document of the dataset: what an option gives, or the file `name` of --data."""
    given = getattr(args, option)
    if given is None and args.data is None:
        raise InputError(
            f"{name} is missing; give the dataset folder with --data, or the file with --{option}."
        )
    if given is not None:
        return Path(given)
    if not Path(args.data).is_dir():
        raise InputError(
            f"{args.data}: no such folder; give the dataset that the predictions were made from."
        )
    if not is_dataset(args.data):
        return Path(args.data) / name
    return verify_document(args.data, load_dataset_info(args.data), name)


def is_dataset(folder: Path | str) -> bool:
    """Return whether a folder is a dataset, and not merely a copy of some of its documents."""
    return (Path(folder) / "dataset.json").exists()


def run(args: argparse.Namespace) -> int:
    """Vote, write the submission, print the scores."""
    scores_file = args.scores or _scores_file(args)
    refuse_inputs_as_outputs(args, {"--scores": scores_file, "--out": args.out})
    result = run_vote(args)
    if result.unanswered and args.scores is None:
        scores_file = None
    attempts = json.dumps(submission(result.votes, result.left_out), separators=(",", ":"))
    content = json.dumps(summary(result))
    with ExitStack() as stack:  # none is replaced unless both can be written
        stack.enter_context(atomic_write(args.out)).write(attempts.encode())
        if scores_file:
            stack.enter_context(atomic_write(scores_file)).write(f"{content}\n".encode())
    warn_of_ignored(result)
    if result.evaluated_on:
        print(f"evaluated on {result.evaluated_on}, trained on {result.trained_on or 'nothing'}")
    if result.by != "count":
        print(f"a vote weighs {WEIGHT_MEANINGS[result.by]}")
    print(score_table(result.scores))
    print(f"submission: {args.out}")
    if scores_file:
        print(f"scores: {scores_file}")
    print(content)
    return 0


def _scores_file(args: argparse.Namespace) -> Path | None:
    """Return where the scores of one whole folder of tools.evaluate belong, if these are counted votes on it."""
    [folder, *others] = args.predictions
    if others or args.by != "count" or read_evaluation(folder) is None or not os.access(folder, os.W_OK):
        return None
    return folder / SCORES_FILE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_parser("tools.vote", __doc__)
    add_predictions(parser)
    add_vote_options(parser)
    parser.add_argument(
        "--out", type=path_argument, required=True, metavar="F", help="the submission file to write"
    )
    parser.add_argument(
        "--scores",
        type=path_argument,
        metavar="F",
        help="where to write the JSON object "
        f"(default: {SCORES_FILE} of one complete folder of tools.evaluate, for --by count; else nowhere)",
    )
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
