import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib import image

from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.files import write_json
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.sudoku import puzzles as sudoku
from data_pipeline.inspect.__main__ import histograms, look_of, main
from data_pipeline.inspect.plot import WINDOW_COLOUR
from data_pipeline.inspect.verify import verify
from data_pipeline.schema import GroupTable, SplitIndex, SplitName, load_dataset_info, load_split_index
from data_pipeline.shards.reader import read_shard
from data_pipeline.shards.sample_format import Samples
from data_pipeline.shards.writer import write_shard
from tests.documents import note_checksums

SHARD = "row-000003-0000.tar.zst"
SPLITS: tuple[SplitName, ...] = ("train", "test")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, output and messages of the command line."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["inspect", *map(str, arguments), "--workers", "2"])
        code = exit_code(main)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A dataset to damage."""
    return shutil.copytree(dataset, tmp_path / "copy")


@pytest.fixture(scope="module")
def shared_copy(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset to damage and to repair again."""
    return shutil.copytree(dataset, tmp_path_factory.mktemp("shared") / "copy")


def table(text: str, title: str) -> dict[str, list[str]]:
    """The lines under a title up to the next empty line: label to the words after it, bars left out."""
    [block] = [block for block in text.split("\n\n") if block.lstrip().startswith(title)]
    words = [line.split() for line in block.splitlines()[1:]]
    return {line[0]: [word for word in line[1:] if not word.startswith("#")] for line in words}


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    write_json(path, content)


def first_row(dataset: Path, split: SplitName) -> np.ndarray:
    index = load_split_index(dataset, split)
    return np.concatenate(
        [
            read_shard(dataset / split, index, shard).examples(slice(None))
            for shard in index.shards
            if shard.row == 0
        ]
    )


def test_the_summary_tells_what_the_data_holds(dataset: Path, command: Command) -> None:
    code, text, messages = command(dataset)
    assert (code, messages) == (0, "")
    assert f"{dataset}: sound; " in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 100
    info = load_dataset_info(dataset)
    sizes = table(text, "train")
    splits = (info.splits.train, info.splits.test)
    assert sizes["puzzles"] == [str(split.num_puzzles) for split in splits]
    assert sizes["examples"] == [str(split.num_examples) for split in splits]
    assert sizes["shards"] == [str(len(list((dataset / split).glob("*.zst")))) for split in SPLITS]

    puzzles_per_group: Counter[str] = Counter()
    for name in json.loads((dataset / "identifiers.json").read_text())[1:]:
        puzzles_per_group[name.partition("|||")[0]] += 1
    groups = {size: count[0] for size, count in table(text, "puzzles per group").items() if size.isdigit()}
    assert groups == {str(k): str(v) for k, v in Counter(puzzles_per_group.values()).items()}

    shown = table(text, "longer side")
    tasks = json.loads((dataset / "test_puzzles.json").read_text()).values()  # of which all are held out
    columns = [(split, side) for split in SPLITS for side in ("input", "output")]
    for column, (split, side) in enumerate(columns):
        grids = [pair[side] for task in tasks for pair in task[split]]
        expected = Counter(str(max(len(grid), len(grid[0]))) for grid in grids)
        counts = {label: int(cells[column]) for label, cells in shown.items() if label.isdigit()}
        assert +Counter(counts) == expected

    shares = table(text, "vocabulary")
    examples = first_row(dataset, "train")
    for token in range(info.vocab_size):
        expected_shares = [f"{100 * np.mean(examples[:, side] == token):.2f}%" for side in range(2)]
        assert shares[str(token)][:2] == expected_shares


counts = st.lists(st.integers(0, 99_999_999), min_size=1, max_size=1002)


@given(st.lists(counts, min_size=2, max_size=2) | st.lists(counts, min_size=4, max_size=4))
@example([[0] * 9 + [1, 99_999_999]] * 4)  # a range of more than eight digits
def test_ranges_of_a_histogram_hold_every_count_once_in_a_hundred_columns(columns: list[list[int]]) -> None:
    arrays = {f"column {i}": np.array(column, dtype=np.int64) for i, column in enumerate(columns)}
    _, *rest = histograms("title", arrays)
    rows = [line.replace("#", " ").replace(",", "").split() for line in rest[1:]]
    assert len(rows) <= 10
    for i, column in enumerate(columns):
        shown = [int(row[1 + i]) for row in rows if len(row) > 1]
        assert sum(shown) == sum(column)
        for row, count in zip(rows, shown, strict=False):
            low, _, high = row[0].partition("-")
            assert count == sum(column[int(low) : int(high or low) + 1])
    assert all(len(line) <= 100 for line in rest)


@given(st.data())
def test_any_changed_byte_of_any_file_is_noticed(shared_copy: Path, data: st.DataObject) -> None:
    files = sorted(path for path in shared_copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files) | st.sampled_from(sorted(shared_copy.rglob("*.json"))))
    content = path.read_bytes()
    # The last byte of a JSON file is white space, which another may stand for.
    place = data.draw(st.integers(0, len(content) - (2 if path.suffix == ".json" else 1)))
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
    try:
        with pytest.raises(InputError) as error:
            verify(shared_copy, 1, show_progress=False)
    finally:
        path.write_bytes(content)
    assert path.suffix == ".json" or str(path) in str(error.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated shard": (f"train/{SHARD}", truncate),
    "missing shard": (f"test/{SHARD}", Path.unlink),
    "missing index": ("train/index.json", Path.unlink),
    "truncated index": ("test/index.json", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    "missing dataset.json": ("dataset.json", Path.unlink),
    "other sizes": (
        "dataset.json",
        lambda path: edit_json(path, lambda x: x["splits"]["test"].update(num_rows=7)),
    ),
    "other vocabulary": ("dataset.json", lambda path: edit_json(path, lambda x: x.update(vocab_size=13))),
    "missing identifiers": ("identifiers.json", Path.unlink),
    "one name more": ("identifiers.json", lambda path: edit_json(path, lambda x: x.append("name"))),
    "a name changed": ("identifiers.json", lambda path: edit_json(path, lambda x: x.__setitem__(1, "name"))),
    "two names swapped": (
        "identifiers.json",
        lambda path: edit_json(path, lambda x: x.__setitem__(slice(1, 3), x[2:0:-1])),
    ),
    "no names": ("identifiers.json", lambda path: path.write_text("{}")),
    "missing tasks": ("test_puzzles.json", Path.unlink),
    "a task less": ("test_puzzles.json", lambda path: edit_json(path, lambda x: x.popitem())),
    "leftover shard": ("train/row-000099-0000.tar.zst", lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_exits_with_2_and_names_the_file(copy: Path, command: Command, damage: str) -> None:
    file, do_damage = DAMAGES[damage]
    do_damage(copy / file)
    code, text, messages = command(copy)
    assert (code, text) == (2, "")
    assert file in messages
    assert len(messages.splitlines()) <= 3  # nothing else is blamed; other names concern both splits
    assert ("delete it" if damage == "leftover shard" else "build") in messages


def test_all_damaged_files_are_named_up_to_twenty(copy: Path, command: Command) -> None:
    truncate(copy / "train" / SHARD)
    (copy / "test" / SHARD).unlink()
    _, _, messages = command(copy)
    assert f"train/{SHARD}: damaged" in messages
    assert f"test/{SHARD}: missing" in messages
    for i in range(30):
        (copy / "test" / f"{i}.tmp").touch()
    code, _, messages = command(copy)
    assert code == 2
    assert "32 problems:" in messages
    assert len(messages.splitlines()) == 1 + 20 + 1
    assert messages.endswith("and 12 more\n")


def test_a_tar_with_other_cells_is_noticed_though_its_file_has_the_checksum(copy: Path) -> None:
    index = load_split_index(copy, "train")
    [part] = [shard for shard in index.shards if shard.file == SHARD]
    tar = bytearray(read_shard(copy / "train", index, part).tar)

    def write_tar() -> None:
        content = zstandard.compress(bytes(tar), 19)
        (copy / "train" / SHARD).write_bytes(content)
        of_file = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edit_json(copy / "train/index.json", lambda x: x["shards"][part.row].update(of_file))
        total = sum(path.stat().st_size for path in (copy / "train").glob("*.zst"))
        edit_json(copy / "dataset.json", lambda x: x["splits"]["train"].update(size_bytes=total))
        note_checksums(copy)

    write_tar()
    verify(copy, 1, show_progress=False)  # the same tar from another compressor is as good
    tar[700] ^= 1
    write_tar()
    with pytest.raises(InputError, match=rf"1 problem:\n.*{SHARD}: the tar within has another sha256"):
        verify(copy, 1, show_progress=False)


def test_a_folder_that_is_no_dataset_is_said_to_be_none(tmp_path: Path, command: Command) -> None:
    code, _, message = command(tmp_path)
    assert code == 2
    assert "this is no dataset; build one" in message


def colours(picture: Path) -> set[str]:
    pixels = np.round(image.imread(picture)[..., :3] * 255).astype(np.int64)
    found, counts = np.unique(pixels @ [2**16, 2**8, 1], return_counts=True)
    return {f"#{pixel:06x}" for pixel in found[counts > 50]}


def test_the_picture_shows_windows_where_there_are_any(
    dataset: Path, tmp_path: Path, command: Command
) -> None:
    without = Path(__file__).parents[1] / "golden" / "earlier" / "arc"
    for name, folder in (("with", dataset), ("without", without)):
        assert command(folder, "--picture", tmp_path / f"{name}.png", "--groups", 1)[0] == 0
        assert (WINDOW_COLOUR in colours(tmp_path / f"{name}.png")) == (name == "with")


def test_the_picture_shows_every_token_in_its_colour(dataset: Path, tmp_path: Path, command: Command) -> None:
    picture = tmp_path / "out.png"
    code, text, _ = command(dataset, "--picture", picture, "--groups", 8)
    assert code == 0
    assert str(picture) in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len({token.colour for token in look_of(load_dataset_info(dataset)).tokens}) == 12
    assert {token.colour for token in look_of(load_dataset_info(dataset)).tokens} <= colours(picture)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg", "none"])
def test_the_picture_is_the_same_whatever_matplotlib_was_told(
    backend: str, dataset: Path, tmp_path: Path, command: Command
) -> None:
    assert command(dataset, "--picture", tmp_path / "own.png", "--groups", 2)[0] == 0
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 50\nsavefig.dpi: 10\n")
    told = {**os.environ, "MPLBACKEND": backend, "MPLCONFIGDIR": str(tmp_path)}
    inspect = [sys.executable, "-m", "data_pipeline.inspect", dataset, "--groups", "2", "--picture"]
    subprocess.run([*inspect, tmp_path / "told.png"], env=told, check=True)
    assert (tmp_path / "told.png").read_bytes() == (tmp_path / "own.png").read_bytes()


@pytest.mark.parametrize("name", ["out.jpg", "nowhere/out.png", "folder.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_the_long_work(
    copy: Path, tmp_path: Path, command: Command, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    truncate(copy / "train" / SHARD)
    code, text, message = command(copy, "--picture", tmp_path / name)
    assert (code, text) == (2, "")
    assert f"--picture {tmp_path / name}: " in message
    assert SHARD not in message


def write_puzzles(folder: Path, template: Path, kind: str, puzzles: np.ndarray, vocab_size: int) -> None:
    """A dataset of puzzles [n, 2, cells] without names, the first three of which are for testing."""
    side = round(puzzles.shape[-1] ** 0.5)
    info = load_dataset_info(template)
    sizes = {}
    for split, chosen in (("train", puzzles[3:]), ("test", puzzles[:3])):
        (folder / split).mkdir(parents=True)
        ones = np.ones(len(chosen), dtype=np.int64)
        samples = Samples(np.arange(len(chosen)), 0 * ones, ones, chosen)
        shard = write_shard(folder / split / "row-000000-0000.tar.zst", 0, samples)
        groups = GroupTable(num_puzzles=ones, num_examples=ones, first_identifier=0 * ones, names=None)
        index = SplitIndex(
            split=split, num_rows=1, canvas=side, seq_len=side**2, groups=groups, shards=(shard,)
        )
        write_json(folder / split / "index.json", index.model_dump())
        sizes[split] = {
            "total_groups": len(chosen),
            "mean_puzzle_examples": 1.0,
            "num_puzzles": len(chosen),
            "num_examples": len(chosen),
            "num_rows": 1,
            "size_bytes": shard.size_bytes,
        }
    write_json(folder / "identifiers.json", ["<blank>"])
    write_json(folder / "test_puzzles.json", {})
    of_kind = {"kind": kind, "canvas": side, "seq_len": side**2, "vocab_size": vocab_size}
    write_json(
        folder / "dataset.json",
        info.model_dump() | of_kind | {"num_puzzle_identifiers": 1, "splits": sizes},
    )
    note_checksums(folder)


def test_sudokus_are_measured_by_their_givens(dataset: Path, tmp_path: Path, command: Command) -> None:
    solution = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1], dtype=np.uint8)
    puzzles = np.tile(sudoku.encode(solution), (10, 2, 1))
    for number, puzzle in enumerate(puzzles):
        puzzle[0, : 1 + number % 4] = sudoku.FIRST_TOKEN_ID
    write_puzzles(tmp_path / "sudoku", dataset, "sudoku", puzzles, vocab_size=6)
    code, text, _ = command(tmp_path / "sudoku", "--picture", tmp_path / "out.png")
    assert code == 0
    givens = {label: cells for label, cells in table(text, "givens").items() if label.isdigit()}
    assert givens == {"12": ["2", "0"], "13": ["1", "1"], "14": ["2", "1"], "15": ["2", "1"]}
    assert table(text, "vocabulary")["2"][1:] == ["25.00%", "digit", "1"]
    assert {"#000000", "#1f4fd8", "#ffffff"} <= colours(tmp_path / "out.png")  # givens, solved digits, cells


def test_mazes_are_measured_by_their_paths(dataset: Path, tmp_path: Path, command: Command) -> None:
    solved = ["Soo" "##o" "##G", "SoG" "   " "###", "SG#" "   " "###"]  # fmt: skip
    labels = np.array([[1 + maze.CHARSET.index(char) for char in solved[i % 3]] for i in range(8)])
    inputs = np.where(labels == maze.PATH_ID, maze.FREE_ID, labels)
    puzzles = np.stack([inputs, labels], axis=1).astype(np.uint8)
    write_puzzles(tmp_path / "maze", dataset, "maze", puzzles, vocab_size=maze.VOCAB_SIZE)
    code, text, _ = command(tmp_path / "maze", "--picture", tmp_path / "out.png")
    assert code == 0
    lengths = {label: cells for label, cells in table(text, "length of the path").items() if label.isdigit()}
    assert lengths == {"1": ["1", "1"], "2": ["2", "1"], "4": ["2", "1"]}
    padding, *cells = (token.colour for token in look_of(load_dataset_info(tmp_path / "maze")).tokens)
    shown = colours(tmp_path / "out.png")
    assert set(cells) <= shown
    assert padding not in shown
