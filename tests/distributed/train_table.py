"""A command for tests: train a few steps and print what a rank holds of the puzzle table.

RANK=... WORLD_SIZE=... python -m tests.distributed.train_table CONFIG.yaml [key=value ...]
"""

import hashlib
import json
import sys

from hrm_dist.config import load_config
from hrm_dist.distributed.process_group import World, process_group
from hrm_dist.trainer import Trainer


def main() -> int:
    with process_group("cpu") as world:
        print(json.dumps(_train(world)))
    return 0


def _train(world: World) -> dict[str, object]:
    trainer = Trainer(load_config(sys.argv[1], sys.argv[2:]), world)
    for step in range(3):
        trainer.train_step(trainer.reader.batch(step))
    table = trainer.model.puzzle_emb
    assert table is not None
    rows = table.own_rows()
    digest = hashlib.sha256(table.shard(rows).data.numpy().tobytes()).hexdigest()
    return {"first": rows.start, "share": len(rows), "sha256": digest, "bytes": table.weights.nbytes}
