"""Who holds DVC's files: what its lock file names, and what its messages about it mean."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from flows.errors import GraphError
from flows.stages.locks import PAUSE_SECONDS, WORKSPACE, Say, holder_of

LOCK, RWLOCK = Path(".dvc/tmp/lock"), Path(".dvc/tmp/rwlock")
BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
CORRUPTED = re.compile(r"Unable to read RWLock-file|RWLock-file .* format error")
HOLDER = re.compile(r"^\s*\(PID (\d+)\): (.+)$")

Holder = tuple[int, str]  # number and command of a process


def read_holders(root: Path) -> list[Holder]:
    """Give the processes that DVC's lock file names, whether they live or not.

    Raises:
        ValueError: The file was cut off.
    """
    try:
        content = (root / RWLOCK).read_bytes()
    except FileNotFoundError:
        return []
    if not content:
        return []
    held = json.loads(content)
    try:
        readers = [one for several in held.get("read", {}).values() for one in several]
        named = [*held.get("write", {}).values(), *readers]
        return sorted({(int(one["pid"]), str(one["cmd"])) for one in named})
    except (AttributeError, KeyError, TypeError) as err:
        raise ValueError(f"{RWLOCK} is of another form") from err


def holders_in(lines: Sequence[str]) -> list[Holder]:
    """Find the processes that a message of DVC names."""
    found = [match for match in map(HOLDER.match, lines) if match]
    return list(dict.fromkeys((int(match.group(1)), match.group(2)) for match in found))


def is_at_work(holder: Holder) -> bool:
    """Tell whether a process that holds a lock still lives."""
    return psutil.pid_exists(holder[0]) and holder_has_died(*holder) is None


def holder_has_died(pid: int, command: str) -> str | None:
    """Say that the number of a process that held a lock is another one's by now; else None."""
    try:
        now = psutil.Process(pid).cmdline()
    except psutil.Error:
        return None
    program, *words = command.split(" ")
    if all(any(word in own for own in now) for word in words or [Path(program).stem]):
        return None
    return (
        f"names process {pid} ({command}), a number that belongs to {' '.join(now)!r} by now; what "
        "held the lock has died"
    )


def left_over(holders: Sequence[Holder]) -> str | None:
    """Name a process that took the number of one that died with DVC's lock, as after a power cut.

    DVC looks whether a process of that number lives, and would wait for it without end.
    """
    return next(filter(None, (holder_has_died(*holder) for holder in holders)), None)


def explain_lock(message: str) -> str | None:
    """Say in our words what a message of DVC about its locks means; None where it is about else."""
    if CORRUPTED.search(message):
        return f"{RWLOCK} was cut off. Delete that file"
    if not BUSY.search(message):
        return None
    holders = holders_in(message.splitlines())
    died = left_over(holders)
    return f"{RWLOCK} {died}. Delete that file" if died else _say(holders)


def _say(holders: Sequence[Holder]) -> str:
    named = ", ".join(f"process {pid}" for pid, _ in holders)
    return "another run is at work" + (f" ({named})" if named else "")


def wait_for_others(root: Path, say: Say) -> None:
    """Wait to the end of who is at work in the working tree; `dvc repro` would fail meanwhile.

    Args:
        root: The project.
        say: Told for whom, once of each.

    Raises:
        GraphError: What held DVC's lock has died, or left half of it.
    """
    told, at_work = "", set[Holder]()
    while True:
        try:
            holders = read_holders(root)
        except ValueError as err:
            raise GraphError(f"{root / RWLOCK} was cut off. Delete that file") from err
        died = left_over(holders)
        if died:
            raise GraphError(f"{root / RWLOCK} {died}. Delete that file")
        # Between two stages a run holds no file; it is waited for all the same.
        at_work = {one for one in {*at_work, *holders, *_of_lock(root)} if is_at_work(one)}
        run = holder_of(root / WORKSPACE)
        if not run and not at_work:
            return
        words = f"this working tree is held by {run}" if run else _say(sorted(at_work))
        if words != told:
            say(f"waiting: {words}")
            told = words
        time.sleep(PAUSE_SECONDS)


def _of_lock(root: Path) -> list[Holder]:
    """Give the process that has the whole of DVC's graph, as between two stages."""
    number = number_in_lock(root)
    return [(int(number), "")] if number and number.isdigit() else []


def number_in_lock(root: Path) -> str | None:
    """Give the number of the process that holds DVC's lock; None where nobody does."""
    if holder_of(root / LOCK) is None:
        return None
    return (root / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "not known"
