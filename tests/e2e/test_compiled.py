"""Compiled training against eager training, and how often anything is compiled."""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from hrm_dist.evaluation.predictions import Predictions, read_prediction_file
from hrm_dist.train import main
from hrm_dist.trainer import Trainer
from tests.training import command_line, losses, rows, train
from tools import evaluate

# torch's compiler warns of what it does itself.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]

SETTINGS = ["lr=1e-4", "lr_warmup_steps=3", "eval_interval=1", "epochs=250", "checkpoint_interval=5"]
SETTINGS += ["gradient_accumulation_steps=2", "eval_batch_size=4", "ema=true"]


class Runs(NamedTuple):
    """Two runs of the same settings, the compiled one in two goes."""

    folder: Path
    num_graphs: dict[str, list[int]]
    """By the run's name: after each step, how many graphs were compiled since it started."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Runs:
    run = tmp_path_factory.mktemp("compiled")
    counted: dict[str, list[int]] = {}
    original = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        for name, compiles, lengths in (("eager", "false", (20,)), ("compiled", "true", (12, 20))):
            counts = counted[name] = []

            def train_step(self: Trainer, batch: dict[str, torch.Tensor], counts: list[int] = counts) -> None:
                original(self, batch)
                counts.append(counters["stats"]["unique_graphs"])

            patch.setattr(Trainer, "train_step", train_step)
            for max_steps in lengths:
                settings = [f"compile={compiles}", f"max_steps={max_steps}", f"checkpoint_path={run / name}"]
                torch._dynamo.reset()
                counters.clear()
                assert main([str(config), *SETTINGS, *settings]) == 0
    return Runs(run, counted)


def test_compiled_training_is_eager_training_to_rounding(runs: Runs) -> None:
    eager, compiled = (rows(runs.folder / name) for name in ("eager", "compiled"))
    assert [row["step"] for row in eager] == [row["step"] for row in compiled]
    for one, other in zip(eager, compiled, strict=True):
        for key in ("train/loss", "train/lm_loss", "eval/cell_accuracy"):
            if key in one:
                assert math.isclose(one[key], other[key], rel_tol=1e-5), (one["step"], key)


def test_nothing_is_compiled_after_the_second_step(runs: Runs) -> None:
    """Not by halting, a row, an evaluation, a checkpoint, or in the second process of a run."""
    counts = runs.num_graphs["compiled"]
    assert len(counts) == 20
    assert counts[1] > 0
    assert set(counts[1:12]) == {counts[1]}
    assert set(counts[13:]) == {counts[13]}
    assert not any(runs.num_graphs["eager"])


@pytest.mark.parametrize(
    "settings",
    [
        "engine=fsdp2 gather_unit=layer activation_checkpointing=true",
        pytest.param("engine=zero3 gather_unit=layer", marks=pytest.mark.full),
        pytest.param("engine=zero3 gather_unit=level", marks=pytest.mark.full),
        pytest.param("engine=zero2", marks=pytest.mark.full),
        pytest.param("engine=fsdp2 arch.gradient=bptt", marks=pytest.mark.full),
    ],
)
def test_what_engines_hook_into_is_compiled_all_the_same(
    settings: str, runs: Runs, config: Path, tmp_path: Path
) -> None:
    if "bptt" in settings:
        reference = train(config, tmp_path / "eager", *SETTINGS, "arch.gradient=bptt", "max_steps=3")
        assert reference.exit_code == 0, reference.output
    arguments = [
        *SETTINGS,
        *settings.split(),
        "compile=true",
        "max_steps=3",
        f"checkpoint_path={tmp_path / 'run'}",
    ]
    finished = command_line("-m", "hrm_dist.train", config, *arguments)
    assert finished.exit_code == 0, finished.output
    expected = losses(tmp_path / "eager" if "bptt" in settings else runs.folder / "eager")
    assert losses(tmp_path / "run") == pytest.approx({step: expected[step] for step in (1, 2, 3)}, rel=1e-5)


def test_a_compiled_evaluation_predicts_what_an_eager_one_does(
    runs: Runs, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    predicted: list[Predictions] = []
    for compiles in ("--no-compile", "--compile"):
        out = runs.folder / compiles
        arguments = [
            runs.folder / "eager" / "checkpoints" / "latest",
            "--data",
            dataset,
            "--out",
            out,
            compiles,
        ]
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        assert evaluate.main() == 0
        predicted.append(read_prediction_file(out / "predictions_00000.npz"))
        says_so = "compiling: the first batch takes" in capsys.readouterr().err
        assert says_so == (compiles == "--compile")
    eager, compiled = predicted
    np.testing.assert_allclose(compiled.q_halt_logits, eager.q_halt_logits, rtol=1e-3, atol=1e-4)
    assert (compiled.preds == eager.preds).mean() > 0.999
