"""Train a few steps at one batch size, in a process of its own: `python -m tools.find_batch_size.one_size JOB`.

Whatever happens to its memory, nothing is left of it afterwards. JOB is JSON, and so is the last line printed.
"""

import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from data_pipeline.base.errors import EXIT_BAD_INPUT, InputError, exit_code
from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig, load_config

if TYPE_CHECKING:
    from hrm_dist.model.flops import Lengths
    from hrm_dist.trainer import Trainer

# Timed together: on a GPU the host runs ahead, as in training.
_STEPS_PER_TURN = {"cpu": 1, "cuda": 5}
_KILLED = (-9, 137)
_OUT_OF_MEMORY = ("out of memory", "alloc_failed")


class Row(NamedTuple):
    """What was measured of a batch size."""

    batch_size: int
    peak_bytes: int
    """Of tensors; on a CPU of the process, beside what it has before the model is made."""
    seconds: float
    """Of a step."""

    @property
    def examples_per_s(self) -> float:
        return self.batch_size / self.seconds


class Device(NamedTuple):
    """What the steps are to run on."""

    name: str
    free_bytes: int
    num_devices: int


def shape(seq_len: int, vocab_size: int, num_puzzles: int = 1) -> DatasetMetadata:
    """Return the metadata of data of a shape, of which nothing else is known."""
    return DatasetMetadata(
        seq_len=seq_len,
        vocab_size=vocab_size,
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        num_puzzle_identifiers=num_puzzles,
        total_groups=1,
        mean_puzzle_examples=1.0,
        sets=("random",),
    )


class Job(NamedTuple):
    """A configuration and the shape of its data."""

    config: str
    overrides: tuple[str, ...]
    metadata: DatasetMetadata
    num_turns: int = 3
    """How often some steps are timed; the median counts."""

    def load(self, batch_size: int) -> TrainConfig:
        """Return the configuration with a batch size, of one process and without micro-batches."""
        sizes = (f"global_batch_size={batch_size}", "gradient_accumulation_steps=1")
        return load_config(self.config, [*self.overrides, *sizes])

    def parts_of(self, config: TrainConfig, world_size: int = 1) -> dict[str, int]:
        """Return the bytes that a process of a configuration should need, by purpose."""
        from hrm_dist.model.memory_estimate import memory_per_rank
        from hrm_dist.packed_sizes import most_rows

        lengths, longest = (
            _lengths(self.config, self.overrides),
            config.arch.prefix_len + self.metadata.seq_len,
        )
        return memory_per_rank(
            config, self.metadata, world_size, most_rows(config, lengths, longest, world_size)
        )

    def estimated_parts(self, batch_size: int) -> dict[str, int]:
        """Return the bytes that a batch size should need, by purpose."""
        return self.parts_of(self.load(batch_size))

    def estimate(self, batch_size: int) -> int:
        """Return the bytes that a batch size should need."""
        return sum(self.estimated_parts(batch_size).values())

    def start(self, batch_size: int) -> subprocess.Popen[str]:
        """Start to measure a batch size, or, if that is 0, to look at the device."""
        fields = {
            **self._asdict(),
            "metadata": self.metadata.model_dump(mode="json"),
            "batch_size": batch_size,
        }
        command = [sys.executable, "-m", "tools.find_batch_size.one_size", json.dumps(fields)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @classmethod
    def read(cls, text: str) -> tuple[Self, int]:
        """Return the job and the batch size of a command line."""
        fields = json.loads(text)
        metadata = DatasetMetadata.model_validate(fields["metadata"])
        job = cls(fields["config"], tuple(fields["overrides"]), metadata, fields["num_turns"])
        return job, fields["batch_size"]


@functools.cache
def _lengths(config: str, overrides: tuple[str, ...]) -> "Lengths | None":
    """Return how long sequences of a configuration's dataset are without padding; None where it is computed."""
    from hrm_dist.packed_sizes import training_lengths

    return training_lengths(load_config(config, overrides))


def finish(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """Wait for a process and return what it printed; None if it ran out of memory."""
    try:
        out, err = process.communicate()
    finally:
        process.kill()
    if process.returncode in _KILLED:
        return None
    if process.returncode == 0:
        return json.loads(out.splitlines()[-1])
    reason = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    if process.returncode == EXIT_BAD_INPUT:
        raise InputError(reason.removeprefix("error: "))
    raise InputError(f"a training step failed, and not for want of memory: {reason}")


def look_at_device(job: Job) -> Device:
    """Return what the steps are to run on. A process finds out, as asking a GPU takes half a GB of it."""
    answer = finish(job.start(0))
    assert answer is not None
    return Device(**answer)


def measure(job: Job, batch_size: int) -> Row | None:
    """Return what a process of its own measures of a batch size; None if it runs out of memory."""
    answer = finish(job.start(batch_size))
    return None if answer is None else Row(**answer)


def _describe_device(job: Job) -> Device:
    import psutil
    import torch

    from hrm_dist.distributed.process_group import process_group

    with process_group(job.load(1).device) as world:
        if world.device.type == "cpu":
            return Device("cpu", psutil.virtual_memory().available, 1)
        name, free = torch.cuda.get_device_name(world.device), torch.cuda.mem_get_info(world.device)[0]
        return Device(name, free, torch.cuda.device_count())


def _train(job: Job, batch_size: int) -> Row:
    """Return what is measured here."""
    import psutil
    import torch

    from hrm_dist.distributed.process_group import process_group
    from hrm_dist.trainer import Trainer
    from tools.bench_train.speed import WARM_UP_STEPS, RandomReader

    config = job.load(batch_size)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    metadata = job.metadata.model_copy(update={"total_groups": batch_size, "mean_puzzle_examples": 1.0})
    before = psutil.Process().memory_info().rss
    with process_group(config.device, even_alone=config.engine != "ddp") as world:
        device = world.device
        # Random tokens fill the canvas, so where that matters batches come from the dataset.
        reader = RandomReader(metadata, batch_size, world) if config.padding == "keep" else None
        trainer = Trainer(config, world, reader)

        def seconds(num: int) -> float:
            began = time.perf_counter()
            for _ in range(num):
                trainer.train_step(trainer.reader.batch(trainer.state.step))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - began) / num

        seconds(WARM_UP_STEPS[device.type])
        times = [seconds(_STEPS_PER_TURN[device.type]) for _ in range(job.num_turns)]
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if config.eval_interval is not None:
            _evaluate(trainer)
        return Row(batch_size, peak, statistics.median(times))


def _evaluate(trainer: "Trainer") -> None:
    """Run a segment as evaluation does, which needs memory beside that of a recorded training step."""
    import torch

    model = trainer.model.eval()
    batch = trainer.state.carry.current_data
    with torch.no_grad():
        noise_keys = torch.zeros_like(batch["puzzle_identifiers"], dtype=torch.int64)
        model(model.initial_carry(batch), batch, noise_keys=noise_keys)


def answer(job: Job, batch_size: int) -> dict[str, Any] | None:
    """Return what `measure` wants to know, or None if memory runs out here."""
    try:
        return (_train(job, batch_size) if batch_size else _describe_device(job))._asdict()
    except (RuntimeError, MemoryError) as error:
        # Not always an error of torch's own class: libraries run out of memory, too.
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return None
        raise


def main() -> int:
    """Do the job of the command line."""
    print(json.dumps(answer(*Job.read(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
