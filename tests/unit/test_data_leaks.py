"""Held-out pairs that stand in the training data, as they are or augmented, are found and settled."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline.arc import sources as arc
from data_pipeline.arc.augment import Augmentation, apply
from data_pipeline.arc.copies import merge
from data_pipeline.arc.json_format import task_json
from data_pipeline.arc.leaks import drop_from_training, find_in_tasks, pair_key
from data_pipeline.arc.rows import plan_groups
from data_pipeline.arc.task import Pair, Task
from data_pipeline.base.errors import InputError
from data_pipeline.leaks import MAX_OCCURRENCES, MAX_RECORDED, leak, settle
from data_pipeline.schema import load_dataset_info, load_split_index

grids = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.integers(0, 9))
pairs = st.builds(Pair, grids, grids)
tiny_grids = hnp.arrays(np.uint8, (2, 1), elements=st.integers(0, 2))
tiny_pairs = st.builds(Pair, tiny_grids, tiny_grids)  # few enough that many are augmentations of each other
augmentations = st.builds(
    lambda t, palette: Augmentation(t, np.array([0, *palette], dtype=np.uint8)),
    st.integers(0, 7),
    st.permutations(range(1, 10)),
)


def augmented(pair: Pair, augmentation: Augmentation) -> Pair:
    assert pair.output is not None
    return Pair(apply(pair.input, augmentation), apply(pair.output, augmentation))


@given(pairs, augmentations)
def test_all_augmentations_of_a_pair_share_its_key(pair: Pair, augmentation: Augmentation) -> None:
    assert pair_key(augmented(pair, augmentation)) == pair_key(pair)


@given(tiny_pairs, tiny_pairs)
def test_pairs_share_a_key_only_if_an_augmentation_turns_one_into_the_other(one: Pair, other: Pair) -> None:
    keys = pair_key(one) == pair_key(other)
    assert keys == any(
        same_but_for_colours(one, augmented(other, Augmentation(t, np.arange(10, dtype=np.uint8))))
        for t in range(8)
    )


def same_but_for_colours(one: Pair, other: Pair) -> bool:
    """Whether some bijection of the colours, with 0 for itself, maps one pair to the other."""
    assert one.output is not None
    assert other.output is not None
    if (one.input.shape, one.output.shape) != (other.input.shape, other.output.shape):
        return False
    cells = zip(
        [0, *one.input.flat, *one.output.flat], [0, *other.input.flat, *other.output.flat], strict=True
    )
    there, back = {}, {}
    return all(there.setdefault(a, b) == b and back.setdefault(b, a) == a for a, b in cells)


@given(pairs, augmentations, st.booleans())
def test_a_held_out_pair_is_found_in_other_tasks_and_dropped_from_their_training(
    pair: Pair, augmentation: Augmentation, is_test_pair: bool
) -> None:
    other = Pair(np.full((5, 5), 1, dtype=np.uint8), np.full((1, 5), 2, dtype=np.uint8))
    held_out = Task("held", (other,), (pair,), True, "here")
    seen = augmented(pair, augmentation)
    trained = Task(
        "trained", (other, seen)[: 2 - is_test_pair], (seen,) if is_test_pair else (other,), False, "here"
    )
    tasks = [held_out, trained]
    found = find_in_tasks(tasks)
    [(place, where)] = [item for item in found.of_held_out.items() if item[0].task is held_out]
    assert (str(place), [str(w) for w in where]) == (
        "held test 0",
        ["trained test 0" if is_test_pair else "trained train 1"],
    )
    clean = drop_from_training(tasks, found)
    assert clean[0] is held_out
    assert clean[1].training_pairs == tuple(p for p in trained.pairs if p is not seen)
    assert find_in_training(clean) == []


def test_each_pair_is_dropped_by_its_own_number() -> None:
    one, two, three = (
        Pair(np.full((1, n), 1, dtype=np.uint8), np.full((n, 1), 2, dtype=np.uint8)) for n in (2, 3, 4)
    )
    held_out = Task("held", (one,), (three,), True, "here")
    trained = Task("trained", (one,), (two, three), False, "here")
    tasks = [held_out, trained]
    assert drop_from_training(tasks, find_in_tasks(tasks))[1].training_pairs == (one, two)


def test_only_so_many_leaks_and_places_are_listed_but_all_are_counted() -> None:
    many = [leak(f"held {i}", [f"trained {j}" for j in range(50)]) for i in range(MAX_RECORDED + 5)]
    settled = settle(many, "keep", is_published=False)
    assert (settled.num_pairs, len(settled.pairs)) == (MAX_RECORDED + 5, MAX_RECORDED)
    assert (settled.pairs[0].num_in_training, len(settled.pairs[0].in_training)) == (50, MAX_OCCURRENCES)
    with pytest.raises(
        InputError, match=r"held 0 = trained 0, trained 1, trained 2 and 47 more; .*; \.\.\.\. Build"
    ) as error:
        settle(many, "refuse", is_published=False)
    assert len(str(error.value)) < 500


def find_in_training(tasks: list[Task]) -> list[str]:
    trained = {pair_key(pair) for task in tasks for pair in task.training_pairs}
    return [
        task.id
        for task in tasks
        if task.held_out
        for pair in task.tests
        if pair.output is not None and pair_key(pair) in trained
    ]


def test_what_arc_agi_1_is_published_with() -> None:
    tasks = merge(arc.bundled("arc-agi-1"))
    found = {str(place): [str(w) for w in where] for place, where in find_in_tasks(tasks).of_held_out.items()}
    assert found["070dd51e test 0"] == ["40853293 test 0"]
    assert found["50a16a69 test 0"] == ["caa06a1f train 2"]
    assert len(found) == 9  # the others stand, turned or recoloured, in their own task's demonstrations
    assert all(where[0].split()[0] == place.split()[0] for place, where in found.items() if len(where) > 1)
    assert find_in_tasks(merge(arc.bundled("arc-agi-2"))).of_held_out == {}


def test_both_generations_mix_once_it_is_said_which_version_of_their_one_conflict_to_take() -> None:
    both = [*arc.bundled("arc-agi-2"), *arc.bundled("arc-agi-1")]
    with pytest.raises(InputError, match=r"task ac0c5833.*--conflicts first"):
        merge(both)
    tasks = merge(both, first_wins=True)
    assert len(tasks) == 1120 + 800 - 773
    evaluation = {task.id for task in both if task.held_out}
    assert {task.id for task in tasks if task.held_out} == evaluation
    assert len(plan_groups(tasks[:3], 1, 0)) == 3


def build(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline.build", *arguments, "--num-aug", "1", "--workers", "1"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_presets_warn_and_record_and_other_mixtures_are_refused_until_decided(tmp_path: Path) -> None:
    [leaking] = [task for task in arc.bundled("arc-agi-1") if task.id == "070dd51e"]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "renamed.json").write_text(json.dumps(task_json(leaking)))
    preset = build("arc-agi-1", "--out", "preset", "--limit-groups", "300", cwd=tmp_path)
    assert preset.returncode == 0
    assert "warning: 3 held-out pairs also stand in the training data" in preset.stderr
    leaks = load_dataset_info(tmp_path / "preset").leaks
    assert (leaks.num_pairs, leaks.dropped) == (3, False)
    assert ("070dd51e test 0", ("40853293 test 0",)) in [
        (leak.held_out, leak.in_training) for leak in leaks.pairs
    ]

    mixture = ["arc-agi-2", "--source", "evaluation"]
    refused = build(*mixture, "--out", "refused", cwd=tmp_path)
    assert refused.returncode == 2
    assert "renamed test 0 = " in refused.stderr
    assert "--leaks drop" in refused.stderr
    assert not (tmp_path / "refused").exists()

    # Holding out a task that trains in the preset is a decision of one's own.
    (tmp_path / "mine").mkdir()
    [trained] = [task for task in arc.bundled("arc-agi-1") if task.id == "27a28665"]
    (tmp_path / "mine" / "27a28665.json").write_text(json.dumps(task_json(trained)))
    refused = build("arc-agi-1", "--source", "mine:evaluation", "--out", "refused", cwd=tmp_path)
    assert refused.returncode == 2
    within = build("arc", "--source", ".", "--out", "below/out", cwd=tmp_path)
    assert within.returncode == 2
    assert "lies within the source" in within.stderr
    (tmp_path / "circle").symlink_to("circle")
    circle = build("arc", "--source", "mine", "--out", "circle", cwd=tmp_path)
    assert (circle.returncode, circle.stderr.count("\n")) == (2, 1)
    assert "circle: cannot be written (Too many levels of symbolic links)" in circle.stderr

    sizes = {}
    for policy in ("keep", "drop"):
        assert build(*mixture, "--out", policy, "--leaks", policy, cwd=tmp_path).returncode == 0
        leaks = load_dataset_info(tmp_path / policy).leaks
        assert (leaks.num_pairs > 0, leaks.dropped) == (True, policy == "drop")
        groups = load_split_index(tmp_path / policy, "train").groups
        assert groups.names is not None
        sizes[policy] = dict(zip(groups.names, groups.num_examples.tolist(), strict=True))
    dropped = {name: size - sizes["drop"].get(name, 0) for name, size in sizes["keep"].items()}
    in_training = {place for leak in leaks.pairs for place in leak.in_training}
    assert sum(dropped.values()) == len(in_training)
