"""The models in many small configurations against numbers from the published code (variants.pt and urm_variants.pt)."""

from typing import Any

import pytest
import torch

from hrm_dist.model.act import ACTModel
from hrm_dist.model.losses import act_loss
from hrm_dist.model.puzzle_embedding import SignSGD
from hrm_dist.model.released import published_name
from hrm_dist.optim import AdamATan2
from tests.unit.golden import (
    assert_close,
    assert_same_evaluation,
    assert_same_gradients,
    assert_same_numbers,
    assert_same_sketch,
    load_golden,
    seeded_model,
)

VARIANTS = load_golden("variants") | load_golden("urm_variants")
FLOAT32 = [name for name, golden in VARIANTS.items() if golden["config"]["forward_dtype"] == "float32"]
BFLOAT16 = [name for name in VARIANTS if name not in FLOAT32]
# On the machine that made them the numbers are equal to the bit. Another machine may round its products otherwise,
# and two roundings lie about as far apart as each from exact: these are up to 4e-2 from their float32 twins.
BFLOAT16_RTOL = 8e-2


def variant(name: str) -> tuple[dict[str, Any], ACTModel]:
    return VARIANTS[name], seeded_model(VARIANTS[name])


@pytest.mark.parametrize("name", FLOAT32)
def test_every_segment_of_evaluation_equals_the_published_one(name: str) -> None:
    golden, model = variant(name)
    batch = golden["batches"][0]
    said = ["logits", "q_halt_logits", "q_continue_logits"]
    assert_same_evaluation(golden, model, model.initial_carry(batch), batch, said)


@pytest.mark.parametrize("name", FLOAT32)
def test_three_training_steps_with_both_optimizers_equal_the_published_ones(name: str) -> None:
    golden, model = variant(name)
    model.train()
    given = golden["optimizer"]
    adam = AdamATan2(model.parameters(), given["lr"], tuple(given["betas"]), given["weight_decay"])
    table = model.puzzle_emb
    sign_sgd = None if table is None else SignSGD(table, given["puzzle_emb_weight_decay"])
    carry = model.initial_carry(golden["batches"][0])
    for batch, step in zip(golden["batches"], golden["train_steps"], strict=True):
        carry, outputs = model(carry, batch)
        loss, metrics = act_loss(carry, outputs, golden["loss_type"])
        (loss / given["global_batch_size"]).backward()
        assert_same_numbers(metrics | {"loss": loss}, step["metrics"] | {"loss": step["loss"]})
        assert torch.equal(carry.halted, step["halted"])
        assert torch.equal(carry.steps, step["steps"])
        if step is golden["train_steps"][0]:
            assert_same_gradients(model, step["grads"])
        adam.step()
        adam.zero_grad()
        if sign_sgd is not None:
            sign_sgd.step(given["puzzle_emb_lr"])
    ours = {published_name(key): tensor for key, tensor in model.state_dict().items()}
    assert ours.keys() == golden["final_state_sketches"].keys()
    for key, published in golden["final_state_sketches"].items():
        assert_same_sketch(ours[key], published)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_follows_the_published_one_as_far_as_its_rounding_allows(name: str) -> None:
    golden, model = variant(name)
    model.eval()
    batch = golden["batches"][0]
    carry = model.initial_carry(batch)
    for segment in golden["eval_segments"]:
        with torch.no_grad():
            carry, outputs = model(carry, batch)
        ours = {**outputs, **carry.inner_carry._asdict()}
        assert ours.keys() == segment.keys() - {"loss", "metrics", "steps", "halted"}
        for key in ours:
            assert ours[key].dtype == segment[key].dtype
            assert_close(ours[key], segment[key], BFLOAT16_RTOL)
