"""A checkpoint of any engine on any number of processes resumes with any other; with its own, bit for bit."""

import itertools
import re
import shutil
from pathlib import Path

import pytest

from tests.distributed.test_engines import (
    ENGINES,
    NOISY,
    SETTINGS,
    STEPS,
    RunOf,
    assert_equal_to_1e_5,
    in_full,
    run_of,
)
from tests.training import (
    assert_same_run,
    digests,
    losses,
    rows,
    saved_step,
    start_module_ranks,
    train_on_ranks,
)

__all__ = ["run_of"]
pytestmark = pytest.mark.distributed

HALF = STEPS // 2
# The checkpoint is off the grid of logged steps, so that sums of metrics are resumed too.
CUT = ("gradient_accumulation_steps=2", "puzzle_emb_shard=true", "log_interval=3")
Place = tuple[str, int]
PLACES = [("ddp", 1), *itertools.product(ENGINES, (2, 4))]


@pytest.mark.parametrize(
    ("before", "after"),
    in_full(
        (("ddp", 1), ("zero2", 2)), (("zero1", 2), ("ddp", 1)), (("zero2", 2), ("zero3", 4)),
        (("zero3", 4), ("fsdp2", 2)), (("fsdp2", 2), ("zero3", 2)), (("zero3", 2), ("zero1", 1)),
        (("fsdp2", 2), ("fsdp2", 4)), (("ddp", 2), ("ddp", 4)),
        of=[
            *itertools.product(((engine, 2) for engine in ENGINES), itertools.product(ENGINES, (1, 2, 4))),
            (("ddp", 1), ("zero2", 2)), (("zero3", 4), ("fsdp2", 2)),
        ],
    ),
)  # fmt: skip
def test_a_checkpoint_goes_on_with_any_engine_on_any_number_of_processes(
    before: Place, after: Place, run_of: RunOf, config: Path, tmp_path: Path
) -> None:
    engine, world_size = after
    half = run_of(*before) / "checkpoints" / f"step_{HALF}"
    train_on_ranks(world_size, config, tmp_path / "run", f"engine={engine}", *SETTINGS, f"resume={half}")
    assert_equal_to_1e_5(tmp_path / "run", run_of("ddp", 1), first_step=HALF + 1)


@pytest.mark.parametrize(
    ("engine", "world_size", "settings"),
    in_full(
        ("ddp", 4, ()), ("zero1", 2, ()), ("zero2", 2, ()), ("zero3", 2, ()), ("fsdp2", 2, ()), ("zero2", 2, CUT),
        ("ddp", 2, NOISY),
        of=[*itertools.product(ENGINES, (2, 4), [()]), ("zero2", 2, CUT), ("ddp", 4, CUT),
            *itertools.product(ENGINES, (2,), [NOISY])],
    ),
)  # fmt: skip
def test_with_the_same_engine_and_number_of_processes_a_run_goes_on_bit_for_bit(
    engine: str, world_size: int, settings: tuple[str, ...], run_of: RunOf, config: Path, tmp_path: Path
) -> None:
    whole, run = run_of(engine, world_size, "hrm", *settings), tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / f"step_{HALF}", run / "checkpoints" / f"step_{HALF}")
    (run / "checkpoints" / "latest").symlink_to(f"step_{HALF}")
    train_on_ranks(world_size, config, run, f"engine={engine}", *SETTINGS, *settings)
    assert rows(run) == [row for row in rows(whole) if row["step"] > HALF]
    assert len(rows(run)) >= HALF // 3
    assert digests(run) == digests(whole)


@pytest.mark.parametrize(
    ("engine", "step", "batch", "is_stopped"),
    in_full(
        ("ddp", 8, 1, True), ("ddp", STEPS, 1, True), ("ddp", 8, 2, False), ("zero3", 8, 1, True),
        ("fsdp2", 8, 1, True),
        of=[*itertools.product(ENGINES, (8, STEPS), (1,), (True,)), ("ddp", 8, 2, False)],
    ),
)  # fmt: skip
def test_after_a_signal_to_one_rank_in_an_evaluation_all_stop_in_it_and_go_on_bit_for_bit(
    engine: str, step: int, batch: int, is_stopped: bool, run_of: RunOf, config: Path, tmp_path: Path
) -> None:
    """One rank has two batches and makes a third; the vote cast before the third is read when all are done."""
    whole, run = run_of(engine, 2, "hrm", "log_interval=4"), tmp_path / "run"
    settings = [f"engine={engine}", *SETTINGS, "log_interval=4"]
    command = [1, step, batch, config, f"checkpoint_path={run}", *settings]
    ranks = start_module_ranks(2, run, "tests.distributed.stop_in_evaluation", command)
    for finished in [rank.finish() for rank in ranks]:
        assert finished.exit_code == 75, finished.output
        made = re.findall(r"batch (\d) of the evaluation", finished.output)
        assert made == ["1", "2", "3"][: 2 if is_stopped else 3]
    assert saved_step(run) == step
    assert [row["step"] for row in rows(run)] == list(range(4, step + 1, 4))
    assert ("eval/exact_accuracy" in rows(run)[-1]) is not is_stopped
    train_on_ranks(2, config, run, *settings)
    assert_same_run(run, whole)


def test_other_parts_of_a_batch_and_of_the_table_go_on_too(
    run_of: RunOf, config: Path, tmp_path: Path
) -> None:
    half = run_of("ddp", 2) / "checkpoints" / f"step_{HALF}"
    cut = ["gradient_accumulation_steps=2", "puzzle_emb_shard=true", "engine=fsdp2"]
    train_on_ranks(2, config, tmp_path / "cut", *SETTINGS, *cut, f"resume={half}", "max_steps=15")
    last = tmp_path / "cut" / "checkpoints" / "latest"
    train_on_ranks(1, config, tmp_path / "run", *SETTINGS, f"resume={last.resolve()}")
    whole = losses(run_of("ddp", 1))
    assert losses(tmp_path / "cut") == pytest.approx({s: whole[s] for s in range(HALF + 1, 16)}, rel=1e-5)
    assert losses(tmp_path / "run") == pytest.approx({s: whole[s] for s in range(16, STEPS + 1)}, rel=1e-5)


def test_a_checkpoint_without_average_starts_one_with_its_weights(config: Path, tmp_path: Path) -> None:
    train_on_ranks(1, config, tmp_path / "without", *SETTINGS, "ema=false", f"max_steps={HALF}")
    start = f"resume={tmp_path / 'without' / 'checkpoints' / 'latest'}"
    for engine, world_size in (("ddp", 1), ("zero3", 2)):
        train_on_ranks(world_size, config, tmp_path / engine, *SETTINGS, f"engine={engine}", start)
    assert_equal_to_1e_5(tmp_path / "zero3", tmp_path / "ddp")
    assert any("eval/exact_accuracy" in row for row in rows(tmp_path / "ddp"))
