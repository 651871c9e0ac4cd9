"""Progress of long loops: a bar with rate and time left on a terminal, plain lines elsewhere.

Who runs a stage reads the lines again (`read_progress`).
"""

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
LINE = re.compile(r"^(?:\w+: )?(?P<what>.+): (\d+) of (\d+) \w+, [\d.]+ a second, (\d+) s left$")
EPOCH = re.compile(r"phase (\d+) of (\d+), epoch (\d+) of (\d+)\b")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a line of a stage's log says of its progress.

    Attributes:
        what: The part of the stage's work.
        share: Of it that is done, in [0, 1]; of training, that of all its phases and epochs.
        seconds_left: As the line says; None where it does not.
    """

    what: str
    share: float
    seconds_left: float | None


def read_progress(line: str) -> Reading | None:
    """Read a line of a stage's log; None where it tells no progress.

    Phases count alike whatever they cost, and one may end before its last epoch.
    """
    told, epoch = LINE.match(line), EPOCH.search(line)
    if told is None and epoch is None:
        return None
    done = int(told[2]) / max(int(told[3]), 1) if told else 1.0
    if epoch is None:
        assert told is not None
        return Reading(told["what"], done, float(told[4]))
    phase, phases, number, epochs = map(int, epoch.groups())
    share = (phase - 1 + (number - 1 + done) / epochs) / phases
    return Reading(f"phase {phase} of {phases}, epoch {number} of {epochs}", share, None)


class Meter(Protocol):
    """What a loop tells its progress to."""

    def advance(self, count: int = 1) -> None:
        """Say that `count` more units are done."""


@contextmanager
def progress(what: str, total: int, unit: str = "images") -> Iterator[Meter]:
    """Show how far a loop of `total` units is, while the block runs.

    Nothing is shown where the log is quiet.
    """
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
        with _Bar(what, total, unit) as bar:
            yield bar
    else:
        yield _Lines(what, total, unit)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed or 0.0
        return Text(f"{rate:,.0f} {task.fields['unit']}/s")


class _Bar:
    def __init__(self, what: str, total: int, unit: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(what, total=total, unit=unit)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)


class _Lines:
    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        log.info(
            "%s: %d of %d %s, %.*f a second, %.0f s left",
            self._what,
            self._done,
            self._total,
            self._unit,
            0 if rate >= 1 else 2,
            rate,
            left,
        )
