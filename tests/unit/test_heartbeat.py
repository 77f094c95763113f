"""Who is said to be gone, and when; the processes are threads that share a store and beat fast."""

import threading
import time
from collections.abc import Iterator
from typing import Protocol

import pytest
import torch.distributed as dist

from hrm_dist.config import ConfigError
from hrm_dist.distributed import heartbeat
from hrm_dist.distributed.heartbeat import (
    Failure,
    Heartbeat,
    LastHeartbeat,
    Monitor,
    find_failure,
    is_failed_collective,
    ranks_text,
)

BEAT_S = 0.02
SILENCE_S = 0.6
GLOO = RuntimeError(
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9"
)


def heard(*signs_and_ages: tuple[Heartbeat, float]) -> list[LastHeartbeat]:
    return [LastHeartbeat(sign, age_s) for sign, age_s in signs_and_ages]


def test_ranks_alive_or_done_are_nobodys_end() -> None:
    assert (
        find_failure(
            heard((Heartbeat(9, 4), 50), (Heartbeat(9, 4), 9.9), (Heartbeat(7, 4, "done"), 99)),
            0,
            silence_s=10,
        )
        is None
    )


def test_silent_ranks_are_named_with_their_steps() -> None:
    ranks = heard((Heartbeat(9, 40), 0), (Heartbeat(9, 37), 12), (Heartbeat(9, 39), 0))
    assert find_failure(ranks, 0, silence_s=10) == Failure(
        "rank 1 has shown no sign of life for 12 s, last heard of at step 37; rank 0 is at step 40. The same "
        "command resumes from the last checkpoint.",
        69,
    )
    ranks += heard((Heartbeat(9, 38), 13), (Heartbeat(9, 38), 13))
    reason = find_failure(ranks, 0, silence_s=10)
    assert reason is not None
    assert (
        "ranks 1, 3-4 have shown no sign of life for 12 s, last heard of at steps 37 to 38" in reason.message
    )


def test_an_error_comes_before_silence_and_before_those_that_it_ended() -> None:
    ranks = heard((Heartbeat(), 0), (Heartbeat(), 99), (Heartbeat(5, 3, "followed", "rank 3 is gone", 1), 1))
    assert find_failure(ranks, 0, silence_s=10) == Failure("rank 3 is gone", 1)
    ranks += heard((Heartbeat(5, 3, "failed", "ValueError: no", 2), 1))
    assert find_failure(ranks, 0, silence_s=10) == Failure(
        "rank 3 ended with an error at step 3: ValueError: no", 2
    )


def test_an_error_of_another_rank_leaves_time_for_the_same_error_of_ones_own() -> None:
    ranks = heard((Heartbeat(), 0), (Heartbeat(5, 3, "failed", "no", 2), 1))
    assert find_failure(ranks, 0, silence_s=10, grace_s=2) is None
    assert find_failure(ranks, 0, silence_s=10, grace_s=0.5) is not None


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([5, 0, 3, 4, 2], "ranks 0, 2-5")]
)
def test_text_of_ranks(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GLOO, True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistNetworkError("Failed to recv, got 0 bytes"), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("no gloo"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_may_come_from_another_rank(error: BaseException, expected: bool) -> None:
    assert is_failed_collective(error) is expected


def test_an_error_after_a_failed_collective_counts_as_one() -> None:
    error = KeyError("while cleaning up")
    error.__context__ = GLOO
    assert is_failed_collective(error)


class Rank:
    """A rank of which only the monitor is real; `freeze` is what SIGSTOP would do to it."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, rank_0_hosts: bool) -> None:
        self.ends: list[Failure] = []
        self._frozen = threading.Event()
        self.monitor = Monitor(
            store,
            rank,
            world_size,
            rank_0_hosts=rank_0_hosts,
            silence_s=SILENCE_S,
            beat_s=BEAT_S,
            end=self.ends.append,
        )
        exchange = self.monitor._exchange
        self.monitor._exchange = lambda: None if self._frozen.is_set() else exchange()

    def freeze(self, frozen: bool = True) -> None:
        self._frozen.set() if frozen else self._frozen.clear()

    def ends_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ends:
            time.sleep(BEAT_S)
        return bool(self.ends)


class Start(Protocol):
    def __call__(self, world_size: int, rank_0_hosts: bool = False) -> list[Rank]: ...


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(heartbeat, "_GRACE_S", 0.5)
    started: list[Rank] = []

    def start(world_size: int, rank_0_hosts: bool = False) -> list[Rank]:
        store = dist.HashStore()
        made: dict[int, Rank] = {}

        def join(rank: int) -> None:
            made[rank] = Rank(store, rank, world_size, rank_0_hosts)

        threads = [threading.Thread(target=join, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        started.extend(made[rank] for rank in range(world_size))
        return [made[rank] for rank in range(world_size)]

    yield start
    for rank in started:
        rank.monitor.close()


def test_a_silent_rank_ends_the_others_with_its_step(start: Start) -> None:
    ranks = start(3)
    for rank in ranks:
        rank.monitor.step = 7
    time.sleep(10 * BEAT_S)
    ranks[1].freeze()
    for rank in (ranks[0], ranks[2]):
        assert rank.ends_within(20)
        assert "rank 1 has shown no sign of life for 1 s, last heard of at step 7" in rank.ends[0].message


def test_a_rank_that_is_back_in_time_ends_nobody(start: Start) -> None:
    ranks = start(2)
    ranks[1].freeze()
    time.sleep(SILENCE_S / 3)
    ranks[1].freeze(False)
    assert not ranks[0].ends_within(2 * SILENCE_S)


def test_a_rank_that_leaves_in_peace_ends_nobody(start: Start) -> None:
    ranks = start(2)
    ranks[1].monitor.close()
    assert not ranks[0].ends_within(2 * SILENCE_S)


def test_an_error_of_one_rank_ends_the_others_with_its_exit_code(start: Start) -> None:
    ranks = start(2)
    ranks[1].monitor.step = 3
    ranks[1].monitor.report_error(ConfigError("lr=-1 is bad"))
    assert ranks[0].ends_within(20)
    assert ranks[0].ends[0] == Failure("rank 1 ended with an error at step 3: ConfigError: lr=-1 is bad", 2)


def test_an_error_of_all_ranks_ends_none_by_another(start: Start) -> None:
    ranks = start(2)
    for rank in ranks:
        rank.monitor.report_error(ConfigError("lr=-1 is bad"))
    for rank in ranks:
        rank.monitor.close()
    assert not any(rank.ends for rank in ranks)


def test_a_failed_collective_is_explained_by_the_rank_that_is_gone(start: Start) -> None:
    ranks = start(3)
    ranks[1].freeze()
    ranks[0].monitor.report_error(GLOO)
    ranks[2].monitor.report_error(GLOO)
    for rank in (ranks[0], ranks[2]):
        assert "rank 1 has shown no sign of life" in rank.ends[0].message


def test_a_failed_collective_while_all_live_tells_who_is_behind(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = start(3)
    for rank, step in zip(ranks, (13, 12, 13), strict=True):
        rank.monitor.step = step
    time.sleep(10 * BEAT_S)
    ranks[0].monitor.report_error(GLOO)
    assert not ranks[0].ends  # its traceback says which collective
    message = "on rank 0, though every rank is alive or done: rank 1 at step 12, ranks 0, 2 at step 13"
    assert message in capsys.readouterr().err
    assert ranks[1].ends_within(20)
    assert message in ranks[1].ends[0].message


def test_a_store_that_does_not_answer_is_rank_0_gone(start: Start) -> None:
    ranks = start(2, rank_0_hosts=True)
    ranks[1].freeze()  # in its own exchange: it hears nothing
    assert ranks[1].ends_within(20)
    message = ranks[1].ends[0].message
    assert "rank 0, which holds the store of the processes, has shown no sign of life for 1 s" in message
