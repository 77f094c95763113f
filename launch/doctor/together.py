"""Checks that all processes make together: cores, all-reduce and clocks; of folders, see `checks_of_folders`.

Every function is called on all ranks, and all exchange the same messages: what can fail on one of them gives a value.
The findings of rank 0 count.
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
from launch.doctor.results import Finding, ranks_by_host

MB = 10**6
_SIZES = (1 * MB, 16 * MB, 64 * MB)
_REPEATS = 5
# Slower is hardly any network that one would train over. gloo carries only small messages where there are GPUs.
_SLOW_GB_PER_S = 1.0
_SLOW_MESSAGES_GB_PER_S = 0.05
_CLOCK_ROUNDS = 16
_MAX_SKEW_S = 1.0


# Cores


class _Threads(NamedTuple):
    """What a process computes with."""

    cores: tuple[int, ...]
    """Those it may use."""
    num_threads: int
    setting: str
    """OMP_NUM_THREADS, empty if not set."""


def cores(world: World, hosts: Sequence[str]) -> Iterator[Finding]:
    """Whether processes that share cores have more threads than cores."""
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    own = _Threads(allowed, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", ""))
    by_rank = collectives.gather_objects(own)
    sharing: dict[tuple[str, tuple[int, ...]], list[_Threads]] = {}
    for host, threads in zip(hosts, by_rank, strict=True):
        sharing.setdefault((host, threads.cores), []).append(threads)
    problems: dict[tuple[str, str], list[str]] = {}
    for (host, available), group in sharing.items():
        wanted = sum(threads.num_threads for threads in group)
        if wanted > len(available):
            text = f"{len(group)} process(es) with {wanted} threads in all share {len(available)} core(s)"
            todo = f"set OMP_NUM_THREADS={max(1, len(available) // len(group))}, and have a core per process or more"
            problems.setdefault((text, todo), []).append(host)
    for (text, todo), on in problems.items():
        yield Finding("warn", f"{text} on {', '.join(dict.fromkeys(on))}", todo)
    setting = f"OMP_NUM_THREADS={own.setting}" if own.setting else "OMP_NUM_THREADS is not set"
    if not problems:
        yield Finding("ok", f"{own.num_threads} thread(s) a process, of {len(own.cores)} core(s); {setting}")


# All-reduce


def all_reduce(world: World, hosts: Sequence[str]) -> Iterator[Finding]:
    """Time and bandwidth of the sum over all processes, as gradients take it."""
    if world.world_size == 1:
        yield Finding("ok", "a single process; start as many as will train (srun, torchrun) to measure it")
        return
    has_gpus = collectives.all_true(world.device.type == "cuda")
    devices = {"gloo": torch.device("cpu")} | ({"nccl": world.device} if has_gpus else {})
    across = len(set(hosts)) > 1
    for backend, device in devices.items():
        seconds = [max(collectives.gather_objects(_all_reduce_s(size, device))) for size in _SIZES]
        text = f"{backend}: " + "; ".join(
            f"{size // MB} MB in {s * 1e3:.1f} ms = {_gb_per_s(size, s):.2f} GB/s, bus "
            f"{_bus_gb_per_s(size, s, world):.2f}"
            for size, s in zip(_SIZES, seconds, strict=True)
        )
        text += " (bytes / time; bus: times 2 (n - 1) / n, what each process sends)"
        least = _SLOW_MESSAGES_GB_PER_S if has_gpus and backend == "gloo" else _SLOW_GB_PER_S
        if across and _bus_gb_per_s(_SIZES[-1], seconds[-1], world) < least:
            yield Finding(
                "warn",
                f"slow across nodes, below {least:g} GB/s; {text}",
                f"probably the wrong network card: set {backend.upper()}_SOCKET_IFNAME to the fastest of "
                f"{interfaces()}",
            )
        else:
            yield Finding("ok", text)


def _gb_per_s(size: int, seconds: float) -> float:
    return size / seconds / 1e9


def _bus_gb_per_s(size: int, seconds: float, world: World) -> float:
    return _gb_per_s(size, seconds) * 2 * (world.world_size - 1) / world.world_size


def _all_reduce_s(size: int, device: torch.device) -> float:
    """Median time in s, after one to warm up."""
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


# Clocks


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
    """As in NTP: the quickest exchange says most, and its answer was given somewhere between both its ends."""
    best = min(exchanges, key=lambda exchange: exchange.received - exchange.sent)
    return Offset(best.answer - (best.sent + best.received) / 2, (best.received - best.sent) / 2)


def clocks(world: World, hosts: Sequence[str]) -> Iterator[Finding]:
    """Whether the nodes agree on the time; file times and logs are compared by it."""
    others = [ranks[0] for ranks in ranks_by_host(hosts).values()][1:]
    if not others:
        yield Finding("ok", "one machine, one clock")
        return
    offsets: dict[str, Offset] = {}
    for rank in others:
        if world.is_main:
            offsets[hosts[rank]] = clock_offset([_ask_time(rank) for _ in range(_CLOCK_ROUNDS)])
        elif world.rank == rank:
            for _ in range(_CLOCK_ROUNDS):
                dist.recv(torch.empty(1, dtype=torch.float64), src=0)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), dst=0)
        collectives.max_over_ranks(0)
    wrong = {
        host: offset for host, offset in offsets.items() if abs(offset.seconds) - offset.error_s > _MAX_SKEW_S
    }
    for host, offset in wrong.items():
        yield Finding("warn", f"the clock of {host} is {offset.seconds:+.1f} s from that of {hosts[0]}",
                      "set the clocks by NTP (`timedatectl`, `chronyc tracking`); tell the administrator")  # fmt: skip
    if offsets and not wrong:
        most = max(abs(offset.seconds) for offset in offsets.values())
        error_s = max(offset.error_s for offset in offsets.values())
        yield Finding(
            "ok", f"{1 + len(others)} hosts within {most * 1e3:.1f} ms (known to {error_s * 1e3:.1f} ms)"
        )


def _ask_time(rank: int) -> Exchange:
    answer = torch.zeros(1, dtype=torch.float64)
    sent = time.time()
    dist.send(answer, dst=rank)
    dist.recv(answer, src=rank)
    return Exchange(sent, float(answer), time.time())
