"""Network settings of the environment that nothing here answers to: a card or a host that does not exist.

gloo and NCCL read the names of cards themselves, each in its own way: gloo wants names, NCCL beginnings of names, all
but these after a `^`, whole names after a `=`.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import psutil

from hrm_dist.config import ConfigError
from hrm_dist.distributed.launch_env import DistEnv


class Problem(NamedTuple):
    """A setting that cannot work on this machine."""

    what: str
    remedy: str


def check_network(launch: DistEnv, *, nccl: bool) -> None:
    """Raise ConfigError if processes cannot meet or talk with the settings of the environment; nccl: it is in use."""
    problems = list(network_problems(os.environ, launch, nccl=nccl))
    if problems:
        raise ConfigError("\n".join(f"{what}; {remedy}." for what, remedy in problems))


def network_problems(environment: Mapping[str, str], launch: DistEnv, *, nccl: bool) -> Iterator[Problem]:
    """Yield the settings that cannot work here, in an environment that says which process this is."""
    cards, host = _cards(), socket.gethostname()
    shown = f"; {host} has {', '.join(cards) or 'none'}"
    gloo = environment.get("GLOO_SOCKET_IFNAME", "")
    unknown = [name for name in gloo.removesuffix(",").split(",") if name not in cards]
    if gloo and unknown:
        what = f"GLOO_SOCKET_IFNAME={gloo}: no network card with an address is named {unknown[0]!r}{shown}"
        yield Problem(what, "unset it or give names as they are, with commas between, without ^, = or spaces")
    of_nccl = environment.get("NCCL_SOCKET_IFNAME", "")
    if nccl and len(of_nccl) > 1 and not any(_nccl_uses(of_nccl, card) for card in cards):
        what = f"NCCL_SOCKET_IFNAME={of_nccl}: this leaves no network card with an address{shown}"
        yield Problem(what, "unset it or give the beginnings of names, =NAME for a whole one")
    if launch.world_size > 1:
        yield from _problem_of_address(environment, launch.master_addr, host)


def _cards() -> list[str]:
    """Return the names of the network cards that have an address."""
    return [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.family in (socket.AF_INET, socket.AF_INET6) for address in addresses)
    ]


def _nccl_uses(setting: str, card: str) -> bool:
    text = setting.removeprefix("^")
    names = [name.partition(":")[0] for name in text.removeprefix("=").split(",") if name]
    is_named = card in names if text.startswith("=") else card.startswith(tuple(names))
    return is_named != setting.startswith("^")


def _problem_of_address(environment: Mapping[str, str], addr: str, host: str) -> Iterator[Problem]:
    try:
        socket.getaddrinfo(addr, None)
    except (OSError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "it is no name"
        given = "MASTER_ADDR" if environment.get("MASTER_ADDR") else "the first host of SLURM_STEP_NODELIST"
        what = f"{given}={addr} cannot be resolved on {host} ({reason})"
        yield Problem(
            what, "set MASTER_ADDR to the name or address of the host of rank 0, without port or brackets"
        )
