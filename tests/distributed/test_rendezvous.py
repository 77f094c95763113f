"""How the tasks of srun and of submitit find each other without a port that was agreed before."""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hrm_dist.distributed import rendezvous
from hrm_dist.distributed.launch_env import launch_env
from tests.training import Started, rows

pytestmark = pytest.mark.distributed

JOB = str(os.getpid())  # others may test on this machine
Environment = Callable[[int], dict[str, str]]


def of_submitit(rank: int) -> dict[str, str]:
    return {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": str(rank),
        "SUBMITIT_LOCAL_LOCALID": str(rank), "SUBMITIT_LOCAL_JOB_ID": JOB,
    }  # fmt: skip


def of_srun(rank: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": JOB, "SLURM_STEP_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n1",
    }  # fmt: skip


def on_two_nodes(rank: int) -> dict[str, str]:
    return of_srun(rank) | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "localhost,n2"}


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is taken."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        yield taken.getsockname()[1]


def start(config: Path, run: Path, environment: dict[str, str], rank: int, *overrides: str) -> Started:
    arguments = [config, f"checkpoint_path={run}", "max_steps=3", "timeout_s=30", *overrides]
    return Started(run.with_name(f"{run.name}.rank{rank}.log"), "hrm_dist.train", arguments, environment)


@pytest.mark.parametrize("environment", [of_submitit, of_srun, on_two_nodes])
def test_tasks_without_a_meeting_place_train_together(
    environment: Environment, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finished = [start(config, run, environment(rank), rank) for rank in range(2)]
    for rank in finished:
        assert rank.finish().exit_code == 0, rank.log.read_text()
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    saved = (run / "checkpoints" / "latest").glob("rank-*.safetensors")
    assert len(list(saved)) == 2


def test_two_runs_on_one_machine_meet_apart(config: Path, tmp_path: Path) -> None:
    other_job = {"SUBMITIT_LOCAL_JOB_ID": f"{JOB}0"}
    # Rank 1 of each comes before rank 0 of the other.
    tasks = [
        start(config, tmp_path / name, of_submitit(rank) | job, rank)
        for rank in (1, 0)
        for name, job in (("run", {}), ("other", other_job))
    ]
    assert [task.finish().exit_code for task in tasks] == [0, 0, 0, 0], [
        task.log.read_text() for task in tasks
    ]
    assert [row["step"] for row in rows(tmp_path / "other")] == [1, 2, 3]


@pytest.mark.parametrize("environment", [of_submitit, of_srun])
def test_a_port_that_is_given_is_never_replaced(
    environment: Environment, port: int, config: Path, tmp_path: Path
) -> None:
    given = environment(0) | {"MASTER_PORT": str(port)}
    assert_says_that_it_is_taken(start(config, tmp_path / "run", given, 0), port)


def test_across_nodes_a_taken_port_is_named(config: Path, tmp_path: Path) -> None:
    port = launch_env(on_two_nodes(0)).master_port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run has just left it
        taken.bind(("", port))
        taken.listen()
        assert_says_that_it_is_taken(start(config, tmp_path / "run", on_two_nodes(0), 0), port)
        other = start(config, tmp_path / "run", on_two_nodes(1), 1, "timeout_s=2").finish()
    assert other.exit_code == 1
    assert re.search("error: rank 1 of 2 has not met the others .* does not answer", other.output), (
        other.output
    )


def assert_says_that_it_is_taken(rank_0: Started, port: int) -> None:
    finished = rank_0.finish()
    assert finished.exit_code == 2
    [error] = re.findall("error: .*", finished.output)
    assert (
        f"rank 0 cannot listen at MASTER_PORT={port}: something else on {socket.gethostname()} has" in error
    )
    assert "set MASTER_PORT to a free one, the same for all processes" in error
    assert "Traceback" not in finished.output


@pytest.mark.parametrize(("name", "value"), [("GLOO_SOCKET_IFNAME", "^lo,docker0"), ("MASTER_ADDR", "[::1]")])
def test_a_card_or_host_that_does_not_exist_is_named_by_every_rank(
    name: str, value: str, config: Path, tmp_path: Path
) -> None:
    for rank in range(2):  # neither waits for the other
        finished = start(config, tmp_path / "run", of_submitit(rank) | {name: value}, rank).finish()
        assert finished.exit_code == 2
        assert finished.output.startswith(f"error: {name}={value}")
        assert finished.output.count("\n") == 1


@pytest.mark.parametrize(("rank", "reason"), [(0, "0 of the other 1 have come"), (1, "rank 0 has not come")])
def test_a_task_whose_other_does_not_come_says_so(
    rank: int, reason: str, config: Path, tmp_path: Path
) -> None:
    arguments = [config, f"checkpoint_path={tmp_path / 'run'}", "timeout_s=1"]
    finished = Started(tmp_path / "log", "hrm_dist.train", arguments, of_submitit(rank)).finish()
    assert finished.exit_code == 1
    assert f"error: rank {rank} of 2 has not met the others at MASTER_ADDR=127.0.0.1" in finished.output
    assert f"within timeout_s=1: {reason}" in finished.output
    assert "Traceback" not in finished.output


def test_a_name_that_another_waits_under_is_refused(config: Path, tmp_path: Path) -> None:
    with rendezvous.listen(launch_env(of_submitit(0)).rendezvous_name):
        finished = start(config, tmp_path / "run", of_submitit(0), 0).finish()
    assert finished.exit_code == 2
    assert f"another process that runs as rank 0 of submitit-{JOB} waits" in finished.output


def test_who_asks_before_rank_0_is_there_waits_and_one_who_left_does_not_keep_the_port() -> None:
    answers: list[int] = []
    asking = [
        threading.Thread(target=lambda: answers.append(rendezvous.request_port(f"test-{JOB}", timeout_s=60)))
        for _ in range(3)
    ]
    for thread in asking:
        thread.start()
    with rendezvous.listen(f"test-{JOB}"):
        pass  # leaves without telling
    with rendezvous.listen(f"test-{JOB}") as listener:
        rendezvous.serve_port(listener, 4711, len(asking), timeout_s=60)
    for thread in asking:
        thread.join()
    assert answers == [4711] * 3
