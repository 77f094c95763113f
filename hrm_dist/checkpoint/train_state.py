"""What a checkpoint holds of a run: each rank's share, and how a run takes it over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrm_dist.checkpoint.carry import carry_shards, load_carry
from hrm_dist.checkpoint.reader import FORMAT, Checkpoint, CheckpointState, is_up_to
from hrm_dist.checkpoint.resume import environment
from hrm_dist.config import TrainConfig, sequences_per_process
from hrm_dist.distributed.process_group import World
from hrm_dist.engines.base import Engine
from hrm_dist.metrics import MetricSums
from hrm_dist.model.act import ACTModel, Carry
from hrm_dist.tensor_shards import TensorShard, load_into, replicated


class TrainState:
    """Hold everything that changes as a run trains, so that a run which loads it equals one that never stopped."""

    def __init__(self, config: TrainConfig, world: World, model: ACTModel, engine: Engine) -> None:
        self._config, self._world, self._model, self._engine = config, world, model, engine
        self.step = 0
        """Completed steps."""
        self.carry = _new_carry(model, sequences_per_process(config, world.world_size), world.device)
        """Of this rank's slots; always the same tensors, which a step changes in place."""
        self.sums = MetricSums(world.device)
        self.best_score: float | None = None
        """The score to beat; None as long as there is no `best`."""
        self.evaluation_is_due = False
        """Whether the evaluation of this step has yet to be made, because a signal stopped it."""
        self.row_is_due = False
        """Whether the row of this step has yet to be written: earlier versions wrote it only after the evaluation."""

    def summary(self, dataset: dict[str, Any]) -> CheckpointState:
        """Return what state.json says, but for the files; dataset: see `dataset_identity`."""
        return CheckpointState(
            format=FORMAT,
            step=self.step,
            num_updates=self._engine.num_updates(),
            world_size=self._world.world_size,
            config=self._config.model_dump(mode="json"),
            dataset=dataset,
            environment=environment(self._config, self._world.device),
            metric_sums=self.sums.total(),
            metric_names=tuple(self.sums.names),
            best_score=self.best_score,
            evaluation_is_due=self.evaluation_is_due,
        )

    def tensor_shards(self) -> Iterator[TensorShard]:
        """Yield this rank's share of everything that a resume needs."""
        yield from self._engine.tensor_shards()
        table = self._model.puzzle_emb
        if table is not None and table.own_rows():
            yield table.shard(table.own_rows())
        if self._world.is_main:
            yield from self._initial_states()
        yield from (replicated(key, tensor) for key, tensor in self._own_states().items())
        if self._config.save_carry:
            yield from carry_shards(self.carry, self._world)

    def _initial_states(self) -> Iterator[TensorShard]:
        for name, tensor in self._model.initial_states().items():
            yield replicated(f"model.{name}", tensor)

    def _own_states(self) -> dict[str, Tensor]:
        """Return what is this rank's own."""
        rank, device = self._world.rank, self._world.device
        states = {f"rank.metric_sums.{rank}": self.sums.values, f"rank.rng_cpu.{rank}": torch.get_rng_state()}
        if device.type == "cuda":
            states[f"rank.rng_cuda.{rank}"] = torch.cuda.get_rng_state(device)
        return states

    def load(self, opened: Checkpoint) -> None:
        """Take over the state of a checkpoint, whichever engine wrote it on however many ranks."""
        state = opened.state

        def read(key: str, start: int, stop: int) -> Tensor:
            kind, name = key.split(".", 1)
            if kind == "ema" and not opened.has("ema"):  # the average begins with the weights
                return opened.read(f"model.{name}", start, stop)
            if kind.startswith("exp_avg") and not opened.has(kind):  # weights that were not trained here
                return torch.zeros(stop - start)
            return opened.read(key, start, stop)

        self._engine.load(read, state.num_updates)
        for shard in self._initial_states():
            load_into(shard, read)
        table = self._model.puzzle_emb
        if table is not None:
            load_into(table.shard(table.rows), read)
        load_carry(opened, self.carry, self._world)
        self._load_own_states(opened)
        self.step, self.evaluation_is_due = state.step, state.evaluation_is_due
        # A score is one to beat as long as `best` is there to show for it.
        best = Path(self._config.checkpoint_path) / "checkpoints" / "best"
        self.best_score = state.best_score if is_up_to(best, opened.path) else None

    def _load_own_states(self, opened: Checkpoint) -> None:
        rank, device, total = self._world.rank, self._world.device, opened.state.metric_sums
        is_same = opened.state.world_size == self._world.world_size and opened.has("rank")
        if is_same:
            torch.set_rng_state(opened.tensor(f"rank.rng_cpu.{rank}").clone())
            cuda = f"rank.rng_cuda.{rank}"
            if device.type == "cuda" and cuda in opened.shapes:
                torch.cuda.set_rng_state(opened.tensor(cuda).clone(), device)
        if any(total) and is_same:
            self.sums.load(opened.tensor(f"rank.metric_sums.{rank}"), opened.state.metric_names)
        elif any(total) and self._world.is_main:
            self.sums.load(torch.tensor(total, dtype=torch.float64), opened.state.metric_names)


def _new_carry(model: ACTModel, num_slots: int, device: torch.device) -> Carry:
    """Return a carry all of whose slots wait for a sequence."""
    tokens = torch.zeros(num_slots, model.seq_len - model.arch.prefix_len, dtype=torch.int32, device=device)
    batch = {"inputs": tokens, "labels": tokens, "puzzle_identifiers": tokens[:, 0]}
    return model.initial_carry(batch, model.arch.num_chains)
