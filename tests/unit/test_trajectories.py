"""Trajectories: what is read of them is what the slots answered, segment by segment; damage is named."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.predictions import prediction_files
from hrm_dist.evaluation.trajectories import (
    VALUES,
    Recorder,
    Trajectories,
    Trajectory,
    read_trajectories,
    segments_file,
    write_trajectories,
)

FIELDS = ["starts" if name == "offsets" else name for name in Trajectories._fields]


class Input(NamedTuple):
    """What a model answers to one input, segment by segment."""

    preds: NDArray[np.uint8]  # [n, S]
    values: NDArray[np.float32]  # [n, 4]


def draw_inputs(rng: np.random.Generator, num: int, num_cells: int, max_segments: int) -> list[Input]:
    """Draw answers of which most cells stay as they were."""
    inputs = []
    for _ in range(num):
        length = int(rng.integers(1, max_segments + 1))
        preds = rng.integers(0, 12, (length, num_cells), dtype=np.uint8)
        stays = rng.random((length, num_cells)) < rng.random()
        for n in range(1, length):
            preds[n] = np.where(stays[n], preds[n - 1], preds[n])
        values = rng.standard_normal((length, len(VALUES))).astype(np.float32)
        values[0, 2] = np.inf
        inputs.append(Input(preds, values))
    return inputs


def record(inputs: list[Input], num_slots: int, num_cells: int) -> tuple[list[int], list[Trajectory]]:
    """Run the inputs through slots, each of which goes on with the next one; return them as they finish."""
    recorder = Recorder(num_slots, num_cells)
    waiting = list(range(len(inputs)))
    held, done = [-1] * num_slots, [0] * num_slots
    preds = np.full((num_slots, num_cells), 99, dtype=np.uint8)  # of idle slots, nothing
    values = np.full((num_slots, len(VALUES)), 99, dtype=np.float32)
    rows, trajectories = [], []
    while waiting or max(held) >= 0:
        begun = np.zeros(num_slots, dtype=bool)
        for slot in range(num_slots):
            if held[slot] < 0 and waiting:
                held[slot], done[slot], begun[slot] = waiting.pop(0), 0, True
            if held[slot] >= 0:
                preds[slot], values[slot] = (field[done[slot]] for field in inputs[held[slot]])
        running = np.array(held) >= 0
        recorder.add(running, begun, preds, *values.T)
        for slot in np.flatnonzero(running).tolist():
            done[slot] += 1
            if done[slot] == len(inputs[held[slot]].preds):
                rows.append(held[slot])
                trajectories.append(recorder.take(slot))
                held[slot] = -1
    return rows, trajectories


def write(
    path: Path, rows: Sequence[int], trajectories: Sequence[Sequence[Trajectory]], num_cells: int
) -> None:
    """Write trajectories of inputs whose puzzle and example follow from the row."""
    of_input = np.array(rows, dtype=np.int32)
    write_trajectories(path, of_input, of_input // 2 + 5, of_input % 2, trajectories, num_cells)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(0, 9),
    num_slots=st.integers(1, 4),
    num_cells=st.integers(1, 9),
    max_segments=st.integers(1, 6),
)
def test_what_is_read_is_what_the_slots_answered(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    num: int,
    num_slots: int,
    num_cells: int,
    max_segments: int,
) -> None:
    inputs = draw_inputs(np.random.default_rng(seed), num, num_cells, max_segments)
    rows, trajectories = record(inputs, num_slots, num_cells)
    path = tmp_path_factory.mktemp("of") / "segments.npz"
    write(path, rows, [(one,) for one in trajectories], num_cells)
    read = read_trajectories(path)
    finished = [inputs[row] for row in rows]
    assert read.rows.tolist() == rows
    assert read.num_starts == 1
    assert read.num_segments.tolist() == [len(one.preds) for one in finished]
    answers = [answer.copy() for answer in read.answers()]
    assert len(answers) == max((len(one.preds) for one in finished), default=0)
    for n, answer in enumerate(answers):
        wanted = [one.preds[min(n, len(one.preds) - 1)] for one in finished]
        np.testing.assert_array_equal(answer, wanted)
        for number, name in enumerate(VALUES):
            kept = [one.values[min(n, len(one.values) - 1), number] for one in finished]
            np.testing.assert_array_equal(read.by_segment(name)[:, n], kept)


def test_an_answer_that_stays_takes_no_room() -> None:
    answer = np.arange(1, 10, dtype=np.uint8)
    one = Input(np.tile(answer, (50, 1)), np.zeros((50, len(VALUES)), dtype=np.float32))
    [trajectory] = record([one], num_slots=1, num_cells=9)[1]
    assert trajectory.num_changes.tolist() == [9] + [0] * 49
    assert trajectory.tokens.tolist() == answer.tolist()


def test_a_recorder_refuses_slots_out_of_step() -> None:
    recorder = Recorder(2, 3)
    preds, values = np.zeros((2, 3), dtype=np.uint8), np.zeros((len(VALUES), 2), dtype=np.float32)
    none, first, both = (np.array(mask) for mask in ([False, False], [True, False], [True, True]))
    with pytest.raises(ValueError, match="has not begun"):
        recorder.add(both, first, preds, *values)
    recorder.add(both, both, preds, *values)
    with pytest.raises(ValueError, match="not taken"):
        recorder.add(first, none, preds, *values)
    recorder.take(1)
    with pytest.raises(ValueError, match="slot 1 holds no input"):
        recorder.take(1)
    recorder.add(first, none, preds, *values)
    assert len(recorder.take(0).num_changes) == 2


def test_a_recorder_forgets_what_was_taken() -> None:
    recorder, sizes = Recorder(2, 9), []
    values = np.zeros((len(VALUES), 2), dtype=np.float32)
    for n in range(30):
        slots, preds = np.arange(2) == n % 2, np.full((2, 9), n, dtype=np.uint8)
        recorder.add(slots, slots, preds, *values)
        recorder.take(n % 2)
        sizes.append(len(pickle.dumps(recorder)))
    assert sizes[-1] == sizes[1]


def test_a_vote_does_not_take_segments_for_predictions(tmp_path: Path) -> None:
    for path in (tmp_path / "predictions_00000.npz", segments_file(tmp_path / "predictions_00000.npz")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert prediction_files([tmp_path]) == [tmp_path / "predictions_00000.npz"]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    inputs = draw_inputs(np.random.default_rng(0), 4, num_cells=9, max_segments=5)
    rows, trajectories = record(inputs, num_slots=2, num_cells=9)
    path = tmp_path / "segments.npz"
    write(path, rows, [(one,) for one in trajectories], num_cells=9)
    return path


@pytest.fixture
def of_starts(tmp_path: Path) -> Path:
    """Six trajectories: three starts of each of two inputs."""
    inputs = draw_inputs(np.random.default_rng(0), 6, num_cells=9, max_segments=5)
    rows, trajectories = record(inputs, num_slots=2, num_cells=9)
    in_order = [trajectories[rows.index(row)] for row in range(6)]
    path = tmp_path / "segments.npz"
    write(path, [7, 2], [in_order[:3], in_order[3:]], num_cells=9)
    return path


def test_the_starts_of_an_input_follow_each_other(of_starts: Path) -> None:
    inputs = draw_inputs(np.random.default_rng(0), 6, num_cells=9, max_segments=5)
    read = read_trajectories(of_starts)
    assert read.num_starts == 3
    assert read.rows.tolist() == [7, 7, 7, 2, 2, 2]
    assert read.start_index.tolist() == [0, 1, 2, 0, 1, 2]
    assert read.puzzle_identifiers is not None
    assert read.puzzle_identifiers.tolist() == [8, 8, 8, 6, 6, 6]
    assert read.example_index is not None
    assert read.example_index.tolist() == [1, 1, 1, 0, 0, 0]
    *_, last = read.answers()
    np.testing.assert_array_equal(last, [one.preds[-1] for one in inputs])


def test_a_file_of_an_earlier_version_has_one_start(written: Path) -> None:
    now = read_trajectories(written)
    new = ("start_index", "puzzle_identifiers", "example_index")
    save(written, {name: array for name, array in arrays_of(written).items() if name not in new})
    earlier = read_trajectories(written)
    assert earlier.num_starts == 1
    assert earlier.puzzle_identifiers is None
    assert earlier.example_index is None
    for name in Trajectories._fields[:-2]:
        np.testing.assert_array_equal(getattr(earlier, name), getattr(now, name))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("start_index", [0, 1, 2, 0, 1, 1]),
        ("start_index", [0, 1, 2, 0, 1, -1]),
        ("start_index", [0, 1, 2, 0, 2, 1]),
        ("start_index", [0, 1, 2, 3, 0, 1]),  # four of the first input, two of the second
        ("rows", [7, 7, 2, 2, 2, 2]),
        ("rows", [7, 7, 7, 7, 7, 7]),
        ("puzzle_identifiers", [8, 8, 8, 6, 6, 8]),
        ("example_index", [1, 0, 1, 0, 0, 0]),
    ],
)
def test_starts_that_differ_between_inputs_are_refused(of_starts: Path, name: str, values: list[int]) -> None:
    save(of_starts, arrays_of(of_starts) | {name: np.array(values, dtype=np.int32)})
    with pytest.raises(InputError, match=f"{of_starts}: {name} has entries"):
        read_trajectories(of_starts)


def save(path: Path, arrays: dict[str, NDArray]) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def arrays_of(path: Path) -> dict[str, NDArray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_missing_or_of_another_type_is_named(written: Path, name: str) -> None:
    arrays = arrays_of(written)
    save(written, {key: value for key, value in arrays.items() if key != name})
    with pytest.raises(InputError, match=f"{written}: has no {name};"):
        read_trajectories(written)
    save(written, arrays | {name: arrays[name].astype(np.float16)})
    with pytest.raises(InputError, match=f"{written}: {name} is float16"):
        read_trajectories(written)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("rows", 0, -1),
        ("rows", slice(2), 7),  # twice the same
        ("starts", 0, 1),
        ("starts", 1, 10_000),
        ("starts", -1, 1),
        ("cells", 0, 9),  # beyond the answer
        ("cells", 1, 0),  # the cell before again, or one before that
        ("num_cells", (), 0),
        ("num_cells", (), 1),
    ],
)
def test_an_entry_out_of_range_is_named(written: Path, name: str, place: int, value: int) -> None:
    arrays = arrays_of(written)
    arrays[name][place] = value
    save(written, arrays)
    named = "cells" if (name, value) == ("num_cells", 1) else name
    with pytest.raises(InputError, match=f"{written}: {named} has entries"):
        read_trajectories(written)


def test_a_row_without_a_segment_is_refused(written: Path) -> None:
    arrays = arrays_of(written)
    arrays["num_segments"][:2] = [0, arrays["num_segments"][:2].sum()]
    save(written, arrays)
    with pytest.raises(InputError, match="num_segments has entries that are below 1"):
        read_trajectories(written)


def test_fields_of_different_lengths_are_refused(written: Path) -> None:
    arrays = arrays_of(written)
    for name in ("start_index", "example_index", "num_segments", "residuals", "starts", "tokens"):
        save(written, arrays | {name: arrays[name][:-1]})
        with pytest.raises(InputError, match="entries; it must have"):
            read_trajectories(written)


def test_a_damaged_or_absent_file_is_named(written: Path) -> None:
    content = written.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:100] + b"\x00" * 100 + content[200:]):
        written.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{written}: not a readable"):
            read_trajectories(written)
    written.unlink()
    with pytest.raises(InputError, match="--every-segment"):
        read_trajectories(written)
