import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import exit_code
from hrm_dist.checkpoint import reader
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.tensor_shards import replicated
from tools.check_engines import __main__ as check_engines
from tools.check_engines import runs as engine_runs
from tools.check_engines.differences import Differences, Limits, compare, exceeded
from tools.check_engines.runs import RunFailed, batch_size_for, run_ranks

LIMITS = Limits(first_losses=1e-5, losses=1e-3, gradient=1e-5, first_weights=1e-5, turned_in_table=0.01)
EQUAL = Differences(0, 0, 0, 0, 0, "network.lm_head.weight", 0, 0, 0.1)
LR, TABLE_LR = 1e-4, 1e-2
GRADIENT = torch.tensor([1.0, -1.0, 1e-9, -1.0])


def run_folder(path: Path, gradient: Tensor, losses: list[float], table: Tensor | None = None) -> Path:
    """What a run would leave that moved its weights from zero by the sign of a gradient."""
    rows = [{"step": n + 1, "train/loss": x, "train/lm_loss": x / 2} for n, x in enumerate(losses)]
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tensors = {
        "model.network.lm_head.weight": -LR * gradient.sign() + 0.0,
        "exp_avg.network.lm_head.weight": 0.1 * gradient,
        "model.puzzle_emb.weights": TABLE_LR * torch.ones(4, 8) if table is None else table,
    }
    for step in {1, len(losses)}:
        state = reader.CheckpointState(
            format=reader.FORMAT, step=step, num_updates=step, world_size=1, config={}, dataset={},
            environment={}, metric_sums=[], best_score=None,
        )  # fmt: skip
        writer = CheckpointWriter(path / "checkpoints", keep=2, in_background=False)
        writer.write(state, [replicated(key, tensor) for key, tensor in tensors.items()])
    return path


def differences(
    tmp_path: Path,
    gradient: Tensor,
    losses: list[float],
    table: Tensor | None = None,
    limits: Limits = LIMITS,
) -> Differences:
    """Of a run to one of GRADIENT and losses 1, 1, 1."""
    reference = run_folder(tmp_path / "reference", GRADIENT, [1.0, 1.0, 1.0])
    return compare(run_folder(tmp_path / "run", gradient, losses, table), reference, LR, TABLE_LR, limits)


def test_a_run_that_only_rounds_otherwise_is_equal(tmp_path: Path) -> None:
    found = differences(tmp_path, GRADIENT * (1 + 1e-7), [1.0, 1 + 1e-7, 1 - 1e-7])
    assert found.gradient == pytest.approx(1e-7, rel=0.5)
    assert found.losses == pytest.approx(1e-7)
    assert not exceeded(found, LIMITS)


def test_an_element_turned_by_a_vanishing_gradient_is_excused(tmp_path: Path) -> None:
    found = differences(tmp_path, torch.tensor([1.0, -1.0, -1e-9, -1.0]), [1.0, 1.0, 1.0])
    assert (found.turned, found.unexplained) == (1, 0)
    assert found.first_weights == 0
    assert not exceeded(found, LIMITS)


def test_an_element_turned_by_another_gradient_is_not_excused(tmp_path: Path) -> None:
    found = differences(tmp_path, torch.tensor([1.0, 1.0, 1e-9, -1.0]), [1.0, 1.0, 1.0])
    assert (found.turned, found.unexplained) == (1, 1)
    first, second = exceeded(found, LIMITS)
    assert first.startswith("gradient of step 1 (network.lm_head.weight): 1.2e+00")
    assert second == "1 weights were moved otherwise in step 1 by no small gradient"


def test_a_row_of_the_table_that_was_not_updated_is_found(tmp_path: Path) -> None:
    table = TABLE_LR * torch.ones(4, 8)
    table[2] = 0
    found = differences(tmp_path, GRADIENT, [1.0, 1.0, 1.0], table)
    assert found.turned_in_table == 0.25
    assert len(exceeded(found, LIMITS)) == 1


@pytest.mark.parametrize(("losses", "number"), [([1.0, 1.0, 1.1], 0.1), ([1.0, math.nan, 1.0], math.nan)])
def test_a_loss_that_differs_in_one_step_is_found(tmp_path: Path, losses: list[float], number: float) -> None:
    found = differences(tmp_path, GRADIENT, losses)
    assert found.losses == pytest.approx(number, nan_ok=True)
    assert len(exceeded(found, LIMITS)) == 2  # among the first 20, and among all


def test_means_of_the_loss_are_compared_where_the_limits_say_so(tmp_path: Path) -> None:
    found = differences(tmp_path, GRADIENT, [0.9, 1.0, 1.1], limits=LIMITS._replace(of_mean_losses=True))
    assert found.losses == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", Limits._fields[:5])
def test_each_limit_is_kept(name: str) -> None:
    assert not exceeded(EQUAL, LIMITS)
    for beyond in (1.1 * getattr(LIMITS, name), math.inf, math.nan):
        assert len(exceeded(EQUAL._replace(**{name: beyond}), LIMITS)) == 1


@pytest.mark.parametrize(("world_sizes", "size"), [([1, 2, 4], 16), ([3], 18), ([1, 64], 64), ([6, 4], 24)])
def test_every_number_of_processes_divides_the_batch(world_sizes: list[int], size: int) -> None:
    assert batch_size_for(world_sizes) == size


def test_the_first_rank_to_fail_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_runs, "GRACE_SECONDS", 0.1)
    wait_or_fail = "time.sleep(60) if os.environ['RANK'] == '0' else sys.exit('boom')"
    code = f"import os, sys, time; print('one', end='\\r'); print('two', flush=True); {wait_or_fail}"
    started = time.monotonic()
    with pytest.raises(RunFailed) as error:
        run_ranks([sys.executable, "-c", code], tmp_path / "run", 2, timeout_s=50)
    assert str(error.value).split() == ["rank", "1:", "exit", "code", "1", "two", "boom"]
    assert time.monotonic() - started < 40


def test_a_run_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="rank 0: still running after 0 s"):
        run_ranks([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "run", 1, timeout_s=0.2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--engines", "ddp,zero4"], "no engine is called 'zero4'; choose of ddp,zero1"),
        (["--world-sizes", "1,0"], "--world-sizes 1,0: write numbers of processes from 1"),
        (["--world-sizes", "2x"], "--world-sizes 2x: write numbers"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["max_steps=3"], "max_steps=3: sets max_steps, which the check itself has to set"),
        (["arch.hidden_size=64"], "sets arch, which"),
        (["load_checkpoint=x"], "sets resume, which"),
        (["lr=fast"], "lr=fast: Input should be a valid number"),
        (["global_batch_size=6"], "global_batch_size=6 is not divisible by world_size=4"),
        (["--keep", "KEEP", "max_steps=3"], "sets max_steps"),
        (["--engines", "zero3,ddp", "gather_unit=layer"], "gather_unit=layer means nothing to engine=ddp"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    arguments: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    keep = tmp_path / "keep"
    given = [str(keep) if text == "KEEP" else text for text in arguments]
    monkeypatch.setattr(sys, "argv", ["check_engines", "--device", "cpu", *given])
    assert exit_code(check_engines.main) == 2
    assert reason in capsys.readouterr().err
    assert not keep.exists()


def test_settings_need_only_suit_the_engines_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RunFailed("the settings were good")

    monkeypatch.setattr(check_engines, "train", fail)
    arguments = ["--device", "cpu", "--engines", "zero3", "gather_unit=layer", "puzzle_emb_shard=true"]
    monkeypatch.setattr(sys, "argv", ["check_engines", *arguments])
    assert exit_code(check_engines.main) == 1
    assert "the settings were good" in capsys.readouterr().out


def test_a_folder_that_exists_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_engines", "--device", "cpu", "--keep", str(tmp_path)])
    assert exit_code(check_engines.main) == 2
    assert f"--keep {tmp_path}: cannot be made (File exists)" in capsys.readouterr().err


def test_a_cell_without_devices_is_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    trained: list[engine_runs.Cell] = []
    monkeypatch.setattr(check_engines, "train", lambda _config, _folder, cell, *_: trained.append(cell))
    monkeypatch.setattr(check_engines, "compare", lambda *_: EQUAL)
    monkeypatch.setattr(check_engines, "vanishing", lambda *_: (3, 100))
    monkeypatch.setattr(sys, "argv", ["check_engines", "--device", "cuda", "--engines", "zero3"])
    assert check_engines.main() == 0
    assert trained == [("ddp", 1), ("zero3", 1), ("zero3", 2)]
    printed = capsys.readouterr().out
    assert "zero3 x 4: skipped: needs 4 GPUs, this machine has 2" in printed
    report = json.loads(printed.splitlines()[-1])
    assert [run["status"] for run in report["runs"]] == ["equal", "equal", "skipped"]


def test_without_a_device_for_any_run_nothing_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["check_engines", "--device", "cuda"])
    assert exit_code(check_engines.main) == 2
    assert "this machine has 0 GPUs" in capsys.readouterr().err


def test_a_reference_that_fails_ends_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RunFailed("rank 0: exit code 1")

    monkeypatch.setattr(check_engines, "train", fail)
    monkeypatch.setattr(sys, "argv", ["check_engines", "--device", "cpu"])
    assert check_engines.main() == 1
    printed = capsys.readouterr().out
    assert "ddp x 1: failed: the reference: rank 0: exit code 1" in printed
    assert json.loads(printed.splitlines()[-1])["equal"] is False
