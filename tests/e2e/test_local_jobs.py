"""`launch.submit --cluster local`: the same jobs as on Slurm, on this machine."""

import os
import re
import signal
from pathlib import Path

import pytest

from launch.jobs import log as job_log
from launch.jobs.log import Ended, Started
from tests.training import assert_same_run, command_line, num_rows, saved_step, train_on_ranks, until

pytestmark = pytest.mark.e2e

TASKS = ["--cluster", "local", "--tasks-per-node", 2]


def submitted(*arguments: object) -> int:
    """Submit; gives the process that holds the job."""
    done = command_line("-m", "launch.submit", *arguments)
    found = re.search(r"^submitted  job (\d+)", done.output, re.MULTILINE)
    assert found is not None, done.output
    return int(found[1])


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_local_training_equals_one_under_torchrun_and_is_put_back_after_usr2(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ["max_steps=60", "checkpoint_interval=20"]
    job = submitted("train", config, f"checkpoint_path={run}", *settings, *TASKS)
    until(lambda: num_rows(run) > 3, lambda: "no rows")
    for task in children(job):
        os.kill(task, signal.SIGUSR2)
    until(
        lambda: len([e for e in job_log.read(run) if isinstance(e, Ended)]) == 2,
        lambda: str(job_log.read(run)),
    )
    events = job_log.read(run)
    assert [(e.exit_code, e.requeued) for e in events if isinstance(e, Ended)] == [(75, True), (0, False)]
    assert [e.restarts for e in events if isinstance(e, Started)] == [0, 1]
    train_on_ranks(2, config, tmp_path / "reference", *settings)
    assert_same_run(run, tmp_path / "reference")


def test_a_local_training_that_is_told_to_end_saves_and_the_same_command_goes_on(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["train", config, f"checkpoint_path={run}", "checkpoint_interval=null", *TASKS]
    job = submitted(*command, "max_steps=100000")
    until(lambda: num_rows(run) > 3, lambda: "no rows")
    refused = command_line("-m", "launch.submit", *command)
    assert refused.exit_code == 2
    assert "a run trains here" in refused.output
    os.kill(job, signal.SIGTERM)
    until(lambda: any(isinstance(e, Ended) for e in job_log.read(run)), lambda: str(job_log.read(run)))
    [end] = [e for e in job_log.read(run) if isinstance(e, Ended)]
    assert (end.exit_code, end.requeued) == (75, False)
    step = saved_step(run)
    again = command_line("-m", "launch.submit", *command, f"max_steps={step + 2}", "--wait")
    assert again.exit_code == 0, again.output
    assert saved_step(run) == step + 2


def test_parts_of_a_build_run_here_until_they_are_merged(tmp_path: Path) -> None:
    build = "build arc-agi-1 --num-aug 2 --canvas 6 --limit-groups 12 --holdout all --workers 1".split()
    done = command_line(
        "-m", "launch.submit", *build, "--out", tmp_path / "data", "--parts", 3, "--cluster", "local"
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "data" / "dataset.json").exists()
    again = command_line(
        "-m",
        "launch.submit",
        *build,
        "--out",
        tmp_path / "data",
        "--parts",
        3,
        "--cluster",
        "local",
        "--retry-failed",
    )
    assert "nothing to submit: all is done" in again.output


def test_parts_of_something_else_are_refused_before_anything_runs(dataset: Path, tmp_path: Path) -> None:
    local = ["--parts", 2, "--cluster", "local"]
    build = ["build", "arc-agi-1", "--canvas", 6, "--limit-groups", 8]
    for command, words in (
        ([*build, "--num-aug", 3, "--out", dataset], "with num_aug=8, not 3"),
        (["build", "arc", "--source", tmp_path / "no.json", "--out", tmp_path / "data"], "no.json"),
        ([*build, "--out", tmp_path / "data", "--retry-failed"], "leave --retry-failed out"),
    ):
        refused = command_line("-m", "launch.submit", *command, *local)
        assert refused.exit_code == 2, refused.output
        assert words in refused.output
    assert not (tmp_path / "data").exists()
