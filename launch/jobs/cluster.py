"""What a job asks of a cluster: typed, from a profile (`configs/cluster/*.yaml`) and the command line."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt, StringConstraints, ValidationError, model_validator

from data_pipeline.base.models import Strict
from data_pipeline.base.paths import PathOrUrl
from hrm_dist.config import ConfigError
from hrm_dist.config.loader import Settings, Value

if TYPE_CHECKING:
    import submitit

_LINE = StringConstraints(min_length=1, pattern=r"^[^\n]*$")
Text = Annotated[str, _LINE]
PathText = Annotated[PathOrUrl, _LINE]
SbatchOption = Annotated[str, StringConstraints(pattern=r"^--[a-z][a-z-]*(=[^\n]*)?$")]

# Training may outlive any number of time limits; submitit would give up after three.
_MAX_TIMEOUTS = 1_000_000
_OWN_OPTIONS = {
    "array", "chdir", "dependency", "error", "gpus-per-node", "job-name", "no-requeue", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only", "time", "wait", "wrap",
}  # fmt: skip
# Keys that submitit calls as we do.
_SAME_NAMES = {
    "nodes", "cpus_per_task", "partition", "account", "qos", "constraint", "exclude", "array_parallelism",
}  # fmt: skip
# What sbatch and others call our keys.
_HINTS = {
    name: f"here that is {key}"
    for key, names in {
        "nodes": "num_nodes nnodes n_nodes",
        "gpus_per_node, the GPUs of each node": "gpus num_gpus n_gpus gres gpu ngpus devices",
        "tasks_per_node": "ntasks_per_node nproc_per_node ntasks",
        "cpus_per_task": "cpus num_cpus cpus_per_gpu",
        "mem_gb": "mem memory mem_per_node",
        "time_min, in minutes": "time time_limit timeout timeout_min walltime",
        "container_mounts": "mounts binds bind",
    }.items()
    for name in names.split()
}
# A signal that comes before Python can handle it must not kill the job: Slurm would not start it again.
_UNTIL_HANDLED = """sh -c 'trap "" TERM USR2; exec "$0" "$@"' """


class Cluster(Strict):
    """Where a job runs and what it gets. Names are sbatch's where it has one; docstrings are help texts."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cluster: Literal["slurm", "local"] = "slurm"
    """slurm (default), or local: processes on this machine, without Slurm"""
    nodes: PositiveInt = 1
    """nodes of a training (1)"""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """one process is started for each; 0: on the CPU (0)"""
    tasks_per_node: PositiveInt | None = None
    """processes per node where there are no GPUs (1)"""
    cpus_per_task: PositiveInt | None = None
    """cores for each process"""
    mem_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """memory per node in GiB (what the cluster gives)"""
    time_min: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """time limit of one start, in minutes, after which a training goes back to the queue (60; local: none)"""
    grace_s: PositiveInt = 120
    """how long before the limit Slurm says so, in seconds: enough to save a checkpoint (120)"""
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    exclude: Text | None = None
    array_parallelism: PositiveInt = 16
    """parts that run at a time (16)"""
    setup: list[Text] = Field(default_factory=list)
    """shell line before the start, such as 'module load cuda'; repeatable"""
    sbatch: list[SbatchOption] = Field(default_factory=list)
    """further option of sbatch, such as --sbatch=--reservation=arc; repeatable"""
    container: PathText | None = None
    """image to run in, which has the project installed"""
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """apptainer (default) or pyxis"""
    container_mounts: list[PathText] = Field(default_factory=list)
    """folder to see inside beside the current one, as HOST or HOST:INSIDE; repeatable"""

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        problems: list[str] = []
        if self.cluster == "local" and self.nodes > 1:
            problems.append(f"nodes={self.nodes}: cluster=local has this machine alone; leave nodes out.")
        if self.cluster == "local" and self.container_runtime == "pyxis" and self.container:
            problems.append("container_runtime=pyxis: belongs to Slurm; use apptainer with cluster=local.")
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            per_gpu = f"one per GPU, and gpus_per_node={self.gpus_per_node}"
            problems.append(f"tasks_per_node={self.tasks_per_node}: processes are {per_gpu}; leave it out.")
        refused = {option.removeprefix("--").partition("=")[0] for option in self.sbatch} & _OWN_OPTIONS
        if refused:
            names = ", ".join(f"--{name}" for name in sorted(refused))
            problems.append(f"sbatch: {names} cannot be given here; use the key of that name, if any.")
        if self.grace_s >= 60 * self.limit_min:
            problems.append(f"grace_s={self.grace_s}: are seconds, no less than time_min={self.limit_min}.")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def limit_min(self) -> int:
        """The time limit of one start, in minutes."""
        # submitit starts a local job six times at most, so one should do.
        return self.time_min or (60 if self.cluster == "slurm" else 1_000_000)

    @property
    def num_tasks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1


def load_cluster(profile: Path | None, given: Mapping[str, Value]) -> Cluster:
    """Return a profile's values with those `given` over them. Raise ConfigError with every problem."""
    settings = Settings({}, Cluster.model_fields, hints=_HINTS)
    if profile is not None:
        settings.read_file(profile)
    for key, value in given.items():
        settings.put(key, value, f"command line: {key}={json.dumps(value)}")
    try:
        cluster = Cluster.model_validate(settings.tree())
        if not settings.errors:
            return cluster
    except ValidationError as invalid:
        settings.add_invalid(invalid, str(profile or "command line"))
    raise ConfigError("\n".join(settings.errors))


def executor(cluster: Cluster, folder: Path, name: str, after: str | None = None) -> "submitit.Executor":
    """Return submitit's executor with a cluster's parameters; `after`: what must happen first, as for sbatch."""
    import submitit

    python = _UNTIL_HANDLED + _python(cluster)
    if cluster.cluster == "local":
        local = submitit.LocalExecutor(folder, max_num_timeout=_MAX_TIMEOUTS, python=python)
        local.update_parameters(
            timeout_min=cluster.limit_min,
            signal_delay_s=cluster.grace_s,
            gpus_per_node=cluster.gpus_per_node,
            tasks_per_node=cluster.num_tasks_per_node,
            setup=cluster.setup,
        )
        return local
    # Slurm then queues the job again where a node fails or a more important job needs it.
    pairs = (option.removeprefix("--").partition("=") for option in cluster.sbatch)
    options: dict[str, str | bool] = {"requeue": True, **{key: value or True for key, _, value in pairs}}
    if after is not None:
        options |= {"dependency": after, "kill-on-invalid-dep": "yes"}
    slurm = submitit.SlurmExecutor(folder, max_num_timeout=_MAX_TIMEOUTS, python=python)
    slurm.update_parameters(
        **cluster.model_dump(include=_SAME_NAMES),
        job_name=name,
        time=cluster.limit_min,
        ntasks_per_node=cluster.num_tasks_per_node,
        gpus_per_node=cluster.gpus_per_node or None,
        mem=None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}M",
        signal_delay_s=cluster.grace_s,
        setup=cluster.setup or None,
        srun_args=_srun_arguments(cluster),
        wckey=None,  # submitit's own would be refused where accounts have keys
        additional_parameters=options,
    )
    return slurm


def _srun_arguments(cluster: Cluster) -> list[str]:
    # Since 22.05 srun no longer takes cpus-per-task over from sbatch.
    arguments = [] if cluster.cpus_per_task is None else [f"--cpus-per-task={cluster.cpus_per_task}"]
    # Rank 0 decides what becomes of the job after another has left; and the ranks are told where they run, whatever
    # the site exports by default.
    arguments += ["--kill-on-bad-exit=0", "--export=ALL"]
    if cluster.container is not None and cluster.container_runtime == "pyxis":
        mounts = [m if ":" in m else f"{m}:{m}" for m in (str(Path.cwd()), *cluster.container_mounts)]
        arguments += [f"--container-image={cluster.container}", f"--container-mounts={','.join(mounts)}"]
        arguments += [f"--container-workdir={Path.cwd()}"]
    return arguments


def _python(cluster: Cluster) -> str:
    """Return the command that starts Python."""
    if cluster.container is None:
        return shlex.quote(sys.executable)
    if cluster.container_runtime == "pyxis":
        return "python"
    here = str(Path.cwd())
    binds = [argument for mount in (here, *cluster.container_mounts) for argument in ("--bind", mount)]
    gpus = ["--nv"] if cluster.gpus_per_node else []
    return shlex.join(["apptainer", "exec", *gpus, *binds, "--pwd", here, cluster.container, "python"])
