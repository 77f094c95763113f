"""How puzzles are spelled in a shard; the writer and the reader agree here.

A shard is a tar under zstd. A sample is one member, `r000003_g0000042_p00001234.npy`: row, place of the group in
the split, puzzle identifier. Its content is the puzzle's examples as uint8 [examples, 2, tokens], input before
label. It is one member and not one per field, since the number of members decides how long stock readers take.

Every number in a header has a fixed width, so where each member lies follows from the sizes of the groups, and
all headers of a shard are spelled, and compared, as one array.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

TAR_BLOCK = 512
NPY_HEADER = 128
MEMBER_HEADER = TAR_BLOCK + NPY_HEADER
TAR_RECORD = 20 * TAR_BLOCK  # a tar ends in zeros up to a multiple of this

_FIRST_KEY = b"r000000_g0000000_p00000000.npy"
_ROW, _GROUP, _IDENTIFIER = (1, 6), (9, 7), (18, 8)  # first column and number of digits in the key
_SIZE = (124, 11)
_CHECKSUM = (148, 6)
_NO_CHECKSUM = b"000000\0 "
_FIXED_FIELDS = (
    (0, _FIRST_KEY),
    (100, b"0000444\0"),  # mode
    (108, b"0000000\0"),  # no owner and no time: they would differ between machines and days
    (116, b"0000000\0"),
    (124, b"00000000000\0"),
    (136, b"00000000000\0"),
    (148, _NO_CHECKSUM),
    (156, b"0"),  # a regular file
    (257, b"ustar\x0000"),
)


class Samples(NamedTuple):
    """Puzzles of one row, one after the other."""

    groups: NDArray[np.int64]  # [n] places in the split
    identifiers: NDArray[np.int64]  # [n]
    num_examples: NDArray[np.int64]  # [n]
    examples: NDArray[np.uint8]  # [sum of num_examples, 2, tokens]


class Layout:
    """Where the members of a shard lie in its tar."""

    def __init__(self, num_examples: NDArray[np.int64], seq_len: int) -> None:
        content = NPY_HEADER + num_examples * (2 * seq_len)
        lengths = TAR_BLOCK + -(-content // TAR_BLOCK) * TAR_BLOCK
        ends = np.cumsum(lengths)
        self.num_examples = num_examples
        self.seq_len = seq_len
        self.headers: NDArray[np.int64] = ends - lengths
        """Of each sample, [n]."""
        self.starts = np.zeros(len(ends) + 1, dtype=np.int64)
        """Number of each sample's first example in the shard, [n + 1]."""
        np.cumsum(num_examples, out=self.starts[1:])
        first_cell = self.headers + MEMBER_HEADER - self.starts[:-1] * (2 * seq_len)
        self.cells = np.repeat(first_cell, num_examples)
        """Of each example, [sum of num_examples]."""
        self.cells += np.arange(len(self.cells)) * (2 * seq_len)
        end = int(ends[-1]) + 2 * TAR_BLOCK if len(ends) else 2 * TAR_BLOCK
        self.size = -(-end // TAR_RECORD) * TAR_RECORD


def encode_tar(row: int, samples: Samples) -> NDArray[np.uint8]:
    """Return the tar of these samples, [size]."""
    layout = Layout(samples.num_examples, samples.examples.shape[-1])
    tar = np.zeros(layout.size, dtype=np.uint8)
    windows(tar, MEMBER_HEADER)[layout.headers] = member_headers(
        row, samples.groups, samples.identifiers, layout
    )
    cells = samples.examples.reshape(len(samples.examples), -1)
    windows(tar, cells.shape[1])[layout.cells] = cells
    return tar


def member_headers(
    row: int, groups: NDArray[np.int64], identifiers: NDArray[np.int64], layout: Layout
) -> NDArray[np.uint8]:
    """Return what precedes the cells of each sample, [n, MEMBER_HEADER]: a ustar header and an `npy` header."""
    counts, count_of_sample = np.unique(layout.num_examples, return_inverse=True)
    kinds = np.stack([_header_of_size(count, layout.seq_len) for count in counts.tolist()])
    headers = kinds[count_of_sample]
    _put_digits(headers, _ROW, np.full(len(groups), row))
    _put_digits(headers, _GROUP, groups)
    _put_digits(headers, _IDENTIFIER, identifiers)
    key_length = len(_FIRST_KEY)
    # By the rules of tar the field of the checksum counts as spaces.
    as_spaces = len(_NO_CHECKSUM) * ord(" ") - sum(_NO_CHECKSUM)
    sums_but_key = kinds[:, key_length:TAR_BLOCK].sum(axis=1, dtype=np.int64) + as_spaces
    sums = sums_but_key[count_of_sample] + headers[:, :key_length].sum(axis=1, dtype=np.int64)
    _put_digits(headers, _CHECKSUM, sums, base=8)
    return headers


def read_identifiers(headers: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the puzzle identifiers in members' headers [n, MEMBER_HEADER], which may be no headers at all; [n]."""
    first, width = _IDENTIFIER
    digits = headers[:, first : first + width].astype(np.int64) - ord("0")
    return digits @ 10 ** np.arange(width - 1, -1, -1)


def windows(flat: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Return all stretches of `length` bytes of a buffer, as a view to index by where they begin."""
    shape = (flat.size - length + 1, length)
    return as_strided(flat, shape, strides=(1, 1), writeable=flat.flags.writeable)


@functools.cache
def npy_header(num_examples: int, seq_len: int) -> bytes:
    """Return the bytes before the cells in an `npy` file of [num_examples, 2, seq_len]."""
    stream = io.BytesIO()
    shape = (num_examples, 2, seq_len)
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@functools.cache
def _header_of_size(num_examples: int, seq_len: int) -> NDArray[np.uint8]:
    """Return the header of a sample of that many examples, its key and checksum still zero; [MEMBER_HEADER]."""
    npy = npy_header(num_examples, seq_len)
    assert len(npy) == NPY_HEADER
    header = np.zeros((1, MEMBER_HEADER), dtype=np.uint8)
    for first, field in _FIXED_FIELDS:
        header[0, first : first + len(field)] = np.frombuffer(field, dtype=np.uint8)
    _put_digits(header, _SIZE, np.array([len(npy) + num_examples * 2 * seq_len]), base=8)
    header[0, TAR_BLOCK:] = np.frombuffer(npy, dtype=np.uint8)
    return header[0]


def _put_digits(
    headers: NDArray[np.uint8], field: tuple[int, int], values: NDArray[np.int64], base: int = 10
) -> None:
    """Write numbers [n] right-aligned into a field of headers [n, ...], with leading zeros."""
    first, width = field
    rest = values
    for column in range(first + width - 1, first - 1, -1):
        rest, digit = np.divmod(rest, base)
        headers[:, column] = digit + ord("0")
    if rest.any():
        raise ValueError(f"{int(values.max())} does not fit into {width} digits of a shard's member header")
