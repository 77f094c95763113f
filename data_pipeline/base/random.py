"""Random draws that depend on nothing but their key.

Only the raw output of Philox4x64-10 and stable sorts are used: numpy keeps both fixed between releases, which it
does not promise for `Generator.permutation` and its kin. A dataset or a batch can so be rebuilt years later.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

WORDS_PER_COUNTER = 4

_NUM_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 8192  # counters at a time, so that the intermediate arrays stay in the cache


def stream_key(*key: int | str) -> tuple[int, int]:
    """Return the two words that `key` names a stream by."""
    digest = hashlib.sha256("\n".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def random_bits(count: int, *key: int | str) -> Bits:
    """Return the first `count` 64-bit words of the stream named by `key`; [count]."""
    return np.random.Philox(key=np.array(stream_key(*key), dtype=np.uint64)).random_raw(count)


def permutation(size: int, *key: int | str) -> NDArray[np.int64]:
    """Return a random order of 0..size-1."""
    return np.argsort(random_bits(size, *key), kind="stable")


def below(bits: Bits, limit: int | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Turn words into integers in [0, limit); the bias of at most limit / 2**32 is of no account here."""
    scaled = (bits >> np.uint64(32)) * np.asarray(limit, dtype=np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def words_at(first: NDArray[np.integer], second: NDArray[np.integer] | int, key: tuple[int, int]) -> Bits:
    """Return four words for each pair of counters; first [n], second [n] or one number; [n, 4].

    They are those of `numpy.random.Philox(key=key, counter=[first, second, 0, 0]).random_raw(4)`, which makes one
    stream per object in 20 microseconds; here many items get words of their own at once.
    """
    low = first.astype(np.uint64)
    high = np.broadcast_to(np.asarray(second).astype(np.uint64), low.shape)
    words = np.empty((len(low), WORDS_PER_COUNTER), dtype=np.uint64)
    for start in range(0, len(low), _BLOCK):
        block = slice(start, start + _BLOCK)
        words[block] = _philox(low[block], high[block], key).T
    return words


def words_from(
    first: NDArray[np.integer], second: NDArray[np.integer] | int, count: int, key: tuple[int, int]
) -> Bits:
    """Return `count` words (see `words_at`) from each pair of counters on, the second counting up; [n, count]."""
    num_counters = -(-count // WORDS_PER_COUNTER)
    counters = np.broadcast_to(second, len(first))[:, None] + np.arange(num_counters)
    words = words_at(np.repeat(first, num_counters), counters.reshape(-1), key)
    return words.reshape(len(first), num_counters * WORDS_PER_COUNTER)[:, :count]


def scramble(x: Bits) -> Bits:
    """Apply the finaliser of splitmix64, a bijection that leaves 0 as it is."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _philox(first: Bits, second: Bits, key: tuple[int, int]) -> Bits:
    x0 = first + np.uint64(1)  # numpy counts up before it draws
    x1 = second + (x0 == 0)
    x2 = np.zeros_like(x0)
    x3 = np.zeros_like(x0)
    for i in range(_NUM_ROUNDS):
        k0, k1 = (np.uint64((word + i * step) % 2**64) for word, step in zip(key, _KEY_STEPS, strict=True))
        high0, low0 = _multiply(x0, _MULTIPLIERS[0])
        high1, low1 = _multiply(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
    return np.stack([x0, x1, x2, x3])


def _multiply(x: Bits, factor: int) -> tuple[Bits, Bits]:
    """Return the upper and lower 64 bits of a product of 128."""
    factor_low, factor_high = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    x_low, x_high = x & _LOW, x >> _HALF
    middle = x_high * factor_low + ((x_low * factor_low) >> _HALF)
    carry = (middle & _LOW) + x_low * factor_high
    return x_high * factor_high + (middle >> _HALF) + (carry >> _HALF), x * np.uint64(factor)
