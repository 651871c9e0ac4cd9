"""What one run has for itself: a working tree, a clone, a lane of the machine.

Locks are the kernel's: they are free once nobody holds them, however their holders died. The guard
of a stage keeps those of its run until it has ended the stage.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.runtime.machine import Machine, usable_cores

WORKSPACE = Path(".regraft/flow.lock")
LANES = Path(".regraft/lanes")
PAUSE_SECONDS = 2.0

Say = Callable[[str], None]


@contextmanager
def hold(path: Path, run: str, waiting: Say) -> Iterator[int]:
    """Hold a lock while the block runs; give its file descriptor.

    Args:
        path: File of the lock; it names its holder.
        run: Who holds it.
        waiting: Told once, with the holder's name, where another run has it.
    """
    with _waiting([path], run, waiting) as (_, descriptor):
        yield descriptor


@dataclass(frozen=True, slots=True)
class Lane:
    """A share of the machine that one stage computes on; `gpus` is for CUDA_VISIBLE_DEVICES."""

    descriptor: int
    gpus: str | None


@contextmanager
def hold_lane(root: Path, run: str, machine: Machine, waiting: Say) -> Iterator[Lane]:
    """Hold a lane of this machine, so that stages of several runs share it without crowding."""
    shares = lanes_of(machine)
    folder = root / LANES / platform.node()  # the project may lie on a disk that hosts share
    paths = [folder / f"{number}.lock" for number in range(len(shares))]
    with _waiting(paths, run, waiting) as (number, descriptor):
        yield Lane(descriptor, shares[number])


def lanes_of(machine: Machine) -> list[str | None]:
    """Give the GPUs of every lane, None where they are not to be shared out.

    A lane is as many GPUs as a stage has processes; without GPUs, as many cores as it has threads.
    """
    gpus = visible_gpus() if machine.device != "cpu" else []
    share = machine.processes
    if len(gpus) >= 2 * share:
        return [
            ",".join(gpus[start : start + share])
            for start in range(0, len(gpus) - share + 1, share)
        ]
    threads = machine.threads or usable_cores()
    return [None] * (1 if gpus else max(1, usable_cores() // threads))


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Name the GPUs that CUDA would show, without loading torch."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run([program, "-L"], check=False, capture_output=True, text=True)
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [] if listed.returncode else [str(number) for number, _ in enumerate(gpus)]


def holder_of(path: Path) -> str | None:
    """Name who holds a lock; None where it is free."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(path)
    finally:
        os.close(file)
    return None


@contextmanager
def hold_if_free(path: Path, run: str) -> Iterator[int | None]:
    """Hold a lock while the block runs; None where another run has it."""
    descriptor = _try(path, run)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def _waiting(paths: list[Path], run: str, waiting: Say) -> Iterator[tuple[int, int]]:
    """Hold the first of some locks that is free, and wait while none is."""
    told = False
    while True:
        for number, path in enumerate(paths):
            descriptor = _try(path, run)
            if descriptor is not None:
                try:
                    yield number, descriptor
                finally:
                    os.close(descriptor)
                return
        if not told:
            waiting(", ".join(_name(path) for path in paths))
            told = True
        time.sleep(PAUSE_SECONDS)


def _try(path: Path, run: str) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:  # held, or removed in between by who held it
        os.close(descriptor)
        return None
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps({"run": run, "pid": os.getpid(), "since": since}).encode())
    return descriptor


def _name(path: Path) -> str:
    try:
        held = json.loads(path.read_bytes())
        return f"run {held['run']} (process {held['pid']}, since {held['since']})"
    except (OSError, ValueError):  # the holder is just writing its name
        return "another run"
