"""Reading tests/golden: models made from it, and comparisons. How the files came about: tests/golden/README.md."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch, Carry
from hrm_dist.model.losses import act_loss
from hrm_dist.model.released import convert_released, published_name

GOLDEN = Path(__file__).parents[1] / "golden"
RTOL = 1e-4
NUM_PROJECTIONS = 8
_DATA_FIELDS = ("batch_size", "seq_len", "vocab_size", "num_puzzle_identifiers")


def load_golden(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def golden_model(golden: dict[str, Any], state_dict: dict[str, Tensor]) -> ACTModel:
    """Our model of a golden's configuration, with a published state dict."""
    fields, name = golden["config"], golden["reference"]
    arch = ArchConfig(name=name, loss_type=golden["loss_type"], **arch_fields(golden))
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
    model.load_state_dict(convert_released(state_dict))
    return model


def arch_fields(golden: dict[str, Any]) -> dict[str, Any]:
    """The fields of ArchConfig in a golden's configuration; nothing was recorded with exploration."""
    ours = ARCHITECTURES[golden["reference"]].published_fields
    fields = {ours.get(key, key): value for key, value in golden["config"].items() if key not in _DATA_FIELDS}
    return {"halt_exploration_prob": 0.0, **fields}


def assert_close(ours: Tensor, published: Tensor, rtol: float = RTOL) -> None:
    """Relative to the size of the tensor, as single cells may be arbitrarily near zero."""
    error = (ours.detach().double() - published.double()).norm() / published.double().norm().clamp_min(1e-12)
    assert error < rtol, f"relative error {error:.2e}"


def seeded_state_dict(shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Uniform values of a published model's size, in the order of the names.

    Only the raw bits of Philox are drawn, which numpy keeps the same over versions. So a golden file stores
    shapes in place of weights.
    """
    bits = np.random.Philox(seed)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        uniform = (bits.random_raw(math.prod(shape)) >> np.uint64(11)) * 2.0**-53
        std = shape[-1] ** -0.5 if len(shape) == 2 and "puzzle_emb" not in name else 1.0
        std *= 0.2 if name.endswith(".bias") else 1.0  # so that some sequences halt and some go on
        values = (2 * uniform - 1) * math.sqrt(3) * std
        state[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    return state


def sketch(tensor: Tensor) -> list[float]:
    """The norm of a tensor and NUM_PROJECTIONS sums of its cells under random signs.

    The mean square of such a sum is the tensor's squared norm, so that the sketches of two tensors differ as
    much as the tensors do, wherever they differ.
    """
    flat = tensor.detach().double().reshape(-1).numpy()
    words = np.random.Philox(flat.size).random_raw(-(-NUM_PROJECTIONS * flat.size // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: NUM_PROJECTIONS * flat.size]
    signs = bits.reshape(NUM_PROJECTIONS, flat.size) * 2.0 - 1
    return [float(np.linalg.norm(flat)), *(signs @ flat).tolist()]


def assert_same_sketch(ours: Tensor, published: list[float], rtol: float = RTOL) -> None:
    """Whether a tensor has the sketch of the published one, to an (estimated) relative error of the tensor."""
    difference = np.subtract(sketch(ours), published)[1:]
    error = np.sqrt(np.mean(difference**2)) / max(published[0], 1e-12)
    assert error < rtol, f"relative error about {error:.2e}"


def seeded_model(golden: dict[str, Any], **also: Tensor) -> ACTModel:
    """The model of a golden file that stores shapes; also: tensors that the published model does not have."""
    state = seeded_state_dict(golden["shapes"], golden["seed"])
    assert_same_sketch(torch.cat([tensor.reshape(-1) for tensor in state.values()]), golden["state_sketch"])
    return golden_model(golden, state | also)


def assert_same_numbers(ours: Mapping[str, Tensor], published: dict[str, float]) -> None:
    assert {key: value.item() for key, value in ours.items()} == pytest.approx(published, rel=RTOL)


def assert_same_evaluation(
    golden: dict[str, Any], model: ACTModel, carry: Carry, batch: Batch, said: Sequence[str]
) -> None:
    """Whether every segment from a carry on says (these outputs), carries and scores what the published one does."""
    model.eval()
    for segment in golden["eval_segments"]:
        with torch.no_grad():
            carry, outputs = model(carry, batch)
            loss, metrics = act_loss(carry, outputs, golden["loss_type"])
        for key in said:
            assert_close(outputs[key], segment[key])
        for key, state in carry.inner_carry._asdict().items():
            assert_same_sketch(state, segment[key])
        assert torch.equal(carry.steps, segment["steps"])
        assert torch.equal(carry.halted, segment["halted"])
        assert_same_numbers(metrics | {"loss": loss}, segment["metrics"] | {"loss": segment["loss"]})


def assert_same_gradients(model: ACTModel, published: dict[str, list[float]]) -> None:
    grads = {published_name(key): parameter.grad for key, parameter in model.named_parameters()}
    assert grads.keys() == published.keys()
    for key, expected in published.items():
        grad = grads[key]
        assert grad is not None
        assert_same_sketch(grad, expected)
