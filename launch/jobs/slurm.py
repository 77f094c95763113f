"""Ask Slurm about jobs, partitions and scripts, through its commands."""

import math
import os
import re
import socket
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from data_pipeline.base.errors import InputError

_TIMEOUT_S = 30.0
_ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT".split()
_RUNNING = "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING".split()


class SlurmError(InputError):
    """Slurm is not there or refuses; the message keeps its words."""


class QueuedJob(NamedTuple):
    """A job, or an element of an array, that Slurm still knows: also for some minutes after its end."""

    job_id: str  # `ID`, or `ID_INDEX` in an array
    state: str  # PENDING, RUNNING, COMPLETING and so on
    reason: str  # why it waits, where it does
    nodes: str

    @property
    def is_live(self) -> bool:
        return self.state not in _ENDED

    @property
    def runs(self) -> bool:
        return self.state in _RUNNING


def slurm(command: Sequence[str], text: str = "", num_tries: int = 1) -> str:
    """Return the output of one of Slurm's commands, given a text to read; a busy controller may be asked again.

    Raise SlurmError with what it printed.
    """
    # Variables that change what squeue and sinfo show are for people.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SINFO_"))}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment
        )
        if not done.returncode:
            return done.stdout
        problem = (done.stderr or done.stdout).strip() or f"{command[0]}: exit code {done.returncode}"
    except FileNotFoundError:
        problem = f"{command[0]}: not found; run this on a login node of the cluster, or use --cluster local."
    except subprocess.TimeoutExpired:
        problem = f"{' '.join(command)}: no answer in {_TIMEOUT_S:.0f} s; is the controller up?"
    if num_tries == 1:
        raise SlurmError(problem)
    time.sleep(1.0)
    return slurm(command, text, num_tries - 1)


def queued_jobs(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Return those of the jobs that Slurm still knows, by id; those of an array by element. Raise SlurmError."""
    wanted = {job_id.split("_")[0] for job_id in job_ids}
    # All of the user's: squeue fails if asked for a job that it has forgotten.
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N"]
    lines = slurm(command, num_tries=3).splitlines()
    jobs = [QueuedJob(*line.split("|", 3)) for line in lines if line.count("|") >= 3]
    return {job.job_id: job for job in jobs if re.split(r"[_+]", job.job_id)[0] in wanted}


# What Slurm says, and what to do then. The first that occurs counts.
_REMEDIES = {
    "invalid partition|time limit|node count": "none that is open to you allows it; partitions",
    "node configuration|generic resource|gres|tres|trackable|memory": "no node has all that; nodes",
    "array specification": "fewer --parts: `scontrol show config` says MaxArraySize",
    "account|association|qos": "`sacctmgr show assoc user=$USER format=account,partition,qos` lists yours",
    "feature|constraint": "no node has such features: `sinfo -o '%N %f'` lists them",
    "node name|node list": "--exclude names a node that is not there; `sinfo -N` lists them",
    "unable to contact|refused|timed out": "Slurm's controller does not answer; `scontrol ping`",
    "chdir|no such file": "the folder is not there for Slurm; submit from one that all nodes share",
}
# What of `sinfo --format` follows a remedy that ends in one of these words.
_LISTINGS = {"partitions": "%R (limit %l, %D nodes)", "nodes": "%R: %D with %c CPUs, %m MB, GPUs %G"}


def explained(message: str) -> str:
    """Return Slurm's message with what to do about it, where that is known."""
    for pattern, remedy in _REMEDIES.items():
        if re.search(pattern, message, re.IGNORECASE):
            if listing := _LISTINGS.get(remedy.split()[-1]):
                with suppress(SlurmError):
                    lines = slurm(["sinfo", "--noheader", f"--format={listing}"]).splitlines()
                    remedy += f": {', '.join(dict.fromkeys(map(str.strip, lines)))}"
            return f"{message}\n{remedy}"
    return message


def check_script(script: str) -> None:
    """Raise SlurmError, with Slurm's words, if it would not take a script."""
    try:
        slurm(["sbatch", "--test-only"], script)
    except SlurmError as error:
        raise SlurmError(f"Slurm refuses the job: {explained(str(error))}") from error


def partition(name: str | None) -> tuple[float, bool]:
    """Return the longest time that a partition (None: the default) gives a job, in minutes, and whether all its nodes
    are this machine, as in a Slurm for tests."""
    chosen = [] if name is None else [f"--partition={name}"]
    lines = slurm(["sinfo", "--noheader", "--Node", "--format=%P %l %o", *chosen]).splitlines()
    nodes = [node for node in map(str.split, lines) if name is not None or node[0].endswith("*")]
    limit_min = max((_minutes(limit) for _, limit, _ in nodes), default=math.inf)
    return limit_min, all(_is_local(address) for address in {node[2] for node in nodes})


def _minutes(limit: str) -> float:
    """Return the minutes in `2-12:00:00`, `12:00:00` or `30:00`; anything else is no limit."""
    numbers = re.findall(r"\d+", limit)[::-1]  # seconds first
    return sum(int(n) * unit for n, unit in zip(numbers, (1 / 60, 1, 60, 1440), strict=False)) or math.inf


def _is_local(address: str) -> bool:
    try:
        ip, own = (socket.gethostbyname(name) for name in (address, socket.gethostname()))
    except OSError:
        return False
    return ip == own or ip.startswith("127.")
