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
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from data_pipeline.base.parallel import LONGEST_TEMPORARY, SHARED_MEMORY
from launch.doctor.results import MustMatch, Results, fail, ok, warn
from launch.jobs.slurm import SlurmError
from launch.jobs.slurm import slurm as output_of

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

    from hrm_dist.distributed.launch_env import DistEnv

GIB = 2**30
_WANDB_TIMEOUT_S = 3.0


def packages() -> Results:
    """Check Python and every package against the ranges that hrm-dist asks for; those of extras may be missing."""
    try:
        ours = importlib.metadata.metadata("hrm-dist")
    except importlib.metadata.PackageNotFoundError:
        yield fail("hrm-dist is not installed in this Python", "run `make setup`, use .venv/bin/python")
        return
    good: list[str] = []
    left_out: list[str] = []
    for name, wanted, extra in _wanted_packages(ours):
        is_python = name == "Python"
        todo = "run `make setup` with PYTHON=python3.11" if is_python else f"pip install '{name}{wanted}'"
        try:
            version = platform.python_version() if is_python else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version or extra:
            level = "warn" if extra else "FAIL"
            yield MustMatch(name, version or "missing", level, "use the same environment on every node")
        if version and wanted.contains(version, prereleases=True):
            good.append(f"{name} {version}")
        elif version:
            yield fail(f"{name} is {version}, not {wanted}", todo)
        elif extra:
            left_out.append(f"{name} [{extra}]")
        else:
            yield fail(f"{name} is not installed", todo)
    yield ok(f"in the ranges of hrm-dist {ours['Version']}: {', '.join(good)}")
    if left_out:
        yield ok(f"extras that are not installed: {', '.join(left_out)}")


def _wanted_packages(ours: importlib.metadata.PackageMetadata) -> Iterator[tuple[str, "SpecifierSet", str]]:
    """Yield Python and the packages, each with its range and the extra that brings it; empty: all need it."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    yield "Python", SpecifierSet(ours["Requires-Python"] or ""), ""
    extras = {"", *(ours.get_all("Provides-Extra") or ())} - {"all", "dev"}
    for requirement in map(Requirement, importlib.metadata.requires("hrm-dist") or []):
        marker = requirement.marker
        found = [extra for extra in sorted(extras) if marker is None or marker.evaluate({"extra": extra})]
        if found:
            yield requirement.name, requirement.specifier, found[0]


def gpus(env: "DistEnv") -> Results:
    """Check the GPUs that torch can use, and what they have in use already, before this process does."""
    import torch

    listed, problem = _listed_gpus()
    built_for, driver = torch.version.cuda, listed[0][-1] if listed else "unknown"
    same = "ask for the same GPUs on every node"
    if not torch.cuda.is_available():
        yield MustMatch("GPUs", "none", "FAIL", same)
        what = f"{len(listed)} GPUs here, but torch {torch.__version__}, built for CUDA {built_for}"
        if not listed:
            yield ok(f"CPU only: no GPU here{problem}")
        elif built_for is None:
            yield fail(f"{what}, is for CPUs", "install torch for CUDA, see https://pytorch.org/get-started")
        else:
            what += f", cannot use them with driver {driver}"
            todo = "update the driver or install torch for an older CUDA; ask Slurm for --gpus-per-node"
            yield fail(f"{what} (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})", todo)
        return
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices]
    text = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    yield MustMatch("GPUs", text, "warn", f"the slowest decides; {same}")
    yield MustMatch("GPU driver", driver, "warn", "tell the administrator: the nodes are set up differently")
    yield ok(f"{text}; torch is built for CUDA {built_for}, the driver is {driver}{problem}")
    mine = env.local_rank if env.world_size > 1 and env.local_rank < len(devices) else 0
    if int(torch.ones(8, device=f"cuda:{mine}").sum()) != 8:
        yield fail(f"{names[mine]} computes 8 ones to another sum", "do not use this GPU")
    visible = {f"GPU-{device.uuid}" for device in devices}
    for uuid, name, total_mib, used_mib, _ in listed:
        total, used = int(total_mib) / 1024, int(used_mib) / 1024
        if uuid in visible and used > 0.1 * total:
            what = f"{used:.0f} of {total:.0f} GiB of a {name} are in use by other processes"
            yield warn(what, "see `nvidia-smi`; end them or use another GPU")


def _listed_gpus() -> tuple[list[list[str]], str]:
    """Return GPUs as nvidia-smi lists them, or why it does not; none on a machine without it."""
    query = "--query-gpu=uuid,name,memory.total,memory.used,driver_version"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        lines = subprocess.check_output(command, text=True, timeout=10).splitlines()
        return [line.split(", ") for line in lines], ""
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.SubprocessError) as error:
        return [], f" (nvidia-smi: {error})"


def network(env: "DistEnv") -> Results:
    """Check the network cards, and whether others can reach this host by its name."""
    from hrm_dist.distributed.network_env import network_problems

    problems = list(network_problems(os.environ, env, nccl=bool(_listed_gpus()[0])))
    yield from (fail(what, todo) for what, todo in problems)
    if problems:
        return
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    chosen = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    yield ok("; ".join([interfaces(), *chosen]))
    host, address = socket.gethostname(), ""
    across_nodes = env.world_size > 1 and env.master_addr not in ("localhost", "127.0.0.1", host)
    if not across_nodes or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):
        address = socket.gethostbyname(host)
    if not address or address.startswith("127."):
        what = f"means {address}, where no other host is" if address else "has no address"
        todo = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the card that joins the nodes, or correct /etc/hosts"
        yield warn(f"the name of this host, {host}, {what}", todo)


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


def limits(env: "DistEnv") -> Results:
    """Check the limits of open files and shared memory, and the folder for temporary files."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(1024, 4 * env.world_size + 512)
    if files != resource.RLIM_INFINITY and files < needed:
        allowed = "" if most == resource.RLIM_INFINITY else f" (at most {most} without the administrator)"
        yield warn(f"only {files} open files", f"run `ulimit -n {needed}` before{allowed}")
    text = "no limit" if files == resource.RLIM_INFINITY else f"{files:,}"
    facts = [f"open files: {text}"]
    try:
        shm = os.statvfs(SHARED_MEMORY)
        free = shm.f_bavail * shm.f_frsize
        get_context("forkserver").Lock()
        facts.append(f"{SHARED_MEMORY}: {free / GIB:.1f} GiB free")
        if free < GIB:
            what = f"only {free / 2**20:.0f} MiB free in {SHARED_MEMORY}, by which GPUs of a machine exchange data"
            yield warn(what, "remove old files there; in a container, give it more (docker --shm-size 8g)")
    except (OSError, ImportError) as error:
        what = f"{SHARED_MEMORY} cannot be used ({error}), so builds have one process"
        yield warn(what, "mount it for this user to write, with 1 GiB or more (docker --shm-size 8g)")
    yield from _temporary(facts)
    yield ok("; ".join(facts))


def _temporary(facts: list[str]) -> Results:
    """Check the folder for temporary files; add to the facts what is right."""
    given = os.environ.get("TMPDIR")
    try:
        folder = tempfile.gettempdir()
    except OSError:
        what = "no folder for temporary files can be written, neither TMPDIR nor /tmp"
        yield fail(what, f"set TMPDIR to one, of at most {LONGEST_TEMPORARY} characters")
        return
    if given and os.path.abspath(given) != folder:
        yield warn(f"TMPDIR={given} cannot be written; {folder} is used", "make it, or unset TMPDIR")
    if len(folder) > LONGEST_TEMPORARY:
        what = (
            f"TMPDIR={folder} has {len(folder)} characters, too many for sockets, so builds have one process"
        )
        yield warn(what, f"set TMPDIR to a folder of at most {LONGEST_TEMPORARY} characters")
    else:
        facts.append(f"temporary files: {folder}")


def wandb(env: "DistEnv") -> Results:
    """Check whether metrics could go to wandb as they arise; rank 0 sends them."""
    if env.rank:
        return
    mode = os.environ.get("WANDB_MODE", "")
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlsplit(url).hostname or url
    if mode in ("offline", "disabled", "dryrun"):
        yield ok(f"WANDB_MODE={mode}; training asks wandb_mode of its configuration instead")
    elif not _answers(url):
        what = f"{host} does not answer within {_WANDB_TIMEOUT_S:.0f} s from here"
        yield warn(what, "use wandb_mode=offline, and `wandb sync` where there is internet")
    elif not _has_key(host):
        todo = "run `wandb login` or set WANDB_API_KEY; or use wandb_mode=offline or disabled"
        yield warn(f"{host} answers, but there is no API key", todo)
    else:
        yield ok(f"{host} answers, and there is an API key")


def _has_key(host: str) -> bool:
    with suppress(OSError, netrc.NetrcParseError):
        key = os.environ.get("WANDB_API_KEY") or netrc.netrc(os.environ.get("NETRC")).authenticators(host)
        return key is not None
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


def slurm(env: "DistEnv") -> Results:
    """Check Slurm's commands on this node and, inside a job, its limits; asked once per node."""
    job = os.environ.get("SLURM_JOB_ID")
    if env.local_rank:
        return
    if shutil.which("scontrol") is None and job is None:
        yield ok("not here: neither job nor commands; launch.submit --cluster local still works")
        return
    try:
        text = f"{output_of(['scontrol', '--version']).strip()}, "
        text += "sbatch" if shutil.which("sbatch") else "no sbatch (submit from another node)"
        if job is None:
            output_of(["scontrol", "ping"])
            yield ok(f"{text}, the controller answers; this is not in a job")
            return
        of_job = _fields("job", job)
        of_partition = _fields("partition", of_job["Partition"])
    except (SlurmError, KeyError) as error:
        words = str(error).splitlines()[0]
        what = f"scontrol does not answer here ({words}): a job cannot put itself back into the queue"
        yield warn(what, "see `scontrol ping`; have Slurm's commands on the PATH of the nodes")
        return
    limit, grace = of_job.get("TimeLimit", "unknown"), of_partition.get("GraceTime", "unknown")
    text += f"; job {job} in partition {of_job['Partition']}: time limit {limit}, {grace} s of grace when preempted, "
    yield ok(f"{text}{'may' if of_job.get('Requeue') == '1' else 'may not'} be requeued")


def _fields(kind: str, name: str) -> Mapping[str, str]:
    """Return what scontrol shows of a job or a partition."""
    words = output_of(["scontrol", "show", kind, name, "--oneliner"]).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


CHECKS = {"GPUs": gpus, "network": network, "limits": limits, "wandb": wandb, "Slurm": slurm}
