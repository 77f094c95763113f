"""Measure how long training waits for a checkpoint, written at once or in the background."""

import statistics
import tempfile
import time
from pathlib import Path

from data_pipeline.schema import DatasetMetadata
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from hrm_dist.trainer import Trainer
from tools.bench_train.speed import WARM_UP_STEPS, RandomReader, step_of, timed_steps


def measure(config: TrainConfig, metadata: DatasetMetadata, world: World, steps: int) -> dict[str, object]:
    """Return how long a checkpoint holds up training, on this rank, and how long steps take beside its writing."""
    trainer = Trainer(config, world, RandomReader(metadata, config.global_batch_size, world))
    timed_steps(step_of(trainer), world.device, WARM_UP_STEPS[world.device.type])
    result: dict[str, object] = {
        "benchmark": "checkpoint",
        "engine": config.engine,
        "world_size": world.world_size,
        "steps": steps,
    }
    alone = [timed_steps(step_of(trainer), world.device).wall for _ in range(steps)]
    result["seconds_per_step"] = round(statistics.median(alone), 4)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=".") as folder:
        shared = Path(collectives.run_on_rank0(lambda: folder))
        result["at_once"] = _write_one(trainer, shared / "at_once", in_background=False)
        num_bytes = sum(path.stat().st_size for path in shared.glob("at_once/step_*/*.safetensors"))
        result["megabytes"] = round(num_bytes / 1e6, 1)
        result["in_background"] = _write_one(trainer, shared / "in_background", in_background=True)
        collectives.barrier()
    return result


def _write_one(trainer: Trainer, folder: Path, *, in_background: bool) -> dict[str, object]:
    writer = CheckpointWriter(folder, keep=1, in_background=in_background)
    state = trainer.state.summary(dataset={})
    collectives.barrier()
    start = time.perf_counter()
    writer.write(state, trainer.state.tensor_shards())
    stall = time.perf_counter() - start
    beside: list[float] = []
    while not collectives.all_true(writer.is_idle()):
        beside.append(timed_steps(step_of(trainer), trainer.world.device).wall)
    written = time.perf_counter() - start
    writer.wait()
    writer.close()
    return {
        "seconds_held_up": round(stall, 4),
        "seconds_until_written": round(written, 4),
        "steps_meanwhile": len(beside),
        "seconds_per_step_meanwhile": round(statistics.median(beside), 4) if beside else None,
    }
