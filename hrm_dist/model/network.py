"""The trained network: embed a puzzle, run one segment, read the answer and Q-values.

This is the module that an engine wraps; it holds every parameter that the optimizer trains. The puzzle
table lives outside, and its rows are passed in.
Shapes: B sequences, S = P + T positions (P prefix, T tokens), D hidden_size, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.model.layers import (
    DTYPES,
    CastedEmbedding,
    CastedLinear,
    Level,
    Positions,
    QHead,
    Rope,
    rope_tables,
)
from hrm_dist.model.packing import Packing, pack, unpack
from hrm_dist.model.recurrences.base import Recurrence, States
from hrm_dist.model.recurrences.hrm import HRMRecurrence
from hrm_dist.model.recurrences.looped_transformer import LoopedTransformerRecurrence
from hrm_dist.model.recurrences.transformer import TransformerRecurrence
from hrm_dist.model.recurrences.trm import TRMRecurrence
from hrm_dist.model.recurrences.urm import URMRecurrence

RECURRENCES: dict[str, type[Recurrence]] = {
    "hrm": HRMRecurrence,
    "trm": TRMRecurrence,
    "urm": URMRecurrence,
    "transformer": TransformerRecurrence,
    "looped_transformer": LoopedTransformerRecurrence,
}


class Segment(NamedTuple):
    """What one segment computes."""

    states: States  # [B, S, D] each, with gradient
    logits: Tensor | None  # [B, T, V]; None when only the Q-values were asked for
    q_logits: Tensor  # [B, 2] float32, halt and continue; not split here, as FSDP warns of views

    @property
    def q_halt_logits(self) -> Tensor:
        return self.q_logits[:, 0]  # [B]

    @property
    def q_continue_logits(self) -> Tensor:
        return self.q_logits[:, 1]  # [B]


class Network(nn.Module):
    """Token and puzzle embeddings, the recurrence of `arch.name`, and the two heads."""

    def __init__(self, arch: ArchConfig, metadata: DatasetMetadata) -> None:
        super().__init__()
        self.arch = arch
        self.dtype = DTYPES[arch.forward_dtype]
        self.seq_len = arch.prefix_len + metadata.seq_len
        self.embed_tokens = CastedEmbedding(metadata.vocab_size, arch.hidden_size, self.dtype)
        if arch.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(self.seq_len, arch.hidden_size, self.dtype)
        self.recurrence = RECURRENCES[arch.name](arch, self.seq_len)
        self.pad_id = metadata.pad_id
        self.lm_head = CastedLinear(arch.hidden_size, metadata.vocab_size)
        self.q_head = QHead(arch.hidden_size)
        self._rope: Rope | None = None  # made by the first forward, on its device

    def levels(self) -> dict[str, Level]:
        """Return the levels of the recurrence by name."""
        return {name: level for name, level in self.recurrence.named_children() if isinstance(level, Level)}

    def compile_parts(self, *, with_ends: bool, by_block: bool = False) -> None:
        """Let the network be compiled when it first runs, in parts that all its updates share, without graph breaks.

        with_ends: the embedding too, which needs its weights whole outside of the modules that hold them. by_block:
        blocks one by one in place of levels, between which an engine may gather weights.
        """
        # Levels share their class's limit: with and without gradient, by what is injected, for each size of a batch.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for level in self.levels().values():
            modules: list[nn.Module] = [*level.blocks()] if by_block else [level]
            for module in modules:
                # Not `module.compile()`, which would take in the hooks of an engine.
                module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False)
        if with_ends:
            self._embed = torch.compile(self._embed, fullgraph=True, dynamic=False)
        self.recurrence.compile_parts()
        for name in ("_pack", "_unpack_states", "_unpack_logits"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True, dynamic=False))

    def _embed(self, inputs_BT: Tensor, puzzle_rows: Tensor | None) -> Tensor:
        arch = self.arch
        embedding = self.embed_tokens(inputs_BT)
        if puzzle_rows is not None:
            padding = arch.prefix_len * arch.hidden_size - puzzle_rows.shape[-1]
            prefix = F.pad(puzzle_rows.to(self.dtype), (0, padding))
            embedding = torch.cat((prefix.unflatten(-1, (arch.prefix_len, arch.hidden_size)), embedding), 1)
        if arch.pos_encodings == "learned":
            # 1/sqrt(2) keeps the variance of the sum that of its two parts.
            embedding = 0.707106781 * (embedding + self.embed_pos.embedding_weight.to(self.dtype))
        return math.sqrt(arch.hidden_size) * embedding

    def forward(
        self,
        states: States | None,
        inputs: Tensor,
        puzzle_rows: Tensor | None,
        want_logits: bool = True,
        packing: Packing | None = None,
        noise_keys: Tensor | None = None,
    ) -> Segment:
        """Run one segment.

        states: None where none is carried, as FSDP2 cannot move an empty tuple to a GPU. inputs: [B, T] tokens.
        puzzle_rows: [B, puzzle_emb_ndim], or None without puzzle embeddings. packing: the positions to compute, or None
        for all; others keep the states that they have, and are predicted as padding. noise_keys: [B, S] int64, if
        updates are noisy.
        """
        arch = self.arch
        if self._rope is None and arch.pos_encodings == "rope" and not arch.mlp_t:
            head_size = arch.hidden_size // arch.num_heads
            self._rope = rope_tables(self.seq_len, head_size, arch.rope_theta, inputs.device)
        if packing is not None:
            return self._packed(states or (), inputs, puzzle_rows, packing, want_logits, noise_keys)
        embedding = self._embed(inputs, puzzle_rows)
        new_states: States = self.recurrence(states or (), embedding, Positions(self._rope), noise_keys)
        answer = new_states[0]
        logits = self.lm_head(answer[:, arch.prefix_len :]) if want_logits else None
        # The Q-head reads the first position: the puzzle embedding's where there is one.
        return Segment(new_states, logits, self.q_head(answer[:, 0]).to(torch.float32))

    def _packed(
        self,
        states: States,
        inputs: Tensor,
        puzzle_rows: Tensor | None,
        packing: Packing,
        want_logits: bool,
        noise_keys: Tensor | None,
    ) -> Segment:
        # The dense embedding is kept no longer than until it is packed.
        packed, positions = self._pack((self._embed(inputs, puzzle_rows), *states), packing)
        if noise_keys is not None:
            noise_keys = noise_keys.flatten()[packing.position_N].unsqueeze(0)
        new_states: States = self.recurrence(packed[1:], packed[0], positions, noise_keys)
        answer = new_states[0].squeeze(0)
        logits = self._unpack_logits(self.lm_head(answer), packing) if want_logits else None
        q_logits = self.q_head(answer[packing.first_rows]).to(torch.float32)
        return Segment(self._unpack_states(new_states, states, packing), logits, q_logits)

    def _pack(self, tensors: States, packing: Packing) -> tuple[States, Positions]:
        """Return [B, S, D] each as [1, N, D], and what blocks need to know of their positions."""
        rope = None
        if self._rope is not None:
            place = packing.position_N % self.seq_len
            rope = Rope(*(table[place] for table in self._rope))
        return tuple(pack(tensor, packing).unsqueeze(0) for tensor in tensors), Positions(rope, packing)

    def _unpack_states(self, new: States, old: States, packing: Packing) -> States:
        carried = zip(new[: len(old)], old, strict=True)
        return tuple(unpack(state.detach().squeeze(0), before, packing) for state, before in carried)

    def _unpack_logits(self, logits_NV: Tensor, packing: Packing) -> Tensor:
        of_padding = (torch.arange(logits_NV.shape[1], device=logits_NV.device) == self.pad_id).to(logits_NV)
        # Not a part of all positions' logits: FSDP warns of views.
        return unpack(logits_NV, of_padding, packing.of_tokens(self.arch.prefix_len))
