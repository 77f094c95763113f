"""Sequences without the padding outside of their windows, packed one after the other.

Packed, B sequences of S positions are N rows: those of the first sequence, of the second, and so on, then rows that
nothing is in. N is fixed, and has room for what there is; which rows are whose is decided on the device.
Shapes: B sequences, S positions, T tokens, N rows, D any width.
"""

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class Packing(NamedTuple):
    """Which position is in which row."""

    position_N: Tensor
    """[N] int64, of the B * S positions the one that is in a row; of an empty row 0."""
    is_used_N: Tensor
    """[N] bool, whether a position is in a row."""
    row_BS: Tensor
    """[B, S] int64, the row that a position is in; of one outside of its window 0."""
    is_inside_BS: Tensor
    """[B, S] bool, whether a position is in a row."""
    begins: Tensor
    """[B + 1] int32, the first row of each sequence, and of the empty ones."""
    continues_N: Tensor
    """[N] bool, whether the row before has the position before."""

    @property
    def first_rows(self) -> Tensor:
        """Return the row of each sequence's first position, [B]."""
        return self.begins[:-1].clamp(max=len(self.position_N) - 1)

    def of_tokens(self, prefix_len: int) -> "Packing":
        """Return it with the positions behind a prefix alone; rows of the prefix count as empty."""
        sequence, position = self.position_N // self.row_BS.shape[1], self.position_N % self.row_BS.shape[1]
        is_token = self.is_used_N & (position >= prefix_len)
        num_tokens = self.row_BS.shape[1] - prefix_len
        place = torch.where(is_token, sequence * num_tokens + position - prefix_len, 0)
        return self._replace(
            position_N=place,
            is_used_N=is_token,
            row_BS=self.row_BS[:, prefix_len:],
            is_inside_BS=self.is_inside_BS[:, prefix_len:],
        )


def inside_windows(inputs_BT: Tensor, sizes_B2: Tensor, pad_id: int) -> Tensor:
    """Return which tokens lie within the window of their sequence, [B, T] bool.

    A window has a height and a width, and begins where the grids do: at the first row and the first column of the
    canvas in which the input is not all padding. What of it would lie beyond the canvas is not there.
    """
    canvas = math.isqrt(inputs_BT.shape[1])
    is_filled = (inputs_BT != pad_id).unflatten(1, (canvas, canvas))
    index = torch.arange(canvas, device=inputs_BT.device)

    def within(filled: Tensor, size: Tensor) -> Tensor:
        begin = filled.to(torch.int32).argmax(1, keepdim=True)
        return (index >= begin) & (index < begin + size[:, None])

    rows, columns = (within(is_filled.any(dim), sizes_B2[:, 2 - dim]) for dim in (2, 1))
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def inside_sequences(inputs_BT: Tensor, sizes_B2: Tensor, pad_id: int, prefix_len: int) -> Tensor:
    """Return which positions are computed, [B, S] bool: the prefix, what lies in windows, and what the Q-head reads."""
    is_inside = F.pad(inside_windows(inputs_BT, sizes_B2, pad_id), (prefix_len, 0), value=True)
    is_inside[:, 0] = True
    return is_inside


def pack_rows(is_inside_BS: Tensor, num_rows: int) -> Packing:
    """Return how to pack the positions that are inside; the caller sees to it that they are no more than num_rows."""
    num_positions = is_inside_BS.shape[1]
    row = is_inside_BS.flatten().cumsum(0) - 1
    # Should there be more, they are cut off, and nothing is read that is not there.
    is_inside = is_inside_BS.flatten() & (row < num_rows)
    is_inside_BS = is_inside.view_as(is_inside_BS)
    place = torch.where(is_inside, row, num_rows)  # whatever is not packed goes behind the last row
    positions = torch.arange(len(place), device=place.device)
    position = torch.zeros(num_rows + 1, dtype=torch.int64, device=place.device).scatter(0, place, positions)
    position = position[:num_rows]
    begins = F.pad(is_inside_BS.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    is_used = torch.arange(num_rows, device=place.device) < begins[-1]
    before = F.pad(position[:-1], (1, 0), value=-2)
    return Packing(
        position,
        is_used,
        torch.where(is_inside, row, 0).view_as(is_inside_BS),
        is_inside_BS,
        begins,
        is_used & (position == before + 1) & (position % num_positions != 0),
    )


class _Pack(torch.autograd.Function):
    """[B, S, D] -> [N, D]: each position is read once, so that its gradient need not be added up."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, position: Tensor, is_used: Tensor, row: Tensor, is_inside: Tensor
    ) -> Tensor:
        ctx.save_for_backward(row, is_inside)
        return torch.where(is_used[:, None], x.flatten(0, 1)[position], 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        row, is_inside = ctx.saved_tensors
        return torch.where(is_inside[..., None], gradients[0][row], 0), None, None, None, None


class _Unpack(torch.autograd.Function):
    """[N, D] -> [B, S, D]; what is not packed comes from `outside`, which broadcasts."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        outside: Tensor,
        position: Tensor,
        is_used: Tensor,
        row: Tensor,
        is_inside: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(position, is_used)
        return torch.where(is_inside[..., None], x[row], outside)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        position, is_used = ctx.saved_tensors
        packed = torch.where(is_used[:, None], gradients[0].flatten(0, 1)[position], 0)
        return packed, None, None, None, None, None


def pack(x_BSD: Tensor, packing: Packing) -> Tensor:
    """Return the rows of what each position has, [N, D]; empty ones are 0."""
    return cast("Tensor", _Pack.apply(x_BSD, *packing[:4]))


def unpack(x_ND: Tensor, outside: Tensor, packing: Packing) -> Tensor:
    """Return what each position has, [B, S, D]: its row, or what `outside` (no gradient) has there."""
    return cast("Tensor", _Unpack.apply(x_ND, outside, *packing[:4]))
