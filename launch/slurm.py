"""What Slurm says of jobs, partitions and scripts, through its commands."""

import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from typing import NamedTuple

from data_pipeline.errors import InputError

TIMEOUT_S = 60.0


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


def slurm(command: Sequence[str]) -> str:
    """Output of one of Slurm's commands. Raises SlurmError with what it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
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


def queued_jobs(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that Slurm still knows, by id; those of an array by element. Raises SlurmError."""
    if not job_ids:
        return {}
    wanted = {job_id.split("_")[0] for job_id in job_ids}
    # All of the user's: squeue fails if asked for a job that it has forgotten.
    output = slurm(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N"])
    jobs = [QueuedJob(*line.split("|", 3)) for line in output.splitlines() if line.count("|") >= 3]
    return {job.job_id: job for job in jobs if re.split(r"[_+]", job.job_id)[0] in wanted}
