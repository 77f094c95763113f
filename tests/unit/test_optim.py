"""The optimizers against loops over single numbers, the schedule, and the moving average."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrm_dist.model.puzzle_embedding import PuzzleEmbedding, SignSGD
from hrm_dist.optim import AdamATan2
from hrm_dist.schedule import learning_rate

NUM_ROWS, WIDTH = 6, 3
# Whole numbers add up exactly, so that a sum that should vanish does.
rows = st.lists(st.integers(-3, 3), min_size=WIDTH, max_size=WIDTH)
batches = st.lists(st.tuples(st.integers(0, NUM_ROWS - 1), rows), min_size=1, max_size=12)


@given(batches, st.floats(0, 0.1), st.floats(0, 1))
def test_sign_sgd_equals_a_loop_over_the_identifiers_of_the_batch(
    batch: list[tuple[int, list[int]]], lr: float, weight_decay: float
) -> None:
    table = PuzzleEmbedding(NUM_ROWS, WIDTH)
    before = torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    table.weights.copy_(before)
    identifiers = torch.tensor([identifier for identifier, _ in batch], dtype=torch.int32)
    table.train()
    looked_up = table(identifiers)
    (looked_up * torch.tensor([grad for _, grad in batch])).sum().backward()
    SignSGD(table, weight_decay).step(lr)

    expected = before.clone()
    for identifier in {identifier for identifier, _ in batch}:
        grad = torch.tensor([g for i, g in batch if i == identifier]).sum(0)
        expected[identifier] = before[identifier] * (1 - lr * weight_decay) - lr * torch.sign(grad)
    torch.testing.assert_close(table.weights, expected)
    away = sorted(set(range(NUM_ROWS)) - {identifier for identifier, _ in batch})
    assert torch.equal(table.weights[away], before[away])


def test_a_lookup_serves_one_update() -> None:
    table = PuzzleEmbedding(NUM_ROWS, WIDTH)
    optimizer = SignSGD(table, 0.0)
    looked_up = table(torch.tensor([1]))
    with pytest.raises(AssertionError, match="follows a forward in training and its backward"):
        optimizer.step(0.1)
    looked_up.sum().backward()
    optimizer.step(0.1)
    with pytest.raises(AssertionError, match="follows a forward in training and its backward"):
        optimizer.step(0.1)


grads = st.one_of(st.just(0.0), st.floats(2**-80, 2**20, width=32), st.floats(-(2**20), -(2**-80), width=32))


def adam_atan2(
    parameter: float, history: list[float], lr: float, betas: tuple[float, float], weight_decay: float
) -> float:
    """The optimizer on one number."""
    m = v = torch.tensor(0.0)
    p = torch.tensor(parameter)
    for step, grad in enumerate(torch.tensor(history), 1):
        p = p * (1 - lr * weight_decay)
        m = m + (1 - betas[0]) * (grad - m)
        v = betas[1] * v + (1 - betas[1]) * grad**2
        p = p - lr / (1 - betas[0] ** step) * torch.atan2(m, torch.sqrt(v / (1 - betas[1] ** step)))
    return p.item()


@given(st.lists(st.lists(grads, min_size=4, max_size=4), min_size=1, max_size=6))
def test_adam_atan2_equals_its_formula_on_every_number(history: list[list[float]]) -> None:
    lr, betas, weight_decay = 0.01, (0.9, 0.95), 0.1
    start = [0.5, -2.0, 0.0, 3.0]
    parameters = [nn.Parameter(torch.tensor(start[:1])), nn.Parameter(torch.tensor(start[1:]))]
    optimizer = AdamATan2(parameters, lr, betas, weight_decay)
    for step in history:
        parameters[0].grad, parameters[1].grad = torch.tensor(step[:1]), torch.tensor(step[1:])
        optimizer.step()
    ours = torch.cat([parameter.detach() for parameter in parameters])
    theirs = [
        adam_atan2(p, list(g), lr, betas, weight_decay)
        for p, g in zip(start, zip(*history, strict=True), strict=True)
    ]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-6)


def test_adam_atan2_only_decays_what_never_had_a_gradient_and_skips_what_has_none() -> None:
    zero, none = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdamATan2([zero, none], lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for _ in range(3):
        zero.grad = torch.zeros(3)
        optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((3,), 0.95**3))
    assert torch.equal(none.detach(), torch.ones(3))


@given(st.integers(1, 50), st.integers(1, 200), st.floats(0, 1))
def test_the_learning_rate_rises_to_its_peak_in_the_warm_up_and_ends_at_its_minimum(
    warmup_steps: int, steps_after: int, min_ratio: float
) -> None:
    total = warmup_steps + steps_after
    rates = [learning_rate(step, 2.0, warmup_steps, total, min_ratio) for step in range(1, total + 1)]
    assert rates[0] == pytest.approx(2.0 / warmup_steps)
    assert rates[warmup_steps - 1] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 * min_ratio)
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    after = rates[warmup_steps - 1 :]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))


def test_halfway_between_warm_up_and_end_the_learning_rate_is_halfway() -> None:
    assert learning_rate(60, 1.0, 20, 100, 0.2) == pytest.approx(0.6)


def test_the_moving_average_follows_the_weights_and_changes_places_with_them() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = AdamATan2([weight], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, ema_rate=0.9)
    expected: Tensor = weight.detach().clone()
    for step in range(4):
        weight.grad = torch.tensor([float(step), -1.0])
        optimizer.step()
        expected = 0.9 * expected + 0.1 * weight.detach()
    kept = weight.detach().clone()
    with optimizer.ema_weights():
        torch.testing.assert_close(weight.detach(), expected)
        assert not torch.equal(weight.detach(), kept)
    assert torch.equal(weight.detach(), kept)


def made_updates(start: list[Tensor], grads: list[list[Tensor]]) -> tuple[list[Tensor], AdamATan2]:
    params = [nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = AdamATan2(params, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, ema_rate=0.5)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return [param.detach() for param in params], optimizer


def test_large_tensors_are_updated_in_parts_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((5, 3), (7,), (1,))]
    grads = [[torch.randn(tensor.shape, generator=draw) for tensor in start] for _ in range(4)]
    whole, _ = made_updates(start, grads)
    monkeypatch.setattr("hrm_dist.optim._MAX_ELEMENTS", 4)
    in_parts, optimizer = made_updates(start, grads)
    assert all(torch.equal(a, b) for a, b in zip(whole, in_parts, strict=True))
    averages = [state["ema"].clone() for state in optimizer.state.values()]
    with optimizer.ema_weights():
        assert all(torch.equal(a, b) for a, b in zip(in_parts, averages, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(in_parts, whole, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20])
def test_a_gradient_that_is_not_finite_or_has_no_finite_square_changes_nothing(bad: float) -> None:
    start, good = [torch.ones(3), torch.ones(2)], [torch.ones(3), torch.ones(2)]
    spoiled = [torch.tensor([1.0, bad, 1.0]), torch.ones(2)]
    once, _ = made_updates(start, [good])
    after, optimizer = made_updates(start, [good, spoiled])
    assert all(torch.equal(a, b) for a, b in zip(once, after, strict=True))
    assert not optimizer.update_applied
    assert optimizer.num_updates == 1
    # And the next update is what it would have been.
    twice, _ = made_updates(start, [good, good])
    later, optimizer = made_updates(start, [good, spoiled, good])
    assert all(torch.equal(a, b) for a, b in zip(twice, later, strict=True))


def test_the_average_does_not_follow_an_update_that_was_not_applied() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = AdamATan2([weight], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0, ema_rate=0.5)
    average = optimizer.state_of(weight)["ema"]
    weight.data.fill_(1.0)
    weight.grad = torch.zeros(2)
    optimizer.prepare(torch.tensor(0.1, dtype=torch.float64), finite=torch.tensor(False))
    optimizer.step()
    assert torch.equal(average, torch.zeros(2))
    optimizer.prepare(torch.tensor(0.1, dtype=torch.float64), finite=torch.tensor(True))
    optimizer.step()
    assert torch.equal(average, torch.full((2,), 0.5))
