"""Runs one command and ends it, with everything it started, when standard input closes.

The flow holds the other end of that pipe: it closes when the flow wants the command to stop and
also when the flow dies, however it dies. `dvc` passes no signal on to the stage it runs, so the
whole group is ended. Started by file name, in a session of its own: `python guard.py COMMAND...`.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL


def main(command: list[str]) -> int:
    """Run the command and return its exit status, negative for a signal."""
    signal.signal(
        signal.SIGTERM, _outlive
    )  # a handler, not SIG_IGN: the command must not inherit it
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_group_at_eof, daemon=True).start()
    status = running.wait()
    os.killpg(0, signal.SIGTERM)  # whatever the command left running
    return status


def _end_group_at_eof() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _outlive(number: int, frame: FrameType | None) -> None:
    """Stay for the SIGKILL that follows."""


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
