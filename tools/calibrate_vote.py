"""Find when a vote is settled: how many predictions could have been saved, and what that would have changed.

PREDICTIONS are those of a full evaluation of ARC tasks, whose votes are replayed round by round (a row of the dataset,
one augmentation of every task, is one). Votes are counted, as published. After each round a rule looks whether a test
input is settled:

  exact              the first two can no longer change. It saves little: while no other candidate has votes, the second
                     place is open to the end
  confident:LIMIT:D  the two attempts are expected to miss at most LIMIT of the full vote. D, the design effect, is how
                     many times the first half of the votes varies as much as a half drawn at random: more than 1 where
                     augmentations that err together follow one another. It is never below 1, and does not look at what
                     is right

A task comes out differently if one of its test inputs is solved by the two attempts of one of the two votes only. So
the competition's score changes by no more than the share of such tasks, while attempts that are wrong either way may
change, and right ones change places. Limits are tested from the most cautious to the laxest, each on whole replays,
until the bound on that share (Clopper-Pearson, one-sided at 95 %) exceeds --most-changed; the last one before goes to
--out, `exact` if there is none. Half of the tasks calibrate (drawn with a fixed seed), or those of a subset; the others
test what was found. The rule is for models and tasks like these.

Prints a table and, as the last line, a JSON object, which also has Wilson's intervals of the shares of test inputs. A
line of the table compares the votes that a rule ended with the full ones:

  saved              the share of the predictions that were not needed
  first same         of the test inputs, those with the same first attempt
  both same          those with the same two attempts, in either order
  solved same        those that both votes solve, or neither
  solved             how many the ended votes solve, and how many the full ones
  tasks changed      how many tasks came out differently, and of how many
  at most            the bound on the share of such tasks, which is held against --most-changed

examples:
  python -m tools.calibrate_vote runs/demo/predictions --data data/demo --most-changed 0.1 --out runs/demo/stopping.json
  python -m tools.calibrate_vote runs/arc1/predictions --data data/arc1 --subsets halves.json --on "tuned on" \\
      --out runs/arc1/stopping.json
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.files import replace_file
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.table import table
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.evaluation.given_folders import GivenFolders
from hrm_dist.evaluation.intervals import CONFIDENCE, share_interval
from hrm_dist.evaluation.predictions import prediction_files, read_predictions, refuse_lost
from hrm_dist.evaluation.stopping import Calibration, VoteRule
from hrm_dist.evaluation.voting import VoteCounter, grid_number
from tools.vote import (
    add_predictions,
    read_identifiers,
    read_subsets,
    read_test_puzzles,
    refuse_inputs_as_outputs,
)

LIMITS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Of confident rules, the most cautious first."""
EXACT = VoteRule("exact")
COLUMNS = ("saved", "first same", "both same", "solved same", "solved", "tasks changed", "at most")
"""Of the table, as the description at the top explains them."""


class InputVotes(NamedTuple):
    """The votes on one test input, in order of rounds."""

    task: str
    truth: int
    """The right grid, as `grid_number` has it."""
    grids: npt.NDArray[np.uint64]  # [n] for which grid
    q: npt.NDArray[np.float64]  # [n]
    rounds: npt.NDArray[np.int64]  # [n] in which round, from 0


class Stop(NamedTuple):
    """Where a rule ends a vote."""

    num_votes: int
    attempts: tuple[int, ...]
    """The grids of the first two candidates."""


class Replay(NamedTuple):
    """What became of one test input."""

    task: str
    truth: int
    full: Stop
    stops: dict[VoteRule, Stop]


class Agreement(NamedTuple):
    """How the votes that a rule ended compare with the full ones."""

    rule: VoteRule
    saved: float
    """The share of predictions that were not needed."""
    num_inputs: int
    # Of the test inputs, how many have
    first_same: int
    both_same: int
    """The same two attempts, in either order."""
    solved_same: int
    solved: int
    solved_in_full: int
    num_tasks: int
    num_changed: int
    """Tasks with an input that only one of the two votes solves."""
    bound: float
    """On the share of such tasks."""


def read_votes(predictions: Sequence[Path], data: Path) -> tuple[list[InputVotes], list[str]]:
    """Return the votes on each test input with a known truth, and the checkpoints that made them."""
    folders = GivenFolders(predictions)
    for folder, evaluation in folders.evaluations.items():
        if evaluation.vote_rule != "none":
            raise InputError(
                f"{folder}: its votes ended early (by {evaluation.vote_rule}), but only a full vote tells what that "
                "changes; give predictions of tools.evaluate without --vote-until."
            )
    info = load_dataset_info(data)
    identifiers = read_identifiers(verify_document(data, info, "identifiers.json"))
    test_puzzles = read_test_puzzles(verify_document(data, info, "test_puzzles.json"))
    counter = VoteCounter(identifiers, test_puzzles)
    checkpoint_ids = set[str]()
    for block in read_predictions(prediction_files(predictions)):
        refuse_lost(block)
        folders.add(block)
        counter.add(block)
        if block.checkpoint_id is not None:
            checkpoint_ids.add(block.checkpoint_id)
    for text in folders.unanswered():
        raise InputError(f"{text}: only a full vote tells what an early end would change.")
    num_foreign = counter.skipped["unknown_task"] + counter.skipped["unknown_input"]
    if num_foreign:
        raise InputError(
            f"{data}: {num_foreign} predictions are for none of its test inputs; give the dataset that they were made "
            "from."
        )
    return list(_votes_of_inputs(counter, test_puzzles)), sorted(checkpoint_ids)


def _votes_of_inputs(counter: VoteCounter, test_puzzles: dict[str, Any]) -> Iterator[InputVotes]:
    votes = counter.votes()
    asked = np.unique(votes[["identifier", "example", "input"]])
    if len(asked) < len(votes):
        raise InputError(
            f"{len(votes) - len(asked)} predictions answer an input that another has answered, so they come from "
            "several evaluations; give those of one."
        )
    votes = votes[np.argsort(votes["input"], kind="stable")]
    for task, numbers in counter.inputs_of_task.items():
        for number, pair in zip(numbers, test_puzzles[task]["test"], strict=True):
            first, end = np.searchsorted(votes["input"], [number, number + 1])
            if pair.get("output") is None or first == end:
                continue
            own = votes[first:end]
            yield InputVotes(
                task,
                grid_number(pair["output"]),
                own["grid"],
                own["q"],
                np.unique(own["identifier"], return_inverse=True)[
                    1
                ],  # a task's identifiers are in order of rows
            )


def design_effect(inputs: Sequence[InputVotes]) -> float:
    """Return how many times the first half of the votes varies as much as a half drawn at random; at least 1."""
    squares = expected = 0.0
    for votes in inputs:
        num, half = len(votes.grids), len(votes.grids) // 2
        _, candidates = np.unique(votes.grids, return_inverse=True)
        counts = np.bincount(candidates)
        seen = np.bincount(candidates[:half], minlength=len(counts))
        shares = counts / num
        squares += float(((seen - half * shares) ** 2).sum())
        # The variance of the hypergeometric distribution.
        expected += float((half * shares * (1 - shares)).sum()) * (num - half) / max(1, num - 1)
    return max(1.0, squares / expected) if expected else 1.0


def replay(votes: InputVotes, rules: Sequence[VoteRule]) -> Replay:
    """Let the rules look at a test input's vote after every round.

    Rules of one name come in order, the most cautious first: what it has settled, all others have.
    """
    _, first_votes, candidates = np.unique(votes.grids, return_index=True, return_inverse=True)
    candidates = np.argsort(np.argsort(first_votes))[candidates]  # in order of appearance
    grids = votes.grids[np.sort(first_votes)]
    num_votes = len(candidates)
    pending = {name: [rule for rule in rules if rule.name == name] for name in {rule.name for rule in rules}}
    stops: dict[VoteRule, Stop] = {}

    def ranking(num_seen: int) -> tuple[list[int], tuple[int, ...]]:
        """Return the counts, best first, and the first two grids; ties as in a vote."""
        counts = np.bincount(candidates[:num_seen])
        mean_q = np.bincount(candidates[:num_seen], weights=votes.q[:num_seen]) / counts
        order = np.lexsort((-mean_q, -counts))
        return counts[order].tolist(), tuple(grids[order[:2]].tolist())

    for num_seen in np.cumsum(np.bincount(votes.rounds)).tolist():
        counts, attempts = ranking(num_seen)
        for waiting in pending.values():
            while waiting and waiting[-1].is_settled(counts, num_votes - num_seen, num_votes):
                stops[waiting.pop()] = Stop(num_seen, attempts)
        if not any(pending.values()):
            break
    return Replay(votes.task, votes.truth, Stop(num_votes, ranking(num_votes)[1]), stops)


def agreement(rule: VoteRule, replays: Sequence[Replay]) -> Agreement:
    """Compare the votes that a rule ended with the full ones."""
    from scipy.stats import binomtest  # a second to load

    pairs = [(replay.stops[rule], replay.full) for replay in replays]
    solved = [
        (r.truth in early.attempts, r.truth in full.attempts)
        for r, (early, full) in zip(replays, pairs, strict=True)
    ]
    tasks = {replay.task for replay in replays}
    changed = {replay.task for replay, (early, full) in zip(replays, solved, strict=True) if early != full}
    test = binomtest(len(changed), len(tasks), alternative="less")
    return Agreement(
        rule,
        saved=1 - sum(early.num_votes for early, _ in pairs) / sum(full.num_votes for _, full in pairs),
        num_inputs=len(replays),
        first_same=sum(early.attempts[0] == full.attempts[0] for early, full in pairs),
        both_same=sum(set(early.attempts) == set(full.attempts) for early, full in pairs),
        solved_same=sum(early == full for early, full in solved),
        solved=sum(early for early, _ in solved),
        solved_in_full=sum(full for _, full in solved),
        num_tasks=len(tasks),
        num_changed=len(changed),
        bound=float(test.proportion_ci(CONFIDENCE, method="exact").high),
    )


def choose(agreements: Sequence[Agreement], most_changed: float) -> Agreement | None:
    """Return the last of those, from the most cautious on, whose bounds hold without a gap; None if not even the first.

    A sequence fixed beforehand needs no correction for the number of tests.
    """
    chosen = None
    for found in agreements:
        if found.bound > most_changed:
            break
        chosen = found
    return chosen


def split_tasks(
    inputs: Sequence[InputVotes], subset: Sequence[str] | None
) -> tuple[list[InputVotes], list[InputVotes]]:
    """Return the test inputs of the tasks that calibrate, a subset or a seeded half, and those that test."""
    if subset is None:
        tasks = sorted({votes.task for votes in inputs})
        subset = [tasks[i] for i in np.random.default_rng(0).permutation(len(tasks))[: (len(tasks) + 1) // 2]]
    chosen = set(subset)
    return [v for v in inputs if v.task in chosen], [v for v in inputs if v.task not in chosen]


def agreement_table(agreements: Sequence[Agreement]) -> list[str]:
    """Return a line for each rule."""
    rows = [["", *COLUMNS]]
    for found in agreements:
        same = (found.first_same, found.both_same, found.solved_same)
        shares = [f"{number / found.num_inputs:.1%}" for number in same]
        solved = f"{found.solved} of {found.solved_in_full}"
        changed = f"{found.num_changed} of {found.num_tasks}"
        rows.append([str(found.rule), f"{found.saved:.1%}", *shares, solved, changed, f"{found.bound:.1%}"])
    return table(rows, "<>", indent="  ")


def agreement_numbers(found: Agreement) -> dict[str, Any]:
    """Return the same as numbers: shares of test inputs with their intervals."""
    same = {
        name: share_interval(getattr(found, name), found.num_inputs)
        for name in ("first_same", "both_same", "solved_same")
    }
    shares = {name: [round(number, 6) for number in interval] for name, interval in same.items()}
    return {
        **found._asdict(),
        "rule": str(found.rule),
        "saved": round(found.saved, 6),
        "bound": round(found.bound, 6),
    } | shares


def run(args: argparse.Namespace) -> int:
    """Replay, calibrate, test, write, print."""
    refuse_inputs_as_outputs(args, {"--out": args.out})
    subset = _subset(args)
    inputs, checkpoint_ids = read_votes(args.predictions, args.data)
    calibrating, testing = split_tasks(inputs, subset)
    if not calibrating:
        whose = "no task" if subset is None else f"no task of subset {args.on!r}"
        raise InputError(
            f"{args.data}: {whose} has both predictions and a test output that is known, but calibrating asks which "
            "inputs the votes solve; give predictions of tasks with known outputs."
        )
    effect = design_effect(calibrating)
    rules = [EXACT, *(VoteRule("confident", limit, round(effect, 3)) for limit in LIMITS)]
    sets: dict[str, list[Agreement]] = {}
    with progress_bar("replay", "test input", len(calibrating) + len(testing), shown=True) as progress:
        for name, chosen in (("calibrated", calibrating), ("tested", testing)):
            replays = []
            for votes in chosen:
                replays.append(replay(votes, rules))
                progress.update()
            sets[name] = [agreement(rule, replays) for rule in rules] if replays else []
    chosen = choose(sets["calibrated"][1:], args.most_changed)
    result = _calibration(
        args, chosen or sets["calibrated"][0], sorted({v.task for v in calibrating}), checkpoint_ids
    )
    replace_file(args.out, result.model_dump_json(indent=1).encode())
    print(_report(args, result, sets, effect))
    numbers = {name: [agreement_numbers(found) for found in agreements] for name, agreements in sets.items()}
    print(json.dumps({**result.model_dump(exclude={"calibrated_on"}), **numbers}))
    return 0


def _subset(args: argparse.Namespace) -> list[str] | None:
    if (args.subsets is None) != (args.on is None):
        raise InputError(
            "--subsets and --on: give both, a file of subsets and the name of the one that calibrates."
        )
    if args.subsets is None:
        return None
    info = load_dataset_info(args.data)
    subsets = read_subsets(
        args.subsets, read_test_puzzles(verify_document(args.data, info, "test_puzzles.json"))
    )
    if args.on not in subsets:
        raise InputError(
            f"--on {args.on!r}: no such subset in {args.subsets}; it has {', '.join(map(repr, subsets))}."
        )
    return subsets[args.on]


def _calibration(
    args: argparse.Namespace, found: Agreement, tasks: list[str], checkpoint_ids: list[str]
) -> Calibration:
    from hrm_dist.checkpoint.reader import (
        dataset_identity,
    )  # it loads torch: after everything that may be refused

    return Calibration(
        rule=str(found.rule),
        most_changed=args.most_changed,
        confidence=CONFIDENCE,
        num_tasks=found.num_tasks,
        num_changed=found.num_changed,
        bound=found.bound,
        calibrated_on=tasks,
        checkpoint_ids=checkpoint_ids,
        dataset_sha256=dataset_identity(args.data, load_dataset_info(args.data).metadata("train"))["sha256"],
    )


def _report(
    args: argparse.Namespace, result: Calibration, sets: dict[str, list[Agreement]], effect: float
) -> str:
    whose = "a seeded half" if args.on is None else f"subset {args.on!r}"
    lines = []
    for name, agreements in sets.items():
        if agreements:
            of = whose if name == "calibrated" else "the other tasks"
            lines.append(
                f"{name} on {of}: {agreements[0].num_tasks} tasks, {agreements[0].num_inputs} test inputs"
            )
            lines += agreement_table(agreements)
    lines.append(f"design effect of the order of votes: {effect:.2f} (1: none)")
    if result.vote_rule == EXACT:
        needed = int(np.ceil(np.log(1 - CONFIDENCE) / np.log(1 - args.most_changed)))
        lines.append(
            f"no limit is certain to change at most {args.most_changed:.1%} of the tasks, for which at least {needed} "
            f"tasks without a change are needed; {args.out}: exact"
        )
    else:
        lines.append(
            f"{args.out}: {result.rule}, which changes at most {result.bound:.1%} of tasks like these, at 95 % "
            f"confidence ({result.num_changed} of {result.num_tasks} here)"
        )
        solved = sets["calibrated"][0].solved_in_full
        if solved < 2 * result.bound * result.num_tasks:
            lines.append(
                "note: the full vote solves "
                + (f"only {solved} of" if solved else "none of")
                + " these test inputs, so the bound "
                + ("leaves room to lose half of them" if solved else "says nothing of what would be lost")
                + "; a stronger model or more tasks would tell more"
            )
    return "\n".join(lines)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_parser("tools.calibrate_vote", __doc__)
    add_predictions(parser)
    add = parser.add_argument
    add(
        "--data",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="the dataset that they were made from",
    )
    add("--out", type=path_argument, required=True, metavar="F", help="the file to write, for tools.evaluate")
    add("--subsets", type=path_argument, metavar="F", help="JSON {name: [task ids]}")
    add("--on", metavar="NAME", help="the subset that calibrates; all other tasks test (a seeded half)")
    add("--most-changed", type=_share, default=0.05, metavar="X",
        help="the largest share of tasks that may come out differently (%(default)s)")  # fmt: skip
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
