"""Predict the test split of a dataset with a checkpoint.

    python -m tools.evaluate runs/demo/checkpoints/latest --data data/demo --out runs/demo/predictions
    torchrun --nproc-per-node 8 -m tools.evaluate runs/arc1/checkpoints/best --data data/arc1 --out predictions

Every example runs for halt_max_steps segments. Predictions go to files of at most 8,192 examples; the same
command after an interruption goes on with the files that are missing. Vote on ARC predictions with tools.vote; of
Sudokus and mazes the accuracy is printed here.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import InputError, exit_code
from data_pipeline.reader import TestReader
from hrm_dist import checkpoint, distributed
from hrm_dist.evaluation import Answers, answer, hits
from hrm_dist.predictions import (
    MAX_ROWS_PER_FILE,
    Predictions,
    read_prediction_file,
    replace_file,
    write_predictions,
)

_RECORD = "evaluation.json"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a folder such as .../checkpoints/latest"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the dataset of the training")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the predictions")
    parser.add_argument(
        "--num-aug", type=int, metavar="N", help="augmentations per task beside the original (all)"
    )
    parser.add_argument("--max-groups", type=int, metavar="N", help="only the first N tasks (all)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="examples at a time (64)")
    parser.add_argument("--weights", choices=("average", "raw"), default="average",
                        help="the moving average where the run kept one (default), or the raw weights")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    for name, least in (("num_aug", 0), ("max_groups", 1), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
    return options


def _claim_folder(out: Path, record: dict[str, object]) -> None:
    """Note what the folder's predictions are of; a folder of another evaluation is refused."""
    path = out / _RECORD
    if path.exists():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: unreadable ({error}); choose another --out.") from error
        if known != record:
            differing = ", ".join(
                f"{k} {known.get(k)!r}, now {record[k]!r}" for k in record if known.get(k) != record[k]
            )
            raise InputError(
                f"{out}: holds predictions of another evaluation ({differing}); choose another --out."
            )
    elif any(out.glob("*.npz")):
        raise InputError(
            f"{out}: holds prediction files of unknown origin (no {_RECORD}); choose another --out."
        )
    else:
        replace_file(path, json.dumps(record, indent=1).encode())


def _join(blocks: Iterable[Predictions]) -> Predictions:
    parts = list(blocks)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in Predictions._fields[:5]
    }
    return parts[0]._replace(**arrays)


def main() -> int:
    """Write the prediction files that are not there yet."""
    options = _parse()
    with distributed.process_group(options.device) as world:
        reader = TestReader(options.data, options.max_groups, options.num_aug)
        average = options.weights == "average"
        model = checkpoint.load_model(
            options.checkpoint, options.data, reader.info.metadata("train"), average=average
        )
        model = model.to(world.device)
        checkpoint_id = f"{checkpoint.identity(options.checkpoint)}-{options.weights}"
        record: dict[str, object] = {
            "checkpoint_id": checkpoint_id, "num_aug": options.num_aug, "max_groups": options.max_groups,
        }  # fmt: skip
        distributed.on_main(lambda: _claim_folder(options.out, record))

        starts = range(0, len(reader), MAX_ROWS_PER_FILE)
        # Listed once for all ranks: one that looked later would already see files of the others.
        all_files = {options.out / _file_name(number): start for number, start in enumerate(starts)}
        todo = distributed.on_main(lambda: [item for item in all_files.items() if not item[0].exists()])
        own = todo[world.rank :: world.world_size]
        rows = sum(min(MAX_ROWS_PER_FILE, len(reader) - start) for _, start in own)
        with tqdm(total=rows, unit="example", disable=not world.is_main) as progress:
            for path, start in own:
                batches = reader.batches(options.batch_size, start, start + MAX_ROWS_PER_FILE)
                blocks: list[Predictions] = []
                for answers in answer(model, batches, world.device, checkpoint_id):
                    blocks.append(answers.predictions)
                    progress.update(len(answers.labels))
                write_predictions(path, _join(blocks))
        distributed.barrier()
        if world.is_main:
            print(
                f"{options.out}: {len(reader):,} predictions in {len(starts)} files, {len(todo)} of them new"
            )
            if reader.info.kind != "arc" and len(reader):
                print(_accuracy(all_files, reader))
    return 0


def _accuracy(files: Mapping[Path, int], reader: TestReader) -> str:
    """How many of the predictions are right, in words; the files' rows begin at these examples."""
    total = np.zeros(3)
    for path, start in files.items():
        predictions = read_prediction_file(path)
        [batch] = reader.batches(MAX_ROWS_PER_FILE, start, start + MAX_ROWS_PER_FILE)
        total += hits(Answers(predictions, batch["labels"].numpy()))
    examples, exact, cells = total.tolist()
    return (
        f"exact accuracy {exact / examples:.2%} ({exact:.0f} of {examples:.0f} puzzles right in every cell), "
        f"cell accuracy {cells / examples:.2%}"
    )


def _file_name(number: int) -> str:
    return f"predictions_{number:05d}.npz"


if __name__ == "__main__":
    sys.exit(exit_code(main))
