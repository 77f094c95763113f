"""A command for tests: give one rank a number that is not finite for one step, and print what became of the state.

RANK=... WORLD_SIZE=... python -m tests.distributed.skip_updates CONFIG.yaml WHERE [key=value ...]

WHERE: `row` (the embedding of a puzzle of the last rank's batch), `gradient` (what enters its recurrence's backward).
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from hrm_dist import distributed
from hrm_dist.config import load_config
from hrm_dist.distributed import World
from hrm_dist.trainer import Trainer


def main() -> int:
    where = sys.argv[2]
    config = load_config(sys.argv[1], sys.argv[3:])
    with distributed.process_group("cpu", config.engine != "ddp") as world:
        trainer = Trainer(config, world)
        for _ in range(3):
            step(trainer)
        before = digests(trainer)
        spoiled = spoil_row(trainer, world) if where == "row" else spoil_gradient(trainer, world)
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
                        for k, v in trainer.sums.row(config.global_batch_size).items()
                        if k == "train/loss"
                    },
                    "next_is_clean": trainer.skipped.report() is None,
                }
            )
        )
    return 0


def step(trainer: Trainer) -> None:
    trainer.train_step(trainer.reader.batch(trainer.step))
    trainer.step += 1


def digests(trainer: Trainer) -> dict[str, str]:
    """sha256 of every piece of weights, moments, average and table that this rank holds."""
    kinds = ("model.", "ema.", "exp_avg")
    return {
        piece.key: hashlib.sha256(piece.data.detach().contiguous().numpy().tobytes()).hexdigest()
        for piece in trainer._pieces()
        if piece.key.startswith(kinds)
    }


def spoil_row(trainer: Trainer, world: World) -> Any:
    """Put a NaN into the row of the last rank's first puzzle, wherever that row is; gives what puts it back."""
    carry = trainer.carries[0]
    batch = trainer.reader.batch(trainer.step)
    coming = torch.where(carry.halted, batch["puzzle_identifiers"], carry.current_data["puzzle_identifiers"])
    identifier = distributed.gather_objects(int(coming[0]))[-1]
    table = trainer.model.puzzle_emb
    assert table is not None
    if identifier not in table.rows:
        return lambda: None
    index = table.local_index(torch.tensor([identifier]))
    kept = table.weights[index].clone()
    table.weights[index] = torch.nan

    def put_back() -> None:
        assert torch.isnan(table.weights[index]).all()
        table.weights[index] = kept

    return put_back


def spoil_gradient(trainer: Trainer, world: World) -> Any:
    """Make the gradient that enters the recurrence infinite on the last rank, while its losses stay finite."""
    if world.rank != world.world_size - 1:
        return lambda: None
    recurrence = next(m for n, m in trainer.model.network.named_modules() if n.endswith("recurrence"))

    def spoil(_module: object, _arguments: object, states: Any) -> None:
        if states.z_H.requires_grad:
            states.z_H.register_hook(lambda grad: grad * torch.inf)

    return recurrence.register_forward_hook(spoil).remove


if __name__ == "__main__":
    sys.exit(main())
