import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from webdataset.gopen import gopen_schemes
from webdataset.tariterators import group_by_keys, tar_file_iterator
from zstandard import ZstdCompressor, ZstdDecompressor

from data_pipeline.arc.augment import apply, parse_name
from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.arc.sources import bundled
from data_pipeline.base.errors import InputError
from data_pipeline.build import build
from data_pipeline.reader import TestReader, TrainReader, widen
from data_pipeline.sampler import SamplePlan
from data_pipeline.schema import IGNORE_LABEL_ID, SplitIndex, load_dataset_info, load_split_index
from data_pipeline.shards.plan import Request
from data_pipeline.shards.reader import Shard
from tests.documents import edit_document
from tests.unit.test_data_tokens import crop

NUM_AUG = 9
CANVAS = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "arc"
    options = ArcOptions(num_aug=NUM_AUG, holdout="evaluation", canvas=CANVAS, limit_groups=None)
    build(Request("arc-agi-1", [], out, options, seed=3, workers=1, quiet=True))
    return out


def test_batches_hold_the_examples_that_the_plan_names(dataset: Path) -> None:
    reader = TrainReader(dataset, seed=7, global_batch_size=32)
    index = load_split_index(dataset, "train")
    plan = SamplePlan(index, 7, 32)
    for step in (0, 3, 1000):
        batch, where = reader.batch(step), plan.batch(step)
        assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
            "inputs": (torch.uint8, (32, CANVAS**2)),
            "labels": (torch.uint8, (32, CANVAS**2)),
            "puzzle_identifiers": (torch.int32, (32,)),
        }
        first = index.groups.first_identifier[where.group]
        count = index.groups.num_puzzles[where.group]
        identifiers = batch["puzzle_identifiers"].numpy()
        assert ((identifiers >= first) & (identifiers < first + count)).all()


def test_training_examples_are_augmented_pairs_of_their_task(dataset: Path) -> None:
    names = json.loads((dataset / "identifiers.json").read_text())
    tasks = {task.id: task for task in bundled("arc-agi-1")}
    batch = TrainReader(dataset, seed=0, global_batch_size=64).batch(11)
    for inputs, labels, identifier in zip(*(batch[key].numpy() for key in batch), strict=True):
        task_id, augmentation = parse_name(names[identifier])
        task = tasks[task_id]
        pairs = task.demos if task.held_out else task.pairs
        shown = (placed_grid(inputs), placed_grid(labels))
        expected = [
            tuple(apply(grid, augmentation).tolist() for grid in pair if grid is not None) for pair in pairs
        ]
        assert shown in expected


def placed_grid(tokens: np.ndarray) -> list[list[int]]:
    """The colours on a board, wherever they lie."""
    board = tokens.reshape(CANVAS, CANVAS)
    rows, cols = np.nonzero(board >= 2)
    return (board[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] - 2).tolist()


def test_ranks_read_the_slices_of_the_global_batch_in_any_order(dataset: Path) -> None:
    whole = TrainReader(dataset, seed=1, global_batch_size=24)
    ranks = [TrainReader(dataset, 1, 24, rank, world_size=3) for rank in range(3)]
    for step in (900, 2, 17):
        parts = [reader.batch(step) for reader in reversed(ranks)][::-1]
        for key, value in whole.batch(step).items():
            assert torch.equal(torch.cat([part[key] for part in parts]), value)


def test_a_rank_takes_no_more_examples_out_of_the_shards_than_its_own(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    examples = Shard.examples

    def counted(shard: Shard, chosen: np.ndarray) -> np.ndarray:
        taken.append(len(chosen))
        return examples(shard, chosen)

    monkeypatch.setattr(Shard, "examples", counted)
    TrainReader(dataset, 1, 512, rank=5, world_size=8).batch(0)
    assert sum(taken) == 512 // 8


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="set it to 8 or 12"):
        TrainReader("nowhere", 0, 10, rank=0, world_size=4)


def test_padding_is_ignored_in_labels_and_kept_in_inputs(dataset: Path) -> None:
    stored = TrainReader(dataset, seed=0, global_batch_size=16).batch(0)
    batch = widen(stored, pad_id=0)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int32}
    assert torch.equal(batch["labels"] == IGNORE_LABEL_ID, stored["labels"] == 0)
    assert torch.equal(batch["labels"].clamp_min(0), stored["labels"].int())
    assert torch.equal(batch["inputs"], stored["inputs"].int())


def test_batches_are_bytes_until_they_are_widened(dataset: Path) -> None:
    batch = TrainReader(dataset, seed=0, global_batch_size=16).batch(0)
    assert batch["inputs"].dtype == batch["labels"].dtype == torch.uint8
    assert (batch["labels"] == 0).any()


def test_the_cache_does_not_change_what_is_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [TrainReader(dataset, 0, 512).batch(step) for step in range(4)]
    monkeypatch.setattr("data_pipeline.reader.CACHE_BYTES", 0)
    reader = TrainReader(dataset, 0, 512)
    for step, batch in enumerate(expected):
        again = reader.batch(step)
        assert all(torch.equal(again[key], batch[key]) for key in batch)


def columns(index: SplitIndex) -> list[tuple[int, int, int]]:
    """(first identifier, number of puzzles, examples of each) of every group."""
    groups = index.groups
    table = (groups.first_identifier, groups.num_puzzles, groups.num_examples)
    return list(zip(*(column.tolist() for column in table), strict=True))


def all_of(
    reader: TestReader, batch_size: int, start: int = 0, stop: int | None = None
) -> dict[str, torch.Tensor]:
    batches = list(reader.batches(batch_size, start, stop))
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_the_test_split_comes_in_order_of_row_group_and_example(dataset: Path) -> None:
    index = load_split_index(dataset, "test")
    expected = [
        (first + row, example)
        for row in range(index.num_rows)
        for first, num_puzzles, num_examples in columns(index)
        if row < num_puzzles
        for example in range(num_examples)
    ]
    reader = TestReader(dataset)
    got = all_of(reader, batch_size=7)
    assert len(reader) == len(expected) == reader.info.splits.test.num_examples
    assert (
        list(zip(got["puzzle_identifiers"].tolist(), got["example_index"].tolist(), strict=True)) == expected
    )


def test_test_examples_stand_untranslated_and_augmented(dataset: Path) -> None:
    names = json.loads((dataset / "identifiers.json").read_text())
    tasks = json.loads((dataset / "test_puzzles.json").read_text())
    got = all_of(TestReader(dataset), batch_size=100)
    for inputs, labels, identifier, example in zip(*(got[key].numpy() for key in got), strict=True):
        task_id, augmentation = parse_name(names[identifier])
        pair = tasks[task_id]["test"][example]
        for tokens, key in ((inputs, "input"), (labels, "output")):
            expected = apply(np.array(pair[key], dtype=np.uint8), augmentation)
            np.testing.assert_array_equal(crop(tokens, CANVAS), expected)


@pytest.mark.parametrize(("start", "stop"), [(0, None), (13, 40), (29, None), (5, 6)])
def test_any_stretch_of_the_test_split_can_be_read(dataset: Path, start: int, stop: int | None) -> None:
    whole = all_of(TestReader(dataset), batch_size=1000)
    part = all_of(TestReader(dataset), 8, start, stop)
    assert all(torch.equal(part[key], whole[key][start:stop]) for key in whole)


@given(rows=st.lists(st.integers(0, 107), min_size=1, max_size=30))
def test_test_examples_can_be_taken_in_any_order(dataset: Path, rows: list[int]) -> None:
    reader = TestReader(dataset)
    whole = all_of(reader, batch_size=1000)
    taken = reader.take(np.array(rows))
    assert all(torch.equal(taken[key], whole[key][rows]) for key in whole)


@pytest.mark.parametrize(("max_groups", "num_aug"), [(None, None), (3, 2)])
def test_places_are_the_rows_tasks_and_pairs_of_examples(
    dataset: Path, max_groups: int | None, num_aug: int | None
) -> None:
    reader = TestReader(dataset, max_groups, num_aug)
    got, places = all_of(reader, batch_size=1000), reader.places()
    first_of_group = np.array([first for first, _, _ in columns(load_split_index(dataset, "test"))])
    identifiers = first_of_group[places.groups] + places.rounds
    np.testing.assert_array_equal(identifiers, got["puzzle_identifiers"].numpy())
    np.testing.assert_array_equal(places.examples, got["example_index"].numpy())


@pytest.mark.parametrize(("max_groups", "num_aug"), [(3, None), (None, 2), (2, 0), (100, 100)])
def test_evaluation_can_keep_to_some_groups_and_augmentations(
    dataset: Path, max_groups: int | None, num_aug: int | None
) -> None:
    reader = TestReader(dataset, max_groups, num_aug)
    wanted = {
        first + puzzle: num_examples
        for first, num_puzzles, num_examples in columns(load_split_index(dataset, "test"))[:max_groups]
        for puzzle in range(num_puzzles)[: None if num_aug is None else num_aug + 1]
    }
    identifiers = all_of(reader, 16)["puzzle_identifiers"].tolist()
    assert Counter(identifiers) == Counter(wanted)
    assert len(reader) == len(identifiers)


def test_the_metadata_is_the_published_one(dataset: Path) -> None:
    info = load_dataset_info(dataset)
    metadata = info.metadata("train")
    names = json.loads((dataset / "identifiers.json").read_text())
    assert (metadata.seq_len, metadata.vocab_size, metadata.pad_id) == (CANVAS**2, 12, 0)
    assert metadata.num_puzzle_identifiers == len(names)
    assert metadata.sets == ("all",)
    assert metadata.mean_puzzle_examples == pytest.approx(
        info.splits.train.num_examples / info.splits.train.num_puzzles
    )
    assert TestReader(dataset).metadata.total_groups == len(load_split_index(dataset, "test").groups)


def test_stock_webdataset_iterates_the_shards(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = load_split_index(dataset, "train")
    path = dataset / "train" / index.shards[0].file
    with path.open("rb") as file:
        tar = ZstdDecompressor().stream_reader(file)
        samples = list(group_by_keys({**member, "__url__": ""} for member in tar_file_iterator(tar)))
    assert len(samples) == len(index.groups)
    assert samples[0]["__key__"].startswith("r000000_g0000000_p")
    examples = np.load(io.BytesIO(samples[1]["npy"]), allow_pickle=False)
    assert examples.shape == (index.groups.num_examples[1], 2, CANVAS**2)

    opener = lambda url, *_: ZstdDecompressor().stream_reader(Path(url[4:]).read_bytes())  # noqa: E731
    monkeypatch.setitem(gopen_schemes, "zst", opener)
    decoded = list(wds.WebDataset(f"zst:{path}", shardshuffle=False).decode())
    np.testing.assert_array_equal(decoded[1]["npy"], examples)


@pytest.fixture
def copy_of_dataset(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "copy")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, Path.unlink])
def test_a_damaged_shard_is_refused_by_name_with_a_remedy(
    copy_of_dataset: Path, damage: Callable[[Path], object]
) -> None:
    for split in ("train", "test"):
        for path in (copy_of_dataset / split).glob("*.tar.zst"):
            damage(path)
    with pytest.raises(InputError, match=r"row-.*tar\.zst: (damaged|missing).*build it again"):
        TrainReader(copy_of_dataset, 0, 8).batch(0)
    with pytest.raises(InputError, match=r"row-.*tar\.zst: (damaged|missing).*build it again"):
        next(TestReader(copy_of_dataset).batches(8))


@pytest.mark.parametrize(
    "file", ["test/row-000001-0000.tar.zst", "train/row-000002-0000.tar.zst", "identifiers.json"]
)
@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
def test_a_dataset_of_which_anything_is_missing_is_not_opened(
    copy_of_dataset: Path, file: str, damage: Callable[[Path], object]
) -> None:
    damage(copy_of_dataset / file)
    for reader in (lambda: TrainReader(copy_of_dataset, 0, 8), lambda: TestReader(copy_of_dataset)):
        with pytest.raises(InputError, match=file):
            reader()


def test_groups_of_other_sizes_than_the_index_says_are_refused(copy_of_dataset: Path) -> None:
    def grow(index: dict[str, Any]) -> None:
        for run in index["groups"]["num_examples"]:
            run[0] += 1

    edit_document(copy_of_dataset, "train/index.json", grow)
    with pytest.raises(InputError, match=r"tar\.zst: damaged .*index\.json"):
        TrainReader(copy_of_dataset, 0, 8).batch(0)


def other_size(tar: bytes) -> bytes:
    return ZstdCompressor().compress(tar + bytes(512))


def no_size(tar: bytes) -> bytes:
    return ZstdCompressor(write_content_size=False).compress(tar)


def no_zstd(tar: bytes) -> bytes:
    return tar


def another_dtype(tar: bytes) -> bytes:
    return ZstdCompressor().compress(tar.replace(b"'|u1'", b"'|O1'", 1))


def another_row(tar: bytes) -> bytes:
    return ZstdCompressor().compress(tar.replace(b"r000000_", b"r000001_", 1))


def no_identifier(tar: bytes) -> bytes:
    return ZstdCompressor().compress(tar.replace(b"_p0", b"_p/", 1))


@pytest.mark.parametrize("change", [other_size, no_size, no_zstd, another_dtype, another_row, no_identifier])
def test_a_shard_that_holds_anything_but_what_the_index_says_is_refused(
    copy_of_dataset: Path, change: Callable[[bytes], bytes]
) -> None:
    def change_shards(index: dict[str, Any]) -> None:
        for shard in index["shards"]:
            path = copy_of_dataset / "train" / shard["file"]
            path.write_bytes(change(ZstdDecompressor().decompress(path.read_bytes())))
            shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            shard["size_bytes"] = path.stat().st_size

    edit_document(copy_of_dataset, "train/index.json", change_shards)
    reader = TrainReader(copy_of_dataset, 0, 8)
    for _ in range(2):  # no less the second time
        with pytest.raises(InputError, match=r"tar\.zst: damaged"):
            reader.batch(0)


@pytest.mark.parametrize("file", ["dataset.json", "train/index.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found|missing"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "format_version None"),
        (b'{"format_version": 2}', "format_version 2"),
        (b'{"format_version": 1}', ": is missing"),
    ],
)
def test_a_damaged_description_is_refused_by_name(
    copy_of_dataset: Path, file: str, content: bytes | None, message: str
) -> None:
    path = copy_of_dataset / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{file}: .*({message})"):
        TrainReader(copy_of_dataset, 0, 8)


@pytest.mark.parametrize(
    "change",
    [
        "drop a shard",
        "reorder",
        "cut elsewhere",
        "more groups",
        "too many groups",
        "no number",
        "escape",
    ],
)
def test_an_index_that_contradicts_itself_is_refused(copy_of_dataset: Path, change: str) -> None:
    path = copy_of_dataset / "train" / "index.json"
    index = json.loads(path.read_text())
    match change:
        case "drop a shard":
            index["shards"].pop(3)
        case "reorder":
            index["shards"].reverse()
        case "cut elsewhere":
            index["shards"][0]["num_samples"] -= 1
            index["shards"].insert(1, {**index["shards"][1], "row": 0, "first_group": 9, "num_samples": 1})
        case "more groups":
            index["groups"]["num_puzzles"][0][1] += 1
        case "too many groups":
            index["groups"]["num_puzzles"][0][1] = 10**12
        case "no number":
            index["groups"]["num_examples"][0] = ["four", 1]
        case _:
            index["shards"][0]["file"] = "../secret.tar.zst"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: "):
        TrainReader(copy_of_dataset, 0, 8)
