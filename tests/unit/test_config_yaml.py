"""YAML that would eat the machine, or is no YAML at all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm_dist.config.loader import Settings


def errors(content: bytes, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_bytes(content)
    return errors_of(path)


def errors_of(path: Path) -> list[str]:
    settings = Settings({}, ["a", "b"])
    settings.read_file(path)
    return settings.errors


@pytest.mark.parametrize("level", ["[{}]", "{{x: [{}]}}", "[[{}]]"])
def test_aliases_of_aliases_are_refused_before_they_are_written_out(level: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 x"]
    for depth in range(1, 7):
        lines.append(f"a{depth}: &a{depth} {level.format(', '.join([f'*a{depth - 1}'] * 9))}")
    [error] = errors("\n".join(lines).encode(), tmp_path)
    assert "not valid YAML (it expands to more than 10,000 values)" in error


@pytest.mark.parametrize("content", [b"a: &a [*a]", b"a: &a {b: *a}"])
def test_an_alias_of_itself_is_refused(content: bytes, tmp_path: Path) -> None:
    [error] = errors(content, tmp_path)
    assert "not valid YAML" in error


def test_a_plain_alias_is_its_value(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &x 7\nb: *x\n")
    settings = Settings({}, ["a", "b"])
    settings.read_file(tmp_path / "config.yaml")
    assert settings.tree() == {"a": "7", "b": "7"}


@pytest.mark.parametrize("content", [b"[" * 50_000, b"{a: " * 20_000, b"- " * 20_000])
def test_deep_nesting_is_refused(content: bytes, tmp_path: Path) -> None:
    [error] = errors(content, tmp_path)
    assert "not valid YAML" in error


def test_what_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    [error] = errors(b"#" * 300_000, tmp_path)
    assert "is larger than 256 KiB" in error
    [error] = errors_of(Path("/dev/zero"))
    assert "is larger than 256 KiB" in error


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    assert all(str(folder) in error for error in errors(content, folder))
