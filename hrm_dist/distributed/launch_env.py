"""Read from the environment which process this is, of how many, and where they meet.

| started by | told by | rank, number of processes, local rank |
|---|---|---|
| torchrun, accelerate launch | TORCHELASTIC_RUN_ID | RANK, WORLD_SIZE, LOCAL_RANK, also inside srun |
| srun | SLURM_STEP_ID | SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID |
| submitit on this machine | SUBMITIT_EXECUTOR=local | SUBMITIT_LOCAL_GLOBALID, _NTASKS, _LOCALID |
| anything else | RANK | RANK, WORLD_SIZE, LOCAL_RANK; and MASTER_ADDR, MASTER_PORT |
| nobody | none of these | alone |

A batch script and a shell of salloc have variables of Slurm too, even SLURM_PROCID, but no SLURM_STEP_ID.
SLURM_NTASKS does not tell: it is the job's, and an interactive step of one task inherits it.
The tasks that submitit starts on Slurm are srun's.

Tasks of srun and submitit on one machine need no port: rank 0 takes a free one and tells the others, see rendezvous.py.
On several, the port follows from the job. MASTER_PORT counts before either.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hrm_dist.config import ConfigError
from hrm_dist.distributed.accelerate_env import refuse_accelerate_settings

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
# Launcher; number of this task, number of all, and the former on its machine, in the order of _RANKS.
_SRUN = ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_SUBMITIT = ("submitit", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID")
# Of mpirun only to refuse its tasks where nothing else gives ranks.
_TASKS = (
    _SRUN,
    _SUBMITIT,
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ""),
    ("mpirun", "PMI_RANK", "PMI_SIZE", ""),
    ("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", ""),
)


class DistEnv(NamedTuple):
    """What the launcher said in the environment."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str = ""
    master_port: int = 0
    """0: rank 0 takes a free one, and tells the others under `rendezvous_name`."""
    rendezvous_name: str = ""
    """Unique to these processes among those of their user on the machine where all of them are."""
    by_srun: bool = False
    """Whether the ranks are srun's, which may show each of its tasks a single GPU."""
    warning: str = ""
    """Of something that is allowed, but perhaps not meant."""


class _Tasks(NamedTuple):
    """The several tasks of a launcher; this process is one of them, or was started by one."""

    launcher: str
    size_name: str
    size: int
    rank_name: str
    rank: int

    def __str__(self) -> str:
        return f"{self.launcher}'s {self.rank_name}={self.rank} of {self.size_name}={self.size}"


def launch_env(environment: Mapping[str, str] = os.environ) -> DistEnv:
    """Return rank, number of processes and local rank; raise ConfigError where they are incomplete or contradict."""
    refuse_accelerate_settings(environment)
    tasks = list(_tasks(environment))
    launchers = {task.launcher for task in tasks}
    ranks_of = next((names for names in (_SRUN, _SUBMITIT) if names[0] in launchers), None)
    given = {name: environment[name] for name in _RANKS if name in environment}
    of_tasks = zip(_RANKS, ranks_of[1:], strict=True) if ranks_of else ()
    values = {ours: str(_number(environment, name)) for ours, name in of_tasks} | given
    if not values:
        if tasks:
            raise ConfigError(
                f"this process is {tasks[0]}, but RANK, WORLD_SIZE and LOCAL_RANK are not set, so every task would "
                "train on its own; start through srun, torchrun or accelerate launch, or set them for each task, and "
                "MASTER_ADDR and MASTER_PORT for all."
            )
        return _alone(environment)
    missing = [name for name in _RANKS if name not in values]
    if missing or not all(value.isdecimal() for value in values.values()):
        raise ConfigError(
            f"the environment has {values} but not {missing or 'numbers'}: a launcher sets RANK, WORLD_SIZE and "
            "LOCAL_RANK together; start through torchrun, accelerate launch or srun, or unset them to train alone."
        )
    rank, world_size, local_rank = (int(values[name]) for name in _RANKS)
    if rank >= world_size:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world_size}; both come from the launcher.")
    for task in tasks:
        _check_agreement(rank, world_size, task, environment)
    addr, port, name = _rendezvous(environment, ranks_of) if world_size > 1 else ("", 0, "")
    by_srun = ranks_of is _SRUN and not given
    return DistEnv(rank, world_size, local_rank, addr, port, name, by_srun)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise ConfigError(
            f"{name}={value!r} is not a number, though other variables of its launcher are set; start through "
            "torchrun, accelerate launch or srun, or unset all of them to train alone."
        )
    return int(value)


def _tasks(environment: Mapping[str, str]) -> Iterator[_Tasks]:
    """Yield the launchers of several tasks that this process runs under."""
    for launcher, rank_name, size_name, _ in _TASKS:
        is_launcher = {"srun": _in_step(environment), "submitit": _in_submitit(environment)}
        if not is_launcher.get(launcher, size_name in environment):
            continue
        size = _number(environment, size_name)
        if size > 1:
            yield _Tasks(launcher, size_name, size, rank_name, _number(environment, rank_name))


def _in_step(environment: Mapping[str, str]) -> bool:
    return "SLURM_STEP_ID" in environment


def _in_submitit(environment: Mapping[str, str]) -> bool:
    """Return whether this is a task of its local executor, whose other variables a Slurm job may inherit."""
    return environment.get("SUBMITIT_EXECUTOR") == "local"


def _check_agreement(rank: int, world_size: int, task: _Tasks, environment: Mapping[str, str]) -> None:
    """Refuse ranks that cannot be those of this task: it is one rank, or starts as many as every other task."""
    if "TORCHELASTIC_RUN_ID" in environment:
        # Of more nodes, torchrun numbers the ranks as it likes.
        if environment.get("GROUP_WORLD_SIZE") == "1":
            raise ConfigError(
                f"each of {task.launcher}'s {task.size_name}={task.size} tasks runs a torchrun of its own "
                f"(GROUP_WORLD_SIZE=1), so {task.size} runs would train; give all the same --nnodes={task.size} "
                "--rdzv-backend=c10d --rdzv-endpoint=HOST:PORT, or start torchrun in one task."
            )
        return
    ranks_per_task, rest = divmod(world_size, task.size)
    if rest or rank // ranks_per_task != task.rank:
        raise ConfigError(
            f"RANK={rank} of WORLD_SIZE={world_size} contradicts {task}; unset RANK, WORLD_SIZE and LOCAL_RANK "
            "where srun or submitit is to set them, or set them for each task."
        )


def _rendezvous(environment: Mapping[str, str], ranks_of: tuple[str, ...] | None) -> tuple[str, int, str]:
    """Return where rank 0's store is, as address, port and name of DistEnv.

    That is where MASTER_ADDR and MASTER_PORT say or, for tasks, on their first machine.
    """
    given = {name: environment[name] for name in _RENDEZVOUS if environment.get(name)}
    missing = [name for name in _RENDEZVOUS if name not in given]
    if missing and ranks_of is None:
        raise ConfigError(
            f"WORLD_SIZE={environment.get('WORLD_SIZE')} without {' and '.join(missing)}: the processes do not know "
            "where to meet; set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port there, for all alike, "
            "or start through torchrun."
        )
    on_one_machine = ranks_of is _SUBMITIT or environment.get("SLURM_STEP_NUM_NODES") == "1"
    addr = given.get("MASTER_ADDR") or ("127.0.0.1" if on_one_machine else _first_host_of_step(environment))
    if "MASTER_PORT" not in given:
        if on_one_machine:
            return addr, 0, _rendezvous_name(environment, ranks_of is _SUBMITIT)
        return addr, _port_of_step(environment), ""
    port = given["MASTER_PORT"]
    if not (port.isdecimal() and 1 <= int(port) <= 65_535):
        raise ConfigError(
            f"MASTER_PORT={port} is not a port, a number from 1 to 65535; set it to one that is free on the host of "
            "rank 0, the same for all processes."
        )
    return addr, int(port), ""


def _rendezvous_name(environment: Mapping[str, str], of_submitit: bool) -> str:
    if of_submitit:
        return f"submitit-{_number(environment, 'SUBMITIT_LOCAL_JOB_ID')}"
    job, step = (_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return f"slurm-{job}.{step}-{environment.get('SLURM_RESTART_COUNT', '0')}"


def _first_host_of_step(environment: Mapping[str, str]) -> str:
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)  # up to a comma outside brackets
    if first is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={hosts!r} names no host where the processes could meet; set MASTER_ADDR to the "
            "host of the first task."
        )
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _port_of_step(environment: Mapping[str, str]) -> int:
    """Return the same port in every task, another in concurrent steps; below those that connections are given."""
    return (
        10_000 + (31 * _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID")) % 20_000
    )


def _alone(environment: Mapping[str, str]) -> DistEnv:
    is_one_task = _in_step(environment) or _in_submitit(environment)
    left_over = {name: environment[name] for name in _RENDEZVOUS if name in environment}
    if left_over and not is_one_task:
        raise ConfigError(
            f"the environment has {left_over} but not RANK, WORLD_SIZE and LOCAL_RANK, so this process would train "
            "alone; start through torchrun, accelerate launch or srun, or unset them to train alone."
        )
    num_tasks = environment.get("SLURM_NTASKS", "1")
    if is_one_task or num_tasks == "1":
        return DistEnv(0, 1, 0)
    return DistEnv(
        0, 1, 0, warning=f"this is a script or shell of a Slurm job of {num_tasks} tasks, and not one of them: it "
        "trains alone; `srun python -m ...` trains with all",
    )  # fmt: skip
