"""The engine of a configuration."""

import torch
from torch import nn

from hrm_dist.config import TrainConfig
from hrm_dist.engines.base import Engine, Initialize
from hrm_dist.engines.ddp import DDPEngine
from hrm_dist.engines.fsdp import FSDPEngine


def build_engine(
    network: nn.Module, config: TrainConfig, device: torch.device, initialize: Initialize
) -> Engine:
    """An engine around a network on the meta device, which it gives its initial weights."""
    if config.engine == "ddp":
        return DDPEngine(network, config, device, initialize)
    if config.engine == "fsdp2":
        return FSDPEngine(network, config, device, initialize)
    from hrm_dist.engines.deepspeed import DeepSpeedEngine  # slow to import

    return DeepSpeedEngine(network, config, device, initialize)
