import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.reader import TestReader, TrainReader
from hrm_dist.evaluation.predictions import read_predictions
from tests.training import (
    Started,
    command_line,
    digests,
    losses,
    num_rows,
    rows,
    saved_step,
    start_module_ranks,
    start_ranks,
    train,
    train_on_ranks,
)

pytestmark = pytest.mark.distributed

STEPS = 20
BATCH_SIZE = 16
COMMON = [f"max_steps={STEPS}", f"global_batch_size={BATCH_SIZE}", "lr=1e-4", "lr_warmup_steps=0", "ema=true",
          f"checkpoint_interval={STEPS // 2}"]  # fmt: skip
SETTINGS = {
    # Evaluations of an odd number of inputs, one at a time: one rank has more batches than the other.
    "hrm": ["epochs=250", "eval_interval=20", "eval_num_aug=0", "eval_max_groups=5", "eval_batch_size=2"],
    # Not so small that its recurrence blows up what rounding leaves.
    "trm": ["arch.name=trm", "arch.H_layers=0", "arch.L_layers=2", "arch.hidden_size=64", "arch.puzzle_emb_len=2",
            "arch.act_continue=false"],
}  # fmt: skip


def overrides(name: str) -> list[str]:
    return [*COMMON, *SETTINGS[name]]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, config: Path) -> dict[str, Path]:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("one_process")
    for name in SETTINGS:
        finished = train(config, folder / name, *overrides(name))
        assert finished.exit_code == 0, finished.output
    return {name: folder / name for name in SETTINGS}


def assert_equal_to_1e_5(run: Path, reference: Path) -> None:
    """Every number of every row, evaluation included."""
    got, expected = rows(run), rows(reference)
    assert [row.keys() for row in got] == [row.keys() for row in expected]
    for row, other in zip(got, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-9)


def test_the_comparison_covers_puzzles_shared_by_ranks_and_uneven_evaluations(dataset: Path) -> None:
    reader = TrainReader(dataset, seed=0, global_batch_size=BATCH_SIZE)
    halves = [np.split(reader.batch(step)["puzzle_identifiers"].numpy(), 2) for step in range(STEPS)]
    assert sum(len(np.intersect1d(*pair)) > 0 for pair in halves) >= STEPS / 4
    assert len(TestReader(dataset, max_groups=5, num_aug=0)) % 2 == 1


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """A run of two processes."""
    run = tmp_path_factory.mktemp("two_processes") / "run"
    train_on_ranks(2, config, run, *overrides("hrm"))
    return run


def test_two_processes_train_hrm_as_one(references: dict[str, Path], of_two: Path) -> None:
    assert len(rows(of_two)) == STEPS
    assert any("eval/exact_accuracy" in row for row in rows(of_two))
    assert_equal_to_1e_5(of_two, references["hrm"])


def test_gradients_summed_at_once_are_those_that_ddp_sums(of_two: Path, config: Path, tmp_path: Path) -> None:
    arguments = [config, f"checkpoint_path={tmp_path / 'run'}", *overrides("hrm")]
    for rank in start_module_ranks(2, tmp_path / "run", "tests.distributed.sum_at_once", arguments):
        finished = rank.finish()
        assert finished.exit_code == 0, finished.output
    assert digests(tmp_path / "run") == digests(of_two)


def test_two_processes_train_trm_as_one(references: dict[str, Path], config: Path, tmp_path: Path) -> None:
    train_on_ranks(2, config, tmp_path / "run", *overrides("trm"))
    assert len(rows(tmp_path / "run")) == STEPS
    assert_equal_to_1e_5(tmp_path / "run", references["trm"])


def test_torchrun_stops_on_a_signal_and_accelerate_goes_on_to_the_run_of_one_process(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["-m", "hrm_dist.train", config, f"checkpoint_path={run}", *overrides("hrm")]
    torchrun = start_torchrun(run, command)
    assert torchrun.wait_until(lambda: num_rows(run) >= 3)
    torchrun.signal(signal.SIGTERM)
    finished = torchrun.finish()
    assert finished.exit_code == 1  # torchrun's own, whatever its processes do
    assert "stopped by SIGTERM; the state is saved" in finished.output
    assert 3 <= saved_step(run) == num_rows(run) < STEPS

    # As a mere launcher. On a CPU `--cpu --num_processes 2` would start a single process.
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    finished = command_line("-m", *launch, *command)
    assert finished.exit_code == 0, finished.output
    ranks = (run / "checkpoints" / "latest").glob("rank-*.safetensors")
    assert sorted(path.name for path in ranks) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert_equal_to_1e_5(run, references["hrm"])


def start_torchrun(run: Path, command: list[object]) -> Started:
    arguments = ["--nproc-per-node", 2, *command]
    return start_module_ranks(1, run, "torch.distributed.run", arguments)[0]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_resumes_on_another_number_of_processes(
    before: int, after: int, references: dict[str, Path], of_two: Path, config: Path, tmp_path: Path
) -> None:
    half = (of_two if before == 2 else references["hrm"]) / "checkpoints" / f"step_{STEPS // 2}"
    train_on_ranks(after, config, tmp_path / "run", *overrides("hrm"), f"resume={half}")
    expected = {step: loss for step, loss in losses(references["hrm"]).items() if step > STEPS // 2}
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start_ranks(2, config, run, *overrides("hrm"))
    assert ranks[0].wait_until(lambda: num_rows(run) >= 3)
    ranks[1].signal(signal.SIGUSR2)
    finished = [rank.finish() for rank in ranks]
    assert [rank.exit_code for rank in finished] == [75, 75], finished
    assert not any("Traceback" in rank.output for rank in finished)
    assert 3 <= saved_step(run) == num_rows(run) < STEPS
    train_on_ranks(2, config, run, *overrides("hrm"))
    assert_equal_to_1e_5(run, references["hrm"])


def test_after_a_signal_to_one_rank_torchrun_reports_exit_code_75_of_all(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ["log_interval=1000", "checkpoint_interval=1", "max_steps=1000"]
    command = ["-m", "hrm_dist.train", config, f"checkpoint_path={run}", *settings]
    torchrun = start_torchrun(run, command)
    assert torchrun.wait_until(lambda: (run / "checkpoints" / "latest").exists())
    os.kill(min(torchrun.children()), signal.SIGUSR2)
    finished = torchrun.finish()
    assert re.findall(r"exitcode +: (-?\d+)", finished.output) == ["75", "75"], finished.output
    assert saved_step(run) < 1000


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes(config: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    # Even where the dataset would be built first: nothing is written.
    settings = ["global_batch_size=15", f"data_path={data}", "dataset.preset=arc-agi-1", "dataset.canvas=6"]
    finished = [rank.finish() for rank in start_ranks(2, config, run, *settings)]
    assert [rank.exit_code for rank in finished] == [2, 2]
    assert "global_batch_size=15 is not divisible by world_size=2; set it to 14 or 16" in finished[0].output
    assert not run.exists()
    assert not data.exists()


@pytest.mark.parametrize(
    "environment", [{"RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"LOCAL_RANK": "0"}]
)
def test_half_an_environment_of_a_launcher_is_refused(
    environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [str(config), f"checkpoint_path={run}"]
    finished = Started(tmp_path / "log", "hrm_dist.train", arguments, environment).finish()
    assert finished.exit_code == 2
    missing = {"RANK", "WORLD_SIZE", "LOCAL_RANK"} - environment.keys()
    assert all(name in finished.output for name in missing)
    assert "start through torchrun, accelerate launch or srun, or unset them" in finished.output
    assert not run.exists()


def test_a_run_of_two_processes_killed_and_started_again_equals_one_never_killed(
    references: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [*overrides("hrm"), "checkpoint_interval=3"]
    ranks = start_ranks(2, config, run, *settings)
    assert ranks[0].wait_until(lambda: num_rows(run) >= 7)
    for rank in ranks:
        rank.process.kill()
    for rank in ranks:
        rank.process.join()
    train_on_ranks(2, config, run, *settings)
    assert_equal_to_1e_5(run, references["hrm"])


def test_two_processes_predict_as_one(dataset: Path, references: dict[str, Path], tmp_path: Path) -> None:
    arguments = [references["hrm"] / "checkpoints" / "latest", "--data", dataset, "--batch-size", "36"]
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        ranks = start_module_ranks(world_size, out, "tools.evaluate", [*arguments, "--out", out])
        assert [rank.finish().exit_code for rank in ranks] == [0] * world_size
    [one], [two] = ([*(tmp_path / str(n)).glob("*.npz")] for n in (1, 2))
    assert re.sub("/2/", "/1/", str(two)) == str(one)
    assert two.read_bytes() == one.read_bytes()


def evaluate(world_size: int, reference: Path, dataset: Path, out: Path, *options: object) -> list[Started]:
    arguments = [reference / "checkpoints" / "latest", "--data", dataset, "--out", out, *options]
    return start_module_ranks(world_size, out, "tools.evaluate", arguments)


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.npz")}


def test_parts_predicted_by_two_processes_are_those_of_one(
    dataset: Path, references: dict[str, Path], tmp_path: Path
) -> None:
    for world_size in (1, 2):
        for part in ("1/2", "0/2"):
            ranks = evaluate(
                world_size, references["hrm"], dataset, tmp_path / str(world_size), "--part", part
            )
            assert [rank.finish().exit_code for rank in ranks] == [0] * world_size
    assert contents(tmp_path / "2") == contents(tmp_path / "1")
    assert len(contents(tmp_path / "2")) == 2


def test_a_signal_to_one_process_ends_the_evaluation_of_both_and_the_same_command_goes_on(
    dataset: Path, references: dict[str, Path], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"

    def start(world_size: int, out: Path, *options: object) -> list[Started]:
        return evaluate(world_size, references["hrm"], dataset, out, "--batch-size", 1, *options)

    for out in (one, two):  # begun with 18 files
        assert start(1, out, "--part", "17/18")[0].finish().exit_code == 0
    assert start(1, one)[0].finish().exit_code == 0

    ranks = start(2, two)
    assert ranks[1].wait_until(lambda: len(contents(two)) > 1)
    ranks[1].signal(signal.SIGUSR2)
    finished = [rank.finish() for rank in ranks]
    assert [rank.exit_code for rank in finished] == [75, 75], finished
    num_there = len(contents(two))
    assert 1 < num_there < 18
    assert f"stopped by a signal to another process; {num_there} of 18 files" in finished[0].output
    assert [rank.finish().exit_code for rank in start(2, two)] == [0, 0]
    assert contents(two) == contents(one)


def test_two_processes_halt_and_settle_votes_as_one(
    dataset: Path, references: dict[str, Path], tmp_path: Path
) -> None:
    """They answer unequally many inputs, and agree on nothing but the end."""
    options = ("--batch-size", 8, "--halting", "unchanged:1", "--vote-until", "confident:0.3:1")
    for world_size in (1, 2):
        ranks = evaluate(world_size, references["hrm"], dataset, tmp_path / str(world_size), *options)
        assert [rank.finish().exit_code for rank in ranks] == [0] * world_size
    one, two = (settled_answers(tmp_path / str(n)) for n in (1, 2))
    assert one == two
    assert 0 < len(one) < len(TestReader(dataset))


@pytest.mark.parametrize(
    "options", [("--choose", "first"), ("--choose", "vote", "--vote-until", "confident:0.3:1")]
)
def test_two_processes_choose_between_starts_as_one(
    dataset: Path, references: dict[str, Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    noise = ("--batch-size", 8, "--starts", 3, "--segment-noise", 0.5, "--halting", "unchanged:1")
    for world_size in (1, 2):
        ranks = evaluate(world_size, references["hrm"], dataset, tmp_path / str(world_size), *noise, *options)
        assert [rank.finish().exit_code for rank in ranks] == [0] * world_size
    one, two = (settled_answers(tmp_path / str(n)) for n in (1, 2))
    assert one == two


def settled_answers(out: Path) -> dict[int, tuple[int, bytes]]:
    """After how many segments each input was answered, and how."""
    return {
        row: (num_segments, preds.tobytes())
        for block in read_predictions([out])
        if block.rows is not None and block.num_segments is not None
        for row, num_segments, preds in zip(
            block.rows.tolist(), block.num_segments.tolist(), block.preds, strict=True
        )
    }
