"""How a command says why it ends, to its user and to torchrun, which quotes it."""

import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from data_pipeline.base.errors import InputError, exit_code, last_words

SAYS = "error: lr=-1 is negative; give another."


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file where torchrun looks for the reason of a process's end."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    return path


def last_line(report: Path) -> str:
    """What stands last in what torchrun prints, above its ruler."""
    text = str(ChildFailedError("train", {0: ProcessFailure(0, 4711, 2, str(report))}))
    return text.splitlines()[-2]


def refuse() -> int:
    raise InputError(SAYS.removeprefix("error: "))


def leave() -> int:
    sys.exit(SAYS)


def fail() -> int:
    raise ZeroDivisionError("no such number")


def test_torchrun_ends_with_the_line_of_bad_input(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(refuse) == 2
    assert last_line(report).endswith(SAYS)
    assert capsys.readouterr().err == f"{SAYS}\n"


def test_torchrun_ends_with_what_a_process_said_when_it_left(report: Path) -> None:
    with pytest.raises(SystemExit):
        exit_code(leave)
    assert last_line(report).endswith(SAYS)


def test_torchrun_ends_with_the_last_line_of_a_traceback(report: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(fail)
    assert last_line(report).endswith("ZeroDivisionError: no such number")


def test_a_report_that_cannot_be_written_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "missing" / "error.json"))
    last_words(SAYS)
    assert capsys.readouterr().err == f"{SAYS}\n"
