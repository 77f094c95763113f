"""The ground floor's locks and logs. More of the lock's behaviour: test_run_lock.py."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.base import jsonl, locks

APPEND = """
import sys
from pathlib import Path
from data_pipeline.base import jsonl
for number in range(200):
    jsonl.append(Path(sys.argv[1]), '"' + sys.argv[2] * 2000 + '"', str(number))
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_a_process_cannot_hold_a_lock_twice(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.hold(path) as is_locked:
        assert is_locked
        with pytest.raises(locks.LockedError, match=f"pid {os.getpid()}"), locks.hold(path):
            pass
        assert path.exists()
    assert not path.exists()
    with locks.hold(path):
        pass


def test_links_that_lead_in_a_circle_hold_no_lock(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("run")
    assert locks.holder(tmp_path / "run" / ".lock") is None
    with pytest.raises(OSError, match="Too many levels"), locks.hold(tmp_path / "run" / ".lock"):
        pass


def test_a_lock_whose_folder_was_made_anew_spares_the_new_file(tmp_path: Path) -> None:
    with locks.hold(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("of another process")
    assert (tmp_path / "lock").exists()


def test_lines_of_several_processes_do_not_mix(log: Path) -> None:
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda letter: subprocess.run([sys.executable, "-c", APPEND, log, letter], check=True), "abc"
            )
        )
    values = jsonl.read(log)
    assert len(values) == 1200
    assert {len(set(text)) for text in values[::2]} == {1}
    assert all(isinstance(number, int) for number in values[1::2])


def test_what_is_appended_comes_after_the_last_whole_line(log: Path) -> None:
    log.write_bytes(b'{"a": 1}\n{"a": 2}' + b" " * 100_000)
    jsonl.append(log, '{"a": 3}')
    assert log.read_bytes() == b'{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("content", [b"", b"\n", b"no newline"])
def test_a_log_without_a_whole_line_takes_one(content: bytes, log: Path) -> None:
    log.write_bytes(content)
    jsonl.append(log, "1")
    assert jsonl.read(log) == [1]


def test_an_append_that_fails_leaves_the_log_as_it_was(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl.append(log, "1")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:3]))
    with pytest.raises(OSError, match="No space left"):
        jsonl.append(log, json.dumps("a long text"))
    assert log.read_bytes() == b"1\n"


def test_reading_leaves_out_damage(log: Path) -> None:
    log.write_bytes(b'{"a": 1}\n{"a": \n\xff\n{"name": "\xff"}\nnull\n' + b"[" * 100_000 + b"\n[2]\n[3]")
    assert jsonl.read(log) == [{"a": 1}, {"name": "\N{REPLACEMENT CHARACTER}"}, [2]]
    assert jsonl.read(log.with_name("none")) == []


def test_selected_lines_keep_their_bytes(log: Path) -> None:
    log.write_bytes(b'{"a":1}\n{"a":  2}\ndamage\n{"b": "\xc3\xa9\xff"}\n3')
    assert jsonl.select(log, lambda value: value != {"a": 1}) == b'{"a":  2}\n{"b": "\xc3\xa9\xff"}\n'
