"""JSON documents and JSON lines as they come: compressed or not, in any Unicode encoding.

A message names the file, what it is instead, and the remedy.
"""

import bz2
import gzip
import io
import json
import lzma
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple, cast

import zstandard

from data_pipeline.base.errors import InputError

MAX_BYTES = 1 << 30
"""Of a document, or of a line: parsed, it takes many times as much memory."""

_HEAD = 512  # bytes that tell what a file is

_DECOMPRESS: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda stream: zstandard.ZstdDecompressor().stream_reader(
        stream, read_across_frames=True
    ),
}
DAMAGED_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, IndexError, ValueError, struct.error)
"""What zipfile raises for archives that are not as they should be."""
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, *DAMAGED_ZIP)

_UNPACK = "unpack it and give the folder"
_CONVERT = "convert it to JSON"
AGAIN = "download the file again"
"""In the remedy of a message about a file of a source."""
_FOREIGN = {
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
    b"PK\x03\x04": ("a .zip archive", "give it as a source of its own"),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"PAR1": ("a Parquet table", _CONVERT),
    b"ARROW1": ("an Arrow table", _CONVERT),
    b"\x93NUMPY": ("a NumPy array", _CONVERT),
    b"\x89HDF": ("an HDF5 file", _CONVERT),
    b"\x80": ("a pickle", _CONVERT),
    b"<": ("a web page or XML", "download the raw file"),
}
"""What a file may be instead, by how it begins: what it is called, and the remedy."""


class Item(NamedTuple):
    """A value of a file: the whole document, or a line of it."""

    value: object
    line: int | None


def read_items(open_file: Callable[[], IO[bytes]], label: str, *, is_lines: bool) -> Iterator[Item]:
    """Yield the document of a file, or the values of its lines; raise InputError, which names the file by its label.

    A document that is followed by more of them is taken for lines, whatever the file is called.
    """
    head = b""
    try:
        with ExitStack() as stack:
            stream = _decompressed(stack.enter_context(open_file()), stack)
            head = stream.peek(_HEAD)[:_HEAD]
            if is_lines:
                text = stack.enter_context(io.TextIOWrapper(stream, encoding=_encoding(head)))
                yield from _lines(text, label, head)
                return
            content = _whole(stream, label)
    except UnicodeDecodeError as error:
        raise _not_text(label, head, error) from None
    except _DAMAGED as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputError(
            f"{label}: cannot be read ({reason}); check its rights and the disk, or {AGAIN}."
        ) from None
    try:
        text = content.decode(_encoding(head))
    except UnicodeDecodeError as error:
        raise _not_text(label, head, error) from None
    del content
    try:
        yield Item(_parse(text, label), None)
    except json.JSONDecodeError as error:
        first = text[: error.pos]
        if error.msg != "Extra data" or "\n" not in first or "\n" in first.strip():
            raise _malformed(label, head, error) from None
        yield from _lines(io.StringIO(text), label, head)


def _decompressed(raw: IO[bytes], stack: ExitStack) -> "io.BufferedReader[io.RawIOBase]":
    stream = stack.enter_context(io.BufferedReader(cast(io.RawIOBase, raw)))
    head = stream.peek(_HEAD)
    for magic, decompress in _DECOMPRESS.items():
        if head.startswith(magic):
            return stack.enter_context(io.BufferedReader(cast(io.RawIOBase, decompress(stream))))
    return stream


def _whole(stream: IO[bytes], label: str) -> bytes:
    pieces: list[bytes] = []
    num_bytes = 0
    while piece := stream.read(1 << 20):
        pieces.append(piece)
        num_bytes += len(piece)
        if num_bytes > MAX_BYTES:
            raise _too_long(label)
    return b"".join(pieces)


def _encoding(head: bytes) -> str:
    return json.detect_encoding(head)


def _lines(text: io.TextIOBase, label: str, head: bytes) -> Iterator[Item]:
    number = 0
    while line := text.readline(MAX_BYTES + 1):
        number += 1
        if len(line) > MAX_BYTES:
            raise _too_long(label)
        if not line.isspace():
            try:
                yield Item(_parse(line, f"{label}: line {number}"), number)
            except json.JSONDecodeError as error:
                raise _malformed(f"{label}: line {number}", head, error) from None


def _parse(text: str, label: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise InputError(f"{label}: {twice!r} stands twice in one object; take one of them out.")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise InputError(f"{label}: nested too deeply to be a task; {AGAIN}.") from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        raise InputError(
            f"{label}: malformed JSON (a number of more than {sys.get_int_max_str_digits():,} digits); {AGAIN}."
        ) from None


def _malformed(label: str, head: bytes, error: Exception) -> InputError:
    foreign = _foreign(label, head)
    return foreign or InputError(f"{label}: malformed JSON ({error}); {AGAIN}, or take it out of the source.")


def _not_text(label: str, head: bytes, error: UnicodeDecodeError) -> InputError:
    foreign = _foreign(label, head)
    return foreign or InputError(
        f"{label}: not UTF-8, UTF-16 or UTF-32 text ({error.reason} at byte {error.start}); {AGAIN}, or save it as "
        "UTF-8."
    )


def _foreign(label: str, head: bytes) -> InputError | None:
    if not head.strip():
        return InputError(f"{label}: is empty; {AGAIN}, or take it out of the source.")
    if head[257:262] == b"ustar":
        return InputError(f"{label}: is a tar archive; {_UNPACK}.")
    for magic, (what, remedy) in _FOREIGN.items():
        if head.lstrip().startswith(magic):
            return InputError(f"{label}: is {what}; {remedy}.")
    return None


def _too_long(label: str) -> InputError:
    return InputError(
        f"{label}: has more than {MAX_BYTES >> 20} MiB in one piece; cut it into files or lines."
    )
