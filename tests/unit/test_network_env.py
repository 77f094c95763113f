"""Network settings that no card or host here answers to."""

import pytest

from hrm_dist.distributed import network_env
from hrm_dist.distributed.launch_env import DistEnv
from hrm_dist.distributed.network_env import network_problems

ALONE = DistEnv(0, 1, 0)


@pytest.fixture(autouse=True)
def _cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_env, "_cards", lambda: ["lo", "eth0", "eth1", "ib0"])


def problems(name: str, value: str, *, nccl: bool = True, launch: DistEnv = ALONE) -> list[str]:
    return [what for what, _ in network_problems({name: value}, launch, nccl=nccl)]


@pytest.mark.parametrize("value", ["", "eth0", "eth0,ib0", "eth0,"])
def test_cards_that_gloo_finds_are_no_problem(value: str) -> None:
    assert not problems("GLOO_SOCKET_IFNAME", value)


@pytest.mark.parametrize(
    ("value", "unknown"),
    [
        ("eth9", "eth9"), ("eth0,eth9", "eth9"), ("^lo,docker0", "^lo"), ("=eth0", "=eth0"), ("eth", "eth"),
        ("eth0, ib0", " ib0"), (",eth0", ""), ("10.0.0.1", "10.0.0.1"),
    ],
)  # fmt: skip
def test_a_card_that_gloo_would_not_find_is_named_with_those_there_are(value: str, unknown: str) -> None:
    [what] = problems("GLOO_SOCKET_IFNAME", value)
    assert what.startswith(
        f"GLOO_SOCKET_IFNAME={value}: no network card with an address is named {unknown!r}; "
    )
    assert what.endswith(" has lo, eth0, eth1, ib0")


@pytest.mark.parametrize(
    "value", ["", "eth", "ib,docker", "=eth0", "^lo,docker0", "^=lo", "eth0:5000", "^wlan"]
)
def test_settings_that_leave_nccl_a_card_are_no_problem(value: str) -> None:
    assert not problems("NCCL_SOCKET_IFNAME", value)


@pytest.mark.parametrize("value", ["wlan", "=eth", "^lo,eth,ib", "^=lo,eth0,eth1,ib0", "wlan,docker"])
def test_settings_that_leave_nccl_no_card_are_a_problem(value: str) -> None:
    [what] = problems("NCCL_SOCKET_IFNAME", value)
    assert what.startswith(f"NCCL_SOCKET_IFNAME={value}: ")


def test_the_cards_of_nccl_do_not_matter_without_it() -> None:
    assert not problems("NCCL_SOCKET_IFNAME", "wlan", nccl=False)


@pytest.mark.parametrize("addr", ["127.0.0.1", "::1", "localhost"])
def test_addresses_that_can_be_resolved_are_no_problem(addr: str) -> None:
    assert not problems("MASTER_ADDR", addr, launch=DistEnv(0, 2, 0, addr, 29500))


@pytest.mark.parametrize(
    "addr", ["[::1]", "127.0.0.1:29500", "http://localhost", " 127.0.0.1", "a..b", "x" * 300]
)
def test_an_address_that_cannot_be_resolved_is_named(addr: str) -> None:
    [what] = problems("MASTER_ADDR", addr, launch=DistEnv(0, 2, 0, addr, 29500))
    assert what.startswith(f"MASTER_ADDR={addr} cannot be resolved on ")
