"""Heartbeats of all ranks, so that none waits for one that is gone.

Every rank writes a heartbeat to the store of the process group: a counter, its step and, at the end, how it left. One
thread exchanges them and another looks for failures, since a store that hangs must not hang that; training only sets
`step`. A rank that is silent for too long, or left with an error, ends the others: they may be in a collective that
never returns.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch.distributed as dist

from data_pipeline.base.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_LOST, InputError, last_words

SILENCE_S = 60.0
# Beside a collective that failed, less silence is proof.
_SILENCE_AFTER_AN_ERROR_S = 10.0
# Ranks that raise the same error do so within this time, and keep their own message.
_GRACE_S = 5.0
# For how long the rank that holds the store waits for the others to read how it left.
_LEAVING_S = 15.0
_RESUME = "The same command resumes from the last checkpoint."
# gloo raises nothing more special than a RuntimeError.
_FAILED_COLLECTIVE = ("gloo", "nccl", "caused pair closure", "connection closed by peer")


class Heartbeat(NamedTuple):
    """What a rank last said of itself."""

    beat: int = 0
    """A counter that grows while the rank lives."""
    step: int = 0
    status: str = ""
    """`done`, `failed`, or `followed` another rank; empty while it runs."""
    message: str = ""
    """Of a rank that failed, its error; of one that followed, the message it ended with."""
    exit_code: int = 0


class LastHeartbeat(NamedTuple):
    """A heartbeat, and for how long there has been no newer one."""

    heartbeat: Heartbeat
    age_s: float


class Failure(NamedTuple):
    """Why a process must end, and the exit code it ends with."""

    message: str
    exit_code: int = EXIT_LOST


def find_failure(
    last: Sequence[LastHeartbeat], rank: int, silence_s: float, grace_s: float = 0.0
) -> Failure | None:
    """Return who is gone, as far as `rank` can tell; None if all others are alive or have finished."""
    others = [(r, h.heartbeat, h.age_s) for r, h in enumerate(last) if r != rank]
    for r, heartbeat, age_s in others:
        if heartbeat.status == "failed" and age_s >= grace_s:
            text = f"rank {r} ended with an error at step {heartbeat.step}: {heartbeat.message}"
            return Failure(text, heartbeat.exit_code)
    for _, heartbeat, age_s in others:
        if heartbeat.status == "followed" and age_s >= grace_s:
            return Failure(heartbeat.message, heartbeat.exit_code)
    silent = [(r, h.step, age_s) for r, h, age_s in others if not h.status and age_s >= silence_s]
    if not silent:
        return None
    ranks, steps, ages = zip(*silent, strict=True)
    return Failure(
        f"{ranks_text(ranks)} {'has' if len(ranks) == 1 else 'have'} shown no sign of life for {min(ages):.0f} s, last "
        f"heard of at {_steps_text(steps)}; rank {rank} is at step {last[rank].heartbeat.step}. {_RESUME}"
    )


def ranks_text(ranks: Sequence[int]) -> str:
    """Return them in words: `rank 3`; `ranks 0, 2-5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(spans)}"


def _steps_text(steps: Sequence[int]) -> str:
    low, high = min(steps), max(steps)
    return f"step {low}" if low == high else f"steps {low} to {high}"


def is_failed_collective(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, may come from the end of another rank."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _FAILED_COLLECTIVE):
            return True
        error = error.__cause__ or error.__context__
    return False


def end_process(reason: Failure) -> None:
    """End the process at once: the main thread may hang, and so may any cleanup."""
    last_words(f"error: {reason.message}")
    sys.stdout.flush()
    os._exit(reason.exit_code)


class Monitor:
    """Tell the other ranks that this one lives, and end it if one of them does not."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        *,
        rank_0_hosts: bool,
        silence_s: float = SILENCE_S,
        beat_s: float = 1.0,
        end: Callable[[Failure], None] = end_process,
    ) -> None:
        """Wait for all ranks. store: used by nobody else; rank_0_hosts: whether it ends with the process of rank 0."""
        self.step = 0  # of training; set by the main thread
        self._store = dist.PrefixStore("heartbeat", store)
        self._rank, self._world_size, self._rank_0_hosts = rank, world_size, rank_0_hosts
        self._silence_s, self._end = silence_s, end
        # All ranks read all lines: 0.4 ms of the store's time per rank and beat with 64 ranks, 2.6 ms with 512.
        self._beat_s = min(beat_s * max(1, world_size / 64), silence_s / 5)
        self._own = Heartbeat()
        self._leaving = threading.Lock()  # one thread decides how this process ends
        self._heartbeats = [Heartbeat()] * world_size
        self._rounds = 0
        self._store_error = ""
        self._last = [LastHeartbeat(Heartbeat(), 0.0)] * world_size
        self._store_age_s = 0.0
        self._wake, self._told, self._closed = (threading.Event() for _ in range(3))
        self._exchange()
        self._threads = [
            threading.Thread(target=body, daemon=True) for body in (self._keep_exchanging, self._keep_looking)
        ]
        for thread in self._threads:
            thread.start()

    # What the main thread does

    def report_error(self, error: BaseException) -> None:
        """Tell the others of an error; do not return if another rank is found to be its reason."""
        with self._leaving:
            if not is_failed_collective(error):
                code = EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILED
                self._leave("failed", f"{type(error).__name__}: {error}", code)
                return
            silence_s = min(self._silence_s, _SILENCE_AFTER_AN_ERROR_S)
            for _ in self._until(silence_s + 3 * self._beat_s):
                reason = self._find_failure(silence_s)
                if reason is not None:
                    self._follow(reason)
                    return
            reason = Failure(self._describe_steps(), EXIT_FAILED)
            last_words(f"error: {reason.message}")
            self._leave("followed", *reason)

    def close(self) -> None:
        """Tell the others that this rank is done, unless an error was reported, and stop."""
        with self._leaving:
            if not self._own.status:
                self._leave("done")
            self._stay_for_the_others()
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(self._beat_s)

    def _leave(self, status: str, message: str = "", exit_code: int = 0) -> None:
        """Tell the others how this rank leaves, if they can still be told."""
        self._own = Heartbeat(status=status, message=message, exit_code=exit_code)
        self._wake.set()
        for _ in self._until(2 * self._beat_s):
            if self._told.is_set() or self._store_error:
                return

    def _follow(self, reason: Failure) -> None:
        self._leave("followed", *reason)
        self._stay_for_the_others()
        self._end(reason)

    def _stay_for_the_others(self) -> None:
        """Wait, as the process that holds the store, until the others have read how it left."""
        if self._rank != 0 or not self._rank_0_hosts:
            return
        silence_s = min(self._silence_s, _SILENCE_AFTER_AN_ERROR_S)
        for _ in self._until(_LEAVING_S):
            if all(
                s.status or h.age_s >= silence_s for s, h in zip(self._heartbeats, self._last, strict=True)
            ):
                return

    def _until(self, seconds: float) -> Iterator[None]:
        """Yield now and then for some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            yield
            time.sleep(self._beat_s / 50)

    # What the threads do

    def _keep_exchanging(self) -> None:
        while not self._closed.is_set():
            try:
                self._exchange()
            except RuntimeError as error:  # also of torch's own kinds
                self._store_error = str(error).splitlines()[0]
                return
            self._wake.wait(self._beat_s / 20 if self._own.status else self._beat_s)
            self._wake.clear()

    def _exchange(self) -> None:
        own = self._own._replace(beat=self._rounds + 1, step=self.step)
        self._store.set(str(self._rank), json.dumps(own))
        lines = self._store.multi_get([str(rank) for rank in range(self._world_size)])
        self._heartbeats = [Heartbeat(*json.loads(line)) for line in lines]
        self._rounds += 1
        if own.status:
            self._told.set()

    def _keep_looking(self) -> None:
        before, rounds, leaving_s = time.monotonic(), 0, 0.0
        while not self._closed.wait(self._beat_s):
            now = time.monotonic()
            # A process that was stopped itself has heard nobody; that says nothing of the others.
            elapsed = min(now - before, 2 * self._beat_s)
            before = now
            self._last = [
                LastHeartbeat(new, old.age_s + elapsed if _is_old(new, old.heartbeat) else 0.0)
                for new, old in zip(self._heartbeats, self._last, strict=True)
            ]
            self._store_age_s = self._store_age_s + elapsed if self._rounds == rounds else 0.0
            rounds = self._rounds
            reason = self._find_failure(self._silence_s, _GRACE_S)
            if reason is not None and self._leaving.acquire(blocking=False):
                try:
                    if not self._own.status:
                        self._follow(reason)
                finally:
                    self._leaving.release()
            leaving_s += elapsed if self._own.status else 0.0
            if leaving_s > 2 * _LEAVING_S:  # what is cleaned up after an error may hang too
                self._end(Failure("this process hung while it ended", self._own.exit_code or EXIT_FAILED))

    def _find_failure(self, silence_s: float, grace_s: float = 0.0) -> Failure | None:
        if not self._store_error and self._store_age_s < silence_s:
            return find_failure(self._last, self._rank, silence_s, grace_s)
        known = find_failure(self._last, self._rank, float("inf"))
        if known is not None:
            return known
        if not self._rank_0_hosts or self._rank == 0:
            return Failure(f"the launcher, which holds the store of the processes, is gone. {_RESUME}")
        host = self._heartbeats[0]
        if host.status:
            text = f"rank 0 has left after step {host.step}, though this process had not finished."
            return Failure(text, EXIT_FAILED)
        how = "is gone" if self._store_error else f"has shown no sign of life for {self._store_age_s:.0f} s"
        return Failure(
            f"rank 0, which holds the store of the processes, {how}, last heard of at step {host.step}; rank "
            f"{self._rank} is at step {self.step}. {_RESUME}"
        )

    def _describe_steps(self) -> str:
        """Say at which steps the ranks are, none of them silent."""
        ranks_at: dict[str, list[int]] = {}
        for rank, heartbeat in sorted(enumerate(self._heartbeats), key=lambda item: item[1].step):
            where = "left after" if heartbeat.status == "done" else "at"
            ranks_at.setdefault(f"{where} step {heartbeat.step}", []).append(rank)
        text = ", ".join(f"{ranks_text(ranks)} {where}" for where, ranks in ranks_at.items())
        return (
            f"a collective failed on rank {self._rank}, though every rank is alive or done: {text}. {_RESUME}"
        )


def _is_old(heartbeat: Heartbeat, before: Heartbeat) -> bool:
    """Return whether a heartbeat is no new one; a rank that leaves repeats its last until the others know."""
    return heartbeat.status == before.status if heartbeat.status else heartbeat.beat == before.beat
