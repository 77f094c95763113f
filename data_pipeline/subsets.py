"""The puzzles that a split holds: a hash of the set, and the sets of benchmarks by name.

The hash of a set is the sha256 over the sha256 of each of its puzzles, these in ascending order. So it depends on
neither the order of the puzzles, nor on augmentations, the canvas or how the dataset was built. A puzzle is, as bytes,
    Sudokus and mazes   the input's tokens, then the label's, a byte each
    ARC tasks           JSON with sorted keys and without spaces: id, demonstrations (none in the training split) and
                        pairs, which are those that train, or in the test split those held out
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from data_pipeline.base.errors import InputError
from data_pipeline.base.table import table
from data_pipeline.schema import REBUILD, SHOWN_HASH, SPLITS, SplitName, SubsetInfo, Subsets

FREE = frozenset({"num_aug", "canvas"})
"""Options that leave the set alone."""
_DIGEST_BYTES = hashlib.sha256().digest_size
_ASKED = re.compile(r"([^@]+)(?:@([0-9a-f]{8,64})(?:\+([0-9a-f]{8,64}))?)?")
_FORM = "NAME, or NAME@HASH or NAME@HASH+HASH with 8 or more digits of the hash of a split or of both"


class Subset(NamedTuple):
    """Puzzles of a benchmark to train on, and to evaluate on."""

    name: str
    preset: str
    source: tuple[str, ...] = ()
    options: Mapping[str, object] = {}
    """Those that are not the defaults."""
    seed: int | None = None
    """None where any seed leaves the set alone."""
    sha256: Mapping[SplitName, str] = {}
    """Of both splits, or of none where it is unknown."""


_EXTREME = ("hub:sapientinc/sudoku-extreme",)
_SEED = 42

# Hashes are missing where the puzzles could not be downloaded to find them; the build of such a subset prints them.
# The published draws of 1,000 Sudokus came from an unseeded generator, so nobody can draw those again; these are ours.
SUBSETS = (
    Subset("sudoku-extreme-1k", "sudoku", _EXTREME, {"subsample": 1000}, _SEED),
    Subset("sudoku-extreme-1k-test-10k", "sudoku", _EXTREME, {"subsample": 1000, "subsample_test": 10_000}, _SEED),
    Subset("sudoku-extreme-full", "sudoku", _EXTREME),
    Subset("sudoku-6x6", "sudoku", (), {"side": 6, "num_train": 10_000, "num_test": 1000}, _SEED, {
        "train": "efc57da1ade15a5329d959d274f419041fcf83b89570f7d1a74782cbd8ccff93",
        "test": "fc069003032b4c22d74f7b63dbcbd4375468b73781393fe748bb3e0696eada3d",
    }),
    Subset("sudoku-4x4", "sudoku", (), {"side": 4, "num_train": 200, "num_test": 500}, _SEED, {
        "train": "0e9ef5e7bac88c7d07bf6a88312b7efda6336366dc6c6f055bd70b7b9ce1ae2e",
        "test": "7aaad74326eaae1fffc013ec9767c132753d691ca2ccfdb83261c9996895e0f8",
    }),
    Subset("maze-hard-1k", "maze", ("hub:sapientinc/maze-30x30-hard-1k",)),
    Subset("maze-unique-1k", "maze-unique", (), {}, _SEED, {
        "train": "8d6a7acced9da584d9817cfd6b99f6d140cff7cf8d8c346fc46daa230ecebc8a",
        "test": "1e76e8859aa3c746fcc37cccdb64bfe95f7f5ecd7ce191a23a69c93e7ebf805a",
    }),
    Subset("maze-unique-6x6", "maze-unique", (), {
        "side": 6, "num_train": 2000, "num_test": 500, "min_steps": 6,
    }, _SEED, {
        "train": "9b410e6c5df593801e198eb65d131e2d25cba64455a24ee31fca4d42fcb8756e",
        "test": "62702e98edc64d2521b779ee91f22bc176b4ac2d1a279d36878d49ab8bb45663",
    }),
    Subset("arc-agi-1", "arc-agi-1", sha256={
        "train": "4578065f1fe1c2bc8db28d445612828e37118f5528ca5b372578d554b71d9286",
        "test": "cdf13a19fd0111f82d5109c46ebb5d64f417f4317171449127cefb229cedccbb",
    }),
    Subset("arc-agi-1-6x6", "arc-agi-1", (), {"holdout": "all", "canvas": 6}, sha256={
        "train": "a80df3ec94bd6326ee2498fc1ae7d81f7703906dd06d8e19964ece3a74d024d1",
        "test": "da8bed3614063afc1b080ddf0906c3f6caab4b5e48bbba1482fd0876bd2ef2f9",
    }),
    Subset("arc-agi-2", "arc-agi-2", sha256={
        "train": "19c7da4a2b18f130ce6699d21b3d5b4b05d30ce78a62bd1ea27ac31160633382",
        "test": "066fceed5fdc369e29b958521a292e9ee01e937b0b3d577abd6caacdb49dcf9b",
    }),
)  # fmt: skip
_BY_NAME = {subset.name: subset for subset in SUBSETS}


class Asked(NamedTuple):
    """A subset as somebody asks for it."""

    subset: Subset
    hashes: tuple[str, ...]
    """The first digits, each of one of the splits."""

    @property
    def is_checked(self) -> bool:
        """Tell whether another set would be noticed, in either split."""
        return len(self.hashes) == len(SPLITS) or len(self.subset.sha256) == len(SPLITS)


def asked_for(text: str) -> Asked:
    """Return what NAME[@HASH[+HASH]] asks for; raise ValueError."""
    found = _ASKED.fullmatch(text)
    if found is None:
        raise ValueError(f"should be {_FORM}")
    name, *hashes = found.groups()
    if name not in _BY_NAME:
        raise ValueError(f"{name!r} is unknown here; use one of {', '.join(_BY_NAME)}")
    return Asked(_BY_NAME[name], tuple(digits for digits in hashes if digits))


def described(puzzles: Iterable[bytes]) -> SubsetInfo:
    """Return what dataset.json says of a set of puzzles; it takes 32 bytes of memory for each of them."""
    digests = bytearray()
    for puzzle in puzzles:
        digests += hashlib.sha256(puzzle).digest()
    ordered = np.frombuffer(digests, dtype=f"S{_DIGEST_BYTES}")
    ordered.sort()  # in place
    return SubsetInfo(num=len(ordered), sha256=hashlib.sha256(digests).hexdigest())


def named(found: Subsets, asked: str | None) -> Subsets:
    """Return the subsets of a dataset with their names.

    It is the one asked for, or without that any that a split equals. Raise InputError where the puzzles are others.
    """
    if asked is not None:
        subset = check(found, asked).subset
        names: dict[SplitName, str | None] = {split: subset.name for split in SPLITS}
    else:
        equal = {
            split: [s.name for s in SUBSETS if s.sha256.get(split) == found[split].sha256] for split in SPLITS
        }
        in_both = [name for name in equal["train"] if name in equal["test"]]
        names = {split: next(iter(in_both + equal[split]), None) for split in SPLITS}
    return Subsets(**{split: found[split].model_copy(update={"name": names[split]}) for split in SPLITS})


def check(found: Subsets | None, text: str) -> Asked:
    """Return what is asked for; raise InputError unless a dataset that holds these may be it."""
    asked = asked_for(text)
    subset, hashes = asked
    if found is None:
        if subset.sha256 or hashes:
            raise InputError(
                f"subset {text}: the dataset was built by a version that did not note its puzzles; {REBUILD}."
            )
        return asked
    there = " and ".join(
        f"{found[split].num:,} to {'train' if split == 'train' else 'evaluate'} on ({found[split].sha256[:SHOWN_HASH]})"
        for split in SPLITS
    )
    for split, digest in subset.sha256.items():
        if digest != found[split].sha256:
            raise InputError(
                f"subset {text}: is {digest[:SHOWN_HASH]} in its {split} split, but the puzzles here are others, "
                f"{there}; give options and sources of the subset, or leave the subset out."
            )
    left = {split: found[split].sha256 for split in SPLITS}
    for digits in hashes:
        split = next((split for split, digest in left.items() if digest.startswith(digits)), None)
        if split is None:
            raise InputError(
                f"subset {text}: no split has the hash {digits}, as there are {there}; correct it, or leave it out."
            )
        del left[split]  # the other hash is of the other split
    return asked


def subset_table() -> str:
    """Return all subsets for people."""
    rows = [("subset", "preset", "made of", "train", "test")]
    for subset in SUBSETS:
        made = [*subset.source, *(f"{key}={value}" for key, value in subset.options.items())]
        made += [] if subset.seed is None else [f"seed={subset.seed}"]
        train, test = (subset.sha256.get(split, "unknown")[:SHOWN_HASH] for split in SPLITS)
        rows.append((subset.name, subset.preset, " ".join(made), train, test))
    return "\n".join(table(rows))
