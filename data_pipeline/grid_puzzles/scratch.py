"""Arrays that a build needs on disk until it is complete. A file holds their bytes, and then the sha256 of these."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.files import atomic_write

_DIGEST_BYTES = hashlib.sha256().digest_size
_PIECE = 1 << 20


def write(path: Path, blocks: Iterable[NDArray[np.uint8]]) -> None:
    """Write arrays, one after the other."""
    digest = hashlib.sha256()
    with atomic_write(path, make_folder=False) as file:
        for block in blocks:
            content = np.ascontiguousarray(block).data
            digest.update(content)
            file.write(content)
        file.write(digest.digest())


def is_sound(path: Path) -> bool:
    """Tell whether a file is there and holds what was written."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = num_bytes(path)
            while left > 0:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    return False
                digest.update(piece)
                left -= len(piece)
            return file.read() == digest.digest()
    except OSError:
        return False


def num_bytes(path: Path) -> int:
    """Return the size of the arrays in a file."""
    return path.stat().st_size - _DIGEST_BYTES


def read(path: Path, count: int, offset: int = 0) -> NDArray[np.uint8]:
    """Read some of the bytes of a sound file, [count]."""
    return np.fromfile(path, dtype=np.uint8, count=count, offset=offset)


def blocks(path: Path, size: int) -> Iterator[bytes]:
    """Yield the bytes of a sound file, `size` at a time."""
    for start in range(0, num_bytes(path), size):
        yield read(path, min(size, num_bytes(path) - start), start).tobytes()
