import json
import math
import os
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import InputError
from hrm_dist import checkpoint
from hrm_dist.checkpoint import CheckpointState

TENSORS = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}}


def state(step: int, best_score: float | None = None) -> CheckpointState:
    return CheckpointState(
        format=checkpoint.FORMAT, step=step, world_size=1, config={}, dataset={}, environment={},
        metric_sums=[0.1 + 0.2], best_score=best_score, sha256={},
    )  # fmt: skip


def save(folder: Path, step: int, *names: str, best_score: float | None = None) -> Path:
    carry = {"carry.steps": torch.arange(4)}
    return checkpoint.save(folder, state(step, best_score), TENSORS, carry, names or ("latest",))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_read_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path, 5, best_score=0.1)
    read = checkpoint.read_state(tmp_path / "latest")
    assert (read.step, read.metric_sums, read.best_score) == (5, [0.1 + 0.2], 0.1)
    torch.testing.assert_close(checkpoint.read_tensors(path, "model"), TENSORS["model"], rtol=0, atol=0)
    assert entries(tmp_path) == ["latest", "step_5"]


def test_a_run_that_diverged_still_has_readable_checkpoints(tmp_path: Path) -> None:
    diverged = state(1).model_copy(update={"metric_sums": [math.nan, math.inf]})
    checkpoint.save(tmp_path, diverged, TENSORS, {})
    sums = checkpoint.read_state(tmp_path / "latest").metric_sums
    assert math.isnan(sums[0])
    assert sums[1] == math.inf


def test_what_a_killed_save_left_behind_is_swept_away_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".step_3.tmp").mkdir()
    (tmp_path / ".step_3.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".step_1.deleted").mkdir()
    (tmp_path / ".latest.tmp").symlink_to("step_1")
    save(tmp_path, 4)
    assert entries(tmp_path) == ["latest", "step_4"]


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint.link(tmp_path / "latest", tmp_path / "step_1")  # set back
    save(tmp_path, 2, best_score=0.5)
    assert checkpoint.read_state(tmp_path / "latest").best_score == 0.5
    assert entries(tmp_path) == ["latest", "step_1", "step_2"]


def test_pruning_keeps_the_last_k_the_latest_and_the_best(tmp_path: Path) -> None:
    save(tmp_path, 2, "best", "latest")
    for step in (4, 6, 10):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2)
    assert entries(tmp_path) == ["best", "latest", "step_10", "step_2", "step_6"]


def test_pruning_counts_no_steps_beyond_the_latest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    checkpoint.link(tmp_path / "latest", tmp_path / "step_2")
    checkpoint.prune(tmp_path, keep=2)
    assert entries(tmp_path) == ["latest", "step_1", "step_2", "step_3", "step_4"]


def test_files_can_be_read_by_whoever_the_umask_lets(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(previous)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"step_1/model\.safetensors: missing, though state\.json lists it"):
        checkpoint.read_state(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "step": "x"}', "\0"])
def test_a_damaged_state_file_is_named(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").write_text(content)
    with pytest.raises(InputError, match=r"step_1/state\.json: .*choose another checkpoint"):
        checkpoint.read_state(path)


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    content = json.loads((path / "state.json").read_text()) | {"format": 99}
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="format 99, this version reads 1"):
        checkpoint.read_state(path)


@pytest.mark.parametrize(("saved", "now"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_the_carry_is_sliced_anew_for_another_number_of_ranks(tmp_path: Path, saved: int, now: int) -> None:
    whole = torch.arange(24).reshape(8, 3)
    from safetensors.torch import save_file

    for rank, rows in enumerate(whole.tensor_split(saved)):
        tensors = {"carry.steps": rows.contiguous(), "rng.cpu": torch.tensor([rank])}
        save_file(tensors, tmp_path / f"rank_{rank:05d}.safetensors")
    of_ranks = state(1).model_copy(update={"world_size": saved})
    own = [checkpoint.read_own(tmp_path, of_ranks, rank, now) for rank in range(now)]
    assert torch.equal(torch.cat([part["carry.steps"] for part in own]), whole)
    assert not any("rng.cpu" in part for part in own)
