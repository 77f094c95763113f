"""A training step as a function of tensors at fixed places: what it reads, what it asks the host, what is constant."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hrm_dist.config import ConfigError, TrainConfig
from hrm_dist.cuda_graph import HostInputs, Spec, why_plain
from hrm_dist.distributed.process_group import World
from hrm_dist.model.act import segment_keys
from hrm_dist.trainer import Trainer
from tests.unit.models import METADATA, arch_of, let_halting_vary
from tools.bench_train.speed import RandomReader

# What needs a value of the device on the host, for itself or for the shape of its result.
READS = (
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount",
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "hrm": {"arch": arch_of("hrm")},
    "trm": {"arch": arch_of("trm"), "ema": True},
    "urm": {"arch": arch_of("urm")},
    "transformer": {"arch": arch_of("transformer")},
    "parts": {"arch": arch_of("hrm"), "ema": True, "gradient_accumulation_steps": 2},
    "random": {
        "arch": arch_of("trm", initial_states="random", segment_noise=0.1, update_noise=0.1, num_chains=2)
    },
    "recomputed": {"arch": arch_of("hrm"), "activation_checkpointing": True},
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


def trainer_of(**fields: Any) -> Trainer:
    values = {
        "data_path": "none",
        "precision": "fp32",
        "global_batch_size": 4,
        "lr_warmup_steps": 50,
        **fields,
    }
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(TrainConfig.model_validate(values), world, RandomReader(METADATA, 4, world))
    let_halting_vary(trainer.model)
    return trainer


def step(trainer: Trainer) -> None:
    trainer.train_step(trainer.reader.batch(trainer.state.step))


class Operations(TorchDispatchMode):
    """Note every operation with what it was given: of tensors shape and type, everything else as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.calls: list[Any] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        namespace, name, *_ = str(func).split(".")
        if namespace != "profiler":
            self.names.append(name)
            self.calls.append((str(func), tree_map(_described, (args, dict(kwargs or {})))))
        return func(*args, **(kwargs or {}))


def _described(value: object) -> object:
    return (value.dtype, tuple(value.shape), value.stride()) if isinstance(value, Tensor) else value


@variants
def test_a_step_reads_nothing_back_from_the_device(fields: dict[str, Any]) -> None:
    trainer = trainer_of(**fields)
    step(trainer)
    with Operations() as operations:
        step(trainer)
    assert "copy_" in operations.names
    assert not set(operations.names) & set(READS)


@variants
def test_two_steps_are_the_same_operations_constants_included(fields: dict[str, Any]) -> None:
    trainer = trainer_of(**fields)
    step(trainer)
    step(trainer)  # names of metrics are known, moments are made
    calls = []
    for _ in range(2):
        before = trainer.state.carry.steps.clone()
        trainer.state.step += 1
        trainer._step._fill(trainer.reader.batch(0), trainer.state.step, *(lr_of(trainer, k) for k in (0, 1)))
        with Operations() as operations:
            trainer._step.device_part(trainer._step._size_of_step())
        calls.append(operations.calls)
        if trainer.config.arch.halt_max_steps > 1:
            assert not torch.equal(trainer.state.carry.steps, before)
    assert lr_of(trainer, 0) != trainer.schedule.lr(trainer.state.step - 1)
    assert calls[0] == calls[1]


def lr_of(trainer: Trainer, which: int) -> float:
    schedule = trainer.schedule
    return (schedule.lr, schedule.table_lr)[which](trainer.state.step)


@variants
def test_what_changes_in_a_step_stays_at_its_place(fields: dict[str, Any]) -> None:
    trainer = trainer_of(**fields)
    step(trainer)
    step(trainer)
    before = {shard.key: shard.data.data_ptr() for shard in trainer.state.tensor_shards()}
    step(trainer)
    after = {shard.key: shard.data.data_ptr() for shard in trainer.state.tensor_shards()}
    before.pop("rank.rng_cpu.0")
    assert before.items() <= after.items()


def test_steps_of_the_table_alone_leave_weights_and_their_average_as_they_are() -> None:
    trainer = trainer_of(
        arch=arch_of("trm"), ema=True, ema_rate=0.5, table_only_steps=2, lr_warmup_steps=0, weight_decay=1.0
    )

    def now() -> dict[str, Tensor]:
        shards = trainer.state.tensor_shards()
        return {f"{shard.key} {shard.offset}": shard.data.clone() for shard in shards}

    before = now()
    trained = [key for key in before if key.startswith(("model.network", "ema."))]
    [table] = [key for key in before if key.startswith("model.puzzle_emb")]
    for _ in range(2):
        step(trainer)
        assert all(torch.equal(before[key], now()[key]) for key in trained)
    assert not torch.equal(before[table], now()[table])
    step(trainer)
    assert not any(torch.equal(before[key], now()[key]) for key in trained if "weight" in key)


def test_inputs_take_what_the_host_gives() -> None:
    specs = {"a": Spec((2, 3), torch.uint8), "b": Spec((), torch.float64), "c": Spec((2,), torch.int32)}
    inputs = HostInputs(specs, torch.device("cpu"))
    places = [tensor.data_ptr() for tensor in inputs.tensors.values()]
    for start in range(3):
        values = {
            "a": torch.arange(start, start + 6, dtype=torch.uint8).view(2, 3),
            "b": torch.tensor(0.1 + start, dtype=torch.float64),
            "c": torch.tensor([-start, 2**30], dtype=torch.int32),
        }
        inputs.fill(values)
        assert all(torch.equal(inputs[name], value) for name, value in values.items())
    assert [tensor.data_ptr() for tensor in inputs.tensors.values()] == places


@pytest.mark.parametrize(
    ("fields", "device_type", "world_size", "reason"),
    [
        ({}, "cuda", 1, None),
        ({}, "cpu", 1, "the device is cpu"),
        ({}, "cuda", 8, "8 processes"),
        ({"cuda_graph": "on"}, "cuda", 8, None),
        ({"cuda_graph": "off"}, "cuda", 1, "cuda_graph=off"),
        ({"engine": "fsdp2"}, "cuda", 1, "engine=fsdp2"),
        ({"engine": "zero1"}, "cuda", 1, "engine=zero1"),
        ({"puzzle_emb_device": "cpu"}, "cuda", 1, "puzzle_emb_device=cpu"),
    ],
)
def test_settings_tell_whether_a_step_is_recorded(
    fields: dict[str, Any], device_type: str, world_size: int, reason: str | None
) -> None:
    why = why_plain(TrainConfig.model_validate({"data_path": "-", **fields}), device_type, world_size)
    assert (why is None) == (reason is None)
    assert why is None or reason in why  # type: ignore[operator]


def test_what_cannot_be_recorded_is_refused_where_it_was_asked_for() -> None:
    config = TrainConfig.model_validate({"data_path": "-", "engine": "zero3", "cuda_graph": True})
    with pytest.raises(ConfigError, match="cuda_graph=on: not with engine=zero3"):
        why_plain(config, "cuda", 1)


def test_noise_follows_from_the_step_in_training() -> None:
    trainer = trainer_of(arch=arch_of("trm", segment_noise=0.1), seed=3)
    keys: list[Tensor] = []
    trainer.model.register_forward_pre_hook(lambda _, given: keys.append(given[4].clone()))
    for number in range(2):
        step(trainer)
        assert keys[number].tolist() == segment_keys(3, number, 4).tolist()
