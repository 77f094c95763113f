import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.arc import sources as arc
from data_pipeline.arc.augment import apply, parse_name
from data_pipeline.arc.copies import merge
from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.arc.rows import SplitPlan, plan_groups
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import encode
from data_pipeline.base.errors import InputError
from data_pipeline.build import build, summary
from data_pipeline.schema import load_dataset_info, load_split_index
from data_pipeline.shards import writer
from data_pipeline.shards.plan import Request
from data_pipeline.shards.reader import read_shard

CANVAS = 5
NUM_AUG = 6
COMMAND = [sys.executable, "-m", "data_pipeline.build"]


def write_tasks(root: Path) -> Path:
    """Three training tasks, three evaluation tasks of which one hides its output, one too large, all distinct."""
    rng = np.random.default_rng(0)

    def grid(side: int) -> list[list[int]]:
        return rng.integers(0, 10, (side, max(1, side - 1))).tolist()

    for t, folder in enumerate(["training"] * 3 + ["evaluation"] * 3):
        pairs = [{"input": grid(1 + i), "output": grid(2 + i)} for i in range(4)]
        task = {"train": pairs[:3], "test": [pairs[3], {"input": grid(2)}] if t == 5 else pairs[3:]}
        path = root / folder / f"task{t}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(task))
    big = {"train": [{"input": grid(CANVAS + 1), "output": grid(2)}], "test": [{"input": grid(2)}]}
    (root / "training" / "big.json").write_text(json.dumps(big))
    return root


def request(source: Path, out: Path, *, workers: int = 1, seed: int = 42, **options: object) -> Request:
    defaults = {"num_aug": NUM_AUG, "holdout": "evaluation", "canvas": CANVAS, "limit_groups": None}
    chosen = ArcOptions.model_validate(defaults | options)
    return Request("arc", [str(source)], out, chosen, seed, workers, quiet=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "arc"
    build(request(source, out))
    return out


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def samples_of(plan: SplitPlan, row: int) -> list[tuple[int, np.ndarray]]:
    """(identifier, examples) of every sample of a row."""
    in_row = np.arange(len(plan.groups))
    if plan.split == "test":
        in_row = np.flatnonzero(plan.group_table.num_puzzles > row)
    samples = plan.samples(row, in_row)
    parts = np.split(samples.examples, np.cumsum(samples.num_examples)[:-1])
    return list(zip(samples.identifiers.tolist(), parts, strict=True))


def splits(tasks: list[Task]) -> dict[str, list[tuple[int, int, np.ndarray]]]:
    """(row, identifier, examples) of every sample, as the writer gets them."""
    groups = plan_groups(tasks, NUM_AUG, seed=0)
    plans = [SplitPlan(split, groups, CANVAS, seed=0) for split in ("train", "test")]
    return {
        plan.split: [(row, *sample) for row in range(plan.num_rows) for sample in samples_of(plan, row)]
        for plan in plans
        if plan.groups
    }


def test_bytes_do_not_depend_on_the_number_of_workers(source: Path, dataset: Path, tmp_path: Path) -> None:
    build(request(source, tmp_path / "two", workers=2))
    assert checksums(tmp_path / "two") == checksums(dataset)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"big": 1}),  # its output is hidden
        ({"limit_groups": 2}, {"big": 1, "task3": 1, "task4": 1, "task5": 2}),
        ({"holdout": "all", "limit_groups": 4}, {"big": 1, "task4": 1, "task5": 2}),
    ],
)
def test_held_out_tasks_that_are_left_out_are_known(
    options: dict[str, object], expected: dict[str, int], source: Path, tmp_path: Path
) -> None:
    build(request(source, tmp_path / "out", **options))
    assert load_dataset_info(tmp_path / "out").left_out_tests == expected


def test_a_row_of_many_groups_is_cut_into_shards_of_the_same_samples(
    source: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_SAMPLES_PER_SHARD", 4)
    build(request(source, tmp_path / "cut"))
    index, whole = load_split_index(tmp_path / "cut", "train"), load_split_index(dataset, "train")
    assert [(shard.first_group, shard.num_samples) for shard in index.shards if shard.row == 1] == [
        (0, 4),
        (4, 2),
    ]
    assert sum(shard.num_examples for shard in index.shards) == sum(s.num_examples for s in whole.shards)
    for split in ("train", "test"):
        uncut, cut = (content_of(folder, split) for folder in (dataset, tmp_path / "cut"))
        assert uncut == cut


def content_of(dataset: Path, split: str) -> list[tuple[int, bytes]]:
    """(identifier, cells) of every sample in order of row and group."""
    index = load_split_index(dataset, split)
    samples: list[tuple[int, bytes]] = []
    for part in index.shards:
        shard = read_shard(dataset / split, index, part)
        for identifier, start, end in zip(shard.identifiers, shard.starts, shard.starts[1:], strict=False):
            samples.append((int(identifier), shard.examples(slice(start, end)).tobytes()))
    return samples


def test_adding_tasks_does_not_change_the_puzzles_of_the_others(source: Path) -> None:
    tasks = [task for task in arc.from_path(source, None).tasks if task.largest_side <= CANVAS]
    few, all_ = (plan_groups(some, NUM_AUG, seed=0) for some in (tasks[1:], tasks))
    assert [group.names() for group in few] == [group.names() for group in all_[1:]]
    examples = [splits(some)["train"] for some in (tasks[1:], tasks)]
    per_row = len(tasks)
    kept = [sample for i, sample in enumerate(examples[1]) if i % per_row]
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(examples[0], kept, strict=True))


def test_every_pair_is_in_the_split_it_belongs_to_and_nothing_held_out_is_trained_on(source: Path) -> None:
    tasks = [task for task in merge(arc.from_path(source, None).tasks) if task.largest_side <= CANVAS]
    groups = {group.task.id: group for group in plan_groups(tasks, NUM_AUG, seed=0)}
    for task in tasks:
        scored = task.tests if not task.held_out else ()
        assert groups[task.id].pairs("train") == task.demos + scored
        assert groups[task.id].pairs("test") == (task.tests if task.held_out else ())


def test_with_holdout_all_only_demonstrations_train(source: Path, tmp_path: Path) -> None:
    build(request(source, tmp_path / "all", holdout="all"))
    train, test = (load_split_index(tmp_path / "all", split) for split in ("train", "test"))
    assert train.groups.num_examples.tolist() == [3] * 6
    assert test.groups.num_examples.tolist() == [1] * 5 + [2]
    assert sorted(json.loads((tmp_path / "all/test_puzzles.json").read_text())) == [
        f"task{t}" for t in range(6)
    ]


def test_the_dataset_has_the_published_shape(dataset: Path) -> None:
    info, names = load_dataset_info(dataset), json.loads((dataset / "identifiers.json").read_text())
    train, test = load_split_index(dataset, "train"), load_split_index(dataset, "test")
    assert train.groups.num_examples.tolist() == [4, 4, 4, 3, 3, 3]
    assert test.groups.names == ("task3", "task4", "task5")
    assert test.groups.num_examples.tolist() == [1, 1, 2]
    assert info.num_tasks_left_out == 1
    assert names[0] == "<blank>"
    for groups in (train.groups, test.groups):
        for name, first, count in zip(
            groups.names or (), groups.first_identifier, groups.num_puzzles, strict=True
        ):
            puzzles = names[first : first + count]
            assert puzzles[0] == name
            assert {parse_name(puzzle)[0] for puzzle in puzzles} == {name}
            assert len(set(puzzles)) == NUM_AUG + 1
    puzzles = json.loads((dataset / "test_puzzles.json").read_text())
    assert [["output" in pair for pair in puzzles[task]["test"]] for task in puzzles] == [
        [True],
        [True],
        [True, False],
    ]
    shards = checksums(dataset)
    assert all(shards[f"train/{shard.file}"] == shard.sha256 for shard in train.shards)


def test_an_augmentation_comes_again_only_when_all_of_its_group_have_been_used(source: Path) -> None:
    one_colour = np.ones((1, 1), dtype=np.uint8)  # nine colourings, of which NUM_AUG + 1 are kept
    few = Task("few", (Pair(one_colour * 0, one_colour * 0),), (Pair(one_colour * 0, None),), False, "here")
    many = [task for task in arc.from_path(source, None).tasks if task.largest_side <= CANVAS]
    groups = plan_groups([few, *many], NUM_AUG, seed=0)
    plan = SplitPlan("train", groups, CANVAS, seed=0)
    rows = [[identifier for identifier, _ in samples_of(plan, row)] for row in range(plan.num_rows)]
    for group, identifiers in zip(groups, zip(*rows, strict=True), strict=True):
        sweeps = -(-plan.num_rows // group.num_puzzles)
        assert len(set(identifiers)) == group.num_puzzles
        assert max(identifiers.count(identifier) for identifier in identifiers) <= sweeps


@given(st.integers(0, 2**32), st.integers(0, NUM_AUG))
def test_training_examples_are_the_encoded_augmentations_all_but_one_moved_as_a_whole(
    seed: int, row: int
) -> None:
    rng = np.random.default_rng(7)
    demos = tuple(
        Pair(*(rng.integers(0, 10, rng.integers(1, CANVAS + 1, 2)).astype(np.uint8) for _ in range(2)))
        for _ in range(4)
    )
    task = Task("task", demos, (Pair(demos[0].input, None),), False, "here")
    [group] = plan_groups([task], NUM_AUG, seed)
    plan = SplitPlan("train", [group], CANVAS, seed)
    [(identifier, examples)] = samples_of(plan, row)
    _, augmentation = parse_name(group.names()[identifier - 1])
    places = []
    for pair, example in zip(demos, examples, strict=True):
        grids = [apply(grid, augmentation) for grid in pair if grid is not None]
        height, width = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
        found = [
            (down, right)
            for down in range(CANVAS - height + 1)
            for right in range(CANVAS - width + 1)
            if all(
                np.array_equal(encode(grid, CANVAS, down, right), tokens)
                for grid, tokens in zip(grids, example, strict=True)
            )
        ]
        assert len(found) == 1
        places += found
    assert (0, 0) in places


def test_places_on_the_canvas_are_uniform_and_one_example_stays() -> None:
    block = np.full((CANVAS - 1, CANVAS), 3, dtype=np.uint8)  # has room for one step to one side
    task = Task("task", (Pair(block, block),) * 4, (Pair(block, None),), False, "here")
    num_moved = [
        np.count_nonzero(examples[:, 0, 0] == 0)
        for seed in range(40)
        for plan in [SplitPlan("train", plan_groups([task], 50, seed), CANVAS, seed)]
        for row in range(plan.num_rows)
        for _, examples in samples_of(plan, row)
    ]
    assert len(num_moved) > 600
    assert max(num_moved) == 3
    assert np.mean(num_moved) == pytest.approx(1.5, abs=0.12)  # 3.5 standard deviations


def test_test_examples_stand_at_the_top_left_and_a_hidden_output_is_all_padding(source: Path) -> None:
    hidden = np.array([[1, 2, 3]], dtype=np.uint8)
    task = Task("task", (Pair(hidden, hidden),), (Pair(hidden, None),), True, "here")
    for _, _, examples in splits([task])["test"]:
        assert examples[0, 0, 0] >= 2
        assert not examples[0, 1].any()


def test_building_again_finds_the_same_dataset_and_refuses_another(source: Path, dataset: Path) -> None:
    before = checksums(dataset)
    assert build(request(source, dataset, workers=2)) == load_dataset_info(dataset)
    for other in (request(source, dataset, seed=1), request(source, dataset, num_aug=2)):
        with pytest.raises(InputError, match="choose another --out or delete it"):
            build(other)
    assert checksums(dataset) == before


def test_an_output_that_is_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        with pytest.raises(InputError, match=r"another (--out|place)"):
            build(request(source, out))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_bytes_do_not_depend_on_how_a_path_is_written(
    source: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluation").symlink_to(source.parent)
    monkeypatch.chdir(source / "training")
    (source / "README.md").touch()
    ways = ["..", f"../../{source.name}/", f"{tmp_path}/evaluation/{source.name}"]
    for number, way in enumerate(ways):
        build(request(Path(way), tmp_path / str(number), num_aug=1))
    (source / "README.md").unlink()
    assert checksums(tmp_path / "0") == checksums(tmp_path / "1") == checksums(tmp_path / "2")
    assert str(tmp_path) not in (tmp_path / "2/dataset.json").read_text()


def test_a_kaggle_folder_builds_as_it_is_delivered(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tasks = {
        name: {
            "train": [{side: rng.integers(0, 10, (3, 3)).tolist() for side in ("input", "output")}] * 2,
            "test": [{"input": rng.integers(0, 10, (3, 3)).tolist()}],
        }
        for name in "abcde"
    }
    for kind, names in {"training": "ab", "evaluation": "cd", "test": "ace"}.items():
        file = tmp_path / "arc-prize" / f"arc-agi_{kind}_challenges.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({name: tasks[name] for name in names}))
        if kind != "test":
            file.with_name(f"arc-agi_{kind}_solutions.json").write_text(
                json.dumps({name: [[[4]]] for name in names})
            )
    (tmp_path / "arc-prize" / "sample_submission.json").write_text('{"a": [{"attempt_1": [[0]]}]}')
    info = build(request(tmp_path / "arc-prize", tmp_path / "out"))
    assert info is not None
    [reading] = info.readings
    assert (reading.num_tasks, reading.num_trained, reading.num_held_out) == (7, 2, 3)
    assert reading.num_without_output == 1
    assert [(some.num, some.names) for some in reading.left_out] == [(1, ("c",)), (1, ("a",))]
    assert [some.names for some in reading.not_read] == [("sample_submission.json",)]
    puzzles = json.loads((tmp_path / "out/test_puzzles.json").read_text())
    assert {name: "output" in puzzle["test"][0] for name, puzzle in puzzles.items()} == {
        "c": True, "d": True, "e": False,
    }  # fmt: skip
    asked = request(tmp_path / "arc-prize", tmp_path / "asked")
    asked.sources.append(f"{tmp_path}/arc-prize/arc-agi_test_challenges.json:evaluation")
    build(asked)
    assert sorted(json.loads((tmp_path / "asked/test_puzzles.json").read_text())) == ["a", "c", "d", "e"]


def test_a_task_with_too_large_a_grid_is_left_out(source: Path, tmp_path: Path) -> None:
    task = json.loads((source / "training/task0.json").read_text())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/small.json").write_text(json.dumps(task))
    task["train"][0]["output"] = [[1]] * 31
    (tmp_path / "mine/tall.json").write_text(json.dumps(task))
    for canvas in (CANVAS, 30):
        info = build(request(tmp_path / "mine", tmp_path / str(canvas), canvas=canvas))
        assert info is not None
        assert [some.names for some in info.readings[0].left_out] == [("tall",)]
        assert info.num_tasks_left_out == 1
    (tmp_path / "mine/small.json").unlink()
    with pytest.raises(InputError, match=r"no task of mine fits.*at most 30; crop"):
        build(request(tmp_path / "mine", tmp_path / "none", canvas=30))


def test_conflicts_that_the_first_wins_are_told_from_copies(source: Path, tmp_path: Path) -> None:
    for place, number in {"a": 0, "b": 1, "c": 0}.items():
        (tmp_path / "mine" / place).mkdir(parents=True)
        content = (source / f"training/task{number}.json").read_text()
        (tmp_path / "mine" / place / "x.json").write_text(content)
    info = build(request(tmp_path / "mine", tmp_path / "out", conflicts="first"))
    assert info is not None
    assert [(some.why.split()[0], some.num) for some in info.readings[0].left_out] == [
        ("copies,", 1),
        ("unlike", 1),
    ]


def test_bare_pairs_train_as_a_task_of_their_own(source: Path, tmp_path: Path) -> None:
    task = json.loads((source / "training/task0.json").read_text())
    (tmp_path / "re_arc").mkdir()
    (tmp_path / "re_arc/task0.json").write_text(json.dumps(task["train"]))
    asked = request(source, tmp_path / "out", holdout="all")
    asked.sources.append(str(tmp_path / "re_arc"))
    build(asked)
    groups = load_split_index(tmp_path / "out", "train").groups
    assert dict(zip(groups.names or (), groups.num_examples, strict=True))["task0-pairs"] == 3
    assert "task0-pairs" not in json.loads((tmp_path / "out/test_puzzles.json").read_text())


def test_the_table_says_when_only_demonstrations_train(source: Path, tmp_path: Path) -> None:
    asked = request(source, tmp_path / "out", holdout="all")
    info = build(asked)
    assert info is not None
    assert "every task is held out" in summary(tmp_path / "out", info)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


BAD_COMMANDS = {
    "no source": ("arc", ["--source"]),
    "missing path": ("arc --source nowhere", ["nowhere", "no such file or folder"]),
    "malformed": ("arc --source malformed.json", ["malformed.json", "malformed JSON", "download"]),
    "bad colour": (
        "arc --source colour.json",
        ["colour.json", "task colour", "train pair 0", "12", "0 to 9"],
    ),
    "ragged": ("arc --source ragged.json", ["ragged.json", "task ragged", "row 1", "equally long"]),
    "nothing fits": ("arc --source good.json --canvas 1", ["--canvas 1", "larger canvas"]),
    "conflict": ("arc --source good.json --source other/good.json", ["task good", "rename"]),
    "canvas": ("arc --source good.json --canvas 31", ["--canvas", "31", "from 1 to 30"]),
    "num-aug": ("arc --source good.json --num-aug -1", ["--num-aug", "-1"]),
    "workers": ("arc --source good.json --workers many", ["--workers", "'many'"]),
    "preset": ("arc-agi-9", ["arc-agi-9", "arc-agi-1"]),
}


def test_bad_input_exits_with_2_one_message_and_nothing_written(tmp_path: Path) -> None:
    def write(name: str, first_input: object) -> None:
        pairs = [{"input": first_input, "output": [[1, 2]]}]
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"train": pairs, "test": pairs}))

    write("good.json", [[1]])
    write("other/good.json", [[2]])
    write("colour.json", [[12]])
    write("ragged.json", [[1, 2], [3]])
    (tmp_path / "malformed.json").write_text("{")
    before = checksums(tmp_path)
    running = {
        case: subprocess.Popen(
            [*COMMAND, *arguments.split(), "--out", "out"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for case, (arguments, _) in BAD_COMMANDS.items()
    }
    for case, process in running.items():
        _, message = process.communicate(timeout=120)
        assert process.returncode == 2, (case, message)
        assert "Traceback" not in message, case
        assert all(part in message for part in BAD_COMMANDS[case][1]), (case, message)
    assert checksums(tmp_path) == before


def test_the_command_builds_says_so_and_is_content_the_second_time(source: Path, tmp_path: Path) -> None:
    arguments = [
        "arc",
        "--source",
        str(source),
        "--out",
        "out",
        "--canvas",
        "5",
        "--num-aug",
        "1",
        "--workers",
        "1",
    ]
    first, second = run(*arguments, cwd=tmp_path), run(*arguments, cwd=tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "6 groups, 12 puzzles\n" in first.stdout
    assert re.search(rf"(?m)^  {source.name} +7 +3 +3 +1$", first.stdout)
    assert "left out: 1 larger than the canvas (big)\n" in first.stdout
    assert "hidden outputs, so predicted but not scored: 1\n" in first.stdout
    assert "already built" in second.stdout
