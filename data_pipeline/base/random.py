"""Random draws that depend on nothing but their key.

Only the raw output of Philox and stable sorts are used: numpy keeps both fixed between releases, which it
does not promise for `Generator.permutation` and its kin. A dataset or a batch can so be rebuilt years later.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]


def random_bits(count: int, *key: int | str) -> Bits:
    """The first `count` 64-bit words of the stream named by `key`; [count]."""
    digest = hashlib.sha256("\n".join(str(part) for part in key).encode()).digest()
    words = np.frombuffer(digest, dtype="<u8")[:2].astype(np.uint64)
    return np.random.Philox(key=words).random_raw(count)


def permutation(size: int, *key: int | str) -> NDArray[np.int64]:
    """A random order of 0..size-1."""
    return np.argsort(random_bits(size, *key), kind="stable")


def below(bits: Bits, limit: int | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Turn words into integers in [0, limit); the bias of at most limit / 2**32 is of no account here."""
    scaled = (bits >> np.uint64(32)) * np.asarray(limit, dtype=np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)
