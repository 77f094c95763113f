"""Check that every engine computes the same training run on this machine.

examples:
  python -m tools.check_engines
      HRM in fp32: every engine on 1, 2 and 4 processes, 50 steps each
  python -m tools.check_engines --engines zero3,fsdp2 --world-sizes 8 --precision bf16 --device cuda
      as it will train on the eight GPUs of this node
  python -m tools.check_engines --arch trm --steps 200 --keep runs/check
      TRM, longer, and the runs and logs are kept
  python -m tools.check_engines --engines zero3 gather_unit=layer puzzle_emb_shard=true
      with settings of hrm_dist.train in the compared runs, and not in the reference

A tiny model (ACT, deep supervision, Q-targets where the architecture has them, puzzle embeddings, EMA,
both optimizers) trains on eight real ARC tasks: once in one process with ddp, the reference, and once per engine and
number of processes. Each run stops after step 1 and resumes from its checkpoint. Compared, as relative differences:
  loss             in each of the first 20 steps, and of the first 200, at lr 1e-4
  gradient         of step 1, per tensor, to the tensor's norm
  weights, step 1  per tensor, but for turned elements; they are counted
  weights, last    for information: no limit
A turned element is one that step 1 moved the other way. Both optimizers follow the sign of a gradient, and where it
vanishes but for rounding, the order of summation decides. Such an element is off by at most 2 x lr per step. It is
excused only if its gradient is within the limit of the gradient's difference; what it does to the loss is not excused.
In bf16 each process rounds its share of a gradient to 8 bits before the sum, so runs drift apart: rounding decides
which answers are right in every cell and which sequences halt, and single steps then differ by up to a tenth. Means
do not. Compared is the mean of the answer's loss over the steps (limit 2 x 2^-8) and the gradient (16 x 2^-8: the
rows of an embedding add up many numbers of 8 bits).

Exit codes: 0 all equal, 1 a difference or a failed run, 2 bad input. The last line printed is one JSON object.
"""

import argparse
import json
import math
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args

import torch

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.table import table
from data_pipeline.sampler import check_divisible
from hrm_dist.config import ConfigError, TrainConfig, load_config
from hrm_dist.config.architectures import ARCHITECTURES
from tools.check_engines.differences import (
    FIRST_STEPS,
    MOST_STEPS,
    Differences,
    Limits,
    compare,
    exceeded,
    vanishing,
)
from tools.check_engines.runs import Cell, RunFailed, batch_size_for, build_dataset, train, write_config

EXIT_DIFFERENT = 1
ENGINES: tuple[str, ...] = get_args(TrainConfig.model_fields["engine"].annotation)
REFERENCE = Cell("ddp", 1)
_BF16 = 2.0**-8  # between neighbouring numbers of 8 bits
LIMITS = {
    "fp32": Limits(first_losses=1e-5, losses=1e-3, gradient=1e-5, first_weights=1e-5, turned_in_table=0.01),
    "bf16": Limits(
        # Measured with ddp on 2 and 4 CPU processes, HRM (three seeds) and TRM: means of 20, 50, 100 and 200 steps at
        # most 2.9e-3 off, gradients 2.2e-2, and no element of the table turned.
        first_losses=2 * _BF16, losses=2 * _BF16, gradient=16 * _BF16, first_weights=1e-5, turned_in_table=0.05,
        of_mean_losses=True,
    ),
}  # fmt: skip
# Settings that the check makes itself, or on which the comparison rests.
_OWN_SETTINGS = (
    "arch", "data_path", "engine", "epochs", "precision", "device", "max_steps", "log_interval", "checkpoint_interval",
    "checkpoint_path", "keep_checkpoints", "eval_interval", "resume",
)  # fmt: skip


class Result(NamedTuple):
    """What became of a run."""

    cell: Cell
    status: str
    """equal, different, failed or skipped."""
    reasons: tuple[str, ...] = ()
    differences: Differences | None = None
    seconds: float = 0.0


def main() -> int:
    """Run the reference and the matrix, and print what they gave."""
    options = _parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(prefix="check_engines-") as temporary:
        results, notes = check(options, Path(temporary))
    print(_table(results), *notes, sep="\n")
    for result in results:
        for reason in result.reasons:
            print(f"{result.cell}: {result.status}: {reason}")
    is_equal = all(result.status in ("equal", "skipped") for result in results)
    print(json.dumps(_report(options, results, is_equal)))
    return 0 if is_equal else EXIT_DIFFERENT


def check(options: argparse.Namespace, temporary: Path) -> tuple[list[Result], list[str]]:
    """Train and compare all runs; return their results and remarks on them."""
    folder = options.keep or temporary
    config_path, reference = temporary / "config.yaml", folder / "reference"
    batch_size = batch_size_for(options.world_sizes)
    write_config(config_path, folder / "data", options.arch, options.precision, options.device, batch_size)
    config = load_config(config_path)
    _check_settings(config_path, config, options)
    if options.keep is not None:
        try:
            options.keep.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"--keep {options.keep}: cannot be made ({error.strerror}); choose a folder that does not exist."
            ) from error
    build_dataset(folder / "data")
    cells = [Cell(engine, size) for engine in options.engines for size in options.world_sizes]
    results: list[Result] = []
    with progress_bar("engines", "run", 1 + len(cells), shown=True) as progress:
        progress.notes = [f"{REFERENCE}, the reference"]
        try:
            train(config_path, reference, REFERENCE, options.steps, (), options.timeout)
        except RunFailed as error:
            return [Result(REFERENCE, "failed", (f"the reference: {error}",))], []
        for cell in cells:
            progress.notes = [str(cell)]
            progress.update()
            started = time.perf_counter()
            result = _check_cell(cell, reference, config_path, config, options)
            results.append(result._replace(seconds=time.perf_counter() - started))
        progress.update()
    return results, _notes(config, vanishing(reference, LIMITS[options.precision].gradient), options)


def _check_cell(
    cell: Cell, reference: Path, config_path: Path, config: TrainConfig, options: argparse.Namespace
) -> Result:
    """Train a cell beside the reference, if there are devices for it, and compare the two."""
    if cell.world_size > _most_processes(options.device):
        reason = f"needs {cell.world_size} GPUs, this machine has {torch.cuda.device_count()}"
        return Result(cell, "skipped", (reason,))
    run, limits = reference.with_name(f"{cell.engine}-{cell.world_size}"), LIMITS[options.precision]
    try:
        train(config_path, run, cell, options.steps, options.settings, options.timeout)
        differences = compare(run, reference, config.lr, config.puzzle_emb_lr, limits)
    except (RunFailed, InputError) as error:
        return Result(cell, "failed", (str(error),))
    reasons = exceeded(differences, limits)
    return Result(cell, "different" if reasons else "equal", tuple(reasons), differences)


def _check_settings(path: Path, config: TrainConfig, options: argparse.Namespace) -> None:
    """Refuse settings that are not good, or that the check makes itself."""
    for engine in options.engines:  # some settings mean nothing to some
        changed = load_config(path, [f"engine={engine}", *options.settings])
        expected = config.model_copy(update={"engine": engine})
        for key in _OWN_SETTINGS:
            if getattr(changed, key) != getattr(expected, key):
                raise ConfigError(
                    f"{' '.join(options.settings)}: sets {key}, which the check itself has to set; leave it out, or "
                    "see the options in --help."
                )
        for world_size in options.world_sizes:
            check_divisible(changed.global_batch_size, world_size)


def _most_processes(device: str) -> float:
    return torch.cuda.device_count() if device == "cuda" else math.inf


# What is printed


def _table(results: Sequence[Result]) -> str:
    """Return one line per run."""
    heads = (
        "engine", "processes", f"loss, first {FIRST_STEPS}", "loss, all", "gradient", "weights, step 1",
        "turned", "in table", "weights, last", "seconds", "result",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [heads]
    for result in results:
        found = result.differences
        numbers = ("-",) * 7
        if found is not None:
            relative = (found.first_losses, found.losses, found.gradient, found.first_weights)
            counts = (str(found.turned), f"{found.turned_in_table:.1%}")
            numbers = (*(f"{x:.1e}" for x in relative), *counts, f"{found.last_weights:.1e}")
        engine, world_size = result.cell
        rows.append((engine, str(world_size), *numbers, f"{result.seconds:.0f}", result.status))
    return "\n".join(table(rows, ">"))


def _notes(config: TrainConfig, counts: tuple[int, int], options: argparse.Namespace) -> list[str]:
    """Return the limits, and what turned elements can do, in words."""
    limits, (small, total) = LIMITS[options.precision], counts
    notes = [
        f"limits ({options.precision}): loss of the first {FIRST_STEPS} steps {limits.first_losses:.1e}, of the first "
        f"{MOST_STEPS} {limits.losses:.1e}, gradient {limits.gradient:.1e}, weights of step 1 "
        f"{limits.first_weights:.1e}; all relative",
        f"{small} of {total} elements of the reference's first gradient are within {limits.gradient:.1e} of zero, next "
        "to the root mean square of their tensor, so rounding of that size would turn their sign. An optimizer that "
        f"follows the sign then sets a weight off by at most {2 * config.lr:.0e} per step, an element of the puzzle "
        f"table by at most {2 * config.puzzle_emb_lr:.0e}: `turned` and `in table` count them after step 1.",
    ]
    if options.steps > MOST_STEPS:
        notes.append(
            f"the limit of the loss holds for {MOST_STEPS} steps: rounding grows, so later ones are not compared"
        )
    return notes


def _report(options: argparse.Namespace, results: Sequence[Result], is_equal: bool) -> dict[str, object]:
    """Return all of it for programs; a difference that is no finite number is null."""
    runs: list[dict[str, object]] = []
    for result in results:
        measured = result.differences._asdict() if result.differences else {}
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in measured.items()
        }
        outcome = {"status": result.status, "reasons": result.reasons, "seconds": round(result.seconds, 1)}
        runs.append({**result.cell._asdict(), **outcome, **finite})
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    return {
        "check": "engines", "equal": is_equal, "arch": options.arch, "precision": options.precision,
        "device": device, "steps": options.steps, "settings": options.settings,
        "limits": LIMITS[options.precision]._asdict(), "runs": runs,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip


# The command line


def _parse_arguments() -> argparse.Namespace:
    """Return the command line, checked. Raises InputError."""
    parser = command_parser("tools.check_engines", __doc__)
    add = parser.add_argument
    add(
        "settings", nargs="*", metavar="key=value", help="settings of the compared runs, not of the reference"
    )
    add("--engines", default=",".join(ENGINES), metavar="A,B", help="which to check (%(default)s)")
    add("--world-sizes", default="1,2,4", metavar="N,M", help="numbers of processes (%(default)s)")
    add("--steps", type=int, default=50, metavar="N", help="optimizer steps of each run (%(default)s)")
    add("--arch", choices=tuple(ARCHITECTURES), default="hrm", help="(%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="(%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add("--timeout", type=float, default=600, metavar="S", help="seconds that a run may take (%(default)s)")
    add(
        "--keep",
        type=path_argument,
        metavar="DIR",
        help="a new folder for runs and logs, which else are deleted",
    )
    options = parser.parse_intermixed_args()
    for name, value in (("--steps", options.steps), ("--timeout", options.timeout)):
        if not value >= 1:
            raise InputError(f"{name} {value}: must be at least 1.")
    given = f"--engines {options.engines}"
    options.engines = tuple(dict.fromkeys(options.engines.split(",")))
    unknown = [engine for engine in options.engines if engine not in ENGINES]
    if unknown:
        raise InputError(f"{given}: no engine is called {unknown[0]!r}; choose of {','.join(ENGINES)}.")
    if any(engine.startswith("zero") for engine in options.engines):
        require("zero", given)
    given, sizes = f"--world-sizes {options.world_sizes}", options.world_sizes.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise InputError(f"{given}: write numbers of processes from 1, as in 1,2,4.")
    options.world_sizes = tuple(dict.fromkeys(map(int, sizes)))
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if min(options.world_sizes) > _most_processes(options.device):
        raise InputError(
            f"{given}: this machine has {torch.cuda.device_count()} GPUs and every process needs one; take fewer "
            "processes, or --device cpu."
        )
    return options


if __name__ == "__main__":
    sys.exit(exit_code(main))
