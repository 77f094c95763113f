"""What work says of how far it has come, on terminals and in logs."""

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base import progress
from data_pipeline.base.progress import Progress, duration


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Terminal]:
    def screen(columns: int) -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        return terminal

    return screen


def work(clock: Clock, shown: Progress, seconds: float, units: int) -> None:
    for _ in range(units):
        clock.now += seconds
        shown.update()


def train(clock: Clock, total: int = 36_000, first_s: float = 60.0) -> None:
    with Progress("", "step", total, shown=True) as shown:
        clock.now += first_s
        shown.update()
        shown.notes = ["loss 1.653", "exact 100.0%", "164 examples/s"]
        work(clock, shown, 1.0, min(400, total - 1))


def test_in_a_log_every_state_is_a_line_and_they_are_half_a_minute_apart(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    train(clock, total=100)
    lines = capsys.readouterr().err.split("\n")
    assert lines == [
        "1/100 steps (1%)",
        "31/100 steps (31%), 69 s left, loss 1.653, exact 100.0%, 164 examples/s",
        "61/100 steps (61%), 39 s left, loss 1.653, exact 100.0%, 164 examples/s",
        "91/100 steps (91%), 9 s left, loss 1.653, exact 100.0%, 164 examples/s",
        "100/100 steps (100%), loss 1.653, exact 100.0%, 164 examples/s",
        "",
    ]


def test_a_dumb_terminal_gets_lines(
    clock: Clock, screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = screen(80)
    monkeypatch.setenv("TERM", "dumb")
    train(clock)
    assert "\r" not in terminal.getvalue()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_bar_fits_the_terminal(columns: int, clock: Clock, screen: Callable[[int], Terminal]) -> None:
    terminal = screen(columns)
    train(clock)
    states = re.split("[\r\n]", terminal.getvalue())
    assert len(states) > 100
    assert max(map(len, states)) < columns
    assert columns < 60 or any("left" in state for state in states)


def test_a_bar_ends_with_its_line(clock: Clock, screen: Callable[[int], Terminal]) -> None:
    terminal = screen(80)
    train(clock, total=100)
    assert terminal.getvalue().endswith("164 examples/s\n")
    assert terminal.getvalue().count("\n") == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_work_goes_on_where_nobody_reads_any_more(
    is_terminal: bool, clock: Clock, screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: str) -> int:
        raise BrokenPipeError

    stderr = screen(80)
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal)
    with Progress("", "step", 100, shown=True) as shown:
        monkeypatch.setattr(stderr, "write", write)
        work(clock, shown, 1.0, 100)
    assert shown.done == 100


@pytest.mark.parametrize("is_terminal", [True, False])
def test_work_that_is_soon_done_shows_nothing(
    is_terminal: bool, clock: Clock, screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = screen(80)
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal)
    with Progress("build", "shard", 10, shown=True) as shown:
        work(clock, shown, 0.1, 10)
    assert not stderr.getvalue().strip("\r \n")


@given(slow=st.floats(0, 1e4), step=st.floats(1e-3, 1e3), done=st.integers(0, 500), units=st.integers(1, 300))
def test_the_time_left_is_exact_for_steady_work(slow: float, step: float, done: int, units: int) -> None:
    """Whatever the first updates, evaluations and checkpoints took."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", clock)
        shown = Progress("", "step", 1000, shown=False, done=done, warm_up=3)
        work(clock, shown, slow, 3)
        assert shown.left_s() is None
        work(clock, shown, step, units)
        with shown.untimed():
            clock.now += slow
        work(clock, shown, step, 1)
    assert shown.left_s() == pytest.approx((1000 - done - units - 4) * step)


def test_work_of_unknown_size_shows_its_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", "puzzle", None, shown=True) as shown:
        for _ in range(4):
            clock.now += 1.0
            shown.update(1000)
    assert capsys.readouterr().err.splitlines()[-1] == "reading: 4,000 puzzles, 1,000 puzzles/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.3, "under 1 s"), (42, "42 s"), (200, "3 min"), (9000, "2 h 30 min"), (4e5, "4 d 15 h")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
