"""TensorBoard: what is missing is said before a run begins, and nothing of it stops one that has begun."""

import sys
import threading
from pathlib import Path

import pytest

from hrm_dist.config import TrainConfig
from hrm_dist.run_log import background
from hrm_dist.run_log.entry import Entry
from hrm_dist.run_log.metrics_file import JsonLines
from hrm_dist.run_log.tensorboard_events import TensorBoard
from tests.logged import events
from tests.training import command_line


def opened(run: Path, step: int = 0, *, is_redone: bool = False) -> TensorBoard:
    config = TrainConfig(data_path="d", checkpoint_path=str(run), tensorboard=True)
    return TensorBoard(config, run, step, {}, is_redone=is_redone)


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def train_row(step: int, loss: float = 1.0) -> Entry:
    return Entry(step, {"train/loss": loss})


def score_row(step: int, accuracy: float = 1.0) -> Entry:
    return Entry(step, {"eval/exact_accuracy": accuracy})


def test_what_lies_beyond_the_checkpoint_is_replaced(tmp_path: Path) -> None:
    for first, loss in ((0, 1.0), (2, 0.5)):
        sink = opened(tmp_path, first)
        for step in range(first + 1, first + 4):
            sink.write(train_row(step, loss))
        sink.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5)]


def test_a_run_that_begins_anew_replaces_all(tmp_path: Path) -> None:
    for loss in (1.0, 0.5):
        sink = opened(tmp_path)
        sink.write(train_row(1, loss))
        sink.close()
    assert scalars(tmp_path, "train/loss") == [(1, 0.5)]


def test_an_evaluation_that_is_made_again_stands_once_beside_the_row_of_its_step(tmp_path: Path) -> None:
    """Its checkpoint was written before it, and the process that made it left before the next one."""
    rows = JsonLines(tmp_path / "metrics.jsonl", 0, ())
    first = opened(tmp_path)
    for entry in (train_row(3), score_row(3, 0.25)):
        rows.write(entry)
        first.write(entry)
    first.close()
    JsonLines(tmp_path / "metrics.jsonl", 3, ("eval/",)).close()
    second = opened(tmp_path, 3, is_redone=True)
    second.write(score_row(3, 0.75))
    second.close()
    assert scalars(tmp_path, "train/loss") == [(3, 1.0)]
    assert scalars(tmp_path, "eval/exact_accuracy") == [(3, 0.75)]


def test_a_folder_that_cannot_be_made_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    sink = opened(tmp_path)
    for step in (1, 2):
        sink.write(train_row(step))
    sink.close()
    assert caplog.text.count("TensorBoard is gone (") == 1


def test_packages_that_do_not_fit_each_other_cost_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sink = opened(tmp_path)
    sink.write(train_row(1))
    sink.close()
    assert caplog.text.count("TensorBoard is gone (") == 1


def test_a_disk_that_hangs_does_not_hold_up_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = opened(tmp_path)
    monkeypatch.setattr(sink._file, "add", lambda *_: threading.Event().wait())
    monkeypatch.setattr(background, "GRACE_S", 0.1)
    sink.write(train_row(1))
    sink.close()
    assert caplog.text.count("TensorBoard is gone (it takes no rows)") == 1


def test_a_full_disk_under_the_files_ends_no_run(tmp_path: Path) -> None:
    code = f"""
import logging, resource
from pathlib import Path
from tests.unit.test_tensorboard_events import opened, train_row
logging.basicConfig(level=logging.WARNING)
sink = opened(Path({str(tmp_path)!r}))
written = sum(file.stat().st_size for file in Path({str(tmp_path / "tensorboard")!r}).iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (written + 100, written + 100))
for step in range(1, 200):
    sink.write(train_row(step))
sink.close()
print("trained")
"""
    finished = command_line("-c", code)
    assert finished.exit_code == 0, finished.output
    assert finished.output.count("TensorBoard is gone ([Errno 27] File too large)") == 1, finished.output
    assert "Traceback" not in finished.output
    assert "trained" in finished.output
