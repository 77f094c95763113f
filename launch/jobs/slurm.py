"""What Slurm says of jobs, partitions and scripts, through its commands."""

import ipaddress
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

TIMEOUT_S = 30.0
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
        """Whether it waits or runs; Slurm remembers others for some minutes."""
        return self.state in _LIVE


_LIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "RESV_DEL_HOLD", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED",
}  # fmt: skip


def is_there() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def slurm(command: Sequence[str], text: str = "") -> str:
    """Output of one of Slurm's commands, given a text to read. Raises SlurmError with what it printed."""
    # Variables that change what squeue and sinfo show are for people.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SINFO_"))}
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"{command[0]}: not found; run this on a node of the cluster that has Slurm's commands (a login node), or "
            "use --cluster local."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"{' '.join(command)}: no answer within {TIMEOUT_S:.0f} s; is the controller up (`scontrol ping`)?"
        ) from error
    if done.returncode:
        raise SlurmError((done.stderr or done.stdout).strip() or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def ask(command: Sequence[str]) -> str:
    """The same, asked again where a busy controller does not answer."""
    for _ in range(_NUM_TRIES - 1):
        try:
            return slurm(command)
        except SlurmError:
            time.sleep(1.0)
    return slurm(command)


def queued_jobs(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that Slurm still knows, by id; those of an array by element. Raises SlurmError."""
    if not job_ids:
        return {}
    wanted = {job_id.split("_")[0] for job_id in job_ids}
    # All of the user's: squeue fails if asked for a job that it has forgotten.
    output = ask(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N"])
    jobs = [QueuedJob(*line.split("|", 3)) for line in output.splitlines() if line.count("|") >= 3]
    return {job.job_id: job for job in jobs if re.split(r"[_+]", job.job_id)[0] in wanted}


# What Slurm says, and what to look at then. The first that fits counts.
_EXPLANATIONS = (
    (r"invalid partition", "there is no such partition, or it is not open to you; {partitions}"),
    (r"node configuration is not available", "no node has all that the job asks of one; {nodes}"),
    (r"(generic resource|gres|trackable resource|tres)", "the cluster does not know such GPUs; {nodes}"),
    (r"array specification", "fewer --parts: `scontrol show config` says MaxArraySize"),
    (r"memory specification", "no node has so much memory; {nodes}"),
    (r"(account|association)", "`sacctmgr show assoc user=$USER format=account,partition,qos` lists what is yours"),
    (r"qos", "`sacctmgr show assoc user=$USER format=account,partition,qos` lists what is yours"),
    (r"time limit", "the partition allows less time: a training needs no more, it goes on after a limit; {partitions}"),
    (r"(feature|constraint)", "no node has such features: `sinfo -o '%N %f'` lists them"),
    (r"node name|node list", "--exclude names a node that is not there; `sinfo -N` lists them"),
    (r"node count", "the partition has fewer nodes, or allows fewer for one job; {partitions}"),
    (r"(unable to contact|connection refused|timed out)", "Slurm's controller does not answer; `scontrol ping`"),
    (r"chdir|no such file", "the folder is not there for Slurm; submit from one that all nodes share"),
)  # fmt: skip


def explained(message: str) -> str:
    """Slurm's message with what to do about it, where that is known."""
    for pattern, explanation in _EXPLANATIONS:
        if re.search(pattern, message, re.IGNORECASE):
            if "{partitions}" in explanation:
                explanation = explanation.format(
                    partitions=f"partitions: {_listing('%R (limit %l, %D nodes)')}"
                )
            elif "{nodes}" in explanation:
                explanation = explanation.format(
                    nodes=f"nodes: {_listing('%R: %D with %c CPUs, %m MB, GPUs %G')}"
                )
            return f"{message}\n{explanation}"
    return message


def _listing(form: str) -> str:
    try:
        lines = slurm(["sinfo", "--noheader", f"--format={form}"]).splitlines()
    except SlurmError as error:
        return f"sinfo says {error}"
    return ", ".join(dict.fromkeys(line.strip() for line in lines))


def check_script(script: str) -> None:
    """Raise SlurmError, with Slurm's words, if it would not take a script."""
    try:
        slurm(["sbatch", "--test-only"], script)
    except SlurmError as error:
        raise SlurmError(f"Slurm refuses the job: {explained(str(error))}") from error


def time_limit_min(partition: str | None) -> float:
    """The longest time that a partition (None: the default) gives, in minutes."""
    chosen = [] if partition is None else [f"--partition={partition}"]
    lines = [line.split() for line in slurm(["sinfo", "--noheader", "--format=%P %l", *chosen]).splitlines()]
    limits = [_minutes(limit) for name, limit in lines if partition is not None or name.endswith("*")]
    return max(limits, default=math.inf)


def _minutes(limit: str) -> float:
    """Of `2-12:00:00`, `12:00:00` or `30:00`; anything else is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return math.inf
    days, hours, minutes, _seconds = (int(part or 0) for part in found.groups())
    return 1440 * days + 60 * hours + minutes


def is_this_machine_alone(partition: str | None) -> bool:
    """Whether all nodes of a partition (None: the default) are this machine, as in a Slurm for tests."""
    chosen = [] if partition is None else [f"--partition={partition}"]
    nodes = [
        line.split()
        for line in slurm(["sinfo", "--noheader", "--Node", "--format=%P %o", *chosen]).splitlines()
    ]
    return all(_is_local(address) for name, address in nodes if partition is not None or name.endswith("*"))


def _is_local(address: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(address, None)}
        own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return False
    return all(ip in own or ipaddress.ip_address(ip).is_loopback for ip in found)
