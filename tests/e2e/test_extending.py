"""Every change that docs/extending.md describes, made on a copy of the project: it trains, and has its effect."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tests.training import TIMEOUT, rows

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CHAPTERS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


TRIED: set[str] = set()


def tries(chapter: str) -> pytest.MarkDecorator:
    """Let a test have a project with the changes of a chapter, whose commands have run."""
    TRIED.add(chapter)
    return pytest.mark.parametrize("project", [chapter], indirect=True)


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, dataset: Path) -> Path:
    """A copy of the packages, with data of the debug configuration's kind, and the changes of a chapter."""
    for package in ("hrm_dist", "data_pipeline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "debug").symlink_to(dataset)
    changed(tmp_path, request.param)
    return tmp_path


def edit(project: Path, block: str) -> None:
    """Make the change of a diff block: the lines with - and without sign are there once."""
    header, *lines = block.splitlines(keepends=True)
    path = project / header.removeprefix("--- ").strip()
    old, new = ("".join(line[1:] or "\n" for line in lines if line[0] in signs) for signs in (" -\n", " +\n"))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path}:\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def changed(project: Path, chapter: str) -> None:
    """Make the changes of a chapter and run its commands."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", CHAPTERS[chapter], re.MULTILINE | re.DOTALL):
        if language == "diff":
            edit(project, block)
        elif language == "python":
            (project / block.splitlines()[0].removeprefix("# ")).write_text(block)
        else:
            for command in block.splitlines():
                run(project, command)


def run(project: Path, command: str) -> None:
    program, *arguments = command.split()
    assert program == "python"
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def tensors(run: Path) -> dict[str, Any]:
    """The tensors of a run's last checkpoint."""
    found: dict[str, Any] = {}
    for file in (run / "checkpoints" / "latest").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}
    return found


@tries("Another loss")
def test_another_loss_is_smaller_and_a_term_is_added(project: Path) -> None:
    command = "python -m hrm_dist.train configs/debug.yaml max_steps=10 arch.loss_type=softmax_cross_entropy"
    run(project, f"{command} checkpoint_path=runs/softmax")
    [focal], [softmax] = (rows(project / "runs" / name) for name in ("focal", "softmax"))
    assert 0 < focal["train/lm_loss"] < softmax["train/lm_loss"]
    [row] = rows(project / "runs" / "z")
    q_loss = row["train/q_halt_loss"] + row["train/q_continue_loss"]
    assert row["train/z_loss"] > 0
    assert row["train/loss"] == pytest.approx(row["train/lm_loss"] + q_loss / 2 + row["train/z_loss"])


@tries("A layer with parameters")
def test_the_gain_of_a_new_layer_is_trained(project: Path) -> None:
    found = tensors(project / "runs" / "gain")
    gains = [tensor for name, tensor in found.items() if re.fullmatch(r"network\..*\.gain\.weight", name)]
    assert len(gains) == 2
    assert all((gain != 1).any() for gain in gains)


@tries("Another metric")
def test_another_metric_is_logged(project: Path) -> None:
    [row] = rows(project / "runs" / "metric")
    assert 0 <= row["train/unsure"] <= 1
    assert np.isfinite(row["eval/q_halt"])


@tries("Data of your own")
def test_boards_of_a_new_kind_are_trained_on(project: Path) -> None:
    [row] = rows(project / "runs" / "mirror")
    assert 0 <= row["eval/same_digits"] <= 1
    (project / "boards.csv").write_text("source,question,answer,rating\na,1234,2143,0\nb,1134,1143,0\n")
    run(project, "python -m data_pipeline.build mirror --source boards.csv --out data/boards")
    (project / "solve.py").write_text(
        "from hrm_dist.inference import load_solver\n"
        "[answer] = load_solver('runs/mirror/checkpoints/latest').solve(['1234443214342213421112344'])\n"
        "assert len(answer.grid) == 25 and 0 <= answer.q <= 1\n"
    )
    run(project, "python solve.py")


@tries("Another architecture")
def test_the_states_of_another_architecture_are_carried(project: Path) -> None:
    assert {"carry.z_A", "carry.z_B"} <= set(tensors(project / "runs" / "duo"))


@tries("Another optimizer")
def test_the_moments_of_another_optimizer_are_its_own(project: Path) -> None:
    for name in ("lion", "lion-fsdp2"):
        squares = [tensor for key, tensor in tensors(project / "runs" / name).items() if "exp_avg_sq" in key]
        assert squares
        assert not any(tensor.any() for tensor in squares)


def test_every_change_that_is_described_is_tried() -> None:
    assert {chapter for chapter, text in CHAPTERS.items() if "```" in text} == TRIED
