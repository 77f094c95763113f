"""The CSV files that people have: columns, separators, quotes, encodings, archives, and which files are held out."""

import codecs
import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.build import build
from data_pipeline.grid_puzzles.csv_files import find_files
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.reading import Selection, read_puzzles
from data_pipeline.grid_puzzles.sudoku import puzzles as sudoku
from data_pipeline.grid_puzzles.sudoku.kind import SudokuType
from data_pipeline.schema import SourceReading, load_dataset_info
from tests.unit.test_data_puzzle_dataset import new_puzzles, request

GRIDS = [(".234341221434321", "1234341221434321"), ("1.34341221434321", "1234341221434321")]
MAZES = [("S   #   G", "Soo #o  G"), ("S  #  #G ", "So #o #G ")]


def as_csv(header: str, line: Callable[[str, str], str], grids: list[tuple[str, str]] = GRIDS) -> str:
    return "\n".join([*([header] if header else []), *(line(q, a) for q, a in grids), ""])


def inputs_of(file: Path, selection: Selection | None = None) -> list[str]:
    found = read_puzzles([file], sudoku.read_block, selection).puzzles
    assert all(row.tolist() == [int(digit) for digit in GRIDS[0][1]] for row in found.labels)
    return ["".join(map(str, row)).replace("0", ".") for row in found.inputs.tolist()]


ALL = [question for question, _ in GRIDS]
TEXTS = {
    "published": as_csv("source,question,answer,rating", lambda q, a: f"x,{q},{a},3"),
    "puzzle and solution": as_csv("puzzle,solution", lambda q, a: f"{q},{a}"),
    "Kaggle's million": as_csv("quizzes,solutions", lambda q, a: f"{q.replace('.', '0')},{a}"),
    "Kaggle's three millions": as_csv(
        "id,puzzle,solution,clues,difficulty", lambda q, a: f"1,{q},{a},15,2.2"
    ),
    "capitals": as_csv("ID,Question,ANSWER", lambda q, a: f"7,{q},{a}"),
    "the other order": as_csv("solution,puzzle", lambda q, a: f"{a},{q}"),
    "other names": as_csv("sudoku_puzzle,my solution", lambda q, a: f"{q},{a}"),
    "names that say nothing": as_csv("a,b,c", lambda q, a: f"{a},9,{q}"),
    "no header": as_csv("", lambda q, a: f"{q},{a}"),
    "no header, solutions first": as_csv("", lambda q, a: f"{a},{q}"),
    "no header, four columns": as_csv("", lambda q, a: f"x,{q},{a},4"),
    "index of pandas": as_csv(",puzzle,solution", lambda q, a: f"0,{q},{a}"),
    "semicolons": as_csv("puzzle;solution", lambda q, a: f"{q};{a}"),
    "tabs": as_csv("puzzle\tsolution", lambda q, a: f"{q}\t{a}"),
    "spaces after commas": as_csv("puzzle, solution", lambda q, a: f"{q}, {a}"),
    "quotes": as_csv('"puzzle","solution"', lambda q, a: f'"{q}","{a}"'),
    "letters of other alphabets": as_csv("Rätsel\u00a0,Lösung,puzzle,solution", lambda q, a: f"ä,é,{q},{a}"),
    "a quoted comma": as_csv("source,puzzle,solution", lambda q, a: f'"Smith, J. ""x""",{q},{a}'),
    "quotes in some lines": as_csv("puzzle,solution", lambda q, a: f'"{q}",{a}' if q[0] == "." else f"{q},{a}"),
    "words for ratings": as_csv("puzzle,solution,difficulty", lambda q, a: f"{q},{a},easy"),
    "two columns named puzzles": as_csv("puzzles,puzzle,solution", lambda q, a: f"5,{q},{a}"),
    "commas at the end": as_csv("puzzle,solution,", lambda q, a: f"{q},{a},") + ",,\n",
    "empty lines": "\n" + as_csv("puzzle,solution", lambda q, a: f"\n{q},{a}\n") + "\n\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_columns_are_found_in_files_as_people_have_them(name: str, tmp_path: Path) -> None:
    file = tmp_path / "puzzles.csv"
    file.write_text(TEXTS[name])
    assert inputs_of(file) == ALL
    file.write_bytes(TEXTS[name].rstrip("\n").replace("\n", "\r\n").encode("utf-8-sig"))
    assert inputs_of(file) == ALL


def packed(folder: Path, how: str, text: str) -> Path:
    path = folder / "puzzles.csv"
    content = text.encode()
    match how:
        case "gzip":
            content = gzip.compress(content)
            path = folder / "puzzles.csv.gz"
        case "gzip by another name":
            content = gzip.compress(content)
        case "UTF-8 with a mark":
            content = codecs.BOM_UTF8 + content
        case "UTF-16-LE":
            content = text.encode("utf-16-le")
        case "UTF-16-BE":
            content = codecs.BOM_UTF16_BE + text.encode("utf-16-be")
        case "UTF-16":
            content = text.encode("utf-16")
        case _:
            path = folder / "archive.zip"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("sudoku/puzzles.csv", content)
                archive.writestr("__MACOSX/sudoku/._puzzles.csv", b"\0")
                archive.writestr("README.md", b"words")
            return path
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "how",
    ["gzip", "gzip by another name", "zip", "UTF-8 with a mark", "UTF-16", "UTF-16-LE", "UTF-16-BE"],
)
@pytest.mark.parametrize("name", ["published", "no header", "quotes"])
def test_files_are_unpacked_and_decoded(how: str, name: str, tmp_path: Path) -> None:
    [file] = find_files(str(packed(tmp_path, how, TEXTS[name]))).train
    assert inputs_of(file) == ALL  # type: ignore[arg-type]


@pytest.mark.parametrize("header", ["question,answer", "a,b", ""])
def test_mazes_keep_their_spaces(header: str, tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    expected = [list(question) for question, _ in MAZES]
    for line in (lambda q, a: f"{q},{a}", lambda q, a: f'"{q}",{a}'):
        file.write_text(as_csv(header, line, MAZES))
        found = read_puzzles([file], maze.read_block).puzzles.inputs
        assert [[f"?{maze.CHARSET}"[token] for token in row] for row in found.tolist()] == expected


@given(st.lists(st.decimals(0, 99999, allow_nan=False, places=3) | st.integers(0, 10**9 - 1), min_size=1))
def test_decimal_ratings_count_as_the_numbers_they_are(
    tmp_path_factory: pytest.TempPathFactory, ratings: list[object]
) -> None:
    file = tmp_path_factory.mktemp("ratings") / "r.csv"
    lines = [f"{GRIDS[0][0]},{GRIDS[0][1]},{rating}" for rating in ratings]
    file.write_text("\n".join(["puzzle,solution,rating", *lines]))
    found = read_puzzles([file], sudoku.read_block).puzzles.ratings
    assert found.tolist() == [int(float(str(rating))) for rating in ratings]


@pytest.mark.parametrize(("rating", "value"), [("1e2", 100), ("-0.5", -1), ("+7", 7), (".5", 0), ("2.", 2)])
def test_other_spellings_of_numbers_are_ratings(rating: str, value: int, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(as_csv("puzzle,solution,rating", lambda q, a: f"{q},{a},{rating}"))
    found = read_puzzles([file], sudoku.read_block, Selection(min_difficulty=value if value > 0 else None))
    assert found.puzzles.ratings.tolist() == [value, value]


@pytest.mark.parametrize("rating", ["nan", "inf", "-inf", "", "hard", "1.2.3", "1e99", "1234567890"])
def test_what_is_no_rating_is_refused_where_one_is_needed(rating: str, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(as_csv("puzzle,solution,rating", lambda q, a: f"{q},{a},{rating}"))
    with pytest.raises(InputError, match=rf"r\.csv: line 2: rating '{rating}' is no number"):
        read_puzzles([file], sudoku.read_block, Selection(min_difficulty=1))
    assert inputs_of(file) == ALL


BAD_TEXTS = {
    "puzzle,solution\n.234341221434321,123434\n": "line 2: answer '123434' has 6 characters where 16 are due",
    "puzzle,solution\n\n\n1,2,3\n": "line 4: '1,2,3' has 3 fields, but the first line has 2",
    'puzzle,solution\n"1\n2",3\n': "line 2: '\"1' has a field that goes on in the next line",
    'puzzle,solution\n"1,3\n': "line 2: '\"1,3' has quotes that do not enclose a field",
    "puzzle\n1\n": "line 1: 'puzzle' is one column",
    "name,age\na,1\n": "does not tell which column has the puzzles",
    "a,b,c\n.234341221434321,1234341221434321,1.34341221434321\n": "does not tell which column",
    "1234341221434321,.23434122143432\n.234341221434321,1234341221434321\n": "line 1: '1234341221434321,.2343412",
    "PAR1\x15\x04,": "is no text; save the puzzles as a CSV file",
    "": "bad.csv: is empty",
    "puzzle,solution\n": "no puzzle in the file",
    "puzzle,solution\n1234341221434321,.234341221434321\n": "the columns seem to be interchanged",
    '{"puzzle": "1", "solution": "2"}\n': "does not tell which column",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_what_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        inputs_of(file)
    assert BAD_TEXTS[text] in str(caught.value)
    assert str(file) in str(caught.value)


def test_ratings_that_are_not_there_cannot_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(TEXTS["puzzle and solution"])
    with pytest.raises(InputError, match="no column says how hard a puzzle is; leave out --min-difficulty"):
        inputs_of(file, Selection(min_difficulty=1))


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    gz = tmp_path / "a.csv.gz"
    gz.write_bytes(gzip.compress(TEXTS["published"].encode())[:-12])
    with pytest.raises(InputError, match=r"a\.csv\.gz: cannot be read"):
        inputs_of(gz)
    with zipfile.ZipFile(tmp_path / "no.zip", "w") as archive:
        archive.writestr("tasks.json", "{}")
    with pytest.raises(InputError, match=r"no\.zip: no such file, nor a folder or zip archive with \*\.csv"):
        find_files(str(tmp_path / "no.zip"))


# What is held out


@pytest.mark.parametrize(
    ("name", "is_held_out"),
    [
        ("test.csv", True), ("my_test_set.csv", True), ("sudoku-test.csv", True), ("SUDOKU_TEST.CSV", True),
        ("sudokuTest.csv", True), ("test2.csv", True), ("evaluation.csv", True), ("eval.csv.gz", True),
        ("validation.tsv", True), ("my_contest_set.csv", False), ("latest.csv", False), ("attestation.csv", False),
        ("puzzles.csv", False), ("evaluated.csv", False), ("train.csv", False), ("train_test.csv", True),
    ],
)  # fmt: skip
def test_a_file_is_held_out_by_a_word_of_its_name(name: str, is_held_out: bool, tmp_path: Path) -> None:
    file = tmp_path / name
    file.touch()
    assert find_files(str(file)) == (([], [file], []) if is_held_out else ([file], [], []))
    assert find_files(f"{file}:train") == ([file], [], [])


def test_folders_within_a_source_say_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "evaluation" / "src"
    names = [
        "test/a.csv",
        "Validation/deep/b.csv",
        "train/c.csv",
        "test/train.csv",
        ".hidden/d.csv",
        "test/._a.csv",
    ]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    (source / "linked").symlink_to(source / "test")
    found = find_files(str(source))
    relative = [[os.path.relpath(str(file), source) for file in files] for files in found[:2]]
    assert relative == [["test/train.csv", "train/c.csv"], ["Validation/deep/b.csv", "test/a.csv"]]
    monkeypatch.chdir(source)
    assert [len(files) for files in find_files(".")] == [2, 2, 0]  # however the path is typed
    assert [len(files) for files in find_files("test")] == [1, 1, 0]


def test_a_linked_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.csv").touch()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "test").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src" / "again").symlink_to(tmp_path / "src")
    assert find_files(str(tmp_path / "src")).test == [tmp_path / "src" / "test" / "a.csv"]


def test_the_dataset_tells_what_became_of_every_puzzle(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    digits = "?.123456789"
    for name, split, count in (
        ("a_train.csv", "train", 30),
        ("b_train.csv", "test", 20),
        ("test.csv", "test", 9),
    ):
        lines = ["puzzle,solution,rating"]
        for number, example in enumerate(new_puzzles(SudokuType(6), split, count).tolist()):
            lines.append(
                ",".join(["".join(digits[token] for token in side) for side in example] + [f"{number}.5"])
            )
        (folder / name).write_text("\n".join(lines))
    (folder / "notes.csv").write_text("nothing")
    (folder / "README.md").write_text("words")
    build(
        request(
            "sudoku", folder, tmp_path / "out", min_difficulty=3, subsample=40, limit_groups=38, leaks="drop"
        )
    )
    info = load_dataset_info(tmp_path / "out")
    first, second, test = info.readings
    assert [(one.source, one.num_tasks) for one in info.readings] == [
        ("a_train.csv:train", 30), ("b_train.csv:train", 20), ("test.csv:evaluation", 9),
    ]  # fmt: skip
    assert reasons(first)["rated below --min-difficulty"] == 3
    assert reasons(first)["not drawn by --subsample"] + reasons(second)["not drawn by --subsample"] == 44 - 40
    assert reasons(second)["beyond --limit-groups"] == 2
    assert reasons(second)["held out too (--leaks drop)"] == info.leaks.num_pairs > 0
    assert first.num_trained + second.num_trained == info.splits.train.total_groups
    assert (test.num_held_out, reasons(test)) == (6, {"rated below --min-difficulty": 3})
    assert [(some.num, some.names) for some in first.not_read] == [(1, ("README.md",)), (1, ("notes.csv",))]


def reasons(reading: SourceReading) -> dict[str, int]:
    return {some.why: some.num for some in reading.left_out}


def test_a_dataset_of_which_nothing_trains_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.csv").write_text(TEXTS["published"])
    build(request("sudoku", tmp_path / "test.csv", tmp_path / "out"))
    assert "warning: every puzzle is held out, so there is nothing to train on" in capsys.readouterr().err
    assert load_dataset_info(tmp_path / "out").splits.train.total_groups == 0


def test_a_packed_file_makes_the_dataset_of_the_plain_one(tmp_path: Path) -> None:
    digests: list[list[str]] = []
    for how in ("plain", "gzip", "zip"):
        source = tmp_path / "train.csv"
        source.write_text(TEXTS["published"])
        if how != "plain":
            source = packed(tmp_path, how, TEXTS["published"])
        build(request("sudoku", source, tmp_path / how, leaks="keep"))
        info = load_dataset_info(tmp_path / how)
        digests.append([info.documents["train/index.json"], info.sources[0].sha256])
    assert digests[0] == digests[1] == digests[2]
    assert np.all([len(some) == 2 for some in digests])
