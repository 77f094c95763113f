"""Which part of a store belongs to one start of the processes, where the store has outlived earlier ones."""

import threading
from contextlib import suppress

import pytest
import torch.distributed as dist

from hrm_dist.distributed.rendezvous import unused_part


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Rank(threading.Thread):
    """A process that looks for its part of the store, in a thread."""

    def __init__(self, server: dist.TCPStore, rank: int, world_size: int, timeout_s: float = 60.0) -> None:
        super().__init__(daemon=True)
        self.store = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
        self.arguments = (rank, world_size, timeout_s)
        self.part: dist.Store | None = None
        self.start()

    def run(self) -> None:
        with suppress(dist.DistStoreError):
            self.part = unused_part(self.store, *self.arguments)

    def found(self) -> dist.Store:
        self.join(60.0)
        assert self.part is not None
        return self.part


def start(server: dist.TCPStore, world_size: int) -> list[dist.Store]:
    ranks = [Rank(server, rank, world_size) for rank in reversed(range(world_size))]
    return [rank.found() for rank in reversed(ranks)]


def test_ranks_share_what_they_write(server: dist.TCPStore) -> None:
    first, *others = start(server, 3)
    first.set("key", "value")
    assert [part.get("key") for part in others] == [b"value"] * 2


@pytest.mark.parametrize("world_sizes", [(2, 2), (2, 1, 2), (3, 2), (1, 3)])
def test_no_key_of_an_earlier_start_is_seen(server: dist.TCPStore, world_sizes: tuple[int, ...]) -> None:
    for world_size in world_sizes:
        parts = start(server, world_size)
        assert not any(part.check(["key"]) for part in parts)
        parts[0].set("key", "value")


def test_a_rank_that_died_before_it_met_the_others_is_not_waited_for(server: dist.TCPStore) -> None:
    Rank(server, 1, 2, timeout_s=0.1).join()  # said hello, and rank 0 never came
    first, second = start(server, 2)
    first.set("key", "value")
    assert second.get("key") == b"value"


def test_a_rank_0_that_died_while_it_waited_is_not_heard(server: dist.TCPStore) -> None:
    Rank(server, 0, 3, timeout_s=0.1).join()
    Rank(server, 1, 3, timeout_s=0.1).join()
    parts = start(server, 3)
    parts[2].set("key", "value")
    assert parts[0].get("key") == b"value"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_do_not_come_gives_up(server: dist.TCPStore, rank: int) -> None:
    with pytest.raises(dist.DistStoreError):
        unused_part(server, rank, 2, timeout_s=0.1)
