"""Checks that all processes make together: cores, all-reduce, clocks, and the folders that they should share.

Every function is called on all ranks, and all exchange the same messages; only rank 0 need yield what all know.
"""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from data_pipeline.base import locks
from data_pipeline.base.files import sync_file
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from launch.doctor import file_system
from launch.doctor.local_checks import GIB, interfaces
from launch.doctor.results import Results, fail, ok, warn, where
from launch.jobs.storage import mount_of

MB = 10**6
_SIZES = (1 * MB, 16 * MB, 64 * MB)
_REPEATS = 5
# Slower is hardly any network that one would train over. gloo carries only small messages where there are GPUs.
_SLOW_GB_PER_S, _SLOW_MESSAGES_GB_PER_S = 1.0, 0.05
_CLOCK_ROUNDS = 16
_MAX_SKEW_S = 1.0
_VISIBLE_WITHIN_S = 5.0
_SLOW_S = {"write + fsync + rename": 0.25, "stat": 0.01}
_LITTLE_SPACE, _FEW_INODES = 10 * GIB, 10_000
_LOCKS_TODO = "start only one run per folder, or mount it with locks (NFS: no `nolock`; Lustre: `flock`)"


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
        texts, bus = list[str](), 0.0
        for size in _SIZES:
            seconds = max(collectives.gather_objects(_all_reduce_s(size, device)))
            speed = size / seconds / 1e9
            bus = speed * 2 * (world.world_size - 1) / world.world_size
            texts.append(f"{size // MB} MB in {seconds * 1e3:.1f} ms = {speed:.2f} GB/s, bus {bus:.2f}")
        text = f"{backend}: {'; '.join(texts)} (bytes / time; bus: times 2 (n - 1) / n, what each sends)"
        least = _SLOW_MESSAGES_GB_PER_S if has_gpus and backend == "gloo" else _SLOW_GB_PER_S
        if world.is_main and len(set(hosts)) > 1 and bus < least:
            todo = f"set {backend.upper()}_SOCKET_IFNAME to the fastest of {interfaces()}"
            yield warn(
                f"slow across nodes, below {least:g} GB/s, perhaps the wrong network card; {text}", todo
            )
        elif world.is_main:
            yield ok(text)


def _all_reduce_s(size: int, device: torch.device) -> float:
    values = torch.ones(size // 4, device=device)  # fp32

    def reduce() -> None:
        dist.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    reduce()  # to warm up
    return _median_s(reduce, _REPEATS, before=lambda: collectives.max_over_ranks(0))  # all begin together


def _median_s(
    function: Callable[[], object], times: int, before: Callable[[], object] = lambda: None
) -> float:
    """Return the median time of some calls, in s."""
    seconds: list[float] = []
    for _ in range(times):
        before()
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Exchange(NamedTuple):
    """One question for the time: when it was sent, what the other's clock said, when the answer came (s)."""

    sent: float
    answer: float
    received: float


def clock_offset(exchanges: Sequence[Exchange]) -> tuple[float, float]:
    """Return how far a clock is ahead (s), and how wrong that may be.

    As in NTP, the quickest exchange says most, and was answered somewhere between both its ends.
    """
    sent, answer, received = min(exchanges, key=lambda exchange: exchange.received - exchange.sent)
    return answer - (sent + received) / 2, (received - sent) / 2


def clocks(world: World, hosts: Sequence[str]) -> Results:
    """Check whether the nodes agree on the time; file times and logs are compared by it."""
    if len(set(hosts)) == 1:
        yield ok("one machine, one clock")
        return
    exchanges: dict[str, list[Exchange]] = {host: [] for host in hosts}
    for _ in range(_CLOCK_ROUNDS):
        sent = time.time()
        collectives.max_over_ranks(0)  # the others answer after rank 0 has asked
        for host, answer in zip(hosts, collectives.gather_objects(time.time()), strict=True):
            exchanges[host].append(Exchange(sent, answer, time.time()))
    if not world.is_main:
        return
    del exchanges[hosts[0]]
    offsets = {host: clock_offset(of_host) for host, of_host in exchanges.items()}
    wrong = {host: by for host, (by, error_s) in offsets.items() if abs(by) - error_s > _MAX_SKEW_S}
    for host, seconds in wrong.items():
        todo = "set the clocks by NTP (`timedatectl`, `chronyc tracking`); tell the administrator"
        yield warn(f"the clock of {host} is {seconds:+.1f} s from that of {hosts[0]}", todo)
    if not wrong:
        most, error_s = (max(map(abs, values)) * 1e3 for values in zip(*offsets.values(), strict=True))
        yield ok(f"{len(set(hosts))} hosts within {most:.1f} ms (known to {error_s:.1f} ms)")


def folder(path: Path, world: World, hosts: Sequence[str]) -> Results:
    """Check whether all nodes see what is written there, how quickly, under locks, and how much room there is."""
    path = Path(os.path.abspath(path))
    marker = path / f".hrm-doctor-{collectives.run_on_rank0(lambda: uuid.uuid4().hex)}"
    with ExitStack() as stack:
        try:
            has_locks = collectives.run_on_rank0(lambda: stack.enter_context(locks.hold(marker)))
        except OSError as error:
            yield fail(f"cannot be written on {hosts[0]}: {error.strerror}", "make it, or give another --dir")
            return
        # Rank 0 would lose its lock if it opened the file again.
        seen_s = collectives.gather_objects(0.0 if world.is_main else _seen_after_s(marker))
        sees_lock, median_s = world.is_main, dict[str, float]()
        if seen_s[world.rank] is not None:
            with suppress(OSError):
                sees_lock = sees_lock or locks.holder(marker) is not None
            if has_locks and not sees_lock:
                yield warn(f"a file that {hosts[0]} had locked could be locked", _LOCKS_TODO)
            try:
                is_first = hosts.index(hosts[world.rank]) == world.rank  # of its host
                median_s = _latencies(marker) if is_first else median_s
            except OSError as error:
                yield fail(f"cannot be written: {error.strerror}", "give this user the right to write there")
        views = collectives.gather_objects((sees_lock, median_s))
    for what, seconds in median_s.items():
        if seconds > _SLOW_S[what]:
            todo = "use a faster file system, or a larger checkpoint_interval"
            yield warn(f"slow: {what} {seconds * 1e3:.2g} ms", todo)
    if not world.is_main:
        return
    yield from file_system.check(path)
    blind = [rank for rank, seconds in enumerate(seen_s) if seconds is None]
    mount = mount_of(Path(os.path.realpath(path)))
    facts = [f"{mount.kind} ({mount.source} on {mount.path})"]
    if blind:
        seeing = [rank for rank in range(len(hosts)) if rank not in blind]
        few = len(seeing) <= len(blind)
        alone = f"this folder is on {where(seeing, hosts)} alone" if few else "not shared by all"
        what = f"{where(blind, hosts)} did not see a new file of {hosts[0]} in {_VISIBLE_WITHIN_S:.0f} s"
        yield fail(f"{alone}: {what}", "use a folder on a file system that all nodes share")
    elif len(hosts) > 1:
        facts.append(f"all see a new file within {max(s for s in seen_s if s is not None) * 1e3:.1f} ms")
    if not has_locks:
        yield warn("no file locks", _LOCKS_TODO)
    elif all(locked for locked, _ in views):
        facts.append(f"file locks work{' between all' if len(hosts) > 1 else ''}")
    for what in median_s:
        facts.append(f"{what} {max(median_s.get(what, 0.0) for _, median_s in views) * 1e3:.2g} ms")
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    text = f"{free / GIB:.0f} GiB free" if free >= GIB else f"{free / 2**20:.0f} MiB free"
    if free < _LITTLE_SPACE:
        yield warn(f"only {text}", "make room, keep fewer checkpoints, or use another file system")
    facts += [text, *([f"{room.f_favail:,} inodes free"] if room.f_files else [])]  # 0: no fixed number
    if room.f_files and room.f_favail < _FEW_INODES:
        yield warn(f"only {room.f_favail:,} inodes free", "remove files, or use another file system")
    yield ok("; ".join(facts))


def _seen_after_s(marker: Path) -> float | None:
    """Return how long until a file is there with its content; None if it does not come."""
    start = time.monotonic()
    while (after_s := time.monotonic() - start) < _VISIBLE_WITHIN_S:
        with suppress(OSError):
            os.scandir(marker.parent).close()  # makes NFS ask again
            if marker.stat().st_size:
                return after_s
        time.sleep(0.005)
    return None


def _latencies(marker: Path) -> dict[str, float]:
    """Return median times in s: of writing a small file as checkpoints are, and of asking for an unknown name."""
    own = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
    written = own.with_suffix(".done")

    def write() -> None:
        with own.open("wb") as file:
            file.write(b"." * 4096)
            file.flush()
            sync_file(file.fileno())
        own.rename(written)

    try:
        stat_s = _median_s(lambda: own.with_suffix(f".{uuid.uuid4().hex}").exists(), 50)
        return {"write + fsync + rename": _median_s(write, 10), "stat": stat_s}
    finally:
        own.unlink(missing_ok=True)
        written.unlink(missing_ok=True)


CHECKS = {"cores": cores, "all-reduce": all_reduce, "clocks": clocks}
