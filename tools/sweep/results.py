"""What a sweep has found so far: figures of every run, means over seeds and differences, as JSON and as a table."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from data_pipeline.base.progress import duration, speed_text
from data_pipeline.base.revision import git_revision
from data_pipeline.base.table import table
from data_pipeline.schema import load_dataset_info
from hrm_dist.evaluation.intervals import (
    Interval,
    difference_interval,
    difference_text,
    interval_text,
    mean_interval,
)
from tools.sweep import pool
from tools.sweep.cost import operations_per_step, operations_text
from tools.sweep.pool import Found
from tools.sweep.spec import Setting, Sweep, digest

NOTE = (
    "Intervals are Student's at 95 %, over seeds, and may reach beyond what is possible; differences are taken seed by "
    "seed."
)


class Result(NamedTuple):
    """What is known of a setting."""

    setting: Setting
    runs: list[Found]
    """In the order of the seeds."""
    values: dict[int, float]
    """By the seed of a run that is done, its score."""
    mean: Interval | None
    difference: Interval | None
    """To the baseline, over the seeds that are done of both; None for the baseline itself."""
    operations: int | None
    """Matmul operations of a run; None while its dataset is not built."""

    @property
    def done(self) -> list[Found]:
        return [found for found in self.runs if found.is_done]

    def averaged(self, figure: str) -> float | None:
        """Return the mean of a figure over the runs that have it."""
        known = [value for found in self.done if (value := figures(found)[figure]) is not None]
        return sum(known) / len(known) if known else None


class Results(NamedTuple):
    """What is known of a sweep."""

    sweep: Sweep
    score: str
    """As in metrics.jsonl."""
    settings: list[Result]
    problems: list[str]
    """Runs that are done without that score."""

    @property
    def num_done(self) -> int:
        return sum(len(result.done) for result in self.settings)


def collect(sweep: Sweep) -> Results:
    """Read what the pool has of all runs."""
    found: dict[str, list[Found]] = {setting.name: [] for setting in sweep.settings}
    for run in sweep.runs:
        found[run.setting.name].append(pool.find(sweep.pool, run))
    done = [one for runs in found.values() for one in runs if one.is_done]
    score = sweep.score or _headline(done)
    values = {name: _values(runs, score, sweep.at) for name, runs in found.items()}
    problems = [
        f"{one.folder}: has no score={score}; it has {', '.join(one.scores[one.step])}"
        for one in done
        if one.run.seed not in values[one.run.setting.name]
    ]
    settings: list[Result] = []
    for setting in sweep.settings:
        own, base = values[setting.name], values[sweep.baseline]
        common = [seed for seed in sweep.seeds if seed in own and seed in base]
        difference = None
        if setting.name != sweep.baseline and common:
            difference = difference_interval([own[seed] for seed in common], [base[seed] for seed in common])
        last_step = found[setting.name][0].last_step
        operations = None if last_step is None else last_step * operations_per_step(setting.config)
        mean = mean_interval(list(own.values())) if own else None
        settings.append(Result(setting, found[setting.name], own, mean, difference, operations))
    return Results(sweep, score, settings, problems)


def _headline(done: Sequence[Found]) -> str:
    """Return the score by which checkpoints are compared."""
    rows = [one.scores[one.step] for one in done if one.step in one.scores]
    return next((name for name in pool.HEADLINES if any(name in row for row in rows)), pool.HEADLINES[-1])


def _values(runs: Sequence[Found], score: str, at: str) -> dict[int, float]:
    values: dict[int, float] = {}
    for found in runs:
        if found.is_done:
            assert found.last_step is not None
            rows = list(found.scores.values()) if at == "best" else [found.scores[found.last_step]]
            known = [row[score] for row in rows if score in row]
            if known:
                values[found.run.seed] = max(known)
    return values


def figures(found: Found) -> dict[str, Any]:
    """Return what a run took, as far as it is known."""
    record, size = found.record, found.run.config.global_batch_size
    seconds = record.seconds_trained if record is not None else 0.0
    steps = record.step - record.first_step if record is not None else 0
    return {
        "step": found.step,
        "seconds": seconds or None,
        "examples_per_s": steps * size / seconds if seconds else None,
    }


# Files


def write(results: Results) -> None:
    """Write results.json and table.md into the folder of the results. Raise WriteError."""
    out = results.sweep.out
    replace_file(out / "results.json", f"{json.dumps(as_json(results), indent=1)}\n".encode())
    replace_file(out / "table.md", f"{as_table(results)}\n".encode())


def as_json(results: Results) -> dict[str, Any]:
    """Return all figures."""
    sweep = results.sweep
    return {
        "sweep": str(sweep.path),
        "config": str(sweep.config),
        "score": results.score,
        "at": sweep.at,
        "baseline": sweep.baseline,
        "seeds": sweep.seeds,
        "git_revision": git_revision(),
        "runs_done": results.num_done,
        "runs": len(sweep.runs),
        "settings": {
            result.setting.name: _setting_as_json(result, results.score) for result in results.settings
        },
    }


def _setting_as_json(result: Result, score: str) -> dict[str, Any]:
    return {
        "overrides": result.setting.own,
        "operations": result.operations,
        "mean": _interval_as_json(result.mean),
        "difference": _interval_as_json(result.difference),
        "dataset": dataset_of(result),
        "runs": [
            {
                "seed": found.run.seed,
                "state": found.state,
                "folder": str(found.folder) if found.folder else None,
                "score": result.values.get(found.run.seed),
                **figures(found),
                "last_step": found.last_step,
                "git_revision": found.record.starts[-1].git_revision if found.record else None,
                "curve": [[step, row[score]] for step, row in found.scores.items() if score in row],
            }
            for found in result.runs
        ],
    }


def _interval_as_json(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {key: None if math.isnan(value) else value for key, value in interval._asdict().items()}


def dataset_of(result: Result) -> dict[str, Any] | None:
    """Return what a setting is trained and scored on; None while that is not built."""
    config = result.setting.config
    try:
        info = load_dataset_info(Path(config.data_path))
    except InputError:
        return None
    return {
        "data_path": config.data_path,
        "sha256": info.sha256,
        "subsets": info.model_dump(mode="json").get("subsets"),
        "inputs": _num_inputs(result),
    }


def _num_inputs(result: Result) -> int:
    """Return how many inputs a score is of: of ARC the test inputs themselves, without their augmentations."""
    for found in result.done:
        if (num := found.scores[found.step].get("eval/inputs")) is not None:
            return int(num)
    from data_pipeline.reader import TestReader  # torch is slow to load

    config = result.setting.config
    return len(TestReader(config.data_path, config.eval_max_groups, config.eval_num_aug))


# The table


def as_table(results: Results) -> str:
    """Return the table in Markdown, its columns as wide as they are in plain text, with what belongs to it below."""
    heads = [
        "setting",
        score_name(results),
        "difference",
        "seeds",
        "steps",
        "operations",
        "examples/s",
        "time",
    ]
    rows = [_cells(result, results) for result in results.settings]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = table([heads, rule, *rows])
    bars = [f"| {' | '.join(_columns(line, widths))} |" for line in lines]
    return "\n".join([*bars, "", *_notes(results)])


def _columns(line: str, widths: Sequence[int]) -> list[str]:
    """Cut a line of a plain table into its columns."""
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    return [line[start : start + width].ljust(width) for start, width in zip(starts, widths, strict=True)]


def score_name(results: Results) -> str:
    """Return the score's name for people."""
    return results.score.removeprefix("eval/")


def _cells(result: Result, results: Results) -> list[str]:
    percent = is_share(results)
    is_baseline = result.setting.name == results.sweep.baseline
    last_steps = [found.last_step for found in result.runs if found.last_step is not None]
    speed, seconds = result.averaged("examples_per_s"), result.averaged("seconds")
    difference = "" if result.difference is None else difference_text(result.difference, percent=percent)
    return [
        result.setting.name,
        "" if result.mean is None else interval_text(result.mean, percent=percent),
        "(baseline)" if is_baseline else difference,
        f"{len(result.values)} of {len(result.runs)}",
        f"{last_steps[0]:,}" if last_steps else "",
        "" if result.operations is None else operations_text(result.operations),
        "" if speed is None else speed_text(speed),
        "" if seconds is None else duration(seconds),
    ]


def is_share(results: Results) -> bool:
    """Return whether scores are shown in percent."""
    values = [value for result in results.settings for value in result.values.values()]
    return all(0 <= value <= 1 for value in values)


def _notes(results: Results) -> list[str]:
    """Return what stands under the table: which scores, of how many inputs, and what the intervals are."""
    sweep = results.sweep
    step = "the best evaluation of each run" if sweep.at == "best" else "the last step, whatever came before"
    lines = [f"{results.num_done} of {len(sweep.runs)} runs are done. Scores are those of {step}. {NOTE}"]
    inputs: dict[str, list[str]] = {}
    for result in results.settings:
        if (dataset := dataset_of(result)) is not None:
            text = f"{dataset['inputs']:,} held-out inputs of {dataset['data_path']}"
            text += f" (sha256 {dataset['sha256'][:12]}{_subset_text(dataset['subsets'])})"
            inputs.setdefault(text, []).append(result.setting.name)
    for text, names in inputs.items():
        of = "" if len(inputs) == 1 else f" ({', '.join(names)})"
        lines.append(f"Evaluated on {text}{of}.")
    first_of: dict[str, str] = {}
    for result in results.settings:
        name = result.setting.name
        first = first_of.setdefault(digest(result.setting.config), name)
        if first != name:
            lines.append(
                f"{name} has the runs of {first}, time included: what they differ in changes no scores."
            )
    commits = _commits(results.settings)
    if len(commits) > 1:
        lines.append(f"Runs are of several commits of the code: {', '.join(commits)}.")
    lines.append("Operations are the matrix products of a run's training; time is that of training alone.")
    return [*lines, *(f"error: {problem}" for problem in results.problems)]


def _commits(settings: Sequence[Result]) -> list[str]:
    """Return the commits of the code that trained the runs, as far as they are known."""
    starts = (
        start for one in settings for found in one.done if found.record for start in found.record.starts
    )
    full = (start.git_revision.partition("-") for start in starts if start.git_revision is not None)
    return sorted({f"{commit[:10]}{dash}{dirty}" for commit, dash, dirty in full})


def _subset_text(subsets: Mapping[str, Any] | None) -> str:
    """Return the names of the subsets for people, or their hashes where they have none."""
    named = [
        f"{split} {subset.get('name') or 'subset'}@{subset['sha256'][:12]}"
        for split, subset in (subsets or {}).items()
        if subset
    ]
    return f"; {', '.join(named)}" if named else ""
