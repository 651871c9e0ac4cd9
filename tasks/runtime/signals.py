"""Signals that wait for the end of a step, so that what was learned can be saved first."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from tasks.runtime.entry import TERMINATED
from tasks.runtime.processes import Processes

HELD = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], object] | int


class HeldSignals:
    """Whether this process or another one was told to stop.

    Args:
        processes: Stop together.

    Attributes:
        number: The signal that waits here; None: none came.
        stopping: Whether all have agreed to stop.
    """

    def __init__(self, processes: Processes) -> None:
        self.number: int | None = None
        self.stopping = False
        self._processes = processes

    def agree_to_stop(self) -> bool:
        """Give whether a signal waits in any process; all ask after the same step.

        Raises:
            PeerError: Another process has ended or is silent.
        """
        self.stopping = self._processes.any(self.number is not None)
        return self.stopping


@contextmanager
def holding_signals(processes: Processes) -> Iterator[HeldSignals]:
    """Let SIGTERM or SIGINT wait for the end of the block; a second one takes effect at once.

    What this process ignores stays ignored. Outside the main thread, which alone is told of
    signals, none is held.

    Raises:
        SystemExit: All have agreed to stop, and the signal came to another process.
    """
    held, before = HeldSignals(processes), _handlers()

    def hold(number: int, frame: FrameType | None) -> None:
        if held.number is not None:
            _set_handlers(before)
            signal.raise_signal(number)
        held.number = number

    _set_handlers(dict.fromkeys(before, hold))
    try:
        yield held
    finally:
        _set_handlers(before)
        if held.number is not None:
            signal.raise_signal(held.number)
    if held.stopping:
        raise SystemExit(TERMINATED)


def _handlers() -> dict[signal.Signals, Handler]:
    """Give the handlers that can be put aside: those that Python knows and that do something."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in HELD}
    return {
        number: handler
        for number, handler in found.items()
        if handler is not None and handler != signal.SIG_IGN
    }


def _set_handlers(handlers: Mapping[signal.Signals, Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
