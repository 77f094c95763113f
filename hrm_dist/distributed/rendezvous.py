"""Tell the processes on one machine the port that rank 0 took, and all of them which part of a store is theirs.

The port is for when nobody has given them one: rank 0 listens on a socket of Linux's abstract namespace and tells
everyone who asks. Its name is free again when the process ends, however that comes, and is visible wherever 127.0.0.1
is the same: nothing is needed or left on a disk.
"""

import os
import secrets
import socket
import struct
import time
from datetime import timedelta

import torch.distributed as dist

_RETRY_S = 0.02


def _address(name: str) -> str:
    return f"\0hrm-dist-{os.geteuid()}-{name}"


def listen(name: str) -> socket.socket:
    """Return the socket where the others will ask; the caller closes it. Raise OSError if the name is taken."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(_address(name))
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    return listener


def serve_port(listener: socket.socket, port: int, num_others: int, timeout_s: float) -> None:
    """Tell the port to that many others. Raise TimeoutError, which says how many have asked."""
    deadline = time.monotonic() + timeout_s
    num_told = 0
    while num_told < num_others:
        try:
            listener.settimeout(_until(deadline))
            connection, _ = listener.accept()
        except TimeoutError:
            raise TimeoutError(f"{num_told} of the other {num_others} have come") from None
        with connection:
            if _is_own_user(connection):
                connection.sendall(f"{port}\n".encode())
                num_told += 1


def request_port(name: str, timeout_s: float) -> int:
    """Return the port that rank 0 tells, once it listens. Raise TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_until(deadline))
                connection.connect(_address(name))
                if _is_own_user(connection):
                    answer = connection.recv(64)
                    if answer.endswith(b"\n"):
                        return int(answer)
        except TimeoutError:
            raise TimeoutError("rank 0 has not come") from None
        except OSError:  # it does not listen yet
            pass
        time.sleep(_RETRY_S)


def _until(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _is_own_user(connection: socket.socket) -> bool:
    """Return whether the other side belongs to this user; anyone may take a name or ask."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user == os.geteuid()


def unused_part(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """Return a part of the store that no processes before these have used, the same on all ranks. Raise DistError.

    torchrun keeps its store when it starts the processes again, and none of its variables tells all of them which start
    this is: a node that joins later counts from 0. So every rank says hello under a name that nobody had before, and
    rank 0 answers until all have heard it.
    """
    if rank:
        own = secrets.token_hex(8)
        store.set(f"hello/{rank}", own)
        store.wait([f"part/{own}"], timedelta(seconds=timeout_s))
        part = store.get(f"part/{own}").decode()
        store.set(f"{part}/heard/{rank}", "")
        return dist.PrefixStore(part, store)
    part = secrets.token_hex(8)
    deadline, others = time.monotonic() + timeout_s, range(1, world_size)
    while others:
        hellos = [f"hello/{other}" for other in others]
        store.wait(hellos, timedelta(seconds=max(_RETRY_S, deadline - time.monotonic())))
        for own in store.multi_get(hellos):
            store.set(f"part/{own.decode()}", part)
        others = [other for other in others if not store.check([f"{part}/heard/{other}"])]
        if others:
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"{len(others)} of the other {world_size - 1} have not come")
            time.sleep(_RETRY_S)
    return dist.PrefixStore(part, store)
