"""tools.speedrun: its clock, its record, its page, and what it refuses."""

import time
from fractions import Fraction
from pathlib import Path

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from hrm_dist.config import load_config
from tools.speedrun import page, puzzles
from tools.speedrun.__main__ import device_of, parse_arguments
from tools.speedrun.asked import Speedrun, check, new_puzzles
from tools.speedrun.metrics_tail import MetricsTail
from tools.speedrun.record import (
    FILE,
    Asked,
    Final,
    Machine,
    Point,
    Record,
    Start,
    Stopwatch,
    is_at,
    read_record,
    refuse_other,
)

CONFIG = "configs/speedrun_sudoku.yaml"
TOY = "configs/small/speedrun_sudoku_6x6.yaml"


def asked_for(run: Path, *words: str, config: str = TOY, target: float = 95) -> Speedrun:
    return check(parse_arguments([config, f"checkpoint_path={run}", "--target", str(target), *words]))


def refusal(run: Path, *words: str, config: str = TOY, target: float = 95) -> str:
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError) as raised:
        asked_for(run, *words, config=config, target=target)
    assert sorted(run.rglob("*")) == before, "something was written"
    return str(raised.value)


def point(step: int, seconds: float, num_right: int, examples: int = 1000) -> Point:
    return Point(step=step, seconds=seconds, exact_accuracy=num_right / examples, examples=examples)


def record(**changes: object) -> Record:
    """A complete race that has reached 95 % at its second evaluation."""
    complete = Record(
        asked=Asked(config=TOY, data="configuration", settings={"seed": 0}),
        command="python -m tools.speedrun x.yaml --target 95",
        target=95,
        seconds={"build": 3.0, "train": 125.5, "evaluate": 61.0},
        starts=(
            Start(began="2026-01-01T00:00:00+00:00", from_step=0, seconds=60, until_first_row_s=7, end="stopped"),
            Start(began="2026-01-01T01:00:00+00:00", from_step=300, seconds=65.5, end="target"),
        ),
        curve=(point(300, 50, 700), point(600, 120, 950)),
        train_command="python -m hrm_dist.train x.yaml",
        machines=(
            Machine(name="some GPU", driver="1.2.3", git_revision="a" * 40, versions={"torch": "9.9", "CUDA": "13.0"}),
        ),
        hardware=("some GPU",),
        num_parameters=1234567,
        steps=610,
        batch_size=32,
        cells=36,
        examples_per_s=200.0,
        steps_s=100.0,
        finals=(
            Final(
                name="one-start", title="one start", step=600, command="python -m tools.evaluate y",
                exact_accuracy=0.95, low=0.934, high=0.962, examples=1000, said=("4.00 segments per input",),
            ),
        ),
    )  # fmt: skip
    return complete.model_copy(update=changes)


# The clock


def test_the_clock_counts_a_stage_over_all_starts_and_nothing_between_them(tmp_path: Path) -> None:
    Stopwatch(tmp_path, record(seconds={"train": 100.0})).note()
    time.sleep(0.05)
    known = read_record(tmp_path)
    assert known is not None
    watch = Stopwatch(tmp_path, known)
    assert watch.seconds("train") == 100
    with watch.counting("train"):
        time.sleep(0.05)
        during = watch.seconds("train")
    after = watch.seconds("train")
    time.sleep(0.05)
    assert 100.05 <= during <= after == watch.seconds("train")
    assert read_record(tmp_path) == watch.record


def test_what_was_counted_is_on_disk_while_a_stage_runs(tmp_path: Path) -> None:
    watch = Stopwatch(tmp_path, record(seconds={}))
    with watch.counting("train"):
        time.sleep(0.02)
        watch.note()
        known = read_record(tmp_path)
        assert known is not None
        assert known.clock_s >= 0.02


@given(st.integers(1, 500_000), st.integers(10, 1000), st.data())
def test_an_evaluation_is_at_the_target_as_exact_fractions_are(
    examples: int, tenths: int, data: st.DataObject
) -> None:
    near = examples * tenths // 1000
    num_right = min(examples, max(0, near + data.draw(st.integers(-2, 2))))
    exact = Fraction(100 * num_right, examples) >= Fraction(tenths, 10)
    assert is_at(point(1, 1, num_right, examples), tenths / 10) == exact


def test_the_first_evaluation_at_the_target_reaches_it() -> None:
    curve = (point(10, 1, 940), point(20, 2, 960), point(30, 3, 949), point(40, 4, 970))
    assert record(curve=curve).reached == curve[1]
    assert record(curve=curve, target=97).reached == curve[3]
    assert record(curve=curve, target=98).reached is None
    result = record(curve=curve).to_result()
    assert (result.reached, result.seconds_to_target, result.steps_to_target) == (True, 2, 20)
    assert not record(curve=curve, target=98).to_result().reached


# What the training has written


def test_rows_of_the_file_that_a_training_replaces_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n')
    tail = MetricsTail(path, skips_present=True)
    assert tail.rows() == []
    new = tmp_path / "new"
    new.write_text('{"step": 10}\n')
    new.replace(path)
    assert tail.rows() == [{"step": 10}]
    assert tail.rows() == []


def test_a_row_is_read_once_and_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path, skips_present=True)
    assert tail.rows() == []
    with path.open("a") as file:
        file.write('{"step": 1}\n{"ste')
        file.flush()
        assert tail.rows() == [{"step": 1}]
        file.write('p": 2}\nnothing of JSON\n{"step": 3}\n')
        file.flush()
        assert tail.rows() == [{"step": 2}, {"step": 3}]


# The puzzles


def test_without_the_hub_new_hard_puzzles_are_made_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    settled = puzzles.settle(asked_for(run, f"data_path={tmp_path / 'none'}", config=CONFIG))
    assert settled.asked.data == "generated"
    assert settled.data == run / "data"
    said = capsys.readouterr().err
    assert "cannot be downloaded" in said
    assert puzzles.DO_NOT_COMPARE in said
    request = settled.request()
    assert request.sources == []
    new = request.options.model_dump()
    assert new["num_aug"] == 1000
    assert new["min_difficulty"] > 0
    assert (new["generator"]["num_train"], new["generator"]["num_test"]) == (1000, 10_000)


def test_a_package_that_is_missing_makes_no_other_race_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("data_pipeline.base.extras._is_installed", lambda module: module != "huggingface_hub")
    given = asked_for(tmp_path / "run", f"data_path={tmp_path / 'none'}", config=CONFIG)
    with pytest.raises(InputError, match="needs huggingface_hub") as raised:
        puzzles.settle(given)
    assert "--generated" in str(raised.value)


def test_new_puzzles_of_a_configuration_that_makes_them_are_its_own() -> None:
    spec = load_config(TOY).dataset
    assert spec is not None
    assert new_puzzles(spec) == spec.options


def test_puzzles_of_files_are_chosen_as_those_of_the_configuration(tmp_path: Path) -> None:
    write_csv(tmp_path)
    options = (
        asked_for(tmp_path / "run", "--csv", str(tmp_path), config=CONFIG).request().options.model_dump()
    )
    assert (options["subsample"], options["subsample_test"], options["num_aug"]) == (1000, 10_000, 1000)
    assert options["leaks"] == "drop"


def write_csv(folder: Path) -> None:
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("question,answer\n1.3.341.2143.321,1234341221434321\n")


# What is refused


@pytest.mark.parametrize("target", [0, 0.95, 100.5, -3])
def test_a_target_that_is_no_per_cent_is_refused(target: float, tmp_path: Path) -> None:
    message = refusal(tmp_path / "run", target=target)
    assert f"--target {target:g}" in message
    assert "per cent" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--budget-min", "0"], "--budget-min 0"),
        (["--csv", "no-such-folder"], "no-such-folder: no such file"),
        (["--csv", "no-such-folder", "--generated"], "no-such-folder: no such file"),
        (["eval_interval=null"], "eval_interval=null"),
        (["dataset=null"], "a speedrun needs a `dataset:` section"),
        (["arch.no_such=1"], "arch.no_such"),
    ],
)
def test_what_cannot_be_raced_is_refused(words: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path / "run", *words)


def test_a_configuration_of_arc_is_refused(tmp_path: Path) -> None:
    assert "of Sudokus or mazes" in refusal(tmp_path / "run", config="configs/demo.yaml")


def test_files_without_held_out_puzzles_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path)
    message = refusal(tmp_path / "run", "--csv", f"{tmp_path / 'train.csv'}:train")
    assert "has no test puzzles" in message
    assert ":evaluation" in message


def test_files_and_new_puzzles_at_once_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path)
    assert "leave one of them out" in refusal(tmp_path / "run", "--csv", str(tmp_path), "--generated")


def test_the_run_of_another_command_is_not_raced(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "holds a run that no clock has watched" in refusal(tmp_path)


def test_a_race_goes_on_with_its_own_settings_alone(tmp_path: Path) -> None:
    first = asked_for(tmp_path)
    Stopwatch(tmp_path, record(asked=first.asked)).note()
    assert asked_for(tmp_path, "num_threads=2", target=80).asked == first.asked
    assert "lr 0.002, now 0.1" in refusal(tmp_path, "lr=0.1")
    assert "data configuration, now generated" in refusal(tmp_path, "--generated")
    with pytest.raises(InputError, match="seed 0, now None"):
        refuse_other(tmp_path, record().asked, first.asked.model_copy(update={"settings": {}}))


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"asked": 1')
    assert "unreadable" in refusal(tmp_path)


def test_without_a_gpu_it_is_said_what_to_run_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which was counted before")
    with pytest.raises(InputError, match="no GPU") as raised:
        device_of(load_config(CONFIG))
    assert f"make speedrun-sudoku CONFIG={TOY}" in str(raised.value)
    assert device_of(load_config(CONFIG, ["device=cpu"])) == "cpu"


# The page


def test_the_page_has_the_verdict_first_and_what_a_reader_needs_to_repeat_it() -> None:
    text = page.page_text(record(), has_curve=True)
    assert text.splitlines()[0] == "# Speedrun: 95 % of 1,000 held-out puzzles reached in 2:00"
    for part in (
        "a" * 40, "torch 9.9, CUDA 13.0", "1.2.3", "some GPU", "2:05 in all", "7 s of it until the first row",
        "1,234,567 parameters", "200 examples/s, 7,200 tokens/s", "| 0:50 | 50 | 300 | 70.0 % [67.1, 72.8] |",
        "95.0 % [93.4, 96.2]", "python -m hrm_dist.train x.yaml", "curve.svg",
    ):  # fmt: skip
        assert part in text, part
    assert "not that of a commit" not in text
    assert "curve.svg" not in page.page_text(record(), has_curve=False)


def test_evaluations_of_more_puzzles_or_of_other_weights_say_so() -> None:
    [final] = record().finals
    assert "are of the same held-out puzzles" in page.page_text(record(), has_curve=False)
    more = record(finals=(final.model_copy(update={"examples": 5000}),))
    assert "the 1,000 that were watched among them" in page.page_text(more, has_curve=False)
    other = record(finals=(final.model_copy(update={"step": 900}),))
    assert "not kept any more" in page.page_text(other, has_curve=False)
    assert "not kept any more" not in page.page_text(record(), has_curve=False)


def test_a_target_not_reached_is_said_with_the_best_score() -> None:
    text = page.page_text(record(target=96.0), has_curve=False)
    assert text.startswith("# Speedrun: 96 % not reached in 2:05: at best 95.0 % [93.5, 96.2] at step 600")
    assert "time to target** | not reached" in text


def test_other_puzzles_and_uncommitted_code_are_said() -> None:
    generated = record().asked.model_copy(update={"data": "generated"})
    dirty = record().machines[0].model_copy(update={"git_revision": "b" * 40 + "-dirty"})
    text = page.page_text(record(asked=generated, machines=(dirty,)), has_curve=False)
    assert puzzles.DO_NOT_COMPARE in text
    assert "not that of a commit" in text


def test_the_same_record_draws_the_same_curve() -> None:
    picture = page.draw(record())
    assert picture.startswith(b"<?xml")
    assert picture == page.draw(record())
    assert page.draw(record(curve=()))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (605, "10:05"), (3723, "1:02:03")]
)
def test_a_time_on_the_clock_reads_as_one(seconds: float, text: str) -> None:
    assert page.clock_text(seconds) == text
