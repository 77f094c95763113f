"""Optional packages: nothing but what is named after them needs one, and each is missed in one line."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base import extras
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import EXTRAS, require
from data_pipeline.grid_puzzles.csv_files import find_files
from data_pipeline.inspect import __main__ as inspect
from hrm_dist import train
from launch import submit
from launch.doctor import local_checks
from launch.doctor.results import CheckResult, MustMatch, merged
from launch.jobs import spec
from launch.jobs.cluster import Cluster
from tests.training import TIMEOUT
from tools.bench_train import __main__ as bench_train
from tools.check_engines import __main__ as check_engines

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BLOCKER = """\
import sys
from importlib.machinery import ModuleSpec

class Blocker:
    def find_spec(name, path=None, target=None):
        # torch asks where some packages are, without an import of them.
        return ModuleSpec(name, Blocker) if name.partition(".")[0] in {blocked} else None

    def create_module(spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)

sys.meta_path.insert(0, Blocker)
"""
WORK = """\
import runpy, sys

def run(*arguments):
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        assert not left.code, arguments

run("data_pipeline.build", "arc-agi-1", "--canvas", "4", "--holdout", "all", "--num-aug", "2",
    "--limit-groups", "4", "--out", "data")
run("data_pipeline.inspect", "data")
run("hrm_dist.train", {config!r}, "data_path=data", "checkpoint_path=run", "max_steps=2")
run("tools.evaluate", "run/checkpoints/latest", "--data", "data", "--out", "predictions")
run("tools.vote", "predictions", "--data", "data", "--out", "submission.json")
run("launch.status", "run")
run("launch.doctor")
"""


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take the packages of an extra away."""

    def take_away(extra: str) -> None:
        for module in EXTRAS[extra]:
            monkeypatch.setitem(sys.modules, module, None)

    return take_away


def refusal(capsys: pytest.CaptureFixture[str], command: Callable[[], object]) -> str:
    """Give the one line of a command that ends with exit code 2."""
    capsys.readouterr()
    assert exit_code(command) == 2  # pyright: ignore[reportArgumentType]
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_data_training_evaluation_and_votes_need_no_extra(config: Path, tmp_path: Path) -> None:
    blocked = {"accelerate", *(module for modules in EXTRAS.values() for module in modules)}
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked))
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", WORK.format(config=str(config))]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 FAIL" in done.stdout
    assert (tmp_path / "submission.json").exists()


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_training_with_deepspeed_missing_makes_nothing(
    engine: str,
    without: Callable[[str], None],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without("zero")
    arguments = [
        str(config),
        f"checkpoint_path={tmp_path / 'run'}",
        f"engine={engine}",
        "dataset.preset=arc-agi-1",
    ]
    line = refusal(capsys, lambda: train.main([*arguments, f"data_path={tmp_path / 'data'}"]))
    assert re.fullmatch(rf"error: engine={engine} needs DeepSpeed: .*pip install -e '.*\[zero\]'", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_training_with_wandb_missing_makes_nothing(
    mode: str,
    without: Callable[[str], None],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without("wandb")
    arguments = [str(config), f"checkpoint_path={tmp_path / 'run'}", f"wandb_mode={mode}"]
    line = refusal(capsys, lambda: train.main(arguments))
    assert line.startswith(f"error: wandb_mode={mode} needs wandb: ")
    assert list(tmp_path.iterdir()) == []


def test_training_with_tensorboard_missing_makes_nothing(
    without: Callable[[str], None], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without("tensorboard")
    arguments = [str(config), f"checkpoint_path={tmp_path / 'run'}", "tensorboard=true"]
    line = refusal(capsys, lambda: train.main(arguments))
    assert re.fullmatch(r"error: tensorboard=true needs tensorboard: .*\[tensorboard\]'", line)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_notes_a_missing_package(
    without: Callable[[str], None], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without("zero")
    assert train.main([str(config), "engine=zero3", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("note: engine=zero3 needs DeepSpeed: ")


def test_a_submission_with_submitit_missing_is_refused(
    without: Callable[[str], None], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without("slurm")
    arguments = ["train", str(config), "--cluster", "local"]
    assert refusal(capsys, lambda: submit.main(arguments)).startswith("error: launch.submit needs submitit: ")


def test_a_job_that_needs_a_missing_package_is_not_submitted(
    without: Callable[[str], None], config: Path
) -> None:
    without("zero")
    with pytest.raises(InputError, match="engine=zero3 needs DeepSpeed"):
        spec.training([str(config), "engine=zero3"], Cluster(cluster="local"))


def test_a_job_in_a_container_needs_nothing_outside(without: Callable[[str], None], config: Path) -> None:
    without("zero")
    cluster = Cluster(cluster="local", container="x.sif")
    assert "engine=zero3" in spec.training([str(config), "engine=zero3"], cluster).about[0]


def test_a_source_on_the_hub_names_the_missing_package(without: Callable[[str], None]) -> None:
    without("hub")
    with pytest.raises(InputError, match=r"hub:sapientinc/sudoku-extreme needs huggingface_hub: .*\[hub\]"):
        find_files("hub:sapientinc/sudoku-extreme")


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("--picture", lambda: inspect._check_picture_path(Path("a.png"))),
        ("--plot", lambda: bench_train.main(["--memory", "--plot", "a.png"])),
    ],
)
def test_pictures_name_the_missing_package_before_the_work(
    what: str,
    command: Callable[[], object],
    without: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    without("report")
    assert refusal(capsys, command).startswith(f"error: {what} needs matplotlib: ")


def test_measurements_of_an_engine_name_its_missing_package(
    without: Callable[[str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("zero")
    line = refusal(capsys, lambda: bench_train.main(["engine=zero1"]))
    assert line.startswith("error: engine=zero1 needs DeepSpeed: ")
    monkeypatch.setattr(sys, "argv", ["check_engines", "--engines", "ddp,zero2"])
    assert refusal(capsys, check_engines.main).startswith("error: --engines ddp,zero2 needs DeepSpeed: ")


def test_a_folder_of_the_name_is_not_the_package(
    without: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hrm_no_such_package").mkdir()  # as W&B leaves ./wandb where it runs
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "none", {"hrm_no_such_package": "X"})
    with pytest.raises(InputError, match="this needs X: "):
        require("none", "this")


def test_the_remedy_is_a_command_wherever_it_is_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert extras.install_command("zero") == "pip install -e '.[zero]'"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/my envs/bin/python")
    words = shlex.split(extras.install_command("zero"))
    assert words == ["/my envs/bin/python", "-m", "pip", "install", "-e", f"{ROOT}[zero]"]


def test_a_package_in_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "version", lambda _package: "0.16.2")
    monkeypatch.setattr(extras, "requires", lambda _package: ['deepspeed<0.20,>=0.19; extra == "zero"'])
    message = r"engine=zero1 needs DeepSpeed<0.20,>=0.19, and 0.16.2 is installed: .*\[zero\]'"
    with pytest.raises(InputError, match=message):
        require("zero", "engine=zero1")


def test_a_deepspeed_that_cannot_be_imported_is_refused_in_a_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deepspeed.py").write_text("raise OSError('libcudart.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, module)
    arguments = [str(config), f"checkpoint_path={tmp_path / 'run'}", "engine=zero1"]
    line = refusal(capsys, lambda: train.main(arguments))
    assert line.startswith("error: engine=zero1: DeepSpeed cannot be imported (OSError: libcudart.so.11: ")


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_one_of_pyproject(extra: str) -> None:
    declared = {re.split(r"[<>=]", line)[0].lower() for line in PROJECT["optional-dependencies"][extra]}
    assert declared == {package.lower() for package in EXTRAS[extra].values()}


def test_all_and_dev_have_every_extra() -> None:
    optional = PROJECT["optional-dependencies"]
    [everything] = optional["all"]
    assert everything == f"hrm-dist[{','.join(name for name in optional if name not in ('all', 'dev'))}]"
    assert "hrm-dist[all]" in optional["dev"]


def test_the_doctor_counts_a_missing_extra_as_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, Any] = {"torch": "2.13.0", "wandb": "0.20.1", "deepspeed": "0.16.0"}

    class Metadata(dict[str, str]):
        def get_all(self, _key: str) -> list[str]:
            return ["zero", "slurm", "wandb", "all", "dev"]

    def version(name: str) -> str:
        if name not in installed:
            raise local_checks.importlib.metadata.PackageNotFoundError
        return installed[name]

    lines = [
        "torch<2.14,>=2.11", "numpy<3", 'deepspeed<0.20,>=0.19; extra == "zero"', 'submitit>=1.5.4; extra == "slurm"',
        'wandb>=0.20; extra == "wandb"', 'hrm-dist[zero]; extra == "all"', 'pytest; extra == "dev"',
    ]  # fmt: skip
    ours = Metadata({"Requires-Python": ">=3.11", "Version": "0.1.0"})
    monkeypatch.setattr(local_checks.importlib.metadata, "metadata", lambda _name: ours)
    monkeypatch.setattr(local_checks.importlib.metadata, "requires", lambda _name: lines)
    monkeypatch.setattr(local_checks.importlib.metadata, "version", version)
    everything = list(local_checks.packages())
    assert MustMatch("submitit", "missing", "warn", "use the same environment on every node") in everything
    results = [r for r in everything if isinstance(r, CheckResult)]
    assert [(r.level, r.what) for r in results if r.level == "FAIL"] == [
        ("FAIL", "numpy is not installed"),
        ("FAIL", "deepspeed is 0.16.0, not <0.20,>=0.19"),
    ]
    assert results[-1].what == "extras that are not installed: submitit [slurm]"


def test_the_doctor_warns_of_an_extra_that_only_some_nodes_have() -> None:
    here, there = (
        [MustMatch("deepspeed", version, "warn", "use the same environment on every node")]
        for version in ("0.19.8", "missing")
    )
    [line] = merged("packages", [here, there], ["n1", "n2"])
    assert (line.level, line.what) == ("warn", "deepspeed is 0.19.8 on n1 and missing on n2")
