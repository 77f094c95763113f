"""A build that was stopped, by whatever, or shared among machines, ends in the bytes of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.arc import dataset as arc_dataset
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.build import build
from data_pipeline.grid_puzzles.sudoku.kind import SudokuOptions
from data_pipeline.merge import merge
from data_pipeline.schema import load_dataset_info
from data_pipeline.shards import build_dir
from data_pipeline.shards.plan import Request
from tests.unit.test_data_build import checksums, request, write_tasks

BUILD = [sys.executable, "-m", "data_pipeline.build"]
ARC = "arc-agi-1 --num-aug 300 --limit-groups 8 --quiet"
SUDOKU = "sudoku --side 6 --num-train 300 --num-test 150 --num-aug 80 --quiet"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset built in one go."""
    out = tmp_path_factory.mktemp("whole") / "arc"
    build(request(source, out))
    return out


def run(arguments: str, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*BUILD, *arguments.split(), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)  # type: ignore[call-overload]


def stop(arguments: str, out: Path, when_shards: int, number: int) -> int:
    """Begin a build and send it a signal once so many shards are there; gives its exit code."""
    command = [*BUILD, *arguments.split(), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("*/*.zst"))) < when_shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    # Of a process that is killed outright, the fork server may say that its pipe is gone.
    assert number == signal.SIGKILL or "Traceback" not in errors
    return process.returncode


@pytest.mark.parametrize(("arguments", "workers"), [(ARC, 1), (ARC, 2), (SUDOKU, 2)])
def test_killed_at_any_moment_the_same_command_writes_only_what_is_missing(
    arguments: str, workers: int, tmp_path: Path
) -> None:
    assert run(arguments, tmp_path / "whole").returncode == 0
    out, command = tmp_path / "killed", f"{arguments} --workers {workers}"
    draw = random.Random(workers)
    for when_shards in (1, draw.randrange(10, 25), draw.randrange(30, 60)):
        # A build that was faster than its killer is a weaker test, not a failed one.
        assert stop(command, out, when_shards, signal.SIGKILL) in (-signal.SIGKILL, 0)
    survivors = {} if (out / "dataset.json").exists() else build_dir.written_shards(out)
    written = {out / place.file: (out / place.file).stat().st_mtime_ns for place in survivors}
    assert run(command, out).returncode == 0
    assert checksums(out) == checksums(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time_written for path, time_written in written.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_build_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    assert stop(f"{ARC} --workers 2", tmp_path / "out", 1, number) == 75
    with pytest.raises(InputError, match="its build is not complete; run the command that began it again"):
        load_dataset_info(tmp_path / "out")


@settings(max_examples=15, deadline=None)
@given(count=st.integers(2, 5), order=st.randoms(use_true_random=False))
def test_parts_in_any_order_make_the_bytes_of_one_machine(
    source: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory, count: int, order: random.Random
) -> None:
    out = tmp_path_factory.mktemp("parts") / "arc"
    numbers = list(range(count))
    order.shuffle(numbers)
    for number in numbers:
        assert build(request(source, out)._replace(part=Part(number, count))) is None
    merge(out, show_progress=False)
    assert checksums(out) == checksums(whole)


def test_parts_share_the_making_of_new_puzzles(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(SUDOKU, one).returncode == 0
    parts = [
        subprocess.Popen(
            [*BUILD, *SUDOKU.split(), "--out", str(two), "--part", f"{number}/3", "--workers", "1"]
        )
        for number in range(3)
    ]
    assert [part.wait(timeout=120) for part in parts] == [0, 0, 0]
    assert "600" not in merge(two, show_progress=False).splitlines()[0]
    assert checksums(one) == checksums(two)


def test_merging_names_the_parts_that_are_missing_and_is_content_the_second_time(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "arc"
    parts = [request(source, out)._replace(part=Part(number, 3)) for number in range(3)]
    build(parts[1])
    with pytest.raises(InputError, match=r" more: missing; build with --part I/3 for I = 0, 2 \(again\)"):
        merge(out, show_progress=False)
    for part in parts:
        build(part)
    first = merge(out, show_progress=False)
    assert merge(out, show_progress=False) == f"{out}: already merged\n{first}"
    assert checksums(out) == checksums(whole)
    assert build(parts[0]) == load_dataset_info(whole)


def test_parts_that_are_not_built_are_known_at_every_moment(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "arc"
    parts = [request(source, out)._replace(part=Part(number, 3)) for number in range(3)]
    assert build_dir.missing_parts(out, 3) == [0, 1, 2]
    with build_dir.begin(out, arc_dataset.read(parts[0]).identity, Part(1, 3)):
        assert build_dir.missing_parts(out, 3) == [0, 1, 2]
    build(parts[1])
    assert build_dir.missing_parts(out, 3) == [0, 2]
    assert build_dir.missing_parts(out, 1) == [0]
    build(parts[0])
    assert build_dir.missing_parts(out, 3) == [2]
    sorted(out.glob("*/*.zst"))[0].unlink()
    assert len(build_dir.missing_parts(out, 3)) == 2
    for part in parts:
        build(part)
    assert build_dir.missing_parts(out, 3) == []
    merge(out, show_progress=False)
    assert build_dir.missing_parts(out, 7) == []


def test_two_processes_do_not_build_one_part(source: Path, tmp_path: Path) -> None:
    asked = request(source, tmp_path / "out")
    begun = build_dir.begin(asked.out, arc_dataset.read(asked).identity, Part())
    with begun, pytest.raises(InputError, match="another process is building it"):
        build(asked)
    build(asked)


def begin_and_leave(source: Path, out: Path) -> list[Path]:
    """Build the first of two parts; gives its shards."""
    build(request(source, out)._replace(part=Part(0, 2)))
    return sorted(out.glob("*/*.zst"))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif how == "cut short":
        path.write_bytes(content[:-9])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut short", "gone"])
def test_a_shard_damaged_before_the_merge_is_named_or_built_again(
    how: str, source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shards = begin_and_leave(source, out)
    damage(shards[2], how)
    rest = request(source, out)
    if how == "flipped":
        with pytest.raises(InputError, match=rf"{shards[2].name}: damaged or cut short.*delete this file"):
            build(rest)
        shards[2].unlink()
    build(rest)
    assert checksums(out) == checksums(whole)


@given(cut=st.integers(0, 400))
@settings(max_examples=20, deadline=None)
def test_a_journal_torn_anywhere_costs_no_more_than_its_last_line(
    source: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    out = tmp_path_factory.mktemp("torn") / "out"
    begin_and_leave(source, out)
    journal = out / "building" / "part-0-of-2.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) - cut])
    kept = len(build_dir.written_shards(out))
    assert kept == content[: len(content) - cut].count(b"\n")
    for number in range(2):
        build(request(source, out)._replace(part=Part(number, 2)))
    merge(out, show_progress=False)
    assert checksums(out) == checksums(whole)


@pytest.mark.parametrize(("workers", "complete"), [(1, False), (2, False), (1, True)])
def test_a_source_that_has_changed_since_is_named_and_nothing_is_lost(
    workers: int, complete: bool, source: Path, tmp_path: Path
) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    shutil.copytree(source, tasks)
    asked = request(tasks, out, workers=workers)
    build(asked if complete else asked._replace(part=Part(0, 2)))
    file = tasks / "training" / "task0.json"
    task = json.loads(file.read_text())
    task["train"][0]["output"] = [[1]]
    file.write_text(json.dumps(task))
    before = checksums(out)
    with pytest.raises(InputError, match="another content of tasks, which has changed since"):
        build(asked)
    assert checksums(out) == before


def test_what_differs_from_the_beginning_is_said(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin_and_leave(source, out)
    for other, message in (
        (request(source, out, num_aug=2), "begun with num_aug=6, not 2"),
        (request(source, out, seed=1, holdout="all"), "seed=42, not 1 and with holdout=evaluation, not all"),
        (request(source / "training", out), f"from {source.name}, not from training"),
        (
            Request("sudoku", [], out, _sudoku_options(), 42, 1, quiet=True),
            "was begun of kind arc, not sudoku",
        ),
    ):
        with pytest.raises(InputError, match=message):
            build(other)


def _sudoku_options() -> SudokuOptions:
    generator = {"side": 4, "num_train": 1, "num_test": 1, "min_steps": None}
    return SudokuOptions.model_validate(
        {
            "num_aug": 0,
            "subsample": None,
            "min_difficulty": None,
            "limit_groups": None,
            "generator": generator,
        }
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_is_said_and_the_build_goes_on_when_it_is_not(
    workers: int, tmp_path: Path
) -> None:
    command = f"arc-agi-2 --num-aug 9 --limit-groups 40 --quiet --workers {workers}"
    assert run(command, tmp_path / "whole").returncode == 0
    largest = max(file.stat().st_size for file in tmp_path.glob("whole/train/*.zst"))
    documents = [tmp_path / "whole" / name for name in ("identifiers.json", "test_puzzles.json")]
    limit = max(largest - 1, *(file.stat().st_size for file in documents))
    assert limit < largest

    full = run(command, tmp_path / "out", preexec_fn=lambda: setrlimit(RLIMIT_FSIZE, (limit, limit)))
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    assert ".tar.zst: cannot be written (File too large); raise the limit of a file" in full.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(command, tmp_path / "out").returncode == 0
    assert checksums(tmp_path / "out") == checksums(tmp_path / "whole")


def test_a_worker_that_is_killed_ends_the_build_with_a_message(tmp_path: Path) -> None:
    command = [*BUILD, *ARC.split(), "--workers", "2", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("out/*/*.zst")):
            time.sleep(0.01)
        workers = [pid for pid in descendants(process.pid) if pid != process.pid]
        os.kill(max(workers), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process was killed" in errors
    assert "Traceback" not in errors


def descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has just ended
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_a_disk_that_is_full_for_the_journal_is_said_too(tmp_path: Path) -> None:
    command = "arc-agi-2 --num-aug 200 --limit-groups 1 --quiet --workers 1"
    limit = (20_000, 20_000)  # room for every other file
    full = run(command, tmp_path / "out", preexec_fn=lambda: setrlimit(RLIMIT_FSIZE, limit))
    assert full.returncode == 2
    assert "part-0-of-1.jsonl: cannot be written" in full.stderr
    assert run(command, tmp_path / "out").returncode == 0


def test_killed_before_it_had_noted_what_it_builds_the_same_command_goes_on(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "building").mkdir(parents=True)
    build(request(source, tmp_path / "out"))
    assert checksums(tmp_path / "out") == checksums(whole)


def test_parts_that_begin_at_once_with_different_options_do_not_mix(source: Path, tmp_path: Path) -> None:
    one, other = request(source, tmp_path / "out"), request(source, tmp_path / "out", seed=1)
    first = build_dir.begin(one.out, arc_dataset.read(one).identity, Part(0, 2))
    second = build_dir.begin(one.out, arc_dataset.read(other).identity, Part(1, 2))
    with first, pytest.raises(InputError, match="was begun with seed=42, not 1"), second:
        pass


def test_merging_waits_for_no_part_that_is_at_work(source: Path, tmp_path: Path) -> None:
    begin_and_leave(source, tmp_path / "out")
    asked = request(source, tmp_path / "out")
    with (
        build_dir.begin(asked.out, arc_dataset.read(asked).identity, Part(1, 2)),
        pytest.raises(InputError, match="another process is building it"),
    ):
        merge(asked.out, show_progress=False)


def test_killed_at_its_very_end_it_is_complete(source: Path, whole: Path, tmp_path: Path) -> None:
    for finish in (lambda out: build(request(source, out)), lambda out: merge(out, show_progress=False)):
        out = shutil.copytree(whole, tmp_path / str(finish.__code__.co_firstlineno) / "out")
        (out / "building").mkdir()
        (out / ".dataset.json.elsewhere-1.tmp").touch()
        finish(out)
        assert checksums(out) == checksums(whole)
        assert not (out / "building").exists()
        shutil.rmtree(out)


@pytest.mark.parametrize("file", ["train.tokens", "generated-train-000001.tokens"])
@pytest.mark.parametrize("how", ["flipped", "cut short", "gone"])
def test_puzzles_damaged_between_the_parts_are_made_again(file: str, how: str, tmp_path: Path) -> None:
    generator = {"side": 4, "num_train": 200, "num_test": 20, "min_steps": None}
    defaults = {"subsample": None, "min_difficulty": None, "limit_groups": None}
    options = SudokuOptions.model_validate(defaults | {"num_aug": 3, "generator": generator})
    asked = Request("sudoku", [], tmp_path / "whole", options, 42, 1, quiet=True)
    build(asked)
    parts = [asked._replace(out=tmp_path / "out", part=Part(number, 2)) for number in range(2)]
    build(parts[0])
    damage(tmp_path / "out" / "building" / file, how)
    build(parts[1])
    merge(tmp_path / "out", show_progress=False)
    assert checksums(tmp_path / "out") == checksums(tmp_path / "whole")


def test_new_puzzles_are_kept_when_the_disk_is_full(tmp_path: Path) -> None:
    command = "sudoku --side 4 --num-train 300 --num-test 20 --quiet --workers 1"
    limit = (6_000, 6_000)  # room for a block of 128, not for all
    full = run(command, tmp_path / "out", preexec_fn=lambda: setrlimit(RLIMIT_FSIZE, limit))
    assert full.returncode == 2
    assert len(list(tmp_path.glob("out/building/generated-*"))) >= 2
    assert run(command, tmp_path / "out").returncode == 0


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    too_hard = run("sudoku --side 4 --min-difficulty 1000", tmp_path / "out")
    assert too_hard.returncode == 2
    assert "min difficulty 1000" in too_hard.stderr
    assert list(tmp_path.iterdir()) == []
