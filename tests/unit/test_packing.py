"""Padding that is not computed: what is packed comes back, and everything is as if nobody attended to the rest."""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.arc.tokens import PAD_ID, encode
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch
from hrm_dist.model.layers import Attention, Positions
from hrm_dist.model.losses import act_loss
from hrm_dist.model.network import Network
from hrm_dist.model.packed_attention import dense_attention, packed_attention
from hrm_dist.model.packing import Packing, inside_windows, pack, pack_rows, unpack
from hrm_dist.model.recurrences.urm import DepthwiseConv
from tests.unit.models import METADATA, arch_of, let_halting_vary

CANVAS = 5
GRID_METADATA = METADATA.model_copy(update={"seq_len": CANVAS**2})
WINDOWS = torch.tensor([[5, 5], [3, 2], [2, 4], [4, 4], [5, 2]], dtype=torch.uint8)
ARCHS = [
    *(arch_of(name, halt_max_steps=3, **ARCHITECTURES[name].fixed) for name in ("hrm", "trm", "urm")),
    *(arch_of(name) for name in ("transformer", "looped_transformer")),
    arch_of("hrm", pos_encodings="learned", act_continue=False),
    arch_of("hrm", puzzle_emb_ndim=0, gradient="bptt"),
    arch_of("hrm", initial_states="random", segment_noise=0.3, update_noise=0.1, damping=0.8),
]


def name_of(arch: ArchConfig) -> str:
    return f"{arch.name}-{arch.pos_encodings}-{arch.gradient}-{arch.initial_states}"


def grid_batch(size: int, seed: int) -> Batch:
    """Grids that lie within the windows of their puzzles, anywhere on the canvas."""
    draw = np.random.default_rng(seed)
    identifiers = draw.integers(1, len(WINDOWS), size)
    boards: list[np.ndarray] = []
    for identifier in identifiers:
        height, width = (min(int(side), CANVAS - 1) for side in WINDOWS[identifier])
        down, right = draw.integers(0, CANVAS - height + 1), draw.integers(0, CANVAS - width + 1)
        grid = draw.integers(0, 10, (2, max(1, height - 1), max(1, width - 1))).astype(np.uint8)
        boards.append(encode(grid, CANVAS, down, right))
    tokens = torch.from_numpy(np.stack(boards)).to(torch.int32)
    labels = torch.where(tokens[:, 1] == PAD_ID, -100, tokens[:, 1])
    return {
        "inputs": tokens[:, 0].contiguous(),
        "labels": labels,
        "puzzle_identifiers": torch.from_numpy(identifiers.astype(np.int32)),
    }


def model_of(arch: ArchConfig, windows: Tensor | None) -> ACTModel:
    model = build_model(arch, GRID_METADATA, seed=1, windows=windows)
    if model.puzzle_emb is not None:
        let_halting_vary(model)
    return model


@contextmanager
def masked(is_inside: Tensor) -> Any:
    """Let nobody attend to positions outside, nor a convolution see them."""
    attend, mix = F.scaled_dot_product_attention, DepthwiseConv.forward

    def attend_inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=is_inside[:, None, None, :])

    def mix_inside(self: DepthwiseConv, x: Tensor, packing: None) -> Tensor:
        return mix(self, torch.where(is_inside[..., None], x, 0), packing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend_inside)
        patch.setattr(DepthwiseConv, "forward", mix_inside)
        yield


Run = tuple[list[dict[str, Tensor]], dict[str, Tensor]]


def run(
    model: ACTModel, batches: list[Batch], inside: Callable[[Batch], Any], num_rows: int | None = None
) -> Run:
    """Run a segment on each batch; return what each says, and the gradients of them all."""
    model.train()
    carry, said = model.initial_carry(batches[0]), []
    for batch in batches:
        data = {
            name: torch.where(carry.halted.view(-1, *[1] * (old.ndim - 1)), batch[name], old)
            for name, old in carry.current_data.items()
        }
        with inside(data):
            noise_keys = 100 * len(said) + torch.arange(len(carry.steps))
            carry, outputs = model(carry, batch, torch.zeros(len(carry.steps)), num_rows, noise_keys)
            loss, metrics = act_loss(carry, outputs, model.arch.loss_type)
            loss.backward()
        states = {name: getattr(carry.inner_carry, name) for name in model.arch.description.states}
        said.append({**outputs, **states, **metrics, "halted": carry.halted, "loss": loss.detach()})
    return said, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def anything(_: Batch) -> Any:
    yield


def assert_equal_runs(
    one: Run, other: Run, is_inside: list[Tensor] | None = None, **tolerance: float
) -> None:
    for step, (left, right) in enumerate(zip(one[0], other[0], strict=True)):
        for name, value in left.items():
            expected = right[name]
            if is_inside is not None and value.ndim == 3:
                inside = is_inside[step][:, -value.shape[1] :]
                value, expected = value[inside], expected[inside]
            torch.testing.assert_close(
                value, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        # Where terms cancel out, their rounding stays: it is measured by the largest element.
        scale = float(other[1][name].abs().max())
        torch.testing.assert_close(gradient, other[1][name], rtol=0, atol=1e-4 * scale + 1e-6)


@pytest.mark.parametrize(
    "arch", ARCHS, ids=lambda arch: f"{arch.name}-{arch.pos_encodings}-{arch.gradient}-{arch.initial_states}"
)
def test_skipped_padding_equals_padding_that_nobody_sees(arch: ArchConfig) -> None:
    packed, whole = model_of(arch, WINDOWS), model_of(arch, None)
    batches = [grid_batch(6, seed) for seed in range(2)]
    seen: list[Tensor] = []

    def inside(data: Batch) -> Any:
        seen.append(packed._is_inside(data))
        return masked(seen[-1])

    expected = run(whole, batches, inside)
    assert not all(mask.all() for mask in seen)
    found = run(packed, batches, anything, num_rows=6 * packed.seq_len - 7)
    assert_equal_runs(found, expected, seen, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "arch", ARCHS, ids=lambda arch: f"{arch.name}-{arch.pos_encodings}-{arch.gradient}-{arch.initial_states}"
)
def test_windows_of_the_whole_canvas_equal_computed_padding(arch: ArchConfig) -> None:
    whole_canvas = torch.full_like(WINDOWS, CANVAS)
    batches = [grid_batch(6, seed) for seed in range(3)]
    for batch in batches:  # grids at the top left, from where a window reaches over all
        batch["inputs"][:, :: CANVAS + 1] = 3
    found = run(model_of(arch, whole_canvas), batches, anything)
    assert_equal_runs(found, run(model_of(arch, None), batches, anything), rtol=1e-4, atol=2e-5)


def test_tokens_outside_of_the_window_are_predicted_as_padding() -> None:
    model, batch = model_of(arch_of("hrm"), WINDOWS).eval(), grid_batch(6, seed=0)
    _, outputs = model(model.initial_carry(batch), batch)
    outside = ~model._is_inside(batch)[:, model.arch.prefix_len :]
    assert outside.any()
    assert (outputs["logits"].argmax(-1)[outside] == PAD_ID).all()


def test_empty_rows_change_nothing() -> None:
    arch, batches = arch_of("urm"), [grid_batch(4, seed) for seed in range(2)]
    model = model_of(arch, WINDOWS)
    least = max(int(model.lengths(batch).sum()) for batch in batches)
    found = [
        run(model_of(arch, WINDOWS), batches, anything, num_rows) for num_rows in (4 * model.seq_len, least)
    ]
    assert_equal_runs(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("default")  # of torch's compiler
def test_packed_segments_compile_without_graph_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    arch, batches = arch_of("urm"), [grid_batch(4, seed) for seed in range(2)]
    torch._dynamo.reset()
    # Traced and differentiated as for Inductor, whose code would take a minute to compile.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = model_of(arch, WINDOWS)
    model.compile_parts()
    assert isinstance(model.network, Network)
    model.network.compile_parts(with_ends=True)
    found = run(model, batches, anything, num_rows=90)
    assert_equal_runs(found, run(model_of(arch, WINDOWS), batches, anything), rtol=1e-4, atol=2e-5)


masks = st.integers(1, 4).flatmap(
    lambda num: st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=num, max_size=num).map(
        torch.tensor
    )
)


@given(masks, st.integers(0, 5))
def test_what_is_packed_comes_back(is_inside: Tensor, empty: int) -> None:
    num_rows = max(1, int(is_inside.sum()) + empty)
    x = torch.randn(*is_inside.shape, 3)
    packing = pack_rows(is_inside, num_rows)
    back = unpack(pack(x, packing), torch.tensor(-7.0), packing)
    assert torch.equal(back, torch.where(is_inside[..., None], x, -7.0))
    assert torch.equal(pack(x, packing)[: int(is_inside.sum())], x[is_inside])


@given(masks)
def test_packing_has_the_gradients_of_indexing(is_inside: Tensor) -> None:
    x = torch.randn(*is_inside.shape, 3, dtype=torch.float64, requires_grad=True)
    packing = pack_rows(is_inside, max(1, int(is_inside.sum())) + 2)
    weight = torch.randn(*x.shape, dtype=torch.float64)
    (unpack(pack(x, packing) * 2, torch.tensor(0.0), packing) * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(is_inside[..., None], 2 * weight, 0))


@given(masks)
def test_a_row_continues_the_one_before_where_positions_are_neighbours(is_inside: Tensor) -> None:
    packing = pack_rows(is_inside, int(is_inside.sum()) + 1)
    neighbour = F.pad(is_inside, (1, 0))[:, :-1] & is_inside
    assert torch.equal(packing.continues_N[:-1], neighbour[is_inside])
    assert not packing.continues_N[-1]


def test_a_window_moves_with_the_grid_and_ends_with_the_canvas() -> None:
    grid = np.full((2, 2), 3, dtype=np.uint8)
    places = {(0, 0): (0, 3, 0, 3), (1, 2): (1, 4, 2, 5), (3, 3): (3, 5, 3, 5)}
    for (down, right), (top, bottom, left, end) in places.items():
        tokens = torch.from_numpy(encode(grid, CANVAS, down, right))[None]
        inside = inside_windows(tokens, torch.tensor([[3, 3]]), PAD_ID).view(CANVAS, CANVAS)
        expected = torch.zeros(CANVAS, CANVAS, dtype=torch.bool)
        expected[top:bottom, left:end] = True
        assert torch.equal(inside, expected)


def packed_qkv(dtype: torch.dtype, device: str) -> tuple[list[Tensor], Packing]:
    generator = torch.Generator().manual_seed(0)
    is_inside = (torch.rand(3, 40, generator=generator) < 0.4).to(device)
    packing = pack_rows(is_inside, int(is_inside.sum()) + 9)
    shape = (len(packing.position_N), 2, 16)
    tensors = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    return tensors, packing


def mixed_with_gradients(attend: Callable[..., Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    tensors, packing = packed_qkv(dtype, device)
    mixed = attend(*tensors, packing)
    used = packing.is_used_N[:, None, None]
    return [mixed.detach(), *torch.autograd.grad((mixed * used).square().sum(), tensors)]


def test_sequences_one_by_one_equal_a_dense_batch_with_a_mask() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        found, expected = (mixed_with_gradients(f, dtype, "cpu") for f in (packed_attention, dense_attention))
        for ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_variable_length_attention_equals_a_dense_batch_with_a_mask() -> None:
    found, expected = (
        mixed_with_gradients(f, torch.bfloat16, "cuda") for f in (packed_attention, dense_attention)
    )
    for ours, other in zip(found, expected, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, other, rtol=3e-2, atol=3e-2)


def test_attention_keeps_to_a_sequence() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight)
    is_inside = torch.tensor([[True, True, False], [True, False, True]])
    packing = pack_rows(is_inside, 6)
    x = torch.randn(2, 3, 8)
    mixed = attention(pack(x, packing).unsqueeze(0), Positions(packing=packing)).squeeze(0)
    for sequence, rows in enumerate((slice(0, 2), slice(2, 4))):
        alone = attention(x[sequence][is_inside[sequence]].unsqueeze(0), Positions()).squeeze(0)
        torch.testing.assert_close(mixed[rows], alone)
