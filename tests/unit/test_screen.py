"""What becomes of a command whose output nobody reads, or that cannot be shown as it is."""

import errno
import os
import pty
import subprocess
import sys
from collections.abc import Sequence

import pytest

PRINT_MUCH = "[print('x' * 100) for _ in range(10_000)]"
LOG_MUCH = "[print('x' * 100, file=sys.stderr) for _ in range(10_000)]"


def command(body: str, buffered: bool = True) -> list[str]:
    code = f"""
import os, sys
from data_pipeline.base.errors import exit_code
def body():
    {body}
    os.write(int(sys.argv[1]), b"done") if len(sys.argv) > 1 else None
    return 0
sys.exit(exit_code(body))
"""
    return [sys.executable, *([] if buffered else ["-u"]), "-c", code]


def run(arguments: Sequence[str], **settings: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(arguments, capture_output=True, env={**environment, **settings}, timeout=60)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(("stream", "body"), [("stdout", PRINT_MUCH), ("stderr", LOG_MUCH)])
def test_a_command_whose_reader_has_gone_does_its_work(stream: str, body: str, buffered: bool) -> None:
    reading, writing = os.pipe()
    done, tell = os.pipe()
    os.close(reading)
    others = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writing}
    process = subprocess.Popen(
        [*command(body, buffered), str(tell)],
        pass_fds=[tell],
        stdout=others["stdout"],
        stderr=others["stderr"],
    )
    os.close(writing)
    os.close(tell)
    assert (process.wait(timeout=60), os.read(done, 10)) == (0, b"done")
    os.close(done)


def test_a_command_whose_terminal_was_closed_does_its_work() -> None:
    ours, theirs = pty.openpty()
    done, tell = os.pipe()
    body = f"sys.stdin.readline(); {PRINT_MUCH}; {LOG_MUCH}"
    process = subprocess.Popen(
        [*command(body), str(tell)], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, pass_fds=[tell]
    )
    os.close(theirs)
    os.close(tell)
    os.close(ours)
    process.communicate(b"\n", timeout=60)
    assert (process.returncode, os.read(done, 10)) == (0, b"done")
    os.close(done)


def test_a_command_without_standard_streams_does_its_work() -> None:
    body = "print('text'); print('log', file=sys.stderr); assert not sys.stdout.isatty() and os.fstat(1)"
    arguments = ["sh", "-c", '"$@" >&- 2>&-', "sh", *command(body)]
    assert run(arguments).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_stdout_is_one_line_and_under_stderr_nothing() -> None:
    out = run(["sh", "-c", '"$@" >/dev/full', "sh", *command("print('result')")])
    assert out.returncode == 2
    assert out.stderr.startswith(f"error: stdout: cannot be written ({os.strerror(errno.ENOSPC)})".encode())
    assert out.stderr.count(b"\n") == 1
    log = run(["sh", "-c", '"$@" 2>/dev/full', "sh", *command(LOG_MUCH)])
    assert log.returncode == 0


def test_letters_beyond_the_encoding_are_shown_by_number() -> None:
    shown = run(command(r"print('t\u00e4sk \u2192 \udcff')"), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (shown.returncode, shown.stdout) == (0, rb"t\xe4sk \u2192 \udcff" + b"\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ENOSPC", b"cannot be written (why)"),
        ("EDQUOT", b"cannot be written (why)"),
        ("EROFS", b"cannot be written (why)"),
        ("EACCES", b"cannot be read (why)"),
        ("EISDIR", b"cannot be read (why)"),
        ("EIO", b"cannot be read (why)"),
        ("ENOENT", b"Traceback"),  # may well be the program's fault
    ],
)
def test_what_the_system_refuses_is_one_line_whatever_asked(error: str, said: bytes) -> None:
    end = run(command(f"import errno; raise OSError(errno.{error}, 'why', 'some/file')"))
    assert end.returncode == (1 if error == "ENOENT" else 2)
    assert said in end.stderr
    assert b"some/file" in end.stderr
    assert (end.stderr.count(b"\n") == 1) == (error != "ENOENT")


def test_names_that_are_read_as_ascii_come_with_the_remedy() -> None:
    body = "from data_pipeline.base.errors import InputError; raise InputError(sys.argv[1])"
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    end = run([*command(body), "n\u00e4me"], **settings)
    assert end.returncode == 2
    assert b"set PYTHONUTF8=1" in end.stderr
    end = run([*command(body), "n\u00e4me"], **{**settings, "PYTHONUTF8": "1"})
    assert end.stderr == b"error: n\\xe4me\n"
