"""What the doctor's checks find, and the lines that all processes' findings come to."""

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "FAIL"]


class Finding(NamedTuple):
    """Something that is as it should be, or not."""

    level: Level
    what: str
    todo: str = ""


class Same(NamedTuple):
    """Something that must be the same in all processes."""

    key: str
    value: str
    level: Level
    """Of the finding that it is not."""
    todo: str


class Line(NamedTuple):
    """A finding as it is reported."""

    check: str
    level: Level
    what: str
    todo: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.check}: {self.what}" + (f"  -> {self.todo}" if self.todo else "")


def run(check: Callable[[], Iterable[Finding | Same]]) -> list[Finding | Same]:
    """What a check finds; an error of its own is a failure, not an end."""
    findings: list[Finding | Same] = []
    try:
        findings.extend(check())
    except Exception as error:
        findings.append(failure(error))
    return findings


def failure(error: BaseException) -> Finding:
    """That a check could not be made."""
    [place] = traceback.extract_tb(error.__traceback__)[-1:] or [None]
    where = f" (line {place.lineno} of {place.filename})" if place else ""
    words = str(error).strip().splitlines() or [""]
    return Finding("FAIL", f"the check itself failed: {type(error).__name__}: {words[0]}{where}")


def merged(check: str, by_rank: Sequence[Sequence[Finding | Same]], hosts: Sequence[str]) -> list[Line]:
    """The lines of a check: what is good on rank 0, and what is not on any, with its hosts unless all have it."""
    lines: list[Line] = []
    for finding in by_rank[0]:
        if isinstance(finding, Finding) and finding.level == "ok":
            lines.append(Line(check, *finding))
    ranks_of: dict[Finding, list[int]] = {}
    values: dict[str, dict[str, list[int]]] = {}
    facts: dict[str, Same] = {}
    for rank, findings in enumerate(by_rank):
        for finding in dict.fromkeys(findings):
            if isinstance(finding, Same):
                facts.setdefault(finding.key, finding)
                values.setdefault(finding.key, {}).setdefault(finding.value, []).append(rank)
            elif finding.level != "ok":
                ranks_of.setdefault(finding, []).append(rank)
    reporting = [rank for rank, findings in enumerate(by_rank) if findings]
    for (level, what, todo), ranks in ranks_of.items():
        place = "" if ranks == reporting else f" (on {where(ranks, hosts)})"
        lines.append(Line(check, level, what + place, todo))
    for key, ranks_by_value in values.items():
        if len(ranks_by_value) > 1:
            text = " and ".join(
                f"{value} on {where(ranks, hosts)}" for value, ranks in ranks_by_value.items()
            )
            lines.append(Line(check, facts[key].level, f"{key} is {text}", facts[key].todo))
    return lines


def where(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """The hosts of some ranks, with the ranks where a host has others too."""
    parts = [
        host if own == wanted else f"{host} (ranks {', '.join(map(str, wanted))})"
        for host, own in ranks_by_host(hosts).items()
        if (wanted := [rank for rank in own if rank in ranks])
    ]
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


def ranks_by_host(hosts: Sequence[str]) -> Mapping[str, list[int]]:
    """Ranks of every host, in rank order."""
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    return ranks
