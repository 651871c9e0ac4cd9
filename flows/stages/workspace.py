"""One run at a time in one working tree; the kernel frees the lock when its holder dies."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

from flows.errors import GraphError
from flows.stages.runner import BUSY_SECONDS, Say

LOCK = Path(".regraft/flow.lock")
PAUSE_SECONDS = 2.0


@contextmanager
def hold_workspace(
    root: Path, run: str, say: Say, *, busy_seconds: float = BUSY_SECONDS
) -> Iterator[None]:
    """Hold the working tree at `root` for one run; wait while another run holds it.

    Raises:
        GraphError: The other run still holds it after `busy_seconds`.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _wait(file, say, busy_seconds)
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"run": run, "pid": os.getpid(), "since": since}, file)
        file.flush()
        yield


def _wait(file: TextIOWrapper, say: Say, busy_seconds: float) -> None:
    give_up = time.monotonic() + busy_seconds
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(file)
        if time.monotonic() + PAUSE_SECONDS > give_up:
            raise GraphError(f"this working tree is still held by {holder}; run again later")
        if not told:
            say(f"waiting: this working tree is held by {holder}")
            told = True
        time.sleep(PAUSE_SECONDS)


def _holder(file: TextIOWrapper) -> str:
    file.seek(0)
    try:
        held = json.load(file)
        return f"run {held['run']} (process {held['pid']}, since {held['since']})"
    except ValueError:  # the holder is just writing its name
        return "another run"
