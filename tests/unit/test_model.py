"""What the model promises beside its numbers: where gradient flows, how it halts and starts."""

import math
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_pipeline.sampler import rank_slice
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Carry, explore_halting
from hrm_dist.model.initialization import initialize, truncated_normal
from tests.unit.models import METADATA, arch_of, let_halting_vary, random_batch, segment_loss

# Gradient


def grad_calls(model: ACTModel, level: str) -> list[bool]:
    """For every call of a level in one segment without Q-target, whether it ran with gradient."""
    calls: list[bool] = []
    module = model.get_submodule(f"network.recurrence.{level}")
    hook = module.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    batch = random_batch(2, seed=0)
    model(model.initial_carry(batch), batch)
    hook.remove()
    return calls


CYCLES = [(1, 1), (2, 2), (3, 1), (1, 4), (2, 3)]


@pytest.mark.parametrize(("H_cycles", "L_cycles"), CYCLES)
def test_only_the_last_update_of_each_level_of_hrm_carries_gradient(H_cycles: int, L_cycles: int) -> None:
    model = build_model(arch_of("hrm", H_cycles=H_cycles, L_cycles=L_cycles, act_continue=False), METADATA)
    assert grad_calls(model, "L_level") == [False] * (H_cycles * L_cycles - 1) + [True]
    assert grad_calls(model, "H_level") == [False] * (H_cycles - 1) + [True]


@pytest.mark.parametrize(("H_cycles", "L_cycles"), CYCLES)
def test_only_the_last_cycle_of_trm_carries_gradient(H_cycles: int, L_cycles: int) -> None:
    model = build_model(arch_of("trm", H_cycles=H_cycles, L_cycles=L_cycles), METADATA)
    one_cycle = L_cycles + 1
    assert grad_calls(model, "L_level") == [False] * ((H_cycles - 1) * one_cycle) + [True] * one_cycle


def test_the_q_target_costs_a_second_forward_without_gradient() -> None:
    model = build_model(arch_of("hrm"), METADATA)
    assert grad_calls(model, "H_level") == [False, True, False, False]
    batch = random_batch(2, seed=0)
    _, outputs = model(model.initial_carry(batch), batch)
    assert not outputs["target_q_continue"].requires_grad


def test_the_carry_brings_no_gradient_into_the_next_segment() -> None:
    model = build_model(arch_of("hrm"), METADATA)
    batch = random_batch(2, seed=0)
    carry, _ = model(model.initial_carry(batch), batch)
    assert not any(state.requires_grad for state in carry.inner_carry)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build_model(arch_of(name, **{"pos_encodings": "learned", **ARCHITECTURES[name].fixed}), METADATA)
    let_halting_vary(model)
    segment_loss(model, random_batch(4, seed=0)).backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert not without


# Halting


def rows_of(carry: Carry, outputs: dict[str, Tensor], rows: Tensor) -> list[Tensor]:
    data = [carry.current_data[name] for name in sorted(carry.current_data)]
    return [tensor[rows] for tensor in (*carry.inner_carry, carry.steps, *data, *outputs.values())]


@pytest.mark.parametrize("name", [name for name, known in ARCHITECTURES.items() if known.states])
def test_a_halted_slot_takes_the_new_sequence_and_the_others_keep_theirs(name: str) -> None:
    model = build_model(arch_of(name, halt_max_steps=3), METADATA).eval()
    first, second = random_batch(4, seed=1), random_batch(4, seed=2)
    halted = torch.tensor([False, True, True, False])
    with torch.no_grad():
        carry, _ = model(model.initial_carry(first), first)
        mixed = model(carry._replace(halted=halted), second)
        fresh = model(model.initial_carry(second), second)
        going_on = model(carry._replace(halted=torch.zeros(4, dtype=torch.bool)), second)
    for expected, rows in ((fresh, halted), (going_on, ~halted)):
        for ours, theirs in zip(rows_of(*mixed, rows), rows_of(*expected, rows), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert mixed[0].steps.tolist() == [2, 1, 1, 2]


def test_nothing_of_the_first_carry_is_used() -> None:
    model = build_model(arch_of("hrm"), METADATA).eval()
    batch = random_batch(2, seed=1)
    carry = model.initial_carry(batch)
    spoiled = carry._replace(inner_carry=[state + math.nan for state in carry.inner_carry])
    with torch.no_grad():
        assert model(spoiled, batch)[1]["logits"].isfinite().all()


def test_evaluation_runs_every_sequence_to_the_last_segment() -> None:
    model = build_model(arch_of("hrm", halt_max_steps=3), METADATA).eval()
    let_halting_vary(model)
    batch = random_batch(8, seed=1)
    carry = model.initial_carry(batch)
    for expected in (False, False, True):
        with torch.no_grad():
            carry, _ = model(carry, batch)
        assert carry.halted.tolist() == [expected] * 8


def test_a_slot_in_training_halts_by_its_q_values_but_not_before_its_minimum() -> None:
    model = build_model(arch_of("hrm", halt_max_steps=4), METADATA).train()
    let_halting_vary(model)
    batch = random_batch(16, seed=1)
    start = model.initial_carry(batch)
    minimum = torch.tensor([0, 3] * 8, dtype=torch.int32)
    with torch.no_grad():
        carry, outputs = model(start, batch, minimum)
    wants = outputs["q_halt_logits"] > outputs["q_continue_logits"]
    assert 0 < wants.sum() < 16
    assert torch.equal(carry.halted, wants & (minimum <= 1))


EXPLORING = arch_of("hrm", halt_max_steps=5, halt_exploration_prob=0.3)


def test_exploration_depends_on_seed_and_step_alone() -> None:
    drawn = explore_halting(EXPLORING, seed=3, step=7, global_batch_size=64)
    np.random.default_rng(0).random(5)
    torch.manual_seed(1)
    np.testing.assert_array_equal(drawn, explore_halting(EXPLORING, 3, 7, 64))
    assert (drawn != explore_halting(EXPLORING, 3, 8, 64)).any()
    assert (drawn != explore_halting(EXPLORING, 4, 7, 64)).any()


def test_exploration_asks_the_stated_share_of_slots_for_two_to_all_segments() -> None:
    drawn = explore_halting(EXPLORING, seed=0, step=0, global_batch_size=20_000)
    assert (drawn > 0).mean() == pytest.approx(0.3, abs=0.02)
    values, counts = np.unique(drawn[drawn > 0], return_counts=True)
    assert values.tolist() == [2, 3, 4, 5]
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.03)


def test_one_segment_leaves_nothing_to_explore() -> None:
    assert not explore_halting(arch_of("hrm", halt_max_steps=1), 0, 0, 4).any()


def test_fixed_halting_runs_every_sequence_to_the_last_segment() -> None:
    fixed = arch_of("hrm", halt_max_steps=3, halting="fixed", halt_exploration_prob=1.0)
    model = build_model(fixed, METADATA).train()
    let_halting_vary(model)
    batch = random_batch(16, seed=1)
    carry = model.initial_carry(batch)
    for step in range(6):
        minimum = torch.from_numpy(explore_halting(fixed, 0, step, 16))
        with torch.no_grad():
            carry, outputs = model(carry, batch, minimum)
        assert (outputs["q_halt_logits"] > outputs["q_continue_logits"]).any()
        assert carry.halted.tolist() == [step % 3 == 2] * 16


@pytest.mark.parametrize("world_size", [2, 4])
def test_halting_does_not_depend_on_the_world_size(world_size: int) -> None:
    model = build_model(EXPLORING, METADATA).train()
    let_halting_vary(model)
    batch = random_batch(8, seed=1)

    def halted(rank: int, world_size: int) -> list[list[bool]]:
        def own(tensor: Tensor) -> Tensor:
            return torch.from_numpy(rank_slice(tensor.numpy(), rank, world_size))

        local = {name: own(tensor) for name, tensor in batch.items()}
        carry, history = model.initial_carry(local), []
        for step in range(6):
            minimum = own(torch.from_numpy(explore_halting(EXPLORING, 0, step, 8)))
            with torch.no_grad():
                carry, _ = model(carry, local, minimum)
            history.append(carry.halted.tolist())
        return history

    whole = halted(0, 1)
    assert len({tuple(at_step) for at_step in whole}) > 2
    parts = [halted(rank, world_size) for rank in range(world_size)]
    assert whole == [list(chain.from_iterable(at_step)) for at_step in zip(*parts, strict=True)]


# Initial weights


def meta_then_materialised(arch: ArchConfig, seed: int) -> ACTModel:
    with torch.device("meta"):
        model = ACTModel(arch, METADATA)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan)
    initialize(model, seed)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_made_without_memory_and_filled_later_starts_the_same(name: str) -> None:
    arch = arch_of(name, **{"pos_encodings": "learned", **ARCHITECTURES[name].fixed})
    late = meta_then_materialised(arch, seed=1).state_dict()
    for key, tensor in build_model(arch, METADATA, seed=1).state_dict().items():
        assert torch.equal(late[key], tensor), key


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Linear(2, 2), "bias, weight"),
        (nn.Conv1d(2, 2, 1, bias=False), "weight"),
        (nn.BatchNorm1d(2, affine=False), "num_batches_tracked, running_mean, running_var"),
    ],
)
def test_a_tensor_that_nobody_initialises_is_an_error(module: nn.Module, names: str) -> None:
    with pytest.raises(ValueError, match=f"stack.0: {type(module).__name__} leaves {names} without"):
        initialize(nn.ModuleDict({"stack": nn.Sequential(module)}), seed=0)


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    small = build_model(arch_of("hrm"), METADATA, seed=1).state_dict()
    torch.manual_seed(123)
    large = build_model(arch_of("hrm", L_layers=3, H_layers=2), METADATA, seed=1).state_dict()
    assert all(torch.equal(large[key], tensor) for key, tensor in small.items())
    drawn = {key for key, tensor in small.items() if len(tensor.unique()) > 2}
    other = build_model(arch_of("hrm"), METADATA, seed=2).state_dict()
    assert not any(torch.equal(other[key], small[key]) for key in drawn)
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for key in drawn:
        by_shape.setdefault(large[key].shape, []).append(large[key])
    for tensors in by_shape.values():
        assert not any(torch.equal(a, b) for i, a in enumerate(tensors) for b in tensors[:i])


def _lecun(tensor: Tensor) -> float:
    return tensor.shape[-1] ** -0.5


@pytest.mark.parametrize(
    ("ending", "std"),
    [
        ("proj.weight", _lecun),
        ("embedding_weight", _lecun),
        ("lm_head.weight", _lecun),
        ("init", lambda _: 1),
    ],
)
def test_initial_weights_have_the_published_std(ending: str, std: Callable[[Tensor], float]) -> None:
    state = build_model(arch_of("hrm", hidden_size=512, pos_encodings="learned"), METADATA).state_dict()
    found = [tensor for key, tensor in state.items() if key.endswith(ending)]
    assert found
    for tensor in found:
        five_sigma = 5 / math.sqrt(2 * tensor.numel())
        assert tensor.std().item() == pytest.approx(std(tensor), rel=five_sigma)


def test_q_values_start_at_minus_five_and_the_puzzle_table_at_zero() -> None:
    model = build_model(arch_of("hrm"), METADATA).eval()
    batch = random_batch(3, seed=0)
    with torch.no_grad():
        _, outputs = model(model.initial_carry(batch), batch)
    assert outputs["q_halt_logits"].tolist() == outputs["q_continue_logits"].tolist() == [-5.0] * 3
    assert model.puzzle_emb is not None
    assert not model.puzzle_emb.weights.any()


@pytest.mark.parametrize("std", [0.02, 1.0, 3.0])
def test_the_truncated_normal_has_the_asked_std_and_ends_at_two_of_the_uncut_one(std: float) -> None:
    values = torch.empty(400_000)
    truncated_normal(std)(values, torch.Generator().manual_seed(0))
    assert values.std().item() == pytest.approx(std, rel=0.005)
    assert values.mean().item() == pytest.approx(0, abs=0.005 * std)
    # 0.8796 is the std of a unit normal cut at two.
    assert values.abs().max().item() == pytest.approx(2 * std / 0.8796, rel=1e-3)
