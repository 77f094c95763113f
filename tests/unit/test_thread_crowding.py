"""When training says that its threads are too many: as often as the kernel says that they wait for a core."""

import os
from collections.abc import Iterator

import pytest
import torch

from hrm_dist import thread_crowding
from hrm_dist.thread_crowding import Crowding

CPU = torch.device("cpu")


class Threads:
    """Two threads, and the share of their time for which they wait for a core."""

    def __init__(self) -> None:
        self.times = thread_crowding._Times(0.0, 0.0, 0.0)

    def pass_time(self, seconds: float, share: float) -> None:
        at, ran_s, waited_s = self.times
        both = 2 * seconds
        self.times = thread_crowding._Times(at + seconds, ran_s + (1 - share) * both, waited_s + share * both)

    def perf_counter(self) -> float:
        return self.times.at


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads()
    monkeypatch.setattr(thread_crowding, "_times", lambda: threads.times)
    monkeypatch.setattr(thread_crowding, "time", threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return threads


def warnings(threads: Threads, shares: list[float], device: torch.device = CPU) -> Iterator[str]:
    """What is said while the threads wait for a share of each five seconds, in steps of one."""
    crowding = Crowding(device)
    for share in shares:
        for _ in range(5):
            threads.pass_time(1.0, share)
            if warning := crowding.warning():
                yield warning


def test_threads_that_wait_for_cores_are_reported_once(threads: Threads) -> None:
    [warning] = warnings(threads, [0.4] * 10)
    assert "the 2 threads of this process wait for one 40% of their time" in warning
    assert "num_threads=1" in warning


@pytest.mark.parametrize("shares", [[0.1] * 10, [0.9, 0.0, 0.9, 0.0, 0.9]])
def test_a_quiet_machine_and_short_bursts_are_not_reported(shares: list[float], threads: Threads) -> None:
    assert not list(warnings(threads, shares))


def test_a_kernel_that_does_not_count_is_not_reported(threads: Threads) -> None:
    crowding = Crowding(CPU)
    threads.times = thread_crowding._Times(60.0, 0.0, 0.0)
    assert crowding.warning() is None


def test_training_on_a_gpu_is_not_watched(threads: Threads) -> None:
    assert not list(warnings(threads, [0.9] * 10, torch.device("cuda")))


def test_one_thread_is_not_watched(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not list(warnings(threads, [0.9] * 10))


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this kernel does not count")
def test_the_time_that_threads_ran_is_counted() -> None:
    before = thread_crowding._times()
    while sum(os.times()[:2]) < before.ran_s + 0.1:
        pass
    assert thread_crowding._times().ran_s > before.ran_s
