"""Checks of the folders that all processes should share.

As in `checks_together`, every function that takes the World is called on all ranks.
"""

import errno
import fcntl
import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from launch.doctor.checks import GIB
from launch.doctor.results import Finding, ranks_by_host, where

T = TypeVar("T")

_VISIBLE_WITHIN_S = 5.0
_SLOW_WRITE_S = 0.25
_SLOW_STAT_S = 0.01
_LITTLE_SPACE = 10 * GIB
_FEW_INODES = 10_000
_OWN_LOCK = "held"


class _Latency(NamedTuple):
    """Medians, in s."""

    write: float
    stat: float


def folder(path: Path, world: World, hosts: Sequence[str]) -> Iterator[Finding]:
    """Whether all nodes see what is written there, how quickly, under locks, and how much room there is."""
    path = Path(os.path.abspath(path))
    name = f".hrm-doctor-{collectives.run_on_rank0(lambda: uuid.uuid4().hex)}"
    marker = path / name
    error = collectives.gather_objects(_error(lambda: marker.write_text(name)) if world.is_main else "")[0]
    if error:
        yield Finding("FAIL", f"cannot be written on {hosts[0]}: {error}", "make it, or give another --dir")
        return
    try:
        yield from _folder_of(marker, world, hosts)
    finally:
        if world.is_main:
            marker.unlink(missing_ok=True)


def _folder_of(marker: Path, world: World, hosts: Sequence[str]) -> Iterator[Finding]:
    """The checks of a folder once rank 0 has written a file there."""
    seen_s = collectives.gather_objects(_seen_after_s(marker))
    seeing = [rank for rank, seconds in enumerate(seen_s) if seconds is not None]
    locks = _locks(marker, world, set(seeing))
    leaders = {ranks[0] for ranks in ranks_by_host(hosts).values()} & set(seeing)
    latencies = collectives.gather_objects(
        _tried(lambda: _latency(marker)) if world.rank in leaders else None
    )
    if not world.is_main:
        return
    facts = [_file_system(marker.parent)]
    blind = [rank for rank in range(world.world_size) if rank not in seeing]
    if blind:
        alone = (
            f"this folder is on {where(seeing, hosts)} alone"
            if 2 * len(seeing) <= len(hosts)
            else "not shared by all"
        )
        yield Finding("FAIL", f"{alone}: {where(blind, hosts)} did not see a new file of {hosts[0]} in "
                      f"{_VISIBLE_WITHIN_S:.0f} s", "use a folder on a file system that all nodes share")  # fmt: skip
    elif len(hosts) > 1:
        facts.append(f"all see a new file within {max(s for s in seen_s if s is not None) * 1e3:.1f} ms")
    yield from _lock_findings(locks, hosts, facts, "" if blind or len(hosts) == 1 else " between all")
    yield from _latency_findings(latencies, hosts, facts)
    yield from _room_findings(marker.parent, facts)
    yield Finding("ok", "; ".join(facts))


def _seen_after_s(marker: Path) -> float | None:
    """How long until a file is there with its content; None if it does not come."""
    start = time.monotonic()
    while True:
        after_s = time.monotonic() - start
        _tried(lambda: os.scandir(marker.parent).close())  # makes NFS ask again
        if _tried(marker.read_text) == marker.name:
            return after_s
        if after_s > _VISIBLE_WITHIN_S:
            return None
        time.sleep(0.005)


def _locks(marker: Path, world: World, seeing: set[int]) -> list[str]:
    """By rank, what came of asking for the lock that rank 0 holds: _OWN_LOCK, nothing or an error."""
    descriptors: list[int] = []  # any other that this process closed would let the lock go

    def hold() -> None:
        descriptors.append(os.open(marker, os.O_RDWR))
        fcntl.lockf(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)

    try:
        error = collectives.gather_objects(_error(hold) if world.is_main else "")[0]
        if error:
            return [error]
        return collectives.gather_objects(
            _outcome_of_lock(marker) if world.rank in seeing and not world.is_main else _OWN_LOCK
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _outcome_of_lock(marker: Path) -> str:
    try:
        with marker.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _OWN_LOCK if error.errno in (errno.EAGAIN, errno.EACCES) else str(error.strerror)
    return ""


def _lock_findings(
    outcomes: Sequence[str], hosts: Sequence[str], facts: list[str], between: str
) -> Iterator[Finding]:
    todo = "start only one run per folder, or mount it with locks (NFS: no `nolock`; Lustre: `flock`)"
    errors = {outcome for outcome in outcomes if outcome not in ("", _OWN_LOCK)}
    free = [rank for rank, outcome in enumerate(outcomes) if not outcome]
    if errors:
        yield Finding("warn", f"no file locks: {'; '.join(sorted(errors))}", todo)
    if free:
        yield Finding("warn", f"{where(free, hosts)} could lock a file that {hosts[0]} had locked", todo)
    if not errors and not free:
        facts.append(f"file locks work{between}")


def _latency(marker: Path, writes: int = 10, stats: int = 50) -> _Latency:
    """Of writing a small file as checkpoints do, and of asking for a name that the node cannot know."""
    own = marker.with_name(f"{marker.name}-{os.getpid()}-{uuid.uuid4().hex}")
    written = own.with_name(f"{own.name}-done")
    write_s: list[float] = []
    stat_s: list[float] = []
    try:
        for _ in range(writes):
            start = time.perf_counter()
            with own.open("wb") as file:
                file.write(b"." * 4096)
                file.flush()
                os.fsync(file.fileno())
            own.rename(written)
            write_s.append(time.perf_counter() - start)
        for i in range(stats):
            start = time.perf_counter()
            own.with_name(f"{own.name}-{i}").exists()
            stat_s.append(time.perf_counter() - start)
    finally:
        own.unlink(missing_ok=True)
        written.unlink(missing_ok=True)
    return _Latency(statistics.median(write_s), statistics.median(stat_s))


def _latency_findings(
    latencies: Sequence[_Latency | OSError | None], hosts: Sequence[str], facts: list[str]
) -> Iterator[Finding]:
    for rank, latency in enumerate(latencies):
        if isinstance(latency, OSError):
            yield Finding("FAIL", f"cannot be written on {hosts[rank]}: {latency.strerror}",
                          "give this user the right to write there on every node")  # fmt: skip
    by_rank = {rank: latency for rank, latency in enumerate(latencies) if isinstance(latency, _Latency)}
    if not by_rank:
        return
    for text, slow_s, seconds in (
        ("write + fsync + rename", _SLOW_WRITE_S, {rank: latency.write for rank, latency in by_rank.items()}),
        ("stat", _SLOW_STAT_S, {rank: latency.stat for rank, latency in by_rank.items()}),
    ):
        slowest = max(seconds, key=lambda rank: seconds[rank])
        fact = f"{text} {seconds[slowest] * 1e3:.2g} ms"
        if seconds[slowest] > slow_s:
            yield Finding("warn", f"slow: {fact} on {hosts[slowest]}",
                          "use a faster file system, or a larger checkpoint_interval")  # fmt: skip
        else:
            facts.append(fact)


def _room_findings(path: Path, facts: list[str]) -> Iterator[Finding]:
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    text = f"{free / GIB:.0f} GiB free" if free >= GIB else f"{free / 2**20:.0f} MiB free"
    if free < _LITTLE_SPACE:
        yield Finding("warn", f"only {text}", "make room, keep fewer checkpoints, or use another file system")
    else:
        facts.append(text)
    if room.f_files:  # some file systems have no fixed number
        if room.f_favail < _FEW_INODES:
            yield Finding(
                "warn", f"only {room.f_favail:,} inodes free", "remove files, or use another file system"
            )
        else:
            facts.append(f"{room.f_favail:,} inodes free")


def _file_system(path: Path) -> str:
    """Type and source of the file system that a folder is on."""
    best = ("", "unknown", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        source, mounted, kind = (field.replace("\\040", " ") for field in line.split(" ")[:3])
        # The last of several at one place hides the others.
        if path.resolve().is_relative_to(mounted) and len(mounted) >= len(best[0]):
            best = (mounted, kind, source)
    return f"{best[1]} ({best[2]} on {best[0]})"


# What may fail on one rank


def _tried(function: Callable[[], T]) -> T | OSError:
    try:
        return function()
    except OSError as error:
        return error


def _error(function: Callable[[], object]) -> str:
    outcome = _tried(function)
    return f"{outcome.strerror or outcome}" if isinstance(outcome, OSError) else ""
