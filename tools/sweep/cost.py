"""What runs cost: matmul operations, and time and disk before anything is trained."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.progress import duration
from data_pipeline.base.sizes import size_text
from data_pipeline.base.table import table
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from hrm_dist.config import TrainConfig, as_found
from hrm_dist.dry_run import metadata_of
from hrm_dist.schedule import Schedule
from tools.sweep import pool
from tools.sweep.pool import Found
from tools.sweep.running import Slots
from tools.sweep.spec import Setting, Sweep, is_built, unique

# Timed where no run tells the speed, after those that compile and set up.
_STEPS_TIMED = 5


def operations_per_step(config: TrainConfig, metadata: DatasetMetadata | None = None) -> int:
    """Return the matmul operations of a training step; without metadata the dataset must be there.

    While it is not, padding counts as computed.
    """
    from hrm_dist.model.flops import flops_per_sequence  # torch is slow to load
    from hrm_dist.packed_sizes import training_lengths

    metadata = metadata or load_dataset_info(Path(config.data_path)).metadata("train")
    lengths = training_lengths(config) if is_built(config) else None
    return config.global_batch_size * flops_per_sequence(
        config.arch, metadata, config.activation_checkpointing, lengths
    )


def operations_text(operations: float) -> str:
    """Return a number of operations as people read it: 3.2e14."""
    return f"{operations:.2g}".replace("e+", "e")


class _Cost(NamedTuple):
    """Of a setting."""

    setting: Setting
    found: list[Found]
    """Its runs that are not those of a setting before it."""
    metadata: DatasetMetadata
    """Or what is expected of it."""
    last_step: int
    of_step: int
    """Operations."""
    of_evaluations: int
    """Operations of all evaluations of a run; 0 while the dataset is not built."""

    @property
    def of_run(self) -> int:
        return self.last_step * self.of_step

    @property
    def left(self) -> float:
        """Return the operations that remain, those of evaluations included."""
        shares = (1 - one.step / self.last_step for one in self.found if not one.is_done)
        return (self.of_run + self.of_evaluations) * sum(shares)

    def rates(self) -> list[float]:
        """Return the operations per second of training of the runs that have begun."""
        records = [one.record for one in self.found if one.record is not None]
        return [
            self.of_step * (record.step - record.first_step) / record.seconds_trained
            for record in records
            if record.seconds_trained
        ]


def dry_run(sweep: Sweep, jobs: int | None) -> str:
    """Return what a sweep trains, how much of that is done, and what the rest will cost here."""
    lines: list[str] = []
    costs = _costs(sweep, lines)
    left = [one.run for cost in costs for one in cost.found if not one.is_done]
    slots = Slots.of_this_machine(left, jobs)
    rate_of, source = _rates(costs, slots, sweep) if left else ({}, "")
    heads = ["setting", "runs", "steps", "operations a run", "time a run", "over the configuration"]
    rows = [_row(cost, rate_of.get(cost.setting.name)) for cost in costs]
    about = f"{sweep.path}: {len(costs)} settings x {len(sweep.seeds)} seeds over {sweep.config}"
    lines = [about, *lines, *table([heads, *rows], "<<>>><")]
    num = sum(len(cost.found) for cost in costs)
    lines.append(f"{num - len(left)} of {num} runs are done; what settings have in common counts once")
    total, rest = (
        sum(amounts) for amounts in ([c.of_run * len(c.found) for c in costs], [c.left for c in costs])
    )
    lines.append(f"operations: {operations_text(total)} in training, of all runs")
    if left:
        note = "" if all(cost.of_evaluations for cost in costs) else "; those of data that is missing not"
        lines.append(f"left: {operations_text(rest)}, evaluations included{note}")
        seconds = sum(cost.left / rate_of[cost.setting.name] for cost in costs if cost.left)
        time = duration(seconds / min(slots.jobs, len(left)))
        threads = "1 thread" if slots.threads == 1 else f"{slots.threads} threads"
        lines.append(f"time: about {time} with --jobs {slots.jobs}, {threads} each, at the speed {source}")
    lines.append(
        f"disk: at most {size_text(sum(_disk(cost) for cost in costs))} of checkpoints, all runs together"
    )
    return "\n".join(lines)


def _costs(sweep: Sweep, lines: list[str]) -> list[_Cost]:
    """Return the cost of each setting, and add what there is to say of data that is missing."""
    runs_of: dict[str, list[Found]] = {setting.name: [] for setting in sweep.settings}
    for run in unique(sweep.runs):
        runs_of[run.setting.name].append(pool.find(sweep.pool, run))
    costs: list[_Cost] = []
    for setting in sweep.settings:
        config, notes = setting.config, list[str]()
        metadata = metadata_of(sweep.config, as_found(config), notes)
        assert metadata is not None  # or the sweep would have been refused
        if not is_built(config):
            lines += [note for note in notes if note not in lines]
        schedule = Schedule(config, metadata)
        of_step = operations_per_step(config, metadata)
        of_evaluations = _operations_of_evaluations(config, schedule) if is_built(config) else 0
        costs.append(
            _Cost(setting, runs_of[setting.name], metadata, schedule.last_step, of_step, of_evaluations)
        )
    return costs


def _operations_of_evaluations(config: TrainConfig, schedule: Schedule) -> int:
    from data_pipeline.reader import TestReader
    from hrm_dist.model.flops import evaluation_flops_per_sequence
    from hrm_dist.packed_sizes import held_out_lengths

    reader = TestReader(config.data_path, config.eval_max_groups, config.eval_num_aug)
    lengths = held_out_lengths(config, reader)
    of_segment = evaluation_flops_per_sequence(config.arch, reader.metadata, lengths)
    of_evaluation = len(reader) * config.arch.halt_max_steps * of_segment
    return sum(map(schedule.evaluates, range(1, schedule.last_step + 1))) * of_evaluation


def _rates(costs: Sequence[_Cost], slots: Slots, sweep: Sweep) -> tuple[dict[str, float], str]:
    """Return the operations per second of each setting, and in words how they are known."""
    known = {cost.setting.name: statistics.median(rates) for cost in costs if (rates := cost.rates())}
    source = "of its runs in the pool"
    if len(known) < len(costs) and known:
        source += f" (of {', '.join(known)}; the others are taken to make as many operations per second)"
    if not known:
        cheapest = min(costs, key=lambda cost: cost.of_step)
        known = {cheapest.setting.name: _rate_here(cheapest, slots)}
        source = f"of {_STEPS_TIMED} steps of {cheapest.setting.name}, timed here just now, with nothing beside them"
    others = statistics.median(known.values())
    return {cost.setting.name: known.get(cost.setting.name, others) for cost in costs}, source


def _rate_here(cost: _Cost, slots: Slots) -> float:
    """Return the operations per second of a few steps of a setting, made here on random tokens.

    Where padding is skipped they are made on the data, or, while that is not built, with padding.
    """
    import torch

    from hrm_dist.distributed.process_group import process_group
    from hrm_dist.trainer import Trainer
    from tools.bench_train.speed import WARM_UP_STEPS, RandomReader, step_of, timed_steps

    config, random = cost.setting.config, True
    if config.padding == "skip":
        random = not is_built(config)
        config = config.model_copy(update={"padding": "keep" if random else "skip"})
    torch.set_num_threads(config.num_threads or slots.threads)
    with process_group(config.device, even_alone=config.engine != "ddp") as world:
        reader = RandomReader(cost.metadata, config.global_batch_size, world) if random else None
        step = step_of(Trainer(config, world, reader))
        timed_steps(step, world.device, WARM_UP_STEPS[world.device.type])
        return cost.of_step / timed_steps(step, world.device, _STEPS_TIMED).wall


def _row(cost: _Cost, rate: float | None) -> list[str]:
    num_done = sum(one.is_done for one in cost.found)
    begun = [f"seed {one.run.seed} at {one.step:,}" for one in cost.found if not one.is_done and one.step]
    states = ", ".join([f"{num_done} of {len(cost.found)} done", *begun]) if cost.found else "as above"
    seconds = math.nan if rate is None else (cost.of_run + cost.of_evaluations) / rate
    return [
        cost.setting.name,
        states,
        f"{cost.last_step:,}",
        operations_text(cost.of_run),
        "" if math.isnan(seconds) else duration(seconds),
        " ".join(cost.setting.own),
    ]


def _disk(cost: _Cost) -> float:
    """Return the bytes of all checkpoints of the runs of a setting: the latest ones, and the best."""
    from hrm_dist.model.memory_estimate import memory_per_rank

    config = cost.setting.config
    parts = memory_per_rank(config, cost.metadata, world_size=1)
    purposes = [
        "weights",
        "optimizer",
        "moving average",
        "puzzle table",
        *(["carry"] if config.save_carry else []),
    ]
    return len(cost.found) * (config.keep_checkpoints + 1) * sum(parts[purpose] for purpose in purposes)
