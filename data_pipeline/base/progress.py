"""Show how far long work has come: a bar on a terminal; elsewhere, as in logs, a line now and then."""

import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, Self

from tqdm import tqdm

# Work that is done sooner shows nothing.
_SHOWN_AFTER_S = 2.0
_BAR_EVERY_S, _LINE_EVERY_S = 0.2, 30.0
# The speed is that of about the last minutes.
_HALF_LIFE_S = 60.0
_MIN_BAR = 4


class Progress:
    """Count units of work, and show them with the time left.

    That is estimated without the first updates, which are slower than all others, and without what is `untimed`.
    """

    def __init__(
        self, what: str, unit: str, total: int | None, *, shown: bool, done: int = 0, warm_up: int = 1
    ) -> None:
        """done: units that were complete before; warm_up: how many updates do not count in the speed."""
        self.done, self.notes = done, list[str]()
        self._what, self._unit, self._total, self._shown = what, unit, total, shown
        self._warm_up = warm_up
        self._units = self._seconds = 0.0  # the older, the less they count
        self._since = now = time.perf_counter()
        self._shown_at = now + _SHOWN_AFTER_S - _LINE_EVERY_S
        self._has_shown = False
        self._bar: tqdm[NoReturn] | None = None
        if shown and _is_terminal():
            self._shown_at = now + _SHOWN_AFTER_S - _BAR_EVERY_S
            # tqdm hides a bar where it thinks that there is no line for it: some terminals do not know their size.
            self._bar = tqdm(
                desc=what, total=total, initial=done, delay=_SHOWN_AFTER_S, bar_format="{desc}", nrows=24
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, units: int = 1) -> None:
        """Count units that are done."""
        now = time.perf_counter()
        self.done += units
        if self._warm_up:
            self._warm_up -= bool(units)
        else:
            seconds = now - self._since
            keep = 0.5 ** (seconds / _HALF_LIFE_S)
            self._units, self._seconds = self._units * keep + units, self._seconds * keep + seconds
        self._since = now
        if self._shown and now - self._shown_at >= (_LINE_EVERY_S if self._bar is None else _BAR_EVERY_S):
            self._shown_at, self._has_shown = now, True
            self._show()

    @contextmanager
    def untimed(self) -> Generator[None]:
        """Leave the time of the block out of the speed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def close(self) -> None:
        """Show the last state, if any was shown."""
        with suppress(OSError, ValueError):
            if self._has_shown:
                self._show()
            if self._bar is not None:
                self._bar.close()

    def left_s(self) -> float | None:
        """Return the seconds until the work is done, None where that is not known."""
        if self._total is None or not self._units or not self._seconds:
            return None
        return max(0, self._total - self.done) * self._seconds / self._units

    def _show(self) -> None:
        try:
            self._print(self._parts())
        except (OSError, ValueError):  # nobody reads it any more, which is no reason to stop
            self._shown = False

    def _print(self, parts: Sequence[str]) -> None:
        if self._bar is None:
            what = f"{self._what}: " if self._what else ""
            print(what + ", ".join(parts), file=sys.stderr, flush=True)
            return
        columns = _columns() - 1
        before = f"{self._what}: 100%||" if self._what else "100%||"
        text = _joined(parts, columns - len(before) - _MIN_BAR - 1).replace("{", "{{").replace("}", "}}")
        self._bar.bar_format = f"{{l_bar}}{{bar}}| {text}"
        self._bar.ncols, self._bar.n = columns, self.done
        self._bar.delay = 0.0  # it is there, and is to end with its line
        self._bar.refresh()

    def _parts(self) -> list[str]:
        """Return what is to be said, the most important first."""
        units = f"{self._unit}{'' if self._unit.endswith('s') else 's'}"
        parts = [f"{self.done:,} {units}"]
        if self._total is not None:
            percent = "" if self._bar is not None else f" ({self.done / max(1, self._total):.0%})"
            parts = [f"{self.done:,}/{self._total:,} {units}{percent}"]
        left_s = self.left_s()
        if left_s is not None and self.done < (self._total or 0):
            parts.append(f"{duration(left_s)} left")
        elif self._total is None and self._seconds:
            parts.append(f"{speed_text(self._units / self._seconds)} {units}/s")
        return parts + self.notes


def progress_bar(what: str, unit: str, total: int | None, *, shown: bool, done: int = 0) -> Progress:
    """Return a bar that appears when the work takes a while, if `shown`; `done` units were complete before."""
    return Progress(what, unit, total, shown=shown, done=done)


def duration(seconds: float) -> str:
    """Return it in two units at most, such as `3 d 4 h`."""
    if seconds < 100:
        return "under 1 s" if seconds < 1 else f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def speed_text(speed: float) -> str:
    """Return a speed with a few digits."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    """Return the width of the terminal that stderr is."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _joined(parts: Sequence[str], width: int) -> str:
    """Return as many parts, from the first on, as the width holds."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + len(part) + 2 > width:
            break
        text += f", {part}"
    return text
