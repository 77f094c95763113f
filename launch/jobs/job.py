"""What a submitted job does in each of its tasks: one of our commands, and back to the queue if it was interrupted.

The command runs in a process of its own, just as a user would start it, so its exit code is known even where it
ends without a word. It handles the signals itself: it saves a checkpoint and ends with exit code 75. Who sent
them then decides, on rank 0, what becomes of the job:

| signal | from | afterwards |
|---|---|---|
| USR2 | Slurm, grace_s before the time limit; or a preemption | back to the queue |
| TERM | a preemption with grace (Slurm counts the job as running) | back to the queue |
| TERM | scancel (Slurm counts it as cancelled) | it ends |
| none | a preemption without grace, the loss of rank 0's node | Slurm puts it back by itself |
| none | the loss of another node, which rank 0 notices long before Slurm | back to the queue |

A rank that fails, for want of memory say, leaves a word in the record; one that is lost with its node does not.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import submitit
from submitit.helpers import DelayedSubmission

from data_pipeline.base.errors import EXIT_INTERRUPTED, EXIT_LOST
from data_pipeline.base.revision import git_revision
from hrm_dist.checkpoint import pointer
from launch.jobs import log, slurm
from launch.jobs.last_error import last_error
from launch.jobs.log import Ended, Event, Failed, Started

# This long before the end of the grace time, a command that has not saved yet is given up: what counts is the requeue.
_RESERVE_S = 15.0
# How long a rank that failed may take to leave its word.
_WORD_S = 5.0
# This many starts without a step are no accident, nor are this many losses in a row, after starts as short as this.
_MAX_IN_VAIN, _MAX_LOSSES, _SHORT_S = 5, 3, 600.0


class Job(NamedTuple):
    """One of our commands as a job; pickled for the cluster."""

    folder: Path  # whose record says what becomes of it; absolute
    module: str
    arguments: list[str]
    grace_s: float  # how long the command may take after USR2

    def __call__(self) -> None:
        """Run the command; leave with its exit code, unless that is 0."""
        environment = submitit.JobEnvironment()
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's
        assert callable(requeue)
        own_log, job_id = environment.paths.stderr, environment.job_id
        log_start = own_log.stat().st_size if own_log.exists() else 0
        if environment.global_rank != 0:
            sys.exit(self._as_another_rank(environment, log_start))
        revision, hosts = git_revision(), list(environment.hostnames)
        started = Started(job_id=job_id, hosts=hosts, git_revision=revision, log_start=log_start)
        started.saved, started.restarts = self._saved(), len(self._starts(job_id))
        self._note(started)
        command = _Command(self)
        code = command.wait()
        may_help = code == EXIT_INTERRUPTED or (code == EXIT_LOST and self._has_lost_a_node(job_id))
        goes_back = may_help and self._progresses(job_id) and command.goes_back(environment)
        error = last_error(own_log, log_start) if code not in (0, EXIT_INTERRUPTED) else None
        ended = Ended(job_id=job_id, exit_code=code, requeued=goes_back, error=error)
        self._note(ended)
        if goes_back and environment.cluster == "slurm":
            self._go_back(ended)
        elif goes_back:
            requeue(signal.SIGUSR2, None)  # leaves the process
        if code:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """Return what runs after the requeue: the same, which resumes by itself."""
        return DelayedSubmission(self)

    def _as_another_rank(self, environment: submitit.JobEnvironment, log_start: int) -> int:
        code = _Command(self).wait()
        if code in (0, EXIT_INTERRUPTED):
            # Another code would have srun end rank 0 on some clusters, before it has put the job back.
            return 0
        if code != EXIT_LOST:
            error = last_error(environment.paths.stderr, log_start)
            rank, host = environment.global_rank, environment.hostname
            self._note(Failed(job_id=environment.job_id, rank=rank, host=host, exit_code=code, error=error))
        return code

    def _has_lost_a_node(self, job_id: str) -> bool:
        """Return whether a rank went without a word, for which another start may help; not time after time."""
        time.sleep(_WORD_S)
        events = self._events(job_id)
        starts = [event.time for event in events if isinstance(event, Started)]
        words = [event for event in events if isinstance(event, Started | Failed)]
        if words and isinstance(words[-1], Failed):
            return False
        lost = [event.exit_code == EXIT_LOST for event in events if isinstance(event, Ended)]
        in_vain = len(starts) > _MAX_LOSSES <= len(lost) and all(lost[-_MAX_LOSSES:])
        if in_vain and (log.now() - starts[-_MAX_LOSSES - 1]).total_seconds() < _MAX_LOSSES * _SHORT_S:
            _say(f"error: a process was lost {_MAX_LOSSES + 1} times in a row within minutes")
            return False
        return True

    def _progresses(self, job_id: str) -> bool:
        """Return whether a training has saved anything new in its last starts: else it would go back for ever."""
        starts = self._starts(job_id)[-_MAX_IN_VAIN:]
        saved = {self._saved(), *(start.saved for start in starts)}
        if self.module != "hrm_dist.train" or len(starts) < _MAX_IN_VAIN or len(saved) > 1:
            return True
        _say(f"error: {_MAX_IN_VAIN} starts in a row saved nothing new; raise time_min or grace_s")
        return False

    def _events(self, job_id: str) -> list[Event]:
        return [event for event in log.read(self.folder) if event.job_id == job_id]

    def _starts(self, job_id: str) -> list[Started]:
        return [event for event in self._events(job_id) if isinstance(event, Started)]

    def _note(self, event: Event) -> None:
        try:
            log.append(self.folder, event)
        except OSError as error:  # a full disk must not keep the job from going back
            _say(f"warning: {log.jobs_folder(self.folder)}: {error}")

    def _go_back(self, ended: Ended) -> None:
        try:
            slurm.slurm(["scontrol", "requeue", ended.job_id], num_tries=3)
        except slurm.SlurmError as error:
            self._note(ended.model_copy(update={"requeued": False}))
            _say(f"error: the job could not go back to the queue ({error}); submit the same again to go on")

    def _saved(self) -> str | None:
        latest = self.folder / "checkpoints" / "latest"
        return pointer.target(latest).name if pointer.is_pointer(latest) else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Command:
    """The process of the command, to which signals are passed on."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._received: set[int] = set()
        self._told_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Those that Slurm sends; CONT comes before TERM and means nothing.
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        self._process = subprocess.Popen([sys.executable, "-m", job.module, *job.arguments])
        for number in self._received:  # until now there was nobody to pass them to
            self._process.send_signal(number)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._received.add(number)
        self._told_at = self._told_at or time.monotonic()
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code of the command, as a shell does; 75 too if it does not end within the grace time."""
        assert self._process is not None
        grace_s = self._job.grace_s
        while (code := self._process.poll()) is None:
            time.sleep(0.2)
            late_s = 0.0 if self._told_at is None else time.monotonic() - self._told_at
            if signal.SIGUSR2 in self._received and late_s > max(0.5 * grace_s, grace_s - _RESERVE_S):
                late = f"{self._job.module} has not ended within the grace time (grace_s={grace_s:.0f})"
                _say(f"error: {late}; it will go on from its last checkpoint. Raise grace_s.")
                self._process.kill()
                self._process.wait()
                return EXIT_INTERRUPTED
        if -code in self._received:  # it came before the command could handle it
            return EXIT_INTERRUPTED
        return 128 - code if code < 0 else code

    def goes_back(self, environment: submitit.JobEnvironment) -> bool:
        """Return whether the job is to run again, after its command was interrupted."""
        if environment.cluster == "slurm":
            try:
                job = slurm.queued_jobs([environment.job_id]).get(environment.job_id)
                return job is not None and job.state == "RUNNING"
            except slurm.SlurmError as error:
                _say(f"warning: squeue says {error}")
        return signal.SIGUSR2 in self._received
