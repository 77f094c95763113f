"""Predict the test split of a dataset with a checkpoint.

    python -m tools.evaluate runs/demo/checkpoints/latest --data data/demo --out runs/demo/predictions
    torchrun --nproc-per-node 8 -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions

Every example runs for halt_max_steps segments, as published, unless it may think less or more (what follows changes
answers; tools.scaling shows by how much):

    python -m tools.evaluate CHECKPOINT --data data/sudoku --out predictions --halting unchanged:2
    python -m tools.evaluate CHECKPOINT --data data/sudoku --out predictions --max-segments 64 --halting learned
    python -m tools.evaluate CHECKPOINT --data data/arc1 --out predictions --vote-until exact

A model may also try several times, with noise, whether or not it was trained with it, or from random states, for which
it should have been (arch.initial_states); then one of its answers is chosen, and what can no longer be chosen is
dropped:

    python -m tools.evaluate CHECKPOINT --data data/sudoku --out predictions --starts 8 --segment-noise 0.1 \
        --halting unchanged:2 --choose first
    python -m tools.evaluate runs/eqr_sudoku/checkpoints/latest --data data/sudoku --out predictions --starts 8

--choose takes the answer of highest q (q), the most frequent (vote), the first to halt (first) or the one whose state
changed least at last (residual, which compares tries that ran equally long: without --halting). The same --noise-seed
gives the same answers, in any batch and on any number of GPUs.

An example that is finished makes room for the next at once. --vote-until goes through the augmentations of each ARC
task in rounds, and stops where the vote on a test input is settled: exact (the first two answers can no longer change;
it saves little, since a second place is long open), or as tools.calibrate_vote has found on other tasks.

The folder says what was planned, and proves that each input was answered once; of Sudokus and mazes the scores are
printed here and written to its scores.json. Vote on ARC predictions with tools.vote. Files hold 128 to 1,024 examples,
or fewer, and come in any order; the same command after an interruption resumes with those that are missing: what is
lost is no more than a file and what the slots have finished since it began. --against compares the answers with those
of another folder, such as one of all segments.

To share an evaluation among jobs, give each its --part, with the same N, and the same --out on a disk that all see:

    python -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions --part 0/2
    python -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions --part 1/2
    python -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions

The last one, after them, predicts what is missing; where nothing is, it needs no GPU. Exit codes: 0 done, 2 bad
input (also a dataset of which nothing is held out, since there is nothing to predict), 75 stopped by a signal (the
same command resumes), 1 anything else.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.base import signals
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import EXIT_INTERRUPTED, InputError, exit_code
from data_pipeline.base.files import replace_file
from data_pipeline.base.parallel import Part, parse_part
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.reader import TestReader
from data_pipeline.schema import HOW_TO_HOLD_OUT, NOTHING_HELD_OUT
from hrm_dist.checkpoint.reader import CheckpointState, content_sha256, identity, read_state
from hrm_dist.config import ArchConfig
from hrm_dist.distributed import collectives
from hrm_dist.distributed.preemption import PreemptionHandler
from hrm_dist.distributed.process_group import World, process_group
from hrm_dist.evaluation import proof
from hrm_dist.evaluation.compare import compared, comparison_text, refuse_other_inputs
from hrm_dist.evaluation.continuous import Answering
from hrm_dist.evaluation.evaluate import score_fn
from hrm_dist.evaluation.fill_folder import Noted, Share, planned_inputs
from hrm_dist.evaluation.halting import HALTING_HELP, HaltingRule
from hrm_dist.evaluation.load_model import load_model, refuse_other_dataset
from hrm_dist.evaluation.output_dir import Evaluation, agree, claim, cut_of_tasks, rows_per_file
from hrm_dist.evaluation.predictions import Predictions, read_prediction_file
from hrm_dist.evaluation.puzzle_scores import summary, summary_text
from hrm_dist.evaluation.scores import SCORES_FILE
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.evaluation.start_options import (
    RANDOMNESS,
    add_start_options,
    changed_randomness,
    check_start_options,
)
from hrm_dist.evaluation.stopping import RULES, Calibration, parse_vote_rule, read_calibration
from hrm_dist.freed_memory import keep_freed_memory
from hrm_dist.model.act import ACTModel
from hrm_dist.model.flops import evaluation_flops_per_sequence, matmul_rate
from hrm_dist.model.kernels import require_c_compiler
from hrm_dist.model.network import Network

_SAMPLE = 1024
"""Inputs whose lengths stand for those of all, where padding is not computed."""

_WARM_UP_SEGMENTS = {"cpu": 1, "cuda": 15}
"""Not timed: they compile, and on a GPU are recorded."""


class _Speed(NamedTuple):
    """What was computed after the first segments."""

    num_segments: int
    """Of answers."""
    num_computed: int
    """Of all slots."""
    seconds: float


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for. Raises InputError, or ends the process where it is wrong."""
    parser = command_parser("tools.evaluate", __doc__)
    add = parser.add_argument
    add(
        "checkpoint", type=path_argument, metavar="CHECKPOINT", help="a folder such as .../checkpoints/latest"
    )
    add("--data", type=path_argument, required=True, metavar="DIR", help="the dataset of the training")
    add("--out", type=path_argument, required=True, metavar="DIR", help="folder for the predictions")
    add("--num-aug", type=int, metavar="N", help="augmentations per task beside the original (all)")
    add("--max-groups", type=int, metavar="N", help="only the first N tasks (all)")
    add("--halting", default="none", metavar="RULE", help=HALTING_HELP)
    add("--max-segments", type=int, metavar="N", help="segments at most (halt_max_steps of the training)")
    add(
        "--every-segment",
        action="store_true",
        help="keep every segment's answer, as changes, in OUT/segments",
    )
    add(
        "--vote-until",
        default="none",
        metavar="RULE",
        help=f"when the vote on a test input is settled: {RULES}",
    )
    add_start_options(parser)
    add("--against", type=path_argument, metavar="DIR",
        help="other predictions of the same inputs: tell which answers differ, and the score")  # fmt: skip
    add("--batch-size", type=int, default=64, metavar="N", help="examples at a time (%(default)s)")
    add("--weights", type=lambda text: "ema" if text == "average" else text, choices=("ema", "raw"), default="ema",
        help="the EMA where the run kept one (default), or the raw weights")  # fmt: skip
    add("--part", type=parse_part, default=Part(), metavar="I/N", help="predict one of N parts, I from 0")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action=argparse.BooleanOptionalAction, help="compile the model (default: for a GPU)")
    options = parser.parse_args(arguments)
    for name, least in (("num_aug", 0), ("max_groups", 1), ("batch_size", 1), ("max_segments", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
    options.halting = HaltingRule.parse(options.halting)
    check_start_options(options)
    rule_text = options.vote_until
    options.vote_until = parse_vote_rule(rule_text)
    is_file = str(options.vote_until) != rule_text and Path(rule_text).is_file()
    options.calibration = read_calibration(Path(rule_text)) if is_file else None
    return options


def evaluation_asked_for(
    options: argparse.Namespace, reader: TestReader, num_parts: int, num_ranks: int = 1
) -> Evaluation:
    """Return what the options mean for a dataset, but for the digest of the planned inputs.

    Raises InputError if the checkpoint was trained on another one, nothing of it is held out, or a rule does not apply.
    """
    state = read_state(options.checkpoint)
    refuse_other_dataset(options.checkpoint, state, options.data, reader.info.metadata("train"))
    if not len(reader):
        raise InputError(
            f"{options.data}: {NOTHING_HELD_OUT}, so there is nothing to predict; build a dataset with held-out "
            f"puzzles ({HOW_TO_HOLD_OUT}) and train on it."
        )
    arch = ArchConfig.model_validate(state.config["arch"])
    if options.halting.kind == "residual" and not arch.description.states:
        raise InputError(
            f"--halting {options.halting}: architecture {arch.name} carries no state from one segment to the next; "
            "give another rule."
        )
    changed = changed_randomness(options, arch)
    _say_what_was_not_trained(options.halting, arch, changed)
    cut = None
    if options.vote_until.name != "none":
        if score_fn(reader.info.kind) is None:
            raise InputError(
                f"--vote-until {options.vote_until}: {options.data} is of {reader.info.kind} puzzles, on which there "
                "is no vote; leave it out."
            )
        num_inputs = int((reader.places().rounds == 0).sum())
        cut = cut_of_tasks(len(reader), num_inputs, num_parts * num_ranks, options.starts)
    return Evaluation(
        checkpoint_id=f"{identity(options.checkpoint)}-{_weights(options, state)}",
        num_aug=options.num_aug,
        max_groups=options.max_groups,
        num_rows=len(reader),
        rows_per_file=rows_per_file(len(reader), num_parts, options.starts),
        checkpoint_sha256=content_sha256(options.checkpoint),
        dataset_sha256=state.dataset["sha256"],
        subset=reader.info.evaluated(options.max_groups) or None,
        max_segments=options.max_segments or arch.halt_max_steps,
        halting=str(options.halting),
        every_segment=options.every_segment,
        starts=options.starts,
        choose=options.choose,
        noise_seed=options.noise_seed,
        **changed,
        vote_rule=str(options.vote_until),
        calibration=options.calibration,
        cut=cut,
    )


def _say_what_was_not_trained(halting: HaltingRule, arch: ArchConfig, changed: Mapping[str, Any]) -> None:
    if halting.kind == "learned" and arch.halting == "fixed":
        _say(
            "note: the model was trained with halting: fixed, so its Q-head has never decided when to halt; "
            "tools.scaling shows what this rule costs"
        )
    if changed.get("initial_states") == "random":
        _say(
            "note: the model was trained with initial_states: fixed, and may answer far worse from random ones; noise "
            "disturbs it less"
        )


def _weights(options: argparse.Namespace, state: CheckpointState) -> str:
    has_ema = any(key.startswith("ema.") for key in state.tensors)
    # In files "ema" has always been "average", and folders begun before can be completed.
    return "average" if options.weights == "ema" and has_ema else "raw"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the prediction files that are not there yet."""
    options = parse_arguments(arguments)
    with closing(PreemptionHandler()) as stop, process_group(options.device) as world:
        keep_freed_memory(world.device)
        reader = TestReader(options.data, options.max_groups, options.num_aug)
        evaluation, num_new, is_complete = _fill(options, reader, world, stop)
        if not is_complete:
            units = evaluation.units(options.out)
            num_there = sum(path.exists() for path in units)
            collectives.announce_end(
                f"stopped by {stop.signal_name or 'a signal to another process'}; {num_there} of {len(units)} "
                f"{evaluation.unit} of {options.out} are there, and the same command resumes"
            )
            return EXIT_INTERRUPTED
        if world.is_main:
            _sum_up(options, evaluation, reader, num_new)
    return 0


def _fill(
    options: argparse.Namespace, reader: TestReader, world: World, stop: PreemptionHandler
) -> tuple[Evaluation, int, bool]:
    """Predict what is missing; return what the folder is of, how many files were missing, and whether none is now."""
    out: Path = options.out
    part: Part = options.part
    asked = evaluation_asked_for(options, reader, part.count, world.world_size)
    evaluation = collectives.run_on_rank0(lambda: agreed(options, asked))
    _say_what_was_calibrated(options.calibration, asked, reader)
    todo = collectives.run_on_rank0(lambda: _missing(evaluation, out, part))
    if not todo:
        collectives.run_on_rank0(lambda: _plan_again(evaluation, out, reader))
        return evaluation, 0, True
    metadata = reader.info.metadata("train")
    overrides = {name: value for name in RANDOMNESS if (value := getattr(evaluation, name)) is not None}
    model = load_model(
        options.checkpoint, options.data, metadata,
        ema=options.weights == "ema", device=world.device, overrides=overrides,
    )  # fmt: skip
    evaluation = collectives.run_on_rank0(lambda: _claim(out, asked, part, reader))
    # Listed once for all ranks: one that looked later would already see files of the others.
    todo = collectives.run_on_rank0(lambda: _missing(evaluation, out, part))
    segment = _segment(model, evaluation, options, reader, world)
    rule = HaltingRule.parse(evaluation.halting)
    answering = Answering(
        segment, reader, rule, evaluation.max_segments or model.arch.halt_max_steps,
        keeps_trajectories=evaluation.every_segment, num_starts=evaluation.starts, noise_seed=evaluation.noise_seed,
    )  # fmt: skip
    units = Part(world.rank, world.world_size).share(todo)
    share = Share(out, evaluation, reader, options.data, units)
    # Before and after, since others may use the machine.
    rates = [matmul_rate(world.device, model.dtype)]
    is_complete, total, speed = _predict_together(share, answering, world, stop)
    rates.append(matmul_rate(world.device, model.dtype))
    _tell(collectives.gather_objects((total, speed)), segment, reader, max(rates) * world.world_size)
    return evaluation, len(todo), is_complete


def agreed(options: argparse.Namespace, asked: Evaluation) -> Evaluation:
    """Return what the folder is of, as `agree` does; also raise InputError for what cannot be compared with it."""
    evaluation = agree(options.out, asked, options.part)
    if evaluation.max_segments is None and options.max_segments is not None:
        raise InputError(
            f"--out {options.out}: an earlier version began it, with as many segments as in training; leave out "
            "--max-segments, or choose another --out."
        )
    if options.against is not None:
        refuse_other_inputs(options.against, evaluation)
    return evaluation


def _say_what_was_calibrated(calibration: Calibration | None, asked: Evaluation, reader: TestReader) -> None:
    """Say where the bound of a calibrated rule does not hold."""
    if calibration is None:
        return
    if calibration.checkpoint_ids != [asked.checkpoint_id]:
        _say(
            f"note: the rule was calibrated with {', '.join(calibration.checkpoint_ids) or 'an unknown checkpoint'}, "
            f"not with {asked.checkpoint_id}; its bound on changed tasks is for that one"
        )
    num_same = len(set(calibration.calibrated_on) & set(reader.group_names))
    if num_same:
        _say(
            f"note: {num_same} of these {len(reader.group_names)} tasks calibrated the rule; its bound on changed "
            "tasks is for others"
        )


def _claim(out: Path, asked: Evaluation, part: Part, reader: TestReader) -> Evaluation:
    """Make the folder one of this evaluation; what is planned is written before anything is predicted."""
    known = agree(out, asked, part)
    is_new = known.planned_sha256 is None and not any(path.exists() for path in known.units(out))
    if not is_new and (known.planned_sha256 is None or proof.planned_file(out).exists()):
        return claim(out, asked, part)
    planned = planned_inputs(reader)
    evaluation = claim(out, asked.model_copy(update={"planned_sha256": planned.sha256()}), part)
    # Of a folder that another command has claimed meanwhile this is the same plan, or claiming it has failed.
    if evaluation.planned_sha256 is not None:
        proof.write_planned(out, planned)
    return evaluation


def _plan_again(evaluation: Evaluation, out: Path, reader: TestReader) -> None:
    """Write the plan of a complete folder that has lost it; raise InputError if it was another."""
    if evaluation.planned_sha256 is None or proof.planned_file(out).exists():
        return
    planned = planned_inputs(reader)
    if planned.sha256() != evaluation.planned_sha256:
        raise InputError(
            f"--out {out}: was planned for other inputs than those of --data; choose another --out."
        )
    proof.write_planned(out, planned)


def _segment(
    model: ACTModel, evaluation: Evaluation, options: argparse.Namespace, reader: TestReader, world: World
) -> EvaluationSegment:
    """Return what predicts; on a GPU compiled, unless that is not wanted, and recorded after its first calls."""
    device = world.device
    on_gpu = device.type == "cuda"
    if on_gpu if options.compile is None else options.compile:
        require_c_compiler(device, "give --no-compile")
        assert isinstance(model.network, Network)
        model.compile_parts()
        model.network.compile_parts(with_ends=True)
        _say("compiling: the first batch takes a minute or so")
    # As many however many ranks share a part, so that they give the same bits.
    slots = min(options.batch_size, -(-evaluation.num_rows // options.part.count) * evaluation.starts)
    rules = (HaltingRule.parse(evaluation.halting).kind, evaluation.choose)
    residuals = evaluation.every_segment or "residual" in rules
    return EvaluationSegment(
        model, slots, device, records=on_gpu, has_grids=score_fn(reader.info.kind) is not None,
        residuals=residuals and bool(model.arch.description.states),
    )  # fmt: skip


def _missing(evaluation: Evaluation, out: Path, part: Part) -> list[Path]:
    """Return what is not complete of the part."""
    return [path for path in part.share(evaluation.units(out)) if not path.exists()]


def _predict_together(
    share: Share, answering: Answering, world: World, stop: PreemptionHandler
) -> tuple[bool, Noted, _Speed]:
    """Write this rank's files; return False if a signal to any rank came first, with what was answered and how fast."""
    total = Noted()
    is_warm = False
    poll = stop.poll(is_working=True)
    with (
        closing(share.fill(answering)) as answers,
        progress_bar("evaluate", "example", share.num_rows, shown=world.is_main) as progress,
    ):
        start, num_before, of_answers_before = time.monotonic(), 0, 0
        for noted in answers:
            total += noted
            progress.update(noted.num_rows)
            if not is_warm and answering.num_launched >= _WARM_UP_SEGMENTS[world.device.type]:
                is_warm, start, num_before = True, time.monotonic(), answering.num_launched
                of_answers_before = total.num_segments + share.num_segments_not_noted(answering)
            if not poll.stop:
                poll = stop.poll(is_working=True)
            if poll.stop:
                break
        seconds = time.monotonic() - start
        while not (poll.stop or poll.done):
            poll = stop.poll(is_working=False)
    num_computed = (answering.num_launched - num_before) * answering.segment.num_slots
    return not poll.stop, total, _Speed(total.num_segments - of_answers_before, num_computed, seconds)


def _tell(
    of_ranks: Iterable[tuple[Noted, _Speed]], segment: EvaluationSegment, reader: TestReader, peak: float
) -> None:
    """Say how fast it went, and what is wrong with the answers; peak: operations per second."""
    each = list(of_ranks)
    total = sum((noted for noted, _ in each), Noted())
    if not total.num_answers or not collectives.is_main():
        return
    per_input = total.num_segments / total.num_answers
    print(f"{total.num_answers:,} inputs answered, {_breadth_text(total)}{per_input:.2f} segments per input")
    num_segments, num_computed = (sum(speed[n] for _, speed in each) for n in range(2))
    seconds = max(speed.seconds for _, speed in each)
    if num_segments > 0 and seconds > 0:
        rate = num_segments / seconds
        print(
            f"after the first segments {rate / per_input:,.1f} inputs/s, "
            f"{rate * _flops_of_segment(segment, reader) / peak:.1%} of the rate of large matrix products here; "
            f"{num_segments / num_computed:.1%} of what was computed is in answers"
        )
    if total.num_lost:
        _say(
            f"warning: {total.num_lost:,} of {total.num_answers:,} predictions are lost (q_halt_logits is NaN): the "
            "model's numbers overflow; tools.vote refuses them, or leaves them out with --leave-out-lost"
        )


def _breadth_text(total: Noted) -> str:
    """Return how many starts inputs had, if they had several."""
    if not total.num_starts:
        return ""
    return (
        f"{total.num_starts:,} starts, of which {total.num_dropped / total.num_starts:.1%} were dropped early; "
        "over all starts "
    )


def _flops_of_segment(segment: EvaluationSegment, reader: TestReader) -> int:
    """Return the mean matmul operations of an input's segment."""
    model, lengths = segment.model, None
    if model.windows is not None:
        some = reader.take(np.linspace(0, len(reader) - 1, min(len(reader), _SAMPLE)).astype(np.int64))
        fields = {name: some[name] for name in ("inputs", "puzzle_identifiers")}
        lengths = segment.lengths(fields).numpy()
    return evaluation_flops_per_sequence(model.arch, reader.info.metadata("test"), lengths)


def _say(text: str) -> None:
    collectives.log_once(lambda text: print(text, file=sys.stderr), text)


def _sum_up(options: argparse.Namespace, evaluation: Evaluation, reader: TestReader, num_new: int) -> None:
    """Say what a folder holds, and of puzzles without a vote write the scores."""
    out: Path = options.out
    part: Part = options.part
    units = evaluation.units(out)
    if part.count > 1:
        num_there = sum(path.exists() for path in units)
        print(
            f"{out}: part {part.number} of {part.count} is complete, {num_new} of its {evaluation.unit} new; "
            f"{num_there} of the folder's {len(units)} {evaluation.unit} are there"
        )
        return
    proven = proof.prove(out, evaluation)
    num_answers = evaluation.num_rows if proven is None else int(proven.is_answered.sum())
    print(f"{out}: {num_answers:,} predictions in {len(units)} {evaluation.unit}, {num_new} of them new")
    if proven is not None:
        if len(proven.missing()):
            what = "the files that lack them" if evaluation.cut is None else f"{out / 'rounds'}"
            raise InputError(f"{out}: {proven.text()}; remove {what}, and evaluate again.")
        print(f"{out}: {proven.text()}")
    if score_fn(reader.info.kind) is None:
        found = scores_of(out, evaluation, reader, options.max_groups)
        replace_file(out / SCORES_FILE, f"{json.dumps(found)}\n".encode())
        print(summary_text(found))
    if options.against is not None:
        found = compared(out, options.against, evaluation, reader)
        print(comparison_text(found, options.against))


def scores_of(
    out: Path, evaluation: Evaluation, reader: TestReader, max_groups: int | None = None
) -> dict[str, Any]:
    """Return the scores of a folder's predictions with what they are a claim about."""
    ranges = evaluation.files(out)
    blocks = (
        (_read_puzzles(path, reader), reader.take(np.arange(rows.start, rows.stop))["labels"].numpy())
        for path, rows in ranges.items()
    )
    return {
        **summary(blocks, reader.info, max_groups),
        "checkpoint_ids": [evaluation.checkpoint_id],
        **{
            name: getattr(evaluation, name)
            for name in ("checkpoint_sha256", "dataset_sha256", "planned_sha256")
        },
        "rules": evaluation.rules(),
    }


def _read_puzzles(path: Path, reader: TestReader) -> Predictions:
    predictions, vocab_size = read_prediction_file(path), reader.info.vocab_size
    most = int(predictions.preds.max(initial=0))
    if most >= vocab_size:
        raise InputError(
            f"{path}: preds holds token {most}, but {reader.info.kind} has tokens 0 to {vocab_size - 1}; remove it and "
            "evaluate again."
        )
    return predictions


def _command() -> int:
    code = exit_code(main)
    if code == EXIT_INTERRUPTED:
        # As soon as one process has left, torchrun sends SIGTERM to the others, which are leaving too.
        signals.ignore()
    return code


if __name__ == "__main__":
    sys.exit(_command())
