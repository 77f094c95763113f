"""What the command line names: runs with their predictions, each a column of the comparison."""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import refuse_outputs
from data_pipeline.kind import Kind
from data_pipeline.kinds import kind_named
from data_pipeline.schema import DatasetInfo, load_dataset_info
from hrm_dist.evaluation.output_dir import Evaluation, read_evaluation
from hrm_dist.evaluation.predictions import prediction_files
from hrm_dist.run_record import FILE as RUN_RECORD
from tools.results.run_folder import RunFolder, read_run
from tools.vote import NOT_PREDICTIONS, is_dataset, refuse_inputs_as_outputs

CONFIG, METRICS, ANALYSIS = "config.yaml", "metrics.jsonl", "analysis"


class Run(NamedTuple):
    """A column of the comparison."""

    name: str
    """Short, and different for each."""
    given: Path
    """As the command line has it; of bare files the first."""
    predictions: list[Path]
    """A folder, or bare files."""
    folder: Path | None
    """The run folder, where there is one."""
    run: RunFolder | None
    """What that says."""
    evaluation: Evaluation | None
    data: Path | None
    """The dataset; None where identifiers and tasks are given as files."""
    info: DatasetInfo | None
    kind: Kind
    metrics: Path | None

    @property
    def step(self) -> int | None:
        """Return the step of the checkpoint that made the predictions."""
        return None if self.evaluation is None else _step(self.evaluation)


class _Found(NamedTuple):
    """What a word of the command line leads to."""

    given: Path
    predictions: list[Path]
    folder: Path | None


def find_runs(args: Namespace) -> list[Run]:
    """Return the runs that the command line names. Raise InputError for what cannot be, or cannot be compared."""
    found = _found(args.runs)
    if args.metrics is not None and len(found) > 1:
        raise InputError(
            f"--metrics {args.metrics}: there are {len(found)} runs, so it is not clear of which; give run folders, "
            "which hold their own."
        )
    folders = [one.folder and read_run(one.folder) for one in found]
    names = _names(found, folders)
    runs = [_run(one, run, name, args) for one, run, name in zip(found, folders, names, strict=True)]
    first = runs[0]
    for other in runs[1:]:
        if other.kind.name != first.kind.name:
            raise InputError(
                f"{other.given}: is of {other.kind.name} puzzles, but {first.given} is of {first.kind.name}; give runs "
                "of one kind, and make a report of each."
            )
    return runs


def _run(found: _Found, run: RunFolder | None, name: str, args: Namespace) -> Run:
    data = args.data
    if data is None and run is not None and not (args.identifiers and args.tasks):
        data = Path(run.config.data_path)
        if not data.is_dir():
            raise InputError(
                f"{found.given}: was trained on {data}, which is no folder here; give its dataset with --data."
            )
    if data is None and not (args.identifiers and args.tasks):
        raise InputError(
            f"{found.given}: lies in no run folder, so its dataset is not known; give that with --data, or of ARC its "
            "files with --identifiers and --tasks."
        )
    info = load_dataset_info(data) if data is not None and is_dataset(data) else None
    metrics = args.metrics or (found.folder and found.folder / METRICS)
    is_folder = len(found.predictions) == 1 and found.predictions[0].is_dir()
    evaluation = read_evaluation(found.predictions[0]) if is_folder else _evaluation_of(found.predictions)
    return Run(
        name, found.given, found.predictions, found.folder, run, evaluation, data, info,
        kind_named(info.kind if info else "arc"), metrics,
    )  # fmt: skip


def _evaluation_of(files: Sequence[Path]) -> Evaluation | None:
    """Return what the files of one folder are of."""
    folders = {file.parent for file in files}
    return read_evaluation(folders.pop()) if len(folders) == 1 else None


# From words to folders


def _found(given: Sequence[Path]) -> list[_Found]:
    """Return a column for each folder, and one for all bare files together."""
    files = [path for path in given if path.is_file()]
    columns = [_of_folder(path) for path in given if path not in files]
    if files:
        columns.append(_Found(files[0], files, _run_above(files[0].parent)))
    seen = dict[Path, Path]()
    for one in columns:
        real = one.predictions[0].resolve()
        if real in seen:
            raise InputError(
                f"{one.given}: its predictions are those of {seen[real]}, too; give each of them once."
            )
        seen[real] = one.given
    return columns


def _of_folder(path: Path) -> _Found:
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give a run folder, or predictions.")
    if is_dataset(path):
        raise InputError(
            f"{path}: is a dataset; give a run folder, or predictions, and the dataset with --data."
        )
    if (path / CONFIG).is_file():
        return _Found(path, [_latest_predictions(path)], path)
    if not any(path.glob("*.npz")):
        raise InputError(
            f"{path}: has neither {CONFIG}, as a run folder, nor *.npz, as predictions; give one of these."
        )
    return _Found(path, [path], _run_above(path))


def _latest_predictions(run: Path) -> Path:
    """Return the predictions of a run that are of the highest step, of several the newest."""
    top = run / "predictions"
    below = [path for path in sorted(top.glob("*/")) if path.name not in NOT_PREDICTIONS]
    folders = [path for path in (top, *below) if any(path.glob("*.npz"))]
    if not folders:
        data = read_run(run).config.data_path
        raise InputError(
            f"{run}: has no predictions in {top}; make them with `python -m tools.evaluate {run}/checkpoints/latest "
            f"--data {data} --out {top} --every-segment`."
        )
    return max(folders, key=lambda folder: (_step(read_evaluation(folder)) or -1, _time(folder)))


def _step(evaluation: Evaluation | None) -> int | None:
    name = evaluation and re.match(r"step_(\d+)-", evaluation.checkpoint_id)
    return int(name[1]) if name else None


def _time(folder: Path) -> float:
    return max(file.stat().st_mtime for file in folder.glob("*.npz"))


def _run_above(folder: Path) -> Path | None:
    """Return the run folder that predictions lie in: RUN/predictions or RUN/predictions/NAME.

    Other programs have a config.yaml, too, so metrics or checkpoints have to be there as well.
    """
    real = folder.resolve()
    above = zip((folder, folder / "..", folder / ".." / ".."), (real, *real.parents), strict=False)
    found = next((path for path, there in above if _is_run(there)), None)
    return found and (found if ".." not in found.parts else _shortened(found))


def _is_run(folder: Path) -> bool:
    has_trained = (folder / METRICS).is_file() or (folder / "checkpoints").is_dir()
    return (folder / CONFIG).is_file() and has_trained


def _shortened(path: Path) -> Path:
    """Return a path without `..`, as far as that is the same folder."""
    plain = Path(*path.parts[: path.parts.index("..")]).parents[path.parts.count("..") - 1]
    return plain if plain.resolve() == path.resolve() else path.resolve()


def _names(found: Sequence[_Found], runs: Sequence[RunFolder | None]) -> list[str]:
    """Return the names that configurations give, or as much of the ends of paths as tells them apart."""
    given = [run.config.run_name if run else None for run in runs]
    if all(given) and len(set(given)) == len(given):
        return [str(name) for name in given]
    paths = [(one.folder if one.folder and one.given == one.folder else one.given).resolve() for one in found]
    if len({one.folder for one in found if one.folder}) == len(found):
        paths = [one.folder.resolve() for one in found if one.folder]
    for num in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-num:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def refuse_output(out: Path, runs: Sequence[Run], args: Namespace) -> None:
    """Raise InputError for an output that would take the place of what is read, or of what lies with it."""
    names = (CONFIG, METRICS, RUN_RECORD, ANALYSIS, "checkpoints", "scores.json")
    inputs = {run.folder / name for run in runs if run.folder is not None for name in names}
    for run in runs:
        asked = Namespace(**{**vars(args), "predictions": run.predictions, "data": run.data})
        refuse_inputs_as_outputs(asked, {"--out": out})
        inputs.update(prediction_files(run.predictions))
    refuse_outputs({"--out": out}, inputs)
