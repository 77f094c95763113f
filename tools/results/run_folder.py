"""What a run folder says of a result: the facts of its row in a table, and its scores."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base.errors import InputError, unreadable
from data_pipeline.schema import SHOWN_HASH, SPLITS
from data_pipeline.subsets import named
from hrm_dist.checkpoint.config_changes import NOT_IN_THE_RESULT
from hrm_dist.config import ArchConfig, TrainConfig, flat_settings, load_config
from hrm_dist.evaluation.intervals import interval_text, mean_interval, share_interval
from hrm_dist.evaluation.scores import (
    SCORES_FILE,
    SHARES_OF_EXAMPLES,
    Count,
    Scores,
    count_examples,
    count_right,
    scores_by_step,
)
from hrm_dist.run_record import Dataset, RunRecord, read_record

UNKNOWN = "unknown"
_SHOWN_COMMIT = 10

Row = dict[str, str]
"""Cells of a table by the heads of their columns, in the columns' order."""


class RunFolder(NamedTuple):
    """The content of a run folder."""

    path: Path
    config: TrainConfig
    record: RunRecord | None
    """None of a run of an earlier version."""
    evaluations: dict[int, dict[str, float]]
    """Scores by step, from metrics.jsonl."""
    votes: dict[str, Any] | None
    """The content of scores.json: of tools.vote --scores, or what tools.evaluate has left with predictions."""

    @property
    def step(self) -> int | None:
        if self.record is not None:
            return self.record.step
        return max(self.evaluations, default=None)

    @property
    def key(self) -> str:
        """Return what runs have in common that differ by their seed alone."""
        config = self.config.model_dump(mode="json")
        settings = [
            (name, value)
            for name, value in flat_settings(config).items()
            if name.partition(".")[0] not in {"seed", *NOT_IN_THE_RESULT}
        ]
        dataset = self.record.dataset.sha256 if self.record else self.config.data_path
        return json.dumps(
            [settings, dataset, self.step, self.config.eval_max_groups, self.config.eval_num_aug]
        )


def read_run(path: Path) -> RunFolder:
    """Read a run folder; raise InputError for another one, or where something is damaged."""
    if not (path / "config.yaml").is_file():
        raise InputError(
            f"{path}: has neither config.yaml, as a run folder, nor results.json, as a sweep's; give one of these."
        )
    metrics, votes = path / "metrics.jsonl", path / SCORES_FILE
    try:
        evaluations = scores_by_step(metrics)
    except OSError as error:
        raise unreadable(metrics, error) from None
    return RunFolder(
        path,
        load_config(path / "config.yaml"),
        read_record(path),
        evaluations,
        _read_votes(votes) if votes.exists() else None,
    )


def _read_votes(path: Path) -> dict[str, Any]:
    content = read_object(path)
    if not isinstance(content.get("scores"), dict):
        raise InputError(
            f"{path}: has no scores; make it again with `python -m tools.vote ... --scores {path}`."
        )
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise InputError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no JSON object; make it again.")
    return content


# The facts of a row


def facts(runs: Sequence[RunFolder], architecture: Row) -> Row:
    """Return what is known of runs that differ by their seed alone, but for their scores; architecture: its cells."""
    config, records = runs[0].config, [run.record for run in runs if run.record]
    dataset = records[0].dataset if records else None
    starts = [start for record in records for start in record.starts]
    commits = [commit_text(start.git_revision) for start in starts]
    parameters = next((record.num_parameters for record in records if record.num_parameters), None)
    return {
        "task": task_text(dataset) if dataset else UNKNOWN,
        "training puzzles": puzzles_text(dataset) if dataset else UNKNOWN,
        "subset": subset_text(dataset) if dataset else UNKNOWN,
        **architecture,
        "parameters": f"{parameters:,}" if parameters else UNKNOWN,
        "steps": " / ".join(dict.fromkeys(map(_steps_text, runs))),
        "batch": f"{config.global_batch_size:,}",
        "hardware": " / ".join(dict.fromkeys(str(start.hardware) for start in starts)) or UNKNOWN,
        "minutes": _minutes_text(records) if records else UNKNOWN,
        "seeds": ", ".join(str(run.config.seed) for run in runs),
        "commit": " / ".join(dict.fromkeys(commits)) or UNKNOWN,
    }


def task_text(dataset: Dataset) -> str:
    """Return what puzzles a dataset is of."""
    size = f"{dataset.kind} {dataset.canvas} x {dataset.canvas}"
    return f"{size}, {', '.join(dataset.sources)}" if dataset.sources else size


def puzzles_text(dataset: Dataset) -> str:
    """Return how many puzzles train, whether these are all of a source, and how often each is augmented."""
    chosen_by = ("subsample", "min_difficulty", "limit_groups")
    is_full = dataset.sources and all(dataset.options.get(name, 0) is None for name in chosen_by)
    num_aug = dataset.options.get("num_aug")
    augmented = f", {num_aug:,} augmentations each" if num_aug else ""
    return f"{'full: ' if is_full else ''}{dataset.train_groups:,}{augmented}"


def subset_text(dataset: Dataset) -> str:
    """Return the puzzles of both splits, NAME@HASH each, as `--subset` takes them."""
    found = dataset.subsets
    if found is None:
        return UNKNOWN
    known = named(found, None)  # a dataset may be older than the name of its puzzles
    shown = [
        (found[split].name or known[split].name or dataset.kind, found[split].sha256[:SHOWN_HASH])
        for split in SPLITS
        if found[split].num
    ]
    if len({name for name, _ in shown}) == 1:
        return f"{shown[0][0]}@{'+'.join(digits for _, digits in shown)}"
    return ", ".join("@".join(one) for one in shown)


def architecture_facts(arch: ArchConfig) -> Row:
    """Return what an architecture is, its size and its loops."""
    layers = " + ".join(str(getattr(arch, level.num_layers)) for level in arch.description.levels.values())
    is_fixed = arch.halt_max_steps == 1 or arch.halting == "fixed"
    return {
        "architecture": f"{arch.name} ({'MLP' if arch.mlp_t else 'attention'})",
        "layers": f"{layers}, {arch.hidden_size} wide",
        "cycles": f"{arch.H_cycles} x {arch.L_cycles}",
        "segments": f"{'' if is_fixed else 'up to '}{arch.halt_max_steps}",
    }


def architecture_text(arch: ArchConfig) -> str:
    """Return that in one cell."""
    known = architecture_facts(arch)
    return ", ".join([known.pop("architecture"), *(f"{head} {cell}" for head, cell in known.items())])


def commit_text(revision: str | None) -> str:
    """Return a commit's first digits."""
    if revision is None:
        return UNKNOWN
    commit, _, dirty = revision.partition("-")
    return f"{commit[:_SHOWN_COMMIT]}{' with changes' if dirty else ''}"


def _steps_text(run: RunFolder) -> str:
    step = UNKNOWN if run.step is None else f"{run.step:,}"
    if run.record is None or run.record.is_finished:
        return step
    return f"{step} of {run.record.last_step:,}, not finished"


def _minutes_text(records: Sequence[RunRecord]) -> str:
    minutes = sum(record.seconds_trained for record in records) / len(records) / 60
    first_steps = {record.first_step for record in records} - {0}
    since = f", from step {min(first_steps):,} on" if first_steps else ""
    return f"{minutes:.1f}{since}"


def command_text(runs: Sequence[RunFolder]) -> str:
    """Return the commands of a run, and of which other seeds there were."""
    starts = runs[0].record.starts if runs[0].record else ()
    commands = [f"`{command}`" for command in dict.fromkeys(start.command for start in starts)]
    others = ", ".join(str(run.config.seed) for run in runs[1:])
    return (", then ".join(commands) or UNKNOWN) + (f"; likewise with seed {others}" if others else "")


# Scores


class Score(NamedTuple):
    """A share of the inputs of an evaluation, or of a set of tasks."""

    name: str
    value: float
    inputs: Count | None
    """None where the number of inputs is not known, as in runs of earlier versions."""


def scores_of(run: RunFolder) -> list[Score]:
    """Return a run's scores: those of its vote, or else of its last evaluation; none where nothing was scored."""
    if run.votes is not None:
        return [
            score for name, values in run.votes["scores"].items() for score in _shares(f"{name}: ", values)
        ]
    return _shares("", run.evaluations[max(run.evaluations)]) if run.evaluations else []


def _shares(prefix: str, scores: Scores) -> list[Score]:
    if "input/pass@2" in scores:
        return [Score(f"{prefix}pass@{k}", scores[f"input/pass@{k}"], count_right(scores, k)) for k in (2, 1)]
    return [
        Score(
            f"{prefix}{name.removesuffix('_accuracy').replace('_', ' ')}",
            scores[name],
            count_examples(scores, name),
        )
        for name in SHARES_OF_EXAMPLES
        if name in scores
    ]


def score_cell(runs: Sequence[RunFolder]) -> str:
    """Return the scores of runs that differ by their seed alone, a line each, and of which weights they are."""
    by_name: dict[str, list[Score]] = {}
    for run in runs:
        for score in scores_of(run):
            by_name.setdefault(score.name, []).append(score)
    lines = [score_text(name, scores) for name, scores in by_name.items()]
    steps = dict.fromkeys(_weights_text(run) for run in runs if scores_of(run))
    return "<br>".join([*lines, " / ".join(steps)]) if lines else "not scored"


def score_text(name: str, scores: Sequence[Score]) -> str:
    count = scores[0].inputs
    unit = f"{count.num:,} {count.unit}" if count else f"{UNKNOWN} number of inputs"
    if len(scores) > 1:
        mean = interval_text(mean_interval([score.value for score in scores]))
        return f"{name} {mean}, mean of {len(scores)} seeds, {unit}"
    if count is None:
        return f"{name} {100 * scores[0].value:.1f} %, {unit}"
    return f"{name} {interval_text(share_interval(count.right, count.num))}, {count.right:,} of {unit}"


def _weights_text(run: RunFolder) -> str:
    """Return of which weights the scores of a run are."""
    if run.votes is None:
        steps = [max(run.evaluations)]
    else:
        found = [re.match(r"step_(\d+)-", name) for name in run.votes.get("checkpoint_ids", [])]
        steps = [int(name[1]) for name in found if name]
    if not steps:
        return f"{UNKNOWN} step"
    last_step = run.record.last_step if run.record else run.step
    return "last step" if steps == [last_step] else f"step {', '.join(f'{step:,}' for step in steps)}"


def lacking(run: RunFolder) -> list[str]:
    """Return what a run does not say of itself."""
    if run.record is None:
        return [
            f"{run.path}: has no run.json, as runs of earlier versions, so what it was trained on, where and how long "
            "is unknown"
        ]
    return [] if run.record.is_finished else [f"{run.path}: is not finished; its command goes on with it"]


def lacking_scores(run: RunFolder) -> list[str]:
    """Return which scores a run does not have, and what to do."""
    if not scores_of(run):
        return [f"{run.path}: has no scores; evaluate it during training (eval_interval)"]
    if run.votes is None and "input/pass@2" in run.evaluations[max(run.evaluations)]:
        return [
            f"{run.path}: has no {SCORES_FILE}, so its scores are of the evaluation during training; `python -m "
            f"tools.vote PREDICTIONS ... --scores {run.path / SCORES_FILE}` has those of the submission"
        ]
    return []
