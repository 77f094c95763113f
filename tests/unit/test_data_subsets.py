"""Which puzzles a split holds: a hash of the set in dataset.json that anybody finds again."""

import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import subsets
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.build import build, parse_arguments, read
from data_pipeline.build_spec import BuildSpec
from data_pipeline.merge import merge
from data_pipeline.schema import SPLITS, SplitName, Subsets, load_dataset_info
from data_pipeline.shards.plan import Request
from data_pipeline.subsets import Subset, described
from hrm_dist.config import as_found, load_config, to_yaml
from hrm_dist.train import build_if_missing
from tests.unit import test_data_build as arc
from tests.unit import test_data_puzzle_dataset as grids

SUDOKU = grids.TYPES["sudoku"]


def subsets_of(asked: Request) -> Subsets:
    """Those of the dataset that this builds."""
    build(asked)
    found = load_dataset_info(asked.out).subsets
    assert found is not None
    return found


@pytest.fixture(scope="module")
def sudokus() -> grids.Examples:
    return grids.new_puzzles(SUDOKU, "train", 20)


@pytest.fixture(scope="module")
def source(sudokus: grids.Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csv") / "sudoku"
    grids.write_csv(folder / "train.csv", SUDOKU, sudokus)
    grids.write_csv(folder / "test.csv", SUDOKU, grids.new_puzzles(SUDOKU, "test", 5))
    return folder


# Bytes after zeros are where arrays of text compare in a way of their own.
@given(st.lists(st.binary(max_size=3)), st.randoms())
def test_the_hash_of_a_set_is_that_of_its_ordered_hashes(puzzles: list[bytes], random) -> None:  # type: ignore[no-untyped-def]
    found = described(random.sample(puzzles, len(puzzles)))
    ordered = sorted(hashlib.sha256(puzzle).digest() for puzzle in puzzles)
    assert found.sha256 == hashlib.sha256(b"".join(ordered)).hexdigest()
    assert found.num == len(puzzles)


def test_a_sudoku_is_its_tokens(sudokus: grids.Examples, source: Path, tmp_path: Path) -> None:
    found = subsets_of(grids.request("sudoku", source, tmp_path / "out"))
    assert found.train == described(sudoku.tobytes() for sudoku in sudokus)


def test_one_changed_cell_changes_the_hash(sudokus: grids.Examples, source: Path, tmp_path: Path) -> None:
    changed = sudokus.copy()
    inputs, labels = changed[0]
    blank = int(np.flatnonzero(inputs == 1)[0])
    inputs[blank] = labels[blank]  # one more given
    other = tmp_path / "other" / "train.csv"
    grids.write_csv(other, SUDOKU, changed)
    before = subsets_of(grids.request("sudoku", source / "train.csv", tmp_path / "a"))
    after = subsets_of(grids.request("sudoku", other, tmp_path / "b"))
    assert (before.train.num, before.train.sha256 != after.train.sha256) == (after.train.num, True)


@pytest.mark.parametrize("changes", [{"num_aug": 3}, {"workers": 2}, {"num_aug": 1, "workers": 2}])
def test_augmentations_and_workers_leave_the_hash(
    changes: dict[str, int], source: Path, tmp_path: Path
) -> None:
    plain = subsets_of(grids.request("sudoku", source, tmp_path / "plain"))
    assert subsets_of(grids.request("sudoku", source, tmp_path / "out", **changes)) == plain  # type: ignore[arg-type]


def test_the_order_of_puzzles_leaves_the_hash(sudokus: grids.Examples, source: Path, tmp_path: Path) -> None:
    backwards = grids.write_csv(tmp_path / "other" / "train.csv", SUDOKU, sudokus[::-1])
    plain = subsets_of(grids.request("sudoku", source / "train.csv", tmp_path / "plain"))
    assert subsets_of(grids.request("sudoku", backwards, tmp_path / "out")) == plain


@pytest.mark.parametrize("kind", ["sudoku", "arc"])
def test_parts_have_the_hash_of_the_whole(kind: str, source: Path, tmp_path: Path) -> None:
    generator = {"side": 4, "num_train": 150, "num_test": 9}
    whole = (
        grids.request("sudoku", None, tmp_path / "whole", generator=generator)
        if kind == "sudoku"
        else arc.request(arc.write_tasks(tmp_path / "tasks"), tmp_path / "whole")
    )
    for number in range(2):
        build(whole._replace(out=tmp_path / "out", part=Part(number, 2)))
    merge(tmp_path / "out", show_progress=False)
    assert load_dataset_info(tmp_path / "out").subsets == subsets_of(whole)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arc.write_tasks(tmp_path_factory.mktemp("tasks"))


def test_augmentations_and_canvas_leave_the_hash_of_tasks(tasks: Path, tmp_path: Path) -> None:
    plain = subsets_of(arc.request(tasks, tmp_path / "plain", canvas=7))
    assert subsets_of(arc.request(tasks, tmp_path / "out", canvas=8, num_aug=2, seed=1)) == plain


def test_what_is_held_out_changes_what_tasks_train(tasks: Path, tmp_path: Path) -> None:
    plain = subsets_of(arc.request(tasks, tmp_path / "plain"))
    all_held_out = subsets_of(arc.request(tasks, tmp_path / "out", holdout="all"))
    assert plain.train.sha256 != all_held_out.train.sha256
    assert (plain.test.num, all_held_out.test.num) == (3, 6)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_one_changed_colour_changes_the_hash_of_tasks(part: str, side: str, tmp_path: Path) -> None:
    before = subsets_of(arc.request(arc.write_tasks(tmp_path / "a"), tmp_path / "before"))
    task = arc.write_tasks(tmp_path / "b") / "evaluation" / "task3.json"
    content = json.loads(task.read_text())
    row = cast(list[int], content[part][-1][side][0])
    row[0] = (row[0] + 1) % 10
    task.write_text(json.dumps(content))
    after = subsets_of(arc.request(tmp_path / "b", tmp_path / "after"))
    assert before.test.sha256 != after.test.sha256
    # Held out, a test pair does not train.
    assert (before.train.sha256 != after.train.sha256) == (part == "train")


# Subsets by name


def asked(tmp_path: Path, line: str) -> Request:
    """What a command line asks for."""
    return parse_arguments([*line.split(), "--workers", "1", "--quiet", "--out", str(tmp_path / "out")])


def planned(request: Request, folder: Path) -> Subsets:
    """Those of the dataset that this would build, without building it."""
    content = read(request)
    folder.mkdir()
    content.write_scratch(folder)
    found = content.plan(folder).head.subsets
    assert found is not None
    return found


SLOW = ("sudoku-6x6", "sudoku-6x6-test-500", "maze-unique-1k")


@pytest.mark.parametrize(
    "subset",
    [
        pytest.param(subset, id=subset.name, marks=[pytest.mark.full] if subset.name in SLOW else [])
        for subset in subsets.SUBSETS
        if not subset.source
    ],
)
def test_a_subset_is_built_again_with_its_hash(subset: Subset, tmp_path: Path) -> None:
    request = asked(tmp_path, f"{subset.preset} --subset {subset.name} --num-aug 0")
    found = planned(request, tmp_path / "scratch")
    assert {split: found[split].sha256 for split in SPLITS} == subset.sha256


def test_subsets_that_need_no_download_have_their_hashes() -> None:
    assert all(len(subset.sha256) == (0 if subset.source else 2) for subset in subsets.SUBSETS)


@pytest.mark.parametrize("subset", subsets.SUBSETS, ids=lambda subset: subset.name)
def test_a_subset_says_what_to_build(subset: Subset) -> None:
    spec = BuildSpec.model_validate({"subset": subset.name})
    assert (spec.preset, spec.source) == (subset.preset, subset.source)
    given = spec.options.given()
    assert {name: given[name] for name in subset.options} == subset.options
    assert BuildSpec.model_validate(spec.model_dump()) == spec


def test_a_named_subset_has_the_bytes_of_its_options(tmp_path: Path) -> None:
    build(asked(tmp_path, "sudoku --subset sudoku-4x4 --num-aug 1"))
    (tmp_path / "out").rename(tmp_path / "named")
    build(asked(tmp_path, "sudoku --side 4 --num-train 200 --num-test 500 --num-aug 1"))
    assert arc.checksums(tmp_path / "out") == arc.checksums(tmp_path / "named")


def test_a_section_of_a_configuration_names_a_subset(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"data_path: {tmp_path}/data\ndataset: {{subset: sudoku-4x4, num_aug: 2}}"
    )
    config = load_config(tmp_path / "run.yaml")
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    build_if_missing(load_config(tmp_path / "resolved.yaml"))
    info = load_dataset_info(tmp_path / "data")
    assert info.subset("test") == "sudoku-4x4@7aaad74326ea"
    assert info.splits.train.num_puzzles == 200 * 3
    assert as_found(config).dataset is not None


def test_a_section_with_another_hash_does_not_describe_a_dataset(tmp_path: Path) -> None:
    build(asked(tmp_path, "sudoku --subset sudoku-4x4"))
    info = load_dataset_info(tmp_path / "out")
    described_by = [
        BuildSpec.model_validate({"subset": name}).describes(info)
        for name in ("sudoku-4x4", "sudoku-4x4@7aaad743", "sudoku-4x4@7aaad748")
    ]
    assert described_by == [True, True, False]


def test_training_refuses_other_puzzles_than_those_of_its_subset(tmp_path: Path) -> None:
    build(asked(tmp_path, "sudoku --side 4 --num-train 199 --num-test 100"))
    (tmp_path / "run.yaml").write_text(f"data_path: {tmp_path}/out\ndataset: {{subset: sudoku-4x4}}")
    with pytest.raises(
        InputError, match=r"data_path=.*: subset sudoku-4x4: is 0e9ef5e7bac8 in its train split"
    ):
        build_if_missing(load_config(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sudoku --subset sudoku-4x4 --side 6", "--side: is 4 in subset sudoku-4x4"),
        ("sudoku --subset sudoku-4x4 --seed 1", "--seed: is 42 in subset sudoku-4x4"),
        ("sudoku --subset sudoku-4x4 --min-difficulty 1", "--min-difficulty: is null in"),
        ("sudoku --subset sudoku-4x4 --source x.csv", "--source: is empty in subset"),
        ("sudoku --subset sudoku-extreme-1k --source x.csv", "sudoku-extreme-1k@TRAIN+TEST"),
        ("arc-agi-1 --subset arc-agi-1-6x6 --canvas 7", "--canvas: is 6 in subset"),
        ("maze --subset sudoku-4x4", "--subset: sudoku-4x4 is of preset sudoku, not of maze"),
        ("sudoku --subset sudoku-5x5", "'sudoku-5x5' is unknown here; use one of sudoku-extreme-1k"),
        ("sudoku --subset sudoku-4x4@123", "8 or more digits"),
    ],
)
def test_what_contradicts_a_subset_is_refused(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        asked(tmp_path, line)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "ending", ["", "@0e9ef5e7bac8", "@7aaad743", "@0e9ef5e7+7aaad743", "@7aaad743+0e9ef5e7"]
)
def test_hashes_of_either_split_and_of_both_are_checked(ending: str, tmp_path: Path) -> None:
    build(asked(tmp_path, "sudoku --side 4 --num-train 200 --num-test 500"))
    info = build(asked(tmp_path, f"sudoku --subset sudoku-4x4{ending}"))  # which is there already
    assert info is not None
    assert info.subset_of_both().endswith("@0e9ef5e7bac8+7aaad74326ea")


@pytest.mark.parametrize("ending", ["@0e9ef5e8", "@0e9ef5e7+7aaad748"])
@pytest.mark.parametrize("is_there", [True, False])
def test_another_hash_is_refused_and_nothing_left(ending: str, is_there: bool, tmp_path: Path) -> None:
    if is_there:
        build(asked(tmp_path, "sudoku --subset sudoku-4x4"))
    with pytest.raises(InputError, match=r"no split has the hash [0-9a-f]+8, as there are 200 to train on"):
        build(asked(tmp_path, f"sudoku --subset sudoku-4x4{ending}"))
    assert (tmp_path / "out").exists() == is_there


def test_a_canvas_that_loses_tasks_of_a_subset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="in its train split, but the puzzles here are others, 59 to train on"
    ):
        build(asked(tmp_path, "arc-agi-1 --subset arc-agi-1 --canvas 6 --num-aug 0"))
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_does_not_note_its_puzzles_is_no_known_subset() -> None:
    with pytest.raises(InputError, match="by a version that did not note its puzzles"):
        subsets.check(None, "sudoku-4x4")
    subsets.check(None, "sudoku-extreme-1k")  # of which nothing is known


def test_tasks_beside_those_of_a_benchmark_leave_the_name_to_what_is_evaluated(
    tasks: Path, tmp_path: Path
) -> None:
    request = asked(tmp_path, f"arc-agi-1 --source {tasks}/training/task0.json --num-aug 0")
    found = subsets.named(planned(request, tmp_path / "scratch"), None)
    assert (found.train.name, found.test.name) == (None, "arc-agi-1")


@pytest.fixture
def downloaded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subset:
    """A subset of puzzles that are not generated, whose hashes are known."""
    found = subsets_of(grids.request("sudoku", source, tmp_path / "known"))
    hashes: dict[SplitName, str] = {split: found[split].sha256 for split in SPLITS}
    subset = Subset("toy", "sudoku", ("hub:nobody/toy",), sha256=hashes)
    monkeypatch.setitem(subsets._BY_NAME, "toy", subset)  # pyright: ignore[reportPrivateUsage]
    return subset


def test_puzzles_from_elsewhere_are_taken_if_they_are_the_same(
    downloaded: Subset, source: Path, tmp_path: Path
) -> None:
    build(asked(tmp_path, f"sudoku --subset toy --source {source}"))
    assert load_dataset_info(tmp_path / "out").subset("train").startswith("toy@")


def test_other_puzzles_from_elsewhere_are_refused(downloaded: Subset, source: Path, tmp_path: Path) -> None:
    grids.write_csv(tmp_path / "train.csv", SUDOKU, grids.new_puzzles(SUDOKU, "train", 21))
    line = f"sudoku --subset toy --source {tmp_path}/train.csv --source {source}/test.csv"
    with pytest.raises(InputError, match="the puzzles here are others, 21 to train on"):
        build(asked(tmp_path, line))
    assert not (tmp_path / "out").exists()


def test_a_drawn_test_split_is_as_large_as_asked_for_and_the_same_again(source: Path, tmp_path: Path) -> None:
    drawn = [
        subsets_of(grids.request("sudoku", source, tmp_path / str(number), subsample_test=3))
        for number in range(2)
    ]
    whole = subsets_of(grids.request("sudoku", source, tmp_path / "whole"))
    assert drawn[0] == drawn[1]
    assert (drawn[0].test.num, drawn[0].train) == (3, whole.train)
    with pytest.raises(InputError, match="with subsample_test=3, not None"):
        build(grids.request("sudoku", source, tmp_path / "0"))


def test_one_hash_given_twice_does_not_stand_for_both_splits(tmp_path: Path) -> None:
    found = subsets_of(asked(tmp_path, "sudoku --subset sudoku-4x4"))
    digits = found.train.sha256[:12]
    with pytest.raises(InputError, match=f"no split has the hash {digits}"):
        subsets.check(found, f"sudoku-4x4@{digits}+{digits}")
