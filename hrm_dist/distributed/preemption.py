"""Signals that ask a run to stop, and the ranks' agreement on when."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist

from data_pipeline.base import signals
from hrm_dist.distributed import collectives


class Poll(NamedTuple):
    """The state of all ranks, each of which works on its own."""

    stop: bool
    """A signal has come to any of them, and not all have done their work."""
    done: bool
    """All have done their work."""


class PreemptionHandler:
    """Catch the signals that ask a run to stop, until `close`, and let the ranks agree on when.

    After a signal to any rank all stop after the same step, or before the same batch of an evaluation. A vote is an
    all-reduce on the CPU whose result is read by the next one, a step or batch later, so that nobody waits.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._interrupts = False
        self._vote = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None
        self._previous = signals.catch(self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if self._interrupts:
            raise KeyboardInterrupt

    def completes(self, function: Callable[[], object]) -> bool:
        """Run a function that a signal may break off at any point; return False if one did, or came before."""
        try:
            self._interrupts = True
            if self.signal_name is None:
                function()
            return self.signal_name is None
        except KeyboardInterrupt:
            return False
        finally:
            self._interrupts = False

    def agreed(self) -> bool:
        """Return whether to stop now. Call once per step and batch of an evaluation, equally often on every rank."""
        if collectives.world_size() == 1:
            return self.signal_name is not None
        stop = False
        if self._pending is not None:
            self._pending.wait()
            stop = bool(self._vote.item())
        self._vote = torch.tensor([self.signal_name is not None], dtype=torch.int32)
        self._pending = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, async_op=True)
        return stop

    def poll(self, *, is_working: bool) -> Poll:
        """Return what all ranks have agreed on last; call it as often as you like, unequally on the ranks, to the end.

        A rank that works never waits; one that has done its work waits here for the others. Once it says stop or done,
        it does so on every rank: do not call it again.
        """
        if collectives.world_size() == 1:
            return Poll(stop=self.signal_name is not None and is_working, done=not is_working)
        if self._pending is None:
            self._begin_poll(is_working)
        elif self._pending.is_completed() or not is_working:
            self._pending.wait()
            self._pending = None
            signalled, someone_works = map(bool, self._vote.tolist())
            if signalled or not someone_works:
                return Poll(stop=signalled and someone_works, done=not someone_works)
            self._begin_poll(is_working)
        return Poll(stop=False, done=False)

    def _begin_poll(self, is_working: bool) -> None:
        self._vote = torch.tensor([self.signal_name is not None, is_working], dtype=torch.int32)
        self._pending = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, async_op=True)

    def finish_vote(self) -> None:
        """Wait for the vote under way, so that no rank is left in it; call before the ranks part."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def close(self) -> None:
        """Restore the signal handlers that were there before."""
        signals.restore(self._previous)
