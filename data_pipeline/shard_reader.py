"""Read one shard back, checking all that it says against the split's index."""

import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from data_pipeline.errors import InputError
from data_pipeline.sample_format import npy_header, parse_key
from data_pipeline.schema import REBUILD, ShardIndex, SplitIndex


class Shard(NamedTuple):
    """The samples of a shard, one after the other."""

    examples: NDArray[np.uint8]  # [n, 2, tokens], input before label
    groups: NDArray[np.int64]  # [samples]
    identifiers: NDArray[np.int32]  # [samples]
    starts: NDArray[np.int64]  # [samples + 1] where each begins in `examples`


def verify_shard(split_dir: Path, shard: ShardIndex) -> None:
    """Raise InputError unless a shard is there with the checksum that the index gives."""
    path = split_dir / shard.file
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {REBUILD}.") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the disk and the file's rights."
        ) from None
    if sha256 != shard.sha256:
        raise InputError(f"{path}: damaged or cut short, its sha256 is not the one in index.json; {REBUILD}.")


def read_shard(split_dir: Path, index: SplitIndex, shard: ShardIndex) -> Shard:
    """Decode a shard; raises InputError when its content is not what the index says.

    Members are read in memory and never extracted; an `npy` header other than ours is refused, so nothing is
    ever unpickled.
    """
    path = split_dir / shard.file
    examples = np.empty((shard.num_examples, 2, index.seq_len), dtype=np.uint8)
    groups = np.empty(shard.num_samples, dtype=np.int64)
    identifiers = np.empty(shard.num_samples, dtype=np.int32)
    starts = np.zeros(shard.num_samples + 1, dtype=np.int64)
    num_samples, filled = 0, 0
    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                # Else it keeps every header until the shard is done.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                key = parse_key(member.name.removesuffix(".npy"))
                content = tar.extractfile(member)
                if key is None or content is None or key.row != shard.row or key.group >= len(index.groups):
                    raise ValueError(f"unexpected member {member.name}")
                num_examples = index.groups[key.group].num_examples
                header = npy_header(num_examples, index.seq_len)
                if content.read(len(header)) != header:
                    raise ValueError(f"member {member.name} has another header than its index says")
                cells = np.frombuffer(content.read(), dtype=np.uint8)
                examples[filled : filled + num_examples] = cells.reshape(num_examples, 2, index.seq_len)
                filled += num_examples
                groups[num_samples], identifiers[num_samples] = key.group, key.identifier
                num_samples += 1
                starts[num_samples] = filled
    except (OSError, tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{path}: damaged ({error}); {REBUILD}.") from None
    if num_samples != shard.num_samples or filled != shard.num_examples:
        raise InputError(
            f"{path}: {num_samples} samples of {filled} examples, but index.json says {shard.num_samples} of "
            f"{shard.num_examples}; {REBUILD}."
        )
    return Shard(examples, groups, identifiers, starts)
