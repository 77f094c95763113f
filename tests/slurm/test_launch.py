"""`launch.submit` on a real Slurm: what is interrupted goes on, what failed runs again, what cannot run is refused."""

import hashlib
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from launch.jobs import log as job_log
from launch.jobs.log import Ended, Event, Failed, Started, Submitted
from launch.jobs.slurm import SlurmError
from launch.submit import main
from tests.slurm.cluster import Cluster
from tests.training import (
    Finished,
    assert_same_run,
    command_line,
    num_rows,
    rows,
    saved_step,
    train,
    train_on_ranks,
    until,
)

pytestmark = pytest.mark.slurm

Kind = TypeVar("Kind", bound=Event)
STEADY = ["arch.hidden_size=64", "global_batch_size=32", "checkpoint_interval=25", "timeout_s=30"]


def submit(*arguments: object) -> Finished:
    return command_line("-m", "launch.submit", *arguments)


def submitted(*arguments: object) -> str:
    """Submit what must be accepted; gives the job's id."""
    done = submit(*arguments)
    found = re.search(r"^submitted  job (\d+)", done.output, re.MULTILINE)
    assert done.exit_code == 0, done.output
    assert found is not None, done.output
    return found[1]


def events(folder: Path, kind: type[Kind]) -> list[Kind]:
    return [event for event in job_log.read(folder) if isinstance(event, kind)]


def output_of(folder: Path) -> str:
    return "\n".join(
        f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("jobs/*_log.err"))
    )


class Run:
    """A training in the cluster, and what may happen to it."""

    def __init__(self, slurm: Cluster, folder: Path, job_id: str) -> None:
        self.slurm, self.folder, self.job_id = slurm, folder, job_id

    def trains(self, starts: int) -> None:
        """Wait until it trains for the how-manieth time, and has made some steps by itself."""
        self.wait(lambda: len(events(self.folder, Started)) >= starts)
        begun = num_rows(self.folder)
        self.wait(lambda: num_rows(self.folder) != begun)
        begun = num_rows(self.folder)
        self.wait(lambda: num_rows(self.folder) > begun + 3)

    def wait(self, condition: Callable[[], bool]) -> None:
        until(condition, lambda: f"{output_of(self.folder)}\n{self.slurm.log_tail()}")

    def processes_of_rank(self, rank: int) -> list[int]:
        """The task that submitit started on its node and the training in it, the oldest first."""
        wanted = {f"SLURM_JOB_ID={self.job_id}", f"SLURM_PROCID={rank}", "SUBMITIT_EXECUTOR=slurm"}
        found: list[int] = []
        for process in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()):
            with suppress(OSError):
                if wanted <= set(Path(f"/proc/{process}/environ").read_text().split("\0")):
                    found.append(process)
        return found

    def is_preempted(self) -> None:
        """A more important job takes both nodes."""
        options = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        self.slurm.command("sbatch", *options)


def test_a_training_that_is_interrupted_in_every_way_equals_one_that_is_not(
    slurm: Cluster, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # One minute is Slurm's shortest limit, and it looks twice a minute.
    cluster = ["--nodes", 2, "--partition", "grace", "--time-min", 1, "--grace-s", 58]
    job_id = submitted("train", config, f"checkpoint_path={folder}", *STEADY, "max_steps=100000", *cluster)
    run = Run(slurm, folder, job_id)

    run.wait(lambda: len(events(folder, Ended)) == 1)  # told of the time limit
    slurm.command("scontrol", "update", f"JobId={job_id}", "TimeLimit=60")
    run.trains(starts=2)
    run.is_preempted()  # with grace: TERM, and USR2
    run.wait(lambda: len(events(folder, Ended)) == 2)
    slurm.wait_for_job(job_id, {"PENDING"})  # its processes may still be ending
    slurm.command("scontrol", "update", f"JobId={job_id}", "Partition=main")
    run.trains(starts=3)
    run.is_preempted()  # without: Slurm kills it within seconds, and puts it back by itself
    run.trains(starts=4)
    slurm.kill_node("n2")  # without a word
    run.wait(lambda: slurm.job(job_id)["JobState"] == "PENDING")
    slurm.start_node("n2")
    run.trains(starts=5)
    slurm.command("scancel", job_id)
    slurm.wait_for_job(job_id, {"CANCELLED"})

    assert [end.requeued for end in events(folder, Ended)[:2]] == [True, True]
    num_steps = saved_step(folder)
    train_on_ranks(2, config, tmp_path / "reference", *STEADY, f"max_steps={num_steps}")
    assert_same_run(folder, tmp_path / "reference")
    assert [row["step"] for row in rows(folder)] == list(range(1, num_steps + 1))


def test_a_rank_that_is_gone_without_a_word_puts_the_job_back_and_one_that_failed_does_not(
    slurm: Cluster, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_KILL_BAD_EXIT", "1")  # as some clusters have it
    folder = tmp_path / "run"
    command = ["train", config, f"checkpoint_path={folder}", *STEADY, "timeout_s=6", "max_steps=100000"]
    run = Run(slurm, folder, submitted(*command, "--nodes", 2))
    run.trains(starts=1)
    for process in run.processes_of_rank(1):
        os.kill(process, signal.SIGKILL)
    run.trains(starts=2)
    assert [(end.exit_code, end.requeued) for end in events(folder, Ended)] == [(69, True)]
    [*_, last] = run.processes_of_rank(1)  # of the task the last one is the training's
    os.kill(last, signal.SIGKILL)
    slurm.wait_for_job(run.job_id, {"FAILED"})
    assert [(failed.rank, failed.host, failed.exit_code) for failed in events(folder, Failed)] == [
        (1, "n2", 137)
    ]
    assert [(end.exit_code, end.requeued) for end in events(folder, Ended)[1:]] == [(69, False)]
    status = command_line("-m", "launch.status", folder)
    assert "failed" in status.output


def test_scancel_ends_a_training_with_its_state_saved_and_the_same_command_goes_on(
    slurm: Cluster, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ["train", config, f"checkpoint_path={folder}", *STEADY, "checkpoint_interval=null"]
    job_id = submitted(*command, "max_steps=100000")
    run = Run(slurm, folder, job_id)
    run.trains(starts=1)
    refused = submit(*command, "max_steps=100000")
    assert refused.exit_code == 2
    assert re.search(f"error: .*{folder}.*(another run|a run trains here|job {job_id})", refused.output), (
        refused.output
    )
    slurm.command("scancel", job_id)
    slurm.wait_for_job(job_id, {"CANCELLED"})
    [end] = events(folder, Ended)
    assert (end.exit_code, end.requeued) == (75, False)
    saved = saved_step(folder)
    assert saved >= num_rows(folder)
    again = submit(*command, f"max_steps={saved + 2}", "--wait")
    assert again.exit_code == 0, again.output
    assert saved_step(folder) == saved + 2


def test_waiting_gives_the_exit_code_of_the_training(slurm: Cluster, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(config, folder, "max_steps=2").exit_code == 0
    [*_, weights] = (folder / "checkpoints" / "latest").glob("*.safetensors")
    with weights.open("r+b") as file:
        file.write(b"damage")  # which the submission does not look for
    damaged = submit("train", config, f"checkpoint_path={folder}", "max_steps=4", "--wait")
    assert damaged.exit_code == 2, damaged.output
    assert "ended with exit code 2" in damaged.output
    assert "damaged" in output_of(folder)


def test_a_run_that_must_be_new_goes_on_after_a_requeue(slurm: Cluster, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["train", config, f"checkpoint_path={folder}", *STEADY, "max_steps=100000", "resume=never"]
    run = Run(slurm, folder, submitted(*command))
    run.trains(starts=1)
    slurm.command("scancel", "--signal=USR2", run.job_id)
    run.trains(starts=2)
    slurm.command("scancel", run.job_id)
    slurm.wait_for_job(run.job_id, {"CANCELLED"})
    assert events(folder, Started)[1].saved is not None
    refused = submit(*command)
    assert refused.exit_code == 2
    assert "resume=never" in refused.output


def test_what_was_submitted_is_on_record(slurm: Cluster, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = submit(
        "train", config, f"checkpoint_path={folder}", "max_steps=1", "--wait", "--setup", "export X=1"
    )
    assert done.exit_code == 0, done.output
    [event] = events(folder, Submitted)
    assert event.resources == {"setup": ["export X=1"]}
    assert event.packages["torch"]
    assert "max_steps: 1\n" in Path(event.command[1]).read_text()
    status = command_line("-m", "launch.status", folder)
    assert status.exit_code == 0
    assert re.search(r"finished(.|\n)*1 of 1", status.output), status.output


# Arrays


def content(dataset: Path) -> dict[str, str]:
    files = [path for path in dataset.rglob("*") if path.is_file() and "jobs" not in path.parts]
    return {str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_failed_part_of_a_build_is_built_alone_and_the_parts_are_merged(
    slurm: Cluster, tmp_path: Path
) -> None:
    build = "arc-agi-1 --num-aug 2 --canvas 6 --limit-groups 12 --holdout all --workers 1".split()
    assert command_line("-m", "data_pipeline.build", *build, "--out", tmp_path / "whole").exit_code == 0
    folder = tmp_path / "parts"
    command = ["build", *build, "--out", folder, "--parts", 3, "--array-parallelism", 1]
    job_id = submitted(*command)
    slurm.command("scancel", f"{job_id}_1")
    slurm.wait_for_job(f"{job_id}_2", {"COMPLETED"})
    assert not (folder / "dataset.json").exists()
    assert "--retry-failed" in submit(*command).output
    retried = submit(*command, "--retry-failed", "--wait")
    assert retried.exit_code == 0, retried.output
    assert "1 of 3 to build" in retried.output
    assert content(folder) == content(tmp_path / "whole")
    assert "dataset.json" in content(folder)
    assert "nothing to submit" in submit(*command, "--retry-failed").output


def test_an_evaluation_in_parts_equals_one_that_is_whole(
    slurm: Cluster, config: Path, dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(config, run, "max_steps=2").exit_code == 0
    command = [run / "checkpoints" / "latest", "--data", dataset, "--device", "cpu"]
    parts = submit("evaluate", *command, "--out", tmp_path / "parts", "--parts", 2, "--wait")
    assert parts.exit_code == 0, parts.output
    whole = command_line("-m", "tools.evaluate", *command, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    votes = []
    for name in ("parts", "whole"):
        vote = ["--data", dataset, "--out", tmp_path / f"{name}.json"]
        assert command_line("-m", "tools.vote", tmp_path / name, *vote).exit_code == 0
        votes.append((tmp_path / f"{name}.json").read_bytes())
    assert votes[0] == votes[1]
    assert len(list((tmp_path / "parts").glob("*.npz"))) == 2


def test_a_sweep_in_parts_goes_on_after_a_requeue_and_ends_with_a_table(
    slurm: Cluster, config: Path, tmp_path: Path
) -> None:
    out, pool = tmp_path / "out", tmp_path / "pool"
    sweep = tmp_path / "sweep.yaml"
    lines = [
        f"config: {config}",
        f"out: {out}",
        f"pool: {pool}",
        "settings: {act: {}, no ACT: {arch.halt_max_steps: 1}}",
        "seeds: [0]",
        "set: {max_steps: 60, eval_interval: 1000, arch.hidden_size: 64}",
    ]
    sweep.write_text("\n".join(lines))
    command = ["sweep", sweep]
    shown = submit(*command, "--dry-run")
    assert "#SBATCH --array=0-1" in shown.output, shown.output
    assert not out.exists()
    job_id = submitted(*command)
    run = Run(slurm, out, job_id)
    run.wait(lambda: pool.exists() and any(num_rows(folder) > 3 for folder in pool.iterdir()))
    slurm.command("scancel", "--signal=USR2", job_id)
    run.wait(lambda: (out / "table.md").exists() and "2 of 2 runs" in (out / "table.md").read_text())
    run.wait(lambda: len([end for end in events(out, Ended) if end.exit_code == 0]) == 3)  # with the table
    assert any(end.requeued and end.exit_code == 75 for end in events(out, Ended))
    for folder in (path for path in pool.iterdir() if path.is_dir()):
        assert [row["step"] for row in rows(folder)] == list(range(1, 61))
    status = command_line("-m", "launch.status", out)
    assert "2 of 2 parts done" in status.output, status.output
    assert "nothing to submit" in submit(*command, "--retry-failed").output


# What cannot run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--partition", "nope"], ["Invalid partition name", "partitions: main"]),
        (["--gpus-per-node", "4", "device=auto"], ["node configuration is not available", "gpu:2"]),
        (["--mem-gb", "900"], ["node configuration is not available", "6000 MB"]),
        (["--nodes", "4"], ["node configuration is not available", "main: 2 with"]),
        (["--constraint", "fast"], ["feature", "sinfo"]),
        (
            ["--partition", "far", "checkpoint_path=/dev/shm/hrm-dist-test"],
            ["memory", "storage that all nodes share"],
        ),
        (["--nodes", "3"], ["global_batch_size=8", "world_size=3"]),
        (["data_path=nowhere"], ["nowhere"]),
        (["lr=-1"], ["lr=-1"]),
        (["device=cuda"], ["device=cuda", "--gpus-per-node"]),
        (["--profile", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["--sbatch=--array=0-1"], ["--array cannot be given"]),
        (["checkpoint_path=README.md/run"], ["README.md is no folder"]),
        (["--mem-gb", "inf"], ["mem_gb", "inf"]),
        (["gradient_accumulation_steps=3"], ["gradient_accumulation_steps=3", "divisor"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0][0] in "-dl" else "",
)
def test_what_cannot_run_is_refused_and_nothing_is_queued(
    options: list[str], words: list[str], slurm: Cluster, config: Path, tmp_path: Path
) -> None:
    refused = submit("train", config, f"checkpoint_path={tmp_path / 'run'}", *options)
    assert refused.exit_code == 2, refused.output
    assert all(word in refused.output for word in words), refused.output
    assert "Traceback" not in refused.output
    assert slurm.command("squeue", "--noheader") == ""
    assert not (tmp_path / "run").exists()


def test_a_job_that_slurm_refuses_at_the_last_moment_leaves_nothing(
    slurm: Cluster, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "launch.jobs.slurm.check_script", lambda _script: None
    )  # as if all was well a moment ago
    with pytest.raises(SlurmError, match=r"Invalid partition name(.|\n)*partitions: main"):
        main(["train", str(config), f"checkpoint_path={tmp_path / 'run'}", "--partition", "nope"])
    assert not (tmp_path / "run").exists()
    assert slurm.command("squeue", "--noheader") == ""


def test_a_dry_run_prints_the_script_and_writes_nothing(slurm: Cluster, config: Path, tmp_path: Path) -> None:
    shown = submit("train", config, f"checkpoint_path={tmp_path / 'run'}", "--nodes", 2, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "#SBATCH --nodes=2" in shown.output
    assert slurm.command("squeue", "--noheader") == ""
    assert not (tmp_path / "run").exists()
