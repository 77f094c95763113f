"""How one puzzle is spelled in a shard; the writer and the reader agree here.

A sample is one tar member, `r000003_g0000042_p00001234.npy`: row, place of the group in the split, puzzle
identifier. Its content is the puzzle's examples as uint8 [examples, 2, tokens], input before label. It is one
member and not one per field, since the number of members decides how long a shard takes.
"""

import functools
import io
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_KEY = re.compile(r"r(\d+)_g(\d+)_p(\d+)")


class SampleKey(NamedTuple):
    row: int
    group: int
    identifier: int


class Sample(NamedTuple):
    """One puzzle of a row: its group's place in the split, its identifier, examples [examples, 2, tokens]."""

    group: int
    identifier: int
    examples: NDArray[np.uint8]


def format_key(key: SampleKey) -> str:
    """Without dots, at the first of which webdataset would end the key."""
    return f"r{key.row:06d}_g{key.group:07d}_p{key.identifier:08d}"


def parse_key(text: str) -> SampleKey | None:
    """None for anything that `format_key` does not write."""
    match = _KEY.fullmatch(text)
    return SampleKey(*map(int, match.groups())) if match else None


@functools.cache
def npy_header(num_examples: int, seq_len: int) -> bytes:
    """The bytes before the cells in an `npy` file of [num_examples, 2, seq_len]."""
    stream = io.BytesIO()
    shape = (num_examples, 2, seq_len)
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()
