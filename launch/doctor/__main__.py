"""Check whether training can work here: packages, GPUs, network, shared folders, clocks, wandb, Slurm, limits.

    python -m launch.doctor --dir runs                           this machine
    srun --ntasks-per-node 8 python -m launch.doctor --dir runs --dir data     all nodes of a Slurm job
    torchrun --nproc-per-node 8 -m launch.doctor                 the processes of a launcher

Start it as training will be started. Every line is ok, warn (works, perhaps not as meant) or FAIL, with what to do.
Exit codes: 0 nothing failed, 1 something did.
"""

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.base.errors import InputError, exit_code
from launch.doctor import checks
from launch.doctor.results import Finding, Line, Same, failure, merged, run

if TYPE_CHECKING:
    from hrm_dist.distributed.process_group import World

# Of the meeting and of every collective.
_TIMEOUT_S = 60.0

Findings = list[Finding | Same]


class _Report:
    """The lines so far, printed as they come or, as JSON, at the end."""

    def __init__(self, as_json: bool) -> None:
        self.lines: list[Line] = []
        self.num_processes, self.hosts = 1, [socket.gethostname()]
        self._as_json = as_json

    def add(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.lines.append(line)
            if not self._as_json:
                print(line, flush=True)

    @property
    def failed(self) -> bool:
        return any(line.level == "FAIL" for line in self.lines)

    def close(self) -> None:
        if self._as_json:
            findings = [line._asdict() for line in self.lines]
            hosts = list(dict.fromkeys(self.hosts))
            report = {
                "failed": self.failed,
                "processes": self.num_processes,
                "hosts": hosts,
                "findings": findings,
            }
            print(json.dumps(report, indent=1))
            return
        counts = ", ".join(
            f"{sum(line.level == level for line in self.lines)} {level}" for level in ("ok", "warn", "FAIL")
        )
        print(f"{self.num_processes} process(es) on {len(set(self.hosts))} host(s): {counts}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dir", type=Path, action="append", metavar="DIR",
        help="a folder that all nodes should share, for data or runs; may be repeated (the current folder)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser.parse_args()


def main() -> int:
    """Make all checks; the processes end with the same exit code."""
    options = _parse()
    report = _Report(options.json)
    local = {"packages": run(checks.packages)}
    try:
        from hrm_dist.distributed.launch_env import launch_env
        from launch.doctor import together as checks_together  # noqa: F401  they need torch

        launch = launch_env()
    except (ImportError, InputError) as error:
        kind = "launcher" if isinstance(error, InputError) else "packages"
        finding = Finding("FAIL", f"{error}") if isinstance(error, InputError) else failure(error)
        return _ended(report, local, kind, finding)
    for name, check in checks.LOCAL.items():
        local[name] = run(partial(check, launch))
    if launch.warning:
        local["launcher"] = [Finding("warn", launch.warning)]
    try:
        return _check_together(report, local, options.dir or [Path()])
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        finding = Finding("FAIL", error.code.removeprefix("error: "))
    except InputError as error:
        finding = Finding("FAIL", str(error))
    except Exception as error:
        finding = failure(error)
    if launch.rank:
        print(Line("launcher", *finding), file=sys.stderr, flush=True)
        return 1
    return _ended(report, local if not report.lines else {}, "launcher", finding)


def _ended(report: _Report, local: dict[str, Findings], check: str, finding: Finding) -> int:
    """Report what this process found on its own, and what kept it from finding more."""
    for name, findings in local.items():
        report.add(merged(name, [findings], report.hosts))
    report.add([Line(check, *finding)])
    report.close()
    return 1


def _check_together(report: _Report, local: dict[str, Findings], folders: Sequence[Path]) -> int:
    """Join the other processes and check what takes all of them. Raises what kept them from it."""
    from hrm_dist.distributed import collectives
    from hrm_dist.distributed.process_group import process_group
    from launch.doctor import folders as checks_of_folders
    from launch.doctor import together as checks_together

    start = time.monotonic()
    with process_group("auto", timeout_s=_TIMEOUT_S) as world:
        met_s = time.monotonic() - start
        hosts = collectives.gather_objects(socket.gethostname())
        report.num_processes, report.hosts = world.world_size, hosts
        if world.world_size > 1:
            hosts_text = f"{len(set(hosts))} host(s)"
            text = (
                f"{world.world_size} processes on {hosts_text}, on {world.device.type}, met in {met_s:.1f} s"
            )
            local["launcher"] = [Finding("ok", text), *local.get("launcher", [])]
        names = [name for by_rank in collectives.gather_objects(list(local)) for name in by_rank]
        for name in dict.fromkeys(names):
            by_rank = collectives.gather_objects(local.get(name, []))
            if world.is_main:
                report.add(merged(name, by_rank, hosts))
        together: dict[str, Callable[..., Iterable[Finding]]] = {
            "cores": checks_together.cores,
            "all-reduce": checks_together.all_reduce,
            "clocks": checks_together.clocks,
            **{f"folder {path.absolute()}": partial(checks_of_folders.folder, path) for path in folders},
        }
        for name, check in together.items():
            findings = _findings(name, check, world, hosts)
            if world.is_main:
                report.add(Line(name, *finding) for finding in findings)
        failed = collectives.run_on_rank0(lambda: report.failed)
        if world.is_main:
            report.close()
    return int(failed)


def _findings(
    name: str, check: Callable[..., Iterable[Finding]], world: "World", hosts: Sequence[str]
) -> list[Finding]:
    """What a check of all processes finds; if it fails on one of several, the others cannot go on without it."""
    try:
        return list(check(world, hosts))
    except Exception as error:
        if world.world_size == 1:
            return [failure(error)]
        raise SystemExit(f"error: {name}: {failure(error).what}") from error


if __name__ == "__main__":
    sys.exit(exit_code(main))
