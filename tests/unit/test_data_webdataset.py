"""data_pipeline.webdataset against our own reader, with workers and in two processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from webdataset.pipeline import DataPipeline

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.base.errors import InputError
from data_pipeline.build import build
from data_pipeline.reader import TestReader, TrainReader, widen
from data_pipeline.schema import load_split_index
from data_pipeline.shards.plan import Request
from data_pipeline.webdataset import open_split

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with fewer cores

ROOT = Path(__file__).parents[2]
IN_A_RANK = """
import sys
from torch.utils.data import DataLoader
from data_pipeline.webdataset import open_split
for item in DataLoader(open_split(sys.argv[1], "train", shuffle=20, seed=5), batch_size=None, num_workers=2):
    print(item["__key__"], item["example_index"])
"""

Example = tuple[Any, ...]


def content(item: dict[str, Any]) -> Example:
    """What an example is, to compare and to count."""
    return (
        int(item["puzzle_identifiers"]),
        int(item["example_index"]),
        *(tuple(item[name].tolist()) for name in ("inputs", "labels")),
    )


def keys(items: DataPipeline | DataLoader[Any]) -> list[tuple[str, int]]:
    return [(item["__key__"], int(item["example_index"])) for item in items]


@pytest.fixture(scope="module")
def held_out(dataset: Path) -> list[Example]:
    """The test split's examples, by our reader."""
    return [
        content({key: values[i] for key, values in {**batch, "inputs": batch["inputs"].int()}.items()})
        for batch in TestReader(dataset).batches(7)
        for i in range(len(batch["inputs"]))
    ]


def test_the_examples_are_those_of_our_reader_in_its_order(dataset: Path, held_out: list[Example]) -> None:
    assert [content(item) for item in open_split(dataset, "test")] == held_out


def test_the_examples_of_training_have_their_tensors(dataset: Path) -> None:
    items = {(int(item["puzzle_identifiers"]), tuple(item["inputs"].tolist())): item
             for item in open_split(dataset, "train")}  # fmt: skip
    reader = TrainReader(dataset, seed=0, global_batch_size=16)
    for step in range(20):
        batch = widen(reader.batch(step), reader.info.pad_id)
        for i, inputs in enumerate(batch["inputs"]):
            item = items[int(batch["puzzle_identifiers"][i]), tuple(inputs.tolist())]
            for name, values in batch.items():
                assert item[name].dtype == values.dtype
                torch.testing.assert_close(item[name], values[i])


def test_every_example_of_every_row_comes_once(dataset: Path) -> None:
    index = load_split_index(dataset, "train")
    found = Counter(keys(open_split(dataset, "train")))
    assert set(found.values()) == {1}
    assert len(found) == sum(shard.num_examples for shard in index.shards)


def test_a_name_is_that_of_the_identifier(dataset: Path) -> None:
    names = json.loads((dataset / "identifiers.json").read_text())
    puzzles = list(open_split(dataset, "test", per="puzzle"))
    assert all(
        {puzzle["puzzle_name"]} == {names[i] for i in puzzle["puzzle_identifiers"].tolist()}
        for puzzle in puzzles
    )
    assert any("|||t" in puzzle["puzzle_name"] for puzzle in puzzles)


def test_a_puzzle_holds_its_examples(dataset: Path, held_out: list[Example]) -> None:
    examples = [
        content({**{key: puzzle[key][i] for key in ("inputs", "labels", "puzzle_identifiers")}, "example_index": i})
        for puzzle in open_split(dataset, "test", per="puzzle")
        for i in range(len(puzzle["inputs"]))
    ]  # fmt: skip
    assert examples == held_out


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_the_shards(dataset: Path, context: str) -> None:
    pipeline = open_split(dataset, "train", shuffle=10)
    loader = DataLoader(pipeline, batch_size=None, num_workers=3, multiprocessing_context=context)
    assert sorted(keys(loader)) == sorted(keys(open_split(dataset, "train")))


def test_two_processes_with_workers_share_the_shards(dataset: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_RANK, str(dataset)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    first, second = (rank.communicate(timeout=120)[0].splitlines() for rank in ranks)
    assert first
    assert second
    everything = [f"{key} {example}" for key, example in keys(open_split(dataset, "train"))]
    assert sorted(first + second) == sorted(everything)


def test_the_seed_decides_the_order(dataset: Path) -> None:
    in_order = keys(open_split(dataset, "train"))
    shuffled, again, other = (keys(open_split(dataset, "train", shuffle=50, seed=s)) for s in (1, 1, 2))
    assert shuffled == again
    assert len({tuple(order) for order in (in_order, shuffled, other)}) == 3
    assert sorted(shuffled) == sorted(other) == sorted(in_order)


def test_a_second_iteration_has_another_order(dataset: Path) -> None:
    pipeline = open_split(dataset, "train", shuffle=50)
    first, second = keys(pipeline), keys(pipeline)
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_damaged_shard_is_refused_when_it_is_read(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    path = copy / "test" / load_split_index(copy, "test").shards[-1].file
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    pipeline = open_split(copy, "test")
    with pytest.raises(InputError, match=rf"{path.name}: damaged or cut short"):
        list(pipeline)


def test_a_split_without_examples_is_refused_with_a_remedy(tmp_path: Path) -> None:
    options = ArcOptions(num_aug=0, holdout="evaluation", canvas=6, limit_groups=4, leaks="keep")
    tasks = tmp_path / "training"
    tasks.mkdir()
    grid = [[1, 2], [3, 4]]
    task = {"train": [{"input": grid, "output": grid}], "test": [{"input": grid, "output": grid}]}
    (tasks / "task0.json").write_text(json.dumps(task))
    build(Request("arc", [str(tasks)], tmp_path / "out", options, seed=0, workers=1, quiet=True))
    with pytest.raises(InputError, match="nothing is held out of training; build it with --source"):
        open_split(tmp_path / "out", "test")


def test_the_example_in_the_documentation_runs(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_split" in code]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "arc1").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert torch.isfinite(names["loss"])
