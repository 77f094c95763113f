from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.reader import TestReader
from data_pipeline.schema import load_dataset_info
from hrm_dist.checkpoint.reader import read_state
from hrm_dist.evaluation import evaluate as evaluation
from hrm_dist.evaluation.load_model import load_model
from tests.training import (
    Started,
    command_line,
    digests,
    lines,
    num_rows,
    rows,
    saved_step,
    saved_steps,
    train,
)

pytestmark = pytest.mark.e2e

STEPS = 12


def without_scores(run: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if not key.startswith("eval/")} for row in rows(run)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """A run with a moving average of the weights, evaluated every fourth step, all checkpoints kept."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    # 250 passes over 32 examples make 1,000 steps of 8, so one pass is 4 steps.
    settings = ["epochs=250", "eval_interval=1", "ema=true", "ema_rate=0.9", "keep_checkpoints=10"]
    finished = train(config, run, f"max_steps={STEPS}", *settings)
    assert finished.exit_code == 0, finished.output
    return run


def test_two_new_processes_write_the_same_checkpoint_to_the_byte(config: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        done = command_line("-m", "hrm_dist.train", config, f"checkpoint_path={run}", "max_steps=2")
        assert done.exit_code == 0, done.output
    assert digests(runs[0]) == digests(runs[1])


def test_evaluations_do_not_change_the_training_that_they_interrupt(
    evaluated: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(config, run, f"max_steps={STEPS}", "epochs=250", "ema=true", "ema_rate=0.9").exit_code == 0
    assert without_scores(run) == rows(run) == without_scores(evaluated)
    assert digests(run) == digests(evaluated)


def test_scores_have_a_row_of_their_own_after_that_of_training(evaluated: Path) -> None:
    kinds = [{key.partition("/")[0] for key in line if "/" in key} for line in lines(evaluated)]
    assert kinds == 3 * [{"train"}, {"train"}, {"train"}, {"train"}, {"eval"}]
    steps_with_scores = [row["step"] for row in rows(evaluated) if "eval/task/pass@2" in row]
    assert steps_with_scores == [4, 8, 12]
    assert [row["step"] for row in rows(evaluated)] == list(range(1, STEPS + 1))


def test_evaluation_uses_the_averaged_weights(evaluated: Path, dataset: Path) -> None:
    logged = {k.removeprefix("eval/"): v for k, v in rows(evaluated)[-1].items() if k.startswith("eval/")}
    latest = evaluated / "checkpoints" / "latest"
    metadata = load_dataset_info(dataset).metadata("train")
    scores = {}
    for ema in (True, False):
        model = load_model(latest, dataset, metadata, ema=ema)
        scores[ema] = evaluation.evaluate(model, TestReader(dataset), dataset, 8, torch.device("cpu"))
    assert scores[True] == logged != scores[False]


def test_the_average_follows_the_weights_at_its_rate(evaluated: Path) -> None:
    folder = evaluated / "checkpoints"
    weights, average = (
        load_file(folder / "latest" / f"{name}-00000.safetensors") for name in ("model", "ema")
    )
    assert average.keys() < weights.keys()  # without the puzzle table and the initial states
    assert all(not torch.equal(average[name], weights[name]) for name in average)
    before = load_file(folder / "step_8" / "ema-00000.safetensors")
    name = "network.lm_head.weight"
    # In the 4 steps from 8 on, the share 0.9 ** 4 of the old average remains.
    moved = (average[name] - before[name]).norm() / (weights[name] - before[name]).norm()
    assert 0.1 < moved < 1 - 0.9**4


def test_best_is_the_last_checkpoint_with_the_highest_score(evaluated: Path) -> None:
    scores = {row["step"]: row["eval/task/pass@2"] for row in rows(evaluated) if "eval/task/pass@2" in row}
    best = read_state(evaluated / "checkpoints" / "best")
    assert best.step == max(scores, key=lambda step: (scores[step], step))
    assert best.best_score == max(scores.values())


def test_the_last_k_checkpoints_and_the_best_are_kept(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # No task is solved within 12 steps, so that each evaluation, of steps 4 and 8, is as good as the one before.
    settings = [
        "epochs=250",
        "eval_interval=1",
        "eval_num_aug=0",
        "checkpoint_interval=1",
        "keep_checkpoints=3",
    ]
    assert train(config, run, "max_steps=6", *settings, "eval_interval=null").exit_code == 0
    assert train(config, run, "max_steps=12", *settings).exit_code == 0
    best = max(row["step"] for row in rows(run) if "eval/task/pass@2" in row)
    assert read_state(run / "checkpoints" / "best").step == best
    assert saved_steps(run) == sorted({best, 10, 11, 12})
    assert saved_step(run) == 12


def test_without_a_checkpoint_interval_the_last_step_is_saved(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "max_steps=3", "checkpoint_interval=null").exit_code == 0
    assert saved_steps(tmp_path / "run") == [3]


@pytest.mark.parametrize("arch", [[], ["arch.name=trm", "arch.H_layers=0", "arch.puzzle_emb_len=2"]])
def test_bf16_trains_on_a_cpu_and_the_loss_falls(arch: list[str], config: Path, tmp_path: Path) -> None:
    settings = ["precision=bf16", "max_steps=30", *arch]
    finished = train(config, tmp_path / "run", *settings)
    assert finished.exit_code == 0, finished.output
    lm_losses = [row["train/lm_loss"] for row in rows(tmp_path / "run")]
    assert sum(lm_losses[-5:]) < 0.8 * sum(lm_losses[:5])
    weights = load_file(tmp_path / "run" / "checkpoints" / "latest" / "model-00000.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_a_run_that_is_rewound_repeats_what_followed(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["checkpoint_interval=2", "keep_checkpoints=2"]
    assert train(config, run, "max_steps=8", *settings, "keep_checkpoints=4").exit_code == 0
    whole, tensors = rows(run), digests(run)
    back = f"resume={run / 'checkpoints' / 'step_4'}"
    assert train(config, run, "max_steps=4", *settings, back).exit_code == 0
    assert saved_step(run) == 4
    assert saved_steps(run) == [2, 4]
    assert {path.name for path in (run / "checkpoints").glob("abandoned*")} == {
        "abandoned_step_6",
        "abandoned_step_8",
    }
    assert train(config, run, "max_steps=6", *settings, back).exit_code == 0
    assert rows(run) == whole[:6]
    assert saved_step(run) == 6
    assert train(config, run, "max_steps=8", *settings).exit_code == 0
    assert rows(run) == whole
    assert digests(run) == tensors
    assert saved_steps(run) == [6, 8]


def test_a_command_that_rewinds_a_run_resumes_it_when_given_again(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["checkpoint_interval=2", "keep_checkpoints=4"]
    assert train(config, run, "max_steps=8", *settings).exit_code == 0
    command = [*settings, f"resume={run / 'checkpoints' / 'step_4'}"]
    assert train(config, run, "max_steps=6", *command).exit_code == 0
    finished = train(config, run, "max_steps=10", *command)  # as after an interruption
    assert finished.exit_code == 0, finished.output
    assert "at step 6" in finished.output
    assert [row["step"] for row in rows(run)] == list(range(1, 11))


def test_a_command_that_rewinds_does_not_need_its_checkpoint_any_more(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["checkpoint_interval=2", "keep_checkpoints=3"]
    assert train(config, run, "max_steps=8", *settings).exit_code == 0
    command = [*settings, f"resume={run / 'checkpoints' / 'step_4'}"]
    assert train(config, run, "max_steps=10", *command).exit_code == 0
    assert saved_steps(run) == [6, 8, 10]
    finished = train(config, run, "max_steps=12", *command)
    assert finished.exit_code == 0, finished.output
    assert "at step 10" in finished.output


def test_another_command_in_between_lets_the_same_one_rewind_again(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["checkpoint_interval=2", "keep_checkpoints=9"]
    back = f"resume={run / 'checkpoints' / 'step_2'}"
    for steps, more, begins in ((4, [], 0), (6, [back], 2), (8, [], 6), (10, [back], 2)):
        finished = train(config, run, f"max_steps={steps}", *settings, *more)
        assert finished.exit_code == 0, finished.output
        assert not begins or f"at step {begins} of" in finished.output
    assert [row["step"] for row in rows(run)] == list(range(1, 11))


def test_a_run_started_from_another_goes_on_from_its_own_checkpoints(config: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(config, first, "max_steps=4").exit_code == 0
    command = ["lr=1e-4", f"resume={first / 'checkpoints' / 'latest'}"]
    assert train(config, second, "max_steps=6", *command).exit_code == 0
    assert [row["step"] for row in rows(second)] == [5, 6]
    finished = train(config, second, "max_steps=8", *command)  # as after an interruption
    assert finished.exit_code == 0, finished.output
    assert "at step 6" in finished.output
    assert [row["step"] for row in rows(second)] == [5, 6, 7, 8]
    assert saved_step(first) == 4


def test_wandb_works_offline_and_goes_on_in_the_same_run(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_SILENT": "true"}
    ids = []
    for max_steps in (3, 5):
        arguments = [config, f"checkpoint_path={run}", "wandb_mode=offline", f"max_steps={max_steps}"]
        finished = Started(tmp_path / "log", "hrm_dist.train", arguments, unreachable).finish()
        assert finished.exit_code == 0, finished.output
        ids.append((run / "wandb_run_id").read_text())
    assert ids[0] == ids[1]
    logged = list((run / "wandb").glob(f"offline-run-*/run-{ids[0]}.wandb"))
    assert len(logged) == 2
    assert num_rows(run) == 5
