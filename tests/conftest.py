"""What the tests of training share: one tiny dataset of real ARC tasks, and one configuration."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, here and in every process started

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.build import build
from data_pipeline.shards.plan import Request

TINY_CONFIG = """\
arch: {H_layers: 1, L_layers: 1, hidden_size: 32, num_heads: 2, halt_max_steps: 4}
precision: fp32
device: cpu
global_batch_size: 8
epochs: 1000
eval_interval: null
lr: 1.0e-3
lr_warmup_steps: 5
log_interval: 1
checkpoint_interval: null
"""

# Hypothesis would fail a test for an example that takes 200 ms, as the first call of torch does on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight ARC-AGI-1 tasks without a grid over 6 x 6, each with 8 augmentations; tests must not change it."""
    out = tmp_path_factory.mktemp("dataset") / "arc"
    options = ArcOptions(num_aug=8, holdout="all", canvas=6, limit_groups=8)
    build(Request("arc-agi-1", [], out, options, seed=0, workers=1, quiet=True))
    return out


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A configuration that trains a tiny HRM on `dataset`, a tenth of a second a step."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(f"data_path: {dataset}\n{TINY_CONFIG}")
    return path
