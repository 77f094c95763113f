"""The check of a folder that all processes should share.

As those in `together`, it is called on all ranks, and all exchange the same messages.
"""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from data_pipeline.base import locks
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from launch.doctor.checks import GIB
from launch.doctor.results import Results, fail, ok, warn, where
from launch.jobs.storage import mount_of

_VISIBLE_WITHIN_S = 5.0
_SLOW_S = {"write + fsync + rename": 0.25, "stat": 0.01}
_LITTLE_SPACE, _FEW_INODES = 10 * GIB, 10_000
_LOCKS_TODO = "start only one run per folder, or mount it with locks (NFS: no `nolock`; Lustre: `flock`)"


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
                if hosts.index(hosts[world.rank]) == world.rank:  # the first process of its host
                    # The names are new to the node, so it must ask for them.
                    median_s["write + fsync + rename"] = _median_s(_write, marker, 10)
                    median_s["stat"] = _median_s(Path.exists, marker, 50)
            except OSError as error:
                yield fail(f"cannot be written: {error.strerror}", "give this user the right to write there")
        views = collectives.gather_objects((sees_lock, median_s))
    for what, seconds in median_s.items():
        if seconds > _SLOW_S[what]:
            todo = "use a faster file system, or a larger checkpoint_interval"
            yield warn(f"slow: {what} {seconds * 1e3:.2g} ms", todo)
    if not world.is_main:
        return
    blind = [rank for rank, seconds in enumerate(seen_s) if seconds is None]
    mount = mount_of(path.resolve())
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
    yield from _room(path, facts)
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


def _median_s(function: Callable[[Path], object], marker: Path, times: int) -> float:
    """Return the median time in s that a function takes for a new file beside the marker, which goes again."""
    seconds: list[float] = []
    for _ in range(times):
        path = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
        try:
            start = time.perf_counter()
            function(path)
            seconds.append(time.perf_counter() - start)
        finally:
            for leftover in (path, path.with_suffix(".done")):
                leftover.unlink(missing_ok=True)
    return statistics.median(seconds)


def _write(path: Path) -> None:
    """Write a small file as checkpoints are written."""
    with path.open("wb") as file:
        file.write(b"." * 4096)
        file.flush()
        os.fsync(file.fileno())
    path.rename(path.with_suffix(".done"))


def _room(path: Path, facts: list[str]) -> Results:
    """Yield what room is lacking, and add to the facts what is there."""
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    text = f"{free / GIB:.0f} GiB free" if free >= GIB else f"{free / 2**20:.0f} MiB free"
    if free < _LITTLE_SPACE:
        yield warn(f"only {text}", "make room, keep fewer checkpoints, or use another file system")
    else:
        facts.append(text)
    if room.f_files and room.f_favail < _FEW_INODES:  # some file systems have no fixed number
        yield warn(f"only {room.f_favail:,} inodes free", "remove files, or use another file system")
    elif room.f_files:
        facts.append(f"{room.f_favail:,} inodes free")
