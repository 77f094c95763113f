"""Train a model.

    python -m hrm_dist.train configs/debug.yaml
    python -m hrm_dist.train configs/arc1.yaml global_batch_size=96 lr=7e-5 arch.L_cycles=8
    python -m hrm_dist.train configs/arc1.yaml --dry-run
    torchrun --nproc-per-node 8 -m hrm_dist.train configs/arc1.yaml
    accelerate launch --config_file configs/accelerate/gpu_n.yaml -m hrm_dist.train configs/arc1.yaml
    srun --ntasks-per-node 8 python -m hrm_dist.train configs/arc1.yaml

The run folder (checkpoint_path) gets config.yaml, run.json, metrics.jsonl and checkpoints/. The same command
resumes after an interruption; one with other settings does, too, as long as steps remain, and config_changes.jsonl
keeps what changed at which step. Exit codes: 0 done, 2 bad configuration or input, 75 stopped by a signal with the
state saved (the same command resumes), 69 another process is gone without a word, 1 anything else.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from data_pipeline import subsets
from data_pipeline.base import signals
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.paths import path_argument
from data_pipeline.build import build
from data_pipeline.kinds import kind_named
from data_pipeline.options import side_by_side
from data_pipeline.sampler import check_divisible
from data_pipeline.schema import NOTHING_HELD_OUT, load_dataset_info
from hrm_dist.config import (
    TrainConfig,
    as_found,
    check_notation,
    flat_settings,
    load_config,
)
from hrm_dist.config.data_command import refuse_missing_data
from hrm_dist.distributed.launch_env import launch_env
from hrm_dist.distributed.network_env import check_network
from hrm_dist.dry_run import dry_run
from hrm_dist.run_lock import locked
from hrm_dist.run_record import installed_version

logger = logging.getLogger(__name__)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("hrm_dist.train", __doc__)
    parser.add_argument("config", type=path_argument, metavar="CONFIG.yaml")
    settings_help = "settings over those of the file; docs/settings.md has them all"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=settings_help)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, parameters and memory; do nothing",
    )
    words = sys.argv[1:] if arguments is None else arguments
    own = ("-h", "--help", "--dry-run")
    check_notation([word for word in words if word not in own], parser.prog)
    return parser.parse_intermixed_args(words)  # options may come between the overrides


def build_if_missing(config: TrainConfig) -> None:
    """Build the dataset where the configuration says how and nothing is there."""
    path = Path(config.data_path)
    spec = config.dataset
    if spec is None:
        return
    if not (path / "dataset.json").exists():
        build(spec.request(path, workers=1, quiet=False))
        return
    info = load_dataset_info(path)
    if spec.subset is not None and info.subsets is not None:
        try:
            subsets.check(info.subsets, spec.subset)
        except InputError as error:
            raise InputError(f"data_path={path}: {error}") from None
    if as_found(config).dataset is None:
        built = " ".join(f"{key}={value}" for key, value in side_by_side(info.options).items())
        sources = ", ".join(source.name for source in info.sources) or "new puzzles"
        logger.warning(
            "%s is not what `dataset` says (kind %s, of %s, with %s, seed=%d); it is used as it is, and config.yaml "
            "has dataset: null",
            path, info.kind, sources, built, info.seed,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the configuration, then train; only a good configuration costs the import of torch."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = load_config(options.config, options.overrides)
    launch = launch_env()  # raises where the environment is no good
    if options.dry_run:
        if launch.rank == 0:
            print(dry_run(options.config, as_found(config), launch.world_size))
            try:
                require_packages(config, is_main=True)
            except InputError as error:  # it may be there where the training is to run
                print(f"note: {error}")
        return 0
    if launch.world_size > 1:
        check_network(launch, nccl=False)  # before torch takes its seconds; with nccl again
    with logging_redirect_tqdm():  # lines go above the bar
        return train(options.config, config)


def train(path: Path, config: TrainConfig) -> int:
    """Join the other processes and train, with settings of a file and over it; return the exit code."""
    import torch

    from hrm_dist.distributed import collectives
    from hrm_dist.distributed.preemption import PreemptionHandler
    from hrm_dist.distributed.process_group import process_group
    from hrm_dist.freed_memory import keep_freed_memory
    from hrm_dist.trainer import Trainer, TrainingError

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    group = process_group(config.device, config.engine != "ddp", config.timeout_s)
    run_dir = Path(config.checkpoint_path)
    with closing(PreemptionHandler()) as stop, group as world, ExitStack() as on_leaving:
        keep_freed_memory(world.device)
        try:
            collectives.run_on_all_ranks(lambda: require_packages(config, is_main=world.is_main))
            collectives.run_on_all_ranks(lambda: check_divisible(config.global_batch_size, world.world_size))
            collectives.assert_same_on_all_ranks(lambda: _settings(config, world.device.type))
            collectives.run_on_rank0(lambda: on_leaving.enter_context(locked(run_dir)))
            collectives.run_on_rank0(lambda: refuse_missing_data(path, config))
            if not collectives.run_on_rank0(lambda: stop.completes(lambda: build_if_missing(config))):
                outcome = " before the first step; the same command starts again"
            else:
                config = as_found(config)
                collectives.assert_same_on_all_ranks(lambda: _dataset(config))
                collectives.run_on_rank0(lambda: _check_evaluation(config))
                trainer = Trainer(config, world)
                if trainer.fit(stop):
                    return 0
                step = f"step {trainer.state.step:,} of {trainer.schedule.last_step:,}"
                outcome = f"; the state is saved at {step}, and the same command resumes from there"
        except InputError as error:
            if not collectives.is_reported_by_rank0(error):
                raise
            collectives.announce_end(f"error: {error}")
            return EXIT_BAD_INPUT
        except TrainingError as error:
            collectives.announce_end(f"error: {error}")
            return EXIT_FAILED
        collectives.announce_end(f"stopped by {stop.signal_name or 'a signal to another process'}{outcome}")
    return EXIT_INTERRUPTED


def require_packages(config: TrainConfig, *, is_main: bool) -> None:
    """Raise InputError if an optional package that the configuration needs, of the main process too, is missing."""
    if config.engine.startswith("zero"):
        require("zero", f"engine={config.engine}")
    if config.wandb_mode != "disabled" and is_main:
        require("wandb", f"wandb_mode={config.wandb_mode}")
    if config.tensorboard and is_main:
        require("tensorboard", "tensorboard=true")


def _check_evaluation(config: TrainConfig) -> None:
    """Warn if nothing is held out; raise InputError if nothing here scores the kind of the dataset."""
    if config.eval_interval is not None:
        info = load_dataset_info(Path(config.data_path))
        kind_named(info.kind)
        if not info.splits.test.total_groups:
            logger.warning(
                "eval_interval=%d: %s: %s, so there are no scores and no checkpoints/best; take checkpoints/latest",
                config.eval_interval, config.data_path, NOTHING_HELD_OUT,
            )  # fmt: skip


def _settings(config: TrainConfig, device_type: str) -> Mapping[str, object]:
    """Return what every process must have been started with."""
    values = flat_settings(config.model_dump(mode="json"))
    packages = ["hrm-dist", "torch", "numpy", *(["deepspeed"] if config.engine.startswith("zero") else [])]
    return (
        values
        | {"the device": device_type}
        | {f"the version of {name}": installed_version(name) for name in packages}
    )


def _dataset(config: TrainConfig) -> Mapping[str, object]:
    from hrm_dist.checkpoint.reader import dataset_identity
    from hrm_dist.checkpoint.resume import windows_digest

    path = Path(config.data_path)
    try:
        identity = dataset_identity(path, load_dataset_info(path).metadata("train")) | windows_digest(config)
    except FileNotFoundError as error:  # on all ranks, the reader will say so
        return {f"data_path={path}: {error.filename}": "missing"}
    return {f"data_path={path}: its {key}": value for key, value in identity.items()}


def _command() -> int:
    code = exit_code(main)
    if code == EXIT_INTERRUPTED:
        # As soon as one process has left, torchrun sends SIGTERM to the others, which are leaving too.
        signals.ignore()
    return code


if __name__ == "__main__":
    sys.exit(_command())
