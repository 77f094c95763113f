"""What went wrong in a job, from what its processes and Slurm wrote to stderr."""

import re
from datetime import datetime, timedelta
from pathlib import Path

from launch.jobs.log import jobs_folder

_TAIL_BYTES = 1 << 18
_CLOCKS = timedelta(seconds=10)
# A progress bar: what stands before it is of an earlier start, or was overcome.
_BAR = re.compile(r"(\[\d\d(?::\d\d)+[<,][^\]\r\n]*\]) *")
_TIMED = re.compile(r"CANCELLED AT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_CAUSE = re.compile(r"oom.?kill|DUE TO (?:TIME LIMIT|PREEMPTION|NODE FAIL)", re.IGNORECASE)
_SLURM = re.compile(r"(?:srun|slurmstepd(?:-\S+)?): error: ")
_STOPPED = re.compile(r"stopped by .*(?:the state is saved|before the first step)")
# How well a line explains an end.
_CAUSE_OF_SLURM, _OF_COMMAND, _OF_SLURM, _SIGNAL = 6, 4, 2, 0


def logs(folder: Path, job_id: str) -> list[Path]:
    """The files with stderr of a job's processes, by rank; Slurm's own words are in the first."""
    form = re.compile(re.escape(job_id) + r"_(\d+)_log\.err")
    found = [
        (int(m[1]), path)
        for path in jobs_folder(folder).glob("*_log.err")
        if (m := form.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def last_error(files: list[Path], started: datetime | None) -> str | None:
    """The line that tells best why the job's start at a time ended; files grow over all of a job's starts."""
    found: list[tuple[int, str]] = []
    for rank, path in enumerate(files):
        try:
            # Only the first has a progress bar; the others are written when something happens.
            if rank and started and datetime.fromtimestamp(path.stat().st_mtime, started.tzinfo) < started:
                continue
            errors = _errors(_tail(path), started)
        except OSError:
            continue
        found += [(importance - (rank > 0), line) for importance, line in reversed(errors)]
    return max(found, key=lambda one: one[0])[1] if found else None


def _errors(text: str, started: datetime | None) -> list[tuple[int, str]]:
    """The lines that may say why the last start ended, in order, and how well each explains it."""
    found: list[tuple[int, str]] = []
    with_time: list[tuple[int, str]] = []
    in_traceback = False
    # What follows a bar may stand in the same line.
    for line in re.split(r"[\r\n]+", _BAR.sub(r"\1\n", text)):
        if timed := _TIMED.search(line):
            if started is not None and datetime.fromisoformat(timed[1]).astimezone() < started - _CLOCKS:
                found.clear()
            else:
                with_time.append((_CAUSE_OF_SLURM if _CAUSE.search(line) else _OF_SLURM, line))
        elif _BAR.search(line):
            found.clear()
        elif line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif in_traceback and line[:1] not in ("", " "):
            in_traceback = False
            found.append((_OF_COMMAND, line))
        elif line.startswith("error: "):
            found.append((_OF_COMMAND, line))
        elif _SLURM.match(line):
            found.append((_CAUSE_OF_SLURM if _CAUSE.search(line) else _OF_SLURM, line))
        elif _STOPPED.match(line):
            found.append((_SIGNAL, line))
    return with_time + found


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
