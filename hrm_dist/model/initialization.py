"""Initial values of a model: a function of the seed and each tensor's full name alone.

So the same model comes out on any device, in any order, whole or in parts. Each module gives its own tensors their
distribution in a method `init_weights(init: InitFn)`. One that has tensors and no such method, as torch's stock layers,
is an error: it would keep whatever was in memory.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

CUT = 2.0
"""Standard deviations at which the normal of initial values is cut."""
CUT_MASS = math.erf(CUT / math.sqrt(2))
"""Share of a normal that the cut leaves."""
CUT_STD = math.sqrt(1 - 2 * CUT * (math.exp(-0.5 * CUT * CUT) / math.sqrt(2 * math.pi)) / CUT_MASS)
"""The std that the cut leaves of a unit normal, 0.8796."""

FillFn = Callable[[Tensor, torch.Generator], object]
"""Fill a whole tensor on the CPU with draws of a generator."""


class InitFn(Protocol):
    """Give the module's own tensor of that name its initial values: drawn, or all equal."""

    def __call__(self, tensor_name: str, fill: FillFn | float) -> None: ...


def truncated_normal(std: float) -> FillFn:
    """Return the published distribution of weights: a normal cut at two standard deviations, of `std` *after* the cut.

    The cut narrows a normal, for which the published initialisation corrects.
    """
    scale = std / CUT_STD

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor.uniform_(-CUT_MASS, CUT_MASS, generator=generator).erfinv_().mul_(math.sqrt(2) * scale)
        tensor.clamp_(-CUT * scale, CUT * scale)

    return fill


def uniform(bound: float) -> FillFn:
    """Return the distribution of numbers between -bound and bound."""
    return lambda tensor, generator: tensor.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def initialize_module(
    name: str, module: nn.Module, copy: Callable[[Tensor, Tensor], object], seed: int
) -> None:
    """Give a module's own tensors their initial values; raise ValueError if one gets none.

    `copy` writes values, which are whole and on the CPU, to a tensor that may be split.
    """
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    own = {name: tensor for name, tensor in own.items() if name not in module._non_persistent_buffers_set}
    missing = set(own)

    def init(tensor_name: str, fill: FillFn | float) -> None:
        tensor = own[tensor_name]
        missing.discard(tensor_name)
        if not callable(fill):
            tensor.fill_(fill)
            return
        key = hashlib.sha256(f"{seed}:{name}.{tensor_name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
        values = torch.empty(tensor.shape, device="cpu")
        fill(values, generator)
        copy(tensor, values)

    init_weights: Callable[[InitFn], None] | None = getattr(module, "init_weights", None)
    if init_weights is not None:
        init_weights(init)
    if missing:
        raise ValueError(
            f"{name}: {type(module).__name__} leaves {', '.join(sorted(missing))} without initial values; give them in "
            "its init_weights(init)"
        )


def initialize(model: nn.Module, seed: int) -> None:
    """Initialise every module of a model that is whole on this rank."""
    for name, module in model.named_modules():
        initialize_module(name, module, Tensor.copy_, seed)
