"""The command that builds a configuration's data, as the comments at the top of its file give it."""
# pyright: strict

import contextlib
import io
import shlex
from pathlib import Path

from data_pipeline.base.errors import InputError
from data_pipeline.build import parse_arguments
from data_pipeline.schema import BUILDING
from data_pipeline.shards.plan import Request
from hrm_dist.config.schema import TrainConfig

_COMMAND = "python -m data_pipeline.build "


class DataCommand:
    """How to build the data of a configuration, into its data_path."""

    def __init__(self, arguments: list[str], out: str) -> None:
        """arguments: those of data_pipeline.build, with another --out. Raise SystemExit where they are none."""
        place = arguments.index("--out") + 1
        arguments = [*arguments[:place], out, *arguments[place + 1 :]]
        self.request: Request = parse_arguments(arguments)
        self.text = _COMMAND + shlex.join(arguments)


def data_command(path: Path, config: TrainConfig) -> DataCommand | None:
    """Return the command that the comments of a configuration file give for its data; None if they give none."""
    lines = [
        line.lstrip("#").strip() for line in path.read_text("utf-8").splitlines() if line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    _, found, after = text.partition(_COMMAND)
    if found:
        with contextlib.suppress(ValueError, SystemExit), contextlib.redirect_stderr(io.StringIO()):
            return DataCommand(shlex.split(after.partition("\n")[0]), config.data_path)
    return None


def refuse_missing_data(path: Path, config: TrainConfig) -> None:
    """Raise InputError where there is no dataset and nothing builds one, if the configuration says how it is made."""
    data = Path(config.data_path)
    is_there = data.is_file() or any((data / name).exists() for name in ("dataset.json", BUILDING))
    if config.dataset is None and not is_there:
        command = data_command(path, config)
        if command is not None:
            raise InputError(f"{data}: no dataset here; `{command.text}` builds it, as {path} says.")
