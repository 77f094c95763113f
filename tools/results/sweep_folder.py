"""What the folder of a sweep says: a row for every setting, its score over seeds and its difference to the baseline."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.intervals import Interval, difference_text, interval_text
from tools.results.page import common_facts, table_text
from tools.results.run_folder import Row, RunFolder, architecture_facts, facts, lacking, read_object, read_run

FILE = "results.json"
_PLOTS = ("plot.png", "plot.svg")


class SweepFolder(NamedTuple):
    """A sweep, with the runs of it that are done."""

    path: Path
    content: dict[str, Any]
    runs: dict[str, list[RunFolder]]
    """By setting, in the order of the seeds."""

    @property
    def name(self) -> str:
        return Path(self.content["sweep"]).stem

    @property
    def plots(self) -> list[Path]:
        return [self.path / name for name in _PLOTS if (self.path / name).is_file()]


def read_sweep(path: Path) -> SweepFolder:
    """Read the folder of a sweep, and the folders of its runs; raise InputError where something is damaged."""
    content = read_object(path / FILE)
    try:
        runs = {
            name: [read_run(Path(run["folder"])) for run in setting["runs"] if run["state"] == "done"]
            for name, setting in content["settings"].items()
        }
        sweep = SweepFolder(path, content, runs)
        sweep_text(sweep)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path / FILE}: is not what tools.sweep writes ({error!r}); make it again with `python -m tools.sweep "
            "SWEEP.yaml --table`."
        ) from error
    return sweep


def sweep_text(sweep: SweepFolder) -> str:
    """Return a table with a row for each setting; what they have in common stands above it."""
    settings = sweep.content["settings"]
    known = [_facts(sweep, name) for name in settings]
    common = common_facts(known)
    rows = [
        {**_scores(sweep, name), **{head: cell for head, cell in row.items() if head not in common}}
        for name, row in zip(settings, known, strict=True)
    ]
    shared = "; ".join(f"{head}: {cell}" for head, cell in common.items())
    return "\n".join([f"All: {shared}.", "", table_text(rows)])


def _scores(sweep: SweepFolder, name: str) -> Row:
    content, setting = sweep.content, sweep.content["settings"][name]
    mean, difference = setting["mean"], setting["difference"]
    return {
        "setting": name,
        content["score"].removeprefix("eval/"): interval_text(_interval(mean)) if mean else "not trained",
        f"difference to {content['baseline']}": difference_text(_interval(difference)) if difference else "",
        "seeds": _seeds_text(setting["runs"]),
    }


def _seeds_text(runs: Sequence[Mapping[str, Any]]) -> str:
    done = [str(run["seed"]) for run in runs if run["state"] == "done"]
    return ", ".join(done) if len(done) == len(runs) else f"{', '.join(done) or 'none'} (of {len(runs)})"


def _facts(sweep: SweepFolder, name: str) -> Row:
    content, setting, runs = sweep.content, sweep.content["settings"][name], sweep.runs[name]
    inputs, operations = (setting["dataset"] or {}).get("inputs"), setting["operations"]
    known = facts(runs, architecture_facts(runs[0].config.arch)) if runs else {}
    known.pop("seeds", None)
    return {
        "inputs evaluated": f"{inputs:,}" if inputs else "",
        "weights": "last step" if content["at"] == "last" else "best evaluation",
        **known,
        "operations": f"{operations:.2g}".replace("e+", "e") if operations else "",
        "command": f"`python -m tools.sweep {content['sweep']}`",
    }


def _interval(value: Mapping[str, float | None]) -> Interval:
    """Return an interval as results.json has it, whose bounds are null where one seed alone is done."""
    bounds = (value[key] for key in Interval._fields)
    return Interval(*(math.nan if bound is None else bound for bound in bounds))


def notes_of(sweep: SweepFolder) -> list[str]:
    """Return what is missing."""
    content = sweep.content
    notes = [note for runs in sweep.runs.values() for run in runs for note in lacking(run)]
    if content["runs_done"] < content["runs"]:
        notes.insert(
            0,
            f"{sweep.path}: {content['runs_done']} of {content['runs']} runs are done; `python -m tools.sweep "
            f"{content['sweep']}` goes on",
        )
    return notes
