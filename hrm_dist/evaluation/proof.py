"""What an evaluation has planned to answer, and the proof that each of these inputs was answered once. No torch.

DIR/planned/inputs.npz names the inputs, N of them, in the order of their rows; it lies where a vote does not look for
predictions. evaluation.json has its digest.
  puzzle_identifiers int32 [N]   example_index int32 [N]
  rounds int32 [N]               the row of the dataset: 0 every task as it is, then an augmentation of each
  groups int32 [N]               which task
  digests uint64 [N]             the first 8 bytes of the sha256 of each input's tokens
"""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from hrm_dist.evaluation.output_dir import Evaluation, block_record, read_records
from hrm_dist.evaluation.predictions import NPZ_DAMAGE, Predictions, read_predictions

_FIELDS = {
    "puzzle_identifiers": np.int32,
    "example_index": np.int32,
    "rounds": np.int32,
    "groups": np.int32,
    "digests": np.uint64,
}
_MOST_NAMED = 3


class Planned(NamedTuple):
    """The inputs of an evaluation, by row."""

    puzzle_identifiers: NDArray[np.int32]
    example_index: NDArray[np.int32]
    rounds: NDArray[np.int32]
    groups: NDArray[np.int32]
    digests: NDArray[np.uint64]

    def sha256(self) -> str:
        """Return the digest of all that is planned."""
        digest = hashlib.sha256()
        for name, array in zip(_FIELDS, self, strict=True):
            digest.update(f"{name} {len(array)}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def named(self, rows: NDArray[np.integer]) -> str:
        """Return how a message names some rows: how many, and the first."""
        some = ", ".join(
            f"row {row} (identifier {self.puzzle_identifiers[row]}, example {self.example_index[row]})"
            for row in rows[:_MOST_NAMED].tolist()
        )
        return f"{some} and {len(rows) - _MOST_NAMED:,} more" if len(rows) > _MOST_NAMED else some


class Proof(NamedTuple):
    """Which of the planned inputs are answered, none of them twice, and nothing else."""

    planned: Planned
    is_wanted: NDArray[np.bool_]  # [N]; not: the vote on the test input was settled before
    is_answered: NDArray[np.bool_]  # [N]
    num_lost: int
    """Of the answers, those of which q is NaN."""

    def missing(self) -> NDArray[np.int64]:
        """Return the rows that should be answered and are not."""
        return np.flatnonzero(self.is_wanted & ~self.is_answered)

    def text(self) -> str:
        """Return what is proven, in words."""
        num, wanted, missing = len(self.is_wanted), int(self.is_wanted.sum()), self.missing()
        saved = "" if wanted == num else f" ({num - wanted:,} of {num:,} planned were not needed)"
        if len(missing):
            return f"{len(missing):,} of {wanted:,} inputs are not answered: {self.planned.named(missing)}{saved}"
        lost = f", {self.num_lost:,} of them with lost numbers (NaN)" if self.num_lost else ""
        return f"each of {wanted:,} inputs is answered once{lost}{saved}"


def digests(inputs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a digest of each input, [N, S] -> [N]."""
    found = b"".join(hashlib.sha256(row).digest()[:8] for row in np.ascontiguousarray(inputs))
    return np.frombuffer(found, dtype="<u8").astype(np.uint64)


def planned_file(out: Path) -> Path:
    return out / "planned" / "inputs.npz"


def write_planned(out: Path, inputs: Planned) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **inputs._asdict())
    replace_file(planned_file(out), buffer.getvalue())


def read_planned(out: Path, sha256: str) -> Planned:
    """Read what a folder has planned; raise InputError unless it is what evaluation.json says."""
    path = planned_file(out)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            inputs = Planned(*(archive[name].astype(dtype) for name, dtype in _FIELDS.items()))
    except NPZ_DAMAGE as error:
        raise InputError(f"{path}: is no readable .npz file; remove it, and evaluate again.") from error
    if inputs.sha256() != sha256:
        raise InputError(f"{path}: damaged, not what evaluation.json says; remove it, and evaluate again.")
    return inputs


class Prover:
    """Goes through the files of a folder, of which evaluation.json says what was planned."""

    def __init__(self, out: Path, evaluation: Evaluation) -> None:
        """Raises InputError where the plan is missing or damaged."""
        self._out, self._evaluation = out, evaluation
        self._planned = read_planned(out, evaluation.planned_sha256 or "")
        self._is_answered = np.zeros(len(self._planned.digests), dtype=bool)
        self._num_lost = 0

    def add(self, block: Predictions) -> None:
        """Note what a file answers. Raises InputError for an input that is foreign or answered twice."""
        evaluation = self._evaluation
        if block.checkpoint_id != evaluation.checkpoint_id:
            raise InputError(
                f"{block.source}: is of checkpoint {block.checkpoint_id!r}, but evaluation.json is of "
                f"{evaluation.checkpoint_id!r}; remove it, and evaluate again."
            )
        num_segments, most = block.num_segments, evaluation.max_segments
        if num_segments is not None and most is not None and num_segments.max(initial=0) > most:
            raise InputError(
                f"{block.source}: num_segments holds {num_segments.max()}, but evaluation.json allows {most}; it is of "
                "another evaluation: remove it, and evaluate again."
            )
        rows = _rows_of(self._planned, block)
        values, counts = np.unique(rows, return_counts=True)
        doubled = values[self._is_answered[values] | (counts > 1)]
        if len(doubled):
            raise InputError(
                f"{block.source}: answers {len(doubled):,} inputs a second time: {self._planned.named(doubled)}; "
                "remove the file that does not belong here, and evaluate again."
            )
        self._is_answered[values] = True
        self._num_lost += int(np.isnan(block.q_halt_logits).sum())

    def proof(self) -> Proof:
        """Return what the files prove. Raises InputError for a block of tasks whose record is damaged."""
        planned, is_wanted = self._planned, np.ones_like(self._is_answered)
        for record in read_records(self._out, self._evaluation.cut) if self._evaluation.cut else ():
            for one in record.inputs:
                of_input = (planned.groups == one.group) & (planned.example_index == one.test)
                beyond = of_input & (planned.rounds >= one.rounds)
                is_wanted[beyond] = False
                if self._is_answered[beyond].any():
                    raise InputError(
                        f"{block_record(self._out, record.block)}: says that test input {one.test} of task {one.task} "
                        f"took {one.rounds} rounds, but more are answered; remove it and evaluate again."
                    )
        return Proof(planned, is_wanted, self._is_answered, self._num_lost)


def prove(out: Path, evaluation: Evaluation) -> Proof | None:
    """Return what the files of a folder prove; None for one of an earlier version, which did not say what it planned.

    Raises InputError as `Prover` does.
    """
    if evaluation.planned_sha256 is None:
        return None
    prover = Prover(out, evaluation)
    for block in read_predictions([out]):
        prover.add(block)
    return prover.proof()


def _rows_of(inputs: Planned, block: Predictions) -> NDArray[np.int32]:
    """Return the rows that a block answers, once they are what was planned."""
    rows = block.rows
    if rows is None:
        raise InputError(
            f"{block.source}: has no rows, which say which of the planned inputs it answers; give what tools.evaluate "
            "wrote to this folder."
        )
    known = (rows >= 0) & (rows < len(inputs.digests))
    found = np.where(known, rows, 0)
    for name, values in (
        ("puzzle_identifiers", block.puzzle_identifiers),
        ("example_index", block.example_index),
        ("digests", digests(block.inputs)),
    ):
        known &= getattr(inputs, name)[found] == values
    foreign = np.flatnonzero(~known)
    if len(foreign):
        where = ", ".join(f"entry {entry} (row {rows[entry]})" for entry in foreign[:_MOST_NAMED].tolist())
        raise InputError(
            f"{block.source}: holds {len(foreign):,} foreign inputs, which were not planned so: {where}; it is of "
            "another evaluation: remove it, and evaluate again."
        )
    return rows
