"""A signal waits for the end of a block; a second one, and one that is ignored, do not."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from tasks.runtime.processes import ALONE, Processes
from tasks.runtime.signals import holding_signals


def end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as a stage has them, and afterwards those of pytest."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Block:
    """Gets signals one after the other, and perhaps fails; keeps what was agreed in between."""

    def __init__(self) -> None:
        self.answers: list[bool] = []

    def run(self, *numbers: signal.Signals, error: Exception | None = None) -> None:
        with holding_signals(ALONE) as held:
            self.answers.append(held.agree_to_stop())
            for number in numbers:
                signal.raise_signal(number)
                self.answers.append(held.agree_to_stop())
            if error:
                raise error


@pytest.mark.parametrize(
    ("number", "effect"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_takes_effect_at_the_end_of_the_block(
    number: signal.Signals, effect: type[BaseException]
):
    block = Block()
    with pytest.raises(effect):
        block.run(number)
    assert block.answers == [False, True]
    with pytest.raises(effect):  # the handlers are back
        signal.raise_signal(number)


def test_a_second_signal_ends_the_block_at_once():
    block = Block()
    with pytest.raises(SystemExit):
        block.run(signal.SIGTERM, signal.SIGTERM)
    assert block.answers == [False, True]


def test_a_signal_is_not_lost_where_the_block_fails():
    with pytest.raises(SystemExit):
        Block().run(signal.SIGTERM, error=ValueError())


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with holding_signals(ALONE) as held:
        signal.raise_signal(signal.SIGINT)
        assert not held.agree_to_stop()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_without_a_signal_nothing_happens():
    with holding_signals(ALONE) as held:
        assert not held.agree_to_stop()
    assert signal.getsignal(signal.SIGTERM) is end


def test_a_signal_of_another_process_ends_this_one_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Processes, "any", lambda self, mine: True)
    passed = []
    with pytest.raises(SystemExit) as caught, holding_signals(Processes(1, 2)) as held:
        passed.append(held.agree_to_stop())
    assert passed == [True]
    assert caught.value.code == 143


def test_outside_the_main_thread_nothing_is_held():
    def block() -> bool:
        with holding_signals(ALONE) as held:
            assert signal.getsignal(signal.SIGTERM) is end
            return held.agree_to_stop()

    assert threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(block).result() is False
