"""What a finished run says at its end: its scores, where everything is, and the next command."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import duration
from data_pipeline.schema import load_dataset_info
from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.evaluation.scores import SCORES_FILE, Scores, count_text, scores_by_step, scores_text
from hrm_dist.run_record import read_record


def print_summary(config: TrainConfig, step: int, work: str, *, is_resumed: bool) -> None:
    """Print it, on rank 0 alone; work: what this process did; is_resumed: whether others did some before."""
    if collectives.is_main():
        with suppress(OSError, ValueError, InputError):  # the run is complete, whatever can be said of it
            print(_summary(config, step, work, is_resumed), flush=True)


def _summary(config: TrainConfig, step: int, work: str, is_resumed: bool) -> str:
    run = Path(config.checkpoint_path)
    checkpoints = run / "checkpoints"
    scores = scores_by_step(run / "metrics.jsonl")
    best = checkpoints / "best"
    names = ["latest", "best"] if best.exists() else ["latest"]
    record = read_record(run) if is_resumed else None
    in_all = f"; {duration(record.seconds_trained)} of training in all" if record else ""
    lines = [f"finished at step {step:,}: {work}{in_all}"]
    subset = load_dataset_info(Path(config.data_path)).evaluated(config.eval_max_groups)
    if step in scores:
        lines.append(f"scores{subset and f' on {subset}'}: {_scores_text(scores[step])}")
    best_step = _step_of(best)
    if best_step in scores and best_step != step:
        lines.append(f"best, at step {best_step:,}: {_scores_text(scores[best_step])}")
    places = [
        "metrics.jsonl",
        *(f"checkpoints/{name} (step {_step_of(checkpoints / name):,})" for name in names),
    ]
    lines.append(f"run folder: {run}, with {', '.join(places)}")
    lines += [f"next: {command}" for command in _next_commands(config, checkpoints / names[-1])]
    return "\n".join(lines)


def _scores_text(scores: Scores) -> str:
    return "; ".join(filter(None, (scores_text(scores), count_text(scores, with_interval=True))))


def _step_of(link: Path) -> int:
    """Return the step of the checkpoint that a link names; -1 if there is none."""
    name = re.fullmatch(r"step_(\d+)", link.resolve().name)
    return int(name[1]) if name else -1


def _next_commands(config: TrainConfig, checkpoint: Path) -> Iterator[str]:
    """Yield what shows the model at work, makes predictions, of tasks a submission, and a report.

    Nothing without held-out examples.
    """
    info = load_dataset_info(Path(config.data_path))
    if not info.splits.test.total_groups:
        return
    run, data = config.checkpoint_path, ["--data", config.data_path]
    predictions = str(Path(run) / "predictions" / checkpoint.resolve().name)
    yield shlex.join(["python", "-m", "tools.show", str(checkpoint), *data])
    kept = [*data, "--out", predictions, "--every-segment"]
    yield shlex.join(["python", "-m", "tools.evaluate", str(checkpoint), *kept])
    if info.kind == "arc":
        outputs = ["--out", str(Path(run) / "submission.json"), "--scores", str(Path(run) / SCORES_FILE)]
        yield shlex.join(["python", "-m", "tools.vote", predictions, *data, *outputs])
    yield shlex.join(["python", "-m", "tools.report", predictions, "--out", str(Path(run) / "report.html")])
