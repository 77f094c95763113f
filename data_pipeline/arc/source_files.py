"""The files of a source: what lies in a folder or a .zip, which of it is read, and what names say of it.

Links are followed, and a file is read once. Hidden files, and what systems and tools leave behind, are no part of a
source. All else that is not read is counted, with the reason; what cannot be read is an error.
"""

import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from data_pipeline.arc.json_text import DAMAGED_ZIP
from data_pipeline.base.errors import InputError, unreadable
from data_pipeline.holdout import file_says, folder_says, words

_BUILT = "built as a dataset from tasks"
_ARCHIVES = "packed as an archive; give a .zip as a source of its own, unpack others"
_TABLES = "in a format that is not read; convert to JSON"
_OTHERS = "without JSON"
_FURTHER_NAMES = "linked to what is read anyway"
_LOOPS = "linked to a folder that it lies in"

_LINES = (".jsonl", ".ndjson")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_UNREAD = {
    _ARCHIVES: (".zip", ".tar", ".tgz", ".7z", ".rar"),
    _TABLES: (".parquet", ".arrow", ".npz", ".npy", ".csv", ".tsv", ".pkl", ".pt", ".h5"),
}
_LEFT_BEHIND = {
    "__macosx",
    "__pycache__",
    "node_modules",
    "lost+found",
    "$recycle.bin",
    "system volume information",
}
_SOLUTIONS, _CHALLENGES = {"solution", "solutions"}, {"challenge", "challenges"}


class SourceFile(NamedTuple):
    """A file of tasks, perhaps within an archive."""

    label: str
    """What messages call it."""
    path: str
    """Within the source."""
    folder_says: bool | None
    """Whether the names of its folders hold it out; None where they say nothing."""
    name_says: bool | None
    """Whether its own name does."""
    open: Callable[[], IO[bytes]]

    @property
    def name(self) -> str:
        return _uncompressed(PurePosixPath(self.path).name)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def is_solutions(self) -> bool:
        return not _SOLUTIONS.isdisjoint(words(self.stem))

    @property
    def is_challenges(self) -> bool:
        return not _CHALLENGES.isdisjoint(words(self.stem))

    @property
    def release(self) -> tuple[str, tuple[str, ...]]:
        """Return what a file of challenges and that of their solutions have in common."""
        return self.folder, tuple(word for word in words(self.stem) if word not in _SOLUTIONS | _CHALLENGES)

    @property
    def is_lines(self) -> bool:
        return self.name.lower().endswith(_LINES)


class Found(NamedTuple):
    """What a source consists of."""

    files: list[SourceFile]
    not_read: dict[str, list[str]]
    """Reason to paths within the source."""
    is_file: bool
    """Whether a file was given, and not a folder or an archive."""


def true_name(path: Path) -> str:
    """Return the name of a source, which does not depend on how its path is written, nor on links to it."""
    real = os.path.realpath(path)
    name = os.path.basename(real)
    # A link of a cache may lead to a file whose name is a checksum.
    return name if os.path.isdir(real) or _reason_not_to_read(name) is None else path.name or name


@contextmanager
def find_files(path: Path) -> Generator[Found]:
    """Yield the files of a source in the order of their names; they can be opened as long as the block lasts.

    Raise InputError for a path that is not there, and for all that ought to be read and cannot be.
    """
    with ExitStack() as stack:
        try:
            found = _scan(path, stack)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{path}: no such file or folder; give a file of tasks, a folder or .zip of them, optionally followed "
                "by :train or :evaluation."
            ) from None
        except OSError as error:
            raise unreadable(Path(error.filename or path), error) from None
        except RecursionError:
            raise InputError(f"{path}: folders are nested too deeply; give a folder further in.") from None
        except DAMAGED_ZIP as error:
            raise InputError(
                f"{path}: a damaged or unusual .zip ({error}); unpack it and give the folder."
            ) from None
        yield found


def _scan(path: Path, stack: ExitStack) -> Found:
    scan = _Scan(path)
    real = os.path.realpath(path)
    mode = os.stat(real).st_mode
    if stat.S_ISDIR(mode):
        scan.root(real)
    elif not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a pipe or a device; save it to a file, and give that.")
    elif zipfile.is_zipfile(real):
        scan.members(stack.enter_context(zipfile.ZipFile(real)), real)
    else:
        scan.file_alone(real)
    return scan.found()


class _Scan:
    """Gathers the files of a source."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, SourceFile] = {}  # by their real paths
        self._not_read: defaultdict[str, list[str]] = defaultdict(list)
        self._is_file = False
        self._visited: set[tuple[str, bool | None]] = set()

    def found(self) -> Found:
        return Found(list(self._files.values()), self._not_read, self._is_file)

    def root(self, real: str) -> None:
        if _is_built(os.listdir(real)):
            raise InputError(
                f"{self._path}: is a dataset that was built of tasks, not the tasks; give what it was built from."
            )
        self._folder("", real, self._own_names_say(folder_says, real))

    def file_alone(self, real: str) -> None:
        """Add a file that was given itself, whatever its name; the folder that it lies in counts, too."""
        opened = partial(open, real, "rb")
        given = SourceFile(
            str(self._path),
            true_name(self._path),
            self._folder_around_says(real),
            self._own_names_say(file_says, real),
            opened,
        )
        self._files[real] = given
        self._is_file = True
        folders = {os.path.realpath(folder): folder for folder in (Path(real).parent, self._path.parent)}
        for folder in folders.values():
            for name in sorted(os.listdir(folder)):
                beside = given._replace(path=name)
                if (
                    beside.is_solutions
                    and beside.release == given.release
                    and not _is_left_behind(name)
                    and _reason_not_to_read(name) is None
                ):
                    self._add(os.path.realpath(folder / name), name, str(folder / name), None, None)

    def members(self, archive: zipfile.ZipFile, real: str) -> None:
        """Add the files of a .zip, to be read from where they are."""
        own = _first(
            self._own_names_say(lambda name: folder_says(PurePosixPath(name).stem), real),
            self._folder_around_says(real),
        )
        infos = {
            PurePosixPath(info.filename.replace("\\", "/")): info
            for info in archive.infolist()
            if not info.is_dir()
        }
        names_in: defaultdict[PurePosixPath, set[str]] = defaultdict(set)
        for path in infos:
            names_in[path.parent].add(path.name)
        built = {folder for folder, names in names_in.items() if _is_built(names)}
        for folder in built:
            self._not_read[_BUILT].append(str(folder))
        for path, info in sorted(infos.items()):
            if any(map(_is_left_behind, path.parts)) or not built.isdisjoint(path.parents):
                continue
            label = f"{self._path}/{path}"
            if stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & 1:
                what = "encrypted" if info.flag_bits & 1 else "a link within an archive"
                raise InputError(f"{label}: is {what}; unpack the archive and give the folder.")
            says = own
            for name in path.parts[:-1]:
                says = _first(folder_says(name), says)
            self._add(str(path), str(path), label, says, file_says(path.stem), partial(archive.open, info))

    def _own_names_say(self, says: Callable[[str], bool | None], real: str) -> bool | None:
        """Return what the given path's own name says, or else that of what it leads to."""
        return _first(says(self._path.name), says(os.path.basename(real)))

    def _folder_around_says(self, real: str) -> bool | None:
        """Return what the name of the folder of the given file says."""
        folders = (os.path.realpath(self._path.parent), os.path.dirname(real))
        return _first(*(folder_says(os.path.basename(folder)) for folder in folders))

    def _folder(self, inside: str, real: str, says: bool | None) -> None:
        """Add the files below a folder, unless a link has led to it before."""
        if (real, says) in self._visited:
            self._not_read[_FURTHER_NAMES].append(inside)
            return
        self._visited.add((real, says))
        with os.scandir(self._path / inside) as entries:
            names = {entry.name: entry for entry in entries}
        if _is_built(names):
            self._not_read[_BUILT].append(inside)
            return
        for name in sorted(names):
            if not _is_left_behind(name):
                self._entry(names[name], f"{inside}/{name}" if inside else name, real, says)

    def _entry(self, entry: os.DirEntry[str], inside: str, folder: str, says: bool | None) -> None:
        label = str(self._path / inside)
        is_link = entry.is_symlink()
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if is_link:
                raise InputError(
                    f"{label}: is a link to {os.readlink(label)}, which cannot be followed ({error.strerror}); mend "
                    "or remove the link."
                ) from None
            raise unreadable(Path(label), error) from None
        real = os.path.realpath(label) if is_link else os.path.join(folder, entry.name)
        names = (entry.name, os.path.basename(real))
        if stat.S_ISDIR(mode):
            if os.path.join(folder, "").startswith(os.path.join(real, "")):
                self._not_read[_LOOPS].append(inside)
            else:
                self._folder(inside, real, _first(*map(folder_says, names), says))
        elif stat.S_ISREG(mode):
            says = _first(says, folder_says(os.path.basename(os.path.dirname(real))) if is_link else None)
            self._add(real, inside, label, says, _first(*map(file_says, names)))
        else:
            self._not_read[_OTHERS].append(inside)

    def _add(
        self,
        real: str,
        inside: str,
        label: str,
        folder_says: bool | None,
        name_says: bool | None,
        open_: Callable[[], IO[bytes]] | None = None,
    ) -> None:
        reason = _reason_not_to_read(inside)
        if reason is not None:
            self._not_read[reason].append(inside)
            return
        there = self._files.get(real)
        if there is None:
            self._files[real] = SourceFile(
                label, inside, folder_says, name_says, open_ or partial(open, real, "rb")
            )
            return
        self._not_read[_FURTHER_NAMES].append(inside)
        # By whichever name it is held out, it is.
        self._files[real] = there._replace(
            folder_says=folder_says or there.folder_says, name_says=name_says or there.name_says
        )


def _first(*said: bool | None) -> bool | None:
    return next((one for one in said if one is not None), None)


def _is_left_behind(name: str) -> bool:
    return name.startswith((".", "~")) or name.lower() in _LEFT_BEHIND


def _is_built(names: Iterable[str]) -> bool:
    """Tell the folder of a dataset, ours or one of the published code, by the names in it."""
    found = set(names)
    is_ours = {"identifiers.json", "test_puzzles.json"} <= found
    return is_ours or {"identifiers.json", "train", "test"} <= found or "all__inputs.npy" in found


def _uncompressed(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _COMPRESSIONS else name


def _reason_not_to_read(path: str) -> str | None:
    name = _uncompressed(path).lower()
    if name.endswith((".json", *_LINES)):
        return None
    return next((reason for reason, suffixes in _UNREAD.items() if name.endswith(suffixes)), _OTHERS)
