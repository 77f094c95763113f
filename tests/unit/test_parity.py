"""The models and optimizers against numbers from the published code (tests/golden)."""

import pytest
import torch

from hrm_dist.model.losses import act_loss
from hrm_dist.model.puzzle_embedding import SignSGD
from hrm_dist.model.released import convert_released, published_name
from hrm_dist.optim import AdamATan2
from tests.unit.golden import RTOL, assert_close, golden_model, load_golden


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_every_segment_of_evaluation_equals_the_published_one(name: str) -> None:
    golden = load_golden(f"{name}_tiny")
    model = golden_model(golden, golden["state_dict"]).eval()
    batch = golden["batches"][0]
    carry = model.initial_carry(batch)
    for segment in golden["eval_segments"]:
        with torch.no_grad():
            carry, outputs = model(carry, batch)
            loss, metrics = act_loss(carry, outputs, golden["loss_type"])
        for key in ("logits", "q_halt_logits", "q_continue_logits"):
            assert_close(outputs[key], segment[key])
        for key, state in carry.inner_carry._asdict().items():
            assert_close(state, segment[key])
        assert torch.equal(carry.steps, segment["steps"])
        if name != "urm":  # not recorded
            assert loss.item() == pytest.approx(segment["loss"], rel=RTOL)
            assert {k: v.item() for k, v in metrics.items()} == pytest.approx(segment["metrics"], rel=RTOL)


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_six_training_steps_with_both_optimizers_equal_the_published_ones(name: str) -> None:
    golden = load_golden(f"{name}_tiny")
    model = golden_model(golden, golden["state_dict"]).train()
    given = golden["optimizer"]
    adam = AdamATan2(model.parameters(), given["lr"], tuple(given["betas"]), given["weight_decay"])
    assert model.puzzle_emb is not None
    sign_sgd = SignSGD(model.puzzle_emb, given["puzzle_emb_weight_decay"])
    carry = model.initial_carry(golden["batches"][0])
    for batch, step in zip(golden["batches"], golden["train_steps"], strict=True):
        carry, outputs = model(carry, batch)
        loss, metrics = act_loss(carry, outputs, golden["loss_type"])
        (loss / given["global_batch_size"]).backward()
        assert loss.item() == pytest.approx(step["loss"], rel=RTOL)
        assert {k: v.item() for k, v in metrics.items()} == pytest.approx(step["metrics"], rel=RTOL)
        assert torch.equal(carry.halted, step["halted"])
        assert torch.equal(carry.steps, step["steps"])
        if step is golden["train_steps"][0]:
            ours = {published_name(n): p.grad for n, p in model.named_parameters()}
            assert ours.keys() == step["grads"].keys()
            for key, grad in step["grads"].items():
                assert_close(ours[key], grad)
        adam.step()
        adam.zero_grad()
        sign_sgd.step(given["puzzle_emb_lr"])
    for key, tensor in convert_released(golden["final_state_dict"]).items():
        assert_close(model.state_dict()[key], tensor)
