"""What all recurrences share: levels, and which updates of a segment carry gradient.

Levels are made as the architecture's description says.
The whole loop is one module, so that an engine that shards parameters gathers them once per segment instead of once
per cycle. Its children are the levels, which are compiled, or gathered, one by one where that is asked for.
Shapes: B sequences, S positions, D hidden_size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import num_updates_with_gradient
from hrm_dist.model.layers import DTYPES, CastedLinear, Level, Positions, SwiGLU
from hrm_dist.model.noise import key_of, normal

States = tuple[Tensor, ...]
"""[B, S, D] each, in the order of the description; the heads read the first, also where none is carried."""


class Recurrence(nn.Module, ABC):
    """The loop of an architecture: new states from the old ones and the embedded input."""

    feed_forward: type[SwiGLU] = SwiGLU
    """The second half of every block."""

    def __init__(self, arch: ArchConfig, seq_len: int) -> None:
        super().__init__()
        self.arch = arch
        self.casts_once = False
        """Whether to cast weights once a segment. They must be whole, and stay as they are, as long as it lasts; and it
        takes a GPU to be faster, as on a CPU memory for them is given back and fetched anew in every segment."""
        for name, level in arch.description.levels.items():
            num_layers = getattr(arch, level.num_layers)
            self.add_module(name, Level(arch, num_layers, seq_len, self.feed_forward))

    @contextmanager
    def _shared_casts(self) -> Iterator[None]:
        """Let updates without gradient share weights that are cast once, unless `casts_once` is off."""
        dtype = DTYPES[self.arch.forward_dtype]
        if not self.casts_once or dtype == torch.float32:
            yield
            return
        linears = [module for module in self.modules() if isinstance(module, CastedLinear)]
        weights = [linear.weight.detach() for linear in linears]
        casts = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(casts, weights)
        try:
            for linear, weight in zip(linears, casts, strict=True):
                linear.cast_weight = linear.arranged(weight)
            yield
        finally:
            for linear in linears:
                linear.cast_weight = None

    def run_updates(self, update: Callable[[int, States], States], states: States) -> States:
        """Run a segment's H_cycles * L_cycles updates, `update(number, states)` with numbers from 1.

        Those that `arch.gradient` leaves out run without gradient: memory is flat in all cycles with one_step, flat in
        H_cycles with last_cycle.
        """
        last = self.arch.H_cycles * self.arch.L_cycles
        first = last - num_updates_with_gradient(self.arch) + 1
        if not torch.is_grad_enabled():
            first = last + 1
        with torch.no_grad(), self._shared_casts():
            for number in range(1, first):
                states = update(number, states)
        for number in range(first, last + 1):
            states = update(number, states)
        return states

    def settled(self, old: Tensor, new: Tensor, noise_keys: Tensor | None, *place: int) -> Tensor:
        """Return a state after an update: the new one, or with `arch.damping` and `arch.update_noise` near it (EqR).

        old, new: before the update and what it gives. place: which update of the segment, and of which state.
        """
        if self.arch.damping == 1 and not self.arch.update_noise:
            return new
        noise = noise_keys
        if self.arch.update_noise:
            assert noise_keys is not None
            noise = key_of(noise_keys, *place)
        return self._near(old, new, noise)

    def _near(self, old: Tensor, new: Tensor, noise_keys: Tensor | None) -> Tensor:
        damping, dtype = self.arch.damping, new.dtype
        # In float32, in which a small share is not lost.
        mixed = new.float() if damping == 1 else torch.lerp(old.float(), new.float(), damping)
        if self.arch.update_noise:
            assert noise_keys is not None
            mixed = mixed + self.arch.update_noise * normal(noise_keys, new.shape[-1])
        return mixed.to(dtype)

    def compile_parts(self) -> None:
        """Let what is beside the levels be compiled when it first runs."""
        self._near = torch.compile(self._near, fullgraph=True, dynamic=False)

    @abstractmethod
    def forward(
        self, states: States, input_BSD: Tensor, positions: Positions, noise_keys: Tensor | None = None
    ) -> States:
        """Run one segment; noise_keys: [B, S] int64, from which its random numbers follow."""
