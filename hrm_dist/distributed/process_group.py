"""The only place that knows how many processes train together and which one this is.

`launched` reads it from the environment, and `liveness` watches over the processes; both are used here alone.
Alone, a process forms no group, and every function here is the identity.
"""

import errno
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.base.errors import EXIT_FAILED, InputError
from hrm_dist.config import ConfigError
from hrm_dist.distributed import heartbeat as liveness
from hrm_dist.distributed import rendezvous as meeting
from hrm_dist.distributed.launch_env import Launched, launched

T = TypeVar("T")

logger = logging.getLogger(__name__)

_watch: liveness.Watch | None = None  # while there is a group of several processes


class World(NamedTuple):
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def process_group(device: str, even_alone: bool = False, timeout_s: float = 1800.0) -> Iterator[World]:
    """Join the other processes; `device` is `auto`, `cpu` or `cuda`.

    A single process forms no group, unless `even_alone`: some engines ask for one. If another process is gone for
    min(timeout_s, 60) seconds, or a collective waits for timeout_s, this one ends with exit code 1.
    """
    launch = launched()
    if launch.warning:
        logger.warning(launch.warning)
    torch_device = _device(device, launch)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    # gloo serves the CPU tensors of both kinds of run, so that control messages need no device sync.
    backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
    world = World(launch.rank, launch.world_size, torch_device)
    if launch.world_size > 1:
        with _group_of_several(launch, backend, timeout_s):
            yield world
        return
    if even_alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(device: str, launch: Launched) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    index = 0 if launch.by_srun and num_gpus == 1 else launch.local_rank  # srun can give each task its own
    if index >= num_gpus:
        raise ConfigError(
            f"device={device}: local rank {launch.local_rank} has no GPU, this node has {num_gpus}; "
            "start one process per GPU, or set device=cpu."
        )
    return torch.device("cuda", index)


@contextmanager
def _group_of_several(launch: Launched, backend: str, timeout_s: float) -> Iterator[None]:
    global _watch
    timeout = timedelta(seconds=timeout_s)
    store, watch = _meet(launch, timeout_s)
    _watch = watch
    try:
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
        )
        yield
    except BaseException as error:
        watch.explain(error)
        raise
    finally:
        _watch = None
        # DDP's wrapper must not be the last to hold the group: it ends the group's threads without letting them have
        # Python's lock, for which one may still wait, to let go of the tensors of a gather.
        gc.collect()
        try:
            if dist.is_initialized():
                dist.destroy_process_group()
        finally:
            watch.close()


def _meet(launch: Launched, timeout_s: float) -> tuple[dist.Store, liveness.Watch]:
    """The store that all processes share, and what watches over them; waits until all are there."""
    try:
        with _in_time(launch, timeout_s):
            store = _store(launch, timeout_s)
        return store, liveness.Watch(
            store.clone(),  # pyright: ignore[reportAttributeAccessIssue]
            launch.rank,
            launch.world_size,
            # torchrun can hold the store itself, and tells torch so by this variable.
            rank_0_hosts=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True),
            silence_s=min(timeout_s, liveness.SILENCE_S),
        )
    except (dist.DistError, OSError) as error:
        sys.exit(f"error: {_not_met(launch, timeout_s, error)}")


@contextmanager
def _in_time(launch: Launched, timeout_s: float) -> Iterator[None]:
    """End the process if this takes too long: torch has no limit for a listener that is no store and never answers."""
    reason = _not_met(launch, timeout_s, TimeoutError("what listens there does not answer"))
    # torch's own limit comes first, where it has one.
    alarm = threading.Timer(timeout_s + 5.0, liveness.end_process, [liveness.Verdict(reason, EXIT_FAILED)])
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _store(launch: Launched, timeout_s: float) -> dist.Store:
    """Raises DistError or, where rank 0 tells the port, OSError."""
    timeout = timedelta(seconds=timeout_s)
    # torchrun and accelerate launch set them themselves. rendezvous looks nowhere else.
    os.environ.update(MASTER_ADDR=launch.master_addr, MASTER_PORT=str(launch.master_port))
    if launch.master_port:
        url = f"env://?rank={launch.rank}&world_size={launch.world_size}"
        return next(dist.rendezvous(url, timeout=timeout))[0]
    if launch.rank:
        port = meeting.ask(launch.meeting_name, timeout_s)
        store = dist.TCPStore(launch.master_addr, port, timeout=timeout)
    else:
        with meeting.listen(launch.meeting_name) as listener:
            store = dist.TCPStore(
                launch.master_addr, 0, is_master=True, wait_for_workers=False, timeout=timeout
            )
            meeting.tell(listener, store.port, launch.world_size - 1, timeout_s)
    os.environ["MASTER_PORT"] = str(store.port)
    return store


def _not_met(launch: Launched, timeout_s: float, error: Exception) -> str:
    """Why a process has not met the others, and what to do."""
    reason = str(error).splitlines()[0]
    if launch.rank == 0 and "EADDRINUSE" in reason:
        return (
            f"rank 0 cannot listen at MASTER_PORT={launch.master_port}: something else on {socket.gethostname()} has "
            "this port; set MASTER_PORT to a free one, the same for all processes."
        )
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"another process that runs as rank 0 of {launch.meeting_name} waits for its others on this machine; wait "
            "for it or stop it, or set MASTER_PORT to a free port, the same for all processes of this run."
        )
    port = f"MASTER_PORT={launch.master_port}" if launch.master_port else "a port that rank 0 tells"
    return (
        f"rank {launch.rank} of {launch.world_size} has not met the others at MASTER_ADDR={launch.master_addr} {port} "
        f"within timeout_s={timeout_s:g}: {reason}. Look for the first error of the others; start all of them "
        "together, with the same address and a port that is free."
    )


def report_step(step: int) -> None:
    """Note the step that this process has reached, for messages about processes that are gone."""
    if _watch is not None:
        _watch.step = step


def refuse_differences(facts: Callable[[], Mapping[str, object]]) -> None:
    """Raise ConfigError on all ranks if facts about this run, by key, differ between ranks or are bad on any."""
    try:
        own: Mapping[str, str] | str = {key: str(value) for key, value in facts().items()}
    except InputError as error:
        own = str(error)
    by_rank = gather_objects(own)
    problems = _errors([facts if isinstance(facts, str) else "" for facts in by_rank])
    problems = problems or _differences([facts for facts in by_rank if not isinstance(facts, str)])
    if problems:
        raise _agreed(ConfigError("\n".join(problems)))


def _errors(by_rank: Sequence[str]) -> list[str]:
    """Errors of ranks (empty: none), with their ranks unless all have the same."""
    groups = _ranks_by(by_rank)
    if len(groups) == 1:
        return [error for error in groups if error]
    return [f"{liveness.ranks_text(ranks)}: {error}" for error, ranks in groups.items() if error]


def _differences(by_rank: Sequence[Mapping[str, str]]) -> list[str]:
    problems: list[str] = []
    for key in dict.fromkeys(key for facts in by_rank for key in facts):
        groups = _ranks_by([facts.get(key, "missing") for facts in by_rank])
        if len(groups) > 1:
            values = " and ".join(
                f"{value} on {liveness.ranks_text(ranks)}" for value, ranks in groups.items()
            )
            problems.append(
                f"{key} is {values}; start every process with the same configuration, dataset and packages."
            )
    return problems


def _ranks_by(by_rank: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for r, value in enumerate(by_rank):
        groups.setdefault(value, []).append(r)
    return groups


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def of_main(items: dict[str, T]) -> dict[str, T]:
    """What one process does for all: everything on the main one, nothing on the others."""
    return items if is_main() else {}


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, in rank order; every rank has equally many."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def exchange_blocks(rows: Tensor) -> Tensor:
    """Send block r of world_size equal blocks of rows to rank r; gives the blocks received, in rank order."""
    if world_size() == 1:
        return rows
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, rows.contiguous())
    return received


def max_over_ranks(value: int) -> int:
    """The largest of the ranks' values, on every rank; exchanged between hosts, so no device is waited for."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of the ranks' tensors, on every rank; the argument is left as it is."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def part_of_sum(total: Tensor) -> Tensor:
    """What this rank holds of a sum over ranks: all of it on the main process, nothing on the others."""
    return total if is_main() else torch.zeros_like(total)


def all_ranks(flag: Tensor) -> Tensor:
    """Whether a flag (bool, on the device) is set on every rank, without waiting for it."""
    if world_size() == 1:
        return flag
    votes = flag.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes.to(torch.bool)


def all_agree(condition: bool) -> bool:
    """Whether a condition holds on every rank."""
    return all(gather_objects(condition))


def any_rank(condition: bool) -> bool:
    """Whether a condition holds on some rank."""
    return max_over_ranks(int(condition)) > 0


def background_group(timeout_s: float) -> dist.ProcessGroup | None:
    """A second group of all ranks, on the CPU, for a thread beside the main one; call on every rank."""
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)  # this rank is a member
    return group


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The (picklable) values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def gather_on_main(value: T) -> list[T]:
    """The (picklable) values of all ranks, in rank order, on the main one; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size() if is_main() else []
    dist.gather_object(value, values or None)
    return values


def on_all(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run a function on every rank and give all results; if it fails on any, raise that error on all."""
    outcomes = gather_objects(_outcome(function), group)
    for _, error in outcomes:
        if error is not None:
            raise _agreed(error)
    return [result for result, _ in outcomes]  # type: ignore[misc]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def on_main(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run a function on the main process alone and give its result, or raise its error, on all."""
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if is_main():
        outcome = [_outcome(function)]
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0, group=group)
    result, error = outcome[0]
    if error is not None:
        raise _agreed(error)
    return result  # type: ignore[return-value]


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:  # every kind: other processes wait for it
        return None, error


def _agreed(error: Exception) -> Exception:
    """Mark an error that is raised on all ranks alike."""
    error.on_all_ranks = True  # type: ignore[attr-defined]
    return error


def is_told_by_main(error: Exception) -> bool:
    """Whether all ranks have this error and another one, the main one, says it."""
    return getattr(error, "on_all_ranks", False) and not is_main()


def log_once(log: Callable[[str], None], text: str) -> None:
    """Log a line, once for all processes."""
    if is_main():
        log(text)


def announce(text: str) -> None:
    """Print a line on stderr, once for all processes."""
    if is_main():
        print(text, file=sys.stderr)
