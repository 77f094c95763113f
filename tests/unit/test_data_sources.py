import bz2
import dataclasses
import gzip
import io
import itertools
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipeline.arc import json_text
from data_pipeline.arc import sources as arc
from data_pipeline.arc.copies import merge
from data_pipeline.arc.json_format import parse_task
from data_pipeline.arc.source_files import true_name
from data_pipeline.arc.task import Task
from data_pipeline.base.errors import InputError
from data_pipeline.kind import Role, split_role
from data_pipeline.readings import left_out

GRID = [[0, 1], [2, 3]]
TASK = {"train": [{"input": GRID, "output": [[5]]}], "test": [{"input": GRID, "output": [[7]]}]}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path, role: Role | None = None) -> list[Task]:
    return arc.from_path(path, role).tasks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder whose name says nothing, as that of a test may do."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def held_out(tasks: list[Task]) -> dict[str, bool]:
    return {task.id: task.held_out for task in tasks}


@pytest.mark.parametrize(("name", "train", "evaluation"), [("arc-agi-1", 400, 400), ("arc-agi-2", 1000, 120)])
def test_the_bundled_releases_are_complete(name: str, train: int, evaluation: int) -> None:
    tasks = arc.bundled(name)
    assert len(tasks) == train + evaluation
    assert sum(task.held_out for task in tasks) == evaluation
    assert all(
        grid is not None and grid.dtype == np.uint8 for task in tasks for pair in task.pairs for grid in pair
    )


def test_folders_named_evaluation_are_held_out_and_all_others_train(root: Path) -> None:
    for name in ("data/training/a", "data/evaluation/b", "corpus/Center/c", "evaluation/training/d"):
        write(root / f"{name}.json", TASK)
    assert held_out(read(root)) == {"a": False, "b": True, "c": False, "d": False}
    assert held_out(read(root / "data/evaluation")) == {"b": True}
    assert held_out(read(root / "data/evaluation/b.json")) == {"b": True}


FOLDERS = {
    True: "evaluation Evaluation EVALUATION arc-evaluation_2 PublicEval validation val holdout test Test2".split(),
    False: "training Training contest latest test_data my-test evaluations medieval retrieval \u00e9test".split(),
}


@pytest.mark.parametrize(("name", "expected"), [(name, said) for said in FOLDERS for name in FOLDERS[said]])
def test_folders_are_held_out_by_a_word_of_their_name(root: Path, name: str, expected: bool) -> None:
    write(root / name / "a.json", TASK)
    assert held_out(read(root)) == held_out(read(root / name)) == {"a": expected}


FILES = {
    True: ["arc-agi_test_challenges", "ARC-AGI_Evaluation-Challenges", "my_eval", "test", "train_and_test"],
    False: ["arc-agi_training_challenges", "latest_challenges", "my_contest_set", "attest", "tasks"],
}


@pytest.mark.parametrize(("name", "expected"), [(name, said) for said in FILES for name in FILES[said]])
def test_files_of_many_tasks_are_held_out_by_a_word_of_the_name(
    root: Path, name: str, expected: bool
) -> None:
    write(root / f"{name}.json", {"a": TASK})
    assert held_out(read(root)) == held_out(read(root / f"{name}.json")) == {"a": expected}


def test_the_name_of_a_file_of_one_task_is_its_own(root: Path) -> None:
    write(root / "evaluation/train_1.json", TASK)
    write(root / "mine/test_1.json", TASK)
    assert held_out(read(root)) == {"train_1": True, "test_1": False}


WAYS = {
    "absolute": lambda folder: folder,
    "relative": lambda folder: Path(os.path.relpath(folder)),
    "from its parent": lambda folder: os.chdir(folder.parent) or Path(folder.name),
    "from within": lambda folder: os.chdir(folder) or Path("."),
    "from below": lambda folder: (folder / "deep").mkdir() or os.chdir(folder / "deep") or Path(".."),
    "with dots": lambda folder: Path(f"{folder.parent}/./x/../{folder.name}/"),
    "through a link": lambda folder: linked(folder.parents[2] / "link", folder),
    "through a linked parent": lambda folder: linked(folder.parents[2] / "link", folder.parent) / folder.name,
}


def linked(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("folder", ["evaluation/mytasks", "mytasks/evaluation", "training/mytasks"])
@pytest.mark.parametrize("way", WAYS)
def test_how_a_path_is_written_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, folder: str, way: str
) -> None:
    write(root / "home" / folder / "a.json", TASK)
    write(root / "home" / folder / "val/b.json", TASK)
    (root / "home" / folder).parent.joinpath("x").mkdir()
    monkeypatch.chdir(root)  # and back at the end
    path = WAYS[way](root / "home" / folder)
    assert true_name(path) == folder.split("/")[1]
    assert held_out(read(path)) == {"a": folder.endswith("evaluation"), "b": True}


def test_what_is_linked_is_read_and_held_out_by_either_name(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "real/evaluation/a.json", TASK)
    write(tmp_path / "real/mine/b.json", TASK)
    linked(root / "more", tmp_path / "real/evaluation")
    linked(root / "evaluation", tmp_path / "real/mine")
    write(tmp_path / "real/val/c.json", TASK)
    linked(root / "c.json", tmp_path / "real/val/c.json")
    assert held_out(read(root)) == {"a": True, "b": True, "c": True}


def test_a_file_of_two_names_is_read_once_and_held_out_by_either(root: Path) -> None:
    write(root / "a/one.json", TASK)
    (root / "evaluation").mkdir()
    linked(root / "evaluation/two.json", root / "a/one.json")
    linked(root / "again", root / "a")
    found = arc.from_path(root, None)
    assert held_out(found.tasks) == {"one": True}
    assert [sorted(names) for names in found.not_read.values()] == [["again", "evaluation/two.json"]]


def test_links_in_a_circle_end(root: Path) -> None:
    write(root / "a/one.json", TASK)
    write(root / "b/two.json", TASK)
    for link, target in {"a/up": root, "a/itself": root / "a", "a/b": root / "b", "b/a": root / "a"}.items():
        linked(root / link, target)
    found = arc.from_path(root, None)
    assert [task.id for task in found.tasks] == ["two", "one"]
    assert sorted(found.not_read["linked to a folder that it lies in"]) == ["a/itself", "a/up"]


@pytest.mark.parametrize("name", ["evaluation", "a.json", "README.md", "unmounted"])
def test_a_link_that_leads_nowhere_is_refused_by_name(root: Path, name: str) -> None:
    write(root / "one.json", TASK)
    linked(root / name, Path("unmounted"))
    with pytest.raises(InputError, match=rf"{name}: is a link to unmounted.*mend or remove"):
        read(root)


def test_a_pipe_is_no_source(root: Path) -> None:
    os.mkfifo(root / "a.json")
    with pytest.raises(InputError, match=r"a\.json: is a pipe or a device; save it"):
        read(root / "a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["evaluation", "a.json"])
def test_what_may_not_be_read_is_refused_by_name(root: Path, name: str) -> None:
    write(root / ("evaluation/a.json" if name == "evaluation" else name), TASK)
    (root / name).chmod(0)
    with pytest.raises(InputError, match=f"{name}.*cannot be read"):
        read(root)
    (root / name).chmod(0o700)


LEFT_BEHIND = [
    ".ipynb_checkpoints/a-checkpoint.json",
    ".vscode/settings.json",
    ".git/x.json",
    "._a.json",
    "__MACOSX/training/._a.json",
    "__pycache__/a.json",
    "~$a.json",
]


def test_hidden_files_and_leftovers_are_no_part_of_a_source(root: Path) -> None:
    write(root / "a.json", TASK)
    for name in LEFT_BEHIND:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\x00\x05\x16\x07")
    assert arc.from_path(root, None)[1:] == ({}, {})
    assert held_out(read(root)) == {"a": False}


def test_all_else_that_is_not_read_is_counted_with_the_reason(root: Path) -> None:
    write(root / "a.json", TASK)
    write(root / "package.json", {"name": "viewer", "scripts": {"test": "jest"}})
    write(root / "index/splits.json", {"train": ["a"], "test": ["b"]})
    write(root / "sample_submission.json", {"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    write(root / "evaluation_solutions.json", {"a": [[[0]]]})
    write(root / "arc1/identifiers.json", ["<blank>", "a"])
    write(root / "arc1/test_puzzles.json", {"b": TASK})
    for name in (
        "README.md",
        "a.json.bak",
        "a.json~",
        "LICENSE",
        "re_arc.zip",
        "x.tar.gz",
        "eval.parquet",
        "b.npz",
    ):
        (root / name).write_bytes(b"")
    found = arc.from_path(root, None)
    assert held_out(found.tasks) == {"a": False}
    assert {why: sorted(names) for why, names in found.not_read.items()} == {
        "with JSON, but no task": ["index/splits.json", "package.json", "sample_submission.json"],
        "with solutions, but no challenges of the same name beside it": ["evaluation_solutions.json"],
        "built as a dataset from tasks": ["arc1"],
        "without JSON": ["LICENSE", "README.md", "a.json.bak", "a.json~"],
        "packed as an archive; give a .zip as a source of its own, unpack others": ["re_arc.zip", "x.tar.gz"],
        "in a format that is not read; convert to JSON": ["b.npz", "eval.parquet"],
    }


def test_a_folder_of_a_built_dataset_is_no_source(root: Path) -> None:
    write(root / "identifiers.json", ["<blank>", "a"])
    write(root / "test_puzzles.json", {"b": TASK})
    with pytest.raises(InputError, match="is a dataset that was built of tasks"):
        read(root)


@pytest.mark.parametrize(("suffix", "expected"), [(":train", False), (":evaluation", True)])
def test_a_suffix_overrides_what_the_names_say(tmp_path: Path, suffix: str, expected: bool) -> None:
    write(tmp_path / "training/a.json", TASK)
    write(tmp_path / "evaluation/b.json", TASK)
    path, role = split_role(f"{tmp_path}{suffix}")
    assert held_out(read(path, role)) == {"a": expected, "b": expected}


@pytest.mark.parametrize(("kind", "expected"), [("training", False), ("evaluation", True), ("test", True)])
def test_kaggle_files_are_held_out_by_their_name(tmp_path: Path, kind: str, expected: bool) -> None:
    file = write(tmp_path / f"arc-agi_{kind}_challenges.json", {"a": TASK})
    assert held_out(read(file)) == {"a": expected}


def test_kaggle_solutions_beside_the_challenges_are_read(tmp_path: Path) -> None:
    hidden = {**TASK, "test": [{"input": GRID}, {"input": [[4]]}]}
    file = write(tmp_path / "arc-agi_evaluation_challenges.json", {"a": hidden})
    assert [pair.output for pair in read(file)[0].tests] == [None, None]
    write(tmp_path / "arc-agi_evaluation_solutions.json", {"a": [[[8]], [[9]]]})
    write(tmp_path / "sample_submission.json", {"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    task = read(tmp_path)[0]
    assert [pair.output.tolist() for pair in task.tests if pair.output is not None] == [[[8]], [[9]]]


@pytest.mark.parametrize("solutions", [{}, {"a": [[[8]], [[9]]]}, {"a": 3}, {"a": [[[10]]]}, []])
def test_solutions_that_do_not_fit_their_challenges_are_refused(tmp_path: Path, solutions: object) -> None:
    file = write(tmp_path / "arc-agi_evaluation_challenges.json", {"a": TASK})
    write(tmp_path / "arc-agi_evaluation_solutions.json", solutions)
    with pytest.raises(InputError, match=r"evaluation_solutions\.json: "):
        read(file)


def test_copies_of_a_task_are_merged_and_held_out_if_any_is() -> None:
    copies = [parse_task(TASK, "a", is_held_out, "here") for is_held_out in (False, True, False)]
    assert held_out(merge(copies)) == {"a": True}


def test_tasks_of_one_name_and_different_content_are_refused() -> None:
    other = {**TASK, "test": [{"input": GRID, "output": [[8]]}]}
    tasks = [parse_task(TASK, "a", False, "one.json"), parse_task(other, "a", False, "two.json")]
    with pytest.raises(InputError, match=r"task a: .*two\.json.*one\.json.*rename"):
        merge(tasks)


def test_the_checksum_sees_content_and_holdout_but_not_order() -> None:
    a, b = parse_task(TASK, "a", False, "x"), parse_task(TASK, "b", False, "y")
    held = parse_task(TASK, "b", True, "y")
    assert arc.content_sha256([a, b]) == arc.content_sha256([b, a])
    assert arc.content_sha256([a, b]) != arc.content_sha256([a, held])


def damaged(train_input: object) -> dict[str, object]:
    return {**TASK, "train": [{"input": train_input, "output": [[5]]}]}


BAD_TASKS = {
    "no demonstrations": ({**TASK, "train": []}, "at least one demonstration pair"),
    "no test": ({"train": TASK["train"]}, "at least one test pair"),
    "pair is no object": ({**TASK, "train": [GRID]}, "train pair 0: .*no pair"),
    "no train output": ({**TASK, "train": [{"input": GRID}]}, "train pair 0: output: nothing is no grid"),
    "colour 10": (damaged([[0, 10]]), "train pair 0: input: row 0, column 1: 10 is no colour"),
    "negative colour": (damaged([[-1]]), "-1 is no colour"),
    "bool": (damaged([[True]]), "true is no colour"),
    "fraction": (damaged([[1.5]]), "1.5 is no colour"),
    "text": (damaged([["1"]]), '"1" is no colour'),
    "NaN": (damaged([[float("nan")]]), "NaN is no colour"),
    "huge": (damaged([[10**100]]), "is no colour"),
    "ragged": (damaged([[1, 2], [3]]), "row 1 has 1 cells where row 0 has 2"),
    "empty grid": (damaged([]), r"\[\] is no grid"),
    "empty row": (damaged([[]]), r"row 0: \[\] is no row"),
    "flat": (damaged([1, 2]), "row 0: 1 is no row"),
    "test input": ({**TASK, "test": [{"input": [[11]]}]}, "test pair 0: input: .*11"),
    "test output": ({**TASK, "test": [{"input": GRID, "output": 3}]}, "test pair 0: output: 3"),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_a_bad_task_is_refused_with_file_task_place_and_value(tmp_path: Path, case: str) -> None:
    content, message = BAD_TASKS[case]
    file = write(tmp_path / "0a1b2c3d.json", content)
    with pytest.raises(InputError, match=rf"0a1b2c3d\.json: task 0a1b2c3d: .*{message}"):
        read(file)


def tar_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("a.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


BAD_FILES = {
    "malformed": (b'{"train": [', "malformed JSON"),
    "empty": (b"", "is empty"),
    "more than one document": (json.dumps(TASK, indent=1).encode() * 2, "malformed JSON .Extra data"),
    "not UTF-8": (b'{"train": "\xff"}', "not UTF-8"),
    "half of UTF-16": (json.dumps(TASK).encode("utf-16")[:-1], "not UTF-8, UTF-16"),
    "damaged gzip": (gzip.compress(json.dumps(TASK).encode())[:-20], "cannot be read"),
    "tar": (tar_of(json.dumps(TASK).encode()), "is a tar archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive; unpack it"),
    "Parquet": (b"PAR1\x15\x04", "is a Parquet table; convert it"),
    "npy": (b"\x93NUMPY\x01\x00v\x00", "is a NumPy array; convert it"),
    "pickle": (pickle.dumps(TASK), "is a pickle; convert it"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
        "is a pointer of Git LFS; .*git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page.*raw file"),
    "no task": (b'{"name": "package", "version": "1.0"}', "is no task"),
    "text": (b'"a"', "is no task"),
    "twice": (b'{"a": 1, "a": 2}', "'a' stands twice"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "thousands of digits": (b"1" * 5000, "malformed JSON"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    file = tmp_path / "task.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"task\.json: .*{message}"):
        read(file)


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no tasks to use"):
        read(tmp_path)


@pytest.mark.parametrize("task_id", ["a|||t3|||0718293645", "a_t3_0718293645", "", "<blank>", "a\ud800"])
def test_an_id_that_names_cannot_be_made_of_is_refused(tmp_path: Path, task_id: str) -> None:
    file = write(tmp_path / "arc-agi_test_challenges.json", {task_id: TASK})
    with pytest.raises(InputError, match="rename the task"):
        read(file)


def test_a_byte_order_mark_and_further_keys_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "source" / "a.json"
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({**TASK, "name": "a"}).encode())
    assert arc.content_sha256(read(file)) == arc.content_sha256([parse_task(TASK, "a", False, "")])


def pair() -> dict[str, object]:
    return {"input": GRID, "output": [[5]]}


def lines_of(*values: object) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


LAYOUTS = {
    "ids": ({"x": TASK, "y": TASK}, ["x", "y"]),
    "list": ([TASK, {**TASK, "id": "y"}], ["many-0", "y"]),
    "pairs by id": ({"x": [pair(), pair()]}, ["x-pairs"]),
    "pairs": ([pair(), pair()], ["many-pairs"]),
    "pairs in lists": ([[GRID, GRID], [GRID, [[5]]]], ["many-pairs"]),
    "examples": ({"examples": [[GRID, GRID]], "source": "def main(): ..."}, ["many"]),
    "lines of tasks": (lines_of(TASK, {**TASK, "task_id": "y"}), ["many-1", "y"]),
    "lines of tasks by id": (lines_of({"x": TASK}, {"y": TASK}), ["x", "y"]),
    "lines of examples": (
        "\n" + lines_of({"examples": [[GRID, GRID]], "seeds": []}) * 2,
        ["many-2", "many-3"],
    ),
    "lines of pairs": (lines_of(pair(), pair()), ["many-pairs"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_many_tasks_may_have_any_name(root: Path, layout: str) -> None:
    content, ids = LAYOUTS[layout]
    text = content if isinstance(content, str) else json.dumps(content)
    for name in ("many.json", "many.jsonl") if isinstance(content, str) else ("many.json",):
        (root / name).write_text(text)
        assert [task.id for task in read(root / name)] == ids
        assert all(len(task.training_pairs) == len(task.pairs) for task in read(root / name))


def test_parts_of_a_file_are_held_out_by_their_names(root: Path) -> None:
    file = write(root / "arc1.json", {"train": {"a": TASK}, "eval": {"b": TASK}, "extra": {"c": TASK}})
    assert held_out(read(file)) == {"a": False, "b": True, "c": False}
    with pytest.raises(InputError, match="is no task"):
        read(write(root / "half.json", {"train": {"a": TASK}, "eval": {"b": 3}}))


ENCODINGS = {
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "zstd": lambda text: zstandard.compress(text.encode()),
    "UTF-16 in gzip": lambda text: gzip.compress(text.encode("utf-16")),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_read_in_any_encoding_and_compression(root: Path, encoding: str, name: str) -> None:
    expected = arc.content_sha256(read(write(root / name, {**TASK, "name": "\u00e9\u4e2d"})))
    (root / name).write_bytes(ENCODINGS[encoding](lines_of({**TASK, "name": "\u00e9\u4e2d"})))
    assert arc.content_sha256(read(root / name)) == expected


def test_compressed_files_have_the_names_of_what_is_in_them(root: Path) -> None:
    (root / "a.json.gz").write_bytes(gzip.compress(json.dumps(TASK).encode()))
    (root / "my_eval.JSONL.xz").write_bytes(lzma.compress(lines_of({"b": TASK}).encode()))
    assert held_out(read(root)) == {"a": False, "b": True}


def zipped(path: Path, members: dict[str, object]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content))
    return path


def test_an_archive_is_read_as_the_folder_in_it(root: Path) -> None:
    hidden = {**TASK, "test": [{"input": GRID}]}
    members = {
        "arc/training/a.json": TASK,
        "arc\\evaluation\\b.json": TASK,
        "arc/kaggle/x_challenges.json": {"c": hidden},
        "arc/kaggle/x_solutions.json": {"c": [[[7]]]},
        "arc/README.md": "",
        "__MACOSX/arc/training/._a.json": "",
        "arc/.git/d.json": TASK,
        "built/identifiers.json": [],
        "built/test_puzzles.json": {"e": TASK},
    }
    path = zipped(root / "arc.zip", members)
    before = sorted(root.rglob("*"))
    found = arc.from_path(path, None)
    assert held_out(found.tasks) == {"a": False, "b": True, "c": False}
    assert found.not_read == {"without JSON": ["arc/README.md"], "built as a dataset from tasks": ["built"]}
    assert sorted(root.rglob("*")) == before
    assert held_out(read(zipped(root / "evaluation.zip", {"a.json": TASK}))) == {"a": True}


BAD_ARCHIVES = {
    "malformed": (lambda content: content.replace(b"[", b"{"), r"arc\.zip/a\.json: "),
    "cut": (lambda content: content[:-30], r"arc\.zip: is a \.zip archive|damaged"),
    "link": (lambda content: content, r"arc\.zip/a\.json: is a link within an archive; unpack"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_by_name(root: Path, case: str) -> None:
    change, message = BAD_ARCHIVES[case]
    path = root / "arc.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.json")
        info.external_attr = (0o120777 if case == "link" else 0o100644) << 16
        archive.writestr(info, json.dumps(TASK))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        read(path)


def test_what_decompresses_without_end_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_BYTES", 1 << 20)
    for name in ("a.json.gz", "a.jsonl.gz"):
        (root / name).write_bytes(gzip.compress(b" " * (3 << 20)))
        with pytest.raises(InputError, match="has more than 1 MiB in one piece; cut it"):
            read(root / name)


def test_whole_numbers_may_be_written_as_fractions(root: Path) -> None:
    [task] = read(write(root / "a.json", {**TASK, "test": [{"input": [[1.0, 2]], "output": [[3.0]]}]}))
    assert task.tests[0].input.tolist() == [[1, 2]]


def test_a_task_with_a_hidden_output_is_held_out_anywhere(root: Path) -> None:
    hidden = {**TASK, "test": [{"input": GRID, "output": None}]}
    write(root / "training/a.json", hidden)
    write(root / "training/b.json", TASK)
    assert held_out(read(root)) == held_out(read(root, "train")) == {"a": True, "b": False}


def test_bare_pairs_cannot_be_held_out_and_are_counted(root: Path) -> None:
    write(root / "evaluation/a.json", [pair()])
    write(root / "b.json", [pair()])
    found = arc.from_path(root, None)
    assert held_out(found.tasks) == {"b-pairs": False}
    assert list(found.left_out.values()) == [["a-pairs"]]
    with pytest.raises(InputError, match="without a test to hold out"):
        read(root, "evaluation")


def copy(held: bool, output: list[list[int]] | None, *, asked: bool = False) -> Task:
    content = {**TASK, "test": [{"input": GRID, "output": output}, {"input": [[1]], "output": output}]}
    task = parse_task(content, "a", held, f"{held} {output}")
    return dataclasses.replace(task, asked_for=asked)


KNOWN, HIDDEN = [[7]], None
COPIES = {
    "training and Kaggle's test": ([copy(False, KNOWN), copy(True, HIDDEN)], False),
    "evaluation and Kaggle's test": ([copy(True, KNOWN), copy(True, HIDDEN)], True),
    "training and evaluation": ([copy(False, KNOWN), copy(True, KNOWN)], True),
    "training and hidden, asked for": ([copy(False, KNOWN), copy(True, HIDDEN, asked=True)], True),
    "all three": ([copy(False, KNOWN), copy(True, KNOWN), copy(True, HIDDEN)], True),
}


@pytest.mark.parametrize("case", COPIES)
def test_copies_keep_outputs_and_hidden_ones_hold_nothing_out(case: str) -> None:
    copies, expected = COPIES[case]
    for order in itertools.permutations(copies):
        [task] = merge(order)
        assert task.held_out == expected
        assert [pair.output is not None for pair in task.tests] == [True, True]
    [hidden] = merge([copy(True, HIDDEN), copy(True, HIDDEN)])
    assert hidden.held_out


def test_copies_with_other_outputs_are_two_tasks() -> None:
    with pytest.raises(InputError, match="task a: its content in"):
        merge([copy(True, HIDDEN), copy(False, KNOWN), copy(False, [[8]])])


def test_of_a_test_input_that_comes_twice_outputs_are_not_guessed() -> None:
    def twice(*outputs: list[list[int]] | None) -> Task:
        content = {**TASK, "test": [{"input": GRID, "output": output} for output in outputs]}
        return parse_task(content, "a", True, "somewhere")

    for copies in itertools.permutations([twice([[1]], [[2]]), twice(HIDDEN, HIDDEN)]):
        [task] = merge(copies)
        assert [pair.output.tolist() for pair in task.tests if pair.output is not None] == [[[1]], [[2]]]
    with pytest.raises(InputError, match="task a: its content in"):
        merge([twice([[1]], HIDDEN), twice(HIDDEN, [[2]])])


@pytest.mark.parametrize(
    "name", ["x-solutions.json", "X_Solutions.json", "x_solutions.json.gz", "x.solutions.json"]
)
def test_solutions_go_by_the_words_of_their_name(root: Path, name: str) -> None:
    write(root / "x_challenges.json", {"a": {**TASK, "test": [{"input": GRID}]}})
    text = json.dumps({"a": [[[8]]]}).encode()
    (root / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (root / "._x_solutions.json").write_bytes(b"\x00")
    for path in (root, root / "x_challenges.json"):
        found = arc.from_path(path, None)
        assert [task.has_hidden_output for task in found.tasks] == [False]
        assert not found.not_read


def test_names_that_cannot_be_printed_are_told_all_the_same(root: Path) -> None:
    write(root / "a.json", TASK)
    (root / os.fsdecode(b"\xff\n.txt")).write_bytes(b"")
    [names] = arc.from_path(root, None).not_read.values()
    assert left_out("without JSON", names).names == (r"\udcff\n.txt",)
