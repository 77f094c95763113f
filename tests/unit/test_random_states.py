"""Random initial states, noise and damping: what they depend on, and what they do to states."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch, Carry, segment_keys
from hrm_dist.model.noise import key_of
from tests.unit.models import METADATA, arch_of, random_batch

WITH_STATES = [name for name, known in ARCHITECTURES.items() if known.states]
ALL = {"initial_states": "random", "segment_noise": 0.3, "update_noise": 0.1, "damping": 0.8}
KEYS = key_of(7, torch.arange(4))


def model_of(name: str, **fields: object) -> ACTModel:
    return build_model(arch_of(name, **fields), METADATA, seed=1).eval()


@torch.no_grad()
def states_after(
    model: ACTModel, keys: Tensor, batch: Batch | None = None, segments: int = 1
) -> dict[str, Tensor]:
    batch = random_batch(len(keys), seed=0) if batch is None else batch
    carry: Carry = model.initial_carry(batch)
    for number in range(segments):
        if number:
            carry = carry._replace(halted=torch.zeros_like(carry.halted))
        carry, _ = model(carry, batch, noise_keys=key_of(keys, number))
    return carry.inner_carry._asdict()


@pytest.mark.parametrize("name", WITH_STATES)
def test_what_a_slot_draws_follows_from_its_key_alone(name: str) -> None:
    model, batch = model_of(name, **ALL), random_batch(4, seed=0)
    order = torch.tensor([2, 0, 3])
    some = {field: tensor[order] for field, tensor in batch.items()}
    expected = states_after(model, KEYS, batch, segments=2)
    for state, found in states_after(model, KEYS[order], some, segments=2).items():
        torch.testing.assert_close(found, expected[state][order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("field", ["initial_states", "segment_noise", "update_noise"])
@pytest.mark.parametrize("name", WITH_STATES)
def test_every_kind_of_randomness_tells_keys_apart(name: str, field: str) -> None:
    model = model_of(name, **{field: ALL[field]})
    one, other = (states_after(model, keys) for keys in (KEYS, KEYS + 1))
    assert all(not torch.allclose(one[state], other[state], atol=1e-3) for state in one)


@pytest.mark.parametrize("name", WITH_STATES)
def test_initial_states_are_random_at_every_position(name: str) -> None:
    model, batch = model_of(name, initial_states="random"), random_batch(4, seed=0)
    carry = model._refill(model.initial_carry(batch), batch, model._position_keys(KEYS))
    states = torch.stack(list(carry.inner_carry))
    assert states.std() == pytest.approx(1, abs=0.02)
    flat = states.flatten(0, 2)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.95


def test_slots_that_go_on_keep_their_states() -> None:
    model, batch = model_of("trm", initial_states="random"), random_batch(4, seed=0)
    carry = model._refill(model.initial_carry(batch), batch, model._position_keys(KEYS))
    halted = torch.tensor([True, False, True, False])
    again = model._refill(carry._replace(halted=halted), batch, model._position_keys(KEYS + 1))
    for old, new in zip(carry.inner_carry, again.inner_carry, strict=True):
        assert torch.equal((old == new).flatten(1).all(1), ~halted)


def test_damping_leaves_a_share_of_the_old_state() -> None:
    damped, plain = (model_of("looped_transformer", damping=share) for share in (0.75, 1.0))
    first = plain.get_buffer("H_init")
    expected = 0.25 * first + 0.75 * states_after(plain, KEYS)["z_H"]
    torch.testing.assert_close(states_after(damped, KEYS)["z_H"], expected)


def test_an_update_adds_noise_of_the_size_asked_for() -> None:
    noisy, plain = (model_of("looped_transformer", update_noise=sigma) for sigma in (0.25, 0.0))
    noise = states_after(noisy, KEYS)["z_H"] - states_after(plain, KEYS)["z_H"]
    assert noise.std() == pytest.approx(0.25, rel=0.05)
    assert noise.mean().abs() < 0.02


@pytest.mark.parametrize("name", ["hrm", "trm"])
def test_both_states_are_damped_before_the_other_sees_them(name: str) -> None:
    fields = {"H_cycles": 1, "L_cycles": 1, "act_continue": False}
    model, batch = model_of(name, **fields, damping=0.5), random_batch(4, seed=0)
    recurrence = model.recurrence
    slow = recurrence.get_submodule("H_level" if name == "hrm" else "L_level")
    seen: list[tuple[Tensor, ...]] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append((given[0], given[2], result))

    slow.register_forward_hook(note)
    states = states_after(model, KEYS, batch)
    old, z_L, new = seen[-1]
    torch.testing.assert_close(z_L, states["z_L"])
    torch.testing.assert_close(states["z_H"], 0.5 * old + 0.5 * new)


def test_the_draws_of_a_step_are_those_of_seed_step_and_row() -> None:
    keys = segment_keys(3, 5, 12)
    assert len({*keys.tolist(), *segment_keys(3, 6, 12).tolist(), *segment_keys(4, 5, 12).tolist()}) == 36
    np.testing.assert_array_equal(keys[:4], segment_keys(3, 5, 4))


def test_a_model_that_draws_needs_keys() -> None:
    model, batch = model_of("hrm", segment_noise=0.1), random_batch(2, seed=0)
    with pytest.raises(ValueError, match="noise_keys"):
        model(model.initial_carry(batch), batch)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("transformer", field, value) for field, value in ALL.items()]
    + [
        ("hrm", "damping", 0),
        ("hrm", "damping", 1.1),
        ("trm", "segment_noise", -1),
        ("trm", "update_noise", 11),
    ]
    + [("trm", "segment_noise", float("nan"))],
)
def test_noise_out_of_range_or_without_states_is_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        ArchConfig.model_validate({"name": name, field: value})
