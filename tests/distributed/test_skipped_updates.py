"""What is not finite changes nothing, on any rank, and is reported with the puzzles that it came from."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from hrm_dist.checkpoint.reader import open_checkpoint
from tests.training import rows, start_module_ranks, start_ranks, train_on_ranks

pytestmark = pytest.mark.distributed

ENGINES = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]


def outcome(
    config: Path, tmp_path: Path, world_size: int, where: str, *settings: str
) -> list[dict[str, Any]]:
    arguments = [config, where, "ema=true", "global_batch_size=16", *settings]
    ranks = start_module_ranks(world_size, tmp_path / "run", "tests.distributed.skip_updates", arguments)
    finished = [rank.finish() for rank in ranks]
    assert [rank.exit_code for rank in finished] == [0] * world_size, finished
    return [json.loads(rank.output.splitlines()[-1]) for rank in finished]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_puzzle_that_is_not_finite_on_one_rank_makes_a_step_a_no_op_on_all(
    engine: str, config: Path, dataset: Path, tmp_path: Path
) -> None:
    results = outcome(config, tmp_path, 2, "row", f"engine={engine}")
    names = json.loads((dataset / "identifiers.json").read_bytes())
    for result in results:
        # The row itself is spoiled by the test; in its file it is the table that changes.
        assert set(result["changed"]) <= {"model.puzzle_emb.weights"}
        assert result["changed_by_the_next"]
        assert result["num_updates"] == 4  # of five steps
        report = result["report"]
        assert (report["num_updates"], report["in_a_row"], report["first_step"]) == (1, 1, 4)
        assert len(report["identifiers"]) == 1
        assert names[report["identifiers"][0]] in result["names"]
        assert math.isfinite(result["row"]["train/loss"])
        assert result["next_is_clean"]
        assert result["carry_is_finite"]
    assert results[0]["report"] == results[1]["report"]


@pytest.mark.parametrize(("engine", "world_size"), [("ddp", 1), ("ddp", 2), ("zero3", 2), ("fsdp2", 2)])
def test_a_gradient_that_is_not_finite_on_one_rank_makes_a_step_a_no_op_on_all(
    engine: str, world_size: int, config: Path, tmp_path: Path
) -> None:
    settings = [f"engine={engine}", "gradient_accumulation_steps=2"]
    for result in outcome(config, tmp_path, world_size, "gradient", *settings):
        assert result["changed"] == []
        assert result["changed_by_the_next"]
        assert result["num_updates"] == 4
        assert (result["report"]["num_updates"], result["report"]["first_step"]) == (1, 4)


@pytest.mark.parametrize("engine", ["zero1", "zero3", "fsdp2"])
def test_one_infinite_number_in_the_share_of_one_rank_makes_a_step_a_no_op_on_all(
    engine: str, config: Path, tmp_path: Path
) -> None:
    for result in outcome(config, tmp_path, 2, "partition", f"engine={engine}"):
        assert result["changed"] == []
        assert result["num_updates"] == 4


def test_a_run_whose_updates_are_all_skipped_stops_with_the_state_from_before(
    config: Path, tmp_path: Path
) -> None:
    good, run = tmp_path / "good", tmp_path / "run"
    settings = ["global_batch_size=16", "keep_checkpoints=5"]
    train_on_ranks(2, config, good, *settings, "max_steps=4")
    # An update so large that the next forward overflows: the fifth is the last that can be made.
    huge = ["lr=1e38", f"resume={good / 'checkpoints' / 'latest'}", "max_skipped_updates=3", "engine=zero2"]
    finished = [rank.finish() for rank in start_ranks(2, config, run, *settings, *huge, "max_steps=50")]
    assert [rank.exit_code for rank in finished] == [1, 1], finished
    text = finished[0].output
    assert "Traceback" not in text
    match = re.search(r"error: stopped at step (\d+): .* the first in step (\d+), as loss or gradient", text)
    assert match is not None, text
    step, first = int(match[1]), int(match[2])
    assert "That makes 3 in a row, max_skipped_updates=3" in text
    assert step >= 3
    assert first <= step
    assert text.count("error: stopped at step") == 1
    assert "error: stopped at step" not in finished[1].output
    saved = open_checkpoint(run / "checkpoints" / "latest")
    assert saved.state.step == step
    assert saved.state.num_updates == step - sum(row["train/skipped_updates"] for row in rows(run))
    assert [row["step"] for row in rows(run)][-1] == step
    assert all(saved.tensor(key).isfinite().all() for key in saved.shapes if not key.startswith("carry."))
    logged = rows(run)
    assert [row["train/loss"] for row in logged if row["train/skipped_updates"]] == [None] * len(
        [row for row in logged if row["train/skipped_updates"]]
    )
