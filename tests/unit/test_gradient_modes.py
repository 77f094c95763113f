"""`arch.gradient` and recomputed blocks: which gradient comes out, that the numbers stay the same."""

import pytest
import torch
from torch import Tensor

from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel
from hrm_dist.model.layers import Block, checkpoint_activations
from hrm_dist.model.recurrences.base import States
from hrm_dist.trainer import Trainer
from tests.unit.models import METADATA, arch_of, let_halting_vary, random_batch, segment_loss
from tools.bench_train.speed import RandomReader

MODES = ("one_step", "last_cycle", "bptt")
# Of two slow and six fast updates, those that carry gradient.
FAST_WITH_GRADIENT = {"one_step": {6}, "last_cycle": {4, 5, 6}, "bptt": {1, 2, 3, 4, 5, 6}}
SLOW_WITH_GRADIENT = {"one_step": {2}, "last_cycle": {2}, "bptt": {1, 2}}


def model_of(name: str, **fields: object) -> ACTModel:
    model = build_model(arch_of(name, H_cycles=2, L_cycles=3, **fields), METADATA, seed=1)
    let_halting_vary(model)
    return model


def gradients(model: ACTModel) -> dict[str, Tensor]:
    """Of the loss of the second segment, whose carry is not the initial one."""
    batch = random_batch(4, seed=1)
    carry, _ = model(model.initial_carry(batch), batch, torch.full((4,), 9))
    model.zero_grad()
    carry, outputs = model(carry, batch, torch.zeros(4))
    weighted = (outputs["logits"] ** 2).sum() + outputs["q_halt_logits"].sum()
    weighted.backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


def cut_by_hand(model: ACTModel) -> None:
    """Have the recurrence written out, every update with gradient, cut after those that carry none."""
    recurrence, mode = model.get_submodule("network.recurrence"), model.arch.gradient

    def forward_of_one_state(states: States, input_BSD: Tensor, rope: object, _: None) -> States:
        [z] = states
        for fast in range(1, 7):
            z = recurrence.get_submodule("level")(z, rope, input_BSD)
            z = z if fast in FAST_WITH_GRADIENT[mode] else z.detach()
        return (z,)

    if model.arch.name == "urm":
        recurrence.forward = forward_of_one_state  # type: ignore[method-assign]
        return
    L_level = recurrence.get_submodule("L_level")
    H_level = recurrence.get_submodule("H_level") if model.arch.name == "hrm" else L_level

    def forward(states: States, input_BSD: Tensor, rope: object, _: None) -> States:
        z_H, z_L = states
        for fast in range(1, 7):
            z_L = L_level(z_L, rope, z_H, input_BSD)
            z_L = z_L if fast in FAST_WITH_GRADIENT[mode] else z_L.detach()
            if fast in (3, 6):
                z_H = H_level(z_H, rope, z_L)
                z_H = z_H if fast // 3 in SLOW_WITH_GRADIENT[mode] else z_H.detach()
        return z_H, z_L

    recurrence.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_the_gradient_is_that_of_a_graph_cut_by_hand(name: str, mode: str) -> None:
    model, reference = model_of(name, gradient=mode), model_of(name, gradient=mode)
    cut_by_hand(reference)
    ours, expected = gradients(model), gradients(reference)
    assert ours.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for key, gradient in expected.items():
        assert torch.equal(ours[key], gradient), key


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_modes_differ_in_gradient_and_in_no_output(name: str) -> None:
    models = [model_of(name, gradient=mode) for mode in MODES]
    batch = random_batch(4, seed=1)
    minimum = torch.zeros(4)
    runs = [model(model.initial_carry(batch), batch, minimum) for model in models]
    for carry, outputs in runs[1:]:
        assert all(map(torch.equal, carry.inner_carry, runs[0][0].inner_carry))
        for key, value in outputs.items():
            assert torch.equal(value, runs[0][1][key]), key
    level = "level" if name == "urm" else "L_level"
    weight = f"network.recurrence.{level}.layers.0.mlp.down_proj.weight"
    one_step, last_cycle, bptt = (gradients(model)[weight] for model in models)
    assert not torch.allclose(one_step, last_cycle)
    assert not torch.allclose(last_cycle, bptt)


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_bptt_stops_at_the_carry_of_the_segment_before(name: str) -> None:
    model, batch = model_of(name, gradient="bptt"), random_batch(2, seed=0)
    carry, _ = model(model.initial_carry(batch), batch)
    assert not any(state.requires_grad for state in carry.inner_carry)


@pytest.mark.parametrize(
    ("name", "mode"), [("hrm", "one_step"), ("trm", "last_cycle"), ("urm", "last_cycle")]
)
def test_the_published_gradient_is_the_default(name: str, mode: str) -> None:
    assert ArchConfig.model_validate({"name": name}).gradient == mode


RECOMPUTED = {
    "hrm": {"name": "hrm"},
    "hrm bptt": {"name": "hrm", "gradient": "bptt"},
    "hrm bfloat16": {"name": "hrm", "gradient": "last_cycle", "forward_dtype": "bfloat16", "L_layers": 2},
    "trm": {"name": "trm"},
    "urm": {"name": "urm"},
    "trm bptt": {"name": "trm", "gradient": "bptt"},
    "mlp_t": {"name": "trm", "mlp_t": True, "pos_encodings": "none"},
}


@pytest.mark.parametrize("fields", RECOMPUTED.values(), ids=RECOMPUTED.keys())
def test_recomputed_blocks_give_the_same_gradient_bit_for_bit(fields: dict[str, object]) -> None:
    kept, recomputed = model_of(**fields), model_of(**fields)  # type: ignore[arg-type]
    checkpoint_activations(recomputed)
    expected, ours = gradients(kept), gradients(recomputed)
    assert ours.keys() == expected.keys()
    for key, gradient in expected.items():
        assert torch.equal(ours[key], gradient), key


def test_hooks_of_a_recomputed_block_run_in_the_forward_alone() -> None:
    # An engine that gathers a block's weights in hooks must not do so once more for the recomputation.
    model = model_of("hrm", gradient="bptt")
    checkpoint_activations(model)
    called: list[str] = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda *_: called.append("before"))
            module.register_forward_hook(lambda *_: called.append("after"))
    loss = segment_loss(model, random_batch(2, seed=0))
    num_calls = len(called)
    assert num_calls == 2 * 2 * 8  # before and after, segment and Q-target, six updates of L and two of H
    loss.backward()
    assert len(called) == num_calls


def losses_of_a_run(**fields: object) -> list[float]:
    config = TrainConfig.model_validate(
        {"data_path": "none", "arch": arch_of("hrm"), "precision": "fp32", "global_batch_size": 4, **fields}
    )
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, world, RandomReader(METADATA, 4, world))
    for step in range(4):
        trainer.train_step(trainer.reader.batch(step))
    recomputes = {
        block.activation_checkpointing for block in trainer.model.modules() if isinstance(block, Block)
    }
    assert recomputes == {config.activation_checkpointing}
    return trainer.state.sums.values.tolist()


def test_activation_checkpointing_does_not_change_a_run() -> None:
    assert losses_of_a_run(activation_checkpointing=True) == losses_of_a_run()
