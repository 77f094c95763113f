"""README.md of an exported folder: a model card in the Hub's form, made of what is known and of nothing else.

Above stands the Hub's metadata, in YAML; below what a person needs to know, from the template model_card.md.jinja. The
facts are those of a row in a table of results (tools.results), of the checkpoint that is exported.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from data_pipeline.base.errors import InputError
from data_pipeline.grid_puzzles.csv_files import HUB_PREFIX
from data_pipeline.kind import split_role
from data_pipeline.schema import DatasetInfo, load_dataset_info
from hrm_dist.checkpoint import pointer, reader
from hrm_dist.checkpoint.reader import Checkpoint
from hrm_dist.config import TrainConfig
from hrm_dist.evaluation.scores import SCORES_FILE
from hrm_dist.inference.examples import example_of
from hrm_dist.run_record import dataset_of
from tools.results.run_folder import (
    UNKNOWN,
    RunFolder,
    Score,
    architecture_facts,
    command_text,
    facts,
    puzzles_text,
    read_object,
    read_run,
    score_text,
    scores_of,
    subset_text,
    task_text,
)

CARD = "README.md"
LIBRARY = "hrm-dist"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_NONE = "none"


class _Scores(NamedTuple):
    """Scores that these weights have got."""

    where: str
    """How, for people."""
    scores: list[Score]
    on: str
    """Of which puzzles; empty if that is not known."""
    rules: dict[str, Any]
    """How answers came about, as in scores.json."""


def model_card(
    opened: Checkpoint,
    path: Path,
    name: str,
    data_path: Path,
    *,
    ema: bool,
    license: str | None,
    scores: Path | None,
) -> str:
    """Return the card of a checkpoint that is exported to a folder of this name.

    Raise InputError where its run folder is damaged, or `scores` is of other weights.
    """
    info = load_dataset_info(data_path)
    run = _run_of(opened, path)
    found = list(_scores_of(run, opened, path, info, ema=ema, given=scores))
    names = json.loads((data_path / "identifiers.json").read_bytes())
    environment = jinja2.Environment(
        autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    body = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        quoted_name=json.dumps(name, ensure_ascii=False),
        kind=info.kind,
        canvas=info.canvas,
        arch=run.config.arch,
        is_arc=info.kind == "arc",
        weights="their moving average (EMA)" if ema else "as they were",
        step=opened.state.step,
        example=example_of(data_path, info, names),
        architecture=_architecture(run, opened),
        trained_on=_trained_on(run, info, data_path),
        training=_training(run, opened),
        scores=[(one, [score_text(score.name, [score]) for score in one.scores]) for one in found],
        limits=list(_limits(run, opened, path, info, found)),
        num_tasks=info.splits.train.total_groups,
        command=command_text([run]),
        identity=reader.identity(path),
        unknown=UNKNOWN,
    )
    front = yaml.safe_dump(_front(run, name, info, found, license), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{body}"


def _run_of(opened: Checkpoint, path: Path) -> RunFolder:
    """Return what the run folder says of this checkpoint; of a checkpoint without one, what it says itself."""
    folder = pointer.target(path).parent.parent
    if not (folder / "config.yaml").is_file():
        config = TrainConfig.model_validate(opened.state.config)
        return RunFolder(folder, config, record=None, evaluations={}, votes=None)
    run, step = read_run(folder), opened.state.step
    record = run.record and run.record.model_copy(update={"step": step})
    return run._replace(record=record, votes=None)


def _scores_of(
    run: RunFolder, opened: Checkpoint, path: Path, info: DatasetInfo, *, ema: bool, given: Path | None
) -> Iterator[_Scores]:
    """Yield what scores these very weights have: of predictions, and of the evaluation during training."""
    checkpoint_id = f"{reader.identity(path)}-{'average' if ema else 'raw'}"
    files = [given] if given is not None else []
    # Where commands put them: in the run folder, in RUN/predictions, and in a folder of it for each step.
    for folder in (".", "*", "*/*"):
        files += sorted(run.path.glob(f"{folder}/{SCORES_FILE}"))
    for file in dict.fromkeys(files):
        content = read_object(file)
        if content.get("checkpoint_ids") != [checkpoint_id]:
            if file == given:
                of = ", ".join(content.get("checkpoint_ids", [])) or "unknown weights"
                raise InputError(
                    f"--scores {file}: is of {of}, not of {checkpoint_id}; give the scores of predictions with these "
                    "weights."
                )
            continue
        found = scores_of(run._replace(votes=content))
        if found:
            rules = {
                key: value for key, value in content.get("rules", {}).items() if value not in (None, _NONE)
            }
            yield _Scores("evaluated after training", found, content.get("evaluated_on") or "", rules)
    step, kept_ema = opened.state.step, opened.has("ema")
    if step in run.evaluations and ema == kept_ema:
        found = scores_of(run._replace(evaluations={step: run.evaluations[step]}))
        if found:
            on = info.evaluated(run.config.eval_max_groups)
            yield _Scores(f"evaluated during training, at step {step:,}", found, on, {})


def _architecture(run: RunFolder, opened: Checkpoint) -> dict[str, str]:
    """Return what the network is."""
    table = opened.shapes.get("model.puzzle_emb.weights")
    parameters = run.record and run.record.num_parameters
    known = architecture_facts(run.config.arch)
    known |= {"parameters": f"{parameters:,}, without the puzzle table"} if parameters else {}
    known |= {"puzzle table": f"{table[0]:,} rows of {table[1]:,} numbers"} if table else {}
    if run.config.padding == "skip":
        known["padding"] = "not computed (padding=skip)"
    return known


def _trained_on(run: RunFolder, info: DatasetInfo, data_path: Path) -> dict[str, str]:
    """Return which puzzles trained."""
    dataset = dataset_of(run.config.model_copy(update={"data_path": str(data_path)}))
    given = dataset.options | (dataset.options.get("generator") or {})
    options = ", ".join(
        f"{name}={value}" for name, value in given.items() if name != "generator" and value is not None
    )
    known = {
        "puzzles": task_text(dataset),
        "training puzzles": puzzles_text(dataset),
        "held out": f"{dataset.test_groups:,} puzzles" if dataset.test_groups else "nothing",
        "subset": subset_text(dataset),
        "sources": ", ".join(f"{source.name} (sha256 {source.sha256[:16]}...)" for source in info.sources)
        or "generated",
        "options": f"{options}, seed={info.seed}",
        "sha256 of dataset.json's content": dataset.sha256,
    }
    return {name: value for name, value in known.items() if value != UNKNOWN}


def _training(run: RunFolder, opened: Checkpoint) -> dict[str, str]:
    """Return how it was trained, as far as that is known."""
    known = facts([run], {})
    wanted = {
        "steps": "steps",
        "batch": "examples a step",
        "minutes": "minutes",
        "hardware": "hardware",
        "commit": "commit",
    }
    step, record = opened.state.step, run.record
    if record is None:
        known["steps"] = f"{step:,}"
    if record is None or step not in record.seconds_at:
        del wanted["minutes"]
    rows = {text: known[name] for name, text in wanted.items() if UNKNOWN not in known[name]}
    rows["seed"] = str(run.config.seed)
    if record is not None:
        versions = dict.fromkeys(
            ", ".join(f"{package} {version}" for package, version in start.versions.items())
            for start in record.starts
        )
        rows["versions"] = " / ".join(versions)
    return rows


def _limits(
    run: RunFolder, opened: Checkpoint, path: Path, info: DatasetInfo, found: list[_Scores]
) -> Iterator[str]:
    """Yield what nobody should expect, or take the scores for."""
    if found:
        yield (
            "Tested on the puzzles above alone. How it does on puzzles made in another way, harder or easier, is not "
            "known."
        )
    else:
        yield "No score of these very weights is known: nothing says whether they solve anything."
    if info.kind == "arc":
        yield (
            f"It can answer the {info.splits.train.total_groups:,} tasks that it was trained on and no others, since "
            f"each has learned rows of its own; grids are at most {info.canvas} x {info.canvas}. "
            "`python -m tools.adapt` trains a model on new tasks."
        )
    else:
        yield f"It takes puzzles of {info.canvas} x {info.canvas} and no others."
        yield "It answers whatever it is given, a puzzle without a solution too, and answers are not checked."
    if info.leaks.num_pairs and not info.leaks.dropped:
        yield (
            f"{info.leaks.num_pairs:,} held-out pairs also stand in the training data, as they are or augmented; "
            "scores include them."
        )
    best = pointer.target(path).parent / "best"
    if found and len(run.evaluations) > 1 and pointer.target(best) == pointer.target(path):
        yield (
            f"Of the run's {len(run.evaluations)} evaluations on the same held-out puzzles this one was the best, and "
            "the checkpoint was kept for that, which flatters it."
        )
    if not opened.state.step:
        yield "These weights are of step 0: they were imported, or are random, and the run has not trained them."
    yield "One seed. Intervals are over test puzzles; what other seeds would have given they do not tell."
    yield "`q` is the model's own estimate of being right. How well it is calibrated was not measured for this card."


def _front(
    run: RunFolder, name: str, info: DatasetInfo, found: list[_Scores], license: str | None
) -> Mapping[str, Any]:
    """Return the Hub's metadata."""
    sources = run.config.dataset.source if run.config.dataset else ()
    paths = [str(split_role(source)[0]) for source in sources if source.startswith(HUB_PREFIX)]
    datasets = list(dict.fromkeys(text.removeprefix(HUB_PREFIX).partition("@")[0] for text in paths))
    front: dict[str, Any] = {"license": license} if license else {}
    front |= {
        "library_name": LIBRARY,
        "tags": [LIBRARY, run.config.arch.name, info.kind, "puzzles", "safetensors"],
    }
    if datasets:
        front["datasets"] = datasets
    if found:
        front["model-index"] = [
            {"name": name, "results": [_result(one, info, datasets) for one in found]},
        ]
    return front


def _result(one: _Scores, info: DatasetInfo, datasets: list[str]) -> dict[str, Any]:
    """Return an entry of the model index."""
    size = f"{info.kind} {info.canvas} x {info.canvas}"
    return {
        "task": {"type": "puzzle-solving", "name": one.where},
        "dataset": {
            "type": datasets[0] if len(datasets) == 1 else info.kind,
            "name": one.on or size,
            "split": "test",
        },
        "metrics": [
            {
                "type": _metric(score.name),
                "value": score.value,
                "name": score.name,
            }
            for score in one.scores
        ],
    }


def _metric(name: str) -> str:
    """Return the Hub's name of a score, where it has one, and ours of the others."""
    plain = name.rpartition(": ")[2].replace(" ", "_")
    return {"exact": "exact_match"}.get(plain, plain)
