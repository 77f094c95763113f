"""Normal noise that follows from keys alone: the same in any batch, slot, world size and order.

A counter-based generator: element e of a sequence's draw is a mix of (key, e), by the finalizer of SplitMix64 (Steele
et al. 2014, doi:10.1145/2660193.2660195), made normal by Box and Muller's transform. Nothing is kept between draws, so
a CUDA graph may record them, with the keys in a tensor. Shapes: B sequences.
"""

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_MANTISSA = 24  # bits of a uniform number in float32


def key_of(seed: int, *fields: Tensor | int) -> Tensor:
    """Return the keys, [B] int64, of a seed and what tells draws apart, such as row, start and segment; [B] or numbers.

    The order of fields matters, and so does their number.
    """
    key = torch.tensor(seed, dtype=torch.int64)
    tensors = [field for field in fields if isinstance(field, Tensor)]
    if tensors:
        key = key.to(tensors[0].device)
    for field in fields:
        key = _mix(_mix(key + _GOLDEN) + field)
    return key


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers, [B, *shape] float32, for keys [B]; none is beyond 5.8."""
    size = math.prod(shape)
    pairs = -(-size // 2)
    counter = torch.arange(1, pairs + 1, device=key.device) * _GOLDEN
    bits = _mix(key[:, None] + counter)
    mask, scale = 2**_MANTISSA - 1, 2.0**-_MANTISSA
    # The first is above 0, as its logarithm is taken.
    first = (((bits >> 40) & mask) + 1).to(torch.float32) * scale
    second = (bits & mask).to(torch.float32) * scale
    radius, angle = (-2 * first.log()).sqrt(), (2 * math.pi) * second
    both = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)
    return both[:, :size].view(-1, *shape)


def _mix(x: Tensor) -> Tensor:
    """Scatter 64 bits; integers wrap around."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift right with zeros from the left, as for numbers without a sign."""
    return (x >> by) & (2 ** (64 - by) - 1)
