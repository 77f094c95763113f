"""SwiGLU's first half in one kernel: silu(gate) * up in the epilogue of the product that makes them.

What the product writes otherwise, and an elementwise kernel reads, is twice as wide as the result. There is no
backward: it is for updates that carry no gradient.
Sums are float32, and so are gate and up, which the plain path rounds: only the outcome is rounded, once.
Needs Triton; meant for Hopper and later, whose tensor memory accelerator the descriptors speak to.
Shapes: M rows, K inner dimension of the product, I width of the hidden layer; over the positions B sequences, S
positions, D hidden_size.
"""

# ruff: noqa: N803, E741
# pyright: reportMissingImports=false, reportUntypedFunctionDecorator=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportUnknownLambdaType=false

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _silu_times(gate, up, dtype: tl.constexpr):
    # The square of an approximate root takes a few instructions, a division many, and nothing here hides them.
    root = tl.rsqrt(1.0 + tl.exp(-gate))
    return (gate * root * (up * root)).to(dtype)


@triton.jit
def rows_kernel(
    x, weight, out, M, K: tl.constexpr, I: tl.constexpr, PER_CORE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr = 8,
):  # fmt: skip
    """out[M, I] = silu(x @ gate.T) * (x @ up.T), with weight[2, I, K] = (gate, up)."""
    num_m, num_i = tl.cdiv(M, BLOCK_M), tl.cdiv(I, BLOCK_I)
    for tile in tl.range(tl.program_id(0), num_m * num_i, tl.num_programs(0), flatten=True):
        # Down a few tiles before the next column, so that what several of them read stays in the cache.
        first = tile // (GROUP * num_i) * GROUP
        height = min(num_m - first, GROUP)
        within = tile % (GROUP * num_i)
        m, i = (first + within % height) * BLOCK_M, within // height * BLOCK_I
        both = tl.zeros((BLOCK_M, 2 * BLOCK_I), tl.float32)
        for k in range(tl.cdiv(K, BLOCK_K)):
            columns = weight.load([0, i, k * BLOCK_K]).reshape(2 * BLOCK_I, BLOCK_K)
            both = tl.dot(x.load([m, k * BLOCK_K]), columns.T, both)
        # A thread has the same columns of both, so this moves nothing.
        gate, up = both.reshape(BLOCK_M, 2, BLOCK_I).permute(0, 2, 1).split()
        out.store([m, i], _silu_times(gate, up, out.dtype))


@triton.jit
def positions_kernel(
    x, weight, out, B, S: tl.constexpr, D: tl.constexpr, I: tl.constexpr, PER_CORE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[B, I, D] = silu(gate.T @ x) * (up.T @ x), with x[B, S, D] and weight[S, 2I] = (gate, up)."""
    num_d, num_i = tl.cdiv(D, BLOCK_D), tl.cdiv(I, BLOCK_I)
    for tile in tl.range(tl.program_id(0), B * num_d * num_i, tl.num_programs(0), flatten=True):
        b, within = tile // (num_d * num_i), tile % (num_d * num_i)
        d, i = within // num_i * BLOCK_D, within % num_i * BLOCK_I
        gate = tl.zeros((BLOCK_I, BLOCK_D), tl.float32)
        up = tl.zeros((BLOCK_I, BLOCK_D), tl.float32)
        for k in range(tl.cdiv(S, BLOCK_K)):
            # Beyond the last position a descriptor reads zeros.
            columns = x.load([b, k * BLOCK_K, d]).reshape(BLOCK_K, BLOCK_D)
            gate = tl.dot(weight.load([k * BLOCK_K, i]).T, columns, gate)
            up = tl.dot(weight.load([k * BLOCK_K, I + i]).T, columns, up)
        out.store([b, i, d], _silu_times(gate, up, out.dtype).reshape(1, BLOCK_I, BLOCK_D))


def _give_blocks(
    arguments: Mapping[str, Any], sizes: Callable[[Mapping[str, Any]], tuple[list[int], ...]]
) -> None:
    """Let the descriptors read and write blocks of a configuration's sizes."""
    for name, block in zip(("x", "weight", "out"), sizes(arguments), strict=True):
        arguments[name].block_shape = block


def _of_rows(a: Mapping[str, Any]) -> tuple[list[int], ...]:
    return [a["BLOCK_M"], a["BLOCK_K"]], [2, a["BLOCK_I"], a["BLOCK_K"]], [a["BLOCK_M"], a["BLOCK_I"]]


def _of_positions(a: Mapping[str, Any]) -> tuple[list[int], ...]:
    return [1, a["BLOCK_K"], a["BLOCK_D"]], [a["BLOCK_K"], a["BLOCK_I"]], [1, a["BLOCK_I"], a["BLOCK_D"]]


def _configs(
    outer: str,
    choices: list[tuple[int, int, int, int, int, int]],
    sizes: Callable[[Mapping[str, Any]], tuple[list[int], ...]],
) -> list[Any]:
    """Return what to try: block sizes (outer, I, K), warps, stages, programs per multiprocessor."""
    return [
        triton.Config(
            {outer: block, "BLOCK_I": block_i, "BLOCK_K": block_k, "PER_CORE": per_core},
            num_warps=num_warps,
            num_stages=num_stages,
            pre_hook=functools.partial(_give_blocks, sizes=sizes),
        )
        for block, block_i, block_k, num_warps, num_stages, per_core in choices
    ]


tuned_rows_kernel = triton.autotune(
    _configs(
        "BLOCK_M",
        [
            (128, 128, 64, 8, 3, 1),
            (128, 128, 64, 8, 4, 1),
            (256, 64, 64, 8, 3, 1),
            (128, 64, 64, 4, 3, 2),
            (128, 64, 64, 8, 3, 2),
        ],
        _of_rows,
    ),
    key=["M", "K", "I"],
)(rows_kernel)

tuned_positions_kernel = triton.autotune(
    _configs(
        "BLOCK_D",
        [
            (128, 64, 32, 4, 3, 3),
            (128, 64, 32, 4, 4, 2),
            (64, 64, 32, 4, 3, 4),
            (128, 128, 32, 8, 4, 1),
        ],
        _of_positions,
    ),
    key=["B", "S", "D", "I"],
)(positions_kernel)


def _descriptor(tensor: Tensor) -> Any:
    return TensorDescriptor.from_tensor(tensor, [1] * tensor.ndim)  # the configuration says in which blocks


@functools.cache
def _num_cores(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@torch.library.custom_op("hrm_dist::silu_gate_up", mutates_args=(), device_types="cuda")
def silu_gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """Return silu(gate) * up, [..., I], with x[..., K] and weight[2I, K] = (gate, up), contiguous."""
    rows = x.contiguous().flatten(0, -2)
    num_rows, width = len(rows), len(weight) // 2
    out = x.new_empty(num_rows, width)
    cores = _num_cores(x.device)

    def grid(a: Mapping[str, int]) -> tuple[int]:
        tiles = triton.cdiv(num_rows, a["BLOCK_M"]) * triton.cdiv(width, a["BLOCK_I"])
        return (min(cores * a["PER_CORE"], tiles),)

    tuned_rows_kernel[grid](
        *map(_descriptor, (rows, weight.unflatten(0, (2, width)), out)), num_rows, rows.shape[1], width
    )
    return out.unflatten(0, x.shape[:-1])


@silu_gate_up.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2)


@torch.library.custom_op("hrm_dist::silu_gate_up_over_positions", mutates_args=(), device_types="cuda")
def silu_gate_up_over_positions(x_BSD: Tensor, weight: Tensor) -> Tensor:
    """Return silu(gate) * up, [B, I, D], with x[B, S, D] and weight[S, 2I] = (gate, up), contiguous."""
    num_sequences, seq_len, hidden_size = x_BSD.shape
    width = weight.shape[1] // 2
    out = x_BSD.new_empty(num_sequences, width, hidden_size)
    cores = _num_cores(x_BSD.device)

    def grid(a: Mapping[str, int]) -> tuple[int]:
        tiles = num_sequences * triton.cdiv(hidden_size, a["BLOCK_D"]) * triton.cdiv(width, a["BLOCK_I"])
        return (min(cores * a["PER_CORE"], tiles),)

    shape = (num_sequences, seq_len, hidden_size, width)
    tuned_positions_kernel[grid](*map(_descriptor, (x_BSD.contiguous(), weight, out)), *shape)
    return out


@silu_gate_up_over_positions.register_fake
def _(x_BSD: Tensor, weight: Tensor) -> Tensor:
    return x_BSD.new_empty(x_BSD.shape[0], weight.shape[1] // 2, x_BSD.shape[2])
