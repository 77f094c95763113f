"""Paths as users write them, in configurations, cluster profiles and command lines: one rule for all.

`~`, `~user`, `$NAME` and `${NAME}` are what a shell makes of them, wherever they were written: a shell leaves them
alone after `=`, in quotes and in files. What cannot be meant as it stands is refused, never made a folder of that name.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

_NAME = r"[A-Za-z_]\w*"
_REFERENCE = re.compile(rf"\$(?:({_NAME})|\{{([^}}]*)\}}?)", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LONGEST_NAME = 255
_OF_WINDOWS = re.compile(rf"%({_NAME})%", re.ASCII)


def expanded(text: str) -> str:
    """Return a path with home folders and environment variables put in; a second time changes nothing.

    Raise ValueError where that cannot be.
    """
    if not text.strip():
        raise ValueError("is empty; give a path (the current folder is `.`)")
    if "\0" in text:
        raise ValueError("holds a null character; give a path")
    if "$(" in text:
        raise ValueError("$( ) is a command of a shell, which nothing runs here; give the path it stands for")
    if windows := _OF_WINDOWS.search(text):
        raise ValueError(f"{windows[0]} is how Windows writes a variable; write ${{{windows[1]}}}")
    path = _REFERENCE.sub(_value, text)
    if _REFERENCE.search(path):
        raise ValueError(f"would be {path}, where a `$` is left over; give a path without variables")
    home = os.path.expanduser(path)
    if home.startswith("~"):
        name = home.partition("/")[0]
        raise ValueError(f"{name} is no user of this machine; for a folder of that name write ./{home}")
    return home


def _value(reference: re.Match[str]) -> str:
    name = reference[1] or reference[2]
    if not re.fullmatch(_NAME, name, re.ASCII) or (reference[2] and not reference[0].endswith("}")):
        plain = next(iter(re.findall(_NAME, name.rpartition(":")[2])), "NAME")
        raise ValueError(f"{reference[0]} names no environment variable; write ${{{plain}}}")
    value = os.environ.get(name)
    if not value:
        state = "is not set" if value is None else "is empty"
        raise ValueError(f"the environment variable {name} {state}; set it, or give the path without it")
    return value


def local_path(text: str) -> str:
    """Return a path of this machine, expanded. Raise ValueError for a URL too."""
    if url := _URL.match(text):
        raise ValueError(f"{url[0]} begins a URL; copy it to a folder of this machine, and give that")
    path = expanded(text)
    for name in path.split("/"):
        if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
            raise ValueError(f"{name[:20]}... is longer than the {_LONGEST_NAME} bytes of a name; shorten it")
    return path


def path_argument(text: str) -> Path:
    """Return the path that a word of a command line means; a `type` for argparse."""
    try:
        return Path(local_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def recordable(text: str) -> str:
    """Return a text. Raise ValueError for one that no file of ours, all of which are UTF-8, could keep."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            raise ValueError(
                "holds bytes that are no UTF-8, which no record can keep; rename what has that name, or make a "
                "symbolic link of another name to it"
                if encoding == "utf-8"
                else f"holds letters that Python cannot read as {encoding} here; set PYTHONUTF8=1"
            ) from None
    return text


def _checking(check: Callable[[str], str]) -> AfterValidator:
    def validate(text: str) -> str:
        try:
            return recordable(check(text))
        except ValueError as error:
            raise PydanticCustomError("path", "{why}", {"why": str(error)}) from None

    return AfterValidator(validate)


PathText = Annotated[str, _checking(local_path)]
"""A path as a field of a model. One that also takes words, such as `auto`, takes them as they are."""
PathOrUrl = Annotated[str, _checking(expanded)]
