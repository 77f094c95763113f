import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.base import locks
from hrm_dist import run_lock
from hrm_dist.config import ConfigError
from hrm_dist.run_lock import holder, locked

HOLD = """
import sys, time
from pathlib import Path
from hrm_dist.run_lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
LEAVE_A_CHILD = """
import os, sys, time
from pathlib import Path
from hrm_dist.run_lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    os._exit(0)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run"


@pytest.fixture
def other(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_run_folder_in_use_is_refused_with_host_and_pid(run: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(ConfigError) as refused, locked(run):
        pass
    message = str(refused.value)
    assert f"checkpoint_path={run}: another run trains here" in message
    assert f"host {socket.gethostname()}, pid {other.pid}" in message
    assert "choose another checkpoint_path" in message


def test_a_job_that_slurm_started_again_waits_for_the_end_of_its_old_processes(
    run: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    said: list[str] = []

    def end_it(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        other.kill()
        return True

    monkeypatch.setattr(run_lock.logger, "filters", [end_it])
    monkeypatch.setattr(run_lock.logger, "level", logging.INFO)
    with locked(run):
        assert f"pid {os.getpid()}\n" in (run / ".lock").read_text()
    [line] = said
    assert f"host {socket.gethostname()}, pid {other.pid}); waiting for their end, up to 300 s" in line


def test_it_does_not_wait_forever(
    run: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(run_lock, "_RESTARTED_WAITS_S", 0.1)
    monkeypatch.setattr(locks, "_POLL_S", 0.01)
    with pytest.raises(ConfigError, match=f"another run trains here .*pid {other.pid}"), locked(run):
        pass


def test_the_holder_is_named_without_taking_or_making_anything(run: Path, tmp_path: Path) -> None:
    assert holder(run) is None
    assert not run.parent.exists()
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        written = (run / ".lock").read_text()
        assert holder(run) == f"host {socket.gethostname()}, pid {process.pid}" == written.strip()
        assert holder(run) is not None  # the lock has survived the first question
        process.kill()
    assert holder(run) is None  # though the file is there
    assert (run / ".lock").read_text() == written
    with locked(run):
        pass


def test_asking_for_the_holder_does_not_end_the_own_lock(run: Path) -> None:
    with locked(run):
        assert holder(run) is None  # no other process
        assert holder(run.parent / ".." / run.parent.name / run.name) is None
        command = "import sys, pathlib; from hrm_dist.run_lock import holder; print(holder(pathlib.Path(sys.argv[1])))"
        asked = subprocess.run(
            [sys.executable, "-c", command, run], capture_output=True, text=True, check=True
        )
        assert asked.stdout.strip() == f"host {socket.gethostname()}, pid {os.getpid()}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process_however_that_ends(
    number: signal.Signals, run: Path, other: subprocess.Popen[str]
) -> None:
    other.send_signal(number)
    other.wait()
    assert str(other.pid) in (run / ".lock").read_text()
    with locked(run):
        assert (run / ".lock").read_text() == f"host {socket.gethostname()}, pid {os.getpid()}\n"


def test_a_child_does_not_keep_the_lock(run: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVE_A_CHILD, run], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait()
        try:
            with locked(run):
                os.kill(child, 0)  # raises if it is gone
        finally:
            os.kill(child, signal.SIGKILL)


def test_folders_made_for_a_run_that_writes_nothing_are_removed(run: Path) -> None:
    with pytest.raises(ValueError, match="bad"), locked(run):
        raise ValueError("bad")
    assert not run.parent.exists()
    run.mkdir(parents=True)
    with locked(run):
        pass
    assert run.exists()  # it was there before


def test_a_folder_in_which_something_was_written_stays(run: Path) -> None:
    with locked(run):
        (run / "config.yaml").touch()
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_file_system_without_locks_gives_a_warning(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with locked(run):
        assert "this file system has no locks; start only one run in the folder" in caplog.text


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("dataset.json", "."),
        ("checkpoints/step_4/state.json", "checkpoints/step_4"),
        ("checkpoints/step_4/state.json", "checkpoints/step_4/deep/er"),
        ("config.yaml", "checkpoints"),
    ],
)
def test_a_run_is_not_put_where_something_else_is(file: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ConfigError, match="a run needs a folder of its own"), locked(tmp_path / folder):
        pass
    assert not (tmp_path / folder / ".lock").exists()


def test_a_run_may_be_beside_its_data_and_other_runs(tmp_path: Path) -> None:
    for file in ("dataset.json", "other/config.yaml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    for folder in ("run", "other", "checkpoints"):
        with locked(tmp_path / folder):
            assert (tmp_path / folder / ".lock").exists()
