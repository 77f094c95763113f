"""TRM's recurrence (arXiv 2510.04871): HRM's with one network in both roles.

Shapes: B sequences, S positions, D hidden_size.
"""

from torch import Tensor, nn

from hrm_dist.config import ArchConfig
from hrm_dist.model.hrm import InnerCarry, refine
from hrm_dist.model.layers import Level, Rope


class TRMRecurrence(nn.Module):
    """Refine the latent z_L, then the answer z_H; published with gradient in the last cycle."""

    def __init__(self, arch: ArchConfig, seq_len: int) -> None:
        super().__init__()
        self.arch = arch
        self.L_level = Level(arch, arch.L_layers, seq_len)

    def forward(self, carry: InnerCarry, input_BSD: Tensor, rope: Rope | None) -> InnerCarry:
        return refine(self.arch, self.L_level, self.L_level, carry, input_BSD, rope)
