"""Paths as users write them: what is put in, and what is refused."""

import argparse
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import build
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.paths import expanded, local_path, path_argument
from hrm_dist.config import ConfigError, load_config
from launch import submit
from launch.jobs.cluster import load_cluster


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("TILDE", "~/in home")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("NESTED", "$SCRATCH/x")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me"),
        ("~/runs/x", "/home/me/runs/x"),
        ("~root/x", "/root/x"),
        ("$SCRATCH/x", "/scratch/me/x"),
        ("${SCRATCH}_2/x", "/scratch/me_2/x"),
        ("$TILDE/x", "/home/me/in home/x"),
        ("a/~/b", "a/~/b"),
        ("./~x", "./~x"),
        ("cost$5", "cost$5"),
        ("100%/x", "100%/x"),
        ("runs/exp #2 ", "runs/exp #2 "),
    ],
)
def test_home_folders_and_variables_are_put_in(text: str, path: str) -> None:
    assert expanded(text) == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("$UNSET/x", "variable UNSET is not set"),
        ("${UNSET}", "variable UNSET is not set"),
        ("$EMPTY/x", "variable EMPTY is empty"),
        ("${oc.env:HOME}/x", "write ${HOME}"),
        ("${oc.env:SCRATCH,/tmp}/x", "write ${SCRATCH}"),
        ("${HOME/x", "write ${HOME}"),
        ("${}", "names no environment variable"),
        ("$NESTED", "a `$` is left over"),
        ("%USERPROFILE%/x", "write ${USERPROFILE}"),
        ("$(pwd)/x", "a command of a shell"),
        ("~nobody-of-that-name/x", "write ./~nobody-of-that-name/x"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\0b", "null character"),
    ],
)
def test_what_cannot_be_put_in_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        expanded(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s3://bucket/x", "begins a URL"),
        ("file:///x", "begins a URL"),
        (f"a/{'x' * 256}", "longer than the 255"),
    ],
)
def test_what_is_no_path_of_a_machine_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        local_path(text)


@given(st.text(st.sampled_from("~/$ {}HOMESCRT_a%:.")))
def test_expanding_twice_changes_nothing(text: str) -> None:
    try:
        path = expanded(text)
    except ValueError:
        return
    assert expanded(path) == path


@pytest.mark.parametrize("key", ["data_path", "checkpoint_path", "resume", "dataset.source"])
def test_every_path_of_a_configuration_is_expanded(key: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data_path: d\ndataset: {preset: arc, source: s}")
    for override in (f"{key}=~/x", f"{key}=$HOME/x"):
        config = load_config(file, [override])
        found = (
            config.dataset.source[0] if key.endswith("source") and config.dataset else getattr(config, key)
        )
        assert found == "/home/me/x"
    with pytest.raises(ConfigError, match="UNSET is not set"):
        load_config(file, [f"{key}=$UNSET/x"])


def test_paths_in_a_file_are_expanded_too(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "data_path: ~/d\ncheckpoint_path: ${SCRATCH}/r\ndataset: {preset: arc, source: [~/s:train]}"
    )
    config = load_config(file)
    assert (config.data_path, config.checkpoint_path) == ("/home/me/d", "/scratch/me/r")
    assert config.dataset is not None
    assert config.dataset.source == ("/home/me/s:train",)


def test_paths_in_a_cluster_profile_are_expanded(tmp_path: Path) -> None:
    profile = tmp_path / "gpu.yaml"
    profile.write_text("container: ~/images/x.sif\ncontainer_mounts: ['$SCRATCH:/data']")
    cluster = load_cluster(profile, {})
    assert (cluster.container, cluster.container_mounts) == ("/home/me/images/x.sif", ["/scratch/me:/data"])
    assert load_cluster(profile, {"container": "docker://a/b"}).container == "docker://a/b"


@pytest.mark.parametrize("override", ["checkpoint_path=a\udcffb", "run_name=a\udcffb", "data_path=$LATIN"])
def test_bytes_that_are_no_utf8_are_refused_before_they_are_to_be_recorded(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATIN", "a\udcffb")
    (tmp_path / "c.yaml").write_text("data_path: d")
    with pytest.raises(ConfigError, match=r"holds bytes that are no UTF-8.*rename"):
        load_config(tmp_path / "c.yaml", [override])
    with pytest.raises(InputError, match="holds bytes that are no UTF-8"):
        submit.main(["build", "arc", "--out", "a\udcffb", "--cluster", "local"])


def test_a_word_of_a_command_line_is_a_path() -> None:
    assert path_argument("~/x") == Path("/home/me/x")
    with pytest.raises(argparse.ArgumentTypeError, match="UNSET is not set"):
        path_argument("$UNSET/x")


@pytest.mark.parametrize(
    "module",
    ["data_pipeline.build", "data_pipeline.merge", "tools.evaluate", "tools.vote", "tools.report.__main__"],
)
def test_no_command_makes_a_folder_of_an_unset_variable(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "data_pipeline.build": ["arc-agi-1", "--out=$UNSET/x"],
        "data_pipeline.merge": ["$UNSET/x"],
        "tools.evaluate": ["c", "--data", "d", "--out=$UNSET/x"],
        "tools.vote": ["p", "--data", "d", "--out=$UNSET/x"],
        "tools.report.__main__": ["p", "--data", "d", "--out=$UNSET/x"],
    }[module]
    monkeypatch.setattr("sys.argv", [module, *words])
    main = __import__(module, fromlist=["main"]).main
    with pytest.raises(SystemExit) as ended:
        exit_code(main)
    assert ended.value.code == 2
    assert "UNSET is not set" in capsys.readouterr().err


def test_a_refused_source_is_named_by_its_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["data_pipeline.build", "arc", "--source=$UNSET/x", "--out=x"])
    with pytest.raises(SystemExit):
        build.main()
    assert "error: --source: the environment variable UNSET is not set" in capsys.readouterr().err
