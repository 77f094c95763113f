"""A folder of predictions that one command fills, or several together. Loads no torch.

DIR/  evaluation.json               what the predictions are of, by which rules, and how they are cut into files
      predictions_00000.npz         rows of the test split, in order; a file is complete or not there
      planned/inputs.npz            which inputs are to be answered (planned.py)
      segments/predictions_*.npz    every segment's answer, with --every-segment (trajectories.py)
  where voting is adaptive (rounds.py):
      predictions_000_00000.npz     of a block of tasks, rows of some rounds; none where no round was needed
      rounds/block_000.json         a block that is complete: its rounds, and why each test input needed no more
"""

import os
import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import make_folder, put_if_missing, replace_file
from data_pipeline.base.models import Strict, read_json
from data_pipeline.base.parallel import Part
from hrm_dist.evaluation.predictions import MAX_ROWS_PER_FILE
from hrm_dist.evaluation.start_options import RANDOMNESS, Choice
from hrm_dist.evaluation.stopping import Calibration

RECORD = "evaluation.json"
_NUM_FILES, _FEW_ROWS, _MOST_ROWS = 16, 128, 1024
"""A kill loses the files that are not complete: a new folder has so many, with about as many rows at least and most.
Where rows have several starts the least are fewer, by as many times."""


_NOT_COMPARED = ("rows_per_file", "cut", "calibration")
_RULES = ("halting", "max_segments", "vote_rule")
_RULES_OF_STARTS = ("starts", "choose", *RANDOMNESS, "noise_seed")
_MAY_BE_ABSENT = ("checkpoint_sha256", "dataset_sha256", "subset", "planned_sha256", "max_segments")


class Cut(Strict):
    """How the tasks of an adaptive vote are cut into blocks, whose rounds are cut into files."""

    num_blocks: int = Field(ge=1)
    rounds_per_file: int = Field(ge=1)


class Evaluation(Strict):
    """What a folder's predictions are of, and how they are cut into files."""

    checkpoint_id: str
    num_aug: int | None
    max_groups: int | None
    num_rows: int = Field(ge=0)
    rows_per_file: int = Field(ge=1, le=MAX_ROWS_PER_FILE)
    # What earlier versions did not record; they ran as published.
    checkpoint_sha256: str | None = None
    """Of the checkpoint's state.json, which has the digests of its other files."""
    dataset_sha256: str | None = None
    subset: str | None = None
    """The dataset's test split, by name and hash, where that is known."""
    planned_sha256: str | None = None
    """Of the inputs to be answered; see planned.py."""
    max_segments: int | None = None
    halting: str = "none"
    """As HaltingRule spells it."""
    every_segment: bool = False
    starts: int = Field(default=1, ge=1)
    """Of each input."""
    choose: Choice | None = None
    """Which of several starts answers; see starts.py."""
    # None: as the model was trained.
    initial_states: Literal["fixed", "random"] | None = None
    segment_noise: float | None = None
    update_noise: float | None = None
    noise_seed: int = 0
    vote_rule: str = "none"
    """When the vote on a test input is settled, as VoteRule spells it."""
    calibration: Calibration | None = None
    """Where tools.calibrate_vote found the rule."""
    cut: Cut | None = None
    """Where a rule may settle votes."""

    def knows_less(self, name: str, value: object) -> bool:
        """Return whether a field differs only since this record, or who asks, does not have it."""
        return name in _MAY_BE_ABSENT and (value is None or getattr(self, name) is None)

    def rules(self) -> dict[str, Any]:
        """Return how answers come about; of starts and what is random, what differs from a plain evaluation."""
        fields = type(self).model_fields
        of_starts = {name: getattr(self, name) for name in _RULES_OF_STARTS}
        changed = {name: value for name, value in of_starts.items() if value != fields[name].default}
        return {name: getattr(self, name) for name in _RULES} | changed

    def files(self, out: Path) -> dict[Path, range]:
        """Return all files, in order, and the rows of the test split in each; not of an adaptive vote."""
        starts = range(0, self.num_rows, self.rows_per_file)
        return {
            out / f"predictions_{number:05d}.npz": range(
                start, min(start + self.rows_per_file, self.num_rows)
            )
            for number, start in enumerate(starts)
        }

    @property
    def unit(self) -> str:
        """What `units` are."""
        return "files" if self.cut is None else "blocks"

    def units(self, out: Path) -> list[Path]:
        """Return what is there when all is: the files, or the records of the blocks of an adaptive vote."""
        if self.cut is None:
            return list(self.files(out))
        return [block_record(out, block) for block in range(self.cut.num_blocks)]


def block_record(out: Path, block: int) -> Path:
    return out / "rounds" / f"block_{block:03d}.json"


class InputRecord(Strict):
    """What the vote on a test input took."""

    task: str
    group: int = Field(ge=0)
    """The number of the task."""
    test: int = Field(ge=0)
    rounds: int = Field(ge=1)
    votes: int = Field(ge=1)
    of: int = Field(ge=1)
    """Votes of all rounds."""
    why: Literal["settled", "all rounds"]


class RoundRecord(Strict):
    """What a round took."""

    round: int = Field(ge=0)
    asked: int = Field(ge=0)
    """Test inputs that it asked."""
    settled: int = Field(ge=0)
    """Of these, whose vote is settled then."""


class BlockRecord(Strict):
    """That a block of tasks is complete, and what its votes took."""

    block: int = Field(ge=0)
    rule: str
    rounds: list[RoundRecord]
    inputs: list[InputRecord]


def write_record(out: Path, record: BlockRecord) -> None:
    """Write that a block is complete; its files must be there."""
    replace_file(block_record(out, record.block), f"{record.model_dump_json()}\n".encode())


def read_records(out: Path, cut: Cut) -> list[BlockRecord]:
    """Return what is known of the blocks that are complete. Raises InputError for what is damaged."""
    paths = (block_record(out, block) for block in range(cut.num_blocks))
    records = (read_json(path, BlockRecord, "remove it and evaluate again") for path in paths)
    return [record for record in records if record is not None]


def rows_per_file(num_rows: int, num_parts: int, num_starts: int = 1) -> int:
    """Return how many rows a file has, so that every part has something to do where there are enough rows."""
    return max(1, min(_good_size(num_rows, num_starts), -(-num_rows // num_parts)))


def _good_size(num_rows: int, num_starts: int) -> int:
    return min(max(-(-num_rows // _NUM_FILES), max(1, _FEW_ROWS // num_starts)), _MOST_ROWS)


def cut_of_tasks(num_rows: int, num_inputs: int, num_ranks: int, num_starts: int = 1) -> Cut:
    """Return how an adaptive vote on so many test inputs, with so many rows in all rounds, is cut for all ranks."""
    inputs_of_rank = -(-num_inputs // num_ranks)
    size = _good_size(num_rows, num_starts)
    num_blocks = num_ranks * max(1, -(-inputs_of_rank // size))
    inputs_of_block = max(1, -(-num_inputs // num_blocks))
    return Cut(num_blocks=num_blocks, rounds_per_file=max(1, size // inputs_of_block))


def agree(out: Path, asked: Evaluation, part: Part) -> Evaluation:
    """Return what the folder is of, or what is asked for if it is new.

    Without parts, files are as the folder has them. Raises InputError for a folder of something else, or one that
    these parts would cut differently.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is no folder; choose one for the predictions.")
    if (out / "dataset.json").exists():
        raise InputError(f"--out {out}: is a dataset; choose another folder for the predictions.")
    # Files first: whoever writes one has written the record before.
    has_files = any(out.glob("*.npz"))
    known = read_evaluation(out)
    if known is None:
        if has_files:
            raise InputError(
                f"{out}: holds prediction files of unknown origin (no {RECORD}); choose another --out."
            )
        return asked
    differing = ", ".join(
        f"{name} {_short(name, getattr(known, name))}, now {_short(name, value)}"
        for name, value in asked
        if name not in _NOT_COMPARED and getattr(known, name) != value and not known.knows_less(name, value)
    )
    if differing:
        raise InputError(
            f"{out}: holds predictions of another evaluation ({differing}); choose another --out."
        )
    if part.count > 1:
        _refuse_other_cut(out, known, part.count)
    return known


def claim(out: Path, asked: Evaluation, part: Part) -> Evaluation:
    """Make the folder one of this evaluation, unless another command just has; otherwise as `agree`."""
    evaluation = agree(out, asked, part)
    try:
        make_folder(out)
    except OSError as error:
        raise unwritable(out, error) from None
    path = out / RECORD
    draft = path.with_name(f".{RECORD}.{socket.gethostname()}-{os.getpid()}.draft")
    replace_file(draft, evaluation.model_dump_json(indent=1).encode())
    put_if_missing(draft, path)
    return agree(out, asked, part)


def _short(name: str, value: object) -> str:
    """Return a value as a message shows it; digests in short."""
    return repr(value[:12] if name.endswith("sha256") and isinstance(value, str) else value)


def missing_files(out: Path) -> list[Path]:
    """Return what an evaluation has not completed of its folder; nothing of other folders."""
    known = read_evaluation(out)
    return [] if known is None else [path for path in known.units(out) if not path.exists()]


def missing_parts(out: Path, num_parts: int) -> list[int]:
    """Return which parts of an evaluation by `--part I/num_parts` have files to write; all of a folder not begun.

    Raises InputError for a folder that another number of parts has begun and not completed.
    """
    known = read_evaluation(out)
    if known is None:
        return list(range(num_parts))
    units = known.units(out)
    missing = {path for path in units if not path.exists()}
    if missing:
        _refuse_other_cut(out, known, num_parts)
    return [n for n in range(num_parts) if not missing.isdisjoint(Part(n, num_parts).share(units))]


def _refuse_other_cut(out: Path, known: Evaluation, num_parts: int) -> None:
    if known.cut is not None:
        if known.cut.num_blocks % num_parts:
            raise InputError(
                f"{out}: was begun with {known.cut.num_blocks} blocks of tasks, which {num_parts} parts cannot share "
                "alike; resume with as many parts as before, or with one command without --part, or choose another "
                "--out."
            )
        return
    rows = rows_per_file(known.num_rows, num_parts, known.starts)
    of_earlier_version = max(1, min(MAX_ROWS_PER_FILE, -(-known.num_rows // num_parts)))
    if known.rows_per_file not in (rows, of_earlier_version):
        raise InputError(
            f"{out}: was begun with {known.rows_per_file:,} predictions per file, but {num_parts} parts would have "
            f"{rows:,}; resume with as many parts as before, or with one command without --part, or choose another "
            "--out."
        )


def read_evaluation(out: Path) -> Evaluation | None:
    """Return what a folder's predictions are of; None for a folder of something else. Raises InputError."""
    return read_json(out / RECORD, Evaluation, "choose another --out")
