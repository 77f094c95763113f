"""EqR, a TRM with damped updates that begins at states of its own, against numbers from the published code."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hrm_dist.model.act import ACTModel, Batch, Carry
from hrm_dist.model.losses import act_loss
from hrm_dist.model.released import published_name
from hrm_dist.optim import AdamATan2
from tests.unit.golden import (
    assert_same_evaluation,
    assert_same_gradients,
    assert_same_numbers,
    assert_same_sketch,
    load_golden,
    seeded_model,
    seeded_state_dict,
)

VARIANTS = load_golden("eqr_variants")


def variant(name: str) -> tuple[dict[str, Any], ACTModel]:
    golden = VARIANTS[name]
    unused = torch.zeros(golden["config"]["hidden_size"])
    return golden, seeded_model(golden, H_init=unused, L_init=unused)


def begin(golden: dict[str, Any], carry: Carry, batch: Batch, step: int) -> Carry:
    """Let halted slots begin at the states that the published code was given in that step, in place of drawn ones."""
    config = golden["config"]
    shape = [config["batch_size"], config["seq_len"], config["hidden_size"]]
    given = seeded_state_dict({"z_H": shape, "z_L": shape}, golden["seed"] + 10_000_000 * (step + 1))

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(carry.halted.view(-1, *[1] * (old.ndim - 1)), new, old)

    states = {name: choose(given[name], old) for name, old in carry.inner_carry._asdict().items()}
    data = {name: choose(batch[name], old) for name, old in carry.current_data.items()}
    steps = torch.where(carry.halted, 0, carry.steps)
    return Carry(type(carry.inner_carry)(**states), steps, torch.zeros_like(carry.halted), data)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_segment_of_evaluation_equals_the_published_one(name: str) -> None:
    golden, model = variant(name)
    batch = golden["batches"][0]
    carry = begin(golden, model.initial_carry(batch), batch, 0)
    assert_same_evaluation(golden, model, carry, batch, ["logits", "q_halt_logits"])


@pytest.mark.parametrize("name", VARIANTS)
def test_training_steps_equal_the_published_ones(name: str) -> None:
    golden, model = variant(name)
    model.train()
    given = golden["optimizer"]
    adam = AdamATan2(model.parameters(), given["lr"], tuple(given["betas"]), given["weight_decay"])
    carry = model.initial_carry(golden["batches"][0])
    for number, (batch, step) in enumerate(zip(golden["batches"], golden["train_steps"], strict=True)):
        carry, outputs = model(begin(golden, carry, batch, number), batch)
        loss, metrics = act_loss(carry, outputs, golden["loss_type"])
        (loss / given["global_batch_size"]).backward()
        assert_same_numbers(metrics | {"loss": loss}, step["metrics"] | {"loss": step["loss"]})
        assert torch.equal(carry.halted, step["halted"])
        assert torch.equal(carry.steps, step["steps"])
        if "grads" in step:
            assert_same_gradients(model, step["grads"])
        adam.step()
        adam.zero_grad()
    ours = {published_name(key): tensor for key, tensor in model.named_parameters()}
    assert ours.keys() == golden["final_state_sketches"].keys()
    for key, published in golden["final_state_sketches"].items():
        assert_same_sketch(ours[key], published)
