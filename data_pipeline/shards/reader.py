"""Read one shard back, checking all that it says against the split's index."""

import hashlib
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.schema import REBUILD, ShardIndex, SplitIndex, read_file
from data_pipeline.shards.sample_format import (
    MEMBER_HEADER,
    Layout,
    member_headers,
    read_identifiers,
    windows,
)


class Shard:
    """A decoded shard; its examples stay where they lie in the tar until they are asked for."""

    def __init__(
        self,
        tar: NDArray[np.uint8],
        layout: Layout,
        groups: NDArray[np.int64],
        identifiers: NDArray[np.int64],
    ) -> None:
        self.groups = groups
        """Of each sample, [samples]."""
        self.identifiers = identifiers.astype(np.int32)
        """Of each sample, [samples]."""
        self.starts = layout.starts
        """Number of each sample's first example, [samples + 1]."""
        self.tar = tar
        """The uncompressed tar, [num_bytes]."""
        self.num_bytes = tar.nbytes
        self._cells = layout.cells
        self._seq_len = layout.seq_len
        self._windows = windows(tar, 2 * layout.seq_len)

    def examples(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Return the examples with these numbers, input before label; [k, 2, tokens]."""
        return self._windows[self._cells[chosen]].reshape(-1, 2, self._seq_len)


def verify_shard(split_dir: Path, shard: ShardIndex, remedy: str = REBUILD) -> bytes:
    """Return the content of a shard's file; raise InputError unless it is there with the index's checksum."""
    content = read_file(split_dir / shard.file)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise InputError(
            f"{split_dir / shard.file}: damaged or cut short, its sha256 is not the one noted when it was written; "
            f"{remedy}."
        )
    return content


def read_shard(split_dir: Path, index: SplitIndex, shard: ShardIndex, *, verified: bool = False) -> Shard:
    """Decode a shard; raise InputError when its content is not what the index says.

    `verified` spares the checksum of a file that has passed it before. The index tells every byte of the tar
    but the cells and the puzzle identifiers, so a shard with anything else in it is refused before a member
    of it is looked at, and nothing is ever unpickled.
    """
    path = split_dir / shard.file
    content = read_file(path) if verified else verify_shard(split_dir, shard)
    groups = index.groups_of_shard(shard)
    num_examples = index.groups.num_examples[groups].astype(np.int64)
    try:
        if len(groups) != shard.num_samples or num_examples.sum() != shard.num_examples:
            raise ValueError("index.json gives other numbers of samples and examples than its groups have")
        layout = Layout(num_examples, index.seq_len)
        if zstandard.frame_content_size(content) != layout.size:
            raise ValueError("its size is not that of the groups in index.json")
        tar = np.frombuffer(zstandard.ZstdDecompressor().decompress(content), dtype=np.uint8)
        headers = windows(tar, MEMBER_HEADER)[layout.headers]
        identifiers = read_identifiers(headers)
        if not np.array_equal(headers, member_headers(shard.row, groups, identifiers, layout)):
            raise ValueError("the header of a member is not what index.json says")
    except (zstandard.ZstdError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {REBUILD}.") from None
    return Shard(tar, layout, groups, identifiers)
