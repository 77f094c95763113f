"""Submissions: what is refused, what is counted, and the organiser's own scores of made ones."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

from hrm_dist.evaluation.intervals import task_intervals
from hrm_dist.evaluation.voting import submission, vote
from tools.check_submission import (
    Counts,
    count,
    faults,
    main,
    parse,
    right_attempts,
    score,
    score_intervals,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "arc_submissions.json").read_text())
TASKS, SOLUTIONS = GOLDEN["tasks"], GOLDEN["solutions"]
RIGHT = GOLDEN["well_formed"]["all right"]["submission"]
NOTHING = {"attempt_1": [[0]], "attempt_2": [[0]]}


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command on a submission, given as text or content, and return its exit code and what it printed."""

    def run(submission: Any = RIGHT, *, solutions: Any = None, options: tuple[str, ...] = ()) -> Any:
        text = submission if isinstance(submission, str | bytes) else json.dumps(submission)
        (tmp_path / "submission.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
        arguments = [str(tmp_path / "submission.json"), "--tasks", str(tmp_path / "tasks.json"), *options]
        if solutions is not None:
            (tmp_path / "outputs.json").write_text(json.dumps(solutions))
            arguments += ["--solutions", str(tmp_path / "outputs.json")]
        code = main(arguments)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.err.replace(f"{tmp_path}/", "") if code else shown.out

    return run


def changed(change: Callable[[Any], object], content: Any = RIGHT) -> Any:
    copy = json.loads(json.dumps(content))
    change(copy)
    return copy


def with_attempt(grid: Any, name: str = "attempt_2") -> Any:
    return changed(lambda submission: submission["two_a"][1].update({name: grid}))


@pytest.mark.parametrize("name", GOLDEN["well_formed"])
def test_the_organisers_scorer_gives_the_same_scores(name: str, check: Callable[..., Any]) -> None:
    recorded = GOLDEN["well_formed"][name]
    code, shown = check(recorded["submission"], solutions=SOLUTIONS, options=("--by-task",))
    assert code == 0
    result = json.loads(shown.splitlines()[-1])
    assert result["scores"]["tasks"] == recorded["num_tasks"]
    assert result["scores"]["task/pass@2"] * recorded["num_tasks"] == pytest.approx(recorded["score"])
    by_task = {
        task: sum(map(bool, numbers)) / len(numbers) for task, numbers in result["right_attempts"].items()
    }
    assert by_task == recorded["task_scores"]


@pytest.mark.parametrize("name", GOLDEN["malformed"])
def test_what_the_organisers_scorer_may_let_pass_is_refused(name: str, check: Callable[..., Any]) -> None:
    code, shown = check(GOLDEN["malformed"][name]["submission"])
    assert code == 2
    assert shown.startswith("error: submission.json: task ")


def test_the_organisers_scorer_forgives_missing_tasks() -> None:
    recorded = GOLDEN["malformed"]["tasks missing"]
    assert recorded["score"] / recorded["num_tasks"] == 1
    assert recorded["num_tasks"] < len(TASKS)


GRIDS = st.sampled_from([[[0]], [[1]], [[1, 2]], [[1], [2]]])


@given(data=st.data())
def test_the_order_of_tasks_and_of_attempts_does_not_matter(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    truths = {str(task): [data.draw(GRIDS) for _ in range(num)] for task, num in enumerate(sizes)}
    entries = st.fixed_dictionaries({"attempt_1": GRIDS, "attempt_2": GRIDS})
    one = {task: [data.draw(entries) for _ in outputs] for task, outputs in truths.items()}
    other = {
        task: [{"attempt_1": entry["attempt_2"], "attempt_2": entry["attempt_1"]} for entry in one[task]]
        for task in data.draw(st.permutations(list(one)))
    }
    found = score(right_attempts(one, truths))
    assert score(right_attempts(other, truths)) == found
    assert found["task_all"][0] <= found["task"][0] <= found["task"][1] == len(sizes)
    assert found["input"][1] == sum(sizes)


def test_a_vote_is_scored_as_the_published_evaluator_scores_it(tmp_path: Path, capsys: Any) -> None:
    published = json.loads((Path(__file__).parents[1] / "golden" / "arc_vote.json").read_text())
    for name in ("submission", "tasks"):
        (tmp_path / f"{name}.json").write_text(json.dumps(published[name]))
    assert main([str(tmp_path / "submission.json"), "--tasks", str(tmp_path / "tasks.json")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["scores"]["task/pass@2"] == published["metrics"]["ARC/pass@2"]


def test_the_three_scores_differ_as_defined() -> None:
    assert score({"a": [1, 0], "b": [2], "c": [None], "d": [0, None]}) == {
        "task": (1.5, 3),
        "input": (2, 4),
        "task_all": (1, 3),
    }


def test_the_mean_over_tasks_has_the_interval_that_votes_print() -> None:
    right = {"a": [1, 0, 0], "b": [2], "c": [0, 2], "d": [None]}
    several = [[1.0, 1.0, 1.0], [1 / 3, 1.0, 0.5]]  # as of a vote's pass@1 and pass@2
    assert score_intervals(right)["task"] == pytest.approx(task_intervals(several)[1])


def test_the_mean_over_a_single_task_has_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps({"three": solved(TASKS)["three"]}))
    (tmp_path / "submission.json").write_text(json.dumps({"three": RIGHT["three"]}))
    found = last_object([tmp_path / "submission.json", "--tasks", tmp_path / "tasks.json"], capsys)
    assert list(found["intervals"]) == ["input/pass@2", "task_all/pass@2"]


def test_equal_attempts_and_placeholders_are_counted_apart() -> None:
    entries = [NOTHING, {"attempt_1": [[1]], "attempt_2": [[1]]}, {"attempt_1": [[0]], "attempt_2": [[1]]}]
    assert count({"a": entries[:1], "b": entries[1:]}) == Counts(tasks=2, inputs=3, alike=1, unanswered=1)


def test_scores_need_a_truth(check: Callable[..., Any]) -> None:
    code, shown = check()
    assert code == 0
    assert "not scored, as no output is known; give --solutions to score it" in shown
    assert json.loads(shown.splitlines()[-1])["scores"] == {}


def test_the_tasks_solved_are_shown_when_asked_for(check: Callable[..., Any]) -> None:
    content = GOLDEN["well_formed"]["two of three test inputs, by different attempts"]["submission"]
    _, shown = check(content, solutions=SOLUTIONS, options=("--by-task",))
    assert "three  2 of 3  attempt_1, wrong, attempt_2" in shown.splitlines()
    assert json.loads(shown.splitlines()[-1])["right_attempts"]["three"] == [1, 0, 2]
    _, shown = check(content, solutions=SOLUTIONS)
    assert "three" not in shown


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([[1, 2], [3]], "row 1 has 1 cells where row 0 has 2; make all rows equally long."),
        ([[0]] * 31, "the grid is 31 x 1; give one of at most 30 x 30."),
        ([[0] * 31], "the grid is 1 x 31; give one of at most 30 x 30."),
        ([[0, 10]], "row 0, column 1: 10 is no colour; write a whole number from 0 to 9."),
        ([[-1]], "row 0, column 0: -1 is no colour; write a whole number from 0 to 9."),
        ([[0], [1.0]], "row 1, column 0: 1.0 is no colour; write a whole number from 0 to 9."),
        ([[True]], "row 0, column 0: true is no colour; write a whole number from 0 to 9."),
        ([["1"]], 'row 0, column 0: "1" is no colour; write a whole number from 0 to 9.'),
        ([[None]], "row 0, column 0: nothing is no colour; write a whole number from 0 to 9."),
        ([[float("nan")]], "row 0, column 0: NaN is no colour; write a whole number from 0 to 9."),
        ([[[1]]], "row 0, column 0: [1] is no colour; write a whole number from 0 to 9."),
        ([], "[] is no grid; give a list of rows, [[0]] for no answer."),
        ([[]], "row 0: [] is no row; give a list of colours."),
        ([1, 2], "row 0: 1 is no row; give a list of colours."),
        (["12"], 'row 0: "12" is no row; give a list of colours.'),
        (None, "nothing is no grid; give a list of rows, [[0]] for no answer."),
        ({"grid": [[1]]}, '{"grid": [[1]]} is no grid; give a list of rows, [[0]] for no answer.'),
    ],
)
def test_a_grid_that_is_none_is_named_with_its_place(
    grid: Any, message: str, check: Callable[..., Any]
) -> None:
    place = "error: submission.json: task two_a: test input 1: attempt_2: "
    assert check(with_attempt(grid)) == (2, f"{place}{message}\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 11) | st.floats() | st.text(max_size=2),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=2), values, max_size=2),
    max_leaves=5,
)
NEARLY = st.integers(-1, 10) | st.lists(st.lists(st.integers(0, 10), max_size=2), max_size=2)
"""What may stand in a submission, in its place."""


def rectangular(rows: list[list[int]]) -> list[list[int]]:
    if len(set(map(len, rows))) > 1:
        raise ValueError("ragged")
    return rows


SIDE = Field(min_length=1, max_length=30)
ROW = Annotated[list[Annotated[int, Field(ge=0, le=9)]], SIDE]
GRID = Annotated[list[ROW], SIDE, AfterValidator(rectangular)]
STRICT = ConfigDict(strict=True, extra="forbid")
ENTRY = create_model("Entry", __config__=STRICT, attempt_1=GRID, attempt_2=GRID)
FIELDS: dict[str, Any] = {
    task: Annotated[list[ENTRY], Field(min_length=len(outputs), max_length=len(outputs))]
    for task, outputs in SOLUTIONS.items()
}
SUBMISSION = create_model("Submission", __config__=STRICT, **FIELDS)
"""The competition's format in pydantic's words."""


@given(data=st.data())
def test_a_submission_is_refused_just_where_pydantic_refuses_it(data: st.DataObject) -> None:
    node = content = changed(lambda _: None)
    for _ in range(data.draw(st.sampled_from([4, 4, 2, 3, 1, 0]))):
        node = node[data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))]
    key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(NEARLY | JSON)
    text = json.dumps(content)
    found = list(faults(parse(text, Path("s")), {task: list(SOLUTIONS[task]) for task in TASKS}, Path("t")))
    try:
        SUBMISSION.model_validate_json(text)
    except ValidationError:
        assert found
    else:
        assert not found
    assert all(one.startswith("task ") and one.endswith(".") for one in found)


def test_grids_up_to_the_largest_side_are_well_formed(check: Callable[..., Any]) -> None:
    for grid in ([[9] * 30] * 30, [[0] * 30], [[0]] * 30):
        assert check(with_attempt(grid))[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("two_a"), "task two_a: is missing; add it"),
        (lambda s: s.update(x=[NOTHING]), "task x: is no task of tasks.json; take it out"),
        (lambda s: s.update({"x\n\ud800": [NOTHING]}), r'task "x\n\ud800": is no task of tasks.json; take'),
        (lambda s: s["two_a"].pop(), "task two_a: entries: 1, but test inputs: 2; give one entry for each"),
        (lambda s: s["one_a"].append(NOTHING), "task one_a: entries: 2, but test inputs: 1; give one"),
        (lambda s: s.update(one_a=NOTHING), "task one_a: {"),
        (lambda s: s.update(one_a=[[[1]]]), "task one_a: test input 0: [[1]] is no entry; give an object"),
        (lambda s: s["one_a"][0].pop("attempt_1"), "task one_a: test input 0: attempt_1 is missing; repeat"),
        (lambda s: s["one_a"][0].update(attempt_3=[[1]]), 'task one_a: test input 0: "attempt_3" is none of'),
    ],
)
def test_an_entry_that_is_not_as_wanted_is_named(
    change: Callable[[Any], object], message: str, check: Callable[..., Any]
) -> None:
    code, shown = check(changed(change))
    assert code == 2
    assert shown.startswith(f"error: submission.json: {message}")
    assert "Further wrong entries" not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; write the submission again."),
        (" \n", "is empty; write the submission again."),
        ("{", "is not JSON ("),
        (f"{json.dumps(RIGHT)} {{}}", "is not JSON (Extra data"),
        (
            f"\ufeff{json.dumps(RIGHT)}",
            "begins with a byte order mark, which JSON must not have; save it as UTF-8",
        ),
        ("[" * 100_000, "is nested too deeply"),
        ("1" * 5000, "holds a number of more than 4,300 digits; write the submission again.\n"),
        (json.dumps(RIGHT).encode("utf-16"), "is no UTF-8 text ("),
        (gzip.compress(json.dumps(RIGHT).encode()), "is no UTF-8 text ("),
        ("[]", "[] is no submission, which is an object"),
        ("NaN", "NaN is no submission, which is an object"),
        ('{"a": 1, "a": 1}', "task a: stands there twice; keep one of them. Further wrong entries: 6."),
        (
            json.dumps(RIGHT).replace('{"attempt_1"', '{"attempt_1": [[0]], "attempt_1"', 1),
            'task one_a: test input 0: "attempt_1" stands there twice; keep one of them.\n',
        ),
    ],
)
def test_a_file_that_is_no_submission_is_refused(
    text: str | bytes, message: str, check: Callable[..., Any]
) -> None:
    code, shown = check(text)
    assert code == 2
    assert shown.startswith(f"error: submission.json: {message}")


def test_lists_nested_as_deeply_as_json_reads_them_are_refused(check: Callable[..., Any]) -> None:
    for depth in range(600, 1000, 10):
        code, shown = check("[" * depth + "]" * depth)
        assert code == 2
        assert shown.startswith("error: submission.json: ")


def test_a_folder_or_nothing_in_place_of_a_submission_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no.json", "No such file")):
        assert main([str(path), "--tasks", str(tmp_path / "tasks.json")]) == 2
        assert f"error: {path}: cannot be read ({reason}" in capsys.readouterr().err


def test_of_several_wrong_entries_the_first_is_named_and_the_rest_counted(check: Callable[..., Any]) -> None:
    def spoil(submission: Any) -> None:
        submission["one_b"][0]["attempt_1"] = [[11]]
        submission["two_b"][1] = {"attempt_1": [], "attempt_3": [[0]]}
        del submission["three"]

    code, shown = check(changed(spoil))
    assert code == 2
    assert shown.startswith(
        "error: submission.json: task one_b: test input 0: attempt_1: row 0, column 0: 11"
    )
    assert shown.endswith("Further wrong entries: 4.\n")


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ({}, "task one_a: nothing is not a list of 1 outputs"),
        (changed(lambda s: s["three"].pop(), SOLUTIONS), "task three: [["),
        (changed(lambda s: s.update(one_a=[[[12]]]), SOLUTIONS), "task one_a: output 0: row 0, column 0: 12"),
        (TASKS, 'task one_a: {"train"'),
        (RIGHT, 'task one_a: output 0: {"attempt_1"'),
    ],
)
def test_solutions_of_other_tasks_are_refused(
    solutions: Any, message: str, check: Callable[..., Any]
) -> None:
    code, shown = check(solutions=solutions)
    assert code == 2
    assert shown.startswith(f"error: outputs.json: {message}")


@pytest.mark.parametrize("content", [None, "", "{", "[1] [2]"])
def test_solutions_that_cannot_be_read_are_asked_for(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps(RIGHT))
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
    file = tmp_path / "outputs.json"
    if content is not None:
        file.write_text(content)
    arguments = [tmp_path / "submission.json", "--tasks", tmp_path / "tasks.json", "--solutions", file]
    assert main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {file}: ")
    assert message.endswith("; give --solutions a JSON file, {task id: [grid, ...]}.\n")


def solved(tasks: Any) -> Any:
    """Return tasks with their outputs in them."""
    copy = json.loads(json.dumps(tasks))
    for task, outputs in SOLUTIONS.items():
        for pair, output in zip(copy[task]["test"], outputs, strict=True):
            pair["output"] = output
    return copy


def last_object(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> Any:
    code = main(list(map(str, arguments)))
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out.splitlines()[-1])


def test_tasks_are_read_from_a_file_a_folder_and_with_solutions_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps(RIGHT))
    (tmp_path / "solved.json").write_text(json.dumps(solved(TASKS)))
    (tmp_path / "arc_challenges.json").write_text(json.dumps(TASKS))
    (tmp_path / "arc_solutions.json").write_text(json.dumps(SOLUTIONS))
    (tmp_path / "folder").mkdir()
    for task, content in solved(TASKS).items():
        (tmp_path / "folder" / f"{task}.json").write_text(json.dumps(content))
    for name in ("solved.json", "arc_challenges.json", "folder"):
        found = last_object([tmp_path / "submission.json", "--tasks", tmp_path / name], capsys)
        assert found["scores"]["task/pass@2"] == 1
        assert found["scores"]["inputs"] == 10


def test_outputs_that_contradict_the_solutions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps(RIGHT))
    (tmp_path / "tasks.json").write_text(json.dumps(solved(TASKS)))
    other = changed(lambda solutions: solutions.update(one_a=[[[9, 9]]]), SOLUTIONS)
    (tmp_path / "outputs.json").write_text(json.dumps(other))
    arguments = [tmp_path / "submission.json", "--tasks", tmp_path / "tasks.json"]
    assert main([*map(str, arguments), "--solutions", str(tmp_path / "outputs.json")]) == 2
    message = "outputs.json: task one_a: output 0 differs from the one that comes with the tasks"
    assert message in capsys.readouterr().err


def test_a_dataset_wants_the_tasks_that_were_left_out_of_it_too(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    puzzles = json.loads((dataset / "test_puzzles.json").read_text())
    left_out = json.loads((dataset / "dataset.json").read_text())["left_out_tests"]
    votes = vote([], json.loads((dataset / "identifiers.json").read_text()), puzzles)
    file = tmp_path / "submission.json"
    file.write_text(json.dumps(submission(votes, left_out)))
    found = last_object([file, "--tasks", dataset], capsys)
    assert (found["tasks"], found["scores"]["tasks"]) == (len(puzzles) + len(left_out), len(puzzles))
    file.write_text(json.dumps(submission(votes)))
    assert main([str(file), "--tasks", str(dataset)]) == 2
    assert f"Further wrong entries: {len(left_out) - 1}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder; give the competition's challenges"),
        ("sudoku", "holds no task to answer: the dataset holds none out, or is of Sudokus or mazes"),
        ("twice", "is in {tmp_path}/twice twice; give one of its files."),
        ("submission.json", "is no task"),
    ],
)
def test_tasks_that_cannot_be_are_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps(RIGHT))
    (tmp_path / "sudoku").mkdir()
    (tmp_path / "sudoku" / "test_puzzles.json").write_text("{}")
    (tmp_path / "twice").mkdir()
    for file in ("a.json", "b.json"):
        (tmp_path / "twice" / file).write_text(json.dumps(TASKS))
    assert main([str(tmp_path / "submission.json"), "--tasks", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert message.format(tmp_path=tmp_path) in shown
    assert str(tmp_path / name) in shown


def test_a_check_loads_no_torch(tmp_path: Path) -> None:
    for name, content in (("submission.json", RIGHT), ("tasks.json", solved(TASKS))):
        (tmp_path / name).write_text(json.dumps(content))
    code = "import sys; from tools.check_submission import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "submission.json", "--tasks", "tasks.json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 False"
