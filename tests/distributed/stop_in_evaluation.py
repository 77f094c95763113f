"""A command for tests: train, but one rank is signalled in a batch of the evaluation after a step.

[RANK=...] python -m tests.distributed.stop_in_evaluation RANK STEP BATCH CONFIG.yaml [key=value ...]

The batches of that evaluation are counted from 1 and printed as they begin.
"""

import os
import signal
import sys
from typing import Any

from hrm_dist import train
from hrm_dist.evaluation import evaluate as evaluation
from hrm_dist.trainer import Trainer


def main() -> int:
    step, batch = map(int, sys.argv[2:4])
    is_signalled = os.environ.get("RANK", "0") == sys.argv[1]
    evaluate, predict = Trainer._evaluate, evaluation.predict
    count = -1  # in other evaluations

    def counted_evaluate(self: Trainer, *arguments: Any) -> Any:
        nonlocal count
        count = 0 if self.state.step == step else -1
        return evaluate(self, *arguments)

    def signalled_predict(*arguments: Any) -> Any:
        nonlocal count
        if count >= 0:
            count += 1
            print(f"batch {count} of the evaluation after step {step}", flush=True)
            if is_signalled and count == batch:
                os.kill(os.getpid(), signal.SIGUSR2)
        return predict(*arguments)

    Trainer._evaluate, evaluation.predict = counted_evaluate, signalled_predict
    return train.main(sys.argv[4:])
