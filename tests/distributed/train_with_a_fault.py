"""A command for tests: train, but one rank fails or hangs at a step, or works in a folder of its own.

RANK=... python -m tests.distributed.train_with_a_fault {error,hang} RANK STEP CONFIG.yaml [key=value ...]
RANK=... python -m tests.distributed.train_with_a_fault elsewhere RANK FOLDER CONFIG.yaml [key=value ...]
"""

import os
import sys
import time

from hrm_dist import train
from hrm_dist.trainer import Batch, Trainer


def main() -> int:
    fault, rank, where, *arguments = sys.argv[1:]
    if os.environ["RANK"] != rank:
        return train.main(arguments)
    if fault == "elsewhere":
        os.chdir(where)
        return train.main(arguments)
    train_step = Trainer.train_step

    def faulty(self: Trainer, batch: Batch) -> None:
        if self.state.step == int(where):
            if fault == "error":
                raise ZeroDivisionError("this rank cannot go on")
            time.sleep(3600)
        train_step(self, batch)

    Trainer.train_step = faulty
    return train.main(arguments)
