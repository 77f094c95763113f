from pathlib import Path

import pytest

from data_pipeline.base.errors import InputError
from tools.adapt.children import CommandError, Commands, Ended

COMMAND = """\
import signal, sys, time
def stop(*_):
    print("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
print("error: because of this", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a_command.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "log"


def run(log: Path, argument: object) -> Ended:
    """Run the command, told to stop once it has begun."""
    commands = Commands(log, num_processes=1, num_threads=None)
    has_begun = lambda: argument == "wait" and "begun" in log.read_text()  # noqa: E731
    return commands.run("a_command", [argument], has_begun, lambda _: None)


def test_a_command_that_is_told_to_stop_saves_what_it_has(log: Path) -> None:
    assert run(log, "wait").was_stopped
    assert log.read_text().endswith("saved\n")


def test_what_a_command_has_said_is_without_what_was_said_before(log: Path) -> None:
    log.write_text("of an earlier one\n")
    assert run(log, 0).said.splitlines() == ["begun", "error: because of this"]


def test_a_command_that_ends_by_itself_is_not_stopped(log: Path) -> None:
    assert not run(log, 0).was_stopped


@pytest.mark.parametrize(("code", "kind"), [(1, CommandError), (2, InputError)])
def test_a_command_that_fails_says_why(code: int, kind: type[Exception], log: Path) -> None:
    log.write_text("error: of an earlier one\n")
    with pytest.raises(kind, match="a_command: because of this"):
        run(log, code)


def test_a_command_that_somebody_else_has_stopped_stops_all(log: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(log, 75)
