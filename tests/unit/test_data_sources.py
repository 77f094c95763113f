import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.arc import sources as arc
from data_pipeline.arc.json_format import parse_task
from data_pipeline.arc.task import Task
from data_pipeline.base.errors import InputError
from data_pipeline.kind import split_role

GRID = [[0, 1], [2, 3]]
TASK = {"train": [{"input": GRID, "output": [[5]]}], "test": [{"input": GRID, "output": [[7]]}]}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def held_out(tasks: list[Task]) -> dict[str, bool]:
    return {task.id: task.held_out for task in tasks}


@pytest.mark.parametrize(("name", "train", "evaluation"), [("arc-agi-1", 400, 400), ("arc-agi-2", 1000, 120)])
def test_the_bundled_releases_are_complete(name: str, train: int, evaluation: int) -> None:
    tasks = arc.bundled(name)
    assert len(tasks) == train + evaluation
    assert sum(task.held_out for task in tasks) == evaluation
    assert all(
        grid is not None and grid.dtype == np.uint8 for task in tasks for pair in task.pairs for grid in pair
    )


def test_folders_named_evaluation_are_held_out_and_all_others_train(tmp_path: Path) -> None:
    for name in ("data/training/a", "data/evaluation/b", "corpus/Center/c", "evaluation/training/d"):
        write(tmp_path / f"{name}.json", TASK)
    assert held_out(arc.from_path(tmp_path, None)) == {"a": False, "b": True, "c": False, "d": False}
    assert held_out(arc.from_path(tmp_path / "data/evaluation", None)) == {"b": True}
    assert held_out(arc.from_path(tmp_path / "data/evaluation/b.json", None)) == {"b": True}


def test_a_folder_given_as_a_dot_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "evaluation/a.json", TASK)
    monkeypatch.chdir(tmp_path / "evaluation")
    assert held_out(arc.from_path(Path("."), None)) == {"a": True}


@pytest.mark.parametrize(("suffix", "expected"), [(":train", False), (":evaluation", True)])
def test_a_suffix_overrides_what_the_names_say(tmp_path: Path, suffix: str, expected: bool) -> None:
    write(tmp_path / "training/a.json", TASK)
    write(tmp_path / "evaluation/b.json", TASK)
    path, role = split_role(f"{tmp_path}{suffix}")
    assert held_out(arc.from_path(path, role)) == {"a": expected, "b": expected}


@pytest.mark.parametrize(("kind", "expected"), [("training", False), ("evaluation", True), ("test", True)])
def test_kaggle_files_are_held_out_by_their_name(tmp_path: Path, kind: str, expected: bool) -> None:
    file = write(tmp_path / f"arc-agi_{kind}_challenges.json", {"a": TASK})
    assert held_out(arc.from_path(file, None)) == {"a": expected}


def test_kaggle_solutions_beside_the_challenges_are_read(tmp_path: Path) -> None:
    hidden = {**TASK, "test": [{"input": GRID}, {"input": [[4]]}]}
    file = write(tmp_path / "arc-agi_evaluation_challenges.json", {"a": hidden})
    assert [pair.output for pair in arc.from_path(file, None)[0].tests] == [None, None]
    write(tmp_path / "arc-agi_evaluation_solutions.json", {"a": [[[8]], [[9]]]})
    write(tmp_path / "sample_submission.json", {"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    task = arc.from_path(tmp_path, None)[0]
    assert [pair.output.tolist() for pair in task.tests if pair.output is not None] == [[[8]], [[9]]]


@pytest.mark.parametrize("solutions", [{}, {"a": [[[8]], [[9]]]}, {"a": 3}, {"a": [[[10]]]}, []])
def test_solutions_that_do_not_fit_their_challenges_are_refused(tmp_path: Path, solutions: object) -> None:
    file = write(tmp_path / "arc-agi_evaluation_challenges.json", {"a": TASK})
    write(tmp_path / "arc-agi_evaluation_solutions.json", solutions)
    with pytest.raises(InputError, match=r"evaluation_solutions\.json: "):
        arc.from_path(file, None)


def test_copies_of_a_task_are_merged_and_held_out_if_any_is() -> None:
    copies = [parse_task(TASK, "a", is_held_out, "here") for is_held_out in (False, True, False)]
    assert held_out(arc.merge(copies)) == {"a": True}


def test_tasks_of_one_name_and_different_content_are_refused() -> None:
    other = {**TASK, "test": [{"input": GRID}]}
    tasks = [parse_task(TASK, "a", False, "one.json"), parse_task(other, "a", False, "two.json")]
    with pytest.raises(InputError, match=r"task a: .*two\.json.*one\.json.*rename"):
        arc.merge(tasks)


def test_the_checksum_sees_content_and_holdout_but_not_order() -> None:
    a, b = parse_task(TASK, "a", False, "x"), parse_task(TASK, "b", False, "y")
    held = parse_task(TASK, "b", True, "y")
    assert arc.content_sha256([a, b]) == arc.content_sha256([b, a])
    assert arc.content_sha256([a, b]) != arc.content_sha256([a, held])


def damaged(train_input: object) -> dict[str, object]:
    return {**TASK, "train": [{"input": train_input, "output": [[5]]}]}


BAD_TASKS = {
    "no object": ([TASK], "is no object"),
    "no demonstrations": ({**TASK, "train": []}, "at least one demonstration pair"),
    "no test": ({"train": TASK["train"]}, "at least one test pair"),
    "pair is no object": ({**TASK, "train": [GRID]}, "train pair 0: .*is no object"),
    "no train output": ({**TASK, "train": [{"input": GRID}]}, "train pair 0: output: nothing is no grid"),
    "colour 10": (damaged([[0, 10]]), "train pair 0: input: row 0, column 1: 10 is no colour"),
    "negative colour": (damaged([[-1]]), "-1 is no colour"),
    "bool": (damaged([[True]]), "true is no colour"),
    "float": (damaged([[1.0]]), "1.0 is no colour"),
    "text": (damaged([["1"]]), '"1" is no colour'),
    "NaN": (damaged([[float("nan")]]), "NaN is no colour"),
    "huge": (damaged([[10**100]]), "is no colour"),
    "ragged": (damaged([[1, 2], [3]]), "row 1 has 1 cells where row 0 has 2"),
    "empty grid": (damaged([]), r"\[\] is no grid"),
    "empty row": (damaged([[]]), r"row 0: \[\] is no row"),
    "flat": (damaged([1, 2]), "row 0: 1 is no row"),
    "too tall": (damaged([[1]] * 31), "31 x 1 cells"),
    "too wide": (damaged([[1] * 31]), "1 x 31 cells"),
    "test input": ({**TASK, "test": [{"input": [[11]]}]}, "test pair 0: input: .*11"),
    "test output": ({**TASK, "test": [{"input": GRID, "output": 3}]}, "test pair 0: output: 3"),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_a_bad_task_is_refused_with_file_task_place_and_value(tmp_path: Path, case: str) -> None:
    content, message = BAD_TASKS[case]
    file = write(tmp_path / "0a1b2c3d.json", content)
    with pytest.raises(InputError, match=rf"0a1b2c3d\.json: task 0a1b2c3d: .*{message}"):
        arc.from_path(file, None)


BAD_FILES = {
    "malformed": (b'{"train": [', "malformed JSON"),
    "empty": (b"", "malformed JSON"),
    "not UTF-8": (b'{"train": "\xff"}', "not UTF-8"),
    "UTF-16": (json.dumps(TASK).encode("utf-16"), "not UTF-8"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "thousands of digits": (b"1" * 5000, "malformed JSON"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    file = tmp_path / "task.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"task.json: {message}"):
        arc.from_path(file, None)


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        arc.from_path(tmp_path / "nowhere", None)
    with pytest.raises(InputError, match="no task files"):
        arc.from_path(tmp_path, None)


@pytest.mark.parametrize("task_id", ["a|||t3|||0718293645", "a_t3_0718293645", "", "<blank>", "a\ud800"])
def test_an_id_that_names_cannot_be_made_of_is_refused(tmp_path: Path, task_id: str) -> None:
    file = write(tmp_path / "arc-agi_test_challenges.json", {task_id: TASK})
    with pytest.raises(InputError, match="rename the task"):
        arc.from_path(file, None)


def test_a_byte_order_mark_and_further_keys_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({**TASK, "name": "a"}).encode())
    assert arc.content_sha256(arc.from_path(file, None)) == arc.content_sha256(
        [parse_task(TASK, "a", False, "")]
    )
