"""A segment of evaluation as a function of tensors at fixed places: what it reads, and which slots begin anew."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from data_pipeline import reader
from hrm_dist.evaluation.evaluate import Answers, answer, num_slots, predict
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel
from hrm_dist.model.network import Network
from tests.unit.models import METADATA, arch_of, let_halting_vary, random_batch
from tests.unit.test_train_step import READS, Operations

CPU = torch.device("cpu")
NUM_SLOTS = 4
ARCHITECTURES = ("hrm", "trm", "urm", "transformer", "looped_transformer")


def model_of(name: str = "hrm", device: torch.device = CPU) -> ACTModel:
    # More segments of random weights make much of rounding.
    fields = {} if name == "transformer" else {"halt_max_steps": 4}
    model = build_model(arch_of(name, **fields), METADATA)
    if model.puzzle_emb is not None:
        let_halting_vary(model)
    return model.to(device).eval()


def held_out(size: int, seed: int) -> reader.TestBatch:
    batch = random_batch(size, seed)
    return reader.TestBatch(
        inputs=batch["inputs"].to(torch.uint8),
        labels=batch["labels"],
        puzzle_identifiers=batch["puzzle_identifiers"],
        example_index=torch.arange(size, dtype=torch.int32),
    )


def alone(model: ACTModel, batch: reader.TestBatch, num_segments: int) -> dict[str, Tensor]:
    """What the model says after some segments on a batch by itself."""
    fields = {name: batch[name].int() for name in ("inputs", "puzzle_identifiers")}
    carry, outputs = model.initial_carry(fields), {}
    with torch.no_grad():
        for _ in range(num_segments):
            carry, outputs = model(carry._replace(halted=carry.steps == 0), fields)
    return outputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_segment_reads_nothing_back_from_the_device(name: str) -> None:
    segment = EvaluationSegment(model_of(name), NUM_SLOTS, CPU)
    predict(segment, held_out(NUM_SLOTS, seed=0))
    with Operations() as operations:
        segment.device_part(0)
    assert "copy_" in operations.names
    assert not set(operations.names) & set(READS)


def test_segments_are_the_same_operations_whichever_slots_begin() -> None:
    segment = EvaluationSegment(model_of(), NUM_SLOTS, CPU)
    segment.device_part(0)  # tables of angles are made once
    calls = []
    for slots in ([True] * 4, [False] * 4, [True, False, False, True]):
        segment.refill(held_out(NUM_SLOTS, seed=1), torch.tensor(slots))
        with Operations() as operations:
            segment.device_part(0)
        calls.append(operations.calls)
    assert calls[0] == calls[1] == calls[2]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slots_that_are_refilled_say_what_their_sequences_alone_give(name: str) -> None:
    model = model_of(name)
    segment = EvaluationSegment(model, NUM_SLOTS, CPU)
    first, second = held_out(NUM_SLOTS, seed=0), held_out(NUM_SLOTS, seed=1)
    segment.refill({**first}, torch.ones(NUM_SLOTS, dtype=torch.bool))
    for _ in range(3):
        segment()
    slots = torch.tensor([False, True, False, True])
    segment.refill({**second}, slots)
    for _ in range(2):
        segment()
    old, new = alone(model, first, 5), alone(model, second, 2)
    assert segment.carry.steps.tolist() == [5, 2, 5, 2]
    for kept, name_of_output, is_there in (
        (segment.q_halt_logits, "q_halt_logits", True),
        (segment.q_continue_logits, "q_continue_logits", model.arch.act_continue),
    ):
        said = torch.where(slots, new[name_of_output], old[name_of_output])
        assert torch.equal(kept, said * is_there)
    expected = torch.where(slots[:, None], new["logits"].argmax(-1), old["logits"].argmax(-1))
    assert torch.equal(segment.preds, expected.to(torch.uint8))
    assert not torch.equal(old["q_halt_logits"], new["q_halt_logits"])


def test_a_smaller_batch_has_the_answers_that_it_has_by_itself() -> None:
    model = model_of()
    batches = [held_out(NUM_SLOTS, seed=0), held_out(NUM_SLOTS, seed=1), held_out(3, seed=2)]
    padded = list(answer(EvaluationSegment(model, NUM_SLOTS, CPU), batches))
    for batch, answers in zip(batches, padded, strict=True):
        [exact] = answer(EvaluationSegment(model, len(batch["inputs"]), CPU), [batch])
        assert_same(answers, exact)
        assert torch.equal(torch.from_numpy(answers.predictions.inputs), batch["inputs"])


def assert_same(ours: Answers, expected: Answers) -> None:
    for one, other in zip(ours.predictions[:5], expected.predictions[:5], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_next_batch_begins_before_an_answer_is_read() -> None:
    """So that the device need not wait for whoever reads."""
    begun: list[int] = []

    def batches() -> Iterator[reader.TestBatch]:
        for seed in range(3):
            begun.append(seed)
            yield held_out(NUM_SLOTS, seed)

    answers = answer(EvaluationSegment(model_of(), NUM_SLOTS, CPU), batches())
    assert [len(begun) for _ in answers] == [2, 3, 3]


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "on_cpu"),
    [(108, 64, 54), (64, 64, 64), (65, 64, 33), (3, 64, 3), (7, 1, 1)],
)
def test_batches_are_as_large_as_allowed_and_lack_few_examples_on_a_cpu(
    num_examples: int, batch_size: int, on_cpu: int
) -> None:
    assert num_slots(num_examples, batch_size, CPU) == on_cpu
    assert num_slots(num_examples, batch_size, torch.device("cuda")) == min(num_examples, batch_size)


@pytest.mark.filterwarnings("default")  # torch's compiler warns of what it does itself
def test_a_compiled_evaluation_compiles_in_its_first_batch_alone() -> None:
    model = model_of()
    expected = list(answer(EvaluationSegment(model, NUM_SLOTS, CPU), [held_out(NUM_SLOTS, seed=3)]))
    torch._dynamo.reset()
    counters.clear()
    model.compile_parts()
    assert isinstance(model.network, Network)
    model.network.compile_parts(with_ends=True)
    segment = EvaluationSegment(model, NUM_SLOTS, CPU)
    compiled = list(answer(segment, [held_out(NUM_SLOTS, seed=3)]))
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    list(answer(segment, [held_out(NUM_SLOTS, seed=4), held_out(NUM_SLOTS - 1, seed=5)]))
    list(answer(EvaluationSegment(model, NUM_SLOTS, CPU), [held_out(NUM_SLOTS, seed=6)]))
    assert counters["stats"]["unique_graphs"] == num_graphs
    values = [answers[0].predictions.q_halt_logits for answers in (compiled, expected)]
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.filterwarnings("default")
def test_recorded_segments_equal_plain_ones(compiles: bool) -> None:
    device = torch.device("cuda", 0)
    model = model_of(device=device)
    if compiles:
        model.compile_parts()
        assert isinstance(model.network, Network)
        model.network.compile_parts(with_ends=True)
    batches = [held_out(NUM_SLOTS, seed) for seed in range(3)] + [held_out(2, seed=3)]
    plain, recorded = (
        list(answer(EvaluationSegment(model, NUM_SLOTS, device, records=records), batches))
        for records in (False, True)
    )
    for ours, expected in zip(recorded, plain, strict=True):
        assert_same(ours, expected)
    segment = EvaluationSegment(model, NUM_SLOTS, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        predict(segment, batches[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
