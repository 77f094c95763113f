"""What happens to the others when a process of a run is killed, stopped, fails or was started differently."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training import (
    Finished,
    Started,
    num_rows,
    start_ranks,
)

pytestmark = pytest.mark.distributed

# Far more steps than a test waits for; nothing but the fault ends these runs. How long a process must be silent is a
# compromise: a busy machine may starve one for seconds.
ENDLESS = [
    "max_steps=100000",
    "global_batch_size=12",
    "epochs=100000",
    "checkpoint_interval=5",
    "timeout_s=8",
]
STEPS = r"last heard of at step \d+; rank \d is at step [1-9]\d*\. The same command goes on"


def silent(rank: int) -> str:
    return rf"rank {rank} has shown no sign of life for \d+ s, {STEPS}"


def start_endless(world_size: int, config: Path, run: Path, *overrides: str) -> list[Started]:
    ranks = start_ranks(world_size, config, run, *ENDLESS, *overrides)
    assert ranks[0].wait_until(lambda: num_rows(run) >= 6)
    return ranks


def finish(ranks: Sequence[Started]) -> list[Finished]:
    return [rank.finish() for rank in ranks]


@pytest.mark.parametrize(("world_size", "killed"), [(2, 1), (3, 2), (4, 1)])
def test_after_rank_n_is_killed_all_others_end_and_say_which_and_where(
    world_size: int, killed: int, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start_endless(world_size, config, run)
    ranks[killed].signal(signal.SIGKILL)
    for rank, finished in enumerate(finish(ranks)):
        if rank != killed:
            assert finished.exit_code == 1, finished.output
            assert re.search(silent(killed), finished.output), finished.output
            assert "Traceback" not in finished.output


@pytest.mark.parametrize("world_size", [2, 3])
def test_after_rank_0_is_killed_all_others_end_and_say_so(
    world_size: int, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start_endless(world_size, config, run)
    ranks[0].signal(signal.SIGKILL)
    for finished in finish(ranks)[1:]:
        assert finished.exit_code == 1, finished.output
        expected = f"rank 0, which holds the store of the processes, is gone, {STEPS}"
        assert re.search(expected, finished.output), finished.output
        assert "Traceback" not in finished.output
