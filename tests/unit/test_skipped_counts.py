"""The count of skipped updates on the device against a count by hand."""

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm_dist.skipped_updates import SkippedUpdates

# For each step, which of its three sequences are finite.
steps = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=12)


@given(steps, st.sets(st.integers(1, 12)))
def test_reports_cover_the_steps_since_the_last_one(
    history: list[list[bool]], report_after: set[int]
) -> None:
    counter = SkippedUpdates(3, torch.device("cpu"))
    since: list[tuple[int, list[bool]]] = []
    in_a_row = 0
    for step, finite in enumerate(history, 1):
        applied = all(finite)
        identifiers = torch.tensor([10 * step + slot for slot in range(3)], dtype=torch.int32)
        counter.add(torch.tensor(step), torch.tensor(applied), torch.tensor(finite), identifiers)
        in_a_row = 0 if applied else in_a_row + 1
        if not applied:
            since.append((step, finite))
        if step in report_after or step == len(history):
            report = counter.report()
            if not since:
                assert report is None
            else:
                assert report is not None
                first, culprits = since[0]
                assert (report.num_updates, report.in_a_row, report.first_step) == (
                    len(since),
                    in_a_row,
                    first,
                )
                assert report.identifiers == [10 * first + slot for slot in range(3) if not culprits[slot]]
            since = []


def test_puzzles_are_named_and_many_are_counted(tmp_path: Path) -> None:
    (tmp_path / "identifiers.json").write_text(json.dumps([f"puzzle {number}" for number in range(20)]))
    counter = SkippedUpdates(20, torch.device("cpu"))
    everything = torch.arange(20, dtype=torch.int32)
    counter.add(torch.tensor(7), torch.tensor(False), everything >= 12, everything)
    report = counter.report()
    assert report is not None
    assert report.describe(tmp_path).startswith("1 update(s) skipped, the first in step 7, ")
    assert "puzzle 0, puzzle 1" in report.describe(tmp_path)
    assert report.describe(tmp_path).endswith("puzzle 9 and 2 more, so it is hardly theirs")
    counter.add(torch.tensor(8), torch.tensor(False), everything >= 0, everything)
    report = counter.report()
    assert report is not None
    assert "none, the losses are finite and their gradient is not" in report.describe(tmp_path)
