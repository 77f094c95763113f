"""Measure the data pipeline: building a dataset, its rows step by step, and reading it.

examples:
  python -m tools.bench_data build arc-agi-1 --out runs/bench/arc1
      build in a process of its own: seconds, CPU seconds, memory of each process, bytes on disk
  python -m tools.bench_data build arc-agi-1 --source ConceptARC/corpus --num-aug 1000 --workers 2 --out runs/bench/arc
      the published 960 groups; options that are not listed below go to `data_pipeline.build` as they are
  python -m tools.bench_data row arc-agi-1 --num-aug 50
      where the time of one training row goes, on one core
  python -m tools.bench_data read runs/bench/arc1 --steps 2000
      examples per second as ready batches, time from opening to any step, memory over the run, work per rank

The last line printed is one JSON object. Memory and CPU time of a build are read from /proc, so on Linux only.
"""

import argparse
import hashlib
import json
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import zstandard

from data_pipeline.arc import sources as arc
from data_pipeline.arc.copies import merge
from data_pipeline.arc.rows import SplitPlan, plan_groups
from data_pipeline.arc.tokens import MAX_GRID_SIDE
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.files import replace_file
from data_pipeline.base.paths import path_argument
from data_pipeline.schema import load_dataset_info
from data_pipeline.shards.sample_format import encode_tar
from data_pipeline.shards.writer import compress

SEEK_STEPS = (0, 1, 999, 1000, 123_456, 400_000)
POLL_SECONDS = 0.1

_Result = TypeVar("_Result")


def main() -> int:
    """Run one of the benchmarks and print what it measured."""
    options, build_options = _parse_arguments()
    match options.command:
        case "build":
            result = bench_build([options.preset, "--out", str(options.out), *build_options], options.out)
        case "row":
            result = bench_row(options.preset, options.num_aug, options.row)
        case _:
            result = bench_read(options.dataset, options.global_batch_size, options.steps, options.threads)
    machine = {"cpus": os.cpu_count(), "processor": platform.processor(), "load": os.getloadavg()[0]}
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }
    print(json.dumps({"benchmark": options.command, **result, "machine": machine, "versions": versions}))
    return 0


def bench_build(arguments: list[str], out: Path) -> dict[str, object]:
    """Build a dataset that is not there yet."""
    if out.exists():
        raise InputError(f"{out}: exists; delete it or choose another --out, to see a build from the start.")
    started = time.perf_counter()
    command = [sys.executable, "-m", "data_pipeline.build", *arguments, "--quiet"]
    peaks: dict[int, float] = {}
    cpu_seconds: dict[int, float] = {}
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            usage = _cpu_seconds_of_tree(process.pid)
            cpu_seconds |= usage
            for pid in usage:
                peaks[pid] = max(peaks.get(pid, 0.0), _status_megabytes(pid, "VmHWM"))
            time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise InputError(f"the build stopped with exit code {process.returncode}.")
    info = load_dataset_info(out)
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    indices = [json.loads((out / split / "index.json").read_bytes()) for split in ("train", "test")]
    # In the shards, so that those that rows repeat count again.
    num_stored = sum(shard["num_examples"] for index in indices for shard in index["shards"])
    return {
        "arguments": arguments,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(cpu_seconds.values()), 2),
        "peak_rss_mb_per_process": sorted((round(peak, 1) for peak in peaks.values()), reverse=True),
        "megabytes_on_disk": round(num_bytes / 1e6, 1),
        "groups": info.splits.train.total_groups,
        "puzzles": max(info.num_puzzle_identifiers - 1, info.splits.train.num_puzzles),
        "examples": info.splits.train.num_examples + info.splits.test.num_examples,
        "examples_stored": num_stored,
        "examples_per_second": round(num_stored / seconds),
    }


def bench_row(preset: str, num_aug: int, row: int) -> dict[str, object]:
    """Make one training row of a preset, step by step."""
    groups, plan_seconds = _timed(lambda: plan_groups(merge(arc.bundled(preset)), num_aug, seed=42))
    plan = SplitPlan("train", groups, MAX_GRID_SIDE, seed=42)
    everyone = np.arange(len(plan.groups))
    _, tables_seconds = _timed(lambda: plan.samples(row, everyone))
    seconds: dict[str, float] = {}
    samples, seconds["samples"] = _fastest(lambda: plan.samples(row, everyone))
    tar, seconds["tar"] = _fastest(lambda: encode_tar(row, samples))
    _, seconds["sha256"] = _fastest(lambda: hashlib.sha256(tar.data).digest())
    compressed, seconds["zstd"] = _fastest(lambda: compress(tar.data, plan.compression))
    path = Path(f".bench-row-{os.getpid()}.tmp")
    try:
        _, seconds["write_and_sync"] = _fastest(lambda: replace_file(path, compressed))
    finally:
        path.unlink(missing_ok=True)
    return {
        "preset": preset,
        "examples": len(samples.examples),
        "tar_mb": tar.nbytes / 1e6,
        "compressed_mb": len(compressed) / 1e6,
        "milliseconds": {step: round(s * 1e3, 2) for step, s in seconds.items()},
        "gigabytes_per_second": {step: round(tar.nbytes / s / 1e9, 2) for step, s in seconds.items()},
        "plan_milliseconds_per_group": round(plan_seconds / len(groups) * 1e3, 2),
        "tables_seconds": round(tables_seconds - seconds["samples"], 2),
    }


def bench_read(dataset: Path, global_batch_size: int, steps: int, threads: int) -> dict[str, object]:
    """Read training batches."""
    import torch

    from data_pipeline.reader import TestReader, TrainReader

    torch.set_num_threads(threads)
    seeks: dict[int, float] = {}
    for step in SEEK_STEPS:
        _, seeks[step] = _timed(lambda step=step: TrainReader(dataset, 0, global_batch_size).batch(step))
    reader = TrainReader(dataset, 0, global_batch_size)
    memory = [_resident_megabytes()]
    started = time.perf_counter()
    for step in range(steps):
        reader.batch(step)
        if (step + 1) % max(1, steps // 8) == 0:
            memory.append(_resident_megabytes())
    seconds = time.perf_counter() - started
    test_reader = TestReader(dataset)
    stop = min(len(test_reader), steps * global_batch_size)
    num_test, test_seconds = _timed(
        lambda: sum(len(batch["inputs"]) for batch in test_reader.batches(global_batch_size, 0, stop))
    )
    return {
        "dataset": str(dataset),
        "global_batch_size": global_batch_size,
        "steps": steps,
        "threads": threads,
        "torch": torch.__version__,
        "examples_per_second": round(steps * global_batch_size / seconds),
        "test_examples_per_second": round(num_test / test_seconds) if num_test else None,
        "seconds_from_opening_to_batch_of_step": {step: round(s, 4) for step, s in seeks.items()},
        "resident_mb_over_the_run": memory,
        "cpu_milliseconds_per_batch_of_a_rank": {
            world_size: _rank_milliseconds(dataset, global_batch_size, min(steps, 500), world_size)
            for world_size in (1, 2, 4, 8)
            if global_batch_size % world_size == 0
        },
    }


def _rank_milliseconds(dataset: Path, global_batch_size: int, steps: int, world_size: int) -> float:
    from data_pipeline.reader import TrainReader

    reader = TrainReader(dataset, 0, global_batch_size, world_size - 1, world_size)
    reader.batch(steps)
    started = time.process_time()
    for step in range(steps):
        reader.batch(step)
    return round((time.process_time() - started) / steps * 1e3, 3)


def _timed(call: Callable[[], _Result]) -> tuple[_Result, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def _fastest(call: Callable[[], _Result], runs: int = 7) -> tuple[_Result, float]:
    return min((_timed(call) for _ in range(runs)), key=operator.itemgetter(1))


def _cpu_seconds_of_tree(root: int) -> dict[int, float]:
    """Return the CPU seconds of a process and of all that it has started, directly or through others, by PID."""
    stats: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            stats[int(path.parent.name)] = path.read_text().rsplit(")", 1)[1].split()
    found = {root}
    while more := {pid for pid, fields in stats.items() if int(fields[1]) in found} - found:
        found |= more
    ticks = os.sysconf("SC_CLK_TCK")
    return {pid: (int(stats[pid][11]) + int(stats[pid][12])) / ticks for pid in found & stats.keys()}


def _resident_megabytes() -> float:
    return round(_status_megabytes(os.getpid(), "VmRSS"), 1)


def _status_megabytes(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), 0.0)


def _parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser("tools.bench_data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build a dataset in a process of its own")
    build.add_argument("preset", help="what to build, see `python -m data_pipeline.build --help`")
    build.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")
    row = commands.add_parser("row", help="one training row, step by step")
    row.add_argument("preset", choices=("arc-agi-1", "arc-agi-2"), help="its tasks")
    row.add_argument(
        "--num-aug", type=int, default=50, metavar="N", help="augmentations (default: %(default)s)"
    )
    row.add_argument("--row", type=int, default=5, metavar="N", help="which (default: %(default)s)")
    read = commands.add_parser("read", help="read the training batches of a dataset")
    read.add_argument("dataset", type=path_argument, metavar="DIR", help="a dataset's folder")
    read.add_argument(
        "--global-batch-size", type=int, default=768, metavar="N", help="(default: %(default)s)"
    )
    read.add_argument("--steps", type=int, default=2000, metavar="N", help="(default: %(default)s)")
    read.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default: %(default)s)")
    options, rest = parser.parse_known_args()
    if rest and options.command != "build":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest


if __name__ == "__main__":
    sys.exit(exit_code(main))
