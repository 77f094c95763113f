"""Checks that all processes make together: cores, all-reduce and clocks; that of a folder is in `folders`.

Every function is called on all ranks, and all exchange the same messages; only rank 0 need yield what all know.
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from launch.doctor.checks import interfaces
from launch.doctor.results import CheckResult

MB = 10**6
_SIZES = (1 * MB, 16 * MB, 64 * MB)
_REPEATS = 5
# Slower is hardly any network that one would train over. gloo carries only small messages where there are GPUs.
_SLOW_GB_PER_S, _SLOW_MESSAGES_GB_PER_S = 1.0, 0.05
_CLOCK_ROUNDS = 16
_MAX_SKEW_S = 1.0


def cores(world: World, hosts: Sequence[str]) -> Iterator[CheckResult]:
    """Check whether processes that share cores have more threads than cores."""
    own = (hosts[world.rank], tuple(sorted(os.sched_getaffinity(0))))
    by_rank = collectives.gather_objects((own, torch.get_num_threads()))
    threads = [num_threads for sharing, num_threads in by_rank if sharing == own]
    num_cores = len(own[1])
    setting = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    if sum(threads) <= num_cores:
        yield CheckResult("ok", f"{threads[0]} thread(s) a process, of {num_cores} core(s); {setting}")
        return
    yield CheckResult(
        "warn",
        f"{len(threads)} process(es) with {sum(threads)} threads in all share {num_cores} core(s)",
        f"set OMP_NUM_THREADS={max(1, num_cores // len(threads))}, and have a core per process or more",
    )


def all_reduce(world: World, hosts: Sequence[str]) -> Iterator[CheckResult]:
    """Measure time and bandwidth of the sum over all processes, as gradients take it."""
    if world.world_size == 1:
        yield CheckResult(
            "ok", "a single process; start as many as will train (srun, torchrun) to measure it"
        )
        return
    has_gpus = collectives.all_true(world.device.type == "cuda")
    devices = {"gloo": torch.device("cpu")} | ({"nccl": world.device} if has_gpus else {})
    for backend, device in devices.items():
        texts: list[str] = []
        bus = 0.0
        for size in _SIZES:
            seconds = max(collectives.gather_objects(_all_reduce_s(size, device)))
            speed = size / seconds / 1e9
            bus = speed * 2 * (world.world_size - 1) / world.world_size
            texts.append(f"{size // MB} MB in {seconds * 1e3:.1f} ms = {speed:.2f} GB/s, bus {bus:.2f}")
        text = (
            f"{backend}: {'; '.join(texts)} (bytes / time; bus: times 2 (n - 1) / n, what each process sends)"
        )
        least = _SLOW_MESSAGES_GB_PER_S if has_gpus and backend == "gloo" else _SLOW_GB_PER_S
        if not world.is_main:
            continue
        if len(set(hosts)) > 1 and bus < least:
            todo = f"probably the wrong network card: set {backend.upper()}_SOCKET_IFNAME to the fastest of "
            text = f"slow across nodes, below {least:g} GB/s; {text}"
            yield CheckResult("warn", text, todo + interfaces())
        else:
            yield CheckResult("ok", text)


def _all_reduce_s(size: int, device: torch.device) -> float:
    """Return the median time in s, after one to warm up."""
    values = torch.ones(size // 4, device=device)  # fp32
    times: list[float] = []
    for _ in range(1 + _REPEATS):
        _synchronize(device)
        collectives.max_over_ranks(0)  # all begin together
        start = time.perf_counter()
        dist.all_reduce(values)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Exchange(NamedTuple):
    """One question for the time: when it was sent, what the other's clock said, when the answer came (s)."""

    sent: float
    answer: float
    received: float


class Offset(NamedTuple):
    """How far a clock is ahead (s), and how wrong that may be."""

    seconds: float
    error_s: float


def clock_offset(exchanges: Sequence[Exchange]) -> Offset:
    """Return it as NTP does: the quickest exchange says most, and was answered somewhere between both its ends."""
    best = min(exchanges, key=lambda exchange: exchange.received - exchange.sent)
    return Offset(best.answer - (best.sent + best.received) / 2, (best.received - best.sent) / 2)


def clocks(world: World, hosts: Sequence[str]) -> Iterator[CheckResult]:
    """Check whether the nodes agree on the time; file times and logs are compared by it."""
    if len(set(hosts)) == 1:
        yield CheckResult("ok", "one machine, one clock")
        return
    exchanges: dict[str, list[Exchange]] = {host: [] for host in hosts}
    for _ in range(_CLOCK_ROUNDS):
        sent = time.time()
        collectives.max_over_ranks(0)  # the others answer after rank 0 has asked
        answers = collectives.gather_objects(time.time())
        for host, answer in zip(hosts, answers, strict=True):
            exchanges[host].append(Exchange(sent, answer, time.time()))
    if not world.is_main:
        return
    offsets = {host: clock_offset(exchanges[host]) for host in exchanges if host != hosts[0]}
    for host, (seconds, error_s) in offsets.items():
        if abs(seconds) - error_s > _MAX_SKEW_S:
            todo = "set the clocks by NTP (`timedatectl`, `chronyc tracking`); tell the administrator"
            yield CheckResult(
                "warn", f"the clock of {host} is {seconds:+.1f} s from that of {hosts[0]}", todo
            )
    most, error_s = (max(map(abs, values)) for values in zip(*offsets.values(), strict=True))
    if most - error_s <= _MAX_SKEW_S:
        text = f"{len(exchanges)} hosts within {most * 1e3:.1f} ms (known to {error_s * 1e3:.1f} ms)"
        yield CheckResult("ok", text)
