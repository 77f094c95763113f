"""What names say of holding out."""

import re

_EVALUATION = {"evaluation", "eval", "validation", "valid", "val", "holdout", "heldout"}
_TEST = {"test", "testing"}
_TRAINING = {"training", "train"}


def words(name: str) -> tuple[str, ...]:
    """Return the words of a name in small letters: `arc-agi_Test2` has arc, agi and test; `contest` is one word."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return tuple(word.lower() for word in re.findall(r"[^\W\d_]+", parted))


def folder_says(name: str) -> bool | None:
    """Return whether the name of a folder holds out what is in it; None where it says nothing.

    Folders called `test_data` or `my_test` are often for trying things, and have to be called `test` alone.
    """
    found = words(name)
    if not _EVALUATION.isdisjoint(found) or (len(found) == 1 and found[0] in _TEST):
        return True
    return False if len(found) == 1 and found[0] in _TRAINING else None


def file_says(name: str) -> bool | None:
    """Return whether the name of a file of many tasks holds them out; None where it says nothing."""
    found = words(name)
    if not (_EVALUATION | _TEST).isdisjoint(found):
        return True
    return None if _TRAINING.isdisjoint(found) else False
