"""What a segment costs is what torch counts: bytes that the graph keeps, matmul operations."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch
from hrm_dist.model.flops import evaluation_flops_per_sequence, flops_per_sequence
from hrm_dist.model.layers import checkpoint_activations
from hrm_dist.model.memory_estimate import activation_bytes, memory_per_rank, num_parameters
from tests.unit.models import METADATA, arch_of, random_batch, saved_bytes, segment_loss
from tests.unit.test_packing import GRID_METADATA, WINDOWS, grid_batch
from tools.bench_train.activation_memory import peak_activation_bytes

COSTED = {
    "hrm": arch_of("hrm", hidden_size=96, num_heads=3),
    "bfloat16": arch_of("hrm", hidden_size=96, num_heads=3, forward_dtype="bfloat16", L_layers=3, H_cycles=3),
    "softmax": arch_of("hrm", hidden_size=96, pos_encodings="learned", loss_type="softmax_cross_entropy"),
    "no prefix": arch_of("hrm", hidden_size=96, puzzle_emb_ndim=0, halt_max_steps=1),
    "last cycle": arch_of("hrm", hidden_size=96, gradient="last_cycle", L_cycles=3, L_layers=2),
    "bptt": arch_of("hrm", hidden_size=96, gradient="bptt", H_cycles=3, H_layers=2),
    "trm": arch_of("trm", hidden_size=96, L_layers=2, forward_dtype="bfloat16"),
    "mlp_t": arch_of("trm", hidden_size=96, mlp_t=True, pos_encodings="none", L_cycles=3),
    "trm with Q-target": arch_of("trm", hidden_size=96, act_continue=True, expansion=9, puzzle_emb_len=0),
    "trm, one step": arch_of("trm", hidden_size=96, gradient="one_step", L_cycles=2),
    "urm": arch_of("urm", hidden_size=96, L_layers=2),
    "urm, bfloat16": arch_of("urm", hidden_size=96, forward_dtype="bfloat16", L_cycles=2, gradient="bptt"),
    "transformer": arch_of("transformer", hidden_size=96, H_layers=2),
    "looped transformer": arch_of("looped_transformer", hidden_size=96, H_layers=2),
    "trm, bptt": arch_of("trm", hidden_size=96, gradient="bptt", H_cycles=2, L_cycles=2),
    "EqR": arch_of("trm", hidden_size=96, initial_states="random", damping=0.95, update_noise=0.01),
    "chains": arch_of("trm", hidden_size=96, initial_states="random", num_chains=4),
    "chains with Q-target": arch_of("hrm", hidden_size=96, num_heads=3, segment_noise=0.1, num_chains=3),
}
every_arch = pytest.mark.parametrize("arch", COSTED.values(), ids=COSTED.keys())
recomputed_or_not = pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])


@recomputed_or_not
@every_arch
def test_activation_bytes_are_what_torch_saves_for_a_sequence_to_one_percent(
    arch: ArchConfig, checkpointing: bool
) -> None:
    # The difference leaves out what does not grow with the batch: rotary tables, weights cast to bfloat16.
    measured = (saved_bytes(arch, 4, checkpointing) - saved_bytes(arch, 2, checkpointing)) / 2
    assert activation_bytes(arch, METADATA, checkpointing) == pytest.approx(measured, rel=0.01)


@pytest.mark.filterwarnings("default")  # torch warns of itself in compiling
@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [("no prefix", False), ("no prefix", True), ("mlp_t", False), ("urm, bfloat16", False)],
)
def test_activation_bytes_are_what_compiled_levels_save_to_one_percent(
    name: str, checkpointing: bool
) -> None:
    arch = COSTED[name]
    few, many = (saved_bytes(arch, size, checkpointing, compiled=True) for size in (2, 4))
    estimate = activation_bytes(arch, METADATA, checkpointing, compiled=True)
    assert estimate == pytest.approx((many - few) / 2, rel=0.01)


def config_on_cpu(arch: ArchConfig, batch_size: int, checkpointing: bool) -> TrainConfig:
    return TrainConfig(
        data_path="unused",
        arch=arch,
        global_batch_size=batch_size,
        activation_checkpointing=checkpointing,
        device="cpu",
    )


@recomputed_or_not
@every_arch
def test_the_estimate_of_a_rank_is_near_the_peak_of_a_segment(arch: ArchConfig, checkpointing: bool) -> None:
    model = build_model(arch, METADATA)
    if checkpointing:
        checkpoint_activations(model)
    peak = peak_activation_bytes(model, random_batch(32, seed=0))
    config = config_on_cpu(arch, 32, checkpointing)
    estimate = memory_per_rank(config, METADATA, world_size=1)["activations"]
    # Left out: what the backward pass of a block takes on top, which shows where little is kept.
    assert estimate == pytest.approx(peak, rel=0.25 if checkpointing else 0.15)


def flops_of_convolution_backward(
    grad_shape: torch.Size, _in_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object
) -> int:
    """Gradients of the input and of the weights, each a multiply and an add for each that the forward makes."""
    return 2 * 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])


@recomputed_or_not
@every_arch
def test_flops_per_sequence_are_what_torch_counts_to_a_ten_thousandth(
    arch: ArchConfig, checkpointing: bool
) -> None:
    model, batch = build_model(arch, METADATA), random_batch(2, seed=0)
    if checkpointing:
        checkpoint_activations(model)
    # torch's own count takes the gradient of a depthwise convolution's weights for that of a full one.
    depthwise = {torch.ops.aten.convolution_backward: flops_of_convolution_backward}
    # The fused kernels' backward computes the scores anew, which is not counted here.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=depthwise) as counter,
    ):
        segment_loss(model, batch).backward()
    # Left out: the Q-head.
    counted = counter.get_total_flops() / 2
    assert flops_per_sequence(arch, METADATA, checkpointing) == pytest.approx(counted, rel=1e-4)


# Padding that is not computed

packed_or_kept = pytest.mark.parametrize(
    "arch",
    [arch for arch in COSTED.values() if not arch.mlp_t],
    ids=[name for name, arch in COSTED.items() if not arch.mlp_t],
)


def packed_model(arch: ArchConfig, batch: Batch, checkpointing: bool) -> tuple[ACTModel, np.ndarray]:
    """A model that computes no more rows than a batch needs, and the lengths of its sequences."""
    model = build_model(arch, GRID_METADATA, windows=WINDOWS)
    if checkpointing:
        checkpoint_activations(model)
    lengths = model.lengths(batch).numpy()
    model.forward = functools.partial(model.forward, num_rows=int(lengths.sum()))
    return model, lengths


def flops_of_attention(times: int) -> Callable[..., int]:
    """Two products with the scores of each sequence to itself; twice that in the backward pass."""

    def count(*tensors: torch.Tensor, **_: object) -> int:
        query, begins = (tensors[0], tensors[3]) if times == 1 else (tensors[1], tensors[4])
        return times * 4 * math.prod(query.shape[1:]) * int((begins.diff().to(torch.int64) ** 2).sum())

    count._get_raw = True  # pyright: ignore[reportFunctionMemberAccess] (what FlopCounterMode looks for)
    return count


@recomputed_or_not
@packed_or_kept
def test_flops_of_packed_sequences_are_what_torch_counts(arch: ArchConfig, checkpointing: bool) -> None:
    batch = grid_batch(6, seed=0)
    model, lengths = packed_model(arch, batch, checkpointing)
    attention = {
        torch.ops.hrm_dist.attend_one_by_one: flops_of_attention(1),
        torch.ops.hrm_dist.attend_one_by_one_backward: flops_of_attention(2),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        segment_loss(model, batch).backward()
    # torch counts products alone, and packed a convolution is none.
    tolerance = 0.01 if arch.name == "urm" else 1e-4
    assert len(set(lengths)) > 1
    expected = len(batch["inputs"]) * flops_per_sequence(arch, GRID_METADATA, checkpointing, lengths)
    assert expected == pytest.approx(counter.get_total_flops(), rel=tolerance)


@recomputed_or_not
@packed_or_kept
def test_the_estimate_follows_the_rows_of_packed_sequences(arch: ArchConfig, checkpointing: bool) -> None:
    batch = grid_batch(64, seed=0)
    model, lengths = packed_model(arch, batch, checkpointing)
    peak = peak_activation_bytes(model, batch)
    config = config_on_cpu(arch, 64, checkpointing)
    estimate = memory_per_rank(config, GRID_METADATA, world_size=1, num_rows=int(lengths.sum()))[
        "activations"
    ]
    assert estimate == pytest.approx(peak, rel=0.25 if checkpointing else 0.15)


def test_windows_of_a_quarter_make_attention_and_the_rest_that_much_cheaper() -> None:
    arch, shape = arch_of("trm", hidden_size=96), {"seq_len": 400, "num_puzzle_identifiers": 1}
    whole, few = (
        evaluation_flops_per_sequence(arch, METADATA.model_copy(update=shape), np.array([length]))
        for length in (400, 100)
    )
    assert 4 < whole / few < 16
    both = evaluation_flops_per_sequence(arch, METADATA.model_copy(update=shape), np.array([400, 100]))
    assert both == pytest.approx((whole + few) / 2)


# How memory for the backward pass grows with the cycles (H_cycles, L_cycles)


def bytes_at(arch: ArchConfig, cycles: tuple[int, int]) -> int:
    H_cycles, L_cycles = cycles
    return saved_bytes(arch.model_copy(update={"H_cycles": H_cycles, "L_cycles": L_cycles}), 2)


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
@pytest.mark.parametrize("cycles", [(1, 1), (4, 4), (8, 8), (1, 9), (9, 1)])
def test_one_step_keeps_the_same_bytes_at_any_number_of_cycles(name: str, cycles: tuple[int, int]) -> None:
    arch = arch_of(name, gradient="one_step")
    assert bytes_at(arch, cycles) == bytes_at(arch, (2, 2))


@pytest.mark.parametrize("name", ["hrm", "trm"])
def test_last_cycle_keeps_bytes_for_the_l_cycles_alone(name: str) -> None:
    arch = arch_of(name, gradient="last_cycle")
    few, more, many = (bytes_at(arch, (2, L_cycles)) for L_cycles in (2, 4, 8))
    assert (many - more) == pytest.approx(2 * (more - few), rel=0.001)
    assert more > 1.3 * few
    assert bytes_at(arch, (8, 4)) == more


@pytest.mark.parametrize("name", ["hrm", "trm"])
def test_bptt_keeps_bytes_in_proportion_to_the_updates(name: str) -> None:
    arch = arch_of(name, gradient="bptt")
    few, more, many = (bytes_at(arch, cycles) for cycles in ((2, 2), (4, 4), (8, 8)))
    # 6, 20 and 72 updates of H and L
    assert (many - more) / (more - few) == pytest.approx((72 - 20) / (20 - 6), rel=0.001)
    assert many > 8 * few


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizer"),
    [("ddp", 4, 4, 8), ("zero1", 5, 4, 2), ("zero2", 5, 1, 2), ("zero3", 2, 1, 2), ("fsdp2", 1, 1, 2)],
)
def test_a_rank_of_four_holds_the_share_that_its_engine_leaves_it(
    engine: str, weights: int, gradients: int, optimizer: int
) -> None:
    config = TrainConfig.model_validate({"data_path": "unused", "engine": engine, "ema": True})
    memory = memory_per_rank(config, METADATA, world_size=4)
    quarter = num_parameters(config.arch, METADATA)
    assert memory["weights"] == pytest.approx(weights * quarter)
    assert memory["gradients"] == pytest.approx(gradients * quarter)
    assert memory["optimizer"] == pytest.approx(optimizer * quarter)
    assert memory["moving average"] == pytest.approx(optimizer / 2 * quarter)
