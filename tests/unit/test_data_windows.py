"""The window of a puzzle: what it holds, what it may not depend on, how a dataset keeps it."""

import base64
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from data_pipeline import merge
from data_pipeline.arc import sources as arc
from data_pipeline.arc.augment import TRANSPOSING, parse_name
from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.arc.rows import SplitPlan, plan_groups
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import FIRST_COLOUR_ID, PAD_ID
from data_pipeline.arc.windows import largest_output, misfits, window, windows_document
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.build import build, summary
from data_pipeline.reader import open_dataset
from data_pipeline.schema import WINDOWS, SplitName, load_dataset_info, load_split_index
from data_pipeline.shards.plan import Request
from data_pipeline.shards.reader import read_shard
from data_pipeline.windows import block_operations, frame, load_windows, windows_of_puzzles
from tests.documents import edit_document

CANVAS = 5
EARLIER = Path(__file__).parents[1] / "golden" / "earlier"

grids = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=CANVAS))
grids = grids.map(lambda grid: grid % 10)
pairs = st.builds(Pair, grids, grids)
tasks = st.builds(
    Task,
    st.just("task"),
    st.lists(pairs, min_size=1, max_size=3).map(tuple),
    st.lists(pairs, min_size=1, max_size=2).map(tuple),
    st.booleans(),
    st.just("here"),
)


def sized(*shapes: tuple[int, int]) -> Pair:
    return Pair(*(np.zeros(shape, dtype=np.uint8) for shape in shapes))


def held_out(demos: list[Pair], *tests: Pair) -> Task:
    return Task("task", tuple(demos), tests, True, "here")


def outside(tokens: NDArray[np.uint8], window_of: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the cells outside of the window of examples [n, 2, canvas, canvas] as a model finds it: by the first row and
    column of the input that hold anything; [n, 1, canvas, canvas]."""
    canvas = tokens.shape[-1]
    cells = np.arange(canvas)
    found = tokens[:, 0] != PAD_ID
    down, right = found.any(axis=2).argmax(axis=1), found.any(axis=1).argmax(axis=1)
    rows = (cells >= down[:, None]) & (cells < down[:, None] + window_of[0])
    columns = (cells >= right[:, None]) & (cells < right[:, None] + window_of[1])
    return ~(rows[:, :, None] & columns[:, None, :])[:, None]


@given(tasks, st.integers(0, 2**32))
def test_every_training_example_lies_within_its_window(task: Task, seed: int) -> None:
    groups = plan_groups([task], 12, seed)
    table = windows_document(groups, CANVAS).table()
    plan = SplitPlan("train", groups, CANVAS, seed)
    for row in range(plan.num_rows):
        samples = plan.samples(row, np.array([0]))
        examples = samples.examples.reshape(-1, 2, CANVAS, CANVAS)
        marked = outside(examples, table[samples.identifiers[0]])
        assert not examples[np.broadcast_to(marked, examples.shape)].any()


@given(tasks, st.integers(0, 2**32))
def test_the_frame_of_a_window_is_what_a_model_finds(task: Task, seed: int) -> None:
    groups = plan_groups([task], 3, seed)
    table = windows_document(groups, CANVAS).table()
    samples = SplitPlan("train", groups, CANVAS, seed).samples(0, np.array([0]))
    examples = samples.examples.reshape(-1, 2, CANVAS, CANVAS)
    window_of = table[samples.identifiers[0]]
    for board, marked in zip(examples[:, 0], outside(examples, window_of)[:, 0], strict=True):
        top, left, bottom, right = found = frame(board, window_of)
        assert not marked[top:bottom, left:right].any()
        assert found.size[0] * found.size[1] == np.count_nonzero(~marked)


@given(tasks)
def test_inputs_of_held_out_tests_lie_within_their_window(task: Task) -> None:
    groups = plan_groups([dataclasses.replace(task, held_out=True)], 12, seed=0)
    table = windows_document(groups, CANVAS).table()
    plan = SplitPlan("test", groups, CANVAS, seed=0)
    for row in range(plan.num_rows):
        samples = plan.samples(row, np.array([0]))
        inputs = samples.examples.reshape(-1, 2, CANVAS, CANVAS)[:, :1]
        assert not inputs[outside(inputs, table[samples.identifiers[0]])].any()


@given(tasks)
def test_a_trained_task_has_the_smallest_window_of_its_grids(task: Task) -> None:
    trained = dataclasses.replace(task, held_out=False)
    shapes = [grid.shape for pair in task.pairs for grid in pair if grid is not None]
    assert window(trained, CANVAS) == tuple(
        min(max(sides) + 1, CANVAS) for sides in zip(*shapes, strict=True)
    )


@given(tasks, st.lists(st.none() | grids, min_size=2, max_size=2))
def test_held_out_outputs_do_not_influence_the_window(task: Task, outputs: list[Any]) -> None:
    tests = tuple(Pair(pair.input, other) for pair, other in zip(task.tests, outputs, strict=False))
    known = dataclasses.replace(task, held_out=True)
    assert window(dataclasses.replace(known, tests=tests), CANVAS) == window(known, CANVAS)


def test_outputs_that_must_not_train_do_not_influence_the_window() -> None:
    task = held_out([sized((2, 2), (2, 2)), sized((2, 2), (9, 9))], sized((2, 2), (2, 2)))
    assert window(task, 30) == (17, 17)
    assert window(dataclasses.replace(task, left_out=frozenset([1])), 30) == (3, 3)
    assert window(dataclasses.replace(task, left_out=frozenset([0, 1])), 30) == (30, 30)


@given(tasks)
def test_images_that_transpose_swap_height_and_width(task: Task) -> None:
    [group] = plan_groups([task], 40, seed=0)
    table = windows_document([group], CANVAS).table()
    height, width = window(task, CANVAS)
    for name, sides in zip(group.names(), table[1:].tolist(), strict=True):
        swaps = parse_name(name)[1].dihedral in TRANSPOSING
        assert sides == ([width, height] if swaps else [height, width])


@pytest.mark.parametrize(
    ("inputs", "outputs", "test_input", "expected"),
    [
        ([3, 5, 4], [7, 7, 7], 9, 7),  # constant size
        ([2, 4], [3, 6], 5, 8),  # constant ratio, rounded up
        ([3, 5], [5, 7], 9, 11),  # constant difference
        ([9, 7], [5, 3], 3, -1),  # which may leave nothing
        ([2, 3], [4, 9], 5, 25),  # square
        ([3], [6], 5, 10),  # one demonstration: size 6, ratio 2, difference 3; no square
        ([5, 5, 5], [10, 20, 15], 5, 30),  # none
    ],
)
def test_a_side_of_an_output_is_inferred_by_every_rule_that_holds(
    inputs: list[int], outputs: list[int], test_input: int, expected: int
) -> None:
    assert largest_output(np.array(inputs), np.array(outputs), test_input) == expected


def test_inferred_outputs_are_cut_off_at_the_canvas() -> None:
    doubled = held_out([sized((2, 3), (4, 6)), sized((3, 4), (6, 8))], sized((8, 2), (16, 4)))
    assert window(doubled, 30) == (17, 9)
    assert window(doubled, 16) == (16, 9)


def test_a_misfit_exceeds_the_window_with_its_end_marks() -> None:
    demos = [sized((2, 2), (2, 2)), sized((3, 3), (3, 3))]
    tests = [sized((3, 3), (3, 3)), sized((3, 3), (4, 3)), sized((3, 3), (3, 4))]
    assert misfits(held_out(demos, *tests, Pair(tests[0].input, None)), 30) == (1, 2)
    assert misfits(held_out(demos, *tests), 4) == ()
    trained = dataclasses.replace(held_out(demos, *tests), held_out=False, left_out=frozenset([3]))
    assert misfits(trained, 30) == ()


@pytest.mark.parametrize(
    ("preset", "num_outputs", "unfit", "times"),
    [("arc-agi-1", 835, [], 3.40), ("arc-agi-2", 1243, ["bf45cf4b", "c803e39c"], 2.95)],
)
def test_windows_of_the_bundled_tasks_are_as_documented(
    preset: str, num_outputs: int, unfit: list[str], times: float
) -> None:
    bundled = [dataclasses.replace(task, held_out=True) for task in arc.bundled(preset)]
    assert sum(len(task.tests) for task in bundled) == num_outputs
    windows = windows_document(plan_groups(bundled, 0, seed=0), 30)
    assert sorted(misfit.task for misfit in windows.misfits) == unfit
    assert 1 / windows.cost().operations == pytest.approx(times, abs=0.005)


def test_operations_of_a_block_are_those_of_its_products() -> None:
    positions, hidden, intermediate = 7, 512, 1536
    attention = 4 * positions * hidden * hidden + 2 * positions * positions * hidden
    feed_forward = 3 * positions * hidden * intermediate
    # a multiplication and an addition each
    assert block_operations(np.array([positions])).tolist() == [2 * (attention + feed_forward)]


def write_tasks(folder: Path) -> Path:
    """A task that trains, one held out that fits, and one held out that does not; heights and widths differ."""
    rng = np.random.default_rng(0)

    def pair(height: int, width: int, out: tuple[int, int]) -> dict[str, Any]:
        return {
            "input": rng.integers(0, 10, (height, width)).tolist(),
            "output": rng.integers(0, 10, out).tolist(),
        }

    written = {
        "training/a": ([pair(2, 1, (3, 1))], [pair(2, 1, (3, 2))]),
        "evaluation/b": ([pair(1, 2, (1, 3)), pair(2, 2, (2, 3))], [pair(3, 2, (3, 3))]),
        "evaluation/c": ([pair(2, 2, (1, 1)), pair(2, 2, (1, 2))], [pair(2, 2, (1, 1)), pair(2, 2, (4, 1))]),
    }
    for name, (train, test) in written.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"train": train, "test": test}))
    return folder


def request(source: Path, out: Path, workers: int = 1, part: Part | None = None) -> Request:
    options = ArcOptions(num_aug=9, canvas=6)
    return Request("arc", [str(source)], out, options, 42, workers, quiet=True, part=part or Part())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "arc"
    build(request(source, out))
    return out


def shard_samples(dataset: Path, split: SplitName) -> list[tuple[int, NDArray[np.uint8]]]:
    """(identifier, examples [n, 2, canvas, canvas]) of every sample."""
    index = load_split_index(dataset, split)
    found: list[tuple[int, NDArray[np.uint8]]] = []
    for entry in index.shards:
        shard = read_shard(dataset / split, index, entry)
        for identifier, start, end in zip(shard.identifiers, shard.starts, shard.starts[1:], strict=False):
            examples = shard.examples(slice(start, end)).reshape(-1, 2, index.canvas, index.canvas)
            found.append((int(identifier), examples))
    return found


def test_a_built_dataset_tells_the_window_of_each_puzzle(dataset: Path) -> None:
    info = load_dataset_info(dataset)
    table = windows_of_puzzles(dataset, info)
    assert (table.dtype, table.shape) == (np.uint8, (info.num_puzzle_identifiers, 2))
    names = json.loads((dataset / "identifiers.json").read_bytes())
    assert {name: table[names.index(name)].tolist() for name in "abc"} == {
        "a": [4, 3],
        "b": [4, 4],
        "c": [3, 4],
    }
    assert table[0].tolist() == [6, 6]


def test_shards_hold_nothing_outside_of_the_windows_but_misfits(dataset: Path) -> None:
    info = load_dataset_info(dataset)
    table, names = windows_of_puzzles(dataset, info), json.loads((dataset / "identifiers.json").read_bytes())
    exceeding = {
        (split, parse_name(names[identifier])[0])
        for split in ("train", "test")
        for identifier, examples in shard_samples(dataset, split)
        if examples[np.broadcast_to(outside(examples, table[identifier]), examples.shape)].any()
    }
    assert exceeding == {("test", "c")}
    assert (shard_samples(dataset, "train")[0][1] >= FIRST_COLOUR_ID).any()


def test_the_build_names_tasks_whose_known_outputs_do_not_fit(dataset: Path) -> None:
    info = load_dataset_info(dataset)
    windows = load_windows(dataset, info)
    assert windows is not None
    assert [(misfit.task, misfit.tests) for misfit in windows.misfits] == [("c", (1,))]
    text = summary(dataset, info)
    assert "too small for the known outputs of 1 held-out task (c)" in text
    assert f"windows: {(12 + 16 + 12) / 3 / 36:.1%} of the canvas" in text


def test_windows_depend_on_neither_workers_nor_parts(source: Path, dataset: Path, tmp_path: Path) -> None:
    build(request(source, tmp_path / "two", workers=2))
    for number in (1, 0):
        build(request(source, tmp_path / "parts", part=Part(number, 2)))
    merge.merge(tmp_path / "parts", show_progress=False)
    for other in (tmp_path / "two", tmp_path / "parts"):
        assert (other / WINDOWS).read_bytes() == (dataset / WINDOWS).read_bytes()
        assert (other / "dataset.json").read_bytes() == (dataset / "dataset.json").read_bytes()


def without_windows(dataset: Path, copy: Path) -> Path:
    """A copy as an earlier version would have built it."""
    shutil.copytree(dataset, copy)
    (copy / WINDOWS).unlink()
    info = load_dataset_info(copy)
    documents = {name: digest for name, digest in info.documents.items() if name != WINDOWS}
    info = info.model_copy(update={"documents": documents})
    info = info.model_copy(update={"sha256": info.digest()})
    (copy / "dataset.json").write_text(info.model_dump_json())
    return copy


def test_windows_do_not_change_what_makes_datasets_the_same(dataset: Path, tmp_path: Path) -> None:
    before = load_dataset_info(without_windows(dataset, tmp_path / "before"))
    assert load_dataset_info(dataset).content() == before.content()


def test_an_earlier_arc_dataset_says_how_to_get_windows(dataset: Path, tmp_path: Path) -> None:
    for folder in (EARLIER / "arc", without_windows(dataset, tmp_path / "before")):
        info = open_dataset(folder).info
        with pytest.raises(InputError, match=r"earlier version.*padding=keep.*same command.*another --out"):
            windows_of_puzzles(folder, info)


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_other_kinds_have_no_windows_and_say_so(kind: str) -> None:
    info = open_dataset(EARLIER / kind).info
    with pytest.raises(InputError, match=f"of kind {kind}.*set padding=keep"):
        windows_of_puzzles(EARLIER / kind, info)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other canvas": (lambda told: told.update(canvas=7), "canvas of 7, but dataset.json"),
    "beyond the canvas": (lambda told: told.update(heights=[[7, 3]]), "heights are not all from 1 to"),
    "nothing high": (lambda told: told.update(widths=[[0, 3]]), "widths are not all from 1 to"),
    "fewer groups": (lambda told: told.update(widths=[[4, 2]]), "not equally long"),
    "no groups": (
        lambda told: told.update(heights=[], widths=[], num_puzzles=[], transposed=""),
        "no group",
    ),
    "other puzzles": (
        lambda told: told.update(num_puzzles=[[8, 3]], transposed=base64.b64encode(b"123").decode()),
        "is of 24 puzzles .*but dataset.json",
    ),
    "short bitmap": (
        lambda told: told.update(transposed=base64.b64encode(b"12").decode()),
        "transposed is not of",
    ),
    "no base64": (lambda told: told.update(transposed="#"), "transposed: is not base64"),
    "no text": (lambda told: told.update(transposed=[1]), "transposed: is not text"),
    "other format": (lambda told: told.update(format_version=2), "format_version 2 is not 1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_windows_are_refused(damage: str, dataset: Path, tmp_path: Path) -> None:
    edit, message = DAMAGE[damage]
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    edit_document(copy, WINDOWS, edit)
    with pytest.raises(InputError, match=rf"{WINDOWS}: .*{message}"):
        windows_of_puzzles(copy, load_dataset_info(copy))


def test_windows_of_another_checksum_or_missing_are_refused(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / WINDOWS).write_bytes((copy / WINDOWS).read_bytes() + b" ")
    with pytest.raises(InputError, match=r"windows\.json: has changed since it was built"):
        open_dataset(copy)
    (copy / WINDOWS).unlink()
    with pytest.raises(InputError, match=r"windows\.json: missing"):
        windows_of_puzzles(copy, load_dataset_info(copy))
