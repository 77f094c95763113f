"""Training steps on a GPU: recorded as a CUDA graph against plain ones, and what they ask of host and memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.trainer import Trainer
from tests.unit.models import METADATA, arch_of, let_halting_vary
from tools.bench_train.speed import RandomReader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]
NUM_STEPS = 16  # more than run before the record
VARIANTS: dict[str, dict[str, Any]] = {
    "hrm": {"arch": arch_of("hrm")},
    "bf16": {"arch": arch_of("hrm", forward_dtype="bfloat16"), "precision": "bf16"},
    "trm": {"arch": arch_of("trm"), "ema": True},
    "parts": {"arch": arch_of("hrm"), "gradient_accumulation_steps": 2},
    "recomputed": {"arch": arch_of("hrm"), "activation_checkpointing": True},
}


def trainer_of(metadata: DatasetMetadata = METADATA, **fields: Any) -> Trainer:
    values = {
        "data_path": "none",
        "precision": "fp32",
        "global_batch_size": 4,
        "lr_warmup_steps": 50,
        "compile": False,
    }
    world = World(0, 1, torch.device("cuda", 0))
    trainer = Trainer(TrainConfig.model_validate(values | fields), world, RandomReader(metadata, 4, world))
    let_halting_vary(trainer.model)
    return trainer


def steps(trainer: Trainer, num: int) -> Trainer:
    for _ in range(num):
        trainer.train_step(trainer.reader.batch(trainer.state.step))
    return trainer


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process, in which the engine uses DDP as with several."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def plain_and_recorded(**fields: Any) -> tuple[Trainer, Trainer]:
    plain = steps(trainer_of(cuda_graph="off", **fields), NUM_STEPS)
    recorded = steps(trainer_of(cuda_graph="on", **fields), NUM_STEPS)
    assert recorded._step.is_recorded
    assert not plain._step.is_recorded
    assert recorded.engine.num_updates() == plain.engine.num_updates() == NUM_STEPS
    return plain, recorded


def assert_recorded_equals_plain(**fields: Any) -> None:
    plain, recorded = plain_and_recorded(**fields)
    shards = zip(plain.state.tensor_shards(), recorded.state.tensor_shards(), strict=True)
    for one, other in shards:
        torch.testing.assert_close(one.data, other.data, rtol=1e-4, atol=1e-5, msg=one.key)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_recorded_steps_equal_plain_ones(fields: dict[str, Any]) -> None:
    assert_recorded_equals_plain(**fields)


def test_recorded_compiled_steps_differ_no_more_than_plain_ones_do_among_themselves() -> None:
    """Weight by weight, as for steps that are not compiled, beyond what two plain runs differ by.

    Compared to the tolerances of those alone, it failed on an H200; why is not known yet.
    """
    fields: dict[str, Any] = {"arch": arch_of("hrm"), "compile": True}
    plain, recorded = plain_and_recorded(**fields)
    again = steps(trainer_of(cuda_graph="off", **fields), NUM_STEPS)
    runs = (trainer.state.tensor_shards() for trainer in (plain, recorded, again))
    for one, other, repeated in zip(*runs, strict=True):
        spread = (one.data.double() - repeated.data.double()).abs().max().item()
        torch.testing.assert_close(one.data, other.data, rtol=1e-4, atol=max(1e-5, 2 * spread), msg=one.key)


@pytest.mark.usefixtures("group")
def test_recorded_steps_of_a_group_equal_those_of_ddp() -> None:
    assert_recorded_equals_plain(arch=arch_of("hrm"))


@pytest.mark.parametrize("cuda_graph", ["off", "on"])
def test_a_step_never_waits_for_the_device(cuda_graph: str) -> None:
    trainer = steps(trainer_of(arch=arch_of("hrm"), cuda_graph=cuda_graph), NUM_STEPS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(trainer, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.engine.num_updates() == NUM_STEPS + 3
    assert trainer._step.is_recorded == (cuda_graph == "on")


@pytest.mark.parametrize("compiles", [False, True])
def test_a_step_copies_no_puzzle_table(compiles: bool) -> None:
    metadata = METADATA.model_copy(update={"num_puzzle_identifiers": 2**22})
    trainer = trainer_of(metadata, arch=arch_of("hrm"), compile=compiles)
    assert trainer.model.puzzle_emb is not None
    table_bytes = trainer.model.puzzle_emb.weights.nbytes
    assert table_bytes >= 2**29
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    steps(trainer, NUM_STEPS)
    assert torch.cuda.max_memory_allocated() - before < table_bytes / 4
