"""A puzzle table split over the processes trains as one that every process has."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.schema import load_dataset_info
from tests.training import digests, rows, start_module_ranks, train_on_ranks

pytestmark = pytest.mark.distributed

HIDDEN_SIZE = 32  # of the tiny configuration
STEPS = 12
# Evaluations after steps 4, 8 and 12 of an odd number of inputs, one at a time: ranks have unequally many.
EVALUATION = ["eval_interval=2", "eval_num_aug=0", "eval_max_groups=5", "eval_batch_size=2", "epochs=250"]
SETTINGS = [f"max_steps={STEPS}", "global_batch_size=16", "lr_warmup_steps=0", *EVALUATION]


@pytest.mark.parametrize("world_size", [2, 4])
def test_lookups_and_updates_of_a_sharded_table_are_those_of_a_replicated_one(
    world_size: int, tmp_path: Path
) -> None:
    ranks = start_module_ranks(world_size, tmp_path / "run", "tests.distributed.check_table", [])
    finished = [rank.finish() for rank in ranks]
    assert [rank.exit_code for rank in finished] == [0] * world_size, finished


@pytest.mark.parametrize(("engine", "world_size"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("zero3", 2)])
def test_a_run_with_a_sharded_table_has_the_very_metrics_of_one_with_a_replicated_one(
    engine: str, world_size: int, config: Path, tmp_path: Path
) -> None:
    for shard in ("true", "false"):
        settings = [f"engine={engine}", f"puzzle_emb_shard={shard}", *SETTINGS]
        train_on_ranks(world_size, config, tmp_path / shard, *settings)
    assert [row["step"] for row in rows(tmp_path / "true")] == [*range(1, STEPS + 1)]
    assert sum("eval/exact_accuracy" in row for row in rows(tmp_path / "true")) >= 2
    assert rows(tmp_path / "true") == rows(tmp_path / "false")
    assert digests(tmp_path / "true") == digests(tmp_path / "false")


def after_training(world_size: int, config: Path, name: Path, *settings: str) -> list[dict[str, Any]]:
    ranks = start_module_ranks(world_size, name, "tests.distributed.train_table", [config, *settings])
    finished = [rank.finish() for rank in ranks]
    assert [rank.exit_code for rank in finished] == [0] * world_size, finished
    return [json.loads(rank.output) for rank in finished]


def test_a_rank_holds_its_share_of_the_rows_with_the_values_of_a_replicated_table(
    dataset: Path, config: Path, tmp_path: Path
) -> None:
    num_rows = load_dataset_info(dataset).metadata("train").num_puzzle_identifiers
    for world_size in (2, 4):
        replicated, sharded = (
            after_training(world_size, config, tmp_path / f"{shard}{world_size}", f"puzzle_emb_shard={shard}")
            for shard in ("false", "true")
        )
        assert len({rank["sha256"] for rank in replicated}) > 1
        for whole, part in zip(replicated, sharded, strict=True):
            assert whole["bytes"] == 4 * HIDDEN_SIZE * num_rows
            assert part["share"] <= -(-num_rows // world_size)
            # One more row stands for those of other ranks.
            assert part == whole | {"bytes": 4 * HIDDEN_SIZE * (part["share"] + 1)}
