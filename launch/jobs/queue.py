"""Hand a job spec to the cluster: check everything first, then queue and record it; and follow it to its end."""

import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from data_pipeline.base.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError
from data_pipeline.base.files import replace_file
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.revision import git_revision
from launch.jobs import log, slurm, storage
from launch.jobs.cluster import Cluster, executor
from launch.jobs.job import Job
from launch.jobs.job_state import ask_queue, job_state
from launch.jobs.log import Ended, Submitted, jobs_folder
from launch.jobs.spec import JobSpec

Handle = submitit.Job[Any]

# Slurm may count a job as ended for a moment before it puts it back into the queue.
_SETTLED_S = 15.0
_POLL_S = 5.0


def submit(spec: JobSpec, cluster: Cluster, *, dry_run: bool, retry: bool) -> list[str]:
    """Check, queue and record what is missing, and what joins the parts; return the ids. Raise InputError."""
    live, to_run = _parts_to_run(spec, retry=retry)
    script = "\n".join(f"runs       python -m {shlex.join(spec.parts[part])}" for part in to_run)
    if cluster.cluster == "slurm":
        script = "\n" + _check_with_slurm(spec, cluster, len(to_run))
    print(_description(spec, cluster, len(to_run)))
    if dry_run:
        print(script)
        return []
    if not to_run and (live or spec.join is None):
        print(f"nothing to submit: {f'{len(live)} jobs wait or run' if live else 'all is done'}")
        return []
    jobs = jobs_folder(spec.folder)
    new = [path for path in (jobs, *jobs.parents) if not path.exists()]
    handles: list[Handle] = []
    try:
        if spec.config is not None:
            replace_file(spec.config[0], spec.config[1].encode())
        if cluster.cluster == "local" and spec.is_array:
            return [handle.job_id for handle in _run_here(spec, cluster, to_run)]
        handles += _queue(spec, cluster, [spec.parts[part] for part in to_run])
        if spec.join is not None:
            # Of parts submitted before, some have failed: those are among the new ones.
            conditions = [f"afterok:{handle.job_id.split('_')[0]}" for handle in handles]
            conditions += [f"afterany:{job_id.split('_')[0]}" for job_id in live]
            one_process = cluster.model_copy(update={"gpus_per_node": 0, "tasks_per_node": 1})
            handles += _queue(spec, one_process, [spec.join], ",".join(dict.fromkeys(conditions)) or None)
    except slurm.SlurmError:  # refused after all: what was made for it goes
        for handle in handles:
            handle.cancel(check=False)
        if new:
            shutil.rmtree(jobs, ignore_errors=True)
        with suppress(OSError):  # something else has come into it
            for path in new[1:]:
                path.rmdir()
        raise
    job_ids = [handle.job_id for handle in handles]
    print(_what_now(spec, cluster, job_ids))
    return job_ids


def _parts_to_run(spec: JobSpec, *, retry: bool) -> tuple[list[str], list[int]]:
    """Return the jobs of the folder that wait or run, and the missing parts that none of them makes.

    Raise InputError where a training has such a job, and where parts were, or were not, submitted before.
    """
    events = log.read(spec.folder)
    queue = ask_queue(events)
    if queue.problem:
        raise slurm.SlurmError(queue.problem)
    before = [event for event in events if isinstance(event, Submitted)]
    live = {e.job_id: e for e in before if queue.is_live(e.job_id)}
    if not spec.is_array:
        for job_id in live:
            remedy = "wait for it, end it (`scancel`, or `kill` of a local one), or choose another folder"
            state = queue.jobs[job_id].state
            raise InputError(f"{spec.folder}: job {job_id} is {state} for this folder; {remedy}.")
        return [], spec.missing
    if before and not retry:
        reason = f"was submitted before (job {before[-1].job_id})"
        raise InputError(f"{spec.folder}: {reason}; --retry-failed submits the parts that are not done.")
    if retry and not before:
        raise InputError(f"{spec.folder}: nothing was submitted for this folder; leave --retry-failed out.")
    counts = {event.command[-1].partition("/")[2] for event in before if "--part" in event.command}
    if counts - {str(len(spec.parts))}:
        before_in = f"was submitted with --parts {', '.join(sorted(counts))}"
        raise InputError(f"--parts {len(spec.parts)}: {spec.folder} {before_in}; give the same number.")
    running = {event.command[-1] for event in live.values()}
    return list(live), [part for part in spec.missing if spec.parts[part][-1] not in running]


def _check_with_slurm(spec: JobSpec, cluster: Cluster, num_jobs: int) -> str:
    """Return the script that sbatch gets. Raise InputError where Slurm or the nodes could not run it."""
    limit_min, is_here = slurm.partition(cluster.partition)
    if not is_here:
        storage.check_shared([spec.folder, *spec.inputs, Path.cwd(), Path(sys.prefix)])
    if cluster.limit_min > limit_min:
        reason = f"the partition allows {limit_min:.0f} minutes"
        raise InputError(f"time_min={cluster.limit_min}: {reason}; a training resumes after fewer.")
    made = executor(cluster, jobs_folder(spec.folder), spec.name)
    assert isinstance(made, submitit.SlurmExecutor)
    if spec.is_array:
        made.parameters["map_count"] = max(1, num_jobs)
    # Nothing public of submitit 1.5 gives the script.
    script = made._make_submission_file_text(made._submitit_command_str, "")
    slurm.check_script(script)
    return script


def _queue(
    spec: JobSpec, cluster: Cluster, commands: Sequence[list[str]], after: str | None = None
) -> list[Handle]:
    """Queue and record commands, several as an array; return their jobs. Raise SlurmError."""
    if not commands:
        return []
    made = executor(cluster, jobs_folder(spec.folder), spec.name, after)
    jobs = [Job(spec.folder, module, arguments, cluster.grace_s) for module, *arguments in commands]
    try:
        with _without_our_output() if cluster.cluster == "local" else nullcontext(), made.batch():
            handles = [made.submit(job) for job in jobs]
    except FailedJobError as error:
        raise slurm.SlurmError(f"Slurm refuses the job: {slurm.explained(str(error))}") from error
    packages = {name: version(name) for name in ("torch", "numpy", "deepspeed", "accelerate", "submitit")}
    revision = git_revision()
    for handle, command in zip(handles, commands, strict=True):
        event = Submitted(
            job_id=handle.job_id,
            cluster=cluster.cluster,
            host=socket.gethostname(),
            kind=spec.kind,
            command=command,
            resources=cluster.model_dump(exclude_defaults=True),
            resubmit=list(spec.resubmit),
            git_revision=revision,
            packages={"python": sys.version.split()[0], **packages},
        )
        log.append(spec.folder, event)
    return handles


@contextmanager
def _without_our_output() -> Iterator[None]:
    """Let a local job, which outlives this process, not keep our output open: who reads it would wait for the job.

    Nor does it end with our terminal.
    """
    sys.stdout.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    of_terminal = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open(os.devnull, "w") as nowhere:
            for descriptor in kept:
                os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        signal.signal(signal.SIGHUP, of_terminal)


def _description(spec: JobSpec, cluster: Cluster, num_jobs: int) -> str:
    is_local = cluster.cluster == "local"
    where = "this machine" if is_local else f"partition {cluster.partition or '(the default)'}"
    per_node = f"{cluster.num_tasks_per_node} process{'es' if cluster.num_tasks_per_node > 1 else ''}"
    if cluster.gpus_per_node:
        per_node += f" and {cluster.gpus_per_node} GPUs"
    size = f"{num_jobs} jobs of {per_node}" if spec.is_array else f"{cluster.nodes} x {per_node}"
    limit = "" if is_local and not cluster.time_min else f", at most {cluster.limit_min} min a start"
    what = [f"{spec.kind:<10} {_short(spec.folder)}", f"on         {where}: {size}{limit}"]
    return "\n".join([*what, *spec.about])


def _what_now(spec: JobSpec, cluster: Cluster, job_ids: Sequence[str]) -> str:
    ids = list(dict.fromkeys(job_id.split("_")[0] for job_id in job_ids))
    cancel = "scancel" if cluster.cluster == "slurm" else "kill"
    if cluster.cluster == "local" and cluster.setup:  # the job is the child of a shell then
        cancel = "pkill --parent"
    return (
        f"submitted  job {' and '.join(ids)}\n"
        f"watch      python -m launch.status {shlex.quote(_short(spec.folder))}\n"
        f"log        tail -F {shlex.quote(_short(log.stderr_of(spec.folder, job_ids[0])))}\n"
        f"cancel     {cancel} {' '.join(ids)}\n"
        f"go on      python -m launch.submit {shlex.join(spec.resubmit)}"
    )


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run_here(spec: JobSpec, cluster: Cluster, to_run: Sequence[int]) -> list[Handle]:
    """Run the parts on this machine, as many at a time as it has cores for, and queue what joins them."""
    cores = cluster.num_tasks_per_node * (cluster.cpus_per_task or 1)
    at_a_time = min(cluster.array_parallelism, max(1, len(os.sched_getaffinity(0)) // cores))
    handles: list[Handle] = []
    with progress_bar("parts", "part", len(to_run), shown=True) as progress:
        while progress.done < len(to_run):
            num_running = sum(not handle.done() for handle in handles)
            progress.update(len(handles) - num_running - progress.done)
            if len(handles) < len(to_run) and num_running < at_a_time:
                handles += _queue(spec, cluster, [spec.parts[to_run[len(handles)]]])
            else:
                time.sleep(0.2)
    done = {e.job_id for e in log.read(spec.folder) if isinstance(e, Ended) and not e.exit_code}
    if spec.join is not None and done >= {handle.job_id for handle in handles}:
        handles += _queue(spec, cluster, [spec.join])
    return handles


def wait(spec: JobSpec, job_ids: Sequence[str]) -> int:
    """Follow jobs until none of them will run again; return the worst of their exit codes."""
    said, gone_since, exit_codes = dict[str, str](), dict[str, float](), dict[str, int]()
    while pending := [job_id for job_id in job_ids if job_id not in exit_codes]:
        events = log.read(spec.folder)
        queue = ask_queue(events)
        if queue.problem:
            print(f"squeue says {queue.problem}", flush=True)
        for job_id in [] if queue.problem else pending:
            own = [event for event in events if event.job_id == job_id]
            if queue.is_live(job_id):  # also after its last word: it may be put back
                gone_since.pop(job_id, None)
                state = str(job_state(own, queue))
            elif own and isinstance(own[-1], Ended) and not own[-1].requeued:
                exit_codes[job_id] = own[-1].exit_code
                state = f"ended with exit code {own[-1].exit_code}"
            elif time.monotonic() - gone_since.setdefault(job_id, time.monotonic()) > _SETTLED_S:
                exit_codes[job_id] = EXIT_FAILED
                state = f"ended without a word; its log is {_short(log.stderr_of(spec.folder, job_id))}"
            else:
                continue
            if state != said.get(job_id):
                print(f"job {job_id}: {state}", flush=True)
                said[job_id] = state
        if len(exit_codes) < len(job_ids):
            time.sleep(_POLL_S)
    failed = [code for code in exit_codes.values() if code not in (0, EXIT_INTERRUPTED)]
    return max(failed or exit_codes.values(), default=0)
