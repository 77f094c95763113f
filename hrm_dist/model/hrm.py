"""HRM's recurrence (arXiv 2506.21734): a slow module H and a fast module L refine z_H and z_L.

The whole loop is one module, so that an engine that shards parameters gathers them once per segment
instead of once per cycle. Shapes: B sequences, S positions, D hidden_size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrm_dist.config import ArchConfig
from hrm_dist.model.layers import Level, Rope


class InnerCarry(NamedTuple):
    """Latent states handed from one segment to the next."""

    z_H: Tensor  # [B, S, D] slow state
    z_L: Tensor  # [B, S, D] fast state


def num_updates_with_gradient(arch: ArchConfig) -> int:
    """How many of a segment's H_cycles * L_cycles fast updates carry gradient, counted from its end."""
    counts = {"one_step": 1, "last_cycle": arch.L_cycles, "bptt": arch.H_cycles * arch.L_cycles}
    return counts[arch.gradient]


def refine(
    arch: ArchConfig, H_level: Level, L_level: Level, carry: InnerCarry, input_BSD: Tensor, rope: Rope | None
) -> InnerCarry:
    """Run a segment's N = H_cycles slow updates of T = L_cycles fast updates each.

    The fast updates that `arch.gradient` leaves out run without gradient, and so do the slow ones among
    them: memory is flat in all cycles with one_step, flat in H_cycles with last_cycle.
    """

    def run(carry: InnerCarry, updates: range) -> InnerCarry:
        z_H, z_L = carry
        for update in updates:
            z_L = L_level(z_L, z_H + input_BSD, rope)
            if update % arch.L_cycles == 0:
                z_H = H_level(z_H, z_L, rope)
        return InnerCarry(z_H, z_L)

    last = arch.H_cycles * arch.L_cycles
    first = last - num_updates_with_gradient(arch) + 1
    with torch.no_grad():
        carry = run(carry, range(1, first))
    return run(carry, range(first, last + 1))


class HRMRecurrence(nn.Module):
    """Two networks ("Hierarchical Reasoning Model"); published with gradient in the last update of each."""

    def __init__(self, arch: ArchConfig, seq_len: int) -> None:
        super().__init__()
        self.arch = arch
        self.H_level = Level(arch, arch.H_layers, seq_len)
        self.L_level = Level(arch, arch.L_layers, seq_len)

    def forward(self, carry: InnerCarry, input_BSD: Tensor, rope: Rope | None) -> InnerCarry:
        return refine(self.arch, self.H_level, self.L_level, carry, input_BSD, rope)
