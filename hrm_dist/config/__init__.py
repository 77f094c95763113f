"""Settings of a run; read schema.py first."""

from hrm_dist.config.schema import (
    ArchConfig,
    ConfigError,
    TrainConfig,
    flat_settings,
    load_config,
    to_yaml,
    total_steps,
)

__all__ = [
    "ArchConfig",
    "ConfigError",
    "TrainConfig",
    "flat_settings",
    "load_config",
    "to_yaml",
    "total_steps",
]
