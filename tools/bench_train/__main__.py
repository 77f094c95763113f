"""Measure training on this machine: step time, backward memory, or cost of checkpoints.

examples:
  python -m tools.bench_train
      training steps of the published HRM (27 M parameters) on the shape of a Sudoku, 32 sequences
  python -m tools.bench_train --compile --steps 20
      eager and compiled in turns, so that whatever else the machine does affects both
  python -m tools.bench_train configs/trm_arc1.yaml --seq-len 900 --vocab-size 12 --batch-size 4 precision=fp32
      any configuration and shape; settings as for hrm_dist.train
  python -m tools.bench_train --data data/arc1 --padding --batch-size 8 compile=true
      padding computed and skipped in turns, on batches of a dataset of ARC
  torchrun --nproc-per-node 2 -m tools.bench_train engine=fsdp2 activation_checkpointing=true
      any engine
  python -m tools.bench_train --reference ../HRM compile=true
      beside the published code in turns, for which ../HRM is a checkout of sapientinc/HRM (commit 42410da)
  python -m tools.bench_train --memory --batch-size 8 --plot runs/memory.png
      peak of the activations at 2 x 2, 4 x 4 and 8 x 8 cycles, by gradient and recomputation
  torchrun --nproc-per-node 2 -m tools.bench_train --checkpoint engine=zero2
      how long a checkpoint holds up training, at once and in the background; it is written below this folder

Without --data tokens are random: what a step costs depends on shapes alone, unless padding is skipped. The last line
printed is one JSON object.

Time is that of a whole step: on a CPU of each step by itself, on a GPU of five at a time, which the host waits for
at their end. Ratios are medians of the ratios of turns. host_ops_per_step is what the host issues in a step:
operators that no other operator called (aten::mm; not the nodes of autograd), calls of compiled graphs, and launches
of kernels and CUDA graphs that no operator made. What a compiled graph computes on a CPU in kernels of its own is not
seen. kernel_launches_per_step, on a GPU: all launches of kernels and CUDA graphs.

--reference imports the published model and its loss unchanged, and takes the steps of its training script, with
stand-ins for two CUDA extensions: torch's scaled_dot_product_attention for flash attention, and AdamATan2 by torch's
foreach kernels. The model is compiled where ours is. Both get the same tokens, and neither reads a dataset.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.paths import path_argument
from data_pipeline.sampler import check_divisible
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from hrm_dist.config import TrainConfig, load_config
from hrm_dist.run_record import cpu_model
from hrm_dist.train import require_packages

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "sudoku_extreme_1k.yaml"
REFERENCE_FILES = ("models/hrm/hrm_act_v1.py", "models/losses.py", "models/sparse_embedding.py")
PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what was asked, measure it, print it."""
    options = _parse(arguments)
    _check(options)
    config = config_of(options)
    if config.padding == "skip" and (options.data is None or options.memory):
        raise InputError(
            "padding=skip: random tokens, which --memory takes too, fill the canvas; add --data DIR, a dataset of ARC, "
            "or set padding=keep."
        )
    require_packages(config, is_main=False)
    metadata = _metadata(options, config)
    if options.reference is not None:
        _check_reference(options.reference, config)
    import torch

    from hrm_dist.distributed import collectives
    from hrm_dist.distributed.process_group import process_group
    from hrm_dist.freed_memory import keep_freed_memory
    from tools.bench_train import activation_memory, checkpoint_stall, speed

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with process_group(config.device, even_alone=config.engine != "ddp") as world:
        check_divisible(config.global_batch_size, world.world_size)
        keep_freed_memory(world.device)
        if options.reference is not None and world.world_size > 1:
            raise InputError("--reference: the published code is timed in one process; start one.")
        if options.memory:
            result = activation_memory.measure(config, metadata, world, options.plot)
        elif options.checkpoint:
            result = checkpoint_stall.measure(config, metadata, world, options.steps)
        else:
            asked = speed.Asked(
                options.steps,
                options.data is not None,
                options.compile,
                options.padding,
                options.reference,
                options.profile,
            )
            result = speed.measure(config, metadata, world, asked)
        collectives.barrier()  # a launcher ends all processes when one leaves
        if world.is_main:
            print(json.dumps({**result, "machine": machine(torch.__version__, torch.get_num_threads())}))
    return 0


def _metadata(options: argparse.Namespace, config: TrainConfig) -> DatasetMetadata:
    if options.data is not None:
        return load_dataset_info(options.data).metadata("train")
    return DatasetMetadata(
        seq_len=options.seq_len,
        vocab_size=options.vocab_size,
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        num_puzzle_identifiers=options.num_puzzles,
        total_groups=config.global_batch_size,
        mean_puzzle_examples=1.0,
        sets=("random",),
    )


def _check(options: argparse.Namespace) -> None:
    if options.padding and (options.data is None or options.compile or options.memory or options.checkpoint):
        raise InputError(
            "--padding: times steps on batches of a dataset; add --data DIR, leave --compile, --memory and "
            "--checkpoint out."
        )
    if options.plot is not None:
        require("report", "--plot")
        if not options.memory:
            raise InputError("--plot: draws what --memory measures; add --memory.")
        if options.plot.suffix not in PLOT_SUFFIXES:
            raise InputError(f"--plot {options.plot}: give a file that ends in {', '.join(PLOT_SUFFIXES)}.")
        if not options.plot.parent.is_dir():
            raise InputError(f"--plot {options.plot}: {options.plot.parent} is not a folder; make it first.")
    if options.compile and options.memory:
        raise InputError("--compile: --memory measures uncompiled models only; leave one of them out.")
    for option in ("reference", "profile"):
        if getattr(options, option) and (options.memory or options.checkpoint):
            raise InputError(f"--{option}: is about training steps; leave --memory and --checkpoint out.")
    if options.checkpoint and (options.compile or options.memory):
        raise InputError("--checkpoint: measures checkpoints alone; leave --compile and --memory out.")


def _check_reference(checkout: Path, config: TrainConfig) -> None:
    """Raise InputError unless the published code can do what is configured, and a folder looks like it."""
    arch = config.arch
    least_prefix = -(-arch.puzzle_emb_width // arch.hidden_size)
    is_unknown_there = {
        f"arch.name={arch.name}": arch.name != "hrm",
        f"arch.gradient={arch.gradient}": arch.gradient != "one_step",
        "arch.act_continue=false": not arch.act_continue,
        "arch.pos_encodings=none": arch.pos_encodings == "none",
        "arch.puzzle_emb_ndim=0": arch.puzzle_emb_width == 0,
        f"arch.puzzle_emb_len={arch.puzzle_emb_len}": arch.prefix_len != least_prefix,
    }
    for setting, is_set in is_unknown_there.items():
        if is_set:
            raise InputError(f"--reference: the published HRM has no {setting}; leave one of the two out.")
    for name in REFERENCE_FILES:
        if not (checkout / name).is_file():
            raise InputError(
                f"--reference {checkout}: no {name} there; give a checkout of "
                "https://github.com/sapientinc/HRM, commit 42410da."
            )


def config_of(options: argparse.Namespace) -> TrainConfig:
    """Return the configuration that a benchmark's `settings` name, at its batch size."""
    files = [text for text in options.settings if "=" not in text]
    if len(files) > 1:
        raise InputError(f"{' '.join(files)}: one configuration at a time; settings are written key=value.")
    batch = [f"global_batch_size={options.batch_size}"]
    batch += [f"data_path={options.data}"] if getattr(options, "data", None) else []
    overrides = [text for text in options.settings if "=" in text]
    return load_config(files[0] if files else DEFAULT_CONFIG, overrides + batch)


def machine(torch_version: str, num_threads: int) -> dict[str, object]:
    """Return what a benchmark ran on."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": num_threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch_version,
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("tools.bench_train", __doc__)

    def number(option: str, default: int, meaning: str, most: int | None = None) -> None:
        described = f"{meaning} (default: %(default)s)"
        parser.add_argument(option, type=whole_number(1, most), default=default, metavar="N", help=described)

    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help=f"a configuration (default: configs/{DEFAULT_CONFIG.name}) and settings over it",
    )
    number("--batch-size", 32, "sequences in a step over all processes, whatever the configuration says")
    number("--seq-len", 81, "tokens of a sequence")
    number("--vocab-size", 11, "kinds of tokens", most=256)
    number("--num-puzzles", 1, "rows of the puzzle table")
    number("--steps", 10, "steps that are timed, after a few that are not")
    parser.add_argument(
        "--data",
        type=path_argument,
        metavar="DIR",
        help="take batches of a dataset in place of random tokens",
    )
    parser.add_argument("--padding", action="store_true", help="time padding computed and skipped in turns")
    parser.add_argument("--compile", action="store_true", help="time eager and compiled steps in turns")
    parser.add_argument(
        "--reference",
        type=path_argument,
        metavar="DIR",
        help="time a checkout of the published HRM in turns with ours",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print the kernels (on a CPU: operators) that a step takes most time for",
    )
    parser.add_argument("--memory", action="store_true", help="measure the peak of the activations instead")
    parser.add_argument("--checkpoint", action="store_true", help="measure what a checkpoint costs instead")
    parser.add_argument("--plot", type=path_argument, metavar="FILE", help="draw what --memory measures")
    return parser.parse_intermixed_args(arguments)  # options may come between the settings


if __name__ == "__main__":
    sys.exit(exit_code(main))
