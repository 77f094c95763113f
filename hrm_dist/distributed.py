"""The only place that knows how many processes train together and which one this is.

Started by torchrun, `accelerate launch` or srun, every process has RANK, WORLD_SIZE and LOCAL_RANK; alone,
it has none of them and every function here is the identity.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hrm_dist.config import ConfigError

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_TIMEOUT = timedelta(minutes=30)


class World(NamedTuple):
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


class Launched(NamedTuple):
    """What the launcher said in the environment."""

    rank: int
    world_size: int
    local_rank: int


def launched() -> Launched:
    """RANK, WORLD_SIZE and LOCAL_RANK from the environment, all of them or none. Raises ConfigError."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = {name: os.environ[name] for name in names if name in os.environ}
    if not values:
        return Launched(0, 1, 0)
    missing = [name for name in names if name not in values]
    if missing or not all(value.isdecimal() for value in values.values()):
        raise ConfigError(
            f"the environment has {values} but not {missing or 'numbers'}: a launcher sets RANK, WORLD_SIZE and "
            "LOCAL_RANK together; start through torchrun or accelerate launch, or unset them to train alone."
        )
    rank, world_size, local_rank = (int(values[name]) for name in names)
    if rank >= world_size:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world_size}; both come from the launcher.")
    return Launched(rank, world_size, local_rank)


@contextmanager
def process_group(device: str, even_alone: bool = False) -> Iterator[World]:
    """Join the other processes; `device` is `auto`, `cpu` or `cuda`.

    A single process forms no group, unless `even_alone`: some engines ask for one.
    """
    rank, world_size, local_rank = launched()
    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device}: local rank {local_rank} has no GPU, this node has {torch.cuda.device_count()}; "
            "start one process per GPU, or set device=cpu."
        )
    torch_device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(torch_device)
    # gloo serves the CPU tensors of both kinds of run, so that control messages need no device sync.
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    if world_size > 1:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    elif even_alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(rank, world_size, torch_device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


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


def all_ranks(flag: Tensor) -> Tensor:
    """Whether a flag (bool, on the device) is set on every rank, without waiting for it."""
    if world_size() == 1:
        return flag
    votes = flag.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes.to(torch.bool)


def background_group() -> dist.ProcessGroup | None:
    """A second group of all ranks, on the CPU, for a thread beside the main one; call on every rank."""
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # this rank is a member
    return group


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The (picklable) values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def on_all(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run a function on every rank and give all results; if it fails on any, raise that error on all."""
    outcomes = gather_objects(_outcome(function), group)
    for _, error in outcomes:
        if error is not None:
            raise error
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
        raise error
    return result  # type: ignore[return-value]


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:  # every kind: other processes wait for it
        return None, error


class StopRequest:
    """Signals that ask to stop, from its creation to `close`, and the ranks' agreement on when.

    After a signal to any rank all stop after the same step. The vote of a step is an all-reduce on the CPU
    whose result is read one step later, so that nobody waits.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._interrupts = False
        self._vote = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None
        self._previous = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if self._interrupts:
            raise KeyboardInterrupt

    def completes(self, function: Callable[[], object]) -> bool:
        """Run a function that a signal may break off at any point; gives False if one did, or came before."""
        try:
            self._interrupts = True
            if self.signal_name is None:
                function()
            return self.signal_name is None
        except KeyboardInterrupt:
            return False
        finally:
            self._interrupts = False

    def agreed(self) -> bool:
        """Whether to stop now; call once per step, on every rank."""
        if world_size() == 1:
            return self.signal_name is not None
        stop = False
        if self._pending is not None:
            self._pending.wait()
            stop = bool(self._vote.item())
        self._vote = torch.tensor([self.signal_name is not None], dtype=torch.int32)
        self._pending = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, async_op=True)
        return stop

    def finish_vote(self) -> None:
        """Wait for the vote under way, so that no rank is left in it; call before ranks go apart."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
