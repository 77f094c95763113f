"""Several starts of each input: which of them run, and which one's answer is taken.

A start is one trajectory of an input, by random numbers of its own. The starts of an input lie next to each other in
the queue; as soon as its choice is certain the others are dropped, and their slots go to the next input. The choice is
a function of the trajectories alone, never of what shared the slots with them or of the order in which they finished:

`q`         the highest q_halt_logits
`vote`      the most frequent answer; of two as frequent, the one with the higher q. Certain after the first starts
            whose leader the others cannot catch: of these it is the start of highest q that gave that answer
`first`     the fewest segments, of those that halted before all segments were over. Certain when no other has halted
            in as many; where none halts, it is the highest q
`residual`  the smallest change of the state in the last segment

Of two alike the lower number is taken. One whose numbers are lost (NaN) never is, unless all are.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.tokens import crop_sizes
from hrm_dist.evaluation.continuous import Answering, Ended, Finished, Queue
from hrm_dist.evaluation.start_options import Choice


class _ByScore:
    """The starts of an input of which none is chosen yet; the highest score will be."""

    def __init__(self, num_starts: int, max_segments: int) -> None:
        self.ended: dict[int, Finished] = {}
        self.most_segments = np.full(num_starts, max_segments)
        """After how many segments each can be chosen no longer, unless it has halted; 0 where it has ended."""
        self.num_segments = np.zeros(num_starts, dtype=np.int64)
        """That each was seen to have run."""
        self.num_queued = 0
        """Of the first starts."""
        self._scores = [np.nan] * num_starts

    @property
    def num_needed(self) -> int:
        """Return how many starts it takes to choose, at the least: these first ones."""
        return len(self._scores)

    def end(self, start: int, num_segments: int, score: float, vote: bytes) -> None:
        """Note how a start ends; its score is NaN if its numbers are lost."""
        self.most_segments[start] = 0
        self._scores[start] = score

    def chosen(self) -> int | None:
        """Return the start that is chosen, when that is certain."""
        return _highest(self._scores) if self._is_over() else None

    def _is_over(self) -> bool:
        return bool((self.num_segments >= self.most_segments).all())


class _ByVote(_ByScore):
    def __init__(self, num_starts: int, max_segments: int) -> None:
        super().__init__(num_starts, max_segments)
        self._votes: dict[int, bytes | None] = {}
        self._counts = Counter[bytes]()
        self._num_counted = 0  # of the first starts, in order

    @property
    def num_needed(self) -> int:
        # If the leader gets all of them.
        return self._num_counted + (self._num_left - self._lead) // 2 + 1

    @property
    def _num_left(self) -> int:
        return len(self._scores) - self._num_counted

    @property
    def _lead(self) -> int:
        """How many votes the leader is ahead of all others, those that nobody has voted for yet included."""
        most, second = (*(count for _, count in self._counts.most_common(2)), 0, 0)[:2]
        return most - second

    def end(self, start: int, num_segments: int, score: float, vote: bytes) -> None:
        super().end(start, num_segments, score, vote)
        self._votes[start] = None if np.isnan(score) else vote

    def chosen(self) -> int | None:
        while self._num_counted in self._votes:
            vote = self._votes[self._num_counted]
            self._num_counted += 1
            if vote is not None:
                self._counts[vote] += 1
            if self._lead > self._num_left or not self._num_left:
                most = max(self._counts.values(), default=0)
                gave_it = [
                    self._counts[self._votes[start] or b""] == most for start in range(self._num_counted)
                ]
                return _highest(
                    [s if gave else np.nan for s, gave in zip(self._scores, gave_it, strict=False)]
                )
        return None


class _ByHalting(_ByScore):
    def __init__(self, num_starts: int, max_segments: int) -> None:
        super().__init__(num_starts, max_segments)
        self._max_segments = max_segments
        self.first: tuple[int, int] | None = None
        """Of those that have halted: after how many segments, and which start."""

    def end(self, start: int, num_segments: int, score: float, vote: bytes) -> None:
        super().end(start, num_segments, score, vote)
        if num_segments < self._max_segments and not np.isnan(score):
            self.first = min(self.first or (num_segments, start), (num_segments, start))
            # Those before it would also win by halting in as many.
            for others, most in ((slice(start), num_segments), (slice(start, None), num_segments - 1)):
                self.most_segments[others] = np.minimum(self.most_segments[others], most)

    def chosen(self) -> int | None:
        if self.first is None:
            return super().chosen()
        return self.first[1] if self._is_over() else None


def _highest(scores: Sequence[float]) -> int:
    """Return which is the highest, the first of several; NaN is below all others."""
    return max(range(len(scores)), key=lambda k: (not np.isnan(scores[k]), scores[k]))


_KINDS: dict[Choice, type[_ByScore]] = {
    "q": _ByScore,
    "residual": _ByScore,
    "vote": _ByVote,
    "first": _ByHalting,
}
CHOICES: tuple[Choice, ...] = tuple(_KINDS)


def _scores(
    choice: Choice, q_halt_logits: NDArray[np.float32], residuals: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return what `_ByScore` compares."""
    if choice != "residual":
        return q_halt_logits
    return np.where(np.isnan(q_halt_logits), q_halt_logits, -residuals)


def choose(
    choice: Choice,
    max_segments: int,
    num_segments: NDArray[np.integer],
    q_halt_logits: NDArray[np.float32],
    residuals: NDArray[np.float32],
    answers: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Return which start of each input is chosen, [N], of what all have said in the end, [N, K].

    answers: numbers that are equal where the answers are.
    """
    scores = _scores(choice, q_halt_logits, residuals)
    chosen = np.empty(len(scores), dtype=np.int64)
    for row, of_starts in enumerate(zip(num_segments, scores, answers, strict=True)):
        one = _KINDS[choice](scores.shape[1], max_segments)
        for k, (num, score, answer) in enumerate(zip(*(of.tolist() for of in of_starts), strict=True)):
            one.end(k, num, score, answer.to_bytes(8))
        start = one.chosen()
        assert start is not None
        chosen[row] = start
    return chosen


class Spent(NamedTuple):
    """What a segment took, and what came of it."""

    num_segments: int
    """Of all starts, those that will be dropped included."""
    num_starts: int
    """Of the inputs whose choice has become certain."""
    num_dropped: int
    """Of these starts, those that did not run to their end."""


class Starts:
    """The queue of the starts of another queue's rows, numbered row * num_starts + start."""

    def __init__(
        self,
        queue: Queue,
        num_starts: int,
        choice: Choice,
        max_segments: int,
        *,
        has_grids: bool,
        drops: bool = True,
    ) -> None:
        """has_grids: whether an answer is the grid that the tokens spell, as in ARC, and not all of them.

        drops: whether starts are dropped that can no longer be chosen.
        """
        self._queue, self._num_starts = queue, num_starts
        self._choice: Choice = choice
        self._max_segments, self._has_grids, self._drops = max_segments, has_grids, drops
        self._open: dict[int, _ByScore] = {}
        self._next = deque[int]()
        self.spent = Spent(0, 0, 0)
        """Of the segment added last."""

    def chosen(self, answering: Answering) -> Iterator[Finished]:
        """Yield the rows whose choice has become certain after each segment, and what is chosen."""
        for ended in answering.ends(self, self.most_segments):
            yield self.add(ended)

    def take(self, most: int) -> NDArray[np.int64]:
        """Return the numbers of the next starts that could be chosen, at most so many."""
        taken: list[int] = []
        while len(taken) < most and (self._next or self._queue_more(most - len(taken))):
            number = self._next.popleft()
            if self._most_segments(number):
                taken.append(number)
        return np.array(taken, dtype=np.int64)

    def _queue_more(self, num_wanted: int) -> bool:
        """Queue the first starts of new rows; where there are no more, those that may not be needed. False if none."""
        for row in self._queue.take(-(-num_wanted // self._num_starts)).tolist():
            self._open[row] = one = _KINDS[self._choice](self._num_starts, self._max_segments)
            self._queue_starts(row, one.num_needed if self._drops else self._num_starts)
        if not self._next:
            for row in self._open:
                self._queue_starts(row, self._num_starts)
        return bool(self._next)

    def _queue_starts(self, row: int, end: int) -> None:
        """Queue the starts of a row up to one, before those of other rows if some have run."""
        one = self._open[row]
        new = range(row * self._num_starts + one.num_queued, row * self._num_starts + end)
        if one.num_queued:
            self._next.extendleft(reversed(new))
        else:
            self._next.extend(new)
        one.num_queued = max(one.num_queued, end)

    def most_segments(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return after how many segments each of these starts can be chosen no longer, unless it has halted."""
        return np.array([self._most_segments(number) for number in numbers.tolist()], dtype=np.int64)

    def _most_segments(self, number: int) -> int:
        row, start = divmod(number, self._num_starts)
        if row not in self._open:
            return 0
        return int(self._open[row].most_segments[start]) if self._drops else self._max_segments

    def add(self, ended: Ended) -> Finished:
        """Take what came of a segment; return the rows whose choice has become certain."""
        rows = self._note_going_on(ended) | self._note_finished(ended)
        chosen: list[Finished] = []
        num_dropped = 0
        for row in sorted(rows):
            one = self._open[row]
            start = one.chosen() if self._drops or len(one.ended) == self._num_starts else None
            if start is None:
                self._queue_starts(row, one.num_needed)
                continue
            del self._open[row]
            answer = one.ended[start]._replace(rows=np.array([row]))
            if answer.trajectories:
                of_all = tuple(one.ended[k].trajectories[0][0] for k in range(self._num_starts))
                answer = answer._replace(trajectories=[of_all])
            chosen.append(answer)
            num_dropped += self._num_starts - len(one.ended)
        num_segments = len(ended.finished.rows) + len(ended.going_on)
        self.spent = Spent(num_segments, len(chosen) * self._num_starts, num_dropped)
        return Finished.joined(chosen) if chosen else ended.finished.part(slice(0))

    def _note_going_on(self, ended: Ended) -> set[int]:
        """Note who goes on; return the rows whose choice that may have made certain."""
        rows = set[int]()
        for number, num_segments in zip(ended.going_on.tolist(), ended.num_segments.tolist(), strict=True):
            row, start = divmod(number, self._num_starts)
            one = self._open[row]
            one.num_segments[start] = num_segments
            if isinstance(one, _ByHalting) and one.first is not None:
                rows.add(row)
        return rows

    def _note_finished(self, ended: Ended) -> set[int]:
        """Note who has finished; return their rows."""
        finished = ended.finished
        rows = set[int]()
        scores = _scores(self._choice, finished.q_halt_logits, ended.residuals)
        votes = self._votes(finished.preds) if self._choice == "vote" else [b""] * len(scores)
        each = zip(finished.rows.tolist(), scores.tolist(), votes, strict=True)
        for entry, (number, score, vote) in enumerate(each):
            row, start = divmod(number, self._num_starts)
            self._open[row].ended[start] = finished.part(slice(entry, entry + 1))
            self._open[row].end(start, int(finished.num_segments[entry]), score, vote)
            rows.add(row)
        return rows

    def _votes(self, preds: NDArray[np.uint8]) -> list[bytes]:
        """Return what each answer counts for."""
        if not self._has_grids:
            return [pred.tobytes() for pred in preds]
        canvas = int(preds.shape[1] ** 0.5)
        boards = preds.reshape(-1, canvas, canvas)
        heights, widths = (sizes.tolist() for sizes in crop_sizes(preds))
        return [
            width.to_bytes(2) + board[:height, :width].tobytes()
            for board, height, width in zip(boards, heights, widths, strict=True)
        ]

    def leave_out(self, rows: NDArray[np.int64]) -> None:
        """Drop the starts of rows that need no answer."""
        for row in rows.tolist():
            self._open.pop(row, None)
