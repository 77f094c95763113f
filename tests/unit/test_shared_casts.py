"""Weights that are cast once a segment: fewer casts, the same numbers to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from hrm_dist.config import TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel
from hrm_dist.trainer import build_distributed_model
from tests.unit.models import METADATA, arch_of, let_halting_vary, random_batch, segment_loss

KINDS = {"hrm": {}, "trm": {}, "urm": {}, "mlp_t": {"mlp_t": True, "pos_encodings": "none"}}


def model_of(kind: str, *, casts_once: bool) -> ACTModel:
    name = "trm" if kind == "mlp_t" else kind
    arch = arch_of(name, H_cycles=2, L_cycles=3, forward_dtype="bfloat16", **KINDS[kind])
    model = build_model(arch, METADATA, seed=1)
    let_halting_vary(model)
    model.recurrence.casts_once = casts_once
    return model


def numbers(model: ACTModel) -> dict[str, Tensor]:
    loss = segment_loss(model, random_batch(4, seed=1))
    loss.backward()
    gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_same_to_the_bit(kind: str) -> None:
    ours, expected = numbers(model_of(kind, casts_once=True)), numbers(model_of(kind, casts_once=False))
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key


class _Casts(TorchDispatchMode):
    """Count the weights of one size that are cast, and the segments that cast all at once."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.alone, self.together = shape, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.alone += func is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        self.together += func is torch.ops.aten._foreach_copy_.default
        return func(*args, **(kwargs or {}))


def test_only_updates_with_gradient_cast_a_weight_by_themselves() -> None:
    model = model_of("hrm", casts_once=True)
    weight = model.get_parameter("network.recurrence.L_level.layers.0.mlp.gate_up_proj.weight")
    with _Casts(weight.shape) as casts:
        segment_loss(model, random_batch(4, seed=1))
    assert casts.alone == 2  # the last update of each level; each has one weight of this size
    assert casts.together == 2  # the segment, and the one that values the next


def test_nothing_is_kept_of_a_segment() -> None:
    model = model_of("hrm", casts_once=True)
    segment_loss(model, random_batch(4, seed=1))
    assert all(getattr(module, "cast_weight", None) is None for module in model.modules())


def num_compiled(model: ACTModel) -> int:
    counter = CompileCounter()
    torch._dynamo.reset()
    for level in ("L_level", "H_level"):
        module = model.get_submodule(f"network.recurrence.{level}")
        module.compile(backend=counter, fullgraph=True, dynamic=False)
    for seed in range(2):
        segment_loss(model.train(), random_batch(4, seed)).backward()
        with torch.no_grad():
            segment_loss(model.eval(), random_batch(4, seed))
    return counter.frame_count


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
def test_levels_are_compiled_as_often_as_without() -> None:
    ours, expected = (num_compiled(model_of("hrm", casts_once=once)) for once in (True, False))
    assert ours == expected


@pytest.mark.parametrize(("gather_unit", "casts_once"), [("loop", True), ("layer", False)])
def test_where_weights_are_gathered_in_parts_each_use_casts(
    gather_unit: str, casts_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data_path": "-", "arch": arch_of("hrm"), "engine": "fsdp2", "gather_unit": gather_unit}
    config = TrainConfig.model_validate(settings)
    networks: list[Any] = []

    def note(network: Any, *_: object) -> Any:
        networks.append(network)
        raise NotImplementedError

    monkeypatch.setattr("hrm_dist.trainer.build_engine", note)
    for chosen_on_the_device in ("use_attention_kernel", "use_fused_swiglu"):
        monkeypatch.setattr(f"hrm_dist.trainer.{chosen_on_the_device}", lambda *_: None)
    with pytest.raises(NotImplementedError):
        build_distributed_model(config, METADATA, World(0, 1, torch.device("cuda")))
    assert networks[0].recurrence.casts_once == casts_once
