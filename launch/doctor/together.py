"""Checks that all processes make together: cores, all-reduce and clocks; that of a folder is in `folders`.

Every function is called on all ranks, and all exchange the same messages; only rank 0 need yield what all know.
"""

import os
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from launch.doctor.checks import interfaces
from launch.doctor.results import Results, ok, warn

MB = 10**6
_SIZES = (1 * MB, 16 * MB, 64 * MB)
_REPEATS = 5
# Slower is hardly any network that one would train over. gloo carries only small messages where there are GPUs.
_SLOW_GB_PER_S, _SLOW_MESSAGES_GB_PER_S = 1.0, 0.05
_CLOCK_ROUNDS = 16
_MAX_SKEW_S = 1.0


def cores(world: World, hosts: Sequence[str]) -> Results:
    """Check whether processes that share cores have more threads than cores."""
    own = (hosts[world.rank], tuple(sorted(os.sched_getaffinity(0))))
    by_rank = collectives.gather_objects((own, torch.get_num_threads()))
    threads = [num_threads for sharing, num_threads in by_rank if sharing == own]
    num_cores = len(own[1])
    setting = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    if sum(threads) <= num_cores:
        yield ok(f"{threads[0]} thread(s) a process, of {num_cores} core(s); {setting}")
        return
    what = f"{len(threads)} process(es) with {sum(threads)} threads in all share {num_cores} core(s)"
    threads_each = max(1, num_cores // len(threads))
    yield warn(what, f"set OMP_NUM_THREADS={threads_each}, and have a core per process or more")


def all_reduce(world: World, hosts: Sequence[str]) -> Results:
    """Measure time and bandwidth of the sum over all processes, as gradients take it."""
    if world.world_size == 1:
        yield ok("a single process; start as many as will train (srun, torchrun) to measure it")
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
        text = f"{backend}: {'; '.join(texts)} (bytes / time; bus: times 2 (n - 1) / n, what each sends)"
        least = _SLOW_MESSAGES_GB_PER_S if has_gpus and backend == "gloo" else _SLOW_GB_PER_S
        if not world.is_main:
            continue
        if len(set(hosts)) > 1 and bus < least:
            todo = f"probably the wrong network card: set {backend.upper()}_SOCKET_IFNAME to the fastest of "
            text = f"slow across nodes, below {least:g} GB/s; {text}"
            yield warn(text, todo + interfaces())
        else:
            yield ok(text)


def _all_reduce_s(size: int, device: torch.device) -> float:
    """Return the median time in s, after one to warm up."""
    values = torch.ones(size // 4, device=device)  # fp32
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    times: list[float] = []
    for _ in range(1 + _REPEATS):
        wait()
        collectives.max_over_ranks(0)  # all begin together
        start = time.perf_counter()
        dist.all_reduce(values)
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


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


def clocks(world: World, hosts: Sequence[str]) -> Results:
    """Check whether the nodes agree on the time; file times and logs are compared by it."""
    if len(set(hosts)) == 1:
        yield ok("one machine, one clock")
        return
    exchanges: list[list[Exchange]] = [[] for _ in hosts]
    for _ in range(_CLOCK_ROUNDS):
        sent = time.time()
        collectives.max_over_ranks(0)  # the others answer after rank 0 has asked
        answers = collectives.gather_objects(time.time())
        for of_rank, answer in zip(exchanges, answers, strict=True):
            of_rank.append(Exchange(sent, answer, time.time()))
    if not world.is_main:
        return
    offsets = {host: clock_offset(exchanges[rank]) for rank, host in enumerate(hosts) if host != hosts[0]}
    wrong = {host: by for host, (by, error_s) in offsets.items() if abs(by) - error_s > _MAX_SKEW_S}
    for host, seconds in wrong.items():
        todo = "set the clocks by NTP (`timedatectl`, `chronyc tracking`); tell the administrator"
        yield warn(f"the clock of {host} is {seconds:+.1f} s from that of {hosts[0]}", todo)
    if not wrong:
        most, error_s = (max(map(abs, values)) * 1e3 for values in zip(*offsets.values(), strict=True))
        yield ok(f"{len(set(hosts))} hosts within {most:.1f} ms (known to {error_s:.1f} ms)")
