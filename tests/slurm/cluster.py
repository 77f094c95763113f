"""A real Slurm of two nodes, n1 and n2, on this machine and for a while; nothing is installed or left behind.

    eval "$(python -m tests.slurm.cluster start DIR)"     # then sinfo, srun, sbatch
    python -m tests.slurm.cluster kill DIR n2             # as if its power failed; `revive DIR n2` starts it again
    python -m tests.slurm.cluster stop DIR

Each node has 4 processors, 6000 MB, 2 pretend GPUs, and a host name, processes and /etc/hosts of its own.

| partition | preempted by jobs of `high` |
|---|---|
| main (the default) | sent the signal of --signal, seconds later killed and requeued |
| grace | sent the signal of --signal, 60 s later killed and requeued |
| high | never |
| far | its one node, far1, does not exist: jobs wait forever |

DIR must not exist, and all may enter the folders above it (munge insists): it cannot be one of pytest's.
"""

import argparse
import getpass
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from string import Template

from tests.slurm.packages import Programs, SlurmMissingError, programs

HERE = Path(__file__).parent
CONTROLLER = "slurmctld"
NODES = ("n1", "n2")
HOSTS = (*NODES, CONTROLLER, "munged")
"""One for each daemon, in the order in which they are stopped."""
GPUS_PER_NODE = 2
START_TIMEOUT_S = 60.0
_UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
# Whoever is not root gets a user namespace, in which munge still sees the same user.
_UNSHARE_AS_USER = ("--user", "--map-current-user", "--keep-caps")
# The shell is the host's first process: killed, it takes all others along, and meanwhile it reaps orphans.
_BOOT = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && { "$@" & wait; }'


class Cluster:
    """A cluster in a folder, whichever process started it."""

    def __init__(self, folder: Path, slurm: Programs, *, dies_with_us: bool = False) -> None:
        self.folder = folder
        self.env = {**slurm.environment(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.env["PATH"] = f"{folder / 'bin'}:{self.env['PATH']}"
        self._slurm = slurm
        self._prefix = ("setpriv", "--pdeathsig", "KILL") if dies_with_us else ()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle. Raises SlurmMissingError, TimeoutError."""
        _check_namespaces()
        _write_files(self.folder, self._slurm)
        run = self.folder / "run"
        munge_socket = f"--socket={run / 'munge.sock'}"
        self._boot(
            "munged", "munged", "--foreground", "--num-threads=2", munge_socket, f"--key-file={run / 'munge.key'}",
            f"--pid-file={run / 'munged.pid'}", f"--seed-file={run / 'munge.seed'}",
            f"--log-file={self.folder / 'log' / 'munged.log'}",
        )  # fmt: skip
        self._wait("munged", lambda: self._succeeds("munge", munge_socket, "--no-input"))
        self._boot(CONTROLLER, "slurmctld", "-D", "-c")
        self._wait("slurmctld", lambda: self._succeeds("scontrol", "ping"))
        for node in NODES:
            self._boot_node(node)
        for node in NODES:
            self._wait_for_node(node)

    def stop(self) -> None:
        """Kill all processes of the cluster, its jobs' too, and remove the folder."""
        for host in HOSTS:
            self._kill(host)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_node(self, node: str) -> None:
        """Kill all of a node's processes at once; some 15 s later Slurm calls it down and requeues its jobs."""
        self._kill(node)

    def start_node(self, node: str) -> None:
        """Start a killed node and wait until it can take jobs. Raises TimeoutError."""
        self._boot_node(node)
        self._wait_for_node(node)

    def command(self, *command: object) -> str:
        """Output of one of Slurm's commands, which must succeed."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr or done.stdout}")
        return done.stdout

    def job(self, job_id: object) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, NodeList, Reason and so on."""
        words = self.command("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_job(self, job_id: object, states: Collection[str], timeout: float = 120.0) -> dict[str, str]:
        """Wait until a job is in one of the states, and give it. Raises TimeoutError."""
        job: dict[str, str] = {}

        def arrived() -> bool:
            job.update(self.job(job_id))
            return job["JobState"] in states

        self._wait(f"job {job_id} to be {' or '.join(states)}", arrived, timeout)
        return job

    def log_tail(self, lines: int = 30) -> str:
        """The daemons' last words, for the message of a test that fails."""
        tails: list[str] = []
        for host in reversed(HOSTS):
            # Without a log it did not get far, and said why.
            logs = (self.folder / "log" / f"{host}.{kind}" for kind in ("log", "out"))
            if log := next((log for log in logs if log.exists()), None):
                tails += [f"== {log.name}", *log.read_text().splitlines()[-lines:]]
        return "\n".join(tails)

    def _boot_node(self, node: str) -> None:
        stepd = ["-d", str(self._slurm.root / "usr/sbin/slurmstepd")] if self._slurm.root else []
        self._boot(node, "slurmd", "-D", "-N", node, *stepd)

    def _boot(self, host: str, *daemon: str) -> None:
        """Start a daemon on a host of its own, as far as it can see."""
        with (self.folder / "log" / f"{host}.out").open("ab") as output:
            child = subprocess.Popen(
                [*self._prefix, *_unshared(self.folder / "hosts", host, *daemon)],
                env={**os.environ, **self.env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt of the tests is for the tests
            )
        self._children[host] = child
        self._pid_file(host).write_text(str(child.pid))

    def _kill(self, host: str) -> None:
        if not self._pid_file(host).exists():
            return
        pid = int(self._pid_file(host).read_text())
        if _is_alive(pid):
            os.kill(pid, signal.SIGKILL)
        if host in self._children:
            self._children.pop(host).wait()
        self._wait(f"the end of {host}", lambda: not _is_alive(pid))
        self._pid_file(host).unlink()

    def _pid_file(self, host: str) -> Path:
        return self.folder / "run" / f"{host}.host"

    def _wait_for_node(self, node: str) -> None:
        sinfo = ("sinfo", "--noheader", "--partition=main", f"--nodes={node}", "--format=%t")
        self._wait(f"node {node}", lambda: self.command(*sinfo).strip() in ("idle", "mix"))

    def _succeeds(self, *command: str) -> bool:
        try:
            self.command(*command)
        except RuntimeError:
            return False
        return True

    def _wait(self, what: str, condition: Callable[[], bool], timeout: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:.0f} s for {what} in vain\n{self.log_tail()}")
            time.sleep(0.1)


def _unshared(hosts: Path, host: str, *command: str) -> list[str]:
    user = () if os.geteuid() == 0 else _UNSHARE_AS_USER
    return [*_UNSHARE, *user, "bash", "-c", _BOOT, "boot", str(hosts), host, *command]


def _check_namespaces() -> None:
    needed = ("unshare", "setpriv", "mount", "hostname", "bash")
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise SlurmMissingError(f"Slurm's nodes need {', '.join(missing)}.")
    probe = _unshared(Path("/dev/null"), "probe", "true")
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlurmMissingError(f"namespaces for Slurm's nodes are not permitted here: {done.stderr.strip()}")


def _write_files(folder: Path, slurm: Programs) -> None:
    for name in ("run", "log", "state", "bin", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, mode=0o755)
    (folder / "bin" / "sacct").symlink_to(HERE / "sacct")
    port, port_n1, port_n2 = _free_ports(3)
    values = {
        "controller": CONTROLLER,
        "port": port,
        "port_n1": port_n1,
        "port_n2": port_n2,
        "user": getpass.getuser(),
        "folder": folder,
        "first_job": random.randrange(1, 60_000),
        "plugin_dir": f"PluginDir={slurm.library}/slurm-wlm" if slurm.library else "",
    }
    (folder / "slurm.conf").write_text(Template((HERE / "slurm.conf").read_text()).substitute(values))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    # Only with a device, be it /dev/null, are the GPUs numbered in CUDA_VISIBLE_DEVICES.
    for gpu in range(GPUS_PER_NODE):
        (folder / "run" / f"gpu{gpu}").symlink_to("/dev/null")
    devices = f"{folder}/run/gpu[0-{GPUS_PER_NODE - 1}]"
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={devices}\n")
    names = "".join(f"127.0.0.1 {host}\n" for host in HOSTS)
    (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n{names}")
    key = folder / "run" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop", "kill", "revive"])
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("node", metavar="NODE", nargs="?", choices=NODES, default=NODES[-1])
    args = parser.parse_args()
    cluster = Cluster(args.folder.absolute(), programs())
    if args.action == "start":
        cluster.start()
        for name, value in cluster.env.items():
            print(f"export {name}={shlex.quote(value)}")
    elif args.action == "stop":
        cluster.stop()
    elif args.action == "kill":
        cluster.kill_node(args.node)
    else:
        cluster.start_node(args.node)


if __name__ == "__main__":
    try:
        main()
    except (SlurmMissingError, FileExistsError, TimeoutError) as error:
        sys.exit(str(error))
