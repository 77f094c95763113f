"""The check of a folder that all processes should share.

As those in `together`, it is called on all ranks, and all exchange the same messages.
"""

import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base import locks
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from launch.doctor.checks import GIB
from launch.doctor.results import CheckResult, ranks_by_host, where
from launch.jobs.storage import mount_of

_VISIBLE_WITHIN_S = 5.0
_SLOW_WRITE_S, _SLOW_STAT_S = 0.25, 0.01
_LITTLE_SPACE = 10 * GIB
_FEW_INODES = 10_000


class _View(NamedTuple):
    """What a process sees of the folder."""

    seen_s: float | None
    """How long until the file of rank 0 was there; None if it did not come."""
    sees_lock: bool = False
    """Whether the lock that rank 0 holds on that file is seen."""
    write_s: float | None = None
    """Median time to write a small file as checkpoints are; None if another process of the node measures it."""
    stat_s: float | None = None
    """Median time to ask for a name that the node cannot know."""
    error: str = ""
    """Why nothing can be written."""


class _Fact(NamedTuple):
    """Something measured; with something to do where it is bad."""

    what: str
    todo: str = ""


def folder(path: Path, world: World, hosts: Sequence[str]) -> Iterator[CheckResult]:
    """Check whether all nodes see what is written there, how quickly, under locks, and how much room there is."""
    path = Path(os.path.abspath(path))
    marker = path / f".hrm-doctor-{collectives.run_on_rank0(lambda: uuid.uuid4().hex)}"
    with ExitStack() as stack:
        try:
            has_locks = collectives.run_on_rank0(lambda: stack.enter_context(locks.hold(marker)))
        except OSError as error:
            what = f"cannot be written on {hosts[0]}: {error.strerror}"
            yield CheckResult("FAIL", what, "make it, or give another --dir")
            return
        is_leader = world.rank in {ranks[0] for ranks in ranks_by_host(hosts).values()}
        views = collectives.gather_objects(_view(marker, world, is_leader))
    if not world.is_main:
        return
    seeing = [rank for rank, view in enumerate(views) if view.seen_s is not None]
    blind = [rank for rank in range(len(views)) if rank not in seeing]
    facts = [_file_system(path)]
    if blind:
        few = 2 * len(seeing) <= len(hosts)
        alone = f"this folder is on {where(seeing, hosts)} alone" if few else "not shared by all"
        what = f"{where(blind, hosts)} did not see a new file of {hosts[0]} in {_VISIBLE_WITHIN_S:.0f} s"
        yield CheckResult("FAIL", f"{alone}: {what}", "use a folder on a file system that all nodes share")
    elif len(hosts) > 1:
        latest_s = max(view.seen_s or 0.0 for view in views)
        facts.append(_Fact(f"all see a new file within {latest_s * 1e3:.1f} ms"))
    facts.append(
        _locks(has_locks, [rank for rank in seeing if not views[rank].sees_lock], bool(blind), hosts)
    )
    for error, host in {(view.error, host) for view, host in zip(views, hosts, strict=True) if view.error}:
        yield CheckResult(
            "FAIL", f"cannot be written on {host}: {error}", "give this user the right to write there"
        )
    facts += [*_latencies(views, hosts), *_room(path)]
    for fact in facts:
        if fact.todo:
            yield CheckResult("warn", *fact)
    yield CheckResult("ok", "; ".join(fact.what for fact in facts if not fact.todo))


def _view(marker: Path, world: World, is_leader: bool) -> _View:
    if world.is_main:  # it would lose its lock if it opened the file again
        view = _View(0.0, True)
    else:
        view = _View(_seen_after_s(marker))
        if view.seen_s is None:
            return view
        with suppress(OSError):
            view = view._replace(sees_lock=locks.holder(marker) is not None)
    if not is_leader:
        return view
    try:
        return view._replace(write_s=_median_s(_write, marker, 10), stat_s=_median_s(Path.exists, marker, 50))
    except OSError as error:
        return view._replace(error=error.strerror)


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
    """Return the median time in s that a function takes for a new file beside the marker."""
    seconds: list[float] = []
    for _ in range(times):
        path = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
        start = time.perf_counter()
        function(path)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _write(path: Path) -> None:
    """Write a small file as checkpoints are written; it goes again."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(b"." * 4096)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _locks(has_locks: bool, unlocked: Sequence[int], is_partial: bool, hosts: Sequence[str]) -> _Fact:
    todo = "start only one run per folder, or mount it with locks (NFS: no `nolock`; Lustre: `flock`)"
    if not has_locks:
        return _Fact("no file locks", todo)
    if unlocked:
        return _Fact(f"{where(unlocked, hosts)} could lock a file that {hosts[0]} had locked", todo)
    return _Fact(f"file locks work{'' if is_partial or len(hosts) == 1 else ' between all'}")


def _latencies(views: Sequence[_View], hosts: Sequence[str]) -> Iterator[_Fact]:
    writes = [
        (view.write_s, host) for view, host in zip(views, hosts, strict=True) if view.write_s is not None
    ]
    stats = [(view.stat_s, host) for view, host in zip(views, hosts, strict=True) if view.stat_s is not None]
    for what, slow_s, measured in (
        ("write + fsync + rename", _SLOW_WRITE_S, writes),
        ("stat", _SLOW_STAT_S, stats),
    ):
        if measured:
            seconds, host = max(measured)
            fact = f"{what} {seconds * 1e3:.2g} ms"
            if seconds > slow_s:
                todo = "use a faster file system, or a larger checkpoint_interval"
                yield _Fact(f"slow: {fact} on {host}", todo)
            else:
                yield _Fact(fact)


def _room(path: Path) -> Iterator[_Fact]:
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    text = f"{free / GIB:.0f} GiB free" if free >= GIB else f"{free / 2**20:.0f} MiB free"
    todo = "make room, keep fewer checkpoints, or use another file system"
    yield _Fact(f"only {text}", todo) if free < _LITTLE_SPACE else _Fact(text)
    if room.f_files:  # some file systems have no fixed number
        text = f"{room.f_favail:,} inodes free"
        yield _Fact(f"only {text}", "remove files") if room.f_favail < _FEW_INODES else _Fact(text)


def _file_system(path: Path) -> _Fact:
    mount = mount_of(path.resolve())
    return _Fact(f"{mount.kind} ({mount.source} on {mount.path})")
