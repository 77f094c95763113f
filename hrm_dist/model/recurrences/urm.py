"""URM's recurrence: one network, one state, a convolution in every feed-forward layer.

Published in arXiv 2512.14693.
Shapes: B sequences, S positions, D hidden_size, I inner width of the feed-forward layer, N rows (see packing.py).
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hrm_dist.model.initialization import InitFn, uniform
from hrm_dist.model.layers import Level, Positions, SwiGLU
from hrm_dist.model.packing import Packing
from hrm_dist.model.recurrences.base import Recurrence, States


class DepthwiseConv(nn.Module):
    """Each channel's number at a position from those at that position and the one before; zero before the first.

    Computes in its input's dtype with float32 weights. As published both are bfloat16 always, weights that steps of
    1e-4 can hardly move.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_channels, 1, 2))
        self.bias = nn.Parameter(torch.empty(num_channels))

    def init_weights(self, init: InitFn) -> None:
        for name in ("weight", "bias"):
            init(name, uniform(2**-0.5))

    def forward(self, x_BSI: Tensor, packing: Packing | None = None) -> Tensor:
        if packing is not None:
            return self._of_packed(x_BSI, packing)
        # In two dimensions, as a one-dimensional convolution would copy its input to have the channels first.
        x_BI1S = x_BSI.transpose(1, 2).unsqueeze(2)
        weight, bias = self.weight.unsqueeze(2).to(x_BSI.dtype), self.bias.to(x_BSI.dtype)
        mixed_BI1S = F.conv2d(x_BI1S, weight, bias, padding=(0, 1), groups=len(bias))
        return mixed_BI1S[..., :-1].squeeze(2).transpose(1, 2)

    def _of_packed(self, x_NI: Tensor, packing: Packing) -> Tensor:
        """Mix what is packed: a position before that is not there counts as zero, whatever is in the row before."""
        of_before, of_own = self.weight.squeeze(1).to(x_NI.dtype).unbind(-1)
        before = torch.where(packing.continues_N[:, None], F.pad(x_NI[:, :-1], (0, 0, 1, 0)), 0)
        return before * of_before + x_NI * of_own + self.bias.to(x_NI.dtype)


class ConvSwiGLU(SwiGLU):
    """Gated feed-forward layer with a convolution over the positions before it projects down."""

    def __init__(self, size: int, expansion: float) -> None:
        super().__init__(size, expansion)
        self.dwconv = DepthwiseConv(self.inner_size)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        return self.down_proj(F.silu(self.dwconv(self.gate_up_proj(x), packing)))

    def flops(self, num_rows: int) -> int:
        return super().flops(num_rows) + (num_rows + 1) * 4 * self.inner_size

    def saved_numbers(self, num_rows: int, *, compiled: bool) -> int:
        """Count the mixed numbers and what becomes of them, beside what SwiGLU keeps."""
        return super().saved_numbers(num_rows, compiled=compiled) + (2 * num_rows + 1) * self.inner_size

    def gradient_numbers(self, num_rows: int) -> int:
        """Count the gradients of the mixed numbers and of what becomes of them, too."""
        return super().gradient_numbers(num_rows) + 2 * num_rows * self.inner_size


class URMRecurrence(Recurrence):
    """Refine current_hidden; published with gradient in the last cycle."""

    feed_forward = ConvSwiGLU
    level: Level

    def forward(
        self, states: States, input_BSD: Tensor, positions: Positions, noise_keys: Tensor | None = None
    ) -> States:
        def update(number: int, states: States) -> States:
            [state] = states
            return (self.settled(state, self.level(state, positions, input_BSD), noise_keys, number, 0),)

        return self.run_updates(update, states)
