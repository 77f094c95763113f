"""Strict pydantic models, and what they refuse in plain words."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.base.errors import InputError

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_SHOWN = 100  # characters of a value in a message


class Strict(BaseModel):
    """Values of which every key is known and every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Problem(NamedTuple):
    """Something that a model refuses."""

    type: str
    """pydantic's name for what is wrong: `missing`, `value_error` for a check that a model makes itself, and so on."""
    key: str
    """Dotted; empty for the whole."""
    why: str
    """With the value, if there is one."""


def problems(error: ValidationError) -> Iterator[Problem]:
    """Yield all that a model refuses; each line of a check's message is a problem of its own."""
    for details in error.errors(include_url=False):
        kind, key = details["type"], ".".join(map(str, details["loc"]))
        value = shown(details["input"])
        got = f" (got {value if len(value) <= _MAX_SHOWN else value[: _MAX_SHOWN - 3] + '...'})"
        if kind == "value_error":
            for line in str(details.get("ctx", {}).get("error", details["msg"])).splitlines():
                yield Problem(kind, key, line)
        elif kind == "missing":
            yield Problem(kind, key, "is missing")
        elif kind == "extra_forbidden":
            yield Problem(kind, key, "is not known here" + got)
        elif kind == "json_invalid":
            yield Problem(kind, key, details["msg"])
        elif kind == "model_type":
            yield Problem(kind, key, "Input should be a section of `key: value` lines" + got)
        else:
            yield Problem(kind, key, details["msg"] + got)


def reason_of(error: Exception) -> str:
    """Return what an error says, for the middle of a sentence: of a model's the key, the value and why."""
    if isinstance(error, ValidationError):
        first, *others = (f"{key}: {why}" if key else why for _, key, why in problems(error))
        return first + (f", and {len(others)} more" if others else "")
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_json(path: Path, model: type[ModelT], remedy: str) -> ModelT | None:
    """Return the model that a JSON file holds; None where there is no such file.

    Raise InputError, which ends in the remedy, for a file that cannot be read, or that holds something else.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: unreadable ({reason_of(error)}); {remedy}.") from error


def shown(value: object) -> str:
    """Return a value as its owner would recognise it: numbers bare, other text quoted."""
    if value is None:
        return "null"
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return repr(value)
    return str(value)
