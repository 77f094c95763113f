"""Sudokus and mazes from datasets that the published code has built.

    DIR/train/dataset.json               sizes, and the names of the sets, most often `all` alone
              all__inputs.npy            tokens [puzzles, cells]; likewise all__labels.npy
              all__puzzle_indices.npy    where each puzzle's examples begin, and the end; of these puzzles one each
              all__group_indices.npy     where each group's puzzles begin, and the end
    DIR/test/...                         the same

A group is a puzzle and its augmentations. The first of a group, which is as it was, is all that is read: our datasets
make their own augmentations.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError, unreadable
from data_pipeline.grid_puzzles.csv_source import CsvBlock

AUGMENTED = "augmented already (--num-aug makes others)"
_BLOCK = 16384  # puzzles at a time
_BUILD_AGAIN = "build the dataset again with the published code, or give the puzzles that it was built from"


class PublishedSplit:
    """A split, verified but for its tokens. Raises InputError."""

    def __init__(self, folder: Path, characters: bytes) -> None:
        """Open the files; `characters` are those of tokens 1, 2, ... in CSV files."""
        self._folder = folder
        self._character_of_token = np.zeros(256, dtype=np.uint8)
        self._character_of_token[1 : 1 + len(characters)] = list(characters)
        self._sets = [self._read_set(name) for name in self._set_names(len(characters) + 1)]

    @property
    def num_puzzles(self) -> int:
        """Count the puzzles, augmented ones among them."""
        return sum(len(inputs) for inputs, _, _ in self._sets)

    @property
    def num_groups(self) -> int:
        return sum(len(firsts) for _, _, firsts in self._sets)

    def blocks(self) -> Iterator[CsvBlock]:
        """Yield the first puzzle of each group, as the lines of a CSV file."""
        for inputs, labels, firsts in self._sets:
            for start in range(0, len(firsts), _BLOCK):
                numbers = firsts[start : start + _BLOCK]
                questions, answers = (
                    self._character_of_token[np.clip(tokens[numbers], 0, 255)] for tokens in (inputs, labels)
                )
                ratings = np.zeros(len(numbers), dtype=np.int32)
                yield CsvBlock(self._folder, numbers, questions, answers, ratings, unit="puzzle")

    def _set_names(self, vocab_size: int) -> list[str]:
        path = self._folder / "dataset.json"
        try:
            content: object = json.loads(path.read_bytes())
        except OSError as error:
            raise unreadable(path, error) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is no JSON ({error}); {_BUILD_AGAIN}.") from None
        known = cast(dict[str, Any], content) if isinstance(content, dict) else {}
        names = known.get("sets")
        if not isinstance(names, list) or not all(
            isinstance(name, str) for name in cast(list[object], names)
        ):
            raise InputError(f"{path}: does not list `sets`; {_BUILD_AGAIN}.")
        if known.get("vocab_size") != vocab_size:
            raise InputError(
                f"{path}: vocab_size is {known.get('vocab_size')!r}, but puzzles of this kind have {vocab_size}; "
                "build the preset of their kind (for ARC from the original task files)."
            )
        return cast(list[str], names)

    def _read_set(self, name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.intp]]:
        """Return inputs, labels, and the number of each group's first puzzle."""
        inputs, labels = (self._array(f"{name}__{field}.npy", 2) for field in ("inputs", "labels"))
        if inputs.shape != labels.shape:
            raise InputError(
                f"{self._folder}: {name}__inputs.npy is {list(inputs.shape)} and {name}__labels.npy "
                f"{list(labels.shape)}, which have to be equal; {_BUILD_AGAIN}."
            )
        puzzles, groups = (
            self._array(f"{name}__{field}.npy", 1) for field in ("puzzle_indices", "group_indices")
        )
        for field, indices, end in (("puzzle", puzzles, len(inputs)), ("group", groups, len(puzzles) - 1)):
            ascends = len(indices) and indices[0] == 0 and (np.diff(indices) > 0).all() and indices[-1] == end
            if not ascends or (field == "puzzle" and len(indices) != end + 1):
                raise InputError(
                    f"{self._folder / f'{name}__{field}_indices.npy'}: does not ascend from 0 to {end}; {_BUILD_AGAIN}."
                )
        return inputs, labels, groups[:-1].astype(np.intp)

    def _array(self, name: str, num_axes: int) -> NDArray[Any]:
        path = self._folder / name
        try:
            array = cast(object, np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_BUILD_AGAIN}.") from None
        if not _is_array(array) or array.ndim != num_axes or array.dtype.kind not in "iu":
            raise InputError(f"{path}: is no array of whole numbers with {num_axes} axes; {_BUILD_AGAIN}.")
        return array


def _is_array(value: object) -> TypeGuard[NDArray[Any]]:
    return isinstance(value, np.ndarray)  # an archive of them is read, too
