"""Run checkpoints on puzzles, analyse what they do, and write it down."""

import argparse
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import make_folder, write_json
from data_pipeline.base.progress import Progress, progress_bar
from data_pipeline.base.revision import git_revision
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from data_pipeline.schema import HOW_TO_HOLD_OUT, IGNORE_LABEL_ID, NOTHING_HELD_OUT, dataset_sha256
from hrm_dist.checkpoint.config_changes import NOT_IN_THE_RESULT
from hrm_dist.checkpoint.reader import CheckpointState, content_sha256, identity, read_state
from hrm_dist.config import ArchConfig, flat_settings
from hrm_dist.distributed.launch_env import launch_env
from hrm_dist.evaluation.intervals import mean_interval, share_interval
from hrm_dist.evaluation.load_model import load_model, refuse_other_dataset
from hrm_dist.model.act import ACTModel
from hrm_dist.model.initialization import initialize
from tools.analyze import dimensions
from tools.analyze.agreement import MOST_PUZZLES, NUM_IMAGES, agreement
from tools.analyze.difficulty import by_difficulty
from tools.analyze.halting import calibrations, halting
from tools.analyze.paths import paths
from tools.analyze.pictures import draw_all
from tools.analyze.residuals import residuals
from tools.analyze.staying import staying
from tools.analyze.tables import summary
from tools.analyze.watch import Puzzles, Watched, watch

FORMAT = 1
_SEGMENTS_BEYOND = 4
"""How many times the segments of training are run, where the command does not say."""


class Chosen(NamedTuple):
    """The puzzles that all checkpoints are run on."""

    reader: TestReader
    rows: NDArray[np.int64]  # [N] of the split
    puzzles: Puzzles


class Plan(NamedTuple):
    """What is to be done with a checkpoint."""

    name: str
    checkpoint: Path
    arch: ArchConfig
    seed: int
    step: int
    settings_sha256: str
    """Of all settings that decide the trained weights, but the seed."""
    segments: int

    @property
    def trained_segments(self) -> int:
        return self.arch.halt_max_steps


def analyze(options: argparse.Namespace) -> int:
    """Do what the command line asks for; return the exit code."""
    device = _device(options)
    chosen = _choose(options)
    plans = _plans(options, chosen.reader)
    try:
        make_folder(options.out)  # before what takes long
    except OSError as error:
        raise unwritable(f"--out {options.out}", error) from error
    num, images = len(chosen.rows), NUM_IMAGES * min(MOST_PUZZLES, len(chosen.rows))
    total = sum(num * plan.segments + (num + images) * plan.trained_segments for plan in plans)
    with progress_bar("analyze", "segment", total, shown=True) as progress:
        found = [_of_checkpoint(plan, chosen, options, device, progress) for plan in plans]
    report = {**_provenance(options, chosen), "checkpoints": found, "seeds": over_seeds(found)}
    plain_report = plain(report)
    plain_report["figures"] = draw_all(options.out, plain_report)
    write_json(options.out / "analysis.json", plain_report)
    print("\n".join(summary(plain_report)))
    print(f"\nwrote {options.out / 'analysis.json'} and {len(plain_report['figures'])} pictures beside it")
    return 0


def _device(options: argparse.Namespace) -> torch.device:
    """Return where to run; raise InputError for what is not there, and for several processes."""
    if (num := launch_env().world_size) > 1:
        raise InputError(f"{num} processes: this is a command for one; start it without a launcher.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; give --device cpu, or leave it out.")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(options.device)


def _choose(options: argparse.Namespace) -> Chosen:
    """Draw puzzles of the split, originals only; raise InputError if there are none."""
    reader = TestReader(options.data, split=options.split)
    originals = np.flatnonzero(reader.places().rounds == 0)
    if not len(originals):
        raise InputError(
            f"{options.data}: {NOTHING_HELD_OUT}; give --split train, or build a dataset with held-out puzzles "
            f"({HOW_TO_HOLD_OUT}) and train on it."
        )
    num = min(options.puzzles, len(originals))
    drawn = np.random.default_rng(options.seed).permutation(len(originals))[:num]
    # In the order of the draw, so that fewer puzzles are the first of more.
    rows = originals[drawn]
    return Chosen(reader, rows, Puzzles.of_batch(reader.take(rows)))


def _plans(options: argparse.Namespace, reader: TestReader) -> list[Plan]:
    """Read what the checkpoints are; raise InputError for one that is none, is of other data, or is given twice."""
    known: dict[str, Path] = {}
    plans = []
    for name, checkpoint in zip(names_of(options.checkpoints), options.checkpoints, strict=True):
        state = read_state(checkpoint)
        refuse_other_dataset(checkpoint, state, options.data, reader.info.metadata("train"))
        before = known.setdefault(content_sha256(checkpoint), checkpoint)
        if before is not checkpoint:
            raise InputError(f"{checkpoint}: is the same checkpoint as {before}; give each once.")
        arch = ArchConfig.model_validate({**state.config["arch"], "num_chains": 1})
        segments = options.max_segments or _SEGMENTS_BEYOND * arch.halt_max_steps
        if not arch.description.states:
            segments = 1  # nothing goes from one to the next
        settings_sha256 = _settings_sha256(state)
        plans.append(
            Plan(name, checkpoint, arch, int(state.config["seed"]), state.step, settings_sha256, segments)
        )
    return plans


def _settings_sha256(state: CheckpointState) -> str:
    settings = {
        key: value
        for key, value in flat_settings(state.config).items()
        if key != "seed" and key.partition(".")[0] not in NOT_IN_THE_RESULT
    }
    return hashlib.sha256(json.dumps(sorted(settings.items())).encode()).hexdigest()


def names_of(checkpoints: Sequence[Path]) -> list[str]:
    """Return short names that tell checkpoints apart: of the run, with the step where several are of one run."""
    paths_ = [Path(path.absolute()) for path in checkpoints]
    runs = [path.parent.parent.name for path in paths_]
    names = [
        run if runs.count(run) == 1 else f"{run}/{path.name}" for run, path in zip(runs, paths_, strict=True)
    ]
    return [
        name if names.count(name) == 1 else str(path) for name, path in zip(names, checkpoints, strict=True)
    ]


def _of_checkpoint(
    plan: Plan, chosen: Chosen, options: argparse.Namespace, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """Run a checkpoint, and then its initial weights, on the puzzles."""
    reader, puzzles = chosen.reader, chosen.puzzles
    kind = kind_named(reader.info.kind)

    def run(model: ACTModel, some: Puzzles, segments: int, *, most_cells: int = 0) -> Watched:
        return watch(
            model, some, kind, segments, options.batch_size, progress,
            most_cells=most_cells, seed=options.seed,
        )  # fmt: skip

    model = load_model(plan.checkpoint, options.data, reader.info.metadata("train"), ema=True, device=device)
    most_cells = puzzles.inputs.shape[1]
    watched = run(model, puzzles, plan.segments, most_cells=most_cells)
    last = min(plan.trained_segments, plan.segments) - 1
    agrees = agreement(
        options.data, reader, chosen.rows, puzzles, watched.preds[last], watched.outcomes.is_right[:, last],
        lambda some: run(model, some, last + 1).preds[-1],
    )  # fmt: skip
    initialize(model, plan.seed)
    initial = run(model, puzzles, min(plan.trained_segments, plan.segments), most_cells=most_cells)
    with progress.untimed():
        return {
            **_described(plan),
            **_of_states(plan, watched, initial, options.seed),
            **_of_answers(plan, chosen, watched),
            "agreement": agrees,
        }


def _described(plan: Plan) -> dict[str, Any]:
    fields = (
        "name",
        "hidden_size",
        "H_cycles",
        "L_cycles",
        "H_layers",
        "L_layers",
        "halt_max_steps",
        "halting",
    )
    return {
        "name": plan.name,
        "checkpoint": str(plan.checkpoint),
        "identity": identity(plan.checkpoint),
        "sha256": content_sha256(plan.checkpoint),
        "seed": plan.seed,
        "step": plan.step,
        "settings_sha256": plan.settings_sha256,
        "arch": {field: getattr(plan.arch, field) for field in fields},
        "states": list(plan.arch.description.states),
        "trained_segments": plan.trained_segments,
        "segments": plan.segments,
    }


def _of_states(plan: Plan, watched: Watched, initial: Watched, seed: int) -> dict[str, Any]:
    """Return what the states tell; a text in its place where there is nothing to tell."""
    if not watched.series:
        why = f"architecture {plan.arch.name} carries no state"
        return {section: {"why": why} for section in ("dimensions", "paths", "residuals")}
    is_finite = np.logical_and.reduce(
        [np.isfinite(of.means).all(axis=(1, 2)) for of in (*watched.series, *initial.series)]
    )
    if is_finite.sum() < 2:
        num, num_finite = len(is_finite), int(is_finite.sum())
        why = f"of {num} puzzles {num - num_finite} have numbers that overflow"
        if num == 1:
            why = "there is one puzzle alone"
        return {section: {"why": why} for section in ("dimensions", "paths", "residuals")}
    trained, untrained = ([series.of_puzzles(is_finite) for series in of.series] for of in (watched, initial))
    fast = plan.arch.H_cycles * plan.arch.L_cycles
    return {
        "dimensions": {
            "num_puzzles": int(is_finite.sum()),
            "cells_per_puzzle": trained[0].cells.shape[2],
            "trained": dimensions.measured(trained, seed=seed),
            "initial": dimensions.measured(untrained, seed=seed),
        },
        "paths": {series.name: paths(series) for series in trained},
        "residuals": {
            series.name: residuals(
                series,
                plan.trained_segments,
                plan.arch.L_cycles if len(trained) > 1 and series.updates_per_segment == fast else 1,
            )
            for series in trained
        },
    }


def _of_answers(plan: Plan, chosen: Chosen, watched: Watched) -> dict[str, Any]:
    """Return what the answers tell; where no truth is known, when it would stop alone."""
    outcomes, last = watched.outcomes, min(plan.trained_segments, plan.segments) - 1
    is_known, is_right = outcomes.is_known, outcomes.is_right
    found: dict[str, Any] = {"halting": halting(outcomes)}
    if not is_known.any():
        why = "the truth of all puzzles is hidden"
        return found | {
            section: {"why": why} for section in ("accuracy", "calibration", "staying", "difficulty")
        }
    info = chosen.reader.info
    look = kind_named(info.kind).look(info.canvas)
    num, right = int(is_known.sum()), int(is_right[is_known, last].sum())
    return found | {
        "accuracy": {"num": num, "right": right, "share": share_interval(right, num)},
        "calibration": calibrations(outcomes),
        "staying": staying(is_right[is_known], plan.trained_segments),
        "difficulty": by_difficulty(chosen.puzzles, is_right[:, last], is_known, look, info.pad_id),
    }


def over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the quotient of both states' participation ratios over checkpoints that differ in their seed alone.

    Geometric means, with Student's interval of logarithms: of trained weights, of initial ones, and of how many times
    the quotient of the trained ones is that of the initial ones of the same seed (`change`).
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for one in found:
        if "quotient" in one["dimensions"].get("trained", {}):
            groups.setdefault((one["settings_sha256"], one["step"]), []).append(one)
    result = {}
    for members in groups.values():
        if len({one["seed"] for one in members}) < max(2, len(members)):
            continue
        values = {
            weights: [one["dimensions"][weights]["quotient"] for one in members]
            for weights in ("trained", "initial")
        }
        names = list(values["trained"][0])
        means: dict[str, Any] = {
            weights: {name: mean_of_logs([one[name].value for one in of_all]) for name in names}
            for weights, of_all in values.items()
        }
        pairs = list(zip(*values.values(), strict=True))
        means["change"] = {
            name: mean_of_logs([after[name].value / before[name].value for after, before in pairs])
            for name in names
        }
        result[", ".join(one["name"] for one in members)] = {"num": len(members), **means}
    return result


def mean_of_logs(values: Sequence[float]) -> dict[str, float]:
    """Return the geometric mean of positive numbers with Student's interval of their logarithms."""
    interval = mean_interval([math.log(value) for value in values])
    return {name: math.exp(bound) for name, bound in interval._asdict().items()}


def _provenance(options: argparse.Namespace, chosen: Chosen) -> dict[str, Any]:
    info = chosen.reader.info
    return {
        "format": FORMAT,
        "command": ["python", "-m", "tools.analyze", *options.arguments],
        "version": version("hrm-dist"),
        "commit": git_revision(),
        "packages": {
            name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")
        },
        "device": options.device,
        "data": str(options.data),
        "dataset_sha256": dataset_sha256(options.data),
        "kind": info.kind,
        "split": options.split,
        "subset": info.subset(options.split),
        "num_puzzles": len(chosen.rows),
        "num_known": int((chosen.puzzles.labels != IGNORE_LABEL_ID).any(axis=1).sum()),
        "of_puzzles": int((chosen.reader.places().rounds == 0).sum()),
        "rows": np.sort(chosen.rows),
        "seed": options.seed,
    }


def plain(value: Any) -> Any:
    """Return what JSON can say: names for the fields of tuples, and None for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): plain(of_key) for key, of_key in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
