"""Random numbers that follow from keys alone: the same in any batch, slot, world size and order.

A counter-based generator: number n of a key's draw is a mix of (key, n), by the finalizer of SplitMix64 (Steele et al.
2014, doi:10.1145/2660193.2660195), made normal by Box and Muller's transform. Nothing is kept between draws, so a CUDA
graph may record them, with the keys in a tensor.
"""

import math

import torch
from torch import Tensor

from hrm_dist.model.initialization import CUT, CUT_MASS, CUT_STD

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_MANTISSA = 24  # bits of a uniform number in float32


def key_of(seed: int | Tensor, *fields: int | Tensor) -> Tensor:
    """Return the keys, int64, of a seed (or of keys) and what tells draws apart, such as row, start and segment.

    One of them at least is a tensor; all broadcast together. The order of fields matters, and so does their number.
    """
    first = next(value for value in (seed, *fields) if isinstance(value, Tensor))
    key = seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=first.device)
    for field in fields:
        key = _mix(_mix(key + _GOLDEN) + field)
    return key


def normal(keys: Tensor, size: int) -> Tensor:
    """Return `size` standard normal numbers for each key, [*keys.shape, size] float32; none is beyond 5.8."""
    # The first is above 0, as its logarithm is taken.
    first, second = (part.to(torch.float32) * 2.0**-_MANTISSA for part in _pairs(keys, size, offset=1))
    radius, angle = (-2 * first.log()).sqrt(), (2 * math.pi) * second
    return torch.cat((radius * angle.cos(), radius * angle.sin()), -1)[..., :size]


def truncated_normal(keys: Tensor, size: int) -> Tensor:
    """Return numbers of the distribution of initial states, [*keys.shape, size] float32, with a std of 1.

    As `initialization.truncated_normal`: a normal cut at two standard deviations.
    """
    bits = torch.cat(_pairs(keys, size), -1)[..., :size]
    # In the middle of each of 2^24 intervals between -1 and 1, but for rounding, which may come to 1: that is the cut.
    uniform = (bits.to(torch.float32) + 0.5) * 2.0 ** (1 - _MANTISSA) - 1
    numbers = torch.erfinv(CUT_MASS * uniform) * (math.sqrt(2) / CUT_STD)
    return numbers.clamp(-CUT / CUT_STD, CUT / CUT_STD)


def _pairs(keys: Tensor, size: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Return two draws of 24 bits for each pair of numbers, the last of which may be half one.

    offset: added to the first.
    """
    counter = torch.arange(1, size // 2 + size % 2 + 1, device=keys.device) * _GOLDEN
    bits = _mix(keys[..., None] + counter)
    mask = 2**_MANTISSA - 1
    return ((bits >> 40) & mask) + offset, bits & mask


def _mix(x: Tensor) -> Tensor:
    """Scatter 64 bits; integers wrap around."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift right with zeros from the left, as for numbers without a sign."""
    return (x >> by) & (2 ** (64 - by) - 1)
