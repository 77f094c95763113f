"""The layers of the published models: RoPE attention, SwiGLU, post-norm blocks.

Weights are cast in the forward.
Shape legend. H and L name the two levels of the recurrence, so they are never dimensions:
  B sequences   S = P + T   P puzzle-embedding prefix   T tokens   D hidden_size   N heads   K head size
"""

import functools
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812  (the name the field uses)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from hrm_dist.config import ArchConfig
from hrm_dist.model.initialization import InitFn, truncated_normal
from hrm_dist.model.packed_attention import packed_attention
from hrm_dist.model.packing import Packing

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_ALIGNMENT = 8  # numbers of 2 bytes: what kernels read at a time


class Rope(NamedTuple):
    """Rotation tables of the positions, in float32."""

    cos_SK: Tensor
    sin_SK: Tensor


class Positions(NamedTuple):
    """What blocks are told about the positions that they compute.

    Packed, their input is [1, N, D], and N takes the place of S everywhere.
    """

    rope: Rope | None = None
    """None where positions enter otherwise."""
    packing: Packing | None = None
    """None where all positions of B sequences are there."""


class CastedLinear(nn.Module):
    """A linear map with float32 weights that computes in its input's dtype; LeCun-normal start."""

    cast_weight: Tensor | None = None
    """The weight in the dtype of activations, `arranged`, while the updates without gradient share it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def init_weights(self, init: InitFn) -> None:
        init("weight", truncated_normal(self.weight.shape[1] ** -0.5))

    def arranged(self, weight: Tensor) -> Tensor:
        """Return a weight in the order of elements that updates without gradient take."""
        return weight

    def weight_for(self, x: Tensor) -> Tensor:
        """Return the weight in its input's dtype; cast anew for each use with gradient, to sum those in float32."""
        if self.cast_weight is None or torch.is_grad_enabled():
            return self.weight.to(x.dtype)
        return self.cast_weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_for(x))


class _PositionProduct(torch.autograd.Function):
    """weight @ x of each sequence: [R, S] and [B, S, D] -> [B, R, D].

    Every product reads and writes rows that are contiguous in a long dimension, however odd S is: kernels for rows at
    odd addresses take several times as long. So the weight is laid out by columns, and so is its gradient.
    """

    @staticmethod
    def forward(ctx: Any, weight_RS: Tensor, x_BSD: Tensor) -> Tensor:
        weight = weight_RS.to(x_BSD.dtype)
        if weight.shape[1] % _ALIGNMENT:
            weight = weight.t().contiguous().t()
        ctx.save_for_backward(weight, x_BSD)
        ctx.weight_dtype = weight_RS.dtype
        return torch.bmm(weight.expand(len(x_BSD), -1, -1), x_BSD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        [gradient_BRD] = gradients
        weight, x_BSD = ctx.saved_tensors
        gradient_of_x = torch.bmm(weight.t().expand(len(x_BSD), -1, -1), gradient_BRD)
        if weight.shape[1] % _ALIGNMENT:
            # One product of each sequence, as a single product over all would have to copy both to be contiguous.
            of_weight = torch.bmm(x_BSD, gradient_BRD.transpose(1, 2)).sum(0, dtype=ctx.weight_dtype).t()
        else:
            of_weight = torch.bmm(gradient_BRD, x_BSD.transpose(1, 2)).sum(0, dtype=ctx.weight_dtype)
        return of_weight, gradient_of_x


class PositionLinear(CastedLinear):
    """A linear map over the positions, [B, S, D] -> [B, R, D]."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # which has no slow kernels for odd rows; to the bit as published
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        weight = self.weight if torch.is_grad_enabled() else self.weight_for(x)
        return cast("Tensor", _PositionProduct.apply(weight, x))


class QHead(nn.Module):
    """Halt and continue values, [B, D] -> [B, 2]; starts at (almost) zero reward, sigmoid(-5)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, hidden_size))
        self.bias = nn.Parameter(torch.empty(2))

    def init_weights(self, init: InitFn) -> None:
        init("weight", 0.0)
        init("bias", -5.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class CastedEmbedding(nn.Module):
    """A table of float32 vectors, looked up in the dtype of the activations."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))

    def init_weights(self, init: InitFn) -> None:
        init("embedding_weight", truncated_normal(self.embedding_weight.shape[1] ** -0.5))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.embedding_weight.to(self.dtype))


def rope_tables(num_positions: int, head_size: int, theta: float, device: torch.device) -> Rope:
    """Return the rotation tables of RoPE in its half-split form (the two halves of a head are a pair)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, 1.0 / theta**exponents).repeat(1, 2)
    return Rope(angles.cos(), angles.sin())


def _rotate(x_BSNK: Tensor, rope: Rope) -> Tensor:
    """Rotate queries or keys by their positions, in float32."""
    x = x_BSNK.to(rope.cos_SK.dtype)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * rope.cos_SK.unsqueeze(-2) + turned * rope.sin_SK.unsqueeze(-2)).to(x_BSNK.dtype)


class Attention(nn.Module):
    """Full (not causal) self-attention through torch's scaled_dot_product_attention, by `kernel` if one is chosen."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.kernel: SDPBackend | None = None
        self.qkv_proj = CastedLinear(hidden_size, 3 * hidden_size)
        self.o_proj = CastedLinear(hidden_size, hidden_size)

    def forward(self, x_BSD: Tensor, positions: Positions) -> Tensor:
        qkv = self.qkv_proj(x_BSD).unflatten(-1, (3 * self.num_heads, -1))
        qk_BSNK, v_BSNK = qkv.split((2 * self.num_heads, self.num_heads), dim=2)
        if positions.rope is not None:
            qk_BSNK = _rotate(qk_BSNK, positions.rope)
        q_BSNK, k_BSNK = qk_BSNK.chunk(2, dim=2)
        if positions.packing is not None:
            mixed = packed_attention(q_BSNK[0], k_BSNK[0], v_BSNK[0], positions.packing)
            return self.o_proj(mixed.flatten(1).unsqueeze(0))
        with nullcontext() if self.kernel is None else sdpa_kernel(self.kernel):
            mixed_BNSK = F.scaled_dot_product_attention(
                q_BSNK.transpose(1, 2), k_BSNK.transpose(1, 2), v_BSNK.transpose(1, 2)
            )
        return self.o_proj(mixed_BNSK.transpose(1, 2).flatten(2))

    def flops(self, num_rows: int) -> int:
        return num_rows * self.hidden_size * (8 * self.hidden_size + 4 * num_rows)

    def saved_numbers(self, num_rows: int, *, rotates: bool) -> int:
        """Count the input, the projected q, k and v, q and k rotated, and the output."""
        return num_rows * self.hidden_size * (7 if rotates else 5)

    def working_bytes(self, num_rows: int, item: int, *, rotates: bool, compiled: bool) -> int:
        """Return the most bytes alive in a forward that keeps nothing, beside its input; `item`: of a number."""
        projected = num_rows * self.hidden_size * 3 * item
        if rotates and not compiled:  # q and k, turned, each times its table, and their sum: all in float32
            return projected + num_rows * 2 * self.hidden_size * 4 * (5 if item < 4 else 4)
        return 2 * projected  # q and k rotated, and the output


def swiglu_size(in_size: int, expansion: float) -> int:
    """Return the width of a SwiGLU's hidden layer: two thirds of the expansion, rounded up to a multiple of 256."""
    return -(-round(expansion * in_size * 2 / 3) // 256) * 256


def _silu_times(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _fused_weight(linear: CastedLinear, x: Tensor) -> Tensor:
    shared = linear.cast_weight
    return linear.arranged(linear.weight.to(x.dtype)) if shared is None else shared


class GateUp(CastedLinear):
    """silu(gate) * up, where gate and up are the halves of a linear map's result."""

    is_fused = False
    """Whether updates without gradient take one kernel for it, as hrm_dist.model.kernels decides."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fused and not torch.is_grad_enabled():
            return torch.ops.hrm_dist.silu_gate_up(x, _fused_weight(self, x))
        return _silu_times(*super().forward(x).chunk(2, dim=-1))


class PositionGateUp(PositionLinear):
    """GateUp over the positions."""

    is_fused = False

    def arranged(self, weight: Tensor) -> Tensor:
        """Return it by columns, as the fused kernel takes it."""
        return weight.t().contiguous() if self.is_fused else weight

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fused and not torch.is_grad_enabled():
            return torch.ops.hrm_dist.silu_gate_up_over_positions(x, _fused_weight(self, x))
        return _silu_times(*super().forward(x).chunk(2, dim=1))


class SwiGLU(nn.Module):
    """Gated feed-forward layer over the last dimension."""

    gate_up: type[CastedLinear] = GateUp
    down: type[CastedLinear] = CastedLinear

    def __init__(self, size: int, expansion: float) -> None:
        super().__init__()
        self.size, self.inner_size = size, swiglu_size(size, expansion)
        self.gate_up_proj = self.gate_up(size, 2 * self.inner_size)
        self.down_proj = self.down(self.inner_size, size)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """Map x; `packing` is for those that mix positions."""
        return self.down_proj(self.gate_up_proj(x))

    def flops(self, num_rows: int) -> int:
        return num_rows * 6 * self.size * self.inner_size

    def saved_numbers(self, num_rows: int, *, compiled: bool) -> int:
        """Count the input, gate and up, their product and, where it is not computed again, the activated gate."""
        return num_rows * (self.size + (3 if compiled else 4) * self.inner_size)

    def working_numbers(self, num_rows: int, *, compiled: bool) -> int:
        """Count the most numbers alive in a forward that keeps nothing, beside its input."""
        return num_rows * (3 if compiled else 4) * self.inner_size

    def gradient_numbers(self, num_rows: int) -> int:
        """Count what the backward pass holds before it lets go of as much: the gradients of gate and up."""
        return num_rows * 2 * self.inner_size


class PositionSwiGLU(SwiGLU):
    """Gated feed-forward layer over the positions of [B, S, D]."""

    gate_up = PositionGateUp
    down = PositionLinear


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Apply RMSNorm over the last dimension without a weight, computed in float32."""
    return F.rms_norm(x.to(torch.float32), (x.shape[-1],), eps=eps).to(x.dtype)


def rms_norm_over_positions(x_BSD: Tensor, eps: float) -> Tensor:
    """Apply RMSNorm over the positions, which torch's own would make the contiguous dimension."""
    if x_BSD.device.type == "cpu":
        return rms_norm(x_BSD.transpose(1, 2), eps).transpose(1, 2)
    x = x_BSD.to(torch.float32)
    return (x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)).to(x_BSD.dtype)


class Block(nn.Module):
    """Post-norm block: mix the positions (attention, or TRM's MLP over the sequence), then feed forward."""

    def __init__(self, arch: ArchConfig, seq_len: int, feed_forward: type[SwiGLU] = SwiGLU) -> None:
        super().__init__()
        self.arch = arch
        if arch.mlp_t:
            self.mlp_t = PositionSwiGLU(seq_len, arch.expansion)
        else:
            self.self_attn = Attention(arch.hidden_size, arch.num_heads)
        self.mlp = feed_forward(arch.hidden_size, arch.expansion)
        self.activation_checkpointing = False

    def forward(self, x_BSD: Tensor, positions: Positions) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            # Inside the module: an engine's hooks, which gather its weights, are not run again with it.
            return checkpoint(self._compute, x_BSD, positions, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x_BSD, positions)

    def _compute(self, x_BSD: Tensor, positions: Positions) -> Tensor:
        eps = self.arch.rms_norm_eps
        if self.arch.mlp_t:
            # As published, this norm is over the positions, not the channels.
            x_BSD = rms_norm_over_positions(x_BSD + self.mlp_t(x_BSD), eps)
        else:
            x_BSD = rms_norm(x_BSD + self.self_attn(x_BSD, positions), eps)
        return rms_norm(x_BSD + self.mlp(x_BSD, positions.packing), eps)

    def flops(self, num_rows: int) -> int:
        """Return the matmul operations of a forward on a sequence; a multiply and an add are two."""
        mixing = (
            self.mlp_t.flops(self.arch.hidden_size) if self.arch.mlp_t else self.self_attn.flops(num_rows)
        )
        return mixing + self.mlp.flops(num_rows)

    def saved_bytes(self, num_rows: int, *, compiled: bool) -> int:
        """Return the bytes that num_rows positions keep for the backward pass, the norms' inputs among them.

        Compiled, those are in the dtype of the activations, each row with its float32 scale.
        """
        arch, item = self.arch, self._item
        if arch.mlp_t:
            mixing = self.mlp_t.saved_numbers(arch.hidden_size, compiled=compiled)
        else:
            mixing = self.self_attn.saved_numbers(num_rows, rotates=self._rotates)
        numbers = mixing + self.mlp.saved_numbers(num_rows, compiled=compiled)
        norm = item * arch.hidden_size + 4 if compiled else 4 * arch.hidden_size
        return item * numbers + 2 * num_rows * norm

    def working_bytes(self, num_rows: int, *, compiled: bool) -> int:
        """Return the most bytes that a forward over num_rows positions needs at a time, if it keeps nothing."""
        arch, item = self.arch, self._item
        if arch.mlp_t:
            mixing = item * self.mlp_t.working_numbers(arch.hidden_size, compiled=compiled)
        else:
            mixing = self.self_attn.working_bytes(num_rows, item, rotates=self._rotates, compiled=compiled)
        mlp = item * self.mlp.working_numbers(num_rows, compiled=compiled)
        return item * num_rows * arch.hidden_size + max(mixing, mlp)

    def gradient_bytes(self, num_rows: int) -> int:
        """Return the most bytes that the backward pass of num_rows positions adds to what is kept."""
        return self._item * self.mlp.gradient_numbers(num_rows)

    @property
    def _item(self) -> int:
        return DTYPES[self.arch.forward_dtype].itemsize

    @property
    def _rotates(self) -> bool:
        return self.arch.pos_encodings == "rope"


def checkpoint_activations(network: nn.Module) -> None:
    """Keep of each block only its input from now on, and compute the block again in the backward pass."""
    for module in network.modules():
        if isinstance(module, Block):
            module.activation_checkpointing = True


class Level(nn.Module):
    """One update of a latent state: add what is injected, then run the blocks."""

    def __init__(
        self, arch: ArchConfig, num_layers: int, seq_len: int, feed_forward: type[SwiGLU] = SwiGLU
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(arch, seq_len, feed_forward) for _ in range(num_layers))

    def blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(self, z_BSD: Tensor, positions: Positions, *injected_BSD: Tensor) -> Tensor:
        if injected_BSD:  # added up in here, so that compiled it is one pass over all of them
            z_BSD = z_BSD + functools.reduce(torch.add, injected_BSD)
        for layer in self.layers:
            z_BSD = layer(z_BSD, positions)
        return z_BSD
