"""2,200 damaged inputs: each is built into a dataset or refused with exit code 2 and a message naming the file."""

import gzip
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline import build
from data_pipeline.base.errors import exit_code
from data_pipeline.grid_puzzles.csv_source import HEADER
from data_pipeline.grid_puzzles.maze.kind import MazeType
from data_pipeline.grid_puzzles.maze.puzzles import CHARSET
from data_pipeline.grid_puzzles.puzzle_type import PuzzleType
from data_pipeline.grid_puzzles.sudoku.kind import SudokuType
from data_pipeline.reader import TestReader, TrainReader

PAIR = {"input": [[0, 1], [2, 3]], "output": [[9]]}
TASK = {"train": [PAIR, PAIR], "test": [PAIR]}
KAGGLE = {"0a": TASK, "0b": TASK}


def csv_of(puzzle_type: PuzzleType, characters: str) -> bytes:
    examples = puzzle_type.generate(0, "train", np.arange(6))
    lines = [
        ",".join(["made", *("".join(characters[token] for token in side) for side in example.tolist()), "7"])
        for example in examples
    ]
    return "\n".join([HEADER, *lines, ""]).encode()


SUDOKU_CSV = csv_of(SudokuType(4), "?.1234")
MAZE_CSV = csv_of(MazeType(4, min_steps=3), f"?{CHARSET}")


def zipped(members: dict[str, object]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content))
    return file.getvalue()


LINES = [{"examples": [[PAIR["input"], PAIR["output"]]] * 2, "source": "x"}, {"id": "0a", **TASK}]

INPUTS = {
    "task.json": ("arc", json.dumps(TASK).encode()),
    "arc-agi_training_challenges.json": ("arc", json.dumps(KAGGLE).encode()),
    "re_arc.json": ("arc", json.dumps([PAIR, PAIR]).encode()),
    "barc.jsonl": ("arc", "\n".join(map(json.dumps, LINES)).encode()),
    "utf16.json.gz": ("arc", gzip.compress(json.dumps(TASK).encode("utf-16"))),
    "arc.zip": ("arc", zipped({"training/0a.json": TASK, "training/0b.json": TASK})),
    "sudoku.csv": ("sudoku", SUDOKU_CSV),
    "maze.csv": ("maze", MAZE_CSV),
}

junk = [
    b"",
    b"\n",
    b"\r\n",
    b",",
    b'"',
    b"0",
    b"-1",
    b"9" * 20,
    b"1e999",
    b"null",
    b"[",
    b"{",
    b"}]",
    b"\xff",
    b"\x00",
]
pieces = st.sampled_from(junk) | st.binary(min_size=1, max_size=3)
cuts = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 8), pieces)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=3) | st.just(10**30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input", "output", "test"]), inner)
    ),
    max_leaves=5,
)


def cut_up(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """The content with some bytes at some places replaced by others."""
    for place, length, piece in changes:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + length :]
    return content


def build_in_process(folder: Path, name: str, content: bytes, preset: str) -> int:
    (folder / name).write_bytes(content)
    arguments = [preset, "--source", str(folder / name), "--out", str(folder / "out"), "--num-aug", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["build", *arguments, "--workers", "1", "--quiet"])
        return exit_code(build.main)


def check(folder: Path, name: str, content: bytes, preset: str, capsys: pytest.CaptureFixture[str]) -> int:
    folder.mkdir()
    capsys.readouterr()
    code = build_in_process(folder, name, content, preset)
    message = capsys.readouterr().err
    if code == 0:
        reader = TrainReader(folder / "out", 0, 2)
        assert reader.batch(0)["inputs"].shape == (2, reader.info.seq_len)
        assert len(TestReader(folder / "out")) >= 0
    else:
        assert code == 2
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        assert name in message
        assert not (folder / "out").exists()
    return code


fuzzed = settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("name", INPUTS)
def test_bytes_changed_anywhere(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset, content = INPUTS[name]
    codes: list[int] = []

    @fuzzed
    @given(st.lists(cuts, min_size=1, max_size=4))
    def damage(changes: list[tuple[float, int, bytes]]) -> None:
        codes.append(check(tmp_path / str(len(codes)), name, cut_up(content, changes), preset, capsys))

    damage()
    assert set(codes) == {0, 2}


@pytest.mark.parametrize("name", ["task.json", "arc-agi_training_challenges.json", "re_arc.json"])
def test_values_of_json_replaced_by_anything(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    @fuzzed
    @given(st.data())
    def damage(data: st.DataObject) -> None:
        changed = json.loads(INPUTS[name][1])
        inner: Any = changed
        while True:
            key = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
            if not isinstance(inner[key], dict | list) or not inner[key] or not data.draw(st.integers(0, 4)):
                break
            inner = inner[key]
        inner[key] = data.draw(st.integers(0, 9) | anything)
        codes.append(check(tmp_path / str(len(codes)), name, json.dumps(changed).encode(), "arc", capsys))

    damage()
    assert set(codes) == {0, 2}


@pytest.mark.parametrize("name", INPUTS)
def test_what_was_not_damaged_is_accepted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, content = INPUTS[name]
    assert build_in_process(tmp_path, name, content, preset) == 0
