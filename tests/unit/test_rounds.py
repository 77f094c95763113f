"""Adaptive voting: which rounds a test input takes follows from its own answers alone."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.arc.augment import apply, parse_name
from data_pipeline.arc.tokens import encode
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.continuous import Finished
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.rounds import Rounds
from hrm_dist.evaluation.stopping import VoteRule

RULES = (VoteRule("none"), VoteRule("exact"), VoteRule("confident", 0.05, 1.5))


class World:
    """A dataset, and made answers to all its inputs."""

    def __init__(self, dataset: Path, seed: int) -> None:
        self.reader = TestReader(dataset)
        self.names = json.loads((dataset / "identifiers.json").read_text())
        puzzles = json.loads((dataset / "test_puzzles.json").read_text())
        self.tests = [puzzles[name]["test"] for name in self.reader.group_names]
        self.places = self.reader.places()
        self.identifiers = self.reader.take(np.arange(len(self.reader)))["puzzle_identifiers"].numpy()
        # Of three grids, by chances that differ between tasks: some votes settle soon, others late.
        generator = np.random.default_rng(seed)
        chances = generator.dirichlet([0.7, 0.4, 0.2], len(self.tests))
        self.grids = np.array([generator.choice(3, p=chances[group]) for group in self.places.groups])
        self.is_lost = generator.random(len(self.reader)) < 0.1

    def rounds(self, rule: VoteRule) -> Rounds:
        return Rounds(self.reader, self.tests, self.names, rule, range(len(self.tests)))

    def answers(self, rows: np.ndarray) -> Finished:
        canvas = self.reader.info.canvas
        grids = [np.full((2, 2), self.grids[row] + 1, dtype=np.uint8) for row in rows]
        moved = [
            apply(grid, parse_name(self.names[self.identifiers[row]])[1])
            for row, grid in zip(rows, grids, strict=True)
        ]
        values = np.where(self.is_lost[rows], np.nan, 0).astype(np.float32)
        preds = np.array([encode(grid, canvas) for grid in moved]).reshape(len(rows), -1)
        return Finished(rows, np.ones(len(rows), dtype=np.int32), preds, values, values, [])


@pytest.fixture(scope="module")
def world(dataset: Path) -> World:
    return World(dataset, seed=5)


def alone(world: World, rule: VoteRule) -> dict[tuple[int, int], int]:
    """How many rounds each test input takes by itself."""
    places, needed = world.places, {}
    for group, tests in enumerate(world.tests):
        for test in range(len(tests)):
            rows = np.flatnonzero((places.groups == group) & (places.examples == test))
            votes = Counter[int]()
            for number, row in enumerate(rows, start=1):
                votes.update([] if world.is_lost[row] else [int(world.grids[row])])
                support = sorted(votes.values(), reverse=True)
                needed[group, test] = number
                if rule.name != "none" and rule.is_settled(support, len(rows) - number, len(rows)):
                    break
    return needed


def run(
    rounds: Rounds, world: World, num_slots: int, draws: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Answer in any order, with so many under way; return accepted and left out rows."""
    under_way: list[int] = []
    accepted: list[int] = []
    left_out: list[int] = []
    while True:
        under_way += rounds.take(num_slots - len(under_way)).tolist()
        if not under_way:
            return accepted, left_out
        finished = [under_way.pop(int(draws.integers(len(under_way)))) for _ in range(min(2, len(under_way)))]
        decided = rounds.add(world.answers(np.array(finished)))
        accepted += [row for part in decided.accepted for row in part.rows.tolist()]
        left_out += [row for part in decided.left_out for row in part.tolist()]


def lasted(rounds: Rounds) -> dict[tuple[int, int], int]:
    return {place: one.num_decided for one in rounds.inputs for place in one.places}


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(num_slots=st.integers(1, 200), seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_rounds_depend_neither_on_slots_nor_on_the_order_of_answers(
    world: World, rule: VoteRule, num_slots: int, seed: int
) -> None:
    rounds = world.rounds(rule)
    accepted, left_out = run(rounds, world, num_slots, np.random.default_rng(seed))
    expected = alone(world, rule)
    assert lasted(rounds) == expected
    assert sorted(accepted + left_out) == list(range(len(world.reader)))
    places = world.places
    for row in accepted:
        assert places.rounds[row] < expected[int(places.groups[row]), int(places.examples[row])]


def test_the_made_answers_settle_some_votes_and_not_all_at_once(world: World) -> None:
    for rule in RULES[1:]:
        assert len(set(alone(world, rule).values())) > 1
        assert alone(world, rule) != alone(world, RULES[0])


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_was_answered_before_is_not_asked_again(world: World, rule: VoteRule) -> None:
    first = world.rounds(rule)
    accepted, _ = run(first, world, 16, np.random.default_rng(0))
    some = np.array(sorted(accepted)[::2])
    rounds = world.rounds(rule)
    answers = world.answers(some)
    replayed = rounds.replay(answers_on_disk(world, answers))
    again, _ = run(rounds, world, 16, np.random.default_rng(1))
    assert lasted(rounds) == lasted(first)
    known = [row for part in replayed.accepted for row in part.rows.tolist()]
    assert sorted(known + again) == sorted(accepted)


def answers_on_disk(world: World, answers: Finished) -> Predictions:
    batch = world.reader.take(answers.rows)
    return Predictions(
        batch["puzzle_identifiers"].numpy(),
        batch["inputs"].numpy(),
        answers.preds,
        answers.q_halt_logits,
        batch["example_index"].numpy(),
        rows=answers.rows.astype(np.int32),
        num_segments=answers.num_segments,
        log_probs=answers.log_probs,
    )


def test_inputs_run_ahead_only_where_slots_would_be_idle(world: World) -> None:
    rounds = world.rounds(VoteRule("none"))
    num_inputs = len(rounds.inputs)
    rows = rounds.take(num_inputs)
    assert set(world.places.rounds[rows]) == {0}
    assert len(rounds.take(3)) == 3  # nothing is decided, and slots are free
    assert not len(world.rounds(VoteRule("none")).take(0))


def test_an_input_that_thinks_for_long_falls_no_round_behind(world: World) -> None:
    """Otherwise its files would stay open, and a kill would lose what the others have answered since."""
    rounds = world.rounds(VoteRule("none"))
    slow, furthest = rounds.take(1).tolist(), 0
    for _ in range(30):
        rows = rounds.take(3)
        if not len(rows):
            break
        fast = rows[world.places.groups[rows] != world.places.groups[slow[0]]]
        slow += [row for row in rows.tolist() if row not in fast]
        rounds.add(world.answers(fast))
        furthest = max([furthest, *world.places.rounds[rows].tolist()])
    assert furthest > 2
    assert max(world.places.rounds[slow]) >= furthest - 1


def test_a_record_tells_why_each_input_needed_no_more(world: World) -> None:
    rule = RULES[2]
    rounds = world.rounds(rule)
    run(rounds, world, 16, np.random.default_rng(0))
    record = rounds.record(0, 1, world.reader.group_names)
    needed = alone(world, rule)
    assert {(one.group, one.test): one.rounds for one in record.inputs} == needed
    total = Counter(world.places.groups.tolist())
    for one in record.inputs:
        assert one.task == world.reader.group_names[one.group]
        assert (one.why == "settled") == (one.votes < one.of)
        assert one.of * len(world.tests[one.group]) == total[one.group]
    assert [line.asked for line in record.rounds] == [
        sum(last > number for last in needed.values()) for number in range(max(needed.values()))
    ]
    assert sum(line.settled for line in record.rounds) == sum(one.why == "settled" for one in record.inputs)
