"""Optional packages: what needs one that is not here says so, before it begins."""

import importlib.util
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from data_pipeline.base.errors import InputError

# Modules by the extra of pyproject.toml that brings them, with the names of their packages.
EXTRAS = {
    "zero": {"deepspeed": "DeepSpeed"},
    "slurm": {"submitit": "submitit"},
    "wandb": {"wandb": "wandb"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "report": {"matplotlib": "matplotlib", "PIL": "Pillow"},
    "analyze": {"sklearn": "scikit-learn", "matplotlib": "matplotlib"},
    "hub": {"huggingface_hub": "huggingface_hub"},
}
_ROOT = Path(__file__).parents[2]


def require(extra: str, what: str) -> None:
    """Raise InputError if a package of an extra is missing, or in another version than it may be.

    what: that which needs the packages, as the user asked for it.
    """
    for module, package in EXTRAS[extra].items():
        if not _is_installed(module):
            raise InputError(f"{what} needs {package}: {install_command(extra)}")
        try:
            found = version(package)
        except PackageNotFoundError:  # on the path without being installed
            continue
        wanted = _wanted(package)
        if wanted is not None and not wanted.specifier.contains(found, prereleases=True):
            raise InputError(
                f"{what} needs {package}{wanted.specifier}, and {found} is installed: {install_command(extra)}"
            )


def install_command(extra: str) -> str:
    """Return what installs an extra into this Python, wherever it is typed."""
    pip = "pip"
    if Path(shutil.which("pip") or "").parent != Path(sys.executable).parent:
        pip = f"{shlex.quote(sys.executable)} -m pip"
    folder = "." if Path.cwd() == _ROOT else _ROOT
    return f"{pip} install -e {shlex.quote(f'{folder}[{extra}]')}"


def _is_installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return (
        spec is not None and spec.origin is not None
    )  # a mere folder, such as W&B's own ./wandb, has no origin


def _wanted(package: str) -> Requirement | None:
    try:
        lines = requires("hrm-dist") or []
    except PackageNotFoundError:
        return None
    return next((r for r in map(Requirement, lines) if r.name.lower() == package.lower()), None)
