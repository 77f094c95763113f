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


class HRMRecurrence(nn.Module):
    """N = H_cycles slow updates of T = L_cycles fast updates each ("Hierarchical Reasoning Model")."""

    def __init__(self, arch: ArchConfig, seq_len: int) -> None:
        super().__init__()
        self.H_cycles, self.L_cycles = arch.H_cycles, arch.L_cycles
        self.H_level = Level(arch, arch.H_layers, seq_len)
        self.L_level = Level(arch, arch.L_layers, seq_len)

    def forward(self, carry: InnerCarry, input_BSD: Tensor, rope: Rope | None) -> InnerCarry:
        """Only the last update of each level carries gradient ("Approximate gradient"): memory flat in cycles."""
        z_H, z_L = carry
        with torch.no_grad():
            for update in range(1, self.H_cycles * self.L_cycles):
                z_L = self.L_level(z_L, z_H + input_BSD, rope)
                if update % self.L_cycles == 0:
                    z_H = self.H_level(z_H, z_L, rope)
        z_L = self.L_level(z_L, z_H + input_BSD, rope)
        z_H = self.H_level(z_H, z_L, rope)
        return InnerCarry(z_H, z_L)
