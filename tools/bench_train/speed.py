"""Time training steps on random tokens, through the trainer itself, and beside the published code."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipeline.base.table import table
from data_pipeline.reader import TrainReader, to_tensors
from data_pipeline.sampler import rank_slice
from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model.flops import flops_per_sequence, matmul_rate
from hrm_dist.model.layers import DTYPES
from hrm_dist.model.memory_estimate import num_parameters
from hrm_dist.packed_sizes import training_lengths
from hrm_dist.trainer import Trainer
from tools.bench_train.reference import PublishedTraining
from tools.bench_train.step_profile import profile_step

Step = Callable[[], object]
"""Takes one more training step."""

# As in training, a GPU is waited for once in several steps, so that the host may run ahead of it.
_STEPS_PER_TURN = {"cpu": 1, "cuda": 5}
# Not timed: compilation, and on a GPU the steps before one is recorded, which are 11, and that one.
WARM_UP_STEPS = {"cpu": 2, "cuda": 15}
PUBLISHED = "published"
Row = dict[str, float]  # of a mode, by the names of the JSON object


class Time(NamedTuple):
    """Seconds of a step."""

    wall: float
    cpu: float  # of all threads; on a machine with other work it says more


class Mode(NamedTuple):
    """A way to train, after its first steps."""

    step: Step
    first_step_s: float
    peak_bytes: int | None  # that it had on the GPU, beside what was there before


class RandomReader(TrainReader):
    """Stand in for a dataset: a rank's slice of random tokens, the same for every step."""

    def __init__(self, metadata: DatasetMetadata, global_batch_size: int, world: World) -> None:
        # Not the parent's: there are no shards.
        self.metadata = metadata
        random = np.random.default_rng(0)
        shape = (global_batch_size, 2, metadata.seq_len)
        examples = random.integers(metadata.vocab_size, size=shape, dtype=np.uint8)
        identifiers = random.integers(metadata.num_puzzle_identifiers, size=len(examples), dtype=np.int32)
        self._batch = to_tensors(
            rank_slice(examples, world.rank, world.world_size),
            rank_slice(identifiers, world.rank, world.world_size),
        )

    def batch(self, step: int) -> dict[str, Tensor]:
        return self._batch


class Asked(NamedTuple):
    """What is timed, and beside what, in turns."""

    steps: int
    of_dataset: bool = False
    """Batches of the dataset in place of random tokens."""
    compare: bool = False
    """Eager and compiled."""
    compare_padding: bool = False
    """Padding computed and skipped."""
    reference: Path | None = None
    """A checkout of the published code."""
    show_profile: bool = False
    """Print where the time of a step goes."""


def measure(config: TrainConfig, metadata: DatasetMetadata, world: World, asked: Asked) -> dict[str, object]:
    """Return the median time of a step and what follows from it."""
    device, dtype = world.device, DTYPES[config.arch.forward_dtype]
    rate = matmul_rate(device, dtype)
    builders = _builders(config, metadata, world, asked)
    modes = {name: _warmed_up(name, build, world) for name, build in builders.items()}
    timed: dict[str, list[Time]] = {name: [] for name in modes}
    per_turn = _STEPS_PER_TURN[device.type]
    num_turns = -(-asked.steps // per_turn)
    for _ in range(num_turns):
        for name, mode in modes.items():
            timed[name].append(timed_steps(mode.step, device, per_turn))
    rate = max(rate, matmul_rate(device, dtype)) * world.world_size
    changes = {name: {"padding": name} if asked.compare_padding else {} for name in modes}
    flops = {name: _flops(config.model_copy(update=change), metadata) for name, change in changes.items()}
    result: dict[str, object] = {
        "benchmark": "train",
        **_described(config, metadata, world),
        "measured_matmul_teraflops_per_s": round(rate / 1e12, 3),
        "step_teraflops": round(max(flops.values()) / 1e12, 3),
        "steps": num_turns * per_turn,
    }
    rows = {
        name: _row(modes[name], times, config.global_batch_size, flops[name] / rate)
        for name, times in timed.items()
    }
    if device.type == "cpu":
        result["peak_memory_mb"] = round(_peak_bytes(device) / 1e6, 1)  # of all modes together
    if asked.compare:
        result["speedup_of_compiling"] = round(_ratio(timed["eager"], timed["compiled"]), 3)
    if asked.compare_padding:
        result["operations_of_skip_over_keep"] = round(flops["skip"] / flops["keep"], 4)
        result["speedup_of_skipping_padding"] = round(_ratio(timed["keep"], timed["skip"]), 3)
    if asked.reference is not None:
        for name in rows.keys() - {PUBLISHED}:
            rows[name]["ours_over_published"] = round(_ratio(timed[name], timed[PUBLISHED]), 3)
    _print(_table(rows), world)
    for name, mode in modes.items():
        profiled = profile_step(mode.step, device)
        rows[name] |= profiled.counts
        _print(
            f"{name}: {profiled.counts['host_ops_per_step']} operations issued by the host in a step", world
        )
        if asked.show_profile:
            _print(profiled.time_table, world)
    return result | rows


def _flops(config: TrainConfig, metadata: DatasetMetadata) -> int:
    """Return the matmul operations of a step."""
    return config.global_batch_size * flops_per_sequence(
        config.arch, metadata, config.activation_checkpointing, training_lengths(config)
    )


def _row(mode: Mode, times: list[Time], batch_size: int, ideal_s: float) -> Row:
    """Return what is measured of a mode; ideal_s: the seconds of a step that does nothing but products."""
    median = statistics.median(step.wall for step in times)
    memory = {} if mode.peak_bytes is None else {"peak_memory_mb": round(mode.peak_bytes / 1e6, 1)}
    return {
        "seconds_per_step": round(median, 5),
        "fastest_step_s": round(min(step.wall for step in times), 5),
        "slowest_step_s": round(max(step.wall for step in times), 5),
        "cpu_seconds_per_step": round(statistics.median(step.cpu for step in times), 5),
        "first_step_s": round(mode.first_step_s, 2),
        "examples_per_s": round(batch_size / median, 2),
        "share_of_measured_matmul_rate": round(ideal_s / median, 4),
        **memory,
    }


def _builders(
    config: TrainConfig, metadata: DatasetMetadata, world: World, asked: Asked
) -> dict[str, Callable[[], Step]]:
    """Return what makes each mode: ours, and the published code, compiled where any of ours is."""
    size, reference = config.global_batch_size, asked.reference
    reader = RandomReader(metadata, size, world)
    if asked.of_dataset:
        reader = TrainReader(config.data_path, config.seed, size, world.rank, world.world_size)
    # Left open, it is on where the device is a GPU.
    by_setting = world.device.type == "cuda" if config.compile is None else config.compile

    def ours(changes: dict[str, object]) -> Step:
        trainer = Trainer(config.model_copy(update=changes), world, reader)
        trainer.warm_up()
        return step_of(trainer)

    changes: dict[str, dict[str, object]] = {"compiled" if by_setting else "eager": {"compile": by_setting}}
    if asked.compare:
        changes = {"eager": {"compile": False}, "compiled": {"compile": True}}
    elif asked.compare_padding:
        changes = {padding: {"compile": by_setting, "padding": padding} for padding in ("keep", "skip")}
    builders: dict[str, Callable[[], Step]] = {
        name: partial(ours, change) for name, change in changes.items()
    }
    if reference is not None:
        compiles = asked.compare or by_setting
        builders[PUBLISHED] = lambda: (
            PublishedTraining(reference, config, metadata, world.device, reader, compiles).step
        )
    return builders


def _warmed_up(name: str, build: Callable[[], Step], world: World) -> Mode:
    """Make a mode and take its first steps, which compile, and set up what the following ones use."""
    device, on_gpu = world.device, world.device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    step = build()
    first = timed_steps(step, device).wall
    _print(f"{name}: first step {first:.1f} s", world)
    timed_steps(step, device, WARM_UP_STEPS[device.type] - 1)
    return Mode(step, first, _peak_bytes(device) - before if on_gpu else None)


def step_of(trainer: Trainer) -> Step:
    """Return what takes the trainer's next step."""
    return lambda: trainer.train_step(trainer.reader.batch(trainer.state.step))


def timed_steps(step: Step, device: torch.device, num: int = 1) -> Time:
    """Take steps and return the time of one, on average; the last one's work is done then."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    num = max(num, 1)
    return Time((time.perf_counter() - wall) / num, (time.process_time() - cpu) / num)


def _ratio(times: list[Time], others: list[Time]) -> float:
    """Return the median of the ratios of turns, which what else a machine does affects least."""
    return statistics.median(one.wall / other.wall for one, other in zip(times, others, strict=True))


def _table(rows: dict[str, Row]) -> str:
    columns = [
        ("ms a step", "seconds_per_step", lambda value: f"{1e3 * value:,.1f}"),
        ("fastest", "fastest_step_s", lambda value: f"{1e3 * value:,.1f}"),
        ("slowest", "slowest_step_s", lambda value: f"{1e3 * value:,.1f}"),
        ("share of measured peak", "share_of_measured_matmul_rate", lambda value: f"{value:.1%}"),
        ("peak memory, MB", "peak_memory_mb", lambda value: f"{value:,.0f}"),
        ("ours / published", "ours_over_published", lambda value: f"{value:.3f}"),
    ]
    columns = [column for column in columns if any(column[1] in row for row in rows.values())]
    heads = ("", *(head for head, _, _ in columns))
    cells = [
        (name, *(text(row[key]) if key in row else "" for _, key, text in columns))
        for name, row in rows.items()
    ]
    return "\n".join(table([heads, *cells], "<>"))


def _print(text: str, world: World) -> None:
    if world.is_main:
        print(text, flush=True)


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
