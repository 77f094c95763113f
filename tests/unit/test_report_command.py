"""What tools.report takes and refuses: runs, their names, curves, pictures, prices."""

import base64
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm_dist.evaluation.output_dir import RECORD
from hrm_dist.train import main as train
from tests.training import evaluating, train_briefly
from tools.report.__main__ import gather, main, parse
from tools.report.curves import MAX_POINTS, curves
from tools.report.payload import Report

PNG = b"\x89PNG\r\n\x1a\n and so on"


def report_of(*words: object) -> Report:
    return gather(parse([str(word) for word in words]))


@pytest.fixture(scope="module")
def trained(config: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of ARC tasks with the predictions of three of them."""
    run = tmp_path_factory.mktemp("report") / "run"
    checkpoint = train_briefly(config, run)
    assert evaluating(checkpoint, dataset)(run / "predictions", "--max-groups", 3, "--every-segment") == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """tools.report, which must refuse its words and write nothing: its one message."""

    def call(*words: object) -> str:
        out = tmp_path / "refused.html"
        capsys.readouterr()
        assert main([*map(str, words), *([] if "--out" in words else ["--out", str(out)])]) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert not out.exists()
        return line

    return call


def test_the_latest_predictions_of_a_run_are_shown(run: Path, tmp_path: Path) -> None:
    first = run / "predictions"
    moved = tmp_path / "of_step_3"
    first.rename(moved)
    for name, step in (("old", 2), ("new", 3)):
        folder = Path(shutil.copytree(moved, first / name))
        record = folder / RECORD
        record.write_text(
            record.read_text().replace('"checkpoint_id": "step_3', f'"checkpoint_id": "step_{step}')
        )
    report = report_of(run, "--out", tmp_path / "r.html")
    assert report.runs[0].facts["predictions"] == str(first / "new")
    assert report.runs[0].facts["checkpoint"].startswith("step_3-")


def test_predictions_in_a_run_folder_are_of_that_run(run: Path, dataset: Path, tmp_path: Path) -> None:
    whole = report_of(run, "--out", tmp_path / "r.html")
    [file] = (run / "predictions").glob("*.npz")
    for given_path in (run / "predictions", file):
        report = report_of(given_path, "--out", tmp_path / "r.html")
        assert report.runs[0].settings == whole.runs[0].settings
        assert report.puzzles == whole.puzzles
    bare = report_of(shutil.copy(file, tmp_path), "--data", dataset, "--out", tmp_path / "r.html").runs[0]
    assert bare.settings == {}
    assert bare.curves == []
    assert bare.scores == whole.runs[0].scores


def test_names_are_as_short_as_tells_runs_apart(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "more" / "run", symlinks=True))
    third = Path(shutil.copytree(run, tmp_path / "more" / "third", symlinks=True))
    report = report_of(run, other, "--out", tmp_path / "r.html")
    assert [one.name for one in report.runs] == [f"{tmp_path.name}/run", "more/run"]
    assert [one.name for one in report_of(run, third, "--out", tmp_path / "r.html").runs] == ["run", "third"]
    for folder, name in ((run, "wide"), (third, "deep")):
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("run_name: null", f"run_name: {name}"))
    assert [one.name for one in report_of(run, third, "--out", tmp_path / "r.html").runs] == ["wide", "deep"]


def test_what_is_not_answered_is_said_with_the_results(run: Path, tmp_path: Path) -> None:
    [file] = (run / "predictions").glob("*.npz")
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(file, **{name: array[:-2] if array.ndim else array for name, array in arrays.items()})
    shutil.rmtree(run / "predictions" / "segments")
    [one] = report_of(run, "--out", tmp_path / "r.html").runs
    assert any("2 of 27 inputs are not answered" in text for text in one.warnings)


def test_a_run_whose_starts_had_different_devices_cost_between_the_least_and_the_most(
    run: Path, tmp_path: Path
) -> None:
    path = run / "run.json"
    record = json.loads(path.read_text())
    [start] = record["starts"]
    gpus = {"gpus": {"H100": 8}}
    record["starts"].append({**start, "hardware": start["hardware"] | gpus})
    record["seconds_at"] = {str(record["step"]): 1800}
    path.write_text(json.dumps(record))
    facts = report_of(run, "--out", tmp_path / "r.html", "--price-per-hour", 2).runs[0].facts
    assert facts["device hours"] == "0.5 to 4"
    assert facts["cost"] == "1.00 to 8.00, at 2 for the hour of a device"


def test_a_copied_run_keeps_the_date_of_its_training(run: Path, tmp_path: Path) -> None:
    path = run / "run.json"
    record = json.loads(path.read_text())
    for saved_at, shown in (("2026-11-27T19:32:05Z", "2026-11-27 19:32 UTC"), (None, None)):
        path.write_text(json.dumps(record | {"saved_at": saved_at}))
        assert report_of(run, "--out", tmp_path / "r.html").runs[0].facts.get("trained") == shown


# What is refused


def test_a_run_without_predictions_says_how_to_make_them(run: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(run / "predictions")
    assert (
        f"{run}: has no predictions in {run}/predictions; make them with `python -m tools.evaluate "
        in refused(run)
    )


def test_what_is_no_run_is_refused(
    run: Path, dataset: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "nowhere: no such file or folder" in refused(tmp_path / "nowhere")
    assert "is a dataset; give a run folder" in refused(dataset)
    assert "has neither config.yaml, as a run folder, nor *.npz" in refused(tmp_path)
    assert "its predictions are those of" in refused(run, run / "predictions")
    moved = shutil.move(run / "predictions", tmp_path / "alone")
    assert "lies in no run folder, so its dataset is not known" in refused(moved)


def test_a_dataset_that_has_gone_is_asked_for(run: Path, dataset: Path, refused: Callable[..., str]) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(dataset), "gone"))
    assert f"{run}: was trained on gone, which is no folder here; give its dataset with --data" in refused(
        run
    )


def test_other_puzzles_and_kinds_are_refused(
    run: Path, config: Path, dataset: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    own, other = tmp_path / "sudoku.yaml", tmp_path / "sudoku"
    section = "dataset: {preset: sudoku, side: 4, num_train: 9, num_test: 5}"
    own.write_text(f"{config.read_text()}\n{section}\n")
    assert train([str(own), f"data_path={tmp_path}/data", f"checkpoint_path={other}", "max_steps=1"]) == 0
    evaluate = evaluating(other / "checkpoints" / "latest", tmp_path / "data")
    assert evaluate(other / "predictions") == 0
    assert "is of sudoku puzzles, but" in refused(run, other)
    assert "so the predictions are of another dataset" in refused(other, "--data", dataset)
    (other / "predictions" / RECORD).unlink()
    seeded = tmp_path / "seeded.yaml"
    seeded.write_text(f"{config.read_text()}\n{section.replace('sudoku,', 'sudoku, seed: 7,')}\n")
    assert (
        train([str(seeded), f"data_path={tmp_path}/data7", f"checkpoint_path={tmp_path}/r7", "max_steps=1"])
        == 0
    )
    assert "its inputs are not those of the test split" in refused(other, "--data", tmp_path / "data7")
    assert "which are not voted on" in refused(other, "--by", "q")
    assert "have no tasks; leave it out" in refused(other, "--subsets", own)


def test_a_report_never_takes_the_place_of_what_it_reads(run: Path, refused: Callable[..., str]) -> None:
    [file] = (run / "predictions").glob("*.npz")
    for out in (file, run / "config.yaml", run / "metrics.jsonl", run / "analysis" / "analysis.json"):
        before = out.read_bytes() if out.exists() else None
        assert "is among the files that are read, or lies with them" in refused(run, "--out", out)
        assert (out.read_bytes() if out.exists() else None) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"train/loss": 1}\n{\n', "no line is an object with a whole number 'step'"),
        (b"\xff\xfe\x00", "no line is an object with a whole number 'step'"),
        (None, "cannot be read"),
    ],
)
def test_metrics_that_are_damaged_are_named(
    run: Path, content: bytes | None, message: str, refused: Callable[..., str]
) -> None:
    path = run / "metrics.jsonl"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    line = refused(run)
    assert message in line
    assert str(path) in line


def test_damaged_lines_of_metrics_are_left_out(run: Path, tmp_path: Path) -> None:
    path = run / "metrics.jsonl"
    whole = report_of(run, "--out", tmp_path / "r.html").runs[0].curves
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n{\n" + b'{"step": 30')
    assert report_of(run, "--out", tmp_path / "r.html").runs[0].curves == whole


def test_segments_of_other_predictions_are_refused(run: Path, refused: Callable[..., str]) -> None:
    [file] = (run / "predictions" / "segments").glob("*.npz")
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(file, **arrays | {"rows": arrays["rows"] + 1})
    assert f"{file}: is not of the inputs of" in refused(run)
    file.write_bytes(b"PK")
    assert f"{file}: not a readable .npz file" in refused(run)


def test_a_price_is_a_number_from_zero(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("-1", "nan", "cheap"):
        with pytest.raises(SystemExit):
            main([str(run), "--out", "x.html", "--price-per-hour", text])
        assert f"'{text}' is no price" in capsys.readouterr().err


# Pictures of tools.analyze


def listed(run: Path, *figures: object) -> Path:
    (run / "analysis").mkdir()
    (run / "analysis" / "a.png").write_bytes(PNG)
    (run / "analysis" / "analysis.json").write_text(json.dumps({"figures": figures}))
    return run


def test_pictures_of_the_analysis_are_shown(run: Path, tmp_path: Path) -> None:
    listed(run, {"file": "a.png", "title": "Dimensions", "caption": "H above L"})
    [figure] = report_of(run, "--out", tmp_path / "r.html").runs[0].figures
    assert (figure.title, figure.caption) == ("Dimensions", "H above L")
    assert base64.b64decode(figure.uri.removeprefix("data:image/png;base64,")) == PNG


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"file": "b.png", "title": "", "caption": ""}, "b.png: cannot be read"),
        ({"file": "../config.yaml", "title": "", "caption": ""}, "is no PNG of its folder"),
        ({"file": "a.png"}, "without file, title or caption"),
        ("a.png", "without file, title or caption"),
    ],
)
def test_pictures_that_cannot_be_shown_are_named(
    run: Path, figure: object, message: str, refused: Callable[..., str]
) -> None:
    assert message in refused(listed(run, figure))


# Curves


@given(st.dictionaries(st.integers(0, 10**6), st.floats(-1e3, 1e3), min_size=1, max_size=2000))
def test_a_curve_keeps_its_ends_and_its_range_in_few_points(by_step: dict[int, float]) -> None:
    [curve] = curves([{"step": step, "train/loss": value} for step, value in by_step.items()])
    assert (curve.panel, curve.name) == ("loss", "loss")
    assert len(curve.steps) == len(curve.values) == min(len(by_step), MAX_POINTS)
    assert curve.steps == sorted(set(curve.steps))
    last = max(by_step)
    assert curve.steps[-1] == last
    assert curve.values[-1] == pytest.approx(by_step[last], rel=1e-4, abs=1e-9)
    values = [value for value in curve.values if value is not None]
    assert min(by_step.values()) - 0.1 <= min(values)
    assert max(values) <= max(by_step.values()) + 0.1


def test_values_that_are_lost_leave_gaps() -> None:
    rows = [
        {"step": 1, "train/loss": 2.0},
        {"step": 2, "train/loss": math.nan},
        {"step": 3, "train/loss": None},
    ]
    [curve] = curves(rows)
    assert (curve.steps, curve.values) == ([1, 2], [2.0, None])


def test_counts_and_texts_are_no_curves() -> None:
    assert curves([{"step": 1, "eval/examples": 9.0, "note": "x", "done": True}]) == []
