"""Ranks from the environments that launchers really make; those of Slurm are from 22.05, cut to what could matter."""

import re

import pytest

from hrm_dist.config import ConfigError
from hrm_dist.distributed.launch_env import DistEnv, launch_env

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
# Of `sbatch -N 2 --ntasks 4 --ntasks-per-node 2`: the script itself, and the last task of `srun` in it.
BATCH_SCRIPT = {
    "SLURM_GTIDS": "0", "SLURM_JOBID": "2", "SLURM_JOB_ID": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_NPROCS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_TASK_PID": "4801",
}  # fmt: skip
STEP = BATCH_SCRIPT | {
    "SLURM_GTIDS": "2,3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_PROCID": "3", "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
# The shell of `salloc -n 2`, and of `srun --pty` in it, which may keep the job's number of tasks.
SALLOC = {"SLURM_JOB_ID": "3", "SLURM_NPROCS": "2", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}
PTY = SALLOC | {
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_NODES": "1",
}  # fmt: skip
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
# The second of the tasks that submitit's local executor starts, from submitit 1.5.4.
LOCAL = {
    "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_JOB_ID": "4711", "SUBMITIT_LOCAL_COMMAND": "python -u -m submitit.core._submit jobs",
}  # fmt: skip
MEETING_PLACE = {"MASTER_ADDR": "head", "MASTER_PORT": "1234"}


def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as refused:
        launch_env(environment)
    return str(refused.value)


def ranks(rank: int, world_size: int, local_rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(local_rank)}


def test_without_a_launcher_a_process_is_alone() -> None:
    assert launch_env({}) == DistEnv(0, 1, 0)


def test_torchrun_says_ranks_and_meeting_place() -> None:
    assert launch_env(TORCHRUN) == DistEnv(3, 4, 1, "n1", 29500)


def test_a_task_of_srun_is_a_rank_and_meets_the_others_at_the_first_node_of_the_step() -> None:
    task = launch_env(STEP)
    assert (task.rank, task.world_size, task.local_rank, task.master_addr) == (3, 4, 1, "n1")
    assert task.by_srun
    assert 10_000 <= task.master_port < 30_000
    assert launch_env(STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).master_port == task.master_port
    assert launch_env(STEP | {"SLURM_STEP_ID": "1"}).master_port != task.master_port
    assert launch_env(STEP | {"SLURM_JOB_ID": "4"}).master_port != task.master_port


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n[1-2]", "n1"),
        ("gpu-a[007-012,3],b1", "gpu-a007"),
        ("a,b[1-2]", "a"),
        ("r[01-02]-n[3,5]", "r01-n3"),
        ("x-1.y", "x-1.y"),
    ],
)
def test_the_first_node_of_a_list_of_slurm(nodes: str, first: str) -> None:
    assert launch_env(STEP | {"SLURM_STEP_NODELIST": nodes}).master_addr == first


def test_tasks_of_srun_on_one_node_meet_there_on_a_port_that_rank_0_tells() -> None:
    on_one_node = STEP | {"SLURM_STEP_NUM_NODES": "1"}
    task = launch_env(on_one_node)
    assert (task.master_addr, task.master_port) == ("127.0.0.1", 0)
    assert task.rendezvous_name
    assert launch_env(on_one_node | {"SLURM_PROCID": "0"}).rendezvous_name == task.rendezvous_name
    for other in ({"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "4"}, {"SLURM_RESTART_COUNT": "1"}):
        assert launch_env(on_one_node | other).rendezvous_name != task.rendezvous_name
    assert launch_env(on_one_node | {"MASTER_PORT": "1234"})[3:6] == ("127.0.0.1", 1234, "")


def test_a_task_of_submitit_on_this_machine_is_a_rank() -> None:
    task = launch_env(LOCAL)
    assert task[:5] == (1, 2, 1, "127.0.0.1", 0)
    assert not task.by_srun
    assert launch_env(LOCAL | {"SUBMITIT_LOCAL_GLOBALID": "0"}).rendezvous_name == task.rendezvous_name
    assert launch_env(LOCAL | {"SUBMITIT_LOCAL_JOB_ID": "4712"}).rendezvous_name != task.rendezvous_name
    assert launch_env(LOCAL | MEETING_PLACE)[:6] == (1, 2, 1, "head", 1234, "")


@pytest.mark.parametrize("within", [{}, BATCH_SCRIPT, SALLOC, PTY])
def test_the_only_task_of_submitit_is_alone_wherever_it_was_started(within: dict[str, str]) -> None:
    one_task = LOCAL | {"SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0"}
    assert launch_env(within | one_task) == DistEnv(0, 1, 0)
    assert launch_env(within | one_task | MEETING_PLACE) == DistEnv(0, 1, 0)
    assert launch_env(within | LOCAL)[:3] == (1, 2, 1)


def test_on_slurm_the_tasks_of_submitit_are_those_of_srun() -> None:
    assert launch_env(LOCAL | STEP | {"SUBMITIT_EXECUTOR": "slurm"}) == launch_env(STEP)


def test_ranks_that_contradict_submitit_are_refused() -> None:
    assert "contradicts submitit's SUBMITIT_LOCAL_GLOBALID=1 of" in refusal(
        LOCAL | MEETING_PLACE | ranks(0, 2, 0)
    )
    assert launch_env(LOCAL | MEETING_PLACE | ranks(1, 2, 0))[:3] == (1, 2, 0)
    assert "contradicts submitit's" in refusal(LOCAL | STEP | {"SLURM_PROCID": "0"})
    message = refusal(LOCAL | TORCHRUN | {"GROUP_WORLD_SIZE": "1"})
    assert "each of submitit's SUBMITIT_LOCAL_NTASKS=2 tasks runs a torchrun of its own" in message


def test_under_srun_a_meeting_place_that_is_set_counts() -> None:
    task = launch_env(STEP | MEETING_PLACE)
    assert (task.master_addr, task.master_port) == ("head", 1234)


@pytest.mark.parametrize("environment", [BATCH_SCRIPT, SALLOC])
def test_a_batch_script_and_a_shell_of_salloc_are_alone_with_a_warning(environment: dict[str, str]) -> None:
    alone = launch_env(environment)
    assert alone[:3] == (0, 1, 0)
    assert re.search("Slurm job of [24] tasks, and not one of them.*srun", alone.warning)


def test_an_interactive_step_of_one_task_is_alone_whatever_the_job_has() -> None:
    assert launch_env(PTY) == DistEnv(0, 1, 0)
    assert launch_env(PTY | MEETING_PLACE) == DistEnv(0, 1, 0)


@pytest.mark.parametrize("within", [BATCH_SCRIPT, SALLOC, PTY, STEP | {"SLURM_STEP_NUM_TASKS": "2"}])
def test_within_slurm_torchrun_counts(within: dict[str, str]) -> None:
    assert launch_env(within | TORCHRUN) == DistEnv(3, 4, 1, "n1", 29500)


def test_a_torchrun_of_its_own_in_every_task_is_refused() -> None:
    environment = STEP | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}
    assert "each of srun's SLURM_STEP_NUM_TASKS=4 tasks runs a torchrun of its own" in refusal(environment)


@pytest.mark.parametrize(
    ("given", "task"),
    [
        (ranks(3, 4, 1), (3, 4, 1)),
        ({"WORLD_SIZE": "4"}, (3, 4, 1)),  # as many batch scripts export it
        (ranks(6, 8, 0), (6, 8, 0)),  # a launcher per task, which starts two ranks
    ],
)
def test_ranks_that_fit_srun_count(given: dict[str, str], task: tuple[int, int, int]) -> None:
    assert launch_env(STEP | MEETING_PLACE | given)[:3] == task


@pytest.mark.parametrize("given", [ranks(0, 1, 0), ranks(0, 4, 0), {"WORLD_SIZE": "8"}, ranks(3, 6, 0)])
def test_ranks_that_contradict_srun_are_refused(given: dict[str, str]) -> None:
    message = refusal(STEP | MEETING_PLACE | given)
    assert (
        f"WORLD_SIZE={given['WORLD_SIZE']} contradicts srun's SLURM_PROCID=3 of SLURM_STEP_NUM_TASKS=4"
        in message
    )
    assert "unset RANK" in message


@pytest.mark.parametrize(
    "tasks",
    [
        MPIRUN,
        {"PMI_SIZE": "4", "PMI_RANK": "2"},
        {"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "2"},
        PTY | MPIRUN,
    ],
)
def test_tasks_of_mpirun_without_ranks_are_refused(tasks: dict[str, str]) -> None:
    message = refusal(tasks)
    assert "RANK, WORLD_SIZE and LOCAL_RANK are not set, so every task would train on its own" in message
    assert "start through srun, torchrun or accelerate launch" in message
    assert launch_env(tasks | MEETING_PLACE | ranks(2, 4, 0))[:3] == (2, 4, 0)
    assert "contradicts" in refusal(tasks | MEETING_PLACE | ranks(0, 1, 0))


def test_tasks_of_mpirun_started_by_tasks_of_srun_are_refused() -> None:
    assert "contradicts mpirun's OMPI_COMM_WORLD_RANK=5 of" in refusal(
        STEP | {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
    )


def test_one_task_of_mpirun_is_alone() -> None:
    assert launch_env({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) == DistEnv(0, 1, 0)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0"}, "['WORLD_SIZE', 'LOCAL_RANK']"),
        ({"LOCAL_RANK": "0"}, "['RANK', 'WORLD_SIZE']"),
        (ranks(0, 2, 0) | {"RANK": "first"}, "numbers"),
        (ranks(2, 2, 0) | MEETING_PLACE, "RANK=2 is not below WORLD_SIZE=2"),
        (ranks(0, 2, 0), "WORLD_SIZE=2 without MASTER_ADDR and MASTER_PORT"),
        (ranks(0, 2, 0) | {"MASTER_ADDR": "head"}, "WORLD_SIZE=2 without MASTER_PORT"),
        (
            ranks(0, 2, 0) | {"MASTER_ADDR": "head", "MASTER_PORT": "http"},
            "MASTER_PORT=http is not a port",
        ),
        (ranks(0, 2, 0) | {"MASTER_ADDR": "head", "MASTER_PORT": "99999"}, "MASTER_PORT=99999 is not a port"),
        (MEETING_PLACE, "this process would train alone"),
        ({**STEP, "SLURM_PROCID": ""}, "SLURM_PROCID='' is not a number"),
        ({name: value for name, value in STEP.items() if name != "SLURM_LOCALID"}, "SLURM_LOCALID=''"),
        ({**LOCAL, "SUBMITIT_LOCAL_GLOBALID": ""}, "SUBMITIT_LOCAL_GLOBALID='' is not a number"),
        ({**LOCAL, "SUBMITIT_LOCAL_JOB_ID": ""}, "SUBMITIT_LOCAL_JOB_ID='' is not a number"),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], words: str) -> None:
    assert words in refusal(environment)
