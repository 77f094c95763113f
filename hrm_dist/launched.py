"""What the environment says of the processes that train together: which one this is, of how many, and where they meet.

| started by | told by | rank, number of processes, local rank |
|---|---|---|
| torchrun, accelerate launch | TORCHELASTIC_RUN_ID | RANK, WORLD_SIZE, LOCAL_RANK, also inside srun |
| srun | SLURM_STEP_ID | SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID |
| anything else | RANK | RANK, WORLD_SIZE, LOCAL_RANK; and MASTER_ADDR, MASTER_PORT |
| nobody | none of these | alone |

A batch script and a shell of salloc have variables of Slurm too, even SLURM_PROCID, but no SLURM_STEP_ID.
SLURM_NTASKS does not tell: it is the job's, and an interactive step of one task inherits it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hrm_dist.accelerate_settings import refuse_accelerate_settings
from hrm_dist.config import ConfigError

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
# Launcher, number of its tasks, number of this one.
_TASKS = (
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
    ("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)


class Launched(NamedTuple):
    """What the launcher said in the environment."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str = ""
    master_port: int = 0
    by_srun: bool = False
    """Whether the ranks are srun's, which may show each of its tasks a single GPU."""
    warning: str = ""
    """What is legitimate, but perhaps not meant."""


class _Tasks(NamedTuple):
    """The several tasks of a launcher; this process is one of them, or was started by one."""

    launcher: str
    size_name: str
    size: int
    rank_name: str
    rank: int

    def __str__(self) -> str:
        return f"{self.launcher}'s {self.rank_name}={self.rank} of {self.size_name}={self.size}"


def launched(environment: Mapping[str, str] = os.environ) -> Launched:
    """Rank, number of processes and local rank. Raises ConfigError where they are half there or contradict."""
    refuse_accelerate_settings(environment)
    tasks = list(_tasks(environment))
    from_srun = any(task.launcher == "srun" for task in tasks)
    given = {name: environment[name] for name in _RANKS if name in environment}
    values = {**_ranks_of_srun(environment), **given} if from_srun else given
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
    addr, port = _meeting_place(environment, from_srun) if world_size > 1 else ("", 0)
    return Launched(rank, world_size, local_rank, addr, port, by_srun=from_srun and not given)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise ConfigError(
            f"{name}={value!r} is not a number, though other variables of its launcher are set; start through "
            "torchrun, accelerate launch or srun, or unset all of them to train alone."
        )
    return int(value)


def _tasks(environment: Mapping[str, str]) -> Iterator[_Tasks]:
    """Launchers of several tasks that this process runs under."""
    for launcher, size_name, rank_name in _TASKS:
        if ("SLURM_STEP_ID" if launcher == "srun" else size_name) not in environment:
            continue
        size = _number(environment, size_name)
        if size > 1:
            yield _Tasks(launcher, size_name, size, rank_name, _number(environment, rank_name))


def _ranks_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return {ours: str(_number(environment, name)) for ours, name in zip(_RANKS, names, strict=True)}


def _check_agreement(rank: int, world_size: int, task: _Tasks, environment: Mapping[str, str]) -> None:
    """Refuse ranks that cannot be those of this task: it is one rank, or starts equally many as each other."""
    if "TORCHELASTIC_RUN_ID" in environment:
        if (
            environment.get("GROUP_WORLD_SIZE") == "1"
        ):  # of more nodes, torchrun numbers the ranks as it likes
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
            "where srun is to set them, or set them for each task."
        )


def _meeting_place(environment: Mapping[str, str], from_srun: bool) -> tuple[str, int]:
    """Host and port of rank 0's store: MASTER_ADDR and MASTER_PORT or, under srun, of the step's first node."""
    given = {name: environment[name] for name in _MEETING_PLACE if environment.get(name)}
    missing = [name for name in _MEETING_PLACE if name not in given]
    if missing and not from_srun:
        raise ConfigError(
            f"WORLD_SIZE={environment.get('WORLD_SIZE')} without {' and '.join(missing)}: the processes do not know "
            "where to meet; set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port there, for all alike, "
            "or start through torchrun."
        )
    port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in given else _port_of_step(environment)
    if port > 65_535:
        raise ConfigError(f"MASTER_PORT={port} is not a port; set it to one that is free, at most 65535.")
    return given.get("MASTER_ADDR") or _first_host_of_step(environment), port


def _first_host_of_step(environment: Mapping[str, str]) -> str:
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)  # up to a comma outside brackets
    if first is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={hosts!r} names no host where the processes could meet; set MASTER_ADDR to the "
            "host of the first task."
        )
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _port_of_step(environment: Mapping[str, str]) -> int:
    """The same port in every task, another one in steps that run beside; below those that connections are given."""
    return (
        10_000 + (31 * _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID")) % 20_000
    )


def _alone(environment: Mapping[str, str]) -> Launched:
    in_step = "SLURM_STEP_ID" in environment
    left_over = {name: environment[name] for name in _MEETING_PLACE if name in environment}
    if left_over and not in_step:
        raise ConfigError(
            f"the environment has {left_over} but not RANK, WORLD_SIZE and LOCAL_RANK, so this process would train "
            "alone; start through torchrun, accelerate launch or srun, or unset them to train alone."
        )
    num_tasks = environment.get("SLURM_NTASKS", "1")
    if in_step or num_tasks == "1":
        return Launched(0, 1, 0)
    return Launched(
        0, 1, 0, warning=f"this is a script or shell of a Slurm job of {num_tasks} tasks, and not one of them: it "
        "trains alone; `srun python -m ...` trains with all",
    )  # fmt: skip
