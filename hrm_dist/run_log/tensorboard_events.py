"""TensorBoard files: curves, settings, scores and pictures of a run, without an account or a network."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrm_dist.config import TrainConfig, flat_settings
from hrm_dist.run_log.background import Background
from hrm_dist.run_log.entry import Entry
from hrm_dist.run_log.metrics_file import FILE, rows_of_step
from hrm_dist.run_log.score_table import markdown, markdown_table

FOLDER = "tensorboard"
_COMPARED = ("train/loss", "train/exact_accuracy", "eval/exact_accuracy")
"""Curves by which the page of hyperparameters compares runs."""


class TensorBoard:
    """Files in RUN/tensorboard, one for each start of the run. Whatever becomes of them, training goes on."""

    def __init__(
        self, config: TrainConfig, run_dir: Path, step: int, facts: Mapping[str, Any], *, is_redone: bool
    ) -> None:
        """step: the one reached, beyond which readers shall drop what earlier files have; is_redone: its own, too,
        apart from what metrics.jsonl keeps of it."""
        self._summary: Any = None
        self._background = Background("TensorBoard", self._add, self._finish)
        self._file: Any = None
        try:
            from torch.utils.tensorboard import summary  # a second, and rarely wanted

            self._summary = summary
            is_whole = step > 0 and not is_redone
            self._file = _EventFile(run_dir / FOLDER, first_step=step + 1 if is_whole else step)
            self._describe(config, facts, step)
        except Exception as error:  # such as a full disk, or packages that do not fit each other
            self._background.lose(error)
            return
        if step > 0 and is_redone:
            for row in rows_of_step(run_dir / FILE, step):
                self.write(Entry(step, row))

    def _describe(self, config: TrainConfig, facts: Mapping[str, Any], step: int) -> None:
        settings = flat_settings(config.model_dump(mode="json"))
        for tag, values in (("settings", settings), ("run", flattened(facts))):
            text = markdown_table(("name", "value"), list(values.items()))
            self._file.add(self._summary.text(tag, text), step)
        simple = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in settings.items()
        }
        for part in self._summary.hparams(simple, dict.fromkeys(_COMPARED, 0.0)):
            self._file.add(part, step)
        self._file.flush()

    def write(self, entry: Entry) -> None:
        """Write an entry, in a thread."""
        self._background.write(entry)

    def flush(self) -> None:
        """Do nothing: no checkpoint waits for it."""

    def close(self) -> None:
        """Write what is left."""
        self._background.close()

    def _add(self, entry: Entry) -> None:
        for name, value in entry.values.items():
            if isinstance(value, int | float):
                self._file.add(self._summary.scalar(name, value), entry.step)
        if entry.scores:
            self._file.add(self._summary.text("scores", markdown(entry.scores)), entry.step)
        for picture in entry.pictures:
            image = self._summary.image(f"grids/{picture.name}", picture.pixels, dataformats="HWC")
            self._file.add(image, entry.step)
        self._file.flush()

    def _finish(self) -> None:
        self._file.close()


class _EventFile:
    """A file of events. That of torch's SummaryWriter has a thread of its own, which ends in a traceback."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: from which on readers shall drop what earlier files have."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        protocol: Any = event_pb2  # its names are made when it is loaded
        self._event = protocol.Event
        folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        start = protocol.SessionLog(status=protocol.SessionLog.START)
        self._write(session_log=start, step=first_step)

    def add(self, summary: Any, step: int) -> None:
        self._write(summary=summary, step=step)

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return flat
