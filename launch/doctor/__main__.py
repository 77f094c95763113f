"""Check whether training can work here: packages, GPUs, network, shared folders, clocks, wandb, Slurm, limits.

    python -m launch.doctor --dir runs                           this machine
    srun --ntasks-per-node 8 python -m launch.doctor --dir runs --dir data     all nodes of a Slurm job
    torchrun --nproc-per-node 8 -m launch.doctor                 the processes of a launcher

Start it as training will be started. Every line is ok, warn (works, perhaps not as meant) or FAIL, with what to do.
Exit codes: 0 nothing failed, 1 something did.
"""

import json
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import exit_code
from data_pipeline.base.paths import path_argument
from launch.doctor import local_checks
from launch.doctor.results import CheckResult, Result, Results, failure, merged, ok, run, warn

# Of the rendezvous and of every collective.
_TIMEOUT_S = 60.0


class _Report:
    """The lines so far, printed as they come or, as JSON, at the end."""

    def __init__(self, as_json: bool) -> None:
        self.lines: list[CheckResult] = []
        self.hosts = [socket.gethostname()]  # by rank
        self._as_json = as_json

    def add(self, lines: Iterable[CheckResult]) -> None:
        for line in lines:
            self.lines.append(line)
            if not self._as_json:
                print(line, flush=True)

    def close(self) -> bool:
        """Print what is left to print; return whether something failed."""
        hosts = list(dict.fromkeys(self.hosts))
        levels = [line.level for line in self.lines]
        failed = "FAIL" in levels
        if self._as_json:
            findings = [line._asdict() for line in self.lines]
            report = {"failed": failed, "processes": len(self.hosts), "hosts": hosts, "findings": findings}
            print(json.dumps(report, indent=1))
        else:
            counts = ", ".join(f"{levels.count(level)} {level}" for level in ("ok", "warn", "FAIL"))
            print(f"{len(self.hosts)} process(es) on {len(hosts)} host(s): {counts}", flush=True)
        return failed


def main() -> int:
    """Make all checks; the processes end with the same exit code."""
    parser = command_parser("launch.doctor", __doc__)
    dir_help = "a folder that all nodes should share, for data or runs; may be repeated (the current folder)"
    parser.add_argument("--dir", type=path_argument, action="append", metavar="DIR", help=dir_help)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    report = _Report(options.json)
    own = {"packages": run(local_checks.packages)}
    rank = 0
    try:
        from hrm_dist.distributed.launch_env import launch_env

        env = launch_env()
        rank = env.rank
        own |= {name: run(partial(check, env)) for name, check in local_checks.CHECKS.items()}
        if env.warning:
            own["launcher"] = [warn(env.warning, "")]
        return int(_check_together(report, own, options.dir or [Path()]))
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        line = failure(error)._replace(check="packages" if isinstance(error, ImportError) else "launcher")
    if rank:
        print(line, file=sys.stderr, flush=True)
        return 1
    if not report.lines:  # what this process found on its own
        for name, results in own.items():
            report.add(merged(name, [results], report.hosts))
    report.add([line])
    report.close()
    return 1


def _check_together(report: _Report, own: dict[str, list[Result]], dirs: Sequence[Path]) -> bool:
    """Join the others and check what takes all of them; return whether a check failed. Raise what keeps from it."""
    from hrm_dist.distributed import collectives
    from hrm_dist.distributed.process_group import process_group
    from launch.doctor import group_checks

    start = time.monotonic()
    with process_group("auto", timeout_s=_TIMEOUT_S) as world:
        met_s = time.monotonic() - start
        report.hosts = hosts = collectives.gather_objects(socket.gethostname())
        if world.world_size > 1:
            text = f"{len(hosts)} processes on {len(set(hosts))} host(s), on {world.device.type}, met in {met_s:.1f} s"
            own["launcher"] = [ok(text)]
        shared: dict[str, Callable[..., Results]] = {
            **group_checks.CHECKS,
            **{f"folder {path.absolute()}": partial(group_checks.folder, path) for path in dirs},
        }
        for name in (*own, *shared):
            if name in shared:  # where one of several processes fails in it, all end
                check = partial(shared[name], world, hosts)
                own[name] = run(check) if world.world_size == 1 else list(check())
            by_rank = collectives.gather_objects(own[name])
            if world.is_main:
                report.add(merged(name, by_rank, hosts))
        return collectives.run_on_rank0(report.close)


if __name__ == "__main__":
    sys.exit(exit_code(main))
