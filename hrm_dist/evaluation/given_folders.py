"""Folders of predictions that a vote is given: what they are of, and which planned inputs they lack. Loads no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hrm_dist.evaluation.output_dir import Evaluation, missing_files, read_evaluation
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.proof import Prover, planned_file

_MOST_NAMED = 3


class GivenFolders:
    """The folders of tools.evaluate that predictions are of, and what was read of each."""

    def __init__(self, predictions: Sequence[str | Path]) -> None:
        """Raises InputError for a damaged evaluation.json or plan."""
        paths = dict.fromkeys(map(Path, predictions))
        folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
        self.evaluations = {
            folder: known for folder in folders if (known := read_evaluation(folder)) is not None
        }
        self._whole = [folder for folder in self.evaluations if folder in paths]
        """Those given as such, not by some of their files."""
        self._num_rows: dict[Path, int] = {}
        self._provers = {
            folder.resolve(): Prover(folder, evaluation)
            for folder, evaluation in self.evaluations.items()
            if evaluation.planned_sha256 is not None and planned_file(folder).exists()
        }

    def add(self, block: Predictions) -> None:
        """Note what a file answers. Raises InputError for an input that was not planned, or is answered twice."""
        path = Path(block.source).resolve()
        self._num_rows[path] = len(block.preds)
        if path.parent in self._provers:
            self._provers[path.parent].add(block)

    def unanswered(self) -> list[str]:
        """Return of each whole folder which inputs no file answers, and what to do; nothing of complete ones."""
        found = []
        for folder in self._whole:
            if lack := self._lack(folder):
                again = "again for the rest" if missing_files(folder) else "into another folder"
                found.append(f"{folder}: {lack}; run tools.evaluate {again}")
        return found

    def _lack(self, folder: Path) -> str:
        if folder.resolve() in self._provers:
            proof = self._provers[folder.resolve()].proof()
            return proof.text() if len(proof.missing()) else ""
        return _lacking_files(folder, self.evaluations[folder], self._num_rows)


def _lacking_files(folder: Path, evaluation: Evaluation, num_rows: Mapping[Path, int]) -> str:
    """Return which files of an evaluation of an earlier version lack rows, given the rows of each; empty for none."""
    if evaluation.cut is not None:
        missing = missing_files(folder)
        return f"{len(missing)} of {evaluation.cut.num_blocks} blocks of tasks are missing" if missing else ""
    lacking = {
        path: lack
        for path, rows in evaluation.files(folder).items()
        if (lack := len(rows) - num_rows.get(path.resolve(), 0)) > 0
    }
    if not lacking:
        return ""
    named = [
        f"{path.name} {f'lacks {lack:,}' if path.exists() else 'is not there'}"
        for path, lack in list(lacking.items())[:_MOST_NAMED]
    ]
    others = f", and {len(lacking) - _MOST_NAMED} more files" if len(lacking) > _MOST_NAMED else ""
    return (
        f"{sum(lacking.values()):,} of {evaluation.num_rows:,} inputs are not answered "
        f"({', '.join(named)}{others})"
    )
