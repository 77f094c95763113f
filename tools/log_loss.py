"""How near a checkpoint comes to the true outputs of a dataset's test inputs: log loss, cells and whole grids.

    python -m tools.log_loss runs/test/checkpoints/latest --data runs/test/data --num-aug 20

A model that solves none of the tasks may still have learned something of them; votes do not show it. Every test input,
and --num-aug augmentations of it, runs all segments; the last one's probabilities are compared with the truth, whose
cells are those of the output and its end marks, and averaged over the cells of an input, then over the inputs. Inputs
with a hidden output do not count. The last line is one JSON object:

    log_loss          mean of -log(probability of the true token), in nats
    cell_accuracy     share of cells that are right
    exact_accuracy    share of inputs all of whose cells are right
    inputs            how many, augmentations included
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar


def log_loss(
    checkpoint: Path, data: Path, num_aug: int | None, batch_size: int, device: str
) -> dict[str, float]:
    """Return the scores of a checkpoint, with its averaged weights where it has them; raise InputError."""
    import torch

    from data_pipeline.reader import TestReader
    from data_pipeline.schema import IGNORE_LABEL_ID
    from hrm_dist.evaluation.load_model import load_model
    from hrm_dist.evaluation.start_keys import start_keys
    from hrm_dist.model.losses import LOSSES
    from hrm_dist.model.noise import key_of

    reader = TestReader(data, num_aug=num_aug)
    originals = reader.batches(1024, stop=int((reader.places().rounds == 0).sum()))
    if not any((batch["labels"] != IGNORE_LABEL_ID).any() for batch in originals):
        raise InputError(
            f"{data}: all outputs of its test inputs are hidden; build it with solutions beside the tasks: for "
            "tools.adapt X_solutions.json beside X_challenges.json, and another --out."
        )
    model = load_model(checkpoint, data, reader.info.metadata("train"), ema=True, device=torch.device(device))
    cross_entropy = LOSSES[model.arch.loss_type].cross_entropy
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad(), progress_bar("log loss", "input", len(reader), shown=True) as progress:
        for batch in reader.batches(batch_size):
            names = ("inputs", "labels", "puzzle_identifiers")
            fields = {name: batch[name].to(device, torch.int32) for name in names}
            keys = start_keys(batch).to(device)
            carry = model.initial_carry(fields)
            logits = torch.empty(0)
            for _ in range(model.arch.halt_max_steps):
                # As tools.evaluate draws them.
                carry, outputs = model(carry, fields, noise_keys=key_of(keys, carry.steps))
                logits = outputs["logits"]
            labels = fields["labels"].long()
            is_cell = labels != IGNORE_LABEL_ID
            num_cells = is_cell.sum(1)
            known = num_cells > 0
            right = (logits.argmax(-1) == labels) & is_cell
            losses = torch.where(is_cell, cross_entropy(logits, labels), 0).sum(1) / num_cells
            shares = right.sum(1) / num_cells
            for n, values in enumerate((losses, shares, shares == 1, known)):
                sums[n] += values[known].sum(dtype=torch.float64).cpu()
            progress.update(len(labels))
    total = sums[3].item()
    scores = ("log_loss", "cell_accuracy", "exact_accuracy")
    return {**dict(zip(scores, (sums[:3] / total).tolist(), strict=True)), "inputs": int(total)}


def run(options: argparse.Namespace) -> int:
    """Compute the scores and print them."""
    device = options.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = log_loss(options.checkpoint, options.data, options.num_aug, options.batch_size, device)
    print(
        f"{found['log_loss']:.4f} nats a cell, {found['cell_accuracy']:.2%} of the cells and "
        f"{found['exact_accuracy']:.2%} of the {found['inputs']:,} inputs right"
    )
    print(json.dumps(found))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_parser("tools.log_loss", __doc__)
    add = parser.add_argument
    add(
        "checkpoint", type=path_argument, metavar="CHECKPOINT", help="a folder such as .../checkpoints/latest"
    )
    add("--data", type=path_argument, required=True, metavar="DIR", help="the dataset of the training")
    add(
        "--num-aug",
        type=whole_number(0),
        metavar="N",
        help="augmentations per task beside the original (all)",
    )
    add("--batch-size", type=whole_number(1), default=64, metavar="N", help="inputs at a time (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return exit_code(lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
