"""What launch.doctor says of folders, shared memory and TMPDIR that lack something."""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from hrm_dist.distributed.launch_env import DistEnv
from launch.doctor import file_system, local_checks
from launch.doctor.results import CheckResult

ENV = DistEnv(rank=0, world_size=1, local_rank=0)


def found(folder: Path) -> list[str]:
    lines = [line for line in file_system.check(folder) if isinstance(line, CheckResult)]
    assert not list(folder.iterdir())
    return [f"{line.level} {line.what} -> {line.todo}" for line in lines]


def test_an_ordinary_folder_lacks_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("os.symlink", errno.EPERM, "warn no symbolic links (Operation not permitted)"),
        ("os.symlink", errno.EOPNOTSUPP, "warn no symbolic links (Operation not supported)"),
        ("os.link", errno.EPERM, "warn no hard links"),
        ("os.fsync", errno.EINVAL, "warn files cannot be synced"),
        ("pathlib.os.replace", errno.EXDEV, "FAIL files cannot be replaced"),
    ],
)
def test_what_a_file_system_lacks_is_said(
    name: str, number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, mock.Mock(side_effect=OSError(number, os.strerror(number))))
    lines = found(tmp_path)
    assert any(line.startswith(said) for line in lines)
    assert len(lines) == (2 if name == "os.fsync" else 1)


def limits() -> Sequence[str]:
    return [str(line) for line in local_checks.limits(ENV)]


def test_shared_memory_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_checks, "SHARED_MEMORY", "/nowhere/shm")
    [line] = [line for line in limits() if line.startswith("warn")]
    assert "/nowhere/shm cannot be used" in line
    assert "so builds have one process" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "cannot be written; "),
        ("x" * 90, "characters, too many for sockets, so builds have one process"),
    ],
)
def test_a_tmpdir_that_will_not_do_is_said(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert any(f"TMPDIR={tmp_path / name}" in line and said in line for line in limits())


def test_a_machine_without_any_place_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError(2, "none")))
    assert any(line.startswith("FAIL") and "set TMPDIR" in line for line in limits())
