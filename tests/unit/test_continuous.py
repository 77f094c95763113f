"""Continuous batching: every answer is what its rule gives alone, whatever shares the slots."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipeline.arc.tokens import crop_sizes
from data_pipeline.base.errors import InputError
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.continuous import Answering, Finished, InOrder
from hrm_dist.evaluation.evaluate import answer
from hrm_dist.evaluation.halting import HaltingRule, Said
from hrm_dist.evaluation.segment import EvaluationSegment, grid_cells
from hrm_dist.evaluation.trajectories import Trajectory
from hrm_dist.model.act import ACTModel
from tests.unit.models import halting_model

CPU = torch.device("cpu")
NUM_ROWS, MAX_SEGMENTS = 24, 6
RULES = ("none", "learned", "q:1", "unchanged:1", "unchanged:2", "residual:0.5")


class Alone(NamedTuple):
    """Every segment of every input, in lockstep."""

    preds: NDArray[np.uint8]  # [segments, N, S]
    said: list[Said]
    log_probs: NDArray[np.float32]  # [segments, N]


@pytest.fixture(scope="module")
def reader(dataset: Path) -> TestReader:
    return TestReader(dataset)


@pytest.fixture(scope="module")
def model(dataset: Path) -> ACTModel:
    return halting_model(dataset)


@pytest.fixture(scope="module")
def alone(model: ACTModel, reader: TestReader) -> Alone:
    batch = reader.take(np.arange(NUM_ROWS))
    segment = EvaluationSegment(model, NUM_ROWS, CPU, has_grids=True, residuals=True)
    segment.refill({**batch}, torch.ones(NUM_ROWS, dtype=torch.bool))
    results = []
    for _ in range(MAX_SEGMENTS):
        segment()
        results.append(segment.results())
    return Alone(
        np.stack([result.preds.numpy() for result in results]),
        [result.said() for result in results],
        np.stack([result.log_probs.numpy() for result in results]),
    )


def finished(answering: Answering, rows: NDArray[np.int64]) -> Finished:
    """All that an evaluation finishes, by row."""
    blocks = list(answering.answers(InOrder(rows)))
    trajectories = [one for block in blocks for one in block.trajectories]
    arrays = [np.concatenate(parts) for parts in zip(*(block[:-1] for block in blocks), strict=True)]
    order = np.argsort(arrays[0])
    assert len(np.unique(arrays[0])) == len(rows)
    return Finished(
        *(array[order] for array in arrays), [trajectories[i] for i in order] if trajectories else []
    )


def halting_segment(alone: Alone, rule: str, row: int) -> int:
    """After which segment a rule halts an input, from 1: written out, one input at a time."""
    kind, _, number = rule.partition(":")
    num_same = 0
    for n, said in enumerate(alone.said):
        q, q_continue, residual = said.q_halt_logits[row], said.q_continue_logits[row], said.residuals[row]
        grids = [grid(alone.preds[m][row]) for m in (n - 1, n) if m >= 0]
        num_same = num_same + 1 if len(grids) == 2 and np.array_equal(*grids) else 0
        halts = {
            "none": False,
            "learned": q > q_continue,
            "q": kind == "q" and q > float(number),
            "unchanged": kind == "unchanged" and num_same >= int(number),
            "residual": kind == "residual" and residual < float(number),
        }[kind]
        if halts:
            return n + 1
    return MAX_SEGMENTS


def grid(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    canvas = int(len(tokens) ** 0.5)
    [height], [width] = crop_sizes(tokens[None])
    return tokens.reshape(canvas, canvas)[:height, :width]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("num_slots", [3, NUM_ROWS + 3])
@pytest.mark.parametrize("rule", RULES)
def test_every_answer_is_that_of_its_rule_run_alone(
    model: ACTModel, reader: TestReader, alone: Alone, rule: str, num_slots: int, lag: int
) -> None:
    segment = EvaluationSegment(model, num_slots, CPU, has_grids=True, residuals=True)
    answering = Answering(segment, reader, HaltingRule.parse(rule), MAX_SEGMENTS, lag=lag)
    got = finished(answering, np.arange(NUM_ROWS))
    expected = np.array([halting_segment(alone, rule, row) for row in range(NUM_ROWS)])
    np.testing.assert_array_equal(got.num_segments, expected)
    last = (expected - 1, np.arange(NUM_ROWS))
    np.testing.assert_array_equal(got.preds, alone.preds[last])
    q_halt_logits = np.stack([said.q_halt_logits for said in alone.said])[last]
    np.testing.assert_allclose(got.q_halt_logits, q_halt_logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.log_probs, alone.log_probs[last], rtol=1e-3, atol=1e-3)


def test_rules_halt_some_inputs_early_and_not_all_alike(alone: Alone) -> None:
    """Otherwise the tests here would show little."""
    for rule in RULES[1:]:
        segments = {halting_segment(alone, rule, row) for row in range(NUM_ROWS)}
        assert len(segments) > 1, rule


@pytest.mark.parametrize("num_slots", [8, 16])
def test_without_halting_answers_are_those_in_lockstep_bit_for_bit(
    model: ACTModel, reader: TestReader, num_slots: int
) -> None:
    lockstep = list(answer(EvaluationSegment(model, num_slots, CPU), reader.batches(num_slots, 0, NUM_ROWS)))
    most = model.arch.halt_max_steps
    answering = Answering(EvaluationSegment(model, num_slots, CPU), reader, HaltingRule(), most)
    got = finished(answering, np.arange(NUM_ROWS))
    for name in ("preds", "q_halt_logits"):
        expected = np.concatenate([getattr(answers.predictions, name) for answers in lockstep])
        np.testing.assert_array_equal(getattr(got, name), expected)
    assert answering.num_launched == -(-NUM_ROWS // num_slots) * most


@pytest.mark.parametrize("lag", [0, 1])
def test_finished_sequences_make_room_at_once(
    model: ACTModel, reader: TestReader, alone: Alone, lag: int
) -> None:
    """No more slots' segments than inputs need, but for the lag and the end, when nothing is left to begin."""
    num_slots = 4
    segment = EvaluationSegment(model, num_slots, CPU, has_grids=True, residuals=True)
    answering = Answering(segment, reader, HaltingRule.parse("unchanged:1"), MAX_SEGMENTS, lag=lag)
    got = finished(answering, np.arange(NUM_ROWS))
    late = lag * (got.num_segments < MAX_SEGMENTS).sum()
    at_the_end = (num_slots - 1) * (MAX_SEGMENTS + lag)
    assert answering.num_launched * num_slots <= got.num_segments.sum() + late + at_the_end


@pytest.mark.parametrize("lag", [0, 1])
def test_every_segment_s_answer_can_be_kept(
    model: ACTModel, reader: TestReader, alone: Alone, lag: int
) -> None:
    segment = EvaluationSegment(model, 7, CPU, has_grids=True, residuals=True)
    rule = HaltingRule.parse("unchanged:2")
    answering = Answering(segment, reader, rule, MAX_SEGMENTS, lag=lag, keeps_trajectories=True)
    got = finished(answering, np.arange(NUM_ROWS))
    for row, [trajectory] in enumerate(got.trajectories):
        answers = replayed(trajectory, got.preds.shape[1])
        np.testing.assert_array_equal(answers, alone.preds[: got.num_segments[row], row])


def replayed(trajectory: Trajectory, num_cells: int) -> NDArray[np.uint8]:
    answer, answers, start = np.zeros(num_cells, dtype=np.uint8), [], 0
    for num_changes in trajectory.num_changes.tolist():
        changes = slice(start, start + num_changes)
        answer[trajectory.cells[changes]] = trajectory.tokens[changes]
        answers.append(answer.copy())
        start += num_changes
    return np.array(answers)


def test_the_cells_of_a_grid_are_found_as_a_vote_finds_them() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 14, (500, 25), dtype=np.uint8)
    tokens[:300][generator.random((300, 25)) < 0.8] = 5
    heights, widths = crop_sizes(tokens)
    cells = grid_cells(torch.from_numpy(tokens)).numpy().reshape(-1, 5, 5)
    line = np.arange(5)
    expected = (line[:, None] < heights[:, None, None]) & (line < widths[:, None, None])
    np.testing.assert_array_equal(cells, expected)
    assert len(set(zip(heights.tolist(), widths.tolist(), strict=True))) > 10


@pytest.mark.parametrize(
    "text", ["", "some", "q", "q:", "q:nan", "q:high", "unchanged", "unchanged:0", "unchanged:1.5", "residual:0",
             "residual:-1", "residual:inf", "none:1", "learned:2"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="give one of none, learned, q:X"):
        HaltingRule.parse(text)


@pytest.mark.parametrize("text", ["none", "learned", "q:-2.5", "unchanged:3", "residual:0.01"])
def test_a_rule_is_spelled_as_it_is_given(text: str) -> None:
    assert str(HaltingRule.parse(text)) == text


def test_an_input_whose_numbers_are_lost_never_halts_early() -> None:
    """Though its answer, which means nothing, stays the same."""
    nan = np.full(2, np.nan, dtype=np.float32)
    said = Said(nan, nan, np.full(2, 9, dtype=np.int32), nan)
    assert not any(HaltingRule.parse(rule).halts(said).any() for rule in RULES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", RULES)
def test_on_a_gpu_recorded_and_one_segment_late_answers_are_those_of_plain_ones(
    dataset: Path, reader: TestReader, rule: str
) -> None:
    device = torch.device("cuda", 0)
    model = halting_model(dataset).to(device)
    got = []
    for records, lag in ((True, 1), (False, 0)):
        segment = EvaluationSegment(model, 7, device, records=records, has_grids=True, residuals=True)
        answering = Answering(segment, reader, HaltingRule.parse(rule), MAX_SEGMENTS, lag=lag)
        got.append(finished(answering, np.arange(NUM_ROWS)))
    for name in ("rows", "num_segments", "preds"):
        np.testing.assert_array_equal(getattr(got[0], name), getattr(got[1], name))
