"""A command for tests: train a few steps under an engine, and print how often each collective ran in the last one.

RANK=... WORLD_SIZE=... python -m tests.distributed.count_collectives CONFIG.yaml [key=value ...]

The last line is an object: by collective, how often, and the bytes of the whole tensors that were reduced or gathered.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrm_dist.config import load_config
from hrm_dist.distributed.process_group import process_group
from hrm_dist.trainer import Trainer


class CountCollectives(TorchDispatchMode):
    """Counts the operators of torch.distributed by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = str(func).partition(".")
        if namespace == "c10d":
            name = name.removesuffix(".default")
            self.counts[name] += 1
            # What is gathered is whole in the first argument, what is scattered in the second.
            self.bytes[name] += sum(
                tensor.nbytes for tensor in _tensors(args[name.startswith("_reduce_scatter")])
            )
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)


def main() -> int:
    config = load_config(sys.argv[1], sys.argv[2:])
    with process_group("cpu") as world:
        trainer = Trainer(config, world)
        counting = CountCollectives()
        waits: list[None] = []
        if config.engine.startswith("zero"):  # DeepSpeed can be made to wait for the device
            from deepspeed.accelerator import get_accelerator

            accelerator: Any = get_accelerator()
            accelerator.synchronize = lambda *_: waits.append(None)
        for step in range(3):  # some are only run the first time
            counting.counts.clear()
            counting.bytes.clear()
            with counting:
                trainer.train_step(trainer.reader.batch(step))
    print(json.dumps({"calls": counting.counts, "bytes": counting.bytes, "waits": len(waits)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
