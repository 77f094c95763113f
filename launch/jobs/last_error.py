"""Why one start of a job ended: the line of its stderr that explains it best."""

import re
from pathlib import Path

_TAIL_BYTES = 1 << 18
_OF_SLURM = r"(?:srun|slurmstepd\S*): error: "
# The first that occurs explains an end best. A progress bar, which ends in a bracket, may stand before any of them.
_EXPLANATIONS = (
    rf"{_OF_SLURM}.*(?i:oom.?kill|DUE TO (?:TIME LIMIT|PREEMPTION|NODE FAIL)).*",
    r"(?:^|\] *)(?:Traceback \(most recent call last\):\n(?:(?: .*)?\n)*|(?=error: ))(\S.*)",
    rf"{_OF_SLURM}.*",
    r"stopped by .*(?:the state is saved|before the first step).*",
)


def last_error(log: Path, start: int) -> str | None:
    """Return the line, of those from byte `start` on, that tells best why the job ended; None if none does."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace").replace("\r", "\n")
    except OSError:
        return None
    text = re.sub(r"^\[rank\d+\]: ?", "", text, flags=re.MULTILINE)  # torch puts it before tracebacks
    for explanation in _EXPLANATIONS:
        if found := re.findall(explanation, text, re.MULTILINE):
            return found[-1]
    return None
