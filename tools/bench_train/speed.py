"""Time training steps on random tokens, through the trainer itself."""

import resource
import statistics
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.reader import TrainReader
from data_pipeline.sampler import rank_slice
from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model.flops import flops_per_sequence, matmul_rate
from hrm_dist.model.memory_estimate import num_parameters
from hrm_dist.trainer import Trainer


class Time(NamedTuple):
    """Seconds of a step."""

    wall: float
    cpu: float  # of all threads; on a machine with other work it says more


class RandomReader(TrainReader):
    """Stand in for a dataset: a rank's slice of random tokens, the same for every step."""

    def __init__(self, metadata: DatasetMetadata, global_batch_size: int, world: World) -> None:
        # Not the parent's: there are no shards.
        self.metadata = metadata
        generator = torch.Generator().manual_seed(0)

        def random(high: int, *shape: int) -> Tensor:
            whole = torch.randint(high, (global_batch_size, *shape), generator=generator, dtype=torch.int32)
            return torch.from_numpy(rank_slice(whole.numpy(), world.rank, world.world_size))

        self._batch = {
            "inputs": random(metadata.vocab_size, metadata.seq_len),
            "labels": random(metadata.vocab_size, metadata.seq_len),
            "puzzle_identifiers": random(metadata.num_puzzle_identifiers),
        }

    def batch(self, step: int) -> dict[str, Tensor]:
        return self._batch


def measure(
    config: TrainConfig, metadata: DatasetMetadata, world: World, steps: int, compare: bool
) -> dict[str, object]:
    """Return the median time of a step and what follows from it; with `compare`, eager and compiled in turns."""
    reader = RandomReader(metadata, config.global_batch_size, world)
    trainers = {
        "compiled" if compiles else "eager": Trainer(
            config.model_copy(update={"compile": compiles}), world, reader
        )
        for compiles in ((False, True) if compare else (config.compile,))
    }
    dtype = next(iter(trainers.values())).model.dtype
    rate = matmul_rate(world.device, dtype)
    first = {mode: timed_step(trainer) for mode, trainer in trainers.items()}
    timed: dict[str, list[Time]] = {mode: [] for mode in trainers}
    for _ in range(steps):
        for mode, trainer in trainers.items():
            timed[mode].append(timed_step(trainer))
    rate = max(rate, matmul_rate(world.device, dtype)) * world.world_size
    flops = config.global_batch_size * flops_per_sequence(
        config.arch, metadata, config.activation_checkpointing
    )
    result: dict[str, object] = {
        "benchmark": "train",
        **_described(config, metadata, world),
        "measured_matmul_teraflops_per_s": round(rate / 1e12, 3),
        "step_teraflops": round(flops / 1e12, 3),
        "peak_memory_mb": round(_peak_bytes(world.device) / 1e6, 1),
        "steps": steps,
    }
    for mode, times in timed.items():
        median = statistics.median(step.wall for step in times)
        result[mode] = {
            "seconds_per_step": round(median, 4),
            "fastest_step_s": round(min(step.wall for step in times), 4),
            "slowest_step_s": round(max(step.wall for step in times), 4),
            "cpu_seconds_per_step": round(statistics.median(step.cpu for step in times), 4),
            "first_step_s": round(first[mode].wall, 2),
            "examples_per_s": round(config.global_batch_size / median, 2),
            "share_of_measured_matmul_rate": round(flops / median / rate, 4),
        }
    if compare:
        turns = zip(timed["eager"], timed["compiled"], strict=True)
        ratios = [eager.wall / compiled.wall for eager, compiled in turns]
        result["speedup_of_compiling"] = round(statistics.median(ratios), 3)
    return result


def timed_step(trainer: Trainer) -> Time:
    """Take one more training step and return its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train_step(trainer.reader.batch(trainer.state.step))
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize(trainer.world.device)
    return Time(time.perf_counter() - wall, time.process_time() - cpu)


def _described(config: TrainConfig, metadata: DatasetMetadata, world: World) -> dict[str, object]:
    arch, device = config.arch, world.device
    return {
        "arch": arch.name,
        "cycles": [arch.H_cycles, arch.L_cycles],
        "parameters": num_parameters(arch, metadata),
        "gradient": arch.gradient,
        "activation_checkpointing": config.activation_checkpointing,
        "engine": config.engine,
        "world_size": world.world_size,
        "precision": config.precision,
        "batch_size": config.global_batch_size,
        "seq_len": metadata.seq_len,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _peak_bytes(device: torch.device) -> int:
    """Return the most that this process held so far: on the GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
