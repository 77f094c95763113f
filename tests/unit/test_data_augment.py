from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline.arc.augment import (
    IDENTITY,
    Augmentation,
    AugmentationTable,
    apply,
    augmentation_name,
    dihedral,
    inverse_dihedral,
    parse_name,
    parse_names,
    plan_augmentations,
)
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import Grid
from data_pipeline.base.errors import InputError

grids = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.integers(0, 9))
augmentations = st.builds(
    lambda t, colours: Augmentation(t, np.array([0, *colours], dtype=np.uint8)),
    st.integers(0, 7),
    st.permutations(range(1, 10)),
)
task_ids = st.sampled_from(["007bbfb7", "AboveBelow10", "a_t3_b", "Köln", "x|||y"])


def tiny_tasks() -> st.SearchStrategy[Task]:
    """Small grids of few colours, so that augmentations often coincide; some outputs hidden."""
    tiny = hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=2), elements=st.integers(0, 2)
    )
    demos = st.lists(st.builds(Pair, tiny, tiny), min_size=1, max_size=3).map(tuple)
    tests = st.lists(st.builds(Pair, tiny, st.none() | tiny), min_size=1, max_size=2).map(tuple)
    return st.builds(Task, st.just("task"), demos, tests, st.booleans(), st.just("here"))


def content(task: Task, augmentation: Augmentation) -> frozenset[tuple[object, int]]:
    """The augmented pairs with shapes, in no order."""

    def image(grid: Grid | None) -> object:
        if grid is None:
            return None
        augmented = apply(grid, augmentation)
        return augmented.shape, augmented.tobytes()

    return frozenset(Counter((image(pair.input), image(pair.output)) for pair in task.pairs).items())


def rows_of(table: AugmentationTable) -> list[Augmentation]:
    return [Augmentation(int(t), palette) for t, palette in zip(*table, strict=True)]


def test_the_dihedral_ids_are_the_published_ones() -> None:
    grid = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    images = [dihedral(grid, t).tolist() for t in range(8)]
    assert images == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
        [[2, 1], [4, 3]],
        [[3, 4], [1, 2]],
        [[1, 3], [2, 4]],
        [[4, 2], [3, 1]],
    ]


def invert(grid: Grid, augmentation: Augmentation) -> Grid:
    """Return the grid that `apply` made this one of."""
    inverse_palette = np.argsort(augmentation.palette, kind="stable").astype(np.uint8)
    return inverse_dihedral(inverse_palette[grid], augmentation.dihedral)


@given(grids, st.integers(0, 7))
def test_every_dihedral_image_can_be_turned_back(grid: Grid, t: int) -> None:
    np.testing.assert_array_equal(inverse_dihedral(dihedral(grid, t), t), grid)


@given(grids, augmentations)
def test_every_augmentation_can_be_undone(grid: Grid, augmentation: Augmentation) -> None:
    np.testing.assert_array_equal(invert(apply(grid, augmentation), augmentation), grid)


@pytest.mark.parametrize("separators", ["|||t{}|||{}", "_t{}_{}"])
@given(task_id=task_ids, augmentation=augmentations)
def test_names_of_both_releases_are_read_back(
    separators: str, task_id: str, augmentation: Augmentation
) -> None:
    digits = "".join(map(str, augmentation.palette.tolist()))
    parsed_id, parsed = parse_name(task_id + separators.format(augmentation.dihedral, digits))
    assert parsed_id == task_id
    assert parsed.dihedral == augmentation.dihedral
    np.testing.assert_array_equal(parsed.palette, augmentation.palette)


@given(st.lists(st.tuples(task_ids, augmentations, st.sampled_from(["", "|||t{}|||{}", "_t{}_{}"]))))
def test_many_names_are_read_at_once(names: list[tuple[str, Augmentation, str]]) -> None:
    spelled = [
        task + suffix.format(augmentation.dihedral, "".join(map(str, augmentation.palette.tolist())))
        for task, augmentation, suffix in names
    ]
    tasks, table = parse_names(spelled)
    meant = [augmentation if suffix else IDENTITY for _, augmentation, suffix in names]
    assert tasks == [task for task, _, _ in names]
    assert table.dihedrals.tolist() == [augmentation.dihedral for augmentation in meant]
    assert table.palettes.tolist() == [augmentation.palette.tolist() for augmentation in meant]


@pytest.mark.parametrize(
    "name",
    [
        "|||t3|||0718293645", "_t3_0718293645", "a|||t8|||0718293645", "a_t3|||0718293645", "a||| t3|||0718293645",
        "a|||t3|||071829364", "a_t3_071829364\N{ARABIC-INDIC DIGIT FIVE}", "a|||t3|||0718293645 ", "",
    ],
)  # fmt: skip
def test_a_name_that_only_resembles_an_augmentation_is_a_task(name: str) -> None:
    assert parse_name(name) == (name, IDENTITY)


@given(task_ids, augmentations)
def test_the_names_we_write_are_read_back(task_id: str, augmentation: Augmentation) -> None:
    parsed_id, parsed = parse_name(augmentation_name(task_id, augmentation))
    assert (parsed_id, parsed.dihedral) == (task_id, augmentation.dihedral)
    np.testing.assert_array_equal(parsed.palette, augmentation.palette)


def test_the_original_has_the_name_of_its_task() -> None:
    assert augmentation_name("007bbfb7", IDENTITY) == "007bbfb7"
    assert parse_name("007bbfb7") == ("007bbfb7", IDENTITY)


def test_a_name_whose_palette_is_no_permutation_is_refused() -> None:
    with pytest.raises(InputError, match="0118293645"):
        parse_name("007bbfb7|||t3|||0118293645")


@settings(max_examples=60, deadline=None)
@given(tiny_tasks(), st.integers(0, 30))
def test_duplicates_are_dropped_exactly_by_content(task: Task, num_aug: int) -> None:
    # Every trial that can be drawn, before duplicates go: those of a task in which none coincide.
    board = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)
    board_pair = Pair(np.pad(board, ((0, 1), (0, 0))), board)
    free = Task(task.id, (board_pair,), (board_pair,), False, "here")
    trials = rows_of(plan_augmentations(free, 5 * num_aug, seed=3))[: 1 + 5 * num_aug]
    kept: dict[frozenset[tuple[object, int]], Augmentation] = {}
    for augmentation in trials:
        kept.setdefault(content(task, augmentation), augmentation)
    expected = list(kept.values())[: 1 + num_aug]
    planned = plan_augmentations(task, num_aug, seed=3)
    assert planned.names("x") == [augmentation_name("x", augmentation) for augmentation in expected]


def test_two_puzzles_with_the_same_grids_in_other_pairs_are_not_duplicates() -> None:
    a, b = (np.array([[colour]], dtype=np.uint8) for colour in (1, 2))
    # Swapping colours 1 and 2 swaps the pairs of the first task, but makes new pairs of the second.
    same = Task("task", (Pair(a, b), Pair(b, a)), (Pair(a, a), Pair(b, b)), False, "here")
    different = Task("task", (Pair(a, b), Pair(a, b)), (Pair(a, a), Pair(b, b)), False, "here")
    counts = [len(plan_augmentations(task, 500, seed=0).dihedrals) for task in (same, different)]
    assert counts == [9 * 8 // 2, 9 * 8]


def test_fewer_augmentations_are_a_prefix_of_more() -> None:
    board = np.arange(9, dtype=np.uint8).reshape(3, 3)
    task = Task("task", (Pair(board, board),), (Pair(board, None),), False, "here")
    many = plan_augmentations(task, 50, seed=1).names("task")
    assert plan_augmentations(task, 20, seed=1).names("task") == many[:21]
    assert plan_augmentations(task, 0, seed=1).names("task") == ["task"]
    assert plan_augmentations(task, 20, seed=2).names("task") != many[:21]
