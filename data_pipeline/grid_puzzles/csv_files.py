"""The CSV files of a source: which there are, what is held out, and their text, whatever it is packed in."""

import codecs
import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeGuard, cast

from data_pipeline.base.errors import InputError
from data_pipeline.base.extras import require
from data_pipeline.holdout import file_says, folder_says
from data_pipeline.kind import Role, split_role

HUB_PREFIX = "hub:"
CsvFile = Path | zipfile.Path
"""A file, a member of an archive, or a split of a dataset of the published code."""

_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_HELD_OUT = frozenset(
    {"test", "tests", "testing", "eval", "evaluation", "val", "validation", "holdout", "heldout"}
)
_TRAINING = frozenset({"train", "training"})
_DAMAGED_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, IndexError, ValueError, struct.error)
_DAMAGE = (OSError, EOFError, zlib.error, *_DAMAGED_ZIP)
_OTHER_FORMAT = "in another format; save puzzles as CSV"
_UNNAMED = "whose names do not say what they are for, beside others that do"
_GZIP = b"\x1f\x8b"


class SplitFiles(NamedTuple):
    """The files of a source, by what they are for."""

    train: list[CsvFile]
    test: list[CsvFile]
    not_read: list[tuple[str, CsvFile]]
    """Further files in a folder or archive, each with the reason."""


def find_files(source: str) -> SplitFiles:
    """Find the files of PATH[:train|:evaluation] or of `hub:OWNER/NAME[@REVISION]`.

    A path is a CSV file, a folder or zip archive of some, or a dataset of the published code. Its name says whether a
    file is held out, or else the nearest folder that says it, up to that of the source (see `holdout`). Beside files
    of which a name says it, others are not read; where there are none, all train. A suffix overrides the names.
    """
    if source.startswith(HUB_PREFIX):
        return _from_hub(source)
    path, role = split_role(source)
    files: list[tuple[CsvFile, tuple[str, ...]]] = []
    others: list[CsvFile] = []
    try:
        if path.is_dir():
            own = path.resolve()
            splits = [folder for folder in (path, path / "train", path / "test") if is_published(folder)]
            files += [(split, (*split.resolve().parts[-2:], "")) for split in splits]
            if not splits:
                files += [(file, (own.name, *file.relative_to(path).parts)) for file in _walk(path)]
                others = [file for file, _ in files if not _is_csv(file)]
        elif path.is_file() and zipfile.is_zipfile(path):
            files += [(file, (path.stem, *file.at.split("/"))) for file in _members(path)]
            others = [file for file, _ in files if not _is_csv(file)]
        elif path.is_file():
            files.append((path, (path.resolve().parent.name, path.name)))
    except (OSError, *_DAMAGED_ZIP) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path and its rights.") from None
    files = [(file, names) for file, names in files if file not in others]
    if not files:
        raise InputError(
            f"{path}: no such file, nor a folder or zip archive with *.csv files, nor a dataset of the published code; "
            "give the CSV file of the puzzles or the folder of several, optionally followed by :train or :evaluation."
        )
    found = SplitFiles([], [], [(_OTHER_FORMAT, file) for file in others])
    role_of = {file: _role(names) for file, names in files}
    are_named = any(role_of.values())
    for file, own in sorted(role_of.items(), key=lambda item: item[1] == "evaluation"):
        if are_named and own is None:
            found.not_read.append((_UNNAMED, file))
        else:
            (found.test if (role or own) == "evaluation" else found.train).append(file)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder in the order of their paths; links are followed, and hidden names left out."""
    seen: set[str] = set()
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link has led back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(place, name) for name in names if not _is_hidden(name)]
    return iter(sorted(found))


def _fail(error: OSError) -> None:
    raise error


def _members(path: Path) -> Iterator[zipfile.Path]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
    return (
        zipfile.Path(str(path), name)
        for name in names
        if not name.endswith("/") and not any(map(_is_hidden, name.split("/")))
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_csv(file: CsvFile) -> bool:
    return file.name.lower().endswith(_ENDINGS)


def _role(names: tuple[str, ...]) -> Role | None:
    """Return what a file is for, by its own name, or else by that of the nearest folder that says it."""
    *folders, name = names
    for held_out in (file_says(name), *map(folder_says, reversed(folders))):
        if held_out is not None:
            return "evaluation" if held_out else "train"
    return None


def _from_hub(source: str) -> SplitFiles:
    name, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    require("hub", source)
    import huggingface_hub

    try:
        download = cast(Callable[..., str], huggingface_hub.hf_hub_download)  # pyright: ignore[reportUnknownMemberType]
        train, test = (
            Path(download(name, file, repo_type="dataset", revision=revision or None))
            for file in ("train.csv", "test.csv")
        )
    except (OSError, ValueError) as error:  # its errors, those of the connection included, are of these kinds
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{source}: cannot be downloaded ({type(error).__name__}: {reason}); check the name and the network, "
            "or download train.csv and test.csv elsewhere and give their folder."
        ) from None
    return SplitFiles([train], [test], [])


def is_published(file: CsvFile) -> TypeGuard[Path]:
    """Return whether this is a folder that `published` reads, a split of a dataset of the published code."""
    return isinstance(file, Path) and (file / "dataset.json").is_file() and any(file.glob("*__inputs.npy"))


@contextmanager
def open_bytes(file: CsvFile) -> Generator[BinaryIO]:
    """Open a file for its bytes, unpacked. Raise InputError for whatever cannot be read."""
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(cast(BinaryIO, file.open("rb")))
            if _head(stream).startswith(_GZIP):
                stream = stack.enter_context(cast(BinaryIO, gzip.GzipFile(fileobj=stream)))
            yield stream
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{file}: cannot be read ({reason}); check the path, its rights and the disk, or download it again."
        ) from None


@contextmanager
def open_text(file: CsvFile) -> Generator[BinaryIO]:
    """Open a file as UTF-8 without a byte order mark; otherwise as `open_bytes`."""
    with open_bytes(file) as stream:
        head = _head(stream)
        if head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        encoding = _wide_encoding(head)
        yield cast(BinaryIO, codecs.EncodedFile(stream, "utf-8", encoding)) if encoding else stream


def _head(stream: BinaryIO) -> bytes:
    return cast(io.BufferedReader, stream).peek(4)[:4]


def _wide_encoding(head: bytes) -> str | None:
    """Return which UTF-16 a text begins in, if any; without a mark, every other byte of ASCII is 0."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    is_zero = [byte == 0 for byte in head]
    if is_zero == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if is_zero == [True, False, True, False] else None
