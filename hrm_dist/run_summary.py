"""What a finished run says at its end: its scores, where everything is, and the next command."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data_pipeline.base import jsonl
from data_pipeline.base.errors import InputError
from data_pipeline.schema import load_dataset_info
from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.metrics import scores_text


def print_summary(config: TrainConfig, step: int, work: str) -> None:
    """Print it, on rank 0 alone; work: what this process did."""
    if collectives.is_main():
        with suppress(OSError, ValueError, InputError):  # the run is complete, whatever can be said of it
            print(_summary(config, step, work), flush=True)


def _summary(config: TrainConfig, step: int, work: str) -> str:
    run = Path(config.checkpoint_path)
    checkpoints = run / "checkpoints"
    scores = _scores_by_step(run / "metrics.jsonl")
    best = checkpoints / "best"
    names = ["latest", "best"] if best.exists() else ["latest"]
    lines = [f"finished at step {step:,}: {work}"]
    if step in scores:
        lines.append(f"scores: {scores_text(scores[step])}")
    best_step = _step_of(best)
    if best_step in scores and best_step != step:
        lines.append(f"best, at step {best_step:,}: {scores_text(scores[best_step])}")
    places = [run / "metrics.jsonl", *(checkpoints / name for name in names)]
    lines.append(f"run folder: {run}, with {', '.join(str(place.relative_to(run)) for place in places)}")
    lines += [f"next: {command}" for command in _next_commands(config, checkpoints / names[-1])]
    return "\n".join(lines)


def _scores_by_step(metrics: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in jsonl.lines(metrics):
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            scores = {key.removeprefix("eval/"): row[key] for key in row if key.startswith("eval/")}
            if scores:
                found[int(row["step"])] = scores
    return found


def _step_of(link: Path) -> int:
    """Return the step of the checkpoint that a link names; -1 if there is none."""
    name = re.fullmatch(r"step_(\d+)", link.resolve().name)
    return int(name[1]) if name else -1


def _next_commands(config: TrainConfig, checkpoint: Path) -> Iterator[str]:
    """Yield what makes predictions and, of tasks, a submission of the run; nothing without held-out examples."""
    info = load_dataset_info(Path(config.data_path))
    if not info.splits.test.total_groups:
        return
    run, data = config.checkpoint_path, ["--data", config.data_path]
    predictions = str(Path(run) / "predictions" / checkpoint.resolve().name)
    yield shlex.join(["python", "-m", "tools.evaluate", str(checkpoint), *data, "--out", predictions])
    if info.kind == "arc":
        submission = str(Path(run) / "submission.json")
        yield shlex.join(["python", "-m", "tools.vote", predictions, *data, "--out", submission])
