"""Checks of one process and its machine, which need no other process.

Only `gpus` imports torch: a doctor must be able to say that it is missing.
"""

import importlib.metadata
import netrc
import os
import platform
import resource
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from launch.doctor.results import CheckResult, MustMatch, Results
from launch.jobs.slurm import SlurmError
from launch.jobs.slurm import slurm as output_of

if TYPE_CHECKING:
    from hrm_dist.distributed.launch_env import DistEnv

GIB = 2**30
_WANDB_TIMEOUT_S = 3.0


def packages() -> Results:
    """Check Python and every package against the ranges that hrm-dist asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        ours = importlib.metadata.metadata("hrm-dist")
    except importlib.metadata.PackageNotFoundError:
        yield CheckResult(
            "FAIL", "hrm-dist is not installed in this Python", "run `make setup`, use .venv/bin/python"
        )
        return
    ranges = {"Python": SpecifierSet(ours["Requires-Python"] or "")}
    for requirement in map(Requirement, importlib.metadata.requires("hrm-dist") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            ranges[requirement.name] = requirement.specifier
    good: list[str] = []
    for name, wanted in ranges.items():
        is_python = name == "Python"
        todo = "run `make setup` with PYTHON=python3.11" if is_python else f"pip install '{name}{wanted}'"
        try:
            version = platform.python_version() if is_python else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult("FAIL", f"{name} is not installed", todo)
            continue
        yield MustMatch(name, version, "FAIL", "use the same environment on every node")
        if wanted.contains(version, prereleases=True):
            good.append(f"{name} {version}")
        else:
            yield CheckResult("FAIL", f"{name} is {version}, not {wanted}", todo)
    yield CheckResult("ok", f"in the ranges of hrm-dist {ours['Version']}: {', '.join(good)}")


class _Gpu(NamedTuple):
    """A GPU as nvidia-smi lists it."""

    uuid: str
    name: str
    total_mib: str
    used_mib: str
    driver: str


def gpus(env: "DistEnv") -> Results:
    """Check the GPUs that torch can use, and what they have in use already, before this process does."""
    import torch

    listed, problem = _listed_gpus()
    built_for = torch.version.cuda
    driver = listed[0].driver if listed else "unknown"
    if not torch.cuda.is_available():
        yield MustMatch("GPUs", "none", "FAIL", "ask for the same GPUs on every node")
        what = f"{len(listed)} GPUs here, but torch {torch.__version__}"
        if not listed:
            yield CheckResult("ok", f"CPU only: no GPU here{problem}")
        elif built_for is None:
            todo = "install torch for CUDA, see https://pytorch.org/get-started"
            yield CheckResult("FAIL", f"{what} is built without CUDA", todo)
        else:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            what += f", built for CUDA {built_for}, cannot use them with driver {driver}"
            todo = (
                "update the driver or install torch for an older CUDA; ask Slurm for GPUs (--gpus-per-node)"
            )
            yield CheckResult("FAIL", f"{what} (CUDA_VISIBLE_DEVICES={visible})", todo)
        return
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices]
    text = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    yield MustMatch("GPUs", text, "warn", "the slowest decides; ask for the same GPUs on every node")
    yield MustMatch(
        "GPU driver", driver, "warn", "the nodes are set up differently; tell their administrator"
    )
    yield CheckResult("ok", f"{text}; torch is built for CUDA {built_for}, the driver is {driver}{problem}")
    mine = env.local_rank if env.world_size > 1 and env.local_rank < len(devices) else 0
    if int(torch.ones(8, device=f"cuda:{mine}").sum()) != 8:
        yield CheckResult("FAIL", f"{names[mine]} computes 8 ones to another sum", "do not use this GPU")
    visible = {f"GPU-{device.uuid}" for device in devices}
    for gpu in listed:
        total, used = int(gpu.total_mib) / 1024, int(gpu.used_mib) / 1024
        if gpu.uuid in visible and used > 0.1 * total:
            what = f"{used:.0f} of {total:.0f} GiB of a {gpu.name} are in use by other processes"
            yield CheckResult("warn", what, "see `nvidia-smi`; end them or use another GPU")


def _listed_gpus() -> tuple[list[_Gpu], str]:
    """Return what nvidia-smi lists, or why it does not; none on a machine without it."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = "--query-gpu=uuid,name,memory.total,memory.used,driver_version"
    try:
        rows = output_of(["nvidia-smi", query, "--format=csv,noheader,nounits"]).splitlines()
        return [_Gpu(*row.split(", ")) for row in rows], ""
    except (OSError, TypeError, SlurmError) as error:
        return [], f" (nvidia-smi: {error})"


def network(env: "DistEnv") -> Iterator[CheckResult]:
    """Check the network cards, and whether others can reach this host by its name."""
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    chosen = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    yield CheckResult("ok", "; ".join([interfaces(), *chosen]))
    host = socket.gethostname()
    across_nodes = env.world_size > 1 and env.master_addr not in ("localhost", "127.0.0.1", host)
    if not across_nodes or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    todo = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the card that joins the nodes, or correct /etc/hosts"
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        yield CheckResult("warn", f"the name of this host, {host}, has no address ({error})", todo)
        return
    if address.startswith("127."):
        yield CheckResult(
            "warn", f"the name of this host, {host}, means {address}, where no other host is", todo
        )


def interfaces() -> str:
    """Return the network cards with address and speed, where known."""
    import psutil

    stats = psutil.net_if_stats()
    cards: list[str] = []
    for name, addresses in psutil.net_if_addrs().items():
        ips = [address.address for address in addresses if address.family == socket.AF_INET]
        speed = stats[name].speed if name in stats else 0  # Mb/s
        cards.append(" ".join([name, *ips]) + (f" ({speed / 1000:g} Gb/s)" if speed else ""))
    return ", ".join(cards)


def limits(env: "DistEnv") -> Iterator[CheckResult]:
    """Check the limits of open files and shared memory."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(1024, 4 * env.world_size + 512)
    if files != resource.RLIM_INFINITY and files < needed:
        allowed = "" if most == resource.RLIM_INFINITY else f" (at most {most} without the administrator)"
        yield CheckResult("warn", f"only {files} open files", f"run `ulimit -n {needed}` before{allowed}")
    shm = os.statvfs("/dev/shm")
    free = shm.f_bavail * shm.f_frsize
    if free < GIB:
        what = f"only {free / 2**20:.0f} MiB free in /dev/shm, where processes share batches"
        todo = "remove old files there; in a container, give it more (docker --shm-size 8g)"
        yield CheckResult("warn", what, todo)
    text = "no limit" if files == resource.RLIM_INFINITY else f"{files:,}"
    yield CheckResult("ok", f"open files: {text}; /dev/shm: {free / GIB:.1f} GiB free")


def wandb(env: "DistEnv") -> Iterator[CheckResult]:
    """Check whether metrics could go to wandb as they arise; rank 0 sends them."""
    if env.rank:
        return
    mode = os.environ.get("WANDB_MODE", "")
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlsplit(url).hostname or url
    if mode in ("offline", "disabled", "dryrun"):
        yield CheckResult("ok", f"WANDB_MODE={mode}; training asks wandb_mode of its configuration instead")
    elif not _answers(url):
        what = f"{host} does not answer within {_WANDB_TIMEOUT_S:.0f} s from here"
        todo = "use wandb_mode=offline, and `wandb sync` where there is internet"
        yield CheckResult("warn", what, todo)
    elif not _has_key(host):
        todo = "run `wandb login` or set WANDB_API_KEY; or use wandb_mode=offline or disabled"
        yield CheckResult("warn", f"{host} answers, but there is no API key", todo)
    else:
        yield CheckResult("ok", f"{host} answers, and there is an API key")


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Return whether there is any answer in time; looking up a name can take longer, in a thread left alone."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError, ValueError):
            try:
                urllib.request.urlopen(url, timeout=_WANDB_TIMEOUT_S).close()
            except urllib.error.HTTPError as answer:
                answer.close()
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(_WANDB_TIMEOUT_S)


def slurm(env: "DistEnv") -> Iterator[CheckResult]:
    """Check Slurm's commands on this node and, inside a job, its limits; asked once per node."""
    if env.local_rank:
        return
    job = os.environ.get("SLURM_JOB_ID")
    no_requeue = "a job cannot put itself back into the queue"
    if shutil.which("scontrol") is None:
        if job is None:
            yield CheckResult(
                "ok", "neither job nor commands here; launch.submit --cluster local still works"
            )
        else:
            todo = "install Slurm's commands on the nodes, or add them to the PATH"
            yield CheckResult("warn", f"scontrol is not on the PATH here: {no_requeue}", todo)
        return
    submits = "sbatch" if shutil.which("sbatch") else "no sbatch (submit from another node)"
    try:
        text = f"{output_of(['scontrol', '--version']).strip()}, {submits}; "
        if job is None:
            output_of(["scontrol", "ping"])
            yield CheckResult("ok", f"{text}the controller answers; this is not in a job")
            return
        of_job = _fields("job", job)
        of_partition = _fields("partition", of_job["Partition"])
    except (SlurmError, KeyError) as error:
        [words, *_] = str(error).splitlines()
        what = f"scontrol does not answer on this node ({words}): {no_requeue}"
        yield CheckResult("warn", what, "see `scontrol ping`; tell the administrator")
        return
    text += f"job {job} in partition {of_job['Partition']}: time limit {of_job.get('TimeLimit', 'unknown')}, "
    text += f"{of_partition.get('GraceTime', 'unknown')} s of grace when preempted, "
    may = "may" if of_job.get("Requeue") == "1" else "may not"
    yield CheckResult("ok", f"{text}{may} be requeued")


def _fields(kind: str, name: str) -> Mapping[str, str]:
    """Return what scontrol shows of a job or a partition."""
    words = output_of(["scontrol", "show", kind, name, "--oneliner"]).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


LOCAL: Mapping[str, Callable[["DistEnv"], Results | Iterator[CheckResult]]] = {
    "GPUs": gpus,
    "network": network,
    "limits": limits,
    "wandb": wandb,
    "Slurm": slurm,
}
