"""The trained network: embed a puzzle, run one segment of the recurrence, read the answer and Q-values.

This is the module that an engine wraps; it holds every parameter that the optimizer trains. The puzzle
table lives outside, and its rows are passed in.
Shapes: B sequences, S = P + T positions (P prefix, T tokens), D hidden_size, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.model.hrm import HRMRecurrence, InnerCarry
from hrm_dist.model.layers import CastedEmbedding, CastedLinear, QHead, rope_tables, truncated_normal_
from hrm_dist.model.trm import TRMRecurrence

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RECURRENCES = {"hrm": HRMRecurrence, "trm": TRMRecurrence}


class Segment(NamedTuple):
    """What one segment gives."""

    z_H: Tensor  # [B, S, D], with gradient
    z_L: Tensor  # [B, S, D]
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
        self.lm_head = CastedLinear(arch.hidden_size, metadata.vocab_size)
        self.q_head = QHead(arch.hidden_size)

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
        self, carry: InnerCarry, inputs: Tensor, puzzle_rows: Tensor | None, want_logits: bool = True
    ) -> Segment:
        """Run one segment.

        inputs: [B, T] tokens. puzzle_rows: [B, puzzle_emb_ndim], or None without puzzle embeddings.
        """
        arch = self.arch
        rope = None
        if arch.pos_encodings == "rope" and not arch.mlp_t:
            head_size = arch.hidden_size // arch.num_heads
            rope = rope_tables(self.seq_len, head_size, arch.rope_theta, inputs.device)
        z_H, z_L = self.recurrence(carry, self._embed(inputs, puzzle_rows), rope)
        logits = self.lm_head(z_H[:, arch.prefix_len :]) if want_logits else None
        # The Q-head reads the first position: the puzzle embedding's where there is one.
        return Segment(z_H, z_L, logits, self.q_head(z_H[:, 0]).to(torch.float32))


def initialize_module(
    name: str, module: nn.Module, copy: Callable[[Tensor, Tensor], object], seed: int
) -> None:
    """Give a module's own tensors their published initial distribution, drawn from (seed, tensor name) alone.

    So the same model comes out on any device, in any order, whole or in parts. `copy` writes the values, which
    are whole and on the CPU, to a tensor that may be split.
    """
    reset = getattr(module, "reset_parameters", None)
    if reset is None:
        return

    def draw(tensor: Tensor, tensor_name: str, std: float) -> None:
        key = hashlib.sha256(f"{seed}:{name}.{tensor_name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
        values = torch.empty(tensor.shape, device="cpu")
        truncated_normal_(values, std, generator)
        copy(tensor, values)

    with torch.no_grad():
        reset(draw)


def initialize(model: nn.Module, seed: int) -> None:
    """Initialise every module of a model that is whole on this rank."""
    for name, module in model.named_modules():
        initialize_module(name, module, Tensor.copy_, seed)
