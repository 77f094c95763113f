import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from data_pipeline.base import jsonl
from data_pipeline.base.errors import InputError, WriteError
from data_pipeline.base.files import atomic_write, make_folder, refuse_outputs, replace_file, sync
from tests.unit import test_report
from tools import vote
from tools.report import __main__ as report

arguments = test_report.arguments  # a vote over a few tasks


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A null device of the test's own."""
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.write_bytes(b"x")
    except OSError as error:
        pytest.skip(f"no device can be made and used here: {error}")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_content_and_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]


def test_a_folder_is_not_made_where_none_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot be written"):
        replace_file(tmp_path / "gone" / "file", b"", make_folder=False)
    assert names(tmp_path) == []


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file"]


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    synced: list[tuple[bool, bool]] = []  # whether a folder, and whether the file has its name
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"content")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(exists: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.write_bytes(b"before")
    link.symlink_to(Path("elsewhere") / "target")
    replace_file(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert names(target.parent) == ["target"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_device_stays_a_device(through_a_link: bool, device: Path, tmp_path: Path) -> None:
    path = device
    if through_a_link:
        path = tmp_path / "link"
        path.symlink_to(device)
    before = names(tmp_path)
    replace_file(path, b"content")
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert names(tmp_path) == before


@pytest.mark.parametrize("command", [vote.main, report.main])
def test_commands_write_to_a_device(
    command: Callable[[list[str]], int], arguments: list[str], device: Path
) -> None:
    assert command([*arguments[:-1], str(device)]) == 0
    assert stat.S_ISCHR(device.lstat().st_mode)


def read_in_background(path: Path) -> tuple[threading.Thread, list[bytes]]:
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, received


def test_a_fifo_passes_the_content_on(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread, received = read_in_background(fifo)
    replace_file(fifo, b"content" * 100_000)
    thread.join(10)
    assert received == [b"content" * 100_000]
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert names(tmp_path) == ["fifo"]


def test_a_pipe_under_proc_is_written(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # as /dev/stdout is in `... | less`
    try:
        replace_file(f"/proc/self/fd/{writing}", b"content")
        assert os.read(reading, 100) == b"content"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(
            WriteError, match=r"cannot be written \(it is a folder\); give the name of a file"
        ):
            replace_file(path, b"")
    assert names(tmp_path) == ["link"]


def test_a_link_to_a_folder_that_is_not_there_yet_makes_it(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("scratch/me/runs")
    make_folder(tmp_path / "runs" / "new")
    assert (tmp_path / "scratch" / "me" / "runs" / "new").is_dir()


def test_a_file_in_place_of_a_folder_is_called_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="it is no folder"):
        make_folder(tmp_path / "file")


@pytest.mark.parametrize("path", ["file/below", "loop", "x" * 300])
def test_a_place_that_cannot_be_written_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(
        WriteError, match=r"cannot be written .*; look at the path and its rights, or choose another place"
    ) as error:
        replace_file(tmp_path / path, b"")
    assert str(tmp_path / path) in str(error.value)
    assert names(tmp_path) == ["file", "loop"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_folders_will_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_at_all_will_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    replace_file(tmp_path / "file", b"content")
    jsonl.append(tmp_path / "log", "1")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert jsonl.read(tmp_path / "log") == [1]


def test_a_disk_that_fails_to_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").touch()
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO))))
    for path in (tmp_path / "there", tmp_path):
        with pytest.raises(OSError, match="Input/output error"):
            sync(path)
    with pytest.raises(WriteError, match="Input/output error"):
        replace_file(tmp_path / "file", b"content")
    assert names(tmp_path) == ["there"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "free some space there"),
        (errno.EFBIG, "`ulimit -f`"),
        (errno.EROFS, "or choose another place"),
        (errno.EACCES, "its rights"),
    ],
)
def test_what_keeps_from_writing_decides_the_remedy(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    with pytest.raises(WriteError, match=remedy):
        replace_file(tmp_path / "file", b"content")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("read", "is among the files"),
        ("other/../read", "is among the files"),
        ("link", "is among the files"),
        ("whole/new", "is among the files"),
        ("taken", "is the file of --first, too"),
        ("other", "cannot be written"),
    ],
)
def test_outputs_that_would_destroy_something_are_refused(output: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "read").touch()
    (tmp_path / "link").symlink_to(tmp_path / "read")
    outputs = {"--first": tmp_path / "taken", "--second": tmp_path / output}
    with pytest.raises(InputError, match=f"--second {tmp_path / output}: {words}"):
        refuse_outputs(outputs, [tmp_path / "read", tmp_path / "whole"])


def test_outputs_beside_what_is_read_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    outputs = {"--first": tmp_path / "before", "--second": tmp_path / "read.json", "--third": None}
    refuse_outputs(outputs, [tmp_path / "read"])
    assert [path.name for path in tmp_path.iterdir()] == ["before"]  # and nothing is made yet


def test_a_device_may_take_several_outputs(device: Path) -> None:
    refuse_outputs({"--first": device, "--second": device}, [])
    with pytest.raises(InputError):
        refuse_outputs({"--first": device.with_name("file"), "--second": device.with_name("file")}, [])
