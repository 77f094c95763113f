"""Search for the largest batch size that fits, and print what is measured on the way."""

import sys
from collections.abc import Callable

from data_pipeline.base.errors import InputError
from data_pipeline.base.sizes import size_text
from hrm_dist.config import TrainConfig, load_config
from tools.find_batch_size import one_size
from tools.find_batch_size.one_size import Device, Job, Row

_STEP = 8
_PRECISION = 1 / 32
# Of the free memory, for the first guess.
_USABLE = 0.9
_HEADS = ("batch size", "peak memory", "ms per step", "examples/s")
_WIDTH = max(map(len, _HEADS)) + 2

Try = Callable[[int], Row | None]
"""Measures a batch size; None: it does not fit."""


def measure(job: Job, most: int | None) -> dict[str, object]:
    """Search, print a line for each size and what follows, and return it all."""
    device, config = one_size.look_at_device(job), job.load(1)
    on_cpu = device.name == "cpu"
    if on_cpu and most is None:
        raise InputError(
            "there is no GPU here, or device=cpu: a machine whose own memory runs out stops other programs, so it is "
            "not tried; give the largest size to try, such as --max-batch-size 64."
        )
    kind = "compiled" if config.compiles_on("cpu" if on_cpu else "cuda") else "eager"
    print(f"{config.arch.name} ({kind}) on {device.name}, {size_text(device.free_bytes)} free", flush=True)
    _print_row(*_HEADS)
    rows: list[Row] = []

    def try_size(size: int) -> Row | None:
        # A CPU's memory is never filled up.
        if on_cpu and job.estimate(size) > _USABLE * device.free_bytes:
            _print_row(str(size), "too much", "", "")
            return None
        print(f"training with {size} ...", file=sys.stderr, flush=True)
        row = one_size.measure(job, size)
        if row is None:
            _print_row(str(size), "too much", "", "")
        else:
            rows.append(row)
            _print_row(
                str(size),
                size_text(row.peak_bytes),
                f"{1000 * row.seconds:.1f}",
                f"{row.examples_per_s:,.1f}",
            )
        return row

    largest = find_largest(try_size, first_size(job, device), most)
    if largest is None:
        raise InputError(
            "not even one sequence fits; set activation_checkpointing=true, or use engine=fsdp2 on several GPUs."
        )
    fastest = max(rows, key=lambda row: row.examples_per_s)
    bound = " (the largest to try)" if largest.batch_size == most else ""
    print(f"largest that fits: {largest.batch_size}{bound}")
    print(f"fastest per example: {fastest.batch_size}, {fastest.examples_per_s:,.1f} examples/s")
    return {
        "benchmark": "batch size",
        "device": device.name,
        "arch": config.arch.name,
        "precision": config.precision,
        "compiled": kind == "compiled",
        "seq_len": job.metadata.seq_len,
        "sizes": [{**row._asdict(), "examples_per_s": round(row.examples_per_s, 2)} for row in sorted(rows)],
        "largest": largest.batch_size,
        "fastest": fastest.batch_size,
        **_accumulation(job, largest, device.num_devices),
    }


def first_size(job: Job, device: Device) -> int:
    """Return a quarter of the batch size that fits by the estimate, which grows with it in a straight line."""
    few, many = _STEP, 128 * _STEP
    slope = (job.estimate(many) - job.estimate(few)) / (many - few)
    fits = few + (_USABLE * device.free_bytes - job.estimate(few)) / slope
    return max(_STEP, int(fits / 4) // _STEP * _STEP)


def find_largest(try_size: Try, first: int, most: int | None) -> Row | None:
    """Return the largest size that fits, up to `most`: a multiple of 8, or less than 8, to within 8 or 3 %.

    Sizes are tried from `first` on, larger and larger until one does not fit, then smaller and smaller steps.
    """
    low, high = None, None  # the largest known to fit, the smallest known not to
    size = first if most is None else min(first, max(min(most, _STEP), most // 4 // _STEP * _STEP))
    while size:
        row = try_size(size)
        low, high = (row, high) if row is not None else (low, size)
        size = _next_size(0 if low is None else low.batch_size, high, most)
    return low


def _next_size(low: int, high: int | None, most: int | None) -> int:
    """Return the size to try between one that fits and one that does not, 0 if there is none."""
    if high is None:
        size = 2 * low if most is None else min(2 * low, most)
        return size if size > low else 0
    if high <= _STEP:  # few sequences of a large model
        return (low + high) // 2 if high - low > 1 else 0
    if high - low <= max(_STEP, _PRECISION * low):
        return 0
    size = max(_STEP, (low + high) // 2 // _STEP * _STEP)
    return size if size > low else 0


def micro_batches(job: Job, config: TrainConfig, largest: Row, num_processes: int) -> int | None:
    """Return the gradient_accumulation_steps with which a batch fits where `largest` does; None if there are none.

    Beside what is computed at a time there is the carry of all sequences, so this goes by the estimate, corrected by
    what was measured.
    """
    size = config.global_batch_size // num_processes
    available = job.estimate(largest.batch_size)
    for num in range(1, size + 1):
        split = config.model_copy(update={"gradient_accumulation_steps": num})
        if size % num == 0 and sum(job.parts_of(split, num_processes).values()) <= available:
            return num
    return None


def _accumulation(job: Job, largest: Row, num_devices: int) -> dict[str, object]:
    """Say, and return, how many micro-batches let the configured batch fit, alone and on all GPUs of the machine."""
    config = load_config(job.config, job.overrides)
    size = config.global_batch_size
    counts = [count for count in sorted({1, num_devices}) if size % count == 0]
    steps = {count: micro_batches(job, config, largest, count) for count in counts}
    for count, num in steps.items():
        where = f"{count} processes" if count > 1 else "1 process"
        how = "does not fit" if num is None else f"fits with gradient_accumulation_steps={num}"
        print(f"global_batch_size={size} in {where}: {how}")
    return {
        "global_batch_size": size,
        "gradient_accumulation_steps": {str(count): num for count, num in steps.items()},
    }


def _print_row(*cells: str) -> None:
    print("".join(f"{cell:>{_WIDTH}}" for cell in cells), flush=True)
