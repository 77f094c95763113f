"""Adaptive voting: round by round, until the vote on each test input is settled.

A round is a row of the dataset: every task as it is, then an augmentation of each. Which rounds a test input takes
follows from its own answers alone, in the order of rounds, never from what shares the device with it: so every command,
however interrupted or shared out, comes to the same answers. Where slots would be idle, inputs run ahead of what is
settled; answers beyond the round that settled their vote are thrown away. Votes are counted, as published.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import parse_names
from data_pipeline.reader import Places, TestReader
from hrm_dist.evaluation.continuous import Finished
from hrm_dist.evaluation.output_dir import BlockRecord, Cut, InputRecord, RoundRecord
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.stopping import VoteRule
from hrm_dist.evaluation.voting import Undo

Why = Literal["settled", "all rounds"]


class _Input:
    """A test input, or several of a task that are alike and share their votes."""

    def __init__(self, places: list[tuple[int, int]], rows: list[NDArray[np.int64]]) -> None:
        self.places = places
        """(task, test input of it)."""
        self.rows = rows
        """Of each round."""
        self.num_decided = 0
        """Rounds."""
        self.num_votes_left = sum(map(len, rows))
        self.num_planned = self.num_votes_left
        self.votes = Counter[bytes]()
        self.why: Why | None = None


class Decided(NamedTuple):
    """What an answer has led to."""

    accepted: list[Finished]
    left_out: list[NDArray[np.int64]]
    """Rows that need no answer."""


class Rounds:
    """The queue of an adaptive vote on some tasks; `add` takes the answers."""

    def __init__(
        self, reader: TestReader, tests: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str],
        rule: VoteRule, tasks: Iterable[int],
    ) -> None:  # fmt: skip
        """tests: the test inputs of each task, as in test_puzzles.json; names: of identifiers; tasks: by number."""
        self._reader, self._rule, self._names = reader, rule, names
        self.inputs = list(_inputs(reader.places(), tests, tasks))
        self._input_of_row = np.full(len(reader), -1, dtype=np.int64)
        for number, one in enumerate(self.inputs):
            self._input_of_row[np.concatenate(one.rows)] = number
        self._num_rounds = np.array([len(one.rows) for one in self.inputs], dtype=np.int64)
        self._num_begun = np.zeros(len(self.inputs), dtype=np.int64)
        self._answers: dict[int, tuple[Finished, bytes | None]] = {}  # of rounds that are not decided
        self._next: list[int] = []

    def take(self, most: int) -> NDArray[np.int64]:
        """Return the next rows, of the inputs that are least far, though it be before their last rounds are decided.

        So all inputs are about as far, and few files are open.
        """
        while len(self._next) < most:
            is_open = self._num_begun < self._num_rounds
            if not is_open.any():
                break
            num_begun = np.where(is_open, self._num_begun, np.iinfo(np.int64).max)
            chosen = np.flatnonzero(num_begun == num_begun.min())[: most - len(self._next)]
            for number in chosen.tolist():
                rows = self.inputs[number].rows[self._num_begun[number]]
                self._next += [row for row in rows.tolist() if row not in self._answers]
                self._num_begun[number] += 1
        taken, self._next = self._next[:most], self._next[most:]
        return np.array(taken, dtype=np.int64)

    def add(self, finished: Finished) -> Decided:
        """Take answers; return those of rounds that were needed, and which rows no longer are."""
        decided = Decided([], [])
        if not len(finished.rows):
            return decided
        keys = self._keys(finished)
        for entry, (row, key) in enumerate(zip(finished.rows.tolist(), keys, strict=True)):
            one = self.inputs[self._input_of_row[row]]
            if one.why is None:
                self._answers[row] = finished.part(slice(entry, entry + 1)), key
        for number in np.unique(self._input_of_row[finished.rows]).tolist():
            self._decide(number, decided)
        return decided

    def _keys(self, finished: Finished) -> list[bytes | None]:
        """Return the grid that each answer votes for, in the original's colours; None where its numbers are lost."""
        identifiers: list[int] = self._reader.take(finished.rows)["puzzle_identifiers"].tolist()
        _, augmentations = parse_names([self._names[identifier] for identifier in identifiers])
        keys = Undo(augmentations).keys(finished.preds)
        is_lost = np.isnan(finished.q_halt_logits).tolist()
        return [None if lost else key for key, lost in zip(keys, is_lost, strict=True)]

    def _decide(self, number: int, decided: Decided) -> None:
        """Count the rounds of an input that are complete, in order, until its vote is settled."""
        one = self.inputs[number]
        if one.why is not None:
            return
        while one.why is None and all(row in self._answers for row in one.rows[one.num_decided].tolist()):
            for row in one.rows[one.num_decided].tolist():
                answer, key = self._answers.pop(row)
                decided.accepted.append(answer)
                one.num_votes_left -= 1
                if key is not None:
                    one.votes[key] += 1
            one.num_decided += 1
            support = [count for _, count in one.votes.most_common()]
            if one.num_decided == len(one.rows):
                one.why = "all rounds"
            elif self._rule.is_settled(support, one.num_votes_left, one.num_planned):
                one.why = "settled"
        self._num_begun[number] = max(self._num_begun[number], one.num_decided)
        if one.why is not None:
            self._num_begun[number] = self._num_rounds[number]
            rest = one.rows[one.num_decided :]
            if rest:
                rows = np.concatenate(rest)
                decided.left_out.append(rows)
                for row in (needless := set(rows.tolist())):
                    self._answers.pop(row, None)
                self._next = [row for row in self._next if row not in needless]

    def replay(self, block: Predictions) -> Decided:
        """Take answers of an earlier command, which are on disk."""
        assert block.rows is not None
        assert block.num_segments is not None
        assert block.log_probs is not None
        known = self._input_of_row[block.rows] >= 0
        answers = Finished(
            block.rows[known].astype(np.int64),
            block.num_segments[known],
            block.preds[known],
            block.q_halt_logits[known],
            block.log_probs[known],
            trajectories=[],
        )
        return self.add(answers)

    def is_complete(self, block: int, num_blocks: int) -> bool:
        """Return whether the votes on all tasks of a block are settled."""
        return all(one.why is not None for one in self._of_block(block, num_blocks))

    def _of_block(self, block: int, num_blocks: int) -> Iterator[_Input]:
        return (one for one in self.inputs if one.places[0][0] % num_blocks == block)

    def record(self, block: int, num_blocks: int, tasks: Sequence[str]) -> BlockRecord:
        """Return what there is to tell of a block that is complete; tasks: their names."""
        inputs = [
            InputRecord(
                task=tasks[task],
                group=task,
                test=test,
                rounds=one.num_decided,
                votes=one.num_planned - one.num_votes_left,
                of=one.num_planned,
                why=one.why or "all rounds",
            )
            for one in self._of_block(block, num_blocks)
            for task, test in one.places
        ]
        lasted = Counter(one.rounds for one in inputs)
        settled = Counter(one.rounds for one in inputs if one.why == "settled")
        rounds = [
            RoundRecord(
                round=number,
                asked=sum(count for last, count in lasted.items() if last > number),
                settled=settled[number + 1],
            )
            for number in range(max(lasted, default=0))
        ]
        return BlockRecord(block=block, rule=str(self._rule), rounds=rounds, inputs=inputs)


def _inputs(
    places: Places, tests: Sequence[Sequence[Mapping[str, Any]]], tasks: Iterable[int]
) -> Iterator[_Input]:
    by_task = np.split(
        order := np.argsort(places.groups, kind="stable"),
        np.flatnonzero(np.diff(places.groups[order])) + 1,
    )
    rows_of_task = {int(places.groups[rows[0]]): rows for rows in by_task if len(rows)}
    for task in tasks:
        alike: dict[str, list[int]] = {}
        for number, pair in enumerate(tests[task]):
            alike.setdefault(json.dumps(pair["input"]), []).append(number)
        rows = rows_of_task[task]
        for numbers in alike.values():
            of_input = rows[np.isin(places.examples[rows], numbers)]
            ends = np.flatnonzero(np.diff(places.rounds[of_input])) + 1
            yield _Input([(task, number) for number in numbers], np.split(of_input, ends))


def files_of_block(out: Path, block: int, cut: Cut, places: Places) -> dict[Path, NDArray[np.int64]]:
    """Return the files that a block of tasks may have, in order, and the rows of each."""
    rows = np.flatnonzero(places.groups % cut.num_blocks == block)
    numbers = places.rounds[rows] // cut.rounds_per_file
    return {
        out / f"predictions_{block:03d}_{number:05d}.npz": rows[numbers == number]
        for number in np.unique(numbers).tolist()
    }
