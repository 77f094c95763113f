"""Ask Slurm about jobs, partitions and scripts, through its commands."""

import math
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from data_pipeline.base.errors import InputError

_TIMEOUT_S = 30.0
_NUM_TRIES = 3


class SlurmError(InputError):
    """Slurm is not there or refuses; the message keeps its words."""


class QueuedJob(NamedTuple):
    """A job, or an element of an array, that Slurm still knows."""

    job_id: str
    """`ID`, or `ID_INDEX` in an array."""
    state: str
    """PENDING, RUNNING, COMPLETING and so on."""
    reason: str
    """Why it waits, where it does."""
    nodes: str

    @property
    def is_live(self) -> bool:
        """Return whether it waits or runs; Slurm remembers others for some minutes."""
        return self.state in _LIVE


_LIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "RESV_DEL_HOLD", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED",
}  # fmt: skip


def is_there() -> bool:
    """Return whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def slurm(command: Sequence[str], text: str = "") -> str:
    """Return the output of one of Slurm's commands, given a text to read. Raise SlurmError with what it printed."""
    # Variables that change what squeue and sinfo show are for people.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SINFO_"))}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"{command[0]}: not found; run this on a node of the cluster that has Slurm's commands (a login node), or "
            "use --cluster local."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"{' '.join(command)}: no answer within {_TIMEOUT_S:.0f} s; is the controller up (`scontrol ping`)?"
        ) from error
    if done.returncode:
        raise SlurmError((done.stderr or done.stdout).strip() or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def ask(command: Sequence[str]) -> str:
    """Return the same, asked again where a busy controller does not answer."""
    for _ in range(_NUM_TRIES - 1):
        try:
            return slurm(command)
        except SlurmError:
            time.sleep(1.0)
    return slurm(command)


def queued_jobs(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Return those of the jobs that Slurm still knows, by id; those of an array by element. Raise SlurmError."""
    if not job_ids:
        return {}
    wanted = {job_id.split("_")[0] for job_id in job_ids}
    # All of the user's: squeue fails if asked for a job that it has forgotten.
    output = ask(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N"])
    jobs = [QueuedJob(*line.split("|", 3)) for line in output.splitlines() if line.count("|") >= 3]
    return {job.job_id: job for job in jobs if re.split(r"[_+]", job.job_id)[0] in wanted}


# What Slurm says, what to do then, and what of `sinfo --format` helps to do it. The first that occurs counts.
_PARTITIONS, _NODES = "%R (limit %l, %D nodes)", "%R: %D with %c CPUs, %m MB, GPUs %G"
_REMEDIES = (
    ("invalid partition", "there is no such partition, or it is not open to you; partitions", _PARTITIONS),
    ("node configuration is not available", "no node has all that the job asks of one; nodes", _NODES),
    ("generic resource|gres|tres|trackable", "the cluster does not know such GPUs; nodes", _NODES),
    ("array specification", "fewer --parts: `scontrol show config` says MaxArraySize", ""),
    ("memory specification", "no node has so much memory; nodes", _NODES),
    (
        "account|association|qos",
        "`sacctmgr show assoc user=$USER format=account,partition,qos` lists yours",
        "",
    ),
    ("time limit", "the partition allows less time, and a training needs no more; partitions", _PARTITIONS),
    ("feature|constraint", "no node has such features: `sinfo -o '%N %f'` lists them", ""),
    ("node name|node list", "--exclude names a node that is not there; `sinfo -N` lists them", ""),
    ("node count", "the partition has fewer nodes, or allows fewer for one job; partitions", _PARTITIONS),
    ("unable to contact|refused|timed out", "Slurm's controller does not answer; `scontrol ping`", ""),
    ("chdir|no such file", "the folder is not there for Slurm; submit from one that all nodes share", ""),
)


def explained(message: str) -> str:
    """Return Slurm's message with what to do about it, where that is known."""
    for pattern, remedy, listing in _REMEDIES:
        if re.search(pattern, message, re.IGNORECASE):
            return f"{message}\n{remedy}{_listed(listing) if listing else ''}"
    return message


def _listed(form: str) -> str:
    try:
        lines = slurm(["sinfo", "--noheader", f"--format={form}"]).splitlines()
    except SlurmError as error:
        lines = [f"sinfo says {error}"]
    return f": {', '.join(dict.fromkeys(line.strip() for line in lines))}"


def check_script(script: str) -> None:
    """Raise SlurmError, with Slurm's words, if it would not take a script."""
    try:
        slurm(["sbatch", "--test-only"], script)
    except SlurmError as error:
        raise SlurmError(f"Slurm refuses the job: {explained(str(error))}") from error


class Partition(NamedTuple):
    """What sinfo says of a partition."""

    limit_min: float
    """The longest time that it gives a job, in minutes."""
    is_local: bool
    """Whether all its nodes are this machine, as in a Slurm for tests."""


def partition(name: str | None) -> Partition:
    """Return what Slurm says of a partition (None: the default)."""
    chosen = [] if name is None else [f"--partition={name}"]
    lines = slurm(["sinfo", "--noheader", "--Node", "--format=%P %l %o", *chosen]).splitlines()
    nodes = [line.split() for line in lines]
    nodes = [node for node in nodes if name is not None or node[0].endswith("*")]
    limit_min = max((_minutes(limit) for _, limit, _ in nodes), default=math.inf)
    return Partition(limit_min, all(_is_local(address) for address in {node[2] for node in nodes}))


def _minutes(limit: str) -> float:
    """Return the minutes in `2-12:00:00`, `12:00:00` or `30:00`; anything else is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return math.inf
    days, hours, minutes, _seconds = (int(number or 0) for number in found.groups())
    return 1440 * days + 60 * hours + minutes


def _is_local(address: str) -> bool:
    try:
        ip, own = (socket.gethostbyname(name) for name in (address, socket.gethostname()))
    except OSError:
        return False
    return ip == own or ip.startswith("127.")
