"""Training runs that `tools.check_engines` compares. They train one tiny model on real tasks, in real processes."""

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.build import build
from data_pipeline.shards.plan import Request
from hrm_dist.config.architectures import ARCHITECTURES

LR = 1e-4
LEAST_BATCH_SIZE = 16
LOG_LINES_SHOWN = 15
GRACE_SECONDS = 10.0
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Cell(NamedTuple):
    """One run: an engine on a number of processes."""

    engine: str
    world_size: int

    def __str__(self) -> str:
        return f"{self.engine} x {self.world_size}"


class RunFailed(Exception):  # noqa: N818
    """A process of a run ended badly or did not end; the message says which, with the tail of its log."""


def build_dataset(out: Path) -> None:
    """Build eight ARC-AGI-1 tasks without a grid over 6 x 6, each with 8 augmentations."""
    options = ArcOptions(num_aug=8, holdout="all", canvas=6, limit_groups=8, leaks="keep")
    build(Request("arc-agi-1", [], out, options, seed=0, workers=1, quiet=True))


def write_config(path: Path, data: Path, arch: str, precision: str, device: str, batch_size: int) -> None:
    """Write the configuration of every run: the whole model and both optimizers, no evaluation.

    Few cycles, for TRM too: untrained, each amplifies rounding. With TRM's own 3 x 6, two right runs differ by 1e-5
    after 20 steps and 1e-2 after 50, with 2 x 2 by 2e-7 after 200.
    """
    known = ARCHITECTURES[arch]
    sizes: dict[str, object] = {
        "H_cycles": 2,
        "L_cycles": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "halt_max_steps": 4,
        **{level.num_layers: 1 for level in known.levels.values()},
        **known.fixed,
    }
    if "puzzle_emb_len" in known.defaults:
        sizes["puzzle_emb_len"] = 2
    config = {
        "arch": {"name": arch, **sizes},
        "data_path": str(data),
        "precision": precision,
        "device": device,
        "num_threads": 1,
        "compile": False,  # which would take longer than the runs
        "global_batch_size": batch_size,
        "epochs": 1_000_000,  # only bounds the steps: the learning rate is constant
        "lr": LR,
        "lr_warmup_steps": 0,
        "ema": True,
        "eval_interval": None,
        "log_interval": 1,
        "checkpoint_interval": None,
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def batch_size_for(world_sizes: Sequence[int]) -> int:
    """Return the least batch size of 16 or more that every number of processes divides."""
    common = math.lcm(*world_sizes)
    return -(-LEAST_BATCH_SIZE // common) * common


def train(
    config: Path, folder: Path, cell: Cell, steps: int, settings: Sequence[str], timeout_s: float
) -> None:
    """Train in `folder` for one step, so that there is a checkpoint of it, and resume to `steps`."""
    for max_steps in sorted({1, steps}):
        overrides = [f"checkpoint_path={folder}", f"engine={cell.engine}", f"max_steps={max_steps}"]
        command = [sys.executable, "-m", "hrm_dist.train", str(config), *settings, *overrides]
        run_ranks(command, folder, cell.world_size, timeout_s)


def run_ranks(command: list[str], folder: Path, world_size: int, timeout_s: float) -> None:
    """Run a command in processes that find each other as under a launcher; raises RunFailed unless all succeed.

    Their output goes to files beside the folder.
    """
    logs = [folder.with_name(f"{folder.name}.rank{rank}.log") for rank in range(world_size)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for log, environment in zip(logs, _environments(world_size), strict=True):
            with log.open("ab") as output:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
                )
        failure = _first_failure(processes, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failure is not None:
        rank, reason = failure
        raise RunFailed(f"rank {rank}: {reason}\n{_tail(logs[rank])}")


def _environments(world_size: int) -> list[dict[str, str]]:
    # What torchrun sets for its own processes would send these to its store.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    if world_size == 1:
        return [inherited]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    return [{**inherited, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _first_failure(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> tuple[int, str] | None:
    """Wait for all to end; return the rank and reason of the first that failed or did not end in time, if any.

    The others wait for one that failed, and end with errors of their own that say less.
    """
    deadline = time.monotonic() + timeout_s
    failure: tuple[int, str] | None = None
    while True:
        codes = [process.poll() for process in processes]
        bad = next((rank for rank, code in enumerate(codes) if code), None)
        if failure is None and bad is not None:
            failure = bad, f"exit code {codes[bad]}"
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if None not in codes:
            return failure
        if time.monotonic() > deadline:
            return failure or (codes.index(None), f"still running after {timeout_s:.0f} s")
        time.sleep(0.02)


def _tail(log: Path) -> str:
    """Return the last lines of a log; of a progress bar, which overwrites its line, the last state."""
    text = log.read_bytes().decode(errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join(f"    {line}" for line in [line for line in lines if line][-LOG_LINES_SHOWN:])
