"""Which kernel computes attention: one, chosen where the model is built, the same with and without gradient.

Left alone, torch chooses anew for each call, and on some GPUs a slower kernel where no gradient is recorded.
"""

import warnings

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hrm_dist.config import ArchConfig, ConfigError
from hrm_dist.model.layers import DTYPES, Attention

_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# As measured on an H100 (docs/benchmarks); older GPUs are faster by flash.
_ORDER_FROM_HOPPER = ("cudnn", "flash", "efficient", "math")
_ORDER_BEFORE = ("flash", "cudnn", "efficient", "math")


def use_attention_kernel(
    network: nn.Module, choice: str, arch: ArchConfig, seq_len: int, device: torch.device
) -> None:
    """Let a network's attention be computed by what `attention_kernel` returns."""
    name = attention_kernel(choice, arch, seq_len, device)
    for module in network.modules():
        if isinstance(module, Attention):
            module.kernel = None if name is None else _KERNELS[name]


def attention_kernel(choice: str, arch: ArchConfig, seq_len: int, device: torch.device) -> str | None:
    """Return the kernel's name for the setting `attention`; None leaves it to torch, as `auto` does on a CPU.

    Raise ConfigError if the chosen one cannot compute such sequences on the device.
    """
    if arch.mlp_t or (choice == "auto" and device.type == "cpu"):
        return None
    order = _ORDER_FROM_HOPPER if _is_from_hopper(device) else _ORDER_BEFORE
    if choice == "auto":
        return next(name for name in order if _can_run(name, arch, seq_len, device))
    if not _can_run(choice, arch, seq_len, device):
        fitting = ", ".join(name for name in order if _can_run(name, arch, seq_len, device))
        raise ConfigError(
            f"attention={choice}: cannot run on this {device.type} device with {arch.forward_dtype}, heads of "
            f"{arch.hidden_size // arch.num_heads} and {seq_len} positions; leave it at auto, or take one of {fitting}"
        )
    return choice


def describe_attention(choice: str, arch: ArchConfig, seq_len: int, device: str) -> str:
    """Say which kernel a run with the setting `device` would use here or, without a GPU here, on one."""
    if arch.mlp_t:
        return "none; arch.mlp_t=true mixes the positions by an MLP"
    if device != "cpu" and not torch.cuda.is_available():
        if choice != "auto":
            return choice
        orders = [" > ".join(order) for order in (_ORDER_FROM_HOPPER, _ORDER_BEFORE)]
        return f"on a GPU the first that can run of {orders[0]}, before Hopper of {orders[1]}"
    here = torch.device("cpu" if device == "cpu" else "cuda")
    return attention_kernel(choice, arch, seq_len, here) or "torch's own choice on a CPU"


def _is_from_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _can_run(name: str, arch: ArchConfig, seq_len: int, device: torch.device) -> bool:
    """Try a kernel on one sequence, forward and backward."""
    shape = (1, arch.num_heads, seq_len, arch.hidden_size // arch.num_heads)
    q = torch.zeros(shape, dtype=DTYPES[arch.forward_dtype], device=device, requires_grad=True)
    with warnings.catch_warnings(action="ignore"):  # torch says at length why one cannot
        try:
            with torch.enable_grad(), sdpa_kernel(_KERNELS[name]):
                mixed = F.scaled_dot_product_attention(q, q, q)
                mixed.backward(torch.zeros_like(mixed))
        except RuntimeError:
            return False
    return True
