"""tools.speedrun on tiny Sudokus: killed, stopped, started again until the target; and from CSV files."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build
from data_pipeline.build_spec import BuildSpec
from data_pipeline.reader import TestReader, TrainReader
from tests.training import Started
from tools.speedrun.record import Record, read_record

pytestmark = pytest.mark.e2e
DATASET = {"preset": "sudoku", "side": 4, "num_train": 60, "num_test": 40, "num_aug": 2}
CONFIG = """\
arch: {name: trm, mlp_t: true, pos_encodings: none, puzzle_emb_ndim: 0, puzzle_emb_len: 0, H_cycles: 1, L_cycles: 2,
  hidden_size: 32, gradient: one_step, halt_max_steps: 2}
precision: fp32
device: cpu
num_threads: 1
global_batch_size: 8
epochs: 4000
eval_interval: 4
checkpoint_interval: null
lr: 2.0e-3
lr_warmup_steps: 5
ema: true
ema_rate: 0.9
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speedrun")
    path = folder / "tiny.yaml"
    path.write_text(f"data_path: {folder / 'data'}\ndataset: {json.dumps(DATASET)}\n{CONFIG}")
    return path


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Start a speedrun, `start(config, run, *words)`; none outlives its test.

    anew: the module whose commands are processes of their own from the start, as a user's all are.
    """
    all_started: list[Started] = []

    def start(config: Path, run: Path, *words: object, anew: str = "") -> Started:
        arguments = [config, f"checkpoint_path={run}", "--starts", 2, *words]
        log, environment = run.with_name("said.log"), {"STARTED_ANEW": anew}
        all_started.append(Started(log, "tests.forked_speedrun", arguments, environment))
        return all_started[-1]

    yield start
    for one in all_started:
        one.process.kill()


def recorded(run: Path) -> Record:
    record = read_record(run)
    assert record is not None
    return record


def num_points(run: Path) -> int:
    record = read_record(run)
    return 0 if record is None else len(record.curve)


def start_has_scored(run: Path, number: int) -> bool:
    """Whether the start of this number, from 1, has made an evaluation of its own."""
    record = read_record(run)
    if record is None or len(record.starts) < number or not record.curve:
        return False
    return record.curve[-1].step > record.starts[number - 1].from_step


def test_a_killed_and_stopped_race_goes_on_by_the_same_clock_until_the_target(
    config: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start(config, run, "--target", 100)
    assert first.wait_until(lambda: num_points(run) > 0)
    second = start(config, run, "--target", 100).finish()
    assert second.exit_code == 2
    assert "another command races here" in second.output
    first.process.kill()
    first.process.join()
    killed = recorded(run)
    assert killed.starts[-1].end is None

    num_before = num_points(run)
    again = start(config, run, "--target", 100)
    assert again.wait_until(lambda: start_has_scored(run, 2))
    again.signal(signal.SIGTERM)
    assert again.finish().exit_code == 75
    stopped = recorded(run)
    assert [one.end for one in stopped.starts] == [None, "stopped"]
    assert stopped.starts[1].from_step >= killed.curve[-1].step
    assert stopped.clock_s > killed.clock_s
    assert not (run / "speedrun.md").exists()

    finished = start(config, run, "--target", 60).finish()
    assert finished.exit_code == 0, finished.output
    last = recorded(run)
    assert last.reached is not None
    assert last.reached.seconds <= last.clock_s
    steps, seconds = [point.step for point in last.curve], [point.seconds for point in last.curve]
    assert steps == sorted(set(steps))
    assert seconds == sorted(seconds)
    assert last.curve[:num_before] == killed.curve[:num_before]
    assert sum(one.seconds for one in last.starts) == pytest.approx(last.clock_s, abs=6)
    one_start, _, of_two = last.finals
    assert one_start.step == last.reached.step
    assert one_start.exact_accuracy == pytest.approx(last.reached.exact_accuracy), (
        "the same weights and puzzles"
    )
    assert "80 starts" in of_two.said[0]
    page = (run / "speedrun.md").read_text()
    assert page.startswith("# Speedrun: 60 % of 40 held-out puzzles reached in ")
    assert (run / "curve.svg").exists()

    assert start(config, run, "--target", 60).finish().exit_code == 0
    now = recorded(run)
    assert (now.starts, now.curve, now.finals) == (last.starts, last.curve, last.finals), (
        "nothing is done again"
    )


def test_puzzles_of_files_are_raced_on_until_the_budget_ends(
    config: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    files, run = tmp_path / "files", tmp_path / "run"
    write_csv(files, tmp_path)
    words = (config, run, "--target", 100, "--csv", files)
    finished = start(*words, "--budget-min", 0.005, anew="hrm_dist.train").finish()
    assert finished.exit_code == 2, "no step was made in a third of a second"
    assert "give a larger --budget-min" in finished.output
    finished = start(*words, "max_steps=30", anew="hrm_dist.train").finish()
    assert finished.exit_code == 3, finished.output
    record = recorded(run)
    assert record.starts[-1].end == "last step"
    assert {final.step for final in record.finals} == {30}
    assert record.dataset is not None
    assert record.dataset.test_groups == 12
    page = (run / "speedrun.md").read_text()
    assert "100 % not reached" in page
    assert "CSV files of the user" in page


def test_a_damaged_file_is_named_and_nothing_is_trained(
    config: Path, start: Callable[..., Started], tmp_path: Path
) -> None:
    files, run = tmp_path / "files", tmp_path / "run"
    write_csv(files, tmp_path)
    with (files / "train.csv").open("a") as file:
        file.write("1.3.341.2143.32x,1234341221434321\n")
    finished = start(config, run, "--target", 100, "--csv", files).finish()
    assert finished.exit_code == 2
    assert "train.csv" in finished.output
    assert "line" in finished.output
    assert not (run / "metrics.jsonl").exists()


def write_csv(folder: Path, tmp_path: Path) -> None:
    """Write new Sudokus of 4 x 4 as train.csv and test.csv."""
    spec = BuildSpec.model_validate({**DATASET, "num_train": 30, "num_test": 12, "num_aug": 0})
    data = tmp_path / "of-the-files"
    build(spec.request(data, workers=1, quiet=True))
    folder.mkdir()
    for name, batch in (
        ("train", TrainReader(data, 0, 30).batch(0)),
        ("test", TestReader(data).take(np.arange(12))),
    ):
        rows = zip(batch["inputs"].numpy(), batch["labels"].numpy(), strict=True)
        lines = {",".join("".join(str(token - 1) for token in grid) for grid in row) for row in rows}
        (folder / f"{name}.csv").write_text("\n".join(["question,answer", *sorted(lines)]) + "\n")
