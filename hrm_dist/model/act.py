"""Adaptive computation time (ACT) around the network: carry, halting, Q-targets.

Published in arXiv 2506.21734.
A batch slot holds one sequence for as many segments as the Q-head lets it think; when it halts, the slot
takes the next sequence. Shapes: B sequences, K chains, S positions, T tokens, D hidden_size, V vocabulary.
"""

import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.model.initialization import InitFn, initialize, truncated_normal
from hrm_dist.model.layers import DTYPES
from hrm_dist.model.losses import answer_losses
from hrm_dist.model.network import Network, Segment
from hrm_dist.model.noise import key_of, normal
from hrm_dist.model.noise import truncated_normal as random_numbers
from hrm_dist.model.packing import Packing, inside_sequences, pack_rows
from hrm_dist.model.puzzle_embedding import WHOLE_TABLE, PuzzleEmbedding, TablePlacement
from hrm_dist.model.recurrences.base import Recurrence, States

Batch = dict[str, Tensor]
"""inputs [B, T] int32, labels [B, T] int32 (-100 = ignored), puzzle_identifiers [B] int32"""


# What tells the draws of a segment apart: initial states, noise before the segment, in its updates, and in those of the
# segment that the Q-target looks at.
_BEGIN, _BEFORE, _WITHIN, _FOLLOWING = range(4)


@functools.cache
def inner_carry_type(arch_name: str) -> Callable[..., Any]:
    """Return the NamedTuple of an architecture's states."""
    return namedtuple("InnerCarry", ARCHITECTURES[arch_name].states)


class Carry(NamedTuple):
    """Everything a sequence takes from one segment to the next."""

    inner_carry: (
        Any  # states [B, S, D], of chains [B, K, S, D], by the names of the description, such as z_H and z_L
    )
    steps: Tensor  # [B] int32, segments run on the present sequence
    halted: Tensor  # [B] bool; a halted slot takes a new sequence from the next batch
    current_data: Batch


class ACTModel(nn.Module):
    """The network with its puzzle table and initial states; one call is one segment."""

    windows: Tensor | None
    """Height and width of each puzzle's window, [num_puzzle_identifiers, 2] uint8; None where padding is computed."""

    def __init__(
        self,
        arch: ArchConfig,
        metadata: DatasetMetadata,
        table: TablePlacement = WHOLE_TABLE,
        network: nn.Module | None = None,
        windows: Tensor | None = None,
    ) -> None:
        """Make it from a dataset's metadata.

        network: what to call in place of a new Network, such as an engine's wrapper of one.
        """
        super().__init__()
        self.arch = arch
        self.pad_id = metadata.pad_id
        # No part of the state: it is the dataset's.
        self.register_buffer("windows", windows, persistent=False)
        self.dtype = DTYPES[arch.forward_dtype]
        self.seq_len = arch.prefix_len + metadata.seq_len
        self.network = Network(arch, metadata) if network is None else network
        width = arch.puzzle_emb_width
        self.puzzle_emb = PuzzleEmbedding(metadata.num_puzzle_identifiers, width, table) if width else None
        self._new_states = inner_carry_type(arch.name)
        for name in arch.description.states.values():
            self.register_buffer(name, torch.empty(arch.hidden_size))

    @property
    def recurrence(self) -> Recurrence:
        """Return the loop of the network, which must be a Network itself and no engine's wrapper of one."""
        assert isinstance(self.network, Network)
        return self.network.recurrence

    def initial_states(self) -> dict[str, Tensor]:
        """Return the buffers, [D] each, that the states of a sequence begin with at every position."""
        return {name: self.get_buffer(name) for name in self.arch.description.states.values()}

    def init_weights(self, init: InitFn) -> None:
        for name in self.initial_states():
            init(name, truncated_normal(1.0))

    def initial_carry(self, batch: Batch, num_chains: int = 1) -> Carry:
        """Return a carry whose every slot has halted, so that the first call fills all slots from its batch.

        num_chains: in training `arch.num_chains`.
        """
        size, device = len(batch["inputs"]), batch["inputs"].device
        chains = () if num_chains == 1 else (num_chains,)
        shape = (size, *chains, self.seq_len, self.arch.hidden_size)
        states = (torch.zeros(shape, dtype=self.dtype, device=device) for _ in self.initial_states())
        return Carry(
            self._new_states(*states),
            steps=torch.zeros(size, dtype=torch.int32, device=device),
            halted=torch.ones(size, dtype=torch.bool, device=device),
            current_data={name: torch.zeros_like(value) for name, value in batch.items()},
        )

    def compile_parts(self) -> None:
        """Let what is outside of the network, and does not depend on its engine, be compiled when it first runs."""
        for name in ("_refill", "_packing", "_position_keys", "_disturbed", "_answer_losses", "lengths"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True, dynamic=False))

    def _is_inside(self, data: Batch) -> Tensor:
        assert self.windows is not None
        sizes = self.windows[data["puzzle_identifiers"]]
        return inside_sequences(data["inputs"], sizes, self.pad_id, self.arch.prefix_len)

    def lengths(self, data: Batch) -> Tensor:
        """Return how many positions of each sequence are computed, [B] int64."""
        return self._is_inside(data).sum(1)

    def _packing(self, data: Batch, num_rows: int) -> Packing:
        return pack_rows(self._is_inside(data), num_rows)

    def _refill(self, carry: Carry, batch: Batch, position_keys: Tensor | None = None) -> Carry:
        """Give halted slots their sequence from the batch, to start over; the batch's other rows are unused.

        position_keys: [B, S] int64, or of chains [B, K, S], of this segment, where anything is random.
        """
        halted = carry.halted

        def choose(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(halted.view(-1, *[1] * (old.ndim - 1)), new, old)

        if self.arch.initial_states == "random":
            assert position_keys is not None
            first = [
                random_numbers(key_of(position_keys, _BEGIN, number), self.arch.hidden_size).to(self.dtype)
                for number in range(len(carry.inner_carry))
            ]
        else:
            first = [initial.to(self.dtype) for initial in self.initial_states().values()]
        states = self._new_states(*map(choose, first, carry.inner_carry))
        data = {name: choose(batch[name], old) for name, old in carry.current_data.items()}
        return Carry(states, torch.where(halted, 0, carry.steps), halted, data)

    def _segment_keys(self, noise_keys: Tensor | None, num_chains: int) -> Tensor | None:
        """Return the keys of each position, [B, S] int64, or of chains [B, K, S]; None where nothing is random."""
        if not self.arch.is_random:
            return None
        if noise_keys is None:
            raise ValueError("the model draws random numbers; give a key for each slot (noise_keys)")
        if num_chains > 1:
            noise_keys = key_of(noise_keys[:, None], torch.arange(num_chains, device=noise_keys.device))
        return self._position_keys(noise_keys)

    def _position_keys(self, noise_keys: Tensor) -> Tensor:
        """Return the keys of each position, [..., S] int64, from those of slots or chains."""
        return key_of(noise_keys[..., None], torch.arange(self.seq_len, device=noise_keys.device))

    def _disturbed(self, state: Tensor, position_keys: Tensor, packing: Packing | None) -> Tensor:
        """Return a state with the noise that comes before a segment, at the positions that are computed."""
        noise = self.arch.segment_noise * normal(position_keys, self.arch.hidden_size)
        if packing is not None:
            noise = torch.where(packing.is_inside_BS[..., None], noise, 0)
        return (state.float() + noise).to(state.dtype)

    def _segment(
        self,
        states: States,
        inputs: Tensor,
        rows: Tensor | None,
        packing: Packing | None,
        position_keys: Tensor | None,
        *,
        want_logits: bool = True,
    ) -> Segment:
        """Run the network on states, with the noise that there may be."""
        if self.arch.segment_noise:
            assert position_keys is not None
            with torch.no_grad():
                answer = self._disturbed(states[0], key_of(position_keys, _BEFORE), packing)
            states = (answer, *states[1:])
        if self.arch.update_noise:
            assert position_keys is not None
            position_keys = key_of(position_keys, _WITHIN)
        else:
            position_keys = None
        return self.network(
            states or None, inputs, rows, want_logits=want_logits, packing=packing, noise_keys=position_keys
        )

    def forward(
        self,
        carry: Carry,
        batch: Batch,
        min_halt_steps: Tensor | None = None,
        num_rows: int | None = None,
        noise_keys: Tensor | None = None,
    ) -> tuple[Carry, dict[str, Tensor]]:
        """Run one segment on every slot.

        min_halt_steps: [B] segments before which a slot may not halt (exploration, training only); drawn
        from torch's global generator when not given. num_rows: where padding is not computed, room for all positions
        that are; None for room for any. noise_keys: [B] int64, from which the random numbers of each slot's segment
        follow; needed with `arch.is_random`.
        Return the carry (without gradient) and `logits` [B, T, V], `q_halt_logits` [B], `q_continue_logits`
        [B] and, in training with `act_continue`, `target_q_continue` [B].
        """
        num_chains = next((state.shape[1] for state in carry.inner_carry if state.ndim == 4), 1)
        with torch.no_grad():  # as in evaluation, for which it is then not compiled again
            position_keys = self._segment_keys(noise_keys, num_chains)
            carry = self._refill(carry, batch, position_keys)
        data = carry.current_data
        rows = self.puzzle_emb(data["puzzle_identifiers"]) if self.puzzle_emb is not None else None
        packing = None
        if self.windows is not None:
            with torch.no_grad():
                packing = self._packing(data, num_rows or len(carry.steps) * self.seq_len)
        began, of_chains = carry.inner_carry, None
        if num_chains > 1:
            assert position_keys is not None
            with torch.no_grad():
                of_chains, winners = self._compete(began, data, rows, packing, position_keys)
                began = self._new_states(*(_of_chain(state, winners) for state in began))
                position_keys = _of_chain(position_keys, winners)
        # Of chains the winner once more, with gradient: so memory is that of one.
        segment = self._segment(began, data["inputs"], rows, packing, position_keys)
        assert segment.logits is not None
        outputs = {
            "logits": segment.logits,
            "q_halt_logits": segment.q_halt_logits,
            "q_continue_logits": segment.q_continue_logits,
        }
        carried = segment.states[: len(carry.inner_carry)]
        states = self._new_states(*(state.detach() for state in carried))
        with torch.no_grad():
            steps = carry.steps + 1
            is_last = steps >= self.arch.halt_max_steps
            halted = is_last
            # Evaluation always runs to halt_max_steps.
            if self.training and self.arch.halt_max_steps > 1:
                if self.arch.halting == "learned":
                    halted = is_last | self._wants_to_halt(segment)
                    halted &= steps >= (self._explored(steps) if min_halt_steps is None else min_halt_steps)
                if self.arch.act_continue:
                    outputs["target_q_continue"] = self._q_target(
                        states,
                        data["inputs"],
                        None if rows is None else rows.detach(),
                        is_last,
                        packing,
                        None if position_keys is None else key_of(position_keys, _FOLLOWING),
                    )
        return Carry(states if of_chains is None else of_chains, steps, halted, data), outputs

    def _compete(
        self, began: Any, data: Batch, rows: Tensor | None, packing: Packing | None, position_keys: Tensor
    ) -> tuple[Any, Tensor]:
        """Run a segment on every chain; return their states, and which has the lowest loss, [B] int64."""
        ended: list[States] = []
        losses: list[Tensor] = []
        for *states, keys in zip(*(tensor.unbind(1) for tensor in (*began, position_keys)), strict=True):
            segment = self._segment(tuple(states), data["inputs"], rows, packing, keys)
            assert segment.logits is not None
            ended.append(segment.states)
            losses.append(self._answer_losses(segment.logits, data["labels"]))
        states = self._new_states(*(torch.stack(state, 1) for state in zip(*ended, strict=True)))
        return states, torch.stack(losses, 1).argmin(1)

    def _answer_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return answer_losses(logits, labels, self.arch.loss_type)

    def _wants_to_halt(self, segment: Segment) -> Tensor:
        return segment.q_halt_logits > (segment.q_continue_logits if self.arch.act_continue else 0.0)

    def _explored(self, steps: Tensor) -> Tensor:
        """Draw the segments before which a slot may not halt, [B]."""
        explores = torch.rand_like(steps, dtype=torch.float32) < self.arch.halt_exploration_prob
        least = torch.randint_like(steps, 2, self.arch.halt_max_steps + 1, dtype=torch.int64)
        return torch.where(explores, least, 0)

    def _q_target(
        self,
        states: States,
        inputs: Tensor,
        rows: Tensor | None,
        is_last: Tensor,
        packing: Packing | None,
        position_keys: Tensor | None,
    ) -> Tensor:
        """Bootstrap the value of continuing: the better of the next segment's two values."""
        following = self._segment(states, inputs, rows, packing, position_keys, want_logits=False)
        best = torch.maximum(following.q_halt_logits, following.q_continue_logits)
        return torch.sigmoid(torch.where(is_last, following.q_halt_logits, best))


def _of_chain(tensor: Tensor, chain: Tensor) -> Tensor:
    """Return a chain of each sequence, [B, ...], out of [B, K, ...]; chain: [B] int64."""
    return tensor[torch.arange(len(chain), device=chain.device), chain]


def explore_halting(arch: ArchConfig, seed: int, step: int, global_batch_size: int) -> np.ndarray:
    """Return the segments before which each slot of the global batch may not halt, [global_batch_size] int32.

    A pure function of (seed, step): every rank draws the whole batch and takes its slice, so halting does
    not depend on the world size. 0 = free to halt.
    """
    if arch.halt_max_steps == 1 or arch.halting == "fixed":
        return np.zeros(global_batch_size, dtype=np.int32)
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    explores = generator.random(global_batch_size) < arch.halt_exploration_prob
    min_steps = generator.integers(2, arch.halt_max_steps + 1, global_batch_size, dtype=np.int32)
    return np.where(explores, min_steps, 0).astype(np.int32)


def segment_keys(seed: int, step: int, global_batch_size: int) -> np.ndarray:
    """Return from what each slot of the global batch draws its noise in a step of training, [global_batch_size] int64.

    As `explore_halting`, a pure function.
    """
    return key_of(seed, step, torch.arange(global_batch_size, device="cpu")).numpy()


def build_model(
    arch_config: ArchConfig,
    metadata: DatasetMetadata,
    seed: int = 0,
    table: TablePlacement = WHOLE_TABLE,
    windows: Tensor | None = None,
) -> ACTModel:
    """Make the model of a configuration for a dataset, initialised from the seed, on the current default device."""
    model = ACTModel(arch_config, metadata, table, windows=windows)
    initialize(model, seed)
    return model
