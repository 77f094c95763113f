"""The models and optimizers against numbers from the published code (tests/golden)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel
from hrm_dist.model.losses import act_loss
from hrm_dist.model.puzzle_embedding import SignSGD
from hrm_dist.model.released import convert_released, published_name
from hrm_dist.optim import AdamATan2

GOLDEN = Path(__file__).parents[1] / "golden"
RTOL = 1e-4
_DATA_FIELDS = ("batch_size", "seq_len", "vocab_size", "num_puzzle_identifiers")


def load_golden(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / f"{name}_tiny.pt", weights_only=True)


def golden_model(golden: dict[str, Any], name: str) -> ACTModel:
    fields = golden["config"]
    arch = ArchConfig(
        name=name,
        loss_type=golden["loss_type"],
        **{key: value for key, value in fields.items() if key not in _DATA_FIELDS},
    )
    metadata = DatasetMetadata(
        seq_len=fields["seq_len"],
        vocab_size=fields["vocab_size"],
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        num_puzzle_identifiers=fields["num_puzzle_identifiers"],
        total_groups=4,
        mean_puzzle_examples=1.0,
        sets=("all",),
    )
    model = build_model(arch, metadata)
    model.load_state_dict(convert_released(golden["state_dict"]))
    return model


def assert_close(ours: Tensor, published: Tensor) -> None:
    """Relative to the size of the tensor, as single cells may be arbitrarily near zero."""
    error = (ours.detach().double() - published.double()).norm() / published.double().norm().clamp_min(1e-12)
    assert error < RTOL, f"relative error {error:.2e}"


@pytest.mark.parametrize("name", ["hrm", "trm"])
def test_every_segment_of_evaluation_equals_the_published_one(name: str) -> None:
    golden = load_golden(name)
    model = golden_model(golden, name).eval()
    batch = golden["batches"][0]
    carry = model.initial_carry(batch)
    for segment in golden["eval_segments"]:
        with torch.no_grad():
            carry, outputs = model(carry, batch)
            loss, metrics = act_loss(carry, outputs, golden["loss_type"])
        for key in ("logits", "q_halt_logits", "q_continue_logits"):
            assert_close(outputs[key], segment[key])
        assert_close(carry.inner_carry.z_H, segment["z_H"])
        assert_close(carry.inner_carry.z_L, segment["z_L"])
        assert torch.equal(carry.steps, segment["steps"])
        assert loss.item() == pytest.approx(segment["loss"], rel=RTOL)
        assert {k: v.item() for k, v in metrics.items()} == pytest.approx(segment["metrics"], rel=RTOL)


@pytest.mark.parametrize("name", ["hrm", "trm"])
def test_six_training_steps_with_both_optimizers_equal_the_published_ones(name: str) -> None:
    golden = load_golden(name)
    model = golden_model(golden, name).train()
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
