"""What is to run: checked as far as that goes before it is queued, and cut into the commands of its jobs."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline import build as data_build
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.base.paths import path_argument
from data_pipeline.schema import NOTHING_HELD_OUT, load_dataset_info
from data_pipeline.shards import build_dir
from hrm_dist import run_lock
from hrm_dist.checkpoint import pointer
from hrm_dist.config import (
    TrainConfig,
    as_found,
    check_notation,
    load_config,
    sequences_per_process,
    to_yaml,
    total_steps,
)
from hrm_dist.config.data_command import refuse_missing_data
from hrm_dist.train import require_packages
from launch.jobs.cluster import Cluster
from launch.jobs.log import Kind, jobs_folder


class JobSpec(NamedTuple):
    """What a submission is to get done."""

    kind: Kind
    folder: Path  # absolute; the run's, the dataset's or the predictions'
    parts: list[list[str]]
    """Modules and arguments, as after `python -m`. A training has one; the others as many as jobs share the work."""
    missing: list[int]  # the parts that are not done
    about: list[str]  # lines for people
    join: list[str] | None = None  # what makes a whole of the parts, when all are done
    inputs: Sequence[Path] = ()  # what the jobs read; every node must see it
    config: tuple[Path, str] | None = None  # where to write a configuration before the jobs run, and which
    resubmit: Sequence[str] = ()  # arguments of launch.submit that continue the work later

    @property
    def name(self) -> str:
        """Of the jobs, for people."""
        return f"{self.kind}-{self.folder.name}"

    @property
    def is_array(self) -> bool:
        return len(self.parts) > 1


def training(rest: Sequence[str], cluster: Cluster) -> JobSpec:
    """Return a training; `rest` is its configuration and overrides, as for hrm_dist.train. Raise InputError."""
    parser = argparse.ArgumentParser(prog="python -m launch.submit train", allow_abbrev=False)
    parser.add_argument("config", type=path_argument, metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    check_notation(rest, parser.prog)
    options = parser.parse_args(rest)
    config = as_found(load_config(options.config, options.overrides))
    refuse_missing_data(options.config, config)
    about = _check_training(config, cluster)
    folder = Path(config.checkpoint_path).absolute()
    _check_folder(folder)
    if config.resume == "never":
        if (folder / "checkpoints").exists():
            raise InputError(f"resume=never: {folder} already holds a run; choose another checkpoint_path.")
        config = config.model_copy(update={"resume": "auto"})  # the job resumes from its own checkpoints
    run_lock.refuse_foreign(folder)
    if owner := run_lock.holder(folder):
        remedy = "wait for its end, stop it, or choose another checkpoint_path"
        raise InputError(f"checkpoint_path={folder}: a run trains here ({owner}); {remedy}.")
    _check_start(config, folder)
    # The jobs read a copy: what is queued stays as it was checked, whatever becomes of the file.
    copy = jobs_folder(folder) / "config.yaml"
    parts, inputs = [["hrm_dist.train", str(copy)]], [Path(config.data_path)]
    return JobSpec("train", folder, parts, [0], about, inputs=inputs, config=(copy, to_yaml(config)))


def _check_start(config: TrainConfig, folder: Path) -> None:
    """Raise InputError where a run that is there cannot go on with these settings."""
    data = Path(config.data_path)
    is_new = config.resume in ("auto", "never") and not (folder / "checkpoints").exists()
    if is_new or not (data / "dataset.json").exists():
        return
    from hrm_dist.checkpoint import reader, resume  # torch is slow to load
    from hrm_dist.schedule import Schedule

    metadata = load_dataset_info(data).metadata("train")
    resume.check_start(config, folder, reader.dataset_identity(data, metadata), Schedule(config, metadata))


def _check_training(config: TrainConfig, cluster: Cluster) -> list[str]:
    num_processes = cluster.nodes * cluster.num_tasks_per_node
    if cluster.container is None:  # the jobs run in this very environment
        require_packages(config, is_main=True)
    size = sequences_per_process(config, num_processes)
    if config.device == "cuda" and not cluster.gpus_per_node:
        raise InputError("device=cuda, but gpus_per_node=0: give --gpus-per-node, or set device=cpu.")
    if config.device == "cpu" and cluster.gpus_per_node:
        reason = f"gpus_per_node={cluster.gpus_per_node} would idle"
        raise InputError(f"device=cpu: {reason}; set device=auto, or --gpus-per-node 0.")
    each = f"{size} of {config.global_batch_size} sequences each"
    about = [f"processes  {num_processes}, {each}, engine={config.engine}"]
    if config.dataset is not None and not (Path(config.data_path) / "dataset.json").exists():
        return [*about, f"data       {config.data_path} is missing: rank 0 builds it when the job starts"]
    info = load_dataset_info(Path(config.data_path))
    steps = total_steps(config, info.metadata("train"))
    if steps < 1:
        size = f"global_batch_size={config.global_batch_size}"
        raise InputError(f"epochs={config.epochs}: fills no batch of {size}; raise epochs.")
    note = "" if info.splits.test.total_groups else f"; {NOTHING_HELD_OUT}"
    return [*about, f"data       {config.data_path}, {min(steps, config.max_steps or steps):,} steps{note}"]


def build(rest: Sequence[str], num_parts: int, cluster: Cluster) -> JobSpec:
    """Return the build of a dataset; `rest` is as for data_pipeline.build. Raise InputError."""
    _check_parts(rest, num_parts, cluster)
    request = data_build.parse_arguments(rest)
    folder = request.out.absolute()
    _check_folder(folder)
    identity = data_build.read(request).identity
    build_dir.find(request.out, identity)  # raises where the folder is of another dataset
    is_complete = (folder / "dataset.json").exists()
    join = ["data_pipeline.merge", str(request.out)] if num_parts > 1 and not is_complete else None
    missing = build_dir.missing_parts(folder, num_parts)
    about = [f"parts      {len(missing)} of {num_parts} to build"]
    return JobSpec("build", folder, _parts("data_pipeline.build", rest, num_parts), missing, about, join)


def evaluation(rest: Sequence[str], num_parts: int, cluster: Cluster) -> JobSpec:
    """Return the predictions of one checkpoint; `rest` is as for tools.evaluate. Raise InputError."""
    _check_parts(rest, num_parts, cluster)
    from data_pipeline.reader import TestReader  # torch is slow to load
    from hrm_dist.evaluation import output_dir
    from tools import evaluate

    options = evaluate.parse_arguments(rest)
    _check_folder(options.out.absolute())
    if (options.out / "checkpoints").exists():
        raise InputError(f"--out {options.out}: is the folder of a training; choose one for the predictions.")
    reader = TestReader(options.data, options.max_groups, options.num_aug)
    asked = evaluate.evaluation_asked_for(options, reader, num_parts)
    options.part = Part(0, num_parts)
    evaluate.agreed(options, asked)
    path = pointer.target(options.checkpoint)  # `latest` may change before the jobs run
    fixed = [str(path) if _means(argument, options.checkpoint) else argument for argument in rest]
    join = ["tools.evaluate", *fixed, "--device", "cpu"] if num_parts > 1 else None
    missing = output_dir.missing_parts(options.out, num_parts)
    todo = f"{len(missing)} of {num_parts} to predict, {len(reader):,} examples in all"
    about = [f"parts      {todo}, with {path}"]
    parts, inputs = _parts("tools.evaluate", fixed, num_parts), [path, options.data]
    return JobSpec("evaluate", options.out.absolute(), parts, missing, about, join, inputs)


def sweep(rest: Sequence[str], num_parts: int | None, cluster: Cluster) -> JobSpec:
    """Return the runs of a sweep, by default a part for each; `rest` is as for tools.sweep. Raise InputError."""
    from tools.sweep import pool
    from tools.sweep.__main__ import parse_arguments
    from tools.sweep.spec import load_sweep

    options = parse_arguments(rest)
    if options.table:
        raise InputError("--table: the last job makes the table; leave it out.")
    if cluster.cluster == "local":
        raise InputError("cluster=local: python -m tools.sweep itself trains on this machine; run that.")
    asked = load_sweep(options.sweep)
    num_parts = len(asked.runs) if num_parts is None else num_parts
    _check_parts(rest, num_parts, cluster)
    if num_parts > len(asked.runs):
        raise InputError(f"--parts {num_parts}: there are {len(asked.runs)} runs; give no more parts.")
    if cluster.num_tasks_per_node > 1:
        each = f"gpus_per_node={cluster.gpus_per_node}" if cluster.gpus_per_node else "tasks_per_node"
        raise InputError(f"{each}: a run of a sweep is one process; give 1.")
    for setting in asked.settings:
        _check_training(setting.config, cluster)
    folder = asked.out.absolute()
    _check_folder(folder)
    parts = _parts("tools.sweep", rest, num_parts)
    is_done = [pool.find(asked.pool, run).is_done for run in asked.runs]
    missing = [i for i in range(num_parts) if not all(Part(i, num_parts).share(is_done))]
    join = ["tools.sweep", *rest, "--table"] if num_parts > 1 and missing else None
    about = [f"parts      {len(missing)} of {num_parts} to train, with {is_done.count(False)} runs"]
    data = {Path(setting.config.data_path) for setting in asked.settings}
    inputs = [asked.path, asked.config, asked.pool, *data]
    return JobSpec("sweep", folder, parts, missing, about, join, inputs)


def _means(argument: str, path: Path) -> bool:
    """Return whether a word of a command line is this path, however it is written."""
    try:
        return path_argument(argument) == path
    except argparse.ArgumentTypeError:
        return False


def _parts(module: str, arguments: Sequence[str], num_parts: int) -> list[list[str]]:
    return [[module, *arguments, "--part", f"{i}/{num_parts}"] for i in range(num_parts)]


def _check_parts(rest: Sequence[str], num_parts: int, cluster: Cluster) -> None:
    if num_parts < 1:
        raise InputError(f"--parts {num_parts}: must be at least 1.")
    if cluster.nodes > 1:
        raise InputError(f"nodes={cluster.nodes}: a part runs on one node; share the work by --parts.")
    if any(argument.partition("=")[0] == "--part" for argument in rest):
        raise InputError("--part: the launcher numbers the parts; say how many with --parts N.")


def _check_folder(folder: Path) -> None:
    """Raise InputError unless jobs can be recorded in the folder."""
    if "%" in str(folder):
        raise InputError(f"{folder}: Slurm reads % in the names of logs as its own; choose a folder without.")
    try:
        nearest = next(path for path in (jobs_folder(folder), folder, *folder.parents) if path.exists())
        reason = "" if os.access(nearest, os.W_OK | os.X_OK) else f"no right to write in {nearest}"
        reason = reason if nearest.is_dir() else f"{nearest} is no folder"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"{folder}: cannot be made or written ({reason}); choose another folder.")
