"""What one segment of one input takes: operations, and time on this machine."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data_pipeline.reader import TestBatch, TestReader
from hrm_dist.evaluation.evaluate import num_slots
from hrm_dist.evaluation.load_model import load_model
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.evaluation.start_keys import start_keys
from hrm_dist.model.act import ACTModel
from hrm_dist.model.flops import evaluation_flops_per_sequence
from tools.bench_train.speed import timed_steps

_TURNS = 5
# The host runs ahead of a GPU; there, a segment is recorded after eleven.
_SEGMENTS_PER_TURN = {"cpu": 1, "cuda": 10}
_WARM_UP_SEGMENTS = {"cpu": 2, "cuda": 15}


class Cost(NamedTuple):
    """Of a segment of one input, among as many others as there are slots."""

    operations: int
    """Of matrix products, the mean over inputs."""
    seconds: float
    """Median of a few segments, not compiled."""


def measure(
    checkpoint: Path,
    data: Path,
    reader: TestReader,
    batch_size: int,
    device: torch.device,
    overrides: Mapping[str, object],
) -> Cost:
    """Return what a segment of a checkpoint's model costs; overrides: of its architecture."""
    metadata = reader.info.metadata("train")
    model = load_model(checkpoint, data, metadata, ema=True, device=device, overrides=overrides)
    slots = num_slots(len(reader), batch_size, device)
    segment = EvaluationSegment(model, slots, device, records=device.type == "cuda")
    batch = reader.take(np.arange(slots))
    segment.refill(_tensors(batch) | {"noise_keys": start_keys(batch)}, torch.ones(slots, dtype=torch.bool))
    timed_steps(segment, device, _WARM_UP_SEGMENTS[device.type])
    times = [timed_steps(segment, device, _SEGMENTS_PER_TURN[device.type]).wall for _ in range(_TURNS)]
    operations = evaluation_flops_per_sequence(model.arch, metadata, _lengths(model, reader))
    return Cost(operations, statistics.median(times) / slots)


def _lengths(model: ACTModel, reader: TestReader) -> np.ndarray | None:
    """Return how many positions of each input are computed; None where all are."""
    if model.windows is None:
        return None
    batches = reader.batches(1024)
    return np.concatenate([model.cpu().lengths(_tensors(batch)).numpy() for batch in batches])


def _tensors(batch: TestBatch) -> dict[str, torch.Tensor]:
    return {"inputs": batch["inputs"], "puzzle_identifiers": batch["puzzle_identifiers"]}
