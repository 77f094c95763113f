"""Files of a dataset: complete or not there, and the same bytes for the same content on every machine.

A shard is a tar of samples (see sample_format) under zstd. Its tar is laid out in memory as a whole, hashed and
compressed in one call each, so that no step costs anything per sample.
"""

import hashlib
import io
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import zstandard

from data_pipeline.errors import WriteError
from data_pipeline.sample_format import Samples, encode_tar
from data_pipeline.schema import ShardIndex

TEMPORARY_SUFFIX = ".tmp"

Compression = Literal["fast", "small"]
"""How a shard is compressed: "small" takes four times as long."""

_ZSTD: dict[Compression, zstandard.ZstdCompressionParameters] = {
    "fast": zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_DFAST,
        window_log=18,
        hash_log=12,
        chain_log=12,
        min_match=7,
        write_content_size=1,
    ),
    "small": zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_LAZY,
        window_log=17,
        hash_log=12,
        chain_log=12,
        search_log=2,
        min_match=6,
        write_content_size=1,
    ),
}
"""Near matches cost fewer bits and small tables stay in L1, so on ARC "fast" is as fast as levels 1 to 3 and 6 %
smaller, and "small" is another 14 to 16 % smaller. Sudokus and mazes gain 2 % from it."""


def write_shard(path: Path, row: int, samples: Samples, compression: Compression = "fast") -> ShardIndex:
    """Write the samples of a row, or a part of them, to a new file, and say what is in it."""
    tar = encode_tar(row, samples)
    compressed = compress(tar.data, compression)
    write_bytes(path, compressed)
    return ShardIndex(
        file=path.name,
        row=row,
        first_group=int(samples.groups[0]),
        num_samples=len(samples.groups),
        num_examples=len(samples.examples),
        size_bytes=len(compressed),
        sha256=hashlib.sha256(compressed).hexdigest(),
        tar_sha256=hashlib.sha256(tar.data).hexdigest(),
    )


def compress(tar: memoryview, compression: Compression) -> bytes:
    """A tar as it stands in a shard's file."""
    return zstandard.ZstdCompressor(compression_params=_ZSTD[compression]).compress(tar)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whose bytes follow from the content alone."""
    text = json.dumps(content, separators=(",", ":")) + "\n"  # `dump` is many times slower
    write_bytes(path, text.encode())


def put_if_missing(draft: Path, path: Path) -> None:
    """Give a complete file its name, unless another command has put one there; the draft is gone then."""
    try:
        os.link(draft, path)  # unlike a rename, it never takes the place of another's
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            draft.replace(path)
    draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file."""
    with complete_file(path) as file:
        file.write(content)


@contextmanager
def complete_file(path: Path) -> Generator[io.BufferedWriter]:
    """A file that is complete when it takes its name; raises WriteError when it cannot be written."""
    # Parts of one build, on machines that share a disk, may write the same file.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another place, and "
            "run the command again."
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
