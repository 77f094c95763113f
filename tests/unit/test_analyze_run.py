"""Analysis of models: what is seen is what the model does, and a command writes what docs/analysis.md says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.base.errors import exit_code
from data_pipeline.base.progress import progress_bar
from data_pipeline.build import build
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestBatch as Batch
from data_pipeline.reader import TestReader
from data_pipeline.schema import load_dataset_info
from data_pipeline.shards.plan import Request
from data_pipeline.windows import windows_of_puzzles
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.evaluation.load_model import load_model
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.evaluation.start_keys import start_keys
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel
from hrm_dist.model.initialization import initialize
from tests.training import train_briefly
from tests.unit.models import arch_of
from tools.analyze import dimensions
from tools.analyze.__main__ import main
from tools.analyze.agreement import Agreement, NotThere, agreement
from tools.analyze.observe import Update, observed
from tools.analyze.watch import Puzzles, Watched, watch

SUDOKU = Path(__file__).parents[1] / "golden" / "earlier" / "sudoku"
WITH_STATES = [name for name, known in ARCHITECTURES.items() if known.states]
SECTIONS = (
    "dimensions", "paths", "residuals", "halting", "calibration", "staying", "agreement", "difficulty",
)  # fmt: skip
NUM = 5


@pytest.fixture(scope="module")
def reader(dataset: Path) -> TestReader:
    return TestReader(dataset)


def model_of(dataset: Path, name: str, *, skips: bool = False, **fields: object) -> ACTModel:
    """A model for a dataset with initial weights; skips: padding."""
    info = load_dataset_info(dataset)
    windows = torch.from_numpy(windows_of_puzzles(dataset, info)) if skips else None
    arch = arch_of(
        name, **{"halt_max_steps": 3, "H_cycles": 1 if name == "looped_transformer" else 2, **fields}
    )
    return build_model(arch, info.metadata("train"), seed=3, windows=windows).eval()


def run(
    model: ACTModel, reader: TestReader, segments: int, *, most_cells: int = 4, num: int = NUM
) -> Watched:
    puzzles = Puzzles.of_batch(reader.take(np.arange(num)))
    with progress_bar("", "segment", None, shown=False) as progress:
        return watch(
            model, puzzles, kind_named(reader.info.kind), segments, 2, progress, most_cells=most_cells
        )


def begun(model: ACTModel, batch: Batch) -> EvaluationSegment:
    """Segments of puzzles, before the first."""
    segment = EvaluationSegment(model, NUM, torch.device("cpu"))
    fields = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
    segment.refill(fields | {"noise_keys": start_keys(batch)}, torch.ones(NUM, dtype=torch.bool))
    return segment


# What is seen


@pytest.mark.parametrize("fields", [{}, {"damping": 0.8, "update_noise": 0.1}, {"skips": True}], ids=str)
@pytest.mark.parametrize("name", WITH_STATES)
def test_the_last_states_seen_are_those_of_the_model(
    dataset: Path, reader: TestReader, name: str, fields: dict[str, Any]
) -> None:
    model, batch = model_of(dataset, name, **fields), reader.take(np.arange(NUM))
    segment = begun(model, batch)
    seen: list[Update] = []
    with observed(model, seen.append):
        segment()
        segment()
    arch = model.arch
    per_segment = arch.H_cycles * arch.L_cycles + (arch.H_cycles if len(arch.description.states) > 1 else 0)
    assert len(seen) == 2 * per_segment
    for number, state in enumerate(segment.carry.inner_carry):
        last = next(update for update in reversed(seen) if update.state == number)
        computed = torch.ones(state.shape[:2], dtype=torch.bool)
        if model.windows is not None:
            computed = model._is_inside(segment.carry.current_data)
            assert not computed.all()
        assert torch.equal(last.new[computed], state[computed])
        assert torch.equal(last.num_positions, computed.sum(1))


@pytest.mark.parametrize("name", WITH_STATES)
def test_each_update_begins_where_the_one_before_ended(dataset: Path, reader: TestReader, name: str) -> None:
    model, batch = model_of(dataset, name), reader.take(np.arange(NUM))
    segment = begun(model, batch)
    last: dict[int, Tensor] = {}

    def see(update: Update) -> None:
        assert update.state not in last or torch.equal(update.old, last[update.state])
        last[update.state] = update.new

    with observed(model, see):
        segment()
        segment()
    assert len(last) == len(ARCHITECTURES[name].states)


@pytest.mark.parametrize("name", ["hrm", "looped_transformer"])
def test_being_seen_changes_nothing(dataset: Path, reader: TestReader, name: str) -> None:
    model = model_of(dataset, name)
    seen, alone = run(model, reader, 4), run(model, reader, 4, most_cells=0)
    assert seen.series
    assert not alone.series
    np.testing.assert_array_equal(seen.preds, alone.preds)
    for of_seen, of_alone in zip(seen.outcomes, alone.outcomes, strict=True):
        np.testing.assert_array_equal(of_seen, of_alone)
    assert "settled" not in vars(model.recurrence)


def test_a_plain_stack_s_residual_is_that_of_its_segment(dataset: Path, reader: TestReader) -> None:
    watched = run(model_of(dataset, "looped_transformer"), reader, 4)
    [series] = watched.series
    np.testing.assert_allclose(series.residuals[:, 1:, 0], watched.outcomes.residuals[:, 1:], rtol=1e-5)


def test_a_state_that_no_update_changes_has_residual_0(dataset: Path, reader: TestReader) -> None:
    model = model_of(dataset, "looped_transformer")
    model.recurrence.get_submodule("H_level").forward = lambda state, *_: state
    [series] = run(model, reader, 4).series
    assert (series.residuals == 0).all()
    begin = np.broadcast_to(model.get_buffer("H_init").numpy(), series.means.shape)
    np.testing.assert_allclose(series.means, begin, rtol=1e-5, atol=1e-6)


def test_cells_that_are_kept_are_cells_of_the_puzzle_and_have_its_states(
    dataset: Path, reader: TestReader
) -> None:
    model, batch = model_of(dataset, "hrm"), reader.take(np.arange(NUM))
    watched = run(model, reader, 2, most_cells=99)
    segment = begun(model, batch)
    segment()
    segment()
    for series, state in zip(watched.series, segment.carry.inner_carry, strict=True):
        for number, inputs in enumerate(batch["inputs"]):
            is_cell = (inputs != 0) | (batch["labels"][number] != -100)
            expected = state[number, model.arch.prefix_len :][is_cell]
            kept = series.cells[number, -1][series.is_cell[number]]
            assert len(kept) == is_cell.sum()
            # In no order, none twice.
            order, order_kept = expected.numpy()[:, 0].argsort(), kept[:, 0].argsort()
            np.testing.assert_allclose(kept[order_kept], expected.numpy()[order], atol=1e-5)
            np.testing.assert_allclose(series.means[number, -1], expected.mean(0).numpy(), atol=1e-5)


def test_states_are_kept_of_the_segments_of_training_and_changes_of_all(
    dataset: Path, reader: TestReader
) -> None:
    slow, fast = run(model_of(dataset, "trm", L_cycles=3), reader, 5).series
    assert (slow.updates_per_segment, fast.updates_per_segment) == (2, 6)
    assert (slow.means.shape[1], fast.means.shape[1]) == (3 * 2, 3 * 6)
    assert (slow.residuals.shape, fast.residuals.shape) == ((NUM, 5, 2), (NUM, 5, 6))


def test_initial_weights_are_those_that_training_began_with(
    dataset: Path, config: Path, tmp_path: Path
) -> None:
    checkpoint = train_briefly(config, tmp_path / "run")
    metadata = load_dataset_info(dataset).metadata("train")
    model = load_model(checkpoint, dataset, metadata, ema=True)
    initialize(model, 0)
    expected = build_model(model.arch, metadata, seed=0).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


# Agreement


def agreement_of(data: Path, answer: Callable[[Puzzles], np.ndarray]) -> Agreement | NotThere:
    reader = TestReader(data)
    rows = np.flatnonzero(reader.places().rounds == 0)
    puzzles = Puzzles.of_batch(reader.take(rows))
    preds = answer(puzzles)
    is_right = (preds == np.maximum(puzzles.labels, 0)).all(axis=1)
    return agreement(data, reader, rows, puzzles, preds, is_right, answer)


def truth(puzzles: Puzzles) -> np.ndarray:
    return np.maximum(puzzles.labels, 0).astype(np.uint8)


@pytest.mark.parametrize("kind", ["arc", "sudoku"])
def test_who_is_always_right_answers_all_images_alike(dataset: Path, kind: str) -> None:
    found = agreement_of(dataset if kind == "arc" else SUDOKU, truth)
    assert isinstance(found, Agreement)
    assert found.agreeing.value == 1
    assert [(one.agreeing, one.num, one.right) for one in found.by_agreement] == [
        (found.images, found.num_known, found.num_right)
    ]
    assert found.num_right == found.num_known > 0


@pytest.mark.parametrize("kind", ["arc", "sudoku"])
def test_who_answers_padding_agrees_with_nobody_and_noise_seldom(dataset: Path, kind: str) -> None:
    data, rng = (dataset if kind == "arc" else SUDOKU), np.random.default_rng(0)
    noise = agreement_of(data, lambda some: rng.integers(2, 6, some.inputs.shape, dtype=np.uint8))
    assert isinstance(noise, Agreement)
    assert noise.agreeing.value < 0.05
    if kind == "sudoku":
        padding = agreement_of(data, lambda some: np.zeros_like(some.inputs))
        assert isinstance(padding, Agreement)
        assert padding.agreeing.value == 0


def test_a_split_without_augmentations_says_so(tmp_path: Path) -> None:
    options = ArcOptions(num_aug=0, holdout="all", canvas=6, limit_groups=2)
    build(Request("arc-agi-1", [], tmp_path / "arc", options, seed=0, workers=1, quiet=True))
    found = agreement_of(tmp_path / "arc", truth)
    assert isinstance(found, NotThere)
    assert "--num-aug" in found.why


# The command


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What intervals are is tested in test_analyze.py."""
    monkeypatch.setattr(dimensions, "RESAMPLES", 29)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, which takes most of the time."""
    monkeypatch.setattr("tools.analyze.analysis.draw_all", lambda *_: [])


def analyze(*arguments: object) -> int:
    return exit_code(lambda: main([*map(str, arguments)]))


def read(out: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((out / "analysis.json").read_text(), parse_constant=refuse)


def train(config: Path, folder: Path, *overrides: str) -> Path:
    from hrm_dist.train import main as train_main

    assert train_main([str(config), f"checkpoint_path={folder}", "max_steps=2", *overrides]) == 0
    return folder / "checkpoints" / "latest"


OVERRIDES = {
    "hrm": (),
    "trm": ("arch.name=trm", "arch.H_cycles=2", "arch.L_cycles=2", "arch.H_layers=0"),
    "urm": ("arch.name=urm", "arch.H_cycles=2", "arch.L_cycles=2", "arch.H_layers=0"),
    "looped_transformer": ("arch.name=looped_transformer",),
    "transformer": ("arch.name=transformer", "arch.halt_max_steps=1"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_every_architecture_is_analysed(
    config: Path, dataset: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train(config, tmp_path / name, *OVERRIDES[name])
    assert analyze(checkpoint, "--data", dataset, "--puzzles", 6, "--max-segments", 5) == 0
    out = tmp_path / name / "analysis"
    report = read(out)
    [found] = report["checkpoints"]
    states = [*ARCHITECTURES[name].states]
    assert found["states"] == states
    assert all(section in found for section in SECTIONS)
    for section in ("dimensions", "paths", "residuals"):
        assert ("why" in found[section]) == (not states)
    for weights in ("trained", "initial") if states else ():
        of_weights = found["dimensions"][weights]
        assert ("quotient" in of_weights) == (len(states) == 2)
        for state in states:
            ratio = of_weights[state]["populations"]["cells, trajectory"]
            assert 1 <= ratio["low"] <= ratio["high"] <= found["arch"]["hidden_size"] * 1.5
    assert sum(found["halting"]["learned"]["counts"]) == report["num_puzzles"] == 6
    assert {figure["file"] for figure in report["figures"]} == {path.name for path in out.glob("*.png")}
    assert len(report["figures"]) == (10 if states else 5)
    assert all(figure["title"] and figure["caption"] for figure in report["figures"])
    output = capsys.readouterr().out
    assert name in output
    assert ("carries no state" in output) == (not states)


@pytest.fixture(scope="module")
def seeds(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("seeds")
    return [train(config, folder / f"seed{seed}", f"seed={seed}") for seed in range(2)]


def test_seeds_share_pictures_and_have_a_mean(seeds: list[Path], dataset: Path, tmp_path: Path) -> None:
    assert analyze(*seeds, "--data", dataset, "--out", tmp_path, "--puzzles", 4, "--max-segments", 2) == 0
    report = read(tmp_path)
    assert [one["name"] for one in report["checkpoints"]] == ["seed0", "seed1"]
    [mean] = report["seeds"].values()
    quotients = [
        one["dimensions"]["trained"]["quotient"]["cells, trajectory"]["value"]
        for one in report["checkpoints"]
    ]
    assert mean["trained"]["cells, trajectory"]["value"] == pytest.approx(np.prod(quotients) ** 0.5)


@pytest.mark.usefixtures("no_pictures")
def test_seeds_that_trained_otherwise_have_no_mean(
    seeds: list[Path], config: Path, dataset: Path, tmp_path: Path
) -> None:
    other = train(config, tmp_path / "other", "seed=1", "lr=0.01")
    out = ("--out", tmp_path / "out", "--puzzles", 2, "--max-segments", 1)
    assert analyze(seeds[0], other, "--data", dataset, *out) == 0
    assert read(tmp_path / "out")["seeds"] == {}


@pytest.mark.usefixtures("no_pictures")
def test_the_same_command_writes_the_same_numbers(seeds: list[Path], dataset: Path, tmp_path: Path) -> None:
    arguments = (seeds[0], "--data", dataset, "--puzzles", 4, "--max-segments", 2, "--out")
    reports = []
    for name in ("a", "b"):
        assert analyze(*arguments, tmp_path / name) == 0
        reports.append(read(tmp_path / name) | {"command": []})
    assert reports[0] == reports[1]


def test_one_puzzle_is_analysed_as_far_as_that_goes(seeds: list[Path], dataset: Path, tmp_path: Path) -> None:
    assert analyze(seeds[0], "--data", dataset, "--puzzles", 1, "--out", tmp_path) == 0
    assert "one puzzle" in read(tmp_path)["checkpoints"][0]["dimensions"]["why"]


@pytest.mark.usefixtures("no_pictures")
def test_the_training_split_is_analysed(seeds: list[Path], dataset: Path, tmp_path: Path) -> None:
    assert analyze(seeds[0], "--data", dataset, "--split", "train", "--puzzles", 3, "--out", tmp_path) == 0
    report = read(tmp_path)
    assert (report["split"], report["num_puzzles"]) == ("train", 3)


def few_tasks(folder: Path, role: str) -> Path:
    """Return a dataset of three tasks, to train on or whose outputs are hidden."""
    (folder / "tasks").mkdir()
    for number in range(3):
        grid = [[number, 1], [2, 3]]
        pairs = [{"input": grid, "output": grid[::-1]}, {"input": grid[::-1], "output": grid}]
        test: dict[str, object] = {"input": [[1, 2], [3, number]]}
        if role == "train":
            test["output"] = [[3, number], [1, 2]]
        (folder / "tasks" / f"task{number}.json").write_text(json.dumps({"train": pairs, "test": [test]}))
    options = ArcOptions(num_aug=2, canvas=4)
    sources = [f"{folder / 'tasks'}:{role}"]
    build(Request("arc", sources, folder / "data", options, seed=0, workers=1, quiet=True))
    return folder / "data"


def test_a_split_whose_truth_is_hidden_tells_what_needs_none(config: Path, tmp_path: Path) -> None:
    data = few_tasks(tmp_path, "evaluation")
    checkpoint = train(config, tmp_path / "run", f"data_path={data}")
    assert analyze(checkpoint, "--data", data, "--max-segments", 3) == 0
    [found] = read(tmp_path / "run" / "analysis")["checkpoints"]
    assert all("hidden" in found[section]["why"] for section in ("accuracy", "calibration", "staying"))
    assert "trained" in found["dimensions"]
    assert sum(found["halting"]["learned"]["counts"]) == 3
    assert (found["agreement"]["num"], found["agreement"]["num_known"]) == (3, 0)
    drawn = {figure["file"] for figure in read(tmp_path / "run" / "analysis")["figures"]}
    assert "halting.png" in drawn
    assert "agreement.png" not in drawn


# What is refused


def test_what_cannot_be_is_refused_before_anything_is_written(
    seeds: list[Path], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "file"
    file.touch()
    copy = tmp_path / "copy" / "checkpoints" / "latest"
    shutil.copytree(seeds[0].resolve(), copy)
    for arguments, part in (
        ((tmp_path, "--data", dataset, "--out", out), "no checkpoint here"),
        ((seeds[0], "--data", SUDOKU, "--out", out), "another dataset"),
        ((seeds[0], "--data", tmp_path, "--out", out), "dataset.json"),
        ((seeds[0], copy, "--data", dataset, "--out", out), "the same checkpoint"),
        ((*seeds, "--data", dataset), "--out is missing"),
        ((seeds[0], "--data", dataset, "--out", file), "is no folder"),
        ((seeds[0], "--data", dataset, "--out", file / "out"), "cannot be written"),
    ):
        assert analyze(*arguments) == 2, part
        assert part in capsys.readouterr().err
    assert not out.exists()
    assert not (seeds[0].parent.parent / "analysis").exists()


def test_a_gpu_that_is_not_there_and_several_processes_are_refused(
    seeds: list[Path],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (seeds[0], "--data", dataset, "--out", tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert analyze(*arguments, "--device", "cuda") == 2
    assert "no GPU" in capsys.readouterr().err
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert analyze(*arguments) == 2
    assert "2 processes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_which_nothing_is_held_out_says_what_to_do(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = few_tasks(tmp_path, "train")
    checkpoint = train(config, tmp_path / "run", f"data_path={data}")
    assert analyze(checkpoint, "--data", data) == 2
    assert "--split train" in capsys.readouterr().err
