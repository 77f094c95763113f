"""The report: complete, self-contained, and safe against what stands in files."""

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.arc.tokens import encode
from hrm_dist.evaluation.predictions import UNKNOWN_EXAMPLE, Predictions, write_predictions
from tools.report.__main__ import GridView, grid_view, main

GOLDEN = Path(__file__).parents[1] / "golden" / "arc_vote"
CANVAS = 5
HOSTILE = '<script>alert("x")</script>\'&{{ 7 * 7 }}'


def write_data(folder: Path, identifiers: list[str], tasks: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "identifiers.json").write_text(json.dumps(identifiers))
    (folder / "test_puzzles.json").write_text(json.dumps(tasks))


def small_tasks() -> dict[str, Any]:
    """One solved, one partly, one unsolved and one with hidden truth, whose id tries to be markup."""
    demonstrations = [{"input": [[1, 2]], "output": [[2, 1]]}]
    known = [{"input": [[colour]], "output": [[colour]]} for colour in (3, 4)]
    tests = {"right": known[:1], "half": known, "none": known[1:], HOSTILE: [{"input": [[5]]}]}
    return {task: {"train": demonstrations, "test": test} for task, test in tests.items()}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A vote over the small tasks: every prediction is colour 3."""
    tasks = small_tasks()
    write_data(tmp_path, ["<blank>", *tasks], tasks)
    ids = np.array([1, 2, 2, 3, 4], dtype=np.int32)
    colours = (3, 3, 4, 4, 5)
    predictions = Predictions(
        ids,
        inputs=np.stack([encode(np.full((1, 1), colour, dtype=np.uint8), CANVAS) for colour in colours]),
        preds=np.stack([encode(np.full((1, 1), 3, dtype=np.uint8), CANVAS)] * len(ids)),
        q_halt_logits=np.zeros(len(ids), dtype=np.float32),
        example_index=np.full(len(ids), UNKNOWN_EXAMPLE, dtype=np.int32),
        checkpoint_id=HOSTILE,
    )
    write_predictions(tmp_path / "p.npz", predictions)
    return [str(tmp_path / "p.npz"), "--data", str(tmp_path), "--out", str(tmp_path / "report.html")]


def write_metrics(path: Path, *lines: str) -> list[str]:
    path.write_text("".join(f"{line}\n" for line in lines))
    return ["--metrics", str(path)]


def page_of(arguments: list[str], *more: str) -> str:
    assert main([*arguments, *more]) == 0
    return Path(arguments[-1]).read_text(encoding="utf-8")


def test_the_published_vote_becomes_a_page_with_every_task(tmp_path: Path) -> None:
    content = json.loads(GOLDEN.with_suffix(".json").read_text())
    write_data(tmp_path, content["identifiers"], content["tasks"])
    page = page_of(
        [str(GOLDEN.with_suffix(".npz")), "--data", str(tmp_path), "--out", str(tmp_path / "report.html")]
    )
    for task in content["tasks"]:
        assert f"<h2>{task}</h2>" in page
    assert "81.25 %" in page
    assert "13 of 16 test inputs right by two attempts, 81.2 % [57.0, 93.4]" in page
    assert page.count('class="badge solved"') == 13
    assert page.count('class="badge unsolved"') == 3


def test_each_task_says_how_it_went(arguments: list[str]) -> None:
    page = page_of(arguments)
    assert re.findall(r'class="badge (\w+)">([^<]+)<', page) == [
        ("solved", "solved"),
        ("partly", "1 of 2 test inputs solved"),
        ("unsolved", "unsolved"),
        ("hidden", "truth hidden"),
    ]
    assert "1 of 1 cells wrong" in page
    assert "the truth got no vote" in page


@pytest.mark.parametrize(("by", "weight"), [((), None), (("--by", "q"), "weight 0.500")])
def test_weights_are_shown_where_votes_do_not_just_count(
    by: tuple[str, ...], weight: str | None, arguments: list[str]
) -> None:
    page = page_of(arguments, *by)
    assert re.findall(r"weight \d\.\d{3}", page)[:1] == ([weight] if weight else [])
    assert ("votes of sigmoid(q_halt), then by votes, then by mean q" in page) == (weight is not None)


def test_the_page_asks_for_nothing_from_outside(arguments: list[str], tmp_path: Path) -> None:
    row = {"step": 1, "train/loss": 1.0, "train/lr": 0.1}
    page = page_of(arguments, *write_metrics(tmp_path / "metrics.jsonl", json.dumps(row)))
    assert not re.search(r"https?://", page)
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>]*)', page)
    assert sources
    assert all(source.startswith(("data:image/", "#task-")) for source in sources)
    assert "<link" not in page
    assert "@import" not in page


def test_names_from_files_stay_text(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "subsets.json").write_text(json.dumps({HOSTILE: ["right"]}))
    page = page_of(arguments, "--title", HOSTILE, "--subsets", str(tmp_path / "subsets.json"))
    assert page.count("<script>") == 1  # the page's own
    assert "alert(" in page
    assert HOSTILE not in page
    assert html.unescape(page).count(HOSTILE) == 7  # title twice, checkpoint, scores, tag, jump list, task


def test_curves_are_drawn_from_whatever_rows_have(arguments: list[str], tmp_path: Path) -> None:
    rows = [{"step": step, "train/loss": 1 / step} for step in range(1, 3000)]
    rows += [
        {"step": 3000, "eval/exact_accuracy": 0.5, "train/lr": None},
        {"step": 3001, "train/loss": float("nan")},
    ]
    metrics = write_metrics(tmp_path / "metrics.jsonl", *map(json.dumps, rows), '{"step": 30')  # cut off
    (curves,) = re.findall(
        r'class="curves" src="data:image/svg\+xml;base64,([^"]+)"', page_of(arguments, *metrics)
    )
    assert b"<svg" in base64.b64decode(curves)


def test_damaged_lines_of_metrics_are_left_out(arguments: list[str], tmp_path: Path) -> None:
    rows = [f'{{"step": {step}, "train/loss": 3}}' for step in range(1, 3)]
    whole = page_of(arguments, *write_metrics(tmp_path / "whole.jsonl", *rows))
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(f"{rows[0]}\n".encode() + b"\xff\xfe\n{\n" + f"{rows[1]}\n".encode() + b"\0\0\0")
    assert page_of(arguments, "--metrics", str(damaged)) == whole


def test_metrics_without_anything_to_draw_leave_the_curves_out(arguments: list[str], tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl", '{"step": 1, "examples_per_s": 3}')
    assert 'class="curves"' not in page_of(arguments, *metrics)


def test_the_same_vote_gives_the_same_bytes(arguments: list[str], tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl", '{"step": 1, "train/loss": 3}')
    assert page_of(arguments, *metrics) == page_of(arguments, *metrics)


def test_a_limit_keeps_the_solved_tasks_and_says_so(arguments: list[str]) -> None:
    page = page_of(arguments, "--max-tasks", "1")
    assert re.findall("<h2>(.*)</h2>", page) == ["right"]
    assert "the first 1 of 4 tasks" in page


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "cannot be read"),
        (('{"train/loss": 1}', "{"), "no line is an object with a whole number 'step'"),
    ],
)
def test_unusable_metrics_exit_2_and_write_nothing(
    arguments: list[str],
    lines: tuple[str, ...] | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = ["--metrics", str(path)] if lines is None else write_metrics(path, *lines)
    assert main(arguments + metrics) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert not Path(arguments[-1]).exists()


def test_a_page_that_cannot_be_written_exits_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments[:-1], str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def image_of(view: GridView) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(view.uri.removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (30, 30), (2, 7)])
def test_a_grid_is_drawn_cell_by_cell(shape: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).integers(0, 10, shape, dtype=np.uint8)
    view = grid_view(grid, max(shape), (100, 2, 20))
    np.testing.assert_array_equal(np.asarray(image_of(view)), grid)  # indices of the palette
    assert (view.height, view.width) == shape


def test_the_image_shows_arc_colours() -> None:
    view = grid_view([[0, 1, 9]], 3, (100, 2, 20))
    pixels = np.asarray(image_of(view).convert("RGB"))[0]
    assert [pixel.tolist() for pixel in pixels] == [[0, 0, 0], [0x00, 0x74, 0xD9], [0x87, 0x0C, 0x25]]


def test_a_report_never_writes_over_what_it_reads(arguments: list[str]) -> None:
    before = Path(arguments[0]).read_bytes()
    assert main([*arguments[:-1], arguments[0]]) == 2
    assert Path(arguments[0]).read_bytes() == before
