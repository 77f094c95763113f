"""The table of scores that goes out: how many are right of how many, and how sure that is."""

from hypothesis import given
from hypothesis import strategies as st

from hrm_dist.evaluation.intervals import share_interval
from hrm_dist.run_log.score_table import markdown, score_table

VOTED = {
    "examples": 90.0, "exact_accuracy": 0.2, "cell_accuracy": 0.7, "inputs": 10, "tasks": 8,
    "input/pass@2": 0.3, "task/pass@2": 0.3125, "task_all/pass@2": 0.25,
}  # fmt: skip


@given(st.integers(1, 5000).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_a_share_of_puzzles_has_its_counts_and_interval(counts: tuple[int, int]) -> None:
    right, num = counts
    [line] = score_table({"examples": float(num), "exact_accuracy": right / num}, "s")
    assert (line.right, line.of, line.subset) == (right, num, "s")
    assert (line.low, line.high) == share_interval(right, num)[1:]


def test_inputs_and_whole_tasks_of_a_vote_are_counted() -> None:
    lines = {line.score: line for line in score_table(VOTED, "")}
    assert (lines["input/pass@2"].right, lines["input/pass@2"].of) == (3, 10)
    assert (lines["task_all/pass@2"].right, lines["task_all/pass@2"].of) == (2, 8)
    assert lines["input/pass@2"].low is not None


def test_what_is_no_count_of_independent_tries_has_no_interval() -> None:
    lines = {line.score: line for line in score_table(VOTED, "")}
    for name in ("exact_accuracy", "cell_accuracy", "task/pass@2"):
        assert lines[name].low is lines[name].high is None
    assert lines.keys().isdisjoint({"examples", "inputs", "tasks"})


def test_the_table_is_valid_markdown_whatever_the_subset_is_called() -> None:
    rows = markdown(score_table(VOTED, "a|b")).splitlines()
    assert rows[0] == "| score | value | low | high | right | of | subset |"
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
