"""The page of results: its rows, its scores with intervals, and what it keeps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.subsets import SUBSETS
from hrm_dist.config import ArchConfig
from hrm_dist.evaluation.intervals import interval_text, mean_interval, share_interval
from hrm_dist.evaluation.puzzle_scores import ALL_PUZZLES
from hrm_dist.run_record import FILE as RECORD_FILE
from hrm_dist.run_record import Dataset
from hrm_dist.train import main as train
from tools.results.__main__ import main, run_rows
from tools.results.page import common_facts, table_text, with_blocks
from tools.results.run_folder import (
    UNKNOWN,
    architecture_text,
    commit_text,
    puzzles_text,
    read_run,
    score_cell,
    subset_text,
)
from tools.sweep.__main__ import main as sweep_main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> list[Path]:
    """Runs of one configuration with two seeds; tests must not change them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        arguments = [
            f"seed={seed}",
            f"checkpoint_path={folder / str(seed)}",
            "max_steps=3",
            "eval_interval=1000",
        ]
        assert train([str(config), *arguments]) == 0
    return [folder / "0", folder / "1"]


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[Path]:
    """Copies that a test may change, scored: 3 and 6 of 12 test inputs by two attempts, 1 and 4 by one."""
    copies = [Path(shutil.copytree(run, tmp_path / run.name, symlinks=True)) for run in trained]
    for run, num_right in zip(copies, (3, 6), strict=True):
        scores = {
            "eval/inputs": 12,
            "eval/input/pass@2": num_right / 12,
            "eval/input/pass@1": (num_right - 2) / 12,
        }
        (run / "metrics.jsonl").write_text(json.dumps({"step": 3, **scores}) + "\n")
    return copies


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def page_of(out: Path, *folders: Path) -> str:
    assert main([*map(str, folders), "--out", str(out)]) == 0
    return out.read_text()


def row_of(page: str) -> dict[str, str]:
    """The only row of a page's only table."""
    heads, _, row = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return dict(zip(heads, row, strict=True))


def test_a_row_says_what_was_trained_where_and_how_long(runs: list[Path], tmp_path: Path) -> None:
    edit(runs[0] / RECORD_FILE, seconds_at={"3": 90.0})
    row = row_of(page_of(tmp_path / "page.md", runs[0]))
    [start] = json.loads((runs[0] / RECORD_FILE).read_text())["starts"]
    assert row["task"] == "arc 6 x 6, arc-agi-1"
    assert row["training puzzles"] == "8, 8 augmentations each"
    assert row["architecture"] == "hrm (attention), layers 1 + 1, 32 wide, cycles 2 x 2, segments up to 4"
    assert row["steps"] == "3"
    assert row["minutes"] == "1.5"
    assert row["hardware"] == f"1 thread on {start['hardware']['cpu']}"
    assert row["command"] == f"`{start['command']}`"
    assert row["commit"] == commit_text(start["git_revision"])


def test_a_single_run_has_wilsons_interval_over_its_inputs(runs: list[Path]) -> None:
    two, one, at = score_cell([read_run(runs[0])]).split("<br>")
    assert two == f"pass@2 {interval_text(share_interval(3, 12))}, 3 of 12 test inputs"
    assert one == f"pass@1 {interval_text(share_interval(1, 12))}, 1 of 12 test inputs"
    assert at == "last step"


def test_runs_that_differ_by_seed_are_a_row_with_the_interval_over_seeds(
    runs: list[Path], tmp_path: Path
) -> None:
    row = row_of(page_of(tmp_path / "page.md", *runs))
    mean = interval_text(mean_interval([0.25, 0.5]))
    assert row["score"].startswith(f"pass@2 {mean}, mean of 2 seeds, 12 test inputs<br>")
    assert row["seeds"] == "0, 1"
    assert row["command"].endswith("; likewise with seed 1")


def test_one_seed_twice_is_two_rows_and_no_interval_over_seeds(runs: list[Path], tmp_path: Path) -> None:
    again = Path(shutil.copytree(runs[0], tmp_path / "again", symlinks=True))
    rows = run_rows([read_run(run) for run in (*runs, again)])
    assert [row["seeds"] for row in rows] == ["0, 1", "0"]


@pytest.mark.parametrize("changes", [{"lr": 0.5}, {"ema": True}, {"eval_num_aug": 1}])
def test_runs_of_two_configurations_are_two_rows(
    changes: dict[str, Any], runs: list[Path], tmp_path: Path
) -> None:
    path = runs[1] / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    page = page_of(tmp_path / "page.md", *runs)
    assert len([line for line in page.splitlines() if line.startswith("|")]) == 4


def test_votes_count_more_than_the_evaluation_of_the_training(runs: list[Path]) -> None:
    shares = {"inputs": 4, "tasks": 3, "input/pass@1": 0.25, "input/pass@2": 0.5}
    scores = {"all tasks": shares, "untouched": {**shares, "inputs": 2}}
    content = {"scores": scores, "checkpoint_ids": ["step_2-0123-average"]}
    (runs[0] / "scores.json").write_text(json.dumps(content))
    cell = score_cell([read_run(runs[0])])
    assert f"all tasks: pass@2 {interval_text(share_interval(2, 4))}, 2 of 4 test inputs<br>" in cell
    assert f"untouched: pass@2 {interval_text(share_interval(1, 2))}, 1 of 2 test inputs<br>" in cell
    assert cell.endswith("<br>step 2")


def test_other_kinds_are_scored_by_exact_examples(runs: list[Path]) -> None:
    row = {"step": 3, "eval/exact_accuracy": 0.95, "eval/examples": 100}
    (runs[0] / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert score_cell([read_run(runs[0])]) == "exact 95.0 % [88.8, 97.8], 95 of 100 examples<br>last step"


def test_mazes_are_also_scored_by_valid_and_optimal_paths(runs: list[Path]) -> None:
    shares = {"examples": 4.0, "exact_accuracy": 0.25, "valid_path": 0.75, "optimal_path": 0.5}
    (runs[0] / "scores.json").write_text(
        json.dumps({"scores": {ALL_PUZZLES: shares | {"cell_accuracy": 0.9}}})
    )
    *lines, _ = score_cell([read_run(runs[0])]).split("<br>")
    assert lines == [
        f"all puzzles: {name} {interval_text(share_interval(right, 4))}, {right} of 4 examples"
        for name, right in (("exact", 1), ("valid path", 3), ("optimal path", 2))
    ]


def test_a_run_of_an_earlier_version_is_unknown_where_it_says_nothing(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs[0] / RECORD_FILE).unlink()
    row = {"step": 3, "eval/exact_accuracy": 0.5}
    (runs[0] / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    row = row_of(page_of(tmp_path / "page.md", runs[0]))
    silent = ("task", "training puzzles", "subset", "parameters", "hardware", "minutes", "command", "commit")
    assert {row[head] for head in silent} == {UNKNOWN}
    assert row["score"].startswith(f"exact 50.0 %, {UNKNOWN} number of inputs")
    assert f"note: {runs[0]}: has no run.json" in capsys.readouterr().err


def test_a_run_without_scores_is_named(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs[0] / "metrics.jsonl").write_text('{"step": 3, "train/loss": 1.0}\n')
    assert row_of(page_of(tmp_path / "page.md", runs[0]))["score"] == "not scored"
    assert f"note: {runs[0]}: has no scores" in capsys.readouterr().err


def test_a_run_that_is_not_finished_says_so(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(runs[0] / RECORD_FILE, is_finished=False, last_step=1200)
    row = row_of(page_of(tmp_path / "page.md", runs[0]))
    assert row["steps"] == "3 of 1,200, not finished"
    assert row["score"].endswith("<br>step 3")
    assert "is not finished" in capsys.readouterr().err


def test_all_commands_of_a_run_are_told(runs: list[Path], tmp_path: Path) -> None:
    path = runs[0] / RECORD_FILE
    [start] = json.loads(path.read_text())["starts"]
    edit(path, starts=[start | {"command": "a"}, start | {"command": "b | c"}])
    page = page_of(tmp_path / "page.md", runs[0])
    assert "| `a`, then `b \\| c` |" in page


@pytest.mark.parametrize(
    ("subsets", "text"),
    [
        (None, UNKNOWN),
        ([("x", 8, "a" * 64), ("x", 4, "b" * 64)], f"x@{'a' * 12}+{'b' * 12}"),
        ([("x", 8, "a" * 64), (None, 4, "b" * 64)], f"x@{'a' * 12}, sudoku@{'b' * 12}"),
        ([(None, 8, "a" * 64), (None, 0, "b" * 64)], f"sudoku@{'a' * 12}"),
    ],
)
def test_subsets_are_spelled_as_a_build_takes_them(
    subsets: list[tuple[str | None, int, str]] | None, text: str
) -> None:
    keys = ("name", "num", "sha256")
    named = subsets and {
        split: dict(zip(keys, values, strict=True))
        for split, values in zip(("train", "test"), subsets, strict=True)
    }
    assert subset_text(dataset_with(subsets=named)) == text


def test_puzzles_have_their_name_even_where_the_dataset_is_older_than_it() -> None:
    name, digest = next((known.name, known.sha256["train"]) for known in SUBSETS if known.sha256)
    unnamed = {"name": None, "num": 8, "sha256": digest}
    subsets = {"train": unnamed, "test": {**unnamed, "num": 0}}
    assert subset_text(dataset_with(subsets=subsets)).startswith(f"{name}@")


def dataset_with(**values: Any) -> Dataset:
    sizes = {"train_groups": 1000, "test_groups": 4, "test_examples": 4}
    return Dataset(**{"data_path": "data/x", "kind": "sudoku", "sha256": "0", **sizes, **values})


ALL_OF_A_FILE = {"subsample": None, "min_difficulty": None, "limit_groups": None}


@pytest.mark.parametrize(
    ("sources", "options", "text"),
    [
        (["x.csv"], {**ALL_OF_A_FILE, "num_aug": 0}, "full: 1,000"),
        (["x.csv"], {**ALL_OF_A_FILE, "subsample": 1000, "num_aug": 1000}, "1,000, 1,000 augmentations each"),
        (["x.csv"], {**ALL_OF_A_FILE, "min_difficulty": 20}, "1,000"),
        (["x.csv"], {**ALL_OF_A_FILE, "limit_groups": 1000}, "1,000"),
        ([], {"subsample": None, "num_aug": 0}, "1,000"),
    ],
)
def test_a_row_tells_all_of_a_source_from_a_part_of_it(
    sources: list[str], options: dict[str, Any], text: str
) -> None:
    assert puzzles_text(dataset_with(sources=sources, options=options)) == text


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ({"halt_max_steps": 1}, "hrm (attention), layers 4 + 4, 512 wide, cycles 2 x 2, segments 1"),
        ({"halting": "fixed"}, "hrm (attention), layers 4 + 4, 512 wide, cycles 2 x 2, segments 16"),
        ({"name": "trm", "mlp_t": True}, "trm (MLP), layers 2, 512 wide, cycles 3 x 6, segments up to 16"),
    ],
)
def test_an_architecture_is_told_with_its_size_and_its_loops(arch: dict[str, Any], text: str) -> None:
    assert architecture_text(ArchConfig(**arch)) == text


@pytest.mark.parametrize("damage", ["nothing", "no config", "damaged record", "damaged scores"])
def test_a_folder_that_cannot_be_read_is_refused_and_nothing_written(
    damage: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs[0]
    match damage:
        case "nothing":
            folder = tmp_path / "absent"
        case "no config":
            (folder / "config.yaml").unlink()
        case "damaged record":
            (folder / RECORD_FILE).write_text("{")
        case "damaged scores":
            (folder / "scores.json").write_text("[]")
    out = tmp_path / "page.md"
    assert main([str(folder), "--out", str(out)]) == 2
    assert str(folder) in capsys.readouterr().err
    assert not out.exists()


# Sweeps


@pytest.fixture
def sweep(runs: list[Path], tmp_path: Path) -> Path:
    """The folder of a sweep of two settings, of which the second has no run that is done."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    done = [
        {"seed": seed, "state": "done", "folder": str(run), "score": 0.25, "step": 3}
        for seed, run in enumerate(runs)
    ]
    begun = [{"seed": seed, "state": "running", "folder": None, "score": None, "step": 1} for seed in (0, 1)]
    interval = {"value": 0.25, "low": 0.125, "high": 0.375}
    one_seed = {"value": 0.0625, "low": None, "high": None}
    common = {"operations": 1_400_000, "dataset": {"inputs": 12}}
    content = {
        "sweep": "configs/sweeps/loops.yaml", "score": "eval/input/pass@2", "at": "last", "baseline": "none",
        "runs_done": 2, "runs": 4,
        "settings": {
            "none": {**common, "mean": interval, "difference": None, "runs": done},
            "some": {**common, "mean": one_seed, "difference": one_seed, "runs": begun},
        },
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_a_sweep_has_a_row_for_each_setting(sweep: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.md", sweep)
    assert "<!-- tools.results: loops -->" in page
    heads, _, *rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert heads == ["setting", "input/pass@2", "difference to none", "seeds"]
    assert rows == [
        ["none", "25.0 % [12.5, 37.5]", "", "0, 1"],
        ["some", "6.2 %", "+6.2 points", "none (of 2)"],
    ]


def test_what_a_sweep_writes_can_be_read(config: Path, tmp_path: Path) -> None:
    content = {
        "config": str(config),
        "set": {"eval_interval": 1000},
        "matrix": {"lr": [1e-4, 1e-3]},
        "seeds": [0],
    }
    places = {"out": str(tmp_path / "found"), "pool": str(tmp_path / "pool")}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(content | places))
    sweep_main([str(tmp_path / "rates.yaml"), "--table"])
    page = page_of(tmp_path / "page.md", tmp_path / "found")
    assert "<!-- tools.results: rates -->" in page
    assert "| lr=0.0001 | not trained | none (of 1) |" in page
    assert "| lr=0.001 | not trained | none (of 1) |" in page


def test_what_all_settings_have_in_common_stands_above_the_table(sweep: Path, tmp_path: Path) -> None:
    [line] = [line for line in page_of(tmp_path / "page.md", sweep).splitlines() if line.startswith("All: ")]
    shared = line.removeprefix("All: ").removesuffix(".").split("; ")
    for fact in ("inputs evaluated: 12", "task: arc 6 x 6, arc-agi-1", "weights: last step", "operations: 1.4e06",
                 "command: `python -m tools.sweep configs/sweeps/loops.yaml`"):  # fmt: skip
        assert fact in shared


def test_a_sweep_that_is_not_done_says_how_far_it_is(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page_of(tmp_path / "page.md", sweep)
    assert f"note: {sweep}: 2 of 4 runs are done" in capsys.readouterr().err


def test_plots_are_copied_beside_the_page(sweep: Path, tmp_path: Path) -> None:
    (sweep / "plot.png").write_bytes(b"a picture")
    page = page_of(tmp_path / "docs" / "page.md", sweep)
    assert "![loops](images/results/loops.png)" in page
    assert (tmp_path / "docs" / "images" / "results" / "loops.png").read_bytes() == b"a picture"


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"settings": 3, "sweep": "x", "score": "x", "baseline": "x"}']
)
def test_a_damaged_sweep_is_refused(
    content: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "results.json").write_text(content)
    assert main([str(sweep), "--out", str(tmp_path / "page.md")]) == 2
    assert str(sweep / "results.json") in capsys.readouterr().err


# The page

PROSE = st.text(alphabet=st.characters(blacklist_characters="<\r", codec="utf-8"))


@given(PROSE, PROSE, PROSE, PROSE)
def test_what_is_written_by_hand_stays(before: str, after: str, first: str, second: str) -> None:
    page = with_blocks("# Title", {"runs": first}, "page.md")
    edited = f"{before}{page}{after}"
    again = with_blocks(edited, {"runs": second}, "page.md")
    assert again.startswith(f"{before}# Title")
    assert again.endswith(f"<!-- end of runs -->\n{after}")
    assert second.strip() in again
    assert with_blocks(again, {"runs": second}, "page.md") == again


def test_a_block_of_another_name_stays() -> None:
    page = with_blocks("", {"a": "old", "b": "old"}, "page.md")
    assert with_blocks(page, {"b": "new"}, "page.md").count("old") == 1


@pytest.mark.parametrize(
    "page", ["<!-- tools.results: a -->", "<!-- end of a -->", "<!-- end of a --><!-- tools.results: a -->"]
)
def test_half_a_block_is_refused(page: str) -> None:
    with pytest.raises(InputError, match=r"page\.md: .* must stand there once each"):
        with_blocks(page, {"a": "new"}, "page.md")


def test_columns_that_are_empty_are_left_out() -> None:
    rows = [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "", "c": "3"}]
    assert table_text(rows).splitlines() == ["| a | c |", "| --- | --- |", "| 1 |  |", "| 2 | 3 |"]


def test_what_is_not_known_yet_does_not_differ() -> None:
    assert common_facts([{"a": "1", "b": "1"}, {"a": "", "b": "2"}, {}]) == {"a": "1"}
