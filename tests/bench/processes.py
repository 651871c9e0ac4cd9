"""One command as a process: how long it takes and how much memory its whole tree holds at most."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS_BETWEEN_LOOKS = 1.0  # a look at processes that share memory stops them for a moment
OWN = {"OPENBLAS_THREAD_TIMEOUT"}  # what `tasks` sets here, and sets itself where it runs
SHOWN_LINES = 15  # of the log, when a command fails


@dataclass(frozen=True)
class Measured:
    """Wall time of a command, and the most memory that it and its children held at a time."""

    seconds: float
    peak_bytes: int


def run_measured(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path
) -> Measured:
    """Run a command to its end; its output goes to a file.

    Raises:
        RuntimeError: It failed; the message ends with the last lines of its output.
    """
    started, peak = time.monotonic(), 0
    with log.open("ab") as output:
        process = psutil.Popen(
            command,
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name not in OWN}
            | dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            peak = max(peak, tree_bytes(process))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(lines))
    return Measured(time.monotonic() - started, peak)


def tree_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children; what they share counts once where the system tells."""
    total, tree = 0, [process, *_children(process)]
    for one in tree:
        try:
            memory = one.memory_full_info() if len(tree) > 1 else one.memory_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.Error:  # gone in the meantime
            continue
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def thread_limits(threads: int) -> dict[str, str]:
    """Environment in which every library computes with so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "REGRAFT_THREADS")
    return {name: str(threads) for name in names}
