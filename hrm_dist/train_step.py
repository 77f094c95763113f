"""A training step in two parts.

The host part reads, draws and computes numbers, and puts them into tensors at fixed places. The device part is a
function of these and of the run's state, which it changes in place. It reads nothing back, so that the host stays
ahead and the whole can be recorded once and replayed (see cuda_graph.py). Shapes: b slots of this rank, T tokens.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data_pipeline.reader import widen
from data_pipeline.sampler import rank_slice
from hrm_dist.checkpoint.train_state import TrainState
from hrm_dist.config import TrainConfig
from hrm_dist.cuda_graph import HostInputs, Program, Spec, why_plain
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from hrm_dist.engines.base import Engine
from hrm_dist.model.act import ACTModel, Batch, Carry, explore_halting, segment_keys
from hrm_dist.model.losses import act_loss, finite_sequences
from hrm_dist.model.puzzle_embedding import SignSGD
from hrm_dist.packed_sizes import PackedSize
from hrm_dist.skipped_updates import SkippedUpdates

_SegmentLoss = tuple[Tensor, dict[str, Tensor], Tensor]


class TrainStep:
    """One update of everything that is trained, from a batch; skipped if anything is not finite."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        model: ACTModel,
        engine: Engine,
        state: TrainState,
        skipped: SkippedUpdates,
        pad_id: int,
        sizes: Sequence[PackedSize] = (),
    ) -> None:
        """pad_id: what stands in labels where nothing is to be predicted. sizes: those of packed batches, where padding
        is not computed."""
        self._config, self._world, self._model, self._engine = config, world, model, engine
        self._state, self._skipped = state, skipped
        tokens, by_slot = (
            Spec.of(state.carry.current_data[name]) for name in ("inputs", "puzzle_identifiers")
        )
        tokens, number = tokens._replace(dtype=torch.uint8), Spec((), torch.float64)
        batch = {"inputs": tokens, "labels": tokens, "puzzle_identifiers": by_slot}
        others = {
            "min_halt_steps": by_slot,
            "noise_keys": by_slot._replace(dtype=torch.int64),
            "step": Spec((), torch.int64),
            "lr": number,
            "puzzle_emb_lr": number,
        }
        self._inputs = HostInputs(batch | others, world.device)
        self._bytes: Batch = {name: self._inputs[name] for name in batch}
        self._pad_id = pad_id
        compiles = config.compiles_on(world.device.type)
        self._table_optimizer = None
        if model.puzzle_emb is not None:
            self._table_optimizer = SignSGD(
                model.puzzle_emb, config.puzzle_emb_weight_decay, compiles=compiles
            )
        self._segment_loss: Callable[[Carry, dict[str, Tensor]], _SegmentLoss] = functools.partial(
            _segment_loss, loss_type=config.arch.loss_type
        )
        if compiles:
            self._segment_loss = torch.compile(self._segment_loss, fullgraph=True, dynamic=False)
        self._rows_needed: Callable[[int], Tensor] = self._most_rows
        if compiles:
            self._rows_needed = torch.compile(self._most_rows, fullgraph=True, dynamic=False)
        self._sizes = tuple(sizes)
        records = why_plain(config, world.device.type, world.world_size) is None
        # Where nothing is packed, there is one size, and nothing depends on its rows.
        self._every_size = self._sizes or (PackedSize(0, config.gradient_accumulation_steps),)
        self._program = Program(self.device_part, world.device, records=records)

    def __call__(self, batch: Batch, step: int, lr: float, puzzle_emb_lr: float) -> None:
        """Make a step, counted from 1, with this rank's slice of a batch and its learning rates."""
        self._fill(batch, step, lr, puzzle_emb_lr)
        self._program(self._size_of_step())

    def _size_of_step(self) -> PackedSize:
        """Return in which size the step is computed, the same on all ranks.

        To know it takes the only number that the host reads from the device in a step: which sequences halted in the
        last one decides which are there in this one.
        """
        if len(self._every_size) == 1:
            return self._every_size[0]
        needed = int(collectives.all_reduce_max(self._rows_needed(self._sizes[0].num_micro_batches)))
        return next((size for size in self._sizes[:-1] if size.num_rows >= needed), self._sizes[-1])

    def _most_rows(self, num_micro_batches: int) -> Tensor:
        """Return the most positions that a micro-batch of the coming step has to compute, [] int64."""
        carry, batch = self._state.carry, widen(self._bytes, self._pad_id)
        lengths = torch.where(
            carry.halted, self._model.lengths(batch), self._model.lengths(carry.current_data)
        )
        return lengths.view(num_micro_batches, -1).sum(1).max()

    @property
    def is_recorded(self) -> bool:
        """Return whether the device part is replayed by now."""
        return self._program.is_recorded

    def warm_up_backward(self, batch: Batch) -> None:
        """Let the engine see a forward and a backward that change nothing, if it asks for them."""

        def forward_backward() -> None:
            self._fill(batch, 0, 0.0, 0.0)
            for size in self._every_size:
                [(_, rows), *_] = self._micro_batches(size.num_micro_batches)
                self._engine.set_requires_gradient_sync(is_last=True)
                free_to_halt = torch.zeros_like(rows["puzzle_identifiers"])
                carry = self._model.initial_carry(rows, self._config.arch.num_chains)
                keys = torch.zeros_like(rows["puzzle_identifiers"], dtype=torch.int64)
                carry, outputs = self._model(carry, rows, free_to_halt, size.num_rows, keys)
                self._engine.backward(self._segment_loss(carry, outputs)[0])
                if self._model.puzzle_emb is not None:
                    self._model.puzzle_emb.gradients = []

        # Compiled for every size before the first step: not in the midst of a run.
        compiles = len(self._every_size) > 1 and self._config.compiles_on(self._world.device.type)
        self._engine.warm_up_backward(forward_backward, is_wanted=compiles)

    def _fill(self, batch: Batch, step: int, lr: float, puzzle_emb_lr: float) -> None:
        config, world = self._config, self._world
        drawn = explore_halting(config.arch, config.seed, max(0, step - 1), config.global_batch_size)
        min_halt_steps = torch.from_numpy(rank_slice(drawn, world.rank, world.world_size))
        numbers = {"step": step, "lr": lr, "puzzle_emb_lr": puzzle_emb_lr}
        tensors = {
            name: torch.tensor(value, dtype=self._inputs[name].dtype) for name, value in numbers.items()
        }
        noise_keys = torch.zeros_like(self._inputs["noise_keys"], device="cpu")
        if config.arch.is_random:
            of_all = segment_keys(config.seed, max(0, step - 1), config.global_batch_size)
            noise_keys = torch.from_numpy(rank_slice(of_all, world.rank, world.world_size))
        self._inputs.fill({**batch, "min_halt_steps": min_halt_steps, "noise_keys": noise_keys, **tensors})

    def _micro_batches(self, num: int) -> list[tuple[slice, Batch]]:
        """Return what is computed at a time: which slots, and their rows of the batch, no longer bytes."""
        batch = widen(self._bytes, self._pad_id)
        size = len(self._state.carry.steps) // num
        slices = [slice(start, start + size) for start in range(0, num * size, size)]
        return [(slots, {name: tensor[slots] for name, tensor in batch.items()}) for slots in slices]

    def device_part(self, size: PackedSize) -> None:
        """Make the update that the inputs ask for; a function of tensors at fixed places alone."""
        config, inputs = self._config, self._inputs
        micro_batches = self._micro_batches(size.num_micro_batches)
        sums: dict[str, Tensor] = {}
        finite: list[Tensor] = []  # by sequence
        loss_is_finite = torch.ones((), dtype=torch.bool, device=self._world.device)
        for index, (slots, batch) in enumerate(micro_batches):
            self._engine.set_requires_gradient_sync(is_last=index + 1 == len(micro_batches))
            carried = _of_slots(self._state.carry, slots)
            carry, outputs = self._model(
                carried,
                batch,
                inputs["min_halt_steps"][slots],
                size.num_rows,
                inputs["noise_keys"][slots],
            )
            loss, metrics, are_finite = self._segment_loss(carry, outputs)
            self._engine.backward(loss / config.global_batch_size)
            finite.append(are_finite)
            loss_is_finite &= torch.isfinite(loss.detach())
            sums = {name: sums[name] + value if sums else value for name, value in metrics.items()}
            # A sequence whose state is not finite would stay so: its slot takes a new one.
            _overwrite(carried, carry._replace(halted=carry.halted | ~are_finite))
        sequences_are_finite = torch.cat(finite)
        if self._model.puzzle_emb is not None:
            sequences_are_finite &= self._model.puzzle_emb.finite_gradients()
        update_applied = self._engine.step(inputs["lr"], loss_is_finite & sequences_are_finite.all())
        if self._table_optimizer is not None:
            self._table_optimizer.step(inputs["puzzle_emb_lr"], update_applied)
        self._state.sums.add(sums, update_applied)
        identifiers = self._state.carry.current_data["puzzle_identifiers"]
        self._skipped.add(inputs["step"], update_applied, sequences_are_finite, identifiers)


def _segment_loss(carry: Carry, outputs: dict[str, Tensor], loss_type: str) -> _SegmentLoss:
    """Return the loss and the metrics of a segment, and which of its sequences are finite."""
    return *act_loss(carry, outputs, loss_type), finite_sequences(outputs)


def _of_slots(carry: Carry, slots: slice) -> Carry:
    """Return the carry of some slots, as views."""
    states = type(carry.inner_carry)(*(state[slots] for state in carry.inner_carry))
    data = {name: tensor[slots] for name, tensor in carry.current_data.items()}
    return Carry(states, carry.steps[slots], carry.halted[slots], data)


def _overwrite(carry: Carry, new: Carry) -> None:
    """Put the values of a carry into the tensors of another."""
    torch._foreach_copy_(_tensors(carry), _tensors(new))


def _tensors(carry: Carry) -> list[Tensor]:
    return [*carry.inner_carry, carry.steps, carry.halted, *carry.current_data.values()]
