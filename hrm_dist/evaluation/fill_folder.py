"""One rank's share of a folder of predictions: what it answers next, and what becomes of the answers."""

import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.reader import TestReader
from data_pipeline.schema import verify_document
from hrm_dist.evaluation import rounds
from hrm_dist.evaluation.continuous import Answering, Finished, InOrder
from hrm_dist.evaluation.output_dir import Cut, Evaluation, block_record, write_record
from hrm_dist.evaluation.predictions import read_prediction_file
from hrm_dist.evaluation.proof import Planned, digests
from hrm_dist.evaluation.starts import Starts
from hrm_dist.evaluation.stopping import parse_vote_rule
from hrm_dist.evaluation.writer import PredictionWriter

_BATCH = 4096


def planned_inputs(reader: TestReader) -> Planned:
    """Return all that a reader covers, as it will be proven."""
    places = reader.places()
    # Filled in place: small arrays that stay, between large ones that go, would leave the heap in pieces.
    identifiers, examples = np.empty((2, len(reader)), dtype=np.int32)
    digest_of = np.empty(len(reader), dtype=np.uint64)
    for start, batch in zip(range(0, len(reader), _BATCH), reader.batches(_BATCH), strict=True):
        rows = slice(start, start + _BATCH)
        identifiers[rows], examples[rows] = batch["puzzle_identifiers"], batch["example_index"]
        digest_of[rows] = digests(batch["inputs"].numpy())
    rounds_of, groups = (array.astype(np.int32) for array in (places.rounds, places.groups))
    return Planned(identifiers, examples, rounds_of, groups, digest_of)


class Noted(NamedTuple):
    """What became of answers: those that count, and of how many rows nothing more comes."""

    num_rows: int = 0
    num_answers: int = 0
    num_segments: int = 0
    num_lost: int = 0
    num_starts: int = 0
    """Of inputs that have several."""
    num_dropped: int = 0
    """Of these, those that did not run to their end since another was certain to be chosen."""

    @classmethod
    def of(cls, answers: Finished, num_rows: int) -> Self:
        """Return what is noted of answers, all or none of which are of this rank's files."""
        if not num_rows:
            return cls()
        num_lost = int(np.isnan(answers.q_halt_logits).sum())
        return cls(num_rows, len(answers.rows), int(answers.num_segments.sum()), num_lost)

    def __add__(self, other: Self) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._make(map(sum, zip(self, other, strict=True)))


class Share:
    """The files of a rank, or the blocks of tasks of an adaptive vote, that are not complete."""

    def __init__(
        self, out: Path, evaluation: Evaluation, reader: TestReader, data_path: Path, units: Sequence[Path]
    ) -> None:
        """units: some of `evaluation.units(out)`."""
        self._evaluation = evaluation
        self._vote: _Vote | None = None
        if evaluation.cut is None:
            ranges = evaluation.files(out)
            files = {path: np.arange(ranges[path].start, ranges[path].stop) for path in units}
            self._queue = InOrder(np.concatenate([np.empty(0, dtype=np.int64), *files.values()]))
        else:
            self._vote = _Vote(out, evaluation, evaluation.cut, reader, data_path, units)
            self._queue = self._vote.rounds
            files = {path: rows for path, rows in self._vote.files.items() if not path.exists()}
        self.num_rows = sum(map(len, files.values()))
        """To be answered at most."""
        self._writer = PredictionWriter(
            reader, files, evaluation.checkpoint_id, keeps_trajectories=evaluation.every_segment
        )

    def fill(self, answering: Answering) -> Generator[Noted]:
        """Write the files; yield what was noted after every segment, and after every file of an earlier command."""
        starts = self._starts(answering)
        if self._vote is not None:
            for noted in self._vote.resume(self._writer):
                # A file does not say how far starts ran that were not chosen.
                yield noted if starts is None else Noted(noted.num_rows)
        if starts is None:
            for finished in answering.answers(self._queue):
                yield self._note(finished, None)
        else:
            for finished in starts.chosen(answering):
                yield self._note(finished, starts)._replace(**starts.spent._asdict())

    def num_segments_not_noted(self, answering: Answering) -> int:
        """Return how many segments were run that will be noted when their inputs are answered."""
        return answering.num_segments_under_way if self._evaluation.starts == 1 else 0

    def _starts(self, answering: Answering) -> Starts | None:
        """Return the queue of several starts of each row, if there are several."""
        evaluation, choice = self._evaluation, self._evaluation.choose
        if choice is None:
            return None
        return Starts(
            self._queue, evaluation.starts, choice, answering.max_segments,
            has_grids=answering.segment.has_grids, drops=not evaluation.every_segment,
        )  # fmt: skip

    def _note(self, finished: Finished, starts: Starts | None) -> Noted:
        """Write what is answered."""
        if self._vote is None:
            return Noted.of(finished, self._writer.add(finished))
        decided = self._vote.rounds.add(finished)
        if starts is not None:
            for rows in decided.left_out:
                starts.leave_out(rows)
        return self._vote.note(decided, self._writer)


class _Vote:
    """Adaptive voting on some blocks of tasks."""

    def __init__(
        self,
        out: Path,
        evaluation: Evaluation,
        cut: Cut,
        reader: TestReader,
        data_path: Path,
        units: Sequence[Path],
    ) -> None:
        self._out, self._cut, self._names = out, cut, reader.group_names
        identifiers, puzzles = (
            json.loads(verify_document(data_path, reader.info, name).read_bytes())
            for name in ("identifiers.json", "test_puzzles.json")
        )
        self._blocks = [block for block in range(cut.num_blocks) if block_record(out, block) in units]
        tasks = [task for task in range(len(self._names)) if task % cut.num_blocks in self._blocks]
        tests = [puzzles[name]["test"] for name in self._names]
        rule = parse_vote_rule(evaluation.vote_rule)
        self.rounds = rounds.Rounds(reader, tests, identifiers, rule, tasks)
        places = reader.places()
        self.files: dict[Path, NDArray[np.int64]] = {}
        for block in self._blocks:
            self.files |= rounds.files_of_block(out, block, cut, places)

    def resume(self, writer: PredictionWriter) -> Iterator[Noted]:
        """Take what earlier commands have answered, file by file."""
        for path in [path for path in self.files if path.exists()]:
            yield self.note(self.rounds.replay(read_prediction_file(path)), writer)

    def note(self, decided: rounds.Decided, writer: PredictionWriter) -> Noted:
        """Write what is decided."""
        noted = Noted()
        for answers in decided.accepted:
            noted += Noted.of(answers, writer.add(answers))
        for rows in decided.left_out:
            noted += Noted(num_rows=writer.leave_out(rows))
        for block in [block for block in self._blocks if self._is_complete(block)]:
            # Its last file is written: nothing is to come of its rows.
            write_record(self._out, self.rounds.record(block, self._cut.num_blocks, self._names))
            self._blocks.remove(block)
        return noted

    def _is_complete(self, block: int) -> bool:
        return self.rounds.is_complete(block, self._cut.num_blocks)
