"""Kernels of our own, for where they are faster than what the compiler makes."""

import importlib.util
import os
import shutil

import torch
from torch import nn

from hrm_dist.config import ConfigError
from hrm_dist.model.layers import GateUp, PositionGateUp


def use_fused_swiglu(network: nn.Module, choice: str, dtype: torch.dtype, device: torch.device) -> None:
    """Let updates without gradient compute SiLU x up within its product, if the setting `fused_swiglu` says so.

    Raise ConfigError where it is on and cannot run.
    """
    if choice == "off":
        return
    reason = _why_not(dtype, device)
    if reason is not None:
        if choice == "on":
            raise ConfigError(f"fused_swiglu=on: cannot run, as {reason}; set fused_swiglu=auto")
        return
    importlib.import_module("hrm_dist.model.kernels.gate_up")  # which registers them
    for module in network.modules():
        if isinstance(module, GateUp | PositionGateUp):
            module.is_fused = True


def _why_not(dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return "the device is no GPU of Hopper or later"
    if dtype != torch.bfloat16:
        return "precision is not bf16"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not _has_c_compiler():
        return "Triton finds no C compiler"
    return None


def require_c_compiler(device: torch.device, remedy: str) -> None:
    """Raise ConfigError if compiling for a device takes a C compiler and there is none; remedy: what else to do."""
    if device.type == "cuda" and not _has_c_compiler():
        raise ConfigError(
            "to compile for a GPU Triton takes a C compiler, and there is no gcc, no clang, and none that CC names; "
            f"install one, or {remedy}"
        )


def _has_c_compiler() -> bool:
    return any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang"))))
