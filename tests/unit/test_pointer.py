"""`latest` and `best`, as links and, where there are none, as files."""

import errno
import os
from pathlib import Path

import pytest

from data_pipeline.base.errors import WriteError
from hrm_dist.checkpoint.pointer import is_pointer, point, target


@pytest.fixture(params=[None, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether there are links; if not, making one fails in one of the known ways."""
    if request.param is not None:

        def refuse(path: Path, *_: object, **__: object) -> None:
            raise OSError(request.param, os.strerror(request.param), str(path))

        monkeypatch.setattr(Path, "symlink_to", refuse)
    return request.param is None


def test_a_name_leads_to_a_checkpoint_with_and_without_links(links: bool, tmp_path: Path) -> None:
    for step in (4, 8):
        (tmp_path / f"step_{step}").mkdir()
        point(tmp_path / "latest", tmp_path / f"step_{step}")
        assert is_pointer(tmp_path / "latest")
        assert target(tmp_path / "latest") == tmp_path / f"step_{step}"
    assert (tmp_path / "latest").is_symlink() == links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_4", "step_8"]


def test_a_link_gives_way_to_a_file_and_its_checkpoint_stays(links: bool, tmp_path: Path) -> None:
    (tmp_path / "step_4").mkdir()
    os.symlink("step_4", tmp_path / "latest")
    point(tmp_path / "latest", tmp_path / "step_8")
    assert target(tmp_path / "latest") == tmp_path / "step_8"
    assert (tmp_path / "step_4").is_dir()


def test_a_file_gives_way_to_a_link(tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(b"step_4\n")
    point(tmp_path / "latest", tmp_path / "step_8")
    assert os.readlink(tmp_path / "latest") == "step_8"


@pytest.mark.parametrize("text", [b"step_4", b"step_4\n", b"step_4\r\n", b" step_4 "])
def test_a_file_may_end_as_other_systems_end_a_line(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(text)
    assert target(tmp_path / "latest") == tmp_path / "step_4"


@pytest.mark.parametrize(
    "text", [b"", b"\0\0\0\0\0\0", b"\xff\xfe", b"../step_4", b"step_4/..", b"step_4\nstep_5"]
)
def test_a_file_of_anything_else_leads_nowhere(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(text)
    assert not is_pointer(tmp_path / "latest")
    assert target(tmp_path / "latest") == tmp_path / "latest"


def test_links_that_lead_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    os.symlink("latest", tmp_path / "latest")
    assert target(tmp_path / "latest") == tmp_path / "latest"


def test_a_full_disk_is_no_missing_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError, match="No space left"):
        point(tmp_path / "latest", tmp_path / "step_4")
    assert not list(tmp_path.iterdir())
