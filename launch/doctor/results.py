"""What a check yields, and the lines that the results of all processes come to."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

from data_pipeline.base.errors import InputError

Level = Literal["ok", "warn", "FAIL"]


class CheckResult(NamedTuple):
    """Something that is as it should be, or not."""

    level: Level
    what: str
    todo: str = ""
    check: str = ""  # name of the check that yielded it, once it is reported

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.check}: {self.what}" + (f"  -> {self.todo}" if self.todo else "")


ok = partial(CheckResult, "ok")
warn = partial(CheckResult, "warn")
fail = partial(CheckResult, "FAIL")


class MustMatch(NamedTuple):
    """Something that must be the same in all processes."""

    key: str
    value: str
    level: Level  # of the result that it is not
    todo: str


Result = CheckResult | MustMatch
Results = Iterator[Result]


def run(check: Callable[[], Results]) -> list[Result]:
    """Return what a check yields; an error of its own is a failure, not an end."""
    results: list[Result] = []
    try:
        results += check()
    except Exception as error:
        results.append(failure(error))
    return results


def failure(error: BaseException) -> CheckResult:
    """Return that something failed: in the words of a message for the user, or as an error of the check itself."""
    if isinstance(error, InputError | SystemExit):
        return fail(str(error).removeprefix("error: "))
    [frame, *_] = traceback.extract_tb(error.__traceback__)[::-1] or [None]
    where = f" (line {frame.lineno} of {frame.filename})" if frame else ""
    [words, *_] = str(error).strip().splitlines() or [""]
    return fail(f"the check itself failed: {type(error).__name__}: {words}{where}")


def merged(check: str, by_rank: Sequence[Sequence[Result]], hosts: Sequence[str]) -> list[CheckResult]:
    """Return what is ok on rank 0, and what is not on any, with its hosts unless all have it."""
    ranks_of: dict[Result, list[int]] = {}
    for rank, results in enumerate(by_rank):
        for result in dict.fromkeys(results):
            ranks_of.setdefault(result, []).append(rank)
    reporting = [rank for rank, results in enumerate(by_rank) if results]
    good, bad = list[CheckResult](), list[CheckResult]()
    values: dict[str, list[MustMatch]] = {}
    for result, ranks in ranks_of.items():
        if isinstance(result, MustMatch):
            values.setdefault(result.key, []).append(result)
        elif result.level != "ok":
            suffix = "" if ranks == reporting else f" (on {where(ranks, hosts)})"
            bad.append(result._replace(what=result.what + suffix, check=check))
        elif 0 in ranks:
            good.append(result._replace(check=check))
    for key, (first, *others) in values.items():
        if others:
            text = " and ".join(f"{one.value} on {where(ranks_of[one], hosts)}" for one in (first, *others))
            bad.append(CheckResult(first.level, f"{key} is {text}", first.todo, check))
    return [*good, *bad]


def where(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return the hosts of some ranks, with the ranks where a host has others too."""
    names: list[str] = []
    for host in dict.fromkeys(hosts[rank] for rank in ranks):
        own = [rank for rank in range(len(hosts)) if hosts[rank] == host]
        wanted = [rank for rank in own if rank in ranks]
        names.append(host if own == wanted else f"{host} (ranks {', '.join(map(str, wanted))})")
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
