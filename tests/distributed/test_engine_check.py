"""The check of the engines in real processes: it passes, and it can fail."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.check_engines import __main__ as check_engines

pytestmark = pytest.mark.distributed


def check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what is printed, and its last line."""
    monkeypatch.setattr(sys, "argv", ["check_engines", "--device", "cpu", *map(str, arguments)])
    code = check_engines.main()
    printed = capsys.readouterr().out
    return code, printed, json.loads(printed.splitlines()[-1])


def test_two_engines_on_two_processes_are_equal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--engines", "zero2,fsdp2", "--world-sizes", 2, "--steps", 3, "--keep", tmp_path / "runs"]
    code, printed, report = check(monkeypatch, capsys, *options)
    assert code == 0, printed
    assert report["equal"]
    assert [(run["engine"], run["world_size"], run["status"]) for run in report["runs"]] == [
        ("zero2", 2, "equal"),
        ("fsdp2", 2, "equal"),
    ]
    for run in report["runs"]:
        assert 0 < run["gradient"] < 1e-6
        assert run["losses"] < 1e-6
    assert (tmp_path / "runs" / "zero2-2.rank1.log").exists()
    assert (tmp_path / "runs" / "reference" / "checkpoints" / "step_3").is_dir()


def test_a_run_with_another_learning_rate_is_different(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--engines", "ddp", "--world-sizes", 1, "--steps", 1, "lr=2e-4"]
    code, printed, report = check(monkeypatch, capsys, *options)
    assert code == 1
    assert "ddp x 1: different: weights after step 1" in printed
    assert (report["equal"], report["runs"][0]["status"]) == (False, "different")


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Sixteen sequences make sixteen parts on one process, and not on two.
    options = ["--engines", "ddp", "--world-sizes", "2,1", "--steps", 1, "gradient_accumulation_steps=16"]
    code, printed, report = check(monkeypatch, capsys, *options)
    assert code == 1
    assert [run["status"] for run in report["runs"]] == ["failed", "equal"]
    assert "exit code 2" in printed
    assert "gradient_accumulation_steps=16" in printed
