"""What a reader wants to know first of a run: what it was trained on, where, how long, and how it was evaluated."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import InputError, unreadable
from hrm_dist.config import flat_settings
from hrm_dist.evaluation.predictions import prediction_files
from hrm_dist.run_record import RunRecord
from tools.report.payload import Figure
from tools.report.runs import ANALYSIS, Run
from tools.results.run_folder import UNKNOWN, RunFolder, architecture_facts, lacking, read_object
from tools.results.run_folder import facts as facts_of_runs

MAX_FIGURES_BYTES = 4 * 2**20
"""Of all pictures of a run: beside them a page has to hold the puzzles in 10 MB."""


_FIRST = ("dataset", "evaluated on", "checkpoint", "seed", "commit", "trained", "minutes", "cost", "hardware")
_FIRST_OF_MORE = (
    "architecture",
    "parameters",
    "steps",
    "device hours",
    "operations",
    "trained on",
    "training puzzles",
)


def facts(run: Run, price_per_hour: float | None) -> dict[str, str]:
    """Return what is known of a run, what is asked most first; price_per_hour: of one device."""
    found = _of_dataset(run) | _of_training(run, price_per_hour) | _of_evaluation(run)
    known = {name: text for name, text in found.items() if text and text != UNKNOWN}
    return {name: known[name] for name in dict.fromkeys((*_FIRST, *_FIRST_OF_MORE, *known)) if name in known}


def settings(run: Run) -> dict[str, str]:
    """Return all settings of the training by dotted key."""
    if run.run is None:
        return {}
    flat = flat_settings(run.run.config.model_dump(mode="json"))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}


def warnings(run: Run) -> list[str]:
    """Return what a run lacks that its results rest on."""
    return [] if run.run is None else lacking(run.run)


def _of_dataset(run: Run) -> dict[str, str]:
    info = run.info
    if info is None:
        return {"dataset": str(run.data or "")}
    sizes = [f"{split}: {of.total_groups:,}" for split, of in info.splits]
    return {
        "dataset": f"{run.data}, {info.kind} {info.canvas} x {info.canvas}",
        "sources": ", ".join(source.name for source in info.sources) or "new puzzles",
        "groups": ", ".join(sizes),
        "trained on": info.subset("train"),
        "evaluated on": info.evaluated(run.evaluation.max_groups if run.evaluation else None),
    }


def _of_training(run: Run, price_per_hour: float | None) -> dict[str, str]:
    if run.run is None or run.folder is None:
        return {}
    row = facts_of_runs([run.run], architecture_facts(run.run.config.arch))
    seeds = row.pop("seeds")
    saved_at = run.run.record.saved_at if run.run.record else None
    found = {name: text for name, text in row.items() if name not in ("subset", "task")}
    return {
        "run folder": str(run.folder),
        **found,
        "seed": seeds,
        "trained": f"{saved_at:%Y-%m-%d %H:%M} UTC" if saved_at else "",
        **_of_time(run.run, price_per_hour),
        "operations": _operations(run),
    }


def _of_time(run: RunFolder, price_per_hour: float | None) -> dict[str, str]:
    if run.record is None or not run.record.seconds_trained:
        return {}
    hours = device_hours(run.record)
    found = {"device hours": _range(hours, "{:.3g}")}
    if price_per_hour is not None:
        costs = [one * price_per_hour for one in hours]
        found["cost"] = f"{_range(costs, '{:.2f}')}, at {price_per_hour:g} for the hour of a device"
    return found


def device_hours(record: RunRecord) -> list[float]:
    """Return the hours of training of all devices: GPUs, or where none are used the machines of its CPUs.

    Where starts had different numbers of devices, which took how long is not known: then the least and the most.
    """
    counts = {sum(start.hardware.gpus.values()) or start.hardware.num_nodes for start in record.starts}
    return [record.seconds_trained / 3600 * count for count in sorted({min(counts), max(counts)})]


def _range(values: Sequence[float], form: str) -> str:
    return " to ".join(form.format(value) for value in values)


def _operations(run: Run) -> str:
    """Return how many matmul operations the training took; empty where the dataset or the step is not known."""
    assert run.run is not None
    config, step = run.run.config, run.run.step
    if run.info is None or not step or config.padding != "keep":
        return ""
    from tools.sweep.cost import operations_per_step, operations_text

    first = run.run.record.first_step if run.run.record else 0
    return operations_text((step - first) * operations_per_step(config, run.info.metadata("train")))


def _of_evaluation(run: Run) -> dict[str, str]:
    known = run.evaluation
    found = {
        "predictions": ", ".join(map(str, run.predictions[:3]))
        + (", ..." if len(run.predictions) > 3 else ""),
        "prediction files of": _date(*prediction_files(run.predictions)),
    }
    if known is None:
        return found
    rules = {name.replace("_", " "): value for name, value in known.rules().items() if value is not None}
    rules |= {"segments kept": "all" if known.every_segment else "the last"}
    return found | {
        "checkpoint": known.checkpoint_id,
        "rules of evaluation": ", ".join(f"{name} {value}" for name, value in rules.items()),
    }


def _date(*files: Path) -> str:
    """Return when the last of some files was written."""
    times = [file.stat().st_mtime for file in files if file.exists()]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(max(times))) if times else ""


# Pictures of tools.analyze


def figures(run: Run) -> list[Figure]:
    """Return the pictures of RUN/analysis, none if it is not there. Raise InputError for a damaged one."""
    folder = run.folder and run.folder / ANALYSIS
    path = folder and folder / "analysis.json"
    if folder is None or path is None or not path.exists():
        return []
    listed: Any = read_object(path).get("figures", [])
    if not isinstance(listed, list):
        raise InputError(f"{path}: figures is no list; make it again with tools.analyze.")
    found = [_figure(folder, path, one) for one in listed]
    size = sum(len(figure.uri) for figure in found)
    if size > MAX_FIGURES_BYTES:
        raise InputError(
            f"{folder}: its pictures take {size / 2**20:.1f} MB, and a page has {MAX_FIGURES_BYTES >> 20} MB for them; "
            "list fewer in analysis.json, or make them again with tools.analyze."
        )
    return found


def _figure(folder: Path, path: Path, entry: Mapping[str, Any]) -> Figure:
    try:
        name, title, caption = (str(entry[key]) for key in ("file", "title", "caption"))
    except (KeyError, TypeError):
        raise InputError(
            f"{path}: figures has an entry without file, title or caption; make it again with tools.analyze."
        ) from None
    if Path(name).name != name or not name.endswith(".png"):
        raise InputError(
            f"{path}: figures has the file {name!r}, which is no PNG of its folder; make it again."
        )
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise unreadable(folder / name, error) from None
    return Figure(
        title=title, caption=caption, uri=f"data:image/png;base64,{base64.b64encode(content).decode()}"
    )
