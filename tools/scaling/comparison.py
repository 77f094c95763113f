"""Evaluate every segment, then compare numbers of segments and rules, and write the results."""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from data_pipeline.base.progress import progress_bar
from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.checkpoint.reader import content_sha256, read_state
from hrm_dist.distributed.launch_env import launch_env
from hrm_dist.distributed.process_group import process_group
from hrm_dist.evaluation.load_model import refuse_other_dataset
from hrm_dist.evaluation.output_dir import Evaluation, read_evaluation
from hrm_dist.evaluation.start_options import RANDOMNESS
from tools import evaluate
from tools.scaling import plot, starts
from tools.scaling.cost import measure
from tools.scaling.outcomes import halting_rules, read_outcomes
from tools.scaling.results import Evaluated, Row, as_json, as_table, by_rule, by_segment


def compare(options: argparse.Namespace) -> int:
    """Do what the command line asks for; return the exit code."""
    if (num := launch_env().world_size) > 1:
        raise InputError(
            f"{num} processes: this is a command for one; evaluate with several by tools.evaluate first (see --help)."
        )
    reader = TestReader(options.data, options.max_groups, options.num_aug)
    _refuse_hidden_truth(options.data, reader)
    _refuse_doubles(options.checkpoints)
    trained = [_trained_segments(checkpoint, options.data, reader) for checkpoint in options.checkpoints]
    most = options.max_segments or trained[0]
    if options.max_segments is None and len(set(trained)) > 1:
        raise InputError(
            f"--max-segments is missing: the checkpoints were trained with {', '.join(map(str, trained))} segments; "
            "say how many all are to run."
        )
    folders = [options.out / "predictions"]
    if len(trained) > 1:
        folders = [options.out / f"predictions_{number}" for number in range(len(trained))]
    for checkpoint, folder in zip(options.checkpoints, folders, strict=True):
        if code := _evaluate(checkpoint, folder, most, options):
            return code
    evaluated = _read(folders, trained, options, reader)
    _warn_of_lost(evaluated)
    rules = halting_rules([one.of_first_starts for one in evaluated])
    of_starts = _starts_asked_for(evaluated, options.starts, most)
    total = (most + len(rules) + sum(map(len, of_starts.values()))) * len(evaluated)
    with progress_bar("compare", "score", total, shown=True) as progress:
        segments = by_segment(evaluated, reader, options.data, progress)
        halted = by_rule(rules, evaluated, reader, options.data, progress)
        chosen = starts.by_starts(of_starts, evaluated, reader, options.data, progress)
    _write(evaluated, segments, halted, chosen, options, reader)
    return 0


def _starts_asked_for(
    evaluated: Sequence[Evaluated], num_starts: int, most: int
) -> dict[starts.Run, list[starts.Way]]:
    """Return what is tried of several starts, and how answers are chosen; nothing of one."""
    if num_starts == 1:
        return {}
    has_residuals = all(np.isfinite(one.outcomes.residuals).any() for one in evaluated)
    return {run: starts.choices(run, has_residuals=has_residuals) for run in starts.runs(num_starts, most)}


def _refuse_hidden_truth(data: Path, reader: TestReader) -> None:
    num_originals = int((reader.places().rounds == 0).sum())
    batches = reader.batches(1024, stop=num_originals)
    if num_originals and not any((batch["labels"] != IGNORE_LABEL_ID).any() for batch in batches):
        raise InputError(
            f"{data}: the truth of all held-out puzzles is hidden, so there is nothing to compare; give a dataset "
            "with outputs."
        )


def _refuse_doubles(checkpoints: Sequence[Path]) -> None:
    """Refuse a checkpoint that is given twice: as two seeds it would narrow the intervals."""
    known: dict[str, Path] = {}
    for checkpoint in checkpoints:
        read_state(checkpoint)  # its message, if it is none
        before = known.setdefault(content_sha256(checkpoint), checkpoint)
        if before is not checkpoint:
            raise InputError(
                f"{checkpoint}: is the same checkpoint as {before}; give each once, of several seeds if there are."
            )


def _warn_of_lost(evaluated: Sequence[Evaluated]) -> None:
    """Say of how many inputs the numbers overflow."""
    for one in evaluated:
        # Of all starts of an input, any.
        of_inputs = one.outcomes.q_halt_logits.reshape(-1, one.num_starts, one.outcomes.num_segments)
        is_lost = np.logical_or.reduce(np.isnan(of_inputs), axis=1)
        if is_lost.any():
            print(
                f"warning: {one.checkpoint}: {is_lost.any(axis=1).sum():,} of {len(is_lost):,} inputs are lost after "
                f"some segments, {is_lost[:, -1].sum():,} after the last (q_halt_logits is NaN): the model's numbers "
                "overflow; they count as wrong there",
                file=sys.stderr,
            )


def _trained_segments(checkpoint: Path, data: Path, reader: TestReader) -> int:
    """Return how many segments a checkpoint was trained with; raise InputError if it cannot be evaluated."""
    state = read_state(checkpoint)
    refuse_other_dataset(checkpoint, state, data, reader.info.metadata("train"))
    return int(state.config["arch"]["halt_max_steps"])


def _evaluate(checkpoint: Path, folder: Path, max_segments: int, options: argparse.Namespace) -> int:
    """Let tools.evaluate complete the folder, and return its exit code."""
    arguments = [checkpoint, "--data", options.data, "--out", folder, "--device", options.device]
    arguments += ["--halting", "none", "--every-segment", "--max-segments", max_segments]
    if options.starts > 1:
        arguments += ["--starts", options.starts, "--choose", "q"]
    for name in ("num_aug", "max_groups", "batch_size", *RANDOMNESS, "noise_seed"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", value]
    return evaluate.main([str(argument) for argument in arguments])


def _read(
    folders: Sequence[Path], trained: Sequence[int], options: argparse.Namespace, reader: TestReader
) -> list[Evaluated]:
    """Read and score all answers, and measure what they cost."""
    evaluated = []
    total = len(reader) * len(folders)
    with (
        process_group(options.device) as world,
        progress_bar("score", "input", total, shown=True) as progress,
    ):
        for checkpoint, folder, most in zip(options.checkpoints, folders, trained, strict=True):
            record = read_evaluation(folder)
            assert record is not None
            outcomes = read_outcomes(folder, reader, progress, options.starts)
            overrides = {name: value for name in RANDOMNESS if (value := getattr(record, name)) is not None}
            with progress.untimed():
                cost = measure(
                    checkpoint, options.data, reader, options.batch_size or 64, world.device, overrides
                )
            evaluated.append(Evaluated(checkpoint, folder, record, most, outcomes, options.starts, *cost))
    return evaluated


def _write(
    evaluated: Sequence[Evaluated],
    segments: Sequence[Row],
    halted: Sequence[Row],
    chosen: starts.Chosen,
    options: argparse.Namespace,
    reader: TestReader,
) -> None:
    """Write and print the results."""
    score = "pass@2, test inputs" if "input/pass@2" in halted[0].scores[0] else "exact accuracy"
    on = reader.info.evaluated(options.max_groups)
    content = {
        "evaluated_on": on or None,
        "dataset_sha256": evaluated[0].record.dataset_sha256,
        "planned_sha256": evaluated[0].record.planned_sha256,
        "num_aug": options.num_aug,
        "inputs": len(reader),
        "num_starts": options.starts,
        **{name: getattr(evaluated[0].record, name) for name in (*RANDOMNESS, "noise_seed")},
        "score": score,
        "interval": "Wilson, inputs" if len(evaluated) == 1 else "Student, checkpoints",
        "checkpoints": [_described(one) for one in evaluated],
    }
    rows: dict[str, Any] = {
        name: list(map(as_json, of)) for name, of in (("segments", segments), ("rules", halted))
    }
    if chosen:
        rows["starts"] = starts.records(chosen)
    json_file, picture = options.out / "scaling.json", options.out / "scaling.png"
    replace_file(json_file, f"{json.dumps(content | rows, indent=1)}\n".encode())
    trained = [one.trained_segments for one in evaluated]
    title = _title(
        [one.checkpoint for one in evaluated],
        on.partition("@")[0] or options.data.absolute().name,
        noise := _noise_text(evaluated[0].record),
    )
    plot.draw(picture, segments, halted, trained_segments=trained, score=score, title=title)
    if chosen:
        print(f"start 0 of each input, alone{noise}:")
    print(as_table(segments, segments[-1], "segments"), "", sep="\n")
    print(as_table(halted, segments[-1], "halting"))
    pictures = [picture]
    if chosen:
        pictures.append(options.out / "scaling_starts.png")
        plot.draw_starts(pictures[-1], chosen, segments, score=score, title=title)
        for of_starts in starts.tables(chosen):
            print("", of_starts, sep="\n")
    print(json_file, *pictures, sep=", ")
    for row in chain.from_iterable(rows.values()):
        del row["by_checkpoint"]
    print(json.dumps(content | rows))


def _noise_text(record: Evaluation) -> str:
    """Return what is random otherwise than in training."""
    changed = {name: value for name in RANDOMNESS if (value := getattr(record, name)) is not None}
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in changed.items())


def _title(checkpoints: Sequence[Path], dataset: str, noise: str) -> str:
    """Name the run folder of the first, how many more there are, the dataset, and the noise."""
    first = checkpoints[0].absolute()
    name = first.parent.parent.name if first.parent.name == "checkpoints" else first.name
    more = len(checkpoints) - 1
    return f"{name}{f' and {more} more' * (more > 0)}, {dataset}{noise}"


def _described(one: Evaluated) -> dict[str, Any]:
    return {
        "checkpoint": str(one.checkpoint),
        "checkpoint_id": one.record.checkpoint_id,
        "checkpoint_sha256": one.record.checkpoint_sha256,
        "trained_segments": one.trained_segments,
        "operations_per_segment": one.operations,
        "seconds_per_segment": one.seconds,
    }
