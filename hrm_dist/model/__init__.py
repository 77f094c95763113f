"""`build_model(arch_config, metadata)` is the entry point."""

from hrm_dist.model.act import build_model

__all__ = ["build_model"]
