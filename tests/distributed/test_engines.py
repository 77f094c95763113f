"""All engines compute the same training run: any number of processes, however weights and batches are cut up."""

import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hrm_dist.checkpoint.reader import open_checkpoint
from hrm_dist.config import ConfigError, load_config
from tests.training import (
    command_line,
    digests,
    losses,
    rows,
    start_module_ranks,
    start_ranks,
    train_on_ranks,
)

pytestmark = pytest.mark.distributed

ENGINES = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]
STEPS = 20
# Evaluations with the averaged weights after steps 8, 16 and 20, of an odd number of inputs, one at a time: ranks have
# unequally many batches. Biases of two numbers are split over four ranks.
SETTINGS = [f"max_steps={STEPS}", "global_batch_size=16", "lr=1e-4", "lr_warmup_steps=0", "ema=true",
            f"checkpoint_interval={STEPS // 2}", "epochs=250", "eval_interval=4", "eval_num_aug=0", "eval_max_groups=5",
            "eval_batch_size=2", "keep_checkpoints=5"]  # fmt: skip
# A TRM of one block and width 32 multiplies a rounding by ten in every segment, see docs/LOG.md; this one does not.
TRM = ["arch.name=trm", "arch.H_layers=0", "arch.L_layers=2", "arch.hidden_size=64", "arch.puzzle_emb_len=2",
       "arch.act_continue=false", "arch.gradient=last_cycle"]  # fmt: skip
URM = ["arch.name=urm", "arch.hidden_size=64", "arch.H_cycles=2", "arch.L_cycles=2"]
LOOPED_TRANSFORMER = ["arch.name=looped_transformer"]
TRANSFORMER = ["arch.name=transformer", "arch.halt_max_steps=1"]
ARCHS = {
    "hrm": [],
    "trm": [*TRM, "eval_interval=null"],
    "urm": [*URM, "eval_interval=null"],
    "transformer": [*TRANSFORMER, "eval_interval=null"],
    "looped_transformer": [*LOOPED_TRANSFORMER, "eval_interval=null"],
}

# Everything that is drawn in training: what the row of the global batch draws, wherever it is computed.
NOISY = ("arch.initial_states=random", "arch.segment_noise=0.1", "arch.update_noise=0.01", "arch.damping=0.95",
         "arch.num_chains=2")  # fmt: skip
RunOf = Callable[..., Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, config: Path) -> RunOf:
    """The run of an engine on a number of processes, made when first asked for."""
    folder = tmp_path_factory.mktemp("engines")

    def run_of(engine: str, world_size: int, arch: str = "hrm", *settings: str) -> Path:
        run = folder / "-".join([engine, str(world_size), arch, *settings])
        if not run.exists():
            train_on_ranks(world_size, config, run, f"engine={engine}", *SETTINGS, *ARCHS[arch], *settings)
        return run

    return run_of


def assert_equal_to_1e_5(run: Path, reference: Path, first_step: int = 1) -> None:
    """Every number of every row from a step on, evaluation included."""
    got, expected = rows(run), [row for row in rows(reference) if row["step"] >= first_step]
    assert [row.keys() for row in got] == [row.keys() for row in expected]
    for row, other in zip(got, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-9)


def in_full(*chosen: tuple[object, ...], of: list[tuple[object, ...]]) -> list[object]:
    """All cases of a matrix, of which `make test` runs the chosen ones."""
    return [case if case in chosen else pytest.param(*case, marks=pytest.mark.full) for case in of]


@pytest.mark.parametrize(
    ("engine", "world_size", "arch"),
    in_full(
        ("fsdp2", 2, "hrm"), ("zero1", 2, "hrm"), ("zero2", 2, "hrm"), ("zero3", 2, "hrm"), ("zero3", 1, "hrm"),
        ("zero3", 4, "hrm"), ("fsdp2", 1, "hrm"), ("zero2", 3, "hrm"), ("fsdp2", 2, "trm"), ("zero3", 2, "trm"),
        ("fsdp2", 2, "urm"), ("zero3", 2, "urm"), ("zero2", 2, "urm"), ("fsdp2", 2, "transformer"),
        ("zero3", 2, "transformer"), ("fsdp2", 2, "looped_transformer"), ("zero3", 2, "looped_transformer"),
        of=[(engine, size, arch) for engine in ENGINES for size in (1, 2, 3, 4) for arch in ARCHS],
    ),
)  # fmt: skip
def test_an_engine_trains_as_one_process_with_ddp(
    run_of: RunOf, engine: str, world_size: int, arch: str
) -> None:
    batch = ("global_batch_size=12",) if world_size == 3 else ()
    run = run_of(engine, world_size, arch, *batch)
    assert len(rows(run)) == STEPS
    if arch == "hrm":
        assert [row["step"] for row in rows(run) if "eval/exact_accuracy" in row][-1] == STEPS
    assert_equal_to_1e_5(run, run_of("ddp", 1, arch, *batch))


UNITS = [(engine, "loop") for engine in ENGINES] + [
    *itertools.product(["zero3", "fsdp2"], ["level", "layer"])
]
CUTS = [(*unit, num_parts, again) for unit in UNITS for num_parts in (1, 2, 4) for again in (False, True)]
CHOSEN_CUTS = [
    ("fsdp2", "layer", 1, False), ("zero3", "level", 1, False), ("ddp", "loop", 4, False), ("zero2", "loop", 2, False),
    ("zero3", "layer", 2, True), ("fsdp2", "level", 2, True),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "unit", "num_parts", "again"), in_full(*CHOSEN_CUTS, of=CUTS))
def test_however_weights_are_gathered_and_a_batch_is_cut_the_run_is_the_same(
    run_of: RunOf, engine: str, unit: str, num_parts: int, again: bool
) -> None:
    settings = [
        f"gather_unit={unit}",
        f"gradient_accumulation_steps={num_parts}",
        f"activation_checkpointing={again}",
    ]
    assert_equal_to_1e_5(run_of(engine, 2, "hrm", *settings), run_of("ddp", 1))


@pytest.mark.parametrize("gradient", ["last_cycle", "bptt"])
@pytest.mark.parametrize(
    ("engine", "unit"), in_full(("fsdp2", "level"), ("zero3", "layer"), ("zero3", "loop"),
                                of=[(e, u) for e in ("fsdp2", "zero3") for u in ("loop", "level", "layer")])
)  # fmt: skip
def test_units_that_carry_gradient_several_times_in_a_segment_give_the_same_run(
    run_of: RunOf, engine: str, unit: str, gradient: str
) -> None:
    settings = [f"arch.gradient={gradient}", "eval_interval=null"]
    run = run_of(engine, 2, "hrm", *settings, f"gather_unit={unit}")
    assert_equal_to_1e_5(run, run_of("ddp", 1, "hrm", *settings))


@pytest.mark.parametrize(
    ("engine", "world_size", "arch"),
    in_full(
        ("ddp", 2, "hrm"), ("zero1", 2, "hrm"), ("zero2", 2, "urm"), ("zero3", 2, "hrm"), ("fsdp2", 4, "hrm"),
        ("fsdp2", 2, "urm"),
        of=[(engine, size, arch) for engine in ENGINES for size in (1, 2, 4) for arch in ("hrm", "trm", "urm")],
    ),
)  # fmt: skip
def test_padding_is_skipped_by_all_engines_alike(
    run_of: RunOf, engine: str, world_size: int, arch: str
) -> None:
    reference = run_of("ddp", 1, arch, "padding=skip")
    assert_equal_to_1e_5(run_of(engine, world_size, arch, "padding=skip"), reference)
    assert losses(reference) != pytest.approx(losses(run_of("ddp", 1, arch)), rel=1e-3)


@pytest.mark.parametrize(
    ("engine", "world_size", "arch", "more"),
    in_full(
        ("ddp", 2, "hrm", ("gradient_accumulation_steps=2",)), ("fsdp2", 2, "hrm", ()), ("zero3", 2, "trm", ()),
        ("ddp", 2, "hrm", ("padding=skip",)),
        of=[*itertools.product(ENGINES, (2, 4), ("hrm", "trm", "urm"), [()]),
            ("ddp", 2, "hrm", ("gradient_accumulation_steps=2",)), ("ddp", 2, "hrm", ("padding=skip",))],
    ),
)  # fmt: skip
def test_noise_and_chains_are_the_same_however_a_batch_is_shared(
    run_of: RunOf, engine: str, world_size: int, arch: str, more: tuple[str, ...]
) -> None:
    padding = [setting for setting in more if setting.startswith("padding")]
    reference = run_of("ddp", 1, arch, *NOISY, *padding)
    assert_equal_to_1e_5(run_of(engine, world_size, arch, *NOISY, *more), reference)
    assert losses(reference) != pytest.approx(losses(run_of("ddp", 1, arch, *padding)), rel=1e-3)


@pytest.mark.parametrize(("engine", "world_size"), [("zero2", 2), ("fsdp2", 4)])
def test_two_hundred_steps_stay_within_a_thousandth(run_of: RunOf, engine: str, world_size: int) -> None:
    settings = ["max_steps=200", "eval_interval=null"]
    run, reference = run_of(engine, world_size, "hrm", *settings), run_of("ddp", 1, "hrm", *settings)
    assert losses(run) == pytest.approx(losses(reference), rel=1e-3)
    assert len(losses(run)) == 200


@pytest.mark.parametrize(
    "arch", [arch if arch in ("hrm", "trm") else pytest.param(arch, marks=pytest.mark.full) for arch in ARCHS]
)
@pytest.mark.parametrize(
    ("engine", "world_size"),
    in_full(
        ("ddp", 2), ("zero2", 2), ("zero3", 4), ("fsdp2", 2), of=[(e, w) for e in ENGINES for w in (2, 4)]
    ),
)
def test_the_gradient_of_the_first_step_is_that_of_one_process(
    run_of: RunOf, engine: str, world_size: int, arch: str
) -> None:
    settings = ("max_steps=1", "eval_interval=null")
    ours, theirs = (
        open_checkpoint(run_of(*which, arch, *settings) / "checkpoints" / "latest")
        for which in ((engine, world_size), ("ddp", 1))
    )
    # After one step exp_avg is a tenth of the gradient.
    for key in [key for key in theirs.shapes if key.startswith("exp_avg.")]:
        gradient, expected = ours.tensor(key), theirs.tensor(key)
        assert (gradient - expected).norm() <= 1e-5 * expected.norm(), key
    # The table moves by a fixed amount along the gradient's sign. It may differ where a gradient vanishes but
    # for rounding; of these few numbers, none.
    table = "model.puzzle_emb.weights"
    torch.testing.assert_close(ours.tensor(table), theirs.tensor(table), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("engine", "world_size"), [("ddp", 2), ("zero1", 2), ("zero3", 2), ("fsdp2", 2)])
def test_bf16_differs_by_its_rounding(run_of: RunOf, engine: str, world_size: int) -> None:
    """A bfloat16 has 8 significant bits, so rounding to it changes a number by up to 2 ** -8 of itself.

    On the mean, as a single loss jumps where a sequence is right, or halts, a step earlier (see docs/LOG.md).
    """
    settings = ("precision=bf16", "eval_interval=null")
    run, reference = run_of(engine, world_size, "hrm", *settings), run_of("ddp", 1, "hrm", *settings)
    fp32 = losses(run_of("ddp", 1, "hrm", "eval_interval=null"))
    mean, expected = (statistics.mean(losses(of).values()) for of in (run, reference))
    assert mean == pytest.approx(expected, rel=2**-8)
    differences = [abs(loss - fp32[step]) / fp32[step] for step, loss in losses(run).items()]
    assert statistics.median(differences) > 1e-5  # it is not float32 that was run


@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_after_an_evaluation_with_averaged_weights_training_goes_on_bit_for_bit(
    engine: str, run_of: RunOf
) -> None:
    run, reference = run_of(engine, 2, "hrm", "eval_interval=null"), run_of(engine, 2)
    assert losses(run) == losses(reference)
    assert digests(run) == digests(reference)


# Two segments, of which the second (the Q-target) needs no lm_head, and a backward. FSDP2: the recurrence and all
# else. ZeRO-3: embedding, recurrence, lm_head and q_head.
GATHERS = {"fsdp2": 2 + 2 + 2, "zero3": 4 + 3 + 4}


def num_gathers(config: Path, folder: Path, engine: str, unit: str, cycles: int) -> int:
    """All-gathers of weights in a training step on two processes."""
    settings = [f"engine={engine}", f"gather_unit={unit}", "arch.L_layers=2"]
    arguments = [config, *settings, f"arch.H_cycles={cycles}", f"arch.L_cycles={cycles}"]
    ranks = start_module_ranks(
        2, folder / f"{unit}{cycles}", "tests.distributed.count_collectives", arguments
    )
    finished = [rank.finish() for rank in ranks]
    assert [rank.exit_code for rank in finished] == [0, 0], finished
    # Nothing else was printed, so neither engine warns of anything.
    counted = json.loads(finished[0].output)
    assert counted["waits"] == 0, "the engine waited for the device"
    return counted["calls"]["_allgather_base_"]


@pytest.mark.parametrize("engine", GATHERS)
def test_weights_are_gathered_equally_often_however_many_cycles_there_are(
    engine: str, config: Path, tmp_path: Path
) -> None:
    assert num_gathers(config, tmp_path, engine, "loop", 2) == GATHERS[engine]
    assert num_gathers(config, tmp_path, engine, "loop", 8) == GATHERS[engine]


@pytest.mark.parametrize("engine", GATHERS)
def test_smaller_units_are_gathered_once_for_every_update(engine: str, config: Path, tmp_path: Path) -> None:
    # A level is gathered in each of its updates, twice with the Q-target's segment, and once in the backward.
    updates = {cycles: cycles * (cycles + 1) for cycles in (2, 8)}
    outside = GATHERS[engine] - 3
    for cycles in (2, 8):
        assert num_gathers(config, tmp_path, engine, "level", cycles) == outside + 2 * updates[cycles] + 2
    # Of the three blocks, L has two.
    blocks = 2 * 2 * 2 + 2
    expected = outside + 2 * blocks + 3
    # FSDP2 gathers one of them ahead of time and in vain, as a Q-target's segment comes before the backward.
    assert expected <= num_gathers(config, tmp_path, engine, "layer", 2) <= expected + 1


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_an_engine_that_splits_weights_never_has_them_whole(
    engine: str, config: Path, tmp_path: Path
) -> None:
    settings = [f"engine={engine}", "arch.H_layers=4", "arch.L_layers=4"]
    ranks = start_module_ranks(4, tmp_path / "run", "tests.distributed.construct", [config, *settings])
    results = [json.loads(rank.finish().output.splitlines()[-1]) for rank in ranks]
    assert sum(result["own"] for result in results) == results[0]["whole"]
    for result in results:
        # A quarter, what rounding up adds to it, and the tensors of one module.
        assert result["peak"] <= 0.3 * result["whole"] + 2 * result["largest"]
        assert result["largest"] < 0.1 * result["whole"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [("gradient_accumulation_steps=3", "gradient_accumulation_steps=3: the 8 sequences of a process")],
)
def test_a_batch_that_does_not_divide_into_parts_is_refused(
    override: str, reason: str, config: Path, tmp_path: Path
) -> None:
    [finished] = [rank.finish() for rank in start_ranks(1, config, tmp_path / "run", override)]
    assert finished.exit_code == 2
    assert reason in finished.output
    assert not (tmp_path / "run").exists()


def test_an_unknown_engine_is_refused_with_the_known_ones(config: Path) -> None:
    with pytest.raises(ConfigError, match="'ddp', 'zero1', 'zero2', 'zero3' or 'fsdp2'"):
        load_config(config, ["engine=zero4"])


def test_deepspeed_is_not_imported_before_an_engine_needs_it() -> None:
    code = "import sys, hrm_dist.trainer; sys.exit('deepspeed' in sys.modules)"
    assert command_line("-c", code).exit_code == 0
