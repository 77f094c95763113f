"""Build the engine that a configuration names."""

import torch
from torch import nn

from hrm_dist.config import TrainConfig
from hrm_dist.engines.base import Engine, InitModuleFn
from hrm_dist.engines.ddp import DDPEngine
from hrm_dist.engines.fsdp import FSDPEngine


def build_engine(
    network: nn.Module, config: TrainConfig, device: torch.device, init_module: InitModuleFn
) -> Engine:
    """Return the engine around a network on the meta device, which it gives its initial weights."""
    if config.engine == "ddp":
        return DDPEngine(network, config, device, init_module)
    if config.engine == "fsdp2":
        return FSDPEngine(network, config, device, init_module)
    from hrm_dist.engines.deepspeed import DeepSpeedEngine  # slow to import

    return DeepSpeedEngine(network, config, device, init_module)
