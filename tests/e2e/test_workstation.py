"""docs/workstation.md: its commands for a competition go from Kaggle's files to a submission."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import TIMEOUT

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "workstation.md").read_text(encoding="utf-8")
DELIVERED = "/kaggle/input/arc-prize-2025"


def task(seed: int, *, hidden: bool) -> dict[str, Any]:
    """A task of random grids, whose output is the input."""
    grids = np.random.default_rng(seed).integers(0, 10, (4, 4, 4)).tolist()
    pairs = [{"input": grid, "output": grid} for grid in grids]
    return {"train": pairs[:3], "test": [{"input": grids[3]}] if hidden else [pairs[3]]}


def deliver(folder: Path) -> None:
    """Write what Kaggle delivers: the public test file repeats a training task, without its outputs."""
    tasks = {"training": range(4), "evaluation": range(4, 6), "test": (0, 7)}
    for name, seeds in tasks.items():
        challenges = {f"{seed:08x}": task(seed, hidden=True) for seed in seeds}
        (folder / f"arc-agi_{name}_challenges.json").write_text(json.dumps(challenges))
        if name != "test":
            solutions = {f"{s:08x}": [task(s, hidden=False)["test"][0]["output"]] for s in seeds}
            (folder / f"arc-agi_{name}_solutions.json").write_text(json.dumps(solutions))


def test_the_page_goes_from_kaggles_files_to_a_submission_of_the_test_tasks(
    config: Path, tmp_path: Path
) -> None:
    delivered, here = tmp_path / "arc-prize", tmp_path / "here"
    delivered.mkdir()
    here.mkdir()
    deliver(delivered)
    [block] = [block for block in re.findall(r"^```\w*\n(.*?)^```", PAGE, re.M | re.S) if DELIVERED in block]
    block = block.replace(DELIVERED, str(delivered)).replace("--num-aug 300", "--num-aug 2")
    for command in block.replace("\\\n", "").splitlines():
        program, *arguments = shlex.split(command)
        assert program == "python"
        if "hrm_dist.train" in arguments:
            arguments = [str(config) if a.startswith("configs/") else a for a in arguments] + ["max_steps=2"]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert json.loads((here / "submission.json").read_text()).keys() == {"00000000", "00000007"}
