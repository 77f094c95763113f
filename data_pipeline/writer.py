"""Files of a dataset: complete or not there, and the same bytes for the same content on every machine.

A shard is a tar of samples (see sample_format) under zstd.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import zstandard
from webdataset.writer import TarWriter

from data_pipeline.sample_format import Sample, SampleKey, format_key, npy_header
from data_pipeline.schema import ShardIndex

ZSTD_LEVEL = 3


class _Tap(io.RawIOBase):
    """Hands bytes on to a stream and keeps their number and sha256."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        self._target.write(data)
        return len(data)


def write_shard(path: Path, row: int, samples: Iterable[Sample]) -> ShardIndex:
    """Write the samples of a row, or a part of them, to a new file, and say what is in it."""
    groups: list[int] = []
    num_examples = 0
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        compressed = _Tap(file)
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        with compressor.stream_writer(cast(IO[bytes], compressed), closefd=False) as stream:
            plain = _Tap(stream)
            # No owner and no time: they would differ between machines and days.
            tar = TarWriter(cast(BinaryIO, plain), user="", group="", mode=0o444, mtime=0, encoder=False)
            for sample in samples:
                key = SampleKey(row, sample.group, sample.identifier)
                num, _, seq_len = sample.examples.shape
                content = npy_header(num, seq_len) + sample.examples.tobytes()
                tar.write({"__key__": format_key(key), "npy": content})
                # Else it keeps every header until the shard is done.
                tar.tarstream.members = []  # pyright: ignore[reportAttributeAccessIssue]
                groups.append(sample.group)
                num_examples += num
            tar.close()
        _to_disk(file)
    temporary.replace(path)
    return ShardIndex(
        file=path.name,
        row=row,
        first_group=groups[0],
        num_samples=len(groups),
        num_examples=num_examples,
        size_bytes=compressed.size_bytes,
        sha256=compressed.sha256.hexdigest(),
        tar_sha256=plain.sha256.hexdigest(),
    )


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whose bytes follow from the content alone."""
    temporary = _temporary(path)
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(content, separators=(",", ":")) + "\n")  # `dump` is many times slower
        _to_disk(file)
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _to_disk(file: io.IOBase) -> None:
    file.flush()
    os.fsync(file.fileno())
