"""What tools.adapt refuses before it writes anything, and the submission that it writes first."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.arc.sources import from_path
from data_pipeline.base.errors import InputError
from tools.adapt import votes
from tools.adapt.__main__ import parse_arguments
from tools.adapt.asked import Adaptation, check
from tools.adapt.record import FILE, Record, read_record, refuse_other
from tools.check_submission import parse, refuse_faults

PAIR = {"input": [[1, 2]], "output": [[2, 1]]}
TASKS = {
    "aaaaaaaa": {"train": [PAIR], "test": [{"input": [[3, 4]]}, {"input": [[5], [6]]}]},
    "bbbbbbbb": {"train": [PAIR, PAIR], "test": [{"input": [[7] * 9]}]},
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "challenges.json"
    path.write_text(json.dumps(TASKS))
    return path


def asked(tasks: Path, *words: object) -> Adaptation:
    out = ["--out", tasks.with_name("run")]
    return check(parse_arguments([str(word) for word in ("--tasks", tasks, *out, *words)]))


def refusal(tasks: Path, *words: object) -> str:
    before = sorted(tasks.parent.rglob("*"))
    with pytest.raises(InputError) as refused:
        asked(tasks, *words)
    assert sorted(tasks.parent.rglob("*")) == before
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"a": {"train": [], "test": [{"input": [[1]]}]}}, "at least one demonstration pair"),
        ({"a": {"train": [PAIR], "test": []}}, "at least one test pair"),
        (
            {"a": {"train": [PAIR], "test": [{"input": [[1] * 31]}]}},
            "task a: test input 0 is 1 x 31, but a submission",
        ),
        ([PAIR], "no task"),
        ({"a": [[[1]]]}, "no task"),
    ],
)
def test_files_that_cannot_be_trained_on_or_answered_are_refused(
    content: Any, why: str, tasks: Path, config: Path
) -> None:
    tasks.write_text(json.dumps(content))
    assert why in refusal(tasks, "--config", config)


def test_a_file_of_another_kind_is_refused(tasks: Path, config: Path) -> None:
    tasks.write_text("question,answer\n1.2.,1423\n")
    assert str(tasks) in refusal(tasks, "--config", config)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--budget-min", "0"], "--budget-min 0: must be more than 0"),
        (["--budget-min", "1e300"], "--budget-min 1e+300: must be more than 0, and at most 1,000,000"),
        (["--budget-min", "nan"], "must be more than 0"),
        (["--budget-min", "0.1"], "too short for anything: to build data of 2 tasks with 300 augmentations"),
        (["--table-share", "1.5"], "--table-share 1.5: must be from 0 to 1"),
        (["epochs=3"], "epochs=3: is set by tools.adapt itself"),
        (["max_steps=3"], "max_steps=3: is set by tools.adapt itself"),
        (["data_path=x"], "data_path=x: is set by tools.adapt itself"),
        (["lr=fast"], "lr=fast: Input should be"),
        (["one", "two"], "two: one checkpoint is adapted at a time"),
        (["global_batch_size=1000001"], "global_batch_size=1,000,001: must be at most 1,000,000"),
        (["--identifiers", "x"], "--identifiers x: names rows of a CHECKPOINT, and there is none"),
        (["arch.puzzle_emb_ndim=0", "--table-share", "0.5"], "the model has no puzzle table"),
    ],
)
def test_options_out_of_range_are_refused(words: list[str], why: str, tasks: Path, config: Path) -> None:
    given = words if words[0] == "one" else [*words, "--config", config]
    assert why in refusal(tasks, *given)


def test_a_configuration_of_other_puzzles_is_refused(tasks: Path) -> None:
    assert "dataset.preset=sudoku: " in refusal(tasks, "--config", "configs/small/sudoku_6x6.yaml")


def test_without_a_checkpoint_a_configuration_is_needed(tasks: Path) -> None:
    assert "neither a CHECKPOINT" in refusal(tasks)


def test_what_is_no_checkpoint_is_refused(tasks: Path) -> None:
    assert "no checkpoint here" in refusal(tasks, tasks.parent)


def test_a_folder_of_something_else_is_left_alone(tasks: Path, config: Path) -> None:
    (tasks.parent / "run").mkdir()
    (tasks.parent / "run" / "notes.txt").write_text("mine")
    assert "holds something else" in refusal(tasks, "--config", config)


def test_a_run_goes_on_with_what_it_was_begun_with_alone(tasks: Path, config: Path) -> None:
    first = asked(tasks, "--config", config)
    first.run.mkdir()
    record = Record(asked=first.asked, budget_s=first.budget_s)
    (first.run / FILE).write_text(record.model_dump_json())
    assert read_record(first.run) == record
    assert asked(tasks, "--config", config, "--budget-min", "99").budget_s == 99 * 60
    assert asked(tasks, "--config", config, "num_threads=3").asked == first.asked
    assert "num_aug 300, now 7" in refusal(tasks, "--config", config, "--num-aug", "7")
    assert "lr 0.001, now 0.5" in refusal(tasks, "--config", config, "lr=0.5")
    tasks.write_text(json.dumps({"cccccccc": TASKS["aaaaaaaa"]}))
    assert "tasks_sha256" in refusal(tasks, "--config", config)


def test_what_matters_most_comes_first_in_what_a_run_was_begun_with(tasks: Path, config: Path) -> None:
    then = asked(tasks, "--config", config).asked
    settings = dict.fromkeys(then.settings, "x")
    with pytest.raises(
        InputError, match=rf"\(tasks_sha256 .*; and {len(settings) - 3} more\); give the same"
    ):
        refuse_other(tasks, then, then.model_copy(update={"tasks_sha256": "x", "settings": settings}))


@pytest.mark.parametrize("role", ["train", "evaluation"])
def test_the_role_of_a_source_is_none_of_the_tasks(role: str, tasks: Path, config: Path) -> None:
    told = refusal(tasks, "--config", config, "--tasks", f"{tasks}:{role}")
    assert "all tasks of a file are adapted to; leave out what follows" in told


def test_from_scratch_the_whole_schedule_trains_the_weights(tasks: Path, config: Path) -> None:
    assert asked(tasks, "--config", config).asked.table_share == 0


def test_the_first_submission_is_valid_and_answers_with_the_inputs(tasks: Path) -> None:
    out = tasks.with_name("submission.json")
    read = from_path(tasks, "evaluation").tasks
    votes.write(out, read)
    submission = parse(out.read_text(), out)
    refuse_faults(submission, out, {task.id: [None] * len(task.tests) for task in read}, tasks)
    for task, content in TASKS.items():
        inputs = [pair["input"] for pair in content["test"]]
        assert [entry["attempt_1"] for entry in submission[task]] == inputs
