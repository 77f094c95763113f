"""A run that computes no padding: its steps, what a resume changes, its evaluations, and what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.build import build
from data_pipeline.grid_puzzles.sudoku.kind import SUDOKU
from data_pipeline.reader import TestReader
from data_pipeline.schema import load_dataset_info
from data_pipeline.shards.plan import Request
from hrm_dist import train_step
from hrm_dist.config import ConfigError, load_config
from hrm_dist.distributed.process_group import World
from hrm_dist.evaluation.evaluate import answer
from hrm_dist.evaluation.load_model import load_model
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.model.act import ACTModel
from hrm_dist.packed_sizes import PackedSize
from hrm_dist.train import main as train_main
from hrm_dist.trainer import Trainer
from tests.training import rows
from tests.unit.test_train_step import READS, Operations
from tools.convert.export import export_weights

CPU = torch.device("cpu")
NUM_POSITIONS = 37  # 36 cells and the puzzle


def trainer_of(config: Path, *settings: str) -> Trainer:
    return Trainer(load_config(config, ["padding=skip", *settings]), World(0, 1, CPU))


def losses_of(trainer: Trainer, steps: int = 6) -> list[float]:
    found: list[float] = []
    for _ in range(steps):
        trainer.train_step(trainer.reader.batch(trainer.state.step))
        found.append(float(trainer.state.sums.row(trainer.config.global_batch_size)["train/loss"]))
    return found


def with_sizes(monkeypatch: pytest.MonkeyPatch, sizes: Sequence[PackedSize]) -> None:
    monkeypatch.setattr("hrm_dist.trainer.training_sizes", lambda *_: tuple(sizes))


def sizes_used(monkeypatch: pytest.MonkeyPatch) -> list[PackedSize]:
    used: list[PackedSize] = []
    compute = train_step.TrainStep.device_part

    def note(self: train_step.TrainStep, size: PackedSize) -> None:
        used.append(size)
        compute(self, size)

    monkeypatch.setattr(train_step.TrainStep, "device_part", note)
    return used


def test_the_size_of_a_packed_batch_changes_a_run_by_rounding_alone(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = sizes_used(monkeypatch)
    found = losses_of(trainer_of(config))
    assert all(size.num_rows < 8 * NUM_POSITIONS for size in used)
    for sizes in ([PackedSize(8 * NUM_POSITIONS, 1)], [PackedSize(64, 1), PackedSize(2 * NUM_POSITIONS, 4)]):
        with_sizes(monkeypatch, sizes)
        used.clear()
        assert losses_of(trainer_of(config)) == pytest.approx(found, rel=1e-4)
        assert set(used) == {sizes[-1]}  # the first of two has room for none of these batches


def test_a_run_that_skips_padding_is_another_than_one_that_computes_it(config: Path) -> None:
    kept = Trainer(load_config(config), World(0, 1, CPU))
    assert losses_of(trainer_of(config))[-1] != pytest.approx(losses_of(kept)[-1], rel=1e-4)


def test_every_step_has_room_for_what_it_computes(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(config, "global_batch_size=4")
    sizes, forward = trainer._step._sizes, ACTModel.forward
    room: list[tuple[int, int]] = []

    def note(self: ACTModel, carry: Any, batch: Any, least: Any, num_rows: int, keys: Any) -> Any:
        carry, outputs = forward(self, carry, batch, least, num_rows, keys)
        room.append((int(self.lengths(carry.current_data).sum()), num_rows))
        return carry, outputs

    monkeypatch.setattr(ACTModel, "forward", note)
    losses_of(trainer, steps=40)
    assert all(needed <= num_rows for needed, num_rows in room)
    assert len({num_rows for _, num_rows in room}) > 1
    # None of the smaller ones would have done, but in parts of a batch, which are there for what fits nowhere.
    of_batch = {size.num_rows for size in sizes if size.num_micro_batches == 1}
    for needed, num_rows in room:
        smaller = max((number for number in of_batch if number < num_rows), default=0)
        assert num_rows not in of_batch or needed > smaller


def test_the_host_reads_one_number_a_step(config: Path) -> None:
    trainer = trainer_of(config)
    losses_of(trainer, steps=2)
    batch = trainer.reader.batch(2)
    with Operations() as operations:
        trainer.train_step(batch)
    attention = [name for name in operations.names if name == "attend_one_by_one"]
    assert attention  # which reads where sequences begin, on a CPU, where there is nobody to wait for
    assert [name for name in operations.names if name in READS] == ["_local_scalar_dense"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("default")  # of torch's compiler
@pytest.mark.parametrize("compiles", ["false", "true"])
def test_recorded_steps_of_packed_batches_equal_plain_ones(config: Path, compiles: str) -> None:
    settings = ["padding=skip", "device=cuda", "precision=bf16", f"compile={compiles}"]
    found: list[list[float]] = []
    for recorded in ("off", "on"):
        run = load_config(config, [*settings, f"cuda_graph={recorded}"])
        trainer = Trainer(run, World(0, 1, torch.device("cuda", 0)))
        trainer._step.warm_up_backward(trainer.reader.batch(0))
        found.append(losses_of(trainer, steps=40))
        assert trainer._step.is_recorded == (recorded == "on")
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize(("before", "after"), [("keep", "skip"), ("skip", "keep")])
def test_a_run_may_change_whether_it_skips_padding(
    before: str, after: str, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [str(config), f"checkpoint_path={run}"]
    assert train_main([*command, "max_steps=3", f"padding={before}"]) == 0
    assert train_main([*command, "max_steps=6", f"padding={after}"]) == 0
    assert len(rows(run)) == 6
    [change] = [json.loads(line) for line in (run / "config_changes.jsonl").read_text().splitlines()]
    assert change["changes"]["padding"] == [before, after]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    settings = ["max_steps=30", "padding=skip", "eval_interval=8", "eval_num_aug=1"]
    assert train_main([str(config), f"checkpoint_path={run}", *settings]) == 0
    return run


@pytest.mark.parametrize("num_slots", [1, 3, 10])
def test_answers_do_not_depend_on_the_number_of_slots(trained: Path, dataset: Path, num_slots: int) -> None:
    reader = TestReader(dataset, num_aug=1)
    model = load_model(trained / "checkpoints" / "latest", dataset, reader.info.metadata("train"), ema=False)
    assert model.windows is not None

    def answers(slots: int) -> list[np.ndarray]:
        segment = EvaluationSegment(model, slots, CPU)
        found = [batch.predictions for batch in answer(segment, reader.batches(slots))]
        return [np.concatenate([getattr(p, name) for p in found]) for name in ("preds", "q_halt_logits")]

    preds, q = answers(len(reader))
    found_preds, found_q = answers(num_slots)
    assert np.array_equal(found_preds, preds)
    np.testing.assert_allclose(found_q, q, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_evaluations_of_packed_batches_equal_plain_ones(trained: Path, dataset: Path) -> None:
    reader, device = TestReader(dataset), torch.device("cuda", 0)
    metadata = reader.info.metadata("train")
    model = load_model(trained / "checkpoints" / "latest", dataset, metadata, ema=False, device=device)
    found: list[np.ndarray] = []
    for records in (False, True):
        segment = EvaluationSegment(model, 4, device, records=records)
        found.append(
            np.concatenate([batch.predictions.preds for batch in answer(segment, reader.batches(4))])
        )
    assert np.array_equal(*found)


def test_a_checkpoint_predicts_no_more_than_the_window(trained: Path, dataset: Path) -> None:
    reader = TestReader(dataset)
    model = load_model(trained / "checkpoints" / "latest", dataset, reader.info.metadata("train"), ema=False)
    assert model.windows is not None
    [batch] = list(reader.batches(len(reader)))
    [found] = answer(EvaluationSegment(model, len(reader), CPU), [batch])
    sizes = model.windows[batch["puzzle_identifiers"]].long()
    cells = torch.arange(6)
    inside = (cells[:, None] < sizes[:, 0, None, None]) & (cells < sizes[:, 1, None, None])
    assert not inside.all()
    assert not found.predictions.preds[~inside.flatten(1).numpy()].any()


def test_skipped_padding_is_refused_where_all_positions_mix(config: Path) -> None:
    settings = ["padding=skip", "arch.name=trm", "arch.H_layers=0", "arch.mlp_t=true"]
    with pytest.raises(ConfigError, match=r"padding=skip: arch\.mlp_t=true mixes all positions"):
        load_config(config, settings)


def test_a_kernel_of_equally_long_sequences_is_refused_with_skipped_padding(config: Path) -> None:
    with pytest.raises(ConfigError, match="attention=math: padding=skip has sequences of different length"):
        load_config(config, ["padding=skip", "attention=math"])


def test_skipped_padding_is_refused_for_puzzles_without_windows(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sudoku = tmp_path / "sudoku"
    build_main(sudoku)
    run = tmp_path / "run"
    command = [str(config), f"data_path={sudoku}", f"checkpoint_path={run}", "padding=skip"]
    assert exit_code(lambda: train_main(command)) == 2
    assert f"{sudoku}: is of kind sudoku, whose puzzles fill the canvas" in capsys.readouterr().err
    assert not run.exists()


def build_main(out: Path) -> None:
    options = SUDOKU.options.from_given(
        {"side": 4, "num_train": 4, "num_test": 2}, "--source", has_source=False
    )
    build(Request("sudoku", [], out, options, seed=0, workers=1, quiet=True))


def test_windows_that_changed_are_told_at_a_resume(
    trained: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    monkeypatch.setattr("hrm_dist.checkpoint.resume.windows_digest", lambda _: {"windows": "others"})
    settings = ["max_steps=31", "padding=skip", "eval_interval=8", "eval_num_aug=1"]
    with caplog.at_level("INFO"):
        assert train_main([str(config), f"checkpoint_path={run}", *settings]) == 0
    assert "now others" in caplog.text


def test_a_checkpoint_is_not_evaluated_with_other_windows_than_in_training(
    trained: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = load_dataset_info(dataset)
    for documents, said in (
        ({}, "has no windows.json, since an earlier version built it"),
        ({"windows.json": "0" * 64}, "other windows than those of"),
    ):
        changed = info.model_copy(update={"documents": documents})
        monkeypatch.setattr("hrm_dist.evaluation.load_model.load_dataset_info", lambda _, info=changed: info)
        with pytest.raises(InputError, match=f"was trained with padding=skip.*{said}"):
            load_model(trained / "checkpoints" / "latest", dataset, info.metadata("train"), ema=False)


def test_an_export_tells_that_padding_was_skipped(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    said = export_weights(trained / "checkpoints" / "latest", out, None, ema=False)
    assert "padding=skip" in said
    with safe_open(out, "pt") as file:
        assert file.metadata()["padding"] == "skip"
