"""All engines compute the same training run, and go on from each other's checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training import command_line, digests, losses, rows, start_module_ranks, train_on_ranks

pytestmark = pytest.mark.distributed

STEPS = 20
# Evaluations with the averaged weights after steps 8, 16 and 20, of an odd number of inputs, one at a time: ranks have
# unequally many batches. Biases of two numbers are split over four ranks.
SETTINGS = [f"max_steps={STEPS}", "global_batch_size=16", "lr=1e-4", "lr_warmup_steps=0", "ema=true",
            f"checkpoint_interval={STEPS // 2}", "epochs=250", "eval_interval=4", "eval_num_aug=0", "eval_max_groups=5",
            "eval_batch_size=2", "keep_checkpoints=5"]  # fmt: skip
# A TRM of one block and width 32 multiplies a rounding by ten in every segment, see docs/LOG.md; this one does not.
TRM = ["arch.name=trm", "arch.H_layers=0", "arch.L_layers=2", "arch.hidden_size=64", "arch.puzzle_emb_len=2",
       "arch.act_continue=false", "arch.gradient=last_cycle"]  # fmt: skip

RunOf = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, config: Path) -> RunOf:
    """The run of an engine on a number of processes, made when first asked for."""
    folder = tmp_path_factory.mktemp("engines")

    def run_of(engine: str, world_size: int) -> Path:
        run = folder / f"{engine}-{world_size}"
        if not run.exists():
            train_on_ranks(world_size, config, run, f"engine={engine}", *SETTINGS)
        return run

    return run_of


def assert_equal_to_1e_5(run: Path, reference: Path, first_step: int = 1) -> None:
    """Every number of every row from a step on, evaluation included."""
    got, expected = rows(run), [row for row in rows(reference) if row["step"] >= first_step]
    assert [row.keys() for row in got] == [row.keys() for row in expected]
    for row, other in zip(got, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("engine", "world_size"),
    [("fsdp2", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("zero3", 1), ("zero3", 4), ("fsdp2", 1)],
)
def test_an_engine_trains_as_one_process_with_ddp(run_of: RunOf, engine: str, world_size: int) -> None:
    run = run_of(engine, world_size)
    assert len(rows(run)) == STEPS
    assert [row["step"] for row in rows(run) if "eval/exact_accuracy" in row] == [8, 16, 20]
    assert_equal_to_1e_5(run, run_of("ddp", 1))


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_an_engine_trains_trm_as_one_process_with_ddp(engine: str, config: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, *TRM, "eval_interval=null"]
    train_on_ranks(1, config, tmp_path / "ddp", *settings)
    train_on_ranks(2, config, tmp_path / engine, f"engine={engine}", *settings)
    assert_equal_to_1e_5(tmp_path / engine, tmp_path / "ddp")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("ddp", 1), ("zero2", 2)),
        (("zero1", 2), ("ddp", 1)),
        (("zero2", 2), ("zero3", 4)),
        (("zero3", 4), ("fsdp2", 2)),
        (("fsdp2", 2), ("zero3", 2)),
        (("zero3", 2), ("zero1", 1)),
    ],
)
def test_a_checkpoint_resumes_with_another_engine_on_another_number_of_processes(
    before: tuple[str, int], after: tuple[str, int], run_of: RunOf, config: Path, tmp_path: Path
) -> None:
    engine, world_size = after
    half = run_of(*before) / "checkpoints" / f"step_{STEPS // 2}"
    train_on_ranks(world_size, config, tmp_path / "run", f"engine={engine}", *SETTINGS, f"resume={half}")
    assert_equal_to_1e_5(tmp_path / "run", run_of("ddp", 1), first_step=STEPS // 2 + 1)


@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_after_an_evaluation_with_averaged_weights_training_goes_on_bit_for_bit(
    engine: str, run_of: RunOf, config: Path, tmp_path: Path
) -> None:
    run, reference = tmp_path / "run", run_of(engine, 2)
    train_on_ranks(2, config, run, f"engine={engine}", *SETTINGS, "eval_interval=null")
    assert losses(run) == losses(reference)
    assert digests(run) == digests(reference)


@pytest.mark.parametrize(
    ("engine", "gathers"),
    # Two segments, of which the second (the Q-target) needs no lm_head, and a backward. FSDP2: the recurrence and
    # all else. ZeRO-3: embedding, recurrence, lm_head and q_head.
    [("fsdp2", 2 + 2 + 2), ("zero3", 4 + 3 + 4)],
)
def test_weights_are_gathered_equally_often_however_many_cycles_there_are(
    engine: str, gathers: int, config: Path, tmp_path: Path
) -> None:
    for cycles in (2, 8):
        settings = [f"engine={engine}", f"arch.H_cycles={cycles}", f"arch.L_cycles={cycles}"]
        arguments = [config, *settings]
        name = tmp_path / str(cycles)
        ranks = start_module_ranks(2, name, "tests.distributed.count_collectives", arguments)
        finished = [rank.finish() for rank in ranks]
        assert [rank.exit_code for rank in finished] == [0, 0], finished
        # Nothing else was printed, so neither engine warns of anything.
        assert json.loads(finished[0].output)["_allgather_base_"] == gathers


def test_deepspeed_is_not_imported_before_an_engine_needs_it() -> None:
    code = "import sys, hrm_dist.trainer; sys.exit('deepspeed' in sys.modules)"
    assert command_line("-c", code).exit_code == 0
