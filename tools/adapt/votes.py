"""The submission, valid at all times: of the test inputs themselves at first, of votes as soon as there are any.

Loads no torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.arc.task import Task
from data_pipeline.base.files import replace_file
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.evaluation.predictions import read_predictions
from hrm_dist.evaluation.voting import Votes, scores, vote
from tools.check_submission import ATTEMPTS, JsonGrid, Truths, parse, refuse_faults
from tools.vote import read_identifiers, read_test_puzzles

FILE = "submission.json"


def compose(tasks: Sequence[Task], votes: Votes | None = None) -> dict[str, list[dict[str, JsonGrid]]]:
    """Return the ARC Prize format: the best two candidates of each test input, and the input itself for want of any."""
    entries: dict[str, list[dict[str, JsonGrid]]] = {}
    for task in tasks:
        by_input = votes.tasks.get(task.id) if votes else None
        entries[task.id] = []
        for pair, candidates in zip(task.tests, by_input or [[]] * len(task.tests), strict=True):
            grids = [c.grid.tolist() for c in candidates[: len(ATTEMPTS)] if c.grid.size]
            attempts = [*grids, pair.input.tolist(), pair.input.tolist()]
            entries[task.id].append(dict(zip(ATTEMPTS, attempts, strict=False)))
    return entries


def write(out: Path, tasks: Sequence[Task], votes: Votes | None = None) -> None:
    """Put a submission in its place, once it is found to be valid."""
    text = json.dumps(compose(tasks, votes), separators=(",", ":"))
    truths: Truths = {task.id: [None] * len(task.tests) for task in tasks}
    refuse_faults(parse(text, out), out, truths, out)
    replace_file(out, text.encode())


def count(folder: Path, data: Path) -> tuple[Votes, Mapping[str, Any]]:
    """Return the vote over what a folder of predictions holds by now, and the tasks with what is known of outputs."""
    info = load_dataset_info(data)
    identifiers, puzzles = (
        verify_document(data, info, name) for name in ("identifiers.json", "test_puzzles.json")
    )
    test_puzzles = read_test_puzzles(puzzles)
    return vote(read_predictions([folder]), read_identifiers(identifiers), test_puzzles), test_puzzles


def score_text(votes: Votes, test_puzzles: Mapping[str, Any]) -> str:
    """Return how many test inputs are solved, where that is known; empty elsewhere."""
    found = scores(votes, test_puzzles)
    if not found["inputs"]:
        return ""
    return f"; solved {round(found['input/pass@2'] * found['inputs'])} of {found['inputs']} test inputs"
