"""Which puzzles a split holds: a hash of the set.

The hash of a set is the sha256 over the sha256 of each of its puzzles, these in ascending order. So it depends on
neither the order of the puzzles, nor on augmentations, the canvas or how the dataset was built. A puzzle is, as bytes,
    Sudokus and mazes   the input's tokens, then the label's, a byte each
    ARC tasks           JSON with sorted keys and without spaces: id, demonstrations (none in the training split) and
                        pairs, which are those that train, or in the test split those held out
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from data_pipeline.schema import SubsetInfo

_DIGEST_BYTES = hashlib.sha256().digest_size


def described(puzzles: Iterable[bytes]) -> SubsetInfo:
    """Return what dataset.json says of a set of puzzles; it takes 32 bytes of memory for each of them."""
    digests = bytearray()
    for puzzle in puzzles:
        digests += hashlib.sha256(puzzle).digest()
    ordered = np.frombuffer(digests, dtype=f"S{_DIGEST_BYTES}")
    ordered.sort()  # in place
    return SubsetInfo(num=len(ordered), sha256=hashlib.sha256(digests).hexdigest())
