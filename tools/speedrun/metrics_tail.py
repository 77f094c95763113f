"""Follow metrics.jsonl while a training writes it, without reading it again and again."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


class MetricsTail:
    """The rows of a metrics.jsonl that its run has written since the last look.

    A training begins by putting a file in the place of the old one, without the rows that it will make again. What
    `old` is not that file is read; until then there are no rows.
    """

    def __init__(self, path: Path, *, skips_present: bool) -> None:
        """skips_present: leave out the file that is there now, which the training is to replace."""
        self._path = path
        self._old = self._inode() if skips_present else None
        self._read_of, self._offset = self._old, 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that are new, whole ones only."""
        inode = self._inode()
        if inode is None or inode == self._old:
            return []
        if inode != self._read_of:
            self._read_of, self._offset = inode, 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        found: list[dict[str, Any]] = []
        for line in whole.splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    found.append(row)
        return found

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None
