"""What the builder asks of a kind of grid puzzles."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from data_pipeline.base.random import Bits, random_bits
from data_pipeline.grid_puzzles.csv_source import Cells, CsvBlock
from data_pipeline.kind import Check, Look
from data_pipeline.options import OF_SOURCE, LeakPolicy, Options
from data_pipeline.schema import MAX_GROUPS, SplitName

Examples = NDArray[np.uint8]  # [n, 2, tokens], input before label


def belongs_to(split: SplitName, keys: Bits) -> NDArray[np.bool_]:
    """Tell which new puzzles are of a split: a bit of a key that their symmetries share says so; [n]."""
    return (keys & np.uint64(1)) == np.uint64(split == "test")


class NewPuzzles(Options):
    """New puzzles in place of a source."""

    side: int
    """Rows and columns of new puzzles."""
    num_train: int = Field(default=1000, ge=1, le=MAX_GROUPS)
    """New puzzles to train on."""
    num_test: int = Field(default=1000, ge=1, le=MAX_GROUPS)
    """New puzzles to test on."""


class PuzzleOptions(Options):
    """The options of every kind of grid puzzles."""

    num_aug: int = Field(default=0, ge=0)
    """Augmentations per training puzzle."""
    subsample: Annotated[int | None, OF_SOURCE] = Field(default=None, ge=1)
    """Keep N of the training puzzles, drawn at random."""
    subsample_test: Annotated[int | None, OF_SOURCE] = Field(default=None, ge=1)
    """Keep N of the test puzzles, drawn at random."""
    min_difficulty: int | None = Field(default=None, ge=0)
    """Smallest rating to keep."""
    limit_groups: int | None = Field(default=None, ge=1)
    """Keep the first N puzzles of each split."""
    leaks: LeakPolicy = "refuse"
    generator: NewPuzzles | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what earlier versions did not have, so that their datasets are those of today."""
        values = cast("dict[str, object]", dump(self))
        return {
            name: value for name, value in values.items() if name != "subsample_test" or value is not None
        }


@dataclass(frozen=True)
class PuzzleType(ABC):
    """Grid puzzles of one kind and side."""

    kind: ClassVar[str]
    options: ClassVar[type[PuzzleOptions]]
    new: ClassVar[type[NewPuzzles]]
    """Those of new puzzles, `generator` of the options."""
    characters: ClassVar[bytes]
    """Those of tokens 1, 2, ... of the published datasets in CSV files."""
    answers_only: ClassVar[bytes] = b""
    """Those of them that no question has."""
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType({})
    """Checks that a good prediction passes, be it the stored answer or not, by the name of the score."""

    side: int

    @classmethod
    def of_new(cls, options: PuzzleOptions) -> Self:
        """Return the type of the new puzzles that are asked for: its fields are options by their names."""
        known = dict(options) | dict(options.generator or cls.new.model_validate({}))
        return cls(**{field.name: known[field.name] or 0 for field in fields(cls)})

    @staticmethod
    @abstractmethod
    def read_block(block: CsvBlock) -> tuple[Cells, Cells]:
        """Return inputs and labels of lines, as tokens; raise InputError at the first that is not as it should be."""

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    def augment(
        self, examples: Examples, seed: int, puzzles: NDArray[np.int64], augmentations: NDArray[np.int64]
    ) -> Examples:
        """Return augmentation augmentations[i] of examples[i], puzzle number puzzles[i]; 0 changes nothing.

        A kind whose `num_aug` can only be 0 needs no other.
        """
        return examples

    def content_keys(self, examples: Examples) -> Bits:
        """Return a key per puzzle that no augmentation changes, [n]."""
        inputs = examples[:, 0]
        num_cells = inputs.shape[1]
        weights = random_bits(num_cells * self.vocab_size, "cells").reshape(num_cells, self.vocab_size)
        return weights[np.arange(num_cells), inputs].sum(axis=1, dtype=np.uint64)

    def same_keys(self, examples: Examples) -> Bits:
        """Return a key per puzzle that those share of which one is enough, [n]."""
        return self.content_keys(examples)

    @abstractmethod
    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        """Make new puzzles, each a function of its index; raise InputError where none are as hard as asked."""

    @abstractmethod
    def look(self) -> Look:
        """Return how they are drawn and measured."""
