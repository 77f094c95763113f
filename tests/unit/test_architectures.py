"""What holds for every architecture, since everything reads its description."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hrm_dist.checkpoint import reader
from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.config.architectures import ARCHITECTURES
from hrm_dist.distributed.process_group import World
from hrm_dist.model import build_model
from hrm_dist.model.layers import Level
from hrm_dist.model.memory_estimate import num_parameters
from hrm_dist.model.network import RECURRENCES
from hrm_dist.model.released import convert_released, published_name
from hrm_dist.train import main as train
from hrm_dist.trainer import Trainer
from tests.training import digests
from tests.unit.models import METADATA, arch_of, random_batch
from tools.bench_train.speed import RandomReader

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def test_every_description_has_its_module() -> None:
    assert RECURRENCES.keys() == ARCHITECTURES.keys()


def test_no_two_architectures_share_a_published_name() -> None:
    names = [name for known in ARCHITECTURES.values() for name in known.published_names]
    assert len(names) == len(set(names) - ARCHITECTURES.keys())


@pytest.mark.parametrize("name", ["transformer", "looped_transformer"])
def test_a_baseline_has_the_parameters_of_hrm(name: str) -> None:
    assert num_parameters(ArchConfig(name=name), METADATA) == num_parameters(ArchConfig(), METADATA)


@every_architecture
def test_names_of_weights_are_published_ones_and_lead_back(name: str) -> None:
    state = build_model(arch_of(name), METADATA).state_dict()
    published = {published_name(key): tensor for key, tensor in state.items()}
    assert all(key.startswith("model.inner.") and ".level." not in key for key in published)
    assert convert_released(published).keys() == state.keys()


@every_architecture
def test_each_level_is_compiled_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def note(function: Any, *, fullgraph: bool, **_: object) -> Any:
        assert fullgraph
        compiled.append(getattr(function, "__self__", None))
        return function

    monkeypatch.setattr(torch, "compile", note)
    config = TrainConfig(data_path="none", arch=arch_of(name), precision="fp32", compile=True)
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, world, RandomReader(METADATA, 2, world))
    levels = [
        trainer.model.get_submodule(f"network.recurrence.{level}") for level in ARCHITECTURES[name].levels
    ]
    assert [module for module in compiled if isinstance(module, Level)] == levels


@every_architecture
def test_a_run_that_resumes_equals_one_that_never_stopped(name: str, config: Path, tmp_path: Path) -> None:
    arch = arch_of(name)
    fields = arch.model_dump(include=arch.model_fields_set)
    settings = [f"arch.{key}={value}" for key, value in fields.items()]
    for run, lengths in (("straight", (4,)), ("resumed", (2, 4))):
        for max_steps in lengths:
            overrides = [*settings, f"max_steps={max_steps}", f"checkpoint_path={tmp_path / run}"]
            assert train([str(config), *overrides]) == 0
    straight, resumed = digests(tmp_path / "straight"), digests(tmp_path / "resumed")
    assert straight == resumed
    opened = reader.open_checkpoint(tmp_path / "resumed" / "checkpoints" / "latest")
    carried = [key for key in opened.shapes if key.startswith("carry.") and len(opened.shapes[key]) == 3]
    assert carried == [f"carry.{state}" for state in ARCHITECTURES[name].states]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_network_is_given_no_empty_tuple(name: str) -> None:
    """torch's FSDP2 fails to move one to a GPU, which no test without a GPU would see."""
    model = build_model(arch_of(name), METADATA)
    given: list[object] = []
    model.network.register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
    batch = random_batch(2, seed=0)
    model(model.initial_carry(batch), batch)
    assert given
    assert not any(isinstance(argument, tuple) and not argument for argument in given)
