"""Hand work to the cluster: everything is checked first, then queued and recorded; and follow it to its end."""

import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.core.utils import FailedJobError
from tqdm import tqdm

from data_pipeline.base.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError
from data_pipeline.base.files import replace_file
from launch.jobs import log as job_log
from launch.jobs import slurm, storage
from launch.jobs.cluster import Cluster, executor
from launch.jobs.job import Job
from launch.jobs.log import Ended, Submitted, jobs_folder
from launch.jobs.spec import Command, Work

# Slurm may count a job as ended for a moment before it puts it back into the queue.
_SETTLED_S = 15.0
_POLL_S = 5.0


class Queued(NamedTuple):
    """A job that was submitted."""

    job: submitit.Job[Any]
    command: Command

    @property
    def job_id(self) -> str:
        return str(self.job.job_id)


def submit(work: Work, cluster: Cluster, *, dry_run: bool, retry: bool) -> list[Queued]:
    """Check, queue and record what is missing of the work; the last job comes last. Raises InputError."""
    live = _live_jobs(work)
    to_run = _parts_to_run(work, live, retry=retry)
    script = None
    if cluster.cluster == "slurm":
        script = _check_with_slurm(work, cluster, to_run)
    print(_description(work, cluster, to_run))
    if dry_run:
        print(f"\n{script}" if script else "\n".join(f"runs       {work.parts[part]}" for part in to_run))
        return []
    if not to_run and (live or work.last is None):
        print(
            f"nothing to submit: {len(live)} jobs wait or run" if live else "nothing to submit: all is done"
        )
        return []
    with _undone_if_refused(work):
        for path, text in work.files.items():
            replace_file(path, text.encode())
        if cluster.cluster == "local" and work.is_array:
            return _run_here(work, cluster, to_run)
        queued = _queue(work, cluster, [work.parts[part] for part in to_run])
        if work.last is not None:
            queued += _queue_last(work, work.last, cluster, queued, live)
    print(_what_now(work, queued, cluster))
    return queued


def _live_jobs(work: Work) -> dict[str, Submitted]:
    """Jobs of the folder that wait or run. Raises InputError where a training has one."""
    submitted = {e.job_id: e for e in job_log.read(work.folder) if isinstance(e, Submitted)}
    states = {job_id: "running on this machine" for job_id, e in submitted.items() if job_log.is_live_here(e)}
    of_slurm = [job_id for job_id, event in submitted.items() if event.cluster == "slurm"]
    if of_slurm and slurm.is_there():
        known = slurm.queued_jobs(of_slurm)
        states |= {i: known[i].state for i in of_slurm if i in known and known[i].is_live}
    if states and not work.is_array:
        job_id, state = next(iter(states.items()))
        raise InputError(
            f"{work.folder}: job {job_id} is {state} for this folder; wait for it, end it (`scancel`, or `kill` of a "
            "local one), or choose another folder."
        )
    return {job_id: submitted[job_id] for job_id in states}


def _parts_to_run(work: Work, live: dict[str, Submitted], *, retry: bool) -> list[int]:
    if not work.is_array:
        return work.missing
    before = [e for e in job_log.read(work.folder) if isinstance(e, Submitted)]
    if before and not retry:
        raise InputError(
            f"{work.folder}: was submitted before (job {before[-1].job_id}); --retry-failed submits the parts that are "
            "not done, and no others."
        )
    if retry and not before:
        raise InputError(f"{work.folder}: nothing was submitted for this folder; leave --retry-failed out.")
    counts = {e.command[-1].partition("/")[2] for e in before if "--part" in e.command}
    if counts - {str(len(work.parts))}:
        raise InputError(
            f"--parts {len(work.parts)}: {work.folder} was submitted in {', '.join(sorted(counts))} parts; give the "
            "same number."
        )
    running = {event.command[-1] for event in live.values() if "--part" in event.command}
    return [part for part in work.missing if work.parts[part].arguments[-1] not in running]


def _check_with_slurm(work: Work, cluster: Cluster, to_run: Sequence[int]) -> str:
    """The script that sbatch gets. Raises InputError where Slurm or the nodes could not run it."""
    if not slurm.is_this_machine_alone(cluster.partition):
        storage.check_shared([work.folder, *work.inputs, Path.cwd(), Path(sys.prefix)])
    longest = slurm.time_limit_min(cluster.partition)
    if cluster.limit_min > longest:
        raise InputError(
            f"time_min={cluster.limit_min}: the partition allows {longest:.0f} minutes; a training goes on after a "
            "limit, so ask for less."
        )
    script = _script(work, cluster, to_run)
    slurm.check_script(script)
    return script


def _script(work: Work, cluster: Cluster, to_run: Sequence[int]) -> str:
    folder = jobs_folder(work.folder)
    made = executor(cluster, folder, _name(work))
    assert isinstance(made, submitit.SlurmExecutor)
    if work.is_array:
        made.parameters["map_count"] = max(1, len(to_run))
    # Nothing public of submitit 1.5 gives the script.
    return made._make_submission_file_text(made._submitit_command_str, "")


def _name(work: Work) -> str:
    return f"{work.kind}-{work.folder.name}"


def _queue(
    work: Work, cluster: Cluster, commands: Sequence[Command], after: str | None = None
) -> list[Queued]:
    if not commands:
        return []
    made = executor(cluster, jobs_folder(work.folder), _name(work), after)
    jobs = [Job(work.folder, command.module, command.arguments, cluster.grace_s) for command in commands]
    try:
        with _without_our_output() if cluster.cluster == "local" else nullcontext(), made.batch():
            handles = [made.submit(job) for job in jobs]
    except FailedJobError as error:
        raise slurm.SlurmError(f"Slurm refuses the job: {slurm.explained(str(error))}") from error
    queued = [Queued(handle, command) for handle, command in zip(handles, commands, strict=True)]
    _record(work, cluster, queued)
    return queued


@contextmanager
def _without_our_output() -> Iterator[None]:
    """A local job outlives this process; who reads our output would wait for its end too."""
    sys.stdout.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _queue_last(
    work: Work, last: Command, cluster: Cluster, queued: Sequence[Queued], live: Collection[str]
) -> list[Queued]:
    """Queue what makes a whole of the parts, to run after them; if that is refused, no part stays queued either."""
    one_process = cluster.model_copy(update={"gpus_per_node": 0, "tasks_per_node": 1})
    # Of parts submitted before, some have failed: those are among the new ones.
    conditions = [f"afterok:{one.job_id.split('_')[0]}" for one in queued]
    conditions += [f"afterany:{job_id.split('_')[0]}" for job_id in live]
    try:
        return _queue(work, one_process, [last], ",".join(dict.fromkeys(conditions)) or None)
    except slurm.SlurmError:
        for one in queued:
            one.job.cancel(check=False)
        raise


@contextmanager
def _undone_if_refused(work: Work) -> Iterator[None]:
    """Leave the folder as it was if Slurm refuses the job after all."""
    folder = jobs_folder(work.folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    there = set() if missing else set(folder.iterdir())
    before = {path: path.read_bytes() for path in work.files if path in there}
    try:
        yield
    except slurm.SlurmError:
        ours = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_.*|config\.yaml")
        for path in set(folder.iterdir()) - there:
            if ours.fullmatch(path.name):
                path.unlink(missing_ok=True)
        for path, content in before.items():
            replace_file(path, content)
        for place in missing:
            with suppress(OSError):  # something else has come into it
                place.rmdir()
        raise


def _record(work: Work, cluster: Cluster, queued: Sequence[Queued]) -> None:
    packages = {name: version(name) for name in ("torch", "numpy", "deepspeed", "accelerate", "submitit")}
    for one in queued:
        event = Submitted(
            time=job_log.now(),
            job_id=one.job_id,
            cluster=cluster.cluster,
            host=socket.gethostname(),
            kind=work.kind,
            command=[one.command.module, *one.command.arguments],
            resources=cluster.model_dump(exclude_defaults=True),
            git_revision=job_log.git_revision(),
            packages={"python": sys.version.split()[0], **packages},
        )
        job_log.append(work.folder, event)


def _description(work: Work, cluster: Cluster, to_run: Sequence[int]) -> str:
    limit = (
        f", at most {cluster.limit_min} min a start" if cluster.time_min or cluster.cluster == "slurm" else ""
    )
    where = (
        "this machine" if cluster.cluster == "local" else f"partition {cluster.partition or '(the default)'}"
    )
    per_node = f"{cluster.num_tasks_per_node} process{'es' if cluster.num_tasks_per_node > 1 else ''}"
    gpus = f" and {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
    size = (
        f"{len(to_run)} jobs of {per_node}{gpus}" if work.is_array else f"{cluster.nodes} x {per_node}{gpus}"
    )
    lines = [
        f"{work.kind:<10} {_short(work.folder)}",
        f"on         {where}: {size}{limit}",
    ]
    return "\n".join([*lines, *work.about])


def _what_now(work: Work, queued: Sequence[Queued], cluster: Cluster) -> str:
    ids = list(dict.fromkeys(one.job_id.split("_")[0] for one in queued))
    log = queued[0].job.paths.stderr
    cancel = f"scancel {' '.join(ids)}" if cluster.cluster == "slurm" else f"kill {' '.join(ids)}"
    if cluster.cluster == "local" and cluster.setup:  # the job is the child of a shell then
        cancel = f"pkill --parent {' '.join(ids)}"
    again = shlex.join(arg for arg in sys.argv[1:] if arg not in ("--wait", "--retry-failed"))
    retry = " --retry-failed" if work.is_array else ""
    return "\n".join(
        [
            f"submitted  job {' and '.join(ids)}",
            f"watch      python -m launch.status {_short(work.folder)}",
            f"log        tail -F {_short(log)}",
            f"cancel     {cancel}",
            f"go on      python -m launch.submit {again}{retry}",
        ]
    )


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# To the end


def wait(work: Work, queued: Sequence[Queued], cluster: Cluster) -> int:
    """Follow jobs until none of them will run again; gives the worst of their exit codes."""
    said: dict[str, str] = {}
    gone_since: dict[str, float] = {}
    codes: dict[str, int] = {}
    while len(codes) < len(queued):
        ended = _ends(work)
        try:
            known = slurm.queued_jobs([one.job_id for one in queued]) if cluster.cluster == "slurm" else {}
        except slurm.SlurmError as error:
            print(f"squeue says {error}", flush=True)
            time.sleep(_POLL_S)
            continue
        for one in queued:
            if one.job_id in codes:
                continue
            state, lives = _state(one, known, cluster)
            if one.job_id in ended and not lives:  # Slurm puts a preempted job back after its last word
                codes[one.job_id] = ended[one.job_id]
                print(f"job {one.job_id}: ended with exit code {codes[one.job_id]}", flush=True)
                continue
            if state != said.get(one.job_id):
                print(f"job {one.job_id}: {state}", flush=True)
                said[one.job_id] = state
            since = gone_since.setdefault(one.job_id, time.monotonic())
            if lives:
                del gone_since[one.job_id]
            elif time.monotonic() - since > _SETTLED_S:
                codes[one.job_id] = EXIT_FAILED
                print(
                    f"job {one.job_id}: ended without a word; its log is {_short(one.job.paths.stderr)}",
                    flush=True,
                )
        time.sleep(_POLL_S)
    failed = [code for code in codes.values() if code not in (0, EXIT_INTERRUPTED)]
    return max(failed or codes.values(), default=0)


def _ends(work: Work) -> dict[str, int]:
    """Exit codes of the jobs that have ended and are not to run again."""
    codes: dict[str, int] = {}
    for event in job_log.read(work.folder):
        codes.pop(event.job_id, None)
        if isinstance(event, Ended) and not event.requeued:
            codes[event.job_id] = event.exit_code
    return codes


def _state(one: Queued, known: dict[str, slurm.QueuedJob], cluster: Cluster) -> tuple[str, bool]:
    if cluster.cluster == "local":
        lives = not one.job.done()
        return ("running" if lives else "ended"), lives
    job = known.get(one.job_id)
    if job is None:
        return "not known to Slurm", False
    where = f" on {job.nodes}" if job.nodes else f" ({job.reason})" if job.state == "PENDING" else ""
    return f"{job.state}{where}", job.is_live


def _run_here(work: Work, cluster: Cluster, to_run: Sequence[int]) -> list[Queued]:
    """Run the parts on this machine, as many at a time as it has cores for, and then what makes a whole of them."""
    cores = cluster.num_tasks_per_node * (cluster.cpus_per_task or 1)
    at_a_time = min(cluster.array_parallelism, max(1, len(os.sched_getaffinity(0)) // cores))
    queued: list[Queued] = []

    def num_at_work() -> int:
        done = sum(one.job.done() for one in queued)
        if done > progress.n:
            progress.update(done - progress.n)
        return len(queued) - done

    with tqdm(total=len(to_run), unit="part") as progress:
        for part in to_run:
            while num_at_work() >= at_a_time:
                time.sleep(0.2)
            queued += _queue(work, cluster, [work.parts[part]])
        while num_at_work():
            time.sleep(0.2)
    failed = [one for one in queued if _ends(work).get(one.job_id) != 0]
    if work.last is not None and not failed:
        queued += _queue(work, cluster, [work.last])
    return queued
