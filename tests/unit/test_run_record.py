"""run.json: how a run came about, over all its starts."""

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from data_pipeline.base.errors import InputError
from data_pipeline.base.revision import git_revision
from data_pipeline.schema import load_dataset_info
from hrm_dist.run_record import (
    FILE,
    Dataset,
    Hardware,
    RunRecord,
    RunRecorder,
    Start,
    command_text,
    read_record,
)
from hrm_dist.train import main as train

HARDWARE = Hardware(cpu="a CPU", num_processes=1, num_threads=2, num_nodes=1, gpus={})
DATASET = Dataset(
    data_path="data/x", kind="sudoku", sha256="0", train_groups=8, test_groups=4, test_examples=4
)
LAST_STEP = 400


def start_with(command: str) -> Start:
    return Start(command=command, git_revision=None, hardware=HARDWARE, versions={})


def start(run: Path, step: int, command: str = "a") -> RunRecorder:
    return RunRecorder(run, start_with(command), DATASET, step, LAST_STEP)


def record_of(run: Path) -> RunRecord:
    record = read_record(run)
    assert record is not None
    return record


def test_seconds_trained_add_up_over_restarts(tmp_path: Path) -> None:
    start(tmp_path, 0).save(100, 10.0)
    again = start(tmp_path, 100)
    again.save(200, 20.0)
    again.save(300, 40.0)
    assert record_of(tmp_path).seconds_trained == 50.0


def test_seconds_of_steps_made_again_do_not_count(tmp_path: Path) -> None:
    before = start(tmp_path, 0)
    before.save(100, 10.0)
    before.save(200, 99.0)
    again = start(tmp_path, 100)
    assert record_of(tmp_path).seconds_at == {100: 10.0}
    again.save(200, 11.0)
    assert record_of(tmp_path).seconds_trained == 21.0


def test_each_command_is_kept_once(tmp_path: Path) -> None:
    start(tmp_path, 0, "a").save(100, 1.0)
    for command in ("a", "b", "a"):
        start(tmp_path, 100, command)
    assert [one.command for one in record_of(tmp_path).starts] == ["a", "b"]


def test_a_run_that_begins_anew_has_a_new_record(tmp_path: Path) -> None:
    start(tmp_path, 0, "a").save(100, 10.0)
    start(tmp_path, 0, "b")
    record = record_of(tmp_path)
    assert [one.command for one in record.starts] == ["b"]
    assert record.seconds_trained == 0.0


def test_a_record_that_does_not_reach_back_says_where_it_begins(tmp_path: Path) -> None:
    start(tmp_path, 300).save(400, 10.0)
    record = record_of(tmp_path)
    assert (record.first_step, record.seconds_trained) == (300, 10.0)


def test_a_run_is_finished_once_it_says_so(tmp_path: Path) -> None:
    recorder = start(tmp_path, 0)
    recorder.save(LAST_STEP, 1.0)
    assert not record_of(tmp_path).is_finished
    recorder.finish()
    assert record_of(tmp_path).is_finished
    start(tmp_path, LAST_STEP)
    assert not record_of(tmp_path).is_finished


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"starts": 3}', b"\xff"])
def test_a_damaged_record_is_refused_by_readers_and_begins_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        read_record(tmp_path)
    start(tmp_path, 100)
    assert "begins anew" in caplog.text
    assert record_of(tmp_path).first_step == 100


def test_a_record_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).mkdir()
    recorder = start(tmp_path, 0)
    recorder.save(100, 1.0)
    recorder.finish()
    assert "Training goes on" in caplog.text


def test_a_record_says_when_its_checkpoint_was_written(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    start(tmp_path, 0).save(100, 10.0)
    saved_at = record_of(tmp_path).saved_at
    assert saved_at is not None
    assert before <= saved_at <= datetime.now(UTC)


def test_a_run_without_a_record_has_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


def test_a_training_run_tells_how_it_came_about(config: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for max_steps in (2, 4):
        train([str(config), f"checkpoint_path={run}", f"max_steps={max_steps}"])
    record = record_of(run)
    assert (record.first_step, record.step, record.last_step, record.is_finished) == (0, 4, 4, True)
    [once] = record.starts
    assert once.command == command_text(sys.orig_argv)
    assert once.git_revision == git_revision()
    assert once.hardware.num_processes == once.hardware.num_threads == once.hardware.num_nodes == 1
    assert {"torch", "python", "hrm-dist"} == once.versions.keys()
    seconds = record.seconds_at
    assert list(seconds) == [2, 4]
    assert 0 < seconds[2] < seconds[4]
    info = load_dataset_info(dataset)
    assert (record.dataset.kind, record.dataset.sha256) == ("arc", info.sha256)
    assert (record.dataset.canvas, record.dataset.sources) == (6, ("arc-agi-1",))
    assert record.dataset.options["num_aug"] == 8
    assert record.num_parameters is not None
    assert record.num_parameters > 1000
    assert record.dataset.test_examples == info.splits.test.num_examples


def test_a_start_without_a_step_adds_no_seconds(config: Path, tmp_path: Path) -> None:
    arguments = [str(config), f"checkpoint_path={tmp_path}/run", "max_steps=2"]
    train(arguments)
    before = record_of(tmp_path / "run")
    train(arguments)
    assert record_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("gpus", "num_processes", "num_nodes", "words"),
    [
        ({}, 1, 1, "2 threads on a CPU"),
        ({"NVIDIA H100": 1}, 1, 1, "NVIDIA H100"),
        ({"NVIDIA H100": 16}, 16, 2, "16 x NVIDIA H100, 2 nodes"),
    ],
)
def test_hardware_is_told_in_words(
    gpus: dict[str, int], num_processes: int, num_nodes: int, words: str
) -> None:
    values = {"gpus": gpus, "num_processes": num_processes, "num_nodes": num_nodes}
    assert str(HARDWARE.model_copy(update=values)) == words


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["/opt/x/bin/python3.11", "-u", "-m", "hrm_dist.train", "a b.yaml"],
            ["-m", "hrm_dist.train", "a b.yaml"],
        ),
        (["python", "train.py", "-u"], ["train.py", "-u"]),
    ],
)
def test_a_command_is_as_a_person_types_it(arguments: list[str], text: list[str]) -> None:
    assert shlex.split(command_text(arguments)) == ["python", *text]


def test_code_in_the_working_tree_of_others_has_no_commit_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the package is installed into an environment that lies in another project's repository."""
    from data_pipeline.base import revision

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code = tmp_path / "revision.py"
    code.write_text("")
    monkeypatch.setattr(revision, "__file__", str(code))
    git("init")
    git("commit", "--allow-empty", "--message", "theirs")
    assert git_revision() is None
    git("add", ".")
    git("commit", "--message", "ours")
    commit = git_revision()
    assert commit is not None
    assert not commit.endswith("-dirty")
    code.write_text("changed")
    assert git_revision() == f"{commit}-dirty"
