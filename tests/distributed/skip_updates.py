"""A command for tests: give one rank a number that is not finite for one step, and print what became of the state.

RANK=... WORLD_SIZE=... python -m tests.distributed.skip_updates CONFIG.yaml WHERE [key=value ...]

WHERE, on the last rank: `row` (the embedding of a puzzle of its batch), `gradient` (what enters its recurrence's
backward), `partition` (a single number of what its optimizer is given).
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from hrm_dist.config import load_config
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World, process_group
from hrm_dist.trainer import Trainer


def main() -> int:
    where = sys.argv[2]
    config = load_config(sys.argv[1], sys.argv[3:])
    with process_group("cpu", config.engine != "ddp") as world:
        trainer = Trainer(config, world)
        for _ in range(3):
            step(trainer)
        before = digests(trainer)
        spoil = {"row": spoil_row, "gradient": spoil_gradient, "partition": spoil_partition}[where]
        spoiled = spoil(trainer, world)
        step(trainer)
        spoiled()
        after, report = digests(trainer), trainer.skipped.report()
        again = digests(trainer)
        step(trainer)
        assert report is not None
        print(
            json.dumps(
                {
                    "changed": sorted(key for key in before if before[key] != after[key]),
                    "changed_by_the_next": before != digests(trainer) and again == after,
                    "num_updates": trainer.engine.num_updates(),
                    "report": report._asdict(),
                    "names": report.describe(Path(config.data_path)),
                    "row": {
                        k: v
                        for k, v in trainer.state.sums.row(config.global_batch_size).items()
                        if k == "train/loss"
                    },
                    "next_is_clean": trainer.skipped.report() is None,
                    "carry_is_finite": bool(trainer.state.carry.inner_carry.z_H.isfinite().all()),
                }
            )
        )
    return 0


def step(trainer: Trainer) -> None:
    trainer.train_step(trainer.reader.batch(trainer.state.step))


def digests(trainer: Trainer) -> dict[str, str]:
    """sha256 of every shard of weights, moments, average and table that this rank holds."""
    kinds = ("model.", "ema.", "exp_avg")
    return {
        shard.key: hashlib.sha256(shard.data.detach().contiguous().numpy().tobytes()).hexdigest()
        for shard in trainer.state.tensor_shards()
        if shard.key.startswith(kinds)
    }


def spoil_row(trainer: Trainer, world: World) -> Any:
    """Put a NaN into the row of the last rank's first puzzle, wherever that row is; gives what restores it."""
    carry = trainer.state.carry
    batch = trainer.reader.batch(trainer.state.step)
    coming = torch.where(carry.halted, batch["puzzle_identifiers"], carry.current_data["puzzle_identifiers"])
    identifier = collectives.gather_objects(int(coming[0]))[-1]
    table = trainer.model.puzzle_emb
    assert table is not None
    if identifier not in table.rows:
        return lambda: None
    index = table.local_index(torch.tensor([identifier]))
    kept = table.weights[index].clone()
    table.weights[index] = torch.nan

    def restore() -> None:
        assert torch.isnan(table.weights[index]).all()
        table.weights[index] = kept

    return restore


def spoil_gradient(trainer: Trainer, world: World) -> Any:
    """Make the gradient that enters the recurrence infinite on the last rank, while its losses stay finite."""
    if world.rank != world.world_size - 1:
        return lambda: None
    recurrence = next(m for n, m in trainer.model.network.named_modules() if n.endswith("recurrence"))

    def spoil(_module: object, _arguments: object, states: Any) -> None:
        if states[0].requires_grad:
            states[0].register_hook(lambda grad: grad * torch.inf)

    return recurrence.register_forward_hook(spoil).remove


def spoil_partition(trainer: Trainer, world: World) -> Any:
    """Make one number infinite in the gradient that the last rank's optimizer is given: no other rank sees it."""
    if world.rank != world.world_size - 1:
        return lambda: None
    engine: Any = trainer.engine
    optimizer = engine._optimizer
    whole_step = optimizer.step

    def step_with_infinity() -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.numel()]
        grads[-1].view(-1)[0] = torch.inf
        whole_step()

    optimizer.step = step_with_infinity

    def restore() -> None:
        optimizer.step = whole_step

    return restore


if __name__ == "__main__":
    sys.exit(main())
