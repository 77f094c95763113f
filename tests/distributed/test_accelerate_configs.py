"""configs/accelerate: `accelerate launch` with each of them trains on what it names."""

import json
import platform
from pathlib import Path

import pytest
import torch

from tests.training import command_line, num_rows

pytestmark = pytest.mark.distributed

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
SEVERAL = ("--num_processes", "2")  # instead of 8


@pytest.mark.parametrize(
    ("name", "options", "num_processes", "num_gpus"),
    [
        ("cpu", (), 2, 0),
        pytest.param("gpu_1", (), 1, 1, marks=pytest.mark.gpu),
        pytest.param("gpu_n", SEVERAL, 2, 2, marks=pytest.mark.gpu),
    ],
)
def test_as_many_processes_train_as_the_file_says(
    name: str, options: tuple[str, ...], num_processes: int, num_gpus: int, config: Path, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"needs {num_gpus} CUDA devices")
    launch = ["accelerate.commands.launch", "--config_file", CONFIGS / f"{name}.yaml", *options]
    run = tmp_path / "run"
    command = ["-m", "hrm_dist.train", config, f"checkpoint_path={run}", "max_steps=2", "device=auto"]
    finished = command_line("-m", *launch, *command)
    assert finished.exit_code == 0, finished.output
    assert num_rows(run) == 2
    state = json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    assert state["world_size"] == num_processes
    assert (state["environment"]["device"] == platform.machine()) == (num_gpus == 0)
