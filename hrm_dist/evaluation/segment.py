"""One segment of every sequence in evaluation: a function of tensors at fixed places, recorded where it can be.

Which slots begin with a new sequence is one of these tensors, so that they need not all begin at once.
Shapes: B slots, T tokens.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from data_pipeline.arc.tokens import FIRST_COLOUR_ID, VOCAB_SIZE
from hrm_dist.cuda_graph import HostInputs, Program, Spec
from hrm_dist.evaluation.halting import Said
from hrm_dist.model.act import ACTModel, Carry
from hrm_dist.model.losses import LOSSES
from hrm_dist.model.noise import key_of
from hrm_dist.model.packing import inside_sequences
from hrm_dist.packed_sizes import evaluation_rows


class Results(NamedTuple):
    """What the model says of each slot's sequence, on the host as soon as the device has got there."""

    preds: Tensor  # [B, T] uint8
    q_halt_logits: Tensor  # [B] float32
    q_continue_logits: Tensor  # [B] float32; 0 where the architecture has no such head
    log_probs: Tensor  # [B] float32; log of the probability of the answer, the sum over its cells
    num_unchanged: Tensor  # [B] int32; how many of the last segments in a row gave the same answer again
    residuals: Tensor  # [B] float32; infinite where not asked for and after a sequence's first segment
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()

    def said(self) -> Said:
        """Return what halting rules look at."""
        values = (self.q_halt_logits, self.q_continue_logits, self.num_unchanged, self.residuals)
        return Said(*(value.numpy() for value in values))


def grid_cells(preds: Tensor) -> Tensor:
    """Return which cells [B, T] of predicted canvases make up the grid that they spell, as `crop_sizes` finds it."""
    canvas = math.isqrt(preds.shape[1])
    is_colour = ((preds >= FIRST_COLOUR_ID) & (preds < VOCAB_SIZE)).view(-1, canvas, canvas)
    width_of_rows = is_colour.int().cumprod(-1).sum(-1).cummin(-1).values
    line = torch.arange(canvas, device=preds.device)
    last_row = (width_of_rows * (line + 1)).argmax(
        -1, keepdim=True
    )  # the first maximum, i.e. the fewest rows
    width = width_of_rows.gather(-1, last_row)
    return ((line <= last_row)[:, :, None] & (line < width)[:, None]).view(preds.shape)


class EvaluationSegment:
    """A number of slots, all of which a call takes one segment further; the model must be in evaluation mode."""

    def __init__(
        self,
        model: ACTModel,
        num_slots: int,
        device: torch.device,
        *,
        records: bool = False,
        has_grids: bool = False,
        residuals: bool = False,
    ) -> None:
        """records: whether to record it after some calls (see cuda_graph.py), on a GPU only.

        has_grids: whether an answer is the grid that the tokens spell, as in ARC, and not all of them. residuals:
        whether to compute the root mean square, over computed positions and width, of what a segment has changed in
        the state that answers are read from.
        """
        self.model, self.num_slots = model, num_slots
        self.has_grids, self._has_residuals = has_grids, residuals
        tokens = Spec((num_slots, model.seq_len - model.arch.prefix_len), torch.uint8)
        self._inputs = HostInputs(
            {
                "inputs": tokens,
                "puzzle_identifiers": Spec((num_slots,), torch.int32),
                "noise_keys": Spec((num_slots,), torch.int64),
                "refill": Spec((num_slots,), torch.bool),
            },
            device,
        )
        # Nothing reads them, but with them a batch is as in training, for which parts of the model may be compiled.
        self._labels = torch.zeros(tokens.shape, dtype=torch.int32, device=device)
        self.carry = model.initial_carry(self._batch())
        self.preds, self._answer = torch.zeros((2, *tokens.shape), dtype=torch.uint8, device=device)
        self.q_halt_logits, self.q_continue_logits, self.log_probs, self.residuals = torch.zeros(
            4, num_slots, device=device
        )
        self.num_unchanged = torch.zeros(num_slots, dtype=torch.int32, device=device)
        # Of sequences without padding the host knows the lengths, since it gives them to the slots.
        self._windows = None if model.windows is None else model.windows.cpu()
        self._lengths = torch.zeros(num_slots, dtype=torch.int64)
        self._no_keys = torch.zeros(num_slots, dtype=torch.int64)
        self._numbers_of_rows = (0,)
        if self._windows is not None:
            self._numbers_of_rows = evaluation_rows(
                self._windows, model.arch.prefix_len, num_slots, model.seq_len
            )
        self._program = Program(self.device_part, device, records=records)

    def refill(self, batch: Mapping[str, Tensor], slots: Tensor) -> None:
        """Let these slots, [B] bool, begin with their row of a batch (on the host, [B, ...]) in the next segment.

        Of a model that draws random numbers the batch has `noise_keys` [B] int64 too (see start_keys.py).
        """
        if self._windows is not None:
            self._lengths = torch.where(slots, self.lengths(batch), self._lengths)
        self._inputs.fill(
            {
                "inputs": batch["inputs"],
                "puzzle_identifiers": batch["puzzle_identifiers"],
                "noise_keys": batch["noise_keys"] if self.model.arch.is_random else self._no_keys,
                "refill": slots,
            }
        )

    def lengths(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return how many positions of each sequence of a batch (on the host) are computed; without padding only."""
        assert self._windows is not None
        sizes = self._windows[batch["puzzle_identifiers"]]
        return inside_sequences(batch["inputs"], sizes, self.model.pad_id, self.model.arch.prefix_len).sum(1)

    def __call__(self) -> None:
        """Run the next segment."""
        needed = int(self._lengths.sum())
        self._program(next(num_rows for num_rows in self._numbers_of_rows if num_rows >= needed))

    # Not inference_mode: FSDP2 trains with the buffers of a process's first forward, which may be one of these.
    @torch.no_grad()
    def device_part(self, num_rows: int) -> None:
        """Run a segment on the tensors at fixed places; num_rows: room for packed sequences."""
        refill = self._inputs["refill"]
        noise_keys = None
        if self.model.arch.is_random:
            noise_keys = key_of(self._inputs["noise_keys"], torch.where(refill, 0, self.carry.steps))
        begun = self.carry._replace(halted=refill)
        carry, outputs = self.model(begun, self._batch(), num_rows=num_rows, noise_keys=noise_keys)
        logits = outputs["logits"]
        preds = logits.argmax(-1).to(torch.uint8)
        cells = grid_cells(preds) if self.has_grids else torch.ones_like(preds, dtype=torch.bool)
        answer = torch.where(cells, preds, 0)
        is_same = ~refill & (answer == self._answer).all(1)
        self.num_unchanged.copy_(torch.where(is_same, self.num_unchanged + 1, 0))
        self._answer.copy_(answer)
        losses = LOSSES[self.model.arch.loss_type].cross_entropy(logits, preds.long())
        self.log_probs.copy_(-torch.where(cells, losses, 0).sum(1))
        if self._has_residuals:
            self.residuals.copy_(torch.where(refill, torch.inf, self._change(carry)))
        for kept, new in zip(tree_leaves(self.carry), tree_leaves(carry), strict=True):
            kept.copy_(new)
        self.preds.copy_(preds)
        self.q_halt_logits.copy_(outputs["q_halt_logits"])
        if self.model.arch.act_continue:
            self.q_continue_logits.copy_(outputs["q_continue_logits"])
        refill.zero_()  # they go on from here

    def _change(self, carry: Carry) -> Tensor:
        """Return the root mean square, over computed positions and width, of what the segment changed, [B]."""
        new, old = carry.inner_carry[0], self.carry.inner_carry[0]
        num_positions = (
            self.model.seq_len if self._windows is None else self.model.lengths(carry.current_data)
        )
        # Positions that are not computed do not change.
        norm = torch.linalg.vector_norm(new - old, dim=(1, 2), dtype=torch.float32)
        return norm * (num_positions * new.shape[-1]) ** -0.5

    def results(self) -> Results:
        """Copy what the last segment said to the host; the next one need not wait for anybody to read it."""
        said = (
            self.preds,
            self.q_halt_logits,
            self.q_continue_logits,
            self.log_probs,
            self.num_unchanged,
            self.residuals,
        )
        # Into pinned memory, if from a GPU.
        values = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in said]
        copied = None
        if self.preds.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        return Results(*values, copied=copied)

    def _batch(self) -> dict[str, Tensor]:
        return {
            "inputs": self._inputs["inputs"].to(torch.int32),
            "labels": self._labels,
            "puzzle_identifiers": self._inputs["puzzle_identifiers"],
        }
