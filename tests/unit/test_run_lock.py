import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrm_dist.config import ConfigError
from hrm_dist.run_lock import locked

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
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_run_folder_in_use_is_refused_with_host_and_pid(run: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ConfigError) as refused, locked(run):
        pass
    message = str(refused.value)
    assert f"checkpoint_path={run}: another run trains here" in message
    assert f"host {socket.gethostname()}, pid {holder.pid}" in message
    assert "choose another checkpoint_path" in message


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process_however_that_ends(
    number: signal.Signals, run: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(number)
    holder.wait()
    assert str(holder.pid) in (run / ".lock").read_text()
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
