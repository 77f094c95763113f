"""A command for tests: train a few steps under an engine and print how often each collective ran in the last one.

RANK=... WORLD_SIZE=... python -m tests.distributed.count_collectives CONFIG.yaml [key=value ...]
"""

import json
import sys
from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from hrm_dist import distributed
from hrm_dist.config import load_config
from hrm_dist.trainer import Trainer


class CountCollectives(TorchDispatchMode):
    """Counts the operators of torch.distributed by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = str(func).partition(".")
        if namespace == "c10d":
            self.counts[name.removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


def main() -> int:
    config = load_config(sys.argv[1], sys.argv[2:])
    with distributed.process_group("cpu") as world:
        trainer = Trainer(config, world)
        counting = CountCollectives()
        for step in range(3):  # some are only run the first time
            counting.counts.clear()
            with counting:
                trainer.train_step(trainer.reader.batch(step))
            trainer.step += 1
    print(json.dumps(counting.counts))
    return 0
