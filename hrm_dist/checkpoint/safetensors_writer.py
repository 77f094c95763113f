"""Write tensors to a safetensors file one at a time.

The format's layout is simple, and the library wants all tensors in memory.

Layout: length of the header (8 bytes, little endian), header (JSON: name -> dtype, shape, offsets of its bytes behind
the header, padded by spaces to a multiple of 8), the tensors' bytes. Reading is left to the library.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from data_pipeline.base.files import sync

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor of a file before its content is at hand."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(path: Path, entries: Iterable[Entry], contents: Iterable[Tensor]) -> str:
    """Write a file and wait until it is on disk; return its sha256. See `stream_tensors`."""
    with path.open("wb") as file:
        digest = stream_tensors(file, entries, contents)
    sync(path)
    return digest


def stream_tensors(
    file: BinaryIO,
    entries: Iterable[Entry],
    contents: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write the content of a file; return its sha256.

    contents: one tensor per entry in the same order, on any device, of any shape with as many elements. Wider
    dtypes have to come first, so that every tensor is aligned.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in entries:
        assert end % entry.dtype.itemsize == 0, f"{entry.name} would not be aligned"
        start, end = end, end + entry.num_bytes
        header[entry.name] = {
            "dtype": _DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for block in (len(text).to_bytes(8, "little"), text):
        file.write(block)
        digest.update(block)
    written = 0
    for tensor in contents:
        block = tensor.detach().reshape(-1).to("cpu").contiguous().view(torch.uint8).numpy()
        file.write(block.data)
        digest.update(block.data)
        written += len(block)
    assert written == end, f"{written} bytes instead of {end}"
    return digest.hexdigest()
