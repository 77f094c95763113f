"""From what an input draws its noise in evaluation: from what it is, and nothing of where or when it is answered."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.reader import TestBatch
from hrm_dist.evaluation.proof import digests
from hrm_dist.model.noise import key_of


def start_keys(batch: TestBatch, starts: NDArray[np.integer] | int = 0, seed: int = 0) -> Tensor:
    """Return the keys, [B] int64, of a batch of the test split (on the host), of which starts are wanted, and a seed.

    Sudokus and mazes all have the same identifier, so that an input's own tokens are in its key.
    """
    content = torch.from_numpy(digests(batch["inputs"].numpy()).view(np.int64))
    start = torch.as_tensor(starts, dtype=torch.int64)
    return key_of(seed, batch["puzzle_identifiers"], batch["example_index"], content, start)
