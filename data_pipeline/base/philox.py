"""Philox4x64-10 at any counters at once.

`numpy.random.Philox` gives one stream per object, which costs 20 microseconds to make. Where each of many
items needs a few words of its own, named by two numbers, they are computed here for all of them together. The
words are those of `numpy.random.Philox(key=key, counter=[first, second, 0, 0]).random_raw(4)`.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.random import Bits

WORDS_PER_COUNTER = 4

_NUM_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 8192  # counters at a time, so that the intermediate arrays stay in the cache


def stream_key(*key: int | str) -> tuple[int, int]:
    """The key of the stream that `random_bits(..., *key)` reads."""
    digest = hashlib.sha256("\n".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def words_at(first: NDArray[np.integer], second: NDArray[np.integer] | int, key: tuple[int, int]) -> Bits:
    """Four words for each pair of counters; first [n], second [n] or one number; [n, 4]."""
    low = first.astype(np.uint64)
    high = np.broadcast_to(np.asarray(second).astype(np.uint64), low.shape)
    words = np.empty((len(low), WORDS_PER_COUNTER), dtype=np.uint64)
    for start in range(0, len(low), _BLOCK):
        part = slice(start, start + _BLOCK)
        words[part] = _block(low[part], high[part], key).T
    return words


def _block(first: Bits, second: Bits, key: tuple[int, int]) -> Bits:
    x0 = first + np.uint64(1)  # numpy counts up before it draws
    x1 = second + (x0 == 0)
    x2 = np.zeros_like(x0)
    x3 = np.zeros_like(x0)
    for i in range(_NUM_ROUNDS):
        k0, k1 = (np.uint64((part + i * step) % 2**64) for part, step in zip(key, _KEY_STEPS, strict=True))
        high0, low0 = _multiply(x0, _MULTIPLIERS[0])
        high1, low1 = _multiply(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
    return np.stack([x0, x1, x2, x3])


def _multiply(x: Bits, factor: int) -> tuple[Bits, Bits]:
    """Upper and lower 64 bits of a product of 128."""
    factor_low, factor_high = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    x_low, x_high = x & _LOW, x >> _HALF
    middle = x_high * factor_low + ((x_low * factor_low) >> _HALF)
    carry = (middle & _LOW) + x_low * factor_high
    return x_high * factor_high + (middle >> _HALF) + (carry >> _HALF), x * np.uint64(factor)
