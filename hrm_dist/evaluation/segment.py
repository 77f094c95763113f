"""One segment of every sequence in evaluation: a function of tensors at fixed places, recorded where it can be.

Which slots begin with a new sequence is one of these tensors, so that they need not all begin at once.
Shapes: B slots, T tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hrm_dist.cuda_graph import HostInputs, Program, Spec
from hrm_dist.model.act import ACTModel
from hrm_dist.model.packing import inside_sequences
from hrm_dist.packed_sizes import evaluation_rows


class Results(NamedTuple):
    """What the model says of each slot's sequence, on the host as soon as the device has got there."""

    preds: Tensor  # [B, T] uint8
    q_halt_logits: Tensor  # [B] float32
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


class EvaluationSegment:
    """A number of slots, all of which a call takes one segment further; the model must be in evaluation mode."""

    def __init__(
        self, model: ACTModel, num_slots: int, device: torch.device, *, records: bool = False
    ) -> None:
        """records: whether to record it after some calls (see cuda_graph.py), on a GPU only."""
        self.model, self.num_slots = model, num_slots
        tokens = Spec((num_slots, model.seq_len - model.arch.prefix_len), torch.uint8)
        self._inputs = HostInputs(
            {
                "inputs": tokens,
                "puzzle_identifiers": Spec((num_slots,), torch.int32),
                "refill": Spec((num_slots,), torch.bool),
            },
            device,
        )
        # Nothing reads them, but with them a batch is as in training, for which parts of the model may be compiled.
        self._labels = torch.zeros(tokens.shape, dtype=torch.int32, device=device)
        self.carry = model.initial_carry(self._batch())
        self.preds = torch.zeros(tokens.shape, dtype=torch.uint8, device=device)
        self.q_halt_logits, self.q_continue_logits = torch.zeros(2, num_slots, device=device)
        # Of sequences without padding the host knows the lengths, since it gives them to the slots.
        self._windows = None if model.windows is None else model.windows.cpu()
        self._lengths = torch.zeros(num_slots, dtype=torch.int64)
        self._numbers_of_rows = (0,)
        if self._windows is not None:
            self._numbers_of_rows = evaluation_rows(
                self._windows, model.arch.prefix_len, num_slots, model.seq_len
            )
        self._program = Program(self.device_part, device, records=records)

    def refill(self, batch: Mapping[str, Tensor], slots: Tensor) -> None:
        """Let these slots, [B] bool, begin with their row of a batch (on the host, [B, ...]) in the next segment."""
        if self._windows is not None:
            sizes = self._windows[batch["puzzle_identifiers"]]
            arch, pad_id = self.model.arch, self.model.pad_id
            lengths = inside_sequences(batch["inputs"], sizes, pad_id, arch.prefix_len).sum(1)
            self._lengths = torch.where(slots, lengths, self._lengths)
        self._inputs.fill(
            {
                "inputs": batch["inputs"],
                "puzzle_identifiers": batch["puzzle_identifiers"],
                "refill": slots,
            }
        )

    def __call__(self) -> None:
        """Run the next segment."""
        needed = int(self._lengths.sum())
        self._program(next(num_rows for num_rows in self._numbers_of_rows if num_rows >= needed))

    # Not inference_mode: FSDP2 trains with the buffers of a process's first forward, which may be one of these.
    @torch.no_grad()
    def device_part(self, num_rows: int) -> None:
        """Run a segment on the tensors at fixed places; num_rows: room for packed sequences."""
        refill = self._inputs["refill"]
        carry, outputs = self.model(self.carry._replace(halted=refill), self._batch(), num_rows=num_rows)
        for kept, new in zip(tree_leaves(self.carry), tree_leaves(carry), strict=True):
            kept.copy_(new)
        self.preds.copy_(outputs["logits"].argmax(-1))
        self.q_halt_logits.copy_(outputs["q_halt_logits"])
        self.q_continue_logits.copy_(outputs["q_continue_logits"])
        refill.zero_()  # they go on from here

    def results(self) -> Results:
        """Copy what the last segment said to the host; the next one need not wait for anybody to read it."""
        # Into pinned memory, if from a GPU.
        preds, q_halt_logits = (
            tensor.to("cpu", non_blocking=True, copy=True) for tensor in (self.preds, self.q_halt_logits)
        )
        if not self.preds.is_cuda:
            return Results(preds, q_halt_logits, None)
        copied = torch.cuda.Event()
        copied.record()
        return Results(preds, q_halt_logits, copied)

    def _batch(self) -> dict[str, Tensor]:
        return {
            "inputs": self._inputs["inputs"].to(torch.int32),
            "labels": self._labels,
            "puzzle_identifiers": self._inputs["puzzle_identifiers"],
        }
