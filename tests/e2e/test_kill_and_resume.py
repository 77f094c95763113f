import hashlib
import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.shards.build_dir import written_shards
from hrm_dist import metrics
from hrm_dist.checkpoint.reader import CheckpointState, read_state
from tests.training import (
    Finished,
    Started,
    assert_same_run,
    digests,
    lines,
    num_rows,
    rows,
    saved_step,
    start_module_ranks,
    start_train,
    train,
)

pytestmark = pytest.mark.e2e

STEPS = 24
SETTINGS = {
    "hrm": ["ema=true", "eval_interval=2", "eval_num_aug=0", "eval_batch_size=4"],
    "trm_bf16": [
        "arch.name=trm", "arch.H_layers=0", "arch.H_cycles=2", "arch.L_cycles=2", "arch.puzzle_emb_len=2",
        "arch.act_continue=false", "precision=bf16", "log_interval=3",  # so that checkpoints hold sums of metrics
    ],
    "skipped_padding": ["padding=skip", "eval_interval=2", "eval_num_aug=0"],
}  # fmt: skip


def overrides(name: str) -> list[str]:
    return [f"max_steps={STEPS}", "checkpoint_interval=2", *SETTINGS[name]]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, config: Path) -> dict[str, Path]:
    """Runs that were never interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    for name in SETTINGS:
        finished = train(config, folder / name, *overrides(name))
        assert finished.exit_code == 0, finished.output
    assert [num_rows(folder / name) for name in SETTINGS] == [STEPS, STEPS // 3, STEPS]
    return {name: folder / name for name in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_at_random_moments_equals_one_never_killed(
    name: str, references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    moments = random.Random(name)
    num_kills = 0
    while True:
        started = start_train(config, run, *overrides(name))
        enough = num_rows(run) + moments.randint(
            0, 8 if name == "hrm" else 3
        )  # 0: while it starts or resumes
        running = started.wait_until(lambda enough=enough: num_rows(run) >= enough)
        time.sleep(moments.random() * 0.1)
        if not running or started.process.exitcode is not None:
            break
        started.process.kill()
        started.process.join()
        num_kills += 1
        assert_latest_is_whole(run)
    finished = started.finish()
    assert finished.exit_code == 0, finished.output
    assert num_kills >= 3
    assert_same_run(run, references[name])


def test_a_run_killed_while_writing_checkpoints_equals_one_never_killed(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    moments = random.Random(0)
    num_cut_short = 0
    for _ in range(8):
        started = start_train(config, run, *overrides("hrm"))
        if not started.wait_until(lambda: is_writing_checkpoint(run)):
            break
        time.sleep(moments.random() * 0.01)
        started.process.kill()
        started.process.join()
        num_cut_short += is_writing_checkpoint(run)
        assert_latest_is_whole(run)
    assert num_cut_short > 0, "no kill fell between the first byte and the renaming"
    finished = train(config, run, *overrides("hrm"))
    assert finished.exit_code == 0, finished.output
    assert not is_writing_checkpoint(run), "what the kills left behind is still there"
    assert_same_run(run, references["hrm"])


def is_writing_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step_*.tmp"))


def assert_latest_is_whole(run: Path) -> None:
    if (run / "checkpoints" / "latest").is_symlink():
        saved_step(run)


def test_without_the_carry_a_run_goes_on_with_every_sequence_anew_and_always_alike(
    config: Path, tmp_path: Path
) -> None:
    """Equality with the uninterrupted run ends at the checkpoint; two continuations of one equal each other."""
    run, again, whole = tmp_path / "run", tmp_path / "again", tmp_path / "whole"
    settings = ["save_carry=false", "checkpoint_interval=6", "arch.halt_exploration_prob=0", "max_steps=14"]
    started = start_train(config, run, *settings)
    assert started.wait_until(lambda: num_rows(run) >= 9 and (run / "checkpoints" / "latest").exists())
    started.process.kill()
    started.process.join()
    step = saved_step(run)
    assert step >= 6
    assert not any("carry" in name for name in tensor_names(run))
    shutil.copytree(run, again, symlinks=True)
    for folder in (run, again, whole):
        assert train(config, folder, *settings).exit_code == 0
    assert_same_run(run, again)
    assert rows(run)[:step] == rows(whole)[:step]
    assert rows(run)[step:] != rows(whole)[step:]
    # All start together, so none has thought for halt_max_steps = 4 segments before the fourth step.
    assert [row["train/halted"] for row in rows(run)[step : step + 4]] == [0, 0, 0, 1]


def tensor_names(run: Path) -> list[str]:
    from safetensors import safe_open

    names: list[str] = []
    for path in (run / "checkpoints" / "latest").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names += file.keys()
    return names


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name
)
def test_a_stop_signal_saves_the_step_reached_and_exits_75(
    number: signal.Signals, references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [*overrides("hrm"), "checkpoint_interval=null"]
    started = start_train(config, run, *settings)
    assert started.wait_until(lambda: num_rows(run) >= 5)
    started.signal(number)
    finished = started.finish()
    assert finished.exit_code == 75, finished.output
    assert f"stopped by {number.name}; the state is saved" in finished.output
    assert "Traceback" not in finished.output
    assert 5 <= saved_step(run) == num_rows(run) < STEPS
    finished = train(config, run, *settings)
    assert finished.exit_code == 0, finished.output
    assert rows(run) == rows(references["hrm"])
    assert digests(run) == digests(references["hrm"])


def test_a_signal_while_a_checkpoint_is_written_stops_after_it(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = start_train(config, run, "checkpoint_interval=1", "max_steps=200")
    assert started.wait_until(lambda: num_rows(run) >= 2 and is_writing_checkpoint(run))
    assert_stops_with_state_saved(started, run)


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_run_stopped_in_an_evaluation_equals_one_never_stopped(
    which: str, references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    evaluated = [row["step"] for row in rows(references["hrm"]) if "eval/exact_accuracy" in row]
    step = {"first": evaluated[0], "last": STEPS}[which]
    assert 1 < evaluated[0] < evaluated[-1] == STEPS
    for times in (1, 2):  # also in the evaluation that makes up for the one before
        finished = stop_in_evaluation(step, 1, config, run)
        assert finished.exit_code == 75, finished.output
        assert re.findall(r"batch (\d) of the evaluation", finished.output) == ["1"] * times
        assert (saved_step(run), num_rows(run)) == (step, step)
        assert not any(key.startswith("eval/") for key in rows(run)[-1])
    finished = train(config, run, *overrides("hrm"))
    assert finished.exit_code == 0, finished.output
    assert_same_run(run, references["hrm"])


def test_a_signal_in_the_last_batch_of_the_last_evaluation_finds_the_run_done(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    finished = stop_in_evaluation(STEPS, 3, config, tmp_path / "run")
    assert finished.exit_code == 0, finished.output
    assert f"batch 3 of the evaluation after step {STEPS}" in finished.output
    assert_same_run(tmp_path / "run", references["hrm"])


def test_a_run_killed_between_the_scores_and_the_checkpoint_of_a_stopped_evaluation_has_them_once(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert stop_in_evaluation(STEPS, 1, config, run).exit_code == 75
    scores = (references["hrm"] / "metrics.jsonl").read_text().splitlines(keepends=True)[-1]
    assert "eval/" in scores
    assert "train/" not in scores
    with (run / "metrics.jsonl").open("a") as file:
        file.write(scores)
    assert train(config, run, *overrides("hrm")).exit_code == 0
    assert_same_run(run, references["hrm"])


def test_an_evaluation_that_an_earlier_version_stopped_is_made_up_for_with_its_row(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    """It left the row out, too, and its sums in the checkpoint."""
    run = tmp_path / "run"
    assert stop_in_evaluation(STEPS, 1, config, run).exit_code == 75
    kept = lines(run)
    row = kept.pop()
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    as_an_earlier_version_saved_it(run, {"num_steps": 1.0, "lm_loss": 8 * row["train/lm_loss"]})
    assert train(config, run, *overrides("hrm")).exit_code == 0
    assert rows(run)[:-1] == rows(references["hrm"])[:-1]
    made_up, expected = rows(run)[-1], rows(references["hrm"])[-1]
    assert made_up["train/lm_loss"] == pytest.approx(expected["train/lm_loss"])
    assert {k: v for k, v in made_up.items() if "eval/" in k} == {
        k: v for k, v in expected.items() if "eval/" in k
    }
    finished = train(config, run, *overrides("hrm"))  # it is done
    assert finished.exit_code == 0
    assert len(lines(run)) == len(lines(references["hrm"]))


def as_an_earlier_version_saved_it(run: Path, sums: dict[str, float]) -> None:
    """Put sums of metrics into the latest checkpoint, and take out the field that says that an evaluation is due."""
    path = run / "checkpoints" / "latest"
    state = read_state(path)
    values = torch.zeros(len(state.metric_sums), dtype=torch.float64)
    for name, value in sums.items():
        values[metrics._FIRST_SUMS.index(name)] = value
    file = path / "rank-00000.safetensors"
    tensors = load_file(file)
    tensors["rank.metric_sums.0"] = values
    save_file(tensors, file)
    digests = state.sha256 | {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    fields = state.model_dump(
        exclude={"evaluation_is_due", "own_sha256", "sha256", "metric_sums", "metric_names"}
    )
    state = CheckpointState(**fields, own_sha256="", sha256=digests, metric_sums=values.tolist())
    state = state.model_copy(update={"own_sha256": state.digest()})
    (path / "state.json").write_text(state.model_dump_json(exclude_unset=True))


def stop_in_evaluation(step: int, batch: int, config: Path, run: Path) -> Finished:
    """Train until a signal in a batch of the evaluation after a step."""
    arguments = [0, step, batch, config, f"checkpoint_path={run}", *overrides("hrm")]
    return start_module_ranks(1, run, "tests.distributed.stop_in_evaluation", arguments)[0].finish()


def assert_stops_with_state_saved(started: Started, run: Path) -> None:
    started.signal(signal.SIGTERM)
    finished = started.finish()
    assert finished.exit_code == 75, finished.output
    assert "Traceback" not in finished.output
    assert saved_step(run) == num_rows(run)


def test_a_signal_while_the_dataset_is_built_leaves_no_half_built_one_that_trains(
    config: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data" / "arc"
    settings = [f"data_path={data}", "dataset.preset=arc-agi-1", "dataset.num_aug=1000"]  # takes minutes
    started = start_train(config, tmp_path / "run", *settings)
    assert started.wait_until(lambda: len(list(data.glob("train/*.zst"))) > 8)
    started.signal(signal.SIGTERM)
    finished = started.finish()
    assert finished.exit_code == 75, finished.output
    assert "Traceback" not in finished.output
    assert not (data / "dataset.json").exists()
    assert not (tmp_path / "run").exists()
    noted = [data / place.file for place in written_shards(data)]
    written = {path: path.stat().st_mtime_ns for path in noted}
    again = start_train(config, tmp_path / "run", *settings)
    assert again.wait_until(lambda: len(list(data.glob("train/*.zst"))) > len(written) + 8)
    again.signal(signal.SIGTERM)
    assert again.finish().exit_code == 75
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_a_run_that_is_done_has_nothing_more_to_do(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(references["hrm"], run, symlinks=True)
    assert train(config, run, *overrides("hrm")).exit_code == 0
    assert_same_run(run, references["hrm"])
