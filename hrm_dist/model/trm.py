"""TRM's recurrence (arXiv 2510.04871): one network plays both levels, the last full cycle carries gradient.

Shapes: B sequences, S positions, D hidden_size.
"""

import torch
from torch import Tensor, nn

from hrm_dist.config import ArchConfig
from hrm_dist.model.hrm import InnerCarry
from hrm_dist.model.layers import Level, Rope


class TRMRecurrence(nn.Module):
    """H_cycles times: refine the latent z_L for L_cycles updates, then the answer z_H once."""

    def __init__(self, arch: ArchConfig, seq_len: int) -> None:
        super().__init__()
        self.H_cycles, self.L_cycles = arch.H_cycles, arch.L_cycles
        self.L_level = Level(arch, arch.L_layers, seq_len)

    def _cycle(self, carry: InnerCarry, input_BSD: Tensor, rope: Rope | None) -> InnerCarry:
        z_H, z_L = carry
        for _ in range(self.L_cycles):
            z_L = self.L_level(z_L, z_H + input_BSD, rope)
        return InnerCarry(self.L_level(z_H, z_L, rope), z_L)

    def forward(self, carry: InnerCarry, input_BSD: Tensor, rope: Rope | None) -> InnerCarry:
        """Memory is flat in H_cycles; the gradient runs through the L_cycles of the last one."""
        with torch.no_grad():
            for _ in range(self.H_cycles - 1):
                carry = self._cycle(carry, input_BSD, rope)
        return self._cycle(carry, input_BSD, rope)
