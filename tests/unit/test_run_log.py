"""What a run tells W&B and TensorBoard: one real run with evaluations, which crashes once and resumes."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data_pipeline.base.files import replace_file
from data_pipeline.schema import load_dataset_info
from tests.logged import Logged, events, texts, wandb_runs
from tests.training import assert_same_run, command_line, lines, rows, train, until

STEPS, CRASHED_AT, SAVED_AT = 7, 5, 4
SETTINGS = ("eval_interval=1", "eval_num_aug=0", "checkpoint_interval=2")
SINKS = ("wandb_mode=offline", "tensorboard=true", "run_name=told")


class Runs(NamedTuple):
    """The same training, with all sinks and with metrics.jsonl alone."""

    told: Path
    plain: Path


def lose_the_last_checkpoint(run: Path) -> None:
    """Leave the run as a crash does that comes after some rows and before the next checkpoint."""
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / f"step_{CRASHED_AT}")
    for name in ("latest", "best"):
        (checkpoints / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    runs = Runs(folder / "told", folder / "plain")
    for run, more in zip(runs, (SINKS, ()), strict=True):
        for last_step in (CRASHED_AT, STEPS):
            finished = train(config, run, *SETTINGS, *more, f"max_steps={last_step}")
            assert finished.exit_code == 0, finished.output
            if last_step == CRASHED_AT:
                lose_the_last_checkpoint(run)
    return runs


@pytest.fixture(scope="module")
def logged(runs: Runs) -> list[Logged]:
    return wandb_runs(runs.told)


def evaluated(run: Path) -> list[int]:
    """Give the steps with scores."""
    return [row["step"] for row in lines(run) if "eval/exact_accuracy" in row]


def evaluated_in_wandb(run: Path) -> list[int]:
    """Give these steps and the one of the crash, which cannot be taken back there; it was a last step at first."""
    return sorted([*evaluated(run), CRASHED_AT])


def test_training_is_the_same_to_the_bit_with_and_without_sinks(runs: Runs) -> None:
    assert_same_run(*runs)


def test_wandb_has_each_step_of_metrics_once_and_in_order(runs: Runs, logged: list[Logged]) -> None:
    told = [row for start in logged for row in start.rows]
    assert [row["step"] for row in told] == [*range(1, STEPS + 1)]
    assert [row["_step"] for row in told] == [row["step"] for row in told]
    for row, expected in zip(told, rows(runs.told), strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, nan_ok=True), (row["step"], name)


def test_wandb_plots_all_curves_over_the_step(logged: list[Logged]) -> None:
    for start in logged:
        curves = {name for row in start.rows for name in row if re.match("train/|eval/|examples", name)}
        assert curves
        assert {name: start.axes.get(name) for name in curves} == dict.fromkeys(curves, "step")


def test_wandb_sums_up_losses_by_their_least_and_scores_by_their_best(
    runs: Runs, logged: list[Logged]
) -> None:
    start = logged[0]
    losses = [row["train/loss"] for row in start.rows]
    assert start.summary["train/loss"]["min"] == pytest.approx(min(losses))
    assert start.summary["train/loss"]["last"] == pytest.approx(losses[-1])
    assert start.summary["eval/exact_accuracy"].keys() == {"max", "last"}
    assert start.summary["train/lr"] == {"last": pytest.approx(start.rows[-1]["train/lr"])}


def test_wandb_has_all_settings_and_how_the_run_came_about(
    runs: Runs, logged: list[Logged], dataset: Path
) -> None:
    for start in logged:
        assert start.config["arch"]["hidden_size"] == 32
        assert start.config["global_batch_size"] == 8
        record = json.loads((runs.told / "run.json").read_text())
        facts = start.config["run"]
        assert facts["dataset"]["sha256"] == load_dataset_info(dataset).sha256
        assert facts["num_parameters"] == record["num_parameters"]
        assert facts["git_revision"] == record["starts"][0]["git_revision"]
        assert facts["hardware"]["cpu"] == record["starts"][0]["hardware"]["cpu"]


def test_wandb_has_the_score_table_of_each_evaluation_and_the_end(runs: Runs, logged: list[Logged]) -> None:
    with_table = {
        row["step"]: (start, row["scores"]) for start in logged for row in start.rows if "scores" in row
    }
    assert sorted(with_table) == evaluated_in_wandb(runs.told)
    assert STEPS in with_table
    del with_table[CRASHED_AT]
    for step, (start, entry) in with_table.items():
        table = json.loads((start.files / entry["path"]).read_text())
        assert table["columns"] == ["score", "value", "low", "high", "right", "of", "subset"]
        scores = next(row for row in lines(runs.told) if row["step"] == step and "eval/inputs" in row)
        found = {line[0]: line[1] for line in table["data"]}
        assert found == {
            name.removeprefix("eval/"): pytest.approx(value)
            for name, value in scores.items()
            if "/" in name and not name.endswith(("/inputs", "/tasks", "/examples"))
        }
    assert {path.parent.name for path in runs.told.rglob("*.table.json")} == {"table"}


def test_wandb_has_pictures_of_the_same_few_puzzles_at_each_evaluation(
    runs: Runs, logged: list[Logged]
) -> None:
    pictures = {
        row["step"]: {name: start.files / image["path"] for name, image in row.get("grids", {}).items()}
        | {name: start.files / row[name]["path"] for name in row if name.startswith("grids/")}
        for start in logged
        for row in start.rows
        if "scores" in row
    }
    assert sorted(pictures) == evaluated_in_wandb(runs.told)
    assert {len(of_step) for of_step in pictures.values()} == {6}
    assert len({tuple(sorted(of_step)) for of_step in pictures.values()}) == 1
    for path in (path for of_step in pictures.values() for path in of_step.values()):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert max(image.size) <= 800
        assert path.stat().st_size < 50_000


def test_wandb_keeps_all_files_in_the_run_folder(runs: Runs, logged: list[Logged]) -> None:
    staged = [*(runs.told / "wandb" / "data" / "artifacts" / "staging").iterdir()]
    assert staged


def test_tensorboard_has_each_step_of_metrics_once_and_in_order(runs: Runs) -> None:
    found, expected = events(runs.told), rows(runs.told)
    names = {name for row in expected for name in row} - {"step"}
    assert names <= set(found.Tags()["scalars"])
    for name in names:
        values = {row["step"]: row[name] for row in expected if name in row}
        told = found.Scalars(name)
        assert [event.step for event in told] == list(values), name
        assert [event.value for event in told] == pytest.approx(list(values.values()), rel=1e-6, nan_ok=True)


def test_tensorboard_has_settings_table_and_pictures(runs: Runs) -> None:
    found = events(runs.told)
    settings, facts = (next(iter(texts(runs.told, tag).values())) for tag in ("settings", "run"))
    assert "| arch.hidden_size | 32 |" in settings
    for name in ("dataset.sha256", "num_parameters", "git_revision", "hardware.cpu", "command"):
        assert f"| {name} | " in facts
    tables = texts(runs.told, "scores")
    assert list(tables) == evaluated(runs.told)
    assert "| task/pass@2 | " in tables[STEPS]
    images = [tag for tag in found.Tags()["images"] if tag.startswith("grids/")]
    assert len(images) == 6
    for tag in images:
        assert [event.step for event in found.Images(tag)] == evaluated(runs.told)


def test_tensorboard_and_wandb_show_the_same_pictures(runs: Runs, logged: list[Logged]) -> None:
    tag = next(tag for tag in events(runs.told).Tags()["images"] if tag.startswith("grids/"))
    path = runs.told / "shown.png"
    replace_file(path, events(runs.told).Images(tag)[0].encoded_image_string)
    [other] = logged[0].files.glob(f"media/images/{tag}_{evaluated(runs.told)[0]}_*.png")
    with Image.open(path) as image, Image.open(other) as same:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(same))


def test_without_pillow_all_but_the_pictures_goes_out_and_that_is_said_once(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [str(config), f"checkpoint_path={run}", *SETTINGS, *SINKS, "max_steps=4"]
    code = f"import sys; sys.modules['PIL'] = None; from hrm_dist.train import main; sys.exit(main({arguments!r}))"
    finished = command_line("-c", code)
    assert finished.exit_code == 0, finished.output
    said = re.findall(
        r"no pictures of answers: Pillow is missing or too old; .*pip install .*\[report\]", finished.output
    )
    assert len(said) == 1, finished.output
    assert "is gone" not in finished.output
    [start] = wandb_runs(run)
    assert "scores" in start.rows[-1]
    assert not [*start.files.rglob("*.png")]
    found = events(run)
    assert [event.step for event in found.Scalars("eval/exact_accuracy")] == evaluated(run)
    assert not found.Tags()["images"]


def test_tensorboard_serves_a_run(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs.told), "--port", "0"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--reload_interval", "1"], stdout=output, stderr=output
        )
    try:
        found: dict[str, dict[str, object]] = {}

        def is_served() -> bool:
            url = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
            if url is None:
                return False
            try:
                with urllib.request.urlopen(f"{url[0]}data/plugin/scalars/tags", timeout=10) as answer:
                    found.update(json.load(answer))
            except urllib.error.URLError:
                return False
            return "tensorboard" in found

        until(is_served, log.read_text)
        assert {"train/loss", "eval/exact_accuracy"} <= found["tensorboard"].keys()
    finally:
        server.terminate()
        server.wait(30)
