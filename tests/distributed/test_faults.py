"""What the processes of a run do when one is killed, stopped, fails, hangs or was started differently."""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.base.errors import EXIT_LOST
from data_pipeline.build import build
from data_pipeline.shards.plan import Request
from tests.training import (
    Finished,
    Started,
    command_line,
    num_rows,
    rank_environments,
    rows,
    saved_step,
    start_module_ranks,
    start_ranks,
    train_on_ranks,
)

pytestmark = pytest.mark.distributed

# Far more steps than a test waits for: nothing but the fault ends the run. A busy machine may starve a process for
# seconds, so a rank that is silent for less than this is not gone.
TIMEOUT_S = 6
SETTINGS = ["max_steps=100000", "global_batch_size=12", "checkpoint_interval=5", f"timeout_s={TIMEOUT_S}"]
RESUMES = r"rank \d is at step [1-9]\d*\. The same command resumes from the last checkpoint\."

Start = Callable[..., list[Started]]


def silent(rank: int) -> str:
    return rf"error: rank {rank} has shown no sign of life for \d+ s, last heard of at step \d+; {RESUMES}"


@pytest.fixture
def start(config: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the processes of a run in tmp_path / "run", waits until they train, and leaves none behind."""
    started: list[Started] = []

    def start(world_size: int, *overrides: str) -> list[Started]:
        run = tmp_path / "run"
        started.extend(start_ranks(world_size, config, run, *SETTINGS, *overrides))
        assert started[0].wait_until(lambda: num_rows(run) >= 6), started[0].log.read_text()
        return list(started)  # a test takes out those that it kills

    yield start
    for rank in started:
        rank.process.kill()


def assert_all_end(ranks: list[Started], message: str, exit_code: int = EXIT_LOST) -> None:
    """All end with the exit code and, for all to see, a message; no traceback hides it."""
    for finished in [rank.finish() for rank in ranks]:
        assert finished.exit_code == exit_code, finished.output
        assert re.search(message, finished.output), finished.output
        assert "Traceback" not in finished.output


@pytest.mark.parametrize(("world_size", "killed"), [(2, 1), (4, 2)])
def test_when_a_rank_is_killed_the_others_end_and_name_it(world_size: int, killed: int, start: Start) -> None:
    ranks = start(world_size)
    ranks.pop(killed).signal(signal.SIGKILL)
    assert_all_end(ranks, silent(killed))


@pytest.mark.parametrize("world_size", [2, 3])
def test_when_rank_0_is_killed_the_others_end_and_name_it(world_size: int, start: Start) -> None:
    rank_0, *others = start(world_size)
    rank_0.signal(signal.SIGKILL)
    assert_all_end(others, rf"rank 0, which holds .*, is gone, last heard of at step \d+; {RESUMES}")


def test_when_a_rank_is_stopped_for_long_the_others_end_and_then_it_does(start: Start) -> None:
    ranks = start(3)
    stopped = ranks.pop(1)
    stopped.signal(signal.SIGSTOP)
    assert_all_end(ranks, silent(1))
    stopped.signal(signal.SIGCONT)
    assert_all_end([stopped], "error: rank")


def test_when_a_rank_is_stopped_for_a_moment_training_goes_on(start: Start, tmp_path: Path) -> None:
    ranks = start(2)
    for rank in ranks:
        rank.signal(signal.SIGSTOP)
        time.sleep(TIMEOUT_S / 4)
        rank.signal(signal.SIGCONT)
        reached = num_rows(tmp_path / "run")
        assert ranks[0].wait_until(lambda reached=reached: num_rows(tmp_path / "run") > reached + 3)
    ranks[1].signal(signal.SIGTERM)
    assert [rank.finish().exit_code for rank in ranks] == [75, 75]


def with_a_fault(
    fault: str, rank: int, where: object, config: Path, run: Path, *overrides: str
) -> list[Finished]:
    command = [fault, rank, where, config, f"checkpoint_path={run}", *SETTINGS, *overrides]
    ranks = start_module_ranks(3, run, "tests.distributed.train_with_a_fault", command)
    return [rank.finish() for rank in ranks]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_rank_ends_the_others_with_its_last_words(
    failing: int, config: Path, tmp_path: Path
) -> None:
    for rank, finished in enumerate(with_a_fault("error", failing, 7, config, tmp_path / "run")):
        assert finished.exit_code == 1, finished.output
        if rank == failing:
            assert "Traceback" in finished.output
        else:
            last_words = "at step 7: ZeroDivisionError: this rank cannot go on"
            assert f"error: rank {failing} ended with an error {last_words}" in finished.output
            assert "Traceback" not in finished.output


def test_a_rank_that_hangs_ends_all_and_is_named_with_its_step(config: Path, tmp_path: Path) -> None:
    for finished in with_a_fault("hang", 1, 7, config, tmp_path / "run"):
        assert finished.exit_code == 1, finished.output
        assert re.search("though every rank is alive or done: .*rank.* at step 7", finished.output), (
            finished.output
        )


def test_when_torchrun_loses_a_process_the_same_command_goes_on_bit_for_bit(
    config: Path, tmp_path: Path
) -> None:
    run, reference = tmp_path / "run", tmp_path / "reference"
    settings = ["max_steps=24", "checkpoint_interval=3"]
    train_on_ranks(2, config, reference, *settings)
    command = ["-m", "hrm_dist.train", config, f"checkpoint_path={run}", *settings, f"timeout_s={TIMEOUT_S}"]
    [torchrun] = start_module_ranks(1, run, "torch.distributed.run", ["--nproc-per-node", 2, *command])
    assert torchrun.wait_until(lambda: num_rows(run) >= 5)
    os.kill(ranks_of(torchrun)[1], signal.SIGKILL)
    finished = torchrun.finish()
    assert finished.exit_code == 1
    assert re.search(silent(1), finished.output), finished.output
    [again] = start_module_ranks(1, run, "torch.distributed.run", ["--nproc-per-node", 2, *command])
    assert again.finish().exit_code == 0
    assert rows(run) == rows(reference)


def ranks_of(torchrun: Started) -> dict[int, int]:
    """The identifier of the process of each rank."""
    process_of: dict[int, int] = {}
    for process in torchrun.children():
        with suppress(OSError):  # it has just ended
            entries = Path(f"/proc/{process}/environ").read_text().split("\0")
            rank = dict(entry.split("=", 1) for entry in entries if "=" in entry).get("RANK")
            if rank is not None:
                process_of[int(rank)] = process
    return process_of


def test_after_a_restart_by_torchrun_the_run_goes_on(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [f"checkpoint_path={run}", "max_steps=100", "checkpoint_interval=3", f"timeout_s={TIMEOUT_S}"]
    command = ["--nproc-per-node", 2, "--max-restarts", 1, "-m", "hrm_dist.train", config, *settings]
    [torchrun] = start_module_ranks(1, run, "torch.distributed.run", command)
    latest = run / "checkpoints" / "latest"
    assert torchrun.wait_until(lambda: num_rows(run) >= 5 and latest.exists()), torchrun.log.read_text()
    os.kill(ranks_of(torchrun)[1], signal.SIGKILL)
    finished = torchrun.finish()
    assert finished.exit_code == 0, finished.output
    assert "resumed from" in finished.output
    assert saved_step(run) == 100


def test_bad_input_is_said_once_under_torchrun_and_stands_last(config: Path, tmp_path: Path) -> None:
    command = ["--nproc-per-node", 2, "-m", "hrm_dist.train", config, "no_such_key=1"]
    [torchrun] = start_module_ranks(1, tmp_path / "run", "torch.distributed.run", command)
    finished = torchrun.finish()
    says = "error: command line: no_such_key=1: unknown key 'no_such_key'"
    assert len(re.findall(f"^{says}", finished.output, re.MULTILINE)) == 1
    assert says in finished.output.splitlines()[-2]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_never_come_gives_up(rank: int, config: Path, tmp_path: Path) -> None:
    environment = rank_environments(2)[rank]
    arguments = [config, f"checkpoint_path={tmp_path / 'run'}", "timeout_s=2"]
    finished = Started(tmp_path / "log", "hrm_dist.train", arguments, environment).finish()
    assert finished.exit_code == 1
    message = f"error: rank {rank} of 2 has not met the others at MASTER_ADDR=127.0.0.1 MASTER_PORT="
    assert message in finished.output
    assert "within timeout_s=2" in finished.output
    assert "Traceback" not in finished.output
    assert not (tmp_path / "run").exists()


# Started differently


def train_each(config: Path, run: Path, *overrides: list[str]) -> list[Finished]:
    """A run in which every rank has overrides of its own."""
    ranks = [
        Started(
            run.with_name(f"rank{rank}.log"),
            "hrm_dist.train",
            [config, f"checkpoint_path={run}", *own],
            environment,
        )
        for rank, (own, environment) in enumerate(
            zip(overrides, rank_environments(len(overrides)), strict=True)
        )
    ]
    return [rank.finish() for rank in ranks]


def refusal(ranks: Sequence[Finished]) -> str:
    """What the main process says for all, each of which must end with exit code 2."""
    assert [rank.exit_code for rank in ranks] == [2] * len(ranks), ranks
    assert not any(rank.output for rank in ranks[1:])
    return ranks[0].output


def test_ranks_with_different_settings_are_refused_before_anything_is_written(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [["lr=1e-3"], ["lr=2e-3"], ["lr=1e-3", "arch.H_cycles=3", "global_batch_size=9"]]
    message = refusal(train_each(config, run, *[["global_batch_size=12", *own] for own in settings]))
    assert "lr is 0.001 on ranks 0, 2 and 0.002 on rank 1; start every process" in message
    assert "arch.H_cycles is 2 on ranks 0-1 and 3 on rank 2;" in message
    assert "global_batch_size is 12 on ranks 0-1 and 9 on rank 2;" in message
    assert not run.exists()


def test_a_rank_that_sees_another_dataset_is_refused(
    config: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where every machine has its own copy at the same path."""
    run = tmp_path / "run"
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    shutil.copytree(dataset, tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path / "here")
    message = refusal(with_a_fault("elsewhere", 2, tmp_path / "there", config, run, "data_path=data"))
    assert re.search("^error: rank 2: data/dataset.json: not found", message), message
    options = ArcOptions(num_aug=8, holdout="all", canvas=6, limit_groups=8)
    build(Request("arc-agi-1", [], tmp_path / "there" / "data", options, seed=1, workers=1, quiet=True))
    message = refusal(with_a_fault("elsewhere", 2, tmp_path / "there", config, run, "data_path=data"))
    assert re.search(r"data_path=data: its sha256 is \w+ on ranks 0-1 and \w+ on rank 2", message)
    assert not run.exists()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(
    world_size: int, start: Start, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start(world_size)[0]
    holder = f"host {socket.gethostname()}, pid {first.process.pid}"
    before = num_rows(run)
    second = start_module_ranks(
        world_size, tmp_path / "second", "hrm_dist.train", [config, f"checkpoint_path={run}", *SETTINGS]
    )
    message = refusal([rank.finish() for rank in second])
    assert f"checkpoint_path={run}: another run trains here ({holder}); wait" in message
    assert first.wait_until(lambda: num_rows(run) > before + 3)
    steps = [row["step"] for row in rows(run)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_process_that_was_launched_twice_without_ranks_trains_once(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    both = [
        Started(
            tmp_path / f"{i}.log", "hrm_dist.train", [config, f"checkpoint_path={run}", "max_steps=40"], {}
        )
        for i in range(2)
    ]
    finished = [process.finish() for process in both]
    assert sorted(process.exit_code for process in finished) == [0, 2], finished
    assert [row["step"] for row in rows(run)] == list(range(1, 41))


def test_settings_of_accelerate_are_refused_in_its_processes(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--mixed_precision",
        "bf16",
        "--dynamo_backend",
        "inductor",
    ]
    command = ["-m", "hrm_dist.train", config, f"checkpoint_path={run}"]
    finished = command_line("-m", "accelerate.commands.launch", *options, *command)
    assert finished.exit_code == 1  # accelerate's own
    assert (
        "ACCELERATE_MIXED_PRECISION=bf16 has no effect; use precision=bf16 or precision=fp32"
        in finished.output
    )
    assert "ACCELERATE_DYNAMO_BACKEND=INDUCTOR has no effect; use compile=true" in finished.output
    assert not run.exists()
