"""Runs one command and ends it, with everything it started, when standard input closes.

Whoever started it holds the other end of that pipe: it closes when the command shall stop and also
when the starter dies, however it dies. `dvc` passes no signal on to the stage it runs, so the whole
group is ended. SIGTERM is passed on to the command alone. Where the guard itself is killed, Linux
sends the command SIGTERM. Started by file name: `python guard.py COMMAND...`.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from types import FrameType

GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL: training saves what it has learned
PAUSE_SECONDS = 0.05
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # man 2 prctl


def main(command: list[str]) -> int:
    """Run the command in a group of its own and return its exit status, negative for a signal.

    Whatever the command leaves running in its group is ended too.
    """
    running = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509, no thread runs yet
    )
    signal.signal(signal.SIGTERM, partial(_pass_on, running))
    ending = threading.Lock()  # a second SIGTERM would not let the stage save
    threading.Thread(target=_end_at_eof, args=(running.pid, ending), daemon=True).start()
    try:
        return running.wait()
    finally:
        with ending:
            end_group(running.pid)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_group(group: int) -> None:
    """Send SIGTERM to a process group and, to what is left of it after a while, SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        give_up = time.monotonic() + GRACE_SECONDS
        try:
            os.killpg(group, number)
            while time.monotonic() < give_up:
                time.sleep(PAUSE_SECONDS)
                os.killpg(group, 0)
        except ProcessLookupError:  # nobody is left
            return


def _end_at_eof(group: int, ending: threading.Lock) -> None:
    while os.read(0, 1):
        pass
    with ending:
        end_group(group)


def _pass_on(running: subprocess.Popen[bytes], number: int, frame: FrameType | None) -> None:
    running.send_signal(number)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
