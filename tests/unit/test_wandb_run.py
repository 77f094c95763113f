"""W&B: what is wrong is said before a run begins, and nothing of it stops one that has begun."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import InputError
from hrm_dist.config import ConfigError, TrainConfig, load_config
from hrm_dist.run_log import background
from hrm_dist.run_log.entry import Entry
from hrm_dist.run_log.wandb_run import WandB
from tests.training import command_line, num_rows


class FakeRun:
    id = "abc"

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log(self, row: Any, step: int) -> None:
        raise ConnectionResetError("Connection lost")

    def finish(self) -> None: ...

    def define_metric(self, *_: Any, **__: Any) -> None: ...


def online(tmp_path: Path) -> TrainConfig:
    return TrainConfig(data_path="d", checkpoint_path=str(tmp_path / "run"), wandb_mode="online")


def begin(tmp_path: Path, step: int) -> WandB:
    return WandB(online(tmp_path), tmp_path / "run", step, {}, continues=step > 0)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    import wandb

    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setenv("WANDB_DATA_DIR", "unused")  # which a run would set
    return wandb


@pytest.mark.parametrize("name", ["team/arc", "a:b", "50%", "what?", "#1", "a\\b", "x" * 129])
def test_a_project_name_that_it_refuses_is_refused_with_the_configuration(name: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data_path: d")
    with pytest.raises(ConfigError, match=r"project_name=.*choose another name, or set wandb_mode=disabled"):
        load_config(file, [f"project_name={name}", "wandb_mode=offline"])
    assert load_config(file, [f"project_name={name}"]).project_name == name


@pytest.mark.parametrize("error", [ConnectionError("no route\nmore"), ImportError("No module named wandb")])
def test_a_new_run_is_refused_where_it_does_not_begin(
    error: Exception, wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        (tmp_path / "run" / "wandb").mkdir(parents=True)
        raise error

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(InputError, match=re.escape(str(error).splitlines()[0])) as caught:
        begin(tmp_path, 0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_run_that_resumes_goes_on_offline(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes: list[str] = []

    def init(**given: Any) -> FakeRun:
        modes.append(given["mode"])
        if given["mode"] == "online":
            raise ConnectionError("no route")
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    begin(tmp_path, 5)
    assert modes == ["online", "offline"]
    assert "W&B does not begin (no route)" in caplog.text


class Recording(FakeRun):
    def log(self, row: Any, step: int) -> None:
        self.rows.append((step, row))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run folder whose rows reach beyond a checkpoint of step 2: those of training to 4, of scores to 2."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb_run_id").write_text("known")
    rows = [f'{{"step": {step}, "train/loss": 0.5}}\n' for step in (1, 2, 3, 4)]
    (run / "metrics.jsonl").write_text("".join([*rows, '{"step": 2, "eval/exact_accuracy": 0.5}\n']))
    return run


def test_what_an_earlier_process_has_logged_is_not_logged_twice(
    earlier: Path, wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, run = list[Any](), Recording()
    monkeypatch.setattr(wandb, "init", lambda **given: begun.append(given["id"]) or run)
    sink = begin(tmp_path, 2)
    for step in (3, 4, 5):
        sink.write(Entry(step, {"train/loss": 1.0}))
    sink.write(Entry(5, {"eval/exact_accuracy": 1.0}))
    sink.close()
    assert begun == ["known"]
    assert [(step, row["step"]) for step, row in run.rows] == [(5, 5), (5, 5)]


def test_an_evaluation_that_was_left_out_is_logged_at_its_step(
    earlier: Path, wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Recording()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    sink = begin(tmp_path, 4)
    sink.write(Entry(4, {"eval/exact_accuracy": 1.0}))
    sink.close()
    [(step, row)] = run.rows
    assert row["step"] == 4
    assert step == 5  # W&B has closed 4


@pytest.mark.parametrize("step", [0, 2])
def test_a_run_that_begins_anew_or_goes_back_is_a_new_one(
    step: int, earlier: Path, wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, run = list[Any](), Recording()
    monkeypatch.setattr(wandb, "init", lambda **given: begun.append(given["id"]) or run)
    sink = WandB(online(tmp_path), earlier, step, {}, continues=False)
    sink.write(Entry(step + 1, {"train/loss": 1.0}))
    sink.close()
    assert begun == [None]
    assert [row["step"] for _, row in run.rows] == [step + 1]
    assert (earlier / "wandb_run_id").read_text() == run.id


def test_its_loss_is_said_once_and_writing_goes_on(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun())
    run = begin(tmp_path, 0)
    for step in (1, 2):
        run.write(Entry(step, {}))
    run.close()
    assert caplog.text.count("W&B is gone (Connection lost)") == 1


def test_one_that_hangs_does_not_hold_up_training(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(FakeRun):
        def log(self, row: Any, step: int) -> None:
            threading.Event().wait()

    monkeypatch.setattr(wandb, "init", lambda **_: Hanging())
    monkeypatch.setattr(background, "MAX_WAITING", 3)
    run = begin(tmp_path, 0)
    for step in range(6):
        run.write(Entry(step, {}))
    run.close()
    assert caplog.text.count("W&B is gone (3 rows wait for it)") == 1


def test_one_that_hangs_does_not_hold_up_the_end(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(FakeRun):
        def log(self, row: Any, step: int) -> None: ...

        def finish(self) -> None:
            threading.Event().wait()

    monkeypatch.setattr(wandb, "init", lambda **_: Hanging())
    monkeypatch.setattr(background, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(background, "GRACE_S", 0.1)
    run = begin(tmp_path, 0)
    run.write(Entry(1, {}))
    run.close()
    assert caplog.text.count("W&B is gone (it does not end)") == 1


def test_a_setting_of_the_environment_that_has_no_effect_is_named(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun())
    monkeypatch.setenv("WANDB_MODE", "disabled")
    begin(tmp_path, 0)
    assert "WANDB_MODE=disabled: has no effect, since wandb_mode=online" in caplog.text


def test_a_run_ends_well_whose_process_of_wandb_is_killed(config: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, subprocess, sys
from hrm_dist import trainer
from hrm_dist.train import main
step = trainer.Trainer.train_step
def kill_once(self, batch):
    if self.state.step == 2:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        for child in children.stdout.split():
            try:
                if "wandb" in open(f"/proc/{{child}}/cmdline").read():
                    os.kill(int(child), signal.SIGKILL)
            except FileNotFoundError:
                pass
    step(self, batch)
trainer.Trainer.train_step = kill_once
sys.exit(main([{str(config)!r}, "checkpoint_path={tmp_path / "run"}", "wandb_mode=offline", "max_steps=5"]))
"""
    finished = command_line("-c", code)
    assert finished.exit_code == 0, finished.output
    assert finished.output.count("W&B is gone") == 1
    assert "Traceback" not in finished.output
    assert num_rows(tmp_path / "run") == 5
