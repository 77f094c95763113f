"""Work shared among processes, and where there can be none."""

import errno
import operator
import os
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest

from data_pipeline.base.parallel import run_jobs

JOBS = list(range(10))


def test_workers_do_every_job() -> None:
    assert sorted(run_jobs(operator.add, 1, JOBS, workers=2)) == [job + 1 for job in JOBS]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EACCES, errno.ENOSYS])
def test_without_semaphores_one_process_does_the_work(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    assert list(run_jobs(operator.add, 1, JOBS, workers=2)) == [job + 1 for job in JOBS]
    assert f"no worker processes can be started here ([Errno {number}] {os.strerror(number)})" in caplog.text


def test_without_a_fork_server_one_process_does_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(forkserver, "ensure_running", refuse)
    assert list(run_jobs(operator.add, 1, JOBS, workers=2)) == [job + 1 for job in JOBS]
    assert "(AF_UNIX path too long)" in caplog.text


@pytest.mark.parametrize("length", [75, 76])
def test_the_longest_tmpdir_named_in_the_warning_works(length: int, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"{os.getpid():x}".ljust(length - len("/tmp/"), "x")
    code = "import operator as o; from data_pipeline.base.parallel import run_jobs as r; print(*r(o.add, 1, [1], 2))"
    folder.mkdir()
    try:
        environment = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    finally:
        for made in folder.iterdir():
            made.rmdir()
        folder.rmdir()
    assert done.stdout == "2\n"
    assert ("TMPDIR has to be a folder where this user can write, of at most 75" in done.stderr) == (
        length > 75
    )
