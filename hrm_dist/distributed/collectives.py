"""Reductions, gathers and decisions of all ranks, and errors that all of them raise.

A process alone forms no group; every function here is then the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.base.errors import InputError, last_words
from hrm_dist.config import ConfigError
from hrm_dist.distributed import heartbeat

T = TypeVar("T")


def assert_same_on_all_ranks(facts: Callable[[], Mapping[str, object]]) -> None:
    """Raise ConfigError on all ranks if facts about this run, by key, differ between ranks or are bad on any."""
    try:
        own: Mapping[str, str] | str = {key: str(value) for key, value in facts().items()}
    except InputError as error:
        own = str(error)
    by_rank = gather_objects(own)
    by_error = _ranks_by([facts if isinstance(facts, str) else "" for facts in by_rank])
    problems = [
        error if len(by_error) == 1 else f"{heartbeat.ranks_text(ranks)}: {error}"
        for error, ranks in by_error.items()
        if error
    ]
    problems = problems or _differences([facts for facts in by_rank if not isinstance(facts, str)])
    if problems:
        raise _on_all_ranks(ConfigError("\n".join(problems)))


def _differences(by_rank: Sequence[Mapping[str, str]]) -> list[str]:
    problems: list[str] = []
    for key in dict.fromkeys(key for facts in by_rank for key in facts):
        groups = _ranks_by([facts.get(key, "missing") for facts in by_rank])
        if len(groups) > 1:
            values = " and ".join(
                f"{value} on {heartbeat.ranks_text(ranks)}" for value, ranks in groups.items()
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
    """Return whether this is rank 0, which writes what is written once."""
    return rank() == 0


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order; every rank has the same number."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def exchange_blocks(rows: Tensor) -> Tensor:
    """Send block r of world_size equal blocks of rows to rank r; return the blocks received, in rank order."""
    if world_size() == 1:
        return rows
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, rows.contiguous())
    return received


def max_over_ranks(value: int) -> int:
    """Return the largest of the ranks' values, on every rank, without waiting for a device."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def all_reduce_max(value: Tensor) -> Tensor:
    """Return the largest of the ranks' values (on the device), on every rank, without waiting for it."""
    if world_size() == 1:
        return value
    largest = value.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of the ranks' tensors, on every rank; the argument is left as it is."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def all_reduce_and(flag: Tensor) -> Tensor:
    """Return whether a flag (bool, on the device) is set on every rank, without waiting for it."""
    if world_size() == 1:
        return flag
    votes = flag.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes.to(torch.bool)


def all_true(condition: bool) -> bool:
    """Return whether a condition holds on every rank."""
    return all(gather_objects(condition))


def any_true(condition: bool) -> bool:
    """Return whether a condition holds on some rank."""
    return max_over_ranks(int(condition)) > 0


def background_group(timeout_s: float) -> dist.ProcessGroup | None:
    """Form a second group of all ranks, on the CPU, for a background thread; call on every rank."""
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)  # this rank is a member
    return group


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return the (picklable) values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def gather_to_rank0(value: T) -> list[T]:
    """Return the (picklable) values of all ranks, in rank order, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size() if is_main() else []
    dist.gather_object(value, values or None)
    return values


def run_on_all_ranks(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run a function on every rank and return all results; if it fails on any, raise that error on all."""
    outcomes = gather_objects(_outcome(function), group)
    for _, error in outcomes:
        if error is not None:
            raise _on_all_ranks(error)
    return [result for result, _ in outcomes]  # type: ignore[misc]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def run_on_rank0(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run a function on rank 0 alone; return its result, or raise its error, on all."""
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if is_main():
        outcome = [_outcome(function)]
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0, group=group)
    result, error = outcome[0]
    if error is not None:
        raise _on_all_ranks(error)
    return result  # type: ignore[return-value]


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:  # every kind: other processes wait for it
        return None, error


def _on_all_ranks(error: Exception) -> Exception:
    """Mark an error that is raised on all ranks alike."""
    error.on_all_ranks = True  # type: ignore[attr-defined]
    return error


def is_reported_by_rank0(error: Exception) -> bool:
    """Return whether all ranks have this error, and rank 0, which is another process, reports it."""
    return getattr(error, "on_all_ranks", False) and not is_main()


def log_once(log: Callable[[str], None], text: str) -> None:
    """Log a line, on rank 0 alone."""
    if is_main():
        log(text)


def announce_end(text: str) -> None:
    """Say why all ranks end early, on rank 0 alone."""
    last_words(text, shown=is_main())
