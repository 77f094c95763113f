"""A folder of predictions that one command fills, or several together. Loads no torch.

DIR/  evaluation.json           what the predictions are of, and how they are cut into files
      predictions_00000.npz     rows of the test split, in order; a file is complete or not there
"""

import os
import socket
from pathlib import Path

from pydantic import Field, ValidationError

from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import make_folder, put_if_missing, replace_file
from data_pipeline.base.models import Strict, reason_of
from data_pipeline.base.parallel import Part
from hrm_dist.evaluation.predictions import MAX_ROWS_PER_FILE

_RECORD = "evaluation.json"


class Evaluation(Strict):
    """What a folder's predictions are of, and how they are cut into files."""

    checkpoint_id: str
    num_aug: int | None
    max_groups: int | None
    num_rows: int = Field(ge=0)
    rows_per_file: int = Field(ge=1, le=MAX_ROWS_PER_FILE)

    def files(self, out: Path) -> dict[Path, range]:
        """Return all files, in order, and the rows of the test split in each."""
        starts = range(0, self.num_rows, self.rows_per_file)
        return {
            out / f"predictions_{number:05d}.npz": range(
                start, min(start + self.rows_per_file, self.num_rows)
            )
            for number, start in enumerate(starts)
        }


def rows_per_file(num_rows: int, num_parts: int) -> int:
    """Return how many rows a file has, so that every part has something to do where there are enough rows."""
    return max(1, min(MAX_ROWS_PER_FILE, -(-num_rows // num_parts)))


def agree(out: Path, asked: Evaluation, part: Part) -> Evaluation:
    """Return what the folder is of, or what is asked for if it is new.

    Without parts, files are as the folder has them. Raises InputError for a folder of something else, or one that
    these parts would cut differently.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is no folder; choose one for the predictions.")
    # Files first: whoever writes one has written the record before.
    has_files = any(out.glob("*.npz"))
    known = _read(out)
    if known is None:
        if has_files:
            raise InputError(
                f"{out}: holds prediction files of unknown origin (no {_RECORD}); choose another --out."
            )
        return asked
    differing = ", ".join(
        f"{name} {getattr(known, name)!r}, now {value!r}"
        for name, value in asked
        if name != "rows_per_file" and getattr(known, name) != value
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
    path = out / _RECORD
    draft = path.with_name(f".{_RECORD}.{socket.gethostname()}-{os.getpid()}.draft")
    replace_file(draft, evaluation.model_dump_json(indent=1).encode())
    put_if_missing(draft, path)
    return agree(out, asked, part)


def missing_files(out: Path) -> list[Path]:
    """Return the prediction files that an evaluation has not written to its folder; none of other folders."""
    known = _read(out)
    return [] if known is None else [path for path in known.files(out) if not path.exists()]


def missing_parts(out: Path, num_parts: int) -> list[int]:
    """Return which parts of an evaluation by `--part I/num_parts` have files to write; all of a folder not begun.

    Raises InputError for a folder that another number of parts has begun and not completed.
    """
    known = _read(out)
    if known is None:
        return list(range(num_parts))
    files = list(known.files(out))
    missing = {path for path in files if not path.exists()}
    if missing:
        _refuse_other_cut(out, known, num_parts)
    return [n for n in range(num_parts) if not missing.isdisjoint(Part(n, num_parts).share(files))]


def _refuse_other_cut(out: Path, known: Evaluation, num_parts: int) -> None:
    rows = rows_per_file(known.num_rows, num_parts)
    if rows != known.rows_per_file:
        raise InputError(
            f"{out}: was begun with {known.rows_per_file:,} predictions per file, but {num_parts} parts would have "
            f"{rows:,}; resume with as many parts as before, or with one command without --part, or choose another "
            "--out."
        )


def _read(out: Path) -> Evaluation | None:
    path = out / _RECORD
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: unreadable ({reason_of(error)}); choose another --out.") from error
