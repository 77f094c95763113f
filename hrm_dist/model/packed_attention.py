"""Attention within each of several sequences that are packed one after the other.

On a GPU that is torch's variable-length attention; it knows 2-byte numbers only, so float32 is unpacked to a dense
batch, whose padding nobody attends to. On a CPU torch has no such kernel that is also differentiable (FlexAttention
has no backward there; jagged tensors took twice as long), so sequences are attended to one by one.
Shapes: N rows, H heads, K head size; B sequences.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from hrm_dist.model.packing import Packing, pack, unpack


def packed_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, packing: Packing) -> Tensor:
    """Return full attention of each sequence to itself, [N, H, K]; 0 in empty rows."""
    if q_NHK.device.type == "cpu":
        return torch.ops.hrm_dist.attend_one_by_one(q_NHK, k_NHK, v_NHK, packing.begins)[0]
    if q_NHK.dtype == torch.float32:
        return dense_attention(q_NHK, k_NHK, v_NHK, packing)
    # The kernel leaves empty rows, and their gradients, as the memory was.
    used = packing.is_used_N[:, None, None]
    q, k, v = (torch.where(used, x, 0) for x in (q_NHK, k_NHK, v_NHK))
    longest = packing.row_BS.shape[1]
    mixed = varlen_attn(q, k, v, packing.begins, packing.begins, longest, longest)
    assert isinstance(mixed, Tensor)
    return torch.where(used, mixed, 0)


def dense_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, packing: Packing) -> Tensor:
    """Return the same by way of a dense batch, whose padding a mask leaves out."""
    zero = q_NHK.new_zeros(())
    q, k, v = (
        unpack(x.flatten(1), zero, packing).unflatten(-1, x.shape[1:]).transpose(1, 2)
        for x in (q_NHK, k_NHK, v_NHK)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=packing.is_inside_BS[:, None, None, :])
    return pack(mixed.transpose(1, 2).flatten(2), packing).view_as(q_NHK)


def _sequences(begins: Tensor) -> list[slice]:
    bounds: list[int] = begins.tolist()
    return [slice(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]


def _heads_first(x_NHK: Tensor, rows: slice) -> Tensor:
    return x_NHK[rows].transpose(0, 1).unsqueeze(0)


# What scaled_dot_product_attention calls on a CPU; within an operator autograd records nothing, so the backward is
# called by its own name.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@torch.library.custom_op("hrm_dist::attend_one_by_one", mutates_args=(), device_types="cpu")
def _attend_one_by_one(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mixed values, and the log-sum-exp of the scores, [N, H], which the backward needs."""
    mixed = torch.zeros(q_NHK.shape, dtype=q_NHK.dtype)
    lse = torch.zeros(q_NHK.shape[:2], dtype=torch.float32)
    for rows in _sequences(begins):
        of_rows, lse_of_rows = _forward(*(_heads_first(x, rows) for x in (q_NHK, k_NHK, v_NHK)))
        mixed[rows] = of_rows.squeeze(0).transpose(0, 1)
        lse[rows] = lse_of_rows.squeeze(0).transpose(0, 1)
    return mixed, lse


@torch.library.custom_op("hrm_dist::attend_one_by_one_backward", mutates_args=(), device_types="cpu")
def _attend_one_by_one_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, begins: Tensor, mixed: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    of_q, of_k, of_v = gradients
    for rows in _sequences(begins):
        tensors = (_heads_first(x, rows) for x in (gradient, q, k, v, mixed))
        found = _backward(*tensors, lse[rows].t().unsqueeze(0), dropout_p=0.0, is_causal=False)
        for whole, of_rows in zip(gradients, found, strict=True):
            whole[rows] = of_rows.squeeze(0).transpose(0, 1)
    return of_q, of_k, of_v


@_attend_one_by_one.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@_attend_one_by_one_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, begins: Tensor, mixed: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.hrm_dist.attend_one_by_one_backward(gradient, *ctx.saved_tensors), None


_attend_one_by_one.register_autograd(_differentiate, setup_context=_save)
