"""Predict the test split of a dataset with a checkpoint.

    python -m tools.evaluate runs/demo/checkpoints/latest --data data/demo --out runs/demo/predictions
    torchrun --nproc-per-node 8 -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions

Every example runs for halt_max_steps segments. Predictions go to files of at most 8,192 examples; the same
command after an interruption resumes with the files that are missing. Vote on ARC predictions with tools.vote; of
Sudokus and mazes the accuracy is printed here.

To share an evaluation among jobs, give each its --part, with the same N, and the same --out on a disk that all see:

    python -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions --part 0/2
    python -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions --part 1/2
    python -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions

The last one, after them, predicts what is missing; where nothing is, it needs no GPU. Exit codes: 0 done, 2 bad
input (also a dataset of which nothing is held out, since there is nothing to predict), 75 stopped by a signal (the
same command resumes), 1 anything else.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.base import signals
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import EXIT_INTERRUPTED, InputError, exit_code
from data_pipeline.base.parallel import Part, parse_part
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.reader import TestReader
from data_pipeline.schema import HOW_TO_HOLD_OUT, NOTHING_HELD_OUT
from hrm_dist.checkpoint.reader import identity, read_state
from hrm_dist.distributed import collectives
from hrm_dist.distributed.preemption import PreemptionHandler
from hrm_dist.distributed.process_group import World, process_group
from hrm_dist.evaluation.evaluate import answer, num_slots, score_fn
from hrm_dist.evaluation.load_model import load_model, refuse_other_dataset
from hrm_dist.evaluation.output_dir import Evaluation, agree, claim, rows_per_file
from hrm_dist.evaluation.predictions import Predictions, read_prediction_file, write_predictions
from hrm_dist.evaluation.puzzle_scores import summary, summary_text
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.freed_memory import keep_freed_memory
from hrm_dist.model.act import ACTModel
from hrm_dist.model.kernels import require_c_compiler
from hrm_dist.model.network import Network


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
    add("--batch-size", type=int, default=64, metavar="N", help="examples at a time (%(default)s)")
    add("--weights", type=lambda text: "ema" if text == "average" else text, choices=("ema", "raw"), default="ema",
        help="the EMA where the run kept one (default), or the raw weights")  # fmt: skip
    add("--part", type=parse_part, default=Part(), metavar="I/N", help="predict one of N parts, I from 0")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action=argparse.BooleanOptionalAction, help="compile the model (default: for a GPU)")
    options = parser.parse_args(arguments)
    for name, least in (("num_aug", 0), ("max_groups", 1), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
    return options


def evaluation_asked_for(options: argparse.Namespace, reader: TestReader, num_parts: int) -> Evaluation:
    """Return what the options mean for a dataset.

    Raises InputError if the checkpoint was trained on another one, or nothing of it is held out.
    """
    state = read_state(options.checkpoint)
    refuse_other_dataset(options.checkpoint, state, options.data, reader.info.metadata("train"))
    if not len(reader):
        raise InputError(
            f"{options.data}: {NOTHING_HELD_OUT}, so there is nothing to predict; build a dataset with held-out "
            f"puzzles ({HOW_TO_HOLD_OUT}) and train on it."
        )
    has_ema = any(key.startswith("ema.") for key in state.tensors)
    # In files "ema" has always been "average", and folders begun before can be completed.
    weights = "average" if options.weights == "ema" and has_ema else "raw"
    return Evaluation(
        checkpoint_id=f"{identity(options.checkpoint)}-{weights}",
        num_aug=options.num_aug,
        max_groups=options.max_groups,
        num_rows=len(reader),
        rows_per_file=rows_per_file(len(reader), num_parts),
    )


class _Predictor(NamedTuple):
    """Predict rows of the test split into files."""

    reader: TestReader
    segment: EvaluationSegment
    checkpoint_id: str
    counts: Counter[str]
    """Of predictions made here, and of those among them that are lost."""

    def num_batches(self, files: Iterable[range]) -> int:
        return sum(-(-len(rows) // self.segment.num_slots) for rows in files)

    def predict(self, files: Mapping[Path, range]) -> Generator[int]:
        """Write the files; yield the number of examples after every batch."""
        for path, rows in files.items():
            batches = self.reader.batches(self.segment.num_slots, rows.start, rows.stop)
            blocks: list[Predictions] = []
            for answers in answer(self.segment, batches, self.checkpoint_id):
                blocks.append(answers.predictions)
                self.counts["made"] += len(answers.labels)
                self.counts["lost"] += int(np.isnan(answers.predictions.q_halt_logits).sum())
                if sum(len(block.preds) for block in blocks) == len(rows):
                    write_predictions(path, _join(blocks))
                yield len(answers.labels)


def _join(blocks: list[Predictions]) -> Predictions:
    arrays = {
        name: np.concatenate([getattr(block, name) for block in blocks]) for name in Predictions._fields[:5]
    }
    return blocks[0]._replace(**arrays)


def main() -> int:
    """Write the prediction files that are not there yet."""
    options = parse_arguments()
    out: Path = options.out
    part: Part = options.part
    with closing(PreemptionHandler()) as stop, process_group(options.device) as world:
        keep_freed_memory(world.device)
        reader = TestReader(options.data, options.max_groups, options.num_aug)
        metadata = reader.info.metadata("train")
        asked = evaluation_asked_for(options, reader, part.count)
        evaluation = collectives.run_on_rank0(lambda: agree(out, asked, part))
        todo = collectives.run_on_rank0(lambda: _missing(evaluation.files(out), part))
        is_stopped = False
        if todo:
            ema = options.weights == "ema"
            model = load_model(options.checkpoint, options.data, metadata, ema=ema, device=world.device)
            evaluation = collectives.run_on_rank0(lambda: claim(out, asked, part))
            # Listed once for all ranks: one that looked later would already see files of the others.
            todo = collectives.run_on_rank0(lambda: _missing(evaluation.files(out), part))
            segment = _segment(model, todo, options, world)
            predictor = _Predictor(reader, segment, asked.checkpoint_id, counts := Counter())
            is_stopped = not _predict_together(predictor, todo, world, stop)
            stop.finish_vote()
            _warn_of_lost(collectives.gather_objects(counts))
        files = evaluation.files(out)
        if is_stopped:
            num_there = sum(path.exists() for path in files)
            collectives.announce_end(
                f"stopped by {stop.signal_name or 'a signal to another process'}; {num_there} of {len(files)} files of "
                f"{out} are there, and the same command resumes"
            )
            return EXIT_INTERRUPTED
        if world.is_main:
            print(_summary(out, files, part, num_new=len(todo)))
            if part.count == 1 and score_fn(reader.info.kind) is None:
                print(accuracy_text(files, reader, options.max_groups))
    return 0


def _segment(
    model: ACTModel, todo: Mapping[Path, range], options: argparse.Namespace, world: World
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
    longest = max(map(len, todo.values()), default=1)
    return EvaluationSegment(model, num_slots(longest, options.batch_size, device), device, records=on_gpu)


def _missing(files: Mapping[Path, range], part: Part) -> dict[Path, range]:
    """Return those of the part's files that are not there."""
    return {path: rows for path, rows in part.share(list(files.items())) if not path.exists()}


def _predict_together(
    predictor: _Predictor, todo: Mapping[Path, range], world: World, stop: PreemptionHandler
) -> bool:
    """Share files among the ranks; return False if a signal to any came first, after files that are complete."""
    shares = [Part(r, world.world_size).share(list(todo.items())) for r in range(world.world_size)]
    own = dict(shares[world.rank])
    total = sum(map(len, own.values()))
    # All ranks vote equally often, whether they have a batch or not.
    num_votes = max(predictor.num_batches(rows for _, rows in share) for share in shares)
    with (
        closing(predictor.predict(own)) as batches,
        progress_bar("evaluate", "example", total, shown=world.is_main) as progress,
    ):
        for _ in range(num_votes):
            if stop.agreed():
                return False
            progress.update(next(batches, 0))
    return True


def _warn_of_lost(counts: Iterable[Counter[str]]) -> None:
    total = sum(counts, Counter[str]())
    if total["lost"]:
        _say(
            f"warning: {total['lost']:,} of {total['made']:,} predictions are lost (q_halt_logits is NaN): the model's "
            "numbers overflow; a vote leaves these out"
        )


def _say(text: str) -> None:
    collectives.log_once(lambda text: print(text, file=sys.stderr), text)


def _summary(out: Path, files: Mapping[Path, range], part: Part, num_new: int) -> str:
    if part.count == 1:
        num_rows = sum(map(len, files.values()))
        return f"{out}: {num_rows:,} predictions in {len(files)} files, {num_new} of them new"
    num_there = sum(path.exists() for path in files)
    return (
        f"{out}: part {part.number} of {part.count} is complete, {num_new} of its files new; {num_there} of the "
        f"folder's {len(files)} files are there"
    )


def accuracy_text(files: Mapping[Path, range], reader: TestReader, max_groups: int | None = None) -> str:
    """Return how many of the predictions are right, in words."""
    batches = (next(reader.batches(len(rows), rows.start, rows.stop)) for rows in files.values())
    blocks = (
        (read_prediction_file(path), batch["labels"].numpy())
        for path, batch in zip(files, batches, strict=True)
    )
    return summary_text(summary(blocks, reader.info, max_groups))


def _command() -> int:
    code = exit_code(main)
    if code == EXIT_INTERRUPTED:
        # As soon as one process has left, torchrun sends SIGTERM to the others, which are leaving too.
        signals.ignore()
    return code


if __name__ == "__main__":
    sys.exit(_command())
