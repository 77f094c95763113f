"""Training runs in processes of their own, and what they leave behind.

A fork server imports torch once; every run is then a real process that takes a moment to start and can be
signalled and killed. `command_line` starts Python anew, as a user would.
"""

import importlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base.errors import exit_code
from hrm_dist.checkpoint.reader import open_checkpoint

TIMEOUT = 120.0  # seconds; for a process that hangs
SPEED_KEYS = ("examples_per_s", "matmul_utilization")
_fork_server = multiprocessing.get_context("forkserver")
# DeepSpeed imports inductor, and intervals scipy: seconds that are better spent once.
_PRELOADED = ["pytest", "hrm_dist.trainer", "tools.evaluate", "torch._inductor.compile_fx", "scipy.stats"]
_fork_server.set_forkserver_preload(_PRELOADED)


class Finished(NamedTuple):
    """A process that has ended."""

    exit_code: int
    output: str  # stdout and stderr


class Started:
    """A command of ours, `python -m MODULE ARGUMENTS`, in a process forked from the server."""

    def __init__(
        self, log: Path, module: str, arguments: Sequence[object], environment: Mapping[str, str]
    ) -> None:
        self.log = log
        command = (module, [str(argument) for argument in arguments], dict(environment), log)
        self.process: ForkServerProcess = _fork_server.Process(target=run_module, args=command)
        self.process.start()

    def finish(self) -> Finished:
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {TIMEOUT:.0f} s:\n{self.log.read_text()}")
        return Finished(self.process.exitcode, self.log.read_text())

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def children(self) -> list[int]:
        """Identifiers of the processes that this one started."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition or the end of the process; gives whether the process still runs."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if self.process.exitcode is not None:
                return False
            assert time.monotonic() < deadline, f"waited in vain:\n{self.log.read_text()}"
            time.sleep(0.001)
        return self.process.exitcode is None


def run_module(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Become a command of ours, in a process that was forked for it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    # The fork server may have been started by a build, which keeps signals from its workers.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys.argv = [module, *arguments]
    warnings.simplefilter("error")
    imported = importlib.import_module(module)
    if hasattr(imported, "__path__"):  # a package, which `python -m` runs by its __main__
        imported = importlib.import_module(f"{module}.__main__")
    sys.exit(exit_code(imported.main))


def start_train(config: Path, run: Path, *overrides: str) -> Started:
    """Start training alone, into the run folder `run`."""
    return start_ranks(1, config, run, *overrides)[0]


def train(config: Path, run: Path, *overrides: str) -> Finished:
    """Train alone to the end."""
    return start_train(config, run, *overrides).finish()


def start_ranks(world_size: int, config: Path, run: Path, *overrides: str) -> list[Started]:
    """Start the processes of one run; their output goes beside the run folder."""
    arguments = [config, f"checkpoint_path={run}", *overrides]
    return start_module_ranks(world_size, run, "hrm_dist.train", arguments)


def start_module_ranks(
    world_size: int, name: Path, module: str, arguments: Sequence[object]
) -> list[Started]:
    """Start a command in processes that find each other as under a launcher."""
    return [
        Started(name.with_name(f"{name.name}.rank{rank}.log"), module, arguments, environment)
        for rank, environment in enumerate(rank_environments(world_size))
    ]


def rank_environments(world_size: int) -> list[dict[str, str]]:
    """What a launcher would tell each of its processes; nothing if there is one."""
    if world_size == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def train_on_ranks(world_size: int, config: Path, run: Path, *overrides: str) -> None:
    """Train to the end with several processes, all of which must succeed."""
    finished = [rank.finish() for rank in start_ranks(world_size, config, run, *overrides)]
    assert [rank.exit_code for rank in finished] == [0] * world_size, finished


def until(condition: Callable[[], bool], explanation: Callable[[], str], timeout: float = TIMEOUT) -> None:
    """Wait for a condition that must come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, explanation()
        time.sleep(0.05)


def command_line(*command: object, environment: Mapping[str, str] | None = None) -> Finished:
    """Run `python COMMAND` and wait."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


# What a run leaves behind


def lines(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl as they are; a last line still being written is left out."""
    path = run / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("\n")]


def rows(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step, without the measured speed: of training, and the scores if it has any."""
    steps: list[dict[str, Any]] = []
    for line in lines(run):
        if steps and steps[-1]["step"] == line["step"]:
            assert steps[-1].keys() & line.keys() == {"step"}, f"step {line['step']} stands twice"
            assert all(key.startswith("eval/") for key in line.keys() - {"step"})
            steps[-1] |= line
        else:
            steps.append(line)
    return [{key: value for key, value in row.items() if key not in SPEED_KEYS} for row in steps]


def num_rows(run: Path) -> int:
    """Number of steps of which metrics.jsonl has a row."""
    return len({line["step"] for line in lines(run)})


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in rows(run)}


def digests(run: Path, name: str = "latest") -> dict[str, str]:
    """sha256 of every tensor file of a checkpoint, which must be whole."""
    return open_checkpoint(run / "checkpoints" / name).state.sha256


def saved_step(run: Path) -> int:
    """The step of `latest`, which must be whole."""
    return open_checkpoint(run / "checkpoints" / "latest").state.step


def saved_steps(run: Path) -> list[int]:
    names = (path.name for path in (run / "checkpoints").iterdir())
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)", name)))


def assert_same_run(run: Path, reference: Path) -> None:
    """Equal metrics but for speed, equal tensors in `latest` and, where there is one, in `best`."""
    assert rows(run) == rows(reference)
    assert digests(run) == digests(reference)
    assert (run / "checkpoints" / "best").exists() == (reference / "checkpoints" / "best").exists()
    if (reference / "checkpoints" / "best").exists():
        assert digests(run, "best") == digests(reference, "best")


def train_briefly(config: Path, folder: Path) -> Path:
    """A checkpoint after three steps, of a model that has learned nothing."""
    from hrm_dist.train import main

    assert main([str(config), f"checkpoint_path={folder}", "max_steps=3"]) == 0
    return folder / "checkpoints" / "latest"


def evaluating(checkpoint: Path, dataset: Path) -> Callable[..., int]:
    """tools.evaluate with a checkpoint: of a folder and options, the exit code."""
    from tools import evaluate

    def run(out: Path, *options: object) -> int:
        arguments = [checkpoint, "--data", dataset, "--out", out, "--batch-size", 16, *options]
        return exit_code(lambda: evaluate.main([*map(str, arguments)]))

    return run
