"""Join the other processes of a run, and leave them in order.

launch_env.py reads from the environment who they are; heartbeat.py finds out when one is gone.
"""

import errno
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from data_pipeline.base.errors import EXIT_FAILED
from hrm_dist.config import ConfigError
from hrm_dist.distributed import heartbeat, rendezvous
from hrm_dist.distributed.launch_env import DistEnv, launch_env
from hrm_dist.distributed.network_env import check_network

logger = logging.getLogger(__name__)

# Who waits this long for the others says so.
_WAITING_S = 30.0
_monitor: heartbeat.Monitor | None = None  # while there is a group of several processes


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
    min(timeout_s, 60) seconds, this one ends with exit code 69; if a collective waits for timeout_s, with 1.
    """
    launch = launch_env()
    if launch.warning:
        logger.warning(launch.warning)
    torch_device = _device(device, launch)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    # gloo serves the CPU tensors of both kinds of run, so that control messages need no device sync.
    backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
    world = World(launch.rank, launch.world_size, torch_device)
    if launch.world_size > 1 or even_alone:
        check_network(launch, nccl=torch_device.type == "cuda")
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


def _device(device: str, launch: DistEnv) -> torch.device:
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
def _group_of_several(launch: DistEnv, backend: str, timeout_s: float) -> Iterator[None]:
    global _monitor
    timeout = timedelta(seconds=timeout_s)
    store, monitor = _meet(launch, timeout_s)
    _monitor = monitor
    try:
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
        )
        yield
    except BaseException as error:
        monitor.report_error(error)
        raise
    finally:
        _monitor = None
        # DDP's wrapper must not be the last to hold the group: it ends the group's threads without letting them have
        # Python's lock, for which one may still wait, to let go of the tensors of a gather.
        gc.collect()
        try:
            if dist.is_initialized():
                dist.destroy_process_group()
        finally:
            monitor.close()


def _meet(launch: DistEnv, timeout_s: float) -> tuple[dist.Store, heartbeat.Monitor]:
    """Wait until all processes are there; return the store that they share, and the monitor of their heartbeats."""
    try:
        with _in_time(launch, timeout_s):
            store = rendezvous.unused_part(
                _store(launch, timeout_s), launch.rank, launch.world_size, timeout_s
            )
        return store, heartbeat.Monitor(
            store.clone(),  # pyright: ignore[reportAttributeAccessIssue]
            launch.rank,
            launch.world_size,
            # torchrun can hold the store itself, and tells torch so by this variable.
            rank_0_hosts=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True),
            silence_s=min(timeout_s, heartbeat.SILENCE_S),
        )
    except (dist.DistError, OSError) as error:
        taken = _taken_port(launch, error)
        if taken:
            raise ConfigError(taken) from error
        sys.exit(f"error: {_not_met(launch, timeout_s, error)}")


@contextmanager
def _in_time(launch: DistEnv, timeout_s: float) -> Iterator[None]:
    """Say it if the block takes long, and end the process if it takes too long.

    torch waits forever for a listener that is no store.
    """
    reason = _not_met(launch, timeout_s, TimeoutError("what listens there does not answer"))
    note = (
        f"rank {launch.rank} of {launch.world_size} waits for the others at {_place(launch)}, for up to "
        f"timeout_s={timeout_s:g}"
    )
    alarms = [
        threading.Timer(_WAITING_S, logger.warning, [note]),
        # torch's own limit comes first, where it has one.
        threading.Timer(timeout_s + 5.0, heartbeat.end_process, [heartbeat.Failure(reason, EXIT_FAILED)]),
    ]
    for alarm in alarms:
        alarm.daemon = True
        alarm.start()
    try:
        yield
    finally:
        for alarm in alarms:
            alarm.cancel()


def _store(launch: DistEnv, timeout_s: float) -> dist.Store:
    """Connect to the store, or hold it on rank 0. Raise DistError or, where rank 0 tells the port, OSError."""
    timeout = timedelta(seconds=timeout_s)
    # torchrun and accelerate launch set them themselves. rendezvous looks nowhere else.
    os.environ.update(MASTER_ADDR=launch.master_addr, MASTER_PORT=str(launch.master_port))
    if launch.master_port:
        url = f"env://?rank={launch.rank}&world_size={launch.world_size}"
        return next(dist.rendezvous(url, timeout=timeout))[0]
    if launch.rank:
        port = rendezvous.request_port(launch.rendezvous_name, timeout_s)
        store = dist.TCPStore(launch.master_addr, port, timeout=timeout)
    else:
        with rendezvous.listen(launch.rendezvous_name) as listener:
            store = dist.TCPStore(
                launch.master_addr, 0, is_master=True, wait_for_workers=False, timeout=timeout
            )
            rendezvous.serve_port(listener, store.port, launch.world_size - 1, timeout_s)
    os.environ["MASTER_PORT"] = str(store.port)
    return store


def _taken_port(launch: DistEnv, error: Exception) -> str:
    """Return what keeps rank 0 from listening, and what to do; empty if that is not the reason."""
    if launch.rank == 0 and "EADDRINUSE" in str(error):
        return (
            f"rank 0 cannot listen at MASTER_PORT={launch.master_port}: something else on {socket.gethostname()} has "
            "this port; set MASTER_PORT to a free one, the same for all processes."
        )
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"another process that runs as rank 0 of {launch.rendezvous_name} waits for its others on this machine; "
            "wait for it or stop it, or set MASTER_PORT to a free port, the same for all processes of this run."
        )
    return ""


def _not_met(launch: DistEnv, timeout_s: float, error: Exception) -> str:
    """Say why a process has not met the others, and what to do."""
    reason = str(error).splitlines()[0]
    return (
        f"rank {launch.rank} of {launch.world_size} has not met the others at {_place(launch)} "
        f"within timeout_s={timeout_s:g}: {reason}. Look for the first error of the others; start all of them "
        "together, with the same address and a port that is free."
    )


def _place(launch: DistEnv) -> str:
    port = f"MASTER_PORT={launch.master_port}" if launch.master_port else "a port that rank 0 tells"
    return f"MASTER_ADDR={launch.master_addr} {port}"


def report_step(step: int) -> None:
    """Note the step that this process has reached, for messages about processes that are gone."""
    if _monitor is not None:
        _monitor.step = step
