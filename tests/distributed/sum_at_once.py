"""A command for tests: train, and sum gradients over the ranks as where steps are recorded, which takes a GPU.

RANK=... python -m tests.distributed.sum_at_once CONFIG.yaml [key=value ...]
"""

import sys

from torch.nn import parallel

from hrm_dist import train
from hrm_dist.engines import ddp


def main() -> int:
    ddp.why_plain = lambda *_: None

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("steps with DDP are not recorded")

    ddp.DistributedDataParallel = parallel.DistributedDataParallel = refuse  # type: ignore[assignment, misc]
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
