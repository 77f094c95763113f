"""Which signals a command hears."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from data_pipeline.base import signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    yield
    signals.restore(before)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_whoever_asks_to_stop_is_heard(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signals.catch(lambda number, _: heard.append(number))
    os.kill(os.getpid(), number)
    signals.restore(before)
    assert heard == [number]


def test_under_nohup_the_end_of_the_terminal_is_not_heard_and_others_are() -> None:
    signals.ignore()
    heard: list[int] = []
    signals.catch(lambda number, _: heard.append(number))
    for number in signals.STOP_SIGNALS:
        os.kill(os.getpid(), number)
    assert sorted(heard) == sorted(set(signals.STOP_SIGNALS) - {signal.SIGHUP})


def test_restored_handlers_are_those_before() -> None:
    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    signals.restore(signals.catch(lambda number, _: None))
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before


def test_of_children_only_sigterm_is_heard() -> None:
    with signals.kept_from_children():
        child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                                 stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    for number in set(signals.STOP_SIGNALS) - {signal.SIGTERM}:
        child.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    child.terminate()
    assert child.wait(60) == -signal.SIGTERM
    child.stdout.close()
