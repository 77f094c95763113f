"""Checks of one process and its machine, which need no other process.

Only `gpus` imports torch: a doctor must be able to say that it is missing.
"""

import fcntl
import importlib.metadata
import netrc
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from launch.doctor.results import Finding, Same

if TYPE_CHECKING:
    from hrm_dist.distributed.launch_env import DistEnv

GIB = 2**30
_COMMAND_TIMEOUT_S = 10.0
_WANDB_TIMEOUT_S = 3.0
_SIOCGIFADDR = 0x8915
_SAME_PACKAGES = "use the same environment on every node"


def packages() -> Iterator[Finding | Same]:
    """Python and every package against the ranges that hrm-dist asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        ours = importlib.metadata.metadata("hrm-dist")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "FAIL", "hrm-dist is not installed in this Python", "run `make setup`, use .venv/bin/python"
        )
        return
    python = platform.python_version()
    yield Same("Python", python, "FAIL", _SAME_PACKAGES)
    wanted = ours["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        yield Finding("FAIL", f"Python is {python}, not {wanted}", "run `make setup` with PYTHON=python3.11")
    good: list[str] = []
    for text in importlib.metadata.requires("hrm-dist") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, str(requirement.specifier)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("FAIL", f"{name} is not installed", f"pip install '{name}{wanted}'")
            continue
        yield Same(name, version, "FAIL", _SAME_PACKAGES)
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{name} {version}")
        else:
            yield Finding("FAIL", f"{name} is {version}, not {wanted}", f"pip install '{name}{wanted}'")
    yield Finding("ok", f"Python {python}; in the ranges of hrm-dist {ours['Version']}: {', '.join(good)}")


class _Gpu(NamedTuple):
    """A GPU as nvidia-smi lists it."""

    uuid: str
    name: str
    total_mib: int
    used_mib: int
    driver: str


def gpus(launch: "DistEnv") -> Iterator[Finding | Same]:
    """GPUs that torch can use; what they have in use already, before this process does."""
    import torch

    listed, error = _listed_gpus()
    built_for = torch.version.cuda
    if not torch.cuda.is_available():
        if listed and built_for is None:
            yield Finding("FAIL", f"{len(listed)} GPUs here, but torch {torch.__version__} is built without CUDA",
                          "install torch for CUDA, see https://pytorch.org/get-started")  # fmt: skip
        elif listed:
            yield Finding(
                "FAIL",
                f"{len(listed)} GPUs here, but torch, built for CUDA {built_for}, cannot use them with driver "
                f"{listed[0].driver} (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})",
                "update the driver or install torch for an older CUDA; ask Slurm for GPUs (--gpus-per-node)",
            )
        else:
            yield Finding("ok", f"CPU only: no GPU here{error}")
        yield Same("GPUs", "none", "FAIL", "ask for the same GPUs on every node")
        return
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices]
    text = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    driver = listed[0].driver if listed else "unknown"
    yield Same("GPUs", text, "warn", "the slowest decides; ask for the same GPUs on every node")
    yield Same("GPU driver", driver, "warn", "the nodes are set up differently; tell their administrator")
    yield Finding("ok", f"{text}; torch is built for CUDA {built_for}, the driver is {driver}{error}")
    mine = launch.local_rank if launch.world_size > 1 and launch.local_rank < len(devices) else 0
    if int(torch.ones(8, device=f"cuda:{mine}").sum()) != 8:
        yield Finding("FAIL", f"{names[mine]} computes 8 ones to another sum", "do not use this GPU")
    visible = {str(device.uuid) for device in devices}
    for gpu in listed:
        if gpu.uuid.removeprefix("GPU-") in visible and gpu.used_mib > 0.1 * gpu.total_mib:
            yield Finding("warn", f"{gpu.used_mib / 1024:.0f} of {gpu.total_mib / 1024:.0f} GiB of a {gpu.name} "
                          "are in use by other processes", "see `nvidia-smi`; end them or use another GPU")  # fmt: skip


def _listed_gpus() -> tuple[list[_Gpu], str]:
    """What nvidia-smi lists, or why it does not; none on a machine without it."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = "--query-gpu=uuid,name,memory.total,memory.used,driver_version"
    try:
        rows = _output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()
        fields = [row.split(", ") for row in rows]
        return [
            _Gpu(uuid, name, int(total), int(used), driver) for uuid, name, total, used, driver in fields
        ], ""
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [], f" (nvidia-smi: {_words(error)})"


def network(launch: "DistEnv") -> Iterator[Finding]:
    """The network cards, and whether others can reach this host by its name."""
    chosen = [f"{name}={os.environ[name]}" for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
              if name in os.environ]  # fmt: skip
    yield Finding("ok", "; ".join([interfaces(), *chosen]))
    host = socket.gethostname()
    across_nodes = launch.world_size > 1 and launch.master_addr not in ("localhost", "127.0.0.1", host)
    if not across_nodes or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    todo = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the card that joins the nodes, or correct /etc/hosts"
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        yield Finding("warn", f"the name of this host, {host}, has no address ({_words(error)})", todo)
        return
    if address.startswith("127."):
        yield Finding("warn", f"the name of this host, {host}, means {address}, where no other host is", todo)


def interfaces() -> str:
    """Network cards with address and speed, where known."""
    return ", ".join(_interface(name) for _, name in socket.if_nameindex())


def _interface(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            reply = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError:  # it has none
            return name
    try:
        speed = int(Path(f"/sys/class/net/{name}/speed").read_text())  # Mb/s
    except (OSError, ValueError):
        speed = 0
    return f"{name} {socket.inet_ntoa(reply[20:24])}" + (f" ({speed / 1000:g} Gb/s)" if speed > 0 else "")


def limits(launch: "DistEnv") -> Iterator[Finding]:
    """Open files and shared memory."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(1024, 4 * launch.world_size + 512)
    if files != resource.RLIM_INFINITY and files < needed:
        allowed = "" if most == resource.RLIM_INFINITY else f" (at most {most} without the administrator)"
        yield Finding("warn", f"only {files} open files", f"run `ulimit -n {needed}` before{allowed}")
    shm = os.statvfs("/dev/shm")
    free = shm.f_bavail * shm.f_frsize
    if free < GIB:
        yield Finding("warn", f"only {free / 2**20:.0f} MiB free in /dev/shm, where processes share batches",
                      "remove old files there; in a container, give it more (docker --shm-size 8g)")  # fmt: skip
    text = "no limit" if files == resource.RLIM_INFINITY else f"{files:,}"
    yield Finding("ok", f"open files: {text}; /dev/shm: {free / GIB:.1f} GiB free")


def wandb(launch: "DistEnv") -> Iterator[Finding]:
    """Whether metrics could go to wandb as they arise; rank 0 sends them."""
    if launch.rank:
        return
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        yield Finding("ok", f"WANDB_MODE={mode}; training asks wandb_mode of its configuration instead")
        return
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlsplit(url).hostname or url
    if not _answers(url):
        yield Finding("warn", f"{host} does not answer within {_WANDB_TIMEOUT_S:.0f} s from here",
                      "use wandb_mode=offline, and `wandb sync` where there is internet")  # fmt: skip
    elif not _has_key(host):
        yield Finding("warn", f"{host} answers, but there is no API key",
                      "run `wandb login` or set WANDB_API_KEY; or use wandb_mode=offline or disabled")  # fmt: skip
    else:
        yield Finding("ok", f"{host} answers, and there is an API key")


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Whether there is any answer in time; looking up a name can take far longer, in a thread that is left alone."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=_WANDB_TIMEOUT_S).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        except (OSError, ValueError):
            return
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(_WANDB_TIMEOUT_S)


def slurm(launch: "DistEnv") -> Iterator[Finding]:
    """Slurm's commands on this node and, inside a job, its limits; asked once per node."""
    if launch.local_rank:
        return
    job = os.environ.get("SLURM_JOB_ID")
    if shutil.which("scontrol") is None:
        if job:
            yield Finding("warn", "scontrol is not on the PATH here: a job cannot put itself back into the queue",
                          "install Slurm's commands on the nodes, or add them to the PATH")  # fmt: skip
        else:
            yield Finding(
                "ok", "not here: neither job nor commands; launch.submit --cluster local still works"
            )
        return
    try:
        version = _output("scontrol", "--version").strip()
        submits = "sbatch" if shutil.which("sbatch") else "no sbatch (submit from another node)"
        if job is None:
            _output("scontrol", "ping")
            yield Finding("ok", f"{version}, the controller answers, {submits}; this is not in a job")
            return
        of_job = _fields(_output("scontrol", "show", "job", job, "--oneliner"))
        of_partition = _fields(_output("scontrol", "show", "partition", of_job["Partition"], "--oneliner"))
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        yield Finding("warn", f"scontrol does not answer on this node ({_words(error)}): a job cannot put itself back "
                      "into the queue", "see `scontrol ping`; tell the administrator")  # fmt: skip
        return
    again = "may be requeued" if of_job.get("Requeue") == "1" else "may not be requeued (--no-requeue)"
    grace = of_partition.get("GraceTime", "unknown")
    yield Finding("ok", f"{version}, {submits}; job {job} in partition {of_job['Partition']}: time limit "
                  f"{of_job.get('TimeLimit', 'unknown')}, {grace} s of grace when preempted, {again}")  # fmt: skip


def _fields(line: str) -> Mapping[str, str]:
    pairs = (word.partition("=") for word in line.split())
    return {key: value for key, equals, value in pairs if equals}


def _output(*command: str) -> str:
    """What a command prints. Raises OSError or SubprocessError."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True
    ).stdout  # fmt: skip


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (
            (error.stderr or error.stdout or "").strip().splitlines() or [f"exit code {error.returncode}"]
        )[0]
    return (str(error).splitlines() or [type(error).__name__])[0]


LOCAL: Mapping[str, Callable[["DistEnv"], Iterator[Finding | Same] | Iterator[Finding]]] = {
    "GPUs": gpus, "network": network, "limits": limits, "wandb": wandb, "Slurm": slurm,
}  # fmt: skip
