"""Where a run of several processes tells what it does: rank 0 alone, and no rank computes anything else for it."""

from pathlib import Path

import pytest

from tests.logged import events, wandb_runs
from tests.training import assert_same_run, train_on_ranks

pytestmark = pytest.mark.distributed


def test_one_process_of_two_tells_all_and_training_is_the_same_to_the_bit(
    config: Path, tmp_path: Path
) -> None:
    told, plain = tmp_path / "told", tmp_path / "plain"
    settings = ("eval_interval=1", "eval_num_aug=0", "max_steps=5")
    train_on_ranks(2, config, told, *settings, "tensorboard=true", "wandb_mode=offline")
    train_on_ranks(2, config, plain, *settings)
    assert_same_run(told, plain)
    found = events(told)
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert len(found.Tags()["images"]) == 6
    assert len([*(told / "tensorboard").iterdir()]) == len(wandb_runs(told)) == 1
